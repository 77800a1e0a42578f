"""Layers without attention: each mixes its tokens by a matrix as well, which can be had exactly.

Such a layer keeps a state, or a short window, instead of keys. Its gates, queries and keys depend
on the tokens, but once they are fixed, its output is linear in its values: M · v for each head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int

from rolloutlib.algorithm.arrays import working_dtype
from rolloutlib.algorithm.attention import attended, merge_heads, normalize_rows, require_fusion
from rolloutlib.algorithm.layers import Layer, with_keys
from rolloutlib.recording.kinds import DifferentiableLayer
from rolloutlib.recording.recorded import TILE, every_or_chosen

CHUNK = 64  # tokens per step backward through a state


class MixingLayer:
    """What layers without attention share: a matrix M for each head, with signs or without.

    Negative entries take away what a token wrote, and rows do not sum to 1. So `probabilities` is
    |M|, each row divided by its sum, and can stand wherever attention does. What is left out is
    what the layer does with each token alone: the norm and the gate behind M · v, and the short
    convolution before a state, through which queries, keys, values and gates also depend on the
    last few tokens before their own.
    """

    attends = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        return self.size[0], self.size[2], self.size[2]

    def signed(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """M for these query rows (all of them by default), in float32.

        Float64 stays float64. Negative rows count from the end; a ValueError names those that are
        out of range.
        """
        rows = every_or_chosen(rows, self.shape[1])
        groups = self._groups(len(rows))
        seen = torch.stack(
            [
                torch.cat([self._matrix(item, heads, rows) for heads in groups])
                for item in range(self.size[0])
            ]
        )
        return torch.nn.functional.pad(seen, (0, self.shape[2] - seen.shape[-1]))

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """|M| for these query rows, each row divided by its sum; rows of zeros stay zero."""
        return normalize_rows(self.signed(rows).abs_())

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused |M| of these query rows, up to the last of them, some heads at a time."""
        require_fusion(how)
        every = []
        for item in range(self.size[0]):
            parts = (self._matrix(item, heads, rows) for heads in self._groups(len(rows)))
            every.append(_fused((normalize_rows(part.abs_()) for part in parts), how, self.size[1]))
        return torch.stack(every)

    def _groups(self, rows: int) -> list[range]:
        """All heads, as many at a time as leave what is computed of them small."""
        heads, tokens = self.size[1:]
        step = max(TILE // (max(rows, self.width) * tokens), 1)
        return [range(heads)[start : start + step] for start in range(0, heads, step)]

    def _matrix(
        self, item: int, heads: Sequence[int], rows: torch.Tensor
    ) -> Float[torch.Tensor, "head row seen"]:
        """Rows of M of some heads of one item, up to the last of the rows."""
        raise NotImplementedError

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see: itself and all before it."""
        return (rows + 1).to(self.device).expand(self.shape[0], -1)


def _fused(
    parts: Iterator[Float[torch.Tensor, "head row key"]], how: str, heads: int
) -> Float[torch.Tensor, "row key"]:
    """Fuse heads that come some at a time."""
    total = None
    for part in parts:
        here = part.sum(0) / heads if how == "mean" else merge_heads(part, how)
        if total is None:
            total = here
        elif how == "mean":
            total += here
        else:
            total = merge_heads(torch.stack([total, here]), how)
    return total


@dataclass(frozen=True)
class RecordedState(MixingLayer):
    """One layer that keeps a state S for each head, in one pass: what determines its matrix M.

    S_i = (I - e_i k_i k_iᵀ) a_i S_{i-1} + w_i k_i v_iᵀ and out_i = S_iᵀ q_i + d v_i, where a
    forgets, e erases, w writes and d passes on. e = w is the gated delta rule (Yang, Kautz &
    Hatamizadeh 2024, "Gated Delta Networks"); e = 0 is Mamba2, whose q, k, w are called C, B, Δ
    (Dao & Gu 2024, "Transformers are SSMs"). Ali, Zimerman & Wolf (2024, "The Hidden Attention of
    Mamba Models") first read such a matrix as attention.

    Queries and keys are shared by consecutive heads, as in grouped-query attention.
    """

    name: str
    query: Float[torch.Tensor, "batch token key_head width"]
    key: Float[torch.Tensor, "batch token key_head width"]
    decay: Float[torch.Tensor, "batch token head"]  # log a, 0 or less
    write: Float[torch.Tensor, "batch token head"]
    erase: Float[torch.Tensor, "batch token head"] | None = None
    skip: Float[torch.Tensor, " head"] | None = None
    unit: bool = False  # whether queries and keys are brought to length 1
    scaling: float = 1.0  # of the queries
    # A part of the state before and after this call, to tell whether calls continue each other.
    before: Float[torch.Tensor, "batch head *_"] | None = None
    after: Float[torch.Tensor, "batch head *_"] | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Batch, heads, tokens."""
        batch, tokens, heads = self.decay.shape
        return batch, heads, tokens

    @property
    def width(self) -> int:
        """Of a query or key."""
        return self.query.shape[3]

    @property
    def device(self) -> torch.device:
        """Where the layer's matrix is computed."""
        return self.query.device

    def carried(
        self, relevance: Float[torch.Tensor, "batch row query"]
    ) -> Float[torch.Tensor, "batch head row key"]:
        """relevance · M with signs kept, for each head: one pass backward through the state."""
        groups = self._groups(relevance.shape[1])
        return torch.stack(
            [
                torch.cat([self._backward(item, heads, each) for heads in groups])
                for item, each in enumerate(relevance)
            ]
        )

    def _matrix(
        self, item: int, heads: Sequence[int], rows: torch.Tensor
    ) -> Float[torch.Tensor, "head row seen"]:
        seen = torch.arange(int(rows.max()) + 1, device=self.device)
        return self._backward(item, heads, seen == rows.to(self.device)[:, None])

    def _backward(
        self, item: int, heads: Sequence[int], relevance: torch.Tensor
    ) -> Float[torch.Tensor, "head row seen"]:
        """relevance · M: the adjoint of the state, chunk by chunk from the last token to the first.

        Inside a chunk what is erased depends on what was written, which makes a triangular system.
        """
        query, key, decay, erase, write = self._of(item, heads)
        relevance = relevance.to(query)
        adjoint = query.new_zeros(len(heads), len(relevance), query.shape[-1])
        result = query.new_zeros(len(heads), *relevance.shape)
        for start in reversed(range(0, relevance.shape[1], CHUNK)):
            here = slice(start, min(start + CHUNK, relevance.shape[1]))
            q, k, rel = query[:, here], key[:, here], relevance[:, here]
            since = decay[:, here].cumsum(1)
            between = (since[:, :, None] - since[:, None]).tril().exp().tril()
            mixed = adjoint @ (k * (since[:, -1:] - since).exp()[..., None]).mT
            mixed += rel @ ((q @ k.mT) * between)
            adjoint = adjoint * since[:, -1:, None].exp() + (rel * since[:, None].exp()) @ q
            if erase is not None:
                e = erase[:, here, None]
                system = (k @ k.mT) * between * e
                mixed = torch.linalg.solve_triangular(
                    system, mixed, upper=False, left=False, unitriangular=True
                )
                adjoint -= mixed @ (e * k * since.exp()[..., None])
            result[:, :, here] = mixed * write[:, None, here]
        if self.skip is not None:
            result += self.skip[list(heads), None, None].to(result) * relevance
        return result

    def _of(self, item: int, heads: Sequence[int]) -> tuple[torch.Tensor | None, ...]:
        """Queries, keys, decay, erase and write of some heads, `[head token …]`."""
        dtype, heads = working_dtype(self.query.dtype), torch.tensor(heads, device=self.device)
        shared = heads // (self.size[1] // self.query.shape[2])
        query, key = (x[item].to(dtype).transpose(0, 1)[shared] for x in (self.query, self.key))
        if self.unit:  # as the rule itself does, with the same epsilon
            query, key = (
                x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (query, key)
            )
        gates = (self.decay, self.erase, self.write)
        gates = (gate if gate is None else gate[item].to(dtype).T[heads] for gate in gates)
        return query * self.scaling, key, *gates


@dataclass(frozen=True)
class RecordedConvolution(MixingLayer):
    """One short gated convolution of one pass, as in LFM2: each channel is a head of its own.

    M[i, j] = c_i · t[i - j] · b_j within a window of a few tokens, where t is the channel's kernel
    (Liquid AI 2025, LFM2).
    """

    name: str
    kernel: Float[torch.Tensor, "channel tap"]  # the last tap is that of the token itself
    opening: Float[torch.Tensor, "batch channel token"]  # b, the gate before
    closing: Float[torch.Tensor, "batch channel token"]  # c, the gate behind
    before: Float[torch.Tensor, "batch head *_"] | None = None
    after: Float[torch.Tensor, "batch head *_"] | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Batch, channels, tokens."""
        return tuple(self.opening.shape)

    @property
    def width(self) -> int:
        """Of the window."""
        return self.kernel.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the layer's matrix is computed."""
        return self.opening.device

    def _matrix(
        self, item: int, heads: Sequence[int], rows: torch.Tensor
    ) -> Float[torch.Tensor, "head row seen"]:
        dtype, some = working_dtype(self.opening.dtype), slice(heads[0], heads[-1] + 1)
        rows = rows.to(self.device)
        kernel, opening, closing = (
            part.to(dtype)
            for part in (self.kernel[some], self.opening[item, some], self.closing[item, some])
        )
        seen = int(rows.max()) + 1
        matrix = opening.new_zeros(len(heads), len(rows), seen)
        for back in range(min(kernel.shape[1], seen)):
            own = (rows >= back).nonzero().flatten()
            keys = rows[own] - back
            tap = kernel[:, -1 - back, None]
            matrix[:, own, keys] = closing[:, rows[own]] * tap * opening[:, keys]
        return matrix


@dataclass(frozen=True)
class DifferentiableMixing(DifferentiableLayer):
    """One layer without attention of a pass with gradients: its M as `attention`, in the graph."""

    attends: ClassVar[bool] = False

    def signed(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """M for these query rows (all of them by default), in float32."""
        return super().probabilities(rows)

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """|M| for these query rows, each row divided by its sum; rows of zeros stay zero."""
        return normalize_rows(self.signed(rows).abs())

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows mixes in, with any head."""
        return attended(self.probabilities(rows))


@dataclass(frozen=True)
class ParallelLayer:
    """Attention and a state beside each other in one layer, as in Falcon-H1, which adds them up.

    A part counts for a row by what it adds there: the length of its output, as a share of the sum
    of these lengths.
    """

    name: str
    parts: tuple[Layer, ...]
    added: tuple[Float[torch.Tensor, "batch query"], ...]

    attends: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        return self.parts[0].shape

    @property
    def device(self) -> torch.device:
        """Where the first part's matrix is computed."""
        return self.parts[0].device

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """The heads of all parts for these query rows, weighted so that their mean is the sum."""
        return self._weighted([part.probabilities(rows) for part in self.parts], rows)

    def signed(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """The same, with M instead of |M| where a part has one."""
        heads = (getattr(part, "signed", part.probabilities)(rows) for part in self.parts)
        return self._weighted(list(heads), rows)

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The sum of the parts' head-fused rows, each weighted by what it adds."""
        fused = (with_keys(part.fused(rows, how), self.shape[2]) for part in self.parts)
        shares = (share[..., None] for share in self._shares(rows))
        return sum(part * share for part, share in zip(fused, shares, strict=True))

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see: as many as any part can."""
        return torch.stack([part.visible(rows) for part in self.parts]).amax(0)

    def _shares(self, rows: torch.Tensor) -> Float[torch.Tensor, "part batch row"]:
        added = torch.stack(self.added)[..., rows]
        return added / added.sum(0).clamp(min=torch.finfo(added.dtype).tiny)

    def _weighted(
        self, parts: list[torch.Tensor], rows: torch.Tensor | list[int] | None
    ) -> Float[torch.Tensor, "batch head row key"]:
        heads = sum(part.shape[1] for part in parts)
        shares = self._shares(every_or_chosen(rows, self.shape[1]))
        weighted = (
            part * share[:, None, :, None] * heads / part.shape[1]
            for part, share in zip(parts, shares, strict=True)
        )
        return torch.cat(list(weighted), 1)


def side_by_side(layers: Sequence[Layer], added: Mapping[str, list[torch.Tensor]]) -> list[Layer]:
    """Join the parts that one layer adds up; all others stay as they are.

    added: by the names of such parts, the lengths of their outputs, call by call.
    """
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        place = layer.name.rpartition(".")[0] if layer.name in added else layer.name
        groups.setdefault(place, []).append(layer)
    return [
        ParallelLayer(place, tuple(group), tuple(torch.cat(added[p.name], 1) for p in group))
        if len(group) > 1
        else group[0]
        for place, group in groups.items()
    ]


def whole_pass(calls: Sequence[MixingLayer]) -> MixingLayer:
    """Join a prompt's call and those that continue it, token by token, into one pass.

    Raises ValueError unless each call goes on from the state that the one before it left.
    """
    if calls[0].before is not None:
        raise ValueError(
            f"{calls[0].name} began with a state that was not recorded: record one pass over the "
            "whole sequence"
        )
    for earlier, call in pairwise(calls):
        if call.before is None or not torch.equal(earlier.after, call.before):
            raise ValueError(
                f"{call.name} ran {len(calls)} times while recording, and not always from the "
                "state that it had left, as in beam search: record one pass over the whole "
                "sequence, after generation"
            )
    if len(calls) == 1:
        return calls[0]
    along = {"query": 1, "key": 1, "decay": 1, "write": 1, "erase": 1, "opening": 2, "closing": 2}
    joined = {
        part.name: torch.cat([getattr(call, part.name) for call in calls], along[part.name])
        for part in fields(calls[0])
        if part.name in along and getattr(calls[0], part.name) is not None
    }
    return replace(calls[0], after=calls[-1].after, **joined)
