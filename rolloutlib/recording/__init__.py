"""Record what a model attended to."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "capture": ["Recording", "record_attention"],
        "gradients": ["gradient_rollout_rows", "record_gradients", "weigh_by_gradient"],
    },
)
