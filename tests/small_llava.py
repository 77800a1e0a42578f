"""A LLaVA of real classes and random weights, saved as a folder that `load_model` takes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = "<pad> <unk> </s> <image> USER: ASSISTANT: what colour is the star ? red blue".split()


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Words separated by white space, each one token."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


def small_llava(
    *,
    image_size: int = 56,
    patch: int = 14,
    vision: dict | None = None,
    text: dict | None = None,
    dtype: torch.dtype = torch.float32,
) -> LlavaForConditionalGeneration:
    """A model whose vision tower has 3 layers and whose Llama has 4, with grouped queries."""
    torch.manual_seed(0)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 32,
    } | (vision or {})
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    } | (text or {})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=image_size, patch_size=patch, **tower),
        text_config=LlamaConfig(vocab_size=len(WORDS), **sizes),
        image_token_index=WORDS.index("<image>"),
    )
    model = LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    with torch.no_grad():  # initial weights are small and attend evenly; larger ones do not
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(4)
    model.generation_config.eos_token_id = WORDS.index("</s>")
    model.generation_config.pad_token_id = WORDS.index("<pad>")
    return model


def small_processor(
    *, image_size: int = 56, patch: int = 14, image_processor=None
) -> LlavaProcessor:
    """The real processor, which resizes the shorter edge and crops to the centre."""
    return LlavaProcessor(
        image_processor=image_processor
        or CLIPImageProcessor(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
        ),
        tokenizer=small_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def save_small_llava(folder: Path, **save) -> Path:
    """Write a whole checkpoint folder."""
    small_llava().save_pretrained(folder, **save)
    small_processor().save_pretrained(folder)
    return folder
