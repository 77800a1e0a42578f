"""Figures. Every function draws with matplotlib's pyplot and returns the figure it drew."""

import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from rolloutlib.algorithm.arrays import Array, as_numpy
from rolloutlib.extras import needs
from rolloutlib.files.dumps import KEY
from rolloutlib.files.pictures import upright_rgb
from rolloutlib.overlay import LEVELS, blend, colour, emphasize
from rolloutlib.video import minmax_rows, select_instance_attention

PAGE_WIDTH = 11  # inches of the widest figure: on a page of 960 pixels its text has 8 points
PANELS = {"squeeze": False, "layout": "constrained"}  # arguments of every grid of axes
LABEL_PITCH = 1.6 / 72  # inches from one token label to the next, per point of font size


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
    """Draw matrices side by side on one colour scale: which input is relevant to which output.

    gamma: colours follow value ** gamma; below 1, small values stay visible next to large ones.
    The colour bar says so.
    Panels grow with the number of tokens, so that every label can be read; then fewer than
    `columns` fit side by side.

    Raises ValueError if a matrix does not fit the tokens, or titles do not fit the matrices.
    """
    arrays = [_one_matrix(matrix, len(tokens)) for matrix in matrices]
    if not arrays or len(arrays) != len(titles):
        raise ValueError(f"expected a title for each matrix, got {len(titles)} for {len(arrays)}")
    points = 9 if len(tokens) <= 20 else 8
    side = max(2.4, LABEL_PITCH * points * len(tokens))
    margin = 0.7 + 0.6 * points / 72 * max(len(token) for token in tokens)
    room = PAGE_WIDTH - margin - 1.2
    lines = -(-len(arrays) // min(columns, max(1, int(room // side))))
    columns = -(-len(arrays) // lines)  # lines as full as possible
    size = (side * columns + margin + 1.2, (side + margin) * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, sharey=True, **PANELS)
    norm = PowerNorm(gamma, vmin=0, vmax=max(array.max() for array in arrays))
    for axis, array, name in zip(axes.flat, arrays, titles, strict=False):
        _draw_matrix(axis, array, tokens, norm, points)
        axis.set(title=name, xlabel=axis_labels[0])
    plt.setp(axes.flat[len(arrays) :], visible=False)
    plt.setp(axes[:, 0], ylabel=axis_labels[1])
    scale = "" if gamma == 1 else f"\n(colours follow value$^{{{gamma:g}}}$)"
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label=label + scale, shrink=0.7)
    if title:
        figure.suptitle(title)
    figure.draw_without_rendering()  # square panels find their places in a second layout
    return figure


def plot_paths(
    layers: Sequence[Float[Array, "query key"]],
    tokens: Sequence[str],
    paths: Sequence[Sequence[int]] = (),
) -> Figure:
    """Draw layers as a network, inputs at the bottom: lines join outputs to what they attend to.

    Lines are as wide as the attention is large; where it is 0 there is none.
    paths: each names a token at the input and one after every layer; their lines are coloured.

    Raises ValueError for a layer or a path that does not fit the tokens and layers.
    """
    matrices, levels = [_one_matrix(layer, len(tokens)) for layer in layers], len(layers) + 1
    if wrong := [
        path for path in paths if len(path) != levels or not {*path} <= {*range(len(tokens))}
    ]:
        raise ValueError(
            f"expected paths of {levels} tokens in [0, {len(tokens) - 1}], got {wrong}"
        )
    size = (1.7 * len(tokens) + 1.5, 1.2 * len(layers) + 0.8)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    for level, matrix in enumerate(matrices):
        steps = {(path[level + 1], path[level]) for path in paths}
        for (output, source), weight in np.ndenumerate(matrix):
            tint = "tab:red" if (output, source) in steps else "lightgrey"
            axis.plot([source, output], [level, level + 1], color=tint, linewidth=8 * weight)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "grey"}
    for place, level in itertools.product(range(len(tokens)), range(levels)):
        axis.text(place, level, tokens[place], ha="center", va="center", fontsize=12, bbox=box)
    axis.set_yticks(range(levels), ["input", *(f"after layer {n}" for n in range(len(layers)))])
    axis.set(xticks=[], xlim=(-0.5, len(tokens) - 0.5), ylim=(-0.3, levels - 0.7))
    axis.spines[:].set_visible(False)
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
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(middles, names, fontsize=points, **slanted)
    axis.set_yticks(middles, names, fontsize=points)
    axis.spines[:].set_visible(False)


def plot_pictures(
    pictures: Sequence[Image.Image | np.ndarray],
    titles: Sequence[str],
    *,
    columns: int = 4,
    height: float = 3.2,
    colours: str = "turbo",
    scale: str | Mapping[str, str] = "",
    regions: Sequence[np.ndarray] = (),
) -> Figure:
    """Draw pictures, heatmaps and overlays side by side, each in its own shape.

    Two-dimensional arrays are drawn as heatmaps, each scaled to its own range; NaN is grey.
    scale: the label of a colour bar. All heatmaps then share its range, from 0 to their highest
    value, or as far below 0 if any value is negative; without heatmaps it belongs to the overlays,
    goes from 0 to 1, and fades as they do: 0 is each map's lowest value and 1 its highest, unless
    `overlay` was given `highest`. Overlays of several colours have a bar each: {label: colours}.
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
    norm = _shared_norm(pictures) if scale else None
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    shapes = [np.shape(picture)[:2] for picture in pictures]
    ratios = [columns_ / rows for rows, columns_ in shapes]
    scales = {scale: colours} if isinstance(scale, str) and scale else dict(scale)
    bar = len(scales)  # inches
    across = min(height * max(ratios), 6, (PAGE_WIDTH - bar) / columns)
    down = min(height, across / min(ratios))
    size = (across * columns + bar, (down + 0.4) * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, **PANELS)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, cmap=palette, norm=norm, interpolation="nearest")
        axis.set_title(title, parse_math=False)
    for axis, region in zip(axes.flat, regions, strict=False):
        if region.any():
            axis.contour(region, levels=[0.5], colors="white", linewidths=2.5)
            axis.contour(region, levels=[0.5], colors="black", linewidths=1)
    overlays = all(np.ndim(picture) == 3 for picture in pictures)
    for label, name in scales.items():
        shades = _faded(name) if overlays else palette
        label = "\n".join(fill(line, int(12 * size[1])) for line in label.splitlines())
        figure.colorbar(ScalarMappable(norm, shades), ax=axes, label=label, shrink=0.8)
    return figure


def _faded(colours: str) -> ListedColormap:
    """The colours of a map over a picture, from low to high, as opaque as there."""
    return ListedColormap(colour(np.linspace(0, 1, 256)[None], colours)[0])


def _shared_norm(pictures: Sequence[np.ndarray]) -> Normalize:
    maps = [np.nan_to_num(p) for p in pictures if p.ndim == 2]
    signed = any(p.min() < 0 for p in maps)
    highest = max((np.abs(p).max() for p in maps), default=1)
    return Normalize(-highest if signed else 0, highest)


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(upright_rgb(picture) if isinstance(picture, Image.Image) else picture)


def plot_chain(boxes: Sequence[str], steps: Sequence[str]) -> Figure:
    """Draw boxes from left to right, each joined to the next by an arrow that names the step.

    Raises ValueError unless there is one step between every two boxes.
    """
    if len(steps) != len(boxes) - 1:
        raise ValueError(f"expected a step between {len(boxes)} boxes, got {len(steps)}")
    figure, axis = plt.subplots(figsize=(2.4 * len(boxes), 1.4), layout="constrained")
    frame = {"boxstyle": "round,pad=0.5", "facecolor": "aliceblue", "edgecolor": "grey"}
    centred = {"ha": "center", "va": "center", "fontsize": 11}
    drawn = [
        axis.text(place, 0, box, bbox=frame, parse_math=False, **centred).get_bbox_patch()
        for place, box in enumerate(boxes)
    ]
    for place, step in enumerate(steps):
        ends = {"patchA": drawn[place], "patchB": drawn[place + 1], "shrinkA": 3, "shrinkB": 3}
        arrow = {"arrowstyle": "->", "color": "tab:red", "linewidth": 2}
        axis.annotate("", (place + 1, 0), (place, 0), arrowprops=arrow | ends)
        axis.text(place + 0.5, 0.75, step, color="tab:red", **centred | {"fontsize": 10})
    axis.set(xlim=(-0.5, len(boxes) - 0.5), ylim=(-0.7, 1.1))
    axis.set_axis_off()
    return figure


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
        drawn = ScalarMappable(Normalize(low, high), _faded(colours))
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


def plot_saved(
    arrays: Mapping[str, np.ndarray], refiner_id: int | None = None, axes: str = ""
) -> dict[str, Figure]:
    """Draw saved results without computing them again: figures by name.

    Matrices `[frame frame]` become "matrices", and "minmax" with each row scaled to [0, 1]. Maps
    `[frame row column]` become a figure each, under their own name: at most 12 frames, evenly
    spread, on one colour scale. Of `attention_weights`, a refiner's layer as dumps hold it, the
    matrix of one instance is drawn: `refiner_id` and `axes` choose it as
    `select_instance_attention` does.

    Raises ValueError for an array that is neither, and for matrices of different sizes.
    """
    figures = {}
    if KEY in arrays:
        arrays = {**arrays, KEY: select_instance_attention(arrays[KEY], refiner_id, axes)}
    matrices = {name: a for name, a in arrays.items() if a.ndim == 2 and a.shape[0] == a.shape[1]}
    for name, array in arrays.items():
        if array.ndim == 3:
            some = np.unique(np.linspace(0, len(array) - 1, 12).astype(int))
            titles = [f"{name}, map {number}" for number in some]
            figures[name] = plot_pictures(list(array[some]), titles, height=2.2, scale="Relevance")
        elif name not in matrices:
            wanted = "matrices [frame frame] or maps [frame row column]"
            raise ValueError(f"{name}: expected {wanted}, got shape {array.shape}")
    if matrices:
        frames = [str(frame) for frame in range(len(next(iter(matrices.values()))))]
        look = {"columns": 3, "axis_labels": ("Input frame", "Output frame")}
        scaled, names = [minmax_rows(matrix) for matrix in matrices.values()], list(matrices)
        raw = plot_matrices([*matrices.values()], frames, names, label="Relevance", **look)
        share = "Share of the row's range"
        figures["matrices"] = raw
        figures["minmax"] = plot_matrices(scaled, frames, names, label=share, **look)
    return figures


def plot_boxes(
    picture: Image.Image | np.ndarray,
    boxes: Float[np.ndarray, "box 4"],
    labels: Sequence[int | str],
    *,
    marked: Sequence[int | str] = (),
) -> Figure:
    """Draw rectangles on a picture with labels in their middles; where there is no room for all
    labels, those of every second column or row, or of fewer.

    boxes: (left, top, right, bottom) in pixels of the picture.  marked: labels to fill.
    """
    picture = _pixels(picture)
    rows, columns = picture.shape[:2]
    figure, axis = plt.subplots(figsize=(7, 7 * rows / columns), layout="constrained")
    axis.imshow(picture, alpha=0.6, extent=(0, columns, rows, 0))
    smallest, points = (boxes[:, 2:] - boxes[:, :2]).min(0), 8
    room = 0.85 * 7 * 72 * smallest / columns  # points; the axes' numbers take the rest
    needed = points * np.array([0.7 * max(len(str(label)) for label in labels), 1.3])
    written = (np.rint(boxes[:, :2] / smallest) % np.ceil(needed / room) == 0).all(1)
    for (left, top, right, bottom), label, said in zip(boxes, labels, written, strict=True):
        look = {"alpha": 0.4, "facecolor": "orange"} if label in marked else {"fill": False}
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, lw=0.5, ec="k", **look))
        middle = (left + right) / 2, (top + bottom) / 2
        if said:
            axis.annotate(str(label), middle, ha="center", va="center", fontsize=points)
    axis.set(xlim=(0, columns), ylim=(rows, 0), xlabel="x", ylabel="y")
    return figure


VERDICTS = {
    "on pixels": "seagreen",
    "recorded, pixels not shown": "goldenrod",
    "refused": "firebrick",
}


def plot_families(verdicts: Mapping[str, str], *, columns: int = 5) -> Figure:
    """Draw the types of models by name, coloured by what was found: one of `VERDICTS`."""
    lines = -(-len(verdicts) // columns)
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 0.28 * lines + 0.8), layout="constrained")
    for number, (name, verdict) in enumerate(sorted(verdicts.items())):
        column, line = divmod(number, lines)
        axis.annotate(name, (column + 0.04, line), va="center", color=VERDICTS[verdict])
    axis.set(xlim=(0, columns), ylim=(lines - 0.5, -0.5))
    axis.set_axis_off()
    counts = Counter(verdicts.values())
    handles = [Patch(color=c, label=f"{v}: {counts[v]}") for v, c in VERDICTS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def plot_scores(
    scores: Mapping[str, Mapping[str, tuple[float, float, float]]],
    chance: Mapping[str, float],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Compare the scores of maps: one panel per score, with the mean and interval of each map.

    scores: score → map → (mean, low, high), in [0, 1].  chance: score → that of a random map.
    groups: name → maps, each group in a colour of its own; only these maps are drawn, in this
    order. By default all.
    """
    groups = groups or {"": list(next(iter(scores.values())))}
    maps = [name for group in groups.values() for name in group]
    size = (PAGE_WIDTH, max(2.8, 0.6 + 0.24 * len(maps)))
    figure, axes = plt.subplots(1, len(scores), figsize=size, sharey=True, **PANELS)
    for axis, (score, by_map) in zip(axes[0], scores.items(), strict=True):
        for group, names in groups.items():
            there = [name for name in names if name in by_map]
            mean, low, high = np.array([by_map[name] for name in there]).reshape(-1, 3).T
            places, ends = [maps.index(name) for name in there], [mean - low, high - mean]
            axis.errorbar(mean, places, xerr=ends, fmt="o", capsize=4, label=group or None)
        axis.axvline(chance[score], color="grey", linestyle="--", label="chance")
        axis.set(title=score, xlim=(-0.02, 1.02))
    axes[0, 0].set_yticks(range(len(maps)), maps)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def plot_metrics(
    table: pd.DataFrame, metrics: Sequence[str], parameter: str, *, by: str = ""
) -> Figure:
    """Draw how each metric in a sweep's table changes with a parameter, one panel per metric.

    Each dot is a run; the line joins the means of runs with the same value of the parameter.
    by: a second parameter, with one colour for each of its values.

    Raises ValueError for a column missing from the table, and if no run has any of the metrics.
    """
    with needs("sweeps"):
        import seaborn as sns

    wanted = [*metrics, parameter, *([by] if by else [])]
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(f"expected columns out of {list(table)}, got {missing}")
    if not metrics or table[list(metrics)].isna().all(axis=None):
        raise ValueError(f"expected runs with {' or '.join(metrics) or 'a metric'}, got none")
    hue = {"hue": table[by].astype(str)} if by else {}
    x = table[parameter]
    if not pd.api.types.is_numeric_dtype(x):
        x = x.astype(str)
    lines = -(-len(metrics) // 4)
    columns = -(-len(metrics) // lines)  # lines as full as possible
    size = (min(3.6 * columns, PAGE_WIDTH), 3 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    plt.setp(axes.flat[len(metrics) :], visible=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        last = metric == metrics[-1]
        sns.lineplot(x=x, y=table[metric], **hue, ax=axis, errorbar=None, legend=False)
        sns.scatterplot(x=x, y=table[metric], **hue, ax=axis, legend=last and bool(by))
        axis.set(xlabel=parameter, ylabel="", title=metric)
        if last and by:
            axis.legend(title=by, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def plot_listening(
    spectrogram: Float[np.ndarray, "band frame"],
    words: Sequence[str],
    maps: Mapping[str, Float[Array, "word step"]],
    seconds: float,
    spoken: Sequence[tuple[float, float] | None] = (),
) -> Figure:
    """Draw a sound, and below it for each map what every word listened to, on one axis of time.

    spectrogram: low bands first.  seconds: the length of the sound.  spoken: when each word was
    spoken, from and to in seconds, outlined; None where that is unknown. Each row of a map is
    scaled to its own highest value.

    Raises ValueError for maps of another number of words.
    """
    arrays = {name: as_numpy(values) for name, values in maps.items()}
    if wrong := [name for name, array in arrays.items() if len(array) != len(words)]:
        raise ValueError(f"expected maps of {len(words)} words, got another number in {wrong[0]!r}")
    rows = 0.19 * len(words) + 0.5
    sizes = {"figsize": (9.5, 1.5 + rows * len(maps)), "height_ratios": [1.2, *[rows] * len(maps)]}
    figure, axes = plt.subplots(len(maps) + 1, sharex=True, **(PANELS | sizes))
    fill = {"aspect": "auto", "interpolation": "none"}
    bands = {"origin": "lower", "extent": (0, seconds, 0, len(spectrogram))}
    axes[0, 0].imshow(spectrogram, cmap="magma", **bands, **fill)
    axes[0, 0].set(title="sound", ylabel="mel band")
    for axis, (name, array) in zip(axes[1:, 0], arrays.items(), strict=True):
        scaled = array / np.maximum(array.max(1, keepdims=True), np.finfo(float).tiny)
        whole = {"extent": (0, seconds, len(words), 0), "vmin": 0, "vmax": 1}
        drawn = axis.imshow(scaled, **whole, **fill)
        for row, span in enumerate(spoken):
            if span is not None:
                axis.add_patch(_outline(span, row))
        axis.set(title=name)
        axis.set_yticks(np.arange(len(words)) + 0.5, words, fontsize=8)
    axes[-1, 0].set(xlabel="seconds")
    if arrays:
        figure.colorbar(drawn, ax=axes, label="Share of the word's highest", shrink=0.5)
    return figure


def _outline(span: tuple[float, float], row: int) -> Rectangle:
    start, end = span
    return Rectangle((start, row), end - start, 1, fill=False, edgecolor="white", linewidth=1)
