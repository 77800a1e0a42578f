"""Clips of coloured balls that are hidden in some frames; what is where, and when, is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from rolloutlib.tiny.scenes import COLOURS

SIZE = (48, 64)  # height and width of a frame in pixels
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32) / 255


@dataclass(frozen=True)
class Tracks:
    """Clips with what a tracker reports about each ball, and the truth.

    pictures: the frames, red, green, blue in [0, 1]. A hidden ball is not painted.
    observations: the ball's colour, one-hot and with noise, where it is visible; noise elsewhere.
    colour: which of `scenes.COLOURS`, by number.  centre: (x, y), as shares of width and height.
    radius: in pixels.
    """

    pictures: Float[torch.Tensor, "clip frame 3 height width"]
    observations: Float[torch.Tensor, "clip frame instance colours"]
    visible: Bool[torch.Tensor, "clip frame instance"]
    colour: Int[torch.Tensor, "clip instance"]
    centre: Float[torch.Tensor, "clip frame instance 2"]
    radius: Float[torch.Tensor, "clip instance"]

    def region(self, clip: int, instance: int) -> Bool[np.ndarray, "frame height width"]:
        """The pixels of a ball; none in frames where it is hidden."""
        centre, radius = self.centre[clip, :, instance], self.radius[clip, instance, None]
        disc = _disc(centre.numpy(), radius.numpy())
        return disc & self.visible[clip, :, instance, None, None].numpy()

    def without(
        self, removed: Bool[np.ndarray, "step frame"]
    ) -> tuple[
        Float[torch.Tensor, "step frame instance colours"],
        Float[torch.Tensor, "step frame 3 height width"],
    ]:
        """Observations and pictures of a single clip, once for each step, without some frames.

        The mean colour takes the place of a removed picture, zeros that of what was observed.
        """
        gone = torch.from_numpy(removed)
        grey = self.pictures.mean((3, 4), keepdim=True)
        observations = torch.where(gone[..., None, None], 0.0, self.observations)
        return observations, torch.where(gone[..., None, None, None], grey, self.pictures)


def make_tracks(
    seed: int | Sequence[int],
    clips: int,
    *,
    frames: int = 16,
    instances: int = 3,
    noise: float = 0.3,
) -> Tracks:
    """Make random clips; the same seed gives the same clips.

    Each ball moves along a random curve, has a colour that no other ball of the clip has, and is
    hidden once, for a fifth to a half of the frames.

    >>> tracks = make_tracks(seed=0, clips=2)
    >>> tuple(tracks.pictures.shape), tuple(tracks.observations.shape)
    ((2, 16, 3, 48, 64), (2, 16, 3, 8))
    """
    rng = np.random.default_rng(seed)
    colour = np.stack([rng.permutation(len(PALETTE))[:instances] for _ in range(clips)])
    visible = ~_hidden(rng, clips, frames, instances)
    centre = _curves(rng, clips, frames, instances)
    radius = rng.uniform(5, 7, (clips, instances)).astype(np.float32)
    pictures = _background(rng, clips, frames)
    for number in range(instances):
        disc = _disc(centre[:, :, number], radius[:, None, number])
        painted = (disc & visible[:, :, number, None, None])[:, :, None]
        paint = PALETTE[colour[:, number]][:, None, :, None, None]
        pictures = np.where(painted, paint, pictures)
    observations = np.eye(len(PALETTE))[colour][:, None] * visible[..., None]
    observations = observations + noise * rng.standard_normal(observations.shape)
    parts = (pictures, observations.astype(np.float32), visible, colour, centre, radius)
    return Tracks(*map(torch.from_numpy, parts))


def _hidden(rng: np.random.Generator, clips: int, frames: int, instances: int) -> np.ndarray:
    length = rng.integers(max(frames // 5, 1), frames // 2 + 1, (clips, 1, instances))
    start = rng.integers(0, frames - length + 1)
    time = np.arange(frames)[None, :, None]
    return (time >= start) & (time < start + length)


def _curves(rng: np.random.Generator, clips: int, frames: int, instances: int) -> np.ndarray:
    """Quadratic Bézier curves through the frame, as shares of its width and height."""
    first, bend, last = rng.uniform(0.12, 0.88, (3, clips, 1, instances, 2))
    time = np.linspace(0, 1, frames)[None, :, None, None]
    curve = (1 - time) ** 2 * first + 2 * time * (1 - time) * bend + time**2 * last
    return curve.astype(np.float32)


def _background(rng: np.random.Generator, clips: int, frames: int) -> np.ndarray:
    """A grey gradient with some noise."""
    ys, xs = np.linspace(0, 1, SIZE[0])[:, None], np.linspace(0, 1, SIZE[1])
    down, right, level = rng.uniform([-0.2, -0.2, 0.4], [0.2, 0.2, 0.6], (clips, 3)).T
    slope = level[:, None, None] + down[:, None, None] * ys + right[:, None, None] * xs
    grain = rng.standard_normal((clips, frames, 3, *SIZE), dtype=np.float32) * 0.03
    return (slope[:, None, None].astype(np.float32) + grain).clip(0, 1)


def _disc(centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The pixels within `radius` of `centre`, `[... 2]` as shares of the frame."""
    height, width = SIZE
    ys, xs = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    x, y = centre[..., 0, None, None] * width, centre[..., 1, None, None] * height
    return ((xs - x) ** 2 + (ys - y) ** 2) < radius[..., None, None] ** 2
