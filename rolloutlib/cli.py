"""The `rollout` command.

Exit codes: 0 all runs finished, 1 a run failed, 2 refused before a kernel started, 130 interrupted.
"""

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from rolloutlib.pages import page as gallery
from rolloutlib.runs import run as runs
from rolloutlib.runs.notebook import Refused, declared_parameters
from rolloutlib.runs.parameters import check_parameters, read_assignments, read_parameter_file

if TYPE_CHECKING:
    from rolloutlib.runs import schedule as sweeps

OUTPUTS = Path("outputs")
LOG_EVERY_SECONDS = 10
# Of a notebook with its small checkpoint, at most: kernel, model and data.
NOTEBOOK_BYTES = 3 * 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    # Papermill's own words about a lost kernel or a timeout: the line for the run says it better.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        return options.command(options)
    except Refused as problem:
        print(f"rollout: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:  # such as a folder that must not be written to
        print(f"rollout: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rollout: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rollout", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("run", help="run one notebook with parameters")
    one.set_defaults(command=_run_one)
    one.add_argument("notebook", type=Path)
    one.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    one.add_argument("-y", "--yaml", type=Path, metavar="FILE", help="parameters as YAML or JSON")
    one.add_argument("--out", type=Path, metavar="FILE", help="default: outputs/NAME[-HASH].ipynb")
    one.add_argument("--echo", action="store_true", help="print what the notebook prints")

    many = commands.add_parser(
        "sweep", help="run one notebook with many sets of parameters, here or on a cluster"
    )
    many.set_defaults(command=_sweep)
    many.add_argument("notebook", type=Path)
    many.add_argument(
        "sets", type=Path, nargs="?", help="a grid as YAML, or sets as CSV or JSON lines"
    )
    many.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=A,B,C",
        dest="choices",
        help="every value of this parameter with every other set",
    )
    many.add_argument("--out", type=Path, metavar="FOLDER", help="default: outputs/sweeps/NAME")
    many.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="a running Dask cluster: tcp://…"
    )
    many.add_argument(
        "--workers", type=_at_least_one, help="processes here; default: one for each core"
    )
    many.add_argument(
        "--direct",
        action="store_true",
        help="call the function that the notebook names, in workers that keep the model loaded",
    )

    every = commands.add_parser("run-all", help="run every notebook in a folder, with its defaults")
    every.set_defaults(command=_run_all)
    every.add_argument("folder", type=Path)
    every.add_argument("--out", type=Path, default=OUTPUTS, metavar="FOLDER")
    every.add_argument(
        "--jobs",
        type=_at_least_one,
        help="notebooks at a time; default: one for each core, fewer where memory is short",
    )

    pages = commands.add_parser("gallery", help="a site of all that was executed, sweeps too")
    pages.set_defaults(command=_gallery)
    pages.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="FOLDER")
    pages.add_argument("--out", type=Path, default=OUTPUTS / "site", metavar="FOLDER")
    pages.add_argument(
        "--figures",
        type=Path,
        nargs=2,
        metavar=("NOTEBOOKS", "FOLDER"),
        help="also a small figure of each of these notebooks",
    )

    for command in (one, many, every):
        command.add_argument(
            "--timeout", type=float, metavar="SECONDS", help="for all cells of a notebook together"
        )
    return parser


def _run_one(options: argparse.Namespace) -> int:
    given = {} if options.yaml is None else read_parameter_file(options.yaml)
    declared = declared_parameters(options.notebook)
    given |= read_assignments(declared, options.parameter)
    parameters = check_parameters(options.notebook, given, Path.cwd())
    output = options.out or OUTPUTS / runs.output_name(options.notebook, parameters)
    if output.suffix != ".ipynb":
        raise Refused(f"--out must name an .ipynb file, got {output}")
    _check_outputs([output], [options.notebook])
    run = _run(options.notebook, output, parameters, options.timeout, echo=options.echo)
    return 0 if run.ok else 1


def _sweep(options: argparse.Namespace) -> int:
    # Dask and pandas take a second to import, which the other commands need not wait for.
    from rolloutlib.runs import schedule as sweeps
    from rolloutlib.runs import sets as grids

    declared = declared_parameters(options.notebook)
    if options.sets is None and not options.choices:
        raise Refused("expected a file with parameter sets, or --set NAME=A,B,C; got neither")
    sets = [{}] if options.sets is None else grids.read_sets(options.sets, declared)
    sets = grids.crossed(sets, grids.read_choices(declared, options.choices))
    out = options.out or OUTPUTS / "sweeps" / options.notebook.stem
    with _SweepProgress(options.notebook.stem) as progress:
        try:
            done = sweeps.sweep(
                options.notebook,
                sets,
                out,
                scheduler=options.scheduler,
                workers=options.workers,
                direct=options.direct,
                timeout=options.timeout,
                on_progress=progress.show,
            )
        except (sweeps.SchedulerLost, OSError) as problem:  # such as a full disk
            print(f"rollout: {problem}; {progress.last}", file=sys.stderr)
            return 1
    print(f"{progress.last}; see {out / 'results.csv'}")
    if done.failures:
        print(sweeps.failure_table(done))
    return 1 if done.failures else 0


def _run_all(options: argparse.Namespace) -> int:
    from rolloutlib.pages import (
        gallery as site,  # with pandas, which the other commands need not wait for
    )

    notebooks = _notebooks(options.folder, options.out)
    refused = [run for notebook in notebooks if (run := _refused(notebook))]
    for run in refused:
        _report(run)
    left = sorted({*notebooks} - {run.notebook for run in refused})
    tasks = [(notebook, options.out / notebook.relative_to(options.folder)) for notebook in left]
    _check_outputs([output for _, output in tasks], notebooks)
    finished = [*refused, *_run_together(tasks, options)]
    index = site.write_site(sorted(finished, key=lambda run: run.notebook), options.out)
    failures = sum(not run.ok for run in finished)
    print(f"{len(finished) - failures} of {len(finished)} notebooks finished; see {index}")
    return 1 if failures else 0


def _run_together(
    tasks: Sequence[tuple[Path, Path]], options: argparse.Namespace
) -> list[runs.Run]:
    jobs, cores = _jobs(options.jobs)
    if jobs > 1:  # kernels share the cores instead of each asking for all
        os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // jobs, 1)))
    finished = []
    with (
        _TogetherProgress(len(tasks)) as progress,
        closing(
            runs.run_together(tasks, jobs, timeout=options.timeout, on_progress=progress.show)
        ) as ending,
    ):
        for run in ending:
            finished.append(run)
            progress.end(run)
            _write_page(run)
    return finished


def _jobs(asked: int | None) -> tuple[int, int]:
    """How many notebooks at a time, and how many cores there are."""
    from dask.system import CPU_COUNT  # both as the container allows, if this is one
    from distributed.system import MEMORY_LIMIT

    return asked or max(1, min(CPU_COUNT, MEMORY_LIMIT // NOTEBOOK_BYTES)), CPU_COUNT


def _gallery(options: argparse.Namespace) -> int:
    from rolloutlib.pages import (
        gallery as site,  # with pandas, which the other commands need not wait for
    )

    print(site.build_site(options.outputs, options.out))
    if options.figures:
        notebooks, figures = options.figures
        for figure in site.write_readme_figures(options.outputs, notebooks, figures):
            print(figure)
    return 0


def _notebooks(folder: Path, out: Path) -> list[Path]:
    """All notebooks in a folder, but those that an earlier run left in a folder inside of it."""
    found = [path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    if folder.resolve() in out.resolve().parents:
        found = [path for path in found if out.resolve() not in path.resolve().parents]
    if not found:
        raise Refused(f"{folder}: there is no notebook in this folder")
    return sorted(found)


def _refused(notebook: Path) -> runs.Run | None:
    """What would be refused alone is reported, and the others go on."""
    try:
        check_parameters(notebook, {}, Path.cwd())
    except Refused as problem:
        return runs.Run(notebook, notebook, 0.0, f"refused: {problem}")
    return None


def _run(
    notebook: Path,
    output: Path,
    parameters: dict[str, object],
    timeout: float | None,
    *,
    echo: bool = False,
) -> runs.Run:
    with _Progress(notebook.stem) as progress:
        run = runs.run_notebook(
            notebook,
            output,
            parameters,
            timeout=timeout,
            on_progress=progress.show,
            prints=sys.stdout if echo else None,
        )
    _report(run, str(gallery.page_of(run.output)))
    _write_page(run)
    return run


def _write_page(run: runs.Run) -> None:
    if run.output.exists():  # a run whose folder could not be written to leaves nothing
        gallery.write_page(run.output)
    if run.ok:
        gallery.page_of(runs.failed_output(run.output)).unlink(missing_ok=True)


def _report(run: runs.Run, page: str = "") -> None:
    state = "ok" if run.ok else f"FAILED {run.error}"
    tqdm.write(f"{run.notebook.stem}  {run.seconds:.1f} s  {state}  {page}".rstrip())
    sys.stdout.flush()


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def _check_outputs(outputs: Sequence[Path], notebooks: Sequence[Path]) -> None:
    sources = {notebook.resolve() for notebook in notebooks}
    for output in outputs:
        if output.resolve() in sources:
            raise Refused(f"--out must not be the notebook itself, got {output}")


class _SweepProgress:
    """Runs done: a bar on a terminal, and a line every few seconds in a log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar = tqdm(desc=name, unit="run", leave=False, disable=not sys.stderr.isatty())
        self.last: object = ""
        self.last_line = 0.0

    def __enter__(self) -> "_SweepProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, progress: "sweeps.Progress") -> None:
        self.last = progress
        self.bar.n = progress.done + progress.failed + progress.skipped
        self.bar.total = self.bar.n + progress.remaining
        self.bar.set_postfix_str(str(progress))
        if self.bar.disable and time.monotonic() - self.last_line > LOG_EVERY_SECONDS:
            self.last_line = time.monotonic()
            print(f"{self.name}  {progress}", file=sys.stderr, flush=True)


class _Progress:
    """Cells done: a bar on a terminal, and a line every few seconds in a log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar = tqdm(desc=name, unit="cell", leave=False, disable=not sys.stderr.isatty())
        self.last_line = time.monotonic()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, done: int, cells: int) -> None:
        self.bar.n, self.bar.total = done, cells
        self.bar.refresh()
        if self.bar.disable and time.monotonic() - self.last_line > LOG_EVERY_SECONDS:
            self.last_line = time.monotonic()
            print(f"{self.name}  cell {done + 1} of {cells}", file=sys.stderr, flush=True)


class _TogetherProgress:
    """Notebooks done, and the cell that each of the others is in; shown like cells of one."""

    def __init__(self, notebooks: int) -> None:
        self.bar = tqdm(
            total=notebooks, unit="notebook", leave=False, disable=not sys.stderr.isatty()
        )
        self.running: dict[Path, str] = {}
        self.ended = 0
        self.last_line = time.monotonic()
        self.one_at_a_time = threading.Lock()

    def __enter__(self) -> "_TogetherProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, notebook: Path, done: int, cells: int) -> None:
        """Called by the thread of each notebook."""
        with self.one_at_a_time:
            self.running[notebook] = f"{notebook.stem} {done + 1}/{cells}"
            now = ", ".join(self.running.values())
            self.bar.set_postfix_str(now)
            if self.bar.disable and time.monotonic() - self.last_line > LOG_EVERY_SECONDS:
                self.last_line = time.monotonic()
                print(f"{self.ended} of {self.bar.total}  {now}", file=sys.stderr, flush=True)

    def end(self, run: runs.Run) -> None:
        with self.one_at_a_time:
            self.running.pop(run.notebook, None)
            self.ended += 1
            self.bar.update()
            _report(run, str(gallery.page_of(run.output)))


if __name__ == "__main__":
    sys.exit(main())
