"""Attention rollout for multimodal transformers: see and measure what a model attended to."""

from rolloutlib.attention import add_residual, discard_lowest, fuse_heads, normalize_rows
from rolloutlib.capture import RecordedLayer, Recording, record_attention
from rolloutlib.composition import attention_received, rollout, rollout_by_layer, rollout_rows
from rolloutlib.flow import attention_flow
from rolloutlib.models import Answer, MultimodalModel, load_model
from rolloutlib.pictures import load_picture
from rolloutlib.teaching import AttentionRollout, compare_discard_ratios, compare_head_fusion

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AttentionRollout",
    "MultimodalModel",
    "RecordedLayer",
    "Recording",
    "add_residual",
    "attention_flow",
    "attention_received",
    "compare_discard_ratios",
    "compare_head_fusion",
    "discard_lowest",
    "fuse_heads",
    "load_model",
    "load_picture",
    "normalize_rows",
    "record_attention",
    "rollout",
    "rollout_by_layer",
    "rollout_rows",
]
