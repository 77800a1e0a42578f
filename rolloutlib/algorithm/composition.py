"""Layers composed: attention rollout, whole or only the rows that are wanted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from rolloutlib.algorithm.arrays import Array, as_tensor, consecutive, positions, vanishing_flushed
from rolloutlib.algorithm.attention import (
    clear_lowest,
    merge_heads,
    mix_identity,
    require_attention,
    require_fusion,
    require_share,
)

CHUNK = 192  # query rows handled at once, at least: enough for fast products
ENTRIES = 600_000  # and as many rows as have no more entries than this, 2.4 MB in float32


@runtime_checkable
class Layer(Protocol):
    """One layer's attention, however it is kept: it answers for the query rows it is asked for."""

    shape: tuple[int, int, int]  # batch, queries, keys

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused attention of these query rows, in memory that the caller may change.

        Keys after the last of the rows may be left out where none of the rows attends to them.
        """


class DenseLayer:
    """A layer whose attention is kept whole: `[query key]`, `[head query key]` or with a batch."""

    def __init__(self, attention: Array):
        tensor = as_tensor(attention).detach()
        if not 2 <= tensor.ndim <= 4:
            raise ValueError(
                "expected attention [query key], [head query key] or [batch head query key], "
                f"got shape {tuple(tensor.shape)}"
            )
        if tensor.numel() == 0:
            raise ValueError(f"attention is empty: got shape {tuple(tensor.shape)}")
        self.heads = tensor[(None,) * (4 - tensor.ndim)]
        self.shape = (self.heads.shape[0], *self.heads.shape[2:])
        self.numpy = isinstance(attention, np.ndarray)
        self.batched = tensor.ndim == 4

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused attention of these query rows.

        What is fused is checked, and not every head: heads are read from memory once.
        """
        fused = merge_heads(self.heads[:, :, consecutive(rows)], how)
        require_attention(fused)
        return without_unseen(fused, rows)

    def answer(self, result: Float[torch.Tensor, "batch row key"]) -> Array:
        """A result in the form in which the attention came."""
        result = result if self.batched else result[0]
        return result.numpy() if self.numpy else result


def row_tiles(layer: Layer) -> tuple[torch.Tensor, ...]:
    """All query rows of a layer, in tiles that a cache holds."""
    _, queries, keys = layer.shape
    size = ENTRIES // keys
    if size < queries:  # whole chunks, as few rows more would be slow products of their own
        size = max(size // CHUNK, 1) * CHUNK
    return torch.arange(queries).split(size)


def whole_rows(
    part: Float[torch.Tensor, "batch row seen"], layer: Layer
) -> Float[torch.Tensor, "batch row key"]:
    """The rows with zeros for the keys that were left out."""
    left_out = layer.shape[2] - part.shape[2]
    return torch.nn.functional.pad(part, (0, left_out)) if left_out else part


def joined(
    parts: Iterable[Float[torch.Tensor, "batch row seen"]], layer: Layer
) -> Float[torch.Tensor, "batch row key"]:
    """Parts of a layer below each other, with all their keys; one part alone is not copied."""
    parts = [whole_rows(part, layer) for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def without_unseen(
    fused: Float[torch.Tensor, "batch row key"], rows: torch.Tensor
) -> Float[torch.Tensor, "batch row seen"]:
    """Without the keys after the last of these rows, if none of the rows attends to them."""
    seen = int(rows.max()) + 1
    # The last key alone mostly shows that attention is not causal.
    if seen < fused.shape[-1] and not fused[..., -1].any() and not fused[..., seen:].any():
        return fused[..., :seen]
    return fused


class Product:
    """The rollout so far, in tiles of rows of which each knows how many keys it reaches.

    Of causal attention the product is a lower triangle as well, so that a third of a whole
    product's work would do for one triangle, and a sixth does for two.

    earlier: the product one layer before, which is multiplied and whose memory is used again.
    """

    def __init__(self, earlier: "Product | None", shape: tuple[int, int, int]):
        self.earlier, self.shape = earlier, shape
        self.matrices: list[Float[torch.Tensor, "query key"]] = []  # one for each item of the batch
        self.spare: list[torch.Tensor] = [] if earlier is None else earlier.spare
        # Rows, and the key from which on all of them are 0.
        self.tiles: list[tuple[slice, int]] = []

    @property
    def matrix(self) -> Float[torch.Tensor, "batch query key"]:
        """All of it, not copied where it is one item's."""
        one = len(self.matrices) == 1
        return self.matrices[0][None] if one else torch.stack(self.matrices)

    def append(self, part: Float[torch.Tensor, "batch row seen"]) -> None:
        """Set the next rows to part · earlier, or to the part where there is no product before."""
        first = self.tiles[-1][0].stop if self.tiles else 0
        rows = slice(first, first + part.shape[1])
        steps = self.earlier.steps(part.shape[2]) if self.earlier else None
        reach = steps[0][1] if steps else part.shape[2]
        for item, some in enumerate(part):
            if first == 0:
                self.matrices.append(self._room(part))
            out = self.matrices[item][rows]
            if steps:
                _multiply(some, self.earlier.matrices[item].to(part), steps, out)
            else:
                out[:, :reach] = some
            out[:, reach:] = 0
            if self.earlier and rows.stop == self.shape[1]:
                self.spare.append(self.earlier.matrices[item])
        self.tiles.append((rows, reach))

    def _room(self, part: torch.Tensor) -> Float[torch.Tensor, "query key"]:
        """Memory for one item: that of a product that is no longer needed, if there is any."""
        while self.spare:
            room = self.spare.pop()
            if room.dtype == part.dtype and room.device == part.device:
                return room
        return part.new_empty(self.shape[1:])

    def steps(self, seen: int) -> list[tuple[slice, int]]:
        """The first `seen` rows in pieces of one reach each, that of the longest reach first."""
        below = (tile for tile in self.tiles if tile[0].start < seen)
        steps = []
        for reach, tiles in groupby(below, key=lambda tile: tile[1]):
            (first, _), *_, (last, _) = [*tiles] * 2
            steps.append((slice(first.start, min(last.stop, seen)), reach))
        return sorted(steps, key=lambda step: -step[1])


def _multiply(
    part: Float[torch.Tensor, "row seen"],
    product: Float[torch.Tensor, "query key"],
    steps: list[tuple[slice, int]],
    out: Float[torch.Tensor, "row key"],
) -> None:
    """out = part · product, without the products of zeros; beyond the longest reach `out` stays."""
    (rows, reach), *others = steps
    torch.mm(part[:, rows], product[rows, :reach], out=out[:, :reach])
    for rows, reach in others:
        out[:, :reach].addmm_(part[:, rows], product[rows, :reach])


class Transition:
    """One layer's step from its inputs to its outputs: rows of Ā, that is fused attention,
    divided by its receptive field if so wanted, with the residual mixed in and the lowest entries
    discarded, in that order.

    Rows are those of Ā without the keys that may be left out of `Layer.fused`."""

    def __init__(
        self,
        layer: Layer,
        head_fusion: str,
        residual: float,
        discard_ratio: float,
        receptive_field: bool,
    ):
        self.layer, self.head_fusion, self.residual = layer, head_fusion, residual
        self.receptive_field = receptive_field
        self.tiles = row_tiles(layer)
        # The threshold of a discard needs the whole matrix, so it is made once.
        self.whole = None
        if discard_ratio > 0:
            self.whole = clear_lowest(joined(map(self.mixed, self.tiles), layer), discard_ratio)

    def mixed(self, rows: torch.Tensor) -> Float[torch.Tensor, "batch row seen"]:
        """Rows of the fused attention with the residual mixed in."""
        fused = self.layer.fused(rows, self.head_fusion)
        rows = rows.to(fused.device)
        if self.receptive_field:
            fused = divide_by_receptive_field(fused, rows)
        return mix_identity(fused, rows, self.residual)

    def part(self, rows: torch.Tensor) -> Float[torch.Tensor, "batch row seen"]:
        """Rows of Ā, not more of them than make a tile."""
        if self.whole is None:
            return self.mixed(rows)
        return without_unseen(self.whole[:, consecutive(rows)], rows)

    @vanishing_flushed()
    def rows(self, rows: torch.Tensor) -> Float[torch.Tensor, "batch row key"]:
        """Rows of Ā with all their keys."""
        return joined(map(self.part, rows.split(len(self.tiles[0]))), self.layer)

    @vanishing_flushed()
    def after(self, product: "Product | None") -> "Product":
        """Ā · product: the rollout one layer further on; Ā itself where there is none before."""
        grown = Product(product, self.layer.shape)
        for rows in self.tiles:
            grown.append(self.part(rows))
        grown.earlier = None
        return grown

    @vanishing_flushed()
    def before(
        self, relevance: Float[torch.Tensor, "batch row query"]
    ) -> Float[torch.Tensor, "batch row key"]:
        """relevance · Ā: rows of the rollout one layer further back."""
        total = torch.zeros_like(relevance)
        for rows in self.tiles:
            share = relevance[..., consecutive(rows)]
            if share.any():  # below a causal layer no row after the last wanted one has any share
                part = self.part(rows)
                total = total.to(part)
                total[..., : part.shape[-1]].baddbmm_(share.to(part), part)
                del part  # before the next one is made
        return total


def divide_by_receptive_field(
    fused: Float[torch.Tensor, "batch row key"], rows: torch.Tensor
) -> Float[torch.Tensor, "batch row key"]:
    """Each row of a causal attention divided by how many keys it can see: i + 1 in row i."""
    future = torch.arange(fused.shape[-1], device=rows.device) > rows[:, None]
    ahead = fused.masked_fill(~future, 0).amax()
    if ahead > 0:
        raise ValueError(
            "expected causal attention, of which alone the receptive field is known to grow with "
            f"the position, got {ahead:.3g} on a later token (padding on the left attends to all: "
            "answer prompts of different lengths one by one)"
        )
    return fused / (rows[:, None] + 1)


def rollout(
    layers: Iterable[Array | Layer],
    *,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    receptive_field: bool = False,
) -> Float[Array, "*batch query key"]:
    """Through all layers together, how much of each input is in each output?

    Ā_L · … · Ā_1, where Ā is a layer's attention with its heads fused, the residual mixed in
    and the lowest entries discarded (Abnar & Zuidema 2020, "Quantifying Attention Flow in
    Transformers"). Where rows of every Ā sum to 1, rows of the product do too; nothing is
    normalised after the product.

    layers: first layer first, each `[head query key]`, `[batch head query key]`, `[query key]`
    or a recorded layer. They may come from a generator: each is used once and let go. Gradients
    are not followed.
    head_fusion: "mean", "max" or "min".  residual: share of the identity, in [0, 1]. Mixing it in
    normalises rows; with 0, rows of a maximum or minimum keep their sums.
    discard_ratio: share of the smallest entries set to 0, in [0, 1), of the whole matrix: rows of
    padding count too.
    start_layer: the first layer to take part, counted from 0.
    receptive_field: for causal attention, divide row i of the fused attention by the i + 1 tokens
    that it can see, before the residual: Ā[i] ∝ (1-r)·A[i] / (i+1) + r·I[i]. Abnar & Zuidema
    (2020, section 5) name this for decoders, where paths through many layers end on early tokens.
    Rows of Ā are normalised when the residual is mixed in, so what changes is the share of the
    skip connection: from r to r·(i+1) / (r·(i+1) + 1-r), near 1 for late tokens. Without a
    residual nothing is normalised, rows sum to less than 1, and the first tokens gain instead.

    Raises ValueError where there are no layers, where shapes differ or are not square, where
    attention with its heads fused is negative or not finite (`fuse_heads` checks every head, which
    takes longer), where a setting is out of its range, and for `receptive_field` where attention is
    not causal.

    >>> first = np.array([[1.0, 0.0], [0.5, 0.5]])
    >>> second = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> rollout([first, second], residual=0.5)
    array([[1.   , 0.   ],
           [0.625, 0.375]])
    """
    make = transition_maker(head_fusion, residual, discard_ratio, receptive_field)
    product = None
    for layer in layers_from(layers, start_layer):
        product = make(layer).after(product)
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
    """How does the rollout grow? The product after each layer, as `rollout` would give it.

    >>> layers = [np.full((3, 3), 1 / 3)] * 4
    >>> [round(float(product[0, 0]), 3) for product in rollout_by_layer(layers)]
    [0.667, 0.5, 0.417, 0.375]
    """
    make = transition_maker(head_fusion, residual, discard_ratio, receptive_field)
    product, products = None, []
    for layer in layers_from(layers, start_layer):
        product = make(layer).after(product)
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
    """What is in these outputs? Only the wanted rows of `rollout`, at a fraction of its cost.

    The product is composed from the last layer down, r ← r · Ā, so that no layer costs more
    than a pass over its attention. `rows` are query positions; negative ones count from the end.

    Raises ValueError as `rollout` does, and for rows that are none or out of range.

    >>> layers = [np.full((4, 4), 0.25)] * 2
    >>> rollout_rows(layers, [3])
    array([[0.1875, 0.1875, 0.1875, 0.4375]])
    """
    make = transition_maker(head_fusion, residual, discard_ratio, receptive_field)
    *below, last = layers_from(layers, start_layer)
    relevance = make(last).rows(positions(rows, last.shape[1]))
    for layer in reversed(below):
        relevance = make(layer).before(relevance)
    return answer_like(last, relevance)


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
    """What is in these mixtures of outputs? Each row of relevance, times the `rollout`.

    So relevance that one part of a model put on another's outputs goes on to that part's inputs.
    A row with a single 1 gives a row of the rollout, as `rollout_rows` does.

    Raises ValueError as `rollout` does, and for relevance of other outputs than the layers have.

    >>> layers = [np.full((2, 2), 0.5)] * 2
    >>> carry_back(layers, np.array([[1.0, 0.0], [0.5, 0.5]]))
    array([[0.625, 0.375],
           [0.5  , 0.5  ]])
    """
    make = transition_maker(head_fusion, residual, discard_ratio, receptive_field)
    chosen = list(layers_from(layers, start_layer))
    batch, outputs, _ = chosen[-1].shape
    carried = as_tensor(relevance).detach()
    carried = carried if carried.ndim == 3 else carried[None]
    if carried.shape[0] != batch or carried.shape[2] != outputs:
        raise ValueError(
            f"expected relevance [batch row query] of a batch of {batch} and {outputs} outputs, "
            f"got shape {tuple(carried.shape)}"
        )
    for layer in reversed(chosen):
        carried = make(layer).before(carried)
    return answer_like(chosen[-1], carried)


def attention_received(layers: Iterable[Array | Layer]) -> Float[Array, "*batch key"]:
    """How much attention does each key get? Summed over queries, averaged over heads and layers.

    The average key gets 1. No residual and no composition take part. Rows of padding count too.

    >>> attention_received([np.array([[[1.0, 0.0], [0.5, 0.5]]])])
    array([1.5, 0.5])
    """
    total = 0
    for count, layer in enumerate(layers_from(layers, 0, square=False), start=1):
        received = _received(layer)
        total = total + (received - total) / count
    return answer_like(layer, total[:, None])[..., 0, :]


@vanishing_flushed()
def _received(layer: Layer) -> Float[torch.Tensor, "batch key"]:
    """The sum over queries of one layer's attention, averaged over heads."""
    if hasattr(layer, "received"):  # a layer that can do without whole rows
        return layer.received()
    parts = (layer.fused(rows, "mean") for rows in row_tiles(layer))
    return sum(whole_rows(part, layer).sum(1) for part in parts)


def transition_maker(
    head_fusion: str, residual: float, discard_ratio: float, receptive_field: bool
) -> Callable[[Layer], Transition]:
    """Check the settings before any layer is touched; then one transition for each layer."""
    require_fusion(head_fusion)
    require_share("residual", residual)
    require_share("discard ratio", discard_ratio, below_one=True)
    return lambda layer: Transition(layer, head_fusion, residual, discard_ratio, receptive_field)


def layers_from(
    layers: Iterable[Array | Layer], start_layer: int, *, square: bool = True
) -> Iterator[Layer]:
    """The layers from `start_layer` on, each checked against the first one's shape."""
    expected, number = None, -1
    for number, given in enumerate(layers):
        layer = given if hasattr(given, "fused") else DenseLayer(given)
        if square and layer.shape[1] != layer.shape[2]:
            raise ValueError(
                f"layer {number} has {layer.shape[1]} queries and {layer.shape[2]} keys; a rollout "
                "needs square attention (of one pass over the whole sequence, without a cache)"
            )
        expected = expected or layer.shape
        if layer.shape != expected:
            raise ValueError(
                f"layer {number} has shape [batch query key] {layer.shape}, expected {expected} "
                "as in the first layer"
            )
        if number >= start_layer:
            yield layer
    if number < 0:
        raise ValueError("expected at least one layer, got none")
    if not 0 <= start_layer <= number:
        raise ValueError(f"start_layer must be in [0, {number}], got {start_layer}")


def answer_like(layer: Layer, result: torch.Tensor) -> Array:
    """A result in the form in which the layers came; recorded layers are batched torch."""
    return layer.answer(result) if isinstance(layer, DenseLayer) else result
