"""Read and write pictures, clips and dumps; files appear only when they are complete."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "complete": ["complete_file"],
        "pictures": ["load_picture", "read_picture", "upright_rgb"],
    },
)
