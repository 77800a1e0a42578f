"""The checkpoints that the notebooks use answer as their training says, on a fixed sample."""

import numpy as np
import pytest
import torch
from places import DATA
from safetensors.torch import load_file

from rolloutlib import load_model, rollout_rows
from rolloutlib.evaluate import pointing_game
from rolloutlib.models.clicks import read_click
from rolloutlib.overlay import to_picture
from rolloutlib.tiny.scenes import load_photos, make_scenes
from rolloutlib.tiny.screens import make_screens

HALF, SINGLE = torch.float16, torch.float32
# The adapter and the refiner are kept as they were trained.
PRECISION = {
    "tiny-fuyu": HALF,
    "tiny-llava": HALF,
    "tiny-qwen3-5": HALF,
    "tiny-qwen3-vl": HALF,
    "tiny-qwen3-vl-click-lora": SINGLE,
    "tiny-refiner": SINGLE,
}
ASKED = ("colour", "shape", "where", "colour at", "shape at")  # as in the training's exam
LOOKED_AT = 40  # scenes whose maps are scored


@pytest.fixture(scope="module")
def llava():
    return load_model(DATA / "checkpoints" / "tiny-llava", dtype="float32")


@pytest.fixture(scope="module")
def asked():
    """One question for each of 50 scenes on photographs held out from training."""
    rng = np.random.default_rng(20)
    scenes = make_scenes(20, 50, load_photos(DATA / "images", split="test"))
    return [
        (scene, rng.choice([q for q in scene.questions if q.kind in ASKED])) for scene in scenes
    ]


@pytest.fixture(scope="module")
def answered(llava, asked):
    return [
        llava.generate(scene.picture, q.text, max_new_tokens=4, record=number < LOOKED_AT)
        for number, (scene, q) in enumerate(asked)
    ]


def test_tiny_llava_answers_exactly(asked, answered):
    right = [answer.text == q.answer for answer, (_, q) in zip(answered, asked, strict=True)]
    assert np.mean(right) >= 0.95


def test_tiny_llava_looks_where_the_answer_is(llava, asked, answered):
    scores = []
    for answer, (_, question) in list(zip(answered, asked, strict=True))[:LOOKED_AT]:
        relevance = rollout_rows(llava.record(answer)["language"], answer.rows)[0]
        pixels = to_picture(answer.image.heatmaps(relevance).mean(0), answer.image.view)
        scores.append(pointing_game(pixels, question.region))
    assert np.mean(scores) > 0.5  # an object covers about 4 % of the picture


@pytest.fixture(scope="module")
def clicker():
    base = DATA / "checkpoints" / "tiny-qwen3-vl"
    return load_model(base, dtype="float32", adapter_id=f"{base}-click-lora")


@pytest.fixture(scope="module")
def instructed():
    """One instruction for each of 40 screens held out from training."""
    rng = np.random.default_rng(20)
    return [(screen, rng.choice(screen.instructions)) for screen in make_screens(20, 40)]


def share_of_clicks_inside(model, instructed):
    inside = []
    for screen, instruction in instructed:
        answer = model.generate(screen.picture, instruction.text, max_new_tokens=6)
        pixel = read_click(answer).pixel(instruction.region.shape)
        inside.append(pixel is not None and instruction.region[int(pixel[1]), int(pixel[0])])
    return np.mean(inside)


def test_tiny_qwen3_vl_clicks_with_its_adapter_and_not_without(clicker, instructed):
    # 90 % of 500 held-out screens; on 40, such a model gets 85 % or more nine times in ten
    assert share_of_clicks_inside(clicker, instructed) >= 0.85
    with clicker.without_adapter():
        assert share_of_clicks_inside(clicker, instructed[:15]) < 0.3


@pytest.mark.parametrize("name", PRECISION)
def test_checkpoints_are_small_safetensors_of_their_precision(name):
    files = [file for file in (DATA / "checkpoints" / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}
    weights = [load_file(file) for file in files if file.suffix == ".safetensors"]
    tensors = [tensor for part in weights for tensor in part.values()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {PRECISION[name]}


def test_there_are_no_other_checkpoints():
    assert {folder.name for folder in (DATA / "checkpoints").iterdir()} == PRECISION.keys()


def test_tiny_llava_is_llava_down_to_its_tokens(llava):
    config = llava.model.config
    assert type(llava.model).__name__ == "LlavaForConditionalGeneration"
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (336, 14)
    assert all(torch.isfinite(weight).all() for weight in llava.model.parameters())
