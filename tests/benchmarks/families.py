"""`make families`: what is recorded of every image-text type of transformers, in a table.

Each type is a small random model in a process of its own. The truth is every softmax of its eager
pass, and of SDPA computed step by step where the model calls that itself.
"""

import argparse
import logging
import traceback
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from small_families import TYPES, class_of, small_family
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from rolloutlib import record_attention
from rolloutlib.recording.capture import PARTS

LIMIT = 1e-5  # of outputs with and without a recording, and of attention
# Classes whose softmax mixes no tokens: experts, words, tiles or keys are chosen, or the streams of
# one token are mixed.
CHOOSING = ("Router", "Gate", "Ovis2VisionModel", "MoE", "Moe", "Indexer", "HyperConnection")


class Softmaxes(TorchDispatchMode):
    """Every softmax of a pass, by the name of the module that computes it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.running, self.found = model, [], defaultdict(list)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default):
            self.found[self.running[-1]].append(result.clone())
        return result

    def begin(self, name, *_):
        self.running.append(name)

    def end(self, *_):
        self.running.pop()

    @contextmanager
    def watching(self):
        """Inside the block, keep the softmaxes that the model's modules compute."""
        with ExitStack() as hooks:
            for name, module in self.model.named_modules():
                begin = module.register_forward_pre_hook(partial(self.begin, name))
                hooks.callback(begin.remove)
                hooks.callback(module.register_forward_hook(self.end).remove)
            with sdpa_kernel(SDPBackend.MATH), self:
                yield self


@torch.no_grad()
def passed(model, inputs):
    """The model's output; what it draws at random is always the same."""
    torch.manual_seed(0)
    return model(**inputs)


def recorded(model, inputs):
    """What the layers attended to, and the model's output."""
    with record_attention(model) as recording:
        output = passed(model, inputs)
    return recording, output


def difference(recording, truth):
    """The largest difference of any attention from the truth, and what only one of them has.

    Layers without attention compute no softmax: `tests/recording` compares them with their outputs.
    """
    layers, largest, problems = {layer.name: layer for layer in recording[""]}, 0.0, []
    for name, found in truth.items():
        kind = type(recording.model.get_submodule(name)).__name__
        layer = layers.pop(name, None)
        if layer is None and any(word in kind for word in CHOOSING):
            continue
        ours = None if layer is None else layer.probabilities()
        if ours is None or sum(each.shape[-1] for each in found) != ours.shape[-1]:
            problems.append(f"{name} ({kind}) computes {len(found)} softmaxes")
            continue
        largest = max(largest, float((joined(found).reshape(ours.shape) - ours).abs().max()))
    attending = [name for name, each in layers.items() if getattr(each, "attends", True)]
    return largest, problems + [f"{name} computes none" for name in attending]


def joined(found):
    """One attention from those of windows that follow each other: blocks on its diagonal."""
    heads = zip(*(each.flatten(0, -3) for each in found), strict=True)
    return torch.stack([torch.block_diag(*windows) for windows in heads])


def parts_of(recording):
    """How many layers each part has."""
    counts = {}
    for part in PARTS:
        try:
            counts[part] = len(recording[part])
        except KeyError:
            continue
    return ", ".join(f"{count} {part}" for part, count in counts.items())


def measured(kind):
    """Layers by part, and how exact, or why they were refused."""
    model, inputs = small_family(kind)
    expected = passed(model, inputs)
    try:
        recording, output = recorded(model, inputs)
    except RuntimeError as error:
        return "", "refused: " + str(error).partition(" To record a part")[0]
    off = float((output[0] - expected[0]).abs().max())
    model.set_attn_implementation("eager")
    eager, _ = recorded(model, inputs)
    softmaxes = Softmaxes(model)
    with softmaxes.watching():
        passed(model, inputs)
    largest, problems = difference(eager, softmaxes.found)
    if off > LIMIT:
        problems.append(f"outputs differ by {off:.0e}")
    if largest > LIMIT:
        problems.append(f"attention differs by {largest:.0e}")
    wrong = "WRONG: " + "; ".join(problems[:3])
    return parts_of(recording), wrong if problems else f"{max(largest, 1e-8):.0e}"


def pixels(kind):
    """Whether the type's tokens have a place on pixels, or why not."""
    try:
        from small_processors import small_loaded
    except ImportError:
        return "not tried"
    try:
        return small_loaded(kind).on_pixels()
    except Exception as error:
        return f"not tried: no small processor ({type(error).__name__})"


def row(kind):
    """One line of the table."""
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    try:
        found = measured(kind)
    except Exception as error:
        [*_, last] = traceback.extract_tb(error.__traceback__)
        found = (
            "",
            f"not built: {type(error).__name__}: {str(error)[:150]} ({Path(last.filename).name})",
        )
    cells = [kind, class_of(kind).__name__, *found, pixels(kind)]
    return [" ".join(str(cell).replace("|", "/").split()) for cell in cells]


HEAD = """# Families

Every image-text type of transformers {version}, as a small random model with one picture.
{exact} of {all} are recorded exactly, {refused} refused by name, {wrong} wrong, {failed} not built.

*Exact to*: the largest difference of any attention from that of the eager pass. Under recording,
the output of the model differs from that without by {limit} at most. Layers without
attention, which compute no softmax, are compared with their outputs in `tests/recording`.
`make families` writes this table.

| Type | Class | Layers | Exact to | On pixels |
|---|---|---|---|---|
"""


def table(rows):
    """The page."""
    said = [cells[3].partition(":")[0] for cells in rows]
    counts = {word: said.count(word) for word in ("refused", "WRONG", "not built")}
    head = HEAD.format(
        version=transformers.__version__,
        all=len(rows),
        exact=len(rows) - sum(counts.values()),
        refused=counts["refused"],
        wrong=counts["WRONG"],
        failed=counts["not built"],
        limit=LIMIT,
    )
    return head + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def main() -> int:
    """1 if the attention of any type is wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/results/families.md"))
    parser.add_argument("--only", nargs="+", choices=TYPES, default=TYPES, metavar="TYPE")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    context = get_context("forkserver")
    context.set_forkserver_preload(["rolloutlib.recording.capture", "rolloutlib.models"])
    how = {"max_tasks_per_child": 1, "mp_context": context}
    rows = []
    with ProcessPoolExecutor(options.jobs, **how) as pool:
        for cells in pool.map(row, options.only):
            print(*cells, sep=" | ", flush=True)
            rows.append(cells)
    options.out.write_text(table(rows))
    return int(any("WRONG" in cells[3] for cells in rows))


if __name__ == "__main__":
    raise SystemExit(main())
