"""Score a heatmap against a region that is known to hold the answer, and against chance."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

Heatmap = Float[np.ndarray, "height width"]
Region = Bool[np.ndarray, "height width"]


def pointing_game(heatmap: Heatmap, region: Region) -> float:
    """Does the highest pixel lie in the region? 1 or 0; where pixels tie, their share inside.

    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop". NaN pixels, which the
    model never saw, take no part.

    >>> pointing_game(np.array([[0.1, 0.9]]), np.array([[False, True]]))
    1.0
    """
    seen, inside = _seen(heatmap, region)
    return float(inside[seen == seen.max()].mean())


def mass_in_region(heatmap: Heatmap, region: Region) -> float:
    """Which share of the relevance lies in the region? In [0, 1]; its area's share at random.

    >>> mass_in_region(np.array([[1.0, 3.0]]), np.array([[False, True]]))
    0.75
    """
    seen, inside = _seen(heatmap, region)
    if seen.sum() == 0:
        raise ValueError("expected a heatmap with some relevance, got zeros only")
    return float(seen[inside].sum() / seen.sum())


def region_auc(heatmap: Heatmap, region: Region) -> float:
    """How often is a pixel of the region higher than one outside? In [0, 1]; 0.5 at random.

    >>> region_auc(np.array([[0.1, 0.9, 0.4]]), np.array([[False, True, False]]))
    1.0
    """
    seen, inside = _seen(heatmap, region)
    if inside.all() or not inside.any():
        raise ValueError("expected a region that is a part of the picture, got all or none of it")
    return float(roc_auc_score(inside, seen))


def _seen(heatmap: Heatmap, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that the model saw: their relevance, and whether they are in the region."""
    if heatmap.shape != region.shape:
        raise ValueError(f"expected a region of shape {heatmap.shape}, got {region.shape}")
    seen = ~np.isnan(heatmap)
    if not seen.any():
        raise ValueError("expected a heatmap with pixels that the model saw, got NaN only")
    return heatmap[seen], region[seen]


def mean_interval(scores: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """The mean of scores and its 95 % bootstrap interval: mean, low, high.

    Raises ValueError for fewer than two scores.

    >>> mean_interval([0.0, 1.0] * 50)
    (0.5, 0.4, 0.6)
    """
    if len(scores) < 2:
        raise ValueError(f"expected at least two scores for an interval, got {len(scores)}")
    mean = float(np.mean(scores))
    if np.ptp(scores) == 0:
        return mean, mean, mean
    rng = np.random.default_rng(seed)
    interval = bootstrap((scores,), np.mean, method="percentile", rng=rng).confidence_interval
    return mean, float(interval.low), float(interval.high)


@contextmanager
def shuffled_weights(model: torch.nn.Module, seed: int = 0) -> Iterator[None]:
    """Is it the training that makes the map? Inside the block every weight tensor's entries are
    in random order; on leaving, they are back in their places, bit for bit.

    The model randomisation test of Adebayo et al. 2018, "Sanity Checks for Saliency Maps", with
    each tensor's own values as its distribution. Needs the memory of one tensor, not of a model.
    """
    tensors = [parameter.data for parameter in model.parameters()]
    for number, tensor in enumerate(tensors):
        tensor.copy_(tensor.flatten()[_order(tensor, seed + number)].view_as(tensor))
    try:
        yield
    finally:
        for number, tensor in enumerate(tensors):
            restored = torch.empty_like(tensor).flatten()
            restored[_order(tensor, seed + number)] = tensor.flatten()
            tensor.copy_(restored.view_as(tensor))


def _order(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
