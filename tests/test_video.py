import tracemalloc

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import VideoPrismVisionConfig, VideoPrismVisionModel

from rolloutlib import record_attention
from rolloutlib.video import (
    minmax_rows,
    select_instance_attention,
    space_time_relevance,
    spatial_rollout,
    temporal_rollout,
)


def attention(seed, *shape):
    """Softmax attention with some peaks, float64."""
    scores = np.exp(np.random.default_rng(seed).normal(scale=2, size=shape))
    return scores / scores.sum(-1, keepdims=True)


def by_definition(matrices):
    """Ā_L · … · Ā_0 in float64, each Ā = A + I with rows that sum to 1."""
    product = np.eye(len(matrices[0]))
    for matrix in matrices:
        product = reference.rows_to_one(matrix.astype(np.float64) + np.eye(len(matrix))) @ product
    return product


# Over the patches of frames


def test_spatial_rollout_of_24_layers_of_433_tokens_is_exact():
    sizes = (2, 4, 433, 433)
    kept = [attention(number, *sizes).astype(np.float32) for number in range(24)]
    result = spatial_rollout(kept)
    assert result.shape == (2, 433, 433) and isinstance(result, np.ndarray)
    for frame in range(2):
        expected = by_definition([layer[frame].astype(np.float64).mean(0) for layer in kept])
        np.testing.assert_allclose(result[frame], expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)


def test_spatial_rollout_runs_from_the_first_layer_to_the_last():
    layers = [attention(number, 3, 2, 6, 6) for number in range(4)]
    backwards = spatial_rollout(layers[::-1])
    assert np.abs(spatial_rollout(layers) - backwards).max() > 0.01
    expected = by_definition([layer[1].mean(0) for layer in layers])
    np.testing.assert_allclose(spatial_rollout(layers)[1], expected)


def test_memory_does_not_grow_with_the_number_of_layers():
    def peak(depth):
        layers = (attention(number, 2, 4, 150, 150) for number in range(depth))
        tracemalloc.start()
        spatial_rollout(layers)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)
    assert peak(12) < 1.2 * peak(3)


@pytest.mark.parametrize("shape", [(2, 6, 6), (6, 6), (1, 2, 2, 6, 6)])
@pytest.mark.usefixtures("without_type_checks")
def test_spatial_layers_without_frames_and_heads_are_an_error(shape):
    with pytest.raises(ValueError, match=r"expected layers \[frame head token token\]"):
        spatial_rollout([attention(0, *shape)])


# Over the frames of a clip


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 9))
def test_temporal_rollout_equals_the_definition(seed, depth, frames):
    layers = list(attention(seed, depth, frames, frames))
    result = temporal_rollout(layers)
    np.testing.assert_allclose(result, by_definition(layers), rtol=1e-9)
    np.testing.assert_allclose(result.sum(-1), 1)


def test_temporal_rollout_multiplies_the_last_layer_from_the_left():
    layers = list(attention(1, 6, 5, 5))
    reversed_product = by_definition(layers[::-1])
    assert np.abs(temporal_rollout(layers) - reversed_product).max() > 0.01


def test_one_frame_keeps_everything():
    np.testing.assert_array_equal(temporal_rollout([np.ones((1, 1))] * 6), [[1.0]])
    np.testing.assert_array_equal(temporal_rollout([np.ones((1, 1, 1))] * 6, 0), [[1.0]])


def test_a_row_of_zeros_keeps_its_own_frame():
    silent = np.zeros((3, 3))
    np.testing.assert_array_equal(temporal_rollout([silent, silent]), np.eye(3))


def test_layers_whose_frames_differ_are_an_error():
    with pytest.raises(ValueError, match=r"layer 1 has shape.*\(1, 4, 4\), expected \(1, 5, 5\)"):
        temporal_rollout([attention(0, 5, 5), attention(0, 4, 4)])


def test_numpy_and_torch_are_answered_in_kind():
    layers = [attention(number, 3, 2, 5, 5) for number in range(2)]
    tensors = [torch.from_numpy(layer) for layer in layers]
    for function in (lambda x: temporal_rollout(x, 2), spatial_rollout):
        assert isinstance(function(layers), np.ndarray)
        np.testing.assert_array_equal(function(tensors).numpy(), function(layers))


# One instance


@pytest.mark.parametrize(
    ("shape", "pick"),
    [
        ((5, 5), lambda a: a),
        ((7, 5, 5), lambda a: a[3]),
        ((5, 7, 5), lambda a: a[:, 3]),
        ((4, 5, 5), lambda a: a[3]),
        ((7, 2, 5, 5), lambda a: a[3].mean(0)),
        ((5, 5, 5, 5), lambda a: a[3].mean(0)),
        ((1, 7, 2, 5, 5), lambda a: a[0, 3].mean(0)),
        ((7, 1, 1), lambda a: a[3]),
        ((1, 7, 1), lambda a: a[:, 3]),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",  # a function's is an address
)
def test_an_instance_is_found(shape, pick):
    array = np.random.default_rng(0).random(shape)
    np.testing.assert_allclose(select_instance_attention(array, 3), pick(array))


@pytest.mark.parametrize(
    ("shape", "refiner_id"),
    [
        ((7, 20, 20), 9),
        ((7, 20, 20), 7),
        ((7, 20, 20), -1),
        ((7, 20, 20), None),
        ((20, 7, 20), 7),
        ((1, 7, 20, 20), 0),
        ((1, 7, 20, 20), 3),
        ((7, 8, 20, 20), 7),
        ((20, 20, 20), 3),
        ((20, 20, 7), 3),
        ((7, 20), 3),
        ((20,), 0),
        ((2, 7, 8, 20, 20), 0),
        ((1, 1, 7, 8, 20, 20), 0),
        ((0, 20, 20), 0),
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_type_checks")
def test_shapes_that_leave_doubt_are_errors_that_name_them(shape, refiner_id):
    array = np.ones(shape)
    for function in (select_instance_attention, lambda a, i: temporal_rollout([a], i)):
        with pytest.raises(ValueError) as error:
            function(array, refiner_id)
        assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("axes", "shape", "pick"),
    [
        ("instance time time", (4, 4, 4), lambda a: a[3]),
        ("time instance time", (4, 4, 4), lambda a: a[:, 3]),
        ("time time instance", (4, 4, 7), lambda a: a[..., 3]),
        ("1 instance time time", (1, 7, 5, 5), lambda a: a[0, 3]),
        ("1 head time time", (1, 7, 5, 5), lambda a: a[0].mean(0)),
        ("head instance time time", (2, 7, 5, 5), lambda a: a[:, 3].mean(0)),
        ("instance head time head time", (7, 2, 5, 3, 5), lambda a: a[3].mean((0, 2))),
        ("time time", (5, 5), lambda a: a),
    ],
)
def test_named_axes_leave_no_doubt(axes, shape, pick):
    array = np.random.default_rng(0).random(shape)
    np.testing.assert_allclose(select_instance_attention(array, 3, axes), pick(array))
    rolled = temporal_rollout([array, array], 3, axes=axes)
    np.testing.assert_allclose(rolled, by_definition([pick(array)] * 2))


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ("instance time", (7, 5, 5), r"got 'instance time' for shape \(7, 5, 5\)"),
        ("instance frame frame", (7, 5, 5), "a name for each axis"),
        ("instance instance time time", (7, 2, 5, 5), "a name for each axis"),
        ("1 instance time time", (2, 7, 5, 5), "of length 1"),
        ("instance time time", (7, 4, 5), r"as many frames, got \[4, 5\]"),
        ("instance time time", (3, 5, 5), r"refiner_id in \[0, 2\]"),
        ("", (20, 20, 20), 'name its axes, such as axes="instance time time"'),
    ],
)
def test_axes_that_do_not_fit_are_named(axes, shape, message):
    with pytest.raises(ValueError, match=message):
        select_instance_attention(np.ones(shape), 3, axes)


def test_rows_are_scaled_each_to_its_own_range():
    scaled = minmax_rows(np.array([[0.2, 0.4, 0.3], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(scaled, [[0, 1, 0.5], [0, 0, 0], [0, 0, 0]])


# Space and time


def test_space_and_time_are_one_distribution():
    when, where = attention(0, 4, 6), np.random.default_rng(1).random((6, 3, 5))
    both = space_time_relevance(when, where)
    assert both.shape == (4, 6, 3, 5)
    np.testing.assert_allclose(both.sum((1, 2, 3)), 1)
    np.testing.assert_allclose(both.sum((2, 3)), when)
    expected = when[2, 4] * where[4, 1, 3] / where[4].sum()
    np.testing.assert_allclose(both[2, 4, 1, 3], expected)


@pytest.mark.parametrize(
    ("when", "where", "message"),
    [
        (np.ones(3), np.ones((4, 2)), "same frames"),
        (np.ones(3), np.ones(3), "same frames"),
        (np.zeros(3), np.ones((3, 2)), "temporal relevance to be above zero"),
        (np.ones(2), np.array([[1.0], [0.0]]), "spatial map to be above zero"),
        (-np.ones(2), np.ones((2, 2)), "0 or more"),
        (np.ones(2), np.full((2, 2), np.nan), "finite"),
    ],
)
def test_what_cannot_be_composed_is_named(when, where, message):
    with pytest.raises(ValueError, match=message):
        space_time_relevance(when, where)


def test_videoprism_goes_through_the_same_functions():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    depths = {"num_spatial_layers": 3, "num_temporal_layers": 2}
    shape = {"image_size": 24, "num_frames": 4, "tubelet_size": [1, 6, 6]}
    model = VideoPrismVisionModel(VideoPrismVisionConfig(**sizes, **depths, **shape)).eval()
    clip = torch.randn(1, 4, 3, 24, 24)
    with torch.no_grad(), record_attention(model) as recording:
        output = model(clip).last_hidden_state
    model.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(output, model(clip).last_hidden_state, atol=1e-5, rtol=0)
    spatial = recording["spatial_layers"]
    temporal = recording["temporal_layers"]
    assert [layer.probabilities().shape for layer in spatial] == [(4, 4, 16, 16)] * 3
    assert [layer.probabilities().shape for layer in temporal] == [(16, 4, 4, 4)] * 2
    where = spatial_rollout(spatial)
    dense = [layer.probabilities() for layer in temporal]
    for patch in (0, 9):
        when = temporal_rollout(temporal, patch)
        torch.testing.assert_close(when, temporal_rollout(dense, patch))
        both = space_time_relevance(when, where[:, patch])
        torch.testing.assert_close(both.sum((1, 2)), torch.ones(4))
    with pytest.raises(ValueError, match=r"refiner_id in \[0, 15\]"):
        temporal_rollout(temporal, 16)
