"""What a folder must hold to be loaded, and what is refused."""

import ast
import json
import re
import shutil
from functools import partial
from pathlib import Path

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
from small_fuyu import save_small_fuyu
from small_llava import save_small_llava, small_llava, small_processor, small_tokenizer
from small_qwen3_vl import save_small_lora, save_small_qwen3_vl, small_qwen3_vl
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    LlavaForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    SiglipVisionConfig,
)

from rolloutlib import heatmaps, load_model
from rolloutlib.models.load import load_pretrained
from rolloutlib.models.vision import load_vision_transformer

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
    with pytest.raises(ValueError, match=r"image-text model.*got model_type 'bert'"):
        load_model(copy)


def test_a_family_that_a_lesson_is_not_about_is_refused_before_its_weights_are_read(qwen, tmp_path):
    copy = shutil.copytree(qwen, tmp_path / "other")
    (copy / "model.safetensors").unlink()
    for asked, named in [(["llava"], "llava"), (("fuyu", "qwen3_5"), "fuyu or qwen3_5")]:
        expected = f"model_type {named}, got qwen3_vl in {copy}; the notebook 10_any_model takes"
        with pytest.raises(ValueError, match=re.escape(expected)):
            load_model(copy, families=asked)
    assert load_model(qwen, families=["fuyu", "qwen3_vl"]).family.model_type == "qwen3_vl"


def test_code_that_comes_with_a_checkpoint_is_not_run(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "with-code")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()")
    with pytest.raises(ValueError):
        load_model(copy)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("model.safetensors.index.json", {"metadata": {}, "weight_map": {"lm_head": "w.bin"}}),
        ("config.json", {"transformers_weights": "adapter_model.bin"}),
        ("config.json", {"transformers_weights": "../weights.pt"}),
    ],
)
def test_weights_that_are_named_elsewhere_are_safetensors(folder, tmp_path, file, settings):
    path = shutil.copytree(folder, tmp_path / "naming") / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | settings))
    with pytest.raises(FileNotFoundError, match=r"as weights, expected safetensors"):
        load_model(path.parent)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "{}", "", '"text"'])
def test_a_malformed_file_is_one_sentence_with_the_folder(folder, tmp_path, file, content):
    copy = shutil.copytree(folder, tmp_path / "malformed")
    (copy / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match="malformed"):
        load_model(copy)


# The processor and the model


def altered(folder, copy, file="processor_config.json", **settings):
    """A checkpoint with other settings in one of its files; None removes one."""
    path = shutil.copytree(folder, copy) / file
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: v for name, v in content.items() if v is not None}))
    return copy


SMALLER = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
UNCUT = {"size": {"shortest_edge": 56}, "do_center_crop": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"patch_size": None},
            "expected patch_size in the processor's settings in .*odd, got none",
        ),
        ({"patch_size": 7}, "do not match, tokens: 64"),
        ({"num_additional_image_tokens": 0}, "expected 16 image tokens .*, got 15"),
        ({"num_additional_image_tokens": 5}, "do not match, tokens: 20"),
        ({"vision_feature_select_strategy": "full"}, "do not match, tokens: 17"),
        ({"vision_feature_select_strategy": None}, "do not match, tokens: 17"),
        ({"image_processor": SMALLER}, r"28\*28\) doesn't match model \(56\*56"),
        ({"image_processor": UNCUT}, r"doesn't match model \(56\*56"),
        ({"image_processor": {"size": {"max_height": 9, "max_width": 9}}}, "odd does not fit"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused_at_load(folder, tmp_path, settings, message):
    own = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    if "image_processor" in settings:
        settings = {"image_processor": own | settings["image_processor"]}
    with pytest.raises(ValueError, match=message):
        load_model(altered(folder, tmp_path / "odd", **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_feature_layer": [-2]}, r"expected one vision_feature_layer, got \[-2\]"),
        ({"vision_feature_layer": 9}, "odd does not fit its model"),
        ({"vision_feature_select_strategy": "full"}, "do not match, tokens: 16"),
    ],
)
def test_a_model_that_its_processor_does_not_fit_is_refused(folder, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        load_model(altered(folder, tmp_path / "odd", "config.json", **settings))


def test_a_context_too_short_for_a_picture_is_refused_at_load(folder, tmp_path):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    settings = {"text_config": text | {"max_position_embeddings": 12}}
    with pytest.raises(ValueError, match="expected at most 12 together"):
        load_model(altered(folder, tmp_path / "short", "config.json", **settings))


@pytest.mark.parametrize(
    "size", [{"patch_size": 32}, {"merge_size": 4}, {"temporal_patch_size": 1}]
)
def test_a_qwen_processor_of_other_sizes_is_refused_at_load(qwen, tmp_path, size):
    own = json.loads((qwen / "processor_config.json").read_text())["image_processor"]
    with pytest.raises(ValueError, match="odd does not fit its model"):
        load_model(altered(qwen, tmp_path / "odd", image_processor=own | size))


def test_a_fuyu_processor_of_other_sizes_is_refused_at_load(tmp_path):
    fuyu = save_small_fuyu(tmp_path / "fuyu")
    own = json.loads((fuyu / "processor_config.json").read_text())["image_processor"]
    other = own | {"patch_size": {"height": 20, "width": 20}}
    with pytest.raises(ValueError, match="odd does not fit its model"):
        load_model(altered(fuyu, tmp_path / "odd", image_processor=other))


def with_tower(folder, vision, strategy, extra):
    """A LLaVA with another vision tower, of 4 x 4 patches."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    vision = vision(image_size=56, patch_size=14, num_attention_heads=4, **sizes)
    config = small_llava().config
    config.vision_config, config.vision_feature_select_strategy = vision, strategy
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = small_processor()
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = extra
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("vision", "strategy", "extra"),
    [
        (SiglipVisionConfig, "full", 0),
        (CLIPVisionConfig, "full", 1),
        (Dinov2WithRegistersConfig, "full", 5),
        (Dinov2WithRegistersConfig, "default", 5),
    ],
)
def test_towers_with_other_extra_tokens_work(tmp_path, picture, vision, strategy, extra):
    llava = load_model(with_tower(tmp_path, vision, strategy, extra), dtype="float32")
    unlike = {"suppress_tokens": [2, 3]}
    answer = llava.generate(picture, QUESTION, max_new_tokens=2, min_new_tokens=2, **unlike)
    every = (answer.sequence == llava.model.config.image_token_id).nonzero().flatten()
    assert torch.equal(answer.image.positions, every[-16:])
    assert len(every) == 16 + extra - (strategy == "default")
    # The patch behind each token is the one that changes it.
    assert torch.equal(answer.image.patches.positions, torch.arange(16) + extra)
    maps = heatmaps(llava.record(answer), answer)
    assert maps.shape == (2, 4, 4) and (maps > 0).all()


def test_a_tower_without_the_class_token_that_is_dropped_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected 16 image tokens .*, got 15"):
        load_model(with_tower(tmp_path, SiglipVisionConfig, "default", 0))


def test_the_classes_of_pixtral_are_refused_by_name(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "pixtral")
    tokenizer = small_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], special_tokens=True)
    images = PixtralImageProcessor(patch_size={"height": 14, "width": 14})
    (copy / "processor_config.json").unlink()
    PixtralProcessor(images, tokenizer, patch_size=14).save_pretrained(copy)
    with pytest.raises(ValueError, match=r"expected a LlavaProcessor in .*, got PixtralProcessor"):
        load_model(copy)


# What loads

PICKLES = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
LOADERS = {"from_pretrained", "torch.load", "torch.jit.load", "torch.hub.load", "read_pickle"}
ROOT = Path(__file__).parents[2]


def sources():
    """All Python that users run: the package, notebooks, the app, and the scripts."""
    for folder in ("rolloutlib", "docs", "tests/benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, path.read_text("utf-8")
    for folder in ("notebooks", "app"):
        for path in sorted((ROOT / folder).rglob("*.ipynb")):
            cells = json.loads(path.read_text("utf-8"))["cells"]
            code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
            yield path, "\n".join(code)


def unsafe(source):
    """What code loads by other ways than ours: its calls, imports and permissions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            yield from (name for name in names if name and name.split(".")[0] in PICKLES)
        elif isinstance(node, ast.Attribute) and node.attr in {"from_pretrained", "read_pickle"}:
            yield ast.unparse(node)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in LOADERS:
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}:
            if not any(k.arg == "allow_pickle" and k.value.value is False for k in node.keywords):
                yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle"}:
            if ast.unparse(node.value) != "False":
                yield f"{node.arg}={ast.unparse(node.value)}"


def test_nothing_is_loaded_but_by_the_function_that_refuses_code_and_pickles():
    found = {path.relative_to(ROOT).as_posix(): list(unsafe(text)) for path, text in sources()}
    own = found.pop("rolloutlib/models/load.py")
    assert sorted(own) == [
        "PeftConfig.from_pretrained",
        "PeftModel.from_pretrained",
        "kind.from_pretrained",
    ]
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "AutoModel.from_pretrained('x')",
        "load = AutoModel.from_pretrained",
        "torch.load('x')",
        "import pickle",
        "from joblib import load",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "load_pretrained(AutoModel, 'x', trust_remote_code=True)",
        "pd.read_pickle('x')",
    ],
)
def test_the_search_finds_other_ways(code):
    assert list(unsafe(code))


@pytest.mark.parametrize("load", [load_vision_transformer, partial(load_pretrained, BertModel)])
def test_other_models_with_pickled_weights_are_refused_by_name(tmp_path, load):
    model = BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights are refused"):
        load(str(tmp_path))


@pytest.mark.parametrize("load", [load_vision_transformer, partial(load_pretrained, AutoTokenizer)])
def test_other_loaders_run_no_code_of_a_checkpoint(tmp_path, load):
    auto_map = {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoTokenizer": ["own.Own", None]}
    config = {"model_type": "strange", "auto_map": auto_map}
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises((ValueError, FileNotFoundError)):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


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
    with pytest.raises(ValueError, match=r"expected safetensors in .*broken"):
        load_model(qwen, adapter_id=weights.parent)


def test_a_pickled_adapter_is_refused(qwen, lora, tmp_path):
    copy = shutil.copytree(lora, tmp_path / "pickled")
    weights = load_file(copy / "adapter_model.safetensors")
    (copy / "adapter_model.safetensors").unlink()
    torch.save(weights, copy / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights are refused"):
        load_model(qwen, adapter_id=copy)


def test_an_adapter_in_the_checkpoints_own_folder_is_not_added_unasked(qwen, lora, tmp_path):
    copy = shutil.copytree(qwen, tmp_path / "both")
    shutil.copytree(lora, copy, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"without an adapter, got adapter_config.json in .*both"):
        load_model(copy)


def test_a_missing_adapter_names_itself(qwen, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot load the adapter .*nowhere"):
        load_model(qwen, adapter_id=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"expected JSON in .*adapter_config.json, line 1"),
        ('{"r": 4,\n "r"}', r"expected JSON in .*adapter_config.json, line 2"),
        ("[" * 100_000, r"adapter_config.json: maximum recursion"),
        ("[]", r"expected the settings of an adapter in .*adapter_config.json"),
        ("{}", r"expected a LoRA adapter, got None in .*malformed"),
        ('{"peft_type": "NOPE"}', r"cannot read .*adapter_config.json"),
        ('{"rank_pattern": 3}', r"expected the settings of an adapter in .*adapter_config.json"),
        (" " * 1_000_001, r"at most 1000000 bytes in .*adapter_config.json, got 1000001"),
        ("\x00", r"expected JSON in .*adapter_config.json, line 1"),
    ],
)
def test_a_malformed_adapter_is_one_sentence_with_its_file(qwen, lora, tmp_path, content, message):
    copy = shutil.copytree(lora, tmp_path / "malformed")
    (copy / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_model(qwen, adapter_id=copy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"r": 2_000_000_000},
            r"expected ranks in \[1, \d+\], as in its weights, got \[2000000000",
        ),
        ({"r": "4"}, r"expected ranks in"),
        ({"r": None}, r"expected ranks in"),
        ({"rank_pattern": {"q_proj": 1_000_000}}, r"expected ranks in"),
        ({"layer_replication": [[0, 1000]]}, "an adapter without layer_replication"),
        ({"megatron_config": {"a": 1}}, "an adapter without megatron_config"),
        ({"lora_alpha": "much"}, r"expected an adapter for|cannot read"),
        ({"target_modules": 7}, r"expected an adapter for|cannot read"),
    ],
)
def test_an_adapter_that_asks_for_too_much_is_refused(qwen, lora, tmp_path, settings, message):
    copy = altered(lora, tmp_path / "odd", "adapter_config.json")
    config = json.loads((copy / "adapter_config.json").read_text()) | settings
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(qwen, adapter_id=copy)


@pytest.mark.parametrize(
    "header", [b"", b"\x00" * 8, b"\xff" * 16, b"\x10" + b"\x00" * 7 + b"{" * 16]
)
def test_an_adapter_with_a_broken_header_is_refused(qwen, lora, tmp_path, header):
    copy = shutil.copytree(lora, tmp_path / "broken")
    (copy / "adapter_model.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors"):
        load_model(qwen, adapter_id=copy)
