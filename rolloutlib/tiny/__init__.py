"""Scenes, screens and tracks, and the code that trains the small checkpoints on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "elements",
        "patches",
        "refiner",
        "scenes",
        "screens",
        "tokenizers",
        "tracks",
        "training",
        "weights",
    ],
)
