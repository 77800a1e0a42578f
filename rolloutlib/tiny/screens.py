"""Generated screenshots whose instructions have one correct element, in a known box.

Buttons with icons, text fields, check boxes and sliders are in the cells of a 3 x 3 grid, on a
light or a dark background. So a click, and a map of where a model looked before it clicked, can be
scored against the element that was asked for.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont

from rolloutlib.tiny.scenes import COLOURS, SHAPES, Question, SceneObject, choose_looks, draw_cover

LABELS: dict[str, tuple[str, ...]] = {
    "button": ("save", "open", "send", "help", "copy", "print", "play", "edit"),
    "text field": ("name", "mail", "city", "code", "date", "price"),
    "check box": ("sound", "wifi", "dark", "sync", "bold", "auto"),
    "slider": ("zoom", "speed", "light", "bass", "size", "blur"),
}
KINDS = tuple(LABELS)
ICONS = SHAPES
# How an instruction can name its element.
NAMED_BY = ("colour and icon", "icon", "colour", "kind", "place", "label")
# Answers name only these coordinates of 0..999: the middles of 125 equal bins.
NUMBERS = tuple(range(4, 1000, 8))
# (height, width) in pixels; those only for testing are between those for training.
SIZES = {
    "seen": ((320, 448), (448, 320), (384, 384), (320, 416), (352, 384), (300, 400)),
    "unseen": ((352, 416), (416, 352), (400, 300)),
}
THEMES: dict[str, dict[str, tuple[int, int]]] = {  # darkest and lightest grey of each part
    "light": {"ground": (228, 248), "card": (246, 256), "face": (196, 218), "ink": (15, 55)},
    "dark": {"ground": (22, 44), "card": (46, 62), "face": (78, 98), "ink": (222, 250)},
}
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]
UNIT = 8  # pixels; edges of elements are multiples of it, as in most design systems
FONT_SIZE = 15


@dataclass(frozen=True)
class Element:
    """One element of an interface, in row and column of the 3 x 3 cells.

    icon: what a button shows; "" for the other kinds.
    box: (left, top, right, bottom) in pixels, the last two excluded; label included.
    mask: the same as pixels, with a button's and a field's rounded corners left out.
    letters: the box of each letter of the label.
    icon_box: the box of the icon; None for the other kinds.
    """

    kind: str
    colour: str
    icon: str
    label: str
    row: int
    column: int
    box: Box
    mask: Bool[np.ndarray, "height width"]
    letters: tuple[Box, ...]
    icon_box: Box | None

    place = SceneObject.place


@dataclass(frozen=True)
class Instruction(Question):
    """An instruction that fits only `element`, and its centre as (x, y) in 0..999."""

    element: Element
    point: tuple[int, int]

    def accepts(self, answer: str) -> bool:
        """Whether an answer names one point, x and y in 0..999, inside the element."""
        point = tuple(map(int, re.findall(r"\d+", answer)))
        return len(point) == 2 and is_inside(point, self.element.box, self.region.shape)


@dataclass(frozen=True)
class Screen:
    """A picture, the elements on it, what to click, and questions that have exactly one answer."""

    picture: Image.Image
    theme: str
    elements: tuple[Element, ...]
    instructions: tuple[Instruction, ...]
    questions: tuple[Question, ...]


def make_screens(
    seed: int,
    count: int,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES["seen"],
    elements: tuple[int, int] = (3, 6),
) -> list[Screen]:
    """`count` screens, their (height, width) in turn from `sizes`; same seed, same screens.

    elements: how many elements a screen has, at least and at most.

    >>> [screen.picture.size for screen in make_screens(0, 3, sizes=[(288, 320), (320, 288)])]
    [(320, 288), (288, 320), (320, 288)]

    Raises ValueError for a negative count, for no sizes, and what `make_screen` raises.
    """
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
    if not sizes:
        raise ValueError("expected at least one size, got none")
    rng = np.random.default_rng(seed)
    return [make_screen(rng, size=size, elements=elements) for size in islice(cycle(sizes), count)]


def make_screen(
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (320, 448),
    elements: tuple[int, int] = (3, 6),
) -> Screen:
    """A screen of elements with random kind, colour, icon and label, each in its own cell.

    No label occurs twice, and no two buttons share both icon and colour. `size` is
    (height, width) in pixels, each at least 288; `elements` are the fewest and the most.

    >>> screen = make_screen(np.random.default_rng(1), size=(288, 320))
    >>> screen.instructions[0].text, screen.instructions[0].answer
    ('click the green text field', '(500, 892)')

    Raises ValueError for a size too small for the largest element, or for a number of elements
    for which one kind has too few labels.
    """
    fewest, most = elements
    if not 1 <= fewest <= most <= 6:
        raise ValueError(f"expected 1 to 6 elements, the fewest first, got {elements}")
    if min(size) < 288:
        raise ValueError(f"a screen must be at least 288 pixels high and wide, got {size}")
    theme = str(rng.choice(list(THEMES)))
    greys = {part: (int(rng.integers(*span)),) * 3 for part, span in THEMES[theme].items()}
    picture = Image.new("RGB", size[::-1], greys["ground"])
    cells = [divmod(int(cell), 3) for cell in rng.permutation(9)]
    count = int(rng.integers(fewest, most + 1))
    for cell in cells[count - 1 :: 2]:
        _draw_card(rng, picture, cell, greys["card"])
    looks = zip(cells, _choose_looks(rng, count), strict=False)
    things = tuple(_draw_element(rng, picture, cell, look, greys) for cell, look in looks)
    instructions, questions = _instructions(things, size), _questions(things, size)
    return Screen(picture, theme, things, tuple(instructions), tuple(questions))


def number_near(part: float) -> int:
    """The one of NUMBERS nearest to this share, in [0, 1], of a picture's width or height.

    >>> number_near(0.0), number_near(0.5), number_near(1.0)
    (4, 500, 996)

    Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= part <= 1:
        raise ValueError(f"a share must be in [0, 1], got {part}")
    return NUMBERS[min(int(part * len(NUMBERS)), len(NUMBERS) - 1)]


def is_inside(point: tuple[int, int], box: Box, size: tuple[int, int]) -> bool:
    """Whether (x, y) in 0..999 is inside a box of pixels, on a picture of `size` (height, width).

    >>> is_inside((500, 500), (40, 20, 60, 30), size=(50, 100))
    True
    >>> is_inside((500, 900), (40, 20, 60, 30), size=(50, 100))
    False
    """
    x, y = ((at + 0.5) / 1000 * length for at, length in zip(point, size[::-1], strict=True))
    left, top, right, bottom = box
    return left <= x < right and top <= y < bottom


class Look(NamedTuple):
    """What an element is, before it has a place."""

    kind: str
    colour: str
    icon: str
    label: str


def _choose_looks(rng: np.random.Generator, count: int) -> Iterator[Look]:
    """Looks of different elements, about half of them buttons."""
    kinds = rng.choice(KINDS, count, p=[0.5, 0.16, 0.17, 0.17])
    labels = {kind: iter(rng.permutation(names)) for kind, names in LABELS.items()}
    for kind, (colour, icon) in zip(kinds, choose_looks(rng, count), strict=True):
        yield Look(str(kind), colour, icon if kind == "button" else "", str(next(labels[kind])))


def phrases(element: Element, elements: Sequence[Element]) -> dict[str, str]:
    """Phrases that name this element and no other; keys as in NAMED_BY.

    >>> first, field = make_screen(np.random.default_rng(3), elements=(2, 2)).elements
    >>> phrases(field, [first, field])["place"]
    'text field at the bottom left'
    """
    kind, colour, icon = element.kind, element.colour, element.icon
    named = {
        "colour and icon": (f"{colour} {icon} {kind}", attrgetter("kind", "colour", "icon")),
        "icon": (f"{icon} {kind}", attrgetter("kind", "icon")),
        "colour": (f"{colour} {kind}", attrgetter("kind", "colour")),
        "kind": (kind, attrgetter("kind")),
        "place": (f"{kind} at the {element.place}", attrgetter("kind", "place")),
        "label": (f'{kind} "{element.label}"', attrgetter("kind", "label")),
    }
    if not icon:
        del named["colour and icon"], named["icon"]
    return {
        by: text
        for by, (text, told) in named.items()
        if [told(other) for other in elements].count(told(element)) == 1
    }


def _centre(element: Element, size: tuple[int, int]) -> tuple[float, float]:
    """An element's centre as shares of the picture's width and height."""
    left, top, right, bottom = element.box
    return (left + right) / 2 / size[1], (top + bottom) / 2 / size[0]


def _instructions(elements: Sequence[Element], size: tuple[int, int]) -> Iterator[Instruction]:
    for element in elements:
        x, y = _centre(element, size)
        answer = f"({number_near(x)}, {number_near(y)})"
        point = int(x * 1000), int(y * 1000)
        for by, text in phrases(element, elements).items():
            yield Instruction(by, f"click the {text}", answer, element.mask, element, point)


def _questions(elements: Sequence[Element], size: tuple[int, int]) -> Iterator[Question]:
    """Questions about what the phrase for an element does not already tell."""
    for element in elements:
        right, down = (str(number_near(part)) for part in _centre(element, size))
        asked = [
            ("colour", "what colour is the {}?", element.colour),
            ("where", "where is the {}?", element.place),
            ("label", "what does the {} say?", element.label),
            ("right", "how far right is the {}?", right),
            ("down", "how far down is the {}?", down),
            ("icon", "what icon is on the {}?", element.icon),
        ]
        told = {"where": "place"}
        for by, phrase in phrases(element, elements).items():
            for kind, text, answer in asked:
                if answer and told.get(kind, kind) not in by:
                    yield Question(kind, text.format(phrase), answer, element.mask)
        yield Question("kind", f"what is at the {element.place}?", element.kind, element.mask)


def _cell_box(cell: tuple[int, int], size: tuple[int, int]) -> Box:
    (row, column), (width, height) = cell, size
    left, right = column * width // 3, (column + 1) * width // 3
    return left, row * height // 3, right, (row + 1) * height // 3


def _draw_card(
    rng: np.random.Generator, picture: Image.Image, cell: tuple[int, int], grey: Colour
) -> None:
    """A panel behind a cell; no instruction asks for it."""
    left, top, right, bottom = _cell_box(cell, picture.size)
    margin = int(rng.integers(2, 6))
    box = (left + margin, top + margin, right - margin, bottom - margin)
    ImageDraw.Draw(picture).rounded_rectangle(box, 6, fill=grey)


def _draw_element(
    rng: np.random.Generator,
    picture: Image.Image,
    cell: tuple[int, int],
    look: Look,
    greys: dict[str, Colour],
) -> Element:
    """Draw an element somewhere in its cell, and return what was drawn."""
    font = ImageFont.load_default(FONT_SIZE)
    units = _needed(rng, look, int(np.ceil(font.getlength(look.label))))
    width, height = (length * UNIT for length in units)
    left, top, right, bottom = _cell_box(cell, picture.size)
    x = UNIT * int(rng.integers(left // UNIT + 1, (right - width) // UNIT + 1))
    y = UNIT * int(rng.integers(top // UNIT + 1, (bottom - height) // UNIT + 1))
    box = (x, y, x + width, y + height)
    paint = np.clip(np.add(COLOURS[look.colour], rng.integers(-10, 11, 3)), 0, 255).tolist()
    greys = [greys[part] for part in ("face", "card", "ink")]
    pen = Pen(ImageDraw.Draw(picture), font, tuple(paint), *greys)
    cover = Image.new("L", picture.size)
    _rounded(ImageDraw.Draw(cover), box, fill=255)
    at, icon_box = DRAWN[look.kind](rng, pen, box, look)
    return Element(*look, *cell, box, np.asarray(cover) > 0, pen.write(at, look.label), icon_box)


@dataclass(frozen=True)
class Pen:
    """What an element is drawn with: its colour, and the greys and the letters of its screen."""

    draw: ImageDraw.ImageDraw
    font: ImageFont.FreeTypeFont
    paint: Colour
    face: Colour
    card: Colour
    ink: Colour

    def write(self, at: tuple[int, int], text: str) -> tuple[Box, ...]:
        """Text from (x, y), the middle of its left edge; returns the box of each letter."""
        self.draw.text(at, text, fill=self.ink, font=self.font, anchor="lm")
        x, y = at
        ends = [x + round(self.font.getlength(text[:count])) for count in range(len(text) + 1)]
        half = FONT_SIZE // 2
        return tuple((start, y - half, end, y + half) for start, end in pairwise(ends))


def _needed(rng: np.random.Generator, look: Look, text: int) -> tuple[int, int]:
    """Width and height, in units, of an element whose label is `text` pixels wide."""
    if look.kind == "check box":
        return -(-(text + 32) // UNIT), 3
    if look.kind == "button":
        return -(-(text + 43) // UNIT) + int(rng.integers(0, 2)), 4
    return int(rng.integers(9, 12)), 4 if look.kind == "text field" else 5


def _rounded(draw: ImageDraw.ImageDraw, box: Box, **colours: object) -> None:
    left, top, right, bottom = box
    draw.rounded_rectangle((left, top, right - 1, bottom - 1), 6, **colours)


# Each returns where the label begins, and the box of the icon if there is one.
Drawn = tuple[tuple[int, int], Box | None]


def _draw_button(rng: np.random.Generator, pen: Pen, box: Box, look: Look) -> Drawn:
    """A raised face with an icon before the label."""
    left, top, _, bottom = box
    middle = (top + bottom) // 2
    _rounded(pen.draw, box, fill=pen.face)
    radius = rng.uniform(11, 13)
    side = int(2 * radius) + 2
    x, y = left + 18 - side // 2, middle - side // 2
    turn = np.pi / 4 if look.icon == "square" else 0.0  # outlines are for scenes, which turn them
    pen.draw.bitmap((x, y), draw_cover(look.icon, radius, turn, side / 2), fill=pen.paint)
    return (left + 36, middle), (x, y, x + side, y + side)


def _draw_field(rng: np.random.Generator, pen: Pen, box: Box, look: Look) -> Drawn:
    """A frame in the element's colour, the label inside, and a cursor."""
    left, top, right, bottom = box
    _rounded(pen.draw, box, fill=pen.card, outline=pen.paint, width=3)
    pen.draw.line((right - 9, top + 8, right - 9, bottom - 9), fill=pen.ink)
    return (left + 9, (top + bottom) // 2), None


def _draw_check_box(rng: np.random.Generator, pen: Pen, box: Box, look: Look) -> Drawn:
    """A square before the label, ticked or empty."""
    left, top, _, bottom = box
    middle = (top + bottom) // 2
    square = (left + 3, middle - 10, left + 22, middle + 9)
    if rng.random() < 0.5:
        pen.draw.rectangle(square, fill=pen.paint)
        tick = [(left + 7, middle), (left + 11, middle + 4), (left + 18, middle - 5)]
        pen.draw.line(tick, fill=pen.card, width=3)
    else:
        pen.draw.rectangle(square, fill=pen.card, outline=pen.paint, width=4)
    return (left + 28, middle), None


def _draw_slider(rng: np.random.Generator, pen: Pen, box: Box, look: Look) -> Drawn:
    """A knob on a track under the label."""
    left, top, right, bottom = box
    rail = bottom - 9
    knob = int(rng.integers(left + 14, right - 14))
    pen.draw.rectangle((left + 3, rail - 2, right - 4, rail + 1), fill=pen.face)
    pen.draw.rectangle((left + 3, rail - 2, knob, rail + 1), fill=pen.paint)
    pen.draw.ellipse((knob - 8, rail - 8, knob + 7, rail + 7), fill=pen.paint)
    return (left + 3, top + 9), None


DRAWN = {
    "button": _draw_button,
    "text field": _draw_field,
    "check box": _draw_check_box,
    "slider": _draw_slider,
}
