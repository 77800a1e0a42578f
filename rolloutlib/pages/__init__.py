"""Executed notebooks as pages, and their gallery."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "gallery": [
            "build_site",
            "executed_in",
            "page_or_reason",
            "write_readme_figures",
            "write_site",
        ],
        "page": ["page_of", "write_page"],
        "scores": ["write_scores"],
    },
)
