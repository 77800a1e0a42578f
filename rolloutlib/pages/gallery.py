"""The gallery: a page for each executed notebook and each sweep, and a card for every page.

The site opens from the disk and asks no network for anything. Readers' light or dark colours are
followed.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from PIL import Image

from rolloutlib.files.complete import complete_file
from rolloutlib.pages.page import (
    HEAD,
    NAVIGATION,
    STYLE,
    Contents,
    figure_of,
    links_from,
    page_of,
    relative,
    title_of,
    write_page,
    write_text,
)
from rolloutlib.runs.notebook import Refused, read_notebook
from rolloutlib.runs.results import varied_parameters
from rolloutlib.runs.run import Run, failed_output

THUMBNAIL_SIZE = (640, 400)
README_WIDTH, README_BYTES = 480, 150_000
SWEEP_METRICS = 4  # in the figure of a sweep
RUN_PAGES = 50  # of a sweep, for each takes a second and some megabytes

INDEX = (
    HEAD
    + """<body class="gallery">
<h1>{{ title | e }}</h1>
<p>{{ cards | selectattr("ok") | list | length }} of {{ cards | length }} finished.</p>
<div class="cards">
{%- for card in cards %}
<article class="card">
<a{% if card.page %} href="{{ card.page | e }}"{% endif %}>
{%- if card.picture %}<img src="{{ card.picture | e }}" alt="">{% endif %}
<h2>{{ card.title | e }}</h2></a>
<p>{{ card.name | e }} · {{ "%.1f" % card.seconds }} s ·
{% if card.ok %}<span class="ok">ok</span>
{%- else %}<span class="failed">failed: {{ card.error | e }}</span>{% endif %}</p>
</article>
{%- endfor %}
</div>
</body>
</html>
"""
)

SWEEP = (
    HEAD
    + "<body>\n"
    + NAVIGATION
    + """<h1>{{ title | e }}</h1>
<p>{{ words }}</p>
{% if picture %}<p><img src="{{ picture | e }}" alt="Over {{ parameter | e }}"></p>{% endif %}
{{ table }}
</body>
</html>
"""
)


@dataclass(frozen=True)
class Card:
    """What the index shows of one page; links are relative to the index."""

    name: str
    title: str
    page: str
    picture: str
    seconds: float
    error: str

    @property
    def ok(self) -> bool:
        return not self.error


def write_site(
    runs: Sequence[Run],
    site: Path,
    *,
    place: Callable[[Path], Path] = page_of,
    sweeps: Sequence[Path] = (),
) -> Path:
    """Write the pages of runs and of sweeps' folders, and the index with a card for each.

    place: where the page of an executed notebook goes; beside it by default.
    """
    # Others were refused, or could not be written.
    executed = [run for run in runs if run.output != run.notebook and run.output.exists()]
    contents = [("All notebooks", site / "index.html")]
    contents += [(_title(run), place(run.output)) for run in executed]
    contents += [(_sweep_title(folder), _sweep_page(folder, site)) for folder in sweeps]
    cards = []
    for run in runs:
        page = write_page(run.output, place(run.output), contents) if run in executed else None
        cards.append(_card(run, page, site))
    cards += [_write_sweep(folder, site, contents) for folder in sweeps]
    index = site / "index.html"
    write_text(index, jinja2.Template(INDEX).render(title="Notebooks", style=STYLE, cards=cards))
    return index


def build_site(outputs: Path, site: Path) -> Path:
    """The gallery of everything that lies executed in a folder, its sweeps included.

    What cannot be read has a card that says so. Raises `Refused` where there is no such folder.
    """
    if not outputs.is_dir():
        raise Refused(f"{outputs}: there is no such folder")
    sweeps = sorted(path.parent for path in outputs.glob("sweeps/*/results.parquet"))
    passed = {site, outputs / "sweeps"}
    found = [
        path
        for path in sorted(outputs.rglob("*.ipynb"))
        if not passed.intersection(path.parents)
        and ".part." not in path.name
        and ".ipynb_checkpoints" not in path.parts
    ]
    return write_site(
        [run_of(path) for path in found],
        site,
        place=lambda executed: page_of(site / executed.relative_to(outputs)),
        sweeps=sweeps,
    )


def run_of(executed: Path) -> Run:
    """What an executed notebook itself says about its run."""
    try:
        said = read_notebook(executed).metadata.get("papermill", {})
    except Refused as problem:
        return Run(executed, executed, 0.0, str(problem))
    failed = executed.name.endswith(".failed.ipynb") or said.get("exception")
    error = "it did not reach its end" if failed else ""
    notebook = Path(said.get("input_path") or executed.name)
    return Run(notebook, executed, said.get("duration") or 0.0, error)


def write_readme_figures(outputs: Path, notebooks: Path, figures: Path) -> list[Path]:
    """A small figure of each notebook that was executed with its defaults."""
    written = []
    for notebook in sorted(notebooks.rglob("*.ipynb")):
        executed = outputs / notebook.relative_to(notebooks)
        figure = figure_of(nbformat.read(executed, as_version=4)) if executed.exists() else None
        if figure is not None:
            written.append(figures / f"{notebook.stem}.png")
            _write_small(figure, written[-1])
    return written


def _write_small(figure: bytes, path: Path) -> None:
    """As wide as README_WIDTH, in as many colours as README_BYTES allow."""
    picture = Image.open(io.BytesIO(figure)).convert("RGB")
    picture.thumbnail((README_WIDTH, README_WIDTH), Image.Resampling.LANCZOS)
    for colours in (256, 64, 16):
        file = io.BytesIO()
        picture.quantize(colours).save(file, "png", optimize=True)
        if file.tell() <= README_BYTES:
            break
    with complete_file(path) as part:
        part.write_bytes(file.getvalue())


def _card(run: Run, page: Path | None, site: Path) -> Card:
    name, title, link, picture = run.notebook.stem, run.notebook.stem, "", ""
    if page:
        title, link = _title(run), relative(page, site)
        picture = _thumbnail(figure_of(nbformat.read(run.output, as_version=4)), page, site)
    return Card(name, title, link, picture, run.seconds, run.error)


def _title(run: Run) -> str:
    return title_of(nbformat.read(run.output, as_version=4)) or run.notebook.stem


def _thumbnail(figure: bytes | None, page: Path, site: Path) -> str:
    if figure is None:
        return ""
    picture = Image.open(io.BytesIO(figure)).convert("RGBA")
    picture.thumbnail(THUMBNAIL_SIZE)
    with complete_file(page.with_suffix(".png")) as part:
        picture.save(part)
    return relative(page.with_suffix(".png"), site)


def _sweep_title(folder: Path) -> str:
    return f"Sweep: {folder.name}"


def _sweep_page(folder: Path, site: Path) -> Path:
    return site / "sweeps" / f"{folder.name}.html"


def _write_sweep(folder: Path, site: Path, contents: Contents) -> Card:
    page = _sweep_page(folder, site)
    table = pd.read_parquet(folder / "results.parquet")
    done = table["error"] == ""
    varied = varied_parameters(table)
    figure = _sweep_figure(table[done], varied)
    picture = _thumbnail(figure, page, page.parent)
    shown = ["run", *varied, *table.attrs["metrics"], "seconds", "peak_memory_mb", "error"]
    words = f"{done.sum()} of {len(table)} runs finished, in {table['seconds'].sum():.0f} seconds "
    words += "of work. The whole table is in results.csv and results.parquet."
    pages = _write_runs(folder, table, page, contents)
    if len(pages) == RUN_PAGES:
        words += f" {RUN_PAGES} runs have a page here, those that failed first."
    text = jinja2.Template(SWEEP).render(
        title=_sweep_title(folder),
        style=STYLE,
        contents=links_from(page, contents),
        words=words,
        picture=picture,
        parameter=", ".join(varied),
        table=_linked(
            table[shown].to_html(index=False, na_rep="", float_format="{:.4g}".format, border=0),
            {run: relative(one, page.parent) for run, one in pages.items()},
        ),
    )
    write_text(page, text)
    failed = f"{(~done).sum()} of {len(table)} runs" if not done.all() else ""
    card_picture = picture and relative(page.parent / picture, site)
    name = f"{len(table)} runs"
    seconds = table["seconds"].sum()
    return Card(name, _sweep_title(folder), relative(page, site), card_picture, seconds, failed)


def _write_runs(
    folder: Path, table: pd.DataFrame, sweep: Path, contents: Contents
) -> dict[str, Path]:
    """Write pages of a sweep's executed notebooks; a run that was called directly has none."""
    failed_first = table.sort_values("error", ascending=False, kind="stable")
    outputs = {
        one.run: folder / one.run / f"{one.notebook}.ipynb" for one in failed_first.itertuples()
    }
    executed = {
        run: path
        for run, output in outputs.items()
        for path in (output, failed_output(output))
        if path.exists()
    }
    back = [contents[0], next(link for link in contents if link[1] == sweep)]
    return {
        run: write_page(path, sweep.with_suffix("") / f"{run}.html", back)
        for run, path in list(executed.items())[:RUN_PAGES]
    }


def _linked(table: str, pages: dict[str, str]) -> str:
    """A table in which the names of runs are links to their pages."""
    for run, page in pages.items():
        table = table.replace(f"<td>{run}</td>", f'<td><a href="{page}">{run}</a></td>')
    return table


def _sweep_figure(table: pd.DataFrame, varied: Sequence[str]) -> bytes | None:
    """The first metrics that are numbers, over the first parameter that was varied."""
    numbers = table[table.attrs["metrics"]].select_dtypes("number").dropna(axis=1, how="all")
    if not varied or numbers.empty:
        return None
    # Draws with seaborn and torch, whose import the pages of notebooks need not wait for.
    from rolloutlib.plots import plot_metrics

    figure = plot_metrics(table, list(numbers)[:SWEEP_METRICS], varied[0])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
