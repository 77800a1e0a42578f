"""What each patch has to tell while a tower learns."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from rolloutlib.tiny.scenes import COLOURS, COLUMNS, ROWS, SHAPES, Scene

SILHOUETTE = 7  # cells per side of the outline of its object that a patch has to tell
OFFSET_UNIT = 48.0  # pixels; offsets to an object's centre are learned in this unit


@dataclass(frozen=True)
class PatchLabels:
    """For each patch of each scene, the object it shows; -1 and the last class stand for none."""

    shape: Int[torch.Tensor, "*scene patch"]
    colour: Int[torch.Tensor, "*scene patch"]
    row: Int[torch.Tensor, "*scene patch"]
    column: Int[torch.Tensor, "*scene patch"]
    offset: Float[torch.Tensor, "*scene patch 2"]
    silhouette: Float[torch.Tensor, "*scene patch cell"]

    @property
    def on_object(self) -> Bool[torch.Tensor, "*scene patch"]:
        """Which patches show an object."""
        return self.row >= 0

    def take(self, index: Callable[[torch.Tensor], torch.Tensor]) -> "PatchLabels":
        """The same labels with every tensor indexed in the same way."""
        return PatchLabels(*map(index, vars(self).values()))


def stack_labels(labels: Iterable[PatchLabels]) -> PatchLabels:
    """Stack the labels of single scenes into those of a batch."""
    columns = zip(*(vars(label).values() for label in labels), strict=True)
    return PatchLabels(*map(torch.stack, columns))


def patch_labels(scene: Scene, patch: int) -> PatchLabels:
    """What each patch shows: an object, if it covers more than a sixth of the patch.

    Patches are squares of `patch` pixels; the last ones may reach beyond the picture.
    """
    width, height = scene.picture.size
    rows, columns = -(-height // patch), -(-width // patch)
    beyond = ((0, rows * patch - height), (0, columns * patch - width))
    ys, xs = np.indices((rows, columns)).reshape(2, -1)
    centres = (np.stack([xs, ys], -1) + 0.5) * patch
    count = rows * columns
    shape, colour = np.full(count, len(SHAPES)), np.full(count, len(COLOURS))
    row, column = np.full((2, count), -1)
    offset, silhouette = (np.zeros((count, n), np.float32) for n in (2, SILHOUETTE**2))
    for thing in scene.objects:
        tiles = np.pad(thing.mask, beyond).reshape(rows, patch, columns, patch)
        shown = tiles.mean((1, 3)).ravel() > 1 / 6
        shape[shown] = SHAPES.index(thing.shape)
        colour[shown] = list(COLOURS).index(thing.colour)
        row[shown], column[shown] = thing.row, thing.column
        middle, silhouette[shown] = _outline(thing.mask)
        offset[shown] = (middle - centres[shown]) / OFFSET_UNIT
    labels = (shape, colour, row, column, offset, silhouette)
    return PatchLabels(*map(torch.from_numpy, labels))


def _outline(mask: Bool[np.ndarray, "height width"]) -> tuple[np.ndarray, np.ndarray]:
    """An object's centre (x, y), and its mask on a coarse square around it."""
    ys, xs = np.nonzero(mask)
    middle = np.array([xs.mean(), ys.mean()]) + 0.5
    reach = max(np.ptp(xs), np.ptp(ys)) / 2 + 1
    steps = (np.arange(SILHOUETTE) + 0.5) / SILHOUETTE * 2 - 1
    at_x, at_y = (middle[:, None] + steps * reach).astype(int)
    height, width = mask.shape
    return middle, mask[np.ix_(at_y.clip(0, height - 1), at_x.clip(0, width - 1))].ravel()


def outline_points(scene: Scene, patch: int, across: int) -> Bool[torch.Tensor, "patch point"]:
    """Which points of each patch belong to an object, row by row.

    A point is a square of `patch / across` pixels, and belongs to an object if objects cover more
    than half of it. The last patches may reach beyond the picture, where there is no object.

    Raises ValueError unless `patch` is a multiple of `across`.

    >>> from PIL import Image
    >>> from rolloutlib.tiny.scenes import make_scenes
    >>> [scene] = make_scenes(0, 1, [Image.new("RGB", (400, 300))], size=(120, 150))
    >>> outline_points(scene, patch=30, across=6).shape
    torch.Size([20, 36])
    """
    if patch % across:
        raise ValueError(f"expected a patch that is a multiple of {across} pixels, got {patch}")
    width, height = scene.picture.size
    rows, columns = -(-height // patch), -(-width // patch)
    covered = np.any([thing.mask for thing in scene.objects], axis=0)
    padded = np.pad(covered, ((0, rows * patch - height), (0, columns * patch - width)))
    step = patch // across
    points = padded.reshape(rows, across, step, columns, across, step).mean((2, 5)) > 0.5
    return torch.from_numpy(points.transpose(0, 2, 1, 3).reshape(rows * columns, across**2))


def once_half_seen(labels: PatchLabels) -> PatchLabels:
    """Labels for a reader in raster order: of an object's patches, only the second half keeps them.

    Before that, nobody can tell: the shape is -100, which the loss ignores; the colour stays.
    """
    shown = labels.on_object
    cell = (labels.row * len(COLUMNS) + labels.column).clamp(min=0)
    patches = nn.functional.one_hot(cell, len(ROWS) * len(COLUMNS)) * shown[..., None]
    share = patches.cumsum(-2) / patches.sum(-2, keepdim=True).clamp(min=1)
    known = shown & (share.gather(-1, cell[..., None]).squeeze(-1) >= 0.5)
    return replace(
        labels,
        shape=labels.shape.where(known | ~shown, -100),
        row=labels.row.where(known, -1),
        column=labels.column.where(known, -1),
    )


class PatchHeads(nn.Module):
    """Reads from a patch's features what the patch shows; discarded after training.

    sizes: how many numbers each head returns; by default those of a scene's labels.
    """

    SIZES: ClassVar[dict[str, int]] = {
        "shape": len(SHAPES) + 1,
        "colour": len(COLOURS) + 1,
        "row": len(ROWS),
        "column": len(COLUMNS),
        "offset": 2,
        "silhouette": SILHOUETTE**2,
    }

    def __init__(self, width: int, sizes: dict[str, int] = SIZES):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in sizes.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """A guess for every label of every patch."""
        features = self.norm(features)
        return {name: head(features) for name, head in self.heads.items()}


def patch_loss(guesses: dict[str, torch.Tensor], labels: PatchLabels) -> torch.Tensor:
    """The loss of the guesses: shape and colour for all patches, the rest only on objects."""
    shown = labels.on_object
    classify, binary = nn.functional.cross_entropy, nn.functional.binary_cross_entropy_with_logits
    loss = binary(guesses["silhouette"][shown], labels.silhouette[shown])
    loss = loss + nn.functional.smooth_l1_loss(guesses["offset"][shown], labels.offset[shown])
    for name in ("row", "column"):
        loss = loss + classify(guesses[name][shown], getattr(labels, name)[shown])
    for name in ("shape", "colour"):
        loss = loss + classify(guesses[name].flatten(0, -2), getattr(labels, name).flatten())
    return loss


def patch_accuracy(guesses: dict[str, torch.Tensor], labels: PatchLabels) -> dict[str, float]:
    """The share of object patches whose label is guessed correctly, for each kind of label."""
    shown = labels.on_object
    names = ("shape", "colour", "row", "column")
    hits = {n: guesses[n].argmax(-1)[shown] == getattr(labels, n)[shown] for n in names}
    return {name: hit.float().mean().item() for name, hit in hits.items()}


def prefer_objects(
    on_object: Bool[torch.Tensor, "scene patch"], keep: int, generator: torch.Generator
) -> Int[torch.Tensor, "scene keep"]:
    """Which patches to train on: those on objects first, then others at random; in raster order."""
    chance = torch.rand(on_object.shape, generator=generator) + on_object
    return chance.topk(keep, dim=1).indices.sort(dim=1).values
