"""The scenes say what is where, and every question has exactly the answer they claim."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import DATA
from scipy import ndimage

from rolloutlib.tiny.scenes import (
    COLOURS,
    COLUMNS,
    KINDS,
    PHOTOS,
    ROWS,
    SHAPES,
    load_photos,
    make_scene,
    make_scenes,
)

IMAGES = DATA / "images"
GREY = [Image.new("RGB", (500, 400), "grey")]


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(5, 60, GREY, size=(168, 168))


def test_notebooks_pick_one_of_the_kinds_that_every_scene_has():
    scenes = make_scenes(0, 100, GREY, size=(168, 168))
    always = set.intersection(*({question.kind for question in s.questions} for s in scenes))
    notebooks = DATA.parent.joinpath("notebooks").glob("*.ipynb")
    kind = re.compile(r'next\(q for .* q\.kind == \\"(.*?)\\"')
    picked = {found for notebook in notebooks for found in kind.findall(notebook.read_text())}
    assert {"where", "colour at"} == picked <= always


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(48, 300), width=st.integers(48, 300))
def test_every_size_holds_two_to_four_objects_in_cells_of_their_own(seed, height, width):
    scene = make_scene(np.random.default_rng(seed), GREY, size=(height, width))
    assert scene.picture.size == (width, height)
    assert 2 <= len(scene.objects) <= 4
    assert len({(thing.row, thing.column) for thing in scene.objects}) == len(scene.objects)
    assert len({(thing.shape, thing.colour) for thing in scene.objects}) == len(scene.objects)
    for thing in scene.objects:
        assert thing.mask.shape == (height, width) and thing.mask.dtype == bool
        ys, xs = np.nonzero(thing.mask)
        for place, cell, side in ((ys, thing.row, height), (xs, thing.column, width)):
            assert place.min() >= side * cell / 3 - 1  # an edge may touch the next cell's pixel
            assert place.max() < side * (cell + 1) / 3 + 1


def test_a_mask_is_exactly_what_its_object_paints(scenes):
    for scene in scenes[:20]:
        pixels = np.asarray(scene.picture).astype(int)
        for thing in scene.objects:
            far = np.abs(pixels - COLOURS[thing.colour]).max(-1)
            inside = ndimage.binary_erosion(thing.mask, iterations=2)
            assert far[inside].max() <= 10, "inside the edge all is paint"
        painted = np.any([thing.mask for thing in scene.objects], axis=0)
        outside = ~ndimage.binary_dilation(painted, iterations=4)  # the tips of stars are thin
        assert np.abs(pixels[outside] - np.array(GREY[0].getpixel((0, 0)))).max() == 0


def test_shapes_differ_by_more_than_their_turn(scenes):
    """Only a ring has a hole; only circles and squares fill most of their bounding box."""
    for thing in (thing for scene in scenes for thing in scene.objects):
        holes = ndimage.label(~thing.mask)[1] - 1
        assert holes == (thing.shape == "ring")
        ys, xs = np.nonzero(thing.mask)
        across = max(np.ptp(ys), np.ptp(xs)) + 1
        assert (thing.mask.sum() > 0.74 * across**2) <= (thing.shape in ("circle", "square"))


def test_every_answer_can_be_read_from_the_objects(scenes):
    for scene in scenes:
        for question in scene.questions:
            assert question.answer in possible_answers(question, scene.objects)
            assert len(possible_answers(question, scene.objects)) == 1


def possible_answers(question, objects):
    """Every answer that the objects allow, from the words of the question alone."""
    said = set(question.text.rstrip("?").split())
    fitting = [
        thing
        for thing in objects
        if all(
            not (said & {*words}) or word in said
            for words, word in (
                (SHAPES, thing.shape),
                (COLOURS, thing.colour),
                (ROWS, ROWS[thing.row]),
                (COLUMNS, COLUMNS[thing.column]),
            )
        )
    ]
    if question.kind == "there":
        return {"yes" if fitting else "no"}
    asked = question.kind.split()[0]
    read = {"colour": "colour", "shape": "shape", "where": "place"}[asked]
    return {getattr(thing, read) for thing in fitting}


def test_a_region_is_the_object_asked_about_and_empty_for_a_no(scenes):
    for scene in scenes:
        for question in scene.questions:
            if question.answer == "no":
                assert not question.region.any()
            else:
                assert any(question.region is thing.mask for thing in scene.objects)


def test_kinds_and_answers_are_varied(scenes):
    asked = [question for scene in scenes for question in scene.questions]
    assert {question.kind for question in asked} == {*KINDS}
    there = [question.answer for question in asked if question.kind == "there"]
    assert there.count("yes") == there.count("no")
    answers = {question.answer for question in asked}
    assert answers >= {
        *SHAPES,
        *COLOURS,
        *(f"{row} {column}" for row in ROWS for column in COLUMNS),
    }


def test_the_same_seed_makes_the_same_scenes():
    first, second = (make_scenes(3, 2, GREY, size=(60, 90)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.picture.tobytes() == other.picture.tobytes()
        assert [q.text for q in one.questions] == [q.text for q in other.questions]
    assert make_scenes(4, 1, GREY, size=(60, 90))[0].picture.tobytes() != first[0].picture.tobytes()


def test_photographs_are_split_and_all_described():
    assert not {*PHOTOS["train"]} & {*PHOTOS["test"]}
    for split in PHOTOS:
        assert [photo.mode for photo in load_photos(IMAGES, split)] == ["RGB"] * len(PHOTOS[split])
    described = (IMAGES.parent / "README.md").read_text()
    for photo in IMAGES.iterdir():
        assert f"`images/{photo.name}`" in described
        assert photo.stat().st_size < 500_000


def test_bad_input_is_named(tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least one photo"):
        make_scene(rng, [])
    with pytest.raises(ValueError, match="48 pixels"):
        make_scene(rng, GREY, size=(40, 100))
    with pytest.raises(ValueError, match="count must be 0 or more, got -1"):
        make_scenes(0, -1, GREY)
    with pytest.raises(ValueError, match="got 'dev'"):
        load_photos(IMAGES, "dev")
    with pytest.raises(FileNotFoundError):
        load_photos(tmp_path, "train")


@pytest.mark.parametrize("objects", [(1, 1), (2, 4), (9, 9)])
def test_a_scene_has_as_many_objects_as_asked_for(objects):
    photo = Image.new("RGB", (300, 300), "grey")
    for scene in make_scenes(0, 5, [photo], size=(90, 120), objects=objects):
        assert objects[0] <= len(scene.objects) <= objects[1]


@pytest.mark.parametrize("objects", [(0, 2), (3, 2), (1, 10)])
def test_a_number_of_objects_that_cannot_be_is_named(objects):
    with pytest.raises(ValueError, match="expected 1 to 9 objects"):
        make_scenes(0, 1, [Image.new("RGB", (300, 300))], objects=objects)
