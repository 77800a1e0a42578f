"""Time in rounds where contenders take turns, and memory beyond what was there before."""

import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

SIZE = 1024  # side of the matrices whose product shows how fast the machine is in that round

# Packages of other versions; what runs there gives the same for both sides of a comparison.
OTHER_VERSIONS = Path(sys.prefix) / "other_versions"


class Seconds(NamedTuple):
    """How long a call took by the wall clock, and how long all its threads computed."""

    wall: float
    cpu: float


def times(contenders: dict[str, Callable], rounds: int) -> dict[str, Seconds]:
    """Median seconds of each contender, and of "sgemm", over rounds in which all take turns.

    Other programs on the machine slow all contenders of a round equally.
    """
    matrix = torch.rand(SIZE, SIZE)
    contenders = contenders | {"sgemm": lambda: matrix @ matrix}
    taken = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            finished()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Seconds(*map(statistics.median, zip(*spent, strict=True)))
        for name, spent in taken.items()
    }


def finished() -> None:
    """Wait until the GPU, if there is one, has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def sgemm_speed(seconds: float) -> float:
    """Floating point operations per second of the product that `times` measures."""
    return 2 * SIZE**3 / seconds


def peak_memory(run: Callable) -> int:
    """The most bytes that a call needs beyond what the process holds before it. Linux only.

    Not counting library code that it is the first to use, which the system reads from files.
    """
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but is kept by the C library
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status()
    result = run()
    after = _status()
    del result
    return after["VmHWM"] - before["VmRSS"] - (after["RssFile"] - before["RssFile"])


def free_memory() -> int:
    """Bytes that a program may take without anything being swapped out. Linux only."""
    return int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024


def _status() -> dict[str, int]:
    """Bytes of this process's memory, of several kinds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line.startswith(("Vm", "Rss")))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def memory_in_a_fresh_process(workload: str, contender: str, small: bool) -> int | list[int]:
    """`peak_memory` of one contender, or of a growth curve, in a process that ran nothing else."""
    # Memory that was freed goes back at once, or what the C library keeps would count.
    return in_a_fresh_process(
        ["--memory", workload, contender], small, {"MALLOC_TRIM_THRESHOLD_": "0"}
    )


def in_a_fresh_process(options: list[str], small: bool, variables: dict[str, str]) -> Any:
    """What the benchmark prints with these options, run by a process that ran nothing else."""
    command = [sys.executable, "-m", "benchmarks", *options, *["--small"] * small]
    folder, variables = Path(__file__).parent.parent, os.environ | variables
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(options)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
