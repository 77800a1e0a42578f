"""A notebook as it is on the disk, read once: its parameters, its digest, what it reported."""

import ast
import base64
import functools
import hashlib
import json
import re
import symtable
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolloutlib.extras import needs, without_iris
from rolloutlib.runs.kinds import type_of
from rolloutlib.runs.metrics import MIME_TYPE, Metric

with needs("notebooks"), without_iris():
    import nbformat
    from IPython.core.inputtransformer2 import TransformerManager

MODEL_NAMES = ("model_id", "adapter_id")
# Kernels that are known by name, where a notebook does not say its language.
LANGUAGES = {
    "ir": "R",
    "rust": "Rust",
    "julia": "Julia",
    "bash": "Bash",
    "javascript": "JavaScript",
}
DIRECT = "direct"  # the tag and the key in the metadata of a notebook that can be called directly


class Refused(ValueError):
    """A run that was not started, because it could not have worked."""


@dataclass(frozen=True)
class Parameter:
    """One assignment in a notebook's `parameters` cell: `name: kind = default`."""

    name: str
    kind: str
    default: object

    @property
    def type(self) -> Any:
        """What it allows; `x: str = None` allows None although it does not say so."""
        return type_of(self.kind, self.default is None)

    @property
    def names_a_file(self) -> bool:
        return self.name.endswith("_path")

    @property
    def is_written(self) -> bool:
        return self.name.startswith(("output_", "checkpoint_"))


@dataclass(frozen=True, eq=False)
class Notebook:
    """A notebook and the path that it was read from; what follows from its cells is found once."""

    path: Path
    content: nbformat.NotebookNode

    @classmethod
    def read(cls, path: Path | str) -> "Notebook":
        """Raises `Refused` when there is no such file, or it is not a notebook."""
        path = Path(path)
        if path.suffix != ".ipynb" or not path.is_file():
            raise Refused(f"{path}: there is no notebook (.ipynb) of this name")
        invalid: dict[str, Exception] = {}
        try:
            content = nbformat.read(path, as_version=4, capture_validation_error=invalid)
            for problem in invalid.values():
                raise problem
        except Exception as problem:  # nbformat raises whatever the broken content runs into
            reason = textwrap.shorten(str(problem), 200)  # some quote half the file
            raise Refused(f"{path}: not a notebook: {reason}") from problem
        return cls(path, nbformat.from_dict(content))  # of an older format, it is a plain dict

    @classmethod
    def of(cls, source: "Notebook | Path | str") -> "Notebook":
        """The notebook itself, or the one at a path."""
        return source if isinstance(source, Notebook) else cls.read(source)

    def tagged(self, tag: str) -> list[nbformat.NotebookNode]:
        """The code cells with a tag."""
        cells = (cell for cell in self.content.cells if cell.cell_type == "code")
        return [cell for cell in cells if tag in cell.metadata.get("tags", [])]

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter]:
        """What the cell tagged `parameters` assigns, by name.

        Raises `Refused` for a default that is not a literal, for a cell that is not Python, and for
        a notebook in another language.
        """
        if not self.language.lower().startswith(("python", "ipython")):
            raise Refused(f"{self.path}: expected a notebook in Python, got {self.language}")
        try:
            cells = self.tagged("parameters")
            return _assigned(cells[0].source) if cells else {}
        except Refused as problem:
            raise Refused(f"{self.path}: {problem}") from problem
        except Exception as problem:  # a zero byte, deep nesting, `a, b = 1`
            reason = f"its parameters cell is not Python: {problem}"
            raise Refused(f"{self.path}: {reason}") from problem

    @property
    def language(self) -> str:
        """That of its kernel; Python where it does not say."""
        kernel = self.content.metadata.get("kernelspec", {})
        name = str(kernel.get("name", "")).partition("-")[0]  # such as "julia-1.10"
        info = self.content.metadata.get("language_info", {})
        said = kernel.get("language") or LANGUAGES.get(name) or info.get("name")
        return str(said or "python")

    @functools.cached_property
    def digest(self) -> str:
        """A hash of what the cells say; opening and saving it in Jupyter changes nothing."""
        return hash_of([[cell.cell_type, cell.source] for cell in self.content.cells])

    @functools.cached_property
    def function(self) -> str:
        """The name of the function that computes the metrics directly.

        Raises `Refused` where none is named, or the tagged cells do not define it.
        """
        name = self.content.metadata.get("rollout", {}).get(DIRECT, "")
        if not name:
            raise Refused(f"{self.path}: it names no function that computes its metrics directly")
        lines = [line for cell in self.tagged(DIRECT) for line in ast.parse(cell.source).body]
        if not any(isinstance(line, ast.FunctionDef) and line.name == name for line in lines):
            raise Refused(f"{self.path}: no cell tagged {DIRECT!r} defines the function {name}")
        return name

    @property
    def title(self) -> str:
        """The first heading's words, or nothing."""
        words = "\n".join(one.source for one in self.content.cells if one.cell_type == "markdown")
        heading = re.search(r"^#+\s+(.+)$", words, re.M)
        return re.sub(r"[*`$]", "", heading[1]).strip() if heading else ""

    @property
    def figure(self) -> bytes | None:
        """The PNG that stands for the notebook: of the cell tagged `card`, else the first."""
        found = _outputs(self._figure_cells, "image/png")
        return next(map(base64.b64decode, found), None)

    @property
    def figure_cell(self) -> str:
        """The id of the cell that drew `figure`, or nothing."""
        drew = (cell for cell in self._figure_cells if any(_outputs([cell], "image/png")))
        return next((cell.get("id", "") for cell in drew), "")

    @property
    def _figure_cells(self) -> list[nbformat.NotebookNode]:
        return [*self.tagged("card"), *self.content.cells]

    @property
    def summary(self) -> str:
        """The first paragraph below the title, without marks; or nothing."""
        words = next((one.source for one in self.content.cells if one.cell_type == "markdown"), "")
        paragraphs = re.split(r"\n\s*\n", words.strip())
        plain = (one for one in paragraphs if not one.startswith(("#", "|", "-", "!", "<", "$")))
        return " ".join(re.sub(r"[*`$]|\[([^]]*)\]\([^)]*\)", r"\1", next(plain, "")).split())

    @property
    def metrics(self) -> dict[str, Metric]:
        """What the notebook reported when it was executed."""
        found = _outputs(self.content.cells, MIME_TYPE)
        return {name: metric for one in found for name, metric in one.items()}


def hash_of(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _outputs(cells: Iterable[nbformat.NotebookNode], kind: str) -> Iterator[Any]:
    """What the cells put out in one MIME type."""
    for cell in cells:
        for output in cell.get("outputs", []):
            if kind in output.get("data", {}):
                yield output.data[kind]


def _assigned(source: str) -> dict[str, Parameter]:
    """The parameters that a cell assigns, in its order."""
    python = TransformerManager().transform_cell(source)  # it knows lines such as `%matplotlib`
    kinds: dict[str, str] = {}
    defaults: dict[str, object] = {}
    for statement in ast.parse(python).body:
        match statement:
            case ast.AnnAssign(ast.Name(name) as target, annotation, value):
                quoted = getattr(annotation, "value", None)
                kinds[name] = quoted if isinstance(quoted, str) else ast.unparse(annotation)
                defaults |= {} if value is None else _unpacked(target, value)
            case ast.Assign(targets, value):
                for target in filter(_names_only, targets):
                    defaults |= _unpacked(target, value)
            case _ if changed := defaults.keys() & _bound(statement):
                raise _no_literal(min(changed), statement)
    return {
        name: Parameter(name, kinds.get(name) or _kind_of(default), default)
        for name, default in defaults.items()
    }


def _names_only(target: ast.expr) -> bool:
    """Whether an assignment binds names and nothing else, such as `a` or `a, *b`."""
    names = ast.Name | ast.Tuple | ast.List | ast.Starred | ast.expr_context
    return all(isinstance(node, names) for node in ast.walk(target))


def _unpacked(target: ast.expr, value: ast.expr) -> dict[str, object]:
    """What an assignment gives to each of its names; its value must be a literal."""
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError) as problem:
        names = (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
        raise _no_literal(next(names, "[]"), value) from problem
    bound: dict[str, object] = {}
    alone = ast.fix_missing_locations(ast.Module([ast.Assign([target], value)], []))
    exec(compile(alone, "<parameters>", "exec"), {"__builtins__": {}}, bound)  # calls nothing
    return bound


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement binds, deletes or changes where it stands."""
    symbols = symtable.symtable(ast.unparse(statement), "<parameters>", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned()}


def _no_literal(name: str, got: ast.AST) -> Refused:
    shown = textwrap.shorten(ast.unparse(got), 200)
    return Refused(f"{name}: the default must be a literal, got {shown}")


def _kind_of(default: object) -> str:
    return "Any" if default is None else type(default).__name__
