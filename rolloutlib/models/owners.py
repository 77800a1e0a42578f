"""Which token of a prompt each number of a picture feeds, asked of the model itself."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from jaxtyping import Bool, Float, Int

from rolloutlib.models.geometry import Unplaced
from rolloutlib.recording.capture import modality
from rolloutlib.recording.interface import noted_by


class Reached(Exception):
    """The decoder is reached: all that comes from the picture is in its place."""


def stop(*_) -> None:
    """A hook that ends a pass here."""
    raise Reached


@contextmanager
def looking_at_itself(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, every token attends only to itself: what it computes, it computes alone.

    Attention of queries from another sequence, as in a resampler, stays as it is.
    """
    with noted_by(_own_value, model, lambda *_: False):
        yield


def _own_value(function, module, query, key, value, attention_mask, **how):
    if query.shape[2] != key.shape[2]:
        return function(module, query, key, value, attention_mask, **how)
    own = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return own.transpose(1, 2), None


def decoder_input(model: torch.nn.Module, inputs: Mapping) -> Float[torch.Tensor, "token width"]:
    """What the first layer of the decoder is given, one sequence; its copies, if there are several
    as in Gemma 3n, side by side.

    Raises `Unplaced` if its length is not the prompt's.
    """
    decoder = set(model.get_decoder().modules())
    layers = next(  # GIT's decoder holds its vision tower
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and module in decoder
        and modality(model, name) == "language"
    )
    given = []

    def keep(module, args, kwargs):
        given.append((args[0] if args else kwargs["hidden_states"]).squeeze())
        raise Reached

    with layers[0].register_forward_pre_hook(keep, with_kwargs=True), suppress(Reached):
        model(**inputs, use_cache=False)
    *sides, _ = given[0].shape
    if inputs["input_ids"].shape[1] not in sides:
        raise Unplaced("the picture has no tokens in the prompt: the decoder sees it another way")
    return given[0].movedim(sides.index(inputs["input_ids"].shape[1]), 0).flatten(1)


def owners_of(
    model: torch.nn.Module, inputs: Mapping, names: Iterable[str]
) -> dict[str, Int[torch.Tensor, "..."]]:
    """The position of the token that each number of these inputs feeds; -1 if it feeds none.

    With every token of the tower looking at itself only, one number feeds one token, unless tokens
    are mixed by something else. Positions are read in binary: for each digit one backward pass from
    the tokens that have it, and one from those that don't.

    Raises `Unplaced` if numbers feed several tokens, as in resamplers and overlapping convolutions.
    """
    numbers = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    with torch.enable_grad(), looking_at_itself(model):
        given = decoder_input(model, dict(inputs) | numbers)
    if not given.requires_grad:
        raise Unplaced(
            "the picture's numbers feed no token of the prompt: the decoder sees them another way, "
            "or as words of a codebook"
        )
    # Random weights: the plain sum of what a LayerNorm returns does not depend on its input.
    weights = torch.randn(given.shape, generator=torch.Generator().manual_seed(0))
    scores = (given.float() * weights.to(given.device)).sum(-1)

    def fed(tokens: Bool[torch.Tensor, " token"]) -> list[Bool[torch.Tensor, "..."]]:
        chosen = scores[tokens.to(scores.device)].sum()
        gradients = torch.autograd.grad(
            chosen, list(numbers.values()), retain_graph=True, materialize_grads=True
        )
        return [gradient != 0 for gradient in gradients]

    places = torch.arange(len(given))
    every = fed(places >= 0)
    owners = [torch.where(one, 0, -1) for one in every]
    shared = [torch.zeros_like(one) for one in every]
    for digit in range((len(given) - 1).bit_length()):
        has = places.bitwise_and(1 << digit) != 0
        for n, (yes, no) in enumerate(zip(fed(has), fed(~has), strict=True)):
            shared[n] |= yes & no
            owners[n] += yes * (1 << digit)
    for name, one, all_of in zip(numbers, shared, every, strict=True):
        if one.any():
            share = one.sum() / all_of.sum()
            raise Unplaced(
                f"tokens share the picture's numbers: {share:.0%} of those in {name} feed several"
            )
    return {name: owner.cpu() for name, owner in zip(numbers, owners, strict=True)}
