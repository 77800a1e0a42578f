"""Where each number that a processor makes comes from, asked with four pictures and a fifth."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from rolloutlib.models.geometry import Unplaced

WHITE = 255.0  # of 8-bit pictures, which is what processors expect
FINE = 16  # pixels along which a picture of whole numbers rises from black to white
WHOLE = "PIL image"  # what transformers wants, in its own words, if it refuses floats
GREY = 0.3  # of white; 76.5, which 8 bits would round
OFF = 0.02  # of that difference: what grey may be off, as by 8-bit numbers or bfloat16
SEEN = 0.4  # of the largest difference between white and black; what differs less is padding

Origins = Float[torch.Tensor, "... 3"]  # (picture, y, x), NaN where no picture is shown


def origins_of(
    process: Callable[[list[Float[np.ndarray, "height width 3"]]], Mapping],
    sizes: list[tuple[int, int]],
) -> dict[str, Origins]:
    """From which picture, and which place on it in pixels, each number of the inputs comes.

    Processors resize, crop, tile, pad, normalize and reorder; all of that is affine in the picture
    P, so that ramps tell where a number comes from, whatever its place in the inputs:

        x = width · (f(ramp) - f(black)) / (f(white) - f(black))

    and so for y, and for the number of the picture. (0, 0) is the top left corner of a picture, and
    the centre of its first pixel (0.5, 0.5).

    Processors that take whole numbers only are given several ramps for each axis, each of which
    rises along 16 pixels: their sum is a ramp of 1/16 of a pixel's precision.

    process: gives the inputs for pictures of float values in [0, 255], which are never rounded; if
    it wants a "PIL image" for these, or makes of grey what does not lie between black and white,
    for pictures of Pillow. All else that it raises is passed on.
    sizes: (height, width) of each picture.

    Returns the tensors of the inputs that show pictures, by name. Raises ValueError if there are
    none, and `Unplaced` for a processor that is not affine.
    """

    def given(values: Callable[[int, int, int], np.ndarray], part: int = 0) -> Mapping:
        """For this part of the values: of all that is above `part / parts`, up to the next one."""
        pictures = []
        for number, size in enumerate(sizes):
            some = np.clip(values(number, *size) * parts - part, 0, 1)
            pictures.append(_grey(some, size))
        return process(
            pictures if exact else [Image.fromarray(p.round().astype(np.uint8)) for p in pictures]
        )

    def even(level: float) -> Mapping:
        return given(lambda *_: np.full(1, level))

    exact, parts = True, 1
    try:
        grey, black, white = even(GREY), even(0.0), even(1.0)  # grey is what some refuse
        affine = blended(black, grey, white)
    except (TypeError, ValueError) as error:
        if WHOLE not in str(error):
            raise
        affine = False
    if not affine:
        exact = False
        grey, black, white = even(GREY), even(0.0), even(1.0)
        if not blended(black, grey, white):
            raise Unplaced(
                "the processor's numbers for grey are no blend of those of black and white"
            )
        parts = -(-max(max(size) for size in sizes) // FINE)
    axes = [
        lambda k, *_: np.full(1, (k + 0.5) / len(sizes)),
        lambda _, height, __: (np.arange(height)[:, None] + 0.5) / height,
        lambda _, __, width: (np.arange(width)[None] + 0.5) / width,
    ]
    ramps = [[given(axis, part) for part in range(parts)] for axis in axes]
    limits = torch.tensor(sizes, dtype=torch.float64)
    found = {}
    for name in shown(black, white):
        low = black[name].double()
        contrast = white[name].double() - low
        contrast[contrast.abs() <= SEEN * contrast.abs().max()] = torch.nan
        picture, *places = (
            sum((f[name].double() - low) / contrast for f in each) / parts for each in ramps
        )
        number = (picture * len(sizes) - 0.5).round().clamp(0, len(sizes) - 1)
        side = limits[number.nan_to_num().long()]
        found[name] = torch.stack([number, *(p * side[..., n] for n, p in enumerate(places))], -1)
    if not found:
        raise ValueError("expected inputs that show the picture, got the same for black and white")
    return found


def _grey(values: np.ndarray, size: tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    return np.broadcast_to(values[..., None] * WHITE, (*size, 3)).astype(np.float32)


def blended(black: Mapping, grey: Mapping, white: Mapping) -> bool:
    """Whether the inputs that show pictures are for `GREY` this blend of black and white."""
    return all(
        (torch.lerp(black[n], white[n], GREY) - grey[n]).abs().max()
        <= OFF * (white[n] - black[n]).abs().max()
        for n in shown(black, white)
    )


def shown(black: Mapping, white: Mapping) -> list[str]:
    """The names of the inputs that differ between two pictures: those that show them."""
    tensors = {
        n for n, value in black.items() if torch.is_tensor(value) and value.is_floating_point()
    }
    return sorted(n for n in tensors if not torch.equal(black[n], white[n]))
