import base64
import gc
import io
import json
import re
import weakref
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets.widgets.widget import _instances
from PIL import Image
from reference import products, rows_to_one
from small_fuyu import save_small_fuyu
from small_llava import save_small_llava
from small_qwen3_vl import save_small_qwen3_vl

from rolloutlib import explore, load_model, rollout_rows, through_tower
from rolloutlib.evaluate import check_peak
from rolloutlib.evaluate.figures import FRAMES, plot_trust
from rolloutlib.evaluate.methods import BEYOND, METHODS, evidence_of
from rolloutlib.explorer.answers import compare, explore_clip, words_of
from rolloutlib.explorer.browser import STYLE
from rolloutlib.explorer.controls import parts
from rolloutlib.explorer.maps import Heatmaps, Mark
from rolloutlib.explorer.widget import COLOURS, DISPLAYS, Explorer
from rolloutlib.files.pictures import upright_rgb
from rolloutlib.grid import View
from rolloutlib.overlay import blend, emphasize, outline, overlay, to_picture

rng = np.random.default_rng(0)
# 3 x 4 tokens of 10 pixels, cropped from the middle of a wider picture.
VIEW = View((30, 60), (30, 60), (0, 10), (30, 40), 10, (3, 4))
PICTURE = Image.fromarray(rng.integers(0, 256, (30, 60, 3), dtype=np.uint8))
WORDS = ["what", " is", " blue", " sky"]


def maps(words=4, pictures=1, **how):
    return Heatmaps(list(rng.random((pictures, words, 3, 4)) / 20), **how)


def single(**look):
    return Explorer([PICTURE], [VIEW], WORDS, {"": {"": MAPS}}, prompt=2, **look)


PLAIN = {"to_patches": False, "beyond_even": False, "residual": 0.5}  # the rollout itself
MAPS = Heatmaps([rng.random((4, 3, 4)) / 20], rng.random((4, 4)) / 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_small_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def answer(model):
    picture = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    return model.generate(picture, "what colour is the star ?", max_new_tokens=3, min_new_tokens=3)


def test_an_answer_recorded_while_generating_is_explored_as_a_replayed_one(model, answer):
    asked = {"max_new_tokens": 3, "min_new_tokens": 3}
    recorded = model.generate(answer.image.picture, answer.prompt, record=True, **asked)
    shown, replayed = (received(explore(one)) for one in (recorded, answer))
    assert recorded.recording["language"][0].shape[2] == len(recorded.sequence) - 1
    np.testing.assert_allclose(shown, replayed, atol=1e-5)


@pytest.fixture
def explorer(answer):
    return explore(answer)


def received(explorer):
    """The rows of relevance as the browser reads them."""
    [panel] = explorer.maps.panels
    peaks = np.array([sheet["peaks"] for sheet in panel["sheets"]]).ravel()
    codes = np.frombuffer(explorer.maps.codes, "<u2").reshape(len(peaks), -1)
    return codes / 65535 * peaks[:, None]


# An answer


def test_words_are_all_that_was_asked_and_answered(explorer, answer, model):
    asked = "USER: what colour is the star ? ASSISTANT:".split()
    assert [word.strip() for word in explorer.maps.words[: explorer.maps.prompt]] == asked
    assert explorer.maps.words[explorer.maps.prompt :] == answer.words


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"start_layer": 2},
        {"head_fusion": "max", "residual": 0.3},
        {"discard_ratio": 0.4},
        {"receptive_field": True, "residual": 0.8},
    ],
)
@pytest.mark.parametrize("by", ["control", "argument"])
def test_each_word_has_the_row_of_the_rollout_that_made_it(answer, model, chosen, by):
    explorer = explore(answer, **(PLAIN | chosen if by == "argument" else PLAIN))
    greet(explorer)
    for name, value in chosen.items():
        if by == "control":
            explorer._controls[name].value = value
        assert getattr(explorer.settings, name) == value
    layers = [
        layer.probabilities()[0].double().numpy() for layer in model.record(answer)["language"]
    ]
    whole = products(layers, **chosen)[-1]
    image = answer.image.positions.numpy()
    words = np.setdiff1d(np.arange(len(answer.sequence)), image)
    made_by = np.r_[words[: explorer.maps.prompt], answer.rows.numpy()]
    expected = whole[made_by] / whole[made_by].sum(1, keepdims=True)
    expected = np.c_[expected[:, image], expected[:, words]]
    np.testing.assert_allclose(received(explorer), expected, atol=1e-5)


SAVE = {"llava": save_small_llava, "fuyu": save_small_fuyu, "qwen": save_small_qwen3_vl}


@pytest.mark.parametrize("family", SAVE)
def test_by_default_it_shows_the_map_that_08_scores(tmp_path, family):
    model = load_model(SAVE[family](tmp_path), dtype="float32")
    picture = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    answer = model.generate(picture, "what star ?", max_new_tokens=5, min_new_tokens=5)
    expected = METHODS[BEYOND].heatmap(evidence_of(model, answer))
    explorer = explore(answer)
    assert explorer.settings.beyond_even and explorer.settings.residual == 0.9
    assert "residual 0.9, order taken out" in explorer.maps.made
    assert ("vision tower, residual 0.5" in explorer.maps.made) == (family != "fuyu")
    np.testing.assert_allclose(explorer.shown_map("")[0], expected, atol=1e-6)


def test_order_is_taken_out_on_the_picture_and_among_the_words(answer, model):
    explorer = explore(answer, to_patches=False)
    layers = [one.probabilities()[0].double().numpy() for one in model.record(answer)["language"]]
    even = [(layer > 0) / (layer > 0).sum(-1, keepdims=True) for layer in layers]
    words, shares = words_of(answer), []
    for places in (answer.image.positions.numpy(), words.positions.numpy()):
        own, alike = (
            products(some, residual=0.9)[-1][words.rows][:, places] for some in (layers, even)
        )
        shares.append(np.maximum(0, rows_to_one(own) - rows_to_one(alike)))
    shares[1] *= 1 - shares[0].sum(1, keepdims=True)
    np.testing.assert_allclose(received(explorer), np.hstack(shares), atol=1e-5)
    greet(explorer)
    explorer._controls["beyond_even"].value = False
    np.testing.assert_allclose(received(explorer).sum(1), 1, atol=1e-3)


def test_maps_can_be_carried_on_to_the_patches(answer, model):
    rows = answer.rows
    recording = model.record(answer)
    relevance = rollout_rows(recording["language"], rows, residual=0.8)[0]
    expected = through_tower(recording, answer.image, relevance, residual=0.7).flatten(1)
    explorer = explore(answer, beyond_even=False, residual=0.8, tower_residual=0.7)
    patches = np.prod(answer.image.patch_view.grid)
    np.testing.assert_allclose(received(explorer)[-len(rows) :, :patches], expected, atol=1e-5)


def test_a_word_of_several_tokens_has_their_mean_and_is_drawn_on_by_their_sum(tmp_path):
    qwen = load_model(save_small_qwen3_vl(tmp_path), dtype="float32")  # a token is a byte
    pictures = [Image.new("RGB", (64, 64), (90, 0, 0)), Image.new("RGB", (64, 96))]
    inputs = qwen.prepare(pictures, "wo ist 😀?")
    ids = qwen.processor.tokenizer("ein Stern 😀", return_tensors="pt")["input_ids"]
    sequence = torch.cat([inputs["input_ids"], ids], 1)
    answer = qwen.answer(pictures, "wo ist 😀?", inputs, sequence)
    explorer, words = explore(answer, **PLAIN), words_of(answer)
    assert explorer.maps.words == words.texts
    assert words.texts[words.prompt :] == ["ein", " Stern", " 😀"]
    asked = [word.strip() for word in words.texts[: words.prompt]]
    assert "😀" in asked and "<|vision_start|>" in asked and "�" not in "".join(asked)
    assert [t for word in words.texts for t in word.tokens] == list(range(len(words.positions)))
    rows = rollout_rows(qwen.record(answer)["language"], words.rows)[0]
    rows /= rows.sum(-1, keepdim=True)
    image = torch.cat([one.positions for one in answer.images])
    for number, word in enumerate(words.texts):
        row = rows[word.tokens].mean(0)
        on_words = [row[words.positions[other.tokens]].sum() for other in words.texts]
        expected = [*row[image].tolist(), *on_words]
        np.testing.assert_allclose(received(explorer)[number], expected, atol=1e-5)


@pytest.mark.parametrize("to_patches", [False, True])
def test_steps_of_a_video_are_pictures_in_time(tmp_path, to_patches):
    qwen = load_model(save_small_qwen3_vl(tmp_path))
    frames = [Image.new("RGB", (130, 90), (50 * turn, 0, 0)) for turn in range(5)]
    answer = qwen.generate(frames, "what", max_new_tokens=2, min_new_tokens=2, frame_rate=2.0)
    explorer = explore(answer, **(PLAIN | {"to_patches": to_patches}))
    sent = explorer.maps.pictures
    assert [picture["label"] for picture in sent] == ["frames 0–1", "frames 2–3", "frame 4"]
    grid = [6, 8] if to_patches else [3, 4]  # two frames per step, the last one twice
    assert [picture["grid"] for picture in sent] == [grid] * 3
    shown = [Image.open(io.BytesIO(picture["data"])).getpixel((5, 5))[0] for picture in sent]
    np.testing.assert_allclose(shown, [0, 100, 200], atol=3)
    recording = qwen.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)[0]
    image = answer.image
    if to_patches:
        expected = through_tower(recording, image, relevance)
    else:
        expected = relevance[:, image.positions]
    rows = received(explorer)[-2:, : 3 * np.prod(grid)]
    np.testing.assert_allclose(rows, expected.flatten(1), atol=1e-5)


def test_settings_out_of_range_are_refused(answer):
    with pytest.raises(ValueError, match=r"residual must be in \[0, 1\], got 1.5"):
        explore(answer, residual=1.5)
    with pytest.raises(ValueError, match="start_layer"):
        explore(answer, start_layer=99)
    with pytest.raises(ValueError, match=r"tower residual must be in \[0, 1\], got -1"):
        explore(answer, tower_residual=-1)


def test_nothing_in_the_picture_is_relevant_for_words_before_it(explorer, answer):
    before = int(answer.image.positions[0])
    assert before > 0
    assert not received(explorer)[:before, : len(answer.image.positions)].any()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1 / 12), min_size=12, max_size=12))
def test_what_the_browser_gets_is_exact_to_half_a_step_of_the_highest(values):
    sheet = Heatmaps([np.array(values).reshape(1, 3, 4)])
    explorer = Explorer([PICTURE], [VIEW], ["all"], {"": {"": sheet}})
    error = np.abs(received(explorer)[0, :12] - values)
    assert error.max() <= max(values) / 65535 / 2 * (1 + 1e-6)


def test_sixty_four_words_on_a_large_picture_stay_far_below_five_megabytes():
    view = View((3000, 4000), (336, 448), (0, 56), (336, 336), 14, (24, 24))
    noise = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    sheet = Heatmaps([rng.random((64, 24, 24))], rng.random((64, 64)))
    words = [f"word{number}" for number in range(64)]
    explorer = Explorer([noise.resize((4000, 3000))], [view], words, {"": {"": sheet}})
    [sent] = explorer.maps.pictures
    assert max(sent["width"], sent["height"]) == 1600
    as_base64 = 4 / 3 * (len(sent["data"]) + len(explorer.maps.codes))
    assert as_base64 < 3e6


# Selecting and drawing in Python


def test_nothing_pinned_shows_the_whole_answer():
    assert single().shown == [2, 3]


@pytest.mark.parametrize("combine", ["mean", "max"])
@pytest.mark.parametrize("pinned", [[], [1], [0, 3]])
def test_saved_picture_is_the_overlay_of_the_pinned_words(tmp_path, pinned, combine):
    look = {"power": 2.0, "blur": 0.25, "opacity": 0.75, "colours": "magma"}
    explorer = single(combine=combine, **look)
    explorer.selected = pinned
    chosen = MAPS.on_pictures[0][pinned or [2, 3]]
    heatmap = chosen.mean(0) if combine == "mean" else chosen.max(0)
    look["blur_tokens"] = look.pop("blur")
    saved = np.asarray(Image.open(explorer.save(tmp_path / "map.png")))
    np.testing.assert_array_equal(saved, overlay(PICTURE, heatmap, VIEW, **look))


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_maps_lie_on_the_picture_that_the_model_saw(tmp_path, mode):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    levels = np.linspace(0, 65535, 30 * 60).astype(np.uint16).reshape(30, 60)
    stored = Image.fromarray(levels if mode == "I;16" else levels.astype(np.uint8)).convert(mode)
    stored.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    explorer = Explorer([Image.open(file)], [VIEW], WORDS, {"": {"": MAPS}}, opacity=0.0)
    seen = upright_rgb(Image.open(file))
    assert seen.size == (60, 30)
    with Image.open(explorer.save(tmp_path / "saved.png")) as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(seen))
    [sent] = explorer.maps.pictures
    assert (sent["width"], sent["height"]) == (60, 30)
    assert np.abs(np.asarray(Image.open(io.BytesIO(sent["data"]))).astype(int) - seen).mean() < 5


def test_a_word_that_is_not_there_cannot_be_pinned():
    explorer = single()
    with pytest.raises(traitlets.TraitError, match=r"numbers of words in \[0, 3\], got \[4\]"):
        explorer.selected = [1, 4]


def test_a_map_of_zeros_leaves_the_picture_bare(tmp_path):
    nothing = Heatmaps([np.zeros((4, 3, 4))])
    explorer = Explorer([PICTURE], [VIEW], WORDS, {"": {"": nothing}})
    np.testing.assert_array_equal(Image.open(explorer.save(tmp_path / "map.png")), PICTURE)


def test_a_uniform_map_has_one_colour(tmp_path):
    even = Heatmaps([np.full((4, 3, 4), 1 / 12, np.float32)])
    white = Image.new("RGB", PICTURE.size, "white")
    explorer = Explorer([white], [VIEW], WORDS, {"": {"": even}}, blur=1.0, display="flat")
    saved = np.asarray(Image.open(explorer.save(tmp_path / "map.png"))).reshape(-1, 3)
    assert len(np.unique(saved[saved.min(1) < 255], axis=0)) == 1


def test_figure_names_the_pinned_words():
    explorer = single()
    assert explorer.figure().axes[0].get_title() == "whole answer"
    explorer.selected = [1, 2]
    assert explorer.figure().axes[0].get_title() == "mean of is, blue"


@pytest.mark.parametrize(
    ("look", "labels"),
    [
        ({}, ["", "share of the map's range"]),
        ({"power": 2.0}, ["", "(share of the map's range) ^ 2"]),
        ({"display": "flat"}, [""]),
        ({"display": "outline"}, [""]),
    ],
    ids=str,
)
def test_a_figure_has_a_scale_where_one_is_true(look, labels):
    assert [axis.get_ylabel() for axis in single(**look).figure().axes] == labels


def test_a_notebook_that_cannot_show_it_live_gets_the_picture():
    before = plt.get_fignums()
    bundle = single()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    drawn = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert min(drawn.size) > 100
    assert plt.get_fignums() == before


@pytest.mark.parametrize("name", ["viridis", "cividis", "magma"])
def test_colours_can_be_told_by_their_lightness_alone(name):
    """Also by readers who do not see red or green: a higher value is always lighter."""
    sent = np.frombuffer(single().maps.palettes[name], np.uint8).reshape(256, 4)[:, :3] / 255
    linear = np.where(sent <= 0.04045, sent / 12.92, ((sent + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]  # of sRGB, IEC 61966-2-1
    assert (np.diff(luminance[::4]) > 0).all()
    assert luminance[-1] > luminance[0] + 0.4
    assert COLOURS[0] == single().maps.colours == "viridis"


def boxes_in(explorer, path):
    return json.loads(explorer.save(path).read_text())


@pytest.mark.parametrize("display", DISPLAYS)
def test_what_is_shown_is_saved_as_it_is_shown(tmp_path, display):
    explorer = single(display=display, blur=0.0, opacity=0.5)
    saved = np.asarray(Image.open(explorer.save(tmp_path / "map.png")))
    mean = MAPS.on_pictures[0][2:].mean(0)
    faded = overlay(PICTURE, mean, VIEW, blur_tokens=0, colours="viridis")
    flat = overlay(PICTURE, mean, VIEW, blur_tokens=0, colours="viridis", flat=True)
    lines = outline(emphasize(to_picture(mean, VIEW)))
    expected = {"fading": faded, "flat": flat, "outline": blend(PICTURE, lines, 1)}
    expected["beside"] = np.hstack([np.asarray(PICTURE), faded])
    expected["slider"] = np.hstack([np.asarray(PICTURE)[:, :30], faded[:, 30:]])
    np.testing.assert_array_equal(saved, expected[display])


def test_one_scale_for_all_words_is_that_of_the_highest_of_them(tmp_path):
    explorer = single(shared=True, blur=0.0, opacity=1.0, display="flat")
    explorer.selected = [1]
    saved = np.asarray(Image.open(explorer.save(tmp_path / "map.png")))
    every = MAPS.on_pictures[0]
    scaled = (every[1] - every.min()) / (every.max() - every.min())
    colours = 255 * plt.get_cmap("viridis")(scaled)[..., :3]
    np.testing.assert_allclose(saved[5::10, 15:50:10], colours, atol=1)


def test_numbers_figures_and_boxes_are_saved_by_the_ending(tmp_path):
    explorer = single(blur=0.0)
    explorer.selected = [0]
    grid = np.zeros((4, 3, 4))
    grid[0, 1, 2], grid[0, 0, 0], grid[0, 2, 3] = 0.5, 0.3, 0.1
    explorer._show({"": {"": Heatmaps([grid])}})
    np.testing.assert_allclose(np.load(explorer.save(tmp_path / "map.npy")), grid[:1], rtol=1e-6)
    assert explorer.save(tmp_path / "map.svg").read_text().startswith("<?xml")
    assert explorer.save(tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
    said = boxes_in(explorer, tmp_path / "map.json")
    found = [(one["bbox"], round(one["score"], 3), one["area"]) for one in said["annotations"]]
    assert found == [([30, 10, 10, 10], 1.0, 100), ([10, 0, 10, 10], 0.6, 100)]
    assert said["images"] == [{"id": 1, "file_name": "picture 1", "width": 60, "height": 30}]
    with pytest.raises(ValueError, match=r"ends in one of \.png, .* got '\.txt'"):
        explorer.save(tmp_path / "map.txt")


def test_a_browser_gets_the_file_that_it_asks_for(monkeypatch):
    explorer, sent = single(), []
    monkeypatch.setattr(explorer.maps, "send", lambda *message: sent.append(message))
    explorer.maps._handle_custom_msg({"ask": "kernel"}, [])
    explorer.maps._handle_custom_msg({"save": "npy"}, [])
    assert sent[0] == ({"kernel": True},) and sent[1][0] == {"saved": "map.npy"}
    assert np.load(io.BytesIO(sent[1][1][0])).shape == (1, 3, 4)


def test_a_figure_obeys_a_style_of_matplotlib():
    with plt.rc_context({"axes.titlesize": 21, "figure.facecolor": "navy"}):
        figure = single().figure()
    assert figure.axes[0].title.get_fontsize() == 21
    assert figure.get_facecolor() == (0, 0, 128 / 255, 1)


def test_special_tokens_and_the_tokens_in_a_word_are_told(tmp_path):
    qwen = load_model(save_small_qwen3_vl(tmp_path), dtype="float32")  # a token is a byte
    answer = qwen.generate(Image.new("RGB", (64, 64)), "wo?", max_new_tokens=1, min_new_tokens=1)
    shown = explore(answer).maps
    special = [shown.words[number].strip() for number in shown.special]
    assert "<|vision_start|>" in special and "wo" not in special
    place = [word.strip() for word in shown.words].index("wo")
    assert [token.strip() for token in shown.tokens[place] if token.strip()] == ["w", "o"]


def test_compared_answers_share_a_group(answer):
    box = compare({"once": answer, "<b>again": explore(answer, end_layer=2)}, residual=0.8)
    one, other, both = box.children
    assert one.maps.group == other.maps.group == both.maps.group != ""
    assert one.settings.residual == 0.8 and both.maps.words == one.maps.words
    assert other._controls["start_layer"].max == 1
    names = [shown.maps.name for shown in box.children]
    assert names == ["once", "<b>again", "once minus <b>again"]
    with pytest.raises(ValueError, match="at least 2 answers, got 1"):
        compare({"one": answer})


def test_a_difference_is_that_of_the_shares_and_follows_both():
    on_pictures, on_words = rng.random((2, 4, 3, 4)) / 20, rng.random((2, 4, 4)) / 20
    first, second = map(Heatmaps, map(list, on_pictures[:, None]), on_words)
    said = [*WORDS[:2], " red", WORDS[3]]
    one = Explorer([PICTURE], [VIEW], WORDS, {"": {"": first}}, prompt=2, special=[0])
    other = Explorer([PICTURE], [VIEW], said, {"": {"": second}}, prompt=2)
    both = one.minus(other)
    assert both.maps.words == [*WORDS[:2], "blue | red", WORDS[3]]
    assert both.maps.prompt == 2 and both.maps.special == [0]
    both.selected = [1, 3]
    expected = on_pictures[0] - on_pictures[1]
    np.testing.assert_allclose(both.shown_map("")[0], expected[[1, 3]].mean(0), atol=1e-15)
    rows = np.hstack([expected.reshape(4, -1), on_words[0] - on_words[1]])
    peaks = np.array(both.maps.panels[0]["sheets"][0]["peaks"])[:, None]
    np.testing.assert_allclose(peaks, np.abs(rows).max(1, keepdims=True), rtol=1e-12)
    sent = np.frombuffer(both.maps.codes, "<i2").reshape(4, -1) / 32767 * peaks
    np.testing.assert_allclose(sent, rows, atol=1.01 * peaks.max() / 32767 / 2)
    other._show({"": {"": first}})  # as after a change of its settings
    assert (both.shown_map("")[0] == 0).all()


def test_a_difference_is_red_above_zero_and_blue_below(tmp_path):
    grid = np.zeros((4, 3, 4))
    grid[:, 1, 1], grid[:, 1, 2] = 0.16, 0.01
    one, other = (
        Explorer([PICTURE], [VIEW], WORDS, {"": {"": Heatmaps([g])}})
        for g in (grid, grid[..., ::-1])
    )
    both = one.minus(other)
    both.maps.blur, both.maps.opacity = 0.0, 1.0
    saved = np.asarray(Image.open(both.save(tmp_path / "map.png")))
    ends = 255 * plt.get_cmap("RdBu_r")([1.0, 0.0])[:, :3]
    np.testing.assert_allclose(saved[15, [25, 35]], ends, atol=1)
    np.testing.assert_array_equal(saved[5], np.asarray(PICTURE)[5])
    found = boxes_in(both, tmp_path / "map.json")["annotations"]
    assert [box["bbox"] for box in found] == [[20, 10, 20, 10]]


def test_words_of_other_questions_are_compared_in_the_answers_only():
    one = Explorer([PICTURE], [VIEW], WORDS, {"": {"": maps(words=4)}}, prompt=2)
    longer = Explorer([PICTURE], [VIEW], ["a", "b", "c", "d"], {"": {"": maps(words=4)}}, prompt=1)
    both = one.minus(longer)
    assert both.maps.words == ["blue | b", "sky | c"] and both.maps.prompt == 0
    wide = [replace(VIEW, grid=(3, 2))]
    other_grid = Explorer([PICTURE], wide, WORDS, {"": {"": Heatmaps([np.ones((4, 3, 2))])}})
    with pytest.raises(ValueError, match=r"same grids, got \[\(3, 4\)\] and \[\(3, 2\)\]"):
        one.minus(other_grid)
    same_for_all = Explorer([PICTURE], [VIEW], WORDS, {"": {"": maps(words=1)}})
    with pytest.raises(ValueError, match="expected one map of each word"):
        one.minus(same_for_all)


def test_shares_that_mean_nothing_are_not_said(explorer):
    assert "under even attention" in explorer.maps.note
    explorer._controls["beyond_even"].value = False
    assert explorer.maps.note == ""
    explorer._controls["receptive_field"].value = True
    assert "means nothing" in explorer.maps.note
    assert "receptive field divided out, order of tokens left in" in explorer.maps.made


# Is the place right?


def test_the_place_of_the_map_shown_is_checked_and_forgotten_with_the_map(explorer, answer):
    heard = []
    explorer.maps.observe(lambda change: heard.append(change.new), "trust")
    last = len(explorer.maps.words) - 1
    explorer.selected, explorer.maps.blur = [last], 1.0
    found = explorer.check()
    heatmap = explorer.shown_map("")[0]
    expected = check_peak(answer, heatmap, blur_tokens=1.0)
    assert (found.point, found.sentence) == (expected.point, expected.sentence)
    pixels = to_picture(heatmap, answer.image.patch_view, blur_tokens=1.0)
    assert pixels[found.point[::-1]] >= np.nanmax(pixels) * (1 - 1e-4)
    of = {"selected": [last], "combine": "mean", "blur": 1.0}
    assert [one["of"] for one in heard] == [of] * len(heard)
    assert "The model has seen 0 of " in heard[1]["said"] and heard[-1]["verdict"] == found.verdict
    corners = np.array(heard[-1]["box"]) * (90, 60, 90, 60)
    np.testing.assert_allclose(corners, found.box)
    explorer._controls["residual"].value = 0.3
    assert explorer.maps.trust == {}


def test_a_figure_frames_the_place_and_says_what_was_found(answer):
    heatmap = explore(answer).shown_map("")[0]
    found = check_peak(answer, heatmap)
    axis, bar = plot_trust([answer], [heatmap], [found], power=2.0).axes
    assert bar.get_ylabel() == "(share of the map's range) ^ 2"
    assert axis.get_title() == f"{answer.prompt} {answer.text}\n{found.sentence}"
    left, top, right, bottom = found.box
    expected = (left - 0.5, top - 0.5, right - left, bottom - top)
    assert [frame.get_bbox().bounds for frame in axis.patches] == [expected] * 2
    colour, line = FRAMES[found.verdict]
    assert f"--found: {colour};" in STYLE
    assert axis.patches[1].get_linestyle() == line


def test_the_explorers_figure_frames_what_was_found_about_the_map_shown(answer):
    explorer = explore(answer)
    found = explorer.check()
    axis, *_ = explorer.figure().axes
    assert axis.get_title() == f"whole answer\n{found.sentence}"
    left, top, right, bottom = found.box
    expected = (left - 0.5, top - 0.5, right - left, bottom - top)
    for frame in axis.patches:
        np.testing.assert_allclose(frame.get_bbox().bounds, expected, atol=1e-9)
    assert len(axis.patches) == 2 and axis.patches[1].get_linestyle() == FRAMES[found.verdict][1]
    explorer.maps.blur = 2.0  # another map
    axis, *_ = explorer.figure().axes
    assert axis.get_title() == "whole answer" and not axis.patches


def test_verdicts_are_legible_on_their_colours():
    """White on each, by the contrast of WCAG 2.2."""
    colours = re.findall(r"--found: #(\w{6})", STYLE)
    levels = np.array([list(bytes.fromhex(colour)) for colour in colours]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    assert len(colours) == 3
    assert (1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5).all()


def test_what_cannot_be_checked_is_said(explorer):
    with pytest.raises(ValueError, match="an explorer of an answer about one picture"):
        single().check()
    assert single().maps.checks == "" and explorer.maps.checks == "kernel"
    explorer.selected = [0]  # before the picture
    with pytest.raises(ValueError, match="a highest place"):
        explorer.check()
    explorer.maps.trust = {}
    explorer.maps._handle_custom_msg({"check": True}, [])  # as a browser asks
    assert explorer.maps.trust["problem"].startswith("This could not be checked: expected")


# Panels, sheets and clips


def test_panels_stand_side_by_side_with_their_own_maps(tmp_path):
    on, off = maps(), maps()
    panels = {"adapter on": {"": on}, "adapter off": {"": off}}
    explorer = Explorer([PICTURE], [VIEW], WORDS, panels)
    explorer.selected = [2]
    saved = np.asarray(Image.open(explorer.save(tmp_path / "both.png")))
    expected = [
        overlay(PICTURE, part.on_pictures[0][2], VIEW, colours=COLOURS[0], opacity=0.8)
        for part in (on, off)
    ]
    np.testing.assert_array_equal(saved, np.hstack(expected))
    *panels, bar = explorer.figure().axes
    assert [axis.get_title() for axis in panels] == ["adapter on: blue", "adapter off: blue"]
    assert bar.get_ylabel() == "share of the map's range"


def test_sheets_lie_over_each_other_and_can_be_taken_away(tmp_path):
    edges, focus = maps(words=1, colours="cyan"), maps(colours="red")
    sheets = {"edge detection": edges, "decision focus": focus, "click": Mark(0.5, 0.5)}
    explorer = Explorer([PICTURE], [VIEW], WORDS, {"": sheets}, opacity=0.5)
    explorer.selected = [1]

    def pixels(*hidden):
        explorer.maps.hidden = hidden
        return np.asarray(Image.open(explorer.save(tmp_path / "map.png")))

    cyan = overlay(PICTURE, edges.on_pictures[0][0], VIEW, colours="cyan")
    np.testing.assert_array_equal(pixels("decision focus", "click"), cyan)
    both = overlay(Image.fromarray(cyan), focus.on_pictures[0][1], VIEW, colours="red")
    np.testing.assert_array_equal(pixels("click"), both)
    marked = pixels("edge detection", "decision focus")
    changed = (marked != np.asarray(PICTURE)).any(-1)
    assert changed[15, 30]
    assert np.argwhere(changed).mean(0) == pytest.approx([15, 30], abs=1)


def test_a_figure_has_a_scale_for_each_colour_with_the_names_of_what_has_it():
    sheets = {"edge detection": maps(words=1, colours="cyan"), "focus": maps(colours="red")}
    panels = {"on": {**sheets, "click": Mark(0.5, 0.5)}, "off": sheets}
    explorer = Explorer([PICTURE], [VIEW], WORDS, panels)
    *drawn, cyan, red = explorer.figure().axes
    assert len(drawn) == 2
    assert cyan.get_ylabel() == "edge detection\nshare of the map's range"
    assert red.get_ylabel() == "focus\nshare of the map's range"
    for bar, colours in ((cyan, "cyan"), (red, "red")):
        [shades] = [mesh.get_cmap() for mesh in bar.collections if mesh.get_array() is not None]
        np.testing.assert_allclose(shades(1.0), plt.get_cmap(colours)(1.0))
        assert bar.get_ylim() == (0, 1)
    explorer.maps.hidden = ["edge detection"]
    *_, bar = explorer.figure().axes
    assert bar.get_ylabel() == "share of the map's range"


def test_faint_colours_leave_low_values_to_the_picture():
    ramp = np.linspace(0, 1, 12).reshape(3, 4)
    view = View((30, 40), (30, 40), (0, 0), (30, 40), 10, (3, 4))
    painted = overlay(
        PICTURE.crop((0, 0, 40, 30)), ramp, view, blur_tokens=0, colours="cyan", opacity=1
    )
    np.testing.assert_array_equal(painted[:10, :10], np.asarray(PICTURE)[:10, :10])
    assert tuple(painted[25, 35]) == (0, 255, 255)


def test_clip_scales_rows_over_all_frames_and_shows_one_at_a_time(tmp_path):
    relevance = rng.random((4, 5, 3, 4))
    explorer = explore_clip([PICTURE] * 5, VIEW, WORDS, relevance, blur=0.0)
    rows = received(explorer)[:, : 5 * 12]
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(
        rows[1].reshape(5, 3, 4), relevance[1] / relevance[1].sum(), atol=1e-6
    )
    explorer.selected, explorer.maps.picture = [1], 3
    saved = np.asarray(Image.open(explorer.save(tmp_path / "map.png")))
    low, high = relevance[1].min(), relevance[1].max()
    scaled = (relevance[1, 3] - low) / (high - low)
    colour = plt.get_cmap(COLOURS[0])(scaled[1, 2])[:3]
    share = 0.8 * scaled[1, 2] ** 0.5
    pixel = np.asarray(PICTURE)[15, 35] * (1 - share) + np.array(colour) * 255 * share
    np.testing.assert_allclose(saved[15, 35], pixel, atol=1)
    assert not explore_clip([PICTURE] * 5, VIEW, WORDS, relevance, together=False).maps.together
    assert [axis.get_title() for axis in explorer.figure().axes][:2] == ["frame 0", "frame 1"]


# Controls that need the kernel


def greet(explorer):
    explorer.maps._handle_custom_msg({"ask": "kernel"}, [])


def test_controls_wait_until_a_browser_found_the_kernel(explorer):
    controls = explorer._controls.values()
    assert all(control.disabled for control in controls)
    assert "need the notebook with its kernel" in explorer.maps.status
    greet(explorer)
    assert not any(control.disabled for control in controls)
    assert "the kernel computes it" in explorer.maps.status


def test_it_says_that_it_is_busy_while_it_computes(explorer):
    seen = []
    explorer.maps.observe(lambda _: seen.append((explorer.maps.busy, explorer.maps.status)), "busy")
    explorer._controls["residual"].value = 0.2
    assert [busy for busy, _ in seen] == [True, False]
    assert "Computing" in seen[0][1] and "The last took" in seen[1][1]


def test_what_cannot_be_computed_is_said(explorer, monkeypatch):
    def fail(_settings):
        raise ValueError("no such layer")

    monkeypatch.setattr(explorer, "_compute", fail)
    with pytest.raises(ValueError, match="no such layer"):
        explorer._controls["start_layer"].value = 1
    assert explorer.maps.status == "The kernel could not compute this: no such layer"
    assert not explorer.maps.busy


@pytest.mark.parametrize("is_held", [True, False])
def test_closed_it_frees_maps_pictures_recording_and_layouts(answer, is_held):
    before = {*_instances}
    explorer = explore(answer)
    freed = [explorer._compute, explorer._small[0], *explorer._rows.values()]
    if not is_held:
        freed += [explorer, *parts(explorer)]
    freed = list(map(weakref.ref, freed))
    explorer.close()
    if not is_held:
        del explorer
    gc.collect()
    assert [one() for one in freed if one() is not None] == []
    assert {*_instances} == before


def test_closed_it_leaves_no_part_behind(explorer):
    parts = [explorer, explorer.maps, *explorer.children, *explorer._controls.values()]
    assert all(part.comm is not None for part in parts)
    explorer.close()
    assert all(part.comm is None for part in parts)


def test_ready_maps_have_no_such_controls():
    explorer = single()
    assert explorer.settings is None and explorer.maps.status == ""


# Refused


def test_what_does_not_fit_together_is_named(without_type_checks):
    with pytest.raises(ValueError, match=r"a view and a label for each .* 1 pictures, 2 views"):
        Explorer([PICTURE], [VIEW] * 2, WORDS, {"": {"": MAPS}})
    with pytest.raises(ValueError, match="expected maps for 4 words, or one for all, got"):
        Explorer([PICTURE], [VIEW], WORDS, {"": {"": maps(words=3)}})
    other = replace(VIEW, grid=(2, 4))
    with pytest.raises(ValueError, match=r"grids \[\(2, 4\)\], got \[\(3, 4\)\]"):
        Explorer([PICTURE], [other], WORDS, {"": {"": MAPS}})
    negative = Heatmaps([-np.ones((4, 3, 4))])
    with pytest.raises(ValueError, match="finite numbers, 0 or more"):
        Explorer([PICTURE], [VIEW], WORDS, {"": {"": negative}})


def test_rows_of_more_than_one_are_read_as_shares():
    rows = Heatmaps([np.full((2, 3, 4), 0.5)], np.eye(2)).rows(2)
    np.testing.assert_allclose(rows.sum(1), 1)
    np.testing.assert_allclose(rows[0, :12], 0.5 / 7)
