"""Maps of a picture that use no attention: what the visualizer for Qwen3-VL tried before it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import nn

from rolloutlib.models.multimodal import Answer


def feature_magnitude(answer: Answer) -> Float[torch.Tensor, "*grid"]:
    """How large the features of each patch are, whatever was asked.

    The Euclidean length of each patch's vector where the image tokens come from: after the last
    layer of the vision tower that they pass; or, without a tower, before the first decoder layer.
    On the grid of `answer.image.patch_view`.

    Raises ValueError for several pictures in the prompt.
    """
    blocks = _blocks(answer)
    place = (blocks[-1], "leaving") if answer.image.patches else (blocks[0], "entering")
    with _states(*place) as states:
        answer.model.record_gradients(answer)
    return _on_patches(answer, states[0].detach())


def gradient_saliency(
    answer: Answer, tokens: Sequence[int] | None = None
) -> Float[torch.Tensor, "*grid"]:
    """How strongly the answer would react to a small change of each embedded patch.

    The Euclidean length of ∂y/∂x_p: y is the summed logit of the generated tokens, x_p the vector
    of patch p before the first layer, position included (Simonyan et al. 2014, "Deep Inside
    Convolutional Networks", there for pixels). On the grid of `answer.image.patch_view`.

    tokens: which of the generated tokens, such as those of a click; all by default.

    Raises ValueError for several pictures in the prompt.
    """
    with _states(_blocks(answer)[0], "entering") as states:
        _, logits = answer.model.record_gradients(answer)
    chosen = logits if tokens is None else logits[list(tokens)]
    [gradient] = torch.autograd.grad(chosen.sum(), states)
    return _on_patches(answer, gradient)


def _blocks(answer: Answer) -> list[nn.Module]:
    """The layers that hold the patches: the tower's that count, or the decoder's."""
    recording, patches = answer.model.record(answer), answer.image.patches
    layers = recording["vision"][: patches.layers] if patches else recording["language"]
    owners = (layer.name.rpartition(".")[0] for layer in layers)
    return [answer.model.model.get_submodule(owner) for owner in owners]


@contextmanager
def _states(block: nn.Module, when: str) -> Iterator[list[torch.Tensor]]:
    """The hidden states that enter or leave this layer while the block of code runs."""
    states = []

    def enter(_, args, kwargs):
        states.append(args[0] if args else kwargs["hidden_states"])
        if not states[0].requires_grad:
            states[0].requires_grad_()

    def leave(_, args, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    entering = when == "entering"
    hook = (
        block.register_forward_pre_hook(enter, with_kwargs=True)
        if entering
        else block.register_forward_hook(leave)
    )
    with hook:
        yield states


def _on_patches(answer: Answer, states: torch.Tensor) -> Float[torch.Tensor, "*grid"]:
    """The length of each patch's vector, on the grid."""
    image = answer.image
    lengths = states.reshape(-1, *states.shape[-2:]).norm(dim=-1)
    if image.patches is None:
        return image.heatmaps(lengths[0])
    return image.patches.heatmaps(lengths[image.patches.sequence])
