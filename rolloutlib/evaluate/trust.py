"""Does an answer depend on the place that a map marks? Remove the place and ask again."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import zip_longest
from math import dist, sqrt
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter
from scipy.ndimage import uniform_filter
from scipy.special import expit

from rolloutlib.algorithm.arrays import Array, as_numpy
from rolloutlib.evaluate.methods import BEYOND, STRONGEST
from rolloutlib.evaluate.perturbation import local_mean
from rolloutlib.grid import View, times
from rolloutlib.models import Answer, heatmaps
from rolloutlib.models.tower import SHIPPED
from rolloutlib.overlay import FLAT, is_flat, to_picture

SIZES = (0.01, 0.05)  # of the squares that are removed, as shares of what the model saw
BATCH = 16  # pictures in one batch, at most
RIVALS = 4  # peaks that `verified_peak` compares with the shipped one, at most
PLAIN = 0.5  # share of the contrast around: with less, there is little to see at a peak
SURE = 0.8  # the probability from which an answer is said to depend on a place
REACH = 0.5  # of the local mean
BLUR_TOKENS = 0.5  # of the maps, as they are shown
POINT = 5  # pixels: the side of what is seen at a point
LEAST = 1e-7  # of 1 - probability: float32 tells no less

Point = tuple[int, int]  # x, y
Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two excluded
Pixels = Float[np.ndarray, "height width"]  # NaN where the model saw nothing
Maps = Mapping[str, Float[Array, "rows columns"]]
Progress = Callable[[int, int], None]


def nothing(done: int, pictures: int) -> None:
    """Nobody wants to know about progress."""


@dataclass(frozen=True)
class PeakCheck:
    """What happened to an answer when the highest place of a map was removed from the picture.

    probability: in [0, 1], calibrated: that the peak lies in the region the answer depends on.
    point: the peak, x and y in pixels.  boxes: the squares around it that were removed, smallest
    first: left, top, right, bottom in pixels.  drops: how far the answer's log-probability fell,
    for each square and each way to replace it: by blur, by the local mean.
    control_boxes, controls: the same for squares of the same size and of similar contrast, of which
    the map thinks little; each size has a place of its own.
    log_probability: of the answer with the whole picture.
    contrast: how far what is seen at the point is from its surroundings, as a share of the highest
    contrast in the largest square, in [0, 1].
    """

    probability: float
    point: Point
    boxes: tuple[Box, ...]
    drops: Float[np.ndarray, "size 2"] = field(compare=False)
    control_boxes: tuple[Box, ...]
    controls: Float[np.ndarray, "size 2"] = field(compare=False)
    log_probability: float
    contrast: float

    @property
    def box(self) -> Box:
        """The largest square that was removed around the peak."""
        return self.boxes[-1]

    @property
    def verdict(self) -> str:
        """ "depends", "does not depend" or "can't tell"."""
        if self.probability >= SURE:
            return "depends"
        return "does not depend" if self.probability <= 1 - SURE else "can't tell"

    @property
    def sentence(self) -> str:
        """The verdict and the probability in plain words."""
        if self.verdict == "can't tell":
            return f"can't tell: {self.probability:.2f}"
        return f"the answer {self.verdict} on this place: {self.probability:.2f}"


@dataclass(frozen=True)
class VerifiedPeak:
    """The peak that was kept among those of several maps.

    name: of the map it came from.  heatmap: that map.  check: what removing its highest place did.
    point: x and y in pixels: that place; or where there is little to see, the one in the same token
    that `sharpened` finds.
    points, drops: all peaks that were compared, by map, the shipped one first, and how far the
    answer's log-odds fell without the largest square around each.
    """

    name: str
    point: Point
    check: PeakCheck
    heatmap: Float[Array, "rows columns"] = field(compare=False)
    points: tuple[tuple[str, Point], ...]
    drops: Float[np.ndarray, " peak"] = field(compare=False)


def check_peak(
    answer: Answer,
    heatmap: Float[Array, "rows columns"],
    *,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
    blur_tokens: float = BLUR_TOKENS,
    on_progress: Progress = nothing,
) -> PeakCheck:
    """Does the answer depend on the highest place of this map?

    Squares around the place are replaced, by a blur and by the local mean, and the model is asked
    how likely its answer still is. The same is done at places of similar contrast that the map
    thinks little of. All pictures, 16 at most, are one batch. Where the model reads something
    larger than the squares, the rest of it may be enough for the same answer.

    heatmap: on the grid of `answer.image.patch_view` or `answer.image.view`.  sizes: of the
    squares, as shares of what the model saw of the picture; up to three, the smallest first.
    seed: of the choice of control places.  blur_tokens: of the map, as in `overlay`.
    on_progress: is told how many pictures are done, and of how many.

    Raises ValueError for a heatmap on neither grid or without a highest place, for an answer about
    several pictures, and for sizes out of range.
    """
    scene = _Scene(answer, heatmap, sizes, seed, blur_tokens)
    removed = scene.removed(scene.peak)
    on_progress(0, len(removed) + 1)
    whole, *rest = scene.likely([scene.picture, *removed])
    on_progress(len(removed) + 1, len(removed) + 1)
    return scene.check(scene.peak, whole, np.array(rest))


def verified_peak(
    answer: Answer,
    maps: Maps,
    *,
    shipped: str = BEYOND,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
    on_progress: Progress = nothing,
) -> VerifiedPeak:
    """Which of the peaks of several maps does the answer depend on?

    The shipped map's peak is checked as by `check_peak`, and other peaks, up to four, are removed,
    each by itself. Kept is the peak with the highest sum of three numbers: arcsinh of how far the
    answer's log-odds fall without the largest square around it, the shipped map there as a share of
    its highest value, and how much there is to see there (`PeakCheck.contrast`). If that is another
    one, it is checked, too. With the usual two sizes that takes 9 to 20 pictures, in three batches
    at most.

    maps: by name, such as `candidate_maps`; each on the grid of `answer.image.patch_view` or
    `answer.image.view`.  shipped: the name of the map that is shown.
    sizes, seed, on_progress: as in `check_peak`.

    Raises ValueError if the shipped map is not among the maps, and what `check_peak` raises.
    """
    if shipped not in maps:
        raise ValueError(f"expected a map called {shipped!r}, got {', '.join(maps)}")
    scenes = {name: _Scene(answer, heatmap, sizes, seed) for name, heatmap in maps.items()}
    scene = scenes[shipped]
    removed = scene.removed(scene.peak)
    of = 2 * len(removed) + RIVALS
    on_progress(0, of)
    whole, *rest = scene.likely([scene.picture, *removed])
    check = scene.check(scene.peak, whole, np.array(rest))
    every = {name: each.pixels for name, each in scenes.items()}
    peaks = [(shipped, scene.peak), *rivals(every, shipped, scene.sides[-1] / 2)]
    on_progress(len(removed) + 1, of)
    others = scene.likely([scene.without(point)[-1] for _, point in peaks[1:]]) if peaks[1:] else []
    drops = log_odds(whole) - log_odds(np.array([rest[scene.last], *others]))
    heat = np.array([scene.pixels[y, x] for _, (x, y) in peaks]) / np.nanmax(scene.pixels)
    seen = np.array([scenes[name].share(point) for name, point in peaks])
    best = int(np.argmax(merit(drops, heat, seen)))
    name, point = peaks[best]
    if best:
        scene = scenes[name]
        removed = scene.removed(point)
        del removed[scene.last]
        on_progress(of - len(removed), of)
        rest = np.insert(scene.likely(removed), scene.last, others[best - 1])
        check = scene.check(point, whole, rest)
    on_progress(of, of)
    if check.contrast < PLAIN:
        point = sharpened(scene.pixels, scene.contrast, scene.cell(point))
    return VerifiedPeak(name, point, check, maps[name], tuple(peaks), drops)


def candidate_maps(
    answer: Answer, tokens: Sequence[int] | None = None
) -> dict[str, Float[np.ndarray, "rows columns"]]:
    """The maps whose peaks `verified_peak` compares: the shipped one, the strongest heads, and the
    last layer. No pass is needed if the answer has a recording.

    tokens: which of the generated tokens to explain, such as those of a click; all by default.
    """
    recording = answer.model.record(answer)
    last = {"start_layer": len(recording["language"]) - 1, "residual": 0.0}
    hows = {BEYOND: SHIPPED, "strongest heads": STRONGEST, "last layer": last}
    chosen = slice(None) if tokens is None else list(tokens)
    maps = {name: heatmaps(recording, answer, **how)[chosen] for name, how in hows.items()}
    return {name: as_numpy(each.mean(0)) for name, each in maps.items()}


def glance(answer: Answer, maps: Maps, *, shipped: str = BEYOND) -> float:
    """The probability that the shipped map's peak lies in the region the answer depends on, from
    the maps alone, without a pass: calibrated like `check_peak`, but less sharp.

    It looks at the mass around the peak, the entropy of the map, and how many of the other maps
    have their peak there too (`signals`).
    """
    pixels = {name: on_pixels(answer, heatmap) for name, heatmap in maps.items()}
    return calibrated("glance", signals(pixels, shipped))


def on_pixels(
    answer: Answer, heatmap: Float[Array, "rows columns"], blur_tokens: float = BLUR_TOKENS
) -> Pixels:
    """A heatmap on the pixels of the answer's picture, blurred as `overlay` does.

    Raises ValueError for a heatmap on neither of the picture's grids, and for a flat one.
    """
    pixels = to_picture(heatmap, view_of(answer, heatmap), blur_tokens=blur_tokens)
    if is_flat(np.nanmin(pixels), np.nanmax(pixels)):
        raise ValueError("expected a heatmap with a highest place, got the same value everywhere")
    return pixels


def view_of(answer: Answer, heatmap: Float[Array, "rows columns"]) -> View:
    """The view of the answer's picture whose grid the heatmap has; ValueError if there is none."""
    views = {view.grid: view for view in (answer.image.view, answer.image.patch_view)}
    shape = tuple(heatmap.shape)
    if shape not in views:
        grids = " or ".join(map(times, views))
        raise ValueError(f"expected a heatmap on the grid {grids}, got {times(shape)}")
    return views[shape]


def peaks_of(pixels: Pixels, count: int, apart: float = 1.0) -> list[Point]:
    """The highest places of a map, at least `apart` pixels from each other, highest first; of
    pixels that tie, the one nearest their middle.

    >>> peaks_of(np.array([[0.5, 0.9, 0.0, 0.7]]), 3, apart=2)
    [(1, 0), (3, 0)]
    """
    left, found = np.nan_to_num(pixels), []
    ys, xs = np.indices(left.shape, sparse=True)
    while len(found) < count and left.max() > 0:
        tied = np.argwhere(left >= left.max() * (1 - FLAT))  # a patch without blur
        y, x = tied[np.hypot(*(tied - tied.mean(0)).T).argmin()].tolist()
        found.append((x, y))
        left = np.where(np.hypot(ys - y, xs - x) < apart, 0, left)
    return found


def rivals(pixels: Mapping[str, Pixels], shipped: str, apart: float) -> list[tuple[str, Point]]:
    """Peaks beside the shipped map's highest: the highest of every other map, then the second of
    every map, and so on. Those within `apart` pixels of an earlier one are left out.
    """
    order = sorted(pixels, key=lambda name: name != shipped)
    ranks = zip_longest(*(peaks_of(pixels[name], 3, apart) for name in order))
    found: list[tuple[str, Point]] = []
    for name, point in ((n, p) for rank in ranks for n, p in zip(order, rank, strict=True) if p):
        if all(dist(point, other) >= apart for _, other in found):
            found.append((name, point))
    return found[1 : RIVALS + 1]


def sharpened(pixels: Pixels, contrast: Pixels, box: Box) -> Point:
    """Where in a box the map times the picture's contrast is highest.

    A patch that an answer was read from may reach beyond what it shows; at a place that looks like
    its surroundings there is nothing to read.

    >>> ones = np.ones((1, 4))
    >>> sharpened(ones, np.array([[3.0, 1.0, 2.0, 1.0]]), (1, 0, 4, 1))
    (2, 0)
    """
    left, top, right, bottom = box
    part = np.nan_to_num(pixels * contrast)[top:bottom, left:right]
    y, x = np.unravel_index(part.argmax(), part.shape)
    return left + int(x), top + int(y)


def log_odds(
    log_probability: Float[np.ndarray, "*any"] | float,
) -> Float[np.ndarray, "*any"] | float:
    """log(p / (1 - p)): unlike log p, it also tells sure from surer.

    >>> float(log_odds(np.log(0.5)))
    0.0
    """
    likely = np.minimum(log_probability, np.log1p(-LEAST))
    return likely - np.log(-np.expm1(likely))


def merit(
    drops: Float[np.ndarray, "*any"],
    heat: Float[np.ndarray, "*any"],
    seen: Float[np.ndarray, "*any"],
) -> Float[np.ndarray, "*any"]:
    """By what `verified_peak` chooses: arcsinh(drop of log-odds) + heat + what there is to see.

    >>> merit(np.array([0.0, 5.0]), np.array([1.0, 0.5]), np.array([0.5, 0.5])).round(2)
    array([1.5 , 3.31])
    """
    return np.arcsinh(drops) + heat + seen


def features(
    drops: Float[np.ndarray, "size 2"],
    controls: Float[np.ndarray, "size 2"],
    log_probability: float,
    contrast: float,
) -> dict[str, float]:
    """What the probability of a check is made of: how far the answer's log-odds fall without the
    smallest and the largest square, in asinh and less the same of the controls; and how much there
    is to see at the peak (`PeakCheck.contrast`).
    """
    before = log_odds(log_probability)
    fall, beside = (
        np.arcsinh(before - log_odds(log_probability - each)).mean(1) for each in (drops, controls)
    )
    beyond = fall - beside
    return {"small": float(beyond[0]), "large": float(beyond[-1]), "contrast": contrast}


def signals(pixels: Mapping[str, Pixels], shipped: str) -> dict[str, float]:
    """What can be told about a map's peak without a pass.

    mass: the share of the map in the largest square around its peak.  entropy: of the map, as a
    share of that of an even one.  agreement: the share of other maps whose peak lies in the square.
    """
    shown = np.nan_to_num(pixels[shipped].astype(float))
    [(x, y)] = peaks_of(shown, 1)
    seen = (~np.isnan(pixels[shipped])).sum()
    reach = sqrt(SIZES[-1] * seen) / 2
    others = [peaks_of(each, 1)[0] for name, each in pixels.items() if name != shipped]
    near = [abs(a - x) <= reach and abs(b - y) <= reach for a, b in others]
    shares = shown / shown.sum()
    some = shares[shares > 0]
    return {
        "mass": mass_around(pixels[shipped], (x, y)),
        "entropy": float(-(some * np.log(some)).sum() / np.log(seen)),
        "agreement": float(np.mean(near)) if near else 0.0,
    }


def mass_around(pixels: Pixels, point: Point) -> float:
    """The share of a map in the square around a point that is 5 % of what the model saw."""
    reach = sqrt(SIZES[-1] * (~np.isnan(pixels)).sum()) / 2
    rows, columns = (slice(max(int(at - reach), 0), int(at + reach) + 1) for at in point[::-1])
    whole = np.nan_to_num(pixels.astype(float))
    return float(whole[rows, columns].sum() / whole.sum())


@cache
def calibration() -> dict[str, dict[str, float]]:
    """The weights of features: fitted on scenes apart, as `data/README.md` says."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def calibrated(what: str, values: Mapping[str, float]) -> float:
    """The probability of these features x: σ(b + w · x).  what: "check" or "glance"."""
    weights = calibration()[what]
    return float(expit(weights["intercept"] + sum(weights[k] * x for k, x in values.items())))


class _Scene:
    """The picture of an answer, a map on its pixels, and squares that can be replaced."""

    def __init__(
        self,
        answer: Answer,
        heatmap: Float[Array, "rows columns"],
        sizes: Sequence[float],
        seed: int,
        blur_tokens: float = BLUR_TOKENS,
    ):
        most = (BATCH - 1) // 4
        if not (0 < len(sizes) <= most and all(0 < size <= 0.1 for size in sizes)):
            wanted = f"1 to {most} sizes, each above 0 and 0.1 at most"
            raise ValueError(f"expected {wanted}, got {tuple(sizes)}")
        self.answer, self.seed = answer, seed
        self.view, self.pixels = view_of(answer, heatmap), on_pixels(answer, heatmap, blur_tokens)
        self.picture: Image.Image = answer.image.picture
        self.seen = ~np.isnan(self.pixels)
        [self.peak] = peaks_of(self.pixels, 1)
        lengths = (max(round(sqrt(size * self.seen.sum())), 1) for size in sorted(sizes))
        self.sides = [min(length, *self.picture.size) for length in lengths]
        self.last = 2 * len(sizes) - 1  # the largest square, replaced by the local mean
        self._controls: dict[Point, tuple[Box, ...]] = {}

    @cached_property
    def mean(self) -> Float[np.ndarray, "height width 3"]:
        return local_mean(self.picture, REACH)

    @cached_property
    def contrast(self) -> Pixels:
        """How far what is seen at each point is from its surroundings."""
        off = np.abs(np.asarray(self.picture, dtype=float) - self.mean).mean(-1)
        return uniform_filter(off, POINT, mode="nearest")

    @cached_property
    def substitutes(self) -> list[tuple[Image.Image, Image.Image]]:
        """For each side: the picture's blur, and its local mean."""
        flat = Image.fromarray(np.rint(self.mean).astype(np.uint8))
        return [(self.picture.filter(ImageFilter.GaussianBlur(s)), flat) for s in self.sides]

    def box(self, point: Point, side: int) -> Box:
        """The square around a point, moved where it would leave the picture."""
        ends = zip(point, self.picture.size, strict=True)
        left, top = (min(max(at - side // 2, 0), length - side) for at, length in ends)
        return left, top, left + side, top + side

    def boxes(self, point: Point) -> tuple[Box, ...]:
        """The squares of all sizes around a point."""
        return tuple(self.box(point, side) for side in self.sides)

    def cell(self, point: Point) -> Box:
        """The part of the picture that the token at a point stands for."""
        boxes = self.view.boxes()
        starts, ends = boxes[:, :2], boxes[:, 2:]
        off = np.abs(np.add(point, 0.5) - (starts + ends) / 2) / (ends - starts)
        sides = np.array([*self.picture.size] * 2)
        left, top, right, bottom = (
            np.rint(boxes[off.max(1).argmin()]).clip(0, sides).astype(int).tolist()
        )
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def share(self, point: Point) -> float:
        """How much there is to see at a point: `PeakCheck.contrast`."""
        left, top, right, bottom = self.box(point, self.sides[-1])
        around = self.contrast[top:bottom, left:right].max()
        return float(self.contrast[point[1], point[0]] / max(around, 1e-9))

    def replaced(self, boxes: Sequence[Box]) -> list[Image.Image]:
        """The picture without a box of each size, in each way."""
        found = []
        for box, ways in zip(boxes, self.substitutes, strict=True):
            for substitute in ways:
                found.append(self.picture.copy())
                found[-1].paste(substitute.crop(box), box)
        return found

    def without(self, point: Point) -> list[Image.Image]:
        """The picture without the squares around a point."""
        return self.replaced(self.boxes(point))

    def removed(self, point: Point) -> list[Image.Image]:
        """All pictures that a check of a point needs beside the whole one."""
        return self.without(point) + self.replaced(self.control_boxes(point))

    def likely(self, pictures: list[Image.Image]) -> Float[np.ndarray, " picture"]:
        """The answer's log-probability with each of these pictures."""
        found = self.answer.model.log_probability(self.answer, pictures)
        return found.double().cpu().numpy()

    def control_boxes(self, point: Point) -> tuple[Box, ...]:
        """For each size, a square whose contrast is that around the point, without much heat.

        It lies in the half of the picture where the map is lowest, and not on the largest square
        around the point.
        """
        if point not in self._controls:
            self._controls[point] = self._found_controls(point)
        return self._controls[point]

    def _found_controls(self, point: Point) -> tuple[Box, ...]:
        rng, found = np.random.default_rng(self.seed), []
        left, top, right, bottom = self.box(point, self.sides[-1])
        for side, own in zip(self.sides, self.boxes(point), strict=True):
            layers = (self.contrast, np.nan_to_num(self.pixels), self.seen.astype(float))
            contrast, heat, seen = (uniform_filter(each, side, mode="nearest") for each in layers)
            step = max(side // 4, 1)
            rows, columns = (
                np.arange(int(rng.integers(step)), length - side + 1, step) + side // 2
                for length in self.pixels.shape
            )
            y, x = (each.ravel() for each in np.meshgrid(rows, columns, indexing="ij"))
            far = (x + side // 2 < left) | (x - side // 2 > right)
            far |= (y + side // 2 < top) | (y - side // 2 > bottom)
            free = far & (seen[y, x] > 0.999)
            if not free.any():
                size = times(self.picture.size)
                raise ValueError(f"expected room for a control beside the peak, got {size} pixels")
            y, x = y[free], x[free]
            low = heat[y, x] <= np.median(heat[y, x])
            y, x = y[low], x[low]
            middle = (own[1] + own[3]) // 2, (own[0] + own[2]) // 2
            nearest = np.abs(contrast[y, x] - contrast[middle]).argmin()
            found.append(self.box((int(x[nearest]), int(y[nearest])), side))
        return tuple(found)

    def check(self, point: Point, whole: float, likely: Float[np.ndarray, " picture"]) -> PeakCheck:
        """What was found, from the answer's log-probabilities with all that was removed."""
        drops, controls = (whole - likely).reshape(2, len(self.sides), 2)
        share = self.share(point)
        return PeakCheck(
            probability=calibrated("check", features(drops, controls, whole, share)),
            point=point,
            boxes=self.boxes(point),
            drops=drops,
            control_boxes=self.control_boxes(point),
            controls=controls,
            log_probability=float(whole),
            contrast=share,
        )
