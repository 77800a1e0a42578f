"""Run a notebook by papermill, so that only a finished run looks finished.

A run writes to a `.part.ipynb` file beside its output and is renamed when it has succeeded. A run
that failed is kept as `.failed.ipynb`; an output finished earlier stays untouched. The kernel works
in the notebook's own folder, so that a default such as `../data/cat.png` means the same here and in
JupyterLab.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from rolloutlib.extras import needs, without_iris
from rolloutlib.runs.kernel import Node, Position, is_executed, kernel_watched_by, private_sockets
from rolloutlib.runs.notebook import Notebook, hash_of

with needs("notebooks"), without_iris():
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

KERNEL_START_SECONDS = 120
# A cell's last outputs may come late on a busy machine; nbclient's own 4 seconds are too few.
OUTPUT_WAIT_SECONDS = 120
# Papermill would write the whole notebook twice for each cell.
SAVE_SECONDS = 10

# What papermill says of a lost kernel, a run's error says better, and it knows fewer parameters.
logging.getLogger("papermill").setLevel(logging.CRITICAL)
# Its own way to files changes the folder of this whole process, to one that overlapping runs share
# and that may be gone; absolute paths need none.
papermill.iorw.papermill_io.register("/", papermill.iorw.LocalHandler())


class StoppedEarly(RuntimeError):
    """A notebook that ended without an error before its last cell, as `exit()` does."""


@dataclass(frozen=True)
class Run:
    """What became of one notebook. `error` is empty when it finished.

    `peak_bytes` is the most memory that its kernel ever held; None where the system does not say.
    `executed` is what stands in `output`; None where nothing could be written.
    """

    notebook: Path
    output: Path
    seconds: float
    error: str = ""
    peak_bytes: int | None = None
    executed: Notebook | None = None

    @property
    def ok(self) -> bool:
        return not self.error


def output_name(notebook: Path, parameters: Mapping[str, object]) -> str:
    """Name a run's output after its notebook and, where there are any, a hash of its parameters.

    >>> output_name(Path("notebooks/02_llava.ipynb"), {"prompt": "What is this?"})
    '02_llava-924f9e12.ipynb'
    """
    mark = f"-{hash_of(parameters)[:8]}" if parameters else ""
    return f"{notebook.stem}{mark}.ipynb"


def failed_output(output: Path) -> Path:
    """Where a run that failed is kept for post-mortem."""
    return output.with_name(f"{output.stem}.failed.ipynb")


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, object],
    *,
    timeout: float | None = None,
    on_progress: Callable[[int, int], None] = lambda cells_done, cells: None,
    prints: TextIO | None = None,
) -> Run:
    """Execute a notebook with parameters that `check_parameters` returned.

    `timeout` is in seconds for all cells together. `prints` receives what the notebook prints.
    The `Run` that comes back says whether it finished; Ctrl-C is the only error that is raised.
    """
    settings = {"parameters": dict(parameters), "stdout_file": prints}
    return _run(notebook, output, Position(on_progress), timeout, **settings)


def run_together(
    tasks: Iterable[tuple[Path, Path]],
    jobs: int,
    *,
    timeout: float | None = None,
    on_progress: Callable[[Path, int, int], None] = lambda notebook, cells_done, cells: None,
) -> Iterator[Run]:
    """Execute notebooks with their defaults, `jobs` of them at a time; each `Run` as it ends.

    tasks: notebooks and their outputs, in the order in which they start.
    on_progress: is told notebook, cells done and cells; the calls come from several threads.

    Ctrl-C, or closing the iterator, ends the kernels that are running and starts no more.
    """
    with ThreadPoolExecutor(jobs) as threads:
        running = {}
        for notebook, output in tasks:
            position = Position(partial(on_progress, notebook))
            running[threads.submit(_run, notebook, output, position, timeout)] = position
        try:
            for one in as_completed(running):
                yield one.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for position in running.values():
                position.interrupt()
            raise


def _run(
    notebook: Path, output: Path, position: Position, timeout: float | None, **settings: object
) -> Run:
    """`settings` are those of papermill."""
    # The name is random so that two runs towards one output do not write into one file.
    output, error, executed = output.absolute(), "", None
    part = output.with_name(f"{output.stem}.{uuid.uuid4().hex}.part.ipynb")
    started = time.monotonic()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        part.touch(exist_ok=False)  # a new file, whatever lies there
        _execute(notebook.absolute(), part, position, timeout, **settings)
        executed = _marked(part, output, position)
        os.replace(part, output)
        failed_output(output).unlink(missing_ok=True)
    except BaseException as problem:
        error, output = _explain(problem, position, timeout), failed_output(output)
        if part.exists() and part.stat().st_size:
            with suppress(OSError, ValueError):  # a full disk leaves half a file: keep that
                executed = _marked(part, output, position, problem)
            os.replace(part, output)
        if not isinstance(problem, Exception):
            raise
    finally:
        with suppress(OSError):  # after a kernel that never began, it is empty
            part.unlink()
    seconds = time.monotonic() - started
    return Run(notebook, output, seconds, error, position.peak_bytes, executed)


def _execute(
    notebook: Path, part: Path, position: Position, timeout: float | None, **settings: object
) -> None:
    # Papermill takes braces in a path for places of parameters.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, part)]
    deadline = None if timeout is None else time.monotonic() + timeout
    saved = time.monotonic()

    def leave(cell: Node, **reached: object) -> None:
        nonlocal saved
        position.leave(cell, **reached)
        if time.monotonic() - saved > SAVE_SECONDS:
            nbformat.write(position.notebook, part)
            saved = time.monotonic()

    with private_sockets() as sockets:
        try:
            papermill.execute_notebook(
                *paths,
                settings.pop("parameters", None),
                kernel_name="python3",
                language="python",
                # Papermill's `cwd` would move this whole process, and other runs' threads with it.
                resources={"metadata": {"path": str(notebook.parent)}},
                progress_bar=False,
                request_save_on_cell_execute=False,
                start_timeout=KERNEL_START_SECONDS,
                iopub_timeout=OUTPUT_WAIT_SECONDS,
                config=Config(KernelManager=sockets),
                kernel_manager_class=kernel_watched_by(position),
                shell_timeout_interval=1,
                timeout_func=deadline and (lambda cell: max(deadline - time.monotonic(), 0.001)),
                on_notebook_start=position.start,
                on_cell_execute=position.enter,
                on_cell_executed=leave,
                **settings,
            )
        except PapermillExecutionError:  # it wrote the notebook
            raise
        except BaseException:
            if position.notebook:
                nbformat.write(position.notebook, part)
            raise


def _marked(
    part: Path, output: Path, position: Position, problem: BaseException | None = None
) -> Notebook:
    """Say in the notebook itself where it lies and, if it failed, where it stopped.

    Papermill does so for an exception in a cell; after a timeout, a lost kernel or an interrupt it
    calls every cell completed. Raises `StoppedEarly` when a cell was never reached.
    """
    notebook = nbformat.read(part, as_version=4)
    notebook.metadata.papermill.output_path = str(output)
    reached = all(cell.execution_count for cell in notebook.cells if is_executed(cell))
    if problem is None and not reached:
        raise StoppedEarly("the notebook stopped before its last cell")
    if problem is not None and not isinstance(problem, PapermillExecutionError):
        notebook.metadata.papermill.exception = True
        for cell in notebook.cells[position.index :]:
            cell.metadata.papermill.status = "pending"
        stopped_at = notebook.cells[position.index].metadata.papermill
        stopped_at.status, stopped_at.exception = "failed", True
    nbformat.write(notebook, part)
    return Notebook(output, notebook)


def _explain(problem: BaseException, position: Position, timeout: float | None) -> str:
    """One line for people: which cell, and what happened there."""
    cell = f"In [{position.cells_started}]"
    match problem:
        case PapermillExecutionError():
            reason = problem.evalue.strip().partition("\n")[0]
            return f"In [{problem.exec_count}]: {problem.ename}: {reason}"
        case DeadKernelError():
            return f"{cell}: the kernel died"
        case CellTimeoutError() if timeout is not None:
            return f"{cell}: stopped after {timeout:g} seconds"
        case KeyboardInterrupt():
            return f"{cell}: interrupted"
        case _:
            return f"{cell}: {type(problem).__name__}: {problem}"
