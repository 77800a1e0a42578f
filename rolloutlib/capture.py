"""Record what every attention layer of a model saw: queries, keys and mask, not attention.

Every model of transformers that dispatches its attention through `AttentionInterface` is
recorded by one function, which notes its arguments and lets the stock SDPA function compute the
output. So the model runs as it always does, and probabilities are recomputed when asked for.

PyTorch's own `nn.MultiheadAttention` knows no such interface. Hooks ask it for its weights, head
by head, and give the caller what the caller had asked for; these weights are kept.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rolloutlib.arrays import working_dtype
from rolloutlib.attention import fuse_heads, require_fusion

INTERFACE = "rolloutlib"

active: ContextVar[tuple["Recording", ...]] = ContextVar("active recordings", default=())


@dataclass(frozen=True)
class RecordedLayer:
    """One attention layer of one pass: everything its probabilities follow from.

    Queries and keys are those after the rotary embedding. With grouped-query attention there are
    fewer key heads than query heads: each key head serves `heads // key_heads` of them in turn.
    """

    name: str
    query: Float[torch.Tensor, "batch head query width"]
    key: Float[torch.Tensor, "batch key_head key width"]
    mask: Bool[torch.Tensor, "_ _ query key"] | Float[torch.Tensor, "_ _ query key"] | None
    causal: bool
    scaling: float
    softcap: float | None = None  # keeps scores s within ±c as c · tanh(s / c)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        return self.query.shape[0], self.query.shape[2], self.key.shape[2]

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """softmax(QKᵀ · scaling + mask) of these query rows (all of them by default), in float32.

        Vaswani et al. 2017, equation 1. Float64 queries stay float64.
        """
        rows = torch.arange(self.shape[1]) if rows is None else torch.as_tensor(rows)
        groups = range(self.key.shape[1])
        return torch.cat([self._group_probabilities(group, rows) for group in groups], 1)

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row key"]:
        """The head-fused attention of these query rows, one group of heads in memory at a time."""
        require_fusion(how)
        total = None
        for group in range(self.key.shape[1]):
            heads = self._group_probabilities(group, rows)
            if how == "mean":
                part = heads.sum(1)
                total = part if total is None else total.add_(part)
            else:
                part = heads.amax(1) if how == "max" else heads.amin(1)
                extreme = torch.maximum if how == "max" else torch.minimum
                total = part if total is None else extreme(total, part)
        return total / self.query.shape[1] if how == "mean" else total

    def _group_probabilities(
        self, group: int, rows: torch.Tensor
    ) -> Float[torch.Tensor, "batch group_head row key"]:
        """Probabilities of the query heads that share key head number `group`."""
        rows = rows.to(self.query.device)
        size = self.query.shape[1] // self.key.shape[1]
        heads = slice(group * size, (group + 1) * size)
        dtype = working_dtype(self.query.dtype)
        query = self.query[:, heads, rows].to(dtype)
        key = self.key[:, group : group + 1].to(dtype)
        scores = (query @ key.mT) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * (scores / self.softcap).tanh()
        lowest = torch.finfo(dtype).min  # not -inf: a row with nothing to see must not become NaN
        if self.mask is not None:
            mask = self.mask if self.mask.shape[1] == 1 else self.mask[:, heads]
            mask = mask[:, :, rows]
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, lowest)
            else:
                scores = (scores + mask.to(dtype)).clamp(min=lowest)
        elif self.causal:
            future = torch.arange(key.shape[2], device=rows.device) > rows[:, None]
            scores = scores.masked_fill(future, lowest)
        return scores.softmax(-1)


@dataclass(frozen=True)
class RecordedWeights:
    """One `nn.MultiheadAttention` of one pass: the weights that it computed, head by head."""

    name: str
    weights: Float[torch.Tensor, "batch head query key"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        return self.weights.shape[0], self.weights.shape[2], self.weights.shape[3]

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """The weights of these query rows (all of them by default), in float32.

        Float64 weights stay float64.
        """
        chosen = self.weights if rows is None else self.weights[:, :, torch.as_tensor(rows)]
        return chosen.to(working_dtype(chosen.dtype))

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row key"]:
        """The head-fused attention of these query rows."""
        return fuse_heads(self.probabilities(rows), how)


@dataclass(frozen=True)
class RecordedBlocks:
    """One layer that attends within pieces of its sequence, piece by piece in one pass.

    So Qwen3-VL's vision tower does: each picture, and each step in time of a video, sees itself
    alone. Together the blocks are one layer whose attention is 0 outside of them; zeros are made
    for the rows that are asked for, never for the whole matrix.
    """

    name: str
    blocks: tuple[RecordedLayer, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        length = sum(block.shape[1] for block in self.blocks)
        return self.blocks[0].shape[0], length, length

    def probabilities(
        self, rows: torch.Tensor | list[int] | None = None
    ) -> Float[torch.Tensor, "batch head row key"]:
        """softmax(QKᵀ · scaling) within each row's block, 0 outside, as of `RecordedLayer`."""
        rows = torch.arange(self.shape[1]) if rows is None else torch.as_tensor(rows)
        return self._gathered(rows, lambda block, own: block.probabilities(own))

    def fused(self, rows: torch.Tensor, how: str) -> Float[torch.Tensor, "batch row key"]:
        """The head-fused attention of these query rows."""
        return self._gathered(rows, lambda block, own: block.fused(own, how))

    def _gathered(
        self, rows: torch.Tensor, answer: Callable[[RecordedLayer, torch.Tensor], torch.Tensor]
    ) -> Float[torch.Tensor, "*batch row key"]:
        """What each block answers for its own rows, in its place among zeros."""
        gathered, start = None, 0
        for block in self.blocks:
            ours = ((rows >= start) & (rows < start + block.shape[1])).nonzero().flatten()
            if len(ours):
                part = answer(block, rows[ours] - start)
                if gathered is None:
                    gathered = part.new_zeros(*part.shape[:-2], len(rows), self.shape[2])
                gathered[..., ours, start : start + part.shape[-1]] = part
            start += block.shape[1]
        return gathered


@dataclass(frozen=True)
class DifferentiableLayer:
    """One attention layer of a pass that can be led back: its probabilities, not yet let go.

    attention: `[batch head query key]`, or in PyTorch's own layout `[batch*head query key]`.
    """

    name: str
    attention: Float[torch.Tensor, "*batch_and_head query key"]
    heads: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, queries, keys."""
        return self.attention.shape[:-2].numel() // self.heads, *self.attention.shape[-2:]

    def probabilities(self) -> Float[torch.Tensor, "batch head query key"]:
        """The attention itself, let go of the pass."""
        whole = self.attention.detach()
        return whole.reshape(self.shape[0], self.heads, *self.shape[1:])


class Recording:
    """What was recorded of a model: `recording["vision"]`, `recording["language"]`, or a path.

    Each gives a list of layers, first layer first: of `RecordedLayer`; of `RecordedBlocks` where
    a layer saw several pictures one by one; of `RecordedWeights` for `nn.MultiheadAttention`; of
    `DifferentiableLayer` where gradients are recorded.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self._names = {id(module): name for name, module in model.named_modules()}
        self._calls: dict[str, list] = {}

    def note(self, module: torch.nn.Module, kind: type = RecordedLayer, **call) -> None:
        """Keep one attention call of a module of this model; calls of other models pass by."""
        name = self._names.get(id(module))
        if name is not None:
            self._calls.setdefault(name, []).append(kind(name=name, **call))

    @property
    def names(self) -> list[str]:
        """The recorded attention modules, in the order in which they ran."""
        return list(self._calls)

    def __getitem__(
        self, part: str
    ) -> list[RecordedLayer | RecordedBlocks | RecordedWeights | DifferentiableLayer]:
        """The layers of a part: "vision", "language", the path of a module, or "" for all.

        Raises KeyError where nothing was recorded under that name, ValueError where a layer ran
        more than once, as in generation with a cache.
        """
        if part in ("vision", "language"):
            names = [name for name in self._calls if modality(self.model, name) == part]
        else:
            names = [n for n in self._calls if part in ("", n) or n.startswith(f"{part}.")]
        if not names:
            raise KeyError(
                f"no attention was recorded in {part!r}; recorded were: {', '.join(self._calls)}"
            )
        return [_one_pass(self._calls[name]) for name in names]

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
    calls: list[RecordedLayer] | list[RecordedWeights] | list[DifferentiableLayer],
) -> RecordedLayer | RecordedBlocks | RecordedWeights | DifferentiableLayer:
    """The layer that these calls of one module make up: one call, or the blocks of one pass.

    A module that attends block by block splits one tensor, so its blocks' queries share their
    memory; those of another pass lie elsewhere, as all are kept.
    """
    if len(calls) == 1:
        return calls[0]
    recorded = all(isinstance(call, RecordedLayer) for call in calls)
    passes = {call.query.untyped_storage().data_ptr() for call in calls} if recorded else calls
    if len(passes) > 1 or any(call.shape[1] != call.shape[2] for call in calls):
        raise ValueError(
            f"{calls[0].name} ran {len(calls)} times while recording, expected once: "
            "record one pass over the whole sequence, after generation and not during it"
        )
    return RecordedBlocks(calls[0].name, tuple(calls))


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
def record_attention(model: torch.nn.Module) -> Iterator[Recording]:
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

    Raises ValueError where the model, or a part of it, is in training mode (dropout would be
    recorded as attention), RuntimeError on leaving where an attention module was not captured.
    """
    recording = Recording(model)

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
    for recording in active.get():
        recording.note(module, **call)
    if call["softcap"] is not None:
        return gather(RecordedLayer("", **call).probabilities(), value), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
    )


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
