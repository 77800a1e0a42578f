import io
import itertools
import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image
from places import ROOT

from rolloutlib.plots import (
    PAGE_WIDTH,
    plot_boxes,
    plot_chain,
    plot_families,
    plot_layers,
    plot_listening,
    plot_matrices,
    plot_overlay,
    plot_paths,
    plot_pictures,
    plot_saved,
    plot_scores,
    png_of,
)


def tokens_of(count):
    return [f"token{number}" for number in range(count)]


@pytest.mark.parametrize("count", [4, 12, 20, 60])
def test_token_labels_do_not_overlap_and_can_be_read(count):
    figure = plot_matrices([np.eye(count)], tokens_of(count), [""])
    figure.canvas.draw()
    axis = figure.axes[0]
    down = [label.get_window_extent() for label in axis.get_yticklabels()]
    assert [label.get_text() for label in axis.get_yticklabels()] == tokens_of(count)
    assert all(lower.y1 <= upper.y0 for upper, lower in itertools.pairwise(down))
    [(left, _), (right, _)] = axis.transData.transform([(0, 0), (1, 0)])
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {45}
    assert (right - left) / 2**0.5 >= max(label.height for label in down)  # lines of text at 45°
    assert axis.get_yticklabels()[0].get_fontsize() >= 8
    assert figure.get_size_inches()[0] < 14


def test_panels_share_one_scale_and_a_page_width():
    matrices = [np.full((20, 20), value) for value in (0.1, 0.5, 0.9, 0.2)]
    figure = plot_matrices(matrices, tokens_of(20), list("abcd"))
    drawn = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in drawn] == list("abcd")
    assert {axis.collections[0].get_clim() for axis in drawn} == {(0, 0.9)}
    assert drawn[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)


EVEN = {name: (0.5, 0.4, 0.6) for name in ("a long name of a map", "another")}
WIDEST = {
    "matrices": lambda: plot_matrices([np.eye(12)] * 6, tokens_of(12), list("abcdef")),
    "pictures": lambda: plot_pictures([np.eye(4)] * 4, list("abcd"), height=9, scale="share"),
    "scores": lambda: plot_scores(dict.fromkeys("abcd", EVEN), dict.fromkeys("abcd", 0.1)),
    "families": lambda: plot_families(dict.fromkeys(tokens_of(30), "on pixels")),
}


@pytest.mark.parametrize("draw", WIDEST.values(), ids=WIDEST)
def test_text_has_eight_points_on_a_page(draw):
    """Of 100 dots an inch, as notebooks draw; a point is 4/3 of a page's pixels."""
    style = (ROOT / "rolloutlib/pages/templates/style.css").read_text()
    page = 16 * (int(re.search(r"body {[^}]*max-width: (\d+)rem", style)[1]) - 2)  # its padding
    figure = draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    pixels = 100 * figure.get_size_inches()[0]
    assert pixels > 900
    smallest = min(text.get_fontsize() for text in texts) * 100 / 72
    assert smallest * min(1, page / pixels) >= 8 * 4 / 3


def test_gamma_lightens_small_values_and_keeps_the_scale():
    figures = [
        plot_matrices([np.diag([1, 0.04])], ["a", "b"], [""], gamma=gamma) for gamma in (1.0, 0.5)
    ]
    plain, light = (figure.axes[0].collections[0] for figure in figures)
    assert ["value" in figure.axes[1].get_ylabel() for figure in figures] == [False, True]
    assert plain.norm(0.04) == pytest.approx(0.04)
    assert light.norm(0.04) == pytest.approx(0.2)
    assert plain.get_clim() == light.get_clim()


def test_a_batch_of_one_is_drawn_torch_or_not():
    figure = plot_matrices([torch.eye(3)[None]], ["a", "b", "c"], [""])
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), np.eye(3))


@pytest.mark.parametrize(
    ("matrices", "titles", "message"),
    [
        ([np.eye(3)], ["a"], r"expected one matrix of 2 x 2 for 2 tokens, got \(3, 3\)"),
        ([np.zeros((2, 2, 2))], ["a"], r"got \(2, 2, 2\)"),
        ([np.eye(2)], ["a", "b"], "expected a title for each matrix, got 2 for 1"),
        ([], [], "expected a title for each matrix, got 0 for 0"),
    ],
)
def test_what_does_not_fit_is_named(matrices, titles, message):
    with pytest.raises(ValueError, match=message):
        plot_matrices(matrices, ["x", "y"], titles)


def test_paths_are_coloured_and_lines_are_as_wide_as_the_attention():
    layers = [np.array([[0.75, 0.25], [0, 1]]), np.eye(2)[::-1]]
    [axis] = plot_paths(layers, ["a", "b"], [[1, 0, 1]]).axes
    red = [line for line in axis.lines if line.get_color() == "tab:red"]
    drawn = {(*line.get_xdata(), *line.get_ydata()): line.get_linewidth() / 8 for line in red}
    assert drawn == {(1, 0, 0, 1): 0.25, (0, 1, 1, 2): 1}
    assert sum(line.get_linewidth() > 0 for line in axis.lines) == 5


@pytest.mark.parametrize("path", [[0, 1], [0, 1, 2]], ids=str)
def test_a_path_that_does_not_fit_is_named(path):
    with pytest.raises(ValueError, match=r"expected paths of 3 tokens in \[0, 1\], got"):
        plot_paths([np.eye(2)] * 2, ["a", "b"], [path])


@pytest.mark.parametrize(
    ("pictures", "titles", "regions"), [(2, 1, 0), (0, 0, 0), (2, 2, 3)], ids=str
)
def test_pictures_without_their_titles_or_regions_are_named(pictures, titles, regions):
    grid = np.eye(3)
    with pytest.raises(ValueError, match=f"got {pictures} pictures, {titles}"):
        plot_pictures([grid] * pictures, ["a"] * titles, regions=[grid > 0] * regions)


def drawn_texts(figure):
    """Every text as it is drawn: SVG can keep letters, which a formula's are not in one piece."""
    file = io.BytesIO()
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    texts = ElementTree.fromstring(file.getvalue()).iter("{http://www.w3.org/2000/svg}text")
    return [text.text for text in texts]


DOLLARS = ["$$", "$^$", "a $5 and $6", "$x$"]


def test_tokens_and_titles_may_be_dollars():
    matrix = plot_matrices([np.eye(4)], DOLLARS, [""])
    assert [text for text in drawn_texts(matrix) if "$" in text] == 2 * DOLLARS
    pictures = plot_pictures([np.eye(2)] * 4, DOLLARS)
    assert drawn_texts(pictures) == DOLLARS


@pytest.mark.parametrize("dpi", [100, 50])
def test_a_figure_becomes_a_png_of_its_size_and_is_closed(dpi):
    other, figure = (plt.figure(figsize=(3, 2), facecolor=name) for name in ("white", "red"))
    picture = Image.open(io.BytesIO(png_of(figure, dpi)))
    assert picture.format == "PNG" and picture.size == (3 * dpi, 2 * dpi)
    assert picture.convert("RGB").getcolors() == [(6 * dpi**2, (255, 0, 0))]
    assert plt.get_fignums() == [other.number]


def test_pictures_keep_their_shapes_and_regions_are_outlined():
    picture, heatmap = Image.new("RGB", (60, 30)), np.random.default_rng(0).random((4, 4))
    region = np.zeros((30, 60), dtype=bool)
    region[5:10, 5:20] = True
    figure = plot_pictures([picture, heatmap], ["photo", "map"], regions=[region, region[:4, :4]])
    photo, drawn = figure.axes
    assert (photo.get_title(), drawn.get_title()) == ("photo", "map")
    assert photo.images[0].get_array().shape[:2] == (30, 60)
    assert len(photo.collections) == 2 and not drawn.collections


def test_heatmaps_with_a_scale_share_one_and_overlays_have_theirs():
    maps = [np.diag([0.0, 0.5]), np.full((2, 2), np.nan), np.diag([2.0, 1.0])]
    *panels, bar = plot_pictures(maps, list("abc"), scale="relevance").axes
    limits = {panel.images[0].get_clim() for panel in panels[:3]}
    assert limits == {(0, 2)} and (bar.get_ylabel(), bar.get_ylim()) == ("relevance", (0, 2))
    overlays = [np.zeros((2, 2, 3), np.uint8)]
    assert plot_pictures(overlays, ["a"], scale="share").axes[-1].get_ylim() == (0, 1)


@pytest.mark.parametrize("shape", [(8, 60), (60, 60)])
@pytest.mark.parametrize(
    "scale", ["Share of the strongest entry", "(share of the map's range) ^ 2"]
)
def test_the_label_of_a_scale_stays_in_its_figure(shape, scale):
    figure = plot_pictures([np.eye(*shape)] * 2, ["one", "two"], height=1.1, scale=scale)
    figure.draw_without_rendering()
    label = figure.axes[-1].yaxis.label.get_window_extent()
    assert figure.bbox.y0 <= label.y0 and label.y1 <= figure.bbox.y1
    assert label.x1 <= figure.bbox.x1


def test_a_picture_is_drawn_as_the_model_saw_it():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray((np.arange(12).reshape(3, 4) * 5957).astype(np.uint16))
    wide.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    shown = np.arange(12).reshape(3, 4, 1).repeat(3, 2) * 5957 / 257
    for figure in (
        plot_pictures([Image.open(file)], ["turned"]),
        plot_layers(Image.open(file), {"deep": (200, 0, 0)}),
    ):
        np.testing.assert_allclose(figure.axes[0].images[0].get_array(), shown, atol=1)


def test_scores_have_a_panel_each_and_a_bar_for_every_map():
    scores = {"AUC": {"rollout": (0.9, 0.8, 0.95), "random": (0.5, 0.4, 0.6)}}
    figure = plot_scores(scores, {"AUC": 0.5})
    (axis,) = figure.axes
    assert axis.get_title() == "AUC"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["rollout", "random"]
    assert axis.lines[0].get_xdata().tolist() == [0.9, 0.5]


def test_wide_pictures_share_a_page_width():
    figure = plot_pictures([np.ones((10, 60))] * 4, list("abcd"))
    assert tuple(figure.get_size_inches()) == pytest.approx((PAGE_WIDTH, PAGE_WIDTH / 24 + 0.4))


def test_a_difference_has_a_scale_around_0():
    *_, bar = plot_pictures([np.array([[-3.0, 1.0]]), np.eye(2)], ["a", "b"], scale="change").axes
    assert bar.get_ylim() == (-3, 3)


def test_a_chain_joins_its_boxes_by_named_arrows():
    axis = plot_chain(["word", "tokens", "pixels"], ["rollout", "undo crop"]).axes[0]
    ends = [(note.xyann[0], note.xy[0]) for note in axis.texts if hasattr(note, "xyann")]
    assert ends == [(0, 1), (1, 2)]
    drawn = {text.get_text() for text in axis.texts}
    assert drawn == {"word", "tokens", "pixels", "rollout", "undo crop", ""}
    with pytest.raises(ValueError, match="expected a step between 2 boxes, got 0"):
        plot_chain(["word", "tokens"], [])


def test_layers_come_with_a_legend_of_their_colours():
    legend = {"edges": "cyan", "target": (0, 200, 0)}
    figure = plot_layers(np.zeros((40, 60, 3), np.uint8), legend)
    [labels] = figure.legends
    assert [text.get_text() for text in labels.get_texts()] == ["edges", "target"]
    patches = [patch for patch in labels.findobj(Patch) if patch is not labels.get_frame()]
    swatches = [patch.get_facecolor() for patch in patches]
    assert len(swatches) == 7  # shades of the first, and the second
    np.testing.assert_allclose(swatches[-1][:3], [0, 200 / 255, 0])
    np.testing.assert_allclose(swatches[5], [0, 1, 1, 1])
    assert figure.axes[0].images[0].get_array().shape == (40, 60, 3)


def test_groups_of_scores_choose_the_maps_and_their_order():
    scores = {"A": {"x": (0.9, 0.8, 1.0), "y": (0.5, 0.4, 0.6), "z": (0.1, 0, 1)}, "B": {}}
    scores["B"] = {"y": (0.3, 0.2, 0.4)}
    groups = {"first": ["y"], "second": ["x"]}
    figure = plot_scores(scores, {"A": 0.1, "B": 0.2}, groups=groups)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["y", "x"]
    assert right.lines[0].get_xydata().tolist() == [[0.3, 0.0]]
    [legend] = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"chance", "first", "second"}


def test_a_sounds_words_lie_on_its_time():
    maps = {"rollout": np.eye(2, 50), "even": np.full((2, 50), 0.02)}
    figure = plot_listening(np.zeros((80, 100)), ["put", "it"], maps, 1.0, [(0.2, 0.5), None])
    sound, first, second, scale = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["sound", "rollout", "even", ""]
    assert scale.get_ylabel() == "Share of the word's highest"
    assert second.get_images()[0].get_clim() == (0, 1)
    assert sound.get_images()[0].get_extent() == [0, 1.0, 0, 80]
    np.testing.assert_array_equal(first.get_images()[0].get_array(), np.eye(2, 50))
    assert second.get_images()[0].get_array().max() == 1.0  # each row on its own scale
    assert first.patches[0].get_bbox().bounds == pytest.approx((0.2, 0, 0.3, 1))
    assert [label.get_text() for label in first.get_yticklabels()] == ["put", "it"]
    with pytest.raises(ValueError, match="maps of 1 words, got another number in 'rollout'"):
        plot_listening(np.zeros((80, 100)), ["put"], maps, 1.0)


@pytest.mark.parametrize("contours", [False, True])
def test_a_map_over_its_picture_has_a_scale_with_its_numbers(contours):
    heatmap = np.add.outer(np.linspace(0, 0.1, 40), np.linspace(0.01, 0.1, 60))
    picture = Image.new("RGB", (60, 40), "grey")
    figure = plot_overlay(picture, heatmap, contours=contours, label="share of a patch")
    drawn, scale = figure.axes
    assert scale.get_ylabel() == "share of a patch"
    low, high = (0.0575, 0.1525) if contours else (0.01, 0.2)  # a quarter and three of the way
    assert scale.get_ylim() == pytest.approx((low, high))
    shown = np.asarray(drawn.images[0].get_array())
    assert (shown[0, 0] == 128).all() and ((shown[-1, -1] == 128).all() == contours)


@pytest.mark.parametrize("pictures", ["overlays", "heatmaps"])
def test_a_scale_fades_as_the_overlays_do(pictures):
    shown = np.zeros((4, 6, 3), np.uint8) if pictures == "overlays" else np.eye(4)
    scale = plot_pictures([shown], ["one"], scale="share").axes[-1]
    bar = scale.collections[-1].cmap(np.linspace(0, 1, 256))[:, 3]
    expected = np.linspace(0, 1, 256) ** 0.5 if pictures == "overlays" else np.ones(256)
    np.testing.assert_allclose(bar, expected, atol=1e-6)


def test_boxes_lie_on_the_picture_with_their_labels_in_the_middle():
    boxes = np.array([[0.0, 0, 30, 20], [30, 0, 60, 20]])
    axis = plot_boxes(Image.new("RGB", (60, 40)), boxes, [7, 8], marked=[8]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["7", "8"]
    assert [text.xy for text in axis.texts] == [(15, 10), (45, 10)]
    assert [patch.get_bbox().extents.tolist() for patch in axis.patches] == boxes.tolist()
    assert [patch.get_fill() for patch in axis.patches] == [False, True]


@pytest.mark.parametrize(("across", "apart"), [(2, 1), (13, 1), (24, 1), (28, 2), (64, 4)])
def test_labels_can_be_read_and_none_lies_on_another(across, apart):
    rows, columns = np.divmod(np.arange(across**2), across)
    corners, picture = np.stack([columns, rows], 1) * 32.0, Image.new("RGB", (32 * across,) * 2)
    labels = [100 + number for number in range(across**2)]
    figure = plot_boxes(picture, np.hstack([corners, corners + 32]), labels)
    figure.canvas.draw()
    axis = figure.axes[0]
    assert axis.texts[0].get_fontsize() >= 8
    said = {int(text.get_text()): text.get_window_extent() for text in axis.texts}
    first = [label for label in labels[:across] if label in said]
    assert first == labels[:across:apart]
    for left, right in itertools.pairwise(first):
        assert said[left].x1 <= said[right].x0
    for label, extent in said.items():
        box = axis.patches[label - 100].get_window_extent()
        assert extent.width <= apart * box.width
        assert abs(extent.x0 + extent.x1 - box.x0 - box.x1) < 2
    below = min((label for label in said if label >= 100 + across), key=lambda one: one // across)
    assert said[below].y1 <= said[first[0]].y0


def test_families_have_the_colour_of_their_verdict_and_are_counted():
    figure = plot_families({"llava": "on pixels", "blip": "refused", "fuyu": "on pixels"})
    texts = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert texts == {"blip": "firebrick", "fuyu": "seagreen", "llava": "seagreen"}
    counted = [text.get_text() for text in figure.legends[0].get_texts()]
    assert counted == ["on pixels: 2", "recorded, pixels not shown: 0", "refused: 1"]


def test_a_dump_is_drawn_as_the_matrix_of_its_instance():
    attention = np.random.default_rng(0).random((2, 4, 3, 3))  # [instance head time time]
    figures = plot_saved({"attention_weights": attention}, refiner_id=1)
    assert list(figures) == ["matrices", "minmax"]
    by_hand = np.mean([attention[1, head] for head in range(4)], axis=0)
    low, high = by_hand.min(1, keepdims=True), by_hand.max(1, keepdims=True)
    for figure, wanted in zip(
        figures.values(), (by_hand, (by_hand - low) / (high - low)), strict=True
    ):
        drawn = figure.axes[0].collections[0].get_array()
        np.testing.assert_allclose(drawn, wanted, atol=1e-12)
    with pytest.raises(ValueError, match=r"refiner_id in \[0, 1\].*got None"):
        plot_saved({"attention_weights": attention})
