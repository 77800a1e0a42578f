"""What the package has to know about a model family."""

from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from rolloutlib.grid import ImageTokens, Patches, View, image_tokens


@runtime_checkable
class Family(Protocol):
    """A model family: everything that differs from one to the next."""

    model_type: str  # as in a checkpoint's config.json
    processor: type[ProcessorMixin]  # the class that it needs
    prompt_template: str  # for checkpoints without a chat template; {prompt} is the text
    # What the processor writes beside the tokenizer's special tokens, and a question must not.
    signs: tuple[str, ...]

    def seen(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        pictures: list[Image.Image],
    ) -> list[ImageTokens]:
        """Where the image tokens of a prompt are, and what part of each picture they stand for.

        For a video, `pictures` are its frames, and there is one result.
        """


class KnownFamily:
    """A family with a file of its own, which reads its geometry from sizes and settings."""

    def seen(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        pictures: list[Image.Image],
    ) -> list[ImageTokens]:
        """The image tokens, counted by the views, found by their id.

        Raises ValueError if the processor's settings do not fit the number of tokens.
        """
        views, config = self.views(processor, inputs, pictures), model.config
        video = "pixel_values_videos" in inputs
        return image_tokens(
            pictures[: len(views)],
            views,
            inputs["input_ids"][0],
            config.video_token_id if video else config.image_token_id,
            self.patches(config, processor, views),
        )

    def views(
        self, processor: ProcessorMixin, inputs: BatchFeature, pictures: list[Image.Image]
    ) -> list[View]:
        """What the model saw of each picture, as reported by the processor, never guessed.

        For a video, `pictures` are its frames, and there is one view.
        """

    def patches(
        self, config: PreTrainedConfig, processor: ProcessorMixin, views: list[View]
    ) -> list[Patches] | list[None]:
        """The patches of the vision tower behind each view; None if there is no tower."""
