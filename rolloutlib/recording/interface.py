"""How a model's attention calls reach a recording."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rolloutlib.algorithm.layers import Layer
from rolloutlib.recording.recorded import Call, RecordedLayer

INTERFACE = "rolloutlib"

# Stores what a module attended to: `note(module, make)`, where `make(name)` is the layer.
Note = Callable[[torch.nn.Module, Callable[[str], Layer]], None]
active: ContextVar[tuple[Note, ...]] = ContextVar("who notes attention calls", default=())


@contextmanager
def noted_by(interface: str, model: torch.nn.Module, note: Note) -> Iterator[None]:
    """Inside the block, the model attends through the function of this name, which notes its calls.

    Raises ValueError if the model, or a part of it, is in training mode.
    """
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise ValueError(f"expected a model in eval mode, got {training[0]} in training mode")
    configs = (getattr(module, "config", None) for module in model.modules())
    distinct = {id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values()
    before = [(config, config._attn_implementation_internal) for config in distinct]
    token = active.set((*active.get(), note))
    try:
        # The public setter would give every part the same implementation, even if they differ.
        for config, _ in before:
            config._attn_implementation_internal = interface
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        active.reset(token)


@contextmanager
def weights_noted(
    model: torch.nn.Module, note: Callable[[torch.nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """Inside the block, every `nn.MultiheadAttention` of the model passes its weights to `note`."""
    modules = [m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as hooks:
        if modules:  # the fast path of a TransformerEncoderLayer computes no weights
            hooks.callback(torch.backends.mha.set_fastpath_enabled, fast)
            torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            _note_weights(module, note, hooks)
        yield


def _note_weights(module: torch.nn.MultiheadAttention, note: Callable, hooks: ExitStack) -> None:
    """Ask the module for each head's weights, note them, and return what the caller asked for."""
    signature, asked = inspect.signature(module.forward), {}

    def ask(module, args, kwargs):
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        asked.update(call.arguments)
        return (), call.arguments | {"need_weights": True, "average_attn_weights": False}

    def answer(module, args, kwargs, output):
        result, weights = output
        note(module, weights if weights.ndim == 4 else weights[None])
        if not asked["need_weights"]:
            return result, None
        return result, weights.mean(-3) if asked["average_attn_weights"] else weights

    hooks.callback(module.register_forward_pre_hook(ask, with_kwargs=True).remove)
    # Before all other hooks: a user's or an outer recording's hooks get what they asked for.
    hook = module.register_forward_hook(answer, with_kwargs=True, prepend=True)
    hooks.callback(hook.remove)


def _recording_attention(module, query, key, value, attention_mask, **how):
    """Note the call in every active recording; the stock SDPA function computes the output.

    That function cannot cap scores: if they are capped, the noted probabilities compute the output.
    """
    call = attention_call(module, query.detach(), key.detach(), attention_mask, **how)
    if call.softcap is not None:
        output = gather(call.probabilities(), value), None
    else:
        with _FlashKernel() as kernel:
            output = sdpa_attention_forward(module, query, key, value, attention_mask, **how)
        if attention_mask is None:
            call = replace(call, logsumexp=kernel.logsumexp)
    for note in active.get():
        note(module, partial(RecordedLayer.of, call))
    return output


class _FlashKernel(TorchDispatchMode):
    """Inside the block, keep the log-sum-exps that the flash kernel returns with its output."""

    logsumexp: torch.Tensor | None = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.logsumexp = result[1].detach()
        return result


def attention_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **others,
) -> Call:
    """The parts of a call of transformers' attention interface that determine its probabilities."""
    unsupported = [n for n in ("position_bias", "s_aux") if others.get(n) is not None]
    if unsupported:
        raise NotImplementedError(
            f"{type(module).__name__} attends with {unsupported[0]}, which recording cannot "
            "reproduce; expected softmax(QKᵀ · scaling + mask)"
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    return Call(
        query=query,
        # Under SDPA's causal rule, keys beyond the last query are empty cache slots.
        key=key[:, :, : query.shape[2]] if causal else key,
        mask=None if attention_mask is None else attention_mask.detach(),
        causal=causal,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
    )


def gather(
    attention: Float[torch.Tensor, "batch head query key"],
    value: Float[torch.Tensor, "batch key_head _ width"],
) -> Float[torch.Tensor, "batch query head width"]:
    """What each head gathers from the values."""
    each = value.repeat_interleave(attention.shape[1] // value.shape[1], dim=1)
    gathered = attention.to(value.dtype) @ each[:, :, : attention.shape[3]]
    return gathered.transpose(1, 2).contiguous()


AttentionInterface.register(INTERFACE, _recording_attention)
# Without a mask function under the same name, padding would silently be ignored.
AttentionMaskInterface.register(INTERFACE, sdpa_mask)
