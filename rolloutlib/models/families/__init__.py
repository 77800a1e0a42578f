"""One small file for each model family: how it turns a picture into image tokens."""

from rolloutlib.models.families.base import Family
from rolloutlib.models.families.fuyu import Fuyu
from rolloutlib.models.families.llava import Llava
from rolloutlib.models.families.qwen3_vl import Qwen3_5, Qwen3_5MoE, Qwen3VL

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (Llava(), Fuyu(), Qwen3VL(), Qwen3_5(), Qwen3_5MoE())
}
