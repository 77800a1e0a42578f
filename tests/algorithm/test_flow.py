"""Attention flow against its definition: the smallest of all cuts."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolloutlib import attention_flow, rollout


def smallest_cut(layers, output, source):
    """By max-flow min-cut (Ford & Fulkerson 1956): every set of nodes with the output, without
    the source, and the capacity of all edges that leave it."""
    depth, size = len(layers), len(layers[0])
    nodes = list(itertools.product(range(depth + 1), range(size)))
    free = [node for node in nodes if node not in ((depth, output), (0, source))]
    cuts = []
    for chosen in itertools.product([False, True], repeat=len(free)):
        inside = {(depth, output)} | {
            node for node, taken in zip(free, chosen, strict=True) if taken
        }
        cuts.append(
            sum(
                layers[above - 1][i][j]
                for above, i in inside
                if above > 0
                for j in range(size)
                if (above - 1, j) not in inside
            )
        )
    return min(cuts)


def with_residual(layer, residual=0.5):
    return (1 - residual) * layer + residual * np.eye(len(layer))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 2), (1, 3), (2, 2), (2, 3), (3, 2)]))
def test_flow_is_the_smallest_cut(seed, shape):
    depth, size = shape
    layers = list(np.random.default_rng(seed).dirichlet(np.ones(size), (depth, size)))
    capacities = [with_residual(layer) for layer in layers]
    expected = [[smallest_cut(capacities, i, j) for j in range(size)] for i in range(size)]
    np.testing.assert_allclose(attention_flow(layers), expected, atol=1e-7)


def test_flow_of_one_layer_is_the_layer():
    layer = np.random.default_rng(1).dirichlet(np.ones(5), 5)
    np.testing.assert_allclose(attention_flow([layer], residual=0), layer, atol=1e-8)


def test_no_flow_is_below_the_rollout_nor_above_one():
    layers = list(np.random.default_rng(2).dirichlet(np.ones(6), (4, 6)))
    flow = attention_flow(layers)
    assert (flow >= rollout(layers) - 1e-7).all() and (flow <= 1 + 1e-7).all()


def test_settings_are_those_of_rollout():
    heads = list(np.tril(np.random.default_rng(3).random((3, 2, 4, 4))))
    heads = [layer / layer.sum(-1, keepdims=True) for layer in heads]
    how = {"head_fusion": "max", "residual": 0.3, "discard_ratio": 0.6, "receptive_field": True}
    last = attention_flow(heads, start_layer=2, **how)
    np.testing.assert_allclose(last, rollout(heads[2:], **how), atol=1e-8)


def test_a_batch_is_computed_whole_and_torch_gives_torch():
    layers = list(np.random.default_rng(4).dirichlet(np.ones(3), (2, 2, 1, 3)))
    flow = attention_flow([torch.from_numpy(layer) for layer in layers])
    assert isinstance(flow, torch.Tensor) and flow.shape == (2, 3, 3)
    for item in range(2):
        expected = attention_flow([layer[item] for layer in layers])
        np.testing.assert_allclose(flow[item], expected)


def test_capacities_that_no_attention_has_are_named():
    with pytest.raises(ValueError, match="capacities of at most 1, got 2"):
        attention_flow([np.full((2, 2), 2.0)], residual=0)


def test_bad_settings_are_named_as_in_rollout():
    with pytest.raises(ValueError, match=r"residual must be in \[0, 1\], got 2"):
        attention_flow([np.eye(2)], residual=2)
