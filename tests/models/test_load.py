"""What a folder must hold to be loaded, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from PIL import Image
from safetensors.torch import load_file
from small_llava import save_small_llava, small_llava
from small_qwen3_vl import save_small_lora, save_small_qwen3_vl, small_qwen3_vl

from rolloutlib import load_model

QUESTION = "what colour is the star ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_llava(tmp_path_factory.mktemp("checkpoints") / "small-llava")


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_small_qwen3_vl(tmp_path_factory.mktemp("checkpoints") / "small-qwen3-vl")


@pytest.fixture(scope="module")
def lora(tmp_path_factory, qwen):
    base = load_model(qwen, dtype="float32").model
    return save_small_lora(tmp_path_factory.mktemp("adapters") / "small-lora", base)


def test_the_weights_are_those_that_were_saved_and_nothing_drops_out(folder):
    loaded = load_model(folder, dtype="float32").model
    expected = small_llava().state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, weights in loaded.state_dict().items():
        torch.testing.assert_close(weights, expected[name], atol=0, rtol=0)
    assert not any(module.training for module in loaded.modules())


def test_dtype_is_as_transformers_means_it(folder):
    assert load_model(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_device_map_is_as_transformers_means_it(folder, picture):
    llava = load_model(folder, dtype="float32", device_map="auto")
    answer = llava.generate(picture, QUESTION, max_new_tokens=2, min_new_tokens=2)
    assert len(llava.record(answer)["language"]) == 4


def test_a_missing_checkpoint_names_itself_and_the_offline_default(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"nobody/no-such-model.*tiny-llava"):
        load_model("nobody/no-such-model")


def test_pickled_weights_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "pickled")
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights are refused"):
        load_model(copy)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_broken_weights_are_named(folder, tmp_path, kept):
    weights = shutil.copytree(folder, tmp_path / "broken") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(FileNotFoundError, match=r"cannot load the checkpoint .*broken"):
        load_model(weights.parent)


def test_an_unknown_family_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "bert")
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"expected a checkpoint of llava.*got model_type 'bert'"):
        load_model(copy)


def test_code_that_comes_with_a_checkpoint_is_not_run(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "with-code")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()")
    with pytest.raises(ValueError):
        load_model(copy)
    assert not (copy / "ran").exists()


# Adapters


def test_an_adapter_adds_its_product_to_what_the_base_computes(qwen, lora):
    base, adapted = (load_model(qwen, dtype="float64", adapter_id=each) for each in ("", lora))
    config = json.loads((lora / "adapter_config.json").read_text())
    weights = load_file(lora / "adapter_model.safetensors")
    down = {n.removesuffix(".lora_A.weight"): w for n, w in weights.items() if "lora_A" in n}
    assert down
    for name, first in down.items():
        before = base.model.get_submodule(name.removeprefix("base_model.model."))
        after = adapted.model.get_submodule(name)
        second = weights[f"{name}.lora_B.weight"]
        product = second.double() @ first.double() * config["lora_alpha"] / config["r"]
        inputs = torch.randn(3, first.shape[1], dtype=torch.float64)
        torch.testing.assert_close(after(inputs), before(inputs) + inputs @ product.T)
        assert product.abs().max() > 1e-3
    assert not any(module.training for module in adapted.model.modules())


def other_base(folder, **sizes):
    """An adapter for a Qwen3-VL of other sizes."""
    return save_small_lora(folder, small_qwen3_vl(**sizes))


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"text": {"hidden_size": 48}}, "size mismatch"),
        ({"text": {"num_hidden_layers": 5}}, r"it also has .*layers\.4"),
        ({"text": {"num_hidden_layers": 3}}, r"it has no .*layers\.3"),
        ({"vision": {"depth": 2}}, r"it has no .*blocks\.2"),
    ],
)
def test_an_adapter_for_a_model_of_other_sizes_is_refused(qwen, tmp_path, sizes, why):
    adapter = other_base(tmp_path / "other-lora", **sizes)
    with pytest.raises(ValueError, match=rf"expected an adapter for .*small-qwen3-vl.*{why}"):
        load_model(qwen, adapter_id=adapter)


def test_an_adapter_for_another_class_is_refused(qwen, lora, tmp_path):
    copy = shutil.copytree(lora, tmp_path / "llava-lora")
    config = json.loads((copy / "adapter_config.json").read_text())
    config["auto_mapping"]["base_model_class"] = "LlavaForConditionalGeneration"
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="made for a LlavaForConditionalGeneration"):
        load_model(qwen, adapter_id=copy)


def test_an_adapter_for_modules_that_are_not_there_is_refused(qwen, tmp_path):
    adapter = save_small_lora(tmp_path / "lora", small_qwen3_vl(), target_modules=["k_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["query_key_value"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"Target modules .*query_key_value.* not found"):
        load_model(qwen, adapter_id=adapter)


VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        LoHaConfig(target_modules=["q_proj"]),
        LoKrConfig(target_modules=["q_proj"]),
        OFTConfig(target_modules=["q_proj"], oft_block_size=4),
        VeraConfig(target_modules=["q_proj"], r=4),
        PromptTuningConfig(**VIRTUAL),
        PrefixTuningConfig(**VIRTUAL),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_another_kind_of_adapter_is_refused(qwen, tmp_path, config):
    get_peft_model(small_qwen3_vl(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"expected a LoRA adapter, got {config.peft_type.value}"):
        load_model(qwen, adapter_id=tmp_path)


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """A checkpoint whose attention has biases, which a LoRA can train."""
    folder = tmp_path_factory.mktemp("checkpoints") / "biased"
    return save_small_qwen3_vl(folder, text={"attention_bias": True})


def trained_lora(folder, base, **settings):
    """An adapter whose trained weights are far from where they began, and what it computes."""
    model = load_model(base, dtype="float32").model
    torch.manual_seed(2)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"]} | settings
    adapted = get_peft_model(model, LoraConfig(**options)).eval()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
        logits = adapted(TOKENS).logits
    adapted.save_pretrained(folder)
    return folder, logits


TOKENS = torch.arange(30, 50)[None]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_bias": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva"},
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [31, 40]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 16}},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_parameters": ["q_proj.weight"], "target_modules": ["v_proj"]},
    ],
    ids=lambda settings: " ".join(map(str, settings.items())) or "plain",
)
@torch.no_grad()
def test_without_any_kind_of_lora_the_model_is_its_base(biased, tmp_path, settings):
    bare = load_model(biased, dtype="float32").model(TOKENS).logits
    adapter, trained = trained_lora(tmp_path / "lora", biased, **settings)
    qwen = load_model(biased, dtype="float32", adapter_id=adapter)
    torch.testing.assert_close(qwen.model(TOKENS).logits, trained, atol=0, rtol=0)
    assert (trained - bare).abs().max() > 0.1
    with qwen.without_adapter():
        torch.testing.assert_close(qwen.model(TOKENS).logits, bare, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"bias": "all"}, r"blocks\.0\.norm1\.bias"),
        ({"bias": "lora_only"}, r"layers\.0\.self_attn\.q_proj\.bias"),
        ({"init_lora_weights": "pissa"}, r"q_proj\.weight.*'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, r"q_proj\.weight.*'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, r"q_proj\.weight.*'olora'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_lora_that_changes_the_base_is_refused(biased, tmp_path, settings, what):
    adapter, _ = trained_lora(tmp_path / "lora", biased, **settings)
    with pytest.raises(ValueError, match=f"beside the base model's own weights, got .*{what}"):
        load_model(biased, dtype="float32", adapter_id=adapter)


@pytest.mark.parametrize("start", ["corda", "loftq"])
def test_a_lora_that_needs_more_than_its_folder_is_refused(qwen, lora, tmp_path, start):
    copy = shutil.copytree(lora, tmp_path / "begun")
    config = json.loads((copy / "adapter_config.json").read_text())
    settings = {"init_lora_weights": start, "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    (copy / "adapter_config.json").write_text(json.dumps(config | settings))
    with pytest.raises(ValueError, match=r"expected an adapter for .*begun.*PEFT says"):
        load_model(qwen, adapter_id=copy)


@pytest.mark.parametrize("settings", ["{}", "{", "[]", '{"peft_type": "LORA", "r": []}'])
def test_broken_settings_of_an_adapter_are_named(qwen, lora, tmp_path, settings):
    copy = shutil.copytree(lora, tmp_path / "broken")
    (copy / "adapter_config.json").write_text(settings)
    with pytest.raises(ValueError, match=r"broken"):
        load_model(qwen, adapter_id=copy)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_broken_weights_of_an_adapter_are_named(qwen, lora, tmp_path, kept):
    weights = shutil.copytree(lora, tmp_path / "broken") / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"expected an adapter for .*broken"):
        load_model(qwen, adapter_id=weights.parent)


def test_a_pickled_adapter_is_refused(qwen, lora, tmp_path):
    copy = shutil.copytree(lora, tmp_path / "pickled")
    weights = load_file(copy / "adapter_model.safetensors")
    (copy / "adapter_model.safetensors").unlink()
    torch.save(weights, copy / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights are refused"):
        load_model(qwen, adapter_id=copy)


def test_a_missing_adapter_names_itself(qwen, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot load the adapter .*nowhere"):
        load_model(qwen, adapter_id=tmp_path / "nowhere")
