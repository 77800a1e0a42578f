"""Maps without attention, against their definitions."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_fuyu import save_small_fuyu
from small_llava import save_small_llava
from small_qwen3_vl import save_small_qwen3_vl

from rolloutlib import load_model
from rolloutlib.models.saliency import feature_magnitude, gradient_saliency

SAVE = {"llava": save_small_llava, "fuyu": save_small_fuyu, "qwen": save_small_qwen3_vl}
FIRST = {  # the first layer that holds patches, and where their vectors are
    "llava": "model.vision_tower.encoder.layers.0",
    "fuyu": "model.language_model.layers.0",
    "qwen": "model.visual.blocks.0",
}


@pytest.fixture(scope="module", params=SAVE)
def asked(request, tmp_path_factory):
    """A model of each family in float64, and its answer about a picture."""
    folder = SAVE[request.param](tmp_path_factory.mktemp("small"))
    model = load_model(folder, dtype="float64")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    how = {"max_new_tokens": 2, "min_new_tokens": 2}
    return request.param, model.generate(Image.fromarray(pixels), "what is the star ?", **how)


def place_of(answer, cell):
    """Where the vector of one cell is among those that enter its first layer."""
    patches = answer.image.patches
    return (patches.positions if patches else answer.image.positions)[cell].item()


@torch.no_grad()
def logit_after(answer, block, place, change):
    """The second generated token's logit after one patch's vector changed."""

    def moved(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden.reshape(-1, hidden.shape[-1])[place] += change

    model = answer.model
    with model.model.get_submodule(block).register_forward_pre_hook(moved, with_kwargs=True):
        inputs = model._replayed(answer, answer.inputs)
        logits = model.model(**inputs, use_cache=False).logits
    return logits[0, answer.rows[1], answer.sequence[-1]].item()


def test_saliency_is_the_length_of_the_numerical_gradient(asked):
    family, answer = asked
    saliency = gradient_saliency(answer, [1])
    assert saliency.shape == answer.image.patch_view.grid
    block, place = FIRST[family], place_of(answer, 3)
    weights = answer.model.model.get_submodule(block).named_parameters()
    width = max(weight.shape[0] for name, weight in weights if "norm" in name)
    steps = 2e-3 * torch.eye(width, dtype=torch.float64)  # norms are computed in float32
    above, below = (
        np.array([logit_after(answer, block, place, sign * step) for step in steps])
        for sign in (1, -1)
    )
    expected = np.linalg.norm(above - below) / 4e-3
    assert saliency.flatten()[3].item() == pytest.approx(expected, rel=5e-3)
    assert not torch.allclose(gradient_saliency(answer), saliency)


def test_magnitude_is_the_length_of_the_features(asked):
    family, answer = asked
    magnitude = feature_magnitude(answer)
    model, states = answer.model.model.model, []
    inputs = answer.model._replayed(answer, answer.inputs)
    with torch.no_grad():
        if family == "llava":
            tower = model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
            states = tower.hidden_states[model.config.vision_feature_layer][0]
        elif family == "qwen":
            tower = model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
            states = tower.last_hidden_state
        else:
            whole = answer.model.model(**inputs, output_hidden_states=True)
            states = whole.hidden_states[0][0]
    cells = torch.tensor([place_of(answer, cell) for cell in range(magnitude.numel())])
    torch.testing.assert_close(magnitude.flatten(), states[cells].norm(dim=-1))
