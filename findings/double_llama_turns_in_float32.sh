#!/bin/bash
# transformers: a Llama in float64 turns its queries and keys by angles in float32.
#
# Expected: after model.double(), all numbers of a pass are float64, as the types of all weights,
# buffers and outputs say; so it can serve as the reference for float32.
# Seen with transformers 5.23.0 and torch 2.13.0: positions times frequencies are computed in float32
# and turned into float64 at the end. At position 100,000 a cosine is off by 0.001. Norms, too, take
# their mean of squares in float32: off by 4e-7.
# For a user: a model in float64 is no reference for long contexts: what differs from it in the third
# digit may be right. Write the turn out in float64, or compare at small positions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'transformers==5.23.0' 'torch==2.13.0' 'numpy<3'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaModel

print("transformers", transformers.__version__, "torch", torch.__version__)
sizes = {"hidden_size": 256, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 50}
torch.manual_seed(0)
model = LlamaModel(LlamaConfig(num_attention_heads=4, **sizes)).double().eval()
types = {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
positions = torch.tensor([[10, 1_000, 100_000]])
seen = torch.randn(1, 3, 256, dtype=torch.float64)
with torch.no_grad():
    cosines, _ = model.rotary_emb(seen, positions)
    norm = model.norm(seen)
print("types of weights and buffers:", types, "of cosines:", cosines.dtype, "of norms:", norm.dtype)

frequencies = 10_000 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
exact = (positions[0, :, None] * frequencies).cos()
off = (cosines[0, :, :32] - exact).abs().amax(1).tolist()
for position, difference in zip(positions[0].tolist(), off):
    print(f"position {position}: cosine off by {difference:.1e}")
normed = seen / (seen.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
norm_off = (norm - normed).abs().amax().item()
print(f"norm off by {norm_off:.1e}")
if types != {torch.float64} or cosines.dtype != torch.float64 or norm.dtype != torch.float64:
    sys.exit("changed: the types are not float64")
if not (off[2] > 1e-4 and norm_off > 1e-9):
    sys.exit(f"changed: cosines are off by {off}, norms by {norm_off}")
PYTHON
