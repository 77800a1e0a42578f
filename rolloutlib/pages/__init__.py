"""Executed notebooks as pages, and their gallery."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["gallery", "page"],
    submod_attrs={
        "gallery": ["build_site", "executed_in", "write_readme_figures", "write_site"],
        "page": ["page_of", "write_page"],
    },
)
