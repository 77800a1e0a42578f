"""`make trust`: does a check of a map's peak tell right from wrong? data/results/trust.csv.

Small models answer questions whose region is known. For each right answer, the peak of the shipped
map is checked, and the peaks of several maps are compared. Answers are recorded a part at a time;
parts that are there are not recorded again. The weights of the probability are fitted on training
scenes alone and written to rolloutlib/evaluate/trust.json; scores are those of test scenes.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from places import DATA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from rolloutlib import load_model
from rolloutlib.evaluate import candidate_maps, check_peak, mean_interval, trust, verified_peak
from rolloutlib.evaluate.cases import right_click, right_words
from rolloutlib.evaluate.methods import BEYOND
from rolloutlib.files.complete import complete_file, write_text
from rolloutlib.tiny.scenes import load_photos, make_scenes
from rolloutlib.tiny.screens import SIZES, make_screens

# seed, and how many pictures are a part; on "trials" rules are chosen
SPLITS = {"train": (2026, 20), "test": (1128, 10), "trials": (4096, 10)}
PHOTOS = {"train": "train", "test": "test", "trials": "train"}
MISSES = 5  # a kind of question with fewer wrong peaks, or fewer right ones, has no AUC of its own


def scenes(size, split, seed, count):
    """Pictures of painted shapes, each with its questions."""
    found = make_scenes(seed, count, load_photos(DATA / "images", PHOTOS[split]), size=size)
    return [(scene.picture, scene.questions) for scene in found]


def screens(split, seed, count):
    """Screens, each with its instructions; those for testing have sizes of their own."""
    sizes = SIZES["unseen" if split == "test" else "seen"]
    found = make_screens(seed, count, sizes=sizes)
    return [(screen.picture, screen.instructions) for screen in found]


@dataclass(frozen=True)
class Subject:
    """A small model, and what it is asked."""

    asked: Callable
    right: Callable = right_words
    adapter: str = ""


SUBJECTS = {
    "tiny-llava": Subject(partial(scenes, (336, 336))),
    "tiny-fuyu": Subject(partial(scenes, (390, 510))),
    "tiny-qwen3-vl": Subject(screens, right_click, "tiny-qwen3-vl-click-lora"),
    "tiny-qwen3-5": Subject(partial(scenes, (288, 288))),
}


def answers(model, subject: Subject, split: str, part: int) -> Iterator[tuple]:
    """Right answers: the question, the answer, and which of its tokens to explain."""
    seed, count = [SPLITS[split][0], part], SPLITS[split][1]
    rng = np.random.default_rng(seed)
    for picture, questions in subject.asked(split, seed, count):
        question = rng.choice(np.array([q for q in questions if q.region.any()], object))
        answer = model.generate(picture, question.text, max_new_tokens=16, record=True)
        if tokens := subject.right(answer, question):
            yield question, answer, tokens


def checked(question, check) -> dict:
    """What a check found, and whether its place is in the region."""
    x, y = check.point
    found = {"kind": question.kind, "hit": bool(question.region[y, x])}
    found |= {"log_probability": check.log_probability, "contrast": check.contrast}
    for name in ("drops", "controls"):
        found |= {f"{name} {n}": value for n, value in enumerate(getattr(check, name).ravel())}
    return found


def place(question, answer, tokens) -> dict:
    """What was found about a map that knows nothing: a random token of the picture."""
    random = np.zeros(answer.image.view.grid)
    random.flat[np.random.default_rng(answer.sequence.tolist()).integers(random.size)] = 1
    return checked(question, check_peak(answer, random))


def line(question, answer, tokens) -> dict:
    """What was found about one answer."""
    maps = candidate_maps(answer, tokens)
    kept = verified_peak(answer, maps, shipped=BEYOND)
    check = kept.check
    if (kept.name, check.point) != kept.points[0]:
        check = check_peak(answer, maps[BEYOND])

    def hit(point):
        return bool(question.region[point[1], point[0]])

    found = checked(question, check) | {"verified": hit(kept.point), "kept": hit(kept.check.point)}
    pixels = {name: trust.on_pixels(answer, heatmap) for name, heatmap in maps.items()}
    found |= trust.signals(pixels, BEYOND)
    for number, ((name, point), fall) in enumerate(zip(kept.points, kept.drops, strict=True)):
        scene = trust._Scene(answer, maps[name], trust.SIZES, 0)
        moved = [scene.cell(point), scene.box(point, scene.sides[0])]
        in_cell, in_square = (trust.sharpened(scene.pixels, scene.contrast, box) for box in moved)
        x, y = point
        found |= {
            f"fall {number}": fall,
            f"heat {number}": pixels[BEYOND][y, x] / np.nanmax(pixels[BEYOND]),
            f"seen {number}": scene.share(point),
            f"hit {number}": hit(point),
            f"in cell {number}": hit(in_cell),
            f"in square {number}": hit(in_square),
        }
    return found


def record(name: str, split: str, wanted: int, folder: Path, make=line) -> pd.DataFrame:
    """A line for each right answer, at least as many as wanted, from parts that are whole."""
    model, lines, part = None, pd.DataFrame(), 0
    start = f"{name}-{split}" if make is line else f"{name}-{split}-{make.__name__}"
    while (path := folder / f"{start}-{part}.csv").exists() or len(lines) < wanted:
        if not path.exists():
            model = model or load(name)
            found = [make(*one) for one in answers(model, SUBJECTS[name], split, part)]
            with complete_file(path) as whole:
                pd.DataFrame(found).to_csv(whole, index=False)
        lines, part = pd.concat([lines, pd.read_csv(path)], ignore_index=True), part + 1
        print(f"{start}: {len(lines)} of {wanted} right answers", flush=True)
    return lines.assign(model=name)


def load(name: str):
    """The model of this name."""
    adapter = SUBJECTS[name].adapter
    folders = DATA / "checkpoints" / name, adapter and DATA / "checkpoints" / adapter
    return load_model(folders[0], adapter_id=str(folders[1]), dtype="float32")


def inputs(lines: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What the probabilities are made of: a line for each answer."""
    return {"check": of_checks(lines), "glance": lines[["mass", "entropy", "agreement"]]}


def of_checks(lines: pd.DataFrame) -> pd.DataFrame:
    """What the probability of a check is made of."""
    drops, controls = (
        lines.filter(regex=f"^{name} ").to_numpy().reshape(len(lines), -1, 2)
        for name in ("drops", "controls")
    )
    others = lines[["log_probability", "contrast"]].to_numpy()
    every = zip(drops, controls, *others.T, strict=True)
    return pd.DataFrame([trust.features(*one) for one in every])


def fit(values: pd.DataFrame, hits: pd.Series) -> LogisticRegression:
    """The weights with which these features tell right peaks from wrong ones."""
    return LogisticRegression().fit(values.to_numpy(), hits)


def calibrate(lines: pd.DataFrame, places: pd.DataFrame) -> None:
    """Fit the weights on training scenes, those of checks on random places too, and write them."""
    weights, both = {}, pd.concat([lines, places], ignore_index=True)
    fitted = {"check": (of_checks(both), both), "glance": (inputs(lines)["glance"], lines)}
    for what, (values, of) in fitted.items():
        found = fit(values, of["hit"].astype(bool))
        numbers = [*found.intercept_, *found.coef_[0]]
        names = ["intercept", *values]
        weights[what] = {k: round(float(v), 4) for k, v in zip(names, numbers, strict=True)}
    path = Path(trust.__file__).with_suffix(".json")
    write_text(path, json.dumps(weights, indent=1) + "\n")
    trust.calibration.cache_clear()


def auc(hits, scores, resamples: int = 1000) -> tuple[float, float, float]:
    """The AUC and its 95 % bootstrap interval; hits and misses are resampled apart."""
    hits, scores = np.asarray(hits), np.asarray(scores)
    rng, groups = np.random.default_rng(0), [scores[hits], scores[~hits]]

    def drawn(pair):
        truth = np.repeat([True, False], [len(each) for each in pair])
        return roc_auc_score(truth, np.concatenate(pair))

    draws = [drawn([rng.choice(g, len(g)) for g in groups]) for _ in range(resamples)]
    return drawn(groups), *np.quantile(draws, [0.025, 0.975])


def told(chances: np.ndarray) -> dict[str, np.ndarray]:
    """Where which verdict is told."""
    return {"depends": chances >= trust.SURE, "does not depend": chances <= 1 - trust.SURE}


def chances_of(lines: pd.DataFrame) -> np.ndarray:
    """The probability of each check."""
    return np.array([trust.calibrated("check", x) for x in of_checks(lines).to_dict("records")])


def scored(
    name: str, lines: pd.DataFrame, places: pd.DataFrame, training: pd.DataFrame
) -> Iterator[tuple]:
    """Score, value, low, high and n of one model."""
    hits, values = lines["hit"].astype(bool), inputs(lines)
    chances = {
        what: np.array([trust.calibrated(what, one) for one in part.to_dict("records")])
        for what, part in values.items()
    }
    likely = chances["check"]
    others = training[training["model"] != name]
    apart = fit(inputs(others)["check"], others["hit"]).predict_proba(values["check"].to_numpy())
    both = [pd.concat(inputs(some), axis=1) for some in (training, lines.reset_index(drop=True))]
    joint = fit(both[0], training["hit"]).predict_proba(both[1].to_numpy())
    ways = {"auc": likely, "auc, fitted on other models": apart[:, 1]}
    ways["auc, with what no pass is needed for"] = joint[:, 1]
    for score, chance in (ways | {"auc, without a pass": chances["glance"]}).items():
        if 0 < hits.sum() < len(hits):
            yield score, *auc(hits, chance), len(hits)
    kinds = {
        kind: auc(hits[part.index], likely[part.index])
        for kind, part in lines.groupby("kind")
        if MISSES <= hits[part.index].sum() <= len(part) - MISSES
    }
    if kinds:
        worst = min(kinds, key=lambda kind: kinds[kind][0])
        yield "auc_worst_kind", *kinds[worst], int((lines["kind"] == worst).sum())
    yield "brier", *mean_interval((likely - hits) ** 2), len(hits)
    nowhere, off = chances_of(places), places["hit"].astype(bool)
    whole = np.append(hits, off), np.append(likely, nowhere)
    yield "auc, with random places", *auc(*whole), len(whole[0])
    yield "brier, with random places", *mean_interval((whole[1] - whole[0]) ** 2), len(whole[0])
    for verdict, where in told(nowhere).items():
        of = mean_interval(where.astype(float))
        yield f"share told of random places: {verdict}", *of, len(places)
    for verdict, where in told(likely).items():
        yield f"share told: {verdict}", *mean_interval(where.astype(float)), len(hits)
        if where.sum() > 1:
            yield f"right peaks: {verdict}", *mean_interval(hits[where].astype(float)), where.sum()
    for score, column in {"pointing": "hit", "verified_pointing": "verified"}.items():
        yield score, *mean_interval(lines[column].astype(float)), len(lines)
        for kind, part in lines.groupby("kind"):
            if len(part) > 1:
                yield f"{score}: {kind}", *mean_interval(part[column].astype(float)), len(part)


def reliability(lines: pd.DataFrame, edges=(0, 0.2, 0.4, 0.6, 0.8, 1)) -> pd.DataFrame:
    """For each bin of probabilities: their mean, the share of right peaks, and how many."""
    chances = chances_of(lines)
    table = pd.DataFrame({"probability": chances, "share": lines["hit"].astype(float), "n": 1})
    bins = pd.cut(table["probability"], edges, include_lowest=True, labels=False)
    how = {"probability": "mean", "share": "mean", "n": "sum"}
    return table.groupby(bins).agg(how).reset_index(drop=True)


def main() -> None:
    """Record, fit the weights, and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/trust"))
    parser.add_argument("--out", type=Path, default=DATA / "results")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--train", type=int, default=150, help="answers of each model to fit on")
    parser.add_argument("--test", type=int, default=500, help="answers of each model to score")
    parser.add_argument("--places", type=int, default=50, help="random places of each, of both")
    options = parser.parse_args()
    training, testing, elsewhere, nowhere = (
        [record(name, split, wanted, options.folder, make) for name in options.models]
        for make, counts in ((line, (options.train, options.test)), (place, [options.places] * 2))
        for split, wanted in zip(("train", "test"), counts, strict=True)
    )
    whole = pd.concat(training, ignore_index=True)
    calibrate(whole, pd.concat(elsewhere, ignore_index=True))
    tables, bins = [], []
    for name, lines, places in zip(options.models, testing, nowhere, strict=True):
        columns = ["score", "value", "low", "high", "n"]
        tables.append(pd.DataFrame(scored(name, lines, places, whole), columns=columns))
        tables[-1].insert(0, "model", name)
        bins.append(reliability(pd.concat([lines, places])).assign(model=name))
    for path, parts in {"trust.csv": tables, "reliability.csv": bins}.items():
        with complete_file(options.out / path) as part:
            pd.concat(parts).round(4).to_csv(part, index=False)


if __name__ == "__main__":
    main()
