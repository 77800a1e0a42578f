"""Rollout across real encoder-decoder classes, against eager attention and block matrices."""

import numpy as np
import pytest
import reference
import torch
import transformers
from small_families import small_family
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextForCausalLM

from rolloutlib import carry_back, record_attention, rollout_across, rollout_rows

TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8]])
STACKS = {
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), 1),
    **{"d_model": 32, "vocab_size": 99, "eos_token_id": 2, "decoder_start_token_id": 3},
}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 8}


def whisper():
    """Its encoder halves 40 frames of sound."""
    sizes = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 12}
    config = transformers.WhisperConfig(**STACKS, **sizes)
    sound = {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": TOKENS}
    return transformers.WhisperForConditionalGeneration(config), sound, "audio"


def bart():
    """Text to text; the encoder's text is padded."""
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[:, 6:] = 0
    inputs = {"input_ids": TOKENS, "attention_mask": mask, "decoder_input_ids": TOKENS[:, :5]}
    config = transformers.BartConfig(**STACKS)
    return transformers.BartForConditionalGeneration(config), inputs, "encoder"


def t5gemma2():
    """One softmax over both sequences in each layer of the decoder."""
    tower = TOWER | {"vision_use_head": False}
    parts = {"text_config": TEXT, "vision_config": tower, "image_token_index": 98}
    config = transformers.T5Gemma2Config(
        encoder=parts | {"mm_tokens_per_image": 4}, decoder=TEXT, image_token_index=98
    )
    seen = torch.cat([torch.full((1, 4), 98), TOKENS], 1)
    inputs = {"input_ids": seen, "pixel_values": torch.randn(1, 3, 32, 32)}
    model = transformers.T5Gemma2ForConditionalGeneration(config)
    return model, inputs | {"decoder_input_ids": TOKENS[:, :5]}, "model.encoder.text_model"


def picture_to_text():
    """A ViT and a GPT-2."""
    reader = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=99, bos_token_id=1, eos_token_id=2
    )
    tower = transformers.ViTConfig(**TOWER)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(tower, reader)
    seen = {"pixel_values": torch.randn(1, 3, 32, 32), "decoder_input_ids": TOKENS}
    return VisionEncoderDecoderModel(config=config), seen, "vision"


def florence2():
    """A BART whose encoder reads the picture's tokens before the text."""
    return *small_family("florence2"), "encoder"


def one_item(attentions):
    return [layer[0].double().numpy() for layer in attentions]


@pytest.mark.parametrize("make", [whisper, bart, t5gemma2, picture_to_text, florence2])
@torch.no_grad()
def test_it_is_the_block_product_of_eager_attention(make):
    torch.manual_seed(0)
    model, inputs, behind = make()
    with record_attention(model.eval()) as recording:
        model(**inputs)
    merged = make is t5gemma2
    if merged:
        with pytest.raises(KeyError, match=r"T5Gemma2.* both sequences at once: give .* \[\]"):
            recording["cross"]
    cross = [] if merged else recording["cross"]
    found = rollout_across(recording["language"], cross, recording[behind], [-1, 2], residual=0.4)

    model.set_attn_implementation("eager")
    passed = model(**inputs, output_attentions=True)
    own, other = one_item(passed.decoder_attentions), one_item(passed.cross_attentions)
    if merged:
        own, other = [np.concatenate(pair, -1) for pair in zip(own, other, strict=True)], []
    behind = one_item(passed.encoder_attentions)
    expected = reference.across(own, other, behind, residual=0.4)[[-1, 2]]
    np.testing.assert_allclose(torch.cat(found, -1)[0], expected, atol=1e-6)


@torch.no_grad()
def test_cross_attention_may_lie_between_layers_of_self_attention():
    model, inputs = small_family("mllama")
    with record_attention(model) as recording:
        model(**inputs)
    own, other = recording["language"], recording["cross"]
    found = rollout_across(own, other, [], [-1, 4])
    own, other = ([layer.probabilities() for layer in part] for part in (own, other))
    expected = reference.across(one_item(own), one_item(other), [])[[-1, 4]]
    np.testing.assert_allclose(torch.cat(found, -1)[0], expected, atol=1e-6)


@pytest.mark.parametrize("head_fusion", [None, "mean"])
@pytest.mark.parametrize("make", [whisper, bart, picture_to_text])
@torch.no_grad()
def test_a_recorded_generation_is_the_pass_over_its_tokens(make, head_fusion):
    """All but the last, which the decoder never received."""
    torch.manual_seed(0)
    model, inputs, behind = make()
    given = {**inputs, "decoder_input_ids": TOKENS[:, :2]}
    if make is whisper:  # its own way to generate drops the prompt
        given["force_unique_generate_call"] = True
    with record_attention(model.eval(), head_fusion=head_fusion) as recording:
        written = model.generate(**given, max_new_tokens=4, min_new_tokens=4)
    with record_attention(model, head_fusion=head_fusion) as replayed:
        model(**{**inputs, "decoder_input_ids": written[:, :-1]})
    maps = []
    for whole in (recording, replayed):
        assert {layer.shape[1] for layer in whole["cross"]} == {written.shape[1] - 1}
        maps.append(rollout_across(whole["language"], whole["cross"], whole[behind], [-1, 2]))
    for found, expected in zip(*maps, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_generation_without_a_cache_is_no_pass():
    model, inputs, _ = whisper()
    with record_attention(model.eval()) as recording:
        model.generate(inputs["input_features"], max_new_tokens=3, use_cache=False)
    for part in ("language", "cross"):
        with pytest.raises(ValueError, match=r"ran \d times while recording, expected once"):
            recording[part]


@pytest.mark.parametrize("kind", ["kosmos-2", "kosmos-2.5"])
@torch.no_grad()
def test_kosmos_reads_the_picture_in_its_own_sequence(kind):
    """Its decoder has no cross-attention. The picture's tokens are queries that attended once to
    the tower's outputs, and to each other, without a skip connection.
    """
    model, inputs = small_family(kind)
    with record_attention(model) as recording:
        model(**inputs)
    name = type(model).__name__
    with pytest.raises(KeyError, match=rf"{name} has no cross-attention, .* call rollout_rows"):
        recording["cross"]
    towards = recording["language"], recording["pooling"], recording["vision"]
    with pytest.raises(ValueError, match=r"\(1, 4, \d+\) image_to_text_projection\.x_attn"):
        rollout_across(*towards, [-1])
    with pytest.raises(ValueError, match=r"only self-attention, \(1, 27, 27\) text_model.*rows"):
        rollout_across(recording["language"], [], recording["vision"], [-1])

    on_text = rollout_rows(recording["language"], [-1, 9], residual=0.4)
    seen = inputs["image_embeds_position_mask"][0]
    pooled = on_text[..., seen] @ recording["pooling"][0].probabilities().mean(1)
    latent, outputs = pooled[..., -seen.sum() :], pooled[..., : -seen.sum()]
    on_picture = carry_back(recording["vision"], outputs, residual=0.4)
    on_text[..., seen] = 0

    expected = through_three_parts(eager(model, inputs, recording.names), seen, residual=0.4)
    found = torch.cat([on_text, latent, on_picture], -1)[0]
    np.testing.assert_allclose(found, expected[[-1, 9]], atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def eager(model, inputs, names):
    """The attention that each of these modules returns, `[head query key]`."""
    returned = {}
    model.set_attn_implementation("eager")
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *call, n=name: returned.update({n: call[2][1]}))
    model(**inputs)
    return {name: one_item([returned[name]])[0] for name in names}


def through_three_parts(attention, seen, **settings):
    """A square matrix for each part over [text | queries of the picture | the tower], multiplied:
    the text's layers, the queries where their tokens stand, and the tower's layers.
    """
    tower, reader = (
        [layer for name, layer in attention.items() if name.startswith(part)]
        for part in ("vision_model", "text_model")
    )
    tokens, latents, outputs = len(reader[0][0]), int(seen.sum()), len(tower[0][0])
    towards = attention["image_to_text_projection.x_attn"].mean(0)
    first, middle, last = (np.eye(tokens + latents + outputs) for _ in range(3))
    last[:tokens, :tokens] = reference.products(reader, **settings)[-1]
    placed = np.flatnonzero(seen)
    middle[placed] = 0
    middle[placed, tokens:] = np.roll(towards, latents, axis=1)  # its keys are the tower's first
    first[-outputs:, -outputs:] = reference.products(tower, **settings)[-1]
    return (last @ middle @ first)[:tokens]


@torch.no_grad()
def test_kosmos_2_as_a_text_model_may_have_cross_attention():
    """An option of its decoder, which the model that reads pictures never uses."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "ffn_dim": 48, "layers": 2, "attention_heads": 4, "vocab_size": 99}
    parts = transformers.Kosmos2Config(text_config=sizes | {"add_cross_attention": True})
    model = Kosmos2TextForCausalLM(parts.text_config).eval()
    inputs = {"input_ids": TOKENS, "encoder_hidden_states": torch.randn(1, 6, 32)}
    with record_attention(model) as recording:
        model(**inputs)
    own, other = recording["language"], recording["cross"]
    found = rollout_across(own, other, [], [-1, 2], residual=0.4)
    attention = eager(model, inputs, recording.names)
    own, other = ([attention[layer.name] for layer in part] for part in (own, other))
    expected = reference.across(own, other, [], residual=0.4)[[-1, 2]]
    np.testing.assert_allclose(torch.cat(found, -1)[0], expected, atol=1e-6)
