"""Compose layers: attention rollout, the whole matrix or only the rows you need."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float

from rolloutlib.algorithm.arrays import Array, as_tensor, positions
from rolloutlib.algorithm.layers import Layer, answer_like, layers_from, with_keys
from rolloutlib.algorithm.transition import Settings, Transition


def rollout(
    layers: Iterable[Array | Layer],
    *,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    receptive_field: bool = False,
) -> Float[Array, "*batch query key"]:
    """Attention rollout: how much of each input could have reached each output.

    Ā_L · … · Ā_1, where Ā is a layer's attention with its heads fused, the residual mixed in
    and the lowest entries discarded (Abnar & Zuidema 2020, "Quantifying Attention Flow in
    Transformers"). If the rows of every Ā sum to 1, so do the rows of the product; nothing is
    normalised after the product.

    layers: first layer first, each `[head query key]`, `[batch head query key]`, `[query key]`
    or a recorded layer. A generator works too: each layer is used once, then freed.
    Gradients are not tracked.
    head_fusion: "mean", "max" or "min".  residual: share of the identity, in [0, 1]. Mixing it in
    normalises rows; with 0, rows of a maximum or minimum keep their sums.
    discard_ratio: share of the whole matrix's smallest entries set to 0, in [0, 1); rows of padding
    count too.
    start_layer: the first layer to include, counted from 0.
    receptive_field: divide row i of the fused attention by the n tokens that it can see, before the
    residual: Ā[i] ∝ (1-r)·A[i] / n + r·I[i]. Of a recorded layer n is what its mask leaves, i + 1
    if it is causal; of an array, how many keys have attention above 0 in any head. This is one
    reading of "normalised based on the receptive field" (Abnar & Zuidema 2020, section 5, who give
    no formula). Rows of Ā are normalised when the residual is mixed in, so in effect the share of
    the identity grows: from r to r·n / (r·n + 1-r), above 0.99 from the hundredth token on if r is
    one half. What else such a row holds is nearly the mean of the layers' attention, and hardly
    composed. To take out the order of tokens, compare with `even_attention`, as
    `heatmaps(…, beyond_even=True)` does. Without a residual nothing is normalised, rows sum to less
    than 1, and the first tokens gain instead.

    Raises ValueError if there are no layers, if shapes differ or are not square, if attention with
    its heads fused is negative or not finite (`fuse_heads` checks every head, which takes longer),
    if a setting is out of range, and for recorded layers that are not of one stack over one
    sequence.

    >>> import numpy as np
    >>> first = np.array([[1.0, 0.0], [0.5, 0.5]])
    >>> second = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> rollout([first, second], residual=0.5)
    array([[1.   , 0.   ],
           [0.625, 0.375]])
    """
    settings = Settings(head_fusion, residual, discard_ratio, start_layer, receptive_field)
    product = None
    for layer in layers_from(layers, settings.start_layer):
        product = Transition(layer, settings).after(product)
    return answer_like(layer, product.matrix)


def rollout_by_layer(
    layers: Iterable[Array | Layer],
    *,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    receptive_field: bool = False,
) -> list[Float[Array, "*batch query key"]]:
    """The rollout after each layer: how the product of `rollout` grows.

    >>> import numpy as np
    >>> layers = [np.full((3, 3), 1 / 3)] * 4
    >>> [round(float(product[0, 0]), 3) for product in rollout_by_layer(layers)]
    [0.667, 0.5, 0.417, 0.375]
    """
    settings = Settings(head_fusion, residual, discard_ratio, start_layer, receptive_field)
    product, products = None, []
    for layer in layers_from(layers, settings.start_layer):
        product = Transition(layer, settings).after(product)
        products.append(answer_like(layer, torch.stack(product.matrices)))
    return products


def rollout_rows(
    layers: Iterable[Array | Layer],
    rows: Sequence[int] | Array,
    *,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    receptive_field: bool = False,
) -> Float[Array, "*batch row key"]:
    """Some rows of `rollout`, at a fraction of its cost: what reached these outputs.

    The product starts at the last layer, r ← r · Ā, so no layer costs more than one pass over
    its attention. `rows` are query positions; negative ones count from the end.

    Raises ValueError as `rollout` does, and for no rows or rows out of range.

    >>> import numpy as np
    >>> layers = [np.full((4, 4), 0.25)] * 2
    >>> rollout_rows(layers, [3])
    array([[0.1875, 0.1875, 0.1875, 0.4375]])
    """
    settings = Settings(head_fusion, residual, discard_ratio, start_layer, receptive_field)
    *below, last = layers_from(layers, settings.start_layer)
    relevance = Transition(last, settings).rows(positions(rows, last.shape[1]))
    for layer in reversed(below):
        relevance = Transition(layer, settings).before(relevance)
    return answer_like(last, with_keys(relevance, last.shape[2]))


def carry_back(
    layers: Iterable[Array | Layer],
    relevance: Float[Array, "*batch row query"],
    *,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    receptive_field: bool = False,
) -> Float[Array, "*batch row key"]:
    """Carry relevance from the outputs back to the inputs: each row times the `rollout`.

    This links the parts of a model: relevance on the outputs of one part moves on to its inputs.
    A row with a single 1 gives a row of the rollout, as `rollout_rows` does.

    Raises ValueError as `rollout` does, and for relevance that does not fit the layers' outputs.

    >>> import numpy as np
    >>> layers = [np.full((2, 2), 0.5)] * 2
    >>> carry_back(layers, np.array([[1.0, 0.0], [0.5, 0.5]]))
    array([[0.625, 0.375],
           [0.5  , 0.5  ]])
    """
    settings = Settings(head_fusion, residual, discard_ratio, start_layer, receptive_field)
    chosen = list(layers_from(layers, settings.start_layer))
    batch, outputs, _ = chosen[-1].shape
    carried = as_tensor(relevance).detach()
    carried = carried if carried.ndim == 3 else carried[None]
    if carried.shape[0] != batch or carried.shape[2] != outputs:
        raise ValueError(
            f"expected relevance [batch row query] of a batch of {batch} and {outputs} outputs, "
            f"got shape {tuple(carried.shape)}"
        )
    for layer in reversed(chosen):
        carried = Transition(layer, settings).before(carried)
    return answer_like(chosen[-1], with_keys(carried, outputs))


def attention_received(layers: Iterable[Array | Layer]) -> Float[Array, "*batch key"]:
    """How much attention each key receives: summed over queries, averaged over heads and layers.

    The average key gets 1 if attention is square. Nothing is composed. Rows of padding count too.

    >>> import numpy as np
    >>> attention_received([np.array([[[1.0, 0.0], [0.5, 0.5]]])])
    array([1.5, 0.5])
    """
    total = 0
    for count, layer in enumerate(layers_from(layers, 0, square=False), start=1):
        batch, queries, keys = layer.shape
        every = torch.ones(batch, 1, queries, device=layer.device)
        received = with_keys(Transition(layer, Settings(residual=0.0)).before(every), keys)
        total = total + (received - total) / count
    return answer_like(layer, total)[..., 0, :]
