"""LLaVA 1.5: a square of the picture through a vision tower, one token for each patch."""

from dataclasses import replace
from math import prod

import torch
from PIL import Image
from transformers import BatchFeature, LlavaConfig, LlavaProcessor
from transformers.image_transforms import get_size_with_aspect_ratio

from rolloutlib.grid import Patches, View
from rolloutlib.models.families.base import KnownFamily

Size = tuple[int, int]


class Llava(KnownFamily):
    """How `LlavaForConditionalGeneration` sees: resized, perhaps padded, cropped to a square."""

    model_type = "llava"
    processor = LlavaProcessor
    prompt_template = "USER: {shown}\n{prompt} ASSISTANT:"
    signs = ()

    def views(
        self, processor: LlavaProcessor, inputs: BatchFeature, pictures: list[Image.Image]
    ) -> list[View]:
        """One view for each picture, from the settings of the image processor."""
        window = tuple(inputs["pixel_values"].shape[-2:])
        return [self._view(processor, picture.size[::-1], window) for picture in pictures]

    def patches(
        self, config: LlavaConfig, processor: LlavaProcessor, views: list[View]
    ) -> list[Patches]:
        """One token for each patch, from the layer that the configuration names.

        Raises ValueError if features of several layers are joined.
        """
        chosen, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
        if not isinstance(chosen, int):
            raise ValueError(f"expected one vision_feature_layer, got {chosen}")
        layers = chosen if chosen >= 0 else depth + 1 + chosen  # the embeddings are number 0
        first = processor.num_additional_image_tokens
        found = []
        for number, view in enumerate(views):
            positions = torch.arange(prod(view.grid)) + first
            own = replace(view, leading=0)
            found.append(Patches(own, layers, number, positions, positions[:, None]))
        return found

    @staticmethod
    def _view(processor: LlavaProcessor, picture: Size, window: Size) -> View:
        settings, patch = processor.image_processor, processor.patch_size
        padded = (max(picture),) * 2 if getattr(settings, "do_pad", False) else picture
        resized = resized_size(settings, padded) if settings.do_resize else padded
        scale = [after / before for after, before in zip(resized, padded, strict=True)]
        # Padding comes before resizing: half of it, rounded down, is above and on the left.
        # The crop's centre is rounded towards 0: it is negative if the crop has to pad.
        axes = zip(resized, window, padded, picture, scale, strict=True)
        offset = tuple(
            int((full - kept) / 2) - (side - length) // 2 * s
            for full, kept, side, length, s in axes
        )
        drops_first = processor.vision_feature_select_strategy == "default"
        leading = max(0, processor.num_additional_image_tokens - drops_first)
        unpadded = tuple(length * s for length, s in zip(picture, scale, strict=True))
        grid = window[0] // patch, window[1] // patch
        return View(picture, unpadded, offset, window, patch, grid, leading)


def resized_size(settings, picture: Size) -> Size:
    """The (height, width) to which an image processor resizes a picture of this size."""
    size = settings.size
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    short, longest = size.get("shortest_edge"), size.get("longest_edge")
    if not short:
        raise ValueError(f"expected a size by its edges or by height and width, got {size}")
    if longest:
        return get_size_with_aspect_ratio(picture, short, longest)
    long = int(short * max(picture) / min(picture))
    return (short, long) if picture[0] <= picture[1] else (long, short)
