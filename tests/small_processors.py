"""The real processors of many families of transformers, for the small models beside them."""

import inspect

import torch
import transformers
from matplotlib.font_manager import findfont
from small_families import small_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from rolloutlib.models.asked import Asked
from rolloutlib.models.multimodal import MultimodalModel

# Types with a place for every image token; all others are refused by name. SmolVLM's processor
# needs num2words.
ON_PIXELS = (
    *("aya_vision", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni"),
    *("deepseek_vl", "ernie4_5_vl_moe", "exaone4_5", "gemma3"),
    *("gemma4", "gemma4_unified"),
    *("glm46v", "glm4v", "glm4v_moe", "glm5_next", "glm_ocr", "glmga"),
    *("granite_docling", "hunyuan_vl", "minicpm_ocr"),
    *("minicpmv4_6", "minicpmv4_7", "minimax_m3_vl", "muse_glimmer", "muse_spark", "ovis2"),
    *("qianfan_ocr", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
    *("granite4_vision", "hyperclovax_vision_v2", "idefics3", "internvl", "janus", "kimi_k25"),
    *("lfm2_vl", "lighton_ocr", "llama4", "llava", "llava_next", "llava_next_video"),
    *("llava_onevision", "mistral3", "mistral_large4", "paddleocr_vl", "paligemma"),
    *("qwen2_5_vl", "qwen2_vl"),
    *("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp", "smolvlm"),
    *("step3p7", "video_llama_3", "video_llava", "vipllava"),
)
# Tiles of 32 pixels, patches of 8, 2 x 2 of them merged, whatever a processor calls them.
SQUARE = {"height": 32, "width": 32}
SETTINGS = {
    **dict.fromkeys(("patch_size", "encoder_patch_size", "vision_patch_size"), 8),
    **dict.fromkeys(("tile_size", "scale_resolution"), 32),
    **dict.fromkeys(("crop_size", "pad_size", "high_res_size"), SQUARE),
    **dict.fromkeys(("merge_size", "min_size"), 2),
    "max_image_size": {"longest_edge": 32},
    "max_patches": 6,
    "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
}
SIZES = {
    ("height", "width"): SQUARE,
    ("shortest_edge",): {"shortest_edge": 32},
    ("longest_edge",): {"longest_edge": 64},
    ("longest_edge", "shortest_edge"): {"shortest_edge": 32 * 32, "longest_edge": 96 * 96},
}
SOFT = {"max_soft_tokens": 70}
TILED, PATCH = {"crop_to_patches": True}, {"patch_size": {"height": 8, "width": 8}}
OWN_SETTINGS = {
    **dict.fromkeys(("aya_vision", "internvl"), TILED),
    **dict.fromkeys(("lighton_ocr", "mistral3", "mistral_large4"), PATCH),
    "cohere2_vision": {"patch_size": 2},
    "lfm2_vl": {"min_image_tokens": 4, "max_image_tokens": 4, "max_num_patches": 16},
    "emu3": {"min_pixels": 32 * 32, "max_pixels": 64 * 64},
    "florence2": {"image_seq_length": 17},
    "ernie4_5_vl_moe": {"font": str(findfont("DejaVu Sans"))},  # which draws times on frames
    **dict.fromkeys(("gemma4", "gemma4_unified"), SOFT),
    "llava": {"do_pad": True},
    "molmo2": {"overlap_margins": [1, 1], "max_crops": 4},
    "ovis2": TILED,
    "paligemma": {"image_seq_length": 16},
    "step3p7": {"patch_size": 32, "max_image_size": 96},
    "video_llava": {"size": {"shortest_edge": 32}, "crop_size": SQUARE},
}
SIXTEEN, FOUR = {"num_image_tokens": 16}, {"image_seq_len": 4}
LONG, QUERIES = {"image_seq_length": 16}, {"num_query_tokens": 4}
CLIP = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
MERGED = {"patch_size": 8, "spatial_merge_size": 2}
# What processors cannot read off their image processors.
FORMS = {
    **dict.fromkeys(("llava", "llava_next", "llava_next_video", "vipllava"), CLIP | SETTINGS),
    **dict.fromkeys(("lighton_ocr", "mistral3", "mistral_large4"), MERGED),
    **dict.fromkeys(("deepseek_vl", "deepseek_vl_hybrid", "janus"), SIXTEEN),
    "aya_vision": {"patch_size": 8, "img_size": 32, "downsample_factor": 2},
    **dict.fromkeys(("gemma3", "ovis2", "t5gemma2"), LONG),
    "chameleon": {"image_seq_length": 256},
    **dict.fromkeys(("blip-2", "instructblip", "kosmos-2"), QUERIES),
    "deepseek_ocr2": {"patch_size": 8, "downsample_ratio": 2},
    "got_ocr2": {"num_image_tokens": 4},
    "granite_docling": {"image_seq_len": 1},
    "llama4": {"patch_size": 8},
    "perception_lm": {"patch_size": 8, "pooling_ratio": 1},
    "qianfan_ocr": {"image_seq_length": 4},
    "video_llava": CLIP | {"patch_size": 8},
    "granite4_vision": MERGED
    | {"vision_feature_select_strategy": "full", "downsample_rate": "1/2"},
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), FOUR),
    "internvl": {"image_seq_length": 4},
    "llava_onevision": SIXTEEN | {"vision_feature_select_strategy": "full"},
}
# The token that stands for a part of a picture, if it is not <image>; and the one that prompts
# have for a picture, if that is another.
SIGNS = {
    **dict.fromkeys(("mistral3", "mistral_large4"), "[IMG]"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "<|image_pad|>"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp"), "<|image_pad|>"),
    "aya_vision": "<|IMG_PATCH|>",
    "cohere_compass": "<|IMAGE_PAD|>",
    "dots3_note": "<|imgpad|>",
    **dict.fromkeys(("gemma3", "t5gemma2", "shieldgemma2"), "<soft>"),
    **dict.fromkeys(("got_ocr2", "pp_chart2table"), "<imgpad>"),
    **dict.fromkeys(("llama4", "muse_glimmer", "muse_spark"), "<|patch|>"),
    **dict.fromkeys(("gemma4", "gemma4_unified"), "<image_soft_token>"),
    "minimax_m3_vl": "]<]image[>[",
    "ovis2": "<IMG_ATOM>",
    "qianfan_ocr": "<IMG_CONTEXT>",
    "paddleocr_vl": "<|IMAGE_PLACEHOLDER|>",
    "step3p7": "<im_patch>",
}
SHOWN = {
    **dict.fromkeys(("aya_vision", "ovis2", "qianfan_ocr"), "<image>"),
    **dict.fromkeys(("gemma3", "t5gemma2", "shieldgemma2"), "<boi>"),
    "hunyuan_vl": "<|image_start|><image><|image_end|>",
    "llama4": "<|image|>",
    "pp_chart2table": "<imgpad>" * 4,
}
GLM = ("glm46v", "glm4v", "glm4v_moe", "glm5_next", "glm_ocr", "glmga")
SHOWN_VIDEO = dict.fromkeys(GLM, "<|begin_of_video|><video><|end_of_video|>")
# The token that stands for a part of a video, if it is not <video>, by that of a picture.
VIDEOS = {
    "<|image_pad|>": "<|video_pad|>",
    "]<]image[>[": "]<]video[>[",
    "<|IMAGE_PAD|>": "<|VIDEO_PAD|>",
    "<|patch|>": "<|video|>",
    "<image_soft_token>": "<|video|>",
}
WITHOUT_TEMPLATE = ("blip-2", "florence2", "fuyu", "instructblip", "kosmos-2")
# Types that share processors.
SAME = {
    "cosmos3_omni": "qwen3_vl",
    "glm4v_moe": "glm4v",
    "glm_ocr": "glm46v",
    "glmga": "glm46v",
    "qwen2_5_omni_thinker": "qwen2_5_omni",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe",
    "qwen3_vl_moe": "qwen3_vl",
}
PARTS = ("slice", "image_id", "video")
NAMED = {
    **{f"{name}_token": f"<{name}>" for name in ("boi", "eoi", "boa", "eoa", "audio", "video")},
    **{f"vision_{end}_token": f"<|vision_{end}|>" for end in ("start", "end")},
    **{f"image_{end}_token": f"<|image_{end}|>" for end in ("start", "end", "break")},
    **{f"{end}_image_token": f"<|{end}_image|>" for end in ("start", "end")},
    **{f"{name}_bos_token": f"<|{name}_bos|>" for name in ("vision", "audio")},
    **{f"{name}_eos_token": f"<|{name}_eos|>" for name in ("vision", "audio")},
    **{f"{name}_{end}_token": f"<|{name}_{end}|>" for name in PARTS for end in ("start", "end")},
    "image_wrapper_token": "<wrapper>",
    "eof_token": "<eof>",
    "image_boundary_token": "<boundary>",
    "img_line_break_token": "<line>",
}
OTHER = ("[IMG_BREAK]", "[IMG_END]", "<image>", "<|image|>", "<|video_pad|>", "<sep>")
OTHER += ("|SPEAKER|", "|NEWLINE|", "<0x04>", "<0x00>", "<0x01>", "<fake_token_around_image>")
OTHER += ("<|tile_x_separator|>", "<|tile_y_separator|>")
OTHER += ("<|begin_of_video|>", "<|end_of_video|>", "<|begin_of_image|>", "<|end_of_image|>")
OTHER += ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<global-img>")
TEMPLATE = """{% for part in messages[0].content %}{% if part.type == 'text' %} {{ part.text }} {%
elif part.type == 'video' %}VIDEO : {% else %}SHOWN : {% endif %}{% endfor %} :"""


def small_tokenizer(sign, named=True):
    """Words separated by white space; pictures are token 5, as the small models expect."""
    special = list(dict.fromkeys([sign, *NAMED.values(), *OTHER]))
    video = VIDEOS.get(sign, "<video>")
    special = [one for one in special if one != video]
    words = ["<pad>", "<s>", "</s>", "<unk>", ":", special[0], video, *special[1:]]
    words += "what is this ? red blue".split()
    words += [f"word{number}" for number in range(180 - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([video, *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[video, *special[1:]],
        sep_token="<sep>",
        extra_special_tokens=NAMED
        | ({"image_token": sign, "context_image_token": sign} if named else {})
        | {"video_token": video},
    )


def small_part(kind, names):
    """The type's image or video processor, for small pictures."""
    backends = names[SAME.get(kind, kind)]
    backends = {"torchvision": backends} if isinstance(backends, str) else backends
    made = getattr(transformers, backends.get("torchvision") or backends["pil"])
    known = {n: v for n, v in SETTINGS.items() if getattr(made, n, None) is not None}
    edges = tuple(
        sorted(edge for edge, length in (getattr(made, "size", {}) or {}).items() if length)
    )
    size = {"size": SIZES[edges]} if edges in SIZES else {}
    processor = made(**(known | size | OWN_SETTINGS.get(kind, {})))
    for name, value in OWN_SETTINGS.get(kind, {}).items():
        setattr(processor, name, value) if not hasattr(processor, name) else None
    return processor


def small_processor(kind):
    """The type's processor, with a chat template."""
    of = SAME.get(kind, kind)
    made, sign = getattr(transformers, PROCESSOR_MAPPING_NAMES[of]), SIGNS.get(kind, "<image>")
    takes = inspect.signature(made.__init__).parameters
    tokenizer = small_tokenizer(sign)
    if kind in ("blip-2", "instructblip"):
        tokenizer = small_tokenizer(sign, named=False)  # the processor names it
    parts = {"tokenizer": tokenizer, "qformer_tokenizer": tokenizer}
    shown = TEMPLATE.replace("SHOWN", SHOWN.get(kind, sign))
    video = SHOWN_VIDEO.get(kind, tokenizer.video_token)
    parts["chat_template"] = shown.replace("VIDEO", video)
    if "image_processor" in takes:
        parts["image_processor"] = small_part(kind, IMAGE_PROCESSOR_MAPPING_NAMES)
    if "video_processor" in takes:
        parts["video_processor"] = small_part(kind, VIDEO_PROCESSOR_MAPPING_NAMES)
    if "feature_extractor" in takes:
        parts["feature_extractor"] = getattr(transformers, FEATURE_EXTRACTOR_MAPPING_NAMES[of])()
    left_out = ("chat_template",) if kind in WITHOUT_TEMPLATE else ()
    parts = {name: part for name, part in parts.items() if name in takes and name not in left_out}
    form = FORMS.get(kind, {})
    processor = made(**parts, **{name: value for name, value in form.items() if name in takes})
    for name in form.keys() & vars(made).keys():
        setattr(processor, name, form[name])
    return processor


def small_loaded(kind):
    """A random model and its processor, ready for questions; its geometry is asked."""
    model = small_model(kind).requires_grad_(False)
    if hasattr(model.config, "image_grid_pinpoints"):
        model.config.image_grid_pinpoints = SETTINGS["image_grid_pinpoints"]
    for weight in model.parameters():
        if not weight.any():  # some projections begin at 0, and show nothing
            torch.nn.init.normal_(weight, std=0.02)
    processor = small_processor(kind)
    for name in {"video_start", "video_end"}:
        if hasattr(processor, f"{name}_id"):
            setattr(model.config, f"{name}_token_id", getattr(processor, f"{name}_id"))
    return MultimodalModel(model, processor, Asked.of(kind, processor))


def save_small(kind, folder):
    """Write a whole checkpoint folder, its weights in several files; it answers in three words."""
    loaded = small_loaded(kind)
    loaded.model.generation_config.update(min_new_tokens=3, suppress_tokens=[5, 6])
    loaded.model.save_pretrained(folder, max_shard_size="40KB")
    loaded.processor.save_pretrained(folder)
    return folder
