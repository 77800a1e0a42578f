"""How time and memory grow with the length, layers, heads, frames and generated tokens."""

from collections.abc import Callable

import numpy as np

from benchmarks.measure import memory_in_a_fresh_process, times
from benchmarks.workloads import recorded_layers, softmax_layers
from rolloutlib import rollout_rows
from rolloutlib.video import spatial_rollout


def recorded_case(layers: int = 3, heads: int = 8, size: int = 640, tokens: int = 16) -> Callable:
    """Rows of the last tokens of recorded causal layers."""
    recorded, _ = recorded_layers(layers, heads, size, 64, causal=True)
    return lambda: rollout_rows(recorded, range(size - tokens, size))


def video_case(frames: int) -> Callable:
    """Spatial rollout of some frames."""
    layers = softmax_layers(3, frames, 4, 200, 200)
    return lambda: spatial_rollout(layers)


CURVES = {
    "sequence length": (lambda n: recorded_case(size=n), [320, 640, 1280, 2560]),
    "layers": (lambda n: recorded_case(layers=n), [2, 4, 8, 16]),
    "heads": (lambda n: recorded_case(heads=n), [4, 8, 16, 32]),
    "frames": (video_case, [2, 4, 8, 16]),
    "generated tokens": (lambda n: recorded_case(tokens=n), [4, 16, 64, 256]),
}


def growth(small: bool) -> dict[str, dict]:
    """For each axis its points, CPU seconds, megabytes, and the exponents of both."""
    curves = {}
    for axis, (make, points) in CURVES.items():
        points = chosen(points, small)
        runs = {point: make(point) for point in points}
        seconds = times({str(point): run for point, run in runs.items()}, 3)
        peaks = memory_in_a_fresh_process(axis, "all", small)
        memory = [max(peak, 4096) / 2**20 for peak in peaks]
        spent = [seconds[str(point)].cpu for point in points]
        curves[axis] = {
            "points": points,
            "seconds": spent,
            "megabytes": memory,
            "time exponent": exponent(points, spent),
            "memory exponent": exponent(points, memory),
        }
    return curves


def chosen(points: list[int], small: bool) -> list[int]:
    """The points to measure: two are enough to try the code."""
    return points[:2] if small else points


def exponent(points: list[int], values: list[float]) -> float:
    """k of the line through log values = k · log points + c."""
    return float(np.polyfit(np.log(points), np.log(values), 1)[0])
