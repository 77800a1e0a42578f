"""One notebook run by papermill, or many of them on Dask."""

import pkgutil

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in pkgutil.iter_modules(__path__)],
    submod_attrs={
        "metrics": ["report"],
        "notebook": ["Notebook", "Refused"],
        "parameters": ["check_parameters", "read_assignments", "read_parameter_file"],
        "progress": ["ProgressBar"],
        "results": ["collect", "varied_parameters"],
        "run": ["Run", "failed_output", "output_name", "run_notebook", "run_together"],
        "schedule": ["SchedulerLost", "failure_table", "sweep"],
        "scoring": ["score"],
        "sets": ["combinations", "crossed", "read_choices", "read_sets"],
        "truth": ["read_truth"],
    },
)
