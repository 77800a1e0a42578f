"""Does a heatmap tell the truth? Scores, what removal does to the answer, and weights at random."""

from rolloutlib.evaluate.perturbation import (
    Curves,
    curve_area,
    local_mean,
    perturbation_curves,
    removal_ranks,
    replace,
)
from rolloutlib.evaluate.randomisation import attention_blocks, shuffled_blocks, shuffled_weights
from rolloutlib.evaluate.scores import (
    average_precision,
    mass_in_region,
    mass_over_area,
    mean_interval,
    pointing_game,
    region_auc,
    region_shares,
)

__all__ = [
    "Curves",
    "attention_blocks",
    "average_precision",
    "curve_area",
    "local_mean",
    "mass_in_region",
    "mass_over_area",
    "mean_interval",
    "perturbation_curves",
    "pointing_game",
    "region_auc",
    "region_shares",
    "removal_ranks",
    "replace",
    "shuffled_blocks",
    "shuffled_weights",
]
