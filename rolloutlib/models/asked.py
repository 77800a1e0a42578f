"""A family without a file of its own: its geometry is asked of its processor and of the model."""

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from rolloutlib.grid import ImageTokens
from rolloutlib.models.geometry import Unplaced, boxes_of, image_of, pieces_of
from rolloutlib.models.origins import origins_of
from rolloutlib.models.owners import owners_of
from rolloutlib.models.prompts import (
    Shown,
    full_prompt,
    given_to,
    inputs_of,
    kinds_of,
    pictures_in,
)

QUESTION = "?"  # its answer matters to nobody
FRAME_RATE = 1.0  # nor does it matter how fast a video runs, with all of its frames

# The positions of tokens, their boxes, the frames that they show, and the side of the smallest.
Placed = tuple[Int[np.ndarray, " token"], Float[np.ndarray, "token 4"], np.ndarray, int]


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
        """For checkpoints of this type: without a chat template, pictures come first, unless the
        processor itself puts them there.
        """
        sign, alone = getattr(processor, "image_token", None), False
        with suppress(Exception):  # of many types: it wants a sign for the picture
            made = processor(images=[Image.new("RGB", (96, 64))], text=QUESTION)
            alone = str(sign) in processor.tokenizer.convert_ids_to_tokens(made["input_ids"][0])
        return cls(model_type, "{prompt}\n" if alone else "{shown}{prompt}\n")

    def seen(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        shown: list[Shown],
    ) -> list[ImageTokens]:
        """Where the image tokens of a prompt are, and what part of each picture they stand for.

        A video's time steps are those of its frames that tokens show first.

        Raises `Unplaced` if tokens share numbers of a picture, or show no rectangle of it, and
        ValueError for what the model does not take, as some no picture beside a video.
        """
        sizes = tuple((picture.height, picture.width) for picture in pictures_in(shown))
        counts = tuple(len(each) if isinstance(each, list) else 0 for each in shown)
        prompt = sizes, counts, tuple(inputs["input_ids"][0].tolist())
        if model.config.is_encoder_decoder:
            raise Unplaced("the prompt is read by an encoder, and the decoder has no image tokens")
        if prompt not in self.known:
            self.known.clear()
            self.known[prompt] = self._asked(model, processor, inputs, shown)
        return [image_of(each, *of) for each, of in zip(shown, self.known[prompt], strict=True)]

    def _asked(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        shown: list[Shown],
    ) -> list[Placed]:
        text, every = full_prompt(processor, self, QUESTION, kinds_of(shown)), pictures_in(shown)
        sizes = [(picture.height, picture.width) for picture in every]

        def process(ramps: list) -> BatchFeature:
            ramps = iter(ramps)
            given = [
                [next(ramps) for _ in each] if isinstance(each, list) else next(ramps)
                for each in shown
            ]
            return inputs_of(processor, text, **given_to(given, FRAME_RATE))

        origins = origins_of(process, sizes)
        if others := [name for name in origins if origins[name].shape[:-1] != inputs[name].shape]:
            raise ValueError(f"expected {others[0]} of another prompt in the same shape")
        try:
            owners = owners_of(model, inputs, origins)
        except Unplaced:
            raise
        except (RuntimeError, ValueError) as error:
            kinds = {"a video" if isinstance(each, list) else "a picture" for each in shown}
            raise ValueError(
                f"expected what {type(model).__name__} takes in one prompt, got "
                f"{' and '.join(sorted(kinds))}: {error}"
            ) from error
        numbers = torch.cat([origins[name].flatten(0, -2) for name in origins]).numpy()
        fed = torch.cat([owners[name].flatten() for name in origins]).numpy()
        found = []
        for pieces in pieces_of(numbers, fed):
            boxes, side = boxes_of(pieces, np.array(sizes))
            found += zip(pieces.positions, boxes, pieces.pictures, [side] * len(boxes), strict=True)
        lengths = [len(each) if isinstance(each, list) else 1 for each in shown]
        ends = list(accumulate(lengths))
        return [_from(found, end - n, end) for end, n in zip(ends, lengths, strict=True)]


def _from(found: list[tuple], first: int, end: int) -> Placed:
    """What was found of one picture, or of the frames of one video, numbered from its first."""
    of = [piece for piece in found if first <= piece[2] < end]
    if not of:
        raise Unplaced(f"no token of the prompt shows picture {first}")
    positions, boxes, pictures, sides = map(np.array, zip(*of, strict=True))
    return positions, boxes, pictures - first, int(sides.min())
