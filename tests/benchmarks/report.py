"""The measurements as JSON, as Markdown and as a figure."""

import json
import os
import platform
import re
from datetime import date
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.workloads import LIMIT
from rolloutlib.files.complete import complete_file


def write_report(out: Path, table: list[dict], curves: dict, load: str) -> None:
    """benchmark.json, benchmark.md and benchmark.png in the folder `out`."""
    with complete_file(out / "benchmark.json") as path:
        path.write_text(json.dumps(table, indent=1) + "\n")
    with complete_file(out / "benchmark.md") as path:
        path.write_text(markdown(table, curves, load))
    if curves:
        with complete_file(out / "benchmark.png") as path:
            plot_growth(curves).savefig(path, dpi=120)


def markdown(table: list[dict], curves: dict, load: str) -> str:
    """The table, the growth, and the machine."""
    lines = [
        "# Benchmark",
        "",
        f"{processor()}; PyTorch {torch.__version__}; {date.today()}. Load of the machine: {load}.",
        "",
        "Medians over rounds in which contenders take turns: of the time that one thread computed, "
        "or where there are several, of the wall clock; peak memory beyond the input, each in a "
        "fresh process. Agreement: largest difference from float64, as a share of "
        "the largest entry. Machine's limit: attention that is given is read once, thresholds are "
        "selected by `np.partition`, and products run at the speed of the sgemm of the same "
        "rounds; or, where queries and keys are given, exp(QKᵀ) is computed once, in tiles that a "
        "cache holds; all else takes no time.",
        "",
        "| workload | threads | measure | value | target | met | agreement |",
        "|---|---|---|---|---|---|---|",
        *map(line, table),
    ]
    if not all(row["met"] in (True, None) for row in table):
        lines += ["", "Targets that were missed, and what the machine's limit allows:", ""]
    lines += [missed(row, table) for row in table if row["met"] is False]
    if curves:
        lines += [
            "",
            "Exponents k of the growth n^k, fitted:",
            "",
            "| n | points | time | memory |",
            "|---|---|---|---|",
        ]
    for axis, curve in curves.items():
        exponents = f"{curve['time exponent']:.2f} | {curve['memory exponent']:.2f}"
        lines.append(f"| {axis} | {', '.join(map(str, curve['points']))} | {exponents} |")
    return "\n".join(lines) + "\n"


def line(row: dict) -> str:
    """One row of the table."""
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    agreement = f"{row['agreement']:.1e}" + ("" if row["agrees"] else " **too far**")
    target = "" if row["target"] is None else f"{row['target']:g}"
    about = [row["workload"], str(row["threads"]), row["measure"], f"{row['value']:.3g}"]
    return f"| {' | '.join([*about, target, met, agreement])} |"


def missed(row: dict, table: list[dict]) -> str:
    """How far a row is from its target, and from its workload's limit if that is known."""
    same = (other for other in table if other["workload"] == row["workload"])
    limit = next((x["value"] for x in same if x["measure"] == row["measure"] + LIMIT), None)
    allows = "" if limit is None else f"; the limit is {limit:.3g}"
    numbers = f"{row['value']:.3g} where {row['target']:g} was the target{allows}"
    return f"- {row['workload']}: {row['measure']}: {numbers}"


def processor() -> str:
    """The processor's model and the number of its cores."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def plot_growth(curves: dict) -> Figure:
    """Time above and memory below, against each axis, both logarithmic."""
    figure, panels = plt.subplots(
        2, len(curves), figsize=(3 * len(curves), 5.5), sharey="row", squeeze=False
    )
    for column, (axis, curve) in zip(panels.T, curves.items(), strict=True):
        for panel, unit, kind in zip(
            column, ("seconds", "megabytes"), ("time", "memory"), strict=True
        ):
            panel.loglog(curve["points"], curve[unit], "o-")
            panel.set_title(f"{kind} ~ n^{curve[f'{kind} exponent']:.2f}", fontsize=10)
            panel.set_xticks(curve["points"], list(map(str, curve["points"])))
            panel.minorticks_off()
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
        column[1].set_xlabel(axis)
    panels[0, 0].set_ylabel("CPU seconds")
    panels[1, 0].set_ylabel("extra memory, MB")
    figure.tight_layout()
    return figure
