"""Other forms in which a recording keeps a layer: fused attention, blocks, or computed weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn

import torch
from jaxtyping import Float, Int

from rolloutlib.algorithm.arrays import consecutive, working_dtype
from rolloutlib.algorithm.attention import attended, fuse_heads
from rolloutlib.recording.recorded import Call, every_or_chosen


@dataclass(frozen=True)
class FusedLayer:
    """One attention layer of one pass, of which only the head-fused attention was kept.

    parts: `[batch row seen]` each, all rows in order, without the keys that no row of the part
    attends to.  counts: how many keys each row can see.
    """

    name: str
    head_fusion: str
    parts: tuple[Float[torch.Tensor, "batch _ _"], ...]
    counts: Int[torch.Tensor, "batch query"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        length = sum(part.shape[1] for part in self.parts)
        return self.parts[0].shape[0], length, self.parts[-1].shape[2]

    @property
    def device(self) -> torch.device:
        """Where the attention is stored."""
        return self.parts[0].device

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused attention of these query rows.

        Raises ValueError for any fusion but the recorded one.
        """
        if how != self.head_fusion:
            raise ValueError(self._kept_nothing_else(repr(how)))
        found = list(_by_piece([part.shape[1] for part in self.parts], rows))
        seen = max(self.parts[number].shape[2] for number, *_ in found)
        gathered = self.parts[0].new_zeros(self.shape[0], len(rows), seen)
        for number, _, ours, own in found:
            part = self.parts[number][:, consecutive(own)]
            gathered[:, consecutive(ours), : part.shape[2]] = part
        return gathered

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see."""
        return self.counts[:, rows.to(self.counts.device)]

    def probabilities(self, rows: torch.Tensor | list[int] | None = None) -> NoReturn:
        """Raise a ValueError: the attention of single heads was not kept."""
        raise ValueError(self._kept_nothing_else("a request for single heads"))

    def _kept_nothing_else(self, got: str) -> str:
        return (
            f"{self.name} was recorded with head_fusion={self.head_fusion!r} and kept nothing "
            f"else, got {got}: record with head_fusion=None to choose afterwards"
        )


def _by_piece(
    lengths: list[int], rows: torch.Tensor
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """The pieces, of a sequence cut to these lengths, that hold some of the rows: for each its
    number, its start, which of the rows it holds, and their numbers within it."""
    for number, (end, length) in enumerate(zip(accumulate(lengths), lengths, strict=True)):
        start = end - length
        ours = ((rows >= start) & (rows < end)).nonzero().flatten()
        if len(ours):
            yield number, start, ours, rows[ours] - start


class _WeightsInMemory:
    """A layer whose `weights`, `[batch head query key]`, are all there."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        return self.weights.shape[0], *self.weights.shape[2:]

    @property
    def device(self) -> torch.device:
        """Where the weights are stored."""
        return self.weights.device

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """The weights of these query rows (all of them by default), in float32.

        Float64 weights stay float64.
        """
        chosen = self.weights[:, :, consecutive(every_or_chosen(rows, self.shape[1]))]
        return chosen.to(working_dtype(chosen.dtype))

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row key"]:
        """The head-fused attention of these query rows."""
        return fuse_heads(self.probabilities(rows), how)

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows attends to, with any head."""
        return attended(self.weights[:, :, consecutive(rows)])


@dataclass(frozen=True)
class RecordedWeights(_WeightsInMemory):
    """One attention layer of one pass: the weights that it computed itself for each head.

    crosses: whether its keys come from another sequence than its queries.
    """

    name: str
    weights: Float[torch.Tensor, "batch head query key"]
    crosses: bool = False


@dataclass(frozen=True)
class DifferentiableLayer(_WeightsInMemory):
    """One attention layer of a pass with gradients: its probabilities, still in the graph.

    attention: `[batch head query key]`, or in PyTorch's own layout `[batch*head query key]`.
    """

    name: str
    attention: Float[torch.Tensor, "*batch_and_head query key"]
    heads: int

    @property
    def weights(self) -> Float[torch.Tensor, "batch head query key"]:
        """The attention itself, detached from the graph."""
        return self.attention.detach().reshape(-1, self.heads, *self.attention.shape[-2:])


@dataclass(frozen=True)
class RecordedBlocks:
    """One layer that attends within blocks of its sequence, block by block, in one pass.

    In Qwen3-VL's vision tower each picture, and each time step of a video, sees only itself. The
    attention is 0 outside the blocks; zeros are filled in only for the rows that are asked for.
    """

    name: str
    blocks: tuple[Call, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        length = sum(block.shape[1] for block in self.blocks)
        return self.blocks[0].shape[0], length, length

    @property
    def device(self) -> torch.device:
        """Where the layer's attention is computed."""
        return self.blocks[0].device

    @property
    def height(self) -> int:
        """Rows at a time."""
        return self.blocks[0].height

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """softmax(QKᵀ · scaling) within each row's block and 0 outside, as in `RecordedLayer`."""
        rows = every_or_chosen(rows, self.shape[1])
        return self._gathered(rows, lambda block, own: block.probabilities(own))

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row key"]:
        """The head-fused attention of these query rows."""
        return self._gathered(rows, lambda block, own: block.fused(own, how))

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see: those of its block."""
        counts = [b.visible(torch.arange(b.shape[1])) for b in self.blocks]
        return torch.cat(counts, 1)[:, rows.to(counts[0].device)]

    def _gathered(
        self, rows: torch.Tensor, answer: Callable[[Call, torch.Tensor], torch.Tensor]
    ) -> Float[torch.Tensor, "*batch row key"]:
        """The result of each block for its own rows, placed among zeros."""
        gathered = None
        for number, start, ours, own in _by_piece([b.shape[1] for b in self.blocks], rows):
            part = answer(self.blocks[number], own)
            if gathered is None:
                gathered = part.new_zeros(*part.shape[:-2], len(rows), self.shape[2])
            gathered[..., ours, start : start + part.shape[-1]] = part
        return gathered
