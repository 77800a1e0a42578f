"""A small LLaVA recorded, and recorded layers, for the tests of `rolloutlib.recording`."""

import torch
from small_llava import WORDS
from transformers import CLIPVisionModel

from rolloutlib import record_attention
from rolloutlib.recording.recorded import Call


def prompt(words, batch=1):
    torch.manual_seed(1)
    text = torch.randint(4, len(WORDS), (batch, words))
    image = torch.full((batch, 16), WORDS.index("<image>"))
    return {
        "input_ids": torch.cat([text[:, :2], image, text[:, 2:]], 1),
        "attention_mask": torch.ones(batch, words + 16, dtype=torch.long),
        "pixel_values": torch.randn(batch, 3, 56, 56),
    }


def eager_attention(model, inputs):
    """What the model itself reports as attention: text layers, vision layers."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        text = model(**inputs, output_attentions=True).attentions
        tower = next(module for module in model.modules() if isinstance(module, CLIPVisionModel))
        vision = tower(inputs["pixel_values"], output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return text, vision


def assert_recorded(layers, attentions, **tolerance):
    assert len(layers) == len(attentions)
    for layer, expected in zip(layers, attentions, strict=True):
        torch.testing.assert_close(layer.probabilities(), expected, **tolerance)


def record(model, inputs):
    with torch.no_grad(), record_attention(model) as recording:
        output = model(**inputs)
    return recording, output


def recorded_layer(scale, causal, key_heads, size=300, batch=2, known=True):
    """A layer of 4 heads whose largest score is `scale`, with the forward's log-sum-exps."""
    torch.manual_seed(4)
    query, key = torch.randn(batch, 4, size, 16), torch.randn(batch, key_heads, size, 16)
    each = key.repeat_interleave(4 // key_heads, 1)
    scaling = scale / float((query @ each.mT).abs().max())
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    logsumexp = flash(query, each, each, 0.0, causal, scale=scaling)[1] if known else None
    return Call(query, key, None, causal, scaling, logsumexp=logsumexp)


def float64_probabilities(layer):
    """softmax(QKᵀ · scaling) from its definition."""
    key = layer.key.double().repeat_interleave(layer.query.shape[1] // layer.key.shape[1], 1)
    scores = layer.query.double() @ key.mT * layer.scaling
    if layer.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


NO_PICTURE = {"suppress_tokens": [WORDS.index("<image>")]}


FIVE = {"max_new_tokens": 5, "min_new_tokens": 5} | NO_PICTURE


def left_padded(inputs, padding):
    """A prompt with so many places before it that are not to be seen."""
    before = {"input_ids": WORDS.index("<pad>"), "attention_mask": 0}
    padded = {
        name: torch.nn.functional.pad(inputs[name], (padding, 0), value=value)
        for name, value in before.items()
    }
    return inputs | padded
