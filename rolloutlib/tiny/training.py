"""What the training notebooks share: labels, starting weights, packed questions, one loop."""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from rolloutlib.tiny.scenes import COLOURS, COLUMNS, ROWS, SHAPES, Question, Scene

SPECIAL = ("<pad>", "<unk>", "</s>", "<image>")
PROMPT = ("user", "assistant", ":", "?")
QUESTION = (
    "what",
    "where",
    "is",
    "the",
    "there",
    "a",
    "an",
    "object",
    "at",
    "colour",
    "shape",
    "yes",
    "no",
)
NAMES = (*COLOURS, *SHAPES, *ROWS, *COLUMNS)
VOCABULARY = (*SPECIAL, *PROMPT, *QUESTION, *NAMES)
# What Fuyu's processor writes: picture, end of a row, end of the picture, begin of the answer.
FUYU_SPECIAL = ("<pad>", "<unk>", "</s>", "<s>", "|SPEAKER|", "|NEWLINE|", "<0x04>", "▁", "\n", "?")
# (height, width) of the pictures that the small Fuyu is trained on, and of those it is tested on.
FUYU_SIZES = {
    "seen": (
        (390, 510),
        (420, 420),
        (450, 400),
        (480, 480),
        (400, 480),
        (510, 390),
        (435, 525),
        (465, 445),
    ),
    "unseen": ((405, 450), (450, 510), (500, 430), (430, 390)),
}
SILHOUETTE = 7  # an object's outline as a patch is asked for it: this many cells a side
OFFSET_UNIT = 48.0  # pixels; offsets to an object's centre are learned in this unit


def scene_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word and sign that the scenes' questions and answers use.

    >>> scene_tokenizer().tokenize("What colour is the star?")
    ['what', 'colour', 'is', 'the', 'star', '?']
    """
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",  # so that a batch of prompts ends where its answers begin
    )


def fuyu_tokenizer() -> PreTrainedTokenizerFast:
    """The same words between Fuyu's signs; every text begins with "▁", which its processor cuts.

    >>> fuyu_tokenizer().tokenize("|SPEAKER||NEWLINE|Where is it?\\n<0x04>")
    ['▁', '|SPEAKER|', '|NEWLINE|', 'where', 'is', '<unk>', '?', '\\n', '<0x04>']
    """
    numbers = {word: number for number, word in enumerate((*FUYU_SPECIAL, *QUESTION, *NAMES))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    signs = ("|SPEAKER|", "|NEWLINE|")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Lowercase()]
        + [normalizers.Replace(sign.lower(), sign) for sign in signs]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"▁|\|\w+\||<0x04>|\n|[^\W▁_]+|[^\w\s]"), behavior="removed", invert=True
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
    )


# --- what each patch of a scene shows -------------------------------------------------------


@dataclass(frozen=True)
class PatchLabels:
    """For each patch of each scene, the object it shows; -1 and the last class stand for none."""

    shape: Int[torch.Tensor, "*scene patch"]
    colour: Int[torch.Tensor, "*scene patch"]
    row: Int[torch.Tensor, "*scene patch"]
    column: Int[torch.Tensor, "*scene patch"]
    offset: Float[torch.Tensor, "*scene patch 2"]
    silhouette: Float[torch.Tensor, "*scene patch cell"]

    @property
    def on_object(self) -> Bool[torch.Tensor, "*scene patch"]:
        """Which patches show an object."""
        return self.row >= 0

    def take(self, index: Callable[[torch.Tensor], torch.Tensor]) -> "PatchLabels":
        """The same labels with every tensor indexed in the same way."""
        return PatchLabels(*(index(tensor) for tensor in vars(self).values()))


def stack_labels(labels: Iterable[PatchLabels]) -> PatchLabels:
    """Labels of single scenes as those of a batch."""
    columns = zip(*(vars(label).values() for label in labels), strict=True)
    return PatchLabels(*(torch.stack(column) for column in columns))


def patch_labels(scene: Scene, patch: int) -> PatchLabels:
    """What does each patch show? An object, where a sixth of the patch or more is covered by it.

    Patches are squares of `patch` pixels; the last ones may reach beyond the picture.
    """
    width, height = scene.picture.size
    rows, columns = -(-height // patch), -(-width // patch)
    beyond = ((0, rows * patch - height), (0, columns * patch - width))
    ys, xs = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    centres = (np.stack([xs, ys], -1).reshape(-1, 2) + 0.5) * patch
    count = rows * columns
    classes = {name: np.full(count, -1) for name in ("row", "column")}
    classes |= {"shape": np.full(count, len(SHAPES)), "colour": np.full(count, len(COLOURS))}
    offset = np.zeros((count, 2), np.float32)
    silhouette = np.zeros((count, SILHOUETTE**2), np.float32)
    for thing in scene.objects:
        tiles = np.pad(thing.mask, beyond).reshape(rows, patch, columns, patch)
        shown = tiles.mean((1, 3)).ravel() > 1 / 6
        classes["shape"][shown] = SHAPES.index(thing.shape)
        classes["colour"][shown] = list(COLOURS).index(thing.colour)
        classes["row"][shown], classes["column"][shown] = thing.row, thing.column
        middle, outline = _outline(thing.mask)
        offset[shown] = (middle - centres[shown]) / OFFSET_UNIT
        silhouette[shown] = outline
    return PatchLabels(
        **{name: torch.from_numpy(values) for name, values in classes.items()},
        offset=torch.from_numpy(offset),
        silhouette=torch.from_numpy(silhouette),
    )


def _outline(mask: Bool[np.ndarray, "height width"]) -> tuple[np.ndarray, np.ndarray]:
    """An object's centre (x, y), and its mask on a coarse square around it."""
    ys, xs = np.nonzero(mask)
    middle = np.array([xs.mean(), ys.mean()]) + 0.5
    reach = max(np.ptp(xs), np.ptp(ys)) / 2 + 1
    steps = (np.arange(SILHOUETTE) + 0.5) / SILHOUETTE * 2 - 1
    at_x = (middle[0] + steps * reach).astype(int).clip(0, mask.shape[1] - 1)
    at_y = (middle[1] + steps * reach).astype(int).clip(0, mask.shape[0] - 1)
    return middle, mask[np.ix_(at_y, at_x)].ravel()


def once_half_seen(labels: PatchLabels) -> PatchLabels:
    """Labels for a reader in raster order: of an object's patches, only the second half keeps them.

    Before, nobody could tell; there the shape is -100, which no loss counts, and the colour stays.
    """
    shown = labels.on_object
    cell = (labels.row * len(COLUMNS) + labels.column).clamp(min=0)
    patches = nn.functional.one_hot(cell, len(ROWS) * len(COLUMNS)) * shown[..., None]
    share = patches.cumsum(-2) / patches.sum(-2, keepdim=True).clamp(min=1)
    known = shown & (share.gather(-1, cell[..., None]).squeeze(-1) >= 0.5)
    return replace(
        labels,
        shape=labels.shape.where(known | ~shown, -100),
        row=labels.row.where(known, -1),
        column=labels.column.where(known, -1),
    )


class PatchHeads(nn.Module):
    """Reads from a patch's features what the patch shows; thrown away after training.

    sizes: how many numbers each head gives; those of a scene's labels if nothing else is said.
    """

    SIZES: ClassVar[dict[str, int]] = {
        "shape": len(SHAPES) + 1,
        "colour": len(COLOURS) + 1,
        "row": len(ROWS),
        "column": len(COLUMNS),
        "offset": 2,
        "silhouette": SILHOUETTE**2,
    }

    def __init__(self, width: int, sizes: dict[str, int] = SIZES):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in sizes.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """A guess for every label of every patch."""
        features = self.norm(features)
        return {name: head(features) for name, head in self.heads.items()}


def patch_loss(guesses: dict[str, torch.Tensor], labels: PatchLabels) -> torch.Tensor:
    """How wrong are the guesses? What and which colour for all patches, the rest on objects."""
    shown = labels.on_object
    classify, binary = nn.functional.cross_entropy, nn.functional.binary_cross_entropy_with_logits
    loss = binary(guesses["silhouette"][shown], labels.silhouette[shown])
    loss = loss + nn.functional.smooth_l1_loss(guesses["offset"][shown], labels.offset[shown])
    for name in ("row", "column"):
        loss = loss + classify(guesses[name][shown], getattr(labels, name)[shown])
    for name in ("shape", "colour"):
        loss = loss + classify(guesses[name].flatten(0, -2), getattr(labels, name).flatten())
    return loss


def patch_accuracy(guesses: dict[str, torch.Tensor], labels: PatchLabels) -> dict[str, float]:
    """The share of object patches whose label is guessed, for each kind of label."""
    shown = labels.on_object
    names = ("shape", "colour", "row", "column")
    hits = {n: guesses[n].argmax(-1)[shown] == getattr(labels, n)[shown] for n in names}
    return {name: hit.float().mean().item() for name, hit in hits.items()}


def prefer_objects(
    on_object: Bool[torch.Tensor, "scene patch"], keep: int, generator: torch.Generator
) -> Int[torch.Tensor, "scene keep"]:
    """Which patches to train on: those on objects first, then others at random; in raster order."""
    chance = torch.rand(on_object.shape, generator=generator) + on_object
    return chance.topk(keep, dim=1).indices.sort(dim=1).values


# --- starting weights -----------------------------------------------------------------------


def sine_cosine_positions(
    grid: tuple[int, int], width: int
) -> Float[torch.Tensor, "patch {width}"]:
    """Where a patch is, as sines and cosines of its row and column (Vaswani et al. 2017)."""
    waves = torch.exp(-torch.arange(width // 4) * np.log(1000.0) / (width // 4))
    ys, xs = torch.meshgrid(*(torch.arange(n, dtype=torch.float) for n in grid), indexing="ij")
    angles = torch.stack([ys.flatten(), xs.flatten()], 1)[..., None] * waves
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


@torch.no_grad()
def look_for_the_same(query: nn.Linear, key: nn.Linear, heads: int) -> None:
    """Start attention as "same content, same place": each head compares by one projection."""
    for block in range(heads):
        rows = slice(block * query.out_features // heads, (block + 1) * query.out_features // heads)
        projection = torch.empty_like(query.weight[rows])
        nn.init.orthogonal_(projection)
        query.weight[rows], key.weight[rows] = projection, projection


@torch.no_grad()
def copy_weakly(value: nn.Linear, output: nn.Linear, strength: float = 0.4) -> None:
    """Start a layer as a weak copy of what it attends to, each head in its own subspace."""
    for linear in (value, output):
        linear.weight.copy_(torch.eye(*linear.weight.shape) * strength**0.5)


# --- one training loop ----------------------------------------------------------------------


def train(
    loss_at: Callable[[int], torch.Tensor],
    module: nn.Module,
    *,
    steps: int,
    peak: float,
    title: str,
    block: str = "layers.",
) -> list[float]:
    """Minimise `loss_at(step)` over the parameters of `module` that want a gradient.

    Matrices inside blocks (whose path has `block` in it) are trained by Muon, all else by AdamW;
    the rate rises to `peak` and falls again as a cosine. Returns the loss of every step.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if block in name and p.ndim == 2]
    others = [p for name, p in named if not (block in name and p.ndim == 2)]
    optimizers = [torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98))]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=peak, adjust_lr_fn="match_rms_adamw"))
    losses = []
    with tqdm(range(steps), desc=title, mininterval=5, ncols=80) as progress:
        for step in progress:
            rate = peak * _rate(step / steps)
            loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", refresh=False)
    return losses


def _rate(done: float) -> float:
    """The share of the peak rate after this share of the steps: up in 5 %, then a cosine down."""
    return min(done / 0.05, 1.0) * (0.02 + 0.98 * (1 + np.cos(np.pi * done)) / 2)


# --- questions packed behind one picture ----------------------------------------------------


@dataclass(frozen=True)
class Pack:
    """Questions of several scenes as token ids, `[scene question token]`, padded at the end.

    targets: the token that each position has to predict, -100 where nothing is asked.
    """

    ids: Int[torch.Tensor, "scene question token"]
    targets: Int[torch.Tensor, "scene question token"]


def pack_questions(
    questions: Sequence[Sequence[Question]],
    tokenizer: PreTrainedTokenizerFast,
    length: int = 12,
    *,
    template: str = "{question} ASSISTANT:",
) -> Pack:
    """Questions with their answers and the closing token; only answers are to be predicted."""
    ids = torch.full((len(questions), len(questions[0]), length), tokenizer.pad_token_id)
    targets = torch.full_like(ids, -100)
    for scene, asked in enumerate(questions):
        for number, question in enumerate(asked):
            prompt = tokenizer.encode(template.format(question=question.text))
            words = re.findall(r"\w+|[^\w\s]", question.answer)
            reply = [*tokenizer.convert_tokens_to_ids(words), tokenizer.eos_token_id]
            end = len(prompt) + len(reply)
            ids[scene, number, :end] = torch.tensor(prompt + reply)
            targets[scene, number, len(prompt) - 1 : end - 1] = torch.tensor(reply)
    return Pack(ids, targets)


def block_mask(prefix: int, questions: int, length: int) -> Bool[torch.Tensor, "1 1 token token"]:
    """Who may look at whom: every question at the prefix and at itself, not at other questions."""
    owner = torch.cat(
        [torch.full((prefix,), -1), torch.arange(questions).repeat_interleave(length)]
    )
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    return (causal & ((owner == -1) | (owner == owner[:, None])))[None, None]


def packed_positions(
    prefix: Int[torch.Tensor, "scene prefix"], start: int, pack: Pack
) -> Int[torch.Tensor, "scene token"]:
    """Every question counts on from the whole prefix, as if it were the only one."""
    scenes, count, length = pack.ids.shape
    each = torch.arange(start, start + length).repeat(count)
    return torch.cat([prefix, each.expand(scenes, -1)], 1)


def answered_exactly(
    logits: Float[torch.Tensor, "scene question token word"], pack: Pack
) -> Bool[torch.Tensor, "scene question"]:
    """Which answers would greedy generation give word for word, closing token included?"""
    right = (logits.argmax(-1) == pack.targets) | (pack.targets == -100)
    return right.all(-1)


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Sequence[tuple[Image.Image, str]],
    *,
    batch_size: int = 10,
    max_new_tokens: int = 8,
) -> list[str]:
    """What does the model answer to each (picture, question), by its own `generate`?

    Each question is put into the processor's chat template; decoding is greedy.
    """
    answers = []
    for first in tqdm(range(0, len(asked), batch_size), desc="ask", mininterval=5, ncols=80):
        pictures, questions = zip(*asked[first : first + batch_size], strict=True)
        prompts = [_chat_prompt(processor, question) for question in questions]
        inputs = processor(images=list(pictures), text=prompts, padding=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def _chat_prompt(processor: ProcessorMixin, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


# --- saving ---------------------------------------------------------------------------------


def save_checkpoint(
    folder: str | Path, model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerFast
) -> Path:
    """Write a model, its weights in half precision as safetensors, and its processor.

    The configuration keeps the model's own dtype: a float32 model is half as large on disk, and
    computes in float32 when it is loaded again. What was in the folder is replaced at once, when
    the new files are complete.
    """
    folder = Path(folder)
    part, old = (folder.with_name(f".{folder.name}.{name}") for name in ("part", "old"))
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    halves = {name: weight.half() for name, weight in model.state_dict().items()}
    model.save_pretrained(part, state_dict=halves)
    processor.save_pretrained(part)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
