"""Record what a model attended to."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["capture", "gradients", "interface", "kinds", "passes", "recorded"],
    submod_attrs={
        "capture": ["Recording", "record_attention"],
        "gradients": ["gradient_rollout_rows", "record_gradients", "weigh_by_gradient"],
    },
)
