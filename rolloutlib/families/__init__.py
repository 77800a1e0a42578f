"""One small file for each model family: how a picture becomes image tokens there."""

from rolloutlib.families.base import Family
from rolloutlib.families.fuyu import Fuyu
from rolloutlib.families.llava import Llava

FAMILIES: dict[str, Family] = {family.model_type: family for family in (Llava(), Fuyu())}
