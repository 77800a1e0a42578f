"""From a grid of relevance back to the pixels of the original picture, one function per step."""

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    find_objects,
    gaussian_filter,
    label,
)

from rolloutlib.algorithm.arrays import Array, as_numpy
from rolloutlib.files.complete import complete_file
from rolloutlib.files.pictures import upright_rgb
from rolloutlib.grid import View

# Maps of one colour, whose opacity grows with the value. As in the attention visualizer for
# Qwen3-VL: edges in cyan, decisions from red to yellow.
_FAINT = {
    "cyan": [(0, 200 / 255, 1, 0.0), (0, 1, 1, 1.0)],
    "red": [(1, 0, 0, 0.0), (1, 180 / 255, 0, 1.0)],
}
for _name, _ends in _FAINT.items():
    mpl.colormaps.register(mpl.colors.LinearSegmentedColormap.from_list(_name, _ends), force=True)
TARGET, MARKER = (0, 200, 0), (0x1E, 0x3A, 0x5F)  # a click's cross-hair and its point

BAND = 2**20  # pixels that are coloured at a time
LEVELS = (0.25, 0.5, 0.75)  # of a map's highest value, where `outline` draws lines
FLAT = 2e-5  # relative contrast that may be mere rounding: nothing to see
# A fading map's opacity is its value to this power: with 1, one cell far above all others would
# leave nothing else to see.
FADING = 0.5

Heatmap = Float[np.ndarray, "height width"]  # NaN where the model saw nothing


def upscale(heatmap: Float[Array, "rows columns"], view: View) -> Heatmap:
    """The grid at the resolution of the model's input: every token a square of equal pixels.

    For a video, the rows and columns of one time step.

    Raises ValueError for a heatmap that does not fit the view's grid, is negative or not finite.
    """
    grid = as_numpy(heatmap)
    if grid.shape != view.grid[-2:]:
        raise ValueError(f"expected a heatmap on the grid {view.grid[-2:]}, got shape {grid.shape}")
    if not (np.isfinite(grid).all() and (grid >= 0).all()):
        raise ValueError("expected a heatmap of finite numbers, 0 or more, got others")
    tiles = grid.repeat(view.token, axis=0).repeat(view.token, axis=1)
    pixels = np.full(view.window, np.nan, dtype=np.result_type(grid, np.float16))
    pixels[: tiles.shape[0], : tiles.shape[1]] = tiles
    return pixels


def undo_crop(pixels: Heatmap, view: View) -> Float[np.ndarray, "resized_height resized_width"]:
    """Put the model's input back where it was cropped from the resized picture; drop the padding.

    What the crop removed is NaN: the model never saw it.
    """
    return _sample(pixels, *_resized_centres(view))


def undo_resize(pixels: Heatmap, view: View) -> Float[np.ndarray, "picture_height picture_width"]:
    """Resize the map to the size of the original picture, by nearest neighbour."""
    return _sample(pixels, *_picture_centres(view, pixels.shape))


def _resized_centres(view: View) -> list[Float[np.ndarray, " pixel"]]:
    """Where the rows and columns of the resized picture lie on the model's input, in pixels."""
    size = [max(round(length), 1) for length in view.resized]
    centres = [(np.arange(n) + 0.5) * full / n for n, full in zip(size, view.resized, strict=True)]
    return [c - start for c, start in zip(centres, view.offset, strict=True)]


def _picture_centres(view: View, resized: tuple[int, ...]) -> list[Float[np.ndarray, " pixel"]]:
    """Where the rows and columns of the original lie on the resized picture, in pixels."""
    sides = zip(view.picture, resized, strict=True)
    return [(np.arange(n) + 0.5) * now / n for n, now in sides]


def _sample(
    pixels: Heatmap, ys: Float[np.ndarray, " rows"], xs: Float[np.ndarray, " columns"]
) -> Float[np.ndarray, "rows columns"]:
    """The values at these points, in pixels from the top left corner; NaN outside."""
    rows, columns = (np.floor(at).astype(int) for at in (ys, xs))
    height, width = pixels.shape
    near = pixels[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))]
    near[(rows < 0) | (rows >= height)] = np.nan
    near[:, (columns < 0) | (columns >= width)] = np.nan
    return near


def to_picture(
    heatmap: Float[Array, "rows columns"], view: View, *, blur_tokens: float = 0.0
) -> Heatmap:
    """Put the grid on the original picture: `upscale`, `undo_crop`, `undo_resize`, `blur`.

    The resized picture, which can be far larger than the original, is never made.

    blur_tokens: the blur's standard deviation, in widths of a token on the picture.
    """
    resized = _resized_centres(view)
    picked = _picture_centres(view, tuple(map(len, resized)))
    places = [at[pick.astype(int)] for at, pick in zip(resized, picked, strict=True)]
    return blur(_sample(upscale(heatmap, view), *places), blur_tokens * view.token_width)


def blur(heatmap: Heatmap, sigma: float) -> Heatmap:
    """Gaussian blur with a standard deviation of `sigma` pixels; 0 leaves the map as it is.

    What the model did not see stays NaN and does not affect its neighbours. Wide blurs are
    computed on a coarser grid, where a quarter of sigma is one pixel.
    """
    if sigma < 0:
        raise ValueError(f"sigma must be 0 or more pixels, got {sigma}")
    if sigma == 0:
        return heatmap
    seen = ~np.isnan(heatmap)
    weights = _blurred(seen.astype(np.float32), sigma)
    values = _blurred(np.where(seen, heatmap, 0).astype(np.float32), sigma)
    return np.where(seen, values / np.maximum(weights, 1e-6), np.nan)


def _blurred(values: Float[np.ndarray, "height width"], sigma: float) -> np.ndarray:
    step = max(int(sigma // 4), 1)
    if step == 1:
        return gaussian_filter(values, sigma, mode="constant")
    height, width = values.shape
    small = (max(width // step, 1), max(height // step, 1))
    coarse = np.asarray(Image.fromarray(values).resize(small, Image.Resampling.BOX))
    smooth = gaussian_filter(coarse, sigma / step, mode="constant")
    return np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BILINEAR))


def emphasize(
    heatmap: Heatmap, power: float = 1.0, clip: float = 100.0, highest: float | None = None
) -> Heatmap:
    """Scale a map to [0, 1] and raise it to `power`: above 1 only the peaks stay bright.

    clip: the percentile that becomes 1; below 100 it keeps one extreme pixel from making the
    rest dark. A map that is constant up to rounding becomes 0.
    highest: the value that becomes 1, while 0 becomes 0: one scale for maps that are compared.

    >>> emphasize(np.array([[0.0, 1.0, 2.0]]), power=2)
    array([[0.  , 0.25, 1.  ]])
    >>> emphasize(np.array([[0.5, 1.0, 2.0]]), highest=4.0)
    array([[0.125, 0.25 , 0.5  ]])
    """
    require_above_zero("power", power)
    if not 0 < clip <= 100:
        raise ValueError(f"clip must be a percentile in (0, 100], got {clip}")
    if highest is not None:
        require_above_zero("highest", highest)
        return np.minimum(heatmap / highest, 1) ** power
    if np.isnan(heatmap).all():
        return heatmap
    low, high = np.nanmin(heatmap), np.nanmax(heatmap)
    if is_flat(low, high):
        return heatmap * 0
    clipped = high if clip == 100 else np.nanpercentile(heatmap, clip)
    height = (clipped if clipped > low else high) - low  # a few lone peaks are not clipped
    return np.minimum((heatmap - low) / height, 1) ** power


def range_label(power: float = 1.0) -> str:
    """What a colour bar says of a map that `emphasize` scaled between its own ends.

    >>> range_label(2.0)
    "(share of the map's range) ^ 2"
    """
    label = "share of the map's range"
    return label if power == 1 else f"({label}) ^ {power:g}"


def require_above_zero(name: str, value: float) -> None:
    """Raise a ValueError unless the value is above 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def is_flat(low: float | np.floating, high: float | np.floating) -> bool:
    """Whether a map with this lowest and highest value is constant up to rounding."""
    return bool(high - low <= FLAT * max(abs(low), abs(high)))


def colour(
    heatmap: Heatmap, colours: str = "turbo", *, flat: bool = False, signed: bool = False
) -> Float[np.ndarray, "height width 4"]:
    """A map in [0, 1] as red, green, blue and opacity in [0, 1]: blue is low and red is high.

    The opacity is the root of the value, so the picture stays visible where the map is low, and
    the map where it is a tenth of its highest value. What the model did not see is fully
    transparent.

    colours: any name that matplotlib knows, or "cyan" or "red". Lightness grows with the value in
    "viridis", "cividis" and "magma", which readers who confuse red and green can tell apart.
    flat: the same opacity everywhere; "cyan" and "red" have one of their own.
    signed: the map is in [-1, 1]: 0 has the middle colour, and fades.

    >>> colour(np.array([[0.25, 1.0]]))[..., 3]
    array([[0.5, 1. ]])
    >>> colour(np.array([[-0.25, 0.0]]), "RdBu_r", signed=True)[..., 3]
    array([[0.5, 0. ]])
    """
    values = np.nan_to_num(heatmap).astype(float)
    painted = mpl.colormaps[colours]((values + 1) / 2 if signed else values)
    if not flat and colours not in _FAINT:
        painted[..., 3] = np.abs(values) ** FADING
    painted[..., 3] *= ~np.isnan(heatmap)
    return painted


def outline(
    heatmap: Heatmap,
    colours: str = "viridis",
    levels: Sequence[float] = LEVELS,
    *,
    signed: bool = False,
) -> Float[np.ndarray, "height width 4"]:
    """A layer with a line around what reaches each level of a map in [0, 1]; the rest is clear.

    Each line has the colour of its level and a white edge, so it is seen on any picture.
    signed: the map is in [-1, 1], and each level is one below 0, too.

    >>> outline(np.array([[0.0, 0.6, 0.6, 0.6, 0.0]]), levels=[0.5])[..., 3]
    array([[1., 1., 0., 1., 1.]])
    """
    values = np.nan_to_num(heatmap).astype(float)
    width = max(round(max(values.shape) / 400), 1)
    layer = np.zeros((*values.shape, 4))
    for level in sorted([*levels, *(-level for level in levels if signed)], key=abs):
        above = values * np.sign(level) >= abs(level)
        inner = binary_erosion(above, iterations=width, border_value=1)
        layer[binary_dilation(above, iterations=width) & ~above] = 1
        shade = (level + 1) / 2 if signed else level
        layer[above & ~inner] = (*mpl.colormaps[colours](shade)[:3], 1)
    return layer


def blend(
    picture: Image.Image, coloured: Float[np.ndarray, "height width 4"], opacity: float = 0.5
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay the coloured map over the picture. Raises ValueError where their sizes differ."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    pixels, shown = _canvas(picture, coloured)
    for rows in _bands(pixels):
        share = coloured[rows, :, 3:] * opacity
        mixed = pixels[rows] * (1 - share) + coloured[rows, :, :3] * 255 * share
        shown[rows] = np.rint(mixed)
    return shown


def paint(
    picture: Image.Image,
    heatmap: Heatmap,
    colours: str = "turbo",
    opacity: float = 0.5,
    *,
    flat: bool = False,
    signed: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a map in [0, 1] over the picture: `colour` and `blend`, a band of rows at a time.

    Colours take 32 bytes a pixel, so those of a large picture are never all there.
    """
    pixels, shown = _canvas(picture, heatmap)
    for rows in _bands(pixels):
        band = Image.fromarray(pixels[rows])
        coloured = colour(heatmap[rows], colours, flat=flat, signed=signed)
        shown[rows] = blend(band, coloured, opacity)
    return shown


def _canvas(picture: Image.Image, layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of the picture as the model saw it, and room for as many."""
    pixels = np.asarray(upright_rgb(picture))
    if pixels.shape[:2] != layer.shape[:2]:
        raise ValueError(
            f"expected a map of the picture's {pixels.shape[:2]} pixels, got {layer.shape[:2]}"
        )
    return pixels, np.empty_like(pixels)


def _bands(pixels: np.ndarray) -> Iterator[slice]:
    """The rows of a picture, some at a time."""
    step = max(BAND // pixels.shape[1], 1)
    return (slice(top, top + step) for top in range(0, len(pixels), step))


def peak_boxes(heatmap: Heatmap, level: float = 0.5) -> list[tuple[list[int], float]]:
    """Boxes round what reaches `level` between a map's lowest and highest value, strongest first.

    A box is x, y, width and height in pixels, as in COCO; with it comes its highest value, as a
    share of the map's highest. A map that is constant up to rounding has none.

    >>> peak_boxes(np.array([[0.0, 1.0, 1.0, 0.0, 0.8]]))
    [([1, 0, 2, 1], 1.0), ([4, 0, 1, 1], 0.8)]
    """
    scaled = np.nan_to_num(emphasize(heatmap))
    parts, _ = label((scaled >= level) & (scaled > 0))
    found = []
    for down, across in find_objects(parts):
        box = [across.start, down.start, across.stop - across.start, down.stop - down.start]
        found.append((box, float(heatmap[down, across].max() / np.nanmax(heatmap))))
    return sorted(found, key=lambda one: -one[1])


def crosshair(
    size: tuple[int, int], point: tuple[float, float]
) -> Float[np.ndarray, "height width 4"]:
    """A layer of (height, width) pixels that shows where a click goes: a green cross-hair around
    a dark blue marker on `point`, (x, y) in pixels."""
    height, width = size
    reach = ceil(24 * max(size) / 400)  # the cross-hair ends within so many pixels of the point
    fine = (
        4 if reach < 600 else 1
    )  # drawn this many times larger and then reduced, for smooth edges
    unit = fine * max(size) / 400
    left, top = (int(at) - reach for at in point)
    x, y = fine * (point[0] - left), fine * (point[1] - top)
    around = Image.new("RGBA", (2 * reach * fine,) * 2, (*TARGET, 0))
    draw = ImageDraw.Draw(around)
    for dx, dy in [(1, 0), (-1, 0), (0, 1), (0, -1)]:
        ends = [(x + dx * far * unit, y + dy * far * unit) for far in (6, 22)]
        draw.line(ends, fill=(*TARGET, 255), width=round(2.5 * unit))
    for radius, tint in [(14, TARGET), (4, MARKER)]:
        box = [x - radius * unit, y - radius * unit, x + radius * unit, y + radius * unit]
        inside = (*MARKER, 255) if tint == MARKER else None
        draw.ellipse(box, fill=inside, outline=(*tint, 255), width=round(2 * unit))
    layer = Image.new("RGBA", (width, height))
    layer.paste(around.reduce(fine), (left, top))
    return np.asarray(layer) / np.float32(255)


def stack_layers(
    picture: Image.Image, layers: Sequence[Float[np.ndarray, "height width 4"]]
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay coloured layers over the picture one after another, each with its own opacity."""
    for layer in layers:
        picture = Image.fromarray(blend(picture, layer, opacity=1.0))
    return np.asarray(upright_rgb(picture))


def save_layer(path: str | Path, layer: Float[np.ndarray, "height width 4"]) -> None:
    """Write a coloured layer as a transparent PNG, to be laid over the picture elsewhere."""
    with complete_file(path) as part:
        Image.fromarray(np.rint(layer * 255).astype(np.uint8)).save(part)


def overlay(
    picture: Image.Image,
    heatmap: Float[Array, "rows columns"],
    view: View,
    *,
    blur_tokens: float = 0.5,
    power: float = 1.0,
    clip: float = 100.0,
    highest: float | None = None,
    colours: str = "turbo",
    opacity: float = 0.5,
    flat: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Show where in the picture the relevance lies: all steps of this module, in order.

    blur_tokens: the blur's standard deviation, in widths of a token on the picture.
    The other settings are those of `emphasize`, `colour` and `blend`.
    """
    smooth = to_picture(heatmap, view, blur_tokens=blur_tokens)
    scaled = emphasize(smooth, power, clip, highest)
    return paint(picture, scaled, colours, opacity, flat=flat)
