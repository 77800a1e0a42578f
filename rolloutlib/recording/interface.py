"""How a model's attention calls reach a recording."""

import inspect
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import (
    create_position_bias_mask,
    sdpa_attention_forward,
)

from rolloutlib.algorithm.layers import Layer
from rolloutlib.recording.recorded import Call, RecordedLayer

OWN = ("sdpa", "eager", None)  # implementations whose masks and causal rule a recording knows
# What SDPA chooses from: on the CPU, and on CUDA devices.
KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}

# Stores what a module attended to: `note(module, make)`, where `make(name)` is the layer. Says
# whether it is the first call of its kind.
Note = Callable[[torch.nn.Module, Callable[[str], Layer]], bool]
active: ContextVar[tuple[Note, ...]] = ContextVar("who notes attention calls", default=())
_attend: ContextVar[Callable] = ContextVar("how calls are noted")
attending: ContextVar[bool] = ContextVar("whether a call is being noted", default=False)


@contextmanager
def noted_by(attend: Callable, model: torch.nn.Module, note: Note) -> Iterator[None]:
    """Inside the block, the model attends through `attend`, which notes its calls.

    Each part keeps its implementation's name, which some models ask for, and `attend` is given the
    function behind it. Parts with an implementation other than SDPA or eager compute under SDPA.

    Raises ValueError if the model, or a part of it, is in training mode.
    """
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise ValueError(f"expected a model in eval mode, got {training[0]} in training mode")
    configs = (getattr(module, "config", None) for module in model.modules())
    distinct = {id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values()
    before = [(config, config._attn_implementation_internal) for config in distinct]
    tokens = active.set((*active.get(), note)), _attend.set(attend)
    try:
        # The public setter would give every part the same implementation, even if they differ.
        for config, implementation in before:
            if implementation not in OWN:
                config._attn_implementation_internal = "sdpa"
        with _functions_watched(), _run_as_written(model):
            yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        active.reset(tokens[0])
        _attend.reset(tokens[1])


class _Watching:
    """Who watches transformers' attention functions now, and what was there before."""

    lock, count, stock = threading.Lock(), 0, None


@contextmanager
def _functions_watched() -> Iterator[None]:
    """Inside the block, of this thread or another, noted models attend through `attend`."""
    with _Watching.lock:
        if _Watching.count == 0:
            _Watching.stock = AttentionInterface.get_interface
            AttentionInterface.get_interface = _watched_function
        _Watching.count += 1
    try:
        yield
    finally:
        with _Watching.lock:
            _Watching.count -= 1
            if _Watching.count == 0:
                AttentionInterface.get_interface = _Watching.stock


def _watched_function(interface, attn_implementation, default):
    """The attention function of this name; where a recording is active, calls of it are noted."""
    function = _Watching.stock(interface, attn_implementation, default)
    return partial(attend_noted, function) if active.get() else function


def attend_noted(function: Callable, module: torch.nn.Module, *args, **how):
    """Call an attention function through the one that notes its calls."""
    token = attending.set(True)
    try:
        return _attend.get()(function, module, *args, **how)
    finally:
        attending.reset(token)


def _run_as_written(model: torch.nn.Module) -> AbstractContextManager:
    """A compiled model runs as it was written: its compiled code never asks for a function."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


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


def recording_attention(function, module, query, key, value, attention_mask, **how):
    """Note the call in every active recording; the model's own function computes the output."""
    call = attention_call(function, module, query.detach(), key.detach(), attention_mask, **how)
    with _Kernel() as kernel:
        output = function(module, query, key, value, attention_mask, **how)
    noted = call
    if call.mask is None and kernel.logsumexp is not None:
        noted = replace(call, logsumexp=_by_query(kernel.logsumexp, call))
    if any([note(module, partial(RecordedLayer.of, noted)) for note in active.get()]):
        require_same(module, call, value.detach(), output[0].detach())
    return output


def require_same(
    module: torch.nn.Module,
    call: Call,
    value: Float[torch.Tensor, "_ key_head _ width"],
    output: Float[torch.Tensor, "batch query head width"],
) -> None:
    """Raise a RuntimeError unless the call's probabilities give the output that the model computed.

    Two rows are compared, in the middle and at the end: where they agree, masks, windows, caps and
    the causal rule are those of the model. Rows that see nothing are left out.
    """
    rows = torch.tensor([call.shape[1] // 2, call.shape[1] - 1])
    expected, actual = gather(call.probabilities(rows), value), output[:, rows]
    query = call.query[:, :, rows]
    off = (expected - actual.reshape(expected.shape)).abs().amax((2, 3))
    off = off.masked_fill(call.visible(rows) == 0, 0).amax()
    eps = torch.finfo(output.dtype).eps
    longest = (torch.linalg.vector_norm(x.float(), dim=-1).amax() for x in (query, call.key))
    # Scores are off by eps of their size, if a model rounds them; exponentials by as much more.
    allowed = (eps**0.5 + eps * math.prod(longest) * call.scaling) * value.abs().amax()
    if not off <= allowed:
        raise RuntimeError(
            f"{type(module).__name__} does not compute softmax(QKᵀ · scaling + mask) · V: its "
            f"output differs by {off:.3g}, so its attention cannot be recorded"
        )


class _Kernel(TorchDispatchMode):
    """Inside the block, keep the log-sum-exps that a kernel of SDPA returns with its output."""

    logsumexp: torch.Tensor | None = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in KERNELS:
            names = [argument.name for argument in function._schema.arguments]
            if "compute_log_sumexp" in names:  # which it does for gradients only
                asked = names.index("compute_log_sumexp")
                args = (*args[:asked], True, *args[asked + 1 :])
        result = function(*args, **(kwargs or {}))
        if function in KERNELS:
            self.logsumexp = result[1].detach()
        return result


def _by_query(logsumexp: torch.Tensor, call: Call) -> Float[torch.Tensor, "batch head query"]:
    """The log-sum-exps of a kernel, of which some add an axis, or entries after the last query.

    A single query of grouped heads reaches the kernel as several queries of its key heads.
    """
    known = logsumexp.flatten(2)
    if known.shape[1] == call.query.shape[1]:
        known = known[..., : call.shape[1]]
    return known.reshape(call.query.shape[:3])


def attention_call(
    function: Callable,
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
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unmasked = attention_mask is None and query.shape[2] > 1
    causal = causal and unmasked and function in CAUSAL
    # Under SDPA's causal rule, keys beyond the last query are empty cache slots.
    key = key[:, :, : query.shape[2]] if causal else key
    mask = None if attention_mask is None else attention_mask.detach()
    bias = others.get("position_bias")
    if bias is not None:
        bias = bias.detach()[..., : key.shape[2]]
        mask, causal = create_position_bias_mask(bias, mask, causal, query, key), False
    if mask is not None:
        mask = mask.expand(-1, -1, query.shape[2], key.shape[2])
    sinks = next((others[name] for name in SINKS if others.get(name) is not None), None)
    return Call(
        query=query,
        key=key,
        mask=mask,
        causal=causal,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=_by_row(sinks),
    )


def _by_row(sinks: torch.Tensor | None) -> Float[torch.Tensor, "_ head _"] | None:
    """The logits of sinks, given one for each head, or one for each of its rows."""
    if sinks is None:
        return None
    return sinks.detach()[..., 0] if sinks.ndim == 4 else sinks.detach()[None, :, None]


def direct_sdpa(
    module, query, key, value, attention_mask, *, dropout, is_causal, scaling, enable_gqa
):
    """SDPA itself, called as the interface calls its functions."""
    how = {"is_causal": is_causal, "scale": scaling, "enable_gqa": enable_gqa}
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, attention_mask, dropout, **how).transpose(1, 2), None


CAUSAL = (sdpa_attention_forward, direct_sdpa)  # functions with a causal rule of their own
SINKS = ("s_aux", "sinks")  # how models call the logits that take a share of each row


def gather(
    attention: Float[torch.Tensor, "batch head query key"],
    value: Float[torch.Tensor, "batch key_head _ width"],
) -> Float[torch.Tensor, "batch query head width"]:
    """What each head gathers from the values."""
    each = value.repeat_interleave(attention.shape[1] // value.shape[1], dim=1)
    gathered = attention.to(value.dtype) @ each[:, :, : attention.shape[3]]
    return gathered.transpose(1, 2).contiguous()
