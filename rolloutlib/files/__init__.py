"""Pictures, clips and dumps, and files that appear whole."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["clips", "complete", "dumps", "pictures"],
    submod_attrs={
        "complete": ["complete_file"],
        "pictures": ["load_picture", "read_picture", "upright_rgb"],
    },
)
