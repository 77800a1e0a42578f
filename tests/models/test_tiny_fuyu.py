"""The small Fuyu answers and points as its training says, on a fixed sample of many sizes."""

import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.exams import PAIRS, PLAIN, exam
from places import DATA, ROOT
from safetensors.torch import load_file

from rolloutlib import load_model, rollout_rows
from rolloutlib.evaluate import pointing_game
from rolloutlib.overlay import to_picture
from rolloutlib.tiny.scenes import FUYU_SIZES, load_photos, make_scene

FOLDER = DATA / "checkpoints" / "tiny-fuyu"


@pytest.fixture(scope="module")
def fuyu():
    return load_model(FOLDER, dtype="float32")


def asked(group, count, **scene):
    """A question for each of `count` scenes on held-out photographs, the sizes in turn."""
    rng, photos = np.random.default_rng(20), load_photos(DATA / "images", split="test")
    for number in range(count):
        size = FUYU_SIZES[group][number % len(FUYU_SIZES[group])]
        made = make_scene(rng, photos, size=size, **scene)
        yield made, rng.choice(made.questions)


@pytest.mark.parametrize(("group", "count", "least"), [("seen", 40, 0.95), ("unseen", 30, 0.80)])
def test_tiny_fuyu_answers_exactly(fuyu, group, count, least):
    right = [
        fuyu.generate(scene.picture, question.text, max_new_tokens=4).text == question.answer
        for scene, question in asked(group, count)
    ]
    assert np.mean(right) >= least


def test_notebook_03_says_at_which_sizes_it_answers():
    """The range and the numbers of its first cell are those of the committed table."""
    said = nbformat.read(ROOT / "notebooks/03_fuyu.ipynb", as_version=4).cells[0].source
    table = pd.read_csv(DATA / "results/answers.csv")
    table = table[table["model"].eq("Fuyu") & table["asked"].eq(PLAIN)]
    sides = table[["height", "width"]]
    [(low, high, least)] = re.findall(r"sides of (\d+) to (\d+) pixels.* at least (0\.\d+)", said)
    inside = ((sides >= int(low)) & (sides <= int(high))).all(axis=1)
    assert inside.sum() >= 4 and table["right"][inside].min() >= float(least)
    by_size = table.set_index(["height", "width"])["right"]
    examples = re.findall(r"(0\.\d\d) at (\d+) x (\d+)", said)
    assert len(examples) >= 3
    for right, height, width in examples:
        assert float(right) == pytest.approx(by_size[int(height), int(width)].mean(), abs=0.0051)


def test_an_exam_is_an_answer_for_each_scene(fuyu):
    assert exam(fuyu, PLAIN, 2, (420, 420)) == [1, 1]
    assert set(exam(fuyu, PAIRS, 2, (420, 420))) <= {0, 1}


@pytest.mark.parametrize("group", ["seen", "unseen"])
def test_the_map_of_one_object_lands_on_it(fuyu, group):
    scores = []
    for scene, question in asked(group, 12, objects=(1, 1)):
        if question.region.any():
            answer = fuyu.generate(scene.picture, question.text, max_new_tokens=4)
            layers = fuyu.record(answer)["language"]
            relevance = rollout_rows(layers, answer.rows, receptive_field=True)[0]
            heatmap = answer.image.heatmaps(relevance).mean(0)
            pixels = to_picture(heatmap, answer.image.view, blur_tokens=0.5)
            scores.append(pointing_game(pixels, question.region))
    assert np.mean(scores) > 0.7  # an object covers about 3 % of the picture


def test_tiny_fuyu_is_fuyu_down_to_its_tokens(fuyu):
    assert type(fuyu.model).__name__ == "FuyuForCausalLM"
    assert type(fuyu.processor).__name__ == "FuyuProcessor"
    assert fuyu.model.config.patch_size == 30
    assert fuyu.processor.image_processor.size == {"height": 1080, "width": 1920}
    assert all(torch.isfinite(weight).all() for weight in fuyu.model.parameters())


def test_tiny_fuyu_is_a_small_half_precision_file():
    weights = load_file(FOLDER / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert (FOLDER / "model.safetensors").stat().st_size < 12e6
