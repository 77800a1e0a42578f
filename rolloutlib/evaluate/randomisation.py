"""Does a heatmap depend on what the model has learned? Shuffle its weights and look.

The sanity checks of Adebayo et al. 2018, "Sanity Checks for Saliency Maps", where each tensor
keeps its own values, in random order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import pandas as pd
import torch

from rolloutlib.evaluate.scores import Scores, mean_interval
from rolloutlib.recording.own import attention_modules


@contextmanager
def shuffled_weights(model: torch.nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside the block, the entries of every weight tensor are in random order; on exit, they are
    back in their places, bit for bit.

    Needs extra memory for one tensor, not for a model.
    """
    tensors = [parameter.data for parameter in model.parameters()]
    for number, tensor in enumerate(tensors):
        tensor.copy_(tensor.flatten()[_order(tensor, seed + number)].view_as(tensor))
    try:
        yield
    finally:
        for number, tensor in enumerate(tensors):
            restored = torch.empty_like(tensor).flatten()
            restored[_order(tensor, seed + number)] = tensor.flatten()
            tensor.copy_(restored.view_as(tensor))


def _order(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(tensor.numel(), generator=generator).to(tensor.device)


def attention_blocks(model: torch.nn.Module) -> list[str]:
    """The blocks of a model: paths of the modules around each attention.

    In the order in which the model lists its modules, so first layer first within each part.
    """
    return list(dict.fromkeys(name.rpartition(".")[0] for name in attention_modules(model)))


@contextmanager
def shuffled_blocks(model: torch.nn.Module, paths: Sequence[str], seed: int = 0) -> Iterator[None]:
    """`shuffled_weights` for some blocks only.

    With one path: the independent randomisation of Adebayo et al. With all paths from the last
    block down to one: their cascading randomisation.
    """
    with ExitStack() as blocks:
        for path in paths:
            blocks.enter_context(shuffled_weights(model.get_submodule(path), seed))
        yield


def randomise(
    model: torch.nn.Module,
    blocks: Sequence[str],
    maps: Callable[[], Sequence],
    scores: Mapping[str, Callable[[Sequence], Scores]],
    seed: int = 0,
) -> pd.DataFrame:
    """Score maps while blocks are shuffled: each alone, and from the last block down.

    blocks: paths, first block first.  maps: makes the maps with the model as it is.  scores: each
    takes these maps and gives one number for each. The result has a line for each score, way
    ("cascading" or "independent") and block: with the mean and its interval (`mean_interval`).
    """
    lines = []
    for way in ("cascading", "independent"):
        for number in reversed(range(len(blocks))):
            stop = len(blocks) if way == "cascading" else number + 1
            with shuffled_blocks(model, blocks[number:stop], seed):
                after = maps()
            for name, score in scores.items():
                lines.append((name, way, blocks[number], *mean_interval(score(after))))
    columns = ["score", "way", "block", "mean", "low", "high"]
    return pd.DataFrame(lines, columns=columns).set_index(["score", "way"])
