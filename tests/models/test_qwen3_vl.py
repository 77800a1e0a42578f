"""Through the real processor and classes: where Qwen3-VL's tokens are, and what they attend to."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_llava import save_small_llava
from small_qwen3_vl import save_small_lora, save_small_qwen3_vl, small_processor, small_qwen3_vl
from test_llava import ramp
from transformers.models.qwen3_vl import modeling_qwen3_vl
from transformers.models.qwen3_vl.modeling_qwen3_vl import eager_attention_forward

from rolloutlib import (
    RecordedBlocks,
    attention_received,
    load_model,
    record_attention,
    rollout,
    rollout_rows,
    through_tower,
)
from rolloutlib.models.families import FAMILIES
from rolloutlib.models.families.qwen3_vl import merge_order
from rolloutlib.overlay import to_picture

PROMPT = "<|vision_start|><|image_pad|><|vision_end|>click"
# (height, width): whole tokens, none whole, one token, enlarged, far from square, reduced.
SIZES = [(128, 128), (90, 130), (32, 32), (33, 47), (40, 700), (700, 45), (1500, 1100)]
GRIDS = {(128, 128): (4, 4), (90, 130): (3, 4), (32, 32): (2, 2), (40, 700): (1, 22)}


def asked(processor, picture):
    inputs = processor(images=[picture], text=PROMPT, return_tensors="pt")
    return inputs, FAMILIES["qwen3_vl"].views(processor, inputs, [picture])[0]


def patch_behind(view):
    [behind] = FAMILIES["qwen3_vl"].patches(small_qwen3_vl().config, small_processor(), [view])
    return behind


def colours_of_patches(pixel_values):
    """Mean red and green of each patch in the tower's order, 0 to 255."""
    patches = pixel_values.reshape(len(pixel_values), 3, 2, 16, 16)
    return (patches.mean((2, 3, 4))[:, :2].numpy() + 1) / 2 * 255


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_where_the_processor_took_each_patch_and_token_from(size):
    inputs, view = asked(small_processor(), ramp(*size))
    assert view.picture == size and view.grid == GRIDS.get(size, view.grid)
    assert view.resized == view.window == tuple(32 * n for n in view.grid)
    behind = patch_behind(view)
    colours = colours_of_patches(inputs["pixel_values"])
    in_tokens = colours[behind.merged.numpy()].mean(1)
    for seen, boxes, pitch in [
        (colours[behind.positions.numpy()], behind.view.boxes(), 16),
        (in_tokens, view.boxes(), 32),
    ]:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        limits = np.array([size[1], size[0]])
        expected = (centres - 0.5) / np.maximum(limits - 1, 1) * 255
        # Resizing moves no colour by more than a fifth of a patch, or two grey levels.
        step = 255 * pitch / np.array([view.resized[1], view.resized[0]])
        inner = (np.abs(expected - 127.5) < 115).all(1)
        assert (np.abs(seen - expected)[inner] <= np.maximum(step / 5, 2)).all()


@pytest.mark.parametrize("grid", [(4, 6), (2, 2), (3, 4, 8)])
def test_the_order_of_the_tower_is_token_by_token(grid):
    *time, rows, columns = grid
    expected = []
    for step in range(time[0] if time else 1):
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                corner = step * rows * columns + row * columns + column
                expected += [corner, corner + 1, corner + columns, corner + columns + 1]
    assert merge_order(grid, 2).tolist() == expected


@pytest.mark.parametrize("size", [(90, 130), (700, 45)])
def test_a_hot_patch_lights_its_own_box(size):
    _, view = asked(small_processor(), ramp(*size))
    behind = patch_behind(view)
    for raster in (0, 5, len(behind.positions) - 1):
        on_sequence = np.zeros(len(behind.positions))
        on_sequence[behind.positions[raster]] = 1
        pixels = to_picture(behind.heatmaps(on_sequence), behind.view)
        ys, xs = np.nonzero(pixels)
        extent = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(extent, behind.view.boxes()[raster], atol=1)


# --- the model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_qwen3_vl(tmp_path_factory.mktemp("checkpoints") / "small-qwen3-vl")


@pytest.fixture(scope="module")
def lora(tmp_path_factory, folder):
    base = load_model(folder, dtype="float32").model
    return save_small_lora(tmp_path_factory.mktemp("adapters") / "small-lora", base)


@pytest.fixture(scope="module")
def qwen(folder, lora):
    return load_model(folder, dtype="float32", adapter_id=lora)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(90, 130), (64, 200)]
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def answer(qwen, pictures):
    return qwen.generate(pictures[0], "click", max_new_tokens=4, min_new_tokens=4)


@pytest.fixture
def eager(monkeypatch):
    """A function that runs a model under "eager": its own attention, by module, calls in order."""

    def run(model, inputs):
        seen = {}

        def watch(module, *args, **kwargs):
            output, weights = eager_attention_forward(module, *args, **kwargs)
            seen.setdefault(module, []).append(weights)
            return output, weights

        monkeypatch.setattr(modeling_qwen3_vl, "eager_attention_forward", watch)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            model(**inputs)
        model.set_attn_implementation("sdpa")
        return [(name, seen[m]) for name, m in model.named_modules() if m in seen]

    return run


def recorded(model, inputs):
    with torch.no_grad(), record_attention(model) as recording:
        model(**inputs)
    return recording


def assert_equal_to_eager(recording, expected):
    layers = recording[""]
    assert sorted(layer.name for layer in layers) == sorted(name for name, _ in expected)
    by_name = {layer.name: layer for layer in layers}
    for name, calls in expected:
        whole = torch.zeros(calls[0].shape[1], *by_name[name].shape[1:])
        start = 0
        for call in calls:  # one call for each picture, or each time step
            stop = start + call.shape[-1]
            whole[:, start:stop, start:stop] = call[0]
            start = stop
        torch.testing.assert_close(by_name[name].probabilities()[0], whole, atol=1e-5, rtol=0)
        assert whole.max() > 0.2  # not just an even spread


@contextmanager
def merged(qwen):
    qwen.model.merge_adapter()
    yield
    qwen.model.unmerge_adapter()


ADAPTER = {"on": lambda qwen: nullcontext(), "off": lambda q: q.without_adapter(), "merged": merged}


def inputs_of(qwen, pictures, kind):
    if kind == "one picture":
        return qwen.prepare(pictures[:1], "click")
    if kind == "two pictures":
        return qwen.prepare(pictures, "compare")
    if kind == "picture, video, picture":
        shown = [pictures[0], [pictures[1].rotate(turn) for turn in range(3)], pictures[1]]
        return qwen.prepare(shown, "compare", frame_rate=2.0)
    return qwen.prepare([pictures[0].rotate(turn) for turn in range(5)], "what", frame_rate=2.0)


@pytest.mark.parametrize("adapter", ADAPTER)
@pytest.mark.parametrize(
    "kind", ["one picture", "two pictures", "video", "picture, video, picture"]
)
def test_recorded_attention_equals_what_the_model_computes(qwen, pictures, eager, kind, adapter):
    inputs = inputs_of(qwen, pictures, kind)
    with ADAPTER[adapter](qwen):
        expected = eager(qwen.model, inputs)
        recording = recorded(qwen.model, inputs)
    assert len(recording["vision"]) == 3 and len(recording["language"]) == 4
    assert_equal_to_eager(recording, expected)


def test_a_merged_adapter_attends_as_an_adapter_does(qwen, pictures):
    inputs = inputs_of(qwen, pictures, "two pictures")
    recordings = {}
    for name, within in ADAPTER.items():
        with within(qwen):
            recordings[name] = [layer.probabilities() for layer in recorded(qwen.model, inputs)[""]]
    for on, off, inside in zip(*recordings.values(), strict=True):
        torch.testing.assert_close(inside, on, atol=1e-5, rtol=0)
        assert (on - off).abs().max() > 0.01


def test_pictures_do_not_see_each_other_and_are_one_layer(qwen, pictures):
    vision = recorded(qwen.model, inputs_of(qwen, pictures, "two pictures"))["vision"]
    assert all(isinstance(layer, RecordedBlocks) for layer in vision)
    layer, sizes = vision[0], [6 * 8, 4 * 12]
    assert layer.shape == (1, sum(sizes), sum(sizes))
    whole = layer.probabilities()
    assert (whole[:, :, : sizes[0], sizes[0] :] == 0).all()
    assert (whole[:, :, sizes[0] :, : sizes[0]] == 0).all()
    rows = torch.tensor([50, 3, 47, 48])
    torch.testing.assert_close(layer.probabilities(rows), whole[:, :, rows])
    for how in ("mean", "max", "min"):
        fused = getattr(whole, {"mean": "mean", "max": "amax", "min": "amin"}[how])(1)
        torch.testing.assert_close(layer.fused(rows, how), fused[:, rows])
    dense = [each.probabilities() for each in vision]
    torch.testing.assert_close(rollout(vision), rollout(dense))
    torch.testing.assert_close(rollout_rows(vision, rows), rollout_rows(dense, rows))


def test_each_picture_of_two_is_seen_as_if_alone(qwen, pictures):
    both = recorded(qwen.model, inputs_of(qwen, pictures, "two pictures"))["vision"]
    alone = recorded(qwen.model, qwen.prepare(pictures[1:], "click"))["vision"]
    for layer, expected in zip(both, alone, strict=True):
        part = layer.probabilities()[:, :, 48:, 48:]
        torch.testing.assert_close(part, expected.probabilities(), atol=1e-5, rtol=0)


def test_two_passes_are_not_one_layer_in_blocks(qwen, pictures):
    inputs = inputs_of(qwen, pictures, "two pictures")
    with torch.no_grad(), record_attention(qwen.model) as recording:
        qwen.model(**inputs)
        qwen.model(**inputs)
    for part in ("vision", "language"):
        with pytest.raises(ValueError, match=r"ran \d times while recording, expected once"):
            recording[part]


def test_generation_with_a_cache_records_what_a_replay_does(qwen, pictures):
    inputs = qwen.prepare(pictures, "click")
    with record_attention(qwen.model) as recording:
        qwen.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    replay = qwen.record(qwen.generate(pictures, "click", max_new_tokens=3, min_new_tokens=3))
    for part in ("vision", "language"):
        for layer, replayed in zip(recording[part], replay[part], strict=True):
            # the last token was never given to the model
            seen = [slice(length) for length in layer.shape[1:]]
            expected = replayed.probabilities()[..., *seen]
            torch.testing.assert_close(layer.probabilities(), expected, atol=1e-5, rtol=0)


def test_an_answer_finds_the_tokens_of_each_picture(qwen, pictures):
    answer = qwen.generate(pictures, "compare", max_new_tokens=2, min_new_tokens=2)
    assert [image.view.grid for image in answer.images] == [(3, 4), (2, 6)]
    pad = qwen.model.config.image_token_id
    ids = answer.sequence.tolist()
    expected = [position for position, number in enumerate(ids) if number == pad]
    assert [p for image in answer.images for p in image.positions.tolist()] == expected


def test_a_video_has_a_map_for_each_step_in_time(qwen, pictures):
    frames = [pictures[0].rotate(10 * turn) for turn in range(5)]
    answer = qwen.generate(frames, "what", max_new_tokens=2, min_new_tokens=2, frame_rate=2.0)
    assert answer.image.view.grid == (3, 3, 4)  # two frames per step, the last one twice
    assert answer.image.patches.view.grid == (3, 6, 8)
    recording = qwen.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    heatmaps = answer.image.heatmaps(relevance)
    assert heatmaps.shape == (2, 3, 3, 4)
    torch.testing.assert_close(heatmaps[1].flatten(), relevance[1, answer.image.positions])
    assert to_picture(heatmaps[0, 2], answer.image.view).shape == (90, 130)
    vision = recording["vision"]
    received = answer.image.patches.heatmaps(attention_received(vision)[0])
    assert received.shape == (3, 6, 8) and vision[0].shape == (1, 144, 144)


def test_replay_rows_predict_the_generated_tokens(qwen, answer):
    length = len(answer.sequence)
    inputs = dict(answer.inputs) | {"input_ids": answer.sequence[None]}
    inputs["attention_mask"] = torch.ones(1, length, dtype=torch.long)
    inputs["mm_token_type_ids"] = F.pad(
        inputs["mm_token_type_ids"], (0, length - inputs["mm_token_type_ids"].shape[1])
    )
    with torch.no_grad():
        logits = qwen.model(**inputs).logits[0]
    logits[:, qwen.model.generation_config.suppress_tokens] = -torch.inf
    assert logits[answer.rows].argmax(-1).tolist() == answer.sequence[-4:].tolist()


def test_an_answer_with_the_adapter_is_replayed_without_it(qwen, folder, answer):
    with qwen.without_adapter():
        off = qwen.record(answer)["language"]
    bare = load_model(folder, dtype="float32").record(answer)["language"]
    on = qwen.record(answer)["language"]
    for one, other, adapted in zip(off, bare, on, strict=True):
        torch.testing.assert_close(one.probabilities(), other.probabilities(), atol=1e-5, rtol=0)
        assert (one.probabilities() - adapted.probabilities()).abs().max() > 0.01


def test_a_folder_of_the_8b_shape_loads(tmp_path, pictures):
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    text = {
        "hidden_size": 4096,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": rope | {"mrope_interleaved": True},
    }
    tower = {"depth": 2, "hidden_size": 1152, "num_heads": 16, "deepstack_visual_indexes": []}
    save_small_qwen3_vl(tmp_path, text=text, vision=tower, dtype=torch.bfloat16)
    qwen = load_model(tmp_path)
    answer = qwen.generate(pictures[0], "click", max_new_tokens=1, min_new_tokens=1)
    recording = qwen.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    torch.testing.assert_close(relevance.sum(-1), torch.ones(1))
    on_patches = through_tower(recording, answer.image, relevance)
    torch.testing.assert_close(on_patches.sum(), answer.image.heatmaps(relevance).sum())


# --- what is refused ----------------------------------------------------------------------------


def test_no_adapter_can_be_switched_off_where_there_is_none(folder):
    bare = load_model(folder)
    with pytest.raises(ValueError, match="expected a model with an adapter, got Qwen3VL"):
        with bare.without_adapter():
            pass


@pytest.mark.parametrize("size", [(31, 200), (200, 31), (5, 5)])
def test_a_picture_below_one_token_is_named(qwen, size):
    with pytest.raises(ValueError, match=rf"at least 32x32 pixels.*got {size[0]}x{size[1]}"):
        qwen.generate(Image.new("RGB", size[::-1]), "click", max_new_tokens=1)


def test_frames_of_different_sizes_are_named(qwen, pictures):
    with pytest.raises(ValueError, match=r"frames of one size, got \[\(130, 90\), \(200, 64\)\]"):
        qwen.generate(pictures, "what", frame_rate=2.0)


@pytest.mark.parametrize("count", [0, 1])
def test_a_video_of_too_few_frames_is_named(qwen, pictures, count):
    with pytest.raises(ValueError, match=r"at least (2 frames, got 1|one picture, got none)"):
        qwen.generate(pictures[:1] * count, "what", frame_rate=2.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_frame_rate_is_above_zero(qwen, pictures, rate):
    with pytest.raises(ValueError, match=f"frame_rate must be above 0 .* got {rate}"):
        qwen.generate(pictures[:1] * 4, "what", frame_rate=rate)


def test_a_model_without_video_says_so(tmp_path, pictures):
    llava = load_model(save_small_llava(tmp_path))
    with pytest.raises(ValueError, match="expected a model that takes video, got llava"):
        llava.generate(pictures[:1] * 4, "what ?", frame_rate=2.0)
