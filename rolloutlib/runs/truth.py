"""Read a person's own truth: pictures, questions, and where in each picture the answer is.

Two layouts are read: COCO's JSON, and the list that ScreenSpot has for clicks. Everything is
checked before a model is asked, and all that is wrong is told at once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rolloutlib.extras import needs
from rolloutlib.files.pictures import load_picture
from rolloutlib.files.regions import box_mask, region_mask
from rolloutlib.runs.notebook import Refused
from rolloutlib.runs.parameters import read_json

with needs("notebooks"):
    from pydantic import BaseModel, ValidationError

ASKED = "where is the {category}?"  # about an annotation without a prompt of its own
TOLD = "{instruction}"  # to a model that clicks

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class Item:
    """One region, and what is asked about it.

    name: its id in the file.  picture: the name of a file.  expected: the right answer; "" if any
    will do.  region: as COCO has it, "bbox" and perhaps "segmentation".  click: whether the answer
    is a point.
    """

    name: str
    picture: str
    category: str
    question: str
    expected: str
    region: dict[str, Any]
    click: bool = False


class Entry(BaseModel):
    """What an object in the file has; more is passed over."""

    id: int | str

    @classmethod
    def named(cls, name: object) -> str:
        return f"{cls.__name__.lower()} {name}"


class Image(Entry):
    file_name: str
    height: int | None = None
    width: int | None = None


class Category(Entry):
    name: str


class Annotation(Entry):
    image_id: int | str
    category_id: int | str | None = None
    prompt: str | None = None
    question: str | None = None
    answer: str | None = None
    bbox: Any = None
    segmentation: Any = None


class Instruction(Entry):
    img_filename: str
    instruction: str
    bbox: Any
    data_type: str = ""
    data_source: str = ""
    img_size: None = None  # ScreenSpot-Pro has it, and boxes that are corners


def read_truth(
    file: Path,
    pictures: Path,
    prompt: str = "",
    on_picture: Callable[[int, int], object] = lambda done, total: None,
) -> list[Item]:
    """The items of a file, one for each region, in its order.

    pictures: the folder where the names of pictures start.  prompt: what is asked where an
    annotation has no `prompt` or `question` of its own, with {category}; or what is asked for each
    click, with {instruction}.  on_picture: is told how many pictures were looked at, and how many
    there are.

    Raises `Refused`, with everything that is wrong, each by its name.
    """
    try:
        content = read_json(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as problem:
        raise Refused(f"{file}: cannot be read as JSON: {problem}") from problem
    problems: list[str] = []
    declared: dict[str, Size] = {}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        images = _read(Image, content.get("images"), problems)
        sized = (image for image in images.values() if image.height and image.width)
        declared = {image.file_name: (image.height, image.width) for image in sized}
        categories = _read(Category, content.get("categories"), problems)
        annotations = _read(Annotation, content["annotations"], problems)
        items = [*_asked(annotations, images, categories, prompt or ASKED, problems)]
    elif isinstance(content, list):
        items = [*_told(content, prompt or TOLD, problems)]
    else:
        raise Refused(f"{file}: expected the JSON of COCO or of ScreenSpot, got something else")
    sizes: dict[str, Size] = {}
    names = dict.fromkeys(one.picture for one in items)
    for done, name in enumerate(names):
        on_picture(done, len(names))
        try:
            sizes[name] = _size_of(pictures, name, declared.get(name))
        except (OSError, ValueError) as problem:
            problems.append(f"picture {name}: {problem}")
    sizes = declared | sizes
    for one in items:
        name = (Instruction if one.click else Annotation).named(one.name)
        problems += [f"{name}: {why}" for why in _wrong(one.region, sizes.get(one.picture))]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise Refused(f"{file}: nothing was asked; what is wrong:{lines}")
    if not items:
        raise Refused(f"{file}: expected at least one region, got none")
    return items


Kind = TypeVar("Kind", bound=Entry)


def _read(kind: type[Kind], entries: object, problems: list[str]) -> dict[str, Kind]:
    """The entries of a list by their ids."""
    found: dict[str, Kind] = {}
    for number, one in enumerate(entries if isinstance(entries, list) else [], start=1):
        name = kind.named(one.get("id", number) if isinstance(one, dict) else number)
        try:
            read = kind.model_validate(one, strict=True)
            if str(read.id) in found:
                problems.append(f"{name}: this id is there twice")
            found.setdefault(str(read.id), read)
        except ValidationError as problem:
            told = [(".".join(map(str, e["loc"])), e["msg"]) for e in problem.errors()]
            problems += [f"{name}: {where or 'all of it'}: {why}" for where, why in told]
    return found


def _asked(
    annotations: Mapping[str, Annotation],
    images: Mapping[str, Image],
    categories: Mapping[str, Category],
    prompt: str,
    problems: list[str],
) -> Iterator[Item]:
    """The items of COCO's annotations."""
    for one in annotations.values():
        name, unnamed = Annotation.named(one.id), Category(id="", name="")
        image = images.get(str(one.image_id))
        if image is None:
            problems.append(f"{name}: there is no image {one.image_id}")
        category = unnamed if one.category_id is None else categories.get(str(one.category_id))
        if category is None:
            problems.append(f"{name}: there is no category {one.category_id}")
        if image is None or category is None:
            continue
        question = one.prompt or one.question or prompt.replace("{category}", category.name)
        if category is unnamed and not (one.prompt or one.question) and "{category}" in prompt:
            problems.append(f"{name}: expected a category_id, a prompt or a question, got none")
        region = {"bbox": one.bbox, "segmentation": one.segmentation}
        region = {key: value for key, value in region.items() if value is not None}
        expected = one.answer or ""
        yield Item(str(one.id), image.file_name, category.name, question, expected, region)


def _told(content: list, prompt: str, problems: list[str]) -> Iterator[Item]:
    """The items of ScreenSpot's instructions; one without an id has its number in the list."""
    if "{instruction}" not in prompt:
        problems.append(f"the prompt: expected {{instruction}} in it, got {prompt!r}")
    numbered = [
        {"id": number} | one if isinstance(one, dict) else one
        for number, one in enumerate(content, start=1)
    ]
    for one in _read(Instruction, numbered, problems).values():
        category = ", ".join(filter(None, (one.data_source, one.data_type)))
        question = prompt.replace("{instruction}", one.instruction)
        region = {"bbox": one.bbox}
        yield Item(str(one.id), one.img_filename, category, question, "", region, click=True)


def _size_of(folder: Path, name: str, declared: Size | None) -> Size:
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise ValueError(f"expected a file in {folder}, got one outside")
    width, height = load_picture(path).size
    if declared and declared != (height, width):
        raise ValueError(
            f"expected {declared[1]} x {declared[0]} pixels, as the file says, "
            f"got {width} x {height}"
        )
    return height, width


def _wrong(region: Mapping[str, object], size: Size | None) -> Iterator[str]:
    """What is wrong with a region on a picture of this size, if it is known."""
    if not region:
        yield "expected a bbox or a segmentation, got none"
    elif size:
        try:
            region_mask(region, size)
            if "bbox" in region:
                box_mask(region["bbox"], size)
        except ValueError as problem:
            yield str(problem)
