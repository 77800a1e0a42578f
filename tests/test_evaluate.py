import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_llava import small_llava

from rolloutlib.evaluate import (
    mass_in_region,
    mean_interval,
    pointing_game,
    region_auc,
    shuffled_weights,
)

LEFT = np.array([[True, False], [True, False]])


def test_a_perfect_map_scores_one():
    for score in (pointing_game, mass_in_region, region_auc):
        assert score(LEFT.astype(float), LEFT) == 1


def test_a_map_of_the_rest_scores_zero():
    for score in (pointing_game, mass_in_region, region_auc):
        assert score(1.0 - LEFT, LEFT) == 0


def test_a_constant_map_scores_its_chance():
    region = np.array([[True, False, False, False]])
    constant = np.ones((1, 4))
    assert pointing_game(constant, region) == 0.25
    assert mass_in_region(constant, region) == 0.25
    assert region_auc(constant, region) == 0.5


def test_known_values():
    heatmap = np.array([[4.0, 3.0], [1.0, 2.0]])
    assert pointing_game(heatmap, LEFT) == 1
    assert mass_in_region(heatmap, LEFT) == 0.5
    assert region_auc(heatmap, LEFT) == 0.5


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_scores_do_not_depend_on_the_scale(seed, scale):
    rng = np.random.default_rng(seed)
    heatmap, region = rng.random((5, 5)), np.arange(25).reshape(5, 5) % 3 == 0
    for score in (pointing_game, mass_in_region, region_auc):
        assert score(heatmap * scale, region) == pytest.approx(score(heatmap, region))


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
    scores = [pointing_game(rng.random((10, 10)), region) for _ in range(500)]
    _, low, high = mean_interval(scores)
    assert low <= 0.3 <= high and high - low < 0.1


def test_the_interval_of_equal_scores_is_a_point():
    assert mean_interval([1.0, 1.0, 1.0]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: region_auc(np.ones((2, 2)), np.zeros((2, 2), bool)), "part of the picture"),
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
