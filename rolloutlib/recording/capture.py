"""Record what every attention layer of a model saw: queries, keys and mask, not attention.

Every model of transformers that dispatches its attention through `AttentionInterface` is
recorded by one function, which notes its arguments and lets the stock SDPA function compute the
output. So the model runs as it always does, and probabilities are recomputed when asked for.
Where a recording is told how heads will be fused, short causal layers keep their fused attention
instead, which is smaller.

PyTorch's own `nn.MultiheadAttention` knows no such interface. Hooks ask it for its weights, head
by head, and give the caller what the caller had asked for; these weights are kept.
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
from rolloutlib.recording.kinds import (
    FusedLayer,
    RecordedWeights,
)
from rolloutlib.recording.passes import (
    Continued,
    continued,
    continues,
    fused,
    one_pass,
    takes_less_fused,
)


class Recording:
    """What was recorded of a model: `recording["vision"]`, `recording["language"]`, or a path.

    Each gives a list of layers, first layer first: of `RecordedLayer`; of `RecordedBlocks` where
    a layer saw several pictures one by one; of `RecordedWeights` for `nn.MultiheadAttention`; of
    `FusedLayer` where heads were fused while recording; of `DifferentiableLayer` where gradients
    are recorded.
    """

    def __init__(self, model: torch.nn.Module, head_fusion: str | None = None):
        self.model, self.head_fusion = model, head_fusion
        self._names = {id(module): name for name, module in model.named_modules()}
        self._calls: dict[str, list] = {}
        self._fused: dict[str, FusedLayer] = {}  # first calls, of which queries are let go

    def note(self, module: torch.nn.Module, make: Callable[[str], Layer]) -> None:
        """Keep one attention call of a module of this model; calls of other models pass by.

        make: gives the layer that made the call, of the module's name.
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
        """The recorded attention modules, in the order in which they ran."""
        return list(self._calls)

    def __getitem__(self, part: str) -> list[Layer]:
        """The layers of a part: "vision", "language", the path of a module, or "" for all.

        The calls of a generation with a growing cache make up one pass over all its tokens but
        the last, which was never given to the model.

        Raises KeyError where nothing was recorded under that name, ValueError where a layer ran
        more than once in any other way: with a cache of fixed size, or one that beam search
        put in another order.
        """
        if part in ("vision", "language"):
            names = [name for name in self._calls if modality(self.model, name) == part]
        else:
            names = [n for n in self._calls if part in ("", n) or n.startswith(f"{part}.")]
        if not names:
            raise KeyError(
                f"no attention was recorded in {part!r}; recorded were: {', '.join(self._calls)}"
            )
        for name in names:  # each one's calls are let go as soon as they are one
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
                f"{', '.join(missing[:5]) or 'the model has none that could be told by its name'}"
                f"{' …' if len(missing) > 5 else ''}. They did not run, or compute attention "
                "outside of transformers' AttentionInterface and nn.MultiheadAttention. To record "
                "a part of a model, pass that submodule to record_attention."
            )


def attention_modules(model: torch.nn.Module) -> list[str]:
    """Paths of the modules that compute attention: innermost classes called …Attention."""
    named = [n for n, module in model.named_modules() if "Attention" in type(module).__name__]
    return [name for name in named if not any(other.startswith(f"{name}.") for other in named)]


def modality(model: torch.nn.Module, name: str) -> str:
    """Is this module part of the "vision" or of the "language" side of a model?

    The innermost transformers model around it says what it takes in.
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
    """What did each layer attend to? Record every attention call of `model` inside the block.

    ```
    with record_attention(model) as recording:
        model(**inputs)
    rollout(recording["language"])
    ```

    The model computes as under SDPA, whatever its own implementation is; on leaving, also by an
    exception, each part gets its own implementation back. Recorded tensors are detached, not
    copied, and stay where the model put them. Modules of `nn.MultiheadAttention` compute their
    weights openly, which may change the last digits of their output, and keep them.

    head_fusion: "mean", "max" or "min" to fuse heads while recording. Of layers where no token
    sees a later one, fused attention is then kept instead of queries and keys if it is smaller:
    of sequences shorter than about (query heads + key heads) · head size. A rollout of such layers
    needs the same head_fusion. None, the default, leaves the choice open.

    Raises ValueError where the model, or a part of it, is in training mode (dropout would be
    recorded as attention) and for an unknown head_fusion, RuntimeError on leaving where an
    attention module was not captured.
    """
    if head_fusion is not None:
        require_fusion(head_fusion)
    recording = Recording(model, head_fusion)

    def note_weights(module, weights):
        recording.note(module, partial(RecordedWeights, weights=weights.detach()))

    with noted_by(INTERFACE, model, recording.note), weights_noted(model, note_weights):
        yield recording
    recording.require_complete()
