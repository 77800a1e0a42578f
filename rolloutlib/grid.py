"""Where image tokens are in the sequence, and which pixels of the picture they stand for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from rolloutlib.algorithm.arrays import Array


@dataclass(frozen=True)
class View:
    """Which part of a picture the model saw, and how its tokens tile that part.

    A processor resizes the picture, then crops or pads it to the model's input, so that input is
    a window on the resized picture. All sizes are (height, width) in pixels.

    picture: the original.  resized: the whole picture after resizing; not always whole numbers.
    offset: (top, left) of the window in the resized picture; negative if padding comes first.
    window: size of the model's input.  token: side of the square of input pixels of one token.
    grid: (rows, columns) of tokens, from the window's top left corner; for a video (time, rows,
    columns), where one time step may stand for several frames of the same size.
    leading: how many image tokens precede the grid's, such as a class token.
    """

    picture: tuple[int, int]
    resized: tuple[float, float]
    offset: tuple[float, float]
    window: tuple[int, int]
    token: int
    grid: tuple[int, int] | tuple[int, int, int]
    leading: int = 0

    def __post_init__(self):
        covered = tuple(count * self.token for count in self.grid[-2:])
        if min(self.grid) < 1 or covered[0] > self.window[0] or covered[1] > self.window[1]:
            raise ValueError(
                f"expected a grid of {self.token}-pixel tokens that fits the model's input of "
                f"{self.window[0]}x{self.window[1]} pixels, got {times(self.grid)}"
            )

    @property
    def token_width(self) -> float:
        """The width of a token on the original picture, in pixels."""
        return self.token * self.picture[1] / self.resized[1]

    def boxes(self) -> Float[np.ndarray, "token 4"]:
        """The rectangle of the original picture that each token stands for.

        (left, top, right, bottom) in pixels of the original, row by row. Rectangles reach
        beyond the picture where the model saw padding. In a video, all frames share them.
        """
        ys, xs = (
            (self.offset[axis] + np.arange(self.grid[axis - 2] + 1) * self.token)
            * (self.picture[axis] / self.resized[axis])
            for axis in (0, 1)
        )
        top, left = np.meshgrid(ys[:-1], xs[:-1], indexing="ij")
        bottom, right = np.meshgrid(ys[1:], xs[1:], indexing="ij")
        return np.stack([left, top, right, bottom], -1).reshape(-1, 4)


def times(grid: tuple[int, ...]) -> str:
    """A grid in words: 3x4."""
    return "x".join(map(str, grid))


@dataclass(frozen=True)
class Patches:
    """The patches of a vision tower behind one picture's image tokens, and how outputs are merged.

    view: that of the image tokens, but with the tower's own patches.
    layers: how many of the tower's layers they went through.
    sequence: which of the sequences in the tower's batch holds them.
    positions: where the patches are in that sequence, in the order of the view's grid.
    merged: where the outputs are that each image token was merged from, in equal shares.
    branches: of outputs of earlier layers that are merged alike and added to the same tokens (as by
    Qwen3-VL's DeepStack), how many layers each went through.
    """

    view: View
    layers: int
    sequence: int
    positions: Int[torch.Tensor, " patch"]
    merged: Int[torch.Tensor, "token share"]
    branches: tuple[int, ...] = ()

    def on_outputs(
        self, relevance: Float[torch.Tensor, "row token"], length: int
    ) -> Float[torch.Tensor, "row length"]:
        """Spread each image token's relevance over the outputs it was merged from."""
        outputs = relevance.new_zeros(len(relevance), length)
        outputs[:, self.merged] = relevance[..., None] / self.merged.shape[1]
        return outputs

    def heatmaps(self, relevance: Float[Array, "*row key"]) -> Float[Array, "*row_and_grid"]:
        """Put relevance over the tower's sequence on the grid of patches.

        Raises ValueError if the relevance has fewer keys than the last patch needs.
        """
        return on_grid(relevance, self.positions, self.view)


@dataclass(frozen=True)
class ImageTokens:
    """One picture of a prompt: what the model saw of it, and where its tokens are.

    picture: the picture itself; for a video, its first frame.
    patches: what lies behind the tokens; None if pixels go straight into the decoder.
    shares: how much of each token's relevance lies on each cell of the grid, where tokens overlap,
    as those of tiles and of a thumbnail do; None if each token is one cell, in the grid's order.
    frames: all of a video.  steps: the number of each time step's first frame.
    """

    picture: Image.Image
    view: View
    positions: Int[torch.Tensor, " token"]
    patches: Patches | None = None
    shares: Float[torch.Tensor, "token cell"] | None = None
    frames: tuple[Image.Image, ...] = field(default=(), repr=False, compare=False)
    steps: tuple[int, ...] = ()

    @property
    def patch_view(self) -> View:
        """The finest view available: of the tower's patches, or else of the tokens."""
        return self.patches.view if self.patches else self.view

    def heatmaps(self, relevance: Float[Array, "*row key"]) -> Float[Array, "*row_and_grid"]:
        """Put relevance on the grid: the part of each row that fell on the image tokens.

        Shares of tokens that show the same place add up there: a map's sum is that of its tokens.

        Raises ValueError if the relevance has fewer keys than the last image token needs.
        """
        return on_grid(relevance, self.positions, self.view, self.shares)

    def boxes(self) -> Float[np.ndarray, "token 4"]:
        """The rectangle of the picture that each token claims: that of all cells it lies on.

        (left, top, right, bottom) in pixels of the picture, in the order of the positions.
        """
        cells = np.tile(self.view.boxes(), (prod(self.view.grid[:-2]), 1))
        if self.shares is None:
            return cells
        own = [cells[row > 0] for row in self.shares.numpy()]
        return np.array([[*each[:, :2].min(0), *each[:, 2:].max(0)] for each in own])

    def on_patches(
        self,
        relevance: Float[torch.Tensor, "row key"],
        length: int,
        carry: Callable[[torch.Tensor, slice], torch.Tensor],
    ) -> Float[torch.Tensor, "*row_and_grid"]:
        """Put relevance on the grid of the patches behind the image tokens.

        Each of K branches has the same share of a token as the tower's last output: with
        relevance r on the tokens, the merging M and the tower's product R_d of its first d layers,
        that is r · M · (R_D + Σ R_{d_k}) / (K + 1).

        carry: takes relevance `[row length]` over the outputs of some of the tower's layers, all in
        a row, back to their inputs.
        """
        patches = self.patches
        on_tokens = relevance[:, self.positions.to(relevance.device)]
        share = patches.on_outputs(on_tokens, length) / (len(patches.branches) + 1)
        carried, depths = 0, sorted((patches.layers, *patches.branches), reverse=True)
        for depth, next_depth in pairwise([*depths, 0]):
            carried = carry(carried + share, slice(next_depth, depth))
        return patches.heatmaps(carried)


def on_grid(
    relevance: Float[Array, "*row key"],
    positions: Int[torch.Tensor, " token"],
    view: View,
    shares: Float[torch.Tensor, "token cell"] | None = None,
) -> Float[Array, "*row_and_grid"]:
    """The relevance of these positions, in the shape of the view's grid."""
    needed, keys = int(positions.max()) + 1, relevance.shape[-1]
    if keys < needed:
        raise ValueError(f"expected relevance over at least {needed} keys, got {keys}")
    chosen = relevance[..., positions.to(getattr(relevance, "device", "cpu"))]
    if shares is not None:
        chosen = chosen @ (shares.numpy() if isinstance(chosen, np.ndarray) else shares.to(chosen))
    return chosen.reshape(*relevance.shape[:-1], *view.grid)


def image_tokens(
    pictures: list[Image.Image],
    views: list[View],
    ids: Int[torch.Tensor, " token"],
    token_id: int,
    patches: list[Patches] | list[None],
) -> list[ImageTokens]:
    """Find each picture's tokens among the ids of a prompt; the pictures' grids say how many.

    Raises ValueError if the prompt has more or fewer image tokens than the grids.
    """
    positions = (ids == token_id).nonzero().flatten().cpu()
    counts = [view.leading + prod(view.grid) for view in views]
    if len(positions) != sum(counts):
        grids = ", ".join(times(view.grid) for view in views)
        wanted = f"{sum(counts)} image tokens in the prompt for the grid {grids}"
        raise ValueError(f"expected {wanted}, got {len(positions)}")
    every = zip(pictures, views, positions.split(counts), patches, strict=True)
    return [
        ImageTokens(picture, view, part[view.leading :], behind)
        for picture, view, part, behind in every
    ]
