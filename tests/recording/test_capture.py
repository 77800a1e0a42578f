import threading
from contextvars import copy_context

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_llava import WORDS, small_llava
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    TimesformerConfig,
    TimesformerModel,
)

from rolloutlib import (
    FusedLayer,
    attention_received,
    record_attention,
    rollout_rows,
)
from rolloutlib.algorithm.composition import rollout
from rolloutlib.algorithm.layers import whole_rows
from rolloutlib.recording import passes
from rolloutlib.recording.kinds import RecordedBlocks, RecordedWeights
from rolloutlib.recording.recorded import Call


@pytest.fixture
def llava():
    return small_llava()


@pytest.fixture
def inputs():
    return prompt(words=5)


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


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("scale", [5, 60, 100, 400])
def test_tiles_of_large_scores_equal_float64(scale, causal, key_heads, known):
    layer = recorded_layer(scale, causal, key_heads, known=known)
    expected = float64_probabilities(layer)
    # In float32, scores of this size and their log-sum-exp have a relative error of about 1e-7.
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
    """One head whose exp(score) overflows, one whose exp(score) underflows, two moderate ones."""
    layer = recorded_layer(20, causal, 4)
    query = layer.query * torch.tensor([1, 15, 1, 0.1])[:, None, None]
    key = layer.key.clone()
    query[:, 2], key[:, 2] = query[:, 2].abs() + 1, -key[:, 2].abs() - 3  # all scores below -40
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known = flash(query, key, key, 0.0, causal, scale=layer.scaling)[1]
    layer = Call(query, key, None, causal, layer.scaling, logsumexp=known)
    assert known[:, 1].max() > 100
    assert known[:, 2].max() < -40
    assert layer.moderate == [[True, False, False, True]] * 2
    expected = float64_probabilities(layer)
    for how, merged in [("mean", expected.mean(1)), ("max", expected.amax(1))]:
        fused = layer.fused(torch.arange(300), how).double()
        torch.testing.assert_close(fused, merged, atol=1e-4, rtol=0)
        if how == "mean":
            ones = torch.ones(2, 300, dtype=torch.float64)
            torch.testing.assert_close(fused.sum(-1), ones, atol=1e-4, rtol=0)
    received = attention_received([layer]).double()
    torch.testing.assert_close(received, expected.mean(1).sum(1), rtol=1e-4, atol=1e-3)


def test_a_large_score_that_no_sample_shows_is_exact_all_the_same():
    """The largest query is not in the sample that tells whether scores are moderate."""
    layer = recorded_layer(5, True, 4)
    query = layer.query.clone()
    query[:, :, 101] *= 15
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known = flash(query, layer.key, layer.key, 0.0, True, scale=layer.scaling)[1]
    layer = Call(query, layer.key, None, True, layer.scaling, logsumexp=known)
    assert all(layer.moderate[0])
    expected = float64_probabilities(layer).mean(1)
    fused = layer.fused(torch.arange(300), "mean").double()
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1100, 2100])
def test_a_layer_longer_than_a_tile_rolls_out_like_its_probabilities(size):
    layers = [recorded_layer(8, causal, 2, size=size, batch=1) for causal in (True, False, True)]
    dense = [layer.probabilities() for layer in layers]
    torch.testing.assert_close(rollout(layers), rollout(dense), atol=1e-6, rtol=1e-4)
    rows = [size - 1, 130, 4]
    torch.testing.assert_close(
        rollout_rows(layers, rows), rollout_rows(dense, rows), atol=1e-6, rtol=1e-4
    )


def test_the_log_sum_exp_of_the_models_own_pass_is_kept_where_it_holds(llava, inputs):
    padded = prompt(words=5, batch=2)
    padded["attention_mask"][0, :3] = 0
    for given, known in [(inputs, True), (padded, False)]:
        recording, _ = record(llava, given)
        for layer in recording["language"]:
            assert (layer.logsumexp is not None) == known
            rows = torch.arange(layer.shape[1])
            torch.testing.assert_close(layer.fused(rows, "mean"), layer.probabilities().mean(1))


def test_some_rows_are_rows_of_all(llava, inputs):
    recording, _ = record(llava, inputs)
    for layer in recording["language"] + recording["vision"]:
        torch.testing.assert_close(
            layer.probabilities(rows=[3, 0, 11]), layer.probabilities()[:, :, [3, 0, 11]]
        )


def kept_in_every_way():
    """A recorded layer, its weights alone, and two layers as blocks of one."""
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


def test_modules_outside_of_the_interface_are_an_error():
    model = TimesformerModel(
        TimesformerConfig(
            image_size=32,
            patch_size=16,
            num_frames=2,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).eval()
    with pytest.raises(RuntimeError, match="captured 0"), record_attention(model):
        model(torch.randn(1, 2, 3, 32, 32))


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


NO_PICTURE = {"suppress_tokens": [WORDS.index("<image>")]}
FIVE = {"max_new_tokens": 5, "min_new_tokens": 5} | NO_PICTURE


def left_padded(inputs, padding):
    """A prompt with this much padding on its left, which must not be seen."""
    before = {"input_ids": WORDS.index("<pad>"), "attention_mask": 0}
    padded = {
        name: torch.nn.functional.pad(inputs[name], (padding, 0), value=value)
        for name, value in before.items()
    }
    return inputs | padded


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
    rows = torch.tensor([23, 5, 12])  # generated ones, from two parts, unordered
    for layer, expected in zip(chosen_before, chosen_later, strict=True):
        some, wanted = (each.fused(rows, head_fusion) for each in (layer, expected))
        torch.testing.assert_close(whole_rows(some, layer), whole_rows(wanted, layer))
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


def test_heads_fused_in_one_way_answer_for_no_other(llava, inputs):
    with torch.no_grad(), record_attention(llava, head_fusion="max") as recording:
        llava(**inputs)
    with pytest.raises(ValueError, match="head_fusion='max' and kept nothing else, got 'mean'"):
        rollout_rows(recording["language"], [-1])
    with pytest.raises(ValueError, match="kept nothing else, got a request for single heads"):
        recording["language"][0].probabilities()
    with pytest.raises(ValueError, match="one of mean, max, min, got 'median'"):
        record_attention(llava, head_fusion="median").__enter__()


def test_recording_keeps_no_attention_tensor(llava, inputs):
    recording, _ = record(llava, inputs)
    layer = recording["language"][0]
    assert layer.key.shape[1] == 2  # key heads are not repeated
    kept = sum(value.numel() for value in (layer.query, layer.key))
    assert kept < np.prod(layer.probabilities().shape)
    assert not layer.query.requires_grad
