"""Where image tokens are in the sequence, and what pixels of the picture they stand for."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from rolloutlib.arrays import Array


@dataclass(frozen=True)
class View:
    """What part of a picture the model saw, and how its tokens tile that part.

    A processor resizes the picture and then cuts or pads it to the model's input, so that input
    is a window on the resized picture. All sizes are (height, width) in pixels.

    picture: the original.  resized: the whole picture after resizing; not always whole numbers.
    offset: (top, left) of the window in the resized picture; negative where padding comes first.
    window: size of the model's input.  token: side of the square of input pixels of one token.
    grid: (rows, columns) of tokens, from the window's top left corner.
    leading: how many image tokens precede the grid's, such as a class token.
    """

    picture: tuple[int, int]
    resized: tuple[float, float]
    offset: tuple[float, float]
    window: tuple[int, int]
    token: int
    grid: tuple[int, int]
    leading: int = 0

    def __post_init__(self):
        covered = tuple(count * self.token for count in self.grid)
        if min(self.grid) < 1 or covered[0] > self.window[0] or covered[1] > self.window[1]:
            raise ValueError(
                f"expected a grid of {self.token}-pixel tokens that fits the model's input of "
                f"{self.window[0]}x{self.window[1]} pixels, got {self.grid[0]}x{self.grid[1]}"
            )

    def boxes(self) -> Float[np.ndarray, "token 4"]:
        """Which rectangle of the original picture does each token stand for?

        (left, top, right, bottom) in pixels of the original, row by row. Rectangles reach
        beyond the picture where the model saw padding.
        """
        ys, xs = (
            (self.offset[axis] + np.arange(self.grid[axis] + 1) * self.token)
            * (self.picture[axis] / self.resized[axis])
            for axis in (0, 1)
        )
        top, left = np.meshgrid(ys[:-1], xs[:-1], indexing="ij")
        bottom, right = np.meshgrid(ys[1:], xs[1:], indexing="ij")
        return np.stack([left, top, right, bottom], -1).reshape(-1, 4)


@dataclass(frozen=True)
class ImageTokens:
    """One picture of a prompt: what the model saw of it, and where its tokens stand."""

    picture: Image.Image
    view: View
    positions: Int[torch.Tensor, " token"]

    def heatmaps(self, relevance: Float[Array, "*row key"]) -> Float[Array, "*row rows columns"]:
        """Lay relevance on the grid: of each row, the part that fell on the image tokens.

        Raises ValueError where the relevance has fewer keys than the last image token needs.
        """
        if relevance.shape[-1] <= int(self.positions[-1]):
            raise ValueError(
                f"expected relevance over at least {int(self.positions[-1]) + 1} keys, "
                f"got {relevance.shape[-1]}"
            )
        on_image = relevance[..., self.positions.to(getattr(relevance, "device", "cpu"))]
        return on_image.reshape(*relevance.shape[:-1], *self.view.grid)


def image_tokens(
    pictures: list[Image.Image], views: list[View], ids: Int[torch.Tensor, " token"], token_id: int
) -> list[ImageTokens]:
    """Find each picture's tokens among the ids of a prompt; the pictures' grids say how many.

    Raises ValueError where the prompt has more or fewer image tokens than the grids.
    """
    positions = (ids == token_id).nonzero().flatten().cpu()
    counts = [view.leading + view.grid[0] * view.grid[1] for view in views]
    if len(positions) != sum(counts):
        grids = ", ".join(f"{view.grid[0]}x{view.grid[1]}" for view in views)
        raise ValueError(
            f"expected {sum(counts)} image tokens in the prompt for the grid {grids}, "
            f"got {len(positions)}"
        )
    return [
        ImageTokens(picture, view, part[view.leading :])
        for picture, view, part in zip(pictures, views, positions.split(counts), strict=True)
    ]
