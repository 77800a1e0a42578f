"""Run a notebook by papermill: refuse what cannot work, and let only a finished run look finished.

Three rules hold everywhere:

- *Before* a kernel starts, every parameter is checked against the notebook's `parameters` cell:
  its name, its type, and the files that it names.
- A run writes to a `.part.ipynb` file beside its output and is renamed when it succeeded. A run
  that failed is kept as `.failed.ipynb`; an output finished earlier stays untouched.
- The kernel works in the notebook's own folder, so that a default such as `../data/cat.png` means
  the same here and in JupyterLab.
"""

import ast
import difflib
import hashlib
import json
import os
import re
import signal
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import nbformat
import papermill
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

WRITTEN_PREFIXES = ("output_", "checkpoint_")
MODEL_NAMES = ("model_id", "adapter_id")
TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}
KERNEL_START_SECONDS = 120
# A cell's last outputs may come late on a busy machine; nbclient's own 4 seconds are too few.
OUTPUT_WAIT_SECONDS = 120


class Refused(ValueError):
    """A run that was not started, because it could not have worked."""


class StoppedEarly(RuntimeError):
    """A notebook that ended without an error before its last cell, as `exit()` does."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's `parameters` cell: `name: kind = default`."""

    name: str
    kind: str
    default: object

    @property
    def names_a_file(self) -> bool:
        return self.name.endswith("_path")

    @property
    def is_written(self) -> bool:
        return self.name.startswith(WRITTEN_PREFIXES)


@dataclass(frozen=True)
class Run:
    """What became of one notebook. `error` is empty when it finished.

    `peak_bytes` is the most memory that its kernel ever held; None where the system does not say.
    """

    notebook: Path
    output: Path
    seconds: float
    error: str = ""
    peak_bytes: int | None = None

    @property
    def ok(self) -> bool:
        return not self.error


def declared_parameters(notebook: Path) -> dict[str, Parameter]:
    """Which parameters does this notebook take?

    Raises `Refused` when there is no such file, or it is not a notebook.
    """
    read_notebook(notebook)
    try:
        inspected = papermill.inspect_notebook(_literal(notebook))
    except ValueError as problem:
        raise Refused(f"{notebook}: {problem}") from problem
    return {name: _declared(found) for name, found in inspected.items()}


def read_assignments(
    declared: Mapping[str, Parameter], assignments: Iterable[Sequence[str]]
) -> dict[str, object]:
    """Turn the command line's names and texts into values of the declared types.

    A string stays the text it is; a list or dict is JSON or YAML.

    Raises `Refused` for an unknown name or a text that is no value of the type.

    >>> declared = {"layers": Parameter("layers", "list[int]", []), "x": Parameter("x", "str", "")}
    >>> read_assignments(declared, [("layers", "[1, 2]"), ("x", "007")])
    {'layers': [1, 2], 'x': '007'}
    """
    values = {}
    for name, text in assignments:
        parameter = _find(declared, name)
        try:
            values[name] = _parse(text, parameter.kind)
        except (ValueError, yaml.YAMLError) as problem:
            raise _wrong_type(parameter, text) from problem
    return values


def read_parameter_file(path: Path) -> dict[str, object]:
    """Read parameters from a YAML (or JSON) file that maps names to values.

    Raises `Refused` when there is no such file or it holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise Refused(f"{path}: cannot be read as YAML: {_sentence(problem)}") from problem
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise Refused(f"{path}: expected a mapping of names to values, got {values!r}")
    return values


def check_parameters(
    notebook: Path, given: Mapping[str, object], folder: Path
) -> dict[str, object]:
    """Which values will the notebook receive? Relative files in `given` start at `folder`.

    A parameter whose name ends in `_path` names a file or folder. It must exist, unless the name
    starts with `output_` or `checkpoint_`: those the notebook writes. `model_id` and `adapter_id`
    are a folder where there is one, and otherwise the name of a checkpoint on the hub. The
    notebook's own defaults are held to the same rules, starting at its own folder.

    Raises `Refused` for an unknown name, a wrong type, or a missing file.
    """
    declared = declared_parameters(notebook)
    checked = check_values(declared, given, folder)
    located_defaults(declared, given, notebook.parent)
    return checked


def located_defaults(
    declared: Mapping[str, Parameter], given: Iterable[str], home: Path
) -> dict[str, object]:
    """The values of what is not given, with files that start at `home`, the notebook's folder.

    Raises `Refused` for a missing file.
    """
    left = declared.keys() - set(given)
    return {name: _located(declared[name], declared[name].default, home) for name in left}


def check_values(
    declared: Mapping[str, Parameter], given: Mapping[str, object], folder: Path
) -> dict[str, object]:
    """The given values as the notebook will receive them, by the rules of `check_parameters`."""
    checked = {}
    for name, value in given.items():
        parameter = _find(declared, name)
        checked[name] = _located(parameter, _typed(parameter, value), folder)
    return checked


def output_name(notebook: Path, parameters: Mapping[str, object]) -> str:
    """Name a run's output after its notebook and, where there are any, a hash of its parameters.

    >>> output_name(Path("notebooks/02_llava.ipynb"), {})
    '02_llava.ipynb'
    >>> output_name(Path("notebooks/02_llava.ipynb"), {"prompt": "What is this?"})
    '02_llava-924f9e12.ipynb'
    """
    if not parameters:
        return f"{notebook.stem}.ipynb"
    canonical = json.dumps(parameters, sort_keys=True).encode()
    return f"{notebook.stem}-{hashlib.sha256(canonical).hexdigest()[:8]}.ipynb"


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
    return _run(notebook, output, parameters, _Position(on_progress), timeout, prints)


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
    tasks = list(tasks)
    positions = [_Position(partial(on_progress, notebook)) for notebook, _ in tasks]
    with ThreadPoolExecutor(jobs) as threads:
        running = [
            threads.submit(_run, notebook, output, {}, position, timeout, None)
            for (notebook, output), position in zip(tasks, positions, strict=True)
        ]
        try:
            for one in as_completed(running):
                yield one.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for position in positions:
                position.interrupt()
            raise


def _run(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, object],
    position: "_Position",
    timeout: float | None,
    prints: TextIO | None,
) -> Run:
    output = output.absolute()
    # The name is random so that two runs towards one output do not write into one file.
    part = output.with_name(f"{output.stem}.{uuid.uuid4().hex[:8]}.part.ipynb")
    started = time.monotonic()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _execute(notebook.absolute(), part, dict(parameters), position, timeout, prints)
        _finish(part, output)
        return Run(notebook, output, time.monotonic() - started, peak_bytes=position.peak_bytes)
    except BaseException as problem:
        error = _explain(problem, position, timeout)
        failed = failed_output(output)
        if part.exists():
            with suppress(OSError, ValueError):  # a full disk leaves half a file: keep that
                _mark_failed(part, failed, position, problem)
            os.replace(part, failed)
        if not isinstance(problem, Exception):
            raise
        return Run(notebook, failed, time.monotonic() - started, error, position.peak_bytes)


class _OwnKernel(AsyncKernelManager):
    """A kernel of this very Python, whatever other kernels Jupyter finds under the same name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def _kernel_watched_by(position: "_Position") -> type[_OwnKernel]:
    """The class of kernels, for that is what papermill takes; each tells where it is."""

    class WatchedKernel(_OwnKernel):
        def __init__(self, **settings) -> None:
            super().__init__(**settings)
            position.kernel = self

    return WatchedKernel


def peak_memory(process: int | str = "self") -> int | None:
    """The most bytes of memory that a process held so far; None where Linux's /proc is not.

    >>> peak = peak_memory()
    >>> peak is None or peak > 1_000_000
    True
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    return 1024 * int(found[1]) if found else None


@contextmanager
def _private_sockets() -> Iterator[Config]:
    """Kernel settings under which no TCP port is opened: sockets in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="rollout-") as folder:
        yield Config(KernelManager={"transport": "ipc", "connection_file": f"{folder}/kernel.json"})


class _Position:
    """How far a run has come, for whoever watches it and for the report when it fails."""

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self.on_progress = on_progress
        self.index = 0
        self.cells_started = 0
        self.cells = 0
        self.kernel: _OwnKernel | None = None
        self.peak_bytes: int | None = None
        self.interrupted = False

    def start(self, notebook: nbformat.NotebookNode) -> None:
        self.cells = sum(_is_executed(cell) for cell in notebook.cells)

    def enter(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.on_progress(self.cells_started, self.cells)
        self.index = cell_index
        self.cells_started += 1

    def leave(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict) -> None:
        self.peak_bytes = (self.process and peak_memory(self.process)) or self.peak_bytes

    @property
    def process(self) -> int | None:
        """The kernel's process, while there is one."""
        kernel = self.kernel and self.kernel.provisioner
        return kernel.pid if kernel and kernel.has_process else None

    def interrupt(self) -> None:
        """What Ctrl-C does to a run in the main thread, to one in another: its kernel ends."""
        self.interrupted = True
        with suppress(ProcessLookupError):
            if self.process:
                os.kill(self.process, signal.SIGKILL)


def _execute(
    notebook: Path,
    part: Path,
    parameters: dict[str, object],
    position: _Position,
    timeout: float | None,
    prints: TextIO | None,
) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    with _private_sockets() as settings:
        papermill.execute_notebook(
            _literal(notebook),
            _literal(part),
            parameters,
            kernel_name="python3",
            language="python",
            # Papermill's `cwd` would move this whole process, and other runs' threads with it.
            resources={"metadata": {"path": str(notebook.parent)}},
            progress_bar=False,
            stdout_file=prints,
            start_timeout=KERNEL_START_SECONDS,
            iopub_timeout=OUTPUT_WAIT_SECONDS,
            config=settings,
            kernel_manager_class=_kernel_watched_by(position),
            shell_timeout_interval=1,
            timeout_func=deadline and (lambda cell: max(deadline - time.monotonic(), 0.001)),
            on_notebook_start=position.start,
            on_cell_execute=position.enter,
            on_cell_executed=position.leave,
        )


def _finish(part: Path, output: Path) -> None:
    """Give a finished run its name, and remove what an earlier failure left.

    Raises `StoppedEarly` when a cell was never reached.
    """
    notebook = nbformat.read(part, as_version=4)
    if any(_is_executed(cell) and cell.execution_count is None for cell in notebook.cells):
        raise StoppedEarly("the notebook stopped before its last cell")
    notebook.metadata.papermill.output_path = str(output)
    nbformat.write(notebook, part)
    os.replace(part, output)
    failed_output(output).unlink(missing_ok=True)


def _mark_failed(part: Path, failed: Path, position: _Position, problem: BaseException) -> None:
    """Say in the notebook itself where it stopped.

    Papermill does so for an exception in a cell; after a timeout, a lost kernel or an interrupt it
    calls every cell completed.
    """
    notebook = nbformat.read(part, as_version=4)
    notebook.metadata.papermill.output_path = str(failed)
    if not isinstance(problem, PapermillExecutionError):
        notebook.metadata.papermill.exception = True
        for cell in notebook.cells[position.index :]:
            cell.metadata.papermill.status = "pending"
        stopped_at = notebook.cells[position.index].metadata.papermill
        stopped_at.status, stopped_at.exception = "failed", True
    nbformat.write(notebook, part)


def _explain(problem: BaseException, position: _Position, timeout: float | None) -> str:
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


def _is_executed(cell: nbformat.NotebookNode) -> bool:
    skipped = "skip-execution" in cell.metadata.get("tags", [])
    return cell.cell_type == "code" and bool(cell.source.strip()) and not skipped


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Raises `Refused` when there is no such file, or it is not a notebook."""
    if path.suffix != ".ipynb" or not path.is_file():
        raise Refused(f"{path}: there is no notebook (.ipynb) of this name")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as problem:  # nbformat raises whatever the broken content runs into
        raise Refused(f"{path}: not a notebook: {_sentence(problem)}") from problem
    return notebook


def _sentence(problem: Exception) -> str:
    """An error's words on one line; those of parsers quote half the file."""
    return textwrap.shorten(str(problem), 200)


def _literal(path: Path) -> str:
    """A path in which papermill fills in nothing: to it, braces are places for parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _declared(inspected: Mapping[str, str]) -> Parameter:
    try:
        default = ast.literal_eval(inspected["default"])
    except (ValueError, SyntaxError) as problem:
        name, text = inspected["name"], inspected["default"]
        raise Refused(f"{name}: the default must be a literal, got {text}") from problem
    kind = inspected["inferred_type_name"]
    if kind == "None":  # papermill's word for a line without an annotation
        kind = type(default).__name__
    return Parameter(inspected["name"], kind, default)


def _find(declared: Mapping[str, Parameter], name: str) -> Parameter:
    if name in declared:
        return declared[name]
    close = difflib.get_close_matches(name, declared, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(declared) or 'none'}"
    raise Refused(f"unknown parameter {name}: {hint}")


def _parse(text: str, kind: str) -> object:
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in ("str", "int", "float"):
        return TYPES[kind](text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return yaml.safe_load(text)


def _typed(parameter: Parameter, value: object) -> object:
    """Check a value against an annotation such as `float` or `list[str]`."""
    kind, element_kind = re.fullmatch(r"(\w+)(?:\[(\w+)\])?.*", parameter.kind).groups()
    if not _has_kind(value, kind):
        raise _wrong_type(parameter, value)
    if not _is_json(value):  # such as a date, which YAML knows
        raise _wrong_type(parameter, value)
    if kind == "list" and element_kind and not all(_has_kind(x, element_kind) for x in value):
        raise _wrong_type(parameter, value)
    return float(value) if kind == "float" else value


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _has_kind(value: object, kind: str) -> bool:
    """Types as people mean them: a whole number is a float too, and a bool is no number."""
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, TYPES.get(kind, object))


def _wrong_type(parameter: Parameter, value: object) -> Refused:
    return Refused(f"{parameter.name} must be of type {parameter.kind}, got {value!r}")


def _located(parameter: Parameter, value: object, folder: Path) -> object:
    """Make the files that a parameter names absolute; they start at `folder`."""
    if not parameter.names_a_file and parameter.name not in MODEL_NAMES:
        return value
    if not value:
        if parameter.default and parameter.name != "adapter_id":
            raise Refused(f"{parameter.name} must not be empty")
        return value  # "" means "none": a model without an adapter, or where that is the default
    if not isinstance(value, str):
        raise Refused(f"{parameter.name} names one file: expected a text, got {value!r}")
    path = folder.absolute() / os.path.expanduser(value)
    if parameter.name in MODEL_NAMES:
        return _located_model(parameter, value, path)
    if not parameter.is_written and not path.exists():
        raise Refused(f"{parameter.name}: there is no file or folder {path}")
    return os.path.normpath(path)


def _located_model(parameter: Parameter, value: str, path: Path) -> str:
    if path.is_dir():
        return os.path.normpath(path)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", value):
        return value  # `owner/name` or `name`, as on the hub
    raise Refused(f"{parameter.name}: there is no folder {path}, and {value!r} is no hub name")
