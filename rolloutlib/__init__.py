"""Attention rollout for multimodal transformers: see and measure what a model attended to."""

__version__ = "0.1.0"
