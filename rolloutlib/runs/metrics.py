"""The numbers that a notebook hands out, so that many runs of it make one table."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress

from rolloutlib.extras import needs

MIME_TYPE = "application/vnd.rolloutlib.metrics+json"

Metric = float | int | str | bool | None
# A column of the table: no way out of a folder, no formula.
NAME = re.compile(r"(?!.*\.\.)\w[\w .:@%+()/-]{0,99}")
TEXT = re.compile(r"[^\ud800-\udfff]{0,10000}")  # UTF-8 has no halves of characters


def report(**metrics: object) -> None:
    """Show the numbers of this run that a sweep should keep, and mark them to be collected.

    The numbers stand in the executed notebook as an output of their own type. Where a name is
    reported twice, the later value counts.

    metrics: numbers (also of NumPy, or tensors with one element), words or truth values. NaN,
    which JSON does not have, is kept as None.

    Raises ValueError for anything else: an infinite number, a whole number of more than 64 bits,
    more than 10,000 characters, or a name that is no name of a column.

    >>> plain_metrics({"pointing_game": 0.82, "answered": "red"})
    {'pointing_game': 0.82, 'answered': 'red'}
    """
    with needs("notebooks"):
        from IPython.display import display

    plain = plain_metrics(metrics)
    words = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in plain.items()}
    shown = "\n".join(f"{name} = {word}" for name, word in words.items())
    display({MIME_TYPE: plain, "text/plain": shown}, raw=True)


def plain_metrics(metrics: Mapping[str, object]) -> dict[str, Metric]:
    """Metrics as JSON can hold them. Raises ValueError for what is not a single value."""
    for name in metrics:
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ValueError(f"a metric's name is a word of at most 100 characters, got {name!r}")
    return {name: _plain(name, value) for name, value in metrics.items()}


def _plain(name: str, value: object) -> Metric:
    with suppress(AttributeError, ValueError, RuntimeError):
        value = value.item()  # of NumPy and torch
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, Metric) or value in (math.inf, -math.inf):
        kind = type(value).__name__
        raise ValueError(f"{name} must be one finite number, a word or a truth value, got {kind}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be a number of at most 64 bits, got {value.bit_length()}")
    if isinstance(value, str) and not TEXT.fullmatch(value):
        raise ValueError(f"{name} must be at most 10,000 whole characters, got {len(value)}")
    return json.loads(json.dumps(value))  # of a class of its own, such as an enumeration
