"""What it takes to teach a small Qwen3-VL to click: its words, and what each patch should know."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from rolloutlib.models.families.qwen3_vl import merge_order
from rolloutlib.tiny.scenes import COLOURS, COLUMNS, ROWS
from rolloutlib.tiny.screens import ICONS, KINDS, LABELS, NUMBERS, Box, Screen
from rolloutlib.tiny.training import PatchHeads

# Qwen's own signs, and the words of questions and instructions about screens.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = (
    *("user", "assistant", "system", "?", '"', "(", ")", ","),
    *("click", "what", "where", "how", "is", "does", "say", "far", "down", "the", "at", "on"),
    *("colour", "icon"),
)
ALL_LABELS = tuple(label for labels in LABELS.values() for label in labels)
NAMES = (*" ".join(KINDS).split(), *COLOURS, *ICONS, *ROWS, *COLUMNS, *ALL_LABELS)
LETTERS = tuple(sorted(set("".join(ALL_LABELS))))
# The chat template of Qwen3-VL, as far as one turn with pictures or videos needs it.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPOT_UNIT = 0.1  # of the picture; centres and sizes are learned in this unit
CYCLES = (0.5, 0.75, 1, 1.5, 2, 3, 5, 8)  # of a number's sines and cosines over 0..999


def screen_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's signs, one token for each word about screens, and one for each coordinate.

    >>> tokenizer = screen_tokenizer()
    >>> tokenizer.tokenize('Click the button "save"<|im_end|>')
    ['click', 'the', 'button', '"', 'save', '"', '<|im_end|>']
    >>> tokenizer.decode(tokenizer.encode("(412, 100)"))
    '(412, 100)'
    """
    words = (*SPECIAL, "<unk>", *WORDS, *NAMES, *map(str, NUMBERS))
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(), decoders.Fuse()]
        + [decoders.Replace(*pair) for pair in (("( ", "("), (" )", ")"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",  # so that a batch of prompts ends where its answers begin
    )


def number_codes() -> Float[torch.Tensor, "number code"]:
    """Each of NUMBERS as sines and cosines, so that neighbours are alike.

    >>> codes = number_codes()
    >>> likeness = codes @ codes[60] / codes[60].norm() ** 2
    >>> likeness.argmax().item(), round(likeness[61].item(), 2), round(likeness[90].item(), 2)
    (60, 0.98, 0.07)
    """
    angles = torch.tensor(NUMBERS)[:, None] / 1000 * 2 * torch.pi * torch.tensor(CYCLES)
    return torch.cat([angles.sin(), angles.cos()], 1)


def cosine_basis(fine: int, coarse: int, side: int = 16) -> Float[torch.Tensor, "wave pixel"]:
    """A patch of (3, side, side) pixels as waves: `fine` frequencies a direction of its brightness,
    `coarse` ones of red against blue and of green against both. Orthonormal, like JPEG's.

    >>> basis = cosine_basis(12, 5)
    >>> basis.shape, torch.allclose(basis @ basis.T, torch.eye(194), atol=1e-5)
    (torch.Size([194, 768]), True)
    """
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    at = (torch.arange(side) + 0.5) / side
    waves = torch.cos(torch.pi * torch.arange(side)[:, None] * at) * (2 / side) ** 0.5
    waves[0] /= 2**0.5
    return torch.cat(
        [
            torch.einsum("uy,vx,oc->ouvcyx", waves[:count], waves[:count], part)
            .flatten(3)
            .flatten(0, 2)
            for count, part in ((fine, colours[:1]), (coarse, colours[1:]))
        ]
    )


# --- what each patch of a screen shows ------------------------------------------------------


@dataclass(frozen=True)
class ElementLabels:
    """For each patch of a screen, the element it shows; -100 stands for none, which no loss counts.

    kind: the last class is "no element", icon: the last is "another kind than a button".
    spot: the element's centre x and y, width and height, in tenths of the picture.
    mark: the icon that this very patch shows; letters: the letters that it shows.
    """

    kind: Int[torch.Tensor, " patch"]
    colour: Int[torch.Tensor, " patch"]
    icon: Int[torch.Tensor, " patch"]
    label: Int[torch.Tensor, " patch"]
    row: Int[torch.Tensor, " patch"]
    column: Int[torch.Tensor, " patch"]
    spot: Float[torch.Tensor, "patch 4"]
    mark: Int[torch.Tensor, " patch"]
    letters: Float[torch.Tensor, "patch letter"]

    @property
    def on_element(self) -> Bool[torch.Tensor, " patch"]:
        """Which patches show an element."""
        return self.row >= 0

    def __getitem__(self, index: torch.Tensor) -> "ElementLabels":
        """The labels of some of the patches."""
        return ElementLabels(*(tensor[index] for tensor in vars(self).values()))


def join_labels(labels: Iterable[ElementLabels]) -> ElementLabels:
    """Labels of several screens one after the other."""
    columns = zip(*(vars(label).values() for label in labels), strict=True)
    return ElementLabels(*(torch.cat(column) for column in columns))


def element_labels(screen: Screen, grid: tuple[int, int]) -> ElementLabels:
    """What does each patch show, of a screen that is read as `grid` (rows, columns) of patches?

    An element, where a sixth of the patch or more is inside its box; an icon, where a fifth of
    the icon is in the patch; a letter, where two fifths of it are. In merge order.
    """
    patches = _Patches(screen.picture.size, grid)
    labels = {name: np.full(patches.count, -100) for name in ElementHeads.FAR if name != "spot"}
    labels["kind"][:] = len(KINDS)
    labels["mark"] = np.full(patches.count, len(ICONS))
    spot = np.zeros((patches.count, 4), np.float32)
    letters = np.zeros((patches.count, len(LETTERS)), np.float32)
    covered = np.full(patches.count, 1 / 6)
    for element in screen.elements:
        cover = patches.overlap(element.box) / patches.area
        shown = cover > covered
        covered = np.maximum(covered, cover)
        labels["kind"][shown] = KINDS.index(element.kind)
        labels["colour"][shown] = list(COLOURS).index(element.colour)
        labels["icon"][shown] = (*ICONS, "").index(element.icon)
        labels["label"][shown] = ALL_LABELS.index(element.label)
        labels["row"][shown], labels["column"][shown] = element.row, element.column
        spot[shown] = patches.spot(element.box)
        for box, letter in zip(element.letters, element.label, strict=True):
            letters[patches.inside(box) > 0.4, LETTERS.index(letter)] = 1
        if element.icon_box is not None:
            labels["mark"][patches.inside(element.icon_box) > 0.2] = ICONS.index(element.icon)
    order = merge_order(grid, 2)
    tensors = {name: torch.from_numpy(values)[order] for name, values in labels.items()}
    return ElementLabels(
        **tensors, spot=torch.from_numpy(spot)[order], letters=torch.from_numpy(letters)[order]
    )


class _Patches:
    """The patches of a picture in raster order, as boxes in its own pixels."""

    def __init__(self, size: tuple[int, int], grid: tuple[int, int]):
        (self.width, self.height), (rows, columns) = size, grid
        self.count = rows * columns
        self.ys = np.arange(rows + 1) * self.height / rows
        self.xs = np.arange(columns + 1) * self.width / columns
        self.area = self.width * self.height / self.count

    def overlap(self, box: Box) -> np.ndarray:
        """How many pixels of the box are in each patch?"""
        left, top, right, bottom = box
        wide = np.minimum(self.xs[1:], right) - np.maximum(self.xs[:-1], left)
        high = np.minimum(self.ys[1:], bottom) - np.maximum(self.ys[:-1], top)
        return np.outer(high.clip(0), wide.clip(0)).ravel()

    def inside(self, box: Box) -> np.ndarray:
        """Which share of the box is in each patch?"""
        left, top, right, bottom = box
        return self.overlap(box) / ((right - left) * (bottom - top))

    def spot(self, box: Box) -> list[float]:
        """Centre x and y, width and height, in SPOT_UNIT of the picture."""
        left, top, right, bottom = box
        across, down = self.width * SPOT_UNIT, self.height * SPOT_UNIT
        centre = [(left + right) / 2 / across, (top + bottom) / 2 / down]
        return [*centre, (right - left) / across, (bottom - top) / down]


class ElementHeads(nn.Module):
    """Read from two layers' features of a patch what it shows; thrown away after training.

    `near` reads what the patch itself shows from a lower layer, `far` what element it belongs to
    from the last one.
    """

    FAR: ClassVar[dict[str, int]] = {
        "kind": len(KINDS) + 1,
        "colour": len(COLOURS),
        "icon": len(ICONS) + 1,
        "label": len(ALL_LABELS),
        "row": len(ROWS),
        "column": len(COLUMNS),
        "spot": 4,
    }
    NEAR: ClassVar[dict[str, int]] = {"mark": len(ICONS) + 1, "letters": len(LETTERS)}

    def __init__(self, width: int):
        super().__init__()
        self.near, self.far = PatchHeads(width, self.NEAR), PatchHeads(width, self.FAR)

    def forward(self, lower: torch.Tensor, last: torch.Tensor) -> dict[str, torch.Tensor]:
        """A guess for every label of every patch."""
        return self.near(lower) | self.far(last)


CLASSES = ("kind", "colour", "icon", "label", "row", "column")


def element_loss(guesses: dict[str, torch.Tensor], labels: ElementLabels) -> torch.Tensor:
    """How wrong are the guesses? On elements everything counts, elsewhere that there is none."""
    classify, shown = nn.functional.cross_entropy, labels.on_element
    loss = classify(guesses["kind"], labels.kind)
    for name in CLASSES:
        loss = loss + classify(guesses[name][shown], getattr(labels, name)[shown])
    loss = loss + 2 * classify(guesses["mark"][shown], labels.mark[shown])
    spots = nn.functional.smooth_l1_loss(guesses["spot"][shown], labels.spot[shown], beta=0.1)
    binary = nn.functional.binary_cross_entropy_with_logits
    return loss + 3 * spots + 10 * binary(guesses["letters"][shown], labels.letters[shown])


def element_accuracy(guesses: dict[str, torch.Tensor], labels: ElementLabels) -> dict[str, float]:
    """The share of element patches whose label is guessed; icons on buttons alone.

    centre: how far the guessed centre is off, a mean over x and y, as a share of the picture.
    """
    shown = labels.on_element
    hits = {name: guesses[name].argmax(-1) == getattr(labels, name) for name in CLASSES}
    among = {name: shown for name in CLASSES} | {"icon": shown & (labels.icon < len(ICONS))}
    shares = {name: hits[name][among[name]].float().mean().item() for name in CLASSES}
    off = (guesses["spot"] - labels.spot)[shown, :2].abs().mean().item() * SPOT_UNIT
    return shares | {"centre": off}
