"""What else a recording keeps of a layer: each kind answers like the whole attention."""

import pytest
import torch
from recordings import float64_probabilities, prompt, recorded_layer
from small_llava import small_llava

from rolloutlib import record_attention, rollout_rows
from rolloutlib.recording.kinds import (
    DifferentiableLayer,
    FusedLayer,
    RecordedBlocks,
    RecordedWeights,
)


@pytest.fixture
def llava():
    return small_llava()


@pytest.fixture
def inputs():
    return prompt(words=5)


def kept_in_every_way():
    """A recorded layer, its weights as they are, and two layers as blocks of one."""
    causal, blocks = recorded_layer(5, True, 2, size=6), [recorded_layer(5, False, 4, size=3)] * 2
    weights = RecordedWeights("", causal.probabilities())
    return [causal, weights, RecordedBlocks("", tuple(blocks))]


@pytest.mark.parametrize("layer", kept_in_every_way(), ids=lambda layer: type(layer).__name__)
@pytest.mark.usefixtures("without_type_checks")
def test_rows_count_from_the_end_too_and_others_are_named(layer):
    whole = layer.probabilities()
    torch.testing.assert_close(layer.probabilities([0, -1]), whole[:, :, [0, 5]])
    torch.testing.assert_close(layer.probabilities([-2]), whole[:, :, [4]])
    for rows in ([6], [-7], [], [True, False]):
        with pytest.raises(ValueError, match="row"):
            layer.probabilities(rows)


def test_heads_fused_in_one_way_answer_for_no_other(llava, inputs):
    with torch.no_grad(), record_attention(llava, head_fusion="max") as recording:
        llava(**inputs)
    with pytest.raises(ValueError, match="head_fusion='max' and kept nothing else, got 'mean'"):
        rollout_rows(recording["language"], [-1])
    with pytest.raises(ValueError, match="kept nothing else, got a request for single heads"):
        recording["language"][0].probabilities()
    with pytest.raises(ValueError, match="one of mean, max, min, got 'median'"):
        record_attention(llava, head_fusion="median").__enter__()


MERGE = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}
ROWS = torch.tensor([5, 0, 5, 2])


def shares(batch, heads, size, dtype=torch.float64):
    """Rows that sum to 1."""
    return torch.rand(
        batch, heads, size, size, generator=torch.manual_seed(6), dtype=dtype
    ).softmax(-1)


@pytest.mark.parametrize("how", MERGE)
def test_blocks_are_zero_outside_of_themselves(how):
    blocks = [recorded_layer(5, False, 2, size=size) for size in (3, 1, 2)]
    whole = torch.zeros(2, 4, 6, 6, dtype=torch.float64)
    for block, start in zip(blocks, (0, 3, 4), strict=True):
        stop = start + block.shape[1]
        whole[:, :, start:stop, start:stop] = float64_probabilities(block)
    layer = RecordedBlocks("tower", tuple(blocks))
    assert layer.shape == (2, 6, 6)
    torch.testing.assert_close(layer.probabilities().double(), whole, atol=1e-6, rtol=0)
    some = layer.probabilities(ROWS).double()
    torch.testing.assert_close(some, whole[:, :, ROWS], atol=1e-6, rtol=0)
    fused = layer.fused(ROWS, how).double()
    torch.testing.assert_close(fused, MERGE[how](whole, 1)[:, ROWS], atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", MERGE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_are_answered_in_the_type_to_add_up_in(dtype, how):
    weights = shares(2, 3, 6).to(dtype)
    layer = RecordedWeights("pooling", weights)
    answered = torch.promote_types(dtype, torch.float32)
    assert layer.shape == (2, 6, 6)
    assert layer.probabilities().dtype == layer.fused(ROWS, how).dtype == answered
    torch.testing.assert_close(layer.probabilities(), weights.to(answered), atol=0, rtol=0)
    expected = MERGE[how](weights.double()[:, :, ROWS], 1)
    torch.testing.assert_close(layer.fused(ROWS, how).double(), expected, atol=1e-6, rtol=0)


def test_parts_of_fused_attention_are_one_layer():
    """The first part's rows see 2 keys, the second's 6: what is not seen is 0."""
    whole = torch.zeros(2, 6, 6)
    whole[:, :2, :2] = shares(2, 1, 2)[:, 0]
    whole[:, 2:] = shares(2, 1, 6)[:, 0, 2:]
    counts = torch.tensor([[1, 2, 6, 6, 6, 6]]).expand(2, -1)
    layer = FusedLayer("attention", "max", (whole[:, :2, :2], whole[:, 2:]), counts)
    assert layer.visible(ROWS).tolist() == [[6, 1, 6, 6]] * 2
    assert layer.shape == (2, 6, 6)
    for rows in (ROWS, torch.arange(6), torch.tensor([4])):
        torch.testing.assert_close(layer.fused(rows, "max"), whole[:, rows], atol=0, rtol=0)
    early = layer.fused(torch.tensor([1, 0]), "max")  # no more keys than its part has seen
    torch.testing.assert_close(early, whole[:, [1, 0], :2], atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"^attention was recorded with head_fusion='max'"):
        layer.fused(ROWS, "mean")


@pytest.mark.parametrize("layout", ["batch and head apart", "as PyTorch has them"])
def test_a_layer_that_can_be_led_back_answers_without_the_pass(layout):
    attention = shares(2, 3, 6)
    given = attention if layout == "batch and head apart" else attention.flatten(0, 1)
    layer = DifferentiableLayer("attention", given.clone().requires_grad_(), heads=3)
    assert layer.shape == (2, 6, 6)
    probabilities = layer.probabilities()
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities, attention, atol=0, rtol=0)
    expected = attention.mean(1)[:, ROWS]
    torch.testing.assert_close(layer.fused(ROWS, "mean"), expected)
