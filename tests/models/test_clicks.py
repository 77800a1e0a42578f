"""Points in the text of an answer, and the tokens that spell them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_llava import small_tokenizer as word_tokenizer
from small_qwen3_vl import save_small_qwen3_vl
from small_tokenizers import answered as answered_in
from small_tokenizers import tokenizer

from rolloutlib import load_model
from rolloutlib.models.clicks import read_click


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load_model(save_small_qwen3_vl(tmp_path_factory.mktemp("qwen")), dtype="float32")


@pytest.fixture(scope="module")
def asked(qwen):
    pictures = [Image.new("RGB", (64, 64))]
    return pictures, qwen.prepare(pictures, "click")


def answered(qwen, asked, text):
    """The answer that the model would have given with this text."""
    pictures, inputs = asked
    generated = qwen.processor.tokenizer(text, return_tensors="pt")["input_ids"]
    sequences = torch.cat([inputs["input_ids"], generated], 1)
    return qwen.answer(pictures, "click", inputs, sequences)


WAYS = [
    "({x}, {y})",
    "{x} {y}",
    "{x},{y}",
    "Clicking at [{x}, {y}].",
    '{{"point_2d": [{x}, {y}], "label": "red button 7"}}',
    '```json\n[\n\t{{"point_2d": [{x}, {y}], "label": "été"}}\n]\n```',
    '<tool_call>{{"name": "click", "arguments": {{"x": {x}, "y": {y}}}}}</tool_call>',
    '{{"action": "left_click", "coordinate": [{x}, {y}]}}',
    "x={x}, y={y}",
    '<point x="{x}" y="{y}">button 2</point>',
    "The 3rd of 5 buttons, 😀: ({x}, {y}), not (1, 2)",
]


@pytest.mark.parametrize(
    ("text", "lands"), [("(250, 500)", True), ("(750, 500)", False), ("(250, 5000)", False)]
)
def test_a_click_lands_in_a_region_or_beside_it(qwen, asked, text, lands):
    left = np.arange(64)[None] < np.full((64, 1), 32)
    assert read_click(answered(qwen, asked, text)).inside(left) == lands


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("x", "y"), [(412, 96), (0, 999), (7, 40)])
def test_every_digit_of_a_point_is_found(qwen, asked, way, x, y):
    answer = answered(qwen, asked, way.format(x=x, y=y))
    click = read_click(answer)
    assert (click.x, click.y, click.message) == (x, y, "")
    assert "".join(answer.tokens[token] for token in click.x_tokens) == str(x)
    assert "".join(answer.tokens[token] for token in click.y_tokens) == str(y)
    assert click.tokens == click.x_tokens + click.y_tokens
    before = way.partition("{x}")[0].replace("{{", "{").replace("}}", "}")
    assert click.x_tokens[0] == len(before.encode())  # a token is a byte here


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from(WAYS))
def test_any_point_is_read(qwen, asked, x, y, way):
    click = read_click(answered(qwen, asked, way.format(x=x, y=y)))
    assert (click.x, click.y, click.message) == (x, y, "")


@pytest.mark.parametrize(
    "text",
    [
        "there is no such button",
        "there are 2 of 3 buttons",
        '{"bbox_2d": [10, 20, 30, 40]}',
        "10 20 30 40",
        "412",
        "click",
    ],
)
def test_an_answer_without_a_point_says_so_and_keeps_all_tokens(qwen, asked, text):
    answer = answered(qwen, asked, text)
    click = read_click(answer)
    assert "no point in the answer" in click.message and text in click.message
    assert click.tokens == list(range(len(answer.tokens)))
    assert click.pixel((100, 100)) is None and click.x is None


@pytest.mark.parametrize("point", ["(1000, 96)", "(412, -1)", "(0.4, 0.1)", '"x": 5, "y": 2000'])
def test_a_point_outside_says_so_and_keeps_its_tokens(qwen, asked, point):
    answer = answered(qwen, asked, point)
    click = read_click(answer)
    assert "expected whole numbers in 0..999, got" in click.message
    assert click.pixel((100, 100)) is None
    assert "".join(answer.tokens[t] for t in click.x_tokens) in point and click.y_tokens


def test_numbers_that_are_one_token_each_are_found(qwen, asked, monkeypatch):
    """With a tokenizer of whole words, which puts a space between any two tokens."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["412", "96", "(", ")", ","])
    monkeypatch.setattr(qwen.processor, "tokenizer", tokenizer)
    pictures, inputs = asked
    numbers = tokenizer.convert_tokens_to_ids(["(", "412", ",", "96", ")"])
    sequences = torch.cat([inputs["input_ids"], torch.tensor([numbers])], 1)
    click = read_click(qwen.answer(pictures, "click", inputs, sequences))
    assert (click.x, click.y, click.x_tokens, click.y_tokens) == (412, 96, [1], [3])


def test_a_point_lies_on_the_picture(qwen, asked):
    click = read_click(answered(qwen, asked, "(0, 999)"))
    assert click.pixel((100, 2000)) == (1.0, 99.95)


FAST = ["byte level", "byte fallback", "unigram", "word piece", "end of word"]


def spelt_by(kind, text):
    """For x and for y, the tokens whose characters the tokenizer itself says they have."""
    encoded = tokenizer(kind)(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    for number in ("412", "96"):
        start = text.rindex(number)
        end = start + len(number)
        over = enumerate(encoded["offset_mapping"])
        spans.append([token for token, (a, b) in over if a < end and b > start])
    return encoded["input_ids"], spans


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("before", ["点击按钮 ", "été 😀 ", "Нажмите ", "click ", "", "<|im_end|>"])
def test_a_point_behind_any_script_has_its_own_tokens(kind, before):
    ids, spans = spelt_by(kind, f"{before}(412, 96)")
    click = read_click(answered_in(tokenizer(kind), ids))
    assert (click.x, click.y) == (412, 96)
    assert [click.x_tokens, click.y_tokens] == spans


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@given(before=st.text(st.characters(exclude_categories=["Cs", "Nd"]), max_size=12))
def test_a_point_behind_any_text_has_its_own_tokens(kind, before):
    ids, spans = spelt_by(kind, f"{before} (412, 96)")
    click = read_click(answered_in(tokenizer(kind), ids))
    assert [click.x_tokens, click.y_tokens] == spans
