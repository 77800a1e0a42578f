#!/bin/bash
# transformers: the special tokens that decode skips are not those that the tokenizer lists.
#
# Expected: `all_special_ids` is what `decode(…, skip_special_tokens=True)` leaves out, and what
# `get_special_tokens_mask` marks: one tokenizer, one idea of what is special.
# Seen with transformers 5.23.0 and tokenizers 0.23.3: decode asks tokenizer.json, where each token
# says that it is special. The list and the mask know only tokens with a name (`eos_token`, …) or
# given as extra ones; a tokenizer that is loaded from tokenizer.json alone has none of them.
# For a user: text is free of "<|start|>", but statistics, labels and maps of tokens that leave out
# special ones by the list or the mask keep it. Ask `added_tokens_decoder`, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'transformers==5.23.0' 'tokenizers==0.23.3'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
pieces = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
pieces.add_special_tokens([AddedToken("<|start|>", special=True), AddedToken("</s>", special=True)])
pieces.save("tokenizer.json")
tokenizer = PreTrainedTokenizerFast(tokenizer_file="tokenizer.json", eos_token="</s>")

ids = tokenizer("<|start|> hello world </s>").input_ids
tokens = tokenizer.convert_ids_to_tokens(ids)
listed = tokenizer.all_special_tokens
mask = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
print("tokens:", tokens)
print("decoded without special tokens:", repr(tokenizer.decode(ids, skip_special_tokens=True)))
print("listed as special:", listed, "mask:", mask)
skipped = [token for token, number in zip(tokens, ids) if not tokenizer.decode(number, skip_special_tokens=True)]
print("skipped by decode:", skipped)
if (skipped, listed, mask) != (["<|start|>", "</s>"], ["</s>"], [0, 0, 0, 1]):
    sys.exit(f"changed: skipped {skipped}, listed {listed}, mask {mask}")
PYTHON
