"""One small file for each model family: how a picture becomes image tokens there."""

from rolloutlib.families.base import Family
from rolloutlib.families.fuyu import Fuyu
from rolloutlib.families.llava import Llava
from rolloutlib.families.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Family] = {f.model_type: f for f in (Llava(), Fuyu(), Qwen3VL())}
