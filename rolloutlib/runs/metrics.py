"""The numbers that a notebook hands out, so that many runs of it make one table."""

import math
from collections.abc import Mapping

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
    shown = "\n".join(f"{name} = {_words(value)}" for name, value in plain.items())
    display({MIME_TYPE: plain, "text/plain": shown}, raw=True)


def plain_metrics(metrics: Mapping[str, object]) -> dict[str, Metric]:
    """Metrics as JSON can hold them. Raises ValueError for what is not a single value."""
    return {name: _plain(name, value) for name, value in metrics.items()}


def _plain(name: str, value: object) -> Metric:
    if hasattr(value, "item"):
        try:
            value = value.item()  # of NumPy and torch
        except (ValueError, RuntimeError) as problem:
            raise _no_metric(name, value) from problem
    if isinstance(value, float) and not math.isfinite(value):
        if math.isinf(value):
            raise _no_metric(name, value)
        return None
    if value is not None and not isinstance(value, bool | int | float | str):
        raise _no_metric(name, value)
    return value


def _no_metric(name: str, value: object) -> ValueError:
    kind = type(value).__name__
    return ValueError(f"{name} must be one finite number, a word or a truth value, got {kind}")


def _words(value: Metric) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
