"""Ask about a picture of your own, and score the answer's map against a region that you know."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy.ndimage import binary_dilation

from rolloutlib.evaluate.scores import mass_in_region, pointing_game, region_auc
from rolloutlib.evaluate.trust import BLUR_TOKENS, check_peak
from rolloutlib.files.complete import complete_file
from rolloutlib.files.regions import region_mask
from rolloutlib.models import Answer, MultimodalModel
from rolloutlib.models.clicks import Click, read_click
from rolloutlib.models.tower import SHIPPED, heatmaps
from rolloutlib.overlay import TARGET, crosshair, overlay, stack_layers, to_picture

LONGEST_SIDE = 480  # of the picture that is kept of a map, in pixels


@dataclass(frozen=True)
class Found:
    """What a model answered about a picture, and the map of its answer.

    heatmap: on `answer.image.patch_view`.  click: the point, where the answer is one.
    seconds: for both.
    """

    answer: Answer
    heatmap: Float[np.ndarray, "rows columns"]
    click: Click | None
    seconds: float


def map_of(
    model: MultimodalModel,
    picture: Image.Image,
    question: str,
    *,
    click: bool = False,
    residual: float = SHIPPED["residual"],
    head_fusion: str = SHIPPED["head_fusion"],
    max_new_tokens: int = 32,
) -> Found:
    """Ask about a picture, and make the map that the notebooks show.

    The rollout beyond that of even attention, carried through the vision tower (`heatmaps`), and
    averaged over the tokens of the answer, or of the click's coordinates. Where tokens see later
    ones, even attention favours none, and nothing is taken out.

    Raises ValueError as `generate`, and `Unplaced` for a model whose tokens have no place.
    """
    started = time.perf_counter()
    answer = model.generate(picture, question, max_new_tokens=max_new_tokens, record=True)
    point = read_click(answer) if click else None
    count = len(answer.tokens)
    tokens = point.tokens if point else range(min(answer.thought, count - 1), count)
    first = answer.image.positions[:1]
    causal = int(answer.recording["language"][0].visible(first).max()) <= int(first) + 1
    settings = {"residual": residual, "head_fusion": head_fusion, "beyond_even": causal}
    maps = heatmaps(answer.recording, answer, **settings)[list(tokens)]
    heatmap = maps.double().mean(0).cpu().numpy()
    return Found(answer, heatmap, point, time.perf_counter() - started)


def score_of(
    found: Found,
    region: Mapping[str, object],
    expected: str = "",
    *,
    trust: bool = True,
    output_path: str | Path = "",
) -> dict[str, object]:
    """The scores of an answer's map on the picture's own pixels, blurred as it is shown.

    region: as COCO has it (`region_mask`).  expected: the right answer; "" if any will do.  trust:
    whether to check the map's peak (`check_peak`).  output_path: where to write the picture with
    the map, the region's outline and the click; "" for nowhere.

    answer: its text.  right: whether it is the expected one, but for case, spaces and a final full
    stop; for a click, whether it lands in the region; None if nothing is expected.
    pointing: `pointing_game`.  mass: `mass_in_region`.  area: the region's share of what the model
    saw, which is what chance gives for both.  AUC: `region_auc`.  A score that has no meaning is
    NaN: the AUC of a region that the model did not see, and the mass of a map without relevance.
    trust, verdict: how likely the answer depends on the map's peak, and what follows.
    answer_seconds: for the answer, its map and its scores.
    """
    started = time.perf_counter()
    picture, view = found.answer.image.picture, found.answer.image.patch_view
    mask = region_mask(region, view.picture)
    pixels = to_picture(found.heatmap, view, blur_tokens=BLUR_TOKENS)
    seen = ~np.isnan(pixels)
    area = mask[seen].mean()
    scores: dict[str, object] = {
        "answer": found.answer.text,
        "right": _is_right(found, mask, expected),
        "pointing": pointing_game(pixels, mask),
        "mass": mass_in_region(pixels, mask) if pixels[seen].any() else np.nan,
        "area": area,
        "AUC": region_auc(pixels, mask) if 0 < area < 1 else np.nan,
    }
    if trust:
        scores |= _checked(found)
    seconds = found.seconds + time.perf_counter() - started
    if output_path:
        with complete_file(output_path) as part:
            drawn(picture, found, mask).save(part, quality=85)
    return scores | {"answer_seconds": seconds}


def _checked(found: Found) -> dict[str, object]:
    """How likely the answer depends on the map's peak, which cannot be told of a flat map."""
    try:
        check = check_peak(found.answer, found.heatmap)
    except ValueError:  # nor if there is no room beside the peak
        return {"trust": np.nan, "verdict": "can't tell"}
    return {"trust": check.probability, "verdict": check.verdict}


def _is_right(found: Found, mask: Bool[np.ndarray, "height width"], expected: str) -> bool | None:
    if found.click:
        return found.click.inside(mask)
    said, right = (t.strip().removesuffix(".").casefold() for t in (found.answer.text, expected))
    return said == right if expected else None


def drawn(
    picture: Image.Image, found: Found, mask: Bool[np.ndarray, "height width"]
) -> Image.Image:
    """The map over a small copy of the picture, the region's outline in green, and the click."""
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    size = small.size[::-1]
    view = replace(found.answer.image.patch_view, picture=size)
    shown = overlay(small, found.heatmap, view, blur_tokens=BLUR_TOKENS, power=2.0)
    inside = np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))
    shown[binary_dilation(inside, iterations=2) & ~inside] = TARGET
    point = found.click.pixel(size) if found.click else None
    layers = [crosshair(size, point)] if point else []
    return Image.fromarray(stack_layers(Image.fromarray(shown), layers))
