"""The `rollout` command.

Exit codes: 0 all runs finished, 1 a run failed, 2 refused before a kernel started, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from rolloutlib import pages, runs  # their parts are imported when they are first used
from rolloutlib.extras import needs

with needs("notebooks"):
    import click

OUTPUTS = Path("outputs")
# What a notebook with its small checkpoint needs at most: kernel, model and data.
NOTEBOOK_BYTES = 3 * 2**30

Result = TypeVar("Result")
PATH = click.Path(path_type=Path)
AT_LEAST_ONE = click.IntRange(min=1)
SCHEDULER = click.option(
    "--scheduler", default="", metavar="ADDRESS", help="a running Dask cluster: tcp://…"
)
TIMEOUT = click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="for one run: all cells of a notebook, or one region",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        return rollout.main(arguments, prog_name="rollout", standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except click.Abort:
        return _complain("interrupted", 130)
    except runs.Refused as problem:
        return _complain(problem, 2)
    except OSError as problem:  # such as a folder that must not be written to
        return _complain(problem, 1)


@click.group(help=__doc__)
def rollout() -> None:
    # A thread that waits in a loop keeps a core from other runs: two at once would hardly go on.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@rollout.command("run")
@click.argument("notebook", type=PATH)
@click.option("-p", "--parameter", "assignments", nargs=2, multiple=True, metavar="NAME VALUE")
@click.option("-y", "--yaml", type=PATH, metavar="FILE", help="parameters as YAML or JSON")
@click.option("--out", type=PATH, metavar="FILE", help="default: outputs/NAME[-HASH].ipynb")
@click.option("--echo", is_flag=True, help="print what the notebook prints")
@TIMEOUT
def run_one(
    notebook: Path,
    assignments: Sequence[tuple[str, str]],
    yaml: Path | None,
    out: Path | None,
    echo: bool,
    timeout: float | None,
) -> int:
    """Run one notebook with parameters."""
    given = {} if yaml is None else runs.read_parameter_file(yaml)
    read = runs.Notebook.read(notebook)
    given |= runs.read_assignments(read.parameters, assignments)
    parameters = runs.check_parameters(read, given, Path.cwd())
    output = out or OUTPUTS / runs.output_name(notebook, parameters)
    if output.suffix != ".ipynb":
        raise runs.Refused(f"--out must name an .ipynb file, got {output}")
    _check_outputs([output], [notebook])
    with runs.ProgressBar(notebook.stem, "cell") as progress:
        run = runs.run_notebook(
            notebook,
            output,
            parameters,
            timeout=timeout,
            on_progress=progress.show,
            prints=sys.stdout if echo else None,
        )
    return 0 if _finish(run) else 1


@rollout.command()
@click.argument("notebook", type=PATH)
@click.argument("sets", type=PATH, required=False)
@click.option(
    "--set",
    "choices",
    multiple=True,
    metavar="NAME=A,B,C",
    help="every value of this parameter with every other set",
)
@click.option("--out", type=PATH, metavar="FOLDER", help="default: outputs/sweeps/NAME")
@SCHEDULER
@click.option("--workers", type=AT_LEAST_ONE, help="processes here; default: one for each core")
@click.option(
    "--direct",
    is_flag=True,
    help="call the function that the notebook names, in processes that keep the model",
)
@TIMEOUT
def sweep(
    notebook: Path, sets: Path | None, choices: Sequence[str], out: Path | None, **settings: object
) -> int:
    """Run one notebook with many sets of parameters.

    SETS is a grid as YAML, or sets as CSV or JSON lines. Runs are computed here or on a cluster.
    """
    read = runs.Notebook.read(notebook)
    if sets is None and not choices:
        raise runs.Refused("expected a file with parameter sets, or --set NAME=A,B,C; got neither")
    chosen = [{}] if sets is None else runs.read_sets(sets, read.parameters)
    chosen = runs.crossed(chosen, runs.read_choices(read.parameters, choices))
    out = out or OUTPUTS / "sweeps" / notebook.stem
    done, said = _followed(
        notebook.stem, lambda show: runs.sweep(read, chosen, out, on_progress=show, **settings)
    )
    click.echo(f"{said}; see {out / 'results.csv'}")
    if done.failures:
        click.echo(runs.failure_table(done))
    return 1 if done.failures else 0


@rollout.command()
@click.argument("model_id", metavar="MODEL")
@click.argument("file", type=PATH)
@click.option("--out", type=PATH, metavar="FOLDER", help="default: outputs/scores/NAME")
@click.option("--pictures", type=PATH, metavar="FOLDER", help="default: where FILE is")
@click.option(
    "--prompt",
    default="",
    metavar="TEXT",
    help="what to ask where FILE does not say, with {category}, or for clicks with {instruction}",
)
@click.option("--limit", type=AT_LEAST_ONE, help="ask only about the first regions")
@click.option("--adapter", "adapter_id", default="", metavar="NAME", help="a LoRA adapter")
@click.option("--revision", default="main", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="as in transformers")
@click.option("--device-map", default="cpu", show_default=True, help="as in transformers")
@click.option("--max-new-tokens", type=AT_LEAST_ONE, default=32, show_default=True)
@click.option("--residual", type=click.FloatRange(0, 1), default=0.9, show_default=True)
@click.option(
    "--head-fusion", type=click.Choice(["mean", "max", "min"]), default="mean", show_default=True
)
@click.option(
    "--trust/--no-trust",
    "check_peaks",
    default=True,
    help="whether to ask again without the peak of each map",
)
@SCHEDULER
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="processes here, each with a model of its own; default: one that uses all cores",
)
@TIMEOUT
def score(
    model_id: str,
    file: Path,
    out: Path | None,
    pictures: Path | None,
    prompt: str,
    limit: int | None,
    scheduler: str,
    workers: int,
    timeout: float | None,
    **settings: object,
) -> int:
    """Score a model's maps against your own boxes or masks.

    FILE is COCO's JSON, whose annotations may have a prompt and an answer, or for clicks a list as
    of ScreenSpot. All of it is checked before the model is asked. The table, its intervals by
    category, and a page with the worst and the best go to the folder; the same command goes on.
    """
    pictures = pictures or file.parent
    with runs.ProgressBar(file.name, "picture") as bar:
        items = runs.read_truth(file, pictures, prompt, bar.show)[:limit]
    out = out or OUTPUTS / "scores" / file.stem
    settings |= {"model_id": model_id}
    where = {"scheduler": scheduler, "workers": workers, "timeout": timeout}
    click.echo(f"{file.name}: {len(items)} regions; loading {model_id}", err=True)
    (done, table), said = _followed(
        file.stem,
        lambda show: runs.score(items, pictures, out, settings, on_progress=show, **where),
    )
    page = pages.write_scores(table, out, f"{Path(model_id).name} on {file.name}")
    click.echo(f"{said}; see {page}")
    return 1 if done.failures else 0


@rollout.command()
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, default=OUTPUTS, metavar="FOLDER", help="default: outputs")
@click.option(
    "--jobs",
    type=AT_LEAST_ONE,
    help="notebooks at a time; default: one for each core, fewer where memory is short",
)
@TIMEOUT
def run_all(folder: Path, out: Path, jobs: int | None, timeout: float | None) -> int:
    """Run every notebook in a folder, with its defaults."""
    notebooks = _notebooks(folder, out)
    refused = []
    for notebook in notebooks:
        try:
            runs.check_parameters(runs.Notebook.read(notebook), {}, Path.cwd())
        except runs.Refused as problem:
            refused.append(runs.Run(notebook, notebook, 0.0, f"refused: {problem}"))
            _report(refused[-1])
    left = {*notebooks} - {run.notebook for run in refused}
    # Long ones first, or a core may wait for the last one at the end.
    left = sorted(left, key=lambda notebook: (-notebook.stat().st_size, notebook))
    tasks = [(notebook, out / notebook.relative_to(folder)) for notebook in left]
    _check_outputs([output for _, output in tasks], notebooks)
    finished = [*refused, *_run_together(tasks, jobs, timeout)]
    lost: list[str] = []
    finished.sort(key=lambda run: run.notebook)
    index = pages.write_site(finished, out, complain=lost.append)
    failures = sum(not run.ok for run in finished)
    click.echo(f"{len(finished) - failures} of {len(finished)} notebooks finished; see {index}")
    if failures > len(refused) or lost:
        return 1
    return 2 if refused else 0


@rollout.command()
@click.option("--outputs", type=PATH, default=OUTPUTS, metavar="FOLDER", help="default: outputs")
@click.option("--out", type=PATH, metavar="FOLDER", help="default: outputs/site")
@click.option(
    "--figures",
    type=(PATH, PATH),
    metavar="NOTEBOOKS FOLDER",
    help="also a small figure of each of these notebooks",
)
def gallery(outputs: Path, out: Path | None, figures: tuple[Path, Path] | None) -> int:
    """Make a site of all that was executed, sweeps too."""
    site = out or OUTPUTS / "site"
    found = pages.executed_in(outputs, site)
    lost: list[str] = []
    click.echo(pages.build_site(found, outputs, site, lost.append))
    for figure in pages.write_readme_figures(found, outputs, *figures) if figures else ():
        click.echo(figure)
    for sentence in lost:
        _complain(sentence, 1)
    return 1 if lost else 0


@rollout.command()
@click.argument("saved", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, metavar="FOLDER", help="default: beside each file")
@click.option("--refiner-id", type=int, metavar="N", help="which instance of a layer's dump")
@click.option(
    "--axes", default="", help='of a dump, where its shape is unclear: "instance time time"'
)
def plot(saved: Sequence[Path], out: Path | None, refiner_id: int | None, axes: str) -> int:
    """Draw saved results (.npz) as PNG files; nothing is computed again.

    SAVED are files of matrices over frames or of maps, such as notebooks 05 and 06 write, or the
    dumps of a refiner's attention: then the matrix of one instance is drawn for each layer.
    """
    from rolloutlib.files.complete import complete_file
    from rolloutlib.files.dumps import read_arrays
    from rolloutlib.plots import plot_saved, png_of

    for path in saved:
        try:
            figures = plot_saved(read_arrays(path), refiner_id, axes)
        except (ValueError, FileNotFoundError) as problem:
            return _complain(problem, 2)
        for name, figure in figures.items():
            picture = (out or path.parent) / f"{path.stem}_{name}.png"
            with complete_file(picture) as part:
                part.write_bytes(png_of(figure))
            click.echo(picture)
    return 0


def _followed(name: str, compute: Callable[[Callable], Result]) -> tuple[Result, str]:
    """What many runs gave, shown while they are computed; and their last progress."""
    last: object = ""
    with runs.ProgressBar(name, "run") as bar:

        def show(progress: "runs.schedule.Progress") -> None:
            nonlocal last
            last = progress
            ended = progress.done + progress.failed + progress.skipped
            bar.show(ended, ended + progress.remaining, str(progress))

        try:
            return compute(show), str(last)
        except (runs.SchedulerLost, OSError) as problem:  # such as a full disk
            raise OSError(f"{problem}; {last}") from problem


def _run_together(
    tasks: Sequence[tuple[Path, Path]], asked: int | None, timeout: float | None
) -> "list[runs.Run]":
    jobs, cores = _jobs(asked)
    if jobs > 1:  # kernels share the cores instead of each asking for all
        os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // jobs, 1)))
    finished = []
    running: dict[Path, str] = {}
    with runs.ProgressBar("notebooks", "notebook") as progress:

        def show() -> None:
            now = ", ".join([*running.values()])
            progress.show(len(finished), len(tasks), f"{len(finished)} of {len(tasks)}  {now}")

        def enter(notebook: Path, done: int, cells: int) -> None:
            running[notebook] = f"{notebook.stem} {done + 1}/{cells}"
            show()

        together = runs.run_together(tasks, jobs, timeout=timeout, on_progress=enter)
        with closing(together) as ending:
            for run in ending:
                running.pop(run.notebook, None)
                finished.append(run)
                show()
                _finish(run)
    return finished


def _jobs(asked: int | None) -> tuple[int, int]:
    """How many notebooks at a time, and how many cores there are."""
    with needs("sweeps"):  # both as the container allows, if this is one
        from dask.system import CPU_COUNT
        from distributed.system import MEMORY_LIMIT

    return asked or max(1, min(CPU_COUNT, MEMORY_LIMIT // NOTEBOOK_BYTES)), CPU_COUNT


def _notebooks(folder: Path, out: Path) -> list[Path]:
    """All notebooks in a folder, except what an earlier run left in `out` inside it."""
    found = [path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    if folder.resolve() in out.resolve().parents:
        found = [path for path in found if out.resolve() not in path.resolve().parents]
    if not found:
        raise runs.Refused(f"{folder}: there is no notebook in this folder")
    return sorted(found)


def _finish(run: "runs.Run") -> bool:
    """Report a run and write its page; whether both are as they should be."""
    page = pages.page_of(run.output)
    _report(run, str(page))
    lost: list[str] = []
    if run.executed:
        pages.page_or_reason(run, page, complain=lost.append)
    if run.ok:
        pages.page_of(runs.failed_output(run.output)).unlink(missing_ok=True)
    for sentence in lost:
        _complain(sentence, 1)
    return run.ok and not lost


def _report(run: "runs.Run", page: str = "") -> None:
    state = "ok" if run.ok else f"FAILED {run.error}"
    line = f"{run.notebook.stem}  {run.seconds:.1f} s  {state}  {page}"
    runs.ProgressBar.write(line.rstrip())


def _check_outputs(outputs: Sequence[Path], notebooks: Sequence[Path]) -> None:
    sources = {notebook.resolve() for notebook in notebooks}
    for output in outputs:
        if output.resolve() in sources:
            raise runs.Refused(f"--out must not be the notebook itself, got {output}")


def _complain(problem: object, code: int) -> int:
    click.echo(f"rollout: {problem}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
