"""Fuyu: the picture's own pixels in patches, row by row, straight into the decoder."""

from math import ceil

from PIL import Image
from transformers import BatchFeature, FuyuConfig, FuyuProcessor

from rolloutlib.grid import View
from rolloutlib.models.families.base import KnownFamily


class Fuyu(KnownFamily):
    """How `FuyuForCausalLM` sees: the picture at its own size, padded at the right and bottom.

    Only pictures above the processor's limit are reduced; none is enlarged.
    """

    model_type = "fuyu"
    processor = FuyuProcessor
    prompt_template = "{prompt}\n"  # the processor puts the picture first and closes the prompt
    signs = ("|NEWLINE|", "<0x04>")  # ends of rows, and the start of the answer

    def views(
        self, processor: FuyuProcessor, inputs: BatchFeature, pictures: list[Image.Image]
    ) -> list[View]:
        """One view for each picture, from the sizes that the image processor reports."""
        patch = processor.image_processor.patch_size
        token, side = patch["height"], patch["width"]
        if token != side:
            raise ValueError(f"expected square patches, got {token}x{side}")
        views = []
        for picture in pictures:
            seen = processor.image_processor(picture, return_tensors="pt")
            names = ("image_unpadded_heights", "image_unpadded_widths")
            resized = tuple(int(seen[name].squeeze()) for name in names)
            # It pads to its limit, then keeps the whole patches that contain the picture.
            grid = tuple(
                min(limit // token, ceil(length / token))
                for limit, length in zip(seen["images"].shape[-2:], resized, strict=True)
            )
            window = tuple(count * token for count in grid)
            views.append(View(picture.size[::-1], resized, (0, 0), window, token, grid))
        return views

    def patches(
        self, config: FuyuConfig, processor: FuyuProcessor, views: list[View]
    ) -> list[None]:
        """None: the decoder reads the pixels directly."""
        return [None] * len(views)
