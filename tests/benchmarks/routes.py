"""`rollout sweep --direct` against papermill: seconds per run, and whether both agree."""

import tempfile
from pathlib import Path

from rolloutlib.runs.schedule import sweep

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
TIMED = ("02_llava", "07_hyperparameters")
TARGET = 10
FIRST, SECOND = {"scenes": 2, "seed": 1}, {"scenes": 2, "seed": 2}


def route_rows() -> list[dict]:
    """A line for each notebook; both routes run it with two scenes, in one worker of one thread."""
    return [_row(name) for name in TIMED]


def _row(name: str) -> dict:
    notebook = NOTEBOOKS / f"{name}.ipynb"
    with tempfile.TemporaryDirectory() as folder:
        papermill = sweep(notebook, [SECOND], Path(folder, "papermill"), workers=1)
        # The first run loads everything; every further run of a grid takes as long as the second.
        direct = sweep(notebook, [FIRST, SECOND], Path(folder, "direct"), workers=1, direct=True)
    if papermill.failures or direct.failures:
        raise RuntimeError(f"{name} failed: {papermill.failures | direct.failures}")
    slow = papermill.table.set_index("seed").loc[SECOND["seed"]]
    fast = direct.table.set_index("seed").loc[SECOND["seed"]]
    metrics = papermill.table.attrs["metrics"]
    difference = max(abs(slow[metric] - fast[metric]) for metric in metrics)
    times = slow["seconds"] / fast["seconds"]
    return {
        "workload": f"`rollout sweep` of {name}, {SECOND['scenes']} scenes",
        "threads": 1,
        "measure": "times faster by `--direct` than by papermill, wall clock",
        "value": float(times),
        "target": TARGET,
        "met": bool(times >= TARGET),
        "agreement": float(difference),
        "agrees": bool(difference == 0),
    }
