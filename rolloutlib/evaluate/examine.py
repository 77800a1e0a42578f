"""Score the maps of many cases, and put what was found into one table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import spearmanr

from rolloutlib.evaluate.cases import REGION, Case, Shown, shown_maps
from rolloutlib.evaluate.methods import Method, head
from rolloutlib.evaluate.perturbation import Curves, curve_area, perturbation_curves
from rolloutlib.evaluate.scores import (
    average_precision,
    compare_scores,
    mass_over_area,
    mean_interval,
    pointing_game,
    region_auc,
)
from rolloutlib.files.complete import complete_file
from rolloutlib.overlay import to_picture

SCORES: dict[str, Callable] = {
    "pointing game": pointing_game,
    "mass over area": mass_over_area,
    "AUC": region_auc,
    "average precision": average_precision,
}
DELETED = ["rollout", "last layer", "random", "centre", REGION]  # beside the shown map
CURVES = ("deletion", "insertion")
OTHERS = "other questions"  # the mean of a map over all other cases


@dataclass
class Examination:
    """What was found about one model.

    lines: case, kind, method, score, value, as `scores` has them.
    curves: of each case and deleted map.  cases, maps: every case without its evidence, and its map
    `shown`.
    """

    shown: str
    lines: list[tuple] = field(default_factory=list)
    curves: list[tuple[str, Curves]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    maps: list[Shown] = field(default_factory=list)

    @property
    def scores(self) -> pd.DataFrame:
        """One line for each case, map and score."""
        return pd.DataFrame(self.lines, columns=["case", "kind", "method", "score", "value"])

    def add(self, case: int, kind: str, method: str, scores: Mapping[str, float]) -> None:
        """Note the scores of one map."""
        self.lines += [(case, kind, method, name, value) for name, value in scores.items()]


def score_map(shown: Shown, case: Case) -> dict[str, float]:
    """The scores of one map, against the region of its case.

    The pointing game looks at the highest pixel, or the highest frame, the others at cells. The
    frame that was asked about takes no part. "order" is the rank correlation with the order of
    cells in a picture, row by row: 0 if a map favours neither early nor late ones.
    """
    cells, region = _compared(shown.cells, case), _compared(case.region, case)
    scores = {name: score(cells, region) for name, score in SCORES.items()}
    if shown.pixels is None:
        return scores
    flat = cells.ravel()
    order = spearmanr(flat, np.arange(flat.size)).statistic if np.ptp(flat) else 0.0
    return scores | {"pointing game": pointing_game(shown.pixels, case.pixels), "order": order}


def _compared(cells: np.ndarray, case: Case) -> np.ndarray:
    return cells if case.asked is None else np.delete(cells, case.asked)


def examine(
    cases: Iterable[Case],
    methods: Mapping[str, Method],
    *,
    shown: str,
    deleted: Sequence[str] = (),
    curve_cases: int = 0,
    steps: Sequence[float] = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08),
    blur_tokens: float = 0.5,
    seed: int = 0,
) -> Examination:
    """Score every map of every case.

    shown: the map that is kept, and that "other questions" is made of.  deleted: maps whose highest
    cells are removed and restored in the first `curve_cases` cases, in these `steps`.
    blur_tokens: of all maps of pictures.  seed: of random maps, and of the order of cells that tie.
    """
    found, rng = Examination(shown), np.random.default_rng(seed)
    for number, case in enumerate(cases):
        maps = shown_maps(case, methods, rng, blur_tokens)
        for name, one in maps.items():
            found.add(number, case.kind, name, score_map(one, case))
        for name in deleted if number < curve_cases else ():
            curves = perturbation_curves(_ranked(maps[name], case), case.log_probability, steps)
            found.curves.append((name, curves))
            areas = {k: curve_area(curves.fractions, getattr(curves, k)) for k in CURVES}
            found.add(number, case.kind, name, areas)
        found.cases.append(replace(case, evidence=None))  # attention takes much memory
        found.maps.append(maps[shown])
    _add_other_questions(found)
    return found


def _ranked(shown: Shown, case: Case) -> np.ndarray:
    """The cells in the order in which they go: the asked frame is the last."""
    cells = shown.cells.astype(float)
    if case.asked is not None:
        cells[case.asked] = -1
    return cells


def _add_other_questions(found: Examination) -> None:
    """Score what a map shows whatever is asked: its mean over the other cases with its grid."""
    order = sorted(enumerate(found.maps), key=lambda item: item[1].cells.shape)
    for _, group in groupby(order, key=lambda item: item[1].cells.shape):
        group = list(group)
        total = sum(one.cells for _, one in group)
        for number, one in group if len(group) > 1 else ():
            case, cells = found.cases[number], (total - one.cells) / (len(group) - 1)
            pixels = to_picture(cells, case.view) if case.view else None
            found.add(number, case.kind, OTHERS, score_map(Shown(cells, pixels), case))


def pointing_of(
    method: Method, cases: Sequence[Case], *, to_patches: bool = True, blur_tokens: float = 0.5
) -> float:
    """How often a method points into the region of a case, after these steps."""
    hits = []
    for case in cases:
        view = case.view if to_patches else case.evidence.image.view
        heatmap = method.heatmap(case.evidence, to_patches=to_patches)
        hits.append(pointing_game(to_picture(heatmap, view, blur_tokens=blur_tokens), case.pixels))
    return float(np.mean(hits))


def pointing_by_head(
    cases: Sequence[Case], *, blur_tokens: float = 0.5
) -> Float[np.ndarray, "layer head"]:
    """How often each single head of the layers that answer points into the region of a case."""
    layers = cases[0].evidence.attention
    methods = [[Method(head(n, number)) for number in range(len(a))] for n, a in enumerate(layers)]
    return np.array(
        [[pointing_of(m, cases, blur_tokens=blur_tokens) for m in row] for row in methods]
    )


def better_and_worse(
    table: pd.DataFrame, base: str, methods: Iterable[str], score: str = "pointing game"
) -> pd.DataFrame:
    """Which methods score higher or lower than the base, case by case.

    table: lines of `summarise`, with a column `model`.  base: one of its names of bases. The result
    has a line for each model; a method is called better or worse only if 0 lies outside the
    interval of its mean difference.
    """
    lines = table[table["score"].eq(score) & table["method"].isin(methods)].dropna(subset=[base])
    verdicts = [lines[f"{base}_low"] > 0, lines[f"{base}_high"] < 0]
    words = np.select(verdicts, ["better", "worse"], "no clear difference")
    lists = lines.groupby(["model", words], sort=False)["method"].agg("; ".join)
    return lists.unstack(fill_value="").reindex(
        columns=["better", "no clear difference", "worse"], fill_value=""
    )


def intervals(
    table: pd.DataFrame, score: str = "pointing game"
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Mean, low and high of a score: model → method → interval, as `plots.plot_scores` takes it."""
    panels: dict[str, dict] = {}
    for line in table[table["score"] == score].itertuples():
        panels.setdefault(line.model, {})[line.method] = (line.value, line.low, line.high)
    return panels


def summarise(
    scores: pd.DataFrame, bases: Mapping[str, str], by_kind: Sequence[str] = ()
) -> pd.DataFrame:
    """The mean of each score and map, its interval, and its paired difference from other maps.

    scores: as `Examination.scores`.  bases: name of three columns → the map to compare with, case
    by case (`compare_scores`).  by_kind: maps whose pointing game is also given for each kind.
    The result: method, score, value, low, high, n, and for each base its name and `…_low`,
    `…_high`, NaN for the base itself.
    """
    kinds = scores[scores["method"].isin(by_kind) & (scores["score"] == "pointing game")]
    kinds = kinds.assign(score="pointing game, " + kinds["kind"])
    tables = []
    for score, part in pd.concat([scores, kinds]).groupby("score", sort=False):
        wide = part.pivot(index="case", columns="method", values="value")
        wide = wide[part["method"].unique()].dropna(axis=1, thresh=2)
        if wide.columns.empty:  # a kind of question with a single case has no interval
            continue
        means = {name: (*mean_interval(v := wide[name].dropna()), len(v)) for name in wide}
        table = pd.DataFrame.from_dict(means, "index", columns=["value", "low", "high", "n"])
        table.insert(0, "score", score)
        for name, base in bases.items():
            ends = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
            if base in wide:
                table = table.join(compare_scores(wide, base)[list(ends)].rename(columns=ends))
        tables.append(table.infer_objects().rename_axis("method").reset_index())
    return pd.concat(tables, ignore_index=True)


def write_lines(path: str | Path, lines: pd.DataFrame) -> None:
    """Put the lines of some models into a table on the disk, in place of their earlier ones."""
    tables = [pd.read_csv(path)] if Path(path).exists() else []
    others = [table[~table["model"].isin(lines["model"])] for table in tables]
    with complete_file(path) as part:
        pd.concat([*others, lines]).round(4).to_csv(part, index=False)
