"""Score a heatmap against a region that is known to hold the answer, and against chance.

A heatmap may lie on any grid: words of a text, patches or pixels of a picture, patches and frames
of a video. The region lies on the same grid, as cells that are in it or not, or as the share of
each cell that is (`region_shares`). If all cells have the same number of pixels, shares give the
same scores as the pixels would.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score

from rolloutlib.algorithm.arrays import Array
from rolloutlib.grid import View
from rolloutlib.overlay import to_picture

RESAMPLED = 20_000_000  # scores that are in memory at a time, for an interval

Heatmap = Float[np.ndarray, "*grid"]
Region = Bool[np.ndarray, "*grid"] | Float[np.ndarray, "*grid"]
Scores = Sequence[float] | Float[np.ndarray, " case"] | pd.Series


def pointing_game(heatmap: Heatmap, region: Region) -> float:
    """Whether the highest cell lies in the region: 1 or 0; if cells tie, their share inside.

    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop". NaN cells, which the
    model never saw, are ignored.

    >>> pointing_game(np.array([[0.1, 0.9]]), np.array([[False, True]]))
    1.0
    """
    seen, inside = _seen(heatmap, region)
    return float(inside[seen == seen.max()].mean())


def recall_of_places(heatmap: Heatmap, regions: Sequence[Region], *, apart: int = 1) -> float:
    """The share of several regions that the highest peaks of a map find, in [0, 1].

    For questions that need more than one place. A peak is a cell, or several in a row that tie,
    higher than all others within `apart` cells in every direction; of these, as many of the highest
    are taken as there are regions. A region is found by the best of them: 1 if it lies in the
    region, and its share inside if cells tie. NaN cells, which the model never saw, are ignored.

    Raises ValueError for no region, and for one of another shape than the map.

    >>> heatmap = np.array([[9.0, 8.0, 0.0, 1.0, 0.0, 2.0]])
    >>> left, right = np.arange(6)[None] < 2, np.arange(6)[None] > 4
    >>> recall_of_places(heatmap, [left, right]), recall_of_places(heatmap, [left, ~left & ~right])
    (1.0, 0.5)
    """
    if not regions:
        raise ValueError("expected at least one region, got none")
    for region in regions:
        _seen(heatmap, region)
    filled = np.where(np.isnan(heatmap), -np.inf, heatmap)
    highest = (filled == ndimage.maximum_filter(filled, 2 * apart + 1)) & ~np.isnan(heatmap)
    numbers, count = ndimage.label(highest, np.ones((3,) * heatmap.ndim))
    heights = ndimage.maximum(filled, numbers, range(1, count + 1))
    peaks = np.argsort(-np.array(heights), kind="stable")[: len(regions)] + 1
    found = [ndimage.mean(np.asarray(region, float), numbers, peaks) for region in regions]
    return float(np.max(found, axis=1).mean())


def mass_in_region(heatmap: Heatmap, region: Region) -> float:
    """The share of the relevance in the region, in [0, 1]; by chance, its share of the area.

    >>> mass_in_region(np.array([[1.0, 3.0]]), np.array([[False, True]]))
    0.75
    """
    seen, inside = _seen(heatmap, region)
    if seen.sum() == 0:
        raise ValueError("expected a heatmap with some relevance, got zeros only")
    return float((seen * inside).sum() / seen.sum())


def mass_over_area(heatmap: Heatmap, region: Region) -> float:
    """How many times more relevance the region has than its area would get by chance.

    >>> mass_over_area(np.array([[1.0, 3.0]]), np.array([[False, True]]))
    1.5
    """
    return mass_in_region(heatmap, region) / float(_part(heatmap, region)[1].mean())


def region_auc(heatmap: Heatmap, region: Region) -> float:
    """How often a cell of the region is higher than one outside: in [0, 1]; 0.5 by chance.

    >>> region_auc(np.array([[0.1, 0.9, 0.4]]), np.array([[False, True, False]]))
    1.0
    """
    seen, inside = _part(heatmap, region)
    there, ranked, outside = inside > 0, seen[inside < 1], 1 - inside[inside < 1]
    if (outside == 1).all():  # as on pixels; half the time
        ranked = np.sort(ranked)
    else:
        order = np.argsort(ranked)
        ranked, outside = ranked[order], outside[order]
    outside_below = np.concatenate([[0], np.cumsum(outside)])
    sides = (np.searchsorted(ranked, seen[there], side) for side in ("left", "right"))
    below = sum(outside_below[places] for places in sides) / 2  # cells that tie count half
    return float(inside[there] @ below / (inside.sum() * outside.sum()))


def average_precision(heatmap: Heatmap, region: Region) -> float:
    """The average precision, going down from the highest cell.

    The precision at each cell of the region, averaged over the region. In (0, 1]; by chance, about
    the region's share of the area. Unlike the AUC, it drops sharply if a few cells outside a small
    region are high.

    >>> average_precision(np.array([[0.1, 0.9, 0.4]]), np.array([[False, False, True]]))
    0.5
    """
    return float(average_precision_score(**_cells(heatmap, region)))


def region_shares(region: Bool[np.ndarray, "height width"], view: View) -> Float[np.ndarray, "r c"]:
    """The share of each image token's pixels that lies in a region of the picture, on the grid.

    >>> view = View((2, 4), (2, 4), (0, 0), (2, 4), token=2, grid=(1, 2))
    >>> region_shares(np.array([[0, 0, 0, 1], [0, 0, 0, 1]], dtype=bool), view)
    array([[0. , 0.5]])
    """
    return token_means(region.astype(float), view)


def token_means(
    pixels: Shaped[np.ndarray, "height width"], view: View
) -> Float[np.ndarray, "rows columns"]:
    """The mean over each image token's pixels of a value that every pixel of the picture has.

    A pixel belongs to the token that contains its centre. Pixels beyond the picture, where the
    model saw padding, count as 0.

    >>> view = View((2, 4), (2, 4), (0, 0), (2, 4), token=2, grid=(1, 2))
    >>> token_means(np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]), view)
    array([[1.5, 3.5]])
    """
    # The first pixels whose centres lie at or beyond each side.
    sides = np.ceil(view.boxes() - 0.5).astype(int).reshape(*view.grid[-2:], 4)
    left, right, top, bottom = sides[0, :, 0], sides[0, :, 2], sides[:, 0, 1], sides[:, 0, 3]
    ys, xs = (np.arange(length) for length in pixels.shape)
    in_row = (ys >= top[:, None]) & (ys < bottom[:, None])
    in_column = (xs >= left[:, None]) & (xs < right[:, None])
    inside = in_row.astype(float) @ pixels @ in_column.T.astype(float)
    return inside / np.maximum(np.outer(bottom - top, right - left), 1)


def score_on_picture(
    heatmap: Float[Array, "rows columns"],
    view: View,
    region: Bool[np.ndarray, "height width"],
    *,
    blur_tokens: float = 0.5,
) -> dict[str, float]:
    """Score a map on the picture's own pixels, blurred as `overlay` shows it: the "pointing game"
    and the "AUC" (`pointing_game`, `region_auc`).

    >>> view = View((2, 4), (2, 4), (0, 0), (2, 4), token=2, grid=(1, 2))
    >>> region = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=bool)
    >>> score_on_picture(np.array([[0.1, 0.9]]), view, region)
    {'pointing game': 1.0, 'AUC': 1.0}
    """
    pixels = to_picture(heatmap, view, blur_tokens=blur_tokens)
    return {"pointing game": pointing_game(pixels, region), "AUC": region_auc(pixels, region)}


def _seen(heatmap: Heatmap, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """The cells that the model saw: their relevance, and their share in the region."""
    if heatmap.shape != region.shape:
        raise ValueError(f"expected a region of shape {heatmap.shape}, got {region.shape}")
    seen = ~np.isnan(heatmap)
    if not seen.any():
        raise ValueError("expected a heatmap with cells that the model saw, got NaN only")
    return heatmap[seen], region[seen].astype(float)


def _part(heatmap: Heatmap, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """The same, for a region that is a part of the picture: not none of it, not all."""
    seen, inside = _seen(heatmap, region)
    if not 0 < inside.mean() < 1:
        raise ValueError("expected a region that is a part of the picture, got all or none of it")
    return seen, inside


def _cells(heatmap: Heatmap, region: Region) -> dict[str, np.ndarray]:
    """Arguments for scikit-learn: each cell once inside and once outside, weighted by share."""
    seen, inside = _part(heatmap, region)
    if np.isin(inside, (0, 1)).all():  # half the work if no cell is partly inside
        return {"y_true": inside == 1, "y_score": seen}
    return {
        "y_true": np.repeat([True, False], len(seen)),
        "y_score": np.tile(seen, 2),
        "sample_weight": np.concatenate([inside, 1 - inside]),
    }


def mean_interval(scores: Scores, *, seed: int = 0) -> tuple[float, float, float]:
    """The mean of scores and its 95 % bootstrap interval: mean, low, high.

    Raises ValueError for fewer than two scores.

    >>> mean_interval([0.0, 1.0] * 50)
    (0.5, 0.4, 0.6)
    """
    if len(scores) < 2:
        raise ValueError(f"expected at least two scores for an interval, got {len(scores)}")
    mean = float(np.mean(scores))
    if np.ptp(scores) == 0:
        return mean, mean, mean
    rng = np.random.default_rng(seed)
    how = {"method": "percentile", "rng": rng, "batch": max(RESAMPLED // len(scores), 1)}
    interval = bootstrap((scores,), np.mean, **how).confidence_interval
    return mean, float(interval.low), float(interval.high)


def score_intervals(
    table: pd.DataFrame, scores: Sequence[str] = ("pointing game", "AUC"), by: str = "map"
) -> Mapping[str, Mapping[str, tuple[float, float, float]]]:
    """The `mean_interval` of each score for each map: score → map → (mean, low, high).

    table: a line for each case and map, with a column for each score.  by: the column that names
    the maps; they keep their order. `rolloutlib.plots.plot_scores` draws the result.

    >>> table = pd.DataFrame({"map": ["rollout"] * 2, "AUC": [0.75, 0.75]})
    >>> score_intervals(table, ["AUC"])
    {'AUC': {'rollout': (0.75, 0.75, 0.75)}}
    """
    maps = table.groupby(by, sort=False)
    return {s: {name: mean_interval(part[s]) for name, part in maps} for s in scores}


def mean_difference(scores: Scores, others: Scores, *, seed: int = 0) -> tuple[float, float, float]:
    """How much higher one map scores than another on the same cases: mean, low, high.

    `mean_interval` of the differences case by case. Easy and hard cases cancel out, so two maps can
    differ clearly although their own intervals overlap: they do where 0 is outside [low, high].

    Raises ValueError for a different number of scores, and for fewer than two.

    >>> mean_difference([0.5, 0.75, 1.0], [0.0, 0.25, 0.5])
    (0.5, 0.5, 0.5)
    """
    if len(scores) != len(others):
        raise ValueError(f"expected scores of the same cases, got {len(scores)} and {len(others)}")
    return mean_interval(np.subtract(scores, others), seed=seed)


def compare_scores(scores: pd.DataFrame, base: str) -> pd.DataFrame:
    """Compare the scores of several maps with those of one, case by case.

    scores: a line for each case and a column for each map, NaN where a case has no score; such
    cases take no part. The result has a line for each map but the base: `mean`, `low` and `high` of
    `mean_difference`, `n` cases, and `verdict`: "higher", "lower" or "no clear difference".

    Raises ValueError if the base is not among the maps.

    >>> scores = pd.DataFrame({"last layer": [0.0, 0.0, 1.0], "rollout": [0.5, 0.5, 1.5]})
    >>> compare_scores(scores, "last layer")
             mean  low  high  n verdict
    rollout   0.5  0.5   0.5  3  higher
    """
    if base not in scores:
        raise ValueError(f"expected a base among {list(scores)}, got {base!r}")
    lines = {}
    for name in scores.columns.drop(base):
        both = scores[[name, base]].dropna().to_numpy()
        mean, low, high = mean_difference(both[:, 0], both[:, 1])
        verdict = "higher" if low > 0 else "lower" if high < 0 else "no clear difference"
        lines[name] = (mean, low, high, len(both), verdict)
    columns = ["mean", "low", "high", "n", "verdict"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns).infer_objects()
