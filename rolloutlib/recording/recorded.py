"""Recorded attention layers: probabilities, by head or fused, without ever holding all of them.

They are recomputed from queries and keys in tiles that fit the processor's cache: scores of a few
heads, their exponentials in the same memory, and the sum over heads next to them. If the model's
own pass left the log-sum-exp of every row, each tile can be computed on its own.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int

from rolloutlib.algorithm.arrays import consecutive, positions, working_dtype
from rolloutlib.algorithm.attention import require_fusion
from rolloutlib.algorithm.layers import HEIGHT, fitting

TILE = 320_000  # scores computed at once: 1.3 MB in float32, or the tile of one head
SIDES = (1024, 1024)  # rows and keys of a tile
CAUSAL_SIDES = {0: (128, 2048), 2048: (192, 1536)}  # by the number of keys from which they apply
LOG2_E = math.log2(math.e)
EXTREMES = {"max": torch.maximum, "min": torch.minimum}


@dataclass(frozen=True)
class Call:
    """One attention call: everything that determines its probabilities.

    Queries and keys are those after the rotary embedding. With grouped-query attention there are
    fewer key heads than query heads: each key head serves `heads // key_heads` consecutive ones.
    """

    query: Float[torch.Tensor, "batch head query width"]
    key: Float[torch.Tensor, "batch key_head key width"]
    mask: Bool[torch.Tensor, "_ _ query key"] | Float[torch.Tensor, "_ _ query key"] | None
    causal: bool
    scaling: float
    softcap: float | None = None  # keeps scores s within ±c as c · tanh(s / c)
    # Logits that compete with a row's scores but belong to no key: rows then sum to less than 1.
    sinks: Float[torch.Tensor, "_ head _"] | None = None
    # log Σ exp of each row's scores, if the model's own pass computed it and scores have neither
    # mask nor cap: a tile of probabilities then needs no other tile of the same rows.
    logsumexp: Float[torch.Tensor, "batch head query"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        return self.query.shape[0], self.query.shape[2], self.key.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the layer's attention is computed."""
        return self.query.device

    @property
    def height(self) -> int:
        """Rows at a time: on the CPU so few that there is work for every core."""
        return HEIGHT if self.device.type == "cpu" else fitting(self.device, self.shape[2])

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """softmax(QKᵀ · scaling + mask) for these query rows (all of them by default), in float32.

        Vaswani et al. 2017, equation 1. With a sink of logit s, exp(s) is added to the denominator
        (Xiao et al. 2024, "Efficient Streaming Language Models with Attention Sinks"), and rows sum
        to less than 1. Float64 queries stay float64. Negative rows count from the end; a ValueError
        names those that are out of range.
        """
        rows = every_or_chosen(rows, self.shape[1])
        keys, dtype = slice(0, self.shape[2]), working_dtype(self.query.dtype)
        room = self.query.new_empty(self.query.shape[1] * len(rows) * self.shape[2], dtype=dtype)
        sequences = (Rows(self, item, rows, room) for item in range(self.shape[0]))
        every = slice(0, len(rows))
        return torch.stack([Tile(each, every, keys).probabilities() for each in sequences])

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row seen"]:
        """The head-fused attention of these query rows, one tile in memory at a time.

        For causal attention, only the keys up to the last of these rows: all later ones are 0.
        """
        require_fusion(how)
        fused = self._zeros(len(rows), self._seen(rows))
        for item, some, keys, tile in self._tiles(rows):
            block = fused[item, some, keys]
            if how == "mean":
                tile.add_mean(block)
            else:
                tile.set_extreme(block, EXTREMES[how])
            tile.hide_later(block)
        return fused

    def visible(self, rows: torch.Tensor) -> Int[torch.Tensor, "batch row"]:
        """How many keys each of these query rows can see: those that the mask leaves to any head.

        A value added to scores hides a key if it is below half the lowest number of its type.
        """
        if self.causal or self.mask is None:
            count = rows + 1 if self.causal else torch.full_like(rows, self.shape[2])
            return count.to(self.query.device).expand(self.shape[0], -1)
        shown = self.mask[:, :, consecutive(rows)]
        if shown.dtype != torch.bool:
            shown = shown > torch.finfo(shown.dtype).min / 2
        return shown.any(1).sum(-1).expand(self.shape[0], -1)

    def _zeros(self, *shape: int) -> torch.Tensor:
        dtype = working_dtype(self.query.dtype)
        return self.query.new_zeros(self.shape[0], *shape, dtype=dtype)

    def _seen(self, rows: torch.Tensor) -> int:
        """The largest number of keys that any of these rows attends to."""
        return int(rows.max()) + 1 if self.causal else self.shape[2]

    def _tiles(self, rows: torch.Tensor) -> Iterator[tuple[int, slice, slice, "Tile"]]:
        """All probabilities of these rows: item of the batch, rows, keys, and the tile of them."""
        height, width = self._sides(len(rows))
        area = self.sharing * height * width
        dtype = working_dtype(self.query.dtype)
        room = self.query.new_empty(max(TILE // area, 1) * area, dtype=dtype)
        for item in range(self.shape[0]):
            sequence = Rows(self, item, rows, room)
            for some in _slices(len(rows), height):
                for keys in _slices(self._seen(rows[some]), width):
                    yield item, some, keys, Tile(sequence, some, keys)

    def _sides(self, rows: int) -> tuple[int, int]:
        """Rows and keys of a tile, as measured. Tall tiles make fast products, but in causal
        attention those on the diagonal are half empty. A GPU takes all rows of a step at once."""
        if self.device.type != "cpu":
            return rows, self.shape[2]
        longest = max(least for least in CAUSAL_SIDES if least <= self.shape[2])
        queries, keys = CAUSAL_SIDES[longest] if self.causal else SIDES
        height, width = min(rows, queries), min(self.shape[2], keys // self.sharing or 1)
        if self.logsumexp is not None:
            return height, width
        return min(height, TILE // self.shape[2] or 1), self.shape[2]  # a row is normalized whole

    @property
    def sharing(self) -> int:
        """How many query heads share a key head."""
        return self.query.shape[1] // self.key.shape[1]


@dataclass(frozen=True)
class RecordedLayer(Call):
    """One attention layer of one pass: the call that the module of this name made.

    crosses: whether its keys come from another sequence than its queries.
    """

    name: str = field(kw_only=True)
    crosses: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, call: Call, name: str) -> "RecordedLayer":
        """The layer that made this call."""
        return cls(**{part.name: getattr(call, part.name) for part in fields(Call)}, name=name)


class Group(NamedTuple):
    """Some heads of a tile, as many as fit into `Rows.room`, and the memory for their scores."""

    heads: slice
    served: slice  # their key heads
    query: Float[torch.Tensor, "key_head sharing_row width"]
    key: Float[torch.Tensor, "key_head width some_key"]
    scores: Float[torch.Tensor, "key_head sharing_row some_key"]
    each: tuple[Float[torch.Tensor, "row some_key"], ...]  # the same memory, head by head


class Rows:
    """Some query rows of one recorded sequence, and what their tiles share.

    room: memory for the scores of some heads of a tile, or of all heads if it is large enough.
    """

    def __init__(self, layer: Call, item: int, rows: torch.Tensor, room: torch.Tensor):
        self.layer, self.room, self.numbers = layer, room, rows
        self.chosen = consecutive(rows)
        self.query, self.key = layer.query[item][:, self.chosen], layer.key[item]
        self.mask = self.logsumexp = self.sinks = None
        if layer.mask is not None:
            mask = layer.mask.expand(layer.shape[0], layer.query.shape[1], -1, -1)
            self.mask = mask[item][:, self.chosen]
        if layer.sinks is not None:
            sinks = layer.sinks.expand(*layer.query.shape[:3])[item][:, self.chosen, None]
            self.sinks = sinks.to(room.dtype)
        if layer.logsumexp is not None:
            self.logsumexp = layer.logsumexp[item][:, self.chosen, None].to(room.dtype)


class Tile:
    """Some query rows and some keys, and what their heads share."""

    def __init__(self, rows: Rows, some: slice, keys: slice):
        self.rows, self.some, self.layer = rows, some, rows.layer
        self.shape = some.stop - some.start, keys.stop - keys.start
        self.key = rows.key[:, keys].mT
        # Queries that share a key head are stacked.
        query = rows.query[:, some].to(rows.room.dtype)
        self.query = query.reshape(self.key.shape[0], rows.layer.sharing * self.shape[0], -1)
        self.numbers, self.keys = rows.numbers[some], keys
        self.logsumexp = None if rows.logsumexp is None else rows.logsumexp[:, some]
        self.sinks = None if rows.sinks is None else rows.sinks[:, some]
        self.mask = None if rows.mask is None else rows.mask[:, some, keys]

    def add_mean(self, total: Float[torch.Tensor, "row key"]) -> None:
        """Add the mean of the heads' probabilities."""
        for head in self.heads():
            total.add_(head, alpha=1 / len(self.rows.query))

    def set_extreme(self, fused: Float[torch.Tensor, "row key"], extreme: Callable) -> None:
        """Write the largest or smallest probability of all heads, found among their logarithms."""
        heads = self.logarithms()
        fused.copy_(next(heads))
        for head in heads:
            extreme(fused, head, out=fused)
        fused.exp2_()

    def heads(self) -> Iterator[Float[torch.Tensor, "row key"]]:
        """The probabilities, one head at a time. Later heads reuse the same memory.

        For keys that a causal row must not see, values are arbitrary: see `hide_later`. Powers have
        base 2, since torch.exp takes up to three times as long, and more if results underflow.
        """
        for group in self._groups():
            if self.logsumexp is None:
                scores = self._masked(self._scores(group, self.layer.scaling), group)
                self._softmax(scores, group, out=scores)
            else:
                self._logarithms(group).exp2_()
            yield from group.each

    def hide_later(self, matrix: Float[torch.Tensor, "row key"]) -> None:
        """Set to 0 what causal rows must not see."""
        if self.layer.causal and isinstance(self.rows.chosen, slice):  # many times faster
            matrix.tril_(self.rows.chosen.start + self.some.start - self.keys.start)
        elif self.layer.causal:
            matrix.masked_fill_(self.later, 0)

    @cached_property
    def later(self) -> Bool[torch.Tensor, "row some_key"]:
        """Which keys causal rows must not see."""
        later = torch.arange(self.keys.start, self.keys.stop) > self.numbers[:, None]
        return later.to(self.query.device)

    def logarithms(self) -> Iterator[Float[torch.Tensor, "row key"]]:
        """The base-2 logarithms of the probabilities, one head at a time, as in `heads`."""
        for group in self._groups():
            self._logarithms(group)
            yield from group.each

    def probabilities(self) -> Float[torch.Tensor, "head row key"]:
        """The probabilities of all heads at once, without the model's own log-sum-exps."""
        [group] = self._groups()
        return self._softmax(self._masked(self._scores(group, self.layer.scaling), group), group)

    def _groups(self) -> list[Group]:
        """All heads, in groups. A list, because small steps between large products find the cache
        full, and take several times as long as in direct succession."""
        (count, rows, _), size, sharing = self.query.shape, self.shape[1], self.layer.sharing
        room = self.rows.room
        step = min(room.shape[0] // (rows * size), count)
        scores = room[: step * rows * size].view(step, rows, size)
        each = scores.view(-1, *self.shape).unbind()
        groups, starts = [], range(0, count, step)
        for start, *pair in zip(starts, self.query.split(step), self.key.split(step), strict=True):
            stop = min(start + step, count)
            heads = slice(start * sharing, stop * sharing)
            here = scores if stop - start == step else scores[: stop - start]
            part = each[: heads.stop - heads.start]
            groups.append(Group(heads, slice(start, stop), *pair, here, part))
        return groups

    def _scores(
        self, group: Group, scaling: float
    ) -> Float[torch.Tensor, "key_head sharing_row some_key"]:
        """QKᵀ · scaling."""
        query, key, scores = group.query, group.key, group.scores
        key = key if key.dtype == scores.dtype else key.to(scores.dtype)
        scores.baddbmm_(query, key, beta=0, alpha=scaling)
        cap = self.layer.softcap
        return scores if cap is None else scores.div_(cap).tanh_().mul_(cap)

    def _logarithms(self, group: Group) -> Float[torch.Tensor, "head row key"]:
        if self.logsumexp is None:
            scores = self._masked(self._scores(group, self.layer.scaling), group)
            return self._log_softmax(scores, group).mul_(LOG2_E)
        scores = self._scores(group, self.layer.scaling * LOG2_E)
        return scores.view(-1, *self.shape).sub_(self.logsumexp[group.heads], alpha=LOG2_E)

    def _softmax(
        self, scores: torch.Tensor, group: Group, out: torch.Tensor | None = None
    ) -> Float[torch.Tensor, "head row key"]:
        """The probabilities of these scores, written to `out` if it is given."""
        if self.sinks is None:
            return torch.softmax(scores, -1, out=out)
        return torch.exp(self._less_total(scores, group), out=out)

    def _log_softmax(self, scores: torch.Tensor, group: Group) -> torch.Tensor:
        """The logarithms of the probabilities of these scores, in the same memory."""
        if self.sinks is None:
            return torch.log_softmax(scores, -1, out=scores)
        return scores.copy_(self._less_total(scores, group))

    def _less_total(self, scores: torch.Tensor, group: Group) -> torch.Tensor:
        """Scores less the log-sum-exp of their row, in which the sink counts too."""
        total = scores.logsumexp(-1, keepdim=True)
        return scores - torch.logaddexp(total, self.sinks[group.heads])

    def _masked(self, scores: torch.Tensor, group: Group) -> Float[torch.Tensor, "head row key"]:
        """Mask the scores in place, with the lowest number where a row must not look."""
        scores = scores.view(-1, *self.shape)
        lowest = torch.finfo(scores.dtype).min  # not -inf: a row that sees nothing would be NaN
        if self.layer.causal:
            # Adding takes a tenth of the time of a masked fill; scores vanish next to `lowest`.
            hidden = max(int(self.numbers.min()) + 1 - self.keys.start, 0)  # first hidden key
            scores[..., hidden:].add_(self.later[:, hidden:].to(scores.dtype), alpha=lowest)
        elif self.mask is not None and self.mask.dtype == torch.bool:
            scores.masked_fill_(~self.mask[group.heads], lowest)
        elif self.mask is not None:
            scores.add_(self.mask[group.heads].to(scores.dtype)).clamp_(min=lowest)
        return scores


def every_or_chosen(rows: torch.Tensor | list[int] | None, size: int) -> torch.Tensor:
    """The numbers of the wanted rows, from 0; all rows by default."""
    return torch.arange(size) if rows is None else positions(rows, size)


def _slices(size: int, step: int) -> Iterator[slice]:
    """0 to `size`, in order, `step` at a time."""
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
