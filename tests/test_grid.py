"""Where tokens lie: boxes on the picture, positions in the sequence, and maps on grids."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rolloutlib.grid import ImageTokens, Patches, View, image_tokens, on_grid, times

# A 100x200 picture resized to 50x100, of which the model sees 48x36 from (1, 26) on.
VIEW = View((100, 200), (50, 100), (1, 26), (48, 36), 12, (4, 3))


def boxes_by_loops(view):
    """Each token's rectangle: window → resized picture → original."""
    down, across = (np.divide(view.picture, view.resized)).astype(float)
    return [
        [
            (view.offset[1] + column * view.token) * across,
            (view.offset[0] + row * view.token) * down,
            (view.offset[1] + (column + 1) * view.token) * across,
            (view.offset[0] + (row + 1) * view.token) * down,
        ]
        for row in range(view.grid[-2])
        for column in range(view.grid[-1])
    ]


@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.floats(1, 500), st.floats(1, 500)),
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.integers(1, 32),
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
)
def test_boxes_tile_the_window_row_by_row(picture, resized, offset, token, grid):
    window = (grid[0] * token + 3, grid[1] * token)  # a rim that no token covers
    view = View(picture, resized, offset, window, token, grid)
    np.testing.assert_allclose(view.boxes(), boxes_by_loops(view), rtol=1e-12, atol=1e-9)
    widths = view.boxes()[:, 2] - view.boxes()[:, 0]
    np.testing.assert_allclose(widths, view.token_width, rtol=1e-6, atol=1e-9)


def test_boxes_by_hand():
    assert VIEW.boxes()[[0, 1, 3]].tolist() == [[52, 2, 76, 26], [76, 2, 100, 26], [52, 26, 76, 50]]
    assert VIEW.token_width == 24
    padded = View((30, 60), (30, 60), (-15, 0), (60, 60), 15, (4, 4))
    assert padded.boxes()[0].tolist() == [0, -15, 15, 0]  # beyond the picture


def test_a_video_has_the_boxes_of_every_frame():
    video = View((100, 200), (50, 100), (1, 26), (48, 36), 12, (5, 4, 3))
    np.testing.assert_array_equal(video.boxes(), VIEW.boxes())


@pytest.mark.parametrize(
    ("window", "grid"), [((9, 9), (3, 2)), ((9, 9), (2, 3)), ((9, 9), (0, 2)), ((9, 9), (0, 2, 2))]
)
def test_a_grid_that_does_not_fit_is_named(window, grid):
    message = f"4-pixel tokens that fits the model's input of 9x9 pixels, got {times(grid)}$"
    with pytest.raises(ValueError, match=message):
        View((9, 9), (9, 9), (0, 0), window, 4, grid)


def test_grids_in_words():
    assert times((3, 4)) == "3x4" and times((2, 3, 4)) == "2x3x4"


# Relevance on a grid


@pytest.mark.parametrize("rows", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["NumPy", "torch"])
@pytest.mark.parametrize("grid", [(4, 3), (2, 4, 3)], ids=times)
def test_relevance_is_laid_on_the_grid_in_the_order_of_positions(rows, kind, grid):
    rng = np.random.default_rng(0)
    count = int(np.prod(grid))
    positions = rng.permutation(30)[:count]
    relevance = rng.random((*rows, 30))
    expected = np.empty((*rows, *grid))
    for token, place in enumerate(np.ndindex(grid)):
        expected[(..., *place)] = relevance[..., positions[token]]
    view = View((100, 200), (50, 100), (1, 26), (48, 36), 12, grid)
    given = relevance if kind == "NumPy" else torch.from_numpy(relevance)
    image = ImageTokens(Image.new("RGB", (200, 100)), view, torch.from_numpy(positions))
    heatmaps = image.heatmaps(given)
    assert isinstance(heatmaps, type(given))
    np.testing.assert_array_equal(heatmaps, expected)


def test_relevance_that_ends_before_the_picture_is_named():
    positions = torch.arange(5, 17)
    with pytest.raises(ValueError, match="expected relevance over at least 17 keys, got 16"):
        on_grid(torch.rand(2, 16), positions, VIEW)
    assert on_grid(torch.rand(2, 17), positions, VIEW).shape == (2, 4, 3)


# Patches behind the tokens


def patches():
    """A tower of 2x2 patches a token, whose outputs stand behind a class token, token by token."""
    view = View((100, 200), (50, 100), (1, 26), (48, 36), 6, (8, 6))
    merged = torch.arange(1, 49).view(12, 4)
    return Patches(view, layers=3, sequence=0, positions=torch.arange(48) + 1, merged=merged)


def test_a_tokens_relevance_is_shared_by_its_outputs():
    relevance = torch.rand(2, 12, dtype=torch.float64)
    outputs = patches().on_outputs(relevance, 49)
    expected = torch.zeros(2, 49, dtype=torch.float64)
    for row in range(2):
        for token in range(12):
            for share in range(4):
                expected[row, 1 + 4 * token + share] = relevance[row, token] / 4
    torch.testing.assert_close(outputs, expected, atol=1e-15, rtol=0)
    torch.testing.assert_close(outputs.sum(-1), relevance.sum(-1))


def test_the_finest_view_is_that_of_the_patches_where_there_are_any():
    picture, positions, behind = Image.new("RGB", (200, 100)), torch.arange(12), patches()
    assert ImageTokens(picture, VIEW, positions).patch_view == VIEW
    assert ImageTokens(picture, VIEW, positions, behind).patch_view == behind.view
    on_patches = behind.heatmaps(torch.arange(49.0)[None])
    np.testing.assert_array_equal(on_patches[0], np.arange(1, 49).reshape(8, 6))


# Tokens in a prompt

IMAGE = 7


def test_each_picture_gets_its_tokens_without_the_leading_one():
    small = View((9, 9), (9, 9), (0, 0), (9, 9), 4, (2, 2), leading=1)
    pictures = [Image.new("RGB", (200, 100)), Image.new("RGB", (9, 9))]
    ids = torch.tensor([1, *[IMAGE] * 6, 2, *[IMAGE] * 6, 3, *[IMAGE] * 5, 4])
    first, second = image_tokens(pictures, [VIEW, small], ids, IMAGE, [patches(), None])
    assert first.positions.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    assert second.positions.tolist() == [16, 17, 18, 19]
    assert [first.picture, second.picture] == pictures
    assert (first.view, second.view) == (VIEW, small)
    assert first.patches is not None and second.patches is None


@pytest.mark.parametrize("count", [0, 11, 13])
def test_another_number_of_tokens_than_the_grid_has_is_named(count):
    ids = torch.tensor([1, *[IMAGE] * count, 2])
    message = f"expected 12 image tokens in the prompt for the grid 4x3, got {count}$"
    with pytest.raises(ValueError, match=message):
        image_tokens([Image.new("RGB", (200, 100))], [VIEW], ids, IMAGE, [None])
