"""Does a heatmap tell the truth? Scores, removal of what it marks, and randomised weights."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "perturbation": (
            "Curves curve_area local_mean perturbation_curves removal_ranks replace"
        ).split(),
        "randomisation": ["attention_blocks", "randomise", "shuffled_blocks", "shuffled_weights"],
        "scores": (
            "average_precision compare_scores mass_in_region mass_over_area mean_difference "
            "mean_interval pointing_game recall_of_places region_auc region_shares score_intervals "
            "score_on_picture token_means"
        ).split(),
        "trust": ["PeakCheck", "VerifiedPeak", "candidate_maps", "check_peak", "verified_peak"],
    },
)
