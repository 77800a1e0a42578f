"""Compute a notebook's metrics by calling its own function, in a process that keeps what it loads.

A notebook that can do this tags `direct` the cells that import, load and define, and names the
function in its metadata: `{"rollout": {"direct": "measure"}}`. The function takes nothing, reads
the parameters as the cells of the notebook do, and returns the metrics that the notebook reports.
What imported functions called `load_…` return is kept for the next call with the same arguments;
one that the notebook defines is called anew, as it may read this run's parameters.
"""

import functools
from collections.abc import Callable, Mapping

from rolloutlib.runs.notebook import DIRECT, Notebook

# Of each function: a worker may go from one checkpoint to another and back.
KEPT_LOADS = 4


@functools.cache  # one memory for each function, however often it is imported
def _kept(load: Callable) -> Callable:
    """The function, which keeps what it loads; lists reach it as tuples, which can be compared."""
    remembered = functools.lru_cache(maxsize=KEPT_LOADS)(load)

    def as_tuple(given: object) -> object:
        return tuple(given) if isinstance(given, list) else given

    @functools.wraps(load)
    def keeping(*given: object, **named: object) -> object:
        return remembered(
            *map(as_tuple, given), **{name: as_tuple(one) for name, one in named.items()}
        )

    keeping.cache_info = remembered.cache_info
    return keeping


def call(notebook: Notebook, values: Mapping[str, object]) -> dict[str, object]:
    """The metrics for these values of all parameters."""
    namespace: dict[str, object] = {"__name__": notebook.path.stem, **values}
    for cell in notebook.tagged(DIRECT):
        exec(compile(cell.source, f"<{notebook.path.name}>", "exec"), namespace)
        for name, value in namespace.items():
            kept = hasattr(value, "cache_info") or getattr(value, "__globals__", None) is namespace
            if name.startswith("load_") and callable(value) and not kept:
                namespace[name] = _kept(value)
    return namespace[notebook.function]()
