import numpy as np
import pytest
import torch
from PIL import Image
from small_fuyu import save_small_fuyu
from small_llava import save_small_llava
from small_qwen3_vl import save_small_qwen3_vl

from rolloutlib import load_model, rollout_rows
from rolloutlib.evaluate.methods import METHODS, Evidence, Method, evidence_of, head, rolled, sinks
from rolloutlib.recording.gradients import WeightedLayer, weigh_by_gradient

SAVE = {"llava": save_small_llava, "fuyu": save_small_fuyu, "qwen": save_small_qwen3_vl}


@pytest.fixture(scope="module", params=SAVE)
def asked(request, tmp_path_factory):
    """A model of each family, its answer about a picture, and the evidence."""
    model = load_model(SAVE[request.param](tmp_path_factory.mktemp("small")), dtype="float32")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    how = {"max_new_tokens": 3, "min_new_tokens": 3}
    answer = model.generate(Image.fromarray(pixels), "what colour is the star ?", **how)
    return model, answer, evidence_of(model, answer)


def test_every_method_that_applies_makes_a_map_on_its_grid(asked):
    _, answer, evidence = asked
    applied = {name for name, method in METHODS.items() if method.applies(evidence)}
    to_patches = {name for name in METHODS if name.endswith("to patches")}
    assert applied == (set(METHODS) if answer.image.patches else set(METHODS) - to_patches)
    for name in applied:
        heatmap = METHODS[name].heatmap(evidence)
        assert heatmap.shape == METHODS[name].view(evidence).grid
        assert np.isfinite(heatmap).all() and (heatmap >= 0).all() and heatmap.max() > 0


def test_a_method_that_does_not_apply_is_refused():
    even = [torch.full((2, 3, 3), 1 / 3)]
    nothing = [WeightedLayer("", torch.zeros(1, 3, 3))]
    frames = Evidence(even, torch.tensor([1]), lambda: nothing)
    np.testing.assert_allclose(METHODS["last layer"].heatmap(frames), 1 / 3)
    assert METHODS["last layer"].view(frames) is None
    for name in ("receptive field", "rollout to patches"):
        with pytest.raises(ValueError, match="what the method needs"):
            METHODS[name].heatmap(frames)


def test_maps_are_those_of_the_recording_without_gradients(asked):
    model, answer, evidence = asked
    layers = model.record(answer)["language"]
    for name, expected in {
        "rollout": rollout_rows(layers, answer.rows)[0],
        "receptive field": rollout_rows(layers, answer.rows, receptive_field=True)[0],
        "last layer": layers[-1].probabilities(answer.rows)[0].mean(0),
    }.items():
        maps = answer.image.heatmaps(expected).mean(0)
        np.testing.assert_allclose(METHODS[name].heatmap(evidence), maps, atol=1e-5)


def test_to_patches_equals_the_product_written_out(asked):
    """Relevance of tokens in equal shares on what they were merged from, then layer by layer."""
    _, answer, evidence = asked
    patches = answer.image.patches
    if patches is None:
        pytest.skip("no tower")
    plain = [layer.double().mean(0) for layer in evidence.tower]
    identity = torch.eye(len(plain[0]), dtype=torch.float64)
    for name, tokens, steps in [
        ("rollout to patches", "rollout", [(layer + identity) / 2 for layer in plain]),
        (
            "gradient rollout to patches",
            "gradient rollout",
            [identity + layer.weights[0].double() for layer in evidence.tower_weighted],
        ),
    ]:
        relevance = torch.zeros(len(identity), dtype=torch.float64)
        share = METHODS[tokens].heatmap(evidence).flatten() / patches.merged.shape[1]
        for token, outputs in enumerate(patches.merged):
            relevance[outputs] += share[token]
        share, relevance = relevance / (len(patches.branches) + 1), 0
        for depth in (patches.layers, *patches.branches):
            product = share
            for step in reversed(steps[:depth]):
                product = product @ step
            relevance = relevance + product
        expected = relevance[patches.positions].reshape(patches.view.grid)
        np.testing.assert_allclose(METHODS[name].heatmap(evidence), expected, rtol=1e-4, atol=1e-7)


def test_evidence_of_some_tokens_is_of_their_rows_and_their_logits(asked):
    model, answer, whole = asked
    parts = [evidence_of(model, answer, [number]) for number in range(len(answer.tokens))]
    assert torch.cat([part.rows for part in parts]).equal(whole.rows)
    maps = [METHODS["rollout"].heatmap(part) for part in parts]
    np.testing.assert_allclose(np.mean(maps, 0), METHODS["rollout"].heatmap(whole), rtol=1e-5)
    recording, logits = model.record_gradients(answer)
    expected = weigh_by_gradient(recording["language"], logits[1])
    for one, other in zip(parts[1].weighted, expected, strict=True):
        torch.testing.assert_close(one.weights, other.weights)


def test_the_pass_is_led_back_once_and_only_for_methods_that_ask():
    even, asked = [torch.full((2, 3, 3), 1 / 3)], []

    def weigh():
        asked.append(True)
        return [WeightedLayer("", torch.zeros(1, 3, 3))]

    evidence = Evidence(even, torch.tensor([1]), weigh)
    METHODS["rollout"].heatmap(evidence)
    assert not asked
    for _ in range(2):
        METHODS["gradient rollout"].heatmap(evidence)
    assert asked == [True]


def test_a_head_is_one_of_those_that_the_mean_is_made_of(asked):
    _, _, evidence = asked
    last, heads = len(evidence.attention) - 1, len(evidence.attention[0])
    maps = [Method(head(last, number)).heatmap(evidence) for number in range(heads)]
    np.testing.assert_allclose(np.mean(maps, 0), METHODS["last layer"].heatmap(evidence), rtol=1e-5)


def test_sinks_are_found_and_their_mass_is_shared_out():
    attention = torch.full((1, 20, 20), 0.5 / 19)
    attention[:, :, 7] = 0.5
    nothing = [WeightedLayer("", torch.zeros(1, 20, 20))] * 2
    evidence = Evidence([attention, attention], torch.tensor([3]), lambda: nothing)
    assert sinks(evidence).nonzero().flatten().tolist() == [7]
    before = rolled()(evidence)
    after = METHODS["sinks shared out"].relevance(evidence)
    assert after[0, 7] == 0
    torch.testing.assert_close(after.sum(), before.sum())
    others = torch.arange(20) != 7
    torch.testing.assert_close(after[0, others] / after[0, 3], before[0, others] / before[0, 3])
