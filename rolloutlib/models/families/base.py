"""What the package has to know about a model family."""

from dataclasses import replace
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
    # For checkpoints without a chat template: {shown} are the pictures, {prompt} is the text.
    prompt_template: str
    # What the processor writes beside the tokenizer's special tokens, and a question must not.
    signs: tuple[str, ...]

    def seen(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        shown: list[Image.Image | list[Image.Image]],
    ) -> list[ImageTokens]:
        """Where the image tokens of a prompt are, and what part of each picture they stand for.

        shown: pictures, and lists of a video's frames. There is one result for each.
        """


class KnownFamily:
    """A family with a file of its own, which reads its geometry from sizes and settings."""

    def seen(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        shown: list[Image.Image | list[Image.Image]],
    ) -> list[ImageTokens]:
        """The image tokens, counted by the views, found by their id.

        Raises ValueError if the processor's settings do not fit the number of tokens.
        """
        videos = [number for number, each in enumerate(shown) if isinstance(each, list)]
        order = [number for number in range(len(shown)) if number not in videos] + videos
        views = self.views(processor, inputs, [shown[number] for number in order])
        behind = self.patches(model.config, processor, views)
        found, ids, pictures = {}, inputs["input_ids"][0], len(shown) - len(videos)
        parts = {"image_token_id": slice(pictures), "video_token_id": slice(pictures, None)}
        for sign, part in parts.items():
            if numbers := order[part]:
                first = [shown[n][0] if n in videos else shown[n] for n in numbers]
                token = getattr(model.config, sign)
                tokens = image_tokens(first, views[part], ids, token, behind[part])
                found |= dict(zip(numbers, tokens, strict=True))
        for number in videos:
            frames, together = shown[number], processor.video_processor.temporal_patch_size
            steps = tuple(range(0, len(frames), together))
            found[number] = replace(found[number], frames=tuple(frames), steps=steps)
        return [found[number] for number in range(len(shown))]

    def views(
        self,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        shown: list[Image.Image | list[Image.Image]],
    ) -> list[View]:
        """What the model saw of each picture, as reported by the processor, never guessed.

        shown: all pictures, then all videos, as lists of their frames, in the order of the tower.
        """

    def patches(
        self, config: PreTrainedConfig, processor: ProcessorMixin, views: list[View]
    ) -> list[Patches] | list[None]:
        """The patches of the vision tower behind each view; None if there is no tower."""
