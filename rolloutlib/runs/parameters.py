"""Check parameters against a notebook's declaration, before a kernel starts."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from rolloutlib.runs.notebook import MODEL_NAMES, Parameter, Refused, declared_parameters, sentence

TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}


def read_assignments(
    declared: Mapping[str, Parameter], assignments: Iterable[Sequence[str]]
) -> dict[str, object]:
    """Turn the command line's names and texts into values of the declared types.

    A string stays the text it is; a list or dict is JSON or YAML.

    Raises `Refused` for an unknown name or a text that is no value of the type.

    >>> declared = {"layers": Parameter("layers", "list[int]", []), "x": Parameter("x", "str", "")}
    >>> read_assignments(declared, [("layers", "[1, 2]"), ("x", "007")])
    {'layers': [1, 2], 'x': '007'}
    """
    values = {}
    for name, text in assignments:
        parameter = _find(declared, name)
        try:
            values[name] = _parse(text, parameter.kind)
        except (ValueError, yaml.YAMLError) as problem:
            raise _wrong_type(parameter, text) from problem
    return values


def read_parameter_file(path: Path) -> dict[str, object]:
    """Read parameters from a YAML (or JSON) file that maps names to values.

    Raises `Refused` when there is no such file or it holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise Refused(f"{path}: cannot be read as YAML: {sentence(problem)}") from problem
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise Refused(f"{path}: expected a mapping of names to values, got {values!r}")
    return values


def check_parameters(
    notebook: Path, given: Mapping[str, object], folder: Path
) -> dict[str, object]:
    """Which values will the notebook receive? Relative files in `given` start at `folder`.

    A parameter whose name ends in `_path` names a file or folder. It must exist, unless the name
    starts with `output_` or `checkpoint_`: those the notebook writes. `model_id` and `adapter_id`
    are a folder where there is one, and otherwise the name of a checkpoint on the hub. The
    notebook's own defaults are held to the same rules, starting at its own folder.

    Raises `Refused` for an unknown name, a wrong type, or a missing file.
    """
    declared = declared_parameters(notebook)
    checked = check_values(declared, given, folder)
    located_defaults(declared, given, notebook.parent)
    return checked


def located_defaults(
    declared: Mapping[str, Parameter], given: Iterable[str], home: Path
) -> dict[str, object]:
    """The values of what is not given, with files that start at `home`, the notebook's folder.

    Raises `Refused` for a missing file.
    """
    left = declared.keys() - set(given)
    return {name: _located(declared[name], declared[name].default, home) for name in left}


def check_values(
    declared: Mapping[str, Parameter], given: Mapping[str, object], folder: Path
) -> dict[str, object]:
    """The given values as the notebook will receive them, by the rules of `check_parameters`."""
    checked = {}
    for name, value in given.items():
        parameter = _find(declared, name)
        checked[name] = _located(parameter, _typed(parameter, value), folder)
    return checked


def _find(declared: Mapping[str, Parameter], name: str) -> Parameter:
    if name in declared:
        return declared[name]
    close = difflib.get_close_matches(name, declared, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(declared) or 'none'}"
    raise Refused(f"unknown parameter {name}: {hint}")


def _parse(text: str, kind: str) -> object:
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in ("str", "int", "float"):
        return TYPES[kind](text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return yaml.safe_load(text)


def _typed(parameter: Parameter, value: object) -> object:
    """Check a value against an annotation such as `float` or `list[str]`."""
    kind, element_kind = re.fullmatch(r"(\w+)(?:\[(\w+)\])?.*", parameter.kind).groups()
    if not _has_kind(value, kind):
        raise _wrong_type(parameter, value)
    if not _is_json(value):  # such as a date, which YAML knows
        raise _wrong_type(parameter, value)
    if kind == "list" and element_kind and not all(_has_kind(x, element_kind) for x in value):
        raise _wrong_type(parameter, value)
    return float(value) if kind == "float" else value


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _has_kind(value: object, kind: str) -> bool:
    """Types as people mean them: a whole number is a float too, and a bool is no number."""
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, TYPES.get(kind, object))


def _wrong_type(parameter: Parameter, value: object) -> Refused:
    return Refused(f"{parameter.name} must be of type {parameter.kind}, got {value!r}")


def _located(parameter: Parameter, value: object, folder: Path) -> object:
    """Make the files that a parameter names absolute; they start at `folder`."""
    if not parameter.names_a_file and parameter.name not in MODEL_NAMES:
        return value
    if not value:
        if parameter.default and parameter.name != "adapter_id":
            raise Refused(f"{parameter.name} must not be empty")
        return value  # "" means "none": a model without an adapter, or where that is the default
    if not isinstance(value, str):
        raise Refused(f"{parameter.name} names one file: expected a text, got {value!r}")
    path = folder.absolute() / os.path.expanduser(value)
    if parameter.name in MODEL_NAMES:
        return _located_model(parameter, value, path)
    if not parameter.is_written and not path.exists():
        raise Refused(f"{parameter.name}: there is no file or folder {path}")
    return os.path.normpath(path)


def _located_model(parameter: Parameter, value: str, path: Path) -> str:
    if path.is_dir():
        return os.path.normpath(path)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", value):
        return value  # `owner/name` or `name`, as on the hub
    raise Refused(f"{parameter.name}: there is no folder {path}, and {value!r} is no hub name")
