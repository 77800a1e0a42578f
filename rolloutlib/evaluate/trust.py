"""Does an answer depend on the place that a map marks? Remove the place and ask again."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from math import dist, sqrt
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageFilter
from scipy.ndimage import uniform_filter
from scipy.special import expit

from rolloutlib.algorithm.arrays import Array, as_numpy
from rolloutlib.evaluate.methods import BEYOND, STRONGEST
from rolloutlib.evaluate.perturbation import local_mean
from rolloutlib.grid import times
from rolloutlib.models import Answer, heatmaps
from rolloutlib.models.tower import SHIPPED
from rolloutlib.overlay import FLAT, is_flat, to_picture

SIZES = (0.01, 0.02, 0.05)  # of the squares that are removed, as shares of what the model saw
WAYS = 2  # of replacing a square: by blur and by the local mean
BATCH = 16  # pictures in one batch, at most
CANDIDATES = 6  # peaks that `verified_peak` compares, at most
ENOUGH = 0.5  # of the costliest peak's drop: the shipped one is kept
SURE = 0.8  # the probability from which an answer is said to depend on a place
REACH = 0.5  # of the local mean
BLUR_TOKENS = 0.5  # of the maps, as they are shown

Point = tuple[int, int]  # x, y
Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two excluded
Pixels = Float[np.ndarray, "height width"]  # NaN where the model saw nothing
Maps = Mapping[str, Float[Array, "rows columns"]]


def nothing(done: int, pictures: int) -> None:
    """Nobody wants to know about progress."""


@dataclass(frozen=True)
class PeakCheck:
    """What happened to an answer when the highest place of a map was removed from the picture.

    probability: in [0, 1], calibrated: that the peak lies in the region the answer depends on.
    point: the peak, x and y in pixels.  boxes: the squares around it that were removed, smallest
    first: left, top, right, bottom in pixels.  drops: how far the answer's log-probability fell,
    for each square and each way to replace it: by blur, by the local mean.
    control_boxes, controls: the same for places of similar contrast that the map thinks little of.
    log_probability: of the answer with the whole picture.
    """

    probability: float
    point: Point
    boxes: tuple[Box, ...]
    drops: Float[np.ndarray, "size way"] = field(compare=False)
    control_boxes: tuple[tuple[Box, ...], ...]
    controls: Float[np.ndarray, "place size way"] = field(compare=False)
    log_probability: float

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
        subject = "" if self.verdict == "can't tell" else "the answer "
        place = " on this place" if subject else ""
        return f"{subject}{self.verdict}{place}: {self.probability:.2f}"


@dataclass(frozen=True)
class VerifiedPeak:
    """The peak that was kept, after those of several maps were removed.

    name: of the map it came from.  point: x and y in pixels.  heatmap: that map.
    check: what its removal did.  points, drops: all peaks that were compared, by map, and how far
    the answer's log-probability fell without each.
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
    on_progress: Callable[[int, int], object] = nothing,
) -> PeakCheck:
    """Does the answer depend on the highest place of this map?

    Squares around the place are replaced, by a blur and by the local mean, and the model is asked
    how likely its answer still is. The same is done at places of similar contrast that the map
    thinks little of. All pictures, 16 at most, are one batch.

    heatmap: on the grid of `answer.image.patch_view` or `answer.image.view`.  sizes: of the
    squares, as shares of what the model saw of the picture.  seed: of the choice of control places.
    blur_tokens: of the map, as in `overlay`.  on_progress: is told how many pictures are done, and
    of how many.

    Raises ValueError for a heatmap on neither grid or without a highest place, for an answer about
    a video or several pictures, and for sizes out of range.
    """
    pixels = on_pixels(answer, heatmap, blur_tokens)
    removal = _Removal(answer.image.picture, ~np.isnan(pixels), sizes)
    return _check(answer, pixels, removal, peaks_of(pixels, 1)[0], seed, on_progress)


def verified_peak(
    answer: Answer,
    maps: Maps,
    *,
    shipped: str = BEYOND,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = nothing,
) -> VerifiedPeak:
    """Which of the peaks of several maps does the answer depend on?

    The highest places of each map are removed, each by itself. The shipped map's peak is kept where
    its removal costs at least `ENOUGH` of what the costliest does, else that one. Then the kept
    peak is checked as `check_peak` does. In all, that takes 20 pictures at most, in two batches.

    maps: by name, such as `candidate_maps`; each on the grid of `answer.image.patch_view` or
    `answer.image.view`.  shipped: the name of the map that is shown.
    sizes, seed, on_progress: as in `check_peak`.

    Raises KeyError if the shipped map is not among the maps, and what `check_peak` raises.
    """
    if shipped not in maps:
        raise KeyError(f"expected a map called {shipped!r}, got {list(maps)}")
    pixels = {name: on_pixels(answer, heatmap) for name, heatmap in maps.items()}
    removal = _Removal(answer.image.picture, ~np.isnan(pixels[shipped]), sizes)
    peaks = candidates(pixels, shipped, removal.sides[-1] / 2)
    pictures = [removal.picture, *(removal.without(point)[-WAYS] for _, point in peaks)]
    of = len(pictures) + removal.pictures
    on_progress(0, of)
    whole, *others = _log_probabilities(answer, pictures)
    drops = whole - np.array(others)
    name, point = peaks[kept(drops)]

    def later(done: int, _: int) -> None:
        on_progress(len(pictures) + done, of)

    check = _check(answer, pixels[name], removal, point, seed, later)
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
    hows = {
        BEYOND: SHIPPED,
        "strongest heads": STRONGEST,
        "last layer": last,
    }
    chosen = slice(None) if tokens is None else list(tokens)
    maps = {name: heatmaps(recording, answer, **how)[chosen] for name, how in hows.items()}
    return {name: as_numpy(each.mean(0)) for name, each in maps.items()}


def on_pixels(
    answer: Answer, heatmap: Float[Array, "rows columns"], blur_tokens: float = BLUR_TOKENS
) -> Pixels:
    """A heatmap on the pixels of the answer's picture, blurred as `overlay` does.

    Raises ValueError for a heatmap on neither of the picture's grids, and for a flat one.
    """
    views = {view.grid: view for view in (answer.image.patch_view, answer.image.view)}
    if tuple(heatmap.shape) not in views:
        grids = " or ".join(map(times, views))
        raise ValueError(f"expected a heatmap on the grid {grids}, got {times(heatmap.shape)}")
    pixels = to_picture(heatmap, views[tuple(heatmap.shape)], blur_tokens=blur_tokens)
    if is_flat(np.nanmin(pixels), np.nanmax(pixels)):
        raise ValueError("expected a heatmap with a highest place, got the same value everywhere")
    return pixels


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


def candidates(pixels: Mapping[str, Pixels], shipped: str, apart: float) -> list[tuple[str, Point]]:
    """Peaks of several maps, the shipped map's highest first: then the highest of every map, then
    the second of every map, and so on. Those within `apart` pixels of an earlier one are left out.
    """
    order = sorted(pixels, key=lambda name: name != shipped)
    ranks = zip_longest(*(peaks_of(pixels[name], 3, apart) for name in order))
    found: list[tuple[str, Point]] = []
    for name, point in ((n, p) for rank in ranks for n, p in zip(order, rank, strict=True) if p):
        if all(dist(point, other) >= apart for _, other in found):
            found.append((name, point))
    return found[:CANDIDATES]


def kept(drops: Float[np.ndarray, " peak"]) -> int:
    """Which peak is kept: the first where its removal costs enough, else the costliest.

    >>> kept(np.array([0.5, 0.7])), kept(np.array([0.1, 0.7]))
    (0, 1)
    """
    return 0 if drops[0] >= ENOUGH * drops.max() else int(drops.argmax())


def features(
    drops: Float[np.ndarray, "size way"],
    controls: Float[np.ndarray, "place size way"],
    log_probability: float,
) -> dict[str, float]:
    """What the probability of a check is made of."""
    peak, beside = (np.log1p(np.maximum(each, 0)) for each in (drops, controls))
    return {
        "drop": float(peak.mean()),
        "drop of the smallest square": float(peak[0].mean()),
        "drop beyond the controls": float(peak.mean() - beside.mean()),
        "log-probability": float(log_probability),
    }


@cache
def calibration() -> dict[str, float]:
    """The weights of the features, fitted on scenes apart: `data/README.md` says how."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def calibrated(values: Mapping[str, float]) -> float:
    """The probability of these features: logistic, σ(b + w · x)."""
    known = calibration()
    return float(expit(known["intercept"] + sum(known[name] * x for name, x in values.items())))


class _Removal:
    """A picture whose squares can be replaced by something that shows nothing."""

    def __init__(self, picture: Image.Image, seen: Bool[np.ndarray, "h w"], sizes: Sequence[float]):
        most = (BATCH - 1) // (2 * WAYS)
        if not (0 < len(sizes) <= most and all(0 < size <= 0.1 for size in sizes)):
            wanted = f"1 to {most} sizes, each above 0 and 0.1 at most"
            raise ValueError(f"expected {wanted}, got {tuple(sizes)}")
        mean = local_mean(picture, REACH)
        flat = Image.fromarray(np.rint(mean).astype(np.uint8))
        lengths = (max(round(sqrt(size * seen.sum())), 1) for size in sorted(sizes))
        self.picture, self.seen = picture, seen
        self.places = (BATCH - 1) // (len(sizes) * WAYS) - 1  # of control
        self.pictures = 1 + (1 + self.places) * len(sizes) * WAYS
        self.sides = [min(length, *picture.size) for length in lengths]
        self.substitutes = [
            (picture.filter(ImageFilter.GaussianBlur(side / 2)), flat) for side in self.sides
        ]
        self.contrast = np.abs(np.asarray(picture, dtype=float) - mean).mean(-1)

    def boxes(self, point: Point) -> tuple[Box, ...]:
        """The squares around a point, moved where they would leave the picture."""
        return tuple(self._box(point, side) for side in self.sides)

    def _box(self, point: Point, side: int) -> Box:
        ends = zip(point, self.picture.size, strict=True)
        left, top = (min(max(at - side // 2, 0), length - side) for at, length in ends)
        return left, top, left + side, top + side

    def without(self, point: Point) -> list[Image.Image]:
        """The picture without each of the squares around a point, replaced in each way."""
        return [
            self._pasted(substitute, box)
            for box, ways in zip(self.boxes(point), self.substitutes, strict=True)
            for substitute in ways
        ]

    def _pasted(self, substitute: Image.Image, box: Box) -> Image.Image:
        changed = self.picture.copy()
        changed.paste(substitute.crop(box), box)
        return changed

    def controls(self, pixels: Pixels, point: Point, seed: int) -> list[Point]:
        """Places whose largest square has a contrast like that around the point, and little heat.

        They lie in the half of the picture where the map is lowest, and overlap neither each other
        nor the point's square.
        """
        side, count = self.sides[-1], self.places
        layers = (self.contrast, np.nan_to_num(pixels), self.seen.astype(float))
        contrast, heat, seen = (uniform_filter(layer, side, mode="nearest") for layer in layers)
        step = max(side // 4, 1)
        starts = np.random.default_rng(seed).integers(0, step, 2) + side // 2
        ys, xs = (
            np.arange(start, max(length - side // 2, start + 1), step)
            for start, length in zip(starts, pixels.shape, strict=True)
        )
        places = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
        left, top, *_ = self._box(point, side)
        x, y = left + side // 2, top + side // 2
        seen_whole = seen[places[:, 1], places[:, 0]] > 0.999
        places = places[seen_whole & (np.abs(places - (x, y)).max(1) >= side)]
        heats = heat[places[:, 1], places[:, 0]]
        places = places[heats <= np.median(heats)]
        unlike = np.abs(contrast[places[:, 1], places[:, 0]] - contrast[y, x])
        places, found = places[np.argsort(unlike, kind="stable")], []
        while len(places) and len(found) < count:
            found.append(tuple(places[0].tolist()))
            places = places[np.abs(places - places[0]).max(1) >= side]
        if not found:
            size = times(self.picture.size)
            raise ValueError(f"expected room beside the peak for a control, got a {size} picture")
        return found


def _log_probabilities(
    answer: Answer, pictures: list[Image.Image]
) -> Float[np.ndarray, " picture"]:
    return answer.model.log_probability(answer, pictures).double().cpu().numpy()


def _check(
    answer: Answer,
    pixels: Pixels,
    removal: _Removal,
    point: Point,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> PeakCheck:
    """Remove one point of a map, and its controls."""
    controls = removal.controls(pixels, point, seed)
    pictures = [removal.picture, *(p for at in (point, *controls) for p in removal.without(at))]
    on_progress(0, len(pictures))
    whole, *others = _log_probabilities(answer, pictures)
    on_progress(len(pictures), len(pictures))
    drops, *beside = (whole - np.array(others)).reshape(-1, len(removal.sides), WAYS)
    values = features(drops, np.array(beside), whole)
    return PeakCheck(
        probability=calibrated(values),
        point=point,
        boxes=removal.boxes(point),
        drops=drops,
        control_boxes=tuple(map(removal.boxes, controls)),
        controls=np.array(beside),
        log_probability=float(whole),
    )
