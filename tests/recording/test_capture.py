import threading
from contextvars import copy_context

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from recordings import assert_recorded, eager_attention, prompt, record
from small_llava import WORDS, small_llava
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
)

from rolloutlib import record_attention, rollout_rows
from rolloutlib.algorithm.composition import rollout


@pytest.fixture
def llava():
    return small_llava()


@pytest.fixture
def inputs():
    return prompt(words=5)


def test_recorded_attention_equals_eager_attention(llava, inputs):
    text, vision = eager_attention(llava, inputs)
    recording, _ = record(llava, inputs)
    assert_recorded(recording["language"], text, atol=1e-6, rtol=0)
    assert_recorded(recording["vision"], vision, atol=1e-6, rtol=0)
    assert max(float(layer.max()) for layer in text) > 0.2  # not just an even spread


def test_recorded_attention_equals_eager_attention_with_padding(llava):
    inputs = prompt(words=5, batch=3)
    inputs["attention_mask"][0, :3] = 0
    inputs["input_ids"][0] = inputs["input_ids"][0].roll(3)
    text, vision = eager_attention(llava, inputs)
    recording, _ = record(llava, inputs)
    for layer, expected in zip(recording["language"], text, strict=True):
        seen = inputs["attention_mask"][:, None, :, None].bool()
        torch.testing.assert_close(layer.probabilities() * seen, expected * seen, atol=1e-6, rtol=0)
    assert_recorded(recording["vision"], vision, atol=1e-6, rtol=0)


def test_the_log_sum_exp_of_the_models_own_pass_is_kept_where_it_holds(llava, inputs):
    padded = prompt(words=5, batch=2)
    padded["attention_mask"][0, :3] = 0
    for given, known in [(inputs, True), (padded, False)]:
        recording, _ = record(llava, given)
        for layer in recording["language"]:
            assert (layer.logsumexp is not None) == known
            rows = torch.arange(layer.shape[1])
            torch.testing.assert_close(layer.fused(rows, "mean"), layer.probabilities().mean(1))


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.2])
def test_rollout_takes_recorded_and_dense_layers_alike(llava, inputs, head_fusion, discard_ratio):
    recording, _ = record(llava, inputs)
    how = {"head_fusion": head_fusion, "discard_ratio": discard_ratio}
    for part in ("language", "vision"):
        layers = recording[part]
        dense = [layer.probabilities() for layer in layers]
        torch.testing.assert_close(rollout(layers, **how), rollout(dense, **how))
        torch.testing.assert_close(
            rollout_rows(layers, [4, 15], **how), rollout_rows(dense, [4, 15], **how)
        )


def test_the_model_computes_as_under_sdpa(llava, inputs):
    with torch.no_grad():
        expected = llava(**inputs).logits
    _, output = record(llava, inputs)
    assert (output.logits - expected).abs().max() == 0


def test_replay_equals_attention_during_generation(llava, inputs):
    llava.set_attn_implementation("eager")
    generated = llava.generate(
        **inputs,
        max_new_tokens=6,
        min_new_tokens=6,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    llava.set_attn_implementation("sdpa")
    replay = inputs | {
        "input_ids": generated.sequences,
        "attention_mask": torch.ones_like(generated.sequences),
    }
    recording, _ = record(llava, replay)
    length = inputs["input_ids"].shape[1]
    for number, layer in enumerate(recording["language"]):
        whole = layer.probabilities()
        for step, attentions in enumerate(generated.attentions[1:]):
            row = length + step
            torch.testing.assert_close(
                whole[:, :, row, : row + 1], attentions[number][:, :, 0], atol=1e-6, rtol=0
            )


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "temperature": 1.5},
        {"num_beams": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=lambda how: next(iter(how)),
)
def test_recording_works_after_any_kind_of_generate(llava, inputs, how):
    torch.manual_seed(0)
    how = how | {"max_new_tokens": 4, "min_new_tokens": 4}
    sequence = llava.generate(**inputs, suppress_tokens=[WORDS.index("<image>")], **how)
    replay = inputs | {"input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
    text, _ = eager_attention(llava, replay)
    recording, _ = record(llava, replay)
    assert_recorded(recording["language"], text, atol=1e-6, rtol=0)


def implementations(model):
    return {
        name: module.config._attn_implementation
        for name, module in model.named_modules()
        if hasattr(module, "config")
    }


def mixed(model):
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    return implementations(model)


def test_mixed_implementations_come_back(llava, inputs):
    before = mixed(llava)
    assert len(set(before.values())) == 2
    record(llava, inputs)
    assert implementations(llava) == before


def test_implementations_come_back_after_an_exception(llava, inputs):
    before = mixed(llava)
    with pytest.raises(ZeroDivisionError), record_attention(llava):
        llava(**inputs)
        raise ZeroDivisionError
    assert implementations(llava) == before


def test_recordings_nest(llava, inputs):
    before = mixed(llava)
    with torch.no_grad(), record_attention(llava) as outer:
        with record_attention(llava.model.vision_tower) as inner:
            llava(**inputs)
    assert implementations(llava) == before
    assert len(inner["vision"]) == 3 and len(outer.names) == 7
    torch.testing.assert_close(
        inner["vision"][0].probabilities(), outer["vision"][0].probabilities()
    )


def test_a_recording_ignores_other_models(llava, inputs):
    other = small_llava()
    with torch.no_grad(), record_attention(llava) as recording:
        other.set_attn_implementation("sdpa")
        other(**inputs)
        llava(**inputs)
    assert len(recording["language"]) == 4


def test_worker_threads_record_with_a_copied_context(llava, inputs):
    with torch.no_grad(), record_attention(llava) as recording:
        worker = threading.Thread(target=copy_context().run, args=(lambda: llava(**inputs),))
        worker.start()
        worker.join()
    assert len(recording["language"]) == 4


def test_lora_wrapped_models_are_recorded(llava, inputs):
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(llava, lora).eval()
    text, _ = eager_attention(wrapped, inputs)
    recording, _ = record(wrapped, inputs)
    assert recording.names[0].startswith("base_model.model.")
    assert_recorded(recording["language"], text, atol=1e-5, rtol=0)
    assert len(recording["vision"]) == 3


def test_a_path_names_a_part(llava, inputs):
    recording, _ = record(llava, inputs)
    assert len(recording["model.language_model"]) == 4
    assert [layer.name for layer in recording["model.language_model.layers.1"]] == [
        "model.language_model.layers.1.self_attn"
    ]
    with pytest.raises(KeyError, match="nothing_here"):
        recording["nothing_here"]


def small_bert():
    """A text encoder and its inputs."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertModel(BertConfig(vocab_size=100, intermediate_size=64, **sizes))
    return model, {"input_ids": torch.arange(9)[None]}, "language"


def small_dinov2():
    """A picture encoder and its inputs."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Dinov2Model(Dinov2Config(image_size=56, **sizes))
    return model, {"pixel_values": torch.randn(2, 3, 56, 56)}, "vision"


@pytest.mark.parametrize("make", [small_bert, small_dinov2])
def test_other_transformers_are_recorded(make):
    model, inputs, part = make()
    model.eval().set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
    recording, _ = record(model, inputs)
    assert_recorded(recording[part], expected, atol=1e-6, rtol=0)


def test_training_mode_is_refused(llava, inputs):
    llava.model.vision_tower.train()
    with pytest.raises(ValueError, match=r"eval mode.*vision_tower"), record_attention(llava):
        llava(**inputs)


def test_nothing_recorded_is_an_error(llava):
    with pytest.raises(RuntimeError, match="captured 0 attention modules, missing 7"):
        with record_attention(llava):
            pass


def attend(batch_first=False, **how):
    """A `nn.MultiheadAttention` over 5 queries and 7 keys, and what it is called with."""
    torch.manual_seed(3)
    module = torch.nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    sizes = [(3, 5, 8), (3, 7, 8)] if batch_first else [(5, 3, 8), (7, 3, 8)]
    query, key = (torch.randn(size) for size in sizes)
    return module, (query, key, key), how


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"need_weights": False, "average_attn_weights": False},
        {"key_padding_mask": torch.arange(7).expand(3, -1) > 4},
        {"attn_mask": torch.ones(5, 7).triu(3).bool()},
    ],
    ids=lambda how: " ".join(how) or "defaults",
)
@pytest.mark.parametrize("batch_first", [False, True])
@torch.no_grad()
def test_multihead_attention_is_recorded_per_head_and_answers_as_asked(how, batch_first):
    module, inputs, how = attend(batch_first, **how)
    open_weights = {"need_weights": True, "average_attn_weights": False}
    expected = module(*inputs, **how | open_weights)[1]
    result, weights = module(*inputs, **how)
    with record_attention(module) as recording:
        recorded_result, recorded_weights = module(*inputs, **how)
    [layer] = recording[""]
    assert layer.shape == (3, 5, 7)
    torch.testing.assert_close(layer.probabilities(), expected, atol=0, rtol=0)
    torch.testing.assert_close(layer.probabilities([4, 0]), expected[:, :, [4, 0]])
    torch.testing.assert_close(layer.fused(torch.arange(5), "max"), expected.amax(1))
    torch.testing.assert_close(recorded_result, result, atol=1e-6, rtol=0)
    assert (recorded_weights is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(recorded_weights, weights, atol=0, rtol=0)


@torch.no_grad()
def test_multihead_attention_takes_positions_and_no_batch():
    module, (query, key, value), _ = attend()
    with record_attention(module) as recording:
        result, weights = module(query[:, 0], key[:, 0], value[:, 0], None, False)
    assert result.shape == (5, 8) and weights is None
    assert recording[""][0].probabilities().shape == (1, 2, 5, 7)


@torch.no_grad()
def test_recordings_of_multihead_attention_nest():
    module, inputs, _ = attend()
    with record_attention(module) as outer, record_attention(module) as inner:
        assert module(*inputs, need_weights=False)[1] is None
    torch.testing.assert_close(inner[""][0].weights, outer[""][0].weights, atol=0, rtol=0)


def encoder():
    layer = torch.nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@torch.no_grad()
def test_encoders_of_torch_are_recorded_off_the_fast_path_and_rolled_out():
    model, inputs = encoder(), torch.randn(4, 6, 8)
    expected = model(inputs)
    with record_attention(model) as recording:
        output = model(inputs)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    layers = recording["layers"]
    assert [layer.name for layer in layers] == ["layers.0.self_attn", "layers.1.self_attn"]
    dense = [layer.probabilities() for layer in layers]
    torch.testing.assert_close(rollout(layers), rollout(dense))
    torch.testing.assert_close(rollout_rows(layers, [5, 1]), rollout_rows(dense, [5, 1]))


@pytest.mark.parametrize("fast", [True, False])
def test_hooks_and_fast_path_are_restored_after_an_exception(fast):
    model, before = encoder(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with pytest.raises(ZeroDivisionError), record_attention(model):
            assert not torch.backends.mha.get_fastpath_enabled()
            raise ZeroDivisionError
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_multihead_attention_that_does_not_run_is_an_error():
    model = encoder()
    with pytest.raises(RuntimeError, match=r"missing 1: layers\.1\.self_attn"):
        with record_attention(model):
            model.layers[0](torch.randn(1, 3, 8))


def test_recording_keeps_no_attention_tensor(llava, inputs):
    recording, _ = record(llava, inputs)
    layer = recording["language"][0]
    assert layer.key.shape[1] == 2  # key heads are not repeated
    kept = sum(value.numel() for value in (layer.query, layer.key))
    assert kept < np.prod(layer.probabilities().shape)
    assert not layer.query.requires_grad
