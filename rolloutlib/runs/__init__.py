"""One notebook run by papermill, or many of them on Dask."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["direct", "metrics", "results", "run", "schedule", "sets"],
    submod_attrs={
        "metrics": ["report"],
        "results": ["collect", "varied_parameters"],
        "run": ["Refused", "check_parameters", "declared_parameters", "run_notebook"],
        "schedule": ["sweep"],
        "sets": ["combinations"],
    },
)
