"""Sets of parameters for many runs of one notebook: a grid, a list in a file, or both crossed."""

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rolloutlib.extras import needs
from rolloutlib.runs import parameters
from rolloutlib.runs.notebook import Parameter, Refused
from rolloutlib.runs.parameters import Declared

with needs("notebooks"):
    import yaml

ParameterSet = dict[str, object]
MOST_SETS = 1_000_000


def read_sets(path: Path, declared: Declared) -> list[ParameterSet]:
    """The parameter sets that a file holds.

    `.yaml` or `.yml`: a list of values for each name; every combination is a set.
    `.csv`: names in the first line, a set in each further one; an empty cell leaves the default.
    `.jsonl`: a JSON object in each line is a set.

    Raises `Refused` when the content is not what the file's name says.
    """
    readers = {".yaml": _read_grid, ".yml": _read_grid, ".csv": _read_csv, ".jsonl": _read_lines}
    if path.suffix not in readers:
        raise Refused(f"{path}: expected a file ending in {', '.join(readers)}")
    return readers[path.suffix](path, declared)


def read_choices(declared: Declared, choices: Iterable[str]) -> dict[str, list[object]]:
    """Turn the command line's `name=a,b,c` into a grid with values of the declared types.

    A text with a comma in it stands in double quotes; lists are written as JSON or YAML.

    Raises `Refused` for an unknown name, a name that comes twice, or a text that is no value.

    >>> declared = {"x": Parameter("x", "float", 0.0), "y": Parameter("y", "list[int]", [])}
    >>> read_choices(declared, ["x=1,2.5", "y=[1, 2],[3]"])
    {'x': [1.0, 2.5], 'y': [[1, 2], [3]]}
    """
    grid: dict[str, list[object]] = {}
    for choice in choices:
        name, equals, text = choice.partition("=")
        if not equals or name in grid:
            raise Refused(f"expected each name once as name=a,b,c, got {choice!r}")
        parameter = parameters.find(declared, name)
        if parameters.takes_words(parameter):
            grid[name] = [parameters.parsed(parameter, word) for word in _words(text)]
        else:
            grid[name] = [parameters.typed(parameter, value) for value in _values(parameter, text)]
    return grid


def combinations(grid: Mapping[str, Sequence[object]]) -> list[ParameterSet]:
    """Every combination of a grid's values; the last name's values change fastest.

    Raises `Refused` for more than a million.

    >>> combinations({"a": [1, 2], "b": ["x"]})
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
    """
    count = math.prod(map(len, grid.values()))
    if count > MOST_SETS:
        raise Refused(f"expected at most {MOST_SETS:,} combinations, got {count:,}")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def crossed(sets: Sequence[ParameterSet], grid: Mapping[str, Sequence[object]]) -> list:
    """Every set with every combination of a grid.

    Raises `Refused` where a name is in both.
    """
    twice = ", ".join(sorted(grid.keys() & set().union(*sets)))
    if twice:
        raise Refused(f"{twice}: chosen both in the file and by --set")
    return [one | more for one in sets for more in combinations(grid)]


def _read_grid(path: Path, _declared: Declared) -> list[ParameterSet]:
    grid = parameters.read_parameter_file(path)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise Refused(f"{path}: {name}: expected a list of values, got {values!r}")
    return combinations(grid)


def _read_csv(path: Path, declared: Declared) -> list[ParameterSet]:
    text = parameters.read_text(path).strip()
    table = csv.DictReader(io.StringIO(text, ""), restkey="", restval="", strict=True)
    sets = []
    try:
        names = table.fieldnames or []
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        if twice:
            raise Refused(f"{twice}: named twice")
        for line in table:
            if "" in line:
                raise Refused("more cells than the first line has names")
            given = [cell for cell in line.items() if cell[1]]
            sets.append(parameters.read_assignments(declared, given))
    except csv.Error as problem:
        raise Refused(f"{path}, line {table.line_num}: not CSV: {problem}") from problem
    except Refused as problem:
        raise Refused(f"{path}, line {table.line_num}: {problem}") from problem
    return sets


def _read_lines(path: Path, _declared: Declared) -> list[ParameterSet]:
    sets = []
    for number, line in enumerate(parameters.read_text(path).split("\n"), start=1):
        try:
            sets += [parameters.read_json(line)] if line.strip() else []
        except ValueError as problem:
            raise Refused(f"{path}, line {number}: not JSON: {problem}") from problem
        if sets and not isinstance(sets[-1], dict):
            got = textwrap.shorten(line, 200)
            raise Refused(f"{path}, line {number}: expected a JSON object, got {got}")
    return sets


def _words(text: str) -> list[str]:
    """The words of `a,b,c`, by the rules of CSV."""
    try:
        return next(csv.reader([text], skipinitialspace=True)) or [""]
    except csv.Error as problem:
        raise Refused(f"expected values with commas between, got {text!r}") from problem


def _values(parameter: Parameter, text: str) -> list[object]:
    """The values of `[1, 2],[3]`, by the rules of YAML."""
    try:
        return parameters.read_yaml(f"[{text}]")
    except yaml.YAMLError as problem:
        expected = f"values of type {parameter.kind} with commas between"
        raise Refused(f"{parameter.name}: expected {expected}, got {text}") from problem
