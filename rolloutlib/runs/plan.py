"""The runs that parameter sets amount to: checked, named, each with its folder."""

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import rolloutlib
from rolloutlib.runs import results
from rolloutlib.runs.notebook import Notebook, Refused
from rolloutlib.runs.parameters import check_values, located_defaults


@dataclass(frozen=True)
class PlannedRun:
    """One set of parameters that passed all checks, and where its result belongs.

    given: what differs from the notebook's defaults, and where it writes to.
    values: the parameters that decide the numbers, defaults included.
    function: the notebook's function that computes the metrics; "" to run the whole notebook.
    digest, version: of the notebook and of this package, when the sweep was planned.
    """

    notebook: Path
    folder: Path
    given: dict[str, object]
    values: dict[str, object]
    function: str
    digest: str
    version: str = rolloutlib.__version__

    @property
    def key(self) -> str:
        return self.folder.name


def plan(
    notebook: Notebook, sets: Iterable[Mapping[str, object]], out: Path, function: str = ""
) -> list[PlannedRun]:
    """Plan a run for each parameter set; sets that amount to the same run are one.

    Relative files in the sets start at the present folder. `function` as in `PlannedRun`.

    Raises `Refused`, with the first problems, where a set is not good; nothing is run then.
    """
    planned_as = _planner(notebook, out.absolute(), function)
    planned: dict[str, PlannedRun] = {}
    problems = []
    for number, one in enumerate(sets, start=1):
        try:
            run = planned_as(one)
            planned[run.key] = run
        except Refused as problem:
            problems.append(f"set {number}: {problem}")
    if problems:
        more = f"; and {len(problems) - 3} more sets" if len(problems) > 3 else ""
        raise Refused("; ".join(problems[:3]) + more)
    if not planned:
        raise Refused("expected at least one set of parameters, got none")
    return list(planned.values())


def _planner(
    notebook: Notebook, out: Path, function: str
) -> Callable[[Mapping[str, object]], PlannedRun]:
    path, declared, folder = notebook.path.absolute(), notebook.parameters, Path.cwd()
    taken = ", ".join(sorted(declared.keys() & results.own_columns()))
    if taken:
        raise Refused(f"{path}: {taken}: a sweep's table has this column itself")
    for name, parameter in declared.items():
        try:
            json.dumps(parameter.default, sort_keys=True, ensure_ascii=False).encode()
        except (TypeError, ValueError) as problem:
            raise Refused(f"{path}: {name}: a sweep's table cannot hold this default") from problem
    written = {name for name, p in declared.items() if p.is_written and p.names_a_file}
    # Most sets name the same parameters and the same files: look at each only once.
    identify = functools.cache(results.identity)
    defaults_beside = functools.cache(lambda *given: located_defaults(declared, given, path.parent))

    def planned_as(one: Mapping[str, object]) -> PlannedRun:
        given = check_values(declared, one, folder)
        own = ", ".join(sorted(written & given.keys()))
        if own:
            raise Refused(f"{own}: each run of a sweep writes to its own folder")
        both = defaults_beside(*given) | given
        values = {name: both[name] for name in declared if name not in written}
        key = results.run_key(notebook.digest, function, declared, values, identify)
        # What a run writes stays with it: the folder, and the name that the default has.
        for name in written:
            if both[name]:
                given[name] = os.path.join(out / key, os.path.basename(both[name]))
        return PlannedRun(path, out / key, given, values, function, notebook.digest)

    return planned_as
