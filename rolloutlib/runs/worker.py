"""One run of a sweep, in a worker."""

import os
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import nbformat
from distributed import (
    get_worker,
)

import rolloutlib
from rolloutlib.runs import direct as direct_route
from rolloutlib.runs import results
from rolloutlib.runs import run as runs
from rolloutlib.runs.kernel import peak_memory
from rolloutlib.runs.metrics import plain_metrics
from rolloutlib.runs.notebook import notebook_digest
from rolloutlib.runs.plan import PlannedRun

# Runs in one process would share its random numbers and its count of memory: one at a time in each.
_ONE_AT_A_TIME = threading.Lock()


def execute(run: PlannedRun, timeout_seconds: float | None) -> str:
    """One run, in a worker: compute and write what belongs in its folder; returns its error.

    A result that is there already, from a worker that was lost or from another sweep, is kept.
    """
    with _ONE_AT_A_TIME:
        if results.is_finished(run.folder):
            return ""
        _limit_threads()
        record = blank_record(run)
        try:
            _check_unchanged(run)
            record |= _call(run) if run.direct else _run_notebook(run, timeout_seconds)
            if not record["error"]:
                results.write_result(run.folder, record)
        except Exception as problem:  # such as a full disk
            record |= {"metrics": {}, "error": f"{type(problem).__name__}: {problem}"}
        if not record["error"] or results.is_finished(run.folder):
            return ""
        with suppress(OSError):
            results.write_failure(run.folder, record)
        return record["error"]


def blank_record(run: PlannedRun) -> dict[str, object]:
    return {
        "run": run.key,
        "notebook": run.notebook.stem,
        "route": "direct" if run.direct else "papermill",
        "parameters": run.values,
        "versions": results.versions(),
        **_measured(0.0, None, {}, ""),
    }


def _limit_threads() -> None:
    """One thread for each run that is under way; workers that were started here have it so."""
    with suppress(ValueError):  # no worker, but called by hand
        os.environ.setdefault("OMP_NUM_THREADS", str(get_worker().state.nthreads))


def _check_unchanged(run: PlannedRun) -> None:
    if run.version != rolloutlib.__version__:
        raise RuntimeError(
            f"the sweep was planned with rolloutlib {run.version}, this worker has "
            f"{rolloutlib.__version__}"
        )
    if run.digest != notebook_digest(nbformat.read(run.notebook, as_version=4)):
        raise RuntimeError("the notebook was changed after the sweep was planned")


def _run_notebook(run: PlannedRun, timeout: float | None) -> dict[str, object]:
    output = run.folder / run.notebook.name
    done = runs.run_notebook(run.notebook, output, run.given, timeout=timeout)
    metrics = results.read_metrics(nbformat.read(output, as_version=4)) if done.ok else {}
    return _measured(done.seconds, done.peak_bytes, metrics, done.error)


def _call(run: PlannedRun) -> dict[str, object]:
    """Compute the metrics in this very process, where what an earlier run loaded still is."""
    with suppress(OSError):  # only Linux counts anew on request
        Path("/proc/self/clear_refs").write_text("5")
    started = time.monotonic()
    metrics, error = {}, ""
    try:
        metrics = plain_metrics(direct_route.call(run.notebook, run.digest, run.values))
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
        results.write_traceback(run.folder, traceback.format_exc())
    return _measured(time.monotonic() - started, peak_memory(), metrics, error)


def _measured(
    seconds: float, peak_bytes: int | None, metrics: Mapping[str, object], error: str
) -> dict[str, object]:
    return {
        "seconds": round(seconds, 3),
        "peak_memory_mb": None if peak_bytes is None else round(peak_bytes / 1e6, 1),
        "metrics": metrics,
        "error": error,
    }
