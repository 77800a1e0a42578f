"""What the small Qwen3-VL is taught: its words, and what each patch of a screen shows."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from rolloutlib.models.families.qwen3_vl import merge_order
from rolloutlib.tiny.elements import (
    ElementHeads,
    element_accuracy,
    element_labels,
    element_loss,
    join_labels,
)
from rolloutlib.tiny.scenes import COLOURS
from rolloutlib.tiny.screens import ICONS, KINDS, NUMBERS, make_screens
from rolloutlib.tiny.tokenizers import ALL_LABELS, LETTERS, screen_tokenizer
from rolloutlib.tiny.weights import cosine_basis, number_codes

TOKENIZER = screen_tokenizer()


@pytest.fixture(scope="module")
def screens():
    return make_screens(7, 3)


def grid_of(screen):
    return screen.picture.height // 16, screen.picture.width // 16


def test_every_word_about_screens_is_known_and_every_answer_is_read_back(screens):
    for screen in screens:
        for asked in (*screen.instructions, *screen.questions):
            assert TOKENIZER.unk_token_id not in TOKENIZER.encode(asked.text)
            assert TOKENIZER.decode(TOKENIZER.encode(asked.answer)) == asked.answer


def test_a_coordinate_is_one_token():
    assert all(TOKENIZER.tokenize(str(number)) == [str(number)] for number in NUMBERS)
    assert len(TOKENIZER.tokenize("(412, 100)")) == 5


def test_tokens_are_numbered_without_gaps():
    assert sorted(TOKENIZER.get_vocab().values()) == [*range(len(TOKENIZER))]


def test_the_merge_order_is_that_of_the_processor():
    raster = np.arange(16 * 18, dtype=np.uint8).reshape(16, 18)
    picture = Image.fromarray(raster.repeat(16, 0).repeat(16, 1)).convert("RGB")
    processor = Qwen2VLImageProcessor(patch_size=16, do_normalize=False, do_rescale=False)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(
        pixels[:, 0].long(), torch.from_numpy(raster).flatten()[merge_order((16, 18), 2)]
    )


def test_labels_say_what_every_patch_shows(screens):
    """Compared with counting pixels, one patch at a time."""
    for screen in screens:
        grid = grid_of(screen)
        labels = element_labels(screen, grid)
        for index, patch in enumerate(merge_order(grid, 2).tolist()):
            row, column = divmod(patch, grid[1])
            shares = [pixels_inside(one.box, row, column) / 256 for one in screen.elements]
            if max(shares) <= 1 / 6:
                assert labels.kind[index] == len(KINDS) and not labels.on_element[index]
                continue
            element = screen.elements[int(np.argmax(shares))]
            left, top, right, bottom = element.box
            width, height = screen.picture.size
            spot = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            spot = np.array(spot) / [width, height, width, height]
            np.testing.assert_allclose(labels.spot[index] / 10, spot, atol=1e-6)
            assert KINDS[labels.kind[index]] == element.kind
            assert [*COLOURS][labels.colour[index]] == element.colour
            assert (*ICONS, "")[labels.icon[index]] == element.icon
            assert ALL_LABELS[labels.label[index]] == element.label
            assert (labels.row[index], labels.column[index]) == (element.row, element.column)


def pixels_inside(box, row, column):
    left, top, right, bottom = box
    wide = min(right, 16 * column + 16) - max(left, 16 * column)
    high = min(bottom, 16 * row + 16) - max(top, 16 * row)
    return max(wide, 0) * max(high, 0)


def letters_in(screen, row, column):
    """The letters that have two fifths of their area in this patch."""
    return {
        letter
        for element in screen.elements
        for box, letter in zip(element.letters, element.label, strict=True)
        if pixels_inside(box, row, column) > 0.4 * (box[2] - box[0]) * (box[3] - box[1])
    }


def test_letters_and_icons_are_where_they_are_drawn(screens):
    for screen in screens:
        labels = element_labels(screen, grid_of(screen))
        grid = grid_of(screen)
        for index, patch in enumerate(merge_order(grid, 2).tolist()):
            shown = {LETTERS[letter] for letter in labels.letters[index].nonzero().flatten()}
            assert shown == letters_in(screen, *divmod(patch, grid[1]))
        icons = {ICONS[mark] for mark in labels.mark.unique() if mark < len(ICONS)}
        assert icons == {element.icon for element in screen.elements} - {""}


def test_right_guesses_cost_less_than_wrong_ones_and_count_as_right(screens):
    labels = join_labels(element_labels(screen, grid_of(screen)) for screen in screens)
    guesses = {name: 8.0 * labels.letters - 4 for name in ("letters",)}
    for name, size in (ElementHeads.FAR | ElementHeads.NEAR).items():
        if name not in ("spot", "letters"):
            classes = getattr(labels, name).clamp(min=0)
            guesses[name] = 8.0 * torch.nn.functional.one_hot(classes, size)
    guesses["spot"] = labels.spot
    accuracy = element_accuracy(guesses, labels)
    assert accuracy.pop("centre") == 0
    assert set(accuracy.values()) == {1.0}
    wrong = {name: -guess for name, guess in guesses.items()}
    assert element_loss(guesses, labels) < 0.5 < element_loss(wrong, labels)


def test_heads_guess_everything_that_is_labelled(screens):
    labels = element_labels(screens[0], grid_of(screens[0]))
    features = torch.randn(2, len(labels.kind), 24)
    guesses = ElementHeads(24)(*features)
    assert guesses.keys() == vars(labels).keys()
    assert torch.isfinite(element_loss(guesses, labels))


def test_waves_keep_a_smooth_patch_whole():
    at = torch.linspace(0, 1, 16)
    brightness = (at[:, None] + at**2).expand(3, 16, 16).flatten()
    basis = cosine_basis(12, 5)
    torch.testing.assert_close(brightness @ basis.T @ basis, brightness, atol=0.02, rtol=0)


def test_numbers_are_most_like_themselves():
    codes = number_codes()
    assert torch.equal((codes @ codes.T).argmax(1), torch.arange(len(NUMBERS)))
    assert not re.search(r"nan|inf", str(codes.sum()))
