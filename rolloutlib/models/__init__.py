"""Load a checkpoint, let it answer, and find its image tokens on the picture."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "clicks": ["read_click"],
        "load": ["load_model", "load_pretrained"],
        "multimodal": ["Answer", "MultimodalModel"],
        "prompts": ["WholePrompt"],
        "text": ["load_minilm", "record_sentence"],
        "tower": ["heatmaps", "through_tower"],
        "words": ["Word", "by_word"],
    },
)
