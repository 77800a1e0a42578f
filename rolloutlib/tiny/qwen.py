"""What the small Qwen models share: a processor, and how their vision encoder starts and sees."""

import torch
from jaxtyping import Float, Int
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from rolloutlib.tiny.tokenizers import SCREEN_TEMPLATE
from rolloutlib.tiny.weights import sine_cosine_positions


def small_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Qwen3-VL's own processor: patches of 16 pixels, pictures of at least 256 x 256."""
    image_processor = Qwen2VLImageProcessor(
        patch_size=16,
        size={"shortest_edge": 256**2, "longest_edge": 4096**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Qwen3VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=SCREEN_TEMPLATE,
    )


def picture_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The tokens around and for pictures and videos, as the configuration names them.

    >>> from rolloutlib.tiny.tokenizers import turn_tokenizer
    >>> [*picture_token_ids(turn_tokenizer())]
    ['image_token_id', 'video_token_id', 'vision_start_token_id', 'vision_end_token_id']
    """
    signs = {"image": "image_pad", "video": "video_pad"}
    signs |= {name: name for name in ("vision_start", "vision_end")}
    number = tokenizer.convert_tokens_to_ids
    return {f"{name}_token_id": number(f"<|{sign}|>") for name, sign in signs.items()}


@torch.no_grad()
def start_encoder(encoder: nn.Module) -> None:
    """Positions start as sines and cosines, and a head's queries and keys are equal."""
    side, heads = encoder.num_grid_per_side, encoder.config.num_heads
    table = encoder.pos_embed.weight
    table.copy_(0.5 * sine_cosine_positions((side, side), table.shape[1]))
    for block in encoder.blocks:
        query, key, _ = block.attn.qkv.weight.chunk(3)
        for projection in query.chunk(heads):
            nn.init.orthogonal_(projection)
        key.copy_(query)


def patch_places(
    encoder: nn.Module, grid: tuple[int, int]
) -> tuple[
    Int[torch.Tensor, "patch 4"], Float[torch.Tensor, "patch 4"], Int[torch.Tensor, "patch 2"]
]:
    """Where the patches of a `grid` (rows, columns) lie, in the order in which they are read.

    For each patch: four entries of the encoder's table of positions and the share of each, as the
    table is stretched over the grid; and its row and column.
    """
    whole, merge = torch.tensor([[1, *grid]]), encoder.spatial_merge_size
    table = get_vision_interpolation_indices_and_weights(
        whole, encoder.num_grid_per_side, align_corners=True, spatial_merge_size=merge
    )
    return *table, get_vision_position_ids(whole, merge)
