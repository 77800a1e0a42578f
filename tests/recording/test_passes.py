"""The calls of a generation, put together, are one pass over the whole sequence."""

import pytest
import torch
from recordings import FIVE, NO_PICTURE, left_padded, prompt, record, recorded_layer
from small_llava import small_llava

from rolloutlib import FusedLayer, record_attention, rollout_rows
from rolloutlib.algorithm.composition import rollout
from rolloutlib.algorithm.layers import with_keys
from rolloutlib.recording import passes
from rolloutlib.recording.passes import Continued, continues, one_pass, takes_less_fused
from rolloutlib.recording.recorded import RecordedLayer


@pytest.fixture
def llava():
    return small_llava()


@pytest.fixture
def inputs():
    return prompt(words=5)


@pytest.mark.parametrize("padding", [0, 3])
def test_recorded_generation_is_the_pass_over_its_tokens(llava, inputs, padding):
    inputs = left_padded(inputs, padding)
    with record_attention(llava) as recording:
        sequence = llava.generate(**inputs, **FIVE)
    mask = torch.ones_like(sequence)
    mask[:, :padding] = 0
    replayed, _ = record(llava, inputs | {"input_ids": sequence, "attention_mask": mask})
    rows = sequence.shape[1] - 1  # the last token was never given to the model
    for layer, expected in zip(recording["language"], replayed["language"], strict=True):
        assert layer.shape[1:] == (rows, rows)
        wanted = expected.probabilities()[:, :, padding:rows, :rows]
        actual = layer.probabilities()[:, :, padding:]
        torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=0)
    wanted = range(rows - 5, rows)
    torch.testing.assert_close(
        rollout_rows(recording["language"], wanted),
        rollout_rows(replayed["language"], wanted)[..., :rows],
        atol=1e-6,
        rtol=0,
    )
    assert len(recording["vision"]) == len(replayed["vision"])


def test_the_keys_of_earlier_steps_are_let_go(llava, inputs):
    with record_attention(llava) as recording:
        llava.generate(**inputs, **FIVE)
    calls = recording._calls[recording.names[-1]]
    assert len(calls) == 5
    assert [call.last_key.untyped_storage().nbytes() for call in calls[:-1]] == [
        call.last_key.nbytes for call in calls[:-1]
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_beams": 3}, "the cache changed while recording, as in beam search"),
        ({"cache_implementation": "static"}, r"ran 4 times.*one pass over the whole sequence"),
        ({"use_cache": False}, r"ran 4 times.*one pass over the whole sequence"),
    ],
)
@pytest.mark.parametrize("head_fusion", [None, "mean"])
def test_generation_that_is_not_one_growing_pass_is_an_error(
    llava, inputs, how, message, head_fusion
):
    with record_attention(llava, head_fusion=head_fusion) as recording:
        llava.generate(**inputs, max_new_tokens=4, min_new_tokens=4, **NO_PICTURE, **how)
    with pytest.raises(ValueError, match=message):
        recording["language"]


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_heads_fused_while_recording_roll_out_alike(
    llava, inputs, head_fusion, padding, monkeypatch
):
    monkeypatch.setattr(passes, "PART", 8)  # several parts of a short prompt
    inputs = left_padded(inputs, padding)
    recordings = []
    for how in (None, head_fusion):
        with record_attention(llava, head_fusion=how) as recording:
            llava.generate(**inputs, **FIVE)
        recordings.append(recording)
    chosen_later, chosen_before = (recording["language"] for recording in recordings)
    assert all(isinstance(layer, FusedLayer) for layer in chosen_before)
    assert [layer.shape for layer in chosen_before] == [layer.shape for layer in chosen_later]
    assert not any(isinstance(layer, FusedLayer) for layer in recordings[1]["vision"])
    rows = torch.tensor([23, 5, 12])  # generated, and of two parts, in no order
    for layer, expected in zip(chosen_before, chosen_later, strict=True):
        some, wanted = (each.fused(rows, head_fusion) for each in (layer, expected))
        torch.testing.assert_close(*(with_keys(part, layer.shape[2]) for part in (some, wanted)))
    for settings in ({}, {"discard_ratio": 0.2}, {"residual": 0.9}):
        torch.testing.assert_close(
            rollout(chosen_before, head_fusion=head_fusion, **settings)[:, padding:],
            rollout(chosen_later, head_fusion=head_fusion, **settings)[:, padding:],
        )


def test_fused_heads_are_kept_where_they_are_smaller(llava):
    for words, smaller in ((5, True), (300, False)):
        with torch.no_grad(), record_attention(llava, head_fusion="mean") as recording:
            llava(**prompt(words=words))
        (first, *_), (whole, *_) = (
            recording["language"],
            record(llava, prompt(words))[0]["language"],
        )
        assert isinstance(first, FusedLayer) == smaller
        if smaller:
            kept = sum(part.nbytes for part in first.parts)
            assert kept < whole.query.nbytes + whole.key.nbytes
            assert all(part.untyped_storage().nbytes() == part.nbytes for part in first.parts)


def whole_and_calls(mask):
    """A causal pass over 9 tokens, and the same as a prompt of 6 and steps of 2 and 1."""
    torch.manual_seed(8)
    query, key = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16)
    seen = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9).clone()
    if mask != "none":
        seen[0, :, :, 0] = False  # padding before the first item
        seen[0, :, 0, 0] = True
    given = {
        "none": None,
        "boolean": seen,
        "added": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
    }[mask]
    calls = []
    for start, stop in ((0, 6), (6, 8), (8, 9)):
        part = None if given is None else given[:, :, start:stop, :stop]
        causal = given is None and start == 0
        if given is None and stop - start > 1 and start:  # not a triangle from the first key on
            part = seen[:, :, start:stop, :stop]
        parts = (query[:, :, start:stop], key[:, :, :stop], part, causal, 0.25)
        calls.append(RecordedLayer(*parts, name="attention"))
    scores = query.double() @ key.double().repeat_interleave(2, 1).mT * 0.25
    return scores.masked_fill(~seen, -torch.inf).softmax(-1), calls


def let_go(call):
    """What is kept of a call once a later one has continued it."""
    return Continued(call.query, call.key[:, :, -1:].clone(), call.mask, call.logsumexp)


@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
def test_calls_that_continue_each_other_are_one_causal_pass(mask):
    expected, calls = whole_and_calls(mask)
    *before, last = calls
    assert continues(calls[0], calls[1]) and continues(calls[1], calls[2])
    layer = one_pass([*map(let_go, before), last])
    assert layer.name == "attention" and layer.shape == (2, 9, 9)
    torch.testing.assert_close(layer.probabilities().double(), expected, atol=1e-6, rtol=0)


def test_a_prompt_with_a_mask_may_be_continued_without_one():
    expected, calls = whole_and_calls("boolean")
    first, *_ = calls
    later = whole_and_calls("none")[1][2]
    second = calls[1]
    layer = one_pass([let_go(first), let_go(second), later])
    rows = layer.probabilities().double()
    torch.testing.assert_close(rows[:, :, :8], expected[:, :, :8], atol=1e-6, rtol=0)
    assert (rows[0, :, 8, 0] > 0).all()  # the last step saw all keys


def test_a_cache_in_another_order_is_named():
    _, calls = whole_and_calls("none")
    last = calls[-1]
    swapped = RecordedLayer(last.query, last.key.flip(0), None, False, 0.25, name=last.name)
    with pytest.raises(ValueError, match=r"^attention: the cache changed while recording"):
        one_pass([*map(let_go, calls[:-1]), swapped])


def test_blocks_of_one_pass_share_their_memory_and_are_one_layer():
    queries, keys = (torch.randn(1, 4, 7, 16) for _ in range(2))
    parts = zip(queries.split([3, 4], 2), keys.split([3, 4], 2), strict=True)
    blocks = [RecordedLayer(q, k, None, False, 0.25, name="tower") for q, k in parts]
    layer = one_pass(blocks)
    assert layer.shape == (1, 7, 7) and layer.name == "tower"
    again = [RecordedLayer(b.query.clone(), b.key, None, False, 0.25, name="tower") for b in blocks]
    with pytest.raises(ValueError, match=r"^tower ran 2 times while recording, expected once"):
        one_pass(again)


def test_only_what_sees_nothing_later_can_be_continued():
    _, (first, second, third) = whole_and_calls("none")
    assert continues(first, second)
    assert not continues(first, third)  # two keys are missing
    unmasked = RecordedLayer(first.query, first.key, None, False, 0.25, name="attention")
    assert not continues(unmasked, second)
    assert not continues(recorded_layer(5, False, 2, size=6), second)  # of no module
    assert one_pass([first]) is first


@pytest.mark.parametrize(("size", "less"), [(10, True), (23, True), (24, False), (60, False)])
def test_fused_attention_is_less_than_queries_and_keys_of_a_short_call(size, less):
    """Of 4 heads and 2 key heads, each 4 wide: 24 numbers a token, or as many as there are keys."""
    query, key = torch.randn(1, 4, size, 4), torch.randn(1, 2, size, 4)
    layer = RecordedLayer(query, key, None, True, 1.0, name="")
    assert takes_less_fused(layer) == less
    open_to_all = RecordedLayer(query, key, None, False, 1.0, name="")
    assert not takes_less_fused(open_to_all)
