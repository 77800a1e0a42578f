#!/bin/bash
# transformers: PaliGemma's processor makes labels for a question that has no answer to learn.
#
# Expected: `labels` are there only if a `suffix` is given, as the docstring of the processor says;
# without one, its output is what a model needs to answer, and `model(**inputs).loss` is None.
# Seen with transformers 5.23.0: `labels` are there without a suffix, too, and every one is -100, which
# stands for "do not learn this". `model(**inputs)` then returns a loss, and it is NaN, while the
# logits are those without labels; no warning is given.
# For a user: code that asks "is there a loss?" or guards against NaN stops at a plain question. Take
# `labels` out before a pass that is no training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'transformers==5.23.0' 'tokenizers==0.23.3' 'torch==2.14.1' \
  'torchvision==0.29.1' 'pillow==13.0.0' 'numpy<3'
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

WORDS = "<pad> <bos> <eos> <unk> <image> what animal is it cat".split()
pieces = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
pieces.pre_tokenizer = pre_tokenizers.Whitespace()
named = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=pieces, extra_special_tokens={"image_token": "<image>"}, **named
)
pictures = SiglipImageProcessor(size={"height": 28, "width": 28})
pictures.image_seq_length = 4
processor = PaliGemmaProcessor(image_processor=pictures, tokenizer=tokenizer)

sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
sizes |= {"num_attention_heads": 2}
text = sizes | {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8}
tower = sizes | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
config = PaliGemmaConfig(
    text_config=text | {"vocab_size": len(WORDS)},
    vision_config=tower | {"vision_use_head": False},
    projection_dim=16,
    image_token_index=WORDS.index("<image>"),
)
torch.manual_seed(0)
model = PaliGemmaForConditionalGeneration(config).eval()
question = {"text": "<image>what animal is it", "images": Image.new("RGB", (28, 28))}
losses = {}
for suffix in (None, "cat"):
    inputs = processor(**question, suffix=suffix, return_tensors="pt")
    with torch.no_grad():
        losses[suffix] = model(**inputs).loss
    print(f"suffix {suffix}: labels {inputs['labels'][0].tolist()}, loss {losses[suffix]:.2f}")
print("transformers", transformers.__version__)
if not (losses[None].isnan() and losses["cat"].isfinite()):
    sys.exit(f"changed: the losses are {losses}")
PYTHON
