"""Figures of what was found about maps."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from rolloutlib.algorithm.arrays import Array
from rolloutlib.evaluate.cases import REGION
from rolloutlib.evaluate.examine import Examination
from rolloutlib.evaluate.scores import mass_in_region
from rolloutlib.evaluate.trust import PeakCheck
from rolloutlib.models import Answer
from rolloutlib.overlay import blend, colour, emphasize, overlay, range_label
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


def plot_trust(
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
    scale = range_label(look.get("power", 1.0))
    figure = plot_pictures(painted, titles, columns=2, scale=scale)
    for axis, check in zip(figure.axes, checks, strict=False):
        axis.title.set_fontsize(10)
        draw_frame(axis, check.box, check.verdict)
    return figure


def draw_frame(axis: Axes, box: Sequence[float], verdict: str) -> None:
    """Draw a frame round a place of the picture on this axis; its colour and line say the verdict.

    box: left, top, right, bottom in pixels; the last two excluded.  verdict: as of `PeakCheck`.
    """
    left, top, right, bottom = box
    for width, (colour_, line) in ((5, ("white", "-")), (2.5, FRAMES[verdict])):
        frame = {"fill": False, "linewidth": width, "edgecolor": colour_, "linestyle": line}
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **frame))


def plot_extremes(found: Examination, count: int = 3) -> Figure:
    """Draw the worst cases of the shown map above the best, by average precision.

    Titles say what was asked and answered, whether the map's highest pixel lies in the region,
    and which share of the map does. The outline is the region; colours go from each map's lowest
    value to its highest. Cells must be those of pictures.
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
    points = scores[scores["method"].eq(found.shown) & scores["score"].eq("pointing game")]
    hits = points.set_index("case")["value"].loc[chosen]
    titles = []
    for rank, case, one, hit in zip(ranks, cases, maps, hits, strict=True):
        peak = "inside" if hit > 0.5 else "outside"
        did = f"peak {peak}, {mass_in_region(one.pixels, case.pixels):.0%} of the map"
        said = [fill(line, 36) for line in f"{rank}: {case.said}".splitlines()]
        titles.append("\n".join([*said, did]))
    regions = [case.pixels for case in cases]
    look = {"columns": count, "height": 2.6, "regions": regions, "scale": range_label()}
    figure = plot_pictures(painted, titles, **look)
    for axis in figure.axes[: len(cases)]:
        axis.title.set_fontsize(9)
    return figure


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


def plot_check(picture: Image.Image, check: PeakCheck) -> Figure:
    """Draw which squares of a picture were removed, and what that cost the answer.

    Solid squares are around the peak, dashed ones around control places. Bars are drops of the
    answer's log-probability, averaged over the two ways to replace a square.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.4), layout="constrained")
    left.imshow(picture)
    left.set_axis_off()
    squares = {"the peak": check.boxes, "control places": check.control_boxes}
    drops = {"the peak": check.drops, "control places": check.controls}
    for number, (name, boxes) in enumerate(squares.items()):
        look = {"edgecolor": f"C{1 - number}", "linestyle": ("-", "--")[number], "linewidth": 2}
        for box in boxes:
            size = box[2] - box[0], box[3] - box[1]
            left.add_patch(Rectangle(box[:2], *size, fill=False, **look))
        at = np.arange(len(check.boxes)) + 0.4 * number
        heights = drops[name].mean(1).round(2) + 0.0  # not -0.00
        bars = right.bar(at, heights, width=0.4, label=name, color=look["edgecolor"])
        right.bar_label(bars, fmt="%.2f", padding=2)  # small drops have no bar to see
    shares = [(b[2] - b[0]) * (b[3] - b[1]) / np.prod(picture.size) for b in check.boxes]
    right.set_xticks(np.arange(len(shares)) + 0.2, [f"{share:.0%}" for share in shares])
    right.set(xlabel="share of the picture removed", ylabel="drop of log-probability")
    low, high = right.get_ylim()
    right.set_ylim(min(low, 0), max(1.1 * high, 1))
    right.set_title(check.sentence)
    right.legend()
    return figure


def plot_reliability(bins: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Draw how often places were right against the probability that they were given.

    bins: model, probability (the mean of a bin), share (of right places), n.  labels: of the
    models, in order. The dashed line is perfect calibration; larger dots stand for more answers.
    """
    figure, axis = plt.subplots(figsize=(5.5, 4.2), layout="constrained")
    axis.plot([0, 1], [0, 1], "--", color="grey")
    for name, label in labels.items():
        part = bins[bins["model"] == name]
        [line] = axis.plot(part["probability"], part["share"], label=label)
        dots = {"s": 4 * np.sqrt(part["n"]) + 8, "color": line.get_color()}
        axis.scatter(part["probability"], part["share"], **dots)
    axis.set(xlabel="probability of the check", ylabel="share of places in the region")
    axis.legend()
    return figure
