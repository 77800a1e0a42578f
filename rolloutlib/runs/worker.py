"""One run of a sweep, in a worker."""

import os
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import rolloutlib
from rolloutlib.extras import needs
from rolloutlib.runs import direct, results
from rolloutlib.runs.apart import Apart, Lost
from rolloutlib.runs.kernel import peak_memory
from rolloutlib.runs.metrics import plain_metrics
from rolloutlib.runs.notebook import Notebook
from rolloutlib.runs.plan import PlannedRun
from rolloutlib.runs.run import run_notebook

with needs("sweeps"):
    from distributed import get_worker

# Runs in one process would share its random numbers and its count of memory: one at a time in each.
_ONE_AT_A_TIME = threading.Lock()
# It keeps what a notebook's function loads; a run that ends it takes nothing else along.
_APART = Apart()


def execute(run: PlannedRun, timeout_seconds: float | None) -> str:
    """Compute one run, write what belongs in its folder, and return its error.

    A result that is there already, from a worker that was lost or from another sweep, is kept.
    """
    with _ONE_AT_A_TIME:
        if results.is_finished(run.folder):
            return ""
        with suppress(ValueError):  # not in a worker, but called by hand
            # Those that were started here are limited already.
            os.environ.setdefault("OMP_NUM_THREADS", str(get_worker().state.nthreads))
        record = record_of(run)
        try:
            record = _call(run, timeout_seconds) if run.function else _run(run, timeout_seconds)
            if not record["error"]:
                results.write_result(run.folder, record)
        except Exception as problem:  # such as a full disk
            record |= {"metrics": {}, "error": f"{type(problem).__name__}: {problem}"}
        if not record["error"] or results.is_finished(run.folder):
            return ""
        with suppress(OSError):
            results.write_failure(run.folder, record)
        return record["error"]


def record_of(
    run: PlannedRun,
    seconds: float = 0.0,
    peak_bytes: int | None = None,
    metrics: Mapping[str, object] | None = None,
    error: str = "",
) -> dict[str, object]:
    """What `results` keeps of a run."""
    return {
        "run": run.key,
        "notebook": run.notebook.stem,
        "route": "direct" if run.function else "papermill",
        "parameters": run.values,
        "versions": results.versions(),
        "seconds": round(seconds, 3),
        "peak_memory_mb": None if peak_bytes is None else round(peak_bytes / 1e6, 1),
        "metrics": metrics or {},
        "error": error,
    }


def _unchanged(run: PlannedRun) -> Notebook:
    """The notebook as it was when the sweep was planned. Raises RuntimeError where it is not."""
    if run.version != rolloutlib.__version__:
        planned = f"the sweep was planned with rolloutlib {run.version}"
        raise RuntimeError(f"{planned}, this worker has {rolloutlib.__version__}")
    notebook = Notebook.read(run.notebook)
    if run.digest != notebook.digest:
        raise RuntimeError("the notebook was changed after the sweep was planned")
    return notebook


def _run(run: PlannedRun, timeout: float | None) -> dict[str, object]:
    _unchanged(run)
    output = run.folder / run.notebook.name
    done = run_notebook(run.notebook, output, run.given, timeout=timeout)
    metrics = done.executed.metrics if done.ok else {}
    return record_of(run, done.seconds, done.peak_bytes, metrics, done.error)


def _call(run: PlannedRun, timeout: float | None) -> dict[str, object]:
    started = time.monotonic()
    try:
        return _APART.call(run.notebook.parent, call, run, timeout=timeout)
    except Lost as problem:
        return record_of(run, time.monotonic() - started, error=str(problem))


def call(run: PlannedRun) -> dict[str, object]:
    """Compute the metrics in this very process, which keeps what earlier runs loaded."""
    with suppress(OSError):  # only Linux resets the count on request
        Path("/proc/self/clear_refs").write_text("5")
    started = time.monotonic()
    metrics, error = {}, ""
    try:
        # What is given also says where to write.
        metrics = plain_metrics(direct.call(_unchanged(run), run.values | run.given))
    except BaseException as problem:  # `sys.exit` and Ctrl-C in the function too
        error = f"{type(problem).__name__}: {problem}"
        with suppress(OSError):
            results.write_traceback(run.folder, traceback.format_exc())
    return record_of(run, time.monotonic() - started, peak_memory(), metrics, error)
