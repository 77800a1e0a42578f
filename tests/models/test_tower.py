"""Relevance carried on to patches is one product of dense matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from PIL import Image
from reference import products
from small_fuyu import save_small_fuyu
from small_llava import save_small_llava, small_llava, small_processor
from small_qwen3_vl import save_small_qwen3_vl

from rolloutlib import (
    carry_back,
    even_attention,
    heatmaps,
    load_model,
    rollout,
    rollout_rows,
    through_tower,
)
from rolloutlib.models import WholePrompt
from rolloutlib.models.tower import received_on_patches


def dense_rollout(layers, sequence, **settings):
    """The rollout of one sequence of a recorded tower, in float64 from its definition."""
    heads = [layer.probabilities()[sequence].double().numpy() for layer in layers]
    return products(heads, **settings)[-1]


def deepstack_rollout(layers, **settings):
    """The mean of the rollouts to the last of the small Qwen3-VL's layers and to its branch."""
    return (dense_rollout(layers, 0, **settings) + dense_rollout(layers[:2], 0, **settings)) / 2


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load_model(save_small_qwen3_vl(tmp_path_factory.mktemp("qwen")), dtype="float32")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load_model(save_small_llava(tmp_path_factory.mktemp("llava")), dtype="float32")


def merge_matrix(rows, columns, merge, steps=1):
    """The share of each patch's output in each token, both row by row, from the definition."""
    matrix = np.zeros((steps, rows, columns, steps, rows * merge, columns * merge))
    for step, row, column in np.ndindex(steps, rows, columns):
        y, x = row * merge, column * merge
        matrix[step, row, column, step, y : y + merge, x : x + merge] = 1 / merge**2
    return matrix.reshape(steps * rows * columns, -1)


def raster(rows, columns, merge, steps=1):
    """Where each patch, row by row, is in the tower's sequence, from the definition."""
    order = []
    for step, row, column in np.ndindex(steps, rows, columns):
        for y, x in np.ndindex(merge, merge):
            order.append((step, row * merge + y, column * merge + x))
    places = {patch: place for place, patch in enumerate(order)}
    return [places[patch] for patch in np.ndindex(steps, rows * merge, columns * merge)]


SETTINGS = [{}, {"head_fusion": "max", "residual": 0.3}, {"discard_ratio": 0.4, "start_layer": 1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_qwen_from_decision_to_patches_is_one_product(qwen, settings):
    answer = qwen.generate(pictures((90, 130), (64, 200)), "compare", max_new_tokens=3)
    recording = qwen.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    tower = deepstack_rollout(recording["vision"], **settings)
    start = 0
    for image, (rows, columns) in zip(answer.images, [(3, 4), (2, 6)], strict=True):
        here = start + np.array(raster(rows, columns, 2))
        own = tower[np.ix_(here, here)]
        on_tokens = relevance[:, image.positions].double().numpy()
        expected = on_tokens @ merge_matrix(rows, columns, 2) @ own
        heatmaps = through_tower(recording, image, relevance, **settings)
        assert heatmaps.shape == (len(answer.tokens), 2 * rows, 2 * columns)
        np.testing.assert_allclose(heatmaps.flatten(1).double(), expected, atol=1e-6)
        assert image.patch_view.grid == (2 * rows, 2 * columns) and image.patch_view.token == 16
        start += len(here)


def shares(product, answer):
    """The answer's rows of a product, on its image tokens, scaled to sum to 1."""
    on_tokens = product[answer.rows][:, answer.image.positions]
    return on_tokens / on_tokens.sum(-1, keepdims=True)


def even_rollout(layers, **settings):
    """The rollout if every token attended evenly to itself and all before it, in float64."""
    even = np.tril(np.ones(layers[0].shape[1:]))
    even = [(even / even.sum(1, keepdims=True))[None]] * len(layers)
    return products(even, **settings)[-1]


@pytest.mark.parametrize("beyond_even", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("to_patches", "of_tower"), [(True, 0.2), (True, 0.5), (False, 0.5)])
def test_heatmaps_are_the_answers_rows(qwen, to_patches, of_tower, settings, beyond_even):
    answer = qwen.generate(pictures((90, 130)), "click", max_new_tokens=3)
    recording, image = qwen.record(answer), answer.image
    product = dense_rollout(recording["language"], 0, **settings)
    expected = product[answer.rows][:, image.positions]
    if beyond_even:
        even = even_rollout(recording["language"], **settings | {"discard_ratio": 0})
        expected = (shares(product, answer) - shares(even, answer)).clip(min=0)
    settings = settings | {"beyond_even": beyond_even, "tower_residual": of_tower}
    if to_patches:
        tower = deepstack_rollout(recording["vision"], residual=of_tower)
        here = raster(3, 4, 2)
        expected = expected @ merge_matrix(3, 4, 2) @ tower[np.ix_(here, here)]
    maps = heatmaps(recording, answer, to_patches=to_patches, **settings)
    grid = (image.patch_view if to_patches else image.view).grid
    assert maps.shape == (len(answer.tokens), *grid)
    np.testing.assert_allclose(maps.flatten(1).double(), expected, atol=1e-6)
    by_part = {part: recording[part] for part in ("language", "vision")}
    torch.testing.assert_close(
        heatmaps(by_part, answer, to_patches=to_patches, **settings), maps, rtol=0, atol=0
    )


def test_what_patches_receive_is_attention_summed_over_queries(qwen):
    answer = qwen.generate(pictures((90, 130)), "click", max_new_tokens=1)
    recording = qwen.record(answer)
    chosen = [recording["vision"][layer].probabilities()[0].double() for layer in (0, -1)]
    expected = torch.stack(chosen).mean((0, 1)).sum(0)[raster(3, 4, 2)].view(6, 8)
    received = received_on_patches(recording, answer.image, [0, -1])
    torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=1e-5)


def test_heatmaps_of_dense_layers_have_no_batch(llava):
    answer = llava.generate(pictures((40, 40)), "star", max_new_tokens=2, min_new_tokens=2)
    recorded = llava.record(answer)["language"]
    dense = [layer.probabilities()[0] for layer in recorded]
    torch.testing.assert_close(
        heatmaps({"language": dense}, answer, to_patches=False),
        heatmaps({"language": recorded}, answer, to_patches=False),
    )


def test_even_attention_has_nothing_beyond_even_attention(llava):
    answer = llava.generate(pictures((40, 40)), "star", max_new_tokens=2, min_new_tokens=2)
    even = even_attention(llava.record(answer)["language"])
    assert heatmaps({"language": even}, answer, to_patches=False).max() > 0.01
    beyond = heatmaps({"language": even}, answer, to_patches=False, beyond_even=True)
    assert beyond.max() < 1e-6


def test_heatmaps_of_a_batch_are_refused(llava):
    answer = llava.generate(pictures((40, 40)), "star", max_new_tokens=2, min_new_tokens=2)
    both = [layer.probabilities().repeat(2, 1, 1, 1) for layer in llava.record(answer)["language"]]
    with pytest.raises(ValueError, match="expected the layers of one answer, got a batch of 2"):
        heatmaps({"language": both}, answer, to_patches=False)


def test_heatmaps_of_several_pictures_are_refused(qwen):
    answer = qwen.generate(pictures((90, 130), (64, 200)), "compare", max_new_tokens=1)
    with pytest.raises(ValueError, match="expected one picture in the prompt, got 2"):
        heatmaps(qwen.record(answer), answer)


def test_qwen_video_stays_within_its_steps_in_time(qwen):
    answer = qwen.generate(pictures(*[(90, 130)] * 4), "what", max_new_tokens=2, frame_rate=1.0)
    recording = qwen.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    here = raster(3, 4, 2, steps=2)
    on_tokens = relevance[:, answer.image.positions].double().numpy()
    tower = deepstack_rollout(recording["vision"])[np.ix_(here, here)]
    expected = on_tokens @ merge_matrix(3, 4, 2, steps=2) @ tower
    heatmaps = through_tower(recording, answer.image, relevance)
    assert heatmaps.shape == (2, 2, 6, 8)
    np.testing.assert_allclose(heatmaps.flatten(1).double(), expected, atol=1e-6)
    by_step = answer.image.heatmaps(relevance).sum((-1, -2))
    torch.testing.assert_close(heatmaps.sum((-1, -2)), by_step)  # no relevance is lost


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_llava_from_decision_to_patches_is_one_product(llava, settings):
    prompt = WholePrompt("<image> <image> what colour ?")
    answer = llava.generate(pictures((60, 90), (80, 50)), prompt, max_new_tokens=2)
    recording = llava.record(answer)
    assert len(recording["vision"]) == 3  # the last one feeds nothing
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    for sequence, image in enumerate(answer.images):
        tower = dense_rollout(recording["vision"][:2], sequence, **settings)
        on_tokens = relevance[:, image.positions].double().numpy()
        expected = on_tokens @ tower[1:, 1:]  # without the class token
        heatmaps = through_tower(recording, image, relevance, **settings)
        np.testing.assert_allclose(heatmaps.flatten(1).double(), expected, atol=1e-6)
        assert image.patch_view.grid == image.view.grid == (4, 4)


@pytest.mark.parametrize(("chosen", "layers"), [(-1, 3), (-3, 1), (2, 2)])
def test_llava_takes_part_up_to_the_layer_that_feeds_it(tmp_path, chosen, layers):
    model = small_llava()
    model.config.vision_feature_layer = chosen
    model.save_pretrained(tmp_path)
    small_processor().save_pretrained(tmp_path)
    llava = load_model(tmp_path, dtype="float32")
    answer = llava.generate(pictures((60, 90)), "what ?", max_new_tokens=1, min_new_tokens=1)
    assert answer.image.patches.layers == layers


def test_features_of_several_layers_are_refused(tmp_path):
    model = small_llava()
    model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(ValueError, match=r"one vision_feature_layer, got \[-2, -1\]"):
        load_model(save_small_llava(tmp_path)).family.patches(model.config, small_processor(), [])


def test_one_row_alone_is_carried_on_too(llava):
    answer = llava.generate(pictures((60, 90))[0], "what", max_new_tokens=2, min_new_tokens=2)
    recording = llava.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    alone = through_tower(recording, answer.image, relevance[1])
    torch.testing.assert_close(alone, through_tower(recording, answer.image, relevance)[1])


@pytest.mark.parametrize("count", [2, 4])
def test_gradients_of_several_steps_in_time_are_refused(qwen, count):
    frames = pictures(*[(90, 130)] * 2 * count)
    answer = qwen.generate(frames, "what", max_new_tokens=2, frame_rate=1.0)
    with pytest.raises(ValueError, match=rf"ran {count} times .* gradients, expected .* picture"):
        qwen.record_gradients(answer)


def test_fuyu_has_no_tower_and_stays(tmp_path):
    fuyu = load_model(save_small_fuyu(tmp_path), dtype="float32")
    answer = fuyu.generate(pictures((100, 130)), "what is it?", max_new_tokens=2, min_new_tokens=2)
    recording = fuyu.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    carried = through_tower(recording, answer.image, relevance)
    torch.testing.assert_close(carried, answer.image.heatmaps(relevance))
    assert answer.image.patch_view == answer.image.view


@how(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.3]))
def test_carrying_back_is_multiplying_with_the_rollout(seed, residual, discard_ratio):
    rng = np.random.default_rng(seed)
    layers = list(rng.dirichlet(np.ones(7), (3, 2, 4, 7)))  # [batch head query key]
    relevance = rng.random((2, 5, 7))
    settings = {"residual": residual, "discard_ratio": discard_ratio}
    expected = relevance @ rollout(layers, **settings)
    np.testing.assert_allclose(carry_back(layers, relevance, **settings), expected, atol=1e-12)
    rows = carry_back([layer[0] for layer in layers], np.eye(7)[[3, 1]], **settings)
    np.testing.assert_allclose(
        rows, rollout_rows([layer[0] for layer in layers], [3, 1], **settings)
    )


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 4), (5, 3)])
def test_relevance_of_other_outputs_is_named(shape):
    with pytest.raises(ValueError, match=r"expected relevance .* batch of 1 and 4 outputs"):
        carry_back([np.full((4, 4), 0.25)], np.ones(shape))
