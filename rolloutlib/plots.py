"""Figures. Every function draws with matplotlib's pyplot and returns the figure it drew."""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from PIL import Image

from rolloutlib.algorithm.arrays import Array, as_numpy
from rolloutlib.files.pictures import upright_rgb
from rolloutlib.overlay import LEVELS, blend, colour, emphasize

PAGE_WIDTH = 12  # inches of panels side by side; wider ones would shrink on a page
PANELS = {"squeeze": False, "layout": "constrained"}  # arguments of every grid of axes
LABEL_PITCH = 1.35 / 72  # inches from one token label to the next, per point of font size


def png_of(figure: Figure, dpi: float = 100) -> bytes:
    """The figure as a PNG file, and closed: a notebook would show an open one below the cell."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    plt.close(figure)
    return file.getvalue()


def plot_matrices(
    matrices: Sequence[Float[Array, "*one query key"]],
    tokens: Sequence[str],
    titles: Sequence[str],
    *,
    columns: int = 4,
    label: str = "Cumulative attention",
    axis_labels: tuple[str, str] = ("Input tokens", "Output tokens"),
    title: str = "",
    gamma: float = 1.0,
) -> Figure:
    """Draw matrices side by side on one colour scale: which output drew on which input.

    gamma: colours follow value ** gamma; below 1, small values stay visible next to large ones.
    Panels grow with the number of tokens, so that every label can be read; then fewer than
    `columns` fit side by side.

    Raises ValueError if a matrix does not fit the tokens, or titles do not fit the matrices.
    """
    arrays = [_one_matrix(matrix, len(tokens)) for matrix in matrices]
    if not arrays or len(arrays) != len(titles):
        raise ValueError(f"expected a title for each matrix, got {len(titles)} for {len(arrays)}")
    points = 9 if len(tokens) <= 20 else 7
    side = max(2.4, LABEL_PITCH * points * len(tokens))
    margin = 0.7 + 0.6 * points / 72 * max(len(token) for token in tokens)
    lines = -(-len(arrays) // min(columns, max(1, int(PAGE_WIDTH // side))))
    columns = -(-len(arrays) // lines)  # lines as full as possible
    size = (side * columns + margin + 1.2, (side + margin) * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, sharey=True, **PANELS)
    norm = PowerNorm(gamma, vmin=0, vmax=max(array.max() for array in arrays))
    for axis, array, name in zip(axes.flat, arrays, titles, strict=False):
        _draw_matrix(axis, array, tokens, norm, points)
        axis.set(title=name, xlabel=axis_labels[0])
    plt.setp(axes.flat[len(arrays) :], visible=False)
    plt.setp(axes[:, 0], ylabel=axis_labels[1])
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label=label, shrink=0.7)
    if title:
        figure.suptitle(title)
    figure.draw_without_rendering()  # square panels find their places in a second layout
    return figure


def _one_matrix(matrix: Array, tokens: int) -> np.ndarray:
    array = as_numpy(matrix)
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    if array.shape != (tokens, tokens):
        wanted = f"one matrix of {tokens} x {tokens} for {tokens} tokens"
        raise ValueError(f"expected {wanted}, got {array.shape}")
    return array


def _draw_matrix(
    axis: Axes, array: np.ndarray, tokens: Sequence[str], norm: PowerNorm, points: int
) -> None:
    """Draw what seaborn's heatmap draws; that would lay out the whole figure for every panel."""
    axis.pcolormesh(array, cmap="viridis", norm=norm)
    names = [token.replace("$", r"\$") for token in tokens]  # not the start of a formula
    middles = np.arange(len(names)) + 0.5
    axis.set(aspect="equal", xlim=(0, len(names)), ylim=(len(names), 0))
    axis.set_xticks(middles, names, rotation=90, fontsize=points)
    axis.set_yticks(middles, names, fontsize=points)
    axis.spines[:].set_visible(False)


def plot_pictures(
    pictures: Sequence[Image.Image | np.ndarray],
    titles: Sequence[str],
    *,
    columns: int = 4,
    height: float = 3.2,
    colours: str = "turbo",
    regions: Sequence[np.ndarray] = (),
) -> Figure:
    """Draw pictures, heatmaps and overlays side by side, each in its own shape.

    Two-dimensional arrays are drawn as heatmaps, each scaled to its own range; NaN is grey.
    regions: boolean arrays whose outlines are drawn on the pictures, or on the first of them.

    Raises ValueError for no pictures, for a different number of titles, and for more regions.
    """
    if not len(regions) <= len(pictures) == len(titles) > 0:
        raise ValueError(
            f"expected pictures, a title for each and no more regions, got {len(pictures)} "
            f"pictures, {len(titles)} titles and {len(regions)} regions"
        )
    palette = plt.get_cmap(colours).with_extremes(bad="lightgrey")
    pictures = list(map(_pixels, pictures))
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    shapes = [np.shape(picture)[:2] for picture in pictures]
    widest = max(columns_ / rows for rows, columns_ in shapes)
    size = (min(height * widest, 6) * columns, (height + 0.4) * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, **PANELS)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, cmap=palette, interpolation="nearest")
        axis.set_title(title, parse_math=False)
    for axis, region in zip(axes.flat, regions, strict=False):
        if region.any():
            axis.contour(region, levels=[0.5], colors="white", linewidths=2.5)
            axis.contour(region, levels=[0.5], colors="black", linewidths=1)
    return figure


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(upright_rgb(picture) if isinstance(picture, Image.Image) else picture)


def plot_overlay(
    picture: Image.Image | np.ndarray,
    heatmap: Float[np.ndarray, "height width"],
    *,
    colours: str = "viridis",
    opacity: float = 0.8,
    contours: bool = False,
    label: str = "relevance",
) -> Figure:
    """Draw a map over its picture with a scale of numbers, or as contour lines, for print.

    heatmap: at the picture's resolution, as `to_picture` returns; NaN where the model saw nothing.
    contours: lines at LEVELS of the highest value, which the scale names, and no colours.
    """
    pixels, scaled = _pixels(picture), emphasize(heatmap)
    low, high = np.nanmin(heatmap), np.nanmax(heatmap)
    rows, columns = pixels.shape[:2]
    width = min(6.5, 5.5 * columns / rows)
    figure, axis = plt.subplots(figsize=(width + 1, width * rows / columns), layout="constrained")
    axis.set_axis_off()
    if contours:
        axis.imshow(pixels)
        levels = [low + level * (high - low) for level in LEVELS]
        axis.contour(heatmap, levels=levels, colors="white", linewidths=3.5)
        drawn = axis.contour(heatmap, levels=levels, cmap=colours, linewidths=1.5)
    else:
        axis.imshow(blend(Image.fromarray(pixels), colour(scaled, colours), opacity))
        drawn = ScalarMappable(Normalize(low, high), colours)
    figure.colorbar(drawn, ax=axis, label=label, shrink=0.8, format="%.2g")
    return figure


def plot_layers(
    picture: Image.Image | np.ndarray, legend: Mapping[str, str | tuple[int, int, int]]
) -> Figure:
    """Draw a picture under coloured layers, and below it what each colour stands for.

    legend: label → the name of its colours, shown from low to high, or one colour of 0..255.
    """
    picture = _pixels(picture)
    rows, columns = picture.shape[:2]
    width = min(6.5, 5.5 * columns / rows)
    figure, axis = plt.subplots(figsize=(width, width * rows / columns + 0.6), layout="constrained")
    axis.imshow(picture)
    axis.set_axis_off()
    handles, ramp = [], np.linspace(0.1, 1, 6)[None]
    for paint in legend.values():
        shades = colour(ramp, paint)[0] if isinstance(paint, str) else [np.divide(paint, 255)]
        handles.append(tuple(Patch(facecolor=shade, linewidth=0) for shade in shades))
    touching = {tuple: HandlerTuple(ndivide=None, pad=0)}
    figure.legend(handles, list(legend), handler_map=touching, loc="outside lower center", ncols=2)
    return figure


def plot_scores(
    scores: Mapping[str, Mapping[str, tuple[float, float, float]]], chance: Mapping[str, float]
) -> Figure:
    """Compare the scores of maps: one panel per score, with the mean and interval of each map.

    scores: score → map → (mean, low, high), in [0, 1].  chance: score → that of a random map.
    """
    maps = max(map(len, scores.values()))
    size = (PAGE_WIDTH, max(2.8, 0.6 + 0.24 * maps))
    figure, axes = plt.subplots(1, len(scores), figsize=size, sharey=True, **PANELS)
    for axis, (name, by_map) in zip(axes[0], scores.items(), strict=True):
        mean, low, high = np.array(list(by_map.values())).T
        axis.errorbar(mean, list(by_map), xerr=[mean - low, high - mean], fmt="o", capsize=4)
        axis.axvline(chance[name], color="grey", linestyle="--", label="chance")
        axis.set(title=name, xlim=(-0.02, 1.02))
    axes[0, 0].invert_yaxis()
    axes[0, 0].legend()
    return figure


def plot_metrics(
    table: pd.DataFrame, metrics: Sequence[str], parameter: str, *, by: str = ""
) -> Figure:
    """Draw how each metric in a sweep's table changes with a parameter, one panel per metric.

    Each dot is a run; the line joins the means of runs with the same value of the parameter.
    by: a second parameter, with one colour for each of its values.

    Raises ValueError for a column missing from the table, and if no run has any of the metrics.
    """
    wanted = [*metrics, parameter, *([by] if by else [])]
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(f"expected columns out of {list(table)}, got {missing}")
    if not metrics or table[list(metrics)].isna().all(axis=None):
        raise ValueError(f"expected runs with {' or '.join(metrics) or 'a metric'}, got none")
    hue = {"hue": table[by].astype(str)} if by else {}
    x = table[parameter]
    if not pd.api.types.is_numeric_dtype(x):
        x = x.astype(str)
    width = 3.6 * len(metrics)
    figure, axes = plt.subplots(1, len(metrics), figsize=(width, 3), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        last = axis is axes[0, -1]
        sns.lineplot(x=x, y=table[metric], **hue, ax=axis, errorbar=None, legend=False)
        sns.scatterplot(x=x, y=table[metric], **hue, ax=axis, legend=last and bool(by))
        axis.set(xlabel=parameter, ylabel="", title=metric)
        if last and by:
            axis.legend(title=by, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure
