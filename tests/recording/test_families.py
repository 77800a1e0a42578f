"""Models of many families compute under a recording what they compute without one."""

import pytest
import torch
from recordings import record
from small_families import FAMILIES, small_family

from rolloutlib import rollout_rows
from rolloutlib.recording.capture import modality

TWO_STACKS = ("idefics2", "mllama")  # a tower and a resampler, or a tower in two parts


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_a_family_is_recorded_as_it_computes(kind):
    model, inputs = small_family(kind)
    inputs["use_cache"] = False
    expected = model(**inputs).logits
    recording, output = record(model, inputs)
    torch.testing.assert_close(output.logits, expected, atol=0, rtol=0)
    spoken = recording["language"]
    assert len(spoken) == (2 if kind == "mllama" else 4)
    model.set_attn_implementation("eager")
    own = model(**inputs, output_attentions=True).attentions
    by_shape = [each for each in own if each.shape[2] == each.shape[3]]
    for layer, attention in zip(spoken, by_shape, strict=True):
        torch.testing.assert_close(layer.probabilities(), attention, atol=1e-4, rtol=0)
    sums = rollout_rows(spoken, [-1]).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    if kind in TWO_STACKS:
        with pytest.raises(ValueError, match=r"queries|one stack over one sequence"):
            rollout_rows(recording["vision"], [0])
    else:
        assert len(recording["vision"]) == 4
        rollout_rows(recording["vision"], [0])
    sides = {name: modality(model, name) for name in recording.names}
    assert all(("lang" in n or "text" in n) == (side == "language") for n, side in sides.items())
