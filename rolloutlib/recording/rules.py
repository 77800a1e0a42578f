"""How the calls of layers without attention reach a recording.

A rule mixes the tokens of a layer: the gated delta rule, or Mamba's scan. transformers calls each
by the same name in every model that has it. While recording, a function under that name notes the
arguments, and the stock function computes the output. Where a layer's own code mixes, hooks note
what goes in and what comes out: short convolutions, RG-LRU and lightning attention.
"""

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import NamedTuple

import torch
from jaxtyping import Float, Int

from rolloutlib.recording.interface import Note
from rolloutlib.recording.mixing import (
    DifferentiableMixing,
    MixingLayer,
    RecordedConvolution,
    RecordedState,
)


class Mixed(NamedTuple):
    """One call of a rule: the layer that it makes of a name, and what it mixed into what."""

    make: Callable[[str], MixingLayer]
    value: Float[torch.Tensor, "batch token head width"]
    output: Float[torch.Tensor, "batch token head width"]
    gate: Float[torch.Tensor, "batch token head width"] | None = None  # that the output was given
    turned: bool = False  # whether the rule itself returns it as [batch channel token]


# Computes a call of a rule: `attend(module, name, stock, arguments)` returns what `stock` does.
Attend = Callable[[torch.nn.Module, str, Callable, dict], object]
_running: ContextVar[tuple[tuple[torch.nn.Module, Attend], ...]] = ContextVar("mixes", default=())


def _delta_rule(arguments: dict, before: torch.Tensor | None, result: tuple) -> Mixed:
    """The gated delta rule, over a whole sequence or token by token; Kimi's forgets by channel."""
    query, key, beta = (arguments[name].detach() for name in ("query", "key", "beta"))
    layer = partial(
        RecordedState,
        query=query,
        key=key,
        decay=arguments["g"].detach(),
        write=beta,
        erases=True,
        unit=arguments["use_qk_l2norm_in_kernel"],
        scaling=query.shape[-1] ** -0.5,
        before=before,
        after=_mark(result[1]),
    )
    return Mixed(layer, arguments["value"], result[0])


def _scan(arguments: dict, before: torch.Tensor | None, result: torch.Tensor | tuple) -> Mixed:
    """Mamba2's scan over a whole sequence."""
    output, after = result if isinstance(result, tuple) else (result, None)
    bounds = arguments["dt_limit"]
    step = _step(arguments["dt"], arguments["dt_bias"], arguments["dt_softplus"]).clamp(*bounds)
    layer = _state_space(arguments, arguments["A"] * step, step, arguments["D"])
    return Mixed(
        partial(layer, before=before, after=_mark(after)), arguments["hidden_states"], output
    )


def _scan_of_one(arguments: dict, before: torch.Tensor, result: torch.Tensor) -> Mixed:
    """One token of Mamba2's scan. Each gate comes repeated for all numbers of a head."""
    parts = {name: arguments[name] for name in ("dt", "dt_bias", "D")}
    dt, bias, skip = (None if x is None else x[..., 0] for x in parts.values())
    step = _step(dt, bias, arguments["dt_softplus"])[:, None]
    one = {name: arguments[name][:, None] for name in ("B", "C", "hidden_states")}
    layer = _state_space(one, arguments["A"][:, 0, 0] * step, step, skip)
    make = partial(layer, before=before, after=_mark(arguments["state"]))
    return Mixed(make, one["hidden_states"], result[:, None])


def _selective_scan(
    arguments: dict, before: torch.Tensor | None, result: torch.Tensor | tuple
) -> Mixed:
    """Mamba's scan over a whole sequence, `[batch channel token]`."""
    output, after = result if isinstance(result, tuple) else (result, None)
    each = {name: arguments[name].mT for name in ("hidden_states", "dt", "B", "C")}
    gate = None if arguments["z"] is None else arguments["z"].mT
    bias, softplus = arguments["delta_bias"], arguments["delta_softplus"]
    every = arguments | each | {"z": gate, "dt_bias": bias, "dt_softplus": softplus}
    return _channels(every, before, output.mT, after)._replace(turned=True)


def _selective_scan_of_one(arguments: dict, before: torch.Tensor, result: torch.Tensor) -> Mixed:
    """One token of Mamba's scan, `[batch channel]`."""
    names = ("hidden_states", "dt", "B", "C", "z")
    one = {name: arguments[name][:, None] for name in names if arguments[name] is not None}
    return _channels(arguments | one, before, result[:, None], arguments["state"])


def _channels(
    arguments: dict,
    before: torch.Tensor | None,
    output: Float[torch.Tensor, "batch token channel"],
    after: torch.Tensor | None,
) -> Mixed:
    """Mamba, whose channels are heads: each entry of a key forgets at its own rate."""
    step = _step(arguments["dt"], arguments["dt_bias"], arguments["dt_softplus"])
    shared = arguments | {name: arguments[name][:, :, None] for name in ("B", "C")}
    layer = _state_space(shared, step, step, arguments["D"])
    make = partial(layer, rates=arguments["A"].detach(), before=before, after=_mark(after))
    gate = arguments["z"]
    gate = None if gate is None else torch.nn.functional.silu(gate)[..., None]
    return Mixed(make, arguments["hidden_states"][..., None], output[..., None], gate)


def _state_space(
    arguments: dict, decay: torch.Tensor, step: torch.Tensor, skip: torch.Tensor | None
) -> Callable[[str], RecordedState]:
    query, key = (arguments[name].detach() for name in ("C", "B"))
    gates = {"decay": decay, "write": step, "skip": skip}
    gates = {name: None if gate is None else gate.detach() for name, gate in gates.items()}
    return partial(RecordedState, query=query, key=key, **gates)


def _step(
    dt: torch.Tensor, bias: torch.Tensor | None, softplus: bool
) -> Float[torch.Tensor, "*batch_and_token head"]:
    """Mamba2's step size Δ, in float32."""
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    return (torch.nn.functional.softplus(dt) if softplus else dt).float()


def _mark(state: torch.Tensor | None) -> Float[torch.Tensor, "batch head *_"] | None:
    """A part of a state, which tells it from others."""
    return None if state is None else state[..., 0].detach().clone()


# What reads a call of a rule: its arguments, a part of the state before it, and its result.
RULES: dict[str, Callable[[dict, torch.Tensor | None, object], Mixed]] = {
    "torch_chunk_gated_delta_rule": _delta_rule,
    "torch_recurrent_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "recurrent_kimi_delta_attention": _delta_rule,
    "mamba_selective_scan": _selective_scan,
    "mamba_selective_state_update": _selective_scan_of_one,
    "mamba2_chunk_scan": _scan,
    "mamba2_selective_state_update": _scan_of_one,
}
STATES = ("initial_state", "initial_states", "state")  # what the rules call the state before


def read_rule(name: str, stock: Callable, arguments: dict) -> tuple[Mixed, object]:
    """Call a rule's stock function: what the call noted, and what the function returned."""
    state = next((arguments[each] for each in STATES if each in arguments), None)
    before = _mark(state)
    result = stock(**arguments)
    return RULES[name](arguments, before, result), result


@dataclass(frozen=True)
class Taken:
    """What becomes of a call that mixed: it is noted, with gradients as an M that is in the graph.

    The output keeps its value. With gradients, M - M, times the values, is added to it: zero, but
    its gradient with respect to the first M is the one with respect to the layer's own.
    """

    note: Note
    gradients: bool

    def __call__(
        self, module: torch.nn.Module, mixed: Mixed, output: torch.Tensor
    ) -> torch.Tensor | None:
        """Note a call. With gradients, return what takes the place of its output.

        Raises RuntimeError if the first call of its kind is not what the layer's matrix gives, and
        ValueError for gradients of a call that goes on from another one.
        """
        layer = mixed.make("")
        if not self.gradients:
            if self.note(module, mixed.make) and layer.before is None:
                _require_mixing(module, mixed, layer)
            return None
        if layer.before is not None:
            raise ValueError(
                f"{type(module).__name__} goes on from a state: gradients can be recorded of one "
                "pass over the whole sequence, without a cache"
            )
        matrix = layer.signed().requires_grad_(torch.is_grad_enabled())
        heads = matrix.shape[1]
        if self.note(module, partial(DifferentiableMixing, attention=matrix, heads=heads)):
            _require_mixing(module, mixed, layer)
        zero = (matrix - matrix.detach()) @ mixed.value.detach().transpose(1, 2).to(matrix)
        zero = zero.transpose(1, 2) * (1 if mixed.gate is None else mixed.gate.detach())
        if mixed.turned:
            zero = zero[..., 0].mT
        return output + zero.reshape(output.shape).to(output)


def recording_rule(note: Note, *, gradients: bool = False) -> Attend:
    """Note each call; the model's own function computes the output."""
    taken = Taken(note, gradients)

    def attend(module, name, stock, arguments):
        mixed, result = read_rule(name, stock, arguments)
        output, *state = result if isinstance(result, tuple) else (result,)
        opened = taken(module, mixed, output)
        if opened is None:
            return result
        return (opened, *state) if isinstance(result, tuple) else opened

    return attend


def _require_mixing(module: torch.nn.Module, mixed: Mixed, layer: MixingLayer) -> None:
    """Raise RuntimeError if the output is not what the layer's matrix gives."""
    rows = torch.tensor([layer.shape[1] // 2, layer.shape[1] - 1])
    matrix, value = layer.signed(rows), mixed.value.detach()
    expected = torch.einsum("bhrk,bkhw->brhw", matrix, value.to(matrix))
    if mixed.gate is not None:
        expected *= mixed.gate[:, rows].detach()
    off = (expected - mixed.output[:, rows].detach()).abs().amax()
    size = torch.einsum("bhrk,bkhw->brhw", matrix.abs(), value.to(matrix).abs()).amax()
    if not off <= torch.finfo(mixed.output.dtype).eps ** 0.5 * size:
        raise RuntimeError(
            f"{type(module).__name__} does not mix its values by the rule that its name says: its "
            f"output differs by {off:.3g}, so it cannot be recorded"
        )


@cache
def rules_of(kind: type[torch.nn.Module]) -> dict[str, dict]:
    """The rules that a class's own code calls, each with the names of the file that calls it."""
    found = {}
    for base in kind.__mro__:
        for function in filter(inspect.isfunction, vars(base).values()):
            own = inspect.unwrap(function)
            found |= dict.fromkeys(RULES.keys() & set(own.__code__.co_names), own.__globals__)
    return found


@contextmanager
def rules_noted(model: torch.nn.Module, attend: Attend) -> Iterator[None]:
    """Inside the block, every call of a rule by a module of the model goes through `attend`."""
    with ExitStack() as stack:
        for module in model.modules():
            rules = rules_of(type(module))
            for name, namespace in rules.items():
                stack.enter_context(_watched(namespace, name))
            if rules:
                _say_when_running(module, attend, stack)
        yield


def _say_when_running(module: torch.nn.Module, attend: Attend, stack: ExitStack) -> None:
    """While the module runs, in this thread, its rules know whose they are."""

    def enter(module, args):
        _running.set((*_running.get(), (module, attend)))

    def leave(module, args, output):
        _running.set(_running.get()[:-1])

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


_lock, _stock = threading.Lock(), {}


@contextmanager
def _watched(namespace: dict, name: str) -> Iterator[None]:
    """Inside the block, of this thread or another, calls of a function are noted if one asks."""
    place = id(namespace), name
    with _lock:
        count, stock = _stock.get(place, (0, namespace[name]))
        _stock[place] = count + 1, stock
        namespace[name] = _noting(name, stock)
    try:
        yield
    finally:
        with _lock:
            count, stock = _stock.pop(place)
            if count > 1:
                _stock[place] = count - 1, stock
            else:
                namespace[name] = stock


def _noting(name: str, stock: Callable) -> Callable:
    signature = inspect.signature(stock)

    @wraps(stock)
    def noting(*args, **kwargs):
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        others = call.arguments.pop("kwargs", {})
        function, running = stock, _running.get()
        for module, attend in running:
            if module is running[-1][0]:  # recordings inside others, each around the next
                function = partial(_attended, attend, module, name, function)
        return function(**call.arguments | others)

    return noting


def _attended(
    attend: Attend, module: torch.nn.Module, name: str, stock: Callable, **arguments
) -> object:
    return attend(module, name, stock, arguments)


# Parts that a layer adds up, and by what number the layer multiplies each.
BESIDE = {"mamba": "ssm_out_multiplier", "self_attn": "attn_out_multiplier"}


@contextmanager
def additions_noted(
    model: torch.nn.Module, note: Callable[[torch.nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """Inside the block, `note` is given how long each output of parts side by side is, by row."""

    def added(factor, module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        note(module, torch.linalg.vector_norm(output.detach().float(), dim=-1) * abs(factor))

    with ExitStack() as hooks:
        for layer in model.modules():
            if all(hasattr(layer, name) for name in (*BESIDE, *BESIDE.values())):
                for name, factor in BESIDE.items():
                    hook = partial(added, getattr(layer, factor))
                    hooks.callback(getattr(layer, name).register_forward_hook(hook).remove)
        yield


def is_short_convolution(module: torch.nn.Module) -> bool:
    """Whether a module is a convolution of each channel between two gates, as in LFM2."""
    conv, into = getattr(module, "conv", None), getattr(module, "in_proj", None)
    return (
        isinstance(conv, torch.nn.Conv1d)
        and isinstance(into, torch.nn.Linear)
        and into.out_features == 3 * conv.in_channels == 3 * conv.groups
    )


def is_square_convolution(module: torch.nn.Module) -> bool:
    """Whether a module is such a convolution over the patches of a picture, as in LFM3-VL."""
    return isinstance(getattr(module, "spatial_conv", None), torch.nn.Conv2d)


def is_gated_recurrence(module: torch.nn.Module) -> bool:
    """Whether a module forgets by channel, as in RecurrentGemma: a block around an RG-LRU."""
    return hasattr(getattr(module, "rg_lru", None), "_rnn_scan")


def is_lightning(module: torch.nn.Module) -> bool:
    """Whether a module is lightning attention, as in MiniMax: each head forgets at a fixed rate."""
    return hasattr(module, "slope_rate") and hasattr(module, "qkv_proj")


@contextmanager
def own_rules_noted(
    model: torch.nn.Module, note: Note, *, gradients: bool = False
) -> Iterator[None]:
    """Inside the block, every call of a module that mixes by a rule in its own code is noted."""
    taken = Taken(note, gradients)
    with ExitStack() as hooks:
        for module in model.modules():
            for is_kind, note_kind in OWN_RULES.items():
                if is_kind(module):
                    note_kind(module, taken, hooks)
        yield


def _note_convolution(module: torch.nn.Module, taken: Taken, hooks: ExitStack) -> None:
    signature, kept = inspect.signature(module.forward), {}

    def begin(module, args, kwargs):
        cache = signature.bind(*args, **kwargs).arguments.get("past_key_values")
        state = None if cache is None else cache.get_conv_state(module.layer_idx)
        kept["before"] = None if state is None else state[..., -1].clone()

    def gates(into, args, output):
        kept["opening"], kept["closing"], kept["value"] = output.detach().mT.chunk(3, 1)

    def mixed(out, args):
        opening, closing, value = (kept[name] for name in ("opening", "closing", "value"))
        output = args[0].detach().mT
        if module.conv.bias is not None:
            output = output - closing * module.conv.bias.detach()[:, None]
        make = partial(
            RecordedConvolution,
            kernel=module.conv.weight.detach()[:, 0],
            opening=opening,
            closing=closing,
            before=kept["before"],
            after=(opening * value)[..., -1],
        )
        return taken(module, Mixed(make, value.mT[..., None], output.mT[..., None]), args[0])

    hooks.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
    hooks.callback(module.in_proj.register_forward_hook(gates).remove)
    hooks.callback(module.out_proj.register_forward_pre_hook(mixed).remove)


def _note_square_convolution(module: torch.nn.Module, taken: Taken, hooks: ExitStack) -> None:
    """A convolution of pictures one beside the other, whose patches come in blocks to be merged."""
    kept = {}

    def begin(module, args, kwargs):
        call = inspect.signature(module.forward).bind(*args, **kwargs)
        kept["grids"] = call.arguments["grid_thw"]

    def gates(into, args, output):
        kept["gates"] = output.detach().mT[None].chunk(3, 1)

    def mixed(out, args):
        (opening, closing, value), weight = kept["gates"], module.spatial_conv.weight.detach()
        reads = _patches_around(kept["grids"], module.spatial_merge_size, weight.shape[2:])
        make = partial(
            RecordedConvolution,
            kernel=weight.flatten(1),
            opening=opening,
            closing=closing,
            reads=reads.to(value.device),
        )
        output = args[0].detach()[None, :, :, None]
        return taken(module, Mixed(make, value.mT[..., None], output), args[0])

    hooks.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
    hooks.callback(module.in_proj.register_forward_hook(gates).remove)
    hooks.callback(module.out_proj.register_forward_pre_hook(mixed).remove)


def _patches_around(
    grids: Iterable[tuple[int, int, int]], merge: int, window: tuple[int, int]
) -> Int[torch.Tensor, "patch tap"]:
    """Which patch each tap of a square window round a patch reads, -1 outside of the picture."""
    every, first = [], 0
    for times, rows, columns in grids:
        count = times * rows * columns
        blocks = torch.arange(first, first + count).view(
            times, rows // merge, columns // merge, merge, merge
        )
        places = blocks.transpose(2, 3).reshape(times, rows, columns)
        above, left = (size // 2 for size in window)
        around = torch.nn.functional.pad(places, (left, left, above, above), value=-1)
        around = around.unfold(1, window[0], 1).unfold(2, window[1], 1)
        every.append(around.reshape(count, -1)[places.flatten().argsort()])
        first += count
    return torch.cat(every)


LEAST = -30.0  # log of what is left when all is forgotten: less would cost others their digits


def _note_gated_recurrence(module: torch.nn.Module, taken: Taken, hooks: ExitStack) -> None:
    """RG-LRU: S_i = a_i S_{i-1} + w_i v_i in each channel, which starts anew at position 0."""
    unit, kept = module.rg_lru, {}
    scan = unit._rnn_scan

    def begin(unit, args):
        kept["value"] = args[0].detach()

    def noting(hidden_states, recurrent_gate, reset, recurrent_states):
        result = output, after = scan(hidden_states, recurrent_gate, reset, recurrent_states)
        value, gate = kept["value"], recurrent_gate.detach().float()
        opening = value.unflatten(-1, unit.input_gate_bias.shape)[..., None, :]
        opening = (opening @ unit.input_gate_weight.detach())[..., 0, :] + unit.input_gate_bias
        write = opening.detach().sigmoid().flatten(-2) * (1 - gate.square()).sqrt()
        write = torch.where(reset, opening.detach().sigmoid().flatten(-2).to(write), write)
        one = value.new_ones(*value.shape[:2], 1, 1)
        decay = gate.log().masked_fill(reset, LEAST).clamp(min=LEAST)
        began = recurrent_states is None or not recurrent_states.any()
        make = partial(
            RecordedState,
            query=one,
            key=one,
            decay=decay,
            write=write,
            before=None if began else recurrent_states.detach().clone(),
            after=after.detach().clone(),
        )
        mixed = Mixed(make, value[..., None], output.detach()[..., None])
        opened = taken(module, mixed, output)
        return result if opened is None else (opened, after)

    unit._rnn_scan = noting
    hooks.callback(delattr, unit, "_rnn_scan")
    hooks.callback(unit.register_forward_pre_hook(begin).remove)


def _note_lightning(module: torch.nn.Module, taken: Taken, hooks: ExitStack) -> None:
    """Lightning attention: the mask q_i · k_j · exp(-slope (i - j)), in blocks or by its state."""
    signature, kept = inspect.signature(module.forward), {}

    def begin(module, args, kwargs):
        given = signature.bind(*args, **kwargs).arguments
        kept["shown"], cache = given.get("attention_mask"), given.get("past_key_values")
        kept["before"] = None if cache is None else cache.get_linear_cache(module.layer_idx)

    def projected(into, args, output):
        kept["given"] = output.detach()

    def mixed(norm, args):
        kept["output"] = args[0].detach()
        return read(None, args[0]) if taken.gradients else None

    def end(module, args, output):
        if not taken.gradients:
            read(_mark(output[1]), kept["output"])

    def read(after, output):
        given, shown = module.act_fn(kept["given"]), kept["shown"]
        given = given if shown is None else given * shown[..., None]
        heads = given.unflatten(-1, (module.num_attention_heads, -1))
        query, key, value = heads.chunk(3, -1)
        decay = -module.slope_rate[:, 0, 0].expand(query.shape[:3])
        make = partial(
            RecordedState,
            query=query,
            key=key,
            decay=decay,
            write=torch.ones_like(decay),
            before=_mark(kept["before"]),
            after=after,
        )
        return taken(module, Mixed(make, value, kept["output"].view_as(value)), output)

    hooks.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
    hooks.callback(module.qkv_proj.register_forward_hook(projected).remove)
    hooks.callback(module.norm.register_forward_pre_hook(mixed).remove)
    hooks.callback(module.register_forward_hook(end).remove)


# Modules that mix by a rule in their own code, and what notes their calls.
OWN_RULES: dict[Callable[[torch.nn.Module], bool], Callable] = {
    is_short_convolution: _note_convolution,
    is_square_convolution: _note_square_convolution,
    is_gated_recurrence: _note_gated_recurrence,
    is_lightning: _note_lightning,
}
