"""Heatmaps of an answer: on its image tokens, or carried through the vision tower to patches."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float

from rolloutlib.algorithm.arrays import Array
from rolloutlib.algorithm.composition import carry_back, rollout_rows
from rolloutlib.algorithm.layers import Layer, layers_from
from rolloutlib.algorithm.transition import Settings
from rolloutlib.grid import ImageTokens
from rolloutlib.models.multimodal import Answer
from rolloutlib.recording.capture import Recording

Parts = Recording | Mapping[str, Sequence[Array | Layer]]  # the layers of a model by part


def heatmaps(
    recording: Parts, answer: Answer, *, to_patches: bool = True, **settings
) -> Float[torch.Tensor, "*token_and_grid"]:
    """Show where the model looked for each token of its answer.

    The rollout's rows that predicted the tokens (`rollout_rows` of the language model), on the
    grid of the only picture in the prompt: `[token row column]`, or `[token time row column]` for a
    video. Entries are shares of a row, 0 or more; the rest of each row lies outside the picture.

    recording: from `answer.model.record(answer)`, or the layers by part: "language" and "vision".
    to_patches: carry relevance through the vision tower, as `through_tower` does, with the same
    residual; the grid is then that of `answer.image.patch_view`, else that of `answer.image.view`.
    settings: those of `rollout`, for the language model.

    Raises ValueError for several pictures, for a batch, and for a setting out of range.
    """
    image = answer.image
    relevance = rollout_rows(recording["language"], answer.rows, **settings)
    if relevance.ndim == 3 and len(relevance) > 1:
        raise ValueError(f"expected the layers of one answer, got a batch of {len(relevance)}")
    relevance = relevance.reshape(relevance.shape[-2:])  # with or without a batch of one
    return on_picture(recording, image, relevance, to_patches, Settings(**settings).residual)


def on_picture(
    recording: Parts,
    image: ImageTokens,
    relevance: Float[torch.Tensor, "row key"],
    to_patches: bool,
    residual: float,
) -> Float[torch.Tensor, "*row_and_grid"]:
    """Relevance over the prompt's sequence, put on one picture's patches or tokens."""
    if to_patches:
        return through_tower(recording, image, relevance, residual=residual)
    return image.heatmaps(relevance)


def through_tower(
    recording: Parts, image: ImageTokens, relevance: Float[torch.Tensor, "*row key"], **settings
) -> Float[torch.Tensor, "*row_and_grid"]:
    """Carry the relevance of image tokens through the vision tower to its patches.

    r · M · R: r is the relevance of the image tokens, M spreads each token's relevance in equal
    shares over the outputs of the tower that were merged into it, and R is the tower's own rollout.
    Where the decoder adds outputs of K earlier layers to the same tokens, as by Qwen3-VL's
    DeepStack (Meng et al. 2024), all K + 1 summands have equal shares:
    r · M · (R_D + Σ R_{d_k}) / (K + 1), where R_d is the rollout of the first d of D layers. What
    the decoder's first layers mix before they are added is neglected. Layers after those that the
    image tokens come from are left out. What R leaves on a class token is lost. If a model has no
    tower, or no known one, the relevance stays on the image tokens. The result is on the grid of
    `image.patch_view`.

    relevance: over the prompt's sequence, as from `rollout_rows`.  settings: those of `rollout`,
    for the layers of the tower.
    """
    patches = image.patches
    if patches is None:
        return image.heatmaps(relevance)
    start = settings.pop("start_layer", 0)
    layers = list(layers_from(recording["vision"][: patches.layers], start))
    batch, length, _ = layers[0].shape

    def carry(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        some = layers[max(part.start - start, 0) : max(part.stop - start, 0)]
        if not some:
            return outputs
        every = outputs.new_zeros(batch, *outputs.shape)
        every[patches.sequence] = outputs
        return carry_back(some, every, **settings)[patches.sequence]

    maps = image.on_patches(relevance.reshape(-1, relevance.shape[-1]), length, carry)
    return maps.reshape(*relevance.shape[:-1], *patches.view.grid)
