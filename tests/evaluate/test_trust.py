"""A map's peak is removed and the model asked again; and the committed table of many checks."""

from math import log

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from places import DATA
from scipy.ndimage import uniform_filter
from small_llava import save_small_llava

from rolloutlib import heatmaps, load_model
from rolloutlib.evaluate import (
    candidate_maps,
    check_peak,
    local_mean,
    region_shares,
    verified_peak,
)
from rolloutlib.evaluate.methods import BEYOND, METHODS, evidence_of
from rolloutlib.evaluate.trust import (
    SIZES,
    PeakCheck,
    _Scene,
    calibrated,
    calibration,
    features,
    glance,
    log_odds,
    on_pixels,
    peaks_of,
    rivals,
    signals,
)
from rolloutlib.tiny.scenes import load_photos, make_scenes

MODELS = ["tiny-fuyu", "tiny-llava", "tiny-qwen3-5", "tiny-qwen3-vl"]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a model of random weights says about a random picture."""
    model = load_model(save_small_llava(tmp_path_factory.mktemp("llava")), dtype="float32")
    model.model.generation_config.eos_token_id = None
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    asked = "what colour is the star ?"
    return model.generate(Image.fromarray(pixels), asked, max_new_tokens=2, record=True)


@pytest.fixture(scope="module")
def asked():
    """A question that the small LLaVA answers correctly, the answer, and a map of its region."""
    model = load_model(DATA / "checkpoints" / "tiny-llava", dtype="float32")
    [scene] = make_scenes(5, 1, load_photos(DATA / "images", split="test"))
    question = scene.questions[0]
    answer = model.generate(scene.picture, question.text, max_new_tokens=4, record=True)
    assert answer.text == question.answer
    return question, answer, region_shares(question.region, answer.image.patch_view)


def one_high(shape, row, column):
    heatmap = np.zeros(shape)
    heatmap[row, column] = 1
    return heatmap


def test_squares_are_replaced_by_blur_and_by_the_local_mean(said):
    told, heatmap = [], one_high((4, 4), 1, 2)
    check = check_peak(said, heatmap, on_progress=lambda *now: told.append(now))
    assert told == [(0, 9), (9, 9)]
    picture = said.image.picture
    flat = Image.fromarray(np.rint(local_mean(picture, 0.5)).astype(np.uint8))
    expected = []
    for box in (*check.boxes, *check.control_boxes):
        for substitute in (picture.filter(ImageFilter.GaussianBlur(box[2] - box[0])), flat):
            changed = picture.copy()
            changed.paste(substitute.crop(box), box)
            expected.append(changed)
    whole, *without = said.model.log_probability(said, [picture, *expected]).double().numpy()
    drops = np.concatenate([check.drops, check.controls]).ravel()
    np.testing.assert_allclose(drops, whole - np.array(without), atol=1e-6)
    values = features(check.drops, check.controls, whole, check.contrast)
    assert check.probability == pytest.approx(calibrated("check", values))
    assert check.box == check.boxes[-1] and check.log_probability == pytest.approx(whole)


def test_squares_are_shares_of_what_the_model_saw_and_controls_lie_apart(said):
    check = check_peak(said, one_high((4, 4), 1, 2), seed=3)
    x, y = check.point
    sides = [right - left for left, _, right, _ in check.boxes]
    assert sides == [round(np.sqrt(share * 64 * 64)) for share in (0.01, 0.05)]  # a crop of 64x64
    left, top, right, bottom = check.box
    assert left <= x < right and top <= y < bottom
    for side, (a, b, c, d) in zip(sides, check.control_boxes, strict=True):
        assert c - a == d - b == side
        assert c <= left or a >= right or d <= top or b >= bottom
        assert 16 <= a and c <= 80  # the model saw nothing else


def test_features_are_what_they_are_defined_as():
    rng = np.random.default_rng(0)
    drops, controls, before = rng.random((2, 2)), 0.1 * rng.random((2, 2)), -0.2

    def odds(value):
        return log(np.exp(value) / (1 - np.exp(value)))

    def fall(drop):
        return np.arcsinh(odds(before) - odds(before - drop))

    found = features(drops, controls, before, 0.3)
    for name, number in {"small": 0, "large": 1}.items():
        both = [np.mean([fall(d) for d in each[number]]) for each in (drops, controls)]
        assert found[name] == pytest.approx(both[0] - both[1], rel=1e-12)
    assert found["contrast"] == 0.3
    assert set(found) | {"intercept"} == set(calibration()["check"])
    assert calibration()["check"]["small"] > 0 and calibration()["check"]["large"] > 0


def test_log_odds_of_certainty_are_finite():
    assert np.isfinite(log_odds(np.array([0.0, -1e-12, -800.0]))).all()


@pytest.mark.parametrize(
    ("probability", "sentence"),
    [
        (0.94, "the answer depends on this place: 0.94"),
        (0.55, "can't tell: 0.55"),
        (0.06, "the answer does not depend on this place: 0.06"),
    ],
)
def test_a_check_says_so_in_words(probability, sentence):
    some, box = np.zeros((1, 2)), (0, 0, 2, 2)
    check = PeakCheck(probability, (1, 1), (box,), some, (box,), some, -0.1, 0.5)
    assert check.sentence == sentence and sentence.replace("the answer ", "").startswith(
        check.verdict
    )


def test_a_needed_place_is_told_from_another(asked):
    question, answer, region = asked
    needed = check_peak(answer, region)
    assert question.region[needed.point[1], needed.point[0]]
    elsewhere = one_high(region.shape, *np.unravel_index(region.argmin(), region.shape))
    other = check_peak(answer, elsewhere)
    assert needed.verdict == "depends" and needed.drops[-1].mean() > 1
    assert np.abs(other.drops).max() < 0.01 and other.verdict != "depends"


def test_a_wrong_peak_is_replaced_and_a_right_one_kept(asked):
    question, answer, region = asked
    elsewhere = one_high(region.shape, *np.unravel_index(region.argmin(), region.shape))
    maps, told = {"shown": elsewhere, "another": region}, []
    found = verified_peak(answer, maps, shipped="shown", on_progress=lambda *now: told.append(now))
    assert found.name == "another" and found.heatmap is region
    assert question.region[found.point[1], found.point[0]]
    assert told[-1] == (20, 20) and len(found.drops) == len(found.points) <= 5
    assert found.drops.argmax() == 1 and found.check.verdict == "depends"
    kept = verified_peak(answer, maps, shipped="another")
    assert (kept.name, kept.check.point) == kept.points[0] == ("another", found.check.point)
    assert len(kept.drops) == len(kept.points) and kept.drops.argmax() == 0


def test_the_kept_peak_has_the_highest_sum(asked):
    _, answer, region = asked
    rng = np.random.default_rng(3)
    maps = {"shown": rng.random(region.shape), "another": region, "third": rng.random(region.shape)}
    found, sums = verified_peak(answer, maps, shipped="shown"), []
    shown = on_pixels(answer, maps["shown"])
    for (name, point), drop in zip(found.points, found.drops, strict=True):
        x, y = point
        box = _Scene(answer, maps[name], SIZES, 0).box(
            point, found.check.box[2] - found.check.box[0]
        )
        off = np.abs(
            np.asarray(answer.image.picture, float) - local_mean(answer.image.picture, 0.5)
        )
        seen = uniform_filter(off.mean(-1), 5, mode="nearest")
        share = seen[y, x] / seen[box[1] : box[3], box[0] : box[2]].max()
        sums.append(np.arcsinh(drop) + shown[y, x] / shown.max() + share)
    assert (found.name, found.check.point) == found.points[int(np.argmax(sums))]


def test_a_peak_moves_within_its_token(said):
    for view in (said.image.view, said.image.patch_view):
        scene = _Scene(said, np.arange(16.0).reshape(view.grid), SIZES, 0)
        for left, top, right, bottom in view.boxes():
            cell = scene.cell((int((left + right) / 2), int((top + bottom) / 2)))
            expected = np.rint([left, top, right, bottom]).clip(0, [96, 64, 96, 64])
            np.testing.assert_array_equal(cell, expected)


def test_candidate_maps_are_those_of_the_methods(said):
    maps, evidence = candidate_maps(said), evidence_of(said.model, said)
    assert next(iter(maps)) == BEYOND
    for name, heatmap in maps.items():
        np.testing.assert_allclose(heatmap, METHODS[name].heatmap(evidence), atol=1e-6)
    [last] = candidate_maps(said, [1])["last layer"][None]
    how = {"start_layer": len(said.recording["language"]) - 1, "residual": 0.0}
    np.testing.assert_allclose(last, heatmaps(said.recording, said, **how)[1], atol=1e-7)
    assert 0 < glance(said, maps) < 1


def test_signals_without_a_pass():
    pixels = np.full((20, 20), 0.5)
    pixels[4, 5] = 50.0
    maps = {"shown": pixels, "same": pixels, "other": np.roll(pixels, 9, 0)}
    found = signals(maps, "shown")
    shares = pixels.ravel() / pixels.sum()
    assert found["entropy"] == pytest.approx(-(shares * np.log(shares)).sum() / np.log(400))
    assert found["agreement"] == 0.5
    assert found["mass"] == pytest.approx(pixels[1:7, 2:8].sum() / pixels.sum())


def test_rivals_are_apart_and_the_best_come_first():
    pixels = np.zeros((10, 40))
    pixels[5, [5, 25]] = 2.0, 1.0
    other = np.zeros((10, 40))
    other[5, [6, 35, 25]] = 3.0, 2.0, 1.0
    assert peaks_of(other, 2) == [(6, 5), (35, 5)]
    assert rivals({"b": other, "a": pixels}, "a", 4.0) == [("a", (25, 5)), ("b", (35, 5))]


def test_what_cannot_be_checked_is_said(said, without_type_checks):
    with pytest.raises(ValueError, match="heatmap on the grid 4x4, got 3x5"):
        check_peak(said, np.ones((3, 5)))
    with pytest.raises(ValueError, match="a highest place, got the same value everywhere"):
        check_peak(said, np.ones((4, 4)))
    for sizes in ((), (0.0,), (0.5,), (0.01, 0.02, 0.03, 0.04)):
        with pytest.raises(ValueError, match="expected 1 to 3 sizes"):
            check_peak(said, one_high((4, 4), 1, 2), sizes=sizes)
    with pytest.raises(ValueError, match="expected a map called 'shown', got other"):
        verified_peak(said, {"other": one_high((4, 4), 1, 2)}, shipped="shown")


# The committed tables


def test_the_committed_tables_have_their_form():
    table = pd.read_csv(DATA / "results/trust.csv")
    assert list(table) == ["model", "score", "value", "low", "high", "n"]
    assert not table.duplicated(["model", "score"]).any()
    assert sorted(set(table["model"])) == MODELS
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    wide = table.pivot(index="score", columns="model", values="value")
    assert wide.loc[["auc", "brier", "pointing", "verified_pointing"]].notna().all(axis=None)
    bins = pd.read_csv(DATA / "results/reliability.csv")
    counts = table[table["score"] == "brier, with random places"].set_index("model")["n"]
    assert bins.groupby("model")["n"].sum().to_dict() == counts.to_dict()


def test_the_trials_table_has_its_form_and_each_rule_once_a_model():
    table = pd.read_csv(DATA / "results/trust_trials.csv")
    assert list(table) == ["model", "score", "rule", "value", "low", "high", "n"]
    assert not table.duplicated(["model", "score", "rule"]).any()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    for _, part in table.groupby("score"):
        assert part.pivot(index="rule", columns="model", values="n").notna().all(axis=None)
    choices = table[table["score"] == "pointing"].pivot(index="model", columns="rule")["value"]
    falls = choices.filter(like="largest fall")  # each keeps one of the peaks
    assert falls.le(choices["some peak, if one knew which"], axis=0).all(axis=None)
