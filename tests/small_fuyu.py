"""A Fuyu of real classes and random weights, saved as a folder that `load_model` takes."""

from pathlib import Path

import torch
from transformers import (
    FuyuConfig,
    FuyuForCausalLM,
    FuyuImageProcessor,
    FuyuProcessor,
    PersimmonConfig,
)

from rolloutlib.tiny.tokenizers import fuyu_tokenizer


def small_fuyu(*, text: dict | None = None, dtype: torch.dtype = torch.float32) -> FuyuForCausalLM:
    """A model with 3 decoder layers and the real patches of 30 x 30 pixels."""
    torch.manual_seed(0)
    tokenizer = fuyu_tokenizer()
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    } | (text or {})
    words = {name: getattr(tokenizer, name) for name in ("bos_token_id", "pad_token_id")}
    config = FuyuConfig(
        text_config=PersimmonConfig(
            vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **words, **sizes
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("|SPEAKER|"),
    )
    model = FuyuForCausalLM._from_config(config, dtype=dtype).eval()
    with torch.no_grad():  # initial weights attend almost evenly
        for name, weight in model.named_parameters():
            if "q_layernorm.weight" in name or "k_layernorm.weight" in name:
                weight.mul_(1.5)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # Random weights would sometimes say that another patch comes, or nothing at all.
    model.generation_config.suppress_tokens = [config.image_token_id, tokenizer.eos_token_id]
    return model


def small_processor(**settings) -> FuyuProcessor:
    """The real processor, with settings of its image processor."""
    return FuyuProcessor(image_processor=FuyuImageProcessor(**settings), tokenizer=fuyu_tokenizer())


def save_small_fuyu(folder: Path, *, text: dict | None = None, **options) -> Path:
    """Write a whole checkpoint folder."""
    small_fuyu(text=text, **options).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder
