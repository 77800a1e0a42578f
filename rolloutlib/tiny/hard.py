"""Scenes that are harder to answer about and to explain, and questions that need two places."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, permutations

import numpy as np
from jaxtyping import Bool
from PIL import Image

from rolloutlib.tiny.scenes import Question, Scene, SceneObject, make_scene

# Settings of `make_scene`. A shape of a plain scene covers 3 % of the picture, a small one 1 %.
HARD: Mapping[str, Mapping[str, object]] = {
    "look-alikes": {"objects": (5, 7), "alike": 1.0},
    "partly hidden": {"hidden": 0.4},
    "small": {"radius": (0.19, 0.24)},
    "distractors": {"objects": (7, 9), "radius": (0.19, 0.46)},
}


def make_hard_scenes(
    seed: int, count: int, photos: Sequence[Image.Image], *, size: tuple[int, int] = (336, 336)
) -> list[Scene]:
    """`count` scenes, in turn of every kind in HARD; the same seed gives the same scenes.

    *look-alikes*: five to seven shapes, each with the colour or the outline of another one.
    *partly hidden*: a strip hides 40 % of every shape.  *small*: a shape covers about 1 % of the
    picture.  *distractors*: asked is about the smallest of seven to nine shapes, which all answer
    other questions.

    Questions are of the kinds that `make_scene` asks, but their `kind` is that of the scene.

    >>> scenes = make_hard_scenes(0, 4, [Image.new("RGB", (400, 300))], size=(96, 96))
    >>> [scene.questions[0].kind for scene in scenes]
    ['look-alikes', 'partly hidden', 'small', 'distractors']
    >>> len(scenes[3].objects), {question.region.sum() for question in scenes[3].questions}
    (9, {np.int64(61)})

    Raises ValueError for a negative count, and what `make_scene` raises.
    """
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
    rng = np.random.default_rng(seed)
    return [_make(rng, photos, kind, size) for kind in islice(cycle(HARD), count)]


def _make(
    rng: np.random.Generator, photos: Sequence[Image.Image], kind: str, size: tuple[int, int]
) -> Scene:
    scene = make_scene(rng, photos, size=size, **HARD[kind])
    asked = scene.questions
    if kind == "distractors":
        smallest = min((thing.mask for thing in scene.objects), key=np.sum)
        asked = [question for question in asked if question.region is smallest]
    return replace(scene, questions=tuple(replace(question, kind=kind) for question in asked))


@dataclass(frozen=True)
class PairQuestion(Question):
    """A question that needs two places: `regions` has both, `region` is their union."""

    regions: tuple[Bool[np.ndarray, "height width"], ...]


def pair_questions(objects: Sequence[SceneObject]) -> Iterator[PairQuestion]:
    """For every two objects in different columns: is the one left, or right, of the other?

    As many answers are "yes" as "no".

    >>> photo = Image.new("RGB", (400, 300))
    >>> scene = make_scene(np.random.default_rng(1), [photo], size=(96, 96), objects=(2, 2))
    >>> for asked in [*pair_questions(scene.objects)][:2]:
    ...     print(asked.text, asked.answer)
    is the orange circle left of the red ring? no
    is the orange circle right of the red ring? yes
    """
    for one, other in permutations(objects, 2):
        if one.column == other.column:
            continue
        names = [f"{thing.colour} {thing.shape}" for thing in (one, other)]
        for side, holds in (
            ("left", one.column < other.column),
            ("right", one.column > other.column),
        ):
            text, answer = f"is the {names[0]} {side} of the {names[1]}?", "yes" if holds else "no"
            yield PairQuestion(
                "beside", text, answer, one.mask | other.mask, (one.mask, other.mask)
            )
