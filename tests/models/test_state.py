"""Whether a model still computes what it did when an answer was recorded."""

import pytest
import torch
from PIL import Image
from small_llava import save_small_llava
from small_qwen3_vl import save_small_lora, save_small_qwen3_vl, small_qwen3_vl

from rolloutlib import load_model
from rolloutlib.evaluate.randomisation import shuffled_weights
from rolloutlib.models.state import state_of


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load_model(save_small_llava(tmp_path_factory.mktemp("llava")), dtype="float32")


@pytest.fixture
def qwen(tmp_path):
    """With an adapter."""
    adapter = save_small_lora(tmp_path / "adapter", small_qwen3_vl())
    folder = save_small_qwen3_vl(tmp_path / "model")
    return load_model(folder, adapter_id=adapter, dtype="float32")


def recorded(model, **how):
    picture = Image.new("RGB", (64, 64), "red")
    return model.generate(picture, "what ?", min_new_tokens=2, max_new_tokens=2, record=True, **how)


def test_an_unchanged_model_keeps_its_state(llava):
    answer = recorded(llava)
    assert state_of(llava.model) == answer.state
    llava.log_probability(answer, [answer.image.picture])
    assert llava.record(answer) is answer.recording


def test_shuffled_weights_are_another_model_until_they_are_back(llava):
    answer = recorded(llava)
    with shuffled_weights(llava.model):
        shuffled = llava.record(answer)
    assert shuffled is not answer.recording
    layers = [recording["language"][-1] for recording in (shuffled, answer.recording)]
    assert not torch.allclose(*(layer.query[:, :, :20] for layer in layers))
    assert llava.record(answer) is answer.recording


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: weight[3].zero_(),
        lambda weight: weight.data.mul_(2),
        lambda weight: setattr(weight, "data", weight.data + 1),
    ],
    ids=["in place", "one row", "through data", "replaced"],
)
def test_a_changed_weight_changes_the_state(tmp_path, change):
    model = load_model(save_small_llava(tmp_path), dtype="float32").model
    before = state_of(model)
    change(model.model.language_model.layers[1].self_attn.q_proj.weight)
    assert state_of(model) != before


def test_an_adapter_that_is_switched_off_changes_the_state(qwen):
    answer = recorded(qwen)
    with qwen.without_adapter():
        off = qwen.record(answer)
        assert off is not answer.recording and qwen.record(recorded(qwen)) is not off
    assert qwen.record(answer) is answer.recording


@pytest.mark.parametrize("change", ["merged", "scaled", "unloaded"])
def test_what_peft_does_to_an_adapter_changes_the_state(qwen, change):
    before = state_of(qwen.model)
    if change == "merged":
        qwen.model.merge_adapter()
    elif change == "scaled":
        layer = next(m for m in qwen.model.modules() if hasattr(m, "merged_adapters"))
        layer.set_scale("default", 3.0)
    else:
        qwen.model.base_model.unload()
    assert state_of(qwen.model) != before


def test_a_hook_changes_the_state(llava):
    before = state_of(llava.model)
    layer = llava.model.model.language_model.layers[0]
    hook = layer.register_forward_hook(lambda module, given, result: result)
    assert state_of(llava.model) != before
    hook.remove()
    assert state_of(llava.model) == before
