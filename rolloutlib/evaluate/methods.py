"""Ways to make a heatmap from what was recorded of one answer, to compare with each other.

`METHODS` names them. Each takes the same `Evidence`, and none knows which model it came from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from rolloutlib.algorithm.attention import fuse_heads, normalize_rows
from rolloutlib.algorithm.composition import attention_received, carry_back, rollout_rows
from rolloutlib.algorithm.layers import even_attention
from rolloutlib.grid import ImageTokens, View
from rolloutlib.models import Answer, MultimodalModel
from rolloutlib.models.tower import SHIPPED, beyond
from rolloutlib.recording.gradients import (
    WeightedLayer,
    gradient_rollout,
    gradient_rollout_rows,
    record_gradients,
    weigh_by_gradient,
)

Attention = Float[torch.Tensor, "head query key"]
Relevance = Float[torch.Tensor, "row key"]


@dataclass(frozen=True)
class Evidence:
    """What is known about one answer, the same for every method.

    attention: of the layers that answer, first layer first.  rows: the queries that answered.
    weigh: gives all layers weighted by the gradient of the answer, the tower's last.
    weigh_against: the same for how far the answer is ahead of another one; None if there is none.
    neutral: gives the evidence of the same answer to a question that asks for nothing; None if
    there is no such question. All three are called when the first method asks, as each takes as
    long as the forward pass.
    image: the picture's tokens; None for a map over the keys themselves, such as frames or words.
    tower: of the layers behind the image tokens; empty if pixels go straight into the decoder.
    signed: of layers without attention, by their number in `attention`, the matrices with signs;
    None if all attend.
    """

    attention: Sequence[Attention]
    rows: Int[torch.Tensor, " row"]
    weigh: Callable[[], Sequence[WeightedLayer]]
    image: ImageTokens | None = None
    tower: Sequence[Float[torch.Tensor, "tower_head output patch"]] = ()
    weigh_against: Callable[[], Sequence[WeightedLayer]] | None = None
    neutral: Callable[[], "Evidence"] | None = None
    signed: Mapping[int, Attention] | None = None

    @cached_property
    def against(self) -> "Evidence":
        """The same evidence, weighted by the gradient of the answer's lead over another one."""
        return replace(self, weigh=self.weigh_against)

    @cached_property
    def unasked(self) -> "Evidence":
        """What `neutral` gives, asked for once."""
        return self.neutral()

    @cached_property
    def every_weighted(self) -> Sequence[WeightedLayer]:
        """What `weigh` gives, asked for once."""
        return self.weigh()

    @property
    def weighted(self) -> Sequence[WeightedLayer]:
        """The layers that answer, weighted by the gradient of the answer."""
        return self.every_weighted[: len(self.attention)]

    @property
    def tower_weighted(self) -> Sequence[WeightedLayer]:
        """The layers behind the image tokens, weighted by the gradient of the answer."""
        return self.every_weighted[len(self.attention) :]

    @cached_property
    def fused(self) -> list[Float[torch.Tensor, "query key"]]:
        """The attention of the layers that answer, averaged over heads."""
        return [fuse_heads(layer) for layer in self.attention]

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one."""
        return not self.fused[0].triu(1).any()

    @property
    def view(self) -> View | None:
        """What the cells of heatmaps stand for; None if they are the keys themselves."""
        return self.image.patch_view if self.image else None


def by_rollout(evidence: Evidence, relevance: Relevance, part: slice) -> Relevance:
    """Carry relevance through some layers behind the image tokens by their rollout."""
    return carry_back(evidence.tower[part], relevance)


def by_gradient(evidence: Evidence, relevance: Relevance, part: slice) -> Relevance:
    """Carry relevance through some layers behind the image tokens, weighted by gradients."""
    return gradient_rollout(evidence.tower_weighted[part], relevance[None])[0]


def by_lead(evidence: Evidence, relevance: Relevance, part: slice) -> Relevance:
    """The same, weighted by gradients of the answer's lead over another one."""
    return by_gradient(evidence.against, relevance, part)


@dataclass(frozen=True)
class Method:
    """One way to make a heatmap: relevance over the sequence, then laid on a grid.

    relevance: of the rows that answered, over all keys.  tower: carries relevance through the
    layers behind the image tokens to the patches; the same for every method, except where a method
    has its own way through layers.  causal: whether it makes sense only for causal attention.
    needs: the field of the evidence without which there is no such map.
    """

    relevance: Callable[[Evidence], Relevance]
    tower: Callable[[Evidence, Relevance, slice], Relevance] = by_rollout
    causal: bool = False
    needs: str = "attention"

    def applies(self, evidence: Evidence) -> bool:
        """Whether the evidence is of the kind that the method is made for."""
        there = getattr(evidence, self.needs) is not None
        return there and (evidence.causal or not self.causal)

    def heatmap(self, evidence: Evidence, *, to_patches: bool = True) -> Float[np.ndarray, "*grid"]:
        """The map of the answer: the mean over the rows that answered, on `evidence.view`.

        to_patches: go on to the patches behind the image tokens, if there are any; else stop at the
        tokens, on the grid of `evidence.image.view`.

        Raises ValueError if the method is for causal attention and the model's is not, and if the
        evidence lacks what the method needs.
        """
        if getattr(evidence, self.needs) is None:
            raise ValueError(f"expected evidence with `{self.needs}`, got None")
        if not self.applies(evidence):
            raise ValueError("expected causal attention, got attention to later tokens")
        relevance, image = self.relevance(evidence), evidence.image
        if image is None:
            maps = relevance
        elif to_patches and evidence.tower:
            length = evidence.tower[0].shape[-1]
            maps = image.on_patches(relevance, length, partial(self.tower, evidence))
        else:
            maps = image.heatmaps(relevance)
        return maps.mean(0).cpu().numpy()


# A question that asks for nothing in particular, in words that the small models know.
NEUTRAL = "what is there?"


def evidence_of(
    model: MultimodalModel,
    answer: Answer,
    tokens: Sequence[int] | None = None,
    *,
    instead: Sequence[int] | None = None,
    neutral: str = NEUTRAL,
) -> Evidence:
    """Everything that the methods need for an answer about one picture, from one replay pass.

    tokens: which of the generated tokens to explain, such as those of a click's coordinates; all
    by default. The gradient is that of their summed logits.  instead: the ids of the tokens of
    another answer, to ask why it was not given; by default the most likely other token for each.
    The gradient is that of the summed differences of logits.  neutral: a question that asks for
    nothing in particular, after which the same answer is replayed.

    Raises ValueError for more or fewer ids than tokens.
    """
    with record_gradients(model.model) as recording:
        logits = model.replay(answer)
    patches, language = answer.image.patches, recording["language"]
    tower = recording["vision"][: patches.layers] if patches else []
    chosen = list(range(len(answer.tokens)) if tokens is None else tokens)
    sequence = patches.sequence if patches else 0
    given = answer.generated.to(logits.device)[chosen, None]
    own, others = logits[chosen].gather(-1, given), logits[chosen].scatter(-1, given, -torch.inf)
    if instead is None:
        other = others.amax(-1)
    elif len(instead) == len(chosen):
        other = logits[chosen, list(instead)]
    else:
        raise ValueError(f"expected {len(chosen)} ids of another answer, got {len(instead)}")

    def weigh(target: Float[torch.Tensor, ""]) -> list[WeightedLayer]:
        weighted = weigh_by_gradient([*language, *tower], target)
        behind = (
            WeightedLayer(layer.name, layer.weights[sequence : sequence + 1])
            for layer in weighted[len(language) :]
        )
        return [*weighted[: len(language)], *behind]

    return Evidence(
        attention=[layer.probabilities()[0] for layer in language],
        rows=answer.rows[chosen],
        weigh=partial(weigh, own.sum()),
        weigh_against=partial(weigh, own.sum() - other.sum()),
        neutral=lambda: evidence_of(model, said_to(answer, neutral), tokens),
        signed={
            number: layer.signed()[0].detach()
            for number, layer in enumerate(language)
            if hasattr(layer, "signed")
        }
        or None,
        image=answer.image,
        tower=[layer.probabilities()[sequence] for layer in tower],
    )


def said_to(answer: Answer, prompt: str) -> Answer:
    """The same generated tokens, as if they had answered another prompt about the picture."""
    model, pictures = answer.model, [answer.image.picture]
    inputs = model.prepare(pictures, prompt, system=answer.system)
    generated = answer.generated.to(inputs["input_ids"].device)
    sequence = torch.cat([inputs["input_ids"][0], generated])
    return model.answer(pictures, prompt, inputs, sequence[None], system=answer.system)


def rolled(start: float = 0.0, **settings) -> Callable[[Evidence], Relevance]:
    """Rollout with these settings; `start` is the share of layers to leave out, from the first."""

    def relevance(evidence: Evidence) -> Relevance:
        first = int(len(evidence.attention) * start)
        return rollout_rows(evidence.attention, evidence.rows, start_layer=first, **settings)

    return relevance


def last_layer(evidence: Evidence) -> Relevance:
    """What the rows attend to in the last layer: the attention itself, averaged over heads."""
    return evidence.fused[-1][evidence.rows]


def mean_of_layers(evidence: Evidence) -> Relevance:
    """What the rows attend to, averaged over heads and layers; nothing is composed."""
    return torch.stack([layer[evidence.rows] for layer in evidence.fused]).mean(0)


def received(evidence: Evidence) -> Relevance:
    """How much attention each key receives from all queries: the same for every row."""
    return attention_received(evidence.fused).expand(len(evidence.rows), -1)


def gradient_weighted(evidence: Evidence) -> Relevance:
    """Rollout of attention weighted by the gradient of the answer."""
    return gradient_rollout_rows(evidence.weighted, evidence.rows)[0]


def lead_weighted(evidence: Evidence) -> Relevance:
    """Rollout of attention weighted by the gradient of the answer's lead over another answer.

    "Why red and not blue?": y = logit(red) - logit(blue) takes the place of the logit (Yin & Neubig
    2022, "Interpreting Language Models with Contrastive Explanations"). Attention alone can't tell:
    the row that predicts a word is the same whichever word is taken.
    """
    return gradient_weighted(evidence.against)


def head(layer: int, number: int) -> Callable[[Evidence], Relevance]:
    """What the rows attend to in a single head. Layers and heads count from 0."""
    return lambda evidence: evidence.attention[layer][number, evidence.rows]


def sinks(evidence: Evidence, factor: float = 10.0) -> Bool[torch.Tensor, " key"]:
    """Attention sinks: image tokens that receive attention whatever the question.

    They receive more than `factor` times what the median image token receives, summed over
    queries. Without an image, all keys are compared.
    """
    attention = attention_received(evidence.fused)
    some = torch.ones_like(attention, dtype=torch.bool)
    if evidence.image is not None:
        some = torch.zeros_like(some).index_fill(0, evidence.image.positions, True)
    return some & (attention > factor * attention[some].median())


def without_sinks(relevance: Callable[[Evidence], Relevance]) -> Callable[[Evidence], Relevance]:
    """Share out the relevance of sinks among the other keys, in proportion to theirs."""

    def redistributed(evidence: Evidence) -> Relevance:
        whole = relevance(evidence)
        rest = whole.masked_fill(sinks(evidence), 0)
        return rest * (whole.sum(-1, keepdim=True) / rest.sum(-1, keepdim=True))

    return redistributed


def by_rows(evidence: Evidence) -> Relevance:
    """Rollout of attention whose rows are divided by how many keys they see, before the residual.

    One reading of Abnar & Zuidema (2020, section 5). The identity is not divided, so it keeps
    almost all of a late row, and what is left is nearly the mean of layers.
    """
    return rolled(receptive_field=True)(evidence)


def by_columns(evidence: Evidence) -> Relevance:
    """Rollout of attention whose columns are divided by how many rows see them."""
    seen = [(layer > 0).sum(0).clamp(min=1) for layer in evidence.fused]
    layers = [normalize_rows(a / n) for a, n in zip(evidence.fused, seen, strict=True)]
    return rollout_rows(layers, evidence.rows)


def even_rollout(evidence: Evidence, residual: float = 0.5) -> Relevance:
    """The rollout if every token attended evenly to all that it sees: the order of tokens alone."""
    return rollout_rows(even_attention(evidence.fused), evidence.rows, residual=residual)


def over_even(evidence: Evidence) -> Relevance:
    """Rollout divided by that of even attention: 1 where it is what the mask alone gives."""
    even = even_rollout(evidence)
    return torch.where(even > 0, rolled()(evidence) / even, 0)


def log_odds_over_even(evidence: Evidence) -> Relevance:
    """How far the log-odds of the rollout exceed those of even attention, 0 where they do not."""
    either = torch.stack([rolled()(evidence), even_rollout(evidence)]).clamp(1e-12, 1 - 1e-6)
    return either.logit().diff(dim=0)[0].neg().clamp(min=0)


def beyond_even(evidence: Evidence, residual: float = 0.5) -> Relevance:
    """How far each token's share of the relevance exceeds its share under even attention."""
    keys = torch.arange(evidence.fused[0].shape[-1])
    positions = evidence.image.positions if evidence.image else keys
    even = even_rollout(evidence, residual)
    return beyond(rolled(residual=residual)(evidence), even, positions)


def attention_alone(evidence: Evidence) -> Relevance:
    """The map that is shown, as if layers without attention were not there."""
    attending = [a for n, a in enumerate(evidence.attention) if n not in evidence.signed]
    return beyond_even(replace(evidence, attention=attending), SHIPPED["residual"])


def with_signs(evidence: Evidence, residual: float = SHIPPED["residual"]) -> Relevance:
    """Rollout in which what layers without attention add and take away may cancel; less than
    nothing counts as 0.

    In each head a row of M is divided by the sum of its absolute values.
    """
    relevance = torch.eye(len(evidence.fused[0]))[evidence.rows]
    for number, attention in reversed([*enumerate(evidence.attention)]):
        step = evidence.signed.get(number, attention)
        step = step / step.abs().sum(-1, keepdim=True).clamp(min=1e-12)
        relevance = relevance.to(step)
        relevance = residual * relevance + (1 - residual) * relevance @ step.mean(0)
    return relevance.clamp(min=0)


def _with_neutral(evidence: Evidence, residual: float) -> tuple[Relevance, Relevance]:
    """The rollout, and that of the neutral question with its image tokens in the same places."""
    own, neutral = (rolled(residual=residual)(one) for one in (evidence, evidence.unasked))
    places, others = (one.image.positions.to(own.device) for one in (evidence, evidence.unasked))
    return own, torch.zeros_like(own).index_copy(-1, places, neutral[:, others])


def beyond_neutral(evidence: Evidence, residual: float = 0.9) -> Relevance:
    """How far each image token's share of the relevance exceeds its share if nothing is asked.

    max(0, R / ΣR - N / ΣN), sums over the image tokens: R is the rollout of the answer, N that of
    the same answer and picture after a neutral question.
    """
    return beyond(*_with_neutral(evidence, residual), evidence.image.positions)


def over_neutral(evidence: Evidence, residual: float = 0.9) -> Relevance:
    """Rollout divided by that of the same answer after a neutral question.

    R / N is the relative attention of Zhang et al. 2025, "MLLMs Know Where to Look", with rollout
    in place of single layers.
    """
    own, neutral = _with_neutral(evidence, residual)
    return torch.where(neutral > 0, own / neutral, 0)


# Other heads do not dilute what one head attends to, and a layer changes a token only a little.
STRONGEST = {"head_fusion": "max", "residual": 0.9}

BEYOND = "beyond even, residual 0.9"  # the map that is shown where attention is causal

METHODS: dict[str, Method] = {
    "rollout": Method(rolled()),
    "rollout, residual 0.9": Method(rolled(residual=0.9)),
    "strongest heads": Method(rolled(**STRONGEST)),
    "upper layers": Method(rolled(start=0.5)),
    "sinks shared out": Method(without_sinks(rolled())),
    "gradient rollout": Method(gradient_weighted, by_gradient),
    "gradient of the lead": Method(lead_weighted, by_lead, needs="weigh_against"),
    "beyond neutral": Method(beyond_neutral, needs="neutral"),
    "over neutral": Method(over_neutral, needs="neutral"),
    "rows divided": Method(by_rows, causal=True),
    "columns divided": Method(by_columns, causal=True),
    "over even": Method(over_even, causal=True),
    "log-odds over even": Method(log_odds_over_even, causal=True),
    "beyond even": Method(beyond_even, causal=True),
    BEYOND: Method(partial(beyond_even, residual=SHIPPED["residual"]), causal=True),
    "attention alone": Method(attention_alone, causal=True, needs="signed"),
    "with signs": Method(with_signs, causal=True, needs="signed"),
    "last layer": Method(last_layer),
    "mean of layers": Method(mean_of_layers),
    "attention received": Method(received),
}

# For figures: the twelve methods of most interest, by what is done about the order of tokens.
GROUPS = {
    "rollout": ["rollout", "rollout, residual 0.9", "strongest heads"],
    "order taken out": ["rows divided", "columns divided", "over even", BEYOND],
    "contrast": ["beyond neutral"],
    "gradient": ["gradient rollout"],
    "not composed": ["last layer", "mean of layers", "attention received"],
}
