"""Scores of a map on a picture of one's own, against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
from own_truth import box_of
from PIL import Image
from places import DATA
from sklearn.metrics import roc_auc_score
from small_llava import save_small_llava
from small_processors import small_loaded

from rolloutlib import heatmaps, load_model
from rolloutlib.evaluate.known import Found, drawn, map_of, score_of
from rolloutlib.evaluate.methods import BEYOND, METHODS, evidence_of
from rolloutlib.evaluate.trust import check_peak
from rolloutlib.models.clicks import read_click
from rolloutlib.overlay import TARGET, to_picture
from rolloutlib.tiny.scenes import load_photos, make_scenes
from rolloutlib.tiny.screens import make_screens

CHECKPOINTS = DATA / "checkpoints"


@pytest.fixture(scope="module")
def llava():
    return load_model(CHECKPOINTS / "tiny-llava", dtype="float32")


@pytest.fixture(scope="module")
def question():
    [scene] = make_scenes(7, 1, load_photos(DATA / "images", "test"), size=(300, 420))
    return scene.picture, next(q for q in scene.questions if q.kind == "colour at")


@pytest.fixture(scope="module")
def found(llava, question):
    return map_of(llava, question[0], question[1].text)


def test_the_map_is_the_one_that_the_notebooks_show(llava, found):
    shown = METHODS[BEYOND].heatmap(evidence_of(llava, found.answer))
    np.testing.assert_allclose(found.heatmap, shown, rtol=1e-4, atol=1e-8)


def test_scores_are_those_of_the_pictures_own_pixels(found, question, tmp_path):
    picture, asked = question
    path = tmp_path / "map.webp"
    how = {"trust": False, "output_path": path}
    scores = score_of(found, {"bbox": box_of(asked.region)}, asked.answer, **how)
    left, top, width, height = box_of(asked.region)
    region = np.zeros(picture.size[::-1], bool)
    region[top : top + height, left : left + width] = True
    pixels = to_picture(found.heatmap, found.answer.image.patch_view, blur_tokens=0.5)
    seen = ~np.isnan(pixels)  # the model saw a square in the middle
    assert 0 < seen.mean() < 1
    values, inside = pixels[seen].astype(np.float64), region[seen]
    assert scores["pointing"] == inside[values.argmax()]
    assert scores["mass"] == pytest.approx(values[inside].sum() / values.sum(), rel=1e-6)
    assert scores["AUC"] == pytest.approx(roc_auc_score(inside, values), rel=1e-6)
    assert scores["area"] == pytest.approx(inside.mean())
    assert scores["answer"] == asked.answer and scores["right"] is True
    with Image.open(path) as kept:
        assert kept.format == "WEBP" and kept.size == picture.size


def test_trust_is_what_a_check_of_the_peak_says(tmp_path):
    model = load_model(save_small_llava(tmp_path), dtype="float32")
    picture = Image.effect_noise((96, 64), 99).convert("RGB")
    answer = model.generate(picture, "what colour is the star ?", min_new_tokens=2)
    heatmap = heatmaps(model.record(answer), answer).double().mean(0).numpy()
    found = Found(answer, heatmap, None, 0.0)
    check = check_peak(found.answer, found.heatmap)
    scores = score_of(found, {"bbox": [30, 20, 9, 9]})
    assert scores["trust"] == pytest.approx(check.probability)
    assert scores["verdict"] == check.verdict and scores["right"] is None


def test_what_has_no_meaning_has_no_number(found, question):
    blank = replace(found, heatmap=np.zeros_like(found.heatmap))
    scores = score_of(blank, {"bbox": [0, 0, 9, 9]}, "another")  # a corner the model did not see
    assert scores["pointing"] == scores["area"] == 0 and scores["right"] is False
    assert np.isnan([scores["mass"], scores["AUC"], scores["trust"]]).all()
    assert scores["verdict"] == "can't tell"


@pytest.mark.parametrize(
    ("expected", "right"), [("", None), (" {}. ", True), ("{}s", False), ("{}.", True)]
)
def test_an_answer_is_right_whatever_its_case_and_full_stop(found, question, expected, right):
    expected = expected.format(found.answer.text.upper())
    scores = score_of(found, {"bbox": [200, 100, 9, 9]}, expected, trust=False)
    assert scores["right"] is right and "trust" not in scores


def test_the_region_is_outlined_in_green(found, question):
    picture, asked = question
    shown = np.asarray(drawn(picture, found, asked.region))
    green = (shown == TARGET).all(-1)
    assert green.sum() > 50 and not green[asked.region].any()
    assert (np.abs(np.argwhere(green) - np.argwhere(asked.region).mean(0)) < 80).all()


def test_a_click_is_right_where_it_lands_and_its_map_is_of_its_coordinates():
    adapter = CHECKPOINTS / "tiny-qwen3-vl-click-lora"
    model = load_model(CHECKPOINTS / "tiny-qwen3-vl", adapter_id=adapter, dtype="float32")
    [screen] = make_screens(3, 1)
    told = next(i for i in screen.instructions if i.kind == "colour")
    found = map_of(model, screen.picture, told.text, click=True)
    click = read_click(found.answer)
    assert 0 < len(click.tokens) < len(found.answer.tokens)
    settings = {"residual": 0.9, "beyond_even": True}
    maps = heatmaps(found.answer.recording, found.answer, **settings)
    np.testing.assert_allclose(found.heatmap, maps[click.tokens].double().mean(0))
    box = box_of(told.element.mask)
    scores = score_of(found, {"bbox": box}, trust=False)
    assert scores["right"] is True and scores["AUC"] > 0.9
    elsewhere = [(box[0] + 200) % 400, *box[1:]]
    assert score_of(found, {"bbox": elsewhere}, trust=False)["right"] is False


def test_where_image_tokens_see_each_other_nothing_is_taken_out():
    model = small_loaded("paligemma")
    tokens = {"question": "what is this ?", "max_new_tokens": 2, "residual": 0.5}
    found = map_of(model, Image.effect_noise((96, 64), 99).convert("RGB"), **tokens)
    maps = heatmaps(found.answer.recording, found.answer)
    np.testing.assert_allclose(found.heatmap, maps.double().mean(0))
    taken = heatmaps(found.answer.recording, found.answer, beyond_even=True)
    assert not np.allclose(found.heatmap, taken.double().mean(0))
