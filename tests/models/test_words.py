"""Words of every kind of tokenizer: whole characters, whole tokens, and nothing lost."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, tokenizer

from rolloutlib.models.words import Word, by_word, read_parts, read_words, special_ids

# Tokenizers that know every character.
LOSSLESS = ("byte level", "byte fallback", "slow")


def words_in(kind, text):
    ids = tokenizer(kind)(text, add_special_tokens=False)["input_ids"]
    return read_words(tokenizer(kind), ids), ids


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "unigram", "word piece", "slow"])
def test_pieces_become_words_and_keep_their_spaces(kind):
    words, ids = words_in(kind, "starred reddish star")
    assert words == ["starred", " reddish", " star"]
    assert len(ids) > 3 and [len(word.tokens) for word in words] != [1, 1, 1]


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the 😀 star", ["the", " 😀", " star"]),
        ("a 👩‍👩‍👧 b", ["a", " 👩‍👩‍👧", " b"]),
        ("x 🇩🇪🇫🇷", ["x", " 🇩🇪", "🇫🇷"]),
        ("été e\u0301t", ["été", " e\u0301t"]),
        ("don't 3.14", ["don't", " 3.14"]),
        ("x\n\ny", ["x", "\n", "\n", "y"]),
        ("한국어 글자", ["한국어", " 글자"]),
        ("กำ ก", ["กำ", " ก"]),
        ("зве́зда ёлка", ["зве́зда", " ёлка"]),
    ],
)
def test_characters_of_several_tokens_are_whole(kind, text, expected):
    words, ids = words_in(kind, text)
    assert words == expected and "�" not in "".join(words)
    assert (
        any("�" in tokenizer(kind).decode([number]) for number in ids)
        or text.isascii()
        or (kind == "slow" or "é" in text)
    )


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_chinese_sentence_is_not_one_word(kind):
    words, _ = words_in(kind, "点击按钮 (412, 96)")
    assert words[:4] == ["点", "击", "按", "钮"] and "".join(words).endswith(" (412, 96)")
    assert all("412" in word or not set("412") & set(word) for word in words)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "unigram", "word piece"])
def test_a_special_token_is_a_word_of_its_own(kind):
    words, _ = words_in(kind, "star</s>red<|im_end|>")
    assert [word.strip() for word in words] == ["star", "</s>", "red", "<|im_end|>"]


def test_unfinished_characters_are_kept():
    letters = tokenizer("byte level")
    ids = letters("star 😀", add_special_tokens=False)["input_ids"]
    for end in range(1, len(ids) + 1):
        words = read_words(letters, ids[:end])
        assert "".join(words) == letters.decode(ids[:end])
        assert [token for word in words for token in word.tokens] == list(range(end))


def test_tidied_spaces_are_those_of_the_text():
    words, _ = words_in("word piece", "don't wait: the star.")
    assert words == ["don't", " wait", " :", " the", " star", "."]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_tokens_give_words_that_cover_them_and_join_to_the_text(kind, data):
    known = tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, len(known) - 1), min_size=1, max_size=12))
    special = special_ids(known)
    for read in (read_parts, read_words):
        words = read(known, ids)
        assert "".join(words) == known.decode(ids)
        assert [token for word in words for token in word.tokens] == list(range(len(ids)))
        assert all(word.tokens for word in words)
    for word in words:
        own = [ids[token] for token in word.tokens]
        assert len(own) == 1 or special.isdisjoint(own) or "" in map(known.decode, own)


def test_a_word_is_text_and_has_the_mean_of_its_rows():
    words = [Word("the", [0]), Word(" star", [1, 2])]
    assert copy.deepcopy(words) == words == ["the", " star"]
    assert copy.deepcopy(words)[1].tokens == [1, 2]
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    torch.testing.assert_close(by_word(rows, words), torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    maps = torch.arange(12.0).view(3, 2, 2)
    torch.testing.assert_close(by_word(maps, words)[1], (maps[1] + maps[2]) / 2)


def test_no_tokens_are_no_words():
    assert read_words(tokenizer("byte level"), []) == []
