"""The lines of the table: each workload is measured and checked against float64."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.measure import (
    OTHER_VERSIONS,
    Seconds,
    in_a_fresh_process,
    memory_in_a_fresh_process,
    sgemm_speed,
    times,
)
from benchmarks.workloads import HEADS, LOUD, OURS, WORKLOADS, Ratio, Workload

MEGABYTE = 2**20
CLOCKS = {"wall": "seconds by the wall clock", "cpu": "seconds of all threads"}
LOUD_TOLERANCE = 1e-3  # in float32 a score of 300 is exact to 3e-5, and its exponential no better


def rows_in_a_fresh_process(name: str, small: bool) -> list[dict]:
    """`rows_of` in a process without memory of other workloads, which is faster than new memory."""
    paths = [str(OTHER_VERSIONS)] if name == HEADS else []
    paths.append(os.environ.get("PYTHONPATH", ""))
    return in_a_fresh_process(
        ["--workload", name], small, {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    )


def rows_of(name: str, small: bool) -> list[dict]:
    """Measure one workload."""
    workload = on_all_cores(partial(WORKLOADS[name], small))
    expected = float64_answers(workload)
    given = {}
    with threads(workload.threads):
        spent = times(remembered(timed(workload), given), workload.rounds)
        differences = disagreements(workload, expected, given)
    seconds = compared(workload, spent)
    memory = memory_of_each(name, sides(workload.ratios, memory=True), small)
    lines = [
        row(workload, differences, ratio.measure, value_of(ratio, seconds, memory), ratio)
        for ratio in workload.ratios
    ]
    if workload.work:
        share = workload.work / seconds[OURS] / sgemm_speed(seconds["sgemm"])
        lines.append(row(workload, differences, "share of sgemm's GFLOP/s", share))
    for clock, taken in spent[OURS]._asdict().items():
        lines.append(row(workload, differences, CLOCKS[clock], taken))
    return lines


def memory_of_each(name: str, contenders: set[str], small: bool) -> dict[str, float]:
    """Megabytes of each contender, in a process of its own; two of them do not disturb each other,
    as two that are timed would."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        peaks = pool.map(lambda one: memory_in_a_fresh_process(name, one, small), contenders)
        return {
            one: max(peak, 4096) / MEGABYTE for one, peak in zip(contenders, peaks, strict=True)
        }


def float64_answers(workload: Workload) -> dict[str, np.ndarray]:
    """What each contender should give, computed on all cores."""
    return {name: np.asarray(on_all_cores(run)) for name, run in workload.expected.items()}


def remembered(contenders: dict[str, Callable], given: dict[str, Any]) -> dict[str, Callable]:
    """The contenders, whose last answers go to `given`."""

    def remembering(name: str, run: Callable) -> Callable:
        return lambda: given.update({name: run()})

    return {name: remembering(name, run) for name, run in contenders.items()}


def disagreements(
    workload: Workload, expected: dict[str, np.ndarray], given: dict[str, Any]
) -> dict[str, float]:
    """The largest difference of each answer from float64, as a share of the largest entry. Those
    that were not timed are given now."""
    differences = {}
    for name, answer in expected.items():
        own = given[name] if name in given else workload.contenders[name]()
        own = np.asarray(own, dtype=np.float64)
        differences[name] = float(np.abs(own - answer).max() / np.abs(answer).max())
    return differences


def on_all_cores(run: Callable) -> Any:
    """Use all cores: what runs here is not timed."""
    with threads(os.cpu_count()):
        return run()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside the block, torch has this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(workload: Workload) -> dict[str, Callable]:
    """The contenders that lines compare, and reading."""
    names = {*sides(workload.ratios, memory=False), OURS}
    contenders = {name: run for name, run in workload.contenders.items() if name in names}
    return contenders | ({"reading": workload.reading} if workload.reading is not None else {})


def compared(workload: Workload, spent: dict[str, Seconds]) -> dict[str, float]:
    """The seconds that lines compare, and the limit: of one thread those that it computed, which
    other programs hardly change; of several those of the wall clock."""
    clock = "cpu" if workload.threads == 1 else "wall"
    seconds = {name: getattr(took, clock) for name, took in spent.items()}
    products = workload.work / sgemm_speed(seconds["sgemm"])
    return seconds | {"limit": seconds.get("reading", 0) + products}


def sides(ratios: list[Ratio], *, memory: bool) -> set[str]:
    """The contenders whose memory, or whose time, a line compares."""
    chosen = [ratio for ratio in ratios if ratio.memory == memory]
    several = [name for ratio in chosen if isinstance(ratio.over, tuple) for name in ratio.over]
    single = [ratio.over for ratio in chosen if isinstance(ratio.over, str)]
    others = [name for ratio in chosen for name in (ratio.under, ratio.beyond) if name]
    return {*several, *single, *others} - {"MB", "limit", "reading"}


def value_of(ratio: Ratio, seconds: dict[str, float], memory: dict[str, float]) -> float:
    """One contender over the other, or megabytes."""
    kind = memory | {"MB": 1.0} if ratio.memory else seconds
    several = ratio.over if isinstance(ratio.over, tuple) else (ratio.over,)
    spared = kind[ratio.beyond] if ratio.beyond else 0.0
    over, under = min(kind[name] for name in several) - spared, kind[ratio.under] - spared
    return over / max(under, 4096 / MEGABYTE if ratio.memory else 0)


def row(
    workload: Workload,
    differences: dict[str, float],
    measure: str,
    value: float,
    ratio: Ratio | None = None,
) -> dict:
    """One line: `met` is None if there is no target. Agreement is that of the contender whose
    speed or memory the line is about."""
    target = ratio.target if ratio and ratio.target else None
    met = None
    if target is not None:
        met = value >= target if ratio.larger else value <= target
    compared = (ratio.over, ratio.under) if ratio else ()
    about = next((name for name in compared if name in differences), OURS)
    return {
        "workload": workload.name,
        "threads": workload.threads,
        "measure": measure,
        "value": round(value, 3),
        "target": target,
        "met": met,
        "agreement": differences[about],
        "agrees": differences[about] <= (LOUD_TOLERANCE if about == LOUD else workload.tolerance),
    }
