"""Cases: correct answers whose region is known, and the maps of each, all made in the same way."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image

from rolloutlib.evaluate.methods import Evidence, Method, evidence_of
from rolloutlib.evaluate.perturbation import Removed, Scores, local_mean, replace
from rolloutlib.evaluate.scores import Region, region_shares
from rolloutlib.grid import View
from rolloutlib.models import Answer, MultimodalModel
from rolloutlib.models.clicks import read_click
from rolloutlib.overlay import blur, to_picture
from rolloutlib.recording.gradients import WeightedLayer, weigh_by_gradient
from rolloutlib.recording.kinds import DifferentiableLayer

REGION = "the region itself"  # the name of a map that knows the answer


@dataclass(frozen=True)
class Case:
    """One correct answer, and all that scores need to know about it.

    kind: of question.  region: the share of each cell of a heatmap that lies in the answer's
    region.  log_probability: of the answer, without some cells.  evidence: for the methods; None
    where the maps are made.  picture, pixels: the picture, and the region on its pixels.  view:
    what the cells stand for.  These three are None where cells are frames; then `asked` is the
    frame that was asked about, which takes no part in scores.  said: question and answer, in lines.
    """

    kind: str
    region: Region
    log_probability: Callable[[Removed], Scores]
    evidence: Evidence | None = None
    picture: Image.Image | None = None
    pixels: Bool[np.ndarray, "height width"] | None = None
    view: View | None = None
    asked: int | None = None
    said: str = ""


@dataclass(frozen=True)
class Shown:
    """A heatmap as it is scored: blurred, on its cells and on the pixels of the picture.

    pixels: None where the cells are frames; these are not blurred.
    """

    cells: Float[np.ndarray, "*grid"]
    pixels: Float[np.ndarray, "height width"] | None = None


def picture_cases(
    model: MultimodalModel,
    asked: Iterable[tuple[Image.Image, Sequence]],
    right_tokens: Callable[[Answer, object], list[int]],
    *,
    reach: float = 0.5,
    seed: int = 0,
) -> Iterator[Case]:
    """Ask one question about each picture, chosen at random; only correct answers become cases.

    asked: pictures, each with questions that have a `text`, a `kind` and a `region` of pixels.
    right_tokens: which of the answer's tokens to explain; none if the answer is wrong.  reach: of
    the `local_mean` that takes the place of what is removed.
    """
    rng = np.random.default_rng(seed)
    for picture, questions in asked:
        question = rng.choice(np.array([q for q in questions if q.region.any()], object))
        how = {"max_new_tokens": 16, "min_new_tokens": 1}  # an empty answer is wrong, no error
        answer = model.generate(picture, question.text, **how)
        if tokens := right_tokens(answer, question):
            view = answer.image.patch_view
            yield Case(
                question.kind,
                region_shares(question.region, view),
                answer_without(answer, picture, reach),
                evidence_of(model, answer, tokens),
                picture,
                question.region,
                view,
                said=f"{question.text}\n{answer.text}",
            )


def right_words(answer: Answer, question: object) -> list[int]:
    """All generated tokens if the answer is the expected one, else none."""
    return list(range(len(answer.tokens))) if answer.text == question.answer else []


def right_click(answer: Answer, question: object) -> list[int]:
    """The tokens of a click's coordinates if it lands in the question's region, else none."""
    click = read_click(answer)
    point = click.pixel(question.region.shape)
    return click.tokens if point and question.region[int(point[1]), int(point[0])] else []


def evidence_over_time(
    layers: Sequence[DifferentiableLayer], logits: Float[torch.Tensor, " answer"], asked: int
) -> Evidence:
    """What is known about an answer for one frame: attention over time of the first instance.

    layers: over frames, of a pass with gradients.  logits: of all answers; the highest is given,
    and the second is the other one.  asked: the frame.
    """
    first, second = logits.topk(2).values

    def weigh(target: Float[torch.Tensor, ""]) -> list[WeightedLayer]:
        return [WeightedLayer(w.name, w.weights[:1]) for w in weigh_by_gradient(layers, target)]

    return Evidence(
        [layer.probabilities()[0] for layer in layers],
        torch.tensor([asked]),
        partial(weigh, first),
        weigh_against=partial(weigh, first - second),
    )


def answer_without(
    answer: Answer, picture: Image.Image, reach: float = 0.5
) -> Callable[[Removed], Scores]:
    """A function that says how likely the answer is without some cells of the picture.

    It takes which cells of the finest grid are removed, for each step, and returns the
    log-probability of the answer for each. The `local_mean` takes their place.
    """
    substitute, view = local_mean(picture, reach), answer.image.patch_view

    def score(removed: Removed) -> Scores:
        pictures = [replace(picture, cells, view, substitute) for cells in removed]
        return answer.model.log_probability(answer, pictures).double().numpy()

    return score


def shown_maps(
    case: Case, methods: Mapping[str, Method], rng: np.random.Generator, blur_tokens: float = 0.5
) -> dict[str, Shown]:
    """The map of every method that applies, of no method, and of the region, by name.

    All go through the same steps: mean over the rows that answered, tower, pixels, blur.
    """
    view = case.view

    def shown(heatmap: Float[np.ndarray, "*grid"]) -> Shown:
        if view is None:
            return Shown(heatmap)
        return Shown(blur(heatmap, blur_tokens), to_picture(heatmap, view, blur_tokens=blur_tokens))

    maps = {k: m.heatmap(case.evidence) for k, m in methods.items() if m.applies(case.evidence)}
    maps |= _without_a_method(case, rng) | {REGION: case.region.astype(float)}
    return {name: shown(heatmap) for name, heatmap in maps.items()}


def _without_a_method(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Maps that know nothing of the answer: uniform, random, and high in the middle.

    The middle of frames is the one that was asked about.
    """
    shape = np.array(case.region.shape)
    middle = (shape - 1) / 2 if case.view else case.asked
    steps = (np.indices(shape).T - middle) / shape
    centre = 1 / (1 + np.linalg.norm(steps, axis=-1).T)
    return {"uniform": np.ones(shape), "random": rng.random(shape), "centre": centre}
