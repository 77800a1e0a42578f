"""A Qwen3-VL of real classes and random weights, saved as a folder that `load_model` takes."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from rolloutlib.tiny.tokenizers import SCREEN_SPECIAL

TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else -%}
<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, so that numbers are written digit by digit as in the real one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SCREEN_SPECIAL),
        clean_up_tokenization_spaces=False,
    )


def small_processor(**image) -> Qwen3VLProcessor:
    """The real processor: patches of 16 pixels, 2 x 2 of them merged; at least 16 patches."""
    size = {"shortest_edge": 64 * 64, "longest_edge": 1024 * 1024}
    cut = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    half = [0.5, 0.5, 0.5]
    settings = {"size": size, "image_mean": half, "image_std": half} | cut | image
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=small_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=False, **cut),
        chat_template=TEMPLATE,
    )


def small_qwen3_vl(
    *,
    vision: dict | None = None,
    text: dict | None = None,
    dtype: torch.dtype = torch.float32,
) -> Qwen3VLForConditionalGeneration:
    """3 vision layers, one of them with a deepstack branch, and 4 text layers, grouped queries."""
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    } | (text or {})
    tower = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1],
    } | (vision or {})
    config = Qwen3VLConfig(
        text_config=sizes,
        vision_config=tower | {"out_hidden_size": sizes["hidden_size"]},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    model = Qwen3VLForConditionalGeneration._from_config(config, dtype=dtype).eval()
    with torch.no_grad():  # initial weights are small and attend evenly; larger ones do not
        for name, weight in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                weight.mul_(1.5)
            elif "attn.qkv.weight" in name:
                weight[: 2 * tower["hidden_size"]] *= 8
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # Random weights would sometimes say that another picture comes, or nothing at all.
    model.generation_config.suppress_tokens = [number(sign) for sign in SCREEN_SPECIAL]
    return model


def save_small_qwen3_vl(folder: Path, **options) -> Path:
    """Write a whole checkpoint folder."""
    small_qwen3_vl(**options).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


def save_small_lora(folder: Path, base: torch.nn.Module, **settings) -> Path:
    """Write an adapter for this model that changes attention in both of its parts."""
    torch.manual_seed(1)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj", "qkv"], "init_lora_weights": False}
    get_peft_model(base, LoraConfig(**(options | settings))).save_pretrained(folder)
    return folder
