"""Load a checkpoint, let it answer, and find its image tokens on the picture."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["clicks", "families", "load", "multimodal", "text", "tower", "vision"],
    submod_attrs={
        "clicks": ["read_click"],
        "multimodal": ["Answer", "MultimodalModel", "load_model"],
        "text": ["load_minilm", "record_sentence"],
        "tower": ["through_tower"],
    },
)
