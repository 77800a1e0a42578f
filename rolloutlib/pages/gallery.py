"""The gallery: a page for each executed notebook and each sweep, and a card for every page.

The site opens from the disk and makes no request to a network.
"""

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from rolloutlib.files.complete import complete_file, write_text
from rolloutlib.files.pictures import read_picture
from rolloutlib.pages.page import (
    PAGES,
    Contents,
    links_from,
    page_of,
    relative,
    sha256_of,
    write_page,
)
from rolloutlib.runs.notebook import Notebook, Refused
from rolloutlib.runs.results import read_table, varied_parameters
from rolloutlib.runs.run import Run, failed_output

THUMBNAIL_SIZE = (640, 400)
INDEX_SCRIPT = Path(__file__).with_name("index.js")
# The parts of the index, in reading order, by the tag of a notebook's first cell that names one.
GROUPS = {
    "learn": "Learn how rollout works",
    "models": "See where models look",
    "video": "Follow a video",
    "measure": "Measure whether maps are right",
    "train": "Train the small models",
    "": "More",
    "sweeps": "Sweeps",
}
README_WIDTH, README_BYTES = 480, 150_000
SWEEP_METRICS = 4  # in the figure of a sweep
RUN_PAGES = 50  # of a sweep, as each takes a second and some megabytes

Complain = Callable[[str], object]  # is told, in one sentence, what has no page and why


class Card(NamedTuple):
    """What the index shows of one page; links are relative to the index.

    cell: the fragment of the page where the picture is.  group: a name out of GROUPS.
    """

    name: str
    title: str
    page: str
    picture: str
    seconds: float
    error: str
    cell: str = ""
    group: str = ""
    summary: str = ""
    first: bool = False  # where a newcomer begins


def write_site(
    runs: Sequence[Run],
    site: Path,
    *,
    place: Callable[[Path], Path] = page_of,
    sweeps: Sequence[Path] = (),
    complain: Complain = warnings.warn,
) -> Path:
    """Write the pages of runs and of sweeps' folders, and the index with a card for each.

    A page that cannot be written costs only itself: its card says why.

    place: where the page of an executed notebook goes; beside it by default.
    complain: is told the same, in one sentence for each such page.
    """
    index = site / "index.html"
    contents = [("All notebooks", index)]
    contents += [(_title(run), place(run.output)) for run in runs if run.executed]
    contents += [(_sweep_title(folder), _sweep_page(folder, site)) for folder in sweeps]
    cards = [_write_run(run, place(run.output), site, contents, complain) for run in runs]
    cards += [_try_sweep(folder, site, contents, complain) for folder in sweeps]
    reference = "reference/index.html"  # `make gallery` writes it first
    found = reference if (site / reference).exists() else ""
    script = INDEX_SCRIPT.read_text(encoding="utf-8")
    groups = [(GROUPS[name], [c for c in cards if c.group == name]) for name in GROUPS]
    page = PAGES.get_template("index.html.j2").render(
        title="rolloutlib",
        cards=cards,
        groups=[(name, some) for name, some in groups if some],
        reference=found,
        script=script,
        policy_script=f"'sha256-{sha256_of(script)}'",
    )
    write_text(index, page)
    return index


def executed_in(outputs: Path, site: Path) -> list[Run]:
    """The executed notebooks in a folder, except those of sweeps and of `site` in it.

    Raises `Refused` where there is no such folder.
    """
    if not outputs.is_dir():
        raise Refused(f"{outputs}: there is no such folder")
    passed = {site, outputs / "sweeps"}
    return [
        run_of(path)
        for path in sorted(outputs.rglob("*.ipynb"))
        if not passed.intersection(path.parents)
        and ".part." not in path.name
        and ".ipynb_checkpoints" not in path.parts
        and is_inside(path, outputs)
    ]


def build_site(
    found: Sequence[Run], outputs: Path, site: Path, complain: Complain = warnings.warn
) -> Path:
    """The gallery of what `executed_in` found in a folder, and of the sweeps there.

    What cannot be read has a card that says so, as in `write_site`. Raises `Refused` where nothing
    was executed.
    """
    tables = sorted(outputs.glob("sweeps/*/results.parquet"))
    sweeps = [table.parent for table in tables if is_inside(table, outputs)]
    if not found and not sweeps:
        raise Refused(f"{outputs}: no notebook was executed here yet")

    def place(executed: Path) -> Path:
        return page_of(site / executed.relative_to(outputs))

    return write_site(found, site, place=place, sweeps=sweeps, complain=complain)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, with all its links followed, stays in a folder."""
    return folder.resolve() in path.resolve().parents


def run_of(executed: Path) -> Run:
    """What an executed notebook itself says about its run."""
    try:
        notebook = Notebook.read(executed)
    except Refused as problem:
        return Run(executed, executed, 0.0, str(problem))
    said = notebook.content.metadata.get("papermill")
    said = said if isinstance(said, dict) else {}
    failed = executed.name.endswith(".failed.ipynb") or said.get("exception")
    error = "it did not reach its end" if failed else ""
    source, seconds = Path(str(said.get("input_path", executed))), said.get("duration")
    if not is_inside(source, Path.cwd()):  # whose pictures are not the notebook's to show
        source = executed
    seconds = seconds if isinstance(seconds, int | float) else 0.0
    return Run(source, executed, seconds, error, executed=notebook)


def write_readme_figures(
    found: Sequence[Run], outputs: Path, notebooks: Path, figures: Path
) -> list[Path]:
    """A small figure of each notebook that was executed with its defaults."""
    executed = {run.output: run.executed for run in found if run.executed}
    written = []
    for notebook in sorted(notebooks.rglob("*.ipynb")):
        one = executed.get(outputs / notebook.relative_to(notebooks))
        if one and one.figure is not None:
            written.append(figures / f"{notebook.stem}.png")
            _write_small(one.figure, written[-1])
    return written


def _write_small(figure: bytes, path: Path) -> None:
    """Write a picture README_WIDTH wide, in as many colours as README_BYTES allow."""
    picture = read_picture(figure, "its figure")
    picture.thumbnail((README_WIDTH, README_WIDTH), Image.Resampling.LANCZOS)
    for colours in (256, 64, 16):
        file = io.BytesIO()
        picture.quantize(colours).save(file, "png", optimize=True)
        if file.tell() <= README_BYTES:
            break
    with complete_file(path) as part:
        part.write_bytes(file.getvalue())


def _write_run(run: Run, page: Path, site: Path, contents: Contents, complain: Complain) -> Card:
    name = title = run.notebook.stem
    link, picture, error = "", "", run.error
    if run.executed:  # else it was refused, or could not be written
        title = _title(run)
        lost = page_or_reason(run, page, contents, complain)
        error = error or lost
        if not lost:
            picture, link = _thumbnail(run.executed, page, site), relative(page, site)
    card = Card(name, title, link, picture, run.seconds, error)
    return card._replace(**_told(run.executed)) if run.executed else card


def _told(notebook: Notebook) -> dict[str, object]:
    """What a notebook's tags and first words say for its card."""
    tags = notebook.content.cells[0].metadata.get("tags", []) if notebook.content.cells else []
    return {
        "cell": f"#cell-id={notebook.figure_cell}" if notebook.figure_cell else "",
        "group": next((name for name in GROUPS if name in tags), ""),
        "summary": textwrap.shorten(notebook.summary, 220, placeholder=" …"),
        "first": "start" in tags,
    }


def page_or_reason(
    run: Run, page: Path, contents: Contents = (), complain: Complain = warnings.warn
) -> str:
    """Write the page of a run; or say, and return, why it has none. An older page is removed."""
    try:
        write_page(run.executed, page, contents, run.notebook.parent)
        return ""
    except Exception as problem:  # whatever a notebook of any origin makes its libraries raise
        page.unlink(missing_ok=True)
        return _said(run.output, problem, complain)


def _said(source: Path, problem: Exception, complain: Complain) -> str:
    reason = textwrap.shorten(f"{type(problem).__name__}: {problem}", 200)
    reason = f"its page could not be written: {reason}"
    complain(f"{source}: {reason}")
    return reason


def _title(run: Run) -> str:
    return run.executed.title or run.notebook.stem


def _thumbnail(executed: Notebook | bytes | None, page: Path, site: Path) -> str:
    """A small picture beside the page; none where the notebook has none that can be read."""
    try:
        figure = executed.figure if isinstance(executed, Notebook) else executed
        picture = read_picture(figure, "its figure") if figure else None
    except ValueError:
        picture = None
    if picture is None:
        return ""
    picture.thumbnail(THUMBNAIL_SIZE)
    thumbnail = page.with_suffix(".webp")
    with complete_file(thumbnail) as part:
        picture.save(part, "webp", quality=90)
    page.with_suffix(".png").unlink(missing_ok=True)  # of an older version
    return relative(thumbnail, site)


def _sweep_title(folder: Path) -> str:
    return f"Sweep: {folder.name}"


def _sweep_page(folder: Path, site: Path) -> Path:
    return site / "sweeps" / f"{folder.name}.html"


def _try_sweep(folder: Path, site: Path, contents: Contents, complain: Complain) -> Card:
    try:
        return _write_sweep(folder, site, contents, complain)
    except Exception as problem:  # a table of any origin
        error = _said(folder / "results.parquet", problem, complain)
        return Card(folder.name, _sweep_title(folder), "", "", 0.0, error, group="sweeps")


def _write_sweep(folder: Path, site: Path, contents: Contents, complain: Complain) -> Card:
    page = _sweep_page(folder, site)
    table = read_table(folder)
    done = table["error"] == ""
    varied = varied_parameters(table)
    picture = _thumbnail(_sweep_figure(table[done], varied), page, page.parent)
    shown = ["run", *varied, *table.attrs["metrics"], "seconds", "peak_memory_mb", "error"]
    rows = table[shown].to_html(index=False, na_rep="", float_format="{:.4g}".format, border=0)
    pages = _write_runs(folder, table, page, contents, complain)
    for run, one in pages.items():
        link = f'<td><a href="{relative(one, page.parent)}">{run}</a></td>'
        rows = rows.replace(f"<td>{run}</td>", link)
    title, seconds = _sweep_title(folder), table["seconds"].sum()
    text = PAGES.get_template("sweep.html.j2").render(
        title=title,
        contents=links_from(page, contents),
        done=done.sum(),
        runs=len(table),
        seconds=seconds,
        pages=len(pages),
        most_pages=RUN_PAGES,
        picture=picture,
        parameter=", ".join(varied),
        table=rows,
    )
    write_text(page, text)
    failed = f"{(~done).sum()} of {len(table)} runs" if not done.all() else ""
    picture = picture and relative(page.parent / picture, site)
    return Card(
        f"{len(table)} runs", title, relative(page, site), picture, seconds, failed, group="sweeps"
    )


def _write_runs(
    folder: Path, table: pd.DataFrame, sweep: Path, contents: Contents, complain: Complain
) -> dict[str, Path]:
    """Write pages of a sweep's executed notebooks; a run that was called directly has none."""
    failed_first = table.sort_values("error", ascending=False, kind="stable")
    back = [contents[0], next(link for link in contents if link[1] == sweep)]
    pages: dict[str, Path] = {}
    for one in failed_first.itertuples():
        output = folder / one.run / f"{one.notebook}.ipynb"
        both = failed_output(output), output
        executed = [path for path in both if path.exists() and is_inside(path, folder)]
        if executed and len(pages) < RUN_PAGES:
            run = run_of(executed[0])
            page = sweep.with_suffix("") / f"{one.run}.html"
            if run.executed and not page_or_reason(run, page, back, complain):
                pages[one.run] = page
    return pages


def _sweep_figure(table: pd.DataFrame, varied: Sequence[str]) -> bytes | None:
    """The first metrics that are numbers, over the first parameter that was varied."""
    numbers = table[table.attrs["metrics"]].select_dtypes("number").dropna(axis=1, how="all")
    if not varied or numbers.empty:
        return None
    # Imports seaborn and torch, which the pages of notebooks need not wait for.
    from rolloutlib.plots import plot_metrics, png_of

    return png_of(plot_metrics(table, list(numbers)[:SWEEP_METRICS], varied[0]))
