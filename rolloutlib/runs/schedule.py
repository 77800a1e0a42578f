"""Run one notebook with many sets of parameters, on the cores here or on a cluster.

Each run is one task of dask.distributed, which gives a lost worker's run to another. A run that
fails is a result like any other: the others go on, and it is not tried again.
"""

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rolloutlib.extras import needs
from rolloutlib.runs import results
from rolloutlib.runs.notebook import Notebook, Refused
from rolloutlib.runs.plan import PlannedRun, plan
from rolloutlib.runs.worker import execute, record_of

with needs("sweeps"):
    import dask
    from dask.system import CPU_COUNT
    from distributed import CancelledError, Client, LocalCluster, Security, as_completed
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

CONNECT_SECONDS = 30
# Processes talk over TLS with keys of their own; their HTTP pages are switched off.
LOCAL_SETTINGS = {f"distributed.{x}.http.routes": [] for x in ("scheduler", "worker", "nanny")}
# Workers import at the same time on a machine that may be busy.
LOCAL_SETTINGS["distributed.comm.timeouts.connect"] = "60s"
# A worker gets its next run when it is free: one that dies takes no waiting run along.
LOCAL_SETTINGS["distributed.scheduler.worker-saturation"] = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a sweep has come. `seconds_left` is None until the first run ends.

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
    """The scheduler went away. What has finished is on the disk; the same sweep continues."""


def sweep(
    notebook: Notebook | Path | str,
    sets: Iterable[Mapping[str, object]],
    out: Path | str,
    *,
    scheduler: str = "",
    workers: int | None = None,
    direct: bool = False,
    timeout: float | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Sweep:
    """Run a notebook with each of these parameter sets; results that `out` holds already are kept.

    scheduler: the address of a running cluster of dask.distributed that sees the same files, such
    as "tcp://10.0.0.1:8786". Without one, `workers` processes are started here, by default one
    for each core, with one thread each; with 0 workers, runs are computed one after another, with
    all cores.
    direct: call the function that the notebook names for this, in processes that keep the model.
    timeout: seconds for each run.

    The table of all runs in `out` is returned, and written there as `results.parquet` and
    `results.csv`.

    Raises `Refused` before anything is run where a set is not good or no scheduler answers, and
    `SchedulerLost` when it goes away. What has finished by then stays.
    """
    notebook, out = Notebook.of(notebook), Path(out)
    planned = plan(notebook, sets, out, notebook.function if direct else "")
    skipped, todo = [], []
    for run in planned:
        (skipped if results.is_finished(run.folder) else todo).append(run)
    out.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    started = time.monotonic()

    def show(ended: int) -> None:
        """How far it is; the rest takes as long for each run as those that ended."""
        failed, left = len(failures), len(todo) - ended
        seconds = (time.monotonic() - started) / ended * left if ended else None
        on_progress(Progress(ended - failed, failed, len(skipped), left, seconds))

    show(0)
    try:
        with closing(_every(todo, scheduler, workers, timeout)) as outcomes:
            for ended, (run, error) in enumerate(outcomes, start=1):
                failures |= {run.key: error} if error else {}
                show(ended)
    except BaseException:
        with suppress(OSError):  # a full disk may be what stopped the sweep
            results.write_table(out)
        raise
    return Sweep(planned, skipped, failures, results.write_table(out))


def failure_table(done: Sweep) -> str:
    """The runs of a sweep that failed, as text: what was varied, and the error."""
    keys = [run.key for run in done.planned]
    values = pd.DataFrame([run.values for run in done.planned], keys, dtype=object)
    varied = [name for name in values if values[name].map(repr).nunique() > 1]
    failed = values.loc[[key for key in keys if key in done.failures], varied]
    table = failed.rename_axis("run").reset_index()
    table["error"] = table["run"].map(done.failures)
    return table.to_string(index=False, max_colwidth=100)


def _every(
    todo: Sequence[PlannedRun], scheduler: str, workers: int | None, timeout: float | None
) -> Generator[tuple[PlannedRun, str]]:
    """Each run as it ends, and its error if it failed: on a cluster, or one after another here."""
    if workers == 0 and not scheduler:
        yield from ((run, execute(run, timeout)) for run in todo)
    elif todo:
        with _client(scheduler, min(workers or CPU_COUNT, len(todo))) as client:
            yield from _outcomes(client, todo, timeout)


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
    """Each run as it ends, and its error if it failed.

    Runs whose workers were lost again and again are tried once more, each alone: another run that
    was given to the same workers may have ended them.
    """
    lost = []
    # Names of their own: a scheduler that knew a name from an earlier sweep would not run it again.
    this = uuid.uuid4().hex[:8]
    runs = {f"{run.key}-{this}": run for run in todo}
    futures = client.map(execute, todo, key=[*runs], timeout_seconds=timeout, pure=False, retries=0)
    for future in as_completed(futures, loop=client.loop):
        run = runs[future.key]
        try:
            # Raises CancelledError where there is no scheduler to ask.
            problem = future.exception() if future.status == "error" else None
            error = _never_came_back(run, problem) if problem else future.result()
        except (CommClosedError, CancelledError) as problem:
            raise SchedulerLost(
                "the scheduler went away; what has finished stays, and the same sweep continues"
            ) from problem
        future.release()
        if isinstance(problem, KilledWorker) and len(todo) > 1:
            lost.append(run)
        else:
            yield run, error
    for run in lost:
        yield from _outcomes(client, [run], timeout)


def _never_came_back(run: PlannedRun, problem: BaseException) -> str:
    """The error of a run that could not report one: its worker was lost, or could not read it."""
    error = f"{type(problem).__name__}: {problem}"
    if isinstance(problem, KilledWorker):
        error = "its worker was lost, and so were those that tried it again"
    with suppress(OSError):
        results.write_failure(run.folder, record_of(run, error=error))
    return error
