"""`make benchmark`: time and memory of every workload, and how far each answer is from float64."""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from benchmarks.growth import CURVES, chosen, growth
from benchmarks.measure import free_memory, peak_memory, times
from benchmarks.report import line, write_report
from benchmarks.table import on_all_cores, rows_in_a_fresh_process, rows_of, threads
from benchmarks.workloads import LARGE, ON_CUDA, WORKLOADS

LARGE_BYTES = 20e9


def memory_of(name: str, which: str, small: bool) -> int | list[int]:
    """Peak memory of a contender of a workload, or of each point of a growth curve."""
    if name in CURVES:
        make, points = CURVES[name]
        runs = [make(point) for point in chosen(points, small)]
        runs[0]()  # libraries take their own memory
        return [peak_memory(run) for run in runs]
    WORKLOADS[name](small=True).contenders[which]()
    times({}, 1)  # and their buffers for large products, which they keep
    workload = on_all_cores(partial(WORKLOADS[name], small))
    with threads(workload.threads):
        return peak_memory(workload.contenders[which])


def main() -> int:
    """1 if an answer is too far from float64, else 0: being slow is not a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, in seconds")
    parts = [*WORKLOADS, "routes", "growth"]
    parser.add_argument("--only", nargs="+", choices=parts)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--load", default="not said", help="what else ran on the machine")
    parser.add_argument("--memory", nargs=2, metavar=("WORKLOAD|AXIS", "CONTENDER|all"))
    parser.add_argument("--workload", choices=WORKLOADS, help="measure it in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.only:
        options.only = [p for p in parts if (p in ON_CUDA) == (options.device == "cuda")]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if options.workload:
        print(json.dumps(rows_of(options.workload, options.small)))
        return 0
    if options.memory:
        print(json.dumps(memory_of(*options.memory, options.small)))
        return 0
    table, curves = [], growth(options.small) if "growth" in options.only else {}
    for name in filter(options.only.__contains__, WORKLOADS):
        if name == LARGE and not options.small and free_memory() < LARGE_BYTES:
            print(f"{name} is skipped: {free_memory() / 1e9:.0f} GB are free, it takes 20")
            continue
        for row in rows_in_a_fresh_process(name, options.small):
            print(line(row), flush=True)
            table.append(row)
        write_report(options.out, table, curves, options.load)  # a stopped run keeps these
    if "routes" in options.only and not options.small:  # a notebook has no tiny size
        from benchmarks.routes import route_rows  # with Dask, which would disturb what is measured

        for row in route_rows():
            print(line(row), flush=True)
            table.append(row)
        write_report(options.out, table, curves, options.load)
    return 0 if all(row["agrees"] for row in table) else 1


if __name__ == "__main__":
    raise SystemExit(main())
