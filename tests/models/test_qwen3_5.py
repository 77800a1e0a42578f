"""A Qwen3.5, most of whose layers have no attention, is asked and mapped as every other model."""

import pytest
import torch
from places import DATA

from rolloutlib import explore, heatmaps, load_model
from rolloutlib.evaluate.methods import METHODS, evidence_of
from rolloutlib.recording.mixing import RecordedState
from rolloutlib.tiny.scenes import load_photos, make_scenes


@pytest.fixture(scope="module")
def model():
    return load_model(DATA / "checkpoints" / "tiny-qwen3-5", dtype="float32")


@pytest.fixture(scope="module")
def answer(model):
    [scene] = make_scenes(3, 1, load_photos(DATA / "images", split="test"), size=(288, 288))
    return model.generate(scene.picture, scene.questions[0].text, max_new_tokens=6, record=True)


def test_its_own_tokenizer_reads_the_question(model):
    text = "what colour is the star?"
    assert model.processor.tokenizer.tokenize(text) == [*text[:-1].split(), "?"]


def test_recorded_while_answering_or_replayed_a_map_is_the_same(model, answer):
    layers = answer.recording["language"]
    assert sum(isinstance(layer, RecordedState) for layer in layers) == 4
    assert len(layers) == 6
    with torch.no_grad():
        replayed = model.record(answer.__class__(**vars(answer) | {"recording": None}))
    maps = heatmaps(answer.recording, answer)
    assert maps.shape == (len(answer.tokens), 18, 18)
    torch.testing.assert_close(maps, heatmaps(replayed, answer), atol=1e-5, rtol=1e-3)


def test_every_method_and_the_explorer_take_it(model, answer):
    evidence = evidence_of(model, answer)
    assert len(evidence.attention) == 6
    for method in METHODS.values():
        assert (method.heatmap(evidence) >= 0).all()
    explorer = explore(answer)
    assert explorer.maps.words
    explorer.close()
