"""The class against every formula of the teaching document, evaluated in float64 by loops."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from rolloutlib import (
    AttentionRollout,
    compare_discard_ratios,
    compare_head_fusion,
    example_attention_rollout,
)
from rolloutlib.teaching import EXAMPLE_TOKENS as TOKENS

FUSE = {"mean": lambda values: sum(values) / len(values), "max": max, "min": min}


def synthetic_layers(seed=None, layers=6, heads=8, size=8):
    """Local early, global late, special tokens late; with a seed, heads that differ."""
    rng = np.random.default_rng(seed)
    result = []
    for layer in range(layers):
        locality, late = 1 - layer / layers * 0.5, layer / layers
        attention = np.empty((heads, size, size))
        for head, i, j in itertools.product(range(heads), range(size), range(size)):
            attention[head, i, j] = math.exp(-abs(i - j) * locality)
        attention[:, :, 0] += late * 0.3
        attention[:, :, -1] += late * 0.2
        if seed is not None:
            attention *= rng.uniform(0.5, 1.5, attention.shape)
        result.append(attention / attention.sum(axis=-1, keepdims=True))
    return result


def by_the_formulas(layers, discard_ratio, head_fusion, include_residual):
    """The rollout after each layer: plain loops over plain numbers."""
    products = []
    for heads in layers:
        size = len(heads[0])
        square = list(itertools.product(range(size), range(size)))
        matrix = {(i, j): FUSE[head_fusion]([head[i][j] for head in heads]) for i, j in square}
        if include_residual:
            matrix = unit_rows({(i, j): (matrix[i, j] + (i == j)) / 2 for i, j in square}, size)
        if discard_ratio > 0:
            threshold = sorted(matrix.values())[int(len(matrix) * discard_ratio)]
            # Entries that are equal up to rounding count as one value: they are kept together.
            kept = {at: v if v >= threshold * (1 - 1e-12) else 0.0 for at, v in matrix.items()}
            matrix = unit_rows(kept, size)
        if products:
            before = products[-1]
            matrix = {
                (i, j): sum(matrix[i, k] * before[k, j] for k in range(size)) for i, j in square
            }
        products.append(matrix)
    return [np.array(list(m.values())).reshape(len(layers[0][0]), -1) for m in products]


def unit_rows(matrix, size):
    sums = [sum(matrix[i, j] for j in range(size)) for i in range(size)]
    return {(i, j): value / (sums[i] or 1) for (i, j), value in matrix.items()}


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("include_residual", [True, False])
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_class_reproduces_the_formulas(discard_ratio, head_fusion, include_residual, seed):
    settings = (discard_ratio, head_fusion, include_residual)
    roller, layers = AttentionRollout(*settings), synthetic_layers(seed)
    expected = by_the_formulas(layers, *settings)
    for dtype in (torch.float64, torch.float32):
        tensors = [torch.from_numpy(layer).to(dtype) for layer in layers]
        np.testing.assert_allclose(roller.compute_rollout(tensors), expected[-1], atol=1e-6)
        by_layer = roller.compute_rollout_by_layer(tensors)
        for result, wanted in zip(by_layer, expected, strict=True):
            np.testing.assert_allclose(result, wanted, atol=1e-6)


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_a_batch_is_rolled_out_whole(discard_ratio, head_fusion):
    sentences = [synthetic_layers(None), synthetic_layers(1), synthetic_layers(2)]
    batched = [torch.from_numpy(np.stack(step)) for step in zip(*sentences, strict=True)]
    result = AttentionRollout(discard_ratio, head_fusion).compute_rollout(batched)
    assert result.shape == (3, 8, 8)
    for item, layers in zip(result, sentences, strict=True):
        expected = by_the_formulas(layers, discard_ratio, head_fusion, True)[-1]
        np.testing.assert_allclose(item, expected, atol=1e-6)


def test_layers_without_heads_are_taken_as_they_are():
    layers = [layer[0] for layer in synthetic_layers(3)]
    expected = by_the_formulas([layer[None] for layer in layers], 0.1, "mean", True)[-1]
    np.testing.assert_allclose(AttentionRollout().compute_rollout(layers), expected, atol=1e-12)


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3])
def test_the_three_steps_of_a_layer_make_its_rollout(discard_ratio, head_fusion):
    layer, roller = synthetic_layers(9)[0], AttentionRollout(discard_ratio, head_fusion)
    fused = roller._fuse_heads(torch.from_numpy(layer))
    step = roller._apply_discard_ratio(roller._add_residual(fused))
    np.testing.assert_allclose(step, by_the_formulas([layer], discard_ratio, head_fusion, True)[-1])


# Figures


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """How many figures were open each time that figures were shown."""
    counts = []
    monkeypatch.setattr(plt, "show", lambda: counts.append(len(plt.get_fignums())))
    plt.close("all")
    return counts


def labels(figure):
    """Axis labels of the first and the last matrix, the label of the colour bar, the title."""
    *matrices, bar = figure.axes
    ends = [(axis.get_xlabel(), axis.get_ylabel()) for axis in (matrices[0], matrices[-1])]
    return ends, bar.get_ylabel(), figure.get_suptitle()


def panels(figure):
    """Titles, values and colour limits of the matrices in a figure."""
    drawn = [axis for axis in figure.axes if axis.get_visible() and axis.get_title()]
    meshes = [axis.collections[0] for axis in drawn]
    titles = [axis.get_title() for axis in drawn]
    return titles, [mesh.get_array().data for mesh in meshes], {mesh.get_clim() for mesh in meshes}


def test_visualize_draws_the_rollout_and_saves_it(tmp_path, shown):
    roller = AttentionRollout()
    rolled = roller.compute_rollout(synthetic_layers(4))
    figure = roller.visualize(rolled, TOKENS, "A title", tmp_path / "rollout.png")
    tokens = ("Input Tokens", "Output Tokens")
    assert labels(figure) == ([tokens, tokens], "Cumulative Attention", "A title")
    assert {text.get_rotation() for text in figure.axes[0].get_xticklabels()} == {45}
    np.testing.assert_allclose(figure.axes[0].collections[0].get_array(), rolled)
    assert (tmp_path / "rollout.png").read_bytes().startswith(b"\x89PNG")
    assert shown == [1]


def test_one_layer_beside_the_rollout(shown):
    layers, roller = synthetic_layers(5), AttentionRollout()
    figure = roller.compare_with_single_layer(layers, TOKENS, 2)
    titles, values, limits = panels(figure)
    assert titles == ["Single Layer (2)", "Attention Rollout (All Layers)"]
    both, _, title = labels(figure)
    assert both == [("Key Tokens", "Query Tokens"), ("Input Tokens", "Output Tokens")]
    assert title == "Single Layer vs. Attention Rollout"
    np.testing.assert_allclose(values[0], layers[2].mean(0))
    np.testing.assert_allclose(values[1], roller.compute_rollout(layers))
    assert len(limits) == len(shown) == 1


def test_evolution_shows_the_wanted_layers_on_one_scale(shown):
    layers, roller = synthetic_layers(6), AttentionRollout()
    titles, values, limits = panels(roller.visualize_evolution(layers, TOKENS, [0, 5]))
    assert titles == ["After Layer 0", "After Layer 5"]
    np.testing.assert_allclose(values[1], roller.compute_rollout(layers))
    assert len(limits) == len(shown) == 1


@pytest.mark.parametrize(
    ("depth", "chosen"),
    [(1, [0]), (6, range(6)), (7, [0, 1, 2, 3, 6]), (12, [0, 3, 6, 9, 11]), (15, [0, 3, 6, 9, 14])],
)
def test_evolution_of_many_layers_shows_the_documents_five(depth, chosen):
    layers = synthetic_layers(7, layers=depth, heads=1)
    titles, _, _ = panels(AttentionRollout().visualize_evolution(layers, TOKENS))
    assert titles == [f"After Layer {number}" for number in chosen]


def test_the_example_is_the_documents(shown):
    first, _, evolution, ratios = example_attention_rollout()
    _, values, _ = panels(evolution)
    for value, expected in zip(
        values, by_the_formulas(synthetic_layers(), 0.1, "mean", True), strict=True
    ):
        np.testing.assert_allclose(value, expected, atol=1e-12)
    assert labels(first)[-1] == "Attention Rollout"
    assert panels(ratios)[0] == [f"Discard Ratio: {ratio}" for ratio in (0.0, 0.1, 0.3, 0.5)]
    assert len(shown) == 4


def test_compared_settings_share_one_scale():
    layers = synthetic_layers(8)
    for figure, count in (
        (compare_discard_ratios(layers, TOKENS), 4),
        (compare_head_fusion(layers, TOKENS), 3),
    ):
        titles, values, limits = panels(figure)
        assert len(titles) == count and len(limits) == 1
        assert all(abs(a - values[0]).max() > 1e-3 for a in values[1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layers: AttentionRollout(1.0), r"discard_ratio must be in \[0, 1\), got 1.0"),
        (lambda layers: AttentionRollout(head_fusion="sum"), "got 'sum'"),
        (
            lambda layers: AttentionRollout().compare_with_single_layer(layers, TOKENS, 6),
            r"layer_idx must be in \[-6, 5\], got 6",
        ),
        (
            lambda layers: AttentionRollout().visualize_evolution(layers, TOKENS, [6]),
            r"layers_to_show must be in \[0, 5\], got \[6\]",
        ),
        (lambda layers: AttentionRollout().compute_rollout([]), "at least one layer, got none"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(synthetic_layers())
