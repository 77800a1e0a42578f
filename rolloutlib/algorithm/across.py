"""Rollout across an encoder and a decoder that attends to it."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int

from rolloutlib.algorithm.arrays import Array, positions
from rolloutlib.algorithm.composition import carry_back
from rolloutlib.algorithm.layers import DenseLayer, Layer, answer_like, with_keys
from rolloutlib.algorithm.transition import Settings, Transition


def rollout_across(
    decoder: Iterable[Array | Layer],
    cross: Iterable[Array | Layer],
    encoder: Iterable[Array | Layer],
    rows: Sequence[int] | Array,
    *,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    receptive_field: bool = False,
) -> tuple[Float[Array, "*batch row position"], Float[Array, "*batch row input"]]:
    """How much of each decoder position, and of each encoder input, could have reached these rows.

    Relevance of a row is [d | e]: d over the decoder's positions, e over the encoder's outputs. It
    begins as [1 at the row | 0] and goes from the last layer to the first:

        self-attention S:   [d | e] ← [d · S̄ | e],                S̄ = (1-r)·S + r·I
        cross-attention C:  [d | e] ← [r·d | e + (1-r)·d · C]

    Each step is a product with one block matrix, and rows of d and e sum to 1 together. Last, e is
    carried through the encoder's own layers: e ← e · rollout(encoder). Chefer, Gur & Wolf (2021,
    "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers", section 3) follow the same paths for two streams. They add A · R to R where this
    mixes in the residual, and weigh attention by gradients.

    decoder, cross: self-attention, and attention to the encoder, `[head query key]` with or without
    a batch, or recorded. Recorded layers are put in order by the numbers in their names, so they
    may lie anywhere between each other, as in Mllama; arrays are taken in pairs, self-attention
    first. Where one layer attends to both at once, as in T5Gemma2, its keys are the decoder's
    positions, then the encoder's outputs, and `cross` is empty.
    encoder: its layers, first layer first; if empty, e stays on the encoder's outputs.
    rows: positions of the decoder; negative ones count from the end.
    The settings are those of `rollout`. A cross-attention layer is the matrix [0 | C], so its zeros
    count among the entries that `discard_ratio` discards.

    Returns d and e, for all rows. Raises ValueError for layers whose shapes do not fit each other,
    for a decoder that reads everything in its own sequence (`rollout_rows` is for it), for arrays
    that are not in pairs, and for rows or settings out of range.

    >>> import numpy as np
    >>> own, other = np.eye(2), np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    >>> rollout_across([own], [other], [np.full((3, 3), 1 / 3)], [1])
    (array([[0. , 0.5]]), array([[0.08333333, 0.20833333, 0.20833333]]))
    """
    settings = Settings(head_fusion, residual, discard_ratio, receptive_field=receptive_field)
    steps, behind = _steps(list(decoder), list(cross)), list(encoder)
    batch, queries, _ = steps[0].shape
    outputs = _outputs(steps)
    if behind and behind[-1].shape[-2] != outputs:
        raise ValueError(
            f"expected an encoder of {outputs} outputs, as many as cross-attention has keys, got "
            f"one of {behind[-1].shape[-2]}"
        )
    chosen = positions(rows, queries)
    own = torch.zeros(batch, len(chosen), queries, device=steps[0].device)
    own[:, torch.arange(len(chosen)), chosen.to(own.device)] = 1
    other = own.new_zeros(batch, len(chosen), outputs)
    for layer in reversed(steps):
        both = with_keys(Transition(layer, settings).before(own), queries + outputs)
        own, other = both[..., :queries], other + both[..., queries:]
    form = getattr(steps[0], "crossing", steps[0])
    own, other = answer_like(form, own), answer_like(form, other)
    same = {"head_fusion": head_fusion, "residual": residual, "discard_ratio": discard_ratio}
    if behind:
        other = carry_back(behind, other, **same, receptive_field=receptive_field)
    return own, other


class _Beside:
    """A cross-attention layer whose keys are the decoder's positions, with attention of 0, and then
    the encoder's outputs: so its skip connection lies on a diagonal, as in other layers."""

    def __init__(self, crossing: Layer):
        batch, queries, keys = crossing.shape
        self.crossing, self.device, self.name = crossing, crossing.device, _called(crossing)
        self.shape = batch, queries, queries + keys

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused attention of these query rows."""
        fused = self.crossing.fused(rows, how)
        return torch.nn.functional.pad(fused, (self.shape[1], 0))

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many of the encoder's outputs each of these query rows can see."""
        return self.crossing.visible(rows)


def _layer(given: Array | Layer) -> Layer:
    return given if isinstance(given, Layer) else DenseLayer(given)


def _steps(decoder: list[Array | Layer], cross: list[Array | Layer]) -> list[Layer]:
    """Both kinds of layers in the order in which the model runs them, first layer first."""
    recorded = all(isinstance(layer, Layer) for layer in (*decoder, *cross))
    if not recorded and cross and len(decoder) != len(cross):
        raise ValueError(
            "expected arrays in pairs, each layer's self-attention and cross-attention, got "
            f"{len(decoder)} and {len(cross)}"
        )
    layers = [*map(_layer, decoder), *(_Beside(_layer(each)) for each in cross)]
    if not layers:
        raise ValueError("expected at least one layer, got none")
    places = [*map(_place, decoder, range(len(decoder))), *map(_place, cross, range(len(cross)))]
    return [layers[number] for number in sorted(range(len(layers)), key=places.__getitem__)]


def _place(layer: Array | Layer, number: int) -> list[int]:
    """The numbers in a recorded layer's name, or else its number in the list."""
    if not isinstance(layer, Layer):
        return [number]
    return [int(piece) for piece in layer.name.split(".") if piece.isdigit()]


def _called(layer: Layer) -> str:
    """The name of a recorded layer; arrays have none."""
    return getattr(layer, "name", "")


def _outputs(steps: list[Layer]) -> int:
    """How many outputs of the encoder the layers attend to."""
    names = {layer.shape: _called(layer) for layer in steps}
    sizes = {(batch, queries) for batch, queries, _ in names}
    beyond = {keys - queries for _, queries, keys in names} - {0}
    given = ", ".join(f"{shape} {name}".strip() for shape, name in sorted(names.items()))
    if len(sizes) == 1 and not beyond:
        raise ValueError(
            "expected cross-attention, or layers that attend to both sequences at once, got only "
            f"self-attention, {given}: if the decoder reads everything in its own sequence, call "
            "rollout_rows, and carry_back through a tower"
        )
    if len(sizes) > 1 or len(beyond) != 1 or min(beyond) < 0:
        raise ValueError(
            "expected self-attention [batch query query] and cross-attention [batch query output] "
            f"of one batch, got keys of both as [batch query key] {given}"
        )
    return beyond.pop()
