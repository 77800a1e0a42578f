"""A family without a file of its own: its geometry is asked of its processor and of the model."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from rolloutlib.grid import ImageTokens
from rolloutlib.models.geometry import Unplaced, boxes_of, image_of, pieces_of
from rolloutlib.models.origins import origins_of
from rolloutlib.models.owners import owners_of
from rolloutlib.models.prompts import full_prompt, inputs_of

QUESTION = "?"  # its answer matters to nobody


@dataclass(frozen=True)
class Asked:
    """Any image-text model of transformers.

    Ramps through the processor tell where each number of its output comes from (`origins_of`);
    backward passes tell which token of the prompt each number feeds (`owners_of`); and the tokens'
    rectangles on the picture follow from both (`boxes_of`).
    """

    model_type: str
    prompt_template: str
    processor: type[ProcessorMixin] = ProcessorMixin
    signs: tuple[str, ...] = ()
    known: dict = field(default_factory=dict, repr=False, compare=False)  # of the latest prompt

    @classmethod
    def of(cls, model_type: str, processor: ProcessorMixin) -> "Asked":
        """For checkpoints of this type: without a chat template, a picture comes first."""
        return cls(model_type, f"{getattr(processor, 'image_token', '')}{{prompt}}\n")

    def seen(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        pictures: list[Image.Image],
    ) -> list[ImageTokens]:
        """Where the image tokens of a prompt are, and what part of each picture they stand for.

        Raises `Unplaced` if tokens share numbers of a picture, or show no rectangle of it, and for
        a video.
        """
        if "pixel_values_videos" in inputs:
            raise Unplaced(f"where {self.model_type} sees the frames of a video is not asked")
        sizes = tuple((picture.height, picture.width) for picture in pictures)
        prompt = sizes, tuple(inputs["input_ids"][0].tolist())
        if prompt not in self.known:
            self.known.clear()
            self.known[prompt] = self._asked(model, processor, inputs, sizes)
        return [
            image_of(picture, *of) for picture, of in zip(pictures, self.known[prompt], strict=True)
        ]

    def _asked(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        sizes: tuple[tuple[int, int], ...],
    ) -> list[tuple[Int[np.ndarray, " token"], Float[np.ndarray, "token 4"], int]]:
        """For each picture its tokens' positions and boxes, and the side of the smallest."""
        text = full_prompt(processor, self, QUESTION, "image", len(sizes))
        origins = origins_of(lambda shown: inputs_of(processor, text, images=shown), list(sizes))
        if others := [name for name in origins if origins[name].shape[:-1] != inputs[name].shape]:
            raise ValueError(f"expected {others[0]} of another prompt in the same shape")
        owners = owners_of(model, inputs, origins)
        numbers = torch.cat([origins[name].flatten(0, -2) for name in origins]).numpy()
        fed = torch.cat([owners[name].flatten() for name in origins]).numpy()
        found = []
        for pieces in pieces_of(numbers, fed):
            boxes, side = boxes_of(pieces, np.array(sizes))
            found += zip(pieces.pictures, pieces.positions, boxes, [side] * len(boxes), strict=True)
        return [_of_picture(found, number) for number in range(len(sizes))]


def _of_picture(
    found: list[tuple], number: int
) -> tuple[Int[np.ndarray, " token"], Float[np.ndarray, "token 4"], int]:
    of = [piece[1:] for piece in found if piece[0] == number]
    if not of:
        raise Unplaced(f"no token of the prompt shows picture {number}")
    positions, boxes, sides = map(np.array, zip(*of, strict=True))
    return positions, boxes, int(sides.min())
