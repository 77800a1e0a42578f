"""Put the pointer on a word and see where the model looked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["app", "controls", "widget"],
    submod_attrs={
        "controls": ["RolloutPanel"],
        "widget": [
            "Explorer",
            "Heatmaps",
            "MapView",
            "Mark",
            "Words",
            "explore",
            "explore_clip",
            "words_of",
        ],
    },
)
