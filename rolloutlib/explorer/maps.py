"""What lies over a picture in the explorer, and how it is sent to the browser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rolloutlib.algorithm.arrays import Array, as_tensor

STEPS = 65535  # in a row's highest value: a map's numbers are rounded to these in the browser
SIGNED_STEPS = 32767  # in the same of a signed map
DIVERGING = "RdBu_r"  # colours of a signed map: red above 0, blue below


@dataclass(frozen=True)
class Heatmaps:
    """What is relevant for each word.

    on_pictures: for each picture `[word row column]` on its grid of tokens; a single map
    if it is the same for all words.
    on_words: `[word word]`, how relevant words are for each; None if that is unknown.
    colours: one that matplotlib knows, "cyan" or "red"; "" lets the reader choose.
    signed: numbers below 0 are allowed, as in a difference of two maps.
    """

    on_pictures: Sequence[Float[Array, "word _ _"]]
    on_words: Float[Array, "word word"] | None = None
    colours: str = ""
    signed: bool = False

    def rows(self, words: int) -> Float[np.ndarray, "word relevance"]:
        """Everything in one array: the cells of the pictures, one after the other, then the words.

        Rows are read as shares: one that sums to more than 1 is scaled to sum to 1, unless signed.

        Raises ValueError for maps of a different number of words, negative or not finite.
        """
        parts = [as_tensor(part).flatten(1).cpu().double().numpy() for part in self.on_pictures]
        blank = np.zeros((len(parts[0]), words))
        parts.append(blank if self.on_words is None else np.asarray(self.on_words, dtype=float))
        got = [len(part) for part in parts]
        if got[0] not in (1, words) or len(set(got)) > 1:
            raise ValueError(f"expected maps for {words} words, or one for all, got {got}")
        rows = np.concatenate(parts, 1)
        if not (np.isfinite(rows).all() and (self.signed or (rows >= 0).all())):
            raise ValueError("expected relevance of finite numbers, 0 or more, got others")
        return rows if self.signed else rows / np.maximum(rows.sum(1, keepdims=True), 1)


@dataclass(frozen=True)
class Mark:
    """One place on the picture, such as a click; x and y as shares of its width and height."""

    x: float
    y: float


Sheets = Mapping[str, Heatmaps | Mark]  # what lies over one picture, switched on and off by name
Panels = Mapping[str, Sheets]  # pictures side by side, such as with an adapter and without


def codes(rows: Float[np.ndarray, "word relevance"], signed: bool = False) -> bytes:
    """Each number as a share of its row's highest: accurate to half a step of 1 / 65535 of it, or
    if it has a sign, to half a step of 1 / 32767 of the largest."""
    peaks = np.abs(rows).max(1, keepdims=True)
    steps, kind = (SIGNED_STEPS, "<i2") if signed else (STEPS, "<u2")
    return (rows / np.where(peaks > 0, peaks, 1) * steps).round().astype(kind).tobytes()
