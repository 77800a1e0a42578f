"""`make trials`: would another check tell right peaks from wrong better? results/trust_trials.csv.

More is removed from each picture than `make trust` removes: larger squares, the whole place above
half of the peak, all but the place, squares around the peak. And other rules choose among the peaks
of several maps. The questions are about training scenes, none of which `make trust` scores.
"""

import argparse
from itertools import product
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from places import DATA
from scipy.ndimage import label
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from benchmarks.trust import SUBJECTS, auc, line, of_checks, record
from rolloutlib.evaluate import candidate_maps, mean_interval, trust
from rolloutlib.evaluate.methods import BEYOND
from rolloutlib.evaluate.perturbation import local_mean

SIZES = 0.02, 0.05, 0.1  # of the squares around every peak
SHIFTS = [shift for shift in product((-1, 0, 1), repeat=2) if any(shift)]
ENOUGH = 3.0  # log-odds
REPEATS = 3  # of a cross-validation in five parts


class Places:
    """The shipped map's peak, and which pixels are removed for it."""

    def __init__(self, answer, tokens):
        pixels = trust.on_pixels(answer, candidate_maps(answer, tokens)[BEYOND])
        self.heat, self.seen = np.nan_to_num(pixels), (~np.isnan(pixels)).sum()
        [self.peak] = trust.peaks_of(pixels, 1)

    def side(self, size):
        """Of a square, in pixels."""
        return sqrt(size * self.seen)

    def square(self, point, size):
        """The pixels of a square around a point."""
        ys, xs = np.indices(self.heat.shape)
        reach = self.side(size) / 2
        return (abs(xs - point[0]) <= reach) & (abs(ys - point[1]) <= reach)

    def beside(self):
        """The eight points around the peak, as far from it as the smallest square is wide."""
        step, ends = round(self.side(trust.SIZES[0])), self.heat.shape[::-1]
        for down, right in SHIFTS:
            moved = zip(
                (self.peak[0] + right * step, self.peak[1] + down * step), ends, strict=True
            )
            yield tuple(min(max(at, 0), length - 1) for at, length in moved)

    def removed(self) -> dict[str, np.ndarray]:
        """The pixels that are removed, by column of the table."""
        places = label(self.heat >= self.heat[self.peak[::-1]] / 2)[0]
        found = {"place": places == places[self.peak[::-1]]}
        found |= {f"all but {size}": ~self.square(self.peak, size) for size in SIZES[1:]}
        found |= {f"square {size}": self.square(self.peak, size) for size in SIZES}
        beside = enumerate(self.beside())
        return found | {f"shift {n}": self.square(p, trust.SIZES[0]) for n, p in beside}

    def pictures(self, picture: Image.Image) -> dict[str, np.ndarray]:
        """The picture without each: the local mean takes its place, or the colour around it."""
        shown, flat = np.asarray(picture), np.rint(local_mean(picture, trust.REACH))
        found = {k: np.where(gone[..., None], flat, shown) for k, gone in self.removed().items()}
        inner, outer = (self.square(self.peak, size) for size in (SIZES[1], 2 * SIZES[1]))
        around = shown[outer & ~inner].mean(0).round()
        return found | {"colour around": np.where(inner[..., None], around, shown)}


def trial(question, answer, tokens) -> dict:
    """What was found about one answer: how far its log-odds fall without each place, by column."""
    found, places = line(question, answer, tokens), Places(answer, tokens)
    pictures, odds = places.pictures(answer.image.picture), []
    every = [Image.fromarray(one.astype(np.uint8)) for one in pictures.values()]
    for start in range(0, len(every), trust.BATCH):
        batch = every[start : start + trust.BATCH]
        odds += [*trust.log_odds(answer.model.log_probability(answer, batch).double().numpy())]
    falls = trust.log_odds(found["log_probability"]) - np.array(odds)
    return found | dict(zip(pictures, falls, strict=True))


def checks(lines: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What the probability of each kind of check is made of."""
    falls = np.arcsinh(lines.filter(regex="^(square|place|all but|shift|colour)"))
    shipped, glance = of_checks(lines), lines[["mass", "entropy", "agreement"]]
    shifts = falls.filter(regex="^shift")
    around = pd.DataFrame({"around": shifts.max(axis=1), "mean around": shifts.mean(axis=1)})
    sizes = falls[[f"square {size}" for size in SIZES]]
    more = {
        "square of 10 %": falls[["square 0.1"]],
        "squares of 2, 5 and 10 %": sizes,
        "place above half of the peak": falls[["place"]],
        "colour around the square": falls[["colour around"]],
        "only the place is kept": falls[[f"all but {size}" for size in SIZES[1:]]],
        "squares beside the peak": around,
    }
    found = {"as shipped": shipped, **more, "signals without a pass": glance}
    found |= {f"as shipped, and {name}": shipped.join(part) for name, part in more.items()}
    found["as shipped, and signals without a pass"] = shipped.join(glance)
    return found | {"all of these": pd.concat([shipped, *more.values(), glance], axis=1)}


def choices(lines: pd.DataFrame) -> dict[str, np.ndarray]:
    """Whether the place that each rule keeps is in the region."""
    count = len(lines.filter(regex=r"^hit \d").columns)

    def every(name, missing=0.0):
        columns = lines[[f"{name} {number}" for number in range(count)]]
        return columns.fillna(missing).to_numpy(float)

    falls, seen, hits = every("fall", -np.inf), every("seen"), every("hit").astype(bool)
    rows, costs = np.arange(len(lines)), falls[:, 0] >= ENOUGH
    most = falls.argmax(axis=1)
    kept = trust.merit(falls, every("heat"), seen).argmax(axis=1)
    plain = seen[rows, kept] < trust.PLAIN
    found = {"the shipped peak": hits[:, 0], "some peak, if one knew which": hits.any(axis=1)}
    found["largest fall"] = hits[rows, most]
    found["largest fall, if the shipped peak's is below 3"] = hits[rows, np.where(costs, 0, most)]
    found["verified_peak, not moved"] = hits[rows, kept]
    for name, where in {
        "in square": ", but moved within the smallest square",
        "in cell": "",
    }.items():
        moved = every(name).astype(bool)[rows, kept]
        found[f"verified_peak{where}"] = np.where(plain, moved, hits[rows, kept])
    return found


def out_of_fold(values: pd.DataFrame, hits: np.ndarray) -> np.ndarray:
    """The probability of each check from weights that did not see it."""
    values, total = values.to_numpy(), np.zeros(len(hits))
    for seed in range(REPEATS):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        model = LogisticRegression(max_iter=300)
        total += cross_val_predict(model, values, hits, cv=folds, method="predict_proba")[:, 1]
    return total / REPEATS


def scored(lines: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """Model, score, rule, value, low, high and n. One set of weights serves all models."""
    hits, table = lines["hit"].to_numpy(bool), []
    for rule, values in checks(lines).items():
        chances = out_of_fold(values, hits)
        for name, part in lines.groupby("model"):
            scores = auc(hits[part.index], chances[part.index], resamples=200)
            table.append([name, "auc", rule, *scores, len(part)])
    return pd.concat([named(table), pointing(training)])


def pointing(training: pd.DataFrame) -> pd.DataFrame:
    """The same of rules that choose a peak."""
    table = [
        [name, "pointing", rule, *mean_interval(right[part.index].astype(float)), len(part)]
        for rule, right in choices(training).items()
        for name, part in training.groupby("model")
    ]
    return named(table)


def named(table: list) -> pd.DataFrame:
    """These lines as a table."""
    return pd.DataFrame(table, columns=["model", "score", "rule", "value", "low", "high", "n"])


def main() -> None:
    """Record and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/trust"))
    parser.add_argument("--out", type=Path, default=DATA / "results")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--answers", type=int, default=500, help="right answers of each model")
    parser.add_argument(
        "--train", type=int, default=150, help="the same, that `make trust` fits on"
    )
    options = parser.parse_args()
    trials, training = (
        pd.concat(
            [record(n, split, count, options.folder, make) for n in options.models],
            ignore_index=True,
        )
        for split, count, make in (
            ("trials", options.answers, trial),
            ("train", options.train, line),
        )
    )
    scored(trials, training).round(4).to_csv(options.out / "trust_trials.csv", index=False)


if __name__ == "__main__":
    main()
