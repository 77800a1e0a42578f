"""Regions of a picture as COCO's JSON writes them: a box, polygons, or run lengths of a mask.

Coordinates are pixels from the top left corner of the picture. A pixel is in a region if its centre
is. What is given comes from a file, so it can be anything; it is checked here.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

ROUNDED = 1.0  # so many pixels may a region reach beyond the picture, where tools round

FAR = 1e9  # pixels: no picture is so large, and NaN is not below it either

Mask = Bool[np.ndarray, "height width"]


def region_mask(region: Mapping[str, object], size: tuple[int, int]) -> Mask:
    """The pixels of an annotation's region, on a picture of this (height, width).

    region: has "segmentation", polygons or run lengths, or else "bbox".

    Raises ValueError for what is no region, for one that reaches beyond the picture, that has
    another size, or that covers no pixel or all of them.

    >>> region_mask({"bbox": [1, 0, 2, 1]}, (2, 4)).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    shape = region.get("segmentation")
    if not shape:
        mask = box_mask(region.get("bbox"), size)
    else:
        mask = (run_length_mask if isinstance(shape, Mapping) else polygon_mask)(shape, size)
    if not 0 < mask.sum() < mask.size:
        raise ValueError(f"expected some pixels of the picture, got {mask.sum()} of {mask.size}")
    return mask


def box_mask(box: object, size: tuple[int, int]) -> Mask:
    """The pixels in a box: x, y, width and height. Raises ValueError as `region_mask`.

    >>> int(box_mask([0.2, 0.2, 1.5, 1.5], (4, 4)).sum())
    4
    """
    left, top, width, height = _numbers(box, 4)
    if not (width > 0 and height > 0):
        raise ValueError(f"expected a box of some width and height, got {width:g} x {height:g}")
    return _inside(np.array([[left, top], [left + width, top + height]]), size)


def polygon_mask(polygons: object, size: tuple[int, int]) -> Mask:
    """The pixels in any of these polygons, each x, y, x, y, … Raises ValueError as `region_mask`.

    >>> polygon_mask([[0, 0, 2.8, 0, 0, 2.8]], (3, 3)).astype(int)
    array([[1, 1, 0],
           [1, 0, 0],
           [0, 0, 0]])
    """
    from matplotlib.path import Path as Outline  # a quarter of a second that boxes need not wait

    if not isinstance(polygons, Sequence):
        raise ValueError(f"expected a list of polygons, got {_short(polygons)}")
    mask = np.zeros(size, bool)
    for polygon in polygons:
        corners = np.reshape(_numbers(polygon, 6, more=True), (-1, 2))
        around = _inside(np.array([corners.min(0), corners.max(0)]), size)
        rows, columns = around.nonzero()
        inside = Outline(corners).contains_points(np.stack([columns, rows], -1) + 0.5)
        mask[rows, columns] |= inside
    return mask


def run_length_mask(coded: Mapping, size: tuple[int, int]) -> Mask:
    """The pixels of a mask given as "size" and "counts" of pixels outside, inside, outside, …

    Counts go down the columns, from the left; a list, or COCO's text of it. Raises ValueError as
    `region_mask`.

    >>> run_length_mask({"size": [2, 3], "counts": [1, 3, 2]}, (2, 3)).astype(int)
    array([[0, 1, 0],
           [1, 1, 0]])
    """
    if coded.get("size") != [*size]:
        wanted = f"a mask of height and width {[*size]}, as the picture has"
        raise ValueError(f"expected {wanted}, got {_short(coded.get('size'))}")
    counts = coded.get("counts")
    counts = _counts_of(counts) if isinstance(counts, str) else counts
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not whole or sum(counts) != math.prod(size):
        got = f"counts with the sum {sum(counts)}" if whole else f"counts {_short(counts)}"
        raise ValueError(f"expected counts of all {math.prod(size)} pixels, got {got}")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(size[::-1]).T


def _counts_of(text: str) -> list[int]:
    """The counts that COCO's text stands for.

    A character less 48 has five bits of a number, the lowest first, and a sixth if more follow; the
    highest bit is the sign. From the fourth count on, it is what to add to the count before the
    last.
    """
    counts, number, shift = [], 0, 0
    for bits in (ord(character) - 48 for character in text):
        if not 0 <= bits < 64:
            raise ValueError(f"expected COCO's text of counts, got {_short(text)}")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= 1 << shift if bits & 16 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts


def _inside(corners: Float[np.ndarray, "2 xy"], size: tuple[int, int]) -> Mask:
    """The pixels of a rectangle that lies in the picture, up to what is `ROUNDED`."""
    (left, top), (right, bottom) = corners
    height, width = size
    if min(left, top) < -ROUNDED or right > width + ROUNDED or bottom > height + ROUNDED:
        where = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}"
        raise ValueError(f"expected a region in the picture of {width} x {height}, got {where}")
    ys, xs = (np.arange(length) + 0.5 for length in size)
    return ((ys >= top) & (ys < bottom))[:, None] & ((xs >= left) & (xs < right))


def _numbers(given: object, count: int, *, more: bool = False) -> list[float]:
    """So many finite numbers; or more, in pairs."""
    numbers = [n for n in given if type(n) in (int, float)] if isinstance(given, list) else []
    many = len(numbers) >= count and len(numbers) % 2 == 0 if more else len(numbers) == count
    if not many or len(numbers) != len(given) or not all(abs(n) < FAR for n in numbers):
        wanted = f"{count} or more finite numbers in pairs" if more else f"{count} finite numbers"
        raise ValueError(f"expected {wanted}, got {_short(given)}")
    return [float(n) for n in numbers]


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:60]}…"
