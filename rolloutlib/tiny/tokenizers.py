"""Tokenizers with few words, one for each small checkpoint."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Int
from transformers import PreTrainedTokenizerFast

from rolloutlib.extras import needs
from rolloutlib.tiny.scenes import COLOURS, COLUMNS, ROWS, SHAPES
from rolloutlib.tiny.screens import ICONS, KINDS, LABELS, NUMBERS

with needs("notebooks"):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL = ("<pad>", "<unk>", "</s>", "<image>")
PROMPT = ("user", "assistant", ":", "?")
QUESTION = "what where is the there a an object at colour shape yes no".split()
NAMES = (*COLOURS, *SHAPES, *ROWS, *COLUMNS)
VOCABULARY = (*SPECIAL, *PROMPT, *QUESTION, *NAMES)
# What Fuyu's processor writes: picture, end of a row, end of the picture, start of the answer.
FUYU_SPECIAL = ("<pad>", "<unk>", "</s>", "<s>", "|SPEAKER|", "|NEWLINE|", "<0x04>", "▁", "\n", "?")


def scene_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word and punctuation mark in the scenes' questions and answers.

    >>> scene_tokenizer().tokenize("What colour is the star?")
    ['what', 'colour', 'is', 'the', 'star', '?']
    """
    special = {"additional_special_tokens": ["<image>"]}
    return _tokenizer(VOCABULARY, pre_tokenizers.Whitespace(), **special)


def _tokenizer(
    words: Iterable[str],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    **special_tokens,
) -> PreTrainedTokenizerFast:
    """One token for each word; texts are put in lower case by default, and padded on the left."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizer or normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizer
    # A batch of prompts ends where its answers begin.
    settings = {"pad_token": "<pad>", "eos_token": "</s>", "padding_side": "left"} | special_tokens
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **settings)


def _only(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Splits a text into what the pattern fits, and drops the rest."""
    return pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)


def fuyu_tokenizer() -> PreTrainedTokenizerFast:
    """The same words with Fuyu's special tokens; texts begin with "▁", which its processor drops.

    >>> fuyu_tokenizer().tokenize("|SPEAKER||NEWLINE|Where is it?\\n<0x04>")
    ['▁', '|SPEAKER|', '|NEWLINE|', 'where', 'is', '<unk>', '?', '\\n', '<0x04>']
    """
    signs = [normalizers.Replace(sign.lower(), sign) for sign in ("|SPEAKER|", "|NEWLINE|")]
    return _tokenizer(
        (*FUYU_SPECIAL, *QUESTION, *NAMES),
        _only(r"▁|\|\w+\||<0x04>|\n|[^\W▁_]+|[^\w\s]"),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Lowercase(), *signs]),
        bos_token="<s>",
    )


# Qwen's own special tokens, and the words of questions and instructions about screens.
SCREEN_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> "
    "<|video_pad|>"
).split()
SCREEN_WORDS = (
    'user assistant system ? " ( ) , click what where how is does say far down the at on colour '
    "icon"
).split()
ALL_LABELS = tuple(label for labels in LABELS.values() for label in labels)
SCREEN_NAMES = (*" ".join(KINDS).split(), *COLOURS, *ICONS, *ROWS, *COLUMNS, *ALL_LABELS)
LETTERS = tuple(sorted(set("".join(ALL_LABELS))))
# The part of Qwen3-VL's chat template that one turn with pictures or videos needs.
SCREEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def screen_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's special tokens, one token for each word about screens, and one for each coordinate.

    >>> tokenizer = screen_tokenizer()
    >>> tokenizer.tokenize('Click the button "save"<|im_end|>')
    ['click', 'the', 'button', '"', 'save', '"', '<|im_end|>']
    >>> tokenizer.decode(tokenizer.encode("(412, 100)"))
    '(412, 100)'
    """
    return _qwen_tokenizer((*SCREEN_WORDS, *SCREEN_NAMES, *map(str, NUMBERS)))


def turn_tokenizer() -> PreTrainedTokenizerFast:
    """The scenes' words, with Qwen's special tokens, which SCREEN_TEMPLATE puts around a turn.

    >>> turn_tokenizer().tokenize("<|vision_end|>Where is the red star?<|im_end|>")
    ['<|vision_end|>', 'where', 'is', 'the', 'red', 'star', '?', '<|im_end|>']
    """
    return _qwen_tokenizer((*PROMPT, *QUESTION, *NAMES))


def _qwen_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    pad, *others = SCREEN_SPECIAL
    special = {"pad_token": pad, "eos_token": "<|im_end|>", "additional_special_tokens": others}
    split = _only(r"\w+|[^\w\s]")
    tokenizer = _tokenizer((*SCREEN_SPECIAL, "<unk>", *words), split, **special)
    tighten = [decoders.Replace(*pair) for pair in (("( ", "("), (" )", ")"))]
    steps = [decoders.WordPiece(), decoders.Fuse(), *tighten]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def known_words(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """How many words there are and which are special, as a decoder's configuration names them.

    >>> known_words(screen_tokenizer())
    {'vocab_size': 207, 'bos_token_id': None, 'eos_token_id': 2, 'pad_token_id': 0}
    """
    special = (f"{name}_token_id" for name in ("bos", "eos", "pad"))
    return {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in special}


def word_ids(
    tokenizer: PreTrainedTokenizerFast, names: Mapping[str, Iterable[str]]
) -> dict[str, Int[torch.Tensor, " word"]]:
    """The tokens for the words of each group, and last, for none of them, the unknown word.

    >>> word_ids(scene_tokenizer(), {"row": ROWS})
    {'row': tensor([35, 36, 37,  1])}
    """
    return {
        group: torch.tensor(tokenizer.convert_tokens_to_ids([*words, tokenizer.unk_token]))
        for group, words in names.items()
    }
