"""Generated scenes whose questions have one answer, in a known region.

Coloured shapes lie in the cells of a 3 x 3 grid on crops of real photographs. So a map of where
a model looked can be scored against where the answer is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from rolloutlib.files.pictures import load_picture

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (40, 165, 60),
    "blue": (35, 75, 215),
    "yellow": (245, 220, 40),
    "orange": (250, 135, 20),
    "purple": (140, 45, 185),
    "pink": (250, 130, 195),
    "cyan": (60, 210, 225),
}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
KINDS = ("colour", "shape", "where", "colour at", "shape at", "there")
PHOTOS = {
    "train": (
        "brick.png camera.png china.jpg clock.png flower.jpg grace_hopper.jpg grass.png gravel.png "
        "hubble.jpg retina.jpg"
    ).split(),
    "test": "astronaut.jpg chelsea.png coffee.png rocket.jpg".split(),
}
# (height, width) of the pictures that the small Fuyu is trained on, and of those it is tested on.
FUYU_SIZES = {
    "seen": (
        *((390, 510), (420, 420), (450, 400), (480, 480)),
        *((400, 480), (510, 390), (435, 525), (465, 445)),
    ),
    "unseen": ((405, 450), (450, 510), (500, 430), (430, 390)),
}
RADIUS = (0.31, 0.46)  # of a shape, as shares of its cell's shorter side
SHARPNESS = 4  # shapes are drawn this many times larger and then reduced, for smooth edges


def _regular(points: int) -> Float[np.ndarray, "{points} 2"]:
    angles = np.arange(points) * 2 * np.pi / points - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], -1)


_ARM = np.array([(0.34, 0.34), (1.0, 0.34), (1.0, -0.34)])  # of a cross
_TURNS = [np.linalg.matrix_power([[0, -1], [1, 0]], quarter) for quarter in range(4)]
# Outlines in a circle of radius 1, first the outer one, then holes.
OUTLINES: dict[str, list[np.ndarray]] = {
    "circle": [0.9 * _regular(60)],
    "square": [_regular(4)],
    "triangle": [_regular(3)],
    "star": [_regular(10) * np.tile([[1.0], [0.42]], (5, 1))],
    "cross": [np.concatenate([_ARM @ turn for turn in _TURNS])],
    "ring": [_regular(60), 0.55 * _regular(60)],
}
SHAPES = tuple(OUTLINES)


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene, in row and column of the 3 x 3 cells; its visible pixels in `mask`."""

    shape: str
    colour: str
    row: int
    column: int
    mask: Bool[np.ndarray, "height width"]

    @property
    def place(self) -> str:
        """The cell in words, such as "top left"."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Question:
    """A question with one answer; `region` marks the pixels that show it (none for a "no")."""

    kind: str
    text: str
    answer: str
    region: Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Scene:
    """A picture, the objects on it, and every question that has exactly one answer."""

    picture: Image.Image
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...]


def load_photos(folder: str | Path, split: str = "train") -> list[Image.Image]:
    """Load the photographs that scenes may use as background.

    Those that PHOTOS lists for `split`, "train" or "test", as RGB pictures of their own sizes. No
    photograph is in both; other files in the folder are ignored.

    Raises ValueError for any other split, FileNotFoundError if a photograph is missing.
    """
    if split not in PHOTOS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    return [load_picture(Path(folder) / name) for name in PHOTOS[split]]


def make_scenes(seed: int, count: int, photos: Sequence[Image.Image], **settings) -> list[Scene]:
    """`count` scenes; the same seed gives the same scenes.

    settings: those of `make_scene`, such as `size=(336, 336)` and `objects=(2, 4)`.

    >>> photo = Image.new("RGB", (400, 300))
    >>> [len(scene.objects) for scene in make_scenes(0, 4, [photo], size=(60, 90))]
    [3, 4, 4, 3]

    Raises ValueError for a negative count, and what `make_scene` raises.
    """
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
    rng = np.random.default_rng(seed)
    return [make_scene(rng, photos, **settings) for _ in range(count)]


def make_scene(
    rng: np.random.Generator,
    photos: Sequence[Image.Image],
    *,
    size: tuple[int, int] = (336, 336),
    objects: tuple[int, int] = (2, 4),
    radius: tuple[float, float] = RADIUS,
    alike: float = 0.5,
    hidden: float = 0.0,
) -> Scene:
    """A scene of shapes with random kind, colour, size and rotation, each in its own cell.

    No two objects share both shape and colour, so "the red star" is always unique.

    size: (height, width) in pixels, each at least 48.  objects: the fewest and the most shapes.
    radius: the smallest and the largest, as shares of a cell's shorter side, up to 0.5.  alike: how
    often a shape shares its colour or its outline with another one, in [0, 1].  hidden: the share
    of each shape that is behind a grey strip, in [0, 1); what is hidden is in no mask.

    >>> photo = Image.new("RGB", (400, 300))
    >>> scene = make_scene(np.random.default_rng(0), [photo], size=(96, 160))
    >>> scene.picture.size
    (160, 96)
    >>> scene.questions[0].kind, scene.questions[0].text, scene.questions[0].answer
    ('shape', 'what shape is the pink object?', 'star')

    Raises ValueError for a size too small to tell shapes apart, for a number of objects that the
    nine cells cannot hold, for another setting out of its range, or if there are no photos.
    """
    fewest, most = objects
    if not 1 <= fewest <= most <= 9:
        raise ValueError(f"expected 1 to 9 objects, the fewest first, got {objects}")
    if min(size) < 48:
        raise ValueError(f"a scene must be at least 48 pixels high and wide, got {size}")
    if not 0 < radius[0] <= radius[1] <= 0.5:
        raise ValueError(f"expected radii in (0, 0.5], the smallest first, got {radius}")
    if not 0 <= hidden < 1:
        raise ValueError(f"hidden must be in [0, 1), got {hidden}")
    if not photos:
        raise ValueError("expected at least one photo, got none")
    pixels = random_crop(rng, photos[rng.integers(len(photos))], size)
    things = []
    cells = rng.permutation(9)[: rng.integers(fewest, most + 1)]
    for cell, (colour, shape) in zip(cells, choose_looks(rng, len(cells), alike), strict=True):
        row, column = divmod(int(cell), 3)
        cover = draw_shape(rng, shape, (row, column), size, radius)
        paint = np.array(COLOURS[colour]) + rng.integers(-10, 11, 3)
        pixels = pixels * (1 - cover[..., None]) + paint.clip(0, 255) * cover[..., None]
        mask = cover > 0.5
        if hidden:
            strip = draw_strip(rng, mask, hidden)
            pixels[strip], mask = rng.integers(90, 170), mask & ~strip
        things.append(SceneObject(shape, colour, row, column, mask))
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    return Scene(picture, tuple(things), tuple(questions(rng, things)))


def random_crop(
    rng: np.random.Generator, photo: Image.Image, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """A random part of a photograph, at least half as wide, perhaps mirrored, resized to `size`."""
    height, width = size
    scale = min(photo.width / width, photo.height / height) * rng.uniform(0.5, 1)
    left = rng.uniform(0, photo.width - width * scale)
    top = rng.uniform(0, photo.height - height * scale)
    box = (left, top, left + width * scale, top + height * scale)
    crop = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def choose_looks(rng: np.random.Generator, count: int, alike: float = 0.5) -> list[tuple[str, str]]:
    """`count` different (colour, shape) pairs; `alike` of them share one of the two with another.

    Otherwise "where is the red star?" could be answered from "red" alone.
    """
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        if looks and rng.random() < alike:
            twin = looks[rng.integers(len(looks))]
            colour, shape = (twin[0], shape) if rng.random() < 0.5 else (colour, twin[1])
        if (colour, shape) not in looks:
            looks.append((colour, shape))
    return looks


def draw_shape(
    rng: np.random.Generator,
    shape: str,
    cell: tuple[int, int],
    size: tuple[int, int],
    radius: tuple[float, float] = RADIUS,
) -> Float[np.ndarray, "height width"]:
    """How much of each pixel a shape covers, in [0, 1]; it is drawn at random inside its cell."""
    cells = np.array(size[::-1]) / 3
    reach = min(cells) * rng.uniform(*radius)
    slack = rng.uniform(-1, 1, 2) * (cells / 2 - reach)
    centre = (np.array(cell[::-1]) + 0.5) * cells + slack
    turn = rng.uniform(0, 2 * np.pi)
    corner = np.floor(centre - reach).astype(int)
    cover = Image.new("L", size[::-1])
    cover.paste(draw_cover(shape, reach, turn, centre, corner), tuple(corner))
    return np.asarray(cover) / 255


def draw_strip(
    rng: np.random.Generator, mask: Bool[np.ndarray, "height width"], share: float
) -> Bool[np.ndarray, "height width"]:
    """The pixels of a strip at random across a shape that hides this share of its pixels."""
    ys, xs = np.nonzero(mask)
    middle = np.array([[ys.mean()], [xs.mean()]])
    turn, start = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1 - share)
    along = np.array([np.sin(turn), np.cos(turn)]) @ ([ys, xs] - middle)
    every = np.indices(mask.shape).reshape(2, -1) - middle
    place = np.array([np.sin(turn), np.cos(turn)]) @ every
    low, high = np.quantile(along, [start, start + share])
    near = np.hypot(*every) <= np.hypot(*([ys, xs] - middle)).max()
    return ((low <= place) & (place <= high) & near).reshape(mask.shape)


def draw_cover(
    shape: str, radius: float, turn: float, centre: ArrayLike, corner: ArrayLike = 0
) -> Image.Image:
    """A square just large enough for a shape, from `corner` on: how much of each pixel it covers.

    centre and corner: (x, y) in pixels, or one number for both.  turn: in radians.
    """
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    side = SHARPNESS * (int(2 * radius) + 2)
    large = Image.new("L", (side, side))
    for outline, fill in zip(OUTLINES[shape], (255, 0), strict=False):
        points = (outline @ rotation * radius + centre - corner) * SHARPNESS
        ImageDraw.Draw(large).polygon([*map(tuple, points)], fill=fill)
    return large.reduce(SHARPNESS)


def questions(rng: np.random.Generator, objects: Sequence[SceneObject]) -> Iterator[Question]:
    """Every question about these objects that has exactly one answer.

    Also, for each object, one question about something that is not there.
    """
    for thing in objects:
        colour, shape, place, region = thing.colour, thing.shape, thing.place, thing.mask
        if sum(other.shape == shape for other in objects) == 1:
            yield Question("colour", f"what colour is the {shape}?", colour, region)
        if sum(other.colour == colour for other in objects) == 1:
            yield Question("shape", f"what shape is the {colour} object?", shape, region)
        yield Question("where", f"where is the {colour} {shape}?", place, region)
        yield Question("colour at", f"what colour is at the {place}?", colour, region)
        yield Question("shape at", f"what shape is at the {place}?", shape, region)
        yield Question("there", is_there(f"{colour} {shape}"), "yes", region)
    nowhere = np.zeros_like(objects[0].mask)
    for colour, shape in absent_looks(rng, objects):
        yield Question("there", is_there(f"{colour} {shape}"), "no", nowhere)


def is_there(pair: str) -> str:
    return f"is there {'an' if pair[0] in 'aeiou' else 'a'} {pair}?"


def absent_looks(rng: np.random.Generator, objects: Sequence[SceneObject]) -> list[tuple[str, str]]:
    """As many (colour, shape) pairs as there are objects, none of them present, most nearly.

    A pair is nearly present if its colour or its shape is, and more so if both are.
    """
    present = {(thing.colour, thing.shape) for thing in objects}
    colours, shapes = ({pair[part] for pair in present} for part in (0, 1))
    absent = [pair for pair in product(COLOURS, SHAPES) if pair not in present]
    nearness = [(colour in colours) + (shape in shapes) for colour, shape in absent]
    order = np.argsort(rng.random(len(absent)) - 0.4 * np.array(nearness))
    return [absent[index] for index in order[: len(objects)]]
