"""Record what every attention layer of a model saw: queries, keys and mask, not attention.

Every model of transformers that dispatches its attention through `AttentionInterface` is
recorded by one function, which notes its arguments and lets the stock SDPA function compute the
output. So the model runs as it always does, and probabilities are recomputed when asked for.
Where a recording is told how heads will be fused, short causal layers keep their fused attention
instead, which is smaller.

PyTorch's own `nn.MultiheadAttention` knows no such interface. Hooks ask it for its weights, head
by head, and give the caller what the caller had asked for; these weights are kept.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rolloutlib.algorithm.arrays import vanishing_flushed, working_dtype
from rolloutlib.algorithm.attention import require_fusion
from rolloutlib.recording.recorded import (
    DifferentiableLayer,
    FusedLayer,
    RecordedBlocks,
    RecordedLayer,
    RecordedWeights,
)

INTERFACE = "rolloutlib"
PART = 128  # rows of fused attention that are kept together, with all keys that any of them sees

active: ContextVar[tuple["Recording", ...]] = ContextVar("active recordings", default=())


class Continued(NamedTuple):
    """A call that a later one continued from its cache, which hands over the same keys again.

    Of its own keys the last is kept, to tell whether the cache was put in another order since.
    """

    query: Float[torch.Tensor, "batch head query width"]
    last_key: Float[torch.Tensor, "batch key_head 1 width"]
    mask: Bool[torch.Tensor, "_ _ query key"] | Float[torch.Tensor, "_ _ query key"] | None
    logsumexp: Float[torch.Tensor, "batch head query"] | None


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

    def note(self, module: torch.nn.Module, kind: type = RecordedLayer, **call) -> None:
        """Keep one attention call of a module of this model; calls of other models pass by."""
        name = self._names.get(id(module))
        if name is None:
            return
        calls, call = self._calls.setdefault(name, []), kind(name=name, **call)
        if not calls and self.head_fusion is not None and _takes_less_fused(call):
            self._fused[name] = _fused(call, range(call.shape[1]), self.head_fusion)
            call = replace(call, query=call.query.new_zeros(()).expand_as(call.query))
        if calls and _continues(calls[-1], call):
            earlier = calls.pop()
            last = earlier.key[:, :, -1:].clone()  # not a view, which would keep all keys
            calls.append(Continued(earlier.query, last, earlier.mask, earlier.logsumexp))
        calls.append(call)

    @property
    def names(self) -> list[str]:
        """The recorded attention modules, in the order in which they ran."""
        return list(self._calls)

    def __getitem__(
        self, part: str
    ) -> list[RecordedLayer | FusedLayer | RecordedBlocks | RecordedWeights | DifferentiableLayer]:
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
            whole = _one_pass(self._calls[name])
            if name in self._fused:
                whole = _continued(self._fused.pop(name), whole)
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


def _one_pass(
    calls: list[RecordedLayer | Continued]
    | list[FusedLayer]
    | list[RecordedBlocks]
    | list[RecordedWeights]
    | list[DifferentiableLayer],
) -> RecordedLayer | FusedLayer | RecordedBlocks | RecordedWeights | DifferentiableLayer:
    """The layer that these calls of one module make up: one call, a call and those that continued
    it, or the blocks of one pass.

    A module that attends block by block splits one tensor, so its blocks' queries share their
    memory; those of another pass lie elsewhere, as all are kept.
    """
    if len(calls) == 1:
        return calls[0]
    if all(isinstance(call, Continued) for call in calls[:-1]):
        return _whole_sequence(*calls)
    if isinstance(calls[0], DifferentiableLayer):
        raise ValueError(
            f"{calls[0].name} ran {len(calls)} times while recording gradients, expected once: one "
            "pass over the whole sequence, about one picture (several, or a video's steps in time, "
            "attend one by one)"
        )
    recorded = all(isinstance(call, RecordedLayer) for call in calls)
    passes = {call.query.untyped_storage().data_ptr() for call in calls} if recorded else calls
    if len(passes) > 1 or any(call.shape[1] != call.shape[2] for call in calls):
        raise ValueError(
            f"{calls[-1].name} ran {len(calls)} times while recording, expected once or a cache "
            "that grows: record one pass over the whole sequence, after generation"
        )
    return RecordedBlocks(calls[0].name, tuple(calls))


def _continues(earlier: object, call: object) -> bool:
    """Does this call attend to all keys of the earlier one and to those of its own queries?"""
    if not (isinstance(earlier, RecordedLayer) and isinstance(call, RecordedLayer)):
        return False
    return _sees_no_later(earlier) and call.shape[2] == earlier.shape[2] + call.shape[1]


def _sees_no_later(call: RecordedLayer) -> bool:
    """May later calls continue this one, as none of its tokens attends to any after it?"""
    return call.mask is not None or call.causal or call.shape[1] == 1


def _takes_less_fused(call: object) -> bool:
    """Is a call's fused attention smaller than its queries and keys?

    Not asked of calls that none can continue: each may be one block of a pass.
    """
    if not (isinstance(call, RecordedLayer) and _sees_no_later(call)):
        return False
    fused = math.prod(call.shape) * working_dtype(call.query.dtype).itemsize
    return fused < call.query.nbytes + call.key.nbytes


@vanishing_flushed()
def _fused(layer: RecordedLayer, rows: range, how: str) -> FusedLayer:
    """Some rows of a layer with its heads fused."""
    some = torch.arange(rows.start, rows.stop).split(PART)
    return FusedLayer(layer.name, how, tuple(layer.fused(part, how) for part in some))


def _continued(first: FusedLayer, whole: RecordedLayer) -> FusedLayer:
    """The whole layer, whose first rows are kept with their heads fused and have no queries."""
    rows = range(first.shape[1], whole.shape[1])
    if not rows:
        return first
    return replace(first, parts=first.parts + _fused(whole, rows, first.head_fusion).parts)


def _whole_sequence(*calls: RecordedLayer | Continued) -> RecordedLayer:
    """The one pass over the whole sequence that a prompt's call and those after it add up to."""
    *before, last = calls
    ends = list(accumulate(call.query.shape[2] for call in calls))
    for call, end in zip(before, ends, strict=False):
        if not torch.equal(last.key[:, :, end - 1 : end], call.last_key):
            raise ValueError(
                f"{last.name}: the cache changed while recording, as in beam search: record one "
                "pass over the whole sequence, after generation"
            )
    known = [call.logsumexp for call in calls]
    mask = _whole_mask([call.mask for call in calls], ends)
    return replace(
        last,
        query=torch.cat([call.query for call in calls], 2),
        mask=mask,
        causal=mask is None,
        logsumexp=None if any(one is None for one in known) else torch.cat(known, 2),
    )


def _whole_mask(
    masks: list[torch.Tensor | None], ends: list[int]
) -> Bool[torch.Tensor, "_ _ query key"] | Float[torch.Tensor, "_ _ query key"] | None:
    """The masks of the calls that end with these keys, below each other; later keys are hidden."""
    given = next((mask for mask in masks if mask is not None), None)
    if given is None:
        return None
    hidden = False if given.dtype == torch.bool else torch.finfo(given.dtype).min
    rows = []
    for mask, start, end in zip(masks, [0, *ends], ends, strict=False):
        if mask is None:  # causal: no later key is seen
            seen = given.new_ones(end - start, end, dtype=torch.bool).tril(start)
            blank = given.new_full((end - start, end), hidden)
            mask = blank.masked_fill(seen, True if given.dtype == torch.bool else 0)
        mask = torch.nn.functional.pad(mask, (0, ends[-1] - end), value=hidden)
        rows.append(mask.expand(*given.shape[:2], -1, -1))
    return torch.cat(rows, 2)


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
        recording.note(module, RecordedWeights, weights=weights.detach())

    with noted_by(INTERFACE, recording), weights_noted(model, note_weights):
        yield recording
    recording.require_complete()


@contextmanager
def noted_by(interface: str, recording: Recording) -> Iterator[None]:
    """Inside the block the recording's model attends through the function of this name.

    Raises ValueError where the model, or a part of it, is in training mode.
    """
    model = recording.model
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise ValueError(f"expected a model in eval mode, got {training[0]} in training mode")
    configs = _attention_configs(model)
    implementations = [config._attn_implementation_internal for config in configs]
    token = active.set((*active.get(), recording))
    try:
        # The public setter would write one implementation over parts that differ.
        for config in configs:
            config._attn_implementation_internal = interface
        yield
    finally:
        for config, implementation in zip(configs, implementations, strict=True):
            config._attn_implementation_internal = implementation
        active.reset(token)


def _attention_configs(model: torch.nn.Module) -> list[PreTrainedConfig]:
    """Every distinct configuration object that tells a part of the model how to attend."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values())


@contextmanager
def weights_noted(
    model: torch.nn.Module, note: Callable[[torch.nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """Inside the block every `nn.MultiheadAttention` of the model hands its weights to `note`."""
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
    """Ask the module for the weights of each head, note them, and answer as the caller asked."""
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
    # First of all hooks: those of the user, or of an outer recording, see what they asked for.
    hook = module.register_forward_hook(answer, with_kwargs=True, prepend=True)
    hooks.callback(hook.remove)


def _recording_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Note the call in every active recording; the stock SDPA function computes the output.

    Where scores are capped, which that function cannot do, the noted probabilities compute it.
    """
    call = attention_call(
        module, query.detach(), key.detach(), attention_mask, scaling, is_causal, **kwargs
    )
    if call["softcap"] is not None:
        output = gather(RecordedLayer("", **call).probabilities(), value), None
    else:
        with _FlashKernel() as kernel:
            output = sdpa_attention_forward(
                module,
                query,
                key,
                value,
                attention_mask,
                scaling=scaling,
                is_causal=is_causal,
                **kwargs,
            )
        call["logsumexp"] = kernel.logsumexp if attention_mask is None else None
    for recording in active.get():
        recording.note(module, **call)
    return output


class _FlashKernel(TorchDispatchMode):
    """Inside the block: keep the log-sum-exps that the flash kernel returns beside its output."""

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
    scaling: float | None,
    is_causal: bool | None,
    **kwargs,
) -> dict:
    """What a `RecordedLayer` has to know of a call of transformers' attention interface."""
    unsupported = [n for n in ("position_bias", "s_aux") if kwargs.get(n) is not None]
    if unsupported:
        raise NotImplementedError(
            f"{type(module).__name__} attends with {unsupported[0]}, which recording cannot "
            "reproduce; expected softmax(QKᵀ · scaling + mask)"
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    return {
        "query": query,
        # Under SDPA's causal rule keys beyond the last query are empty places of a cache.
        "key": key[:, :, : query.shape[2]] if causal else key,
        "mask": None if attention_mask is None else attention_mask.detach(),
        "causal": causal,
        "scaling": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "softcap": kwargs.get("softcap"),
    }


def gather(
    attention: Float[torch.Tensor, "batch head query key"],
    value: Float[torch.Tensor, "batch key_head _ width"],
) -> Float[torch.Tensor, "batch query head width"]:
    """What each head gathers from the values."""
    each = value.repeat_interleave(attention.shape[1] // value.shape[1], dim=1)
    gathered = attention.to(value.dtype) @ each[:, :, : attention.shape[3]]
    return gathered.transpose(1, 2).contiguous()


AttentionInterface.register(INTERFACE, _recording_attention)
# Without a mask function under the same name padding would silently be ignored.
AttentionMaskInterface.register(INTERFACE, sdpa_mask)
