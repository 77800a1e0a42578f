"""A notebook as it lies on the disk: its parameters, its digest, its direct function."""

import ast
import hashlib
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill

WRITTEN_PREFIXES = ("output_", "checkpoint_")
MODEL_NAMES = ("model_id", "adapter_id")


class Refused(ValueError):
    """A run that was not started, because it could not have worked."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's `parameters` cell: `name: kind = default`."""

    name: str
    kind: str
    default: object

    @property
    def names_a_file(self) -> bool:
        return self.name.endswith("_path")

    @property
    def is_written(self) -> bool:
        return self.name.startswith(WRITTEN_PREFIXES)


def declared_parameters(notebook: Path) -> dict[str, Parameter]:
    """Which parameters does this notebook take?

    Raises `Refused` when there is no such file, or it is not a notebook.
    """
    read_notebook(notebook)
    try:
        inspected = papermill.inspect_notebook(literal(notebook))
    except ValueError as problem:
        raise Refused(f"{notebook}: {problem}") from problem
    return {name: _declared(found) for name, found in inspected.items()}


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Raises `Refused` when there is no such file, or it is not a notebook."""
    if path.suffix != ".ipynb" or not path.is_file():
        raise Refused(f"{path}: there is no notebook (.ipynb) of this name")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as problem:  # nbformat raises whatever the broken content runs into
        raise Refused(f"{path}: not a notebook: {sentence(problem)}") from problem
    return notebook


def sentence(problem: Exception) -> str:
    """An error's words on one line; those of parsers quote half the file."""
    return textwrap.shorten(str(problem), 200)


def literal(path: Path) -> str:
    """A path in which papermill fills in nothing: to it, braces are places for parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _declared(inspected: Mapping[str, str]) -> Parameter:
    try:
        default = ast.literal_eval(inspected["default"])
    except (ValueError, SyntaxError) as problem:
        name, text = inspected["name"], inspected["default"]
        raise Refused(f"{name}: the default must be a literal, got {text}") from problem
    kind = inspected["inferred_type_name"]
    if kind == "None":  # papermill's word for a line without an annotation
        kind = type(default).__name__
    return Parameter(inspected["name"], kind, default)


def notebook_digest(notebook: nbformat.NotebookNode) -> str:
    """A hash of what a notebook's cells say; opening and saving it in Jupyter changes nothing."""
    return digest([[cell.cell_type, cell.source] for cell in notebook.cells])


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


TAG = "direct"


def function_name(notebook: Path) -> str:
    """Which function computes a notebook's metrics?

    Raises `Refused` where it names none, or defines none of this name in its tagged cells.
    """
    content = nbformat.read(notebook, as_version=4)
    name = content.metadata.get("rollout", {}).get("direct", "")
    if not name:
        raise Refused(f"{notebook}: it names no function that computes its metrics directly")
    lines = [line for cell in tagged(content) for line in ast.parse(cell.source).body]
    if not any(isinstance(line, ast.FunctionDef) and line.name == name for line in lines):
        raise Refused(f"{notebook}: no cell with the tag {TAG!r} defines the function {name}")
    return name


def tagged(content: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in content.cells if TAG in cell.metadata.get("tags", [])]
