"""What a small Qwen3-VL that learns to click should know about each patch of a screen."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from rolloutlib.models.families.qwen3_vl import merge_order
from rolloutlib.tiny.patches import PatchHeads
from rolloutlib.tiny.scenes import COLOURS, COLUMNS, ROWS
from rolloutlib.tiny.screens import ICONS, KINDS, Box, Screen
from rolloutlib.tiny.tokenizers import ALL_LABELS, LETTERS

SPOT_UNIT = 0.1  # of the picture; centres and sizes are learned in this unit


@dataclass(frozen=True)
class ElementLabels:
    """For each patch of a screen, the element it shows; -100 stands for none, and losses ignore it.

    kind: the last class is "no element".  icon: the last class is "not a button".
    spot: the element's centre x and y, width and height, in tenths of the picture.
    mark: the icon that this patch itself shows.  letters: the letters that it shows.
    """

    kind: Int[torch.Tensor, " patch"]
    colour: Int[torch.Tensor, " patch"]
    icon: Int[torch.Tensor, " patch"]
    label: Int[torch.Tensor, " patch"]
    row: Int[torch.Tensor, " patch"]
    column: Int[torch.Tensor, " patch"]
    spot: Float[torch.Tensor, "patch 4"]
    mark: Int[torch.Tensor, " patch"]
    letters: Float[torch.Tensor, "patch letter"]

    @property
    def on_element(self) -> Bool[torch.Tensor, " patch"]:
        """Which patches show an element."""
        return self.row >= 0

    def __getitem__(self, index: torch.Tensor) -> "ElementLabels":
        """The labels of some of the patches."""
        return ElementLabels(*(tensor[index] for tensor in vars(self).values()))


def join_labels(labels: Iterable[ElementLabels]) -> ElementLabels:
    """Labels of several screens one after the other."""
    columns = zip(*(vars(label).values() for label in labels), strict=True)
    return ElementLabels(*map(torch.cat, columns))


def element_labels(screen: Screen, grid: tuple[int, int]) -> ElementLabels:
    """What each patch of a screen shows, if it is read as a `grid` (rows, columns) of patches.

    An element, if more than a sixth of the patch is inside its box; an icon, if more than a fifth
    of the icon is in the patch; a letter, if more than two fifths of it are. In merge order.
    """
    (width, height), count = screen.picture.size, prod(grid)
    kind, mark = np.full(count, len(KINDS)), np.full(count, len(ICONS))
    colour, icon, label, row, column = np.full((5, count), -100)
    spot, letters = (np.zeros((count, n), np.float32) for n in (4, len(LETTERS)))
    unit = np.array(screen.picture.size) * SPOT_UNIT
    covered = np.full(count, 1 / 6)

    def inside(box: Box) -> Float[np.ndarray, " patch"]:
        left, top, right, bottom = box
        return _overlap(box, screen.picture.size, grid) / ((right - left) * (bottom - top))

    for element in screen.elements:
        cover = _overlap(element.box, screen.picture.size, grid) / (width * height / count)
        shown = cover > covered
        covered = np.maximum(covered, cover)
        kind[shown] = KINDS.index(element.kind)
        colour[shown] = list(COLOURS).index(element.colour)
        icon[shown] = (*ICONS, "").index(element.icon)
        label[shown] = ALL_LABELS.index(element.label)
        row[shown], column[shown] = element.row, element.column
        start, end = np.reshape(element.box, (2, 2))
        spot[shown] = [*(start + end) / 2 / unit, *(end - start) / unit]
        for box, letter in zip(element.letters, element.label, strict=True):
            letters[inside(box) > 0.4, LETTERS.index(letter)] = 1
        if element.icon_box is not None:
            mark[inside(element.icon_box) > 0.2] = ICONS.index(element.icon)
    order = merge_order(grid, 2)
    labels = (kind, colour, icon, label, row, column, spot, mark, letters)
    return ElementLabels(*(torch.from_numpy(values)[order] for values in labels))


def _overlap(box: Box, size: tuple[int, int], grid: tuple[int, int]) -> Float[np.ndarray, " patch"]:
    """How many pixels of the box are in each patch of a picture, in raster order."""
    (left, top, right, bottom), (width, height), (rows, columns) = box, size, grid
    ys, xs = np.arange(rows + 1) * height / rows, np.arange(columns + 1) * width / columns
    wide = np.minimum(xs[1:], right) - np.maximum(xs[:-1], left)
    high = np.minimum(ys[1:], bottom) - np.maximum(ys[:-1], top)
    return np.outer(high.clip(0), wide.clip(0)).ravel()


class ElementHeads(nn.Module):
    """Reads from two layers' features of a patch what it shows; discarded after training.

    `near` reads from a lower layer what the patch itself shows; `far` reads from the last layer
    which element it belongs to.
    """

    FAR: ClassVar[dict[str, int]] = {
        "kind": len(KINDS) + 1,
        "colour": len(COLOURS),
        "icon": len(ICONS) + 1,
        "label": len(ALL_LABELS),
        "row": len(ROWS),
        "column": len(COLUMNS),
        "spot": 4,
    }
    NEAR: ClassVar[dict[str, int]] = {"mark": len(ICONS) + 1, "letters": len(LETTERS)}

    def __init__(self, width: int):
        super().__init__()
        self.near, self.far = PatchHeads(width, self.NEAR), PatchHeads(width, self.FAR)

    def forward(self, lower: torch.Tensor, last: torch.Tensor) -> dict[str, torch.Tensor]:
        """A guess for every label of every patch."""
        return self.near(lower) | self.far(last)


CLASSES = ("kind", "colour", "icon", "label", "row", "column")


def element_loss(guesses: dict[str, torch.Tensor], labels: ElementLabels) -> torch.Tensor:
    """The loss of the guesses: on elements everything counts, elsewhere only that there is none."""
    classify, shown = nn.functional.cross_entropy, labels.on_element
    loss = classify(guesses["kind"], labels.kind)
    for name in CLASSES:
        loss = loss + classify(guesses[name][shown], getattr(labels, name)[shown])
    loss = loss + 2 * classify(guesses["mark"][shown], labels.mark[shown])
    spots = nn.functional.smooth_l1_loss(guesses["spot"][shown], labels.spot[shown], beta=0.1)
    binary = nn.functional.binary_cross_entropy_with_logits
    return loss + 3 * spots + 10 * binary(guesses["letters"][shown], labels.letters[shown])


def element_accuracy(guesses: dict[str, torch.Tensor], labels: ElementLabels) -> dict[str, float]:
    """The share of element patches whose label is guessed correctly; icons only on buttons.

    centre: the error of the guessed centre, a mean over x and y, as a share of the picture.
    """
    shown = labels.on_element
    hits = {name: guesses[name].argmax(-1) == getattr(labels, name) for name in CLASSES}
    among = {name: shown for name in CLASSES} | {"icon": shown & (labels.icon < len(ICONS))}
    shares = {name: hits[name][among[name]].float().mean().item() for name in CLASSES}
    off = (guesses["spot"] - labels.spot)[shown, :2].abs().mean().item() * SPOT_UNIT
    return shares | {"centre": off}
