"""Which runs are these parameter sets?"""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat

import rolloutlib
from rolloutlib.runs import results
from rolloutlib.runs.notebook import Refused
from rolloutlib.runs.parameters import check_values, located_defaults


@dataclass(frozen=True)
class PlannedRun:
    """One set of parameters that was found good, and where its result belongs.

    given: what differs from the notebook's defaults, and where it writes to.
    values: the parameters that decide the numbers, defaults included.
    direct: the notebook's function that computes the metrics; "" to run the whole notebook.
    digest, version: of the notebook and of this package, when the sweep was planned.
    """

    notebook: Path
    folder: Path
    given: dict[str, object]
    values: dict[str, object]
    direct: str
    digest: str
    version: str = rolloutlib.__version__

    @property
    def key(self) -> str:
        return self.folder.name


def plan(
    notebook: Path,
    sets: Iterable[Mapping[str, object]],
    out: Path,
    *,
    direct: bool = False,
) -> list[PlannedRun]:
    """Which runs are these parameter sets? Sets that amount to the same run are one.

    Relative files in the sets start at the present folder.

    Raises `Refused`, with the first problems, where a set is not good: nothing is run then.
    """
    make = _Planner(notebook, out, direct)
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
    """What all runs of one sweep have in common, read once."""

    def __init__(self, notebook: Path, out: Path, direct: bool) -> None:
        self.notebook, self.out = notebook.absolute(), out.absolute()
        self.declared = notebook.declared_parameters(notebook)
        taken = sorted(self.declared.keys() & results.own_columns())
        if taken:
            raise Refused(f"{notebook}: {', '.join(taken)}: a sweep's table has this column itself")
        self.digest = notebook.notebook_digest(nbformat.read(notebook, as_version=4))
        self.direct = notebook.function_name(notebook) if direct else ""
        self.folder = Path.cwd()
        found = self.declared.values()
        self.written = {p.name for p in found if p.is_written and p.names_a_file}
        # Most sets name the same parameters and the same files: look at each only once.
        self.identify = functools.cache(results.identity)
        self.defaults_beside = functools.cache(self._defaults_beside)

    def _defaults_beside(self, *given: str) -> dict[str, object]:
        return located_defaults(self.declared, given, self.notebook.parent)

    def run(self, one: Mapping[str, object]) -> PlannedRun:
        given = check_values(self.declared, one, self.folder)
        own = sorted(self.written & given.keys())
        if own:
            raise Refused(f"{', '.join(own)}: each run of a sweep writes to its own folder")
        both = self.defaults_beside(*given) | given
        values = {name: both[name] for name in self.declared if name not in self.written}
        key = results.run_key(self.digest, self.direct, self.declared, values, self.identify)
        folder = self.out / key
        # What a run writes stays with it: the folder, and the name that the default has.
        for name in self.written:
            if both[name]:
                given[name] = os.path.join(folder, os.path.basename(both[name]))
        return PlannedRun(self.notebook, folder, given, values, self.direct, self.digest)
