"""Figures. Every function draws with matplotlib's pyplot and returns the figure it drew."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rolloutlib.arrays import Array


def plot_matrices(
    matrices: Sequence[Float[Array, "query key"]],
    tokens: Sequence[str],
    titles: Sequence[str],
    *,
    columns: int = 4,
    label: str = "Cumulative attention",
    axis_labels: tuple[str, str] = ("Input tokens", "Output tokens"),
    title: str = "",
) -> Figure:
    """Which output drew on which input? Matrices side by side, on one colour scale.

    Raises ValueError where a matrix does not fit the tokens.
    """
    arrays = [_one_matrix(matrix, len(tokens)) for matrix in matrices]
    columns = min(columns, len(arrays))
    lines = -(-len(arrays) // columns)
    side = min(max(3.2, 0.22 * len(tokens)), 14)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(side * columns + 1.5, side * lines + 1.2),
        squeeze=False,
        layout="constrained",
    )
    highest = max(array.max() for array in arrays)
    for axis, array, name in zip(axes.flat, arrays, titles, strict=False):
        _draw_matrix(axis, array, tokens, highest)
        axis.set_title(name)
    for axis in axes.flat[len(arrays) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(axis_labels[0])
    for axis in axes[:, 0]:
        axis.set_ylabel(axis_labels[1])
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label=label, shrink=0.7)
    figure.suptitle(title)
    return figure


def _one_matrix(matrix: Array, tokens: int) -> np.ndarray:
    array = matrix.detach().cpu().numpy() if isinstance(matrix, torch.Tensor) else matrix
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    if array.shape != (tokens, tokens):
        raise ValueError(
            f"expected one matrix of {tokens} x {tokens} for {tokens} tokens, got {array.shape}"
        )
    return array


def _draw_matrix(axis: Axes, array: np.ndarray, tokens: Sequence[str], highest: float) -> None:
    sns.heatmap(
        array,
        ax=axis,
        cmap="viridis",
        vmin=0,
        vmax=highest,
        square=True,
        cbar=False,
        xticklabels=tokens,
        yticklabels=tokens,
    )
    size = 10 if len(tokens) <= 20 else 7  # 60 labels of 7 points still stand side by side
    axis.tick_params(axis="x", rotation=90, labelsize=size)
    axis.tick_params(axis="y", rotation=0, labelsize=size)


def plot_pictures(
    pictures: Sequence[Image.Image | np.ndarray],
    titles: Sequence[str],
    *,
    columns: int = 4,
    height: float = 3.2,
    colours: str = "turbo",
    regions: Sequence[np.ndarray] = (),
) -> Figure:
    """Pictures, heatmaps and overlays side by side, each in its own shape.

    Two-dimensional arrays are drawn as heatmaps, each scaled to its own range; NaN stays empty.
    regions: for each picture a boolean array whose outline is drawn on it.
    """
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    shapes = [np.shape(picture)[:2] for picture in pictures]
    widest = max(columns_ / rows for rows, columns_ in shapes)
    size = (min(height * widest, 6) * columns, (height + 0.4) * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, cmap=colours, interpolation="nearest")
        axis.set_title(title)
    for axis, region in zip(axes.flat, regions, strict=False):
        if region.any():
            axis.contour(region, levels=[0.5], colors="white", linewidths=2.5)
            axis.contour(region, levels=[0.5], colors="black", linewidths=1)
    return figure
