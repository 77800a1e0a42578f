"""Attention rollout for multimodal transformers: see and measure what a model attended to."""

import lazy_loader

__version__ = "0.1.0"

# Imported when first used: the command line answers at once, without loading torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attention": ["add_residual", "discard_lowest", "fuse_heads", "normalize_rows"],
        "capture": ["Recording", "record_attention"],
        "composition": [
            "attention_received",
            "carry_back",
            "rollout",
            "rollout_by_layer",
            "rollout_rows",
        ],
        "explorer": ["explore"],
        "flow": ["attention_flow"],
        "metrics": ["report"],
        "models": ["Answer", "MultimodalModel", "load_model"],
        "pictures": ["load_picture"],
        "recorded": ["FusedLayer", "RecordedBlocks", "RecordedLayer", "RecordedWeights"],
        "teaching": ["AttentionRollout", "compare_discard_ratios", "compare_head_fusion"],
        "text": ["load_minilm", "record_sentence"],
        "tower": ["through_tower"],
    },
)
