"""Clicks: the point that an answer names, and the tokens that spell its coordinates."""

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Bool

from rolloutlib.models import Answer
from rolloutlib.models.words import read_parts

NUMBER = r"(-?\d+(?:\.\d+)?)"
# How a point may be written, the clearest first; a box of four numbers does not count.
POINTS = (
    rf"\bx[\"']?\s*[:=]\s*[\"']?{NUMBER}[\"']?\s*[,;\s]\s*[\"']?y[\"']?\s*[:=]\s*[\"']?{NUMBER}",
    rf"[\[(]\s*{NUMBER}\s*[,;\s]\s*{NUMBER}\s*[\])]",
    rf"^[^\d-]*{NUMBER}\s*[,;\s]\s*{NUMBER}\D*$",  # no other number in the whole text
)


@dataclass(frozen=True)
class Click:
    """A point as an answer names it, in thousandths of the picture's width and height.

    x_tokens, y_tokens: which of the generated tokens, from 0, spell its coordinates.
    tokens: the tokens to map: the coordinates', or all of them if the answer names no point.
    message: "", or why this is not a point on the picture.
    """

    x: float | None
    y: float | None
    x_tokens: list[int]
    y_tokens: list[int]
    tokens: list[int]
    message: str

    def pixel(self, picture: tuple[int, int]) -> tuple[float, float] | None:
        """(x, y) in pixels on a picture of this (height, width); None if there is a message."""
        if self.message:
            return None
        return (self.x + 0.5) / 1000 * picture[1], (self.y + 0.5) / 1000 * picture[0]

    def inside(self, region: Bool[np.ndarray, "height width"]) -> bool:
        """Whether the click lands in a region of the picture; never if there is a message."""
        point = self.pixel(region.shape)
        return bool(point and region[int(point[1]), int(point[0])])


def read_click(answer: Answer) -> Click:
    """Read where an answer says to click.

    Coordinates are whole numbers in 0..999, x first, as Qwen3-VL writes them: (412, 96), inside
    JSON or a tool call, {"point_2d": [412, 96]} or "x": 412, "y": 96. The first of
    several points counts. An answer without a point, or with one outside the picture, is not an
    error: `message` says so.
    """
    generated = answer.generated.tolist()
    parts = read_parts(answer.model.processor.tokenizer, generated)
    ends, text = list(accumulate(map(len, parts))), "".join(parts)
    found = next(filter(None, (re.search(way, text) for way in POINTS)), None)
    if found is None:
        every = list(range(len(generated)))
        message = f"no point in the answer {answer.text!r}: expected x and y, such as (412, 96)"
        return Click(None, None, [], [], every, message)
    x, y = (float(number) for number in found.groups())
    spans = [(bisect_right(ends, found.start(n)), bisect_left(ends, found.end(n))) for n in (1, 2)]
    on = [[token for part in parts[a : b + 1] for token in part.tokens] for a, b in spans]
    inside = all(number in range(1000) for number in (x, y))
    message = "" if inside else f"expected whole numbers in 0..999, got ({x:g}, {y:g})"
    return Click(x, y, *on, on[0] + on[1], message)
