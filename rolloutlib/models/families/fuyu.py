"""Fuyu: the picture's own pixels in patches, row by row, straight into the decoder."""

from math import ceil

from PIL import Image
from transformers import BatchFeature, FuyuConfig, FuyuProcessor

from rolloutlib.grid import View


class Fuyu:
    """How `FuyuForCausalLM` sees: the picture at its own size, padded at the right and bottom.

    Only pictures above the processor's limit are reduced; none is enlarged.
    """

    model_type = "fuyu"
    prompt_template = "{prompt}\n"  # the processor puts the picture first and closes the prompt

    def views(
        self, processor: FuyuProcessor, inputs: BatchFeature, pictures: list[Image.Image]
    ) -> list[View]:
        """One view for each picture, from the sizes that the image processor reports."""
        return [self._view(processor.image_processor, picture) for picture in pictures]

    def patches(
        self, config: FuyuConfig, processor: FuyuProcessor, views: list[View]
    ) -> list[None]:
        """None: the decoder reads the pixels directly."""
        return [None] * len(views)

    @staticmethod
    def _view(image_processor, picture: Image.Image) -> View:
        token, side = image_processor.patch_size["height"], image_processor.patch_size["width"]
        if token != side:
            raise ValueError(f"expected square patches, got {token}x{side}")
        seen = image_processor(picture, return_tensors="pt")
        names = ("image_unpadded_heights", "image_unpadded_widths")
        resized = tuple(int(seen[name].squeeze()) for name in names)
        # The processor pads to its limit, then keeps the whole patches that contain the picture.
        limits = seen["images"].shape[-2:]
        grid = tuple(
            min(limit, ceil(length / token) * token) // token
            for limit, length in zip(limits, resized, strict=True)
        )
        return View(
            picture=(picture.height, picture.width),
            resized=resized,
            offset=(0, 0),
            window=tuple(count * token for count in grid),
            token=token,
            grid=grid,
        )
