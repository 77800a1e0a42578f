"""Heatmaps of an answer: on its image tokens, or on through the vision tower to single patches."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float

from rolloutlib.algorithm.arrays import Array
from rolloutlib.algorithm.composition import carry_back, rollout_rows
from rolloutlib.algorithm.layers import Layer
from rolloutlib.algorithm.transition import Settings
from rolloutlib.grid import ImageTokens
from rolloutlib.models.multimodal import Answer
from rolloutlib.recording.capture import Recording

# The layers of a model by part: "language" and "vision".
Parts = Recording | Mapping[str, Sequence[Array | Layer]]


def heatmaps(
    recording: Parts,
    answer: Answer,
    *,
    to_patches: bool = True,
    **settings,
) -> Float[torch.Tensor, "*token_and_grid"]:
    """Where did the model look for each token of its answer?

    The rollout's rows that predicted the tokens (`rollout_rows` of the language model), laid on
    the grid of the only picture in the prompt: `[token row column]`, of a video
    `[token time row column]`. Entries are shares of a row, 0 or more; what they lack to 1 stayed
    outside the picture.

    recording: of `answer.model.record(answer)`, or the layers by part: "language" and "vision".
    to_patches: carry relevance on through the vision tower, as `through_tower` does, with the same
    residual; the grid is then that of `answer.image.patch_view`, else that of `answer.image.view`.
    settings: those of `rollout`, for the language model.

    Raises ValueError for several pictures and for a setting out of its range.
    """
    image = answer.image
    relevance = rollout_rows(recording["language"], answer.rows, **settings)
    relevance = relevance.reshape(len(answer.tokens), -1)  # of one answer, with or without a batch
    return on_picture(recording, image, relevance, to_patches, Settings(**settings).residual)


def on_picture(
    recording: Parts,
    image: ImageTokens,
    relevance: Float[torch.Tensor, "row key"],
    to_patches: bool,
    residual: float,
) -> Float[torch.Tensor, "*row_and_grid"]:
    """Relevance over the prompt's sequence, laid on one picture's patches or its tokens."""
    if to_patches:
        return through_tower(recording, image, relevance, residual=residual)
    return image.heatmaps(relevance)


def through_tower(
    recording: Parts,
    image: ImageTokens,
    relevance: Float[torch.Tensor, "*row key"],
    **settings,
) -> Float[torch.Tensor, "*row_and_grid"]:
    """Where did the image tokens themselves get their content from?

    r · M · R: the relevance r of the image tokens, each token's spread in equal shares over the
    outputs of the tower that were merged into it (M), and the tower's own rollout R. Layers of the
    tower that the image tokens do not come from take no part; neither do Qwen3-VL's further
    branches from intermediate layers of its tower (deepstack), and what R leaves on a class token
    is lost. Where a model has no tower, the relevance lies on patches already and stays as it is.

    relevance: over the prompt's sequence, as from `rollout_rows`.  settings: those of `rollout`,
    for the layers of the tower.

    The result is on the grid of `image.patch_view`.
    """
    patches = image.patches
    if patches is None:
        return image.heatmaps(relevance)
    layers = recording["vision"][: patches.layers]
    batch, length, _ = layers[0].shape

    def carry(outputs: torch.Tensor) -> torch.Tensor:
        every = outputs.new_zeros(batch, *outputs.shape)
        every[patches.sequence] = outputs
        return carry_back(layers, every, **settings)[patches.sequence]

    maps = image.on_patches(relevance.reshape(-1, relevance.shape[-1]), length, carry)
    return maps.reshape(*relevance.shape[:-1], *patches.view.grid)
