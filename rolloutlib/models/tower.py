"""Heatmaps of an answer: on its image tokens, or carried through the vision tower to patches."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int

from rolloutlib.algorithm.arrays import Array, as_tensor
from rolloutlib.algorithm.attention import normalize_rows
from rolloutlib.algorithm.composition import attention_received, carry_back, rollout_rows
from rolloutlib.algorithm.layers import Layer, even_attention, layers_from
from rolloutlib.grid import ImageTokens
from rolloutlib.models.multimodal import Answer
from rolloutlib.recording.capture import Recording

# The map that is shown unless a reader chooses another. Among those that `08_faithfulness` compares
# it is called "beyond even, residual 0.9".
SHIPPED = {"head_fusion": "mean", "residual": 0.9, "beyond_even": True}
TOWER_RESIDUAL = 0.5

Parts = Recording | Mapping[str, Sequence[Array | Layer]]  # the layers of a model by part


def heatmaps(
    recording: Parts,
    answer: Answer,
    *,
    to_patches: bool = True,
    tower_residual: float = TOWER_RESIDUAL,
    beyond_even: bool = False,
    **settings,
) -> Float[torch.Tensor, "*token_and_grid"]:
    """Show where the model looked for each token of its answer.

    The rollout's rows that predicted the tokens (`rollout_rows` of the language model), on the
    grid of the only picture in the prompt: `[token row column]`, or `[token time row column]` for a
    video. Entries are shares of a row, 0 or more; the rest of each row lies outside the picture.

    recording: from `answer.model.record(answer)`, or the layers by part: "language" and "vision".
    to_patches: carry relevance through the vision tower, as `through_tower` does, with
    `tower_residual`; the grid is then that of `answer.image.patch_view`, else that of
    `answer.image.view`. Only for families with a file in `models/families`: of others it is not
    known which patches a token is made of, so their relevance stays on the tokens.
    beyond_even: take out the order of tokens. Keep only how far each image token's share of the
    picture's relevance exceeds its share under even attention, before the tower (`beyond`).
    settings: those of `rollout`, for the language model.

    Raises ValueError for several pictures, for a batch, and for a setting out of range.
    """
    image, layers = answer.image, recording["language"]
    relevance = rollout_rows(layers, answer.rows, **settings)
    if relevance.ndim == 3 and len(relevance) > 1:
        raise ValueError(f"expected the layers of one answer, got a batch of {len(relevance)}")
    if beyond_even:
        relevance = beyond(relevance, even_rows(layers, answer.rows, **settings), image.positions)
    relevance = relevance.reshape(relevance.shape[-2:])  # with or without a batch of one
    return on_picture(recording, image, relevance, to_patches, tower_residual)


def even_rows(
    layers: Sequence[Array | Layer], rows: Int[torch.Tensor, " row"], **settings
) -> Float[Array, "*batch row key"]:
    """These rows of the rollout of even attention, to compare with those of the same settings.

    Nothing is discarded, whatever the settings say: entries of even attention tie.
    """
    return rollout_rows(even_attention(layers), rows, **(settings | {"discard_ratio": 0.0}))


def beyond(
    relevance: Float[Array, "*batch row key"],
    even: Float[Array, "*batch row key"],
    positions: Int[torch.Tensor, " token"],
) -> Float[torch.Tensor, "*batch row key"]:
    """How far each token's share of the relevance exceeds its share under even attention.

    max(0, R / ΣR - E / ΣE), sums over the tokens at `positions`; all others get 0. Under a causal
    mask a rollout favours early tokens, and E, the rollout of `even_attention` under the same mask,
    favours them just as much: relevance that is no more than this leaves nothing.

    >>> rollout, even = torch.tensor([[0.4, 0.4, 0.2]]), torch.tensor([[0.6, 0.2, 0.2]])
    >>> beyond(rollout, even, torch.tensor([0, 1]))
    tensor([[0.0000, 0.2500, 0.0000]])
    """
    relevance, even = as_tensor(relevance), as_tensor(even)
    places = positions.to(relevance.device)
    shares = (normalize_rows(some[..., places]) for some in (relevance, even))
    excess = next(shares) - next(shares)
    return torch.zeros_like(relevance).index_copy(-1, places, excess.clamp(min=0))


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


def received_on_patches(
    recording: Parts, image: ImageTokens, layers: Sequence[int] = (-2, -1)
) -> Float[torch.Tensor, "*grid"]:
    """How much attention each patch receives inside the vision tower, whatever the question.

    `attention_received` of some of the tower's layers, on the grid of `image.patch_view`: the
    average patch gets 1. Attention visualizers for Qwen3-VL call this map edges.

    layers: which of the tower's layers, negative from the last.
    """
    received = attention_received([recording["vision"][number] for number in layers])
    return image.patches.heatmaps(received[image.patches.sequence])
