"""The numbers that a notebook hands out, so that many runs of it make one table."""

import math
from collections.abc import Mapping
from contextlib import suppress

from rolloutlib.extras import needs

MIME_TYPE = "application/vnd.rolloutlib.metrics+json"

Metric = float | int | str | bool | None


def report(**metrics: object) -> None:
    """Show the numbers of this run that a sweep should keep, and mark them to be collected.

    The numbers stand in the executed notebook as an output of their own type. Where a name is
    reported twice, the later value counts.

    metrics: numbers (also of NumPy, or tensors with one element), words or truth values. NaN,
    which JSON does not have, is kept as None.

    Raises ValueError for anything else and for an infinite number.

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
    return {name: _plain(name, value) for name, value in metrics.items()}


def _plain(name: str, value: object) -> Metric:
    with suppress(AttributeError, ValueError, RuntimeError):
        value = value.item()  # of NumPy and torch
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, Metric) or value in (math.inf, -math.inf):
        kind = type(value).__name__
        raise ValueError(f"{name} must be one finite number, a word or a truth value, got {kind}")
    return value
