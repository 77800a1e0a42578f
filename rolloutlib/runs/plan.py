"""The runs that parameter sets amount to: checked, named, each with its folder."""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import rolloutlib
from rolloutlib.runs import results
from rolloutlib.runs.notebook import Notebook, Refused
from rolloutlib.runs.parameters import check_values, is_json, located_defaults


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
    make = _Planner(notebook, out, function)
    planned: dict[str, PlannedRun] = {}
    problems = []
    for number, one in enumerate(sets, start=1):
        try:
            run = make.run(one)
            planned[run.key] = run
        except Refused as problem:
            problems.append(f"set {number}: {problem}")
    if problems:
        more = f"; and {len(problems) - 3} more sets" if len(problems) > 3 else ""
        raise Refused("; ".join(problems[:3]) + more)
    if not planned:
        raise Refused("expected at least one set of parameters, got none")
    return list(planned.values())


class _Planner:
    """What all runs of one sweep have in common."""

    def __init__(self, notebook: Notebook, out: Path, function: str) -> None:
        self.path, self.out = notebook.path.absolute(), out.absolute()
        self.function, self.digest = function, notebook.digest
        self.declared = notebook.parameters
        found = self.declared.values()
        taken = sorted(self.declared.keys() & results.own_columns())
        if taken:
            names = ", ".join(taken)
            raise Refused(f"{self.path}: {names}: a sweep's table has this column itself")
        odd = [parameter.name for parameter in found if not is_json(parameter.default)]
        if odd:
            raise Refused(
                f"{self.path}: {', '.join(odd)}: a sweep's table cannot hold this default"
            )
        self.folder = Path.cwd()
        self.written = {p.name for p in found if p.is_written and p.names_a_file}
        # Most sets name the same parameters and the same files: look at each only once.
        self.identify = functools.cache(results.identity)
        self.defaults_beside = functools.cache(self._defaults_beside)

    def _defaults_beside(self, *given: str) -> dict[str, object]:
        return located_defaults(self.declared, given, self.path.parent)

    def run(self, one: Mapping[str, object]) -> PlannedRun:
        given = check_values(self.declared, one, self.folder)
        own = sorted(self.written & given.keys())
        if own:
            raise Refused(f"{', '.join(own)}: each run of a sweep writes to its own folder")
        both = self.defaults_beside(*given) | given
        values = {name: both[name] for name in self.declared if name not in self.written}
        key = results.run_key(self.digest, self.function, self.declared, values, self.identify)
        folder = self.out / key
        # What a run writes stays with it: the folder, and the name that the default has.
        for name in self.written:
            if both[name]:
                given[name] = os.path.join(folder, os.path.basename(both[name]))
        return PlannedRun(self.path, folder, given, values, self.function, self.digest)
