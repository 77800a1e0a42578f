"""Score a model's maps against regions that a person knows: a sweep with a run for each region."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from rolloutlib.files.complete import complete_file
from rolloutlib.runs import results
from rolloutlib.runs.notebook import Notebook, Refused
from rolloutlib.runs.schedule import Progress, Sweep, sweep
from rolloutlib.runs.truth import Item

TEMPLATE = Path(__file__).with_name("score.ipynb")
SCORES = ["answer", "right", "pointing", "mass", "area", "AUC", "trust", "verdict"]


def score(
    items: Sequence[Item],
    pictures: Path,
    out: Path,
    settings: dict[str, object],
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **where: object,
) -> tuple[Sweep, pd.DataFrame]:
    """Ask a model about every item; what `out` holds already is kept.

    items: from `read_truth`, with names of files in the folder `pictures`.  settings: parameters of
    the notebook `score.ipynb`, `model_id` among them. A copy of it is put into `out`, where
    every worker sees it.  where: `scheduler`, `workers` and `timeout` of `sweep`.

    The table has a line for each item in their order, and is written as `scores.parquet` and
    `scores.csv`. Its columns: item, category, picture, question, expected, run (its folder in
    `items`), those of `rolloutlib.evaluate.known.score_of`, seconds, and error.

    Raises `Refused`, before an item is asked about, if the model cannot be loaded or its image
    tokens have no place on the picture.
    """
    with complete_file(out / TEMPLATE.name) as part:
        shutil.copyfile(TEMPLATE, part)
    notebook = Notebook.read(out / TEMPLATE.name)
    _require_place(notebook, settings, out / "items", where)
    sets = [settings | _parameters(one, pictures) for one in items]
    done = sweep(notebook, sets, out / "items", direct=True, on_progress=on_progress, **where)
    keys = [run.key for run in done.planned]
    asked = ["name", "category", "picture", "question", "expected"]
    table = pd.DataFrame([asdict(one) for one in items])[asked].rename(columns={"name": "item"})
    found = done.table.set_index("run").reindex(index=keys, columns=[*SCORES, "answer_seconds"])
    table = table.assign(run=keys).merge(found, left_on="run", right_index=True)
    table = table.rename(columns={"answer_seconds": "seconds"})
    table["error"] = [done.failures.get(key, "") for key in keys]
    return done, results.write_both(table, out / "scores")


def _require_place(
    notebook: Notebook, settings: dict[str, object], out: Path, where: dict[str, object]
) -> None:
    """Load the model once, in a run without a picture."""
    first = sweep(notebook, [settings], out, direct=True, **where)
    [run] = first.planned
    model = settings["model_id"]
    if first.failures:
        raise Refused(f"{model}: {first.failures[run.key]}")
    placed = first.table.set_index("run").loc[run.key, "placed"]
    if placed != "on pixels":
        raise Refused(f"{model}: its maps have no place on the picture: {placed}")


def _parameters(item: Item, pictures: Path) -> dict[str, object]:
    given = asdict(item)
    return {
        "item": given.pop("name"),
        "picture_path": str(pictures / given.pop("picture")),
        **given,
    }
