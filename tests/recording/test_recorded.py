"""Probabilities of recorded queries and keys, tile by tile, against their definition."""

import pytest
import torch
from recordings import float64_probabilities, prompt, record, recorded_layer
from small_llava import small_llava

from rolloutlib import attention_received, rollout_rows
from rolloutlib.algorithm.composition import rollout
from rolloutlib.recording.recorded import Call, RecordedLayer


@pytest.fixture
def llava():
    return small_llava()


@pytest.fixture
def inputs():
    return prompt(words=5)


def test_float64_stays_float64_and_half_is_answered_in_float32(llava, inputs):
    for dtype, answered in [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)]:
        cast = inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}
        recording, _ = record(llava.to(dtype), cast)
        probabilities = recording["language"][0].probabilities()
        assert probabilities.dtype == answered
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))


@pytest.mark.parametrize("scale", [100, 400])
def test_large_scores_stay_exact(llava, inputs, scale):
    recording, _ = record(llava, inputs)
    layer = recording["language"][1]
    largest = float((layer.query @ layer.key.repeat_interleave(2, 1).mT).abs().max())
    loud = type(layer)(**(vars(layer) | {"scaling": scale / largest}))
    query, key = layer.query.double(), layer.key.double().repeat_interleave(2, 1)
    scores = query @ key.mT * loud.scaling
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1).float()
    torch.testing.assert_close(loud.probabilities(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("scale", [5, 60, 100, 400])
def test_tiles_of_large_scores_equal_float64(scale, causal, key_heads, known):
    layer = recorded_layer(scale, causal, key_heads, known=known)
    expected = float64_probabilities(layer)
    # In float32 scores of this size and their log-sum-exp are off by some 1e-7 of it.
    tolerance = {"atol": 4e-7 * max(scale, 10), "rtol": 0}
    for how, merged in [("mean", expected.mean(1)), ("max", expected.amax(1))]:
        fused = layer.fused(torch.arange(300), how).double()
        torch.testing.assert_close(fused, merged, **tolerance)
    rows = torch.tensor([130, 7, 7, 40])
    fused = layer.fused(rows, "min")
    assert fused.shape[2] == (131 if causal else 300)
    merged = expected.amin(1)[:, rows, : fused.shape[2]]
    torch.testing.assert_close(fused.double(), merged, **tolerance)
    received = attention_received([layer]).double()
    torch.testing.assert_close(received, expected.mean(1).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_heads_with_small_and_with_large_scores_share_a_tile(causal):
    """One head of which exp(score) overflows, one of which it vanishes, two moderate ones."""
    layer = recorded_layer(20, causal, 4)
    query = layer.query * torch.tensor([1, 15, 1, 0.1])[:, None, None]
    key = layer.key.clone()
    query[:, 2], key[:, 2] = query[:, 2].abs() + 1, -key[:, 2].abs() - 3  # all scores below -40
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known = flash(query, key, key, 0.0, causal, scale=layer.scaling)[1]
    layer = Call(query, key, None, causal, layer.scaling, logsumexp=known)
    assert known[:, 1].max() > 100
    assert known[:, 2].max() < -40
    expected = float64_probabilities(layer)
    for how, merged in [("mean", expected.mean(1)), ("max", expected.amax(1))]:
        fused = layer.fused(torch.arange(300), how).double()
        torch.testing.assert_close(fused, merged, atol=1e-4, rtol=0)
        if how == "mean":
            ones = torch.ones(2, 300, dtype=torch.float64)
            torch.testing.assert_close(fused.sum(-1), ones, atol=1e-4, rtol=0)
    received = attention_received([layer]).double()
    torch.testing.assert_close(received, expected.mean(1).sum(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [1100, 2100])
def test_a_layer_longer_than_a_tile_rolls_out_like_its_probabilities(size):
    layers = [recorded_layer(8, causal, 2, size=size, batch=1) for causal in (True, False, True)]
    dense = [layer.probabilities() for layer in layers]
    torch.testing.assert_close(rollout(layers), rollout(dense), atol=1e-6, rtol=1e-4)
    rows = [size - 1, 130, 4]
    torch.testing.assert_close(
        rollout_rows(layers, rows), rollout_rows(dense, rows), atol=1e-6, rtol=1e-4
    )


def test_some_rows_are_rows_of_all(llava, inputs):
    recording, _ = record(llava, inputs)
    for layer in recording["language"] + recording["vision"]:
        torch.testing.assert_close(
            layer.probabilities(rows=[3, 0, 11]), layer.probabilities()[:, :, [3, 0, 11]]
        )


def masked(kind, size):
    """A mask that hides some keys from some heads and items, as a model would hand it over."""
    seen = torch.rand(2, 4, size, size, generator=torch.manual_seed(7)) > 0.4
    seen |= torch.eye(size, dtype=torch.bool)  # no row sees nothing
    if kind == "one for all heads":
        seen = seen[:, :1]
    if kind == "added":
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min), seen
    return seen, seen


def windowed(kind):
    """A mask over 9 tokens of two items: the last 4 are seen, and the first of one is hidden."""
    place = torch.arange(9)
    seen = (place <= place[:, None]) & (place > place[:, None] - 4)
    seen = seen.expand(2, 1, 9, 9).clone()
    seen[1, :, 1:, 0] = False
    lowest = {"added": torch.finfo(torch.float32).min, "infinite": -torch.inf}
    return seen, seen if kind == "boolean" else torch.zeros(seen.shape).masked_fill(
        ~seen, lowest[kind]
    )


@pytest.mark.parametrize("kind", ["boolean", "added", "infinite"])
@pytest.mark.parametrize("residual", [0.0, 0.4])
def test_receptive_field_is_what_the_mask_leaves(kind, residual):
    seen, mask = windowed(kind)
    plain = recorded_layer(5, False, 2, size=9, known=False)
    layer = Call(plain.query, plain.key, mask, False, plain.scaling)
    scores = plain.query.double() @ plain.key.double().repeat_interleave(2, 1).mT * plain.scaling
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1).mean(1) / seen[:, 0].sum(-1, True)
    if residual:
        expected = (1 - residual) * expected + residual * torch.eye(9)
        expected = expected / expected.sum(-1, keepdim=True)
    how = {"residual": residual, "receptive_field": True}
    torch.testing.assert_close(rollout([layer], **how).double(), expected, atol=1e-6, rtol=0)
    rows = rollout_rows([layer], [8, 0, 5], **how).double()
    torch.testing.assert_close(rows, expected[:, [8, 0, 5]], atol=1e-6, rtol=0)
    assert layer.visible(torch.tensor([8, 0, 2])).tolist() == [[4, 1, 3], [4, 1, 2]]


@pytest.mark.parametrize("causal", [True, False])
def test_without_a_mask_the_receptive_field_is_all_or_what_came_before(causal):
    layer = recorded_layer(5, causal, 2, size=6)
    counts = [[1, 3, 6]] * 2 if causal else [[6, 6, 6]] * 2
    assert layer.visible(torch.tensor([0, 2, 5])).tolist() == counts


@pytest.mark.parametrize("kind", ["boolean", "one for all heads", "added"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("size", [30, 400])  # all heads at once, and two at a time
def test_masks_and_caps_are_those_of_the_definition(kind, softcap, size):
    plain = recorded_layer(6, False, 2, size=size, known=False)
    mask, seen = masked(kind, size)
    layer = Call(plain.query, plain.key, mask, False, plain.scaling, softcap)
    key = plain.key.double().repeat_interleave(2, 1)
    scores = plain.query.double() @ key.mT * plain.scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    torch.testing.assert_close(layer.probabilities().double(), expected, atol=1e-6, rtol=0)
    merged = {"mean": expected.mean(1), "max": expected.amax(1), "min": expected.amin(1)}
    for rows in (torch.arange(size), torch.tensor([29, 3, 3])):
        for how, whole in merged.items():
            fused = layer.fused(rows, how).double()
            torch.testing.assert_close(fused, whole[:, rows], atol=1e-6, rtol=0)
    received = attention_received([layer]).double()
    torch.testing.assert_close(received, expected.mean(1).sum(1), atol=1e-5, rtol=0)


def test_a_layer_is_its_call_with_a_name():
    call = recorded_layer(5, True, 2, size=6)
    layer = RecordedLayer.of(call, "layers.0.attention")
    assert layer.name == "layers.0.attention" and layer.shape == (2, 6, 6)
    assert layer.query is call.query and layer.logsumexp is call.logsumexp
    torch.testing.assert_close(layer.probabilities(), call.probabilities(), atol=0, rtol=0)


@pytest.mark.usefixtures("without_type_checks")
def test_an_unknown_fusion_is_named():
    with pytest.raises(ValueError, match="one of mean, max, min, got 'sum'"):
        recorded_layer(5, True, 2, size=6).fused(torch.arange(6), "sum")
