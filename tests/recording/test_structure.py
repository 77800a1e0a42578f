"""Which layers of a model are one stack over one sequence, and what is refused by name."""

import threading

import pytest
import torch
from recordings import assert_recorded, record
from transformers import CONFIG_MAPPING, AttentionInterface, AutoModel

from rolloutlib import record_attention, rollout
from rolloutlib.recording.capture import modality
from rolloutlib.recording.gradients import record_gradients

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TEXT = SIZES | {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99}
TOWER = SIZES | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
TOKENS = {"input_ids": torch.arange(3, 27)[None]}
PICTURE = torch.randn(1, 3, 32, 32, generator=torch.manual_seed(0))


def small(kind, **settings):
    """A random model of this kind."""
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIG_MAPPING[kind](**settings)).eval()


@torch.no_grad()
def test_layers_that_mix_by_another_rule_are_named():
    """Zamba's hybrid layers share one attention module, whose output goes into a state."""
    blocks = {"layers_block_type": ["mamba", "mamba", "hybrid"] * 2, "mamba_d_state": 8}
    sizes = {"num_hidden_layers": 6, "num_key_value_heads": 4, "attention_head_dim": 16}
    model, layers = small("zamba", **TEXT | sizes | blocks), "layers.2, layers.5"
    with pytest.raises(RuntimeError, match=r"by attention alone, .* got .* others") as error:
        record(model, TOKENS)
    named = [piece.split(" (")[0] for piece in str(error.value).split("stack: ")[1].split(", ")]
    assert ", ".join(named).startswith(layers)


MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 8, "qk_nope_head_dim": 8}
INDEXED = (
    SIZES
    | MLA
    | {
        "qk_rope_head_dim": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": 6,
        "vocab_size": 99,
    }
)


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
@torch.no_grad()
def test_attention_by_an_index_is_recorded_as_the_model_attends(kind):
    model = small(kind, **INDEXED)
    expected = model(**TOKENS, use_cache=False).last_hidden_state
    recording, output = record(model, TOKENS | {"use_cache": False})
    torch.testing.assert_close(output.last_hidden_state, expected, atol=0, rtol=0)
    for layer in recording["language"]:
        assert (layer.probabilities() > 0).sum(-1).amax() == 6
        assert layer.visible(torch.tensor([2, 23])).tolist() == [[3, 6]]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_scores_capped_by_the_model_are_recorded(implementation):
    kind = "gemma2" if implementation == "eager" else "gemma"
    model = small(kind, **TEXT)
    model.set_attn_implementation(implementation)
    expected = model(**TOKENS).last_hidden_state
    recording, output = record(model, TOKENS)
    torch.testing.assert_close(output.last_hidden_state, expected, atol=0, rtol=0)
    assert (recording["language"][0].softcap is None) == (kind == "gemma")


@torch.no_grad()
def test_an_implementation_of_ones_own_is_replaced_by_sdpa_and_comes_back():
    AttentionInterface.register("of my own", lambda *args, **how: pytest.fail("was not replaced"))
    model = small("llama", **TEXT)
    expected = model(**TOKENS).last_hidden_state
    model.config._attn_implementation_internal = "of my own"
    recording, output = record(model, TOKENS)
    torch.testing.assert_close(output.last_hidden_state, expected, atol=0, rtol=0)
    assert model.config._attn_implementation == "of my own" and len(recording["language"]) == 4


def test_recordings_that_overlap_in_threads_leave_nothing_behind():
    before, together, lengths = AttentionInterface.get_interface, threading.Barrier(3), {}

    def work(length):
        model = small("llama", **TEXT)
        with torch.no_grad(), record_attention(model) as recording:
            together.wait()
            model(TOKENS["input_ids"][:, :length])
        lengths[length] = [layer.shape[1] for layer in recording["language"]]

    workers = [threading.Thread(target=work, args=(length,)) for length in (5, 7)]
    for worker in workers:
        worker.start()
    together.wait()  # both record now; this thread does not
    with torch.no_grad():
        small("llama", **TEXT)(**TOKENS)
    for worker in workers:
        worker.join()
    assert lengths == {5: [5] * 4, 7: [7] * 4}
    assert AttentionInterface.get_interface is before


def wrong(module, query, key, value, attention_mask, **how):
    """Attention whose output is not what its arguments say."""
    return value.transpose(1, 2), None


@pytest.mark.parametrize("recorder", [record_attention, record_gradients])
def test_attention_that_is_not_the_softmax_of_its_arguments_is_named(recorder, monkeypatch):
    model = small("bert", **SIZES, num_hidden_layers=2, vocab_size=99)
    model.set_attn_implementation("eager")
    monkeypatch.setattr("transformers.models.bert.modeling_bert.eager_attention_forward", wrong)
    with pytest.raises(RuntimeError, match="BertSelfAttention does not compute softmax"):
        with recorder(model):
            model(**TOKENS)


@torch.no_grad()
def test_attention_twice_in_a_layer_is_no_block_of_a_picture():
    recording, _ = record(small("diffllama", **TEXT), TOKENS)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn ran 2 times .*DiffLlama"):
        recording["language"]


@torch.no_grad()
def test_layers_that_run_several_times_are_named():
    model = small("albert", **SIZES, num_hidden_layers=4, vocab_size=99, embedding_size=16)
    recording, _ = record(model, TOKENS)
    with pytest.raises(ValueError, match=r"attention ran 4 times .*ALBERT"):
        recording["language"]


OWN = {
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 99}, TOKENS),
    "bloom": ({"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 99}, TOKENS),
    "timesformer": (
        TOWER | {"num_frames": 2, "attention_type": "space_only"},
        {"pixel_values": PICTURE[:, None].expand(-1, 2, -1, -1, -1)},
    ),
}


@pytest.mark.parametrize("kind", OWN)
@torch.no_grad()
def test_a_softmax_of_a_modules_own_is_recorded(kind):
    sizes, inputs = OWN[kind]
    model = small(kind, **sizes)
    own = model(**inputs, output_attentions=True)
    recording, output = record(model, inputs)
    torch.testing.assert_close(output.last_hidden_state, own.last_hidden_state, atol=0, rtol=0)
    layers = recording["vision" if kind == "timesformer" else "language"]
    assert_recorded(layers, own.attentions, atol=0, rtol=0)
    sums = rollout(layers).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@torch.no_grad()
def test_sinks_take_a_share_of_each_row():
    model = small("gpt_oss", **TEXT, num_local_experts=2, num_experts_per_tok=1)
    for layer in model.layers:
        layer.self_attn.sinks.normal_()
    model.set_attn_implementation("eager")
    own = model(**TOKENS, output_attentions=True)
    recording, output = record(model, TOKENS)
    torch.testing.assert_close(output.last_hidden_state, own.last_hidden_state, atol=0, rtol=0)
    assert_recorded(recording["language"], own.attentions, atol=1e-6, rtol=0)
    rows = torch.tensor([3, 20])
    for layer, attention in zip(recording["language"], own.attentions, strict=True):
        assert layer.probabilities().sum(-1).max() < 0.99
        for how, fused in (("mean", attention.mean(1)), ("max", attention.amax(1))):
            torch.testing.assert_close(layer.fused(rows, how), fused[:, rows], atol=1e-6, rtol=0)
    sums = rollout(recording["language"]).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_position_bias_is_part_of_the_scores(implementation):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = small("t5", **sizes, vocab_size=99)
    inputs = TOKENS | {"decoder_input_ids": TOKENS["input_ids"][:, :9]}
    model.set_attn_implementation("eager")
    own = model(**inputs, output_attentions=True)
    model.set_attn_implementation(implementation)
    recording, _ = record(model, inputs)
    truth = {
        "encoder": own.encoder_attentions,
        "language": own.decoder_attentions,
        "cross": own.cross_attentions,
    }
    for part, attentions in truth.items():
        assert_recorded(recording[part], attentions, atol=1e-6, rtol=0)


@torch.no_grad()
def test_encoder_decoder_and_cross_attention_of_equal_length_are_apart():
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    model = small("bart", d_model=32, vocab_size=99, **sizes)
    recording, _ = record(model, TOKENS | {"decoder_input_ids": TOKENS["input_ids"]})
    names = {part: [layer.name for layer in recording[part]] for part in PARTS}
    assert names == {
        "language": [f"decoder.layers.{i}.self_attn" for i in (0, 1)],
        "encoder": [f"encoder.layers.{i}.self_attn" for i in (0, 1)],
        "cross": [f"decoder.layers.{i}.encoder_attn" for i in (0, 1)],
    }
    for part in ("language", "encoder"):
        assert rollout(recording[part]).shape == (1, 24, 24)
    with pytest.raises(ValueError, match=r"decoder\.layers\.0\.encoder_attn\) attends to another"):
        rollout(recording["cross"])
    with pytest.raises(ValueError, match="attends to another sequence"):
        rollout(recording["decoder"])
    with pytest.raises(ValueError, match="one stack over one sequence"):
        rollout(recording["encoder"] + recording["language"])


PARTS = ("language", "encoder", "cross")


@torch.no_grad()
def test_a_pooling_head_is_no_layer_of_the_tower():
    recording, _ = record(small("siglip_vision_model", **TOWER), {"pixel_values": PICTURE})
    assert [layer.shape for layer in recording["vision"]] == [(1, 16, 16)] * 2
    assert recording["head"][0].shape == (1, 1, 16) and recording["pooling"] == recording["head"]
    assert rollout(recording["vision"]).shape == (1, 16, 16)


@pytest.mark.parametrize("depths", [[2], [2, 2]])
@torch.no_grad()
def test_shifted_windows_are_named(depths):
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "window_size": 4}
    model = small("swin", **sizes, depths=depths, num_heads=[2] * len(depths))
    with pytest.raises(RuntimeError, match=r"others in the same stack: .*SwinStage"):
        record(model, {"pixel_values": PICTURE})


@pytest.mark.parametrize(
    ("kind", "sizes", "side"),
    [
        ("bert", TEXT, "language"),
        ("llama", TEXT, "language"),
        ("modernbert-decoder", TEXT | {"pad_token_id": 0}, "language"),
        ("dinov2", TOWER, "vision"),
        ("radio", TOWER, "vision"),
        ("clip_vision_model", TOWER, "vision"),
        ("qwen2_5_vl_vision", {"depth": 2, "hidden_size": 32, "num_heads": 4}, "vision"),
    ],
)
def test_the_side_of_a_lone_model_is_known(kind, sizes, side):
    model = small(kind, **sizes)
    names = [n for n, m in model.named_modules() if "Attention" in type(m).__name__]
    assert {modality(model, name) for name in names} == {side}


@torch.no_grad()
def test_towers_of_sound_are_audio():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "num_mel_bins": 8}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 99}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = small("whisper", d_model=32, max_source_positions=16, **sizes, **heads, **special)
    sound = {"input_features": torch.randn(1, 8, 32), "decoder_input_ids": TOKENS["input_ids"]}
    recording, _ = record(model, sound)
    assert [layer.name for layer in recording["audio"]] == ["encoder.layers.0.self_attn"]
    assert [layer.name for layer in recording["language"]] == ["decoder.layers.0.self_attn"]


@pytest.mark.parametrize("width", [8, 288])
@torch.no_grad()
def test_generation_with_wide_and_grouped_heads_is_recorded(width):
    model = small("llama", **(TEXT | {"head_dim": width}))
    tokens, cache, rows = TOKENS["input_ids"], None, []
    with record_attention(model) as recording:
        for some in (tokens[:, :20], tokens[:, 20:21], tokens[:, 21:22]):
            output = model(some, past_key_values=cache)
            cache = output.past_key_values
            rows.append(output.last_hidden_state)
    whole, output = record(model, {"input_ids": tokens[:, :22]})
    torch.testing.assert_close(torch.cat(rows, 1), output.last_hidden_state)
    for layer, expected in zip(recording["language"], whole["language"], strict=True):
        assert layer.logsumexp is not None
        torch.testing.assert_close(layer.probabilities(), expected.probabilities())
        torch.testing.assert_close(
            layer.fused(torch.arange(22), "mean"), expected.fused(torch.arange(22), "mean")
        )


@torch.no_grad()
def test_rows_that_a_layer_did_not_compute_are_named():
    model = small("llama", **TEXT)
    cache = model(TOKENS["input_ids"][:, :10]).past_key_values
    with record_attention(model) as recording:
        for number in (10, 11):
            model(TOKENS["input_ids"][:, number : number + 1], past_key_values=cache)
    with pytest.raises(ValueError, match=r"computed 2 of 12 rows .* whole sequence"):
        recording["language"]


@torch.no_grad()
def test_a_compiled_model_is_recorded():
    model = small("llama", **(TEXT | {"num_hidden_layers": 1}))
    expected = model(**TOKENS).last_hidden_state
    compiled = torch.compile(model, backend="eager")
    compiled(**TOKENS)
    recording, output = record(compiled, TOKENS)
    torch.testing.assert_close(output.last_hidden_state, expected)
    assert len(recording["language"]) == 1
