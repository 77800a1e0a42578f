"""Does the answer depend on what the heatmap marks? Remove it, restore it, and ask the model.

What is removed is replaced by something uninformative, such as the local mean of the picture. The
heatmap says which parts go first. It is faithful if the score of the answer falls fast as the parts
of highest relevance are removed, and recovers fast as they are restored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy.ndimage import uniform_filter

from rolloutlib.files.pictures import upright_rgb
from rolloutlib.grid import View
from rolloutlib.overlay import to_picture

Removed = Bool[np.ndarray, "step *grid"]
Scores = Float[np.ndarray, " step"]


@dataclass(frozen=True)
class Curves:
    """The score of a model as cells are removed, and as they are restored.

    fractions: of the cells, in [0, 1], ascending.
    deletion: the score without this fraction of the cells, highest relevance first.
    insertion: the score with only this fraction of them.
    """

    fractions: Float[np.ndarray, " step"]
    deletion: Float[np.ndarray, " step"]
    insertion: Float[np.ndarray, " step"]


def removal_ranks(
    heatmap: Float[np.ndarray, "*grid"], *, seed: int = 0
) -> Int[np.ndarray, "*grid"]:
    """The order in which cells are removed: 0 is the highest; cells that tie are in random order.

    >>> removal_ranks(np.array([[0.1, 0.9], [0.5, 0.2]]))
    array([[3, 0],
           [1, 2]])
    """
    flat = heatmap.ravel()
    order = np.lexsort((np.random.default_rng(seed).random(flat.size), -flat))
    return order.argsort().reshape(heatmap.shape)


def perturbation_curves(
    heatmap: Float[np.ndarray, "*grid"],
    score: Callable[[Removed], Scores],
    fractions: Sequence[float],
    *,
    seed: int = 0,
) -> Curves:
    """Score the answer without, and with only, the cells of highest relevance.

    Petsiuk et al. 2018, "RISE". All steps are scored in one call, so that they can be one batch.

    score: takes, for each step, which cells are removed, and returns a number for each, such as the
    log-probability of the answer.  fractions: of the cells, ascending in [0, 1].  seed: for the
    order of cells that tie.

    Raises ValueError for fractions that are not ascending or out of range.

    >>> def visible_sum(removed):
    ...     return (~removed @ np.array([4.0, 1.0])).astype(float)
    >>> curves = perturbation_curves(np.array([0.9, 0.1]), visible_sum, [0, 0.5, 1])
    >>> curves.deletion, curves.insertion
    (array([5., 1., 0.]), array([0., 4., 5.]))
    """
    shares = np.asarray(fractions, dtype=float)
    if len(shares) < 2 or (np.diff(shares) <= 0).any() or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(f"expected ascending fractions in [0, 1], got {list(fractions)}")
    counts = np.rint(shares * heatmap.size).astype(int)
    ranks = removal_ranks(heatmap, seed=seed)
    without = np.stack([ranks < count for count in counts])
    scores = score(np.concatenate([without, ~without]))
    return Curves(shares, *np.split(np.asarray(scores, dtype=float), 2))


def curve_area(fractions: Float[np.ndarray, " step"], values: Float[np.ndarray, " step"]) -> float:
    """The mean height of a curve, by trapezoids: low is good for deletion, high for insertion.

    >>> curve_area(np.array([0.0, 0.5, 1.0]), np.array([4.0, 2.0, 0.0]))
    2.0
    """
    return float(np.trapezoid(values, fractions) / (fractions[-1] - fractions[0]))


def local_mean(picture: Image.Image, reach: float) -> Float[np.ndarray, "height width 3"]:
    """Each pixel's mean over a square around it, `reach` times the picture's shorter side wide.

    Choose it wider than anything that may be removed, so that nothing shows through.
    """
    if not 0 < reach <= 1:
        raise ValueError(f"reach must be in (0, 1], got {reach}")
    side = max(int(min(picture.size) * reach), 1)
    pixels = np.asarray(upright_rgb(picture), dtype=float)
    return uniform_filter(pixels, (side, side, 0), mode="nearest")


def replace(
    picture: Image.Image,
    removed: Bool[np.ndarray, "rows columns"],
    view: View,
    substitute: Float[np.ndarray, "height width 3"],
) -> Image.Image:
    """The picture with the pixels of the removed image tokens taken from `substitute`."""
    gone = to_picture(removed.astype(np.float32), view) == 1  # NaN was never seen, and stays
    pixels = np.where(gone[..., None], substitute, np.asarray(upright_rgb(picture)))
    return Image.fromarray(np.rint(pixels).astype(np.uint8))
