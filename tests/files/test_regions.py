"""Regions as COCO's JSON has them, against their definitions written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw

from rolloutlib.files.regions import box_mask, polygon_mask, region_mask, run_length_mask

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def run_lengths(mask):
    """Counts of pixels outside, inside, outside, …, down the columns."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def compressed(counts):
    """COCO's text of counts (rleToString of its maskApi.c): six bits in a character from 48 on."""
    text = ""
    for number, count in enumerate(counts):
        left, more = count - (counts[number - 2] if number > 2 else 0), True
        while more:
            bits, left = left & 31, left >> 5
            more = left != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


@given(MASKS)
def test_run_lengths_are_read_both_as_a_list_and_as_text(mask):
    counts = run_lengths(mask)
    for written in (counts, compressed(counts)):
        coded = {"size": list(mask.shape), "counts": written}
        np.testing.assert_array_equal(run_length_mask(coded, mask.shape), mask)


def test_long_runs_take_several_characters():
    coded = {"size": [64, 64], "counts": "0PP1PP3"}  # 0, 1024 and 3072
    assert run_length_mask(coded, (64, 64)).sum() == 1024


@given(st.tuples(*[st.integers(0, 60)] * 2), st.tuples(*[st.integers(1, 60)] * 2))
def test_a_box_has_the_pixels_whose_centres_lie_in_it(corner, side):
    (left, top), (width, height) = ([n / 4 for n in pair] for pair in (corner, side))
    box, (x, y) = [left, top, width, height], np.meshgrid(np.arange(30) + 0.5, np.arange(32) + 0.5)
    inside = (left <= x) & (x < left + width) & (top <= y) & (y < top + height)
    np.testing.assert_array_equal(box_mask(box, (32, 30)), inside)
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    odd = all(n * 4 % 4 != 2 for n in corners)  # no centre lies on an edge
    assert not odd or (polygon_mask([corners], (32, 30)) == inside).all()


def test_a_polygon_is_the_one_that_is_drawn_many_times_larger():
    rng = np.random.default_rng(0)
    for _ in range(5):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radii = rng.uniform(5, 14, (12, 1))
        corners = 16 + radii * np.stack([np.cos(angles), np.sin(angles)], -1)
        large = Image.new("L", (32 * 31, 32 * 31))
        ImageDraw.Draw(large).polygon([*map(tuple, corners * 31)], fill=1)
        centres = np.asarray(large)[15::31, 15::31] > 0
        unlike = polygon_mask([corners.ravel().tolist()], (32, 32)) != centres
        assert unlike.sum() <= 1  # a centre within a thirtieth of a pixel of an edge


def test_several_polygons_are_one_region_and_the_mask_goes_before_the_box():
    squares = [[0, 0, 2, 0, 2, 2, 0, 2], [4, 0, 6, 0, 6, 2, 4, 2]]
    region = {"bbox": [0, 0, 6, 2], "segmentation": squares}
    assert region_mask(region, (3, 8)).sum() == 8
    assert region_mask(region | {"segmentation": []}, (3, 8)).sum() == 12


@pytest.mark.parametrize(
    ("region", "complaint"),
    [
        ({"bbox": [1, 2, 3]}, r"expected 4 finite numbers, got \[1, 2, 3\]"),
        ({"bbox": None}, "expected 4 finite numbers, got None"),
        ({"bbox": "1234"}, "expected 4 finite numbers, got '1234'"),
        ({"bbox": [0, 0, True, 2]}, "expected 4 finite numbers"),
        ({"bbox": [float("nan"), 0, 2, 2]}, r"expected 4 finite numbers, got \[nan"),
        ({"bbox": [0, 0, float("inf"), 2]}, "expected 4 finite numbers"),
        ({"bbox": [0, 0, 10**400, 2]}, "expected 4 finite numbers"),
        ({"bbox": [1, 1, -3, 2]}, "expected a box of some width and height, got -3 x 2"),
        ({"bbox": [1, 1, 0, 2]}, "expected a box of some width and height, got 0 x 2"),
        ({"bbox": [5, 1, 5, 2]}, "in the picture of 8 x 6, got x 5 to 10, y 1 to 3"),
        ({"bbox": [-2, 1, 5, 2]}, "in the picture of 8 x 6, got x -2 to 3"),
        ({"bbox": [0.6, 1, 0.5, 3]}, "expected some pixels of the picture, got 0 of 48"),
        ({"bbox": [0, 0, 8, 6]}, "expected some pixels of the picture, got 48 of 48"),
        ({"segmentation": [[0, 0, 4, 4]]}, "expected 6 or more finite numbers in pairs"),
        ({"segmentation": [[0, 0, 4, 4, 0, 4, 1]]}, "expected 6 or more finite numbers in pairs"),
        ({"segmentation": [[0, 0, 20, 0, 0, 4]]}, "in the picture of 8 x 6, got x 0 to 20"),
        ({"segmentation": 7}, "expected a list of polygons, got 7"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"and width \[6, 8\]"),
        ({"segmentation": {"counts": [48]}}, r"as the picture has, got None"),
        ({"segmentation": {"size": [6, 8], "counts": [40, 7]}}, "of all 48 pixels, got .* sum 47"),
        ({"segmentation": {"size": [6, 8], "counts": [50, -2]}}, r"got counts \[50, -2\]"),
        ({"segmentation": {"size": [6, 8], "counts": "é"}}, "expected COCO's text of counts"),
    ],
)
def test_what_is_no_region_of_the_picture_is_told(region, complaint):
    with pytest.raises(ValueError, match=complaint):
        region_mask(region, (6, 8))


def test_a_pixel_of_rounding_at_the_edge_is_no_fault():
    assert region_mask({"bbox": [-0.5, 0, 4, 6.9]}, (6, 8)).sum() == 3 * 6
