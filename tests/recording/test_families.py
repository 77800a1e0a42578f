"""The most used types of checkpoints are recorded as they compute; `make families` tries all."""

import pytest
import torch
from benchmarks.families import Softmaxes, difference, parts_of, passed, recorded
from small_families import FAMILIES, small_family

from rolloutlib import rollout_rows

LAYERS = {
    "blip": "4 vision, 4 language, 4 cross",
    "florence2": "4 vision, 4 language, 4 encoder, 4 cross",
    "gemma3": "4 vision, 4 language, 1 pooling",
    "mllama": "4 vision, 2 language, 2 cross",
}
UNEQUAL = ("got_ocr2", "florence2")  # towers whose layers attend within windows, or over channels


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_recorded_as_it_computes(kind):
    model, inputs = small_family(kind)
    expected = passed(model, inputs)
    recording, output = recorded(model, inputs)
    torch.testing.assert_close(output[0], expected[0], atol=0, rtol=0)
    assert parts_of(recording) == LAYERS.get(kind, "4 vision, 4 language")
    for part in ("language", "vision")[: 1 if kind in UNEQUAL else 2]:
        sums = rollout_rows(recording[part], [-1]).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
    model.set_attn_implementation("eager")
    eager, _ = recorded(model, inputs)
    with Softmaxes(model).watching() as truth:
        passed(model, inputs)
    largest, problems = difference(eager, truth.found)
    assert largest < 1e-5 and not problems
    seeing = [n for n in recording.names if "vis" in n or "image_encoder" in n]
    towers = recording["vision"] + (recording["pooling"] if kind == "gemma3" else [])
    assert {layer.name for layer in towers} <= set(seeing)
    assert not {layer.name for layer in recording["language"]} & set(seeing)


@pytest.mark.parametrize("kept", [1, 3])
@torch.no_grad()
def test_layers_that_share_keys_compute_what_they_compute(kept):
    model, inputs = small_family("gemma4")
    whole, _ = recorded(model, inputs)
    inputs["logits_to_keep"] = kept
    expected = passed(model, inputs)
    recording, output = recorded(model, inputs)
    torch.testing.assert_close(output[0], expected[0], atol=0, rtol=0)
    for layer, full in zip(recording["language"], whole["language"], strict=True):
        rows = full.probabilities()[:, :, -layer.shape[1] :]
        torch.testing.assert_close(layer.probabilities(), rows, atol=1e-6, rtol=0)
    if kept == 1:  # the last layers computed one row, which is not a pass over the sequence
        with pytest.raises(ValueError, match="layer 2 has 1 queries"):
            rollout_rows(recording["language"], [-1])


@pytest.mark.parametrize("kind", UNEQUAL)
def test_towers_whose_layers_differ_in_shape_are_refused(kind):
    recording, _ = recorded(*small_family(kind))
    with pytest.raises(ValueError, match=r"layer 1 .*(as in the first|one stack)"):
        rollout_rows(recording["vision"], [0])


@pytest.mark.parametrize(
    ("kind", "beside"),
    [
        ("mllama", "model.vision_model.global_transformer.layers is a stack of its own"),
        ("idefics2", "model.connector.perceiver_resampler.layers is a stack of its own"),
        ("video_llava", "model.video_tower.encoder.layers did not run"),
    ],
)
def test_what_is_in_no_part_is_noted(kind, beside):
    recording, _ = recorded(*small_family(kind))
    assert any(note.startswith(beside) for note in recording.notes)
    path = beside.split()[0]
    if "did not run" in beside:
        with pytest.raises(KeyError, match="did not run"):
            recording[path]
    else:
        assert recording[path][0].name.startswith(path)
