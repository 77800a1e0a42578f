"""A person's own file of regions: what is read, and everything that is wrong with it at once."""

import json
import math

import pytest
from own_truth import write_scenes, write_screens
from PIL import Image

from rolloutlib import cli
from rolloutlib.runs.notebook import Refused
from rolloutlib.runs.truth import read_truth


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.png")
    return tmp_path


BOX = [4, 5, 10, 12]
IMAGES = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
CATEGORIES = [{"id": 7, "name": "cat"}]


def written(folder, *annotations, images=IMAGES, categories=CATEGORIES):
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def annotation(**changes):
    return {"id": 1, "image_id": 1, "category_id": 7, "bbox": BOX} | changes


def told(path, pictures=None, prompt=""):
    """Everything that is wrong, a line each."""
    with pytest.raises(Refused) as refused:
        read_truth(path, pictures or path.parent, prompt)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


def test_a_question_is_the_annotations_own_or_made_of_its_category(folder):
    own = {"prompt": "what is red?", "answer": "a cat", "segmentation": [[4, 5, 9, 5, 9, 9]]}
    path = written(
        folder, annotation(), annotation(id=2, **own), annotation(id="x", question="Is?")
    )
    first, second, third = read_truth(path, folder)
    assert (first.name, first.picture, first.category) == ("1", "a.png", "cat")
    assert (first.question, first.expected, first.region) == (
        "where is the cat?",
        "",
        {"bbox": BOX},
    )
    assert (second.question, second.expected) == ("what is red?", "a cat")
    assert set(second.region) == {"bbox", "segmentation"}
    assert (third.name, third.question) == ("x", "Is?")
    assert read_truth(path, folder, "Find the {category}.")[0].question == "Find the cat."


def test_files_from_scenes_and_screens_are_read(tmp_path):
    items = read_truth(write_scenes(tmp_path), tmp_path)
    assert [one.name for one in items] == ["0a", "0b", "1a", "1b"]
    assert items[1].question.startswith("where is the ") and not items[1].click
    seen = []
    path = write_screens(tmp_path)
    items = read_truth(path, tmp_path, "Do: {instruction}", lambda *both: seen.append(both))
    assert [one.name for one in items] == ["1", "2"] and all(one.click for one in items)
    assert items[0].question.startswith("Do: click the ") and "windows, " in items[0].category
    assert seen == [(0, 2), (1, 2)]


def test_all_that_is_wrong_is_told_by_name(folder):
    Image.new("RGB", (20, 20)).save(folder.parent / "outside.png")
    (folder / "broken.png").write_text("no picture")
    names = ["a.png", "b.png", "../outside.png", "lost.png", "broken.png", "a.png"]
    images = [{"id": n, "file_name": name} for n, name in enumerate(names, start=1)]
    images[1] |= {"height": 31, "width": 40}
    images[5]["id"] = 5  # as the one before
    path = written(
        folder,
        annotation(id=1, bbox=[math.nan, 1, 2, 3]),
        annotation(id=2, bbox=[4, 4, -1, 3]),
        annotation(id=3, bbox=[4, 4, 0, 0]),
        annotation(id=4, bbox=[35, 4, 9, 3]),
        annotation(id=4, bbox=BOX),
        annotation(id=5, image_id=99),
        annotation(id=6, category_id=8),
        annotation(id=7, category_id=None),
        annotation(id=8, bbox=None),
        annotation(id=9, segmentation={"size": [9, 9], "counts": [81]}),
        annotation(id=10, answer=3),
        annotation(id=11, bbox=[4, 4, -1, 3], segmentation=[[4, 5, 9, 5, 9, 9]]),
        {"image_id": 1, "bbox": BOX},
        "no annotation",
        *(annotation(id=20 + n, image_id=n) for n in (2, 3, 4, 5)),
        images=images,
    )
    wrong = told(path)
    expected = [
        "image 5: this id is there twice",
        "annotation 1: expected 4 finite numbers, got [nan, 1, 2, 3]",
        "annotation 2: expected a box of some width and height, got -1 x 3",
        "annotation 3: expected a box of some width and height, got 0 x 0",
        "annotation 4: expected a region in the picture of 40 x 30, got x 35 to 44, y 4 to 7",
        "annotation 4: this id is there twice",
        "annotation 5: there is no image 99",
        "annotation 6: there is no category 8",
        "annotation 7: expected a category_id, a prompt or a question, got none",
        "annotation 8: expected a bbox or a segmentation, got none",
        "annotation 9: expected a mask of height and width [30, 40], as the picture has, "
        "got [9, 9]",
        "annotation 10: answer: Input should be a valid string",
        "annotation 11: expected a box of some width and height, got -1 x 3",
        "annotation 13: id: Field required",
        "annotation 14: all of it: Input should be a valid dictionary or instance of Annotation",
        "picture b.png: expected 40 x 31 pixels, as the file says, got 40 x 30",
        f"picture ../outside.png: expected a file in {folder}, got one outside",
        f"picture lost.png: expected a picture at {folder}/lost.png, got no such file",
    ]
    assert set(expected) < set(wrong) and len(wrong) == len(expected) + 1
    assert any(line.startswith("picture broken.png: expected a picture, got") for line in wrong)


def test_links_out_of_the_folder_are_told(folder):
    secret = folder.parent / "secret.png"
    Image.new("RGB", (40, 30)).save(secret)
    (folder / "link.png").symlink_to(secret)
    images = [{"id": 1, "file_name": "link.png"}]
    [line] = told(written(folder, annotation(), images=images))
    assert line == f"picture link.png: expected a file in {folder}, got one outside"


def test_what_is_wrong_with_instructions_is_told_by_name(folder):
    entry = {"img_filename": "a.png", "instruction": "click", "bbox": BOX}
    entries = [entry, entry | {"bbox": [0, 0, 99, 9]}, {"img_filename": "a.png"}]
    path = folder / "screens.json"
    path.write_text(json.dumps([*entries, entry | {"img_size": [40, 30]}, entry | {"id": 1}]))
    wrong = told(path, prompt="click it")
    assert wrong[0] == "the prompt: expected {instruction} in it, got 'click it'"
    assert "instruction 2: expected a region in the picture of 40 x 30" in "\n".join(wrong)
    assert "instruction 3: instruction: Field required" in wrong
    assert "instruction 4: img_size: Input should be None" in wrong
    assert "instruction 1: this id is there twice" in wrong


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"rows": []}', "expected the JSON of COCO or of ScreenSpot"),
        ("[]", "expected at least one region, got none"),
        ('{"annotations": []}', "expected at least one region, got none"),
    ],
)
def test_other_files_are_refused(folder, text, complaint):
    path = folder / "truth.json"
    path.write_text(text)
    with pytest.raises(Refused, match=complaint):
        read_truth(path, folder)
    with pytest.raises(Refused, match=r"lost.json: cannot be read"):
        read_truth(folder / "lost.json", folder)


def test_the_command_refuses_before_it_loads_a_model(folder, capsys):
    path = written(folder, annotation(bbox=[0, 0, 99, 9]))
    out = folder / "out"
    assert cli.main(["score", "no/such-model", str(path), "--out", str(out)]) == 2
    assert "annotation 1: expected a region in the picture" in capsys.readouterr().err
    assert not out.exists()
