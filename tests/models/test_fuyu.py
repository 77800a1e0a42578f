"""Through the real processor and classes: where Fuyu's tokens are, and what they attend to."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_fuyu import save_small_fuyu, small_fuyu, small_processor
from test_llava import ramp
from transformers import BatchFeature

from rolloutlib import load_model, record_attention, rollout, rollout_rows
from rolloutlib.models.families import FAMILIES
from rolloutlib.overlay import to_picture

QUESTION = "what colour is the star?\n"
# (height, width): whole patches, none whole, below one patch, at the limit, above it.
SIZES = [
    (300, 300),
    (390, 510),
    (95, 130),
    (31, 61),
    (12, 20),
    (1, 1),
    (1080, 1920),
    (700, 1990),
    (1500, 400),
    (1333, 2477),
    (2160, 3840),
]
GRIDS = {(390, 510): (13, 17), (95, 130): (4, 5), (12, 20): (1, 1), (1080, 1920): (36, 64)}


def asked(processor, picture, text=QUESTION):
    inputs = processor(images=picture, text=text, return_tensors="pt")
    return inputs, FAMILIES["fuyu"].views(processor, inputs, [picture])[0]


def seen_by_tokens(inputs, view):
    """What each token's patch shows: red and green of every pixel, 0 to 255."""
    patches = inputs["image_patches"].reshape(-1, view.token, view.token, 3)
    return (patches[..., :2].numpy() + 1) / 2 * 255


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_where_the_processor_took_each_patch_from(size):
    processor, picture = small_processor(), ramp(*size)
    inputs, view = asked(processor, picture)
    assert view.picture == size and view.grid == GRIDS.get(size, view.grid)
    seen = seen_by_tokens(inputs, view)
    assert len(seen) == view.grid[0] * view.grid[1]
    scale = np.divide(view.picture, view.resized)
    limits = np.maximum(np.array(size[::-1]) - 1, 1)
    within = np.arange(view.token) + 0.5
    for (left, top, _, _), patch in zip(view.boxes(), seen, strict=True):
        x, y = left + within * scale[1], top + within * scale[0]
        shown = patch[np.ix_(y < size[0], x < size[1])]
        expected = np.stack(np.meshgrid(x[x < size[1]], y[y < size[0]]), -1) - 0.5
        # Reducing moves colours at the edge by less than a pixel of the reduced picture.
        unit = np.maximum(255 / limits, 1) * (1.5 if scale.max() > 1 else 1)
        assert (np.abs(shown - expected / limits * 255) <= unit).all()


@pytest.mark.parametrize("size", SIZES)
def test_the_prompt_has_a_row_of_tokens_for_each_row_of_patches(size):
    processor = small_processor()
    inputs, view = asked(processor, ramp(*size))
    signs = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    rows = (["|SPEAKER|"] * view.grid[1] + ["|NEWLINE|"]) * view.grid[0]
    text = ["▁", "what", "colour", "is", "the", "star", "?", "\n", "<0x04>"]
    assert signs == [*rows, "<s>", *text]


def test_nothing_is_enlarged_and_only_what_is_too_large_is_reduced():
    processor = small_processor()
    for size in SIZES:
        _, view = asked(processor, ramp(*size))
        fits = size[0] <= 1080 and size[1] <= 1920
        assert (view.resized == size) == fits
        assert view.resized[0] <= 1080 and view.resized[1] <= 1920


@pytest.mark.parametrize("size", [(95, 130), (300, 300), (1333, 2477)])
@pytest.mark.parametrize("corner", ["first", "last"])
def test_a_hot_token_lights_its_own_box(size, corner):
    _, view = asked(small_processor(), ramp(*size))
    token = 0 if corner == "first" else view.grid[0] * view.grid[1] - 1
    heatmap = np.zeros(view.grid)
    heatmap.flat[token] = 1
    pixels = to_picture(heatmap, view)
    assert pixels.shape == size and not np.isnan(pixels).any()
    ys, xs = np.nonzero(pixels)
    left, top, right, bottom = view.boxes()[token]
    expected = [left, top, min(right, size[1]), min(bottom, size[0])]
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], expected, atol=1)


def test_other_settings_of_the_processor_are_followed():
    processor = small_processor(
        size={"height": 120, "width": 90}, patch_size={"height": 15, "width": 15}
    )
    inputs, view = asked(processor, ramp(200, 100))
    assert (view.token, view.resized, view.grid) == (15, (120, 60), (8, 4))
    assert inputs["image_patches"].shape == (32, 15 * 15 * 3)


def test_oblong_patches_are_refused():
    processor = small_processor(patch_size={"height": 15, "width": 30})
    with pytest.raises(ValueError, match="expected square patches, got 15x30"):
        FAMILIES["fuyu"].views(processor, BatchFeature(), [ramp(90, 90)])


# --- the model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuyu(tmp_path_factory):
    return load_model(save_small_fuyu(tmp_path_factory.mktemp("small-fuyu")), dtype="float32")


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 130, 3), np.uint8))


@pytest.fixture(scope="module")
def answer(fuyu, picture):
    return fuyu.generate(picture, "what colour is it?", max_new_tokens=4, min_new_tokens=4)


def test_an_answer_finds_its_image_tokens_between_the_newlines(fuyu, answer):
    rows, columns = answer.image.view.grid
    assert (rows, columns) == (4, 5)
    expected = [row * (columns + 1) + column for row in range(rows) for column in range(columns)]
    assert answer.image.positions.tolist() == expected
    assert len(answer.tokens) == 4


def test_replay_rows_predict_the_generated_tokens(fuyu, answer):
    inputs = dict(answer.inputs) | {"input_ids": answer.sequence[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = fuyu.model(**inputs).logits[0]
    logits[:, fuyu.model.generation_config.eos_token_id] = -torch.inf  # it was told not to end
    assert logits[answer.rows].argmax(-1).tolist() == answer.sequence[-4:].tolist()


def test_a_recorded_answer_rolls_out(fuyu, answer):
    language = fuyu.record(answer)["language"]
    relevance = rollout_rows(language, answer.rows)
    torch.testing.assert_close(relevance, rollout(language)[:, answer.rows])
    assert answer.image.heatmaps(relevance[0]).shape == (4, 4, 5)


def test_two_pictures_are_refused(fuyu, picture):
    with pytest.raises(ValueError, match=r"1 \|SPEAKER\| tokens and 2 images"):
        fuyu.generate([picture, picture], "what is it?")


def eager_and_recorded(model, inputs):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    with torch.no_grad(), record_attention(model) as recording:
        model(**inputs)
    assert len(eager) == len(recording["language"]) == 3
    return zip(eager, recording["language"], strict=True)


def test_recorded_attention_equals_eager_attention(picture):
    inputs, _ = asked(small_processor(), picture)
    for eager, layer in eager_and_recorded(small_fuyu(), inputs):
        torch.testing.assert_close(layer.probabilities(), eager, atol=1e-6, rtol=0)
        assert eager[..., 20:, :].max() > 0.2  # not just an even spread


def test_recorded_attention_equals_eager_attention_with_padding(picture):
    pictures = [picture, picture.resize((40, 200)), picture.resize((61, 31))]
    processor = small_processor()
    texts = [QUESTION, "is it red?\n", "where is it?\n"]
    inputs = processor(images=pictures, text=texts, return_tensors="pt")
    assert (inputs["attention_mask"][:, 0] == 0).sum() == 2  # padded on the left
    seen = inputs["attention_mask"][:, None, :, None].bool()
    for eager, layer in eager_and_recorded(small_fuyu(), inputs):
        difference = (layer.probabilities() - eager).abs().where(seen, 0)
        assert difference.max() <= 1e-6


def test_a_padded_batch_generates_what_single_prompts_do(fuyu, picture):
    pictures, texts = [picture, picture.resize((40, 200))], [QUESTION, "is it red?\n"]
    new = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    batch = fuyu.processor(images=pictures, text=texts, return_tensors="pt")
    together = fuyu.model.generate(**batch, **new)[:, -3:]
    for row, single, text in zip(together, pictures, texts, strict=True):
        alone = fuyu.processor(images=single, text=text, return_tensors="pt")
        assert fuyu.model.generate(**alone, **new)[0, -3:].tolist() == row.tolist()


def test_a_folder_of_the_8b_shape_loads(tmp_path, picture):
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 1,
        "num_attention_heads": 64,
        "max_position_embeddings": 16384,
    }
    save_small_fuyu(tmp_path, text=shape, dtype=torch.bfloat16)
    fuyu = load_model(tmp_path)
    answer = fuyu.generate(picture, "what is it?", max_new_tokens=1, min_new_tokens=1)
    relevance = rollout_rows(fuyu.record(answer)["language"], answer.rows)
    torch.testing.assert_close(relevance.sum(-1), torch.ones(1, 1))
