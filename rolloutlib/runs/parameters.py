"""Check parameters against a notebook's declaration, before a kernel starts."""

import difflib
import json
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rolloutlib.extras import needs
from rolloutlib.runs.kinds import alternatives, checked
from rolloutlib.runs.notebook import MODEL_NAMES, Notebook, Parameter, Refused

with needs("notebooks"):
    import yaml

Declared = Mapping[str, Parameter]
LARGEST_FILE = 16 * 2**20  # of parameters, in bytes
DEEPEST = 50  # lists in lists
MOST_ALIASES = 10  # each can double what a YAML file becomes
WORDS = {"true": True, "false": False, "null": None, "none": None}


def read_assignments(declared: Declared, assignments: Iterable[Sequence[str]]) -> dict[str, object]:
    """Turn the command line's names and texts into values of the declared types.

    Where the type allows a string, it stays the text it is; a list or dict is JSON or YAML.

    Raises `Refused` for an unknown name or a text that is no value of the type.

    >>> declared = {"layers": Parameter("layers", "list[int]", []), "x": Parameter("x", "str", "")}
    >>> read_assignments(declared, [("layers", "[1, 2]"), ("x", "007")])
    {'layers': [1, 2], 'x': '007'}
    """
    return {name: parsed(find(declared, name), text) for name, text in assignments}


def read_parameter_file(path: Path) -> dict[str, object]:
    """Read parameters from a YAML (or JSON) file that maps names to values.

    Raises `Refused` when there is no such file or it holds no mapping.
    """
    try:
        values = read_yaml(read_text(path))
    except yaml.YAMLError as problem:
        raise Refused(
            f"{path}{_line_of(problem)}: cannot be read as YAML: {_said(problem)}"
        ) from problem
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        got = textwrap.shorten(repr(values), 200)
        raise Refused(f"{path}: expected a mapping of names to values, got {got}")
    return values


def read_text(path: Path) -> str:
    """The text of a file of parameters. Raises `Refused` for one that is too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"expected at most {LARGEST_FILE} bytes, got more")
        return content.decode("utf-8-sig")  # spreadsheets mark their UTF-8 with three bytes
    except (OSError, ValueError) as problem:
        raise Refused(f"{path}: cannot be read: {problem}") from problem


def read_yaml(text: str) -> object:
    """The value that a text in YAML stands for; raises YAMLError and nothing else."""
    return yaml.load(text, _Loader)


def read_json(text: str) -> object:
    """The value that a text in JSON stands for. Raises ValueError where it is none, or too deep."""
    try:
        return json.loads(text)
    except RecursionError as problem:
        raise ValueError("lists or objects that lie too deep in each other") from problem


class _Loader(yaml.SafeLoader):
    """Values only, of a bounded depth and size, and what is wrong with a place in the text."""

    depth = aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        mark = self.peek_event().start_mark
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.depth > DEEPEST or self.aliases > MOST_ALIASES:
            most = f"{DEEPEST} lists in each other and {MOST_ALIASES} aliases"
            raise yaml.composer.ComposerError(problem=f"expected at most {most}", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as problem:  # such as a date that does not exist
            reason = f"{str(node.value)[:40]!r} is not a value: {problem}"
            raise yaml.constructor.ConstructorError(
                problem=reason, problem_mark=node.start_mark
            ) from problem


def _line_of(problem: yaml.YAMLError) -> str:
    mark = getattr(problem, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _said(problem: yaml.YAMLError) -> str:
    return textwrap.shorten(getattr(problem, "problem", None) or str(problem), 200)


def check_parameters(
    notebook: Notebook, given: Mapping[str, object], folder: Path
) -> dict[str, object]:
    """The values that the notebook will receive. Relative files in `given` start at `folder`.

    A parameter whose name ends in `_path` names a file or folder. It must exist, unless the name
    starts with `output_` or `checkpoint_`: those the notebook writes. `model_id` and `adapter_id`
    are a folder where there is one, and otherwise the name of a checkpoint on the hub. The
    notebook's own defaults are held to the same rules, starting at its own folder.

    Raises `Refused` for an unknown name, a wrong type, or a missing file.
    """
    values = check_values(notebook.parameters, given, folder)
    located_defaults(notebook.parameters, given, notebook.path.parent)
    return values


def located_defaults(declared: Declared, given: Iterable[str], home: Path) -> dict[str, object]:
    """The values of what is not given, with files that start at `home`, the notebook's folder.

    Raises `Refused` for a missing file.
    """
    left = declared.keys() - set(given)
    return {name: _located(declared[name], declared[name].default, home) for name in left}


def check_values(
    declared: Declared, given: Mapping[str, object], folder: Path
) -> dict[str, object]:
    """The given values as the notebook will receive them, by the rules of `check_parameters`."""
    found = {name: find(declared, name) for name in given}
    return {name: _located(p, typed(p, given[name]), folder) for name, p in found.items()}


def find(declared: Declared, name: str) -> Parameter:
    """The parameter of this name. Raises `Refused`, with what may be meant, where there is none."""
    if name in declared:
        return declared[name]
    close = difflib.get_close_matches(name, declared, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(declared) or 'none'}"
    raise Refused(f"unknown parameter {name}: {hint}")


def typed(parameter: Parameter, value: object) -> object:
    """A value as its annotation says. Raises `Refused` where the annotation does not allow it."""
    try:  # YAML knows dates, which JSON does not
        return checked(parameter.type, value)
    except (TypeError, ValueError) as problem:
        raise _wrong_type(parameter, value) from problem


def takes_words(parameter: Parameter) -> bool:
    """Whether a text is a value as it stands: no brackets are needed."""
    if parameter.type is Any:  # not known here: the default shows what it takes
        return isinstance(parameter.default, str)
    return not alternatives(parameter.type) & {list, tuple, dict}


def parsed(parameter: Parameter, text: str) -> object:
    """The value that a text stands for. Raises `Refused` where it is none of the type."""
    words, got = takes_words(parameter), text
    readers = [str] if words or parameter.type is not Any else []
    readers += [int, float, lambda text: WORDS[text.lower()]]
    readers += [] if words else [read_json, read_yaml]
    for read in readers:
        with suppress(ValueError, KeyError, yaml.YAMLError):
            value = read(text)
            got = text if words else value
            return typed(parameter, value)
    raise _wrong_type(parameter, got)


def _wrong_type(parameter: Parameter, value: object) -> Refused:
    return Refused(f"{parameter.name} must be of type {parameter.kind}, got {value!r}")


def _located(parameter: Parameter, value: object, folder: Path) -> object:
    """Make the files that a parameter names absolute; they start at `folder`."""
    is_model = parameter.name in MODEL_NAMES
    if not parameter.names_a_file and not is_model:
        return value
    if not value:
        if parameter.default and parameter.name != "adapter_id":
            raise Refused(f"{parameter.name} must not be empty")
        return value  # "" means "none": a model without an adapter, or where that is the default
    if not isinstance(value, str):
        raise Refused(f"{parameter.name} names one file: expected a text, got {value!r}")
    path = folder.absolute() / os.path.expanduser(value)
    if is_model and not path.is_dir():
        if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", value):
            return value  # `owner/name` or `name`, as on the hub
        raise Refused(f"{parameter.name}: there is no folder {path}, and {value!r} is no hub name")
    if not parameter.is_written and not path.exists():
        raise Refused(f"{parameter.name}: there is no file or folder {path}")
    return os.path.normpath(path)
