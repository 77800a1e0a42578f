#!/usr/bin/env bash
# Expected: a chat template that writes BOS itself gives one BOS, whether the tokenizer or the
#   processor around it tokenizes the conversation: both know the template and the BOS token.
# Instead: the tokenizer never adds special tokens to a rendered template. The processor does, unless
#   the text begins with BOS at its very first character. A template file that begins with a newline
#   or a space, as when `{{ bos_token }}` stands on its second line, gives two BOS from the processor
#   and one from the tokenizer. Neither warns.
# Versions: transformers 5.23.0, tokenizers 0.23.3.
# For a user: count BOS in `input_ids`. Two change the position of everything after them, and a model
#   that was trained with one answers a little worse for no visible reason.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6 pillow
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ProcessorMixin

WORDS = ["<unk>", "<s>", "USER:", "hello", "ASSISTANT:"]
TEMPLATE = "{{ bos_token }}USER: {{ messages[0].content[0].text }} ASSISTANT:"


class Processor(ProcessorMixin):
    """The smallest processor: a tokenizer and a chat template."""

    def __init__(self, tokenizer, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)


def tokenizer_of(template):
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    adds = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.post_processor = adds  # as Llama's tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", chat_template=template
    )


def bos_of(asked):
    content = [{"type": "text", "text": "hello"}]
    turns = [{"role": "user", "content": content}]
    ids = asked.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    return ids.count(1)


print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
seen = {}
for name, template in {"BOS first": TEMPLATE, "a newline, then BOS": "\n" + TEMPLATE}.items():
    tokenizer = tokenizer_of(template)
    seen[name] = bos_of(tokenizer), bos_of(Processor(tokenizer, template))
    print(f"{name}: {seen[name][0]} BOS by the tokenizer, {seen[name][1]} by the processor")
if seen != {"BOS first": (1, 1), "a newline, then BOS": (1, 2)}:
    print(f"changed: BOS tokens are {seen}")
    sys.exit(1)
PYTHON
