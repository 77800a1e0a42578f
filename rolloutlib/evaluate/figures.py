"""Figures of what was found about maps."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rolloutlib.algorithm.arrays import Array
from rolloutlib.evaluate.cases import REGION
from rolloutlib.evaluate.examine import Examination
from rolloutlib.evaluate.trust import PeakCheck
from rolloutlib.models import Answer
from rolloutlib.overlay import blend, colour, emphasize, overlay
from rolloutlib.plots import plot_pictures

WIDTH = 9  # inches: text keeps its size on a page
FRAMES = {  # colour and line, as in the explorer
    "depends": ("#1d4ed8", "-"),
    "does not depend": ("#9a3412", "--"),
    "can't tell": ("#4b5563", ":"),
}
STYLES = {"random": ":", "centre": "--", REGION: "-."}  # lines that may hide each other


def plot_deletion(found: Mapping[str, Examination]) -> Figure:
    """Draw how the answer's log-probability falls as a map's highest cells are removed.

    found: model → what was found; one panel for each. Lines are means over the deleted cases.
    """
    figure, panels = plt.subplots(
        1, len(found), figsize=(WIDTH, 3.2), squeeze=False, layout="constrained"
    )
    for panel, (subject, one) in zip(panels[0], found.items(), strict=True):
        for name in dict.fromkeys(name for name, _ in one.curves):
            some = [curves for called, curves in one.curves if called == name]
            mean = np.mean([curves.deletion for curves in some], 0)
            label = "the shown map" if name == one.shown else name
            style = STYLES.get(name, "o-")
            panel.plot(some[0].fractions, mean, style, markersize=3, label=label)
        panel.set(title=subject, xlabel="share deleted")
    panels[0, 0].set_ylabel("log-probability")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def plot_checks(
    answers: Sequence[Answer],
    maps: Sequence[Float[Array, "rows columns"]],
    checks: Sequence[PeakCheck],
    **look,
) -> Figure:
    """Draw the map of each answer with a frame round the place that was checked.

    The title says what was found, and the frame's colour and line: blue and whole where the answer
    depends on the place, brown and dashed where it does not, grey and dotted where nobody can tell.

    maps: each on the finest grid of the answer's picture.  look: as in `overlay`.
    """
    every = list(zip(answers, maps, checks, strict=True))
    painted = [overlay(a.image.picture, m, a.image.patch_view, **look) for a, m, _ in every]
    titles = [f"{answer.prompt} {answer.text}\n{check.sentence}" for answer, _, check in every]
    figure = plot_pictures(painted, titles, columns=2)
    for axis, check in zip(figure.axes, checks, strict=False):
        axis.title.set_fontsize(10)
        left, top, right, bottom = check.box
        for width, (colour_, line) in ((5, ("white", "-")), (2.5, FRAMES[check.verdict])):
            frame = {"fill": False, "linewidth": width, "edgecolor": colour_, "linestyle": line}
            axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **frame))
    return figure


def plot_extremes(found: Examination, count: int = 3) -> Figure:
    """Draw the worst cases of the shown map above the best, by average precision.

    Titles name the kind of question. The outline is the region; colours go from 0 to each map's
    highest value. Cells must be those of pictures.
    """
    scores = found.scores
    own = scores[scores["method"].eq(found.shown) & scores["score"].eq("average precision")]
    ranked = own.sort_values("value")["case"].tolist()
    count = min(count, len(ranked) // 2)
    chosen = [*ranked[:count], *ranked[::-1][:count]]
    cases, maps = [found.cases[n] for n in chosen], [found.maps[n] for n in chosen]
    painted = [
        blend(case.picture, colour(emphasize(one.pixels)), opacity=0.4)
        for case, one in zip(cases, maps, strict=True)
    ]
    ranks = [f"{way} {n + 1}" for way in ("worst", "best") for n in range(count)]
    titles = [f"{rank}: {case.kind}" for rank, case in zip(ranks, cases, strict=True)]
    regions = [case.pixels for case in cases]
    scale = "Share of highest"
    return plot_pictures(painted, titles, columns=count, height=2.4, regions=regions, scale=scale)


def plot_randomised(
    bands: pd.DataFrame, blocks: Sequence[str], references: Mapping[str, tuple[str, float]]
) -> Figure:
    """Draw how scores change as blocks are shuffled, from the last block to the first.

    bands: from `randomise`.  blocks: their labels, first block first.  references: score → the
    name and height of a dashed line.
    """
    figure, panels = plt.subplots(1, len(references), figsize=(WIDTH, 3.4), layout="constrained")
    for panel, (score, (label, height)) in zip(panels, references.items(), strict=True):
        for way, band in bands.loc[score].groupby(level=0, sort=False):
            places = range(len(band))
            panel.fill_between(places, band["low"], band["high"], alpha=0.2)
            panel.plot(places, band["mean"], "o-", label=way)
        panel.axhline(height, color="grey", linestyle="--", label=label)
        panel.set_xticks(range(len(blocks)), blocks[::-1], rotation=45, ha="right")
        panel.set(title=score)
        panel.legend(fontsize=8)
    return figure
