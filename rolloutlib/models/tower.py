"""From the decoder's image tokens on through the vision tower, to single patches."""

import torch
from jaxtyping import Float

from rolloutlib.algorithm.composition import carry_back
from rolloutlib.grid import ImageTokens
from rolloutlib.recording.capture import Recording


def through_tower(
    recording: Recording,
    image: ImageTokens,
    relevance: Float[torch.Tensor, "*row key"],
    **settings,
) -> Float[torch.Tensor, "*row_and_grid"]:
    """Where did the image tokens themselves get their content from?

    r · M · R: the relevance r of the image tokens, each token's spread in equal shares over the
    outputs of the tower that were merged into it (M), and the tower's own rollout R. Layers of the
    tower that the image tokens do not come from take no part; neither do Qwen3-VL's further
    branches out of the midst of its tower (deepstack), and what R leaves on a class token is lost.
    Where a model has no tower, the relevance lies on patches already and stays as it is.

    relevance: over the prompt's sequence, as of `rollout_rows`.  settings: those of `rollout`, for
    the layers of the tower.

    The result is on the grid of `image.patch_view`.
    """
    patches = image.patches
    if patches is None:
        return image.heatmaps(relevance)
    layers = recording["vision"][: patches.layers]
    on_tokens = relevance[..., image.positions.to(relevance.device)]
    on_tokens = on_tokens.reshape(-1, on_tokens.shape[-1])
    batch, length, _ = layers[0].shape
    outputs = on_tokens.new_zeros(batch, len(on_tokens), length)
    outputs[patches.sequence] = patches.on_outputs(on_tokens, length)
    carried = carry_back(layers, outputs, **settings)[patches.sequence]
    return patches.heatmaps(carried).reshape(*relevance.shape[:-1], *patches.view.grid)
