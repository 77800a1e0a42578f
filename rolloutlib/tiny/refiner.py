"""A small temporal refiner: it improves what a tracker says about each instance by other frames.

Its six layers are built like those of DVIS (Zhang et al. 2023, "DVIS: Decoupled Video Instance
Segmentation Framework"): attention over time, a short convolution over time, attention among
the instances of a frame, attention to the frame's features, and a feed-forward part, each added
to its input and then normalised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from rolloutlib.tiny.weights import sine_cosine_positions


class RefinerConfig(PreTrainedConfig):
    """Sizes of a `TemporalRefiner`."""

    model_type = "temporal_refiner"

    def __init__(
        self,
        width: int = 64,
        heads: int = 4,
        depth: int = 6,
        feed_forward: int = 128,
        colours: int = 8,
        frames: int = 16,
        patch: int = 8,
        grid: Sequence[int] = (6, 8),  # rows and columns of patches
        **kwargs,
    ):
        self.width, self.heads, self.depth = width, heads, depth
        self.feed_forward, self.colours, self.frames = feed_forward, colours, frames
        self.patch, self.grid = patch, list(grid)
        super().__init__(**kwargs)


@dataclass(frozen=True)
class Refined:
    """What the refiner says about every instance in every frame, even where it is hidden."""

    colour: Float[torch.Tensor, "clip frame instance colours"]  # logits
    centre: Float[torch.Tensor, "clip frame instance 2"]  # (x, y) as shares of the frame


class TemporalRefiner(PreTrainedModel):
    """Refine what was observed of instances, frame by frame, with what other frames show.

    The attention over time is `time_attention`: one `nn.MultiheadAttention` per layer, over
    (frame, clip * instance, width).
    """

    config_class = RefinerConfig

    def __init__(self, config: RefinerConfig):
        super().__init__(config)
        width, wide, depth = config.width, config.feed_forward, config.depth
        self.observation = nn.Linear(config.colours, width)
        self.patches = nn.Conv2d(3, width, config.patch, config.patch)
        self.time_attention = _attentions(config)
        self.convolution = nn.ModuleList(_short_convolution(width) for _ in range(depth))
        self.object_attention = _attentions(config)
        self.cross_attention = _attentions(config)
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, width))
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.LayerNorm(width) for _ in range(5)) for _ in range(depth)
        )
        self.colour = nn.Linear(width, config.colours)
        self.centre = nn.Linear(width, 2)
        self.register_buffer("where", sine_cosine_positions(tuple(config.grid), width))
        self.register_buffer("when", sine_cosine_positions((config.frames, 1), width))
        self.post_init()

    def forward(
        self,
        observations: Float[torch.Tensor, "clip frame instance colours"],
        pictures: Float[torch.Tensor, "clip frame 3 height width"],
    ) -> list[Refined]:
        """What is known after each layer, so that training can use every layer; the last counts."""
        features = self.patches(pictures.flatten(0, 1) - 0.5).flatten(2).mT + self.where
        x = self.observation(observations) + self.when[: observations.shape[1], None]
        answers = []
        for layer in range(self.config.depth):
            x = self._layer(layer, x, features)
            answers.append(Refined(self.colour(x), self.centre(x)))
        return answers

    def _layer(
        self,
        layer: int,
        x: Float[torch.Tensor, "clip frame instance width"],
        features: Float[torch.Tensor, "clip*frame patch width"],
    ) -> Float[torch.Tensor, "clip frame instance width"]:
        clips, frames, instances, _ = x.shape
        steps = iter(self.norms[layer])

        by_time = x.permute(1, 0, 2, 3).flatten(1, 2)  # [frame, clip * instance, width]
        heard = self.time_attention[layer](by_time, by_time, by_time, need_weights=False)[0]
        by_time = next(steps)(by_time + heard)
        near = self.convolution[layer](by_time.permute(1, 2, 0)).permute(2, 0, 1)
        by_time = next(steps)(by_time + near)

        x = by_time.unflatten(1, (clips, instances)).transpose(0, 1)
        by_object = x.flatten(0, 1).transpose(0, 1)  # [instance, clip * frame, width]
        heard = self.object_attention[layer](by_object, by_object, by_object, need_weights=False)[0]
        by_object = next(steps)(by_object + heard)
        patches = features.transpose(0, 1)
        seen = self.cross_attention[layer](by_object, patches, patches, need_weights=False)[0]
        by_object = next(steps)(by_object + seen)
        by_object = next(steps)(by_object + self.feed_forward[layer](by_object))
        return by_object.transpose(0, 1).unflatten(0, (clips, frames))


def _attentions(config: RefinerConfig) -> nn.ModuleList:
    attentions = (nn.MultiheadAttention(config.width, config.heads) for _ in range(config.depth))
    return nn.ModuleList(attentions)


def _short_convolution(width: int) -> nn.Sequential:
    ends = {"padding": "same", "padding_mode": "replicate"}
    first, second = (nn.Conv1d(width, width, reach, **ends) for reach in (5, 3))
    return nn.Sequential(first, nn.ReLU(), second)
