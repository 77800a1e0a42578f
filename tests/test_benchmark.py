"""The benchmark's own code, on tiny inputs: speed itself is never tested."""

import json

import numpy as np
import pytest
from benchmarks import __main__ as command
from benchmarks import growth, report, table
from benchmarks.workloads import LIMIT, OURS, WORKLOADS, Ratio

COLUMNS = {"workload", "threads", "measure", "value", "target", "met", "agreement", "agrees"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_agrees_with_float64(name):
    workload = WORKLOADS[name](small=True)
    differences = table.disagreements(workload, table.float64_answers(workload), {})
    about = [Ratio("", contender, OURS) for contender in differences]
    assert OURS in differences
    assert all(table.row(workload, differences, "", 0.0, ratio)["agrees"] for ratio in about)
    for memory in (True, False):
        assert table.sides(workload.ratios, memory=memory) <= {*workload.contenders}


def test_a_workload_becomes_lines_of_the_table():
    lines = table.rows_in_a_fresh_process("teaching", small=True)
    assert all(line.keys() == COLUMNS and line["agrees"] for line in lines)
    faster, *_, seconds, _ = lines
    assert faster["met"] == (faster["value"] >= faster["target"] == 9)
    assert seconds["target"] is None and seconds["met"] is None
    assert report.line(seconds | {"agrees": False}).endswith("**too far** |")


def test_a_missed_target_is_listed_with_the_limit():
    row = {"workload": "w", "measure": "times", "value": 3.0, "target": 5, "met": False}
    limit = row | {"measure": "times" + LIMIT, "value": 4.2, "target": None, "met": None}
    assert report.missed(row, [row, limit]).endswith("3 where 5 was the target; the limit is 4.2")
    assert report.missed(row, [row]).endswith("was the target")


@pytest.mark.parametrize(("larger", "met"), [(True, True), (False, False)])
def test_a_target_is_met_from_its_own_side(larger, met):
    workload = WORKLOADS["teaching"](small=True)
    ratio = Ratio("times", "sort", OURS, 2, larger=larger)
    assert table.row(workload, {OURS: 0.0}, "times", 3.0, ratio)["met"] == met


def test_memory_is_measured_in_a_fresh_process():
    kept = table.memory_in_a_fresh_process("received", "full matrix", small=True)
    assert 16 * 300 * 300 * 4 < kept < 2**28  # at least the matrix of 16 heads


def test_a_wrong_answer_fails_and_a_slow_one_does_not(monkeypatch, tmp_path):
    workload = WORKLOADS["teaching"](small=True)
    monkeypatch.setattr(command, "WORKLOADS", {"teaching": None})
    monkeypatch.setattr(growth, "CURVES", {"layers": growth.CURVES["layers"]})
    monkeypatch.setitem(table.WORKLOADS, "teaching", lambda small: workload)
    monkeypatch.setattr(command, "rows_in_a_fresh_process", table.rows_of)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--small", "--out", str(tmp_path)])
    assert command.main() == 0
    assert {*json.loads((tmp_path / "benchmark.json").read_text())[0]} == COLUMNS
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    workload.expected[OURS] = lambda: np.eye(40)
    assert command.main() == 1
    assert "**too far**" in (tmp_path / "benchmark.md").read_text()


def test_the_exponent_of_a_power_is_found():
    assert growth.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
