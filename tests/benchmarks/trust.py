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
from places import DATA, ROOT
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from rolloutlib import load_model
from rolloutlib.evaluate import candidate_maps, check_peak, mean_interval, trust, verified_peak
from rolloutlib.evaluate.cases import right_click, right_words
from rolloutlib.evaluate.methods import BEYOND
from rolloutlib.files.complete import complete_file, write_text
from rolloutlib.tiny.scenes import load_photos, make_scenes
from rolloutlib.tiny.screens import SIZES, make_screens

SEEDS = {"train": 2026, "test": 1128}
PART = 20  # pictures
MISSES = 5  # a kind of question with fewer wrong peaks, or fewer right ones, has no AUC of its own


def scenes(size, split, seed, count):
    """Pictures of painted shapes, each with its questions."""
    found = make_scenes(seed, count, load_photos(DATA / "images", split), size=size)
    return [(scene.picture, scene.questions) for scene in found]


def screens(split, seed, count):
    """Screens, each with its instructions; those for testing have sizes of their own."""
    sizes = SIZES["seen" if split == "train" else "unseen"]
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
    seed = [SEEDS[split], part]
    rng = np.random.default_rng(seed)
    for picture, questions in subject.asked(split, seed, PART):
        question = rng.choice(np.array([q for q in questions if q.region.any()], object))
        answer = model.generate(picture, question.text, max_new_tokens=16, record=True)
        if tokens := subject.right(answer, question):
            yield question, answer, tokens


def line(question, answer, tokens) -> dict:
    """What was found about one answer."""
    maps = candidate_maps(answer, tokens)
    kept = verified_peak(answer, maps, shipped=BEYOND)
    check = kept.check
    if (kept.name, check.point) != kept.points[0]:
        check = check_peak(answer, maps[BEYOND])

    def hit(point):
        return bool(question.region[point[1], point[0]])

    found = {"kind": question.kind, "hit": hit(check.point), "verified": hit(kept.point)}
    found |= {"map": kept.name, "log_probability": check.log_probability}
    found |= {"contrast": check.contrast, "rivals": len(kept.points) - 1}
    for name in ("drops", "controls"):
        found |= {f"{name} {n}": value for n, value in enumerate(getattr(check, name).ravel())}
    pixels = {name: trust.on_pixels(answer, heatmap) for name, heatmap in maps.items()}
    return found | trust.signals(pixels, BEYOND)


def record(name: str, split: str, wanted: int, folder: Path) -> pd.DataFrame:
    """A line for each right answer, at least as many as wanted, from parts that are whole."""
    model, lines, part = None, pd.DataFrame(), 0
    while len(lines) < wanted:
        path = folder / f"{name}-{split}-{part}.csv"
        if not path.exists():
            model = model or load(name)
            found = [line(*one) for one in answers(model, SUBJECTS[name], split, part)]
            with complete_file(path) as whole:
                pd.DataFrame(found).to_csv(whole, index=False)
        lines, part = pd.concat([lines, pd.read_csv(path)], ignore_index=True), part + 1
        print(f"{name}, {split}: {len(lines)} of {wanted} right answers", flush=True)
    return lines.assign(model=name)


def load(name: str):
    """The model of this name."""
    adapter = SUBJECTS[name].adapter
    folders = DATA / "checkpoints" / name, adapter and DATA / "checkpoints" / adapter
    return load_model(folders[0], adapter_id=str(folders[1]), dtype="float32")


def main() -> None:
    """Record; then fit the weights, then score, whatever is recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/trust"))
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--train", type=int, default=150, help="answers of each model to fit on")
    parser.add_argument("--test", type=int, default=500, help="answers of each model to score")
    options = parser.parse_args()
    every = {"train": options.train, "test": options.test}
    for split, wanted in every.items():
        for name in options.models:
            record(name, split, wanted, options.folder)


if __name__ == "__main__":
    main()
