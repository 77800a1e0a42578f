"""The screens say what is where, and every instruction has exactly the element it claims."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolloutlib.tiny.scenes import COLOURS, COLUMNS, ROWS
from rolloutlib.tiny.screens import (
    ICONS,
    KINDS,
    LABELS,
    NAMED_BY,
    NUMBERS,
    SIZES,
    THEMES,
    is_inside,
    make_screen,
    make_screens,
    number_near,
)


@pytest.fixture(scope="module")
def screens():
    return make_screens(5, 40)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(288, 500), width=st.integers(288, 500))
def test_elements_stand_apart_in_cells_of_their_own(seed, height, width):
    screen = make_screen(np.random.default_rng(seed), size=(height, width))
    assert screen.picture.size == (width, height)
    assert 3 <= len(screen.elements) <= 6
    for element in screen.elements:
        left, top, right, bottom = element.box
        assert width * element.column // 3 <= left < right <= width * (element.column + 1) // 3
        assert height * element.row // 3 <= top < bottom <= height * (element.row + 1) // 3
        ys, xs = np.nonzero(element.mask)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == element.box
    assert np.sum([element.mask for element in screen.elements], axis=0).max() == 1


def test_nothing_of_an_element_is_painted_outside_its_box(screens):
    """Letters and icons too; the rest of the picture has only a few greys."""
    for screen in screens:
        outside = ~np.any([element.mask for element in screen.elements], axis=0)
        left = np.asarray(screen.picture)[outside]
        assert np.all(left == left[:, :1]), "only grey"
        assert len(np.unique(left[:, 0])) <= 2, "the ground, and the cards"


def test_an_element_shows_its_colour_its_icon_and_its_letters(screens):
    for screen in screens:
        pixels = np.asarray(screen.picture).astype(int)
        ink = THEMES[screen.theme]["ink"]
        for element in screen.elements:
            painted = np.abs(pixels - COLOURS[element.colour]).max(-1) <= 10
            assert (painted & element.mask).sum() > 60
            assert (element.kind == "button") == (element.icon in ICONS)
            if element.icon_box is not None:
                left, top, right, bottom = element.icon_box
                on_icon = painted[top:bottom, left:right].sum()
                assert on_icon > 0.9 * (painted & element.mask).sum()
            assert len(element.letters) == len(element.label)
            for left, top, right, bottom in element.letters:
                letter = pixels[top:bottom, left:right].mean(-1)
                strongest = letter.min() if screen.theme == "light" else letter.max()
                assert ink[0] - 45 <= strongest <= ink[1] + 45


def test_every_instruction_fits_one_element_alone(screens):
    for screen in screens:
        assert len({element.label for element in screen.elements}) == len(screen.elements)
        for instruction in screen.instructions:
            assert fitting(instruction.text, screen.elements) == [instruction.element]
            assert instruction.region is instruction.element.mask


def fitting(text, elements):
    """The elements that an instruction allows, read from its words alone."""
    label = re.search(r'"(\w+)"', text)
    words = set(re.sub(r'"\w+"', "", text).split())
    return [
        element
        for element in elements
        if set(element.kind.split()) <= words
        and (label is None or label[1] == element.label)
        and all(
            not (words & {*names}) or shown in words
            for names, shown in (
                (COLOURS, element.colour),
                (ICONS, element.icon),
                (ROWS, ROWS[element.row]),
                (COLUMNS, COLUMNS[element.column]),
            )
        )
    ]


def test_the_answer_and_the_point_are_inside_the_element(screens):
    for screen in screens:
        size = screen.picture.size[::-1]
        for instruction in screen.instructions:
            x, y = map(int, re.findall(r"\d+", instruction.answer))
            assert x in NUMBERS and y in NUMBERS
            assert is_inside((x, y), instruction.element.box, size)
            assert is_inside(instruction.point, instruction.element.box, size)
            assert instruction.accepts(instruction.answer)
            for other in screen.instructions:
                same = other.element is instruction.element
                assert instruction.accepts(f"click at {other.answer}.") == same
            for wrong in ("", str(x), f"{instruction.answer} {x}", f"({y + 1000}, {x + 1000})"):
                assert not instruction.accepts(wrong)
            assert max(abs(x - instruction.point[0]), abs(y - instruction.point[1])) <= 4


def test_every_question_is_answered_by_its_element(screens):
    for screen in screens:
        for question in screen.questions:
            [element] = [one for one in screen.elements if one.mask is question.region]
            said = {
                "colour": element.colour,
                "icon": element.icon,
                "where": element.place,
                "label": element.label,
                "kind": element.kind,
            }
            if question.kind in ("right", "down"):
                left, top, right, bottom = element.box
                middle = {
                    "right": (left + right) / 2 / screen.picture.width,
                    "down": (top + bottom) / 2 / screen.picture.height,
                }
                assert abs(int(question.answer) - 1000 * middle[question.kind]) <= 4
            else:
                assert question.answer == said[question.kind]
                assert question.answer not in question.text


def test_screens_are_varied(screens):
    elements = [element for screen in screens for element in screen.elements]
    assert {element.kind for element in elements} == {*KINDS}
    assert {element.colour for element in elements} == {*COLOURS}
    assert {element.icon for element in elements} == {*ICONS, ""}
    assert {screen.theme for screen in screens} == {*THEMES}
    assert {screen.picture.size[::-1] for screen in screens} == {*SIZES["seen"]}
    instructions = [instruction for screen in screens for instruction in screen.instructions]
    assert {instruction.kind for instruction in instructions} == {*NAMED_BY}


def test_labels_are_distinct_over_all_kinds():
    labels = [label for labels in LABELS.values() for label in labels]
    assert len(set(labels)) == len(labels)


def test_sizes_include_some_that_the_processor_has_to_change():
    sizes = {*SIZES["seen"], *SIZES["unseen"]}
    assert len(sizes) == len(SIZES["seen"]) + len(SIZES["unseen"])
    assert any(height % 32 or width % 32 for height, width in SIZES["seen"])
    assert any(height > width for height, width in sizes)


def test_the_same_seed_makes_the_same_screens():
    first, second = (make_screens(3, 2) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.picture.tobytes() == other.picture.tobytes()
        assert [i.text for i in one.instructions] == [i.text for i in other.instructions]
    assert make_screens(4, 1)[0].picture.tobytes() != first[0].picture.tobytes()


@settings(max_examples=50, deadline=None)
@given(part=st.floats(0, 1))
def test_the_nearest_number_is_nearest(part):
    assert abs(number_near(part) - 1000 * part) <= 4.0001


@pytest.mark.parametrize("elements", [(1, 1), (2, 4), (6, 6)])
def test_a_screen_has_as_many_elements_as_asked_for(elements):
    for screen in make_screens(0, 4, elements=elements):
        assert elements[0] <= len(screen.elements) <= elements[1]


def test_bad_input_is_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="288 pixels high and wide, got"):
        make_screen(rng, size=(200, 400))
    with pytest.raises(ValueError, match="count must be 0 or more, got -1"):
        make_screens(0, -1)
    with pytest.raises(ValueError, match="at least one size"):
        make_screens(0, 1, sizes=[])
    with pytest.raises(ValueError, match=r"a share must be in \[0, 1\], got 1.2"):
        number_near(1.2)
    for elements in ((0, 2), (3, 2), (1, 7)):
        with pytest.raises(ValueError, match="expected 1 to 6 elements"):
            make_screen(rng, elements=elements)
