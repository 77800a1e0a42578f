"""One notebook run by papermill, or many of them on Dask."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "direct",
        "kernel",
        "metrics",
        "notebook",
        "parameters",
        "plan",
        "results",
        "run",
        "schedule",
        "sets",
        "worker",
    ],
    submod_attrs={
        "metrics": ["report"],
        "results": ["collect", "varied_parameters"],
        "notebook": ["Refused", "declared_parameters"],
        "parameters": ["check_parameters"],
        "run": ["run_notebook"],
        "schedule": ["sweep"],
        "sets": ["combinations"],
    },
)
