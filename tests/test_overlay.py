import io
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import gaussian_filter

from rolloutlib.files.pictures import upright_rgb
from rolloutlib.grid import View
from rolloutlib.overlay import (
    blend,
    blur,
    colour,
    crosshair,
    emphasize,
    outline,
    overlay,
    paint,
    save_layer,
    stack_layers,
    to_picture,
    undo_crop,
    undo_resize,
    upscale,
)


def crop_view():
    """A 100x200 picture resized to 50x100; the model sees the middle 48x48."""
    return View((100, 200), (50, 100), (1, 26), (48, 48), 12, (4, 4))


def test_upscaling_repeats_every_token():
    heatmap = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(
        upscale(heatmap, crop_view()), heatmap.repeat(12, 0).repeat(12, 1)
    )


def test_undoing_the_crop_puts_the_window_back():
    window = np.random.default_rng(0).random((48, 48))
    whole = undo_crop(window, crop_view())
    assert whole.shape == (50, 100)
    np.testing.assert_array_equal(whole[1:49, 26:74], window)
    assert np.isnan(whole[0]).all() and np.isnan(whole[:, :26]).all()


def test_undoing_padding_drops_what_is_beyond_the_picture():
    view = View((30, 60), (30, 60), (-15, 0), (60, 60), 15, (4, 4))
    window = np.arange(60.0)[:, None].repeat(60, 1)
    np.testing.assert_array_equal(undo_crop(window, view), window[15:45])


def test_undoing_the_resize_by_nearest_neighbour():
    small = np.array([[1.0, 2.0], [3.0, np.nan]])
    view = View((4, 6), (2, 2), (0, 0), (2, 2), 1, (2, 2))
    np.testing.assert_array_equal(undo_resize(small, view), small.repeat(2, 0).repeat(3, 1))


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_constant_map_stays_constant_on_every_picture_size(height, width):
    view = View((height, width), (24, 24), (0, 0), (24, 24), 6, (4, 4))
    pixels = to_picture(np.full((4, 4), 0.3), view)
    np.testing.assert_array_equal(pixels, np.full((height, width), 0.3))
    np.testing.assert_allclose(blur(pixels, 2), 0.3, atol=1e-6)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0.3, 90), st.floats(0.3, 90)),
    st.tuples(st.floats(-30, 60), st.floats(-30, 60)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(1, 9),
)
def test_all_steps_at_once_are_the_steps_one_by_one(picture, resized, offset, grid, token):
    window = (grid[0] * token + 2, grid[1] * token)
    view = View(picture, resized, offset, window, token, grid)
    heatmap = np.random.default_rng(0).random(grid)
    steps = undo_resize(undo_crop(upscale(heatmap, view), view), view)
    np.testing.assert_array_equal(to_picture(heatmap, view), steps)


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3, 30_000), (2_000, 1)])
def test_an_elongated_picture_takes_little_memory(size):
    """LLaVA's resized picture would have 336 pixels along the short side: up to a billion."""
    short, long = min(size), max(size)
    resized = tuple(336 * side / short for side in size)
    offset = tuple((side - 336) / 2 for side in resized)
    view = View(size, resized, offset, (336, 336), 14, (24, 24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    heatmap = np.eye(24, dtype=np.float32)
    shown = overlay(Image.new("RGB", size[::-1], "grey"), heatmap, view, flat=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB
    along = np.argwhere((shown != 128).any(-1))[:, int(size[1] > size[0])]
    assert len(along) and abs(along - long / 2).max() <= short  # the middle square was seen


def test_the_largest_picture_is_laid_over_in_less_than_two_gigabytes():
    code = """
import resource, numpy as np
from PIL import Image
from rolloutlib.grid import View
from rolloutlib.overlay import overlay
view = View((6250, 8000), (336, 430), (0, 47), (336, 336), 14, (24, 24))
heatmap = np.eye(24, dtype=np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
overlay(Image.new("RGB", (8000, 6250)), heatmap, view, blur_tokens=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    told = subprocess.run([sys.executable, "-c", code], stdout=-1, check=True, text=True)
    assert int(told.stdout) < 2_000_000  # kB


def test_painting_in_bands_is_colouring_and_blending(monkeypatch):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (50, 30, 3), np.uint8))
    heatmap = rng.random((50, 30))
    whole = blend(picture, colour(heatmap, "magma"), 0.3)
    monkeypatch.setattr("rolloutlib.overlay.BAND", 7 * 30)
    np.testing.assert_array_equal(paint(picture, heatmap, "magma", 0.3), whole)
    np.testing.assert_array_equal(blend(picture, colour(heatmap, "magma"), 0.3), whole)


def opened(picture, format, note):
    """A picture as `Image.open` gives it, before anything is decoded or turned."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = note
    picture.save(file, format, exif=exif)
    return Image.open(file)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "I;16", "RGBA"])
def test_a_map_lies_on_the_picture_that_the_model_saw(format, mode):
    levels = np.linspace(0, 65535, 100 * 200).astype(np.uint16).reshape(100, 200)[:, ::-1].copy()
    grey = Image.fromarray(levels)
    given = grey if mode == "I;16" else upright_rgb(grey).convert(mode)
    turned = opened(given.transpose(Image.Transpose.ROTATE_90), format, 6)
    nothing = np.zeros((4, 4))
    shown = overlay(turned, nothing, crop_view(), opacity=0)
    expected = np.asarray(upright_rgb(grey))
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(stack_layers(turned, []), expected)
    np.testing.assert_array_equal(blend(turned, np.zeros((100, 200, 4))), expected)
    assert len(np.unique(shown)) > 200


def test_blur_is_counted_in_tokens_as_wide_as_they_are_on_the_picture():
    view = View((80, 40), (40, 20), (0, 0), (40, 20), 5, (8, 4))
    assert view.token_width == 10 == view.boxes()[0, 2]
    heatmap = np.random.default_rng(0).random((8, 4))
    wanted = blur(to_picture(heatmap, view), 5)
    np.testing.assert_array_equal(to_picture(heatmap, view, blur_tokens=0.5), wanted)


def test_blur_is_gaussian_where_everything_was_seen():
    heatmap = np.zeros((41, 61))
    heatmap[20, 30] = 1
    np.testing.assert_allclose(blur(heatmap, 3), gaussian_filter(heatmap, 3), atol=1e-6)


def test_a_wide_blur_is_close_to_the_gaussian():
    heatmap = np.zeros((400, 600))
    heatmap[150:250, 250:330] = 1
    assert np.abs(blur(heatmap, 20) - gaussian_filter(heatmap, 20)).max() < 0.02


def test_blur_keeps_the_unseen_unseen_and_draws_nothing_from_it():
    heatmap = np.ones((20, 30))
    heatmap[:, :10] = np.nan
    blurred = blur(heatmap, 4)
    np.testing.assert_array_equal(np.isnan(blurred), np.isnan(heatmap))
    np.testing.assert_allclose(blurred[:, 10:], 1, atol=1e-6)


def test_emphasis_scales_and_raises_to_a_power():
    heatmap = np.array([[2.0, 3.0, 4.0, np.nan]])
    np.testing.assert_allclose(emphasize(heatmap, 2)[0, :3], [0, 0.25, 1])
    assert np.isnan(emphasize(heatmap, 2)[0, 3])
    np.testing.assert_array_equal(emphasize(np.full((2, 2), 7.0)), 0)


def test_clipping_keeps_one_extreme_from_darkening_the_rest():
    heatmap = np.append(np.linspace(0, 1, 99), 1000.0).reshape(10, 10)
    assert emphasize(heatmap).flat[98] < 0.01
    assert emphasize(heatmap, clip=95).flat[98] == 1


def test_a_few_peaks_are_not_clipped():
    heatmap = np.zeros((10, 10))
    heatmap[3, 4] = 0.02
    assert emphasize(heatmap, clip=95).max() == 1


@pytest.mark.parametrize("value", [1 / 576, 1.0, 300.0])
@pytest.mark.parametrize("blur_tokens", [0.0, 0.5, 3.0])
def test_a_constant_map_shows_nothing_whatever_is_rounded(value, blur_tokens):
    heatmap = np.full((4, 4), value, np.float32)
    smooth = to_picture(heatmap, crop_view(), blur_tokens=blur_tokens)
    assert np.nanmax(emphasize(smooth)) == 0


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_whole_numbers_are_as_good_as_any(dtype):
    heatmap = np.eye(4).astype(dtype)
    pixels = to_picture(heatmap, crop_view())
    np.testing.assert_array_equal(pixels, to_picture(np.eye(4), crop_view()))
    np.testing.assert_array_equal(colour(heatmap), colour(np.eye(4)))


def test_low_is_blue_high_is_red_unseen_is_transparent():
    painted = colour(np.array([[0.05, 0.95, np.nan]]))
    assert painted[0, 0, 2] > painted[0, 0, 0] and painted[0, 1, 0] > painted[0, 1, 2]
    np.testing.assert_allclose(painted[..., 3], [[0.05**0.5, 0.95**0.5, 0]])
    flat = colour(np.array([[0.05, 0.95, np.nan]]), flat=True)
    np.testing.assert_array_equal(flat[..., 3], [[1, 1, 0]])


def test_the_picture_stays_as_it_is_where_the_map_is_low_unless_flat():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
    view = View((30, 40), (30, 40), (0, 0), (30, 40), 10, (3, 4))
    shown, flat = (
        overlay(picture, np.eye(3, 4), view, blur_tokens=0, opacity=1, flat=flat)
        for flat in (False, True)
    )
    low = np.kron(np.eye(3, 4), np.ones((10, 10))) == 0
    np.testing.assert_array_equal(shown[low], np.asarray(picture)[low])
    assert (flat[low] == np.rint(255 * colour(np.zeros((1, 1)))[0, 0, :3])).all()
    np.testing.assert_array_equal(shown[~low], flat[~low])


def test_an_outline_runs_around_each_level_and_not_along_the_rim():
    heatmap = np.zeros((40, 40))
    heatmap[:20, 10:30], heatmap[0, 0] = 0.6, np.nan
    layer = outline(heatmap, "magma", levels=[0.5])
    lined = layer[..., 3] == 1
    assert lined[10, [9, 10, 29, 30]].all() and lined[[19, 20], 20].all()
    assert not lined[0, 11:29].any() and not lined[5:15, 12:28].any() and lined.sum() < 140
    np.testing.assert_allclose(layer[10, 10, :3], colormaps["magma"](0.5)[:3])
    assert (layer[10, 9] == 1).all()


def test_a_signed_map_fades_at_zero_and_is_outlined_on_both_sides():
    heatmap = np.zeros((30, 60))
    heatmap[5:15, 5:15], heatmap[5:15, 40:50] = 0.64, -0.64
    painted = colour(heatmap, "RdBu_r", signed=True)
    np.testing.assert_allclose(painted[10, [10, 30, 45], 3], [0.8, 0, 0.8])
    for column, shade in ((10, 0.82), (45, 0.18)):
        np.testing.assert_array_equal(painted[10, column, :3], colormaps["RdBu_r"](shade)[:3])
    picture = Image.new("RGB", (60, 30), "grey")
    shown = paint(picture, heatmap, "RdBu_r", 1, signed=True)
    np.testing.assert_array_equal(shown, blend(picture, painted, 1))
    lines = outline(heatmap, "RdBu_r", [0.5], signed=True)
    for column, shade in ((5, 0.75), (40, 0.25)):
        np.testing.assert_allclose(lines[10, column, :3], colormaps["RdBu_r"](shade)[:3])
    assert (lines[10, [10, 30, 45], 3] == 0).all()


def test_unseen_pixels_are_left_as_they_were():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 200, 3), np.uint8))
    shown = overlay(picture, np.random.default_rng(0).random((4, 4)), crop_view())
    assert shown.shape == (100, 200, 3) and shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[:, :50], np.asarray(picture)[:, :50])
    assert (shown[20:80, 60:140] != np.asarray(picture)[20:80, 60:140]).any()


def test_opacity_runs_from_picture_to_map():
    picture = Image.new("RGB", (2, 1), (10, 20, 30))
    red = np.array([[[1.0, 0, 0, 1], [1, 0, 0, 0]]])
    np.testing.assert_array_equal(blend(picture, red, 0)[0], [[10, 20, 30]] * 2)
    np.testing.assert_array_equal(blend(picture, red, 1)[0], [[255, 0, 0], [10, 20, 30]])


def test_torch_heatmaps_are_taken():
    heatmap = torch.rand(4, 4)
    np.testing.assert_array_equal(
        to_picture(heatmap, crop_view()), to_picture(heatmap.numpy(), crop_view())
    )


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upscale(np.ones((4, 5)), crop_view()), r"grid \(4, 4\), got shape \(4, 5\)"),
        (lambda: upscale(np.full((4, 4), np.nan), crop_view()), "finite"),
        (lambda: upscale(np.full((4, 4), -1.0), crop_view()), "0 or more"),
        (lambda: blur(np.ones((2, 2)), -1), "sigma"),
        (lambda: emphasize(np.ones((2, 2)), 0), "power must be above 0, got 0"),
        (lambda: emphasize(np.ones((2, 2)), 1, 0), "clip"),
        (lambda: emphasize(np.ones((2, 2)), highest=0), "highest must be above 0, got 0"),
        (lambda: blend(Image.new("RGB", (2, 2)), np.ones((3, 2, 4))), "got"),
        (lambda: blend(Image.new("RGB", (2, 2)), np.ones((2, 2, 4)), 2), "opacity"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_cyan_and_red_are_those_of_the_visualizer():
    values = np.linspace(0, 1, 256)[None]
    cyan, red = (np.rint(colour(values, name) * 255)[0] for name in ("cyan", "red"))
    assert (cyan[:, 0] == 0).all() and (cyan[:, 2] == 255).all()
    assert cyan[0, 1] == 200 and cyan[-1, 1] == 255 and (np.diff(cyan[:, 1]) >= 0).all()
    assert (red[:, 0] == 255).all() and (red[:, 2] == 0).all()
    assert red[0, 1] == 0 and red[-1, 1] == 180 and (np.diff(red[:, 1]) >= 0).all()
    for painted in (cyan, red):
        np.testing.assert_array_equal(painted[:, 3], np.arange(256))


def test_a_crosshair_is_green_around_a_dark_blue_marker():
    layer = crosshair((200, 300), (120.0, 50.0))
    assert layer.shape == (200, 300, 4)
    marker, arm = layer[50, 120] * 255, layer[50, 130] * 255
    np.testing.assert_allclose(marker, [0x1E, 0x3A, 0x5F, 255], atol=1)
    assert arm[1] > 150 and arm[0] < 60 and arm[2] < 60 and arm[3] > 200
    ys, xs = np.nonzero(layer[..., 3])
    np.testing.assert_allclose([xs.min() + xs.max(), ys.min() + ys.max()], [239, 99], atol=2)
    assert (layer[..., 3] > 0).mean() < 0.05


def test_a_crosshair_at_the_rim_stays_on_the_picture():
    assert crosshair((50, 60), (59.97, 0.0))[0, 59, 3] > 0.5


def test_a_crosshair_on_a_long_picture_takes_little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layer = crosshair((100, 30_000), (15_000.0, 50.0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000  # kB
    assert layer[50, 15_000, 3] == 1 and layer[:, :10_000, 3].max() == 0


def test_layers_lie_one_over_the_other():
    picture = Image.new("RGB", (3, 1), (10, 20, 30))
    below = np.array([[[1.0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0]]])
    above = np.array([[[0.0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 0]]])
    stacked = stack_layers(picture, [below, above])
    np.testing.assert_array_equal(stacked[0], [[0, 0, 255], [255, 0, 0], [10, 20, 30]])
    np.testing.assert_array_equal(stack_layers(picture, []), np.asarray(picture))


def test_a_layer_is_written_as_a_transparent_png(tmp_path):
    layer = colour(np.random.default_rng(0).random((20, 30)), "red")
    save_layer(tmp_path / "deep" / "red.png", layer)
    with Image.open(tmp_path / "deep" / "red.png") as png:
        assert png.mode == "RGBA" and png.size == (30, 20)
        np.testing.assert_allclose(np.asarray(png) / 255, layer, atol=1 / 255)
