"""Small random models of many families of transformers, from their own default configurations."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

SIZES = {
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size", "projection_dim"), 32),
    **dict.fromkeys(("hidden_dim", "d_model", "text_hidden_size", "projection_size"), 32),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("attention_heads", "num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_key_value_heads", "num_global_layers"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 200),
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "vision_output_dim": 96,
    "image_size": 32,
    "patch_size": 8,
    "num_position_embeddings": 16,
    "position_embedding_size": 16,
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
    **dict.fromkeys(("image_token_id", "image_token_index"), 5),
    **dict.fromkeys(("video_token_id", "video_token_index"), 6),
}
DERIVED = ("layer_types", "per_layer_config", "mlp_layer_types", "moe_layers", "no_rope_layers")
SHARED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
OWN_SIZES = {
    "gemma4": SHARED,
    "llama4": {"intermediate_size": 128, "vision_output_dim": 128},
    "step3p7": {"sliding_window": 8},
}
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "exaone4_5")
LONE = ("idefics2", "idefics3", "smolvlm")  # several pictures for each text
TYPED = ("gemma4", *GRIDS)
FAMILIES = (
    *(*GRIDS, *LONE, "aya_vision", "gemma3", "gemma4", "internvl", "llama4", "llava"),
    *("llava_next", "llava_onevision", "mistral3", "mllama", "ovis2", "paligemma", "step3p7"),
    "vipllava",
)


def small_config(settings, **sizes):
    """These settings with every size a small one, also in the configurations of parts."""
    known, small = SIZES | sizes, {}
    for name, value in settings.items():
        if name in DERIVED:
            continue
        if isinstance(value, dict) and name.endswith("config"):
            small[name] = small_config(value, **sizes)
        elif name in known and value is not None:
            small[name] = known[name]
        elif name == "rope_parameters" and "rope_type" in value:
            small[name] = value | {"mrope_section": [1, 1, 2]}
        else:
            small[name] = value
    small.update({k: v for k, v in sizes.items() if "num_hidden_layers" in small})
    return small


def small_family(kind):
    """A random model that reads pictures and text, and inputs with one picture."""
    torch.manual_seed(0)
    parts = {"vision_config": {"model_type": "gemma4_vision"}} if kind == "gemma4" else {}
    default = CONFIG_MAPPING[kind](**parts)
    settings = small_config(default.to_dict(), **OWN_SIZES.get(kind, {}))
    config = type(default).from_dict(settings)
    model = AutoModelForImageTextToText.from_config(config).eval()
    seen = picture(kind)
    with torch.no_grad():
        count = 0 if kind == "mllama" else _features(model, seen)
    tokens = torch.tensor([[3, 14, 15] + [5] * count + list(range(20, 44))])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | seen
    if kind in TYPED:
        inputs["mm_token_type_ids"] = (tokens == 5).long()
    if kind in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = (tokens == 5).long()
    return model, inputs


def picture(kind):
    """One random picture as this family's processor gives it: 4 x 4 patches, or 6 x 6."""
    size = {"image_sizes": torch.tensor([[32, 32]])}
    if kind in GRIDS:
        return {"pixel_values": torch.randn(16, 384), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    if kind == "gemma4":
        places = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        return {"pixel_values": torch.rand(1, 36, 192), "image_position_ids": places[None]}
    if kind == "mllama":
        return {
            "pixel_values": torch.randn(1, 1, 4, 3, 32, 32),
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long),
            "cross_attention_mask": torch.ones(1, 27, 1, 4, dtype=torch.long),
        }
    tiles = {"llava_next": (1, 2), "llava_onevision": (1, 2)} | dict.fromkeys(LONE, (1, 1))
    pixels = {"pixel_values": torch.randn(*tiles.get(kind, (1,)), 3, 32, 32)}
    return pixels | size if kind in ("mistral3", "llava_next", "llava_onevision") else pixels


def _features(model, seen):
    """How many image tokens this picture takes."""
    features = getattr(model, "model", model).get_image_features(**seen)
    if hasattr(features, "keys"):
        features = features.get("pooler_output", features["last_hidden_state"])
    parts = features if isinstance(features, (list, tuple)) else [features]
    return sum(part.numel() // part.shape[-1] for part in parts)
