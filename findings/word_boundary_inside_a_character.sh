#!/usr/bin/env bash
# Expected: who merges tokens to words by Unicode's word boundaries (annex 29) keeps characters whole:
#   a word is made of characters, so its boundaries are boundaries of characters, too.
# Instead: the default rules for words and for characters disagree. In Thai "กำ" and Lao "ກຳ" the
#   vowel belongs to the character before it (one grapheme cluster), but a word boundary lies between
#   them. Two independent libraries follow the standard in this.
# Versions: regex 2026.11.19, uniseg 0.10.1.
# For a user: a label or map of a "word" can begin with half a character; take the boundaries that
#   both rules give.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q regex==2026.11.19 uniseg==0.10.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import regex
from uniseg.graphemecluster import grapheme_clusters
from uniseg.wordbreak import words

print("regex", version("regex"), "uniseg", version("uniseg"))
seen = {}
for name, text in {"Thai": "กำ", "Lao": "ກຳ", "Latin": "e\u0301"}.items():
    inside = [found.start() for found in regex.finditer(r"(?w)\b", text)][1:-1]
    seen[name] = (len(inside), len(regex.findall(r"\X", text)))
    by_uniseg = len(list(words(text))) - 1, len(list(grapheme_clusters(text)))
    print(f"{name} {text}: {seen[name][0]} word boundaries inside {seen[name][1]} character")
    if by_uniseg != seen[name]:
        print(f"changed: uniseg says {by_uniseg}, regex {seen[name]}")
        sys.exit(1)
if seen != {"Thai": (1, 1), "Lao": (1, 1), "Latin": (0, 1)}:
    print(f"changed: word boundaries inside characters are {seen}")
    sys.exit(1)
PYTHON
