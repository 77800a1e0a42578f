"""The mathematics: one layer's attention, and layers composed."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "attention": ["add_residual", "discard_lowest", "fuse_heads", "normalize_rows"],
        "composition": [
            "attention_received",
            "carry_back",
            "rollout",
            "rollout_by_layer",
            "rollout_rows",
        ],
        "flow": ["attention_flow"],
    },
)
