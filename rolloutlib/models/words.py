"""Words: the tokens of a text, merged to what a person reads."""

from collections.abc import Iterable, Sequence

import regex
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

# Boundaries of words and characters as a person sees them, by the Unicode standard (annex 29).
BOUNDARY, CHARACTER = regex.compile(r"(?w)\b"), regex.compile(r"\X")


class Word(str):
    """A part of a text that knows its tokens: their numbers, counted from 0."""

    def __new__(cls, text: str, tokens: Iterable[int] = ()):
        word = super().__new__(cls, text)
        word.tokens = list(tokens)
        return word


def read_words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Word]:
    """The words of a text by its token ids; "".join gives the text as decoded.

    A word has whole tokens and whole characters, so a token of two words is not divided. White
    space belongs to the word that follows, and a special token is a word of its own.
    """
    parts = read_parts(tokenizer, ids)
    starts = [{f.start() for f in way.finditer("".join(parts))} for way in (BOUNDARY, CHARACTER)]
    boundaries = set.intersection(*starts)
    special, words, start, alone = special_ids(tokenizer), [], 0, False
    for part in parts:
        before, alone = alone, not special.isdisjoint(ids[token] for token in part.tokens)
        blank = bool(words) and not words[-1].strip(" ")
        if words and not (before or alone) and (blank or start not in boundaries):
            words[-1] = Word(words[-1] + part, words[-1].tokens + part.tokens)
        else:
            words.append(part)
        start += len(part)
    if len(words) > 1 and not words[-1] and not alone:  # last tokens that add nothing to the text
        last = words.pop()
        words[-1] = Word(words[-1], words[-1].tokens + last.tokens)
    return words


def read_parts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Word]:
    """The shortest parts of a text that can be read: most are one token, but a character may have
    several, and its first ones alone decode to something else. A part may be empty.
    """
    parts, text, start, first = [], tokenizer.decode(ids), 0, 0
    for end in range(1, len(ids) + 1):
        so_far = tokenizer.decode(ids[:end])
        if len(so_far) >= start and text.startswith(so_far):
            parts.append(Word(text[start : len(so_far)], range(first, end)))
            start, first = len(so_far), end
    return parts


def by_word(
    rows: Float[torch.Tensor, "token ..."], words: Sequence[Word]
) -> Float[torch.Tensor, "word ..."]:
    """The mean of the rows, or heatmaps, of each word's tokens."""
    return torch.stack([rows[word.tokens].mean(0) for word in words])


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of all special tokens, also of those that have no name such as EOS."""
    added = tokenizer.added_tokens_decoder.items()
    return set(tokenizer.all_special_ids) | {number for number, token in added if token.special}
