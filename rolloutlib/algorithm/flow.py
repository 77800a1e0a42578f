"""Attention flow: how much of an input could reach an output if every weight were a pipe."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import block_diag
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from rolloutlib.algorithm.arrays import Array
from rolloutlib.algorithm.layers import Layer, answer_like, layers_from
from rolloutlib.algorithm.transition import Settings, Transition

UNITS = 2**30  # SciPy's flow counts whole units; a layer's rows sum to 1, so none overflows


def attention_flow(
    layers: Iterable[Array | Layer],
    *,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    receptive_field: bool = False,
) -> Float[Array, "*batch query key"]:
    """How much of each input can flow to each output if attention weights are capacities.

    Abnar & Zuidema (2020, section 3): the graph has a node for each token after each layer, and an
    edge of capacity Ā[output, input] from each output of a layer to each of its inputs. Entry
    (i, j) is the maximum flow from token i of the last layer to token j of the input. Unlike in a
    rollout, rows need not sum to 1: the flow to each input is computed on its own.

    For small examples: query · key maximum flows take about a second for 20 tokens and 6 layers.
    Capacities are rounded to 2⁻³⁰. Arguments and errors are those of `rollout`, and a ValueError
    for capacities above 1, which attention never has.

    >>> attention_flow([np.array([[0.0, 1.0], [1.0, 0.0]])], residual=0.25)
    array([[0.25, 0.75],
           [0.75, 0.25]])
    """
    settings = Settings(head_fusion, residual, discard_ratio, start_layer, receptive_field)
    stack = []
    for layer in layers_from(layers, settings.start_layer):
        every = torch.arange(layer.shape[1])
        stack.append(Transition(layer, settings).rows(every).double().cpu().numpy())
    capacities = np.stack(stack, axis=1)
    if capacities.max() > 1 + 1e-6:
        raise ValueError(f"expected capacities of at most 1, got {capacities.max():.3g}")
    flows = torch.from_numpy(np.stack([_flows(item) for item in capacities]))
    return answer_like(layer, flows)


def _flows(capacities: Float[np.ndarray, "layer query query"]) -> Float[np.ndarray, "query query"]:
    """The maximum flow from every output to every input of one layered graph."""
    depth, size, _ = capacities.shape
    # Nodes are numbered from the inputs up; each block leads from a layer's outputs to its inputs.
    blocks = np.rint(np.minimum(capacities, 1) * UNITS).astype(np.int32)
    graph = np.pad(block_diag(*blocks), ((size, 0), (0, size)))
    graph, last = csr_array(graph), depth * size
    every = range(size)
    flows = [[maximum_flow(graph, last + i, j).flow_value for j in every] for i in every]
    return np.array(flows) / UNITS
