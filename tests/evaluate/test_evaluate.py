import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_llava import small_llava

from rolloutlib.evaluate import (
    attention_blocks,
    average_precision,
    compare_scores,
    curve_area,
    local_mean,
    mass_in_region,
    mass_over_area,
    mean_difference,
    mean_interval,
    perturbation_curves,
    pointing_game,
    randomise,
    recall_of_places,
    region_auc,
    region_shares,
    removal_ranks,
    replace,
    score_intervals,
    score_on_picture,
    shuffled_blocks,
    shuffled_weights,
    token_means,
)
from rolloutlib.grid import View
from rolloutlib.overlay import to_picture

LEFT = np.array([[True, False], [True, False]])
ALL_SCORES = (pointing_game, mass_in_region, mass_over_area, region_auc, average_precision)


def test_a_perfect_map_scores_one():
    for score in (pointing_game, mass_in_region, region_auc, average_precision):
        assert score(LEFT.astype(float), LEFT) == 1
    assert mass_over_area(LEFT.astype(float), LEFT) == 2


def test_a_map_of_the_rest_scores_zero():
    for score in (pointing_game, mass_in_region, mass_over_area, region_auc):
        assert score(1.0 - LEFT, LEFT) == 0


def test_a_constant_map_scores_its_chance():
    region = np.array([[True, False, False, False]])
    constant = np.ones((1, 4))
    assert pointing_game(constant, region) == 0.25
    assert mass_in_region(constant, region) == 0.25
    assert mass_over_area(constant, region) == 1
    assert average_precision(constant, region) == 0.25
    assert region_auc(constant, region) == 0.5


def test_known_values():
    heatmap = np.array([[4.0, 3.0], [1.0, 2.0]])
    assert pointing_game(heatmap, LEFT) == 1
    assert mass_in_region(heatmap, LEFT) == 0.5
    assert mass_over_area(heatmap, LEFT) == 1
    assert region_auc(heatmap, LEFT) == 0.5
    assert average_precision(heatmap, LEFT) == pytest.approx((1 / 1 + 2 / 4) / 2)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_scores_do_not_depend_on_the_scale(seed, scale):
    rng = np.random.default_rng(seed)
    heatmap, region = rng.random((5, 5)), np.arange(25).reshape(5, 5) % 3 == 0
    for score in ALL_SCORES:
        assert score(heatmap * scale, region) == pytest.approx(score(heatmap, region))


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2)], ids=["words", "picture", "video"])
def test_scores_are_the_same_on_every_grid(shape):
    rng = np.random.default_rng(0)
    heatmap, region = rng.random(12), np.arange(12) % 5 == 0
    for score in ALL_SCORES:
        assert score(heatmap.reshape(shape), region.reshape(shape)) == score(heatmap, region)


@given(st.integers(0, 1000))
def test_shares_of_tokens_give_the_scores_of_their_pixels(seed):
    """The picture was enlarged: one token is 3 of its pixels wide."""
    rng = np.random.default_rng(seed)
    view = View((12, 18), (24, 36), (0, 6), (24, 24), token=6, grid=(4, 4))
    region = np.zeros((12, 18), bool)
    region[rng.integers(0, 6) :, 4 : rng.integers(8, 14)] = True
    heatmap = rng.random((4, 4))
    shares, pixels = region_shares(region, view), to_picture(heatmap, view)
    for score in ALL_SCORES:
        assert score(heatmap, shares) == pytest.approx(score(pixels, region))


@given(
    picture=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    resized=st.tuples(st.floats(24, 60), st.floats(24, 60)),
    offset=st.tuples(st.integers(-8, 0), st.integers(0, 8)),
    seed=st.integers(0, 99),
)
def test_a_pixel_counts_for_the_token_that_its_centre_lies_in(picture, resized, offset, seed):
    view = View(picture, resized, offset, (24, 24), token=6, grid=(4, 4))
    values = np.random.default_rng(seed).random(picture)
    for mean, (left, top, right, bottom) in zip(
        token_means(values, view).flat, view.boxes(), strict=True
    ):
        ys = xs = np.arange(-200, 400) + 0.5
        rows, columns = ((ys >= top) & (ys < bottom)), ((xs >= left) & (xs < right))
        beyond = np.zeros((len(ys), len(xs)))
        beyond[200 : 200 + picture[0], 200 : 200 + picture[1]] = values
        pixels = beyond[np.ix_(rows, columns)]
        assert mean == pytest.approx(pixels.mean() if pixels.size else 0)


def test_a_map_is_scored_as_the_overlay_shows_it():
    """A lone peak beats the region's patch, but not when both are blurred."""
    view = View((8, 24), (8, 24), (0, 0), (8, 24), token=4, grid=(2, 6))
    heatmap = np.array([[9.0, 0, 0, 0, 8, 8], [0, 0, 0, 0, 8, 8]])
    region = np.zeros((8, 24), bool)
    region[:, 16:] = True
    bare, blurred = (score_on_picture(heatmap, view, region, blur_tokens=t) for t in (0, 1))
    assert (bare["pointing game"], blurred["pointing game"]) == (0, 1)
    pixels = to_picture(heatmap, view, blur_tokens=1)
    assert blurred["AUC"] == pytest.approx(region_auc(pixels, region)) == 1


def test_intervals_keep_the_order_of_maps():
    table = pd.DataFrame({"map": ["b", "a"] * 20, "AUC": np.random.default_rng(0).random(40)})
    intervals = score_intervals(table, ["AUC"])["AUC"]
    assert list(intervals) == ["b", "a"]
    assert intervals["a"] == mean_interval(table[table["map"] == "a"]["AUC"])


@pytest.mark.parametrize("apart", [1, 2])
def test_places_are_found_by_the_highest_peaks(apart):
    """The definition, cell by cell, for maps without ties."""
    rng = np.random.default_rng(0)
    recalls = set()
    for _ in range(30):
        heatmap = rng.random((7, 9))
        heatmap[rng.integers(7), rng.integers(9)] = np.nan
        regions = list(rng.random((3, 7, 9)) < 0.3)
        peaks = []
        for row, column in np.ndindex(heatmap.shape):
            top, left = max(row - apart, 0), max(column - apart, 0)
            near = heatmap[top : row + apart + 1, left : column + apart + 1]
            if heatmap[row, column] == np.nanmax(near):
                peaks.append((heatmap[row, column], row, column))
        highest = sorted(peaks)[::-1][:3]
        found = [any(region[row, column] for _, row, column in highest) for region in regions]
        assert recall_of_places(heatmap, regions, apart=apart) == pytest.approx(np.mean(found))
        recalls.add(round(np.mean(found), 2))
    assert len(recalls) > 2


def test_one_place_is_the_pointing_game_and_a_constant_map_finds_its_share():
    rng = np.random.default_rng(1)
    heatmap, region = rng.random((5, 6)), rng.random((5, 6)) < 0.4
    assert recall_of_places(heatmap, [region]) == pointing_game(heatmap, region)
    assert recall_of_places(np.ones((2, 2)), [LEFT, ~LEFT]) == 0.5
    with pytest.raises(ValueError, match="at least one region, got none"):
        recall_of_places(heatmap, [])


def test_what_was_not_seen_takes_no_part():
    heatmap = np.array([[0.2, np.nan], [0.1, np.nan]])
    region = np.array([[True, True], [False, True]])
    for score in (pointing_game, region_auc):
        assert score(heatmap, region) == 1
    assert mass_in_region(heatmap, region) == pytest.approx(2 / 3)


def test_random_maps_score_the_area():
    rng = np.random.default_rng(0)
    region = np.zeros((10, 10), bool)
    region[:3] = True
    maps = [rng.random((10, 10)) for _ in range(500)]
    chances = {pointing_game: 0.3, mass_in_region: 0.3, mass_over_area: 1, region_auc: 0.5}
    for score, chance in chances.items():
        _, low, high = mean_interval([score(heatmap, region) for heatmap in maps])
        assert low <= chance <= high and high - low < 0.1


def test_the_interval_of_equal_scores_is_a_point():
    assert mean_interval([1.0, 1.0, 1.0]) == (1, 1, 1)


def test_a_small_gain_on_every_case_is_clear_although_intervals_overlap():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    scores = pd.DataFrame({"base": base, "a little more": base + 0.01, "other": rng.random(200)})
    scores.loc[7, "a little more"] = np.nan
    compared = compare_scores(scores, "base")
    low, high = mean_interval(scores["base"])[1], mean_interval(scores["a little more"][8:])[1]
    assert low < high < mean_interval(scores["base"])[2]
    assert compared["verdict"].tolist() == ["higher", "no clear difference"]
    assert compared["n"].tolist() == [199, 200]
    np.testing.assert_allclose(compared.iloc[0, :3].tolist(), 0.01)
    lower = compare_scores(scores, "a little more").loc["base"]
    assert lower["verdict"] == "lower" and lower["mean"] == pytest.approx(-0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_difference([1.0, 2.0], [1.0]), "same cases"),
        (lambda: compare_scores(pd.DataFrame({"rollout": [1.0]}), "last layer"), "base among"),
        (lambda: region_auc(np.ones((2, 2)), np.zeros((2, 2), bool)), "part of the picture"),
        (lambda: mass_over_area(np.ones((2, 2)), np.ones((2, 2), bool)), "part of the picture"),
        (lambda: perturbation_curves(np.ones(3), len, [0, 0]), "ascending"),
        (lambda: perturbation_curves(np.ones(3), len, [0, 1.5]), "ascending"),
        (lambda: local_mean(Image.new("RGB", (4, 4)), 0.0), "reach"),
        (lambda: mass_in_region(np.zeros((2, 2)), LEFT), "zeros only"),
        (lambda: pointing_game(np.full((2, 2), np.nan), LEFT), "NaN only"),
        (lambda: pointing_game(np.ones((2, 3)), LEFT), "shape"),
        (lambda: mean_interval([1.0]), "at least two"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What removal does to the answer


@given(st.integers(0, 1000), st.sampled_from([(7,), (3, 4), (2, 2, 3)]))
def test_curves_of_a_linear_model_equal_the_closed_form(seed, shape):
    """y = Σ w x; a removed cell has its mean m for its x, so it takes w (x - m) away."""
    rng = np.random.default_rng(seed)
    w, x, m, heatmap = (rng.normal(size=shape) for _ in range(4))
    fractions = np.linspace(0, 1, w.size + 1).tolist()

    def linear(removed):
        return np.where(removed, m, x).reshape(len(removed), -1) @ w.ravel()

    curves = perturbation_curves(heatmap, linear, fractions)
    effect = (w * (x - m)).ravel()[np.argsort(-heatmap.ravel())]
    taken = np.concatenate([[0], effect.cumsum()])
    np.testing.assert_allclose(curves.deletion, (w * x).sum() - taken, atol=1e-12)
    np.testing.assert_allclose(curves.insertion, (w * m).sum() + taken, atol=1e-12)


def test_no_map_deletes_faster_than_the_effect_itself():
    rng = np.random.default_rng(0)
    effect = rng.exponential(size=20)
    fractions = np.linspace(0, 1, 21).tolist()

    def area(heatmap):
        curves = perturbation_curves(heatmap, lambda gone: ~gone @ effect, fractions)
        return curve_area(curves.fractions, curves.deletion)

    best, worst = area(effect), area(-effect)
    others = [area(rng.random(20)) for _ in range(50)]
    assert all(best <= other <= worst for other in others)
    assert np.mean(others) == pytest.approx((best + worst) / 2, rel=0.05)


def test_area_of_uneven_steps():
    assert curve_area(np.array([0.0, 0.1, 1.0]), np.array([1.0, 0.0, 0.0])) == pytest.approx(0.05)
    assert curve_area(np.array([0.0, 0.5]), np.array([2.0, 4.0])) == 3


def test_ties_are_removed_in_random_order():
    first = [int(removal_ranks(np.ones(4), seed=seed).argmin()) for seed in range(400)]
    counts = np.bincount(first, minlength=4)
    assert counts.min() > 60
    assert (removal_ranks(np.array([1.0, 3.0, 2.0])) == [2, 0, 1]).all()


def test_replaced_pixels_are_those_of_the_removed_tokens():
    view = View((4, 8), (4, 8), (0, 2), (4, 4), token=2, grid=(2, 2))
    picture = Image.fromarray(np.full((4, 8, 3), 200, np.uint8))
    removed = np.array([[True, False], [False, False]])
    pixels = np.asarray(replace(picture, removed, view, np.full((4, 8, 3), 10.0)))
    expected = np.full((4, 8), 200)
    expected[:2, 2:4] = 10
    assert (pixels == expected[..., None]).all()


def test_local_mean_is_the_mean_of_the_square_around():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    mean = local_mean(Image.fromarray(pixels), reach=1 / 3)
    np.testing.assert_allclose(mean[4, 5], pixels[3:6, 4:7].mean((0, 1)))


# Weights in random order


def test_shuffled_weights_come_back_bit_for_bit():
    model = small_llava()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), shuffled_weights(model):
        shuffled = model.state_dict()
        assert any((shuffled[name] != before[name]).any() for name in before)
        for name, tensor in before.items():
            torch.testing.assert_close(
                shuffled[name].flatten().sort().values, tensor.flatten().sort().values
            )
        raise ZeroDivisionError
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_blocks_are_shuffled_alone_and_from_the_last_one_down():
    model = small_llava()
    blocks = attention_blocks(model)[-3:]
    tensors = [next(model.get_submodule(path).parameters()) for path in blocks]
    before = [tensor.clone() for tensor in tensors]

    def changed():
        return [float((a != b).any()) for a, b in zip(tensors, before, strict=True)]

    scores = {"last": lambda maps: [maps[-1]] * 2, "all": lambda maps: maps}
    bands = randomise(model, blocks, changed, scores)
    assert bands.loc[("all", "cascading"), "mean"].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert bands.loc[("all", "independent"), "mean"].tolist() == pytest.approx([1 / 3] * 3)
    assert bands.loc[("last", "independent"), "mean"].tolist() == [1, 0, 0]
    assert bands.loc[("all", "cascading"), "block"].tolist() == blocks[::-1]
    assert changed() == [0, 0, 0]


def test_only_the_named_blocks_are_shuffled():
    model = small_llava()
    blocks = attention_blocks(model)
    assert blocks[-1] == "model.language_model.layers.3" and len(blocks) == 3 + 4
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with shuffled_blocks(model, blocks[-2:]):
        changed = {n for n, tensor in model.state_dict().items() if (tensor != before[n]).any()}
        assert {name.rsplit(".", 3)[0] for name in changed} == set(blocks[-2:])
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
