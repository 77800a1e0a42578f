"""Layers, whether their attention is given as an array or was recorded."""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from rolloutlib.algorithm.arrays import Array, as_tensor, consecutive
from rolloutlib.algorithm.attention import (
    attended,
    merge_heads,
    normalize_rows,
    require_attention,
)

HEIGHT = 192  # query rows per step, at least: enough for fast products
# Or more rows, up to this many entries: 2.4 MB in float32 on the CPU.
ENTRIES = {"cpu": 600_000, "other": 8_000_000}


@runtime_checkable
class Layer(Protocol):
    """One layer's attention, however it is stored: it returns the query rows that are asked for."""

    shape: tuple[int, int, int]  # batch, queries, keys
    device: torch.device

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused attention of these query rows, in memory that the caller may change.

        Keys after the last of the rows may be left out if none of the rows attends to them.
        """

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see."""


class DenseLayer:
    """A layer whose attention is one array: `[query key]`, `[head query key]` or with a batch."""

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
        self.device = tensor.device
        self.numpy = isinstance(attention, np.ndarray)
        self.batched = tensor.ndim == 4

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused attention of these query rows.

        The fused rows are checked instead of every head, so heads are read from memory only once.
        """
        fused = merge_heads(self.heads[:, :, consecutive(rows)], how)
        require_attention(fused)
        return without_unseen(fused, rows)

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows attends to, with any head: a mask leaves zeros."""
        return attended(self.heads[:, :, consecutive(rows)])

    def answer(self, result: Float[torch.Tensor, "batch row key"]) -> Array:
        """Return a result in the form of the input: NumPy or torch, with or without a batch."""
        result = result if self.batched else result[0]
        return result.numpy() if self.numpy else result


class EvenLayer:
    """A layer in which every token attends evenly to all keys that it attends to at all.

    So it has the mask of the other layer, and nothing that was learned. A key that no head attends
    to counts as masked.
    """

    def __init__(self, layer: Layer):
        self.layer, self.shape, self.device = layer, layer.shape, layer.device

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """Even attention of these query rows."""
        fused = self.layer.fused(rows, how)
        return normalize_rows((fused > 0).to(fused.dtype))

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see."""
        return self.layer.visible(rows)

    def answer(self, result: Float[torch.Tensor, "batch row key"]) -> Array:
        """Return a result in the form of the other layer's."""
        return answer_like(self.layer, result)


def even_attention(layers: Iterable[Array | Layer]) -> list[EvenLayer]:
    """The same layers, as they would be if every token attended evenly to all that it sees.

    Their rollout shows what the mask alone does: with causal attention, relevance gathers on early
    tokens, whatever the model learned.

    >>> from rolloutlib import rollout
    >>> rollout(even_attention([np.array([[1.0, 0.0], [0.9, 0.1]])]), residual=0.5)
    array([[1.  , 0.  ],
           [0.25, 0.75]])
    """
    return [EvenLayer(layer) for layer in layers_from(layers, 0)]


def row_tiles(layer: Layer, queries: int | None = None) -> tuple[torch.Tensor, ...]:
    """The first query rows of a layer, by default all, in tiles of one height: that of the layer,
    if it says how many rows are computed fastest at a time, or as many as fit the cache."""
    queries = queries or layer.shape[1]
    height = getattr(layer, "height", None) or fitting(layer.device, layer.shape[2])
    return torch.arange(queries).tensor_split(round(queries / height) or 1)


def fitting(device: torch.device, keys: int) -> int:
    """As many rows as fit the processor's cache, if that is enough for fast products."""
    return max(ENTRIES.get(device.type, ENTRIES["other"]) // keys, HEIGHT)


def with_keys(
    part: Float[torch.Tensor, "batch row seen"], keys: int
) -> Float[torch.Tensor, "batch row key"]:
    """Fill in zeros for the keys that were left out, up to this number of them."""
    left_out = keys - part.shape[2]
    return torch.nn.functional.pad(part, (0, left_out)) if left_out else part


def joined(
    parts: Iterable[Float[torch.Tensor, "batch _ _"]],
) -> Float[torch.Tensor, "batch row seen"]:
    """Stack the parts of a layer, with as many keys as any has; a single part is not copied."""
    parts = list(parts)
    seen = max(part.shape[2] for part in parts)
    return parts[0] if len(parts) == 1 else torch.cat([with_keys(part, seen) for part in parts], 1)


def without_unseen(
    fused: Float[torch.Tensor, "batch row key"], rows: torch.Tensor
) -> Float[torch.Tensor, "batch row seen"]:
    """Leave out the keys after the last of these rows, if none of the rows attends to them."""
    seen = int(rows.max()) + 1
    if seen == fused.shape[-1] or fused.device.type != "cpu":  # a look would make the GPU wait
        return fused
    # The last key is usually enough to show that attention is not causal.
    if not fused[..., -1].any() and not fused[..., seen:].any():
        return fused[..., :seen]
    return fused


def numberless(name: str) -> str:
    """The name of a module without its numbers, the same for all layers of a stack.

    >>> numberless("model.layers.3.self_attn")
    'model.layers..self_attn'
    """
    return ".".join("" if piece.isdigit() else piece for piece in name.split("."))


def attends(layer: object) -> bool:
    """Whether a layer's matrix is attention: layers without attention say that theirs is not."""
    return getattr(layer, "attends", True)


def stack_of(name: str) -> str:
    """The path of the stack that a module's layer is in, without numbers.

    >>> stack_of("model.layers.3.self_attn")
    'model.layers'
    """
    pieces = name.split(".")
    last = max((i for i, piece in enumerate(pieces) if piece.isdigit()), default=len(pieces))
    return numberless(".".join(pieces[:last]))


def layers_from(
    layers: Iterable[Array | Layer], start_layer: int, *, square: bool = True
) -> Iterator[Layer]:
    """The layers from `start_layer` on, each checked against the first one's shape and stack."""
    expected, number, name, mixes = None, -1, None, False
    for number, given in enumerate(layers):
        layer = given if isinstance(given, Layer) else DenseLayer(given)
        name, before = getattr(layer, "name", name), name
        if square and getattr(layer, "crosses", False):
            raise ValueError(
                f"layer {number} ({name}) attends to another sequence; a rollout needs layers over "
                "one sequence"
            )
        mixes = mixes or not attends(layer)
        place = stack_of if mixes else numberless
        if square and place(name or "") != place(before or name or ""):
            raise ValueError(
                f"layer {number} is {name} after {before}; a rollout needs the layers of one stack "
                "over one sequence: choose them by their names"
            )
        if square and layer.shape[1] != layer.shape[2]:
            raise ValueError(
                f"layer {number} has {layer.shape[1]} queries and {layer.shape[2]} keys; a rollout "
                "needs square attention (of one pass over the whole sequence, without a cache or "
                "logits_to_keep)"
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
    """Return a result in the form of the layers; recorded layers are batched torch tensors."""
    return layer.answer(result) if isinstance(layer, DenseLayer | EvenLayer) else result
