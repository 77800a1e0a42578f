"""Small random models of many families of transformers, from their own default configurations."""

import inspect
from functools import partial

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

SIZES = {
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size", "projection_dim"), 32),
    **dict.fromkeys(("hidden_dim", "d_model", "text_hidden_size", "projection_size"), 32),
    **dict.fromkeys(("encoder_hidden_size", "image_text_hidden_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(
        ("output_dim", "output_channels", "decoder_hidden_size", "adapter_out_dim"), 32
    ),
    **dict.fromkeys(("latent_channels", "base_channels", "projector_hidden_size"), 32),
    **dict.fromkeys(("projection_hidden_size", "merged_hidden_size"), 32),
    **dict.fromkeys(("patch_embed_hidden_size", "patch_dim"), 192),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "n_heads"), 4),
    **dict.fromkeys(("attention_heads", "num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("resampler_n_heads", "resampler_n_latents", "swa_num_attention_heads"), 4),
    **dict.fromkeys(
        ("index_n_heads", "linear_num_heads", "num_query_tokens", "moe_num_experts"), 4
    ),
    **dict.fromkeys(("latent_query_num", "resampler_num_latents", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_key_value_heads", "num_global_layers"), 2),
    **dict.fromkeys(("linear_num_key_heads", "resampler_depth", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("d_kv", "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("resampler_head_dim", "swa_head_dim", "mamba_head_dim", "index_topk"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "index_head_dim", "qk_head_dim"), 16),
    **dict.fromkeys(("ssm_state_size", "num_mel_bins", "rel_extent", "chunk_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 200),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "mlp_dim", "d_ff", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "alignment_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("num_embeddings", "codebook_size"), 64),
    **dict.fromkeys(("num_patches", "num_position_embeddings", "position_embedding_size"), 16),
    "channel_multiplier": [1, 1],
    "global_attn_indexes": [1, 3],
    "num_pos_feats": 16,
    "max_num_patches": 64,
    "mamba_num_heads": 8,
    "vision_output_dim": 96,
    "image_size": 32,
    "patch_size": 8,
    "mm_tokens_per_image": 16,
    "fullatt_block_indexes": [1, 3],
    "deepstack_visual_indexes": [0, 2],
    "vision_feature_layer": -1,
    "cross_attention_layers": [1, 3],
    "intermediate_layers_indices": [0, 2],
    "image_grid_pinpoints": [[32, 32]],
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("image_token_id", "image_token_index", "image_patch_id"), 5),
    **dict.fromkeys(("video_token_id", "video_token_index"), 6),
}
DERIVED = ("layer_types", "per_layer_config", "mlp_layer_types", "moe_layers", "no_rope_layers")
SHARED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
HEADS = {"num_key_value_heads": 4}  # as many as queries have, as in multi-head latent attention
FINE = {"vision_config": {"patch_size": 4}}  # two convolutions leave a quarter of rows and columns
CODES = {"<image>": 5} | {
    f"IMGIMG{a}{b}Z": 100 + 10 * i + j
    for i, a in enumerate("ABCDEF")
    for j, b in enumerate("ABCDEFGHIJ")
}
TIMM = {
    "architecture": "vit_pe_core_tiny_patch16_384",
    "model_args": {"embed_dim": 32, "depth": 4, "num_heads": 4, "img_size": 32, "patch_size": 8},
}
OWN_SIZES = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 5},
    "instructblip": {"image_token_index": 5},
    "instructblipvideo": {"video_token_index": 5},
    "minicpm_ocr": {"image_token_id": 5, "video_token_id": 6},
    "minicpmv4_6": {"image_token_id": 5, "video_token_id": 6, "insert_layer_id": 1},
    "minicpmv4_7": {"image_token_id": 5, "video_token_id": 6, "insert_layer_id": 1},
    "chameleon": {"vocabulary_map": CODES, "vq_config": {"num_embeddings": 60, "resolution": 32}},
    "cosmos3_edge": {"vision_config": {"num_patches": 16}, "projector_hidden_size": 32},
    "cohere_compass": {
        "text_config": HEADS
        | {
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [1, 1, 2],
                }
            }
        }
    },
    "diffusion_gemma": {
        "text_config": {
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        }
    },
    "fast_vlm": {"vision_config": {"hidden_size": 3072}},
    "fuyu": {"patch_size": 8},
    "glm4v_moe": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "mrope_section": [1, 1, 2],
            }
        }
    },
    "muse_glimmer": {"out_hidden_size": 128},
    "kimi_k25": {"projection_hidden_size": 32, "text_config": HEADS},
    "mistral4": HEADS
    | {
        "qk_rope_head_dim": 8,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        },
    },
    "nemotron_h_omni": {"image_token_id": 5, "vision_hidden_size": 32, "projector_hidden_size": 32},
    "pp_formulanet": {"vision_config": {"post_conv_in_channels": 32}},
    "qwen2_5_omni_thinker": {
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
        "audio_start_token_id": 9,
        "audio_end_token_id": 10,
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
    },
    "qwen3_omni_moe_thinker": {
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
        "audio_start_token_id": 9,
        "audio_end_token_id": 10,
        "position_id_per_seconds": 25,
    },
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense"] * 4, "num_experts_per_tok": 2},
        "vision_config": {
            "sam_config": {"downsample_channels": [32, 32], "window_size": 2, "scale": 64}
        },
    },
    "unlimited_ocr": {
        "text_config": HEADS,
        "vision_config": {"sam_config": {"downsample_channels": [32, 32], "window_size": 2}},
    },
    "dots3_note": {
        "text_config": HEADS
        | {"head_dim": 16, "per_layer_config": {}, "layer_types": ["indexed_attention"] * 4},
        "vision_config": {
            "per_layer_config": {},
            "mlp_layer_types": ["dense"] * 4,
            "adapter_in_dim": 32,
        },
        "audio_config": {"adapter_input_size": 32},
    },
    "emu3": {
        "vocabulary_map": {"<image>": 5}
        | {f"<|visual token {i:06}|>": 100 + i for i in range(64)}
        | {"<|extra_200|>": 99}
    },
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [16, 8], "moe_k": 2}},
    "florence2": {
        "vision_config": {
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "depths": [1, 1],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
        }
    },
    "gemma3n": {
        "text_config": {
            "intermediate_size": 48,
            "activation_sparsity_pattern": [0.0] * 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "vision_config": {"hidden_size": 2048},
    },
    "gemma4": {"text_config": SHARED, "vision_config": {"position_embedding_size": 64}},
    "glm5_next": {
        "text_config": HEADS
        | {"qk_rope_head_dim": 0, "head_dim": 0, "qk_head_dim": 8, "index_kpool": 4}
    },
    "got_ocr2": FINE,
    "pp_chart2table": FINE,
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [0, 1, 2, 3],
        "vision_config": {"hidden_size": 64},
    },
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "inkling_mm_model": {
        "vision_config": {"n_layers": 2, "text_hidden_size": 32},
        "audio_config": {"text_hidden_size": 32},
    },
    "llama4": {
        "text_config": {"intermediate_size": 128},
        "vision_config": {"intermediate_size": 128, "vision_output_dim": 128},
    },
    "mistral_large4": {
        "text_config": HEADS | {"kv_source_layers": [0, 1, 2, 3], "indexer_types": ["full"] * 4}
    },
    "molmo2": {
        "vision_config": {"image_size": [32, 32]},
        "adapter_config": {"vision_feature_layer": [3, 1]},
    },
    "muse_spark": {
        "out_hidden_size": 128,
        "audio_config": {"hidden_sizes": [8, 8, 16, 16]},
        "text_config": {"layer_rope_theta": [1e4] * 4},
    },
    "perception_lm": {"vision_config": TIMM},
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        }
    },
    "step3p7": {"text_config": {"sliding_window": 8}},
}


def vit(**others):
    return {"model_type": "vit", "image_size": 32, "patch_size": 8} | others


SEEING = {"vision_config": {"model_type": "gemma4_vision"}}
PARTS = {
    "gemma4": SEEING,
    "diffusion_gemma": SEEING,
    "gemma4_unified": {"vision_config": {"model_type": "gemma4_unified_vision"}},
}
GRIDS = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "exaone4_5", "cohere_compass"),
    *("cosmos3_edge", "cosmos3_omni", "dots3_note", "ernie4_5_vl_moe", "glm46v", "glm4v_moe"),
    *("glm5_next", "glm_ocr", "glmga", "hunyuan_vl", "hyperclovax_vision_v2", "inkling2"),
    *("kimi_k25", "lfm3_vl", "minimax_m3_vl", "muse_glimmer", "muse_spark", "paddleocr_vl"),
    *("qwen2_5_omni_thinker", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen4_exp"),
    "video_llama_3",
)
STILL = (
    "cosmos3_edge",
    "ernie4_5_vl_moe",
    "paddleocr_vl",
    "hunyuan_vl",
    "dots3_note",
)  # without time in patches
LONE = ("idefics2", "idefics3", "smolvlm", "granite_docling")  # several pictures for each text
SIZED = (
    "mistral3",
    "mistral_large4",
    "lighton_ocr",
    "llava_next",
    "llava_onevision",
    "granite4_vision",
    "llava_next_video",
    "emu3",
)
TILES = {
    **dict.fromkeys(LONE, (1, 1, 3, 32, 32)),
    **dict.fromkeys(
        ("llava_next", "llava_onevision", "granite4_vision", "llava_next_video"), (1, 2, 3, 32, 32)
    ),
}
# Types whose picture has no tokens in the prompt.
UNPLACED = (
    *("mllama", "blip", "git", "pix2struct", "vision-encoder-decoder", "udop", "idefics"),
    *("kosmos-2", "kosmos-2.5", "mistral4", "pi0", "pp_formulanet", "evolla"),
)
COUNTS = {
    "instructblipvideo": 16,
    "fuyu": 16,
    "granite4_vision": 10,
    "diffusion_gemma": 4,
    "gemma4_unified": 1,
}


def pixels(*shape):
    return partial(torch.randn, *(shape or (1, 3, 32, 32)))


def numbers(*values):
    return partial(torch.tensor, list(values))


def yes(*shape):
    return partial(torch.ones, *shape, dtype=torch.long)


def placed():
    """16 flattened patches, each after its row and column."""
    places = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 5))
    return torch.cat([places, torch.randn(16, 192)], 1)[None]


def FIRST_FOUR():
    return (torch.arange(27) < 4)[None]


WINDOWED = {"pixel_values": pixels(1, 3, 8, 128), "target_sizes": numbers([4, 4])}
SMALL = {"pixel_values": pixels(16, 192)}
PICTURES = {
    "deepseek_vl_hybrid": {"pixel_values": pixels(), "high_res_pixel_values": pixels()},
    "florence2": {"pixel_values": pixels()},
    "evolla": {
        "protein_input_ids": lambda: torch.arange(4, 12)[None],
        "protein_attention_mask": yes(1, 8),
    },
    "mistral4": {},
    "fuyu": {"image_patches": pixels(1, 16, 192)},
    "granite_docling": {
        "pixel_values": pixels(1, 1, 3, 32, 32),
        "pixel_attention_mask": partial(torch.ones, 1, 1, dtype=torch.bool),
    },
    "inkling2": {"pixel_values": pixels(4, 16, 16, 3), "image_grid_thw": numbers([1, 2, 2])},
    "inkling_mm_model": {"pixel_values": pixels(4, 2, 8, 8, 3)},
    "instructblip": {"pixel_values": pixels(), "qformer_input_ids": numbers([3, 4, 5])},
    "instructblipvideo": {
        "pixel_values": pixels(1, 4, 3, 32, 32),
        "qformer_input_ids": numbers([3, 4, 5]),
    },
    "kimi_k25": {"pixel_values": pixels(16, 3, 8, 8), "image_grid_thw": numbers([1, 4, 4])},
    "kosmos-2": {"pixel_values": pixels(), "image_embeds_position_mask": FIRST_FOUR},
    "kosmos-2.5": {"flattened_patches": placed, "image_embeds_position_mask": FIRST_FOUR},
    "lfm2_vl": SMALL
    | {
        "pixel_values": pixels(1, 16, 192),
        "spatial_shapes": numbers([4, 4]),
        "pixel_attention_mask": yes(1, 16),
    },
    "minicpm_ocr": WINDOWED,
    "minicpmv4_6": WINDOWED,
    "minicpmv4_7": WINDOWED,
    "molmo2": {
        "pixel_values": pixels(1, 16, 192),
        "image_token_pooling": lambda: torch.arange(16).view(4, 4),
        "image_grids": numbers([2, 2, 0, 0]),
        "image_num_crops": numbers(1),
    },
    "nemotron_h_omni": SMALL | {"image_grid_hw": numbers([4, 4])},
    "paddleocr_vl": {"pixel_values": pixels(16, 3, 8, 8), "image_grid_thw": numbers([1, 4, 4])},
    "perception_lm": {"pixel_values": pixels(1, 1, 3, 32, 32)},
    "pi0": {
        "state": pixels(1, 32),
        "noise": pixels(1, 50, 32),
        "timestep": partial(torch.ones, 1),
        "pixel_values": pixels(1, 1, 3, 32, 32),
        "pixel_attention_mask": partial(torch.ones, 1, 1, dtype=torch.bool),
    },
    "pix2struct": {"flattened_patches": placed, "attention_mask": yes(1, 16)},
    "udop": {"pixel_values": pixels(), "bbox": lambda: torch.rand(1, 27, 4)},
    "video_llama_3": SMALL
    | {"image_grid_thw": numbers([1, 4, 4]), "image_merge_sizes": numbers(1)},
    "video_llava": {"pixel_values_images": pixels()},
    "idefics": {"pixel_values": pixels(1, 1, 3, 32, 32), "image_attention_mask": yes(1, 27, 1)},
}
FAMILIES = (  # the most used ones
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "gemma3", "gemma4", "llava"),
    *("internvl", "idefics2", "idefics3", "smolvlm", "llava_next", "llava_onevision", "mllama"),
    *("paligemma", "mistral3", "llama4", "got_ocr2", "florence2", "blip"),
)


TYPES = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def small_config(settings, own):
    """These settings with every size a small one, also in the configurations of parts."""
    small = {}
    for name, value in settings.items():
        if name in DERIVED:
            continue
        if isinstance(value, dict) and "model_type" in value:
            small[name] = small_config(value, own.get(name, {}))
        elif name in SIZES and value is not None:
            small[name] = SIZES[name]
        elif name == "rope_parameters" and "rope_type" in value:
            small[name] = value | {"mrope_section": [1, 1, 2]}
        else:
            small[name] = value
    return small | {name: value for name, value in own.items() if not name.endswith("_config")}


def small_family(kind):
    """A random model that reads pictures and text, and inputs with one picture."""
    model = small_model(kind)
    return model, inputs_of(model, kind)


def small_model(kind):
    """A random model of this type."""
    torch.manual_seed(0)
    default = CONFIG_MAPPING[kind](**PARTS.get(kind, {}))
    settings = small_config(default.to_dict(), OWN_SIZES.get(kind, {}))
    config = type(default).from_dict(settings)
    return class_of(kind)._from_config(config).eval()


def class_of(kind):
    """The class that transformers maps this type of checkpoints to."""
    return getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind])


def inputs_of(model, kind):
    """A prompt with one random picture, as this family's processor gives it."""
    seen = picture(kind)
    takes = inspect.signature(model.forward).parameters
    with torch.no_grad():
        count = COUNTS.get(kind)
        count = _features(model, seen) if count is None and kind not in UNPLACED else count or 0
    tokens = torch.tensor([[3, 14, 15] + [5] * count + list(range(20, 44))])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | seen
    for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in takes:
            inputs[name] = (tokens == 5).long()
    if "use_cache" in takes or "kwargs" in takes:
        inputs["use_cache"] = False
    if "decoder_input_ids" in takes and model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.arange(30, 42)[None]
    return inputs


def picture(kind):
    """One random picture as this family's processor gives it: 4 x 4 patches, or 6 x 6."""
    size = {"image_sizes": torch.tensor([[32, 32]])}
    if kind in GRIDS and kind not in PICTURES:
        width = 192 if kind in STILL else 384
        return {"pixel_values": torch.randn(16, width), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    if kind == "gemma4_unified":
        return {
            "pixel_values": torch.rand(1, 1, 1728),
            "image_position_ids": torch.zeros(1, 1, 2, dtype=torch.long),
        }
    if kind in ("gemma4", "diffusion_gemma"):
        places = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        return {"pixel_values": torch.rand(1, 36, 192), "image_position_ids": places[None]}
    if kind == "mllama":
        return {
            "pixel_values": torch.randn(1, 1, 4, 3, 32, 32),
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long),
            "cross_attention_mask": torch.ones(1, 27, 1, 4, dtype=torch.long),
        }
    if kind in PICTURES:
        return {name: make() for name, make in PICTURES[kind].items()}
    shape = TILES.get(kind, (1, 3, 32, 32))
    pixels = {"pixel_values": torch.randn(*shape)}
    return pixels | size if kind in SIZED else pixels


def _features(model, seen):
    """How many image tokens this picture takes."""
    inner = getattr(model, "model", model)
    inner = inner if hasattr(inner, "get_image_features") else model
    takes = inspect.signature(inner.get_image_features).parameters
    seen = {name: each for name, each in seen.items() if name in takes or name == "image_sizes"}
    features = inner.get_image_features(**seen)
    if hasattr(features, "keys"):
        name = "pooler_output" if "pooler_output" in features else "last_hidden_state"
        features = features[name]
    return sum(part.shape[:-1].numel() for part in _tensors(features))


def _tensors(features):
    """All tensors of a list, a list of lists, or one tensor."""
    if isinstance(features, torch.Tensor):
        return [features]
    return [tensor for part in features for tensor in _tensors(part)]
