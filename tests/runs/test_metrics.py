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
