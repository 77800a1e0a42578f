"""What the small Qwen models share does what the models themselves do."""

import pytest
import torch
from small_qwen3_vl import small_qwen3_vl

from rolloutlib.tiny import qwen
from rolloutlib.tiny.tokenizers import screen_tokenizer, turn_tokenizer


@pytest.fixture
def encoder():
    return small_qwen3_vl().model.visual


def test_the_places_of_patches_are_those_that_the_encoder_takes(encoder):
    grid = (6, 10)
    pixels = torch.randn(60, 3 * 2 * 16 * 16)
    corners, shares, rows_and_columns = qwen.patch_places(encoder, grid)
    where = (encoder.pos_embed(corners) * shares[..., None]).sum(1)
    hidden = encoder.patch_embed(pixels) + where
    turns = encoder.rotary_pos_emb(hidden, rows_and_columns)
    ends = torch.tensor([0, 60], dtype=torch.int32)
    for block in encoder.blocks:
        hidden = block(hidden, cu_seqlens=ends, position_embeddings=turns)
    own = encoder(pixels, grid_thw=torch.tensor([[1, *grid]])).last_hidden_state
    torch.testing.assert_close(hidden, own)


def test_an_encoder_starts_at_what_is_alike(encoder):
    qwen.start_encoder(encoder)
    table, heads = encoder.pos_embed.weight, encoder.config.num_heads
    assert torch.equal((table @ table.T).argmax(1), torch.arange(len(table)))
    for block in encoder.blocks:
        query, key, _ = block.attn.qkv.weight.chunk(3)
        assert torch.equal(query, key)
        for head in query.chunk(heads):
            torch.testing.assert_close(head @ head.T, torch.eye(len(head)))


@pytest.mark.parametrize("make", [screen_tokenizer, turn_tokenizer])
def test_the_processor_writes_the_tokens_that_the_configuration_names(make):
    tokenizer = make()
    processor, ids = qwen.small_processor(tokenizer), qwen.picture_token_ids(tokenizer)
    assert processor.image_token_id == ids["image_token_id"]
    assert processor.video_token_id == ids["video_token_id"]
    assert processor.vision_start_token_id == ids["vision_start_token_id"]
    assert processor.vision_end_token_id == ids["vision_end_token_id"]
    assert tokenizer.unk_token_id not in ids.values()
