"""Attention rollout for multimodal transformers: see and measure what a model attended to."""

import gc
import pkgutil

import lazy_loader

__version__ = "0.1.0"

# Imported when first used: the command line answers at once, without loading torch.
_imported, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "algorithm.across": ["rollout_across"],
        "algorithm.attention": ["add_residual", "discard_lowest", "fuse_heads", "normalize_rows"],
        "algorithm.composition": [
            "attention_received",
            "carry_back",
            "rollout",
            "rollout_by_layer",
            "rollout_rows",
        ],
        "algorithm.flow": ["attention_flow"],
        "algorithm.layers": ["even_attention"],
        "algorithm.transition": ["Settings"],
        "explorer": ["explore"],
        "files.pictures": ["load_picture"],
        "models.load": ["load_model"],
        "models.multimodal": ["Answer", "MultimodalModel"],
        "models.text": ["load_minilm", "record_sentence"],
        "models.tower": ["heatmaps", "through_tower"],
        "recording.capture": ["Recording", "record_attention"],
        "recording.kinds": ["FusedLayer", "RecordedBlocks", "RecordedWeights"],
        "recording.mixing": ["RecordedConvolution", "RecordedState"],
        "recording.recorded": ["RecordedLayer"],
        "runs.metrics": ["report"],
        "teaching": [
            "AttentionRollout",
            "compare_discard_ratios",
            "compare_head_fusion",
            "example_attention_rollout",
        ],
    },
)


def __getattr__(name: str):
    """A public name or a module, without a search for garbage while it is imported: with PyTorch
    and transformers that would take a quarter of the time, and find none."""
    searching = gc.isenabled()
    gc.disable()
    try:
        return _imported(name)
    finally:
        if searching:
            gc.enable()
