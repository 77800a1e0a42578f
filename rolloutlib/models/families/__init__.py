"""One small file for each model family: how it turns a picture into image tokens."""

from rolloutlib.models.families.base import Family
from rolloutlib.models.families.fuyu import Fuyu
from rolloutlib.models.families.llava import Llava
from rolloutlib.models.families.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Family] = {f.model_type: f for f in (Llava(), Fuyu(), Qwen3VL())}
