"""`make exams`: how often the small models answer correctly, by size and by what makes it hard.

One question for each scene, on photographs that no training used. An answer is correct if it is the
expected one, letter by letter.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from places import DATA

from rolloutlib import load_model
from rolloutlib.evaluate import mean_interval
from rolloutlib.files.complete import complete_file
from rolloutlib.models import MultimodalModel
from rolloutlib.tiny.hard import HARD, make_hard_scenes, pair_questions
from rolloutlib.tiny.scenes import Question, Scene, load_photos, make_scenes

PLAIN, PAIRS = "plain", "two places"
# Model → its folder, and the (height, width) of scenes on which it is asked everything.
MODELS = {
    "LLaVA": ("tiny-llava", (336, 336)),
    "Fuyu": ("tiny-fuyu", (390, 510)),
    "Qwen3.5": ("tiny-qwen3-5", (288, 288)),
}
# Squares, and wide and tall pictures, up to 900 pixels a side: plain scenes for the small Fuyu.
SIZES = (
    *((side, side) for side in (300, 336, 360, 420, 480, 540, 600, 720, 900)),
    *((300, 450), (450, 300), (400, 600), (600, 400), (420, 840), (840, 420), (500, 430)),
)


def exams() -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Every exam: model, what is asked, and the size of its scenes."""
    yield from (("Fuyu", PLAIN, size) for size in SIZES)
    for name, (_, size) in MODELS.items():
        yield from ((name, asked, size) for asked in (PLAIN, *HARD, PAIRS))


def asked_about(scene: Scene, pairs: bool) -> Sequence[Question]:
    """The questions that may be asked about a scene."""
    return list(pair_questions(scene.objects)) if pairs else scene.questions


def scenes_of(asked: str, count: int, size: tuple[int, int]) -> list[Scene]:
    """Scenes of one exam, of which some may be left over."""
    photos = load_photos(DATA / "images", split="test")
    if asked not in HARD:
        return make_scenes(2000, count, photos, size=size)
    scenes = make_hard_scenes(2000, len(HARD) * count, photos, size=size)
    return scenes[list(HARD).index(asked) :: len(HARD)]


def exam(model: MultimodalModel, asked: str, count: int, size: tuple[int, int]) -> list[float]:
    """For one question about each scene: 1 if the answer is correct, else 0."""
    rng, right = np.random.default_rng(2000), []
    for scene in scenes_of(asked, count, size):
        if questions := asked_about(scene, asked == PAIRS):
            question = questions[rng.integers(len(questions))]
            how = {"max_new_tokens": 8, "min_new_tokens": 1}  # to say nothing is wrong, too
            answer = model.generate(scene.picture, question.text, **how)
            right.append(float(answer.text == question.answer))
    return right


def main() -> None:
    """Write the table, line by line as exams are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/results/answers.csv"))
    parser.add_argument("--count", type=int, default=150, help="scenes of each exam")
    options = parser.parse_args()
    folders = {name: DATA / "checkpoints" / folder for name, (folder, _) in MODELS.items()}
    loaded = {name: load_model(folder, dtype="float32") for name, folder in folders.items()}
    rows = []
    for name, asked, size in exams():
        right = exam(loaded[name], asked, options.count, size)
        rows.append((name, asked, *size, *mean_interval(right), len(right)))
        print(*rows[-1], flush=True)
        table = pd.DataFrame(rows, columns="model asked height width right low high n".split())
        with complete_file(options.out) as part:
            table.round(3).to_csv(part, index=False)


if __name__ == "__main__":
    main()
