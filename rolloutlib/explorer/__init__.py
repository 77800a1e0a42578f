"""Point at a word and see where the model looked."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "controls": ["RolloutPanel"],
        "answers": ["Words", "compare", "explore", "explore_clip", "words_of"],
        "maps": ["Heatmaps", "Mark"],
        "listening": ["explore_sound"],
        "widget": ["Explorer", "MapView"],
    },
)
