"""Where image tokens lie, asked of processor and model, against families' files and pictures."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from small_fuyu import save_small_fuyu
from small_llava import save_small_llava, small_llava, small_processor
from small_notebooks import run_here
from small_processors import ON_PIXELS, save_small, small_loaded
from small_processors import small_processor as small_processor_of
from small_qwen3_vl import save_small_qwen3_vl
from transformers import LlavaImageProcessor

from rolloutlib import explore, heatmaps, load_model, record_attention, rollout_rows
from rolloutlib.models.asked import Asked
from rolloutlib.models.geometry import Unplaced
from rolloutlib.models.limits import set_limits
from rolloutlib.models.origins import origins_of
from rolloutlib.models.owners import decoder_input, looking_at_itself
from rolloutlib.models.prompts import full_prompt, inputs_of

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/10_any_model.ipynb"
FOLDERS = ("gemma3", "idefics3", "internvl", "llava_next", "llava_onevision", "mistral3")
FOLDERS += ("paligemma", "qwen2_5_vl")


def noise(width, height):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))


def save_padding_llava(folder):
    small_llava().save_pretrained(folder)
    settings = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    padding = LlavaImageProcessor(do_pad=True, **settings)
    small_processor(image_processor=padding).save_pretrained(folder)
    return folder


SAVE = [save_small_llava, save_padding_llava, save_small_fuyu, save_small_qwen3_vl]
SHAPES = {"native": (64, 64), "wide": (300, 90), "tall": (97, 261), "small": (40, 48)}


@pytest.fixture(scope="module", params=SAVE, ids=lambda save: save.__name__)
def known(request, tmp_path_factory):
    return load_model(request.param(tmp_path_factory.mktemp("known")), dtype="float32")


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_the_general_way_agrees_with_the_familys_own_file(known, size):
    picture = noise(*size)
    asked = replace(known, family=Asked(known.family.model_type, known.family.prompt_template))
    inputs = known.prepare([picture], "?")
    [own], [general] = known.seen([picture], inputs), asked.seen([picture], inputs)
    expected = dict(zip(own.positions.tolist(), own.view.boxes(), strict=True))
    boxes = general.view.boxes()
    side = [*size, *size]
    for position, box in zip(general.positions.tolist(), boxes, strict=True):
        whole = expected.pop(position)
        np.testing.assert_allclose(np.clip(box, 0, side), np.clip(whole, 0, side), atol=0.75)
    for left, top, right, bottom in expected.values():  # what remains shows padding only
        assert right <= 0.75 or bottom <= 0.75 or left >= size[0] - 0.75 or top >= size[1] - 0.75


def test_the_table_of_families_claims_pixels_for_the_types_that_are_proved():
    table = (ROOT / "data/results/families.md").read_text()
    claimed = re.findall(r"^\| (\S+) \|.*\| on pixels \|$", table, re.MULTILINE)
    assert sorted(claimed) == sorted(ON_PIXELS)


@pytest.mark.parametrize("kind", ON_PIXELS)
def test_only_the_tokens_that_claim_a_square_move_with_it(kind):
    """Resampling reaches two pixels of the model's input, or of the picture, beyond a token."""
    model, picture = small_loaded(kind), noise(96, 64)
    inputs = model.prepare([picture], "what is this ?")
    [image] = model.seen([picture], inputs)
    claimed = dict(zip(image.positions.tolist(), image.boxes(), strict=True))
    reach = 2 * max(1, image.view.picture[0] / image.view.resized[0]) + 1
    for x, y in [(0, 0), (44, 31), (90, 58)]:
        changed = np.array(picture)
        changed[y : y + 5, x : x + 5] = 255 - changed[y : y + 5, x : x + 5]
        other = model.prepare([Image.fromarray(changed)], "what is this ?")
        with torch.no_grad(), looking_at_itself(model.model):
            before, after = (decoder_input(model.model, each) for each in (inputs, other))
        moved = (before != after).any(-1).nonzero().flatten().tolist()
        for position, (left, top, right, bottom) in claimed.items():
            across, down = min(right, x + 5) - max(left, x), min(bottom, y + 5) - max(top, y)
            if across > 1 and down > 1:
                assert position in moved
            elif across < -reach or down < -reach:
                assert position not in moved
        assert set(moved) <= claimed.keys()


def test_ramps_tell_where_numbers_of_a_known_processor_come_from():
    """It mirrors, crops, normalizes, pads and lists the rows backwards."""

    def process(pictures):
        cut = [np.pad(p[1:5, ::-1][::-1] / 85 - 1.5, ((0, 1), (0, 0), (0, 0))) for p in pictures]
        return {"pixel_values": torch.tensor(np.stack(cut)), "other": torch.ones(3)}

    found = origins_of(process, [(6, 7), (6, 7)])
    assert list(found) == ["pixel_values"]
    places = found["pixel_values"]
    assert places.shape == (2, 5, 7, 3, 3) and places[:, 4].isnan().all()
    for picture, row, column in np.ndindex(2, 4, 7):
        expected = torch.tensor([picture, 4.5 - row, 6.5 - column], dtype=torch.float64)
        torch.testing.assert_close(
            places[picture, row, column], expected.expand(3, 3), atol=1e-4, rtol=0
        )


def test_whole_numbers_tell_to_a_sixteenth_of_a_pixel_where_they_come_from():
    def process(pictures):
        if not all(isinstance(picture, Image.Image) for picture in pictures):
            raise TypeError("expected a PIL image")
        return {"pixel_values": torch.tensor(np.stack(pictures)[:, 3:]) / 1.0}

    places = origins_of(process, [(90, 300)])["pixel_values"][0, :, :, 0]
    rows, columns = np.mgrid[3.5:90, 0.5:300]
    np.testing.assert_allclose(places[..., 1], rows, atol=1 / 16)
    np.testing.assert_allclose(places[..., 2], columns, atol=1 / 16)


def test_processors_that_spoil_floats_are_given_whole_numbers():
    """As torchvision's `to_pil_image`, which takes floats for shares of white."""

    def process(pictures):
        shown = np.stack(pictures)
        whole = shown if shown.dtype == np.uint8 else shown * 255 % 256
        return {"pixel_values": torch.tensor(whole) / 1.0}

    places = origins_of(process, [(90, 300)])["pixel_values"][0, :, :, 0]
    rows, columns = np.mgrid[0.5:90, 0.5:300]
    np.testing.assert_allclose(places[..., 1], rows, atol=1 / 16)
    np.testing.assert_allclose(places[..., 2], columns, atol=1 / 16)


def test_processors_that_are_not_affine_are_refused():
    def process(pictures):
        return {"pixel_values": torch.tensor(np.stack(pictures)).double() ** 2}

    with pytest.raises(Unplaced, match="grey are no blend of those of black and white"):
        origins_of(process, [(6, 7)])


@pytest.mark.parametrize("kind", ["gemma4", "internvl"])
def test_whole_numbers_give_the_tokens_the_same_cells(kind, monkeypatch):
    model, picture = small_loaded(kind), noise(96, 64)
    inputs = model.prepare([picture], "what is this ?")
    [exact] = model.seen([picture], inputs)

    def rounded(process, sizes):
        def whole(pictures):
            if not all(isinstance(picture, Image.Image) for picture in pictures):
                raise TypeError("expected a PIL image")
            return process(pictures)

        return origins_of(whole, sizes)

    monkeypatch.setattr("rolloutlib.models.asked.origins_of", rounded)
    [coarse] = small_loaded(kind).seen([picture], inputs)
    assert torch.equal(coarse.positions, exact.positions) and coarse.view.grid == exact.view.grid
    assert 0 < abs(coarse.boxes() - exact.boxes()).max() < 0.75


@pytest.mark.parametrize("kind", ["emu3", "idefics2", "video_llava"])
def test_processors_that_want_whole_numbers_are_given_them(kind):
    processor, taken = small_processor_of(kind), []
    text = full_prompt(processor, Asked.of(kind, processor), "?", ["image"])
    smaller = {"size": {"longest_edge": 96, "shortest_edge": 32}} if kind == "idefics2" else {}

    def process(pictures):
        taken.append(type(pictures[0]))
        return inputs_of(processor, text, images=pictures, **smaller)

    [places] = origins_of(process, [(64, 96)]).values()
    assert taken[0] is np.ndarray and set(taken[1:]) == {Image.Image}
    *_, y, x = places.flatten(0, -2).T  # rising by rows and by columns, over almost all of it
    assert 62 < y.max() < 64 and y.min() < 2 and x.max() - x.min() > 60
    assert (places[..., 1].diff(dim=-2) > 0).all() and (places[..., 2].diff(dim=-1) > 0).all()


@pytest.mark.parametrize("error", [TypeError("f() got 2 arguments"), ValueError("3 tokens, not 4")])
def test_other_errors_are_never_taken_for_a_wish_for_whole_numbers(error):
    def process(pictures):
        if not isinstance(pictures[0], Image.Image):
            raise error
        return {"pixel_values": torch.tensor(np.stack(pictures)) / 1.0}

    with pytest.raises(type(error), match=re.escape(str(error))):
        origins_of(process, [(6, 7)])


def test_a_picture_that_leaves_no_trace_is_named():
    with pytest.raises(ValueError, match="same for black and white"):
        origins_of(lambda _: {"input_ids": torch.ones(2)}, [(6, 7)])


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_another_type_goes_through_the_notebook(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    save_small(kind, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    noise(96, 64).save(tmp_path / "noise.png")
    asked = {"image_path": str(tmp_path / "noise.png"), "prompt": "what is this ?"}
    files = {"model_id": str(tmp_path), "results_path": ""}
    left = run_here(NOTEBOOK, **asked, **files, max_new_tokens=3)
    plt.close("all")

    claimed = left["general"].positions[left["meets"]].tolist()
    assert claimed and set(claimed) <= set(left["moved"].nonzero().flatten().tolist())
    answer, image = left["answer"], left["answer"].image
    maps = heatmaps(answer.recording, answer)
    assert maps.shape == (3, *image.view.grid)
    relevance = rollout_rows(answer.recording["language"], answer.rows)
    on_tokens = relevance.reshape(3, -1)[:, image.positions].double().numpy()
    spread = np.zeros((3, *image.view.grid))  # from the definition: shares add up on the picture
    shares = torch.eye(on_tokens.shape[1]) if image.shares is None else image.shares
    for token, cells in enumerate(shares.numpy()):
        spread += on_tokens[:, token, None, None] * cells.reshape(image.view.grid)
    np.testing.assert_allclose(maps, spread, atol=1e-6)
    np.testing.assert_allclose(maps.sum((1, 2)), on_tokens.sum(1), rtol=1e-5)
    replayed = left["model"].record(replace(answer, recording=None))
    torch.testing.assert_close(heatmaps(replayed, answer), maps, atol=1e-6, rtol=1e-5)
    explore(answer)


def test_tokens_that_share_numbers_have_no_place_but_their_attention(tmp_path):
    """A SAM-like tower beside the other one convolves over its patches."""
    model = load_model(save_small("deepseek_vl_hybrid", tmp_path), dtype="float32")
    inputs = model.prepare([noise(96, 64)], "what is this ?")
    with pytest.raises(Unplaced, match="tokens share the picture's numbers: 100% of those in high"):
        model.seen([noise(96, 64)], inputs)
    answer = model.generate(noise(96, 64), "what is this ?", max_new_tokens=2, min_new_tokens=2)
    with pytest.raises(Unplaced, match="tokens share"):
        answer.image  # noqa: B018
    with record_attention(model.model.get_decoder()) as recording:
        model.model(**answer.inputs)
    assert rollout_rows(recording["language"], [-1]).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        *[(kind, "tokens share the") for kind in ("blip-2", "got_ocr2", "pp_chart2table")],
        ("git", "the picture has no tokens in the prompt"),  # which is as long as a batch
    ],
)
def test_types_whose_tokens_have_no_place_say_why(kind, why):
    assert small_loaded(kind).on_pixels().startswith(why)


FRAMES = [noise(96, 64).rotate(90 * turn).resize((96, 64)) for turn in range(5)]


def inverted(picture):
    return Image.eval(picture, lambda value: 255 - value)


# Frames of one time step, if not 1.
TOGETHER = dict.fromkeys(("cohere_compass", "glm5_next", "minimax_m3_vl", "muse_glimmer"), 2)
TOGETHER |= dict.fromkeys(("ernie4_5_vl_moe", "muse_spark", "qwen2_5_vl"), 2)
MIXED = ("cosmos3_edge", "gemma4", "gemma4_unified", "internvl", "llava_onevision", "minicpmv4_6")


@pytest.mark.parametrize("kind", [*TOGETHER, *MIXED])
def test_of_a_picture_beside_a_video_only_the_tokens_that_show_a_change_move(kind):
    model, picture, frames = small_loaded(kind), noise(48, 64), FRAMES[:3]

    def prepared(*shown):
        return model.prepare(list(shown), "what is this ?", frame_rate=2.0)

    def given(inputs):
        with torch.no_grad(), looking_at_itself(model.model):
            return decoder_input(model.model, inputs)

    before = prepared(picture, frames)
    still, video = model.seen([picture, frames], before)
    steps = tuple(range(0, 3, TOGETHER.get(kind, 1)))
    assert still.frames == () and len(video.frames) == 3
    assert video.steps == steps and video.view.grid[0] == len(steps)
    cells = torch.eye(len(video.positions)) if video.shares is None else video.shares
    in_step = cells.reshape(len(cells), len(steps), -1)[:, steps.index(2)].any(-1)
    frame = prepared(picture, [*frames[:2], inverted(frames[2])])
    other = prepared(inverted(picture), frames)
    for after, expected in ((frame, video.positions[in_step]), (other, still.positions)):
        moved = (given(before) != given(after)).any(-1).nonzero().flatten()
        assert moved.tolist() == sorted(expected.tolist())

    with torch.no_grad():
        plain = model.model(**before).logits
        with record_attention(model.model) as recording:
            recorded = model.model(**before).logits
    torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=0)
    whole = (1, *before["input_ids"].shape[1:] * 2)
    assert {layer.shape for layer in recording["language"]} == {whole}


@pytest.mark.parametrize(
    ("kind", "shown", "message"),
    [
        (
            "glm4v",
            [noise(48, 64), FRAMES],
            "Glm4vFor.* in one prompt, got a picture and a video: Im",
        ),
        ("kimi_k25", [FRAMES], "Kimi_K25ForConditionalGeneration takes .*, got a video: "),
    ],
)
def test_what_a_model_of_transformers_does_not_take_is_named(kind, shown, message):
    with pytest.raises(ValueError, match=message):
        small_loaded(kind).generate(shown, "what is this ?", frame_rate=2.0)


def test_a_video_is_asked_as_the_familys_own_file_says(tmp_path):
    own = load_model(save_small_qwen3_vl(tmp_path), dtype="float32")
    general = replace(own, family=Asked("qwen3_vl", ""))
    shown = [noise(96, 64), FRAMES, noise(64, 96)]
    inputs = own.prepare(shown, "?", frame_rate=2.0)
    for one, other in zip(own.seen(shown, inputs), general.seen(shown, inputs), strict=True):
        assert torch.equal(one.positions, other.positions)
        assert one.view.grid == other.view.grid and one.steps == other.steps
        np.testing.assert_allclose(one.boxes(), other.boxes(), atol=0.75)


def test_an_encoder_and_a_decoder_are_named():
    model = small_loaded("t5gemma2")
    inputs = model.prepare([noise(96, 64)], "what is this ?")
    with pytest.raises(Unplaced, match="read by an encoder"):
        model.seen([noise(96, 64)], inputs)
    with pytest.raises(ValueError, match="whose answer continues its prompt, got an encoder"):
        model.generate(noise(96, 64), "what is this ?")


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "idefics3", "llava_onevision"])
def test_several_pictures_have_tokens_of_their_own(kind):
    model, pictures = small_loaded(kind), [noise(96, 64), noise(40, 72), noise(64, 64)]
    inputs = model.prepare(pictures, "what is this ?")
    images = model.seen(pictures, inputs)
    assert [image.view.picture for image in images] == [(64, 96), (72, 40), (64, 64)]
    ends = [(image.positions.min(), image.positions.max()) for image in images]
    assert all(last < first for (_, last), (first, _) in pairwise(ends))
    for image, (height, width) in zip(images, [(64, 96), (72, 40), (64, 64)], strict=True):
        left, top, right, bottom = image.boxes().T
        assert left.min() < 1 and top.min() < 1 and right.max() > width - 1
        assert bottom.max() > height - 1


@pytest.mark.parametrize(
    ("kind", "fewer"), [("qwen2_5_vl", 2048), ("idefics3", 1024), ("internvl", 2048)]
)
def test_limits_of_pixels_are_kept_by_what_the_model_is_given(kind, fewer):
    model, picture = small_loaded(kind), noise(400, 300)
    before = model.prepare([picture], "?")["pixel_values"].numel()
    set_limits(model.processor, max_pixels=fewer)
    after = model.prepare([picture], "?")["pixel_values"].numel()
    thumbnail = 1024 if kind in ("idefics3", "internvl") else 0
    channels = 6 if kind == "qwen2_5_vl" else 3  # two equal frames for each patch
    assert after < before and after <= (fewer + thumbnail) * channels


@pytest.mark.parametrize(
    ("kind", "limits", "message"),
    [
        ("gemma3", {"max_pixels": 5000}, "a limit such as max_pixels, got Gemma3ImageProcessor"),
        ("internvl", {"max_pixels": 1000}, "at least 1024, one tile"),
        ("qwen2_5_vl", {"max_pixels": -1}, "max_pixels must be 0 or more, got -1"),
        ("qwen2_5_vl", {"max_pixels": 9000, "min_pixels": 9001}, "at most max_pixels, 9000"),
    ],
)
def test_limits_that_a_processor_does_not_have_are_refused(kind, limits, message):
    with pytest.raises(ValueError, match=message):
        set_limits(small_loaded(kind).processor, **limits)
