"""Attention that modules compute themselves, outside of transformers' attention interface."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch.overrides import TorchFunctionMode

from rolloutlib.recording.interface import active, attend_noted, attending, direct_sdpa

SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax}

NoteWeights = Callable[[torch.nn.Module, Float[torch.Tensor, "batch head query key"]], None]


def attention_modules(model: torch.nn.Module) -> list[str]:
    """Paths of the modules that compute attention: innermost classes named …Attention or …Attn…."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    named = [name for name, kind in kinds.items() if "Attention" in kind or "Attn" in kind]
    return [name for name in named if not any(other.startswith(f"{name}.") for other in named)]


@contextmanager
def own_attention_noted(model: torch.nn.Module, note: NoteWeights) -> Iterator[None]:
    """Inside the block, attention that modules compute themselves reaches the recordings.

    A softmax over keys is passed to `note`; a call of SDPA is noted like one of the interface.
    """
    modules = [model.get_submodule(name) for name in attention_modules(model)]
    with ExitStack() as restored:
        for module in modules:
            if isinstance(module, torch.nn.MultiheadAttention):
                continue  # has hooks of its own
            restored.callback(_put_back, module, module.__dict__.get("forward"))
            module.forward = _watched(module, note)
        yield


def _put_back(module: torch.nn.Module, forward: Callable | None) -> None:
    """Give a module the forward that it had of its own, or that of its class."""
    del module.forward
    if forward is not None:
        module.forward = forward


def _watched(module: torch.nn.Module, note: NoteWeights) -> Callable:
    """The module's forward, watched where a recording is active."""
    forward = module.forward

    @wraps(forward)
    def watched(*args, **kwargs):
        if not active.get():
            return forward(*args, **kwargs)
        given = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        with _Watching(module, note, batch=len(given)):
            return forward(*args, **kwargs)

    return watched


class _Watching(TorchFunctionMode):
    """Inside the block, softmaxes and calls of SDPA belong to this module.

    batch: how many sequences it was given.
    """

    def __init__(self, module: torch.nn.Module, note: NoteWeights, *, batch: int):
        super().__init__()
        self.module, self.note, self.batch = module, note, batch

    @no_type_check  # called for every operation, and names no shape
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and not attending.get():
            return self._attended(*args, **kwargs)
        result = function(*args, **kwargs)
        if function in SOFTMAX and not attending.get():
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            heads = self._by_head(result) if dim in (-1, result.ndim - 1) else None
            if heads is not None:
                self.note(self.module, heads)
        return result

    def _by_head(self, tensor: torch.Tensor) -> Float[torch.Tensor, "batch head _ _"] | None:
        """A tensor with sequences and heads in one axis or in two; None for any other."""
        if tensor.ndim == 3 and len(tensor) % self.batch == 0:
            return tensor.unflatten(0, (self.batch, -1))
        return tensor if tensor.ndim == 4 else None

    def _attended(self, query, key, value, attn_mask=None, *args, **how) -> torch.Tensor:
        """A call of SDPA, noted as if it had come through the interface."""
        call = [self._by_head(tensor) for tensor in (query, key, value)]
        if any(tensor is None for tensor in call):
            return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **how)
        if attn_mask is not None and attn_mask.ndim < 4:
            by_head = self._by_head(attn_mask) if query.ndim == attn_mask.ndim == 3 else None
            attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)] if by_head is None else by_head
        output, _ = attend_noted(direct_sdpa, self.module, *call, attn_mask, **_named(*args, **how))
        return output.transpose(1, 2).reshape(*query.shape[:-1], value.shape[-1])


def _named(dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False) -> dict:
    """The other arguments of SDPA, by the names that the interface gives them."""
    return {
        "dropout": dropout_p,
        "is_causal": is_causal,
        "scaling": scale,
        "enable_gqa": enable_gqa,
    }
