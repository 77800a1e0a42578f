"""The lines of the table: one workload measured, checked against float64, and divided."""

import numpy as np

from benchmarks.measure import memory_in_a_fresh_process, sgemm_speed, times
from benchmarks.workloads import OURS, WORKLOADS, Ratio, Workload

MEGABYTE = 2**20


def rows_of(name: str, small: bool) -> list[dict]:
    """Measure one workload."""
    workload = WORKLOADS[name](small)
    difference = disagreement(workload)
    seconds = times(workload.contenders, workload.rounds)
    memory = {
        contender: max(memory_in_a_fresh_process(name, contender, small), 4096) / MEGABYTE
        for contender in needed(workload.ratios)
    }
    lines = [
        row(workload, difference, ratio.measure, value_of(ratio, seconds, memory), ratio)
        for ratio in workload.ratios
    ]
    if workload.work:
        share = workload.work / seconds[OURS] / sgemm_speed(seconds["sgemm"])
        lines.append(row(workload, difference, "share of sgemm's GFLOP/s", share))
    lines.append(row(workload, difference, "CPU seconds", seconds[OURS]))
    return lines


def disagreement(workload: Workload) -> float:
    """The largest difference from float64, as a share of the largest entry."""
    expected = np.asarray(workload.expected())
    answer = np.asarray(workload.contenders[OURS](), dtype=np.float64)
    return float(np.abs(answer - expected).max() / np.abs(expected).max())


def needed(ratios: list[Ratio]) -> set[str]:
    """The contenders whose memory some line is about."""
    sides = {side for ratio in ratios if ratio.memory for side in (ratio.over, ratio.under)}
    return sides - {"MB"}


def value_of(ratio: Ratio, seconds: dict[str, float], memory: dict[str, float]) -> float:
    """One contender over the other, or megabytes."""
    kind = memory | {"MB": 1.0} if ratio.memory else seconds
    return kind[ratio.over] / kind[ratio.under]


def row(
    workload: Workload, difference: float, measure: str, value: float, ratio: Ratio | None = None
) -> dict:
    """One line: `met` is None where nothing was aimed at."""
    target = ratio.target if ratio and ratio.target else None
    met = None
    if target is not None:
        met = value >= target if ratio.larger else value <= target
    return {
        "workload": workload.name,
        "measure": measure,
        "value": round(value, 3),
        "target": target,
        "met": met,
        "agreement": difference,
        "agrees": difference <= workload.tolerance,
    }
