"""What the training notebooks share: one training loop, packed questions, saving."""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from rolloutlib.files.complete import complete_file
from rolloutlib.files.pictures import upright_rgb
from rolloutlib.tiny.scenes import Question


def train(
    loss_at: Callable[[int], torch.Tensor],
    module: nn.Module,
    *,
    steps: int,
    peak: float,
    title: str,
    block: str = "layers.",
) -> list[float]:
    """Minimise `loss_at(step)` over the parameters of `module` that require a gradient.

    Matrices inside blocks (whose path contains `block`) are trained by Muon, all others by AdamW;
    the learning rate rises to `peak` in 5 % of the steps, then falls along a cosine. Returns the
    loss of every step.
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
            done = step / steps
            share = min(done / 0.05, 1.0) * (0.02 + 0.98 * (1 + np.cos(np.pi * done)) / 2)
            loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = peak * share
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", refresh=False)
    return losses


def print_shares(title: object, shares: Mapping[str, float], digits: int = 2) -> None:
    """Print shares in one line.

    >>> print_shares("step 150", {"colour": 1.0, "where": 0.256})
    step 150 colour 1.00, where 0.26
    """
    line = ", ".join(f"{name} {share:.{digits}f}" for name, share in shares.items())
    print(title, line, flush=True)


def draw_question(
    rng: np.random.Generator, questions: Sequence[Question], kinds: Iterable[str] = ()
) -> Question:
    """One of the questions, each kind equally often: all kinds, or those of `kinds` that there are.

    >>> region = np.ones((1, 1), bool)
    >>> asked = [Question(kind, "", "", region) for kind in ("where", "where", "colour")]
    >>> rng = np.random.default_rng(0)
    >>> [draw_question(rng, asked).kind for _ in range(4)]
    ['colour', 'colour', 'colour', 'where']
    >>> draw_question(rng, asked, ["colour", "shape"]).kind
    'colour'
    """
    by_kind = {}
    for question in questions:
        by_kind.setdefault(question.kind, []).append(question)
    return rng.choice(by_kind[rng.choice([kind for kind in kinds or by_kind if kind in by_kind])])


def share_by_kind(asked: Iterable[Question], right: Iterable[bool]) -> dict[str, float]:
    """The share of right answers to the questions of each kind, kinds in alphabetical order.

    >>> region = np.ones((1, 1), bool)
    >>> asked = [Question(kind, "", "", region) for kind in ("where", "where", "colour")]
    >>> share_by_kind(asked, [True, False, True])
    {'colour': 1.0, 'where': 0.5}
    """
    hits = {}
    for question, hit in zip(asked, right, strict=True):
        hits.setdefault(question.kind, []).append(hit)
    return {kind: float(np.mean(found)) for kind, found in sorted(hits.items())}


@dataclass(frozen=True)
class Pack:
    """Questions of several scenes as token ids, `[scene question token]`, padded at the end.

    targets: the token that each position has to predict; -100 where there is none.
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
    """Pack questions with their answers and the closing token; only answers are to be predicted."""
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
    """What may attend to what: every question to the prefix and itself, not to other questions."""
    owner = torch.arange(-prefix, questions * length) // length  # below 0 in the prefix
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    return (causal & ((owner < 0) | (owner == owner[:, None])))[None, None]


def packed_positions(
    prefix: Int[torch.Tensor, "scene prefix"], start: int, pack: Pack
) -> Int[torch.Tensor, "scene token"]:
    """The positions of every question continue from the prefix, as if it were the only one."""
    scenes, count, length = pack.ids.shape
    each = torch.arange(start, start + length).repeat(count)
    return torch.cat([prefix, each.expand(scenes, -1)], 1)


def answered_exactly(
    logits: Float[torch.Tensor, "scene question token word"], pack: Pack
) -> Bool[torch.Tensor, "scene question"]:
    """Which answers greedy generation would give word for word, closing token included."""
    right = (logits.argmax(-1) == pack.targets) | (pack.targets == -100)
    return right.all(-1)


def prompt_for(processor: ProcessorMixin, question: str) -> str:
    """A question about one picture, as the processor's chat template writes it."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turns, add_generation_prompt=True)


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: Sequence[tuple[Image.Image, str]],
    *,
    batch_size: int = 10,
    max_new_tokens: int = 8,
) -> list[str]:
    """The model's answer to each (picture, question), by its own `generate`.

    Each question is put into the processor's chat template; decoding is greedy.
    """
    answers = []
    for first in tqdm(range(0, len(asked), batch_size), desc="ask", mininterval=5, ncols=80):
        pictures, questions = zip(*asked[first : first + batch_size], strict=True)
        prompts = [prompt_for(processor, question) for question in questions]
        pictures = list(map(upright_rgb, pictures))
        inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def save_checkpoint(
    folder: str | Path, model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerFast
) -> Path:
    """Save a model, its weights in half precision as safetensors, and its processor.

    The configuration keeps the model's own dtype: a float32 model is half as large on disk, and
    computes in float32 when it is loaded again. The old folder is replaced in one step, when
    the new files are complete.
    """
    folder = Path(folder)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    halves = {name: weight.half() for name, weight in model.state_dict().items()}
    with complete_file(folder) as part:
        model.save_pretrained(part, state_dict=halves)
        processor.save_pretrained(part)
        if folder.exists():
            folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)
    return folder
