#!/bin/bash
# tokenizers: a WordPiece trained twice on one text has two vocabularies; a BPE has one.
#
# Expected: training has no random step, so the same text gives the same pieces.
# Seen with tokenizers 0.23.3: 20 runs of WordPieceTrainer on three sentences end with about ten
# different sets of pieces, in one process, with one thread; 20 runs of BpeTrainer agree.
# For a user: a tokenizer that is trained again no longer fits the model that was trained with the
# first one, and a test on its tokens fails now and then. Save the file, or list the pieces.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'tokenizers==0.23.3'
TOKENIZERS_PARALLELISM=false "$folder/venv/bin/python" - <<'PYTHON'
import sys

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = [
    "the star is red, the star is blue; starred and reddish.",
    "press the left button twice, then wait for the green light",
    "a lamp, a table and two chairs stand by the open window",
]


def vocabularies(model, trainer):
    """The sets of pieces that 20 runs end with."""
    found = set()
    for _ in range(20):
        tokenizer = Tokenizer(model(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        how = trainer(vocab_size=90, special_tokens=["<unk>"], show_progress=False)
        tokenizer.train_from_iterator(TEXT, how)
        found.add(frozenset(tokenizer.get_vocab()))
    return len(found)


pieces = vocabularies(models.WordPiece, trainers.WordPieceTrainer)
pairs = vocabularies(models.BPE, trainers.BpeTrainer)
print(f"tokenizers {tokenizers.__version__}, vocabularies of 20 runs:")
print(f"WordPieceTrainer {pieces}, BpeTrainer {pairs}")
if pieces < 2 or pairs != 1:
    sys.exit(f"changed: expected several and 1, got {pieces} and {pairs}")
PYTHON
