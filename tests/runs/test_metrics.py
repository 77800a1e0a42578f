import enum

import numpy as np
import pytest
import torch
from small_notebooks import write_notebook

from rolloutlib.runs.metrics import plain_metrics
from rolloutlib.runs.run import run_notebook


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0.5, 0.5),
        (3, 3),
        (True, True),
        ("red", "red"),
        (None, None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(0.25), 0.25),
        (torch.tensor([[2]]), 2),
        (float("nan"), None),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        ("ä" * 10_000, "ä" * 10_000),
        (enum.IntEnum("Colour", "RED").RED, 1),
        (np.str_("red"), "red"),
    ],
)
def test_metric_is_a_plain_value(value, kept):
    [found] = plain_metrics({"x": value}).values()
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (float("inf"), "float"),
        ([0.5], "list"),
        (np.ones(2), "ndarray"),
        (np.ones(0), "ndarray"),
        (torch.ones(2), "Tensor"),
        (1j, "complex"),
        (np.complex64(1j), "complex"),
    ],
)
def test_what_is_no_single_value_is_an_error(value, kind):
    with pytest.raises(ValueError, match=f"x must be one finite number.*got {kind}"):
        plain_metrics({"x": value})


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (2**63, "x must be a number of at most 64 bits, got 64"),
        (2**64, "x must be a number of at most 64 bits, got 65"),
        (-(10**400), "x must be a number of at most 64 bits"),
        (np.uint64(2**63), "x must be a number of at most 64 bits"),
        ("a" * 10_001, "x must be at most 10,000 whole characters, got 10001"),
        ("\ud800", "x must be at most 10,000 whole characters"),
        (b"red", "x must be one finite number, a word or a truth value, got bytes"),
        ([1] * 10**6, "x must be one finite number, a word or a truth value, got list"),
    ],
)
def test_what_no_table_can_hold_is_refused_where_it_is_reported(value, complaint):
    with pytest.raises(ValueError, match=complaint):
        plain_metrics({"x": value})


@pytest.mark.parametrize("name", ["", "../x", "a/../b", "/x", "=x", "-x", "a\nb", "a" * 101])
def test_a_name_that_is_no_column_is_refused(name):
    with pytest.raises(ValueError, match="a metric's name is a word of at most 100 characters"):
        plain_metrics({name: 1})


@pytest.mark.parametrize("name", ["auc@5", "top-1 (val)", "val/auc", "größe", "_x", "a.b", "50%"])
def test_names_in_use_are_taken(name):
    assert plain_metrics({name: 1}) == {name: 1}


def test_reported_metrics_are_read_from_the_executed_notebook(tmp_path):
    """Starts a kernel."""
    path = write_notebook(
        tmp_path,
        "measure",
        "from rolloutlib import report",
        "report(auc=0.25, answer='red')\nreport(count=3)",
        "report(auc=float('nan'), other=0.125)",
    )
    run = run_notebook(path, tmp_path / "measure.ipynb", {})
    assert run.ok, run.error
    expected = {"auc": None, "answer": "red", "count": 3, "other": 0.125}
    assert run.executed.metrics == expected
    assert run.executed.content.cells[1].outputs[0].data["text/plain"] == "auc = 0.25\nanswer = red"
