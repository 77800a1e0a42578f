"""Join the calls of one layer into one pass over the whole sequence."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float

from rolloutlib.algorithm.arrays import vanishing_flushed, working_dtype
from rolloutlib.algorithm.layers import Layer
from rolloutlib.recording.kinds import (
    DifferentiableLayer,
    FusedLayer,
    RecordedBlocks,
    RecordedWeights,
)
from rolloutlib.recording.mixing import MixingLayer, whole_pass
from rolloutlib.recording.recorded import RecordedLayer

PART = 128  # rows of fused attention that are stored together, with every key that one of them sees


class Continued(NamedTuple):
    """A call that a later one continued from a cache; the later one holds the same keys again.

    Only the last of its own keys is kept, to tell whether the cache was reordered since.
    """

    query: Float[torch.Tensor, "batch head query width"]
    last_key: Float[torch.Tensor, "batch key_head 1 width"]
    mask: Bool[torch.Tensor, "_ _ query key"] | Float[torch.Tensor, "_ _ query key"] | None
    logsumexp: Float[torch.Tensor, "batch head query"] | None


def one_pass(
    calls: list[Layer | Continued], passes: Sequence[int] = (), *, crosses: bool = False
) -> Layer:
    """Join these calls of one module into a layer: one call, a call and those that continued it,
    or the blocks of one pass.

    passes: of a tower that ran several times for one prompt, how many calls belong to each time.
    crosses: whether the calls attend to another sequence, which stays the same while they write.

    A module that attends block by block splits one tensor, so the queries of its blocks follow each
    other in memory. Those of another pass lie elsewhere, because all of them are kept.
    """
    if isinstance(calls[0], MixingLayer):
        return whole_pass(calls)
    if len(calls) == 1:
        return calls[0]
    if len(passes) > 1 and not isinstance(calls[0], DifferentiableLayer):
        rest = iter(calls)
        return _together([one_pass([*islice(rest, count)]) for count in passes])
    if all(isinstance(call, Continued) for call in calls[:-1]):
        return _whole_sequence(*calls)
    if crosses and _ask_in_turn(calls):
        return _whole_sequence_across(calls)
    if isinstance(calls[0], DifferentiableLayer):
        raise ValueError(
            f"{calls[0].name} ran {len(calls)} times while recording gradients, expected once: one "
            "pass over the whole sequence, about one picture (several pictures, or a video's time "
            "steps, attend one at a time)"
        )
    if not _are_blocks(calls):
        raise ValueError(
            f"{calls[-1].name} ran {len(calls)} times while recording, expected once or a cache "
            "that grows: record one pass over the whole sequence, after generation (a module that "
            "attends several times in a pass, as in ALBERT or DiffLlama, is no layer of a stack)"
        )
    return RecordedBlocks(calls[0].name, tuple(calls))


def _together(passes: list[Layer]) -> Layer:
    """One layer of several passes about different pictures: one sequence of blocks, or a batch."""
    first, shapes = passes[0], [each.shape for each in passes]
    if all(batch == 1 for batch, *_ in shapes):
        blocks = [b for p in passes for b in (p.blocks if isinstance(p, RecordedBlocks) else [p])]
        if all(isinstance(block, RecordedLayer) for block in blocks):
            return RecordedBlocks(first.name, tuple(blocks))
    parts = ("weights",) if isinstance(first, RecordedWeights) else ("query", "key")
    same = len({shape[1:] for shape in shapes}) == 1 and len({type(each) for each in passes}) == 1
    if not same or any(getattr(each, "mask", None) is not None for each in passes):
        raise ValueError(
            f"{first.name} ran {len(passes)} times for one prompt, expected sequences of one "
            f"length and without a mask, got {', '.join(map(str, shapes))}"
        )
    joined = {name: torch.cat([getattr(each, name) for each in passes]) for name in parts}
    if isinstance(first, RecordedLayer):
        joined["logsumexp"] = None
    return replace(first, **joined)


def _are_blocks(calls: list[Layer | Continued]) -> bool:
    """Whether these calls are about consecutive pieces of one sequence, each only about itself."""
    if not all(isinstance(c, RecordedLayer) and c.shape[1] == c.shape[2] for c in calls):
        return False
    first, step = calls[0].query, calls[0].query.stride(2) * calls[0].query.itemsize
    starts = accumulate((call.shape[1] * step for call in calls), initial=first.data_ptr())
    return all(call.query.data_ptr() == start for call, start in zip(calls, starts, strict=False))


def _ask_in_turn(calls: list[Layer | Continued]) -> bool:
    """Whether each of these calls after the first is one more token that asks the same keys."""
    if not all(isinstance(call, RecordedLayer) and call.sinks is None for call in calls):
        return False
    first, *later = calls
    if len({call.mask is None for call in calls}) > 1:
        return False
    return all(call.shape[1] == 1 and torch.equal(call.key, first.key) for call in later)


def _whole_sequence_across(calls: list[RecordedLayer]) -> RecordedLayer:
    """Join a prompt's call to another sequence and those of the tokens after it."""
    masks, known = [call.mask for call in calls], [call.logsumexp for call in calls]
    return replace(
        calls[0],
        query=torch.cat([call.query for call in calls], 2),
        mask=None if masks[0] is None else torch.cat(masks, 2),
        logsumexp=None if any(one is None for one in known) else torch.cat(known, 2),
    )


def continues(earlier: object, call: object) -> bool:
    """Whether this call attends to all keys of the earlier one and to those of its own queries."""
    if not (isinstance(earlier, RecordedLayer) and isinstance(call, RecordedLayer)):
        return False
    return _sees_no_later(earlier) and call.shape[2] == earlier.shape[2] + call.shape[1]


def _sees_no_later(call: RecordedLayer) -> bool:
    """Whether later calls may continue this one: none of its tokens attends to a later one."""
    return call.mask is not None or call.causal or call.shape[1] == 1


def takes_less_fused(call: object) -> bool:
    """Whether a call's fused attention is smaller than its queries and keys.

    False for calls that cannot be continued: each may be one block of a pass.
    """
    if not (isinstance(call, RecordedLayer) and _sees_no_later(call)):
        return False
    fused = math.prod(call.shape) * working_dtype(call.query.dtype).itemsize
    return fused < call.query.nbytes + call.key.nbytes


@vanishing_flushed()
def fused(layer: RecordedLayer, rows: range, how: str) -> FusedLayer:
    """Some rows of a layer with its heads fused."""
    every = torch.arange(rows.start, rows.stop)
    parts = tuple(layer.fused(part, how) for part in every.split(PART))
    return FusedLayer(layer.name, how, parts, layer.visible(every))


def continued(first: FusedLayer, whole: RecordedLayer) -> FusedLayer:
    """The whole layer, whose first rows were kept with their heads fused, without their queries."""
    rows = range(first.shape[1], whole.shape[1])
    if not rows:
        return first
    later = fused(whole, rows, first.head_fusion)
    counts = torch.cat([first.counts, later.counts], 1)
    return replace(first, parts=first.parts + later.parts, counts=counts)


def _whole_sequence(*calls: RecordedLayer | Continued) -> RecordedLayer:
    """Join a prompt's call and those that continue it into one pass over the whole sequence."""
    *before, last = calls
    ends = list(accumulate(call.query.shape[2] for call in calls))
    if ends[-1] != last.shape[2]:
        raise ValueError(
            f"{last.name} computed {ends[-1]} of {last.shape[2]} rows while recording, as after an "
            "earlier cache, or where layers share keys as in Gemma 4: record one pass over the "
            "whole sequence, after generation and without logits_to_keep"
        )
    for call, end in zip(before, ends, strict=False):
        if not torch.equal(last.key[:, :, end - 1 : end], call.last_key):
            raise ValueError(
                f"{last.name}: the cache changed while recording, as in beam search: record one "
                "pass over the whole sequence, after generation"
            )
    known = [call.logsumexp for call in calls]
    mask = _whole_mask([call.mask for call in calls], ends)
    return replace(
        last,
        query=torch.cat([call.query for call in calls], 2),
        mask=mask,
        causal=mask is None,
        logsumexp=None if any(one is None for one in known) else torch.cat(known, 2),
    )


def _whole_mask(
    masks: list[torch.Tensor | None], ends: list[int]
) -> Bool[torch.Tensor, "_ _ query key"] | Float[torch.Tensor, "_ _ query key"] | None:
    """Stack the masks of the calls that end with these keys; later keys are hidden."""
    given = next((mask for mask in masks if mask is not None), None)
    if given is None:
        return None
    hidden = False if given.dtype == torch.bool else torch.finfo(given.dtype).min
    rows = []
    for mask, start, end in zip(masks, [0, *ends], ends, strict=False):
        if mask is None:  # causal: no later key is seen
            seen = given.new_ones(end - start, end, dtype=torch.bool).tril(start)
            blank = given.new_full((end - start, end), hidden)
            mask = blank.masked_fill(seen, True if given.dtype == torch.bool else 0)
        mask = torch.nn.functional.pad(mask, (0, ends[-1] - end), value=hidden)
        rows.append(mask.expand(*given.shape[:2], -1, -1))
    return torch.cat(rows, 2)
