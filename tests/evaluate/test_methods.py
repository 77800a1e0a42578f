import numpy as np
import pytest
import torch
from PIL import Image
from reference import products, rows_to_one
from small_fuyu import save_small_fuyu
from small_llava import save_small_llava
from small_qwen3_vl import save_small_qwen3_vl

from rolloutlib import heatmaps, load_model, rollout_rows
from rolloutlib.evaluate.methods import (
    METHODS,
    NEUTRAL,
    Evidence,
    Method,
    evidence_of,
    head,
    rolled,
    sinks,
)
from rolloutlib.recording.gradients import WeightedLayer, record_gradients, weigh_by_gradient

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
    for method in METHODS.values():
        assert method.applies(evidence) == (method.needs != "signed")  # here every layer attends
        if not method.applies(evidence):
            continue
        heatmap = method.heatmap(evidence)
        assert heatmap.shape == evidence.view.grid == answer.image.patch_view.grid
        assert np.isfinite(heatmap).all() and (heatmap >= 0).all() and heatmap.max() > 0
        on_tokens = method.heatmap(evidence, to_patches=False)
        assert on_tokens.shape == answer.image.view.grid


def test_a_method_that_does_not_apply_is_refused():
    even = [torch.full((2, 3, 3), 1 / 3)]
    nothing = [WeightedLayer("", torch.zeros(1, 3, 3))]
    frames = Evidence(even, torch.tensor([1]), lambda: nothing)
    for name in ("gradient of the lead", "beyond neutral", "with signs"):
        assert not METHODS[name].applies(frames)
        with pytest.raises(ValueError, match=f"expected evidence with `{METHODS[name].needs}`"):
            METHODS[name].heatmap(frames)
    np.testing.assert_allclose(METHODS["last layer"].heatmap(frames), 1 / 3)
    assert frames.view is None
    for name in ("rows divided", "beyond even"):
        with pytest.raises(ValueError, match="expected causal attention"):
            METHODS[name].heatmap(frames)


def test_maps_are_those_of_the_recording_without_gradients(asked):
    model, answer, evidence = asked
    layers = model.record(answer)["language"]
    for name, expected in {
        "rollout": rollout_rows(layers, answer.rows)[0],
        "rows divided": rollout_rows(layers, answer.rows, receptive_field=True)[0],
        "last layer": layers[-1].probabilities(answer.rows)[0].mean(0),
    }.items():
        maps = answer.image.heatmaps(expected).mean(0)
        heatmap = METHODS[name].heatmap(evidence, to_patches=False)
        np.testing.assert_allclose(heatmap, maps, atol=1e-5)
    for name, residual in [("beyond even", 0.5), ("beyond even, residual 0.9", 0.9)]:
        maps = heatmaps(model.record(answer), answer, beyond_even=True, residual=residual)
        np.testing.assert_allclose(METHODS[name].heatmap(evidence), maps.mean(0), atol=1e-6)


def test_the_order_of_tokens_is_taken_out_as_defined(asked):
    """Written out in float64; without the tower."""
    _, answer, evidence = asked
    size = len(evidence.fused[0])
    layers, mask = [a.double().numpy() for a in evidence.fused], np.tril(np.ones((size, size)))
    even = [rows_to_one(mask)] * len(layers)
    columns = [rows_to_one(layer / mask.sum(0)) for layer in layers]
    rolled, by_columns, only_order = (
        products([layer[None] for layer in some])[-1][evidence.rows]
        for some in (layers, columns, even)
    )

    def log_odds(p):
        return np.log(p / (1 - p))

    with np.errstate(divide="ignore", invalid="ignore"):
        expected = {
            "columns divided": by_columns,
            "over even": rolled / only_order,
            "log-odds over even": (log_odds(rolled) - log_odds(only_order)).clip(min=0),
        }
    for name, relevance in expected.items():
        on_tokens = relevance[:, answer.image.positions].mean(0).reshape(answer.image.view.grid)
        heatmap = METHODS[name].heatmap(evidence, to_patches=False)
        np.testing.assert_allclose(heatmap, on_tokens, rtol=1e-4, atol=1e-6)


def test_contrast_with_a_neutral_question_is_as_defined(asked):
    """Written out in float64, without the tower: the same tokens after the other question."""
    model, answer, evidence = asked
    picture = answer.image.picture
    inputs = model.prepare([picture], NEUTRAL)
    sequence = torch.cat([inputs["input_ids"][0], answer.sequence[-len(answer.tokens) :]])
    neutral = model.answer([picture], NEUTRAL, inputs, sequence[None])
    shares = []
    for one in (answer, neutral):
        size = len(one.sequence)
        layers = [layer.probabilities()[0].double() for layer in model.record(one)["language"]]
        mixed = [0.9 * torch.eye(size) + 0.1 * layer.mean(0) for layer in layers]
        product = torch.eye(size, dtype=torch.float64)
        for layer in mixed:
            product = layer @ product
        shares.append(product[one.rows][:, one.image.positions].numpy())
    ratio = shares[0] / shares[1]
    own, other = (rows_to_one(each) for each in shares)
    for name, expected in {
        "beyond neutral": (own - other).clip(min=0),
        "over neutral": ratio,
    }.items():
        heatmap = METHODS[name].heatmap(evidence, to_patches=False)
        on_tokens = expected.mean(0).reshape(answer.image.view.grid)
        np.testing.assert_allclose(heatmap, on_tokens, rtol=1e-3, atol=1e-7)


def test_contrast_with_another_answer_is_weighted_by_the_difference_of_logits(asked):
    model, answer, _ = asked
    with record_gradients(model.model) as recording:
        logits = model.replay(answer)
    given = answer.generated
    instead = [(number + 1) % logits.shape[-1] for number in given.tolist()]
    rest = logits.detach().clone()
    rest[range(len(given)), given] = -torch.inf
    own = logits[range(len(given)), given]
    for ids, other in [(None, rest.argmax(-1)), (instead, torch.tensor(instead))]:
        lead = (own - logits[range(len(given)), other]).sum()
        expected = weigh_by_gradient(recording["language"], lead)
        against = evidence_of(model, answer, instead=ids).against
        for one, layer in zip(against.weighted, expected, strict=True):
            torch.testing.assert_close(one.weights, layer.weights)
    with pytest.raises(ValueError, match="expected 3 ids of another answer, got 1"):
        evidence_of(model, answer, instead=[1])


def test_to_patches_equals_the_product_written_out(asked):
    """Relevance of tokens in equal shares on what they were merged from, then layer by layer."""
    _, answer, evidence = asked
    patches = answer.image.patches
    if patches is None:
        pytest.skip("no tower")
    plain = [layer.double().mean(0) for layer in evidence.tower]
    identity = torch.eye(len(plain[0]), dtype=torch.float64)
    for name, steps in [
        ("rollout", [(layer + identity) / 2 for layer in plain]),
        (
            "gradient rollout",
            [identity + layer.weights[0].double() for layer in evidence.tower_weighted],
        ),
    ]:
        relevance = torch.zeros(len(identity), dtype=torch.float64)
        share = (
            METHODS[name].heatmap(evidence, to_patches=False).flatten() / patches.merged.shape[1]
        )
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
