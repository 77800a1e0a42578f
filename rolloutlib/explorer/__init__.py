"""Point at a word and see where the model looked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["answers", "app", "browser", "controls", "maps", "widget"],
    submod_attrs={
        "controls": ["RolloutPanel"],
        "answers": ["Words", "explore", "explore_clip", "words_of"],
        "maps": ["Heatmaps", "Mark"],
        "widget": ["Explorer", "MapView"],
    },
)
