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

from rolloutlib.algorithm.arrays import vanishing_flushed, working_dtype
from rolloutlib.algorithm.attention import attended, merge_heads, normalize_rows, require_fusion
from rolloutlib.algorithm.layers import HEIGHT, Layer, fitting, with_keys
from rolloutlib.recording.kinds import DifferentiableLayer
from rolloutlib.recording.recorded import every_or_chosen

CHUNK = 64  # tokens per step backward through a state
SHORT = 16  # the same where every entry of a key forgets at its own rate
TALLEST = 512  # query rows per step
ROOM = TALLEST * 4096  # entries of M computed at once: 8 MB in float32


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
            every.append(_fused(parts, how, self.size[1]))
        return torch.stack(every)

    def _groups(self, rows: int) -> list[range]:
        """All heads, as many at a time as leave what is computed of them small."""
        heads, tokens = self.size[1:]
        step = max(ROOM // (max(rows, self.breadth) * tokens), 1)
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
    """Fuse |M| by rows, normalised, of heads that come some at a time."""
    total = None
    for part in parts:
        part.abs_()
        if how != "mean":
            part = normalize_rows(part)
            part = part if total is None else torch.cat([part, total[None]])
            total = merge_heads(part, how)
            continue
        total = part.new_zeros(part.shape[1:]) if total is None else total
        sums = part.sum(-1, keepdim=True).clamp_(min=torch.finfo(part.dtype).tiny)
        for each, scale in zip(part, sums.mul_(heads).reciprocal_(), strict=True):
            total.addcmul_(each, scale)
    return total


@dataclass(frozen=True)
class RecordedState(MixingLayer):
    """One layer that keeps a state S for each head, in one pass: what determines its matrix M.

    S_i = (I - e_i k_i k_iᵀ) a_i S_{i-1} + w_i k_i v_iᵀ and out_i = S_iᵀ q_i + d v_i, where a
    forgets, e erases, w writes and d passes on.

    - e = w is the gated delta rule (Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks"). Where
      a is a diagonal matrix, it is Kimi's (Kimi Team 2025, "Kimi Linear").
    - e = 0 is Mamba2, whose q, k, w are called C, B, Δ (Dao & Gu 2024, "Transformers are SSMs"),
      and Mamba, where each channel is a head and a is diagonal. Ali, Zimerman & Wolf (2024, "The
      Hidden Attention of Mamba Models") first read its matrix as attention.
    - With a fixed a, e = 0 and w = 1 it is lightning attention (Qin et al. 2024, "Lightning
      Attention-2"); with q = k = 1 in each channel it is the RG-LRU, a decay (De et al. 2024,
      "Griffin").

    Queries and keys are shared by consecutive heads, as in grouped-query attention.
    """

    name: str
    query: Float[torch.Tensor, "batch token key_head width"]
    key: Float[torch.Tensor, "batch token key_head width"]
    # log a, 0 or less; if every entry of a key forgets at its own rate, with the key's width
    decay: Float[torch.Tensor, "batch token head *width"]
    write: Float[torch.Tensor, "batch token head"]
    erases: bool = False  # whether e is w, or 0
    skip: Float[torch.Tensor, " head"] | None = None
    rates: Float[torch.Tensor, "head width"] | None = None  # by which the decay is multiplied
    unit: bool = False  # whether queries and keys are brought to length 1
    scaling: float = 1.0  # of the queries
    # A part of the state before and after this call, to tell whether calls continue each other.
    before: Float[torch.Tensor, "batch head *_"] | None = None
    after: Float[torch.Tensor, "batch head *_"] | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Batch, heads, tokens."""
        batch, tokens, heads = self.write.shape
        return batch, heads, tokens

    @property
    def width(self) -> int:
        """Of a query or key."""
        return self.query.shape[3]

    @property
    def breadth(self) -> int:
        """How many entries each token of a head takes while its chunks are prepared."""
        return self.width * (4 if self.decay.ndim == 3 and self.rates is None else SHORT)

    @property
    def device(self) -> torch.device:
        """Where the layer's matrix is computed."""
        return self.query.device

    @property
    def height(self) -> int:
        """Rows at a time: the more, the less often the chunks are prepared, in more memory."""
        tokens = self.size[2]
        if self.device.type != "cpu":
            return fitting(self.device, tokens)
        return min(max(HEIGHT, tokens // 8), TALLEST)

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

    @vanishing_flushed()
    def _backward(
        self, item: int, heads: Sequence[int], relevance: torch.Tensor
    ) -> Float[torch.Tensor, "head row seen"]:
        """relevance · M: the adjoint of the state, chunk by chunk from the last token to the first.

        Inside a chunk what is erased depends on what was written, which makes a triangular system.
        """
        seen = relevance.shape[1]
        query, key, since, write = self._chunks(item, heads, seen)
        relevance = _padded(relevance.to(query), 1, query.shape[2]).unflatten(1, query.shape[1:3])
        arriving = relevance.any(0).any(-1).nonzero().flatten().tolist()
        written = write.diag_embed()
        if self.erases:
            system = _decayed(key, key, since) * write[..., None]
            written = torch.linalg.solve_triangular(
                system, written, upper=False, unitriangular=True
            )
        left = since[:, :, -1:].exp()
        later = written.mT @ (key * (since[:, :, -1:] - since).exp())
        own = _decayed(query[:, arriving], key[:, arriving], since[:, arriving])
        own = dict(zip(arriving, (own @ written[:, arriving]).unbind(1), strict=True))
        query, key = (x * since.exp() for x in (query, key))
        adjoint = query.new_zeros(len(heads), len(relevance), query.shape[-1])
        result = query.new_empty(len(heads), *relevance.shape)
        for chunk in reversed(range(relevance.shape[1])):
            mixed = adjoint @ later[:, chunk].mT
            adjoint *= left[:, chunk]
            if chunk in own:
                mixed += relevance[:, chunk] @ own[chunk]
                adjoint += relevance[:, chunk] @ query[:, chunk]
            if self.erases:
                adjoint.baddbmm_(mixed, key[:, chunk], alpha=-1)
            result[:, :, chunk] = mixed
        if self.skip is not None:
            result += self.skip[list(heads), None, None, None].to(result) * relevance
        return result.flatten(2)[..., :seen]

    def _chunks(
        self, item: int, heads: Sequence[int], seen: int
    ) -> tuple[Float[torch.Tensor, "head chunk token *_"], ...]:
        """Queries, keys, log a summed since the chunk's beginning, and w, of the first tokens."""
        dtype, heads = working_dtype(self.query.dtype), torch.tensor(heads, device=self.device)
        shared = heads // (self.size[1] // self.query.shape[2])
        query, key = (
            x[item, :seen].to(dtype).transpose(0, 1)[shared] for x in (self.query, self.key)
        )
        if self.unit:  # as the rule itself does, with the same epsilon
            query, key = (
                x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (query, key)
            )
        decay, write = (
            gate[item, :seen].to(dtype).transpose(0, 1)[heads] for gate in (self.decay, self.write)
        )
        decay = decay.reshape(*decay.shape[:2], -1)
        if self.rates is not None:
            decay = decay * self.rates[heads, None].to(dtype)
        length = CHUNK if decay.shape[-1] == 1 else SHORT
        query, key, decay, write = (
            _padded(x, 1, length).unflatten(1, (-1, length))
            for x in (query * self.scaling, key, decay, write)
        )
        return query, key, decay.cumsum(2), write


def _padded(tensor: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """A tensor with zeros behind, up to a multiple of this length."""
    missing = -tensor.shape[dim] % length
    if not missing:
        return tensor
    shape = [*tensor.shape]
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _decayed(
    query: Float[torch.Tensor, "head chunk row width"],
    key: Float[torch.Tensor, "head chunk key width"],
    since: Float[torch.Tensor, "head chunk token _"],
) -> Float[torch.Tensor, "head chunk row key"]:
    """Products of queries and the keys at or before them, each less by what was forgotten since."""
    between = since[:, :, :, None] - since[:, :, None]
    later = torch.ones(between.shape[2:4], device=between.device).triu(1).bool()[..., None]
    between = between.masked_fill_(later, -torch.inf).exp_()
    if between.shape[-1] == 1:
        return (query @ key.mT).mul_(between[..., 0])
    return between.mul_(key[:, :, None]).matmul(query[..., None])[..., 0]


@dataclass(frozen=True)
class RecordedConvolution(MixingLayer):
    """One short gated convolution of one pass, as in LFM2: each channel is a head of its own.

    M[i, j] = c_i · t[i - j] · b_j within a window of a few tokens, where t is the channel's kernel
    (Liquid AI 2025, LFM2). In a tower, as in LFM3-VL, the window is a square of patches.
    """

    name: str
    kernel: Float[torch.Tensor, "channel tap"]  # the last tap is that of the token itself
    opening: Float[torch.Tensor, "batch channel token"]  # b, the gate before
    closing: Float[torch.Tensor, "batch channel token"]  # c, the gate behind
    # Which token each tap reads, -1 for none; by default the last few, in order.
    reads: Int[torch.Tensor, "token tap"] | None = None
    before: Float[torch.Tensor, "batch head *_"] | None = None
    after: Float[torch.Tensor, "batch head *_"] | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Batch, channels, tokens."""
        return tuple(self.opening.shape)

    @property
    def breadth(self) -> int:
        """The size of the window."""
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
        reads = self._reads(rows)
        matrix = opening.new_zeros(len(heads), len(rows), int(max(reads.max(), rows.max())) + 1)
        for tap, keys in enumerate(reads.T):
            own = (keys >= 0).nonzero().flatten()
            gates = closing[:, rows[own]] * opening[:, keys[own]]
            matrix[:, own, keys[own]] = kernel[:, tap, None] * gates
        return matrix

    def _reads(self, rows: torch.Tensor) -> Int[torch.Tensor, "row tap"]:
        if self.reads is not None:
            return self.reads[rows]
        return rows[:, None] + torch.arange(1 - self.breadth, 1, device=rows.device)

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see: all before it, or those of its square."""
        if self.reads is None:
            return super().visible(rows)
        return (self.reads[rows] >= 0).sum(1).expand(self.shape[0], -1)


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
    along = {"query": 1, "key": 1, "decay": 1, "write": 1, "opening": 2, "closing": 2}
    joined = {
        part.name: torch.cat([getattr(call, part.name) for call in calls], along[part.name])
        for part in fields(calls[0])
        if part.name in along and getattr(calls[0], part.name) is not None
    }
    return replace(calls[0], after=calls[-1].after, **joined)
