"""Record what every attention layer of a model saw: queries, keys and mask, not attention.

Every transformers model that dispatches its attention through `AttentionInterface` is recorded by
one function, which notes its arguments and lets the stock SDPA function compute the output.
Probabilities are recomputed on request. `nn.MultiheadAttention` has no such interface: hooks ask
it for the weights of each head. Of modules with a softmax of their own, its result is kept.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import dropwhile, groupby

import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from rolloutlib.algorithm.attention import require_fusion
from rolloutlib.algorithm.layers import Layer, attends, numberless, stack_of
from rolloutlib.recording.interface import Note, noted_by, recording_attention, weights_noted
from rolloutlib.recording.kinds import FusedLayer, RecordedWeights
from rolloutlib.recording.mixing import side_by_side
from rolloutlib.recording.own import attention_modules, own_attention_noted
from rolloutlib.recording.passes import (
    Continued,
    continued,
    continues,
    fused,
    one_pass,
    takes_less_fused,
)
from rolloutlib.recording.recorded import RecordedLayer
from rolloutlib.recording.rules import (
    additions_noted,
    own_rules_noted,
    recording_rule,
    rules_noted,
)

MAIN_INPUTS = {"pixel_values": "image", "input_features": "audio", "input_values": "audio"}
PARTS = ("vision", "language", "audio", "encoder", "cross", "pooling")
TOWERS = ("vision", "audio")
OR_A_PART = "To record a part of a model, pass that submodule to record_attention."


class Recording:
    """What was recorded from a model: `recording["vision"]`, `recording["language"]`, or a path.

    Each gives a list of layers, first layer first: of `RecordedLayer`; of `RecordedBlocks` if a
    layer saw several pictures one at a time; of `RecordedWeights` for `nn.MultiheadAttention`; of
    `RecordedState` or `RecordedConvolution` if a layer mixes tokens without attention; of
    `FusedLayer` if heads were fused while recording; of `DifferentiableLayer` or
    `DifferentiableMixing` if gradients were recorded.
    """

    def __init__(self, model: torch.nn.Module, head_fusion: str | None = None):
        self.model, self.head_fusion = model, head_fusion
        self._names = {id(module): name for name, module in model.named_modules()}
        self._calls: dict[str, list] = {}
        self._order: list[str] = []  # whose calls these were, first call first
        self._fused: dict[str, FusedLayer] = {}  # first calls, whose queries were freed
        self._kinds: set[tuple] = set()  # of calls that were kept
        self._added: dict[str, list[torch.Tensor]] = {}  # by parts that a layer adds up
        self._modality = cache(partial(modality, model))
        self._ran: set[str] = set()  # attention modules, recorded or not

    def note(self, module: torch.nn.Module, make: Callable[[str], Layer]) -> bool:
        """Keep one attention call of a module of this model; calls of other models are ignored.

        make: gives the layer that made the call, from the module's name. Says whether it is the
        first call of its kind: of the module's class, with or without a mask, causal or not.
        """
        name = self._names.get(id(module))
        if name is None:
            return False
        calls, call = self._calls.setdefault(name, []), make(name)
        if not calls and self.head_fusion is not None and takes_less_fused(call):
            self._fused[name] = fused(call, range(call.shape[1]), self.head_fusion)
            call = replace(call, query=call.query.new_zeros(()).expand_as(call.query))
        if calls and continues(calls[-1], call):
            earlier = calls.pop()
            last = earlier.key[:, :, -1:].clone()  # not a view, which would keep all keys
            calls.append(Continued(earlier.query, last, earlier.mask, earlier.logsumexp))
        calls.append(call)
        self._order.append(name)
        causal, masked = getattr(call, "causal", False), getattr(call, "mask", None) is not None
        known = len(self._kinds)
        self._kinds.add((type(module), causal, masked))
        return len(self._kinds) > known

    def note_added(
        self, module: torch.nn.Module, lengths: Float[torch.Tensor, "batch row"]
    ) -> None:
        """Keep how much a part of a layer, beside another, added to each row in one call."""
        self._added.setdefault(self._names[id(module)], []).append(lengths)

    @property
    def names(self) -> list[str]:
        """The names of the recorded attention modules, in the order they ran."""
        return list(self._calls)

    def __getitem__(self, part: str) -> list[Layer]:
        """The layers of a part: "vision", "language", "audio", the "encoder" of a text, "cross"
        (from the language to another part), "pooling" (heads of a tower that are no layer of a
        stack), the path of a module, or "" for all.

        A part is one stack of layers, in a tower the first that ran. `notes` names other stacks,
        such as resamplers, which can be had by their paths, and parts that did not run.

        The calls of a generation with a growing cache, to its own tokens and across, are joined
        into one pass over all its tokens but the last, which the model never received; and so are
        the passes of a tower that sees a prompt's pictures, then its videos: blocks of one
        sequence, or a batch of both.

        Raises KeyError if nothing was recorded under that name, ValueError if a layer ran more
        than once in any other way: with a cache of fixed size, or one that beam search
        reordered.
        """
        if part in PARTS:
            names = self._stack(part)
        else:
            names = [n for n in self._calls if part in ("", n) or n.startswith(f"{part}.")]
        if not names:
            raise KeyError(self._missing(part))
        crossing = self._stack("cross")
        passes = self._passes()
        for name in names:  # each layer's calls are freed as soon as they are joined
            whole = one_pass(self._calls[name], passes.get(name, ()), crosses=name in crossing)
            if name in self._fused:
                whole = continued(self._fused.pop(name), whole)
            if name in crossing and isinstance(whole, (RecordedLayer, RecordedWeights)):
                whole = replace(whole, crosses=True)
            self._calls[name] = [whole]
        return side_by_side([self._calls[name][0] for name in names], self._added)

    def _missing(self, part: str) -> str:
        """Why a part is not there, and of cross-attention what to do without it."""
        recorded = f"recorded were: {', '.join(self._calls)}. " + "; ".join(self.notes)
        if part != "cross" or not self._stack("language"):
            return f"no attention was recorded in {part!r}; {recorded}"
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            how = "attends to both sequences at once: give rollout_across [] in its place"
        else:
            how = (
                "reads everything in its own sequence: instead of rollout_across, call "
                "rollout_rows(recording['language'], rows)"
            )
        return f"{type(self.model).__name__} has no cross-attention, its decoder {how}; {recorded}"

    def _stack(self, part: str) -> list[str]:
        """The recorded modules of a part that are layers of its stack, or all if there is none."""
        if part == "pooling":
            heads = [name for name in self._calls if numberless(name) == name]
            return [name for name in heads if self._modality(name) in TOWERS]
        side = "language" if part == "cross" else part
        names = [name for name in self._calls if self._modality(name) == side]
        layers = [name for name in names if numberless(name) != name]
        if side in TOWERS:
            return [n for n in layers if stack_of(n) == stack_of(layers[0])] or names
        if side == "language":  # the same layers may also attend to another sequence
            attending = [name for name in layers if attends(self._calls[name][0])]
            other = {*attending} - {*_most(attending)}
            return [n for n in layers or names if (n in other) == (part == "cross")]
        return layers or names

    def _passes(self) -> dict[str, list[int]]:
        """Of towers whose layers ran one after the other, several times before the decoder ran, how
        many calls each layer made in each pass.
        """
        ran = [(name, len([*calls])) for name, calls in groupby(self._order)]
        decoders = [n for n, (name, _) in enumerate(ran) if self._modality(name) not in TOWERS]
        stacks = defaultdict(list)
        for name in self._calls:
            if self._modality(name) in TOWERS:
                stacks[stack_of(name)].append(name)
        found = {}
        for names in stacks.values():
            where = [number for number, (name, _) in enumerate(ran) if name in names]
            in_turn = [ran[n][0] for n in where] == names * (len(where) // len(names))
            later = [number for number in decoders if number > where[0]]
            if in_turn and later and later[0] > where[-1]:
                found |= {name: [ran[n][1] for n in where if ran[n][0] == name] for name in names}
        return found

    @property
    def notes(self) -> list[str]:
        """What no part of the recording has: attention that did not run, and stacks beside."""
        idle = {stack_of(name) for name in self._idle()}
        taken = {name for part in PARTS for name in self._stack(part)}
        beside = {stack_of(name) for name in self._calls if name not in taken}
        return [
            *(f"{path} did not run: nothing of it was recorded" for path in sorted(idle)),
            *(
                f"{path} is a stack of its own, in no part: ask for it by its path"
                for path in sorted(beside)
            ),
        ]

    def _idle(self) -> list[str]:
        """Attention modules that did not run, where no layer of their stack did."""
        ran = {numberless(name) for name in (*self._ran, *self._calls)}
        return [name for name in attention_modules(self.model) if numberless(name) not in ran]

    @contextmanager
    def runs_noted(self) -> Iterator[None]:
        """Inside the block, keep which attention modules run."""
        with ExitStack() as hooks:
            for name in attention_modules(self.model):
                began = partial(_add, self._ran, name)
                module = self.model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(began).remove)
            yield

    def require_complete(self) -> None:
        """Raise a RuntimeError as the function `require_complete` does, about what ran."""
        mixing = {name for name, (call, *_) in self._calls.items() if not attends(call)}
        idle = self._idle() if self._calls else ()
        require_complete(self.model, self.names, idle, mixing - self._added.keys())


def _add(names: set[str], name: str, *_) -> None:
    names.add(name)


def _most(names: list[str]) -> list[str]:
    """The largest group of names that differ in numbers only; of equal ones, the first."""
    counts = Counter(map(numberless, names))
    return [name for name in names if counts and numberless(name) == counts.most_common(1)[0][0]]


def require_complete(
    model: torch.nn.Module,
    names: list[str],
    idle: Collection[str] = (),
    mixing: Collection[str] = (),
) -> None:
    """Raise a RuntimeError that names the attention modules that were not captured, and layers
    that mix tokens in a way that was not.

    names: of the modules that were recorded.  idle: of those that were not expected to run.
    mixing: which of the recorded ones do so without attention.
    """
    found = tuple(f"{name}." for name in names)
    inside = [name for name in attention_modules(model) if name not in idle]
    missing = [n for n in inside if not any(name.startswith(f"{n}.") for name in found)]
    if missing or not names:
        named = _first_five(missing) or "no class of the model is named …Attention"
        raise RuntimeError(
            f"captured {len(names)} attention modules, missing {len(missing)}: {named}. "
            "They did not run, or compute something else than softmaxes over the keys of each "
            f"head. {OR_A_PART}"
        )
    skipped = list(layers_not_recorded(model, names, mixing))
    if skipped:
        raise RuntimeError(
            "expected layers in which tokens pass on information by attention alone, or by a rule "
            f"that is known, got {len(skipped)} others in the same stack: {_first_five(skipped)}. "
            f"{OR_A_PART}"
        )


def _first_five(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def layers_not_recorded(
    model: torch.nn.Module, names: list[str], mixing: Collection[str]
) -> Iterator[str]:
    """Path and class of each layer of a stack that does something else than what was recorded.

    A stack is a ModuleList, itself in no other, some of whose layers hold recorded modules. The
    other layers are found, if they are more than an MLP; those that shift tokens from window to
    window, as in Swin; those that attend and mix at once, if what each adds is not known; and in a
    language model those with another convolution beside.

    names: of the modules that were recorded.  mixing: which of them mix without attention.
    """
    stacks = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    for path, stack in stacks.items():
        if any(path.startswith(f"{other}.") for other in stacks):
            continue
        own = [name for name in names if name.startswith(f"{path}.")]
        spoken = bool(own) and modality(model, own[0]) == "language"
        for number, layer in enumerate(stack if own else ()):
            here = f"{path}.{number}"
            attending = [name for name in own if name == here or name.startswith(f"{here}.")]
            shifts = any(getattr(module, "shift_size", 0) for module in layer.modules())
            beside = len(attending) > 1 and any(name in mixing for name in attending)
            unknown = beside or shifts or (spoken and _convolves(layer, here, attending))
            if unknown or not (attending or _takes_tokens_singly(layer)):
                yield f"{here} ({type(layer).__name__})"


def _takes_tokens_singly(layer: torch.nn.Module) -> bool:
    """Whether a layer has nothing but norms and an MLP, of one expert or several."""
    kinds = [type(module).__name__ for module in layer.children()]
    return bool(kinds) and all(any(n in k for n in ("Norm", "MLP", "MoE")) for k in kinds)


def _convolves(layer: torch.nn.Module, path: str, attending: list[str]) -> bool:
    """Whether a layer of this path has a convolution outside of its attention modules."""
    found = (f"{path}.{n}" for n, m in layer.named_modules() if isinstance(m, torch.nn.Conv1d))
    return any(not name.startswith(tuple(f"{each}." for each in attending)) for name in found)


def _takes(model: torch.nn.Module) -> set[str]:
    """The modalities that a transformers model says it takes; none for other modules.

    Text alone is the default, so the name of the model's main input counts as well.
    """
    takes = getattr(model, "input_modalities", ())
    takes = {takes} if isinstance(takes, str) else set(takes)
    return {MAIN_INPUTS.get(model.main_input_name, "text")} if takes == {"text"} else takes


def modality(model: torch.nn.Module, name: str) -> str:
    """Which part of a model this module belongs to: "language", "vision", "audio" or "encoder".

    The outermost transformers model around it says which of its parts is the decoder and which
    are towers. What lies in none is of a tower, or of a text encoder if it takes text only.
    """
    path = name.split(".")
    around = [model.get_submodule(".".join(path[:length])) for length in range(len(path) + 1)]
    around = list(dropwhile(lambda module: not isinstance(module, PreTrainedModel), around))
    if not around:
        return "language"
    outer = around[0]
    towers = {"audio": outer.get_encoder("audio"), "vision": outer.get_encoder("image")}
    parts = {id(module): part for part, module in towers.items() if module is not outer}
    encoder = outer.get_encoder()
    if encoder is not outer and isinstance(encoder, PreTrainedModel) and _reads_tokens(encoder):
        parts[id(encoder)] = "encoder"
    takes = _takes(outer)
    reader = outer.get_decoder()
    if _reads_tokens(reader):
        parts = {id(reader): "encoder", id(_innermost_decoder(reader)): "language"} | parts
        takes = next(filter(None, map(_takes, reversed(around))))
    for each in reversed(around):
        if id(each) in parts:
            return parts[id(each)]
        if isinstance(each, PreTrainedModel) and each is not outer and not _reads_tokens(each):
            takes = _takes(each)
            break
    if takes == {"text"}:
        return "encoder"
    return "vision" if {"image", "video"} & (_takes(outer) | takes) else "audio"


def _innermost_decoder(model: torch.nn.Module) -> torch.nn.Module:
    inner = model.get_decoder() if hasattr(model, "get_decoder") else model
    return inner if inner is model else _innermost_decoder(inner)


def _reads_tokens(model: torch.nn.Module) -> bool:
    """Whether a transformers model takes text; many towers inherit the claim that they do."""
    if _takes(model) == {"text"}:
        return True
    try:
        return isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    except NotImplementedError:
        return False


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

    The model computes what it computes without a recording, each part by its own implementation;
    one other than SDPA or eager is replaced by SDPA and put back on exit, even after an exception.
    The first call of each kind is checked: its output must be what the recorded probabilities give.
    Rows of attention sum to 1, or to less where the model has sinks: logits of no key that compete
    with the scores. A part that does not run is left out; `recording.notes` says which.
    Layers without attention are recorded as the matrices by which they mix their tokens. Known are
    the gated delta rule and Kimi's, the scans of Mamba and Mamba2, RG-LRU, lightning attention, and
    short gated convolutions.
    Recorded tensors are detached, not copied, and stay on their device. A module's own softmax is
    kept as it is, a direct call of SDPA as one of the interface. `nn.MultiheadAttention`
    modules compute their weights explicitly, which may change the last digits of their output;
    these weights are kept.

    head_fusion: "mean", "max" or "min" to fuse heads while recording. Layers where no token
    sees a later one then keep fused attention instead of queries and keys if it is smaller: for
    sequences shorter than about (query heads + key heads) · head size. A rollout of such layers
    needs the same head_fusion. None, the default, leaves the choice open.

    Raises ValueError if the model, or a part of it, is in training mode (dropout would be recorded
    as attention) and for an unknown head_fusion; RuntimeError if a module computes anything else
    than softmax(QKᵀ · scaling + mask) · V or a known rule, and on exit if an attention module was
    not captured or layers of a stack mix tokens in another way.
    """
    if head_fusion is not None:
        require_fusion(head_fusion)
    recording = Recording(model, head_fusion)
    with (
        attention_noted(model, recording.note),
        additions_noted(model, recording.note_added),
        recording.runs_noted(),
    ):
        yield recording
    recording.require_complete()


@contextmanager
def attention_noted(model: torch.nn.Module, note: Note) -> Iterator[None]:
    """Inside the block, `note` is given every attention call of the model."""

    def note_weights(module, weights):
        note(module, partial(RecordedWeights, weights=weights.detach()))

    with (
        noted_by(recording_attention, model, note),
        weights_noted(model, note_weights),
        own_attention_noted(model, note_weights),
        rules_noted(model, recording_rule(note)),
        own_rules_noted(model, note),
    ):
        yield
