#!/bin/bash
# transformers: Kosmos-2.5's vision tower computes eager attention, whatever implementation it has.
#
# Expected: with attn_implementation="sdpa", or one that was registered with AttentionInterface, every
# attention layer calls that function; `config._attn_implementation` says so.
# Seen with transformers 5.23.0: the config says so, the text model does, the tower does not. It looks
# for the function by getattr among a mapping's attributes, finds none, and takes eager.
# For a user: whole matrices of 4,096 x 4,096 patches in each layer, where SDPA was asked for, and
# whatever a function of one's own is to see or change (recording, steering, a kernel) misses the
# tower, without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'transformers==5.23.0' 'torch==2.13.0' 'numpy<3'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys
from collections import Counter

import torch
import transformers
from transformers import (
    AttentionInterface,
    Kosmos2_5Config,
    Kosmos2_5ForConditionalGeneration,
)

print("transformers", transformers.__version__, "torch", torch.__version__)
calls = Counter()
sdpa = AttentionInterface()["sdpa"]


def counted(module, *args, **kwargs):
    calls[type(module).__name__] += 1
    return sdpa(module, *args, **kwargs)


AttentionInterface.register("counted", counted)
text = {"embed_dim": 32, "ffn_dim": 48, "layers": 2, "attention_heads": 4, "vocab_size": 50}
tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
tower |= {"num_attention_heads": 4, "patch_embed_hidden_size": 12}
config = Kosmos2_5Config(text_config=text, vision_config=tower, latent_query_num=4)
torch.manual_seed(0)
model = Kosmos2_5ForConditionalGeneration._from_config(config, attn_implementation="counted").eval()
places = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 5))
tokens = torch.arange(3, 15)[None]
with torch.no_grad():
    model(
        input_ids=tokens,
        flattened_patches=torch.cat([places, torch.randn(16, 12)], 1)[None],
        image_embeds_position_mask=tokens < 7,
    )
print("the tower's implementation:", model.vision_model.config._attn_implementation)
print("calls of that function:", dict(calls))
if calls != {"Kosmos2_5TextAttention": 3}:
    sys.exit(f"changed: the calls are {dict(calls)}")
PYTHON
