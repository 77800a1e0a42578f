#!/bin/bash
# transformers: a folder names its tokenizer's class, and beside a Qwen3.5 config it is not used.
#
# Expected: AutoTokenizer reads tokenizer.json as it is, for it says all about splitting and pieces,
# and tokenizer_config.json names the general class (TokenizersBackend).
# Seen with transformers 5.23.0: beside a config of type qwen3_vl it does. Beside one of type qwen3_5
# the same two files become a byte-level BPE with the vocabulary of tokenizer.json: words that are
# pieces of the file are no longer found, and what is left out leaves no trace and no warning.
# For a user: a Qwen3.5 with a tokenizer of one's own answers nonsense after save and load. Load the
# tokenizer by its class: PreTrainedTokenizerFast.from_pretrained(folder).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'transformers==5.23.0' 'tokenizers==0.23.3'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXT = "what is here"
pieces = Tokenizer(models.WordLevel({"<unk>": 0, "what": 1, "is": 2, "here": 3}, unk_token="<unk>"))
pieces.pre_tokenizer = pre_tokenizers.Whitespace()
own = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>")

seen = {}
for kind in ("qwen3_vl", "qwen3_5"):
    own.save_pretrained(kind)
    Path(kind, "config.json").write_text(json.dumps({"model_type": kind}))
    named = json.loads(Path(kind, "tokenizer_config.json").read_text())["tokenizer_class"]
    loaded = AutoTokenizer.from_pretrained(kind)
    seen[kind] = loaded.tokenize(TEXT) == own.tokenize(TEXT)
    print(f"{kind}: names {named}, loads {type(loaded).__name__}, {loaded.tokenize(TEXT)}")
print("transformers", transformers.__version__)
if seen != {"qwen3_vl": True, "qwen3_5": False}:
    sys.exit(f"changed: the text is split as before: {seen}")
PYTHON
