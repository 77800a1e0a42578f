"""The page of `rollout score`: how often maps were right, and the worst and the best of them."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rolloutlib.files.complete import write_text
from rolloutlib.pages.page import PAGES
from rolloutlib.runs.results import write_both

SCORES = ["right", "pointing", "mass", "AUC", "trust"]
ALL, RIGHT = "all answers", "right answers"
EVERY = "every category"
SHOWN = 12  # of the worst, and of the best


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """The mean of each score with its 95 % interval: for every category, and for each.

    table: of `rolloutlib.runs.score`. The result has the columns answers ("all answers", and "right
    answers" where any is expected), category, score, value, low, high and n; a single answer has no
    interval.
    """
    from rolloutlib.evaluate.scores import mean_interval  # imports torch

    lines = []
    for answers, category, part in _parts(table):
        for name in SCORES:
            values = part[name].dropna().astype(float)
            if len(values) and (answers, name) != (RIGHT, "right"):
                one = float(values.mean())
                interval = mean_interval(values) if len(values) > 1 else (one, None, None)
                lines.append((answers, category, name, *interval, len(values)))
    columns = ["answers", "category", "score", "value", "low", "high", "n"]
    return pd.DataFrame(lines, columns=columns)


def _parts(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The lines of each category, of all answers and of the right ones."""
    done = table[table["error"] == ""]
    for answers, some in {ALL: done, RIGHT: done[done["right"].eq(True)]}.items():
        yield answers, EVERY, some
        for category, part in some.groupby("category") if some["category"].nunique() > 1 else ():
            yield answers, category, part


def write_scores(table: pd.DataFrame, out: Path, title: str) -> Path:
    """Write `index.html` of a folder with scores, and `summary.parquet` and `summary.csv`."""
    summary = write_both(summarise(table), out / "summary")
    done = table[table["error"] == ""]
    done = done.sort_values(["pointing", "AUC", "mass"], kind="stable", na_position="first")
    few = min(SHOWN, -(-len(done) // 2))
    page = PAGES.get_template("scores.html.j2").render(
        title=title,
        items=len(table),
        done=len(done),
        tables={answers: _wide(part) for answers, part in summary.groupby("answers")},
        groups={
            "The worst": done[:few].to_dict("records"),
            "The best": done[len(done) - min(few, len(done) - few) :][::-1].to_dict("records"),
        },
        failed=table[table["error"] != ""].to_dict("records"),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _wide(summary: pd.DataFrame) -> str:
    """A line for each category, and a column for each score with its interval."""
    words = [
        f"{one.value:.2f}" + (f" ({one.low:.2f} to {one.high:.2f})" if one.n > 1 else "")
        for one in summary.itertuples()
    ]
    wide = summary.assign(words=words).pivot(index="category", columns="score", values="words")
    wide.insert(0, "n", summary.groupby("category")["n"].max())
    order = summary["category"].unique()
    wide = wide.loc[order, ["n", *(name for name in SCORES if name in wide)]]
    return wide.rename_axis(columns=None, index=None).to_html(na_rep="", border=0, justify="left")
