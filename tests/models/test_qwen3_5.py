"""A Qwen3.5, most of whose layers have no attention, is asked and mapped as every other model."""

import numpy as np
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


def test_attention_alone_and_with_signs_are_their_definitions(model, answer):
    evidence = evidence_of(model, answer)
    assert sorted(evidence.signed) == [0, 1, 3, 4]
    attention = [layer.double().numpy() for layer in evidence.attention]
    attending = [attention[number].mean(0) for number in (2, 5)]
    n, rows, places = len(attending[0]), evidence.rows.tolist(), evidence.image.positions.tolist()
    even = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    shares = []
    for layers in (attending, [even] * 2):
        whole = np.linalg.multi_dot([0.9 * np.eye(n) + 0.1 * a for a in layers[::-1]])
        on_picture = whole[rows][:, places]
        shares.append(on_picture / on_picture.sum(1, keepdims=True))
    expected = np.maximum(shares[0] - shares[1], 0).mean(0)
    alone = METHODS["attention alone"].heatmap(evidence, to_patches=False)
    np.testing.assert_allclose(alone.ravel(), expected, atol=1e-6)

    relevance = np.eye(n)[rows]
    for number in reversed(range(6)):
        matrix = evidence.signed[number].double().numpy() if number not in (2, 5) else None
        matrix = attention[number] if matrix is None else matrix
        matrix = (matrix / np.abs(matrix).sum(-1, keepdims=True)).mean(0)
        relevance = 0.9 * relevance + 0.1 * relevance @ matrix
    assert relevance.min() < 0
    expected = np.maximum(relevance, 0)[:, places].mean(0)
    signed = METHODS["with signs"].heatmap(evidence, to_patches=False)
    np.testing.assert_allclose(signed.ravel(), expected, atol=1e-6)


def test_every_method_and_the_explorer_take_it(model, answer):
    evidence = evidence_of(model, answer)
    assert len(evidence.attention) == 6
    for method in METHODS.values():
        assert (method.heatmap(evidence) >= 0).all()
    explorer = explore(answer)
    assert explorer.maps.words
    explorer.close()
