"""Record what every attention layer of a model saw: queries, keys and mask, not attention.

Every transformers model that dispatches its attention through `AttentionInterface` is recorded by
one function, which notes its arguments and lets the stock SDPA function compute the output.
Probabilities are recomputed on request. `nn.MultiheadAttention` has no such interface: hooks ask
it for the weights of each head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedConfig

from rolloutlib.algorithm.attention import require_fusion
from rolloutlib.algorithm.layers import Layer
from rolloutlib.recording.interface import INTERFACE, noted_by, weights_noted
from rolloutlib.recording.kinds import FusedLayer, RecordedWeights
from rolloutlib.recording.passes import (
    Continued,
    continued,
    continues,
    fused,
    one_pass,
    takes_less_fused,
)


class Recording:
    """What was recorded from a model: `recording["vision"]`, `recording["language"]`, or a path.

    Each gives a list of layers, first layer first: of `RecordedLayer`; of `RecordedBlocks` if a
    layer saw several pictures one at a time; of `RecordedWeights` for `nn.MultiheadAttention`; of
    `FusedLayer` if heads were fused while recording; of `DifferentiableLayer` if gradients were
    recorded.
    """

    def __init__(self, model: torch.nn.Module, head_fusion: str | None = None):
        self.model, self.head_fusion = model, head_fusion
        self._names = {id(module): name for name, module in model.named_modules()}
        self._calls: dict[str, list] = {}
        self._fused: dict[str, FusedLayer] = {}  # first calls, whose queries were freed

    def note(self, module: torch.nn.Module, make: Callable[[str], Layer]) -> None:
        """Keep one attention call of a module of this model; calls of other models are ignored.

        make: gives the layer that made the call, from the module's name.
        """
        name = self._names.get(id(module))
        if name is None:
            return
        calls, call = self._calls.setdefault(name, []), make(name)
        if not calls and self.head_fusion is not None and takes_less_fused(call):
            self._fused[name] = fused(call, range(call.shape[1]), self.head_fusion)
            call = replace(call, query=call.query.new_zeros(()).expand_as(call.query))
        if calls and continues(calls[-1], call):
            earlier = calls.pop()
            last = earlier.key[:, :, -1:].clone()  # not a view, which would keep all keys
            calls.append(Continued(earlier.query, last, earlier.mask, earlier.logsumexp))
        calls.append(call)

    @property
    def names(self) -> list[str]:
        """The names of the recorded attention modules, in the order they ran."""
        return list(self._calls)

    def __getitem__(self, part: str) -> list[Layer]:
        """The layers of a part: "vision", "language", the path of a module, or "" for all.

        The calls of a generation with a growing cache are joined into one pass over all its
        tokens but the last, which the model never received.

        Raises KeyError if nothing was recorded under that name, ValueError if a layer ran more
        than once in any other way: with a cache of fixed size, or one that beam search
        reordered.
        """
        if part in ("vision", "language"):
            names = [name for name in self._calls if modality(self.model, name) == part]
        else:
            names = [n for n in self._calls if part in ("", n) or n.startswith(f"{part}.")]
        if not names:
            raise KeyError(
                f"no attention was recorded in {part!r}; recorded were: {', '.join(self._calls)}"
            )
        for name in names:  # each layer's calls are freed as soon as they are joined
            whole = one_pass(self._calls[name])
            if name in self._fused:
                whole = continued(self._fused.pop(name), whole)
            self._calls[name] = [whole]
        return [self._calls[name][0] for name in names]

    def require_complete(self) -> None:
        """Raise a RuntimeError that names the attention modules that were not captured."""
        missing = [name for name in attention_modules(self.model) if name not in self._calls]
        if missing or not self._calls:
            raise RuntimeError(
                f"captured {len(self._calls)} attention modules, missing {len(missing)}: "
                f"{', '.join(missing[:5]) or 'no class of the model is named …Attention'}"
                f"{' …' if len(missing) > 5 else ''}. They did not run, or compute attention "
                "outside of transformers' AttentionInterface and nn.MultiheadAttention. To record "
                "a part of a model, pass that submodule to record_attention."
            )


def attention_modules(model: torch.nn.Module) -> list[str]:
    """Paths of the modules that compute attention: innermost classes named …Attention."""
    named = [n for n, module in model.named_modules() if "Attention" in type(module).__name__]
    return [name for name in named if not any(other.startswith(f"{name}.") for other in named)]


def modality(model: torch.nn.Module, name: str) -> str:
    """Whether this module belongs to the "vision" or the "language" side of a model.

    The innermost transformers model around it declares its input modalities.
    """
    path = name.split(".")
    for length in range(len(path), -1, -1):
        module = model.get_submodule(".".join(path[:length]))
        takes = getattr(module, "input_modalities", None)
        if takes is not None and isinstance(getattr(module, "config", None), PreTrainedConfig):
            return "language" if "text" in takes else "vision"
    return "language"


@contextmanager
def record_attention(
    model: torch.nn.Module, *, head_fusion: str | None = None
) -> Iterator[Recording]:
    """Record what each layer attends to: every attention call of `model` inside the block.

    ```
    with record_attention(model) as recording:
        model(**inputs)
    rollout(recording["language"])
    ```

    The model computes as under SDPA, whatever its own implementation is. On exit, even after an
    exception, each part gets its own implementation back. Recorded tensors are detached, not
    copied, and stay on their device. `nn.MultiheadAttention` modules compute their weights
    explicitly, which may change the last digits of their output; these weights are kept.

    head_fusion: "mean", "max" or "min" to fuse heads while recording. Layers where no token
    sees a later one then keep fused attention instead of queries and keys if it is smaller: for
    sequences shorter than about (query heads + key heads) · head size. A rollout of such layers
    needs the same head_fusion. None, the default, leaves the choice open.

    Raises ValueError if the model, or a part of it, is in training mode (dropout would be recorded
    as attention) and for an unknown head_fusion; RuntimeError on exit if an attention module was
    not captured.
    """
    if head_fusion is not None:
        require_fusion(head_fusion)
    recording = Recording(model, head_fusion)

    def note_weights(module, weights):
        recording.note(module, partial(RecordedWeights, weights=weights.detach()))

    with noted_by(INTERFACE, model, recording.note), weights_noted(model, note_weights):
        yield recording
    recording.require_complete()
