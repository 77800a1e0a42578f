"""Attention weighted by its gradient: which connections did the answer depend on?

While gradients are recorded, attention is computed explicitly, so that gradients flow through each
head's probabilities. The model's own code is unchanged.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int

from rolloutlib.recording.capture import Recording
from rolloutlib.recording.interface import (
    active,
    attention_call,
    gather,
    noted_by,
    require_same,
    weights_noted,
)
from rolloutlib.recording.kinds import DifferentiableLayer
from rolloutlib.recording.own import own_attention_noted
from rolloutlib.recording.rules import own_rules_noted, recording_rule, rules_noted


@dataclass(frozen=True)
class WeightedLayer:
    """One layer's attention, each entry weighted by what the answer would gain from it."""

    name: str
    weights: Float[torch.Tensor, "batch query key"]


@contextmanager
def record_gradients(model: torch.nn.Module) -> Iterator[Recording]:
    """Record what each layer attends to in a form through which gradients flow.

    ```
    with record_gradients(model) as recording:
        logits = model(**inputs).logits
    layers = weigh_by_gradient(recording["language"], logits[0, row, token])
    gradient_rollout_rows(layers, [row])
    ```

    Every layer's whole attention, `[head query key]`, stays in memory until the recording is freed,
    so this is for sequences of a few hundred tokens, not of ten thousand. A layer without attention
    has its M in the place of attention; in Mamba, RG-LRU and convolutions each channel is a head,
    and so takes as much memory. Qwen3-VL's tower attends
    to pictures and time steps one at a time: of these, only a single picture can be recorded.

    Raises what `record_attention` raises, and ValueError if gradients are switched off.
    """
    recording = Recording(model)

    def note_weights(module, weights):
        # The weights returned are a view; the output is computed from the tensor behind it.
        own = weights if weights._base is None else weights._base
        layer = partial(DifferentiableLayer, attention=own, heads=weights.shape[1])
        recording.note(module, layer)

    with (
        noted_by(_open_attention, model, recording.note),
        weights_noted(model, note_weights),
        own_attention_noted(model, note_weights),
        recording.runs_noted(),
        rules_noted(model, recording_rule(recording.note, gradients=True)),
        own_rules_noted(model, recording.note, gradients=True),
    ):
        yield recording
    recording.require_complete()
    if not all(layer.attention.requires_grad for layer in recording[""]):
        raise ValueError("expected gradients to be on while recording, got torch.no_grad()")


def _open_attention(function, module, query, key, value, attention_mask, **how):
    """Compute the attention explicitly and note it in every active recording."""
    call = attention_call(function, module, query, key, attention_mask, **how)
    attention = call.probabilities()
    if torch.is_grad_enabled() and not attention.requires_grad:
        attention.requires_grad_()  # the first layer of a model whose weights are frozen
    layer = partial(DifferentiableLayer, attention=attention, heads=query.shape[1])
    if any([note(module, layer) for note in active.get()]):
        with torch.no_grad():
            own, _ = function(module, query, key, value, attention_mask, **how)
            require_same(module, call, value, own)
    return gather(attention, value), None


def weigh_by_gradient(
    layers: Sequence[DifferentiableLayer], target: Float[torch.Tensor, ""]
) -> list[WeightedLayer]:
    """Weight attention by its gradient: keep what would raise the target if there were more of it.

    Ā = E_h[(∇A ⊙ A)⁺]: the positive part of each head's attention times the target's gradient with
    respect to it, averaged over heads (Chefer et al. 2021, "Generic Attention-model
    Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", equation 5). It
    has no negative entries, and its rows do not sum to 1: their sums are in the target's unit.

    target: one number of the pass, such as the logit of an answer's token. Use a logit, not a
    probability: when the model is confident, the gradient of a probability vanishes. Layers that
    the target does not depend on get zeros. The graph is kept for another target.
    """
    attentions, weighted = [layer.attention for layer in layers], []
    gradients = torch.autograd.grad(target, attentions, retain_graph=True, materialize_grads=True)
    for layer, gradient in zip(layers, gradients, strict=True):
        positive = (layer.attention.detach() * gradient).clamp(min=0)
        heads = positive.reshape(-1, layer.heads, *positive.shape[-2:])
        weighted.append(WeightedLayer(layer.name, heads.mean(1)))
    return weighted


def gradient_rollout(
    layers: Sequence[WeightedLayer], relevance: Float[torch.Tensor, "batch row query"]
) -> Float[torch.Tensor, "batch row key"]:
    """Carry relevance over a part's outputs back to its inputs: r ← r + r Ā, last layer first.

    That is r (I + Ā_L) … (I + Ā_1), the rows of Chefer et al.'s R ← R + Ā R (2021, equation 6),
    which starts as the identity. Nothing is normalised.

    >>> layer = WeightedLayer("only", torch.tensor([[[0.0, 0.0], [0.5, 0.0]]]))
    >>> gradient_rollout([layer, layer], torch.tensor([[[0.0, 1.0]]]))
    tensor([[[1., 1.]]])
    """
    for layer in reversed(layers):
        relevance = relevance + relevance @ layer.weights
    return relevance


def gradient_rollout_rows(
    layers: Sequence[WeightedLayer], rows: Sequence[int] | Int[torch.Tensor, " row"]
) -> Float[torch.Tensor, "batch row key"]:
    """What these outputs depended on: `gradient_rollout` that starts from the rows themselves."""
    weights = layers[-1].weights
    rows = torch.as_tensor(rows, device=weights.device)
    start = torch.nn.functional.one_hot(rows, weights.shape[-1]).to(weights)
    return gradient_rollout(layers, start.expand(len(weights), -1, -1))
