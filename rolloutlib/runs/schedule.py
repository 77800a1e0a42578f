"""Run one notebook with many sets of parameters, on the cores here or on a cluster.

Every set is checked before the first run starts. Then each run is one task of dask.distributed,
which brings the workers, hands out the runs and gives a lost worker's run to another. A run that
fails is a result like any other: the others go on, and it is not tried again.
"""

import functools
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dask
import nbformat
import pandas as pd
from dask.system import CPU_COUNT
from distributed import (
    CancelledError,
    Client,
    Future,
    LocalCluster,
    Security,
    as_completed,
    get_worker,
)
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

import rolloutlib
from rolloutlib.runs import direct as direct_route
from rolloutlib.runs import results
from rolloutlib.runs import run as runs
from rolloutlib.runs.metrics import plain_metrics
from rolloutlib.runs.run import Refused

# Runs in one process would share its random numbers and its count of memory: one at a time in each.
_ONE_AT_A_TIME = threading.Lock()
CONNECT_SECONDS = 30

LOCAL_SETTINGS = {
    # Processes talk over TLS with keys of their own; what they would show over HTTP stays unshown.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.nanny.http.routes": [],
    # Workers import at the same time on a machine that may be busy.
    "distributed.comm.timeouts.connect": "60s",
}


@dataclass(frozen=True)
class PlannedRun:
    """One set of parameters that was found good, and where its result belongs.

    given: what differs from the notebook's defaults, and where it writes to.
    values: the parameters that decide the numbers, defaults included.
    direct: the notebook's function that computes the metrics; "" to run the whole notebook.
    digest, version: of the notebook and of this package, when the sweep was planned.
    """

    notebook: Path
    folder: Path
    given: dict[str, object]
    values: dict[str, object]
    direct: str
    digest: str
    version: str = rolloutlib.__version__

    @property
    def key(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Progress:
    """How far a sweep has come. `seconds_left` is None as long as nobody can know.

    >>> print(Progress(done=3, failed=1, skipped=0, remaining=4, seconds_left=41.7))
    3 done, 1 failed, 0 skipped, 4 remaining, about 42 s
    """

    done: int
    failed: int
    skipped: int
    remaining: int
    seconds_left: float | None

    def __str__(self) -> str:
        counts = f"{self.done} done, {self.failed} failed, {self.skipped} skipped"
        left = f", about {self.seconds_left:.0f} s" if self.seconds_left else ""
        return f"{counts}, {self.remaining} remaining{left}"


@dataclass(frozen=True)
class Sweep:
    """What became of a sweep: its runs, those that were finished before, and why others failed."""

    planned: list[PlannedRun]
    skipped: list[PlannedRun]
    failures: dict[str, str]
    table: pd.DataFrame


class SchedulerLost(RuntimeError):
    """The scheduler went away. What is finished is on the disk; the same sweep again goes on."""


def plan(
    notebook: Path,
    sets: Iterable[Mapping[str, object]],
    out: Path,
    *,
    direct: bool = False,
) -> list[PlannedRun]:
    """Which runs are these parameter sets? Sets that amount to the same run are one.

    Relative files in the sets start at the present folder.

    Raises `Refused`, with the first problems, where a set is not good: nothing is run then.
    """
    make = _Planner(notebook, out, direct)
    planned: dict[str, PlannedRun] = {}
    problems = []
    for number, one in enumerate(sets, start=1):
        try:
            run = make.run(one)
            planned[run.key] = run
        except Refused as problem:
            problems.append(f"set {number}: {problem}")
    if problems:
        more = f"; and {len(problems) - 3} more sets" if len(problems) > 3 else ""
        raise Refused("; ".join(problems[:3]) + more)
    if not planned:
        raise Refused("expected at least one set of parameters, got none")
    return list(planned.values())


def sweep(
    notebook: Path | str,
    sets: Iterable[Mapping[str, object]],
    out: Path | str,
    *,
    scheduler: str = "",
    workers: int | None = None,
    direct: bool = False,
    timeout: float | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Sweep:
    """Run a notebook with each of these parameter sets, except those that `out` holds already.

    scheduler: the address of a running cluster of dask.distributed that sees the same files, such
    as "tcp://10.0.0.1:8786". Without one, `workers` processes are started here, by default one
    for each core, with one thread each.
    direct: call the function that the notebook names for this, in workers that keep the model.
    timeout: seconds for each run of the notebook.

    The table of all runs in `out` comes back, and is there as `results.parquet` and `results.csv`.

    Raises `Refused` before anything is run where a set is not good or no scheduler answers, and
    `SchedulerLost` when it goes away. What has finished by then stays.
    """
    notebook, out = Path(notebook), Path(out)
    if direct and timeout is not None:
        raise Refused("timeout: a function that runs directly has no kernel that could be stopped")
    planned = plan(notebook, sets, out, direct=direct)
    skipped = [run for run in planned if results.is_finished(run.folder)]
    there = {run.key for run in skipped}
    todo = [run for run in planned if run.key not in there]
    out.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    progress = _Estimate(len(skipped), len(todo))
    on_progress(progress.after(failures, 0))
    try:
        if todo:
            with _client(scheduler, min(workers or CPU_COUNT, len(todo))) as client:
                for number, (run, error) in enumerate(_outcomes(client, todo, timeout), start=1):
                    if error:
                        failures[run.key] = error
                    on_progress(progress.after(failures, number))
    except BaseException:
        with suppress(OSError):  # a full disk may be what stopped the sweep
            results.write_table(out)
        raise
    return Sweep(planned, skipped, failures, results.write_table(out))


def failure_table(done: Sweep) -> str:
    """The runs of a sweep that failed, as text: what was varied, and the error."""
    failed = [run for run in done.planned if run.key in done.failures]
    varied = [
        name
        for name in done.planned[0].values
        if len({repr(run.values[name]) for run in done.planned}) > 1
    ]
    rows = [{"run": run.key, **{name: run.values[name] for name in varied}} for run in failed]
    table = pd.DataFrame(rows).assign(error=[done.failures[run.key] for run in failed])
    return table.to_string(index=False, max_colwidth=100)


class _Planner:
    """What all runs of one sweep have in common, read once."""

    def __init__(self, notebook: Path, out: Path, direct: bool) -> None:
        self.notebook, self.out = notebook.absolute(), out.absolute()
        self.declared = runs.declared_parameters(notebook)
        taken = sorted(self.declared.keys() & results.own_columns())
        if taken:
            raise Refused(f"{notebook}: {', '.join(taken)}: a sweep's table has this column itself")
        self.digest = results.notebook_digest(nbformat.read(notebook, as_version=4))
        self.direct = direct_route.function_name(notebook) if direct else ""
        self.folder = Path.cwd()
        found = self.declared.values()
        self.written = {p.name for p in found if p.is_written and p.names_a_file}
        # Most sets name the same parameters and the same files: look at each only once.
        self.identify = functools.cache(results.identity)
        self.defaults_beside = functools.cache(self._defaults_beside)

    def _defaults_beside(self, *given: str) -> dict[str, object]:
        return runs.located_defaults(self.declared, given, self.notebook.parent)

    def run(self, one: Mapping[str, object]) -> PlannedRun:
        given = runs.check_values(self.declared, one, self.folder)
        own = sorted(self.written & given.keys())
        if own:
            raise Refused(f"{', '.join(own)}: each run of a sweep writes to its own folder")
        both = self.defaults_beside(*given) | given
        values = {name: both[name] for name in self.declared if name not in self.written}
        key = results.run_key(self.digest, self.direct, self.declared, values, self.identify)
        folder = self.out / key
        # What a run writes stays with it: the folder, and the name that the default has.
        for name in self.written:
            if both[name]:
                given[name] = os.path.join(folder, os.path.basename(both[name]))
        return PlannedRun(self.notebook, folder, given, values, self.direct, self.digest)


class _Estimate:
    """How long the rest of a sweep takes, if it goes on as it went."""

    def __init__(self, skipped: int, todo: int) -> None:
        self.skipped, self.todo = skipped, todo
        self.started = time.monotonic()

    def after(self, failures: Mapping[str, str], number: int) -> Progress:
        remaining = self.todo - number
        seconds = (time.monotonic() - self.started) / number * remaining if number else None
        failed = len(failures)
        return Progress(number - failed, failed, self.skipped, remaining, seconds)


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Client]:
    """A connection to a running cluster, or to one of processes here that ends with the block."""
    if scheduler:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as problem:
            raise Refused(f"no scheduler answers at {scheduler}: {problem}") from problem
        with client:
            yield client
        return
    security = Security.temporary()
    with (
        dask.config.set(LOCAL_SETTINGS),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            protocol="tls",
            security=security,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # Dask would end a worker that holds a large model
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster, security=security, set_as_default=False) as client,
    ):
        yield client


def _outcomes(
    client: Client, todo: Sequence[PlannedRun], timeout: float | None
) -> Iterator[tuple[PlannedRun, str]]:
    """Each run as it ends, and its error if it failed."""
    # Names of their own: a scheduler that knew a name from an earlier sweep would not run it again.
    this = uuid.uuid4().hex[:8]
    names = [f"{run.key}-{this}" for run in todo]
    by_name = dict(zip(names, todo, strict=True))
    futures = client.map(execute, todo, key=names, timeout_seconds=timeout, pure=False, retries=0)
    for future in as_completed(futures, loop=client.loop):
        run = by_name[future.key]
        try:
            error = _error_of(future, run)
        except (CommClosedError, CancelledError) as problem:
            raise SchedulerLost(
                "the scheduler went away; what has finished stays, and the same sweep goes on"
            ) from problem
        yield run, error
        future.release()


def _error_of(future: Future, run: PlannedRun) -> str:
    if future.status == "error":
        return _never_came_back(run, future.exception())
    return future.result()  # raises CancelledError where there is no scheduler to ask


def _never_came_back(run: PlannedRun, problem: BaseException) -> str:
    """The error of a run that could not tell its own: its worker is gone or never understood it."""
    error = f"{type(problem).__name__}: {problem}"
    if isinstance(problem, KilledWorker):
        error = "its worker was lost, and so were those that tried it again"
    with suppress(OSError):
        results.write_failure(run.folder, _blank_record(run) | {"error": error})
    return error


def execute(run: PlannedRun, timeout_seconds: float | None) -> str:
    """One run, in a worker: compute and write what belongs in its folder; returns its error.

    A result that is there already, from a worker that was lost or from another sweep, is kept.
    """
    with _ONE_AT_A_TIME:
        if results.is_finished(run.folder):
            return ""
        _limit_threads()
        record = _blank_record(run)
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


def _blank_record(run: PlannedRun) -> dict[str, object]:
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
    if run.digest != results.notebook_digest(nbformat.read(run.notebook, as_version=4)):
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
    return _measured(time.monotonic() - started, runs.peak_memory(), metrics, error)


def _measured(
    seconds: float, peak_bytes: int | None, metrics: Mapping[str, object], error: str
) -> dict[str, object]:
    return {
        "seconds": round(seconds, 3),
        "peak_memory_mb": None if peak_bytes is None else round(peak_bytes / 1e6, 1),
        "metrics": metrics,
        "error": error,
    }
