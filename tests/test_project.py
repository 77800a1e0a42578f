"""The files around the package agree with each other, and the notebooks keep their form."""

import ast
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from itertools import chain

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
LITERAL_TYPES = {"int", "float", "bool", "str", "list"}


def requirements(lines):
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


REQUIRED = requirements(chain(PROJECT["dependencies"], *EXTRAS.values()))
PINNED = requirements(
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"
)


# What is installed


def test_every_direct_dependency_and_nothing_else_is_pinned():
    assert PINNED.keys() == REQUIRED.keys()


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_pinned_version_is_in_range_and_installed(name):
    [pin] = PINNED[name].specifier
    assert pin.operator == "=="
    assert REQUIRED[name].specifier.contains(pin.version)
    assert PINNED[name].specifier.contains(version(name))


def test_conda_installs_python_and_leaves_the_rest_to_pip():
    python, pip, by_pip = ENVIRONMENT
    assert Requirement(PROJECT["name"] + PROJECT["requires-python"]).specifier.contains(
        python.removeprefix("python=")
    )
    assert pip == "pip"
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_pip_accepts_what_conda_would_hand_to_it(tmp_path):
    """Emulates conda's pip step; conda's own solve is not covered."""
    lines = "\n".join(ENVIRONMENT[-1]["pip"]).replace("-c ", f"-c {ROOT}/")
    listing = tmp_path / "requirements.txt"
    listing.write_text(lines)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-r", listing]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "Failed to establish a new connection" in done.stderr:
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, done.stderr


def test_every_import_of_the_package_is_a_declared_dependency():
    declared = requirements(PROJECT["dependencies"])
    distributions = packages_distributions()
    for module in imported_modules(ROOT / "rolloutlib"):
        owners = {canonicalize_name(name) for name in distributions.get(module, [])}
        assert owners & declared.keys(), f"{module} is imported but not declared"


def imported_modules(folder):
    """Third-party modules that a package imports."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {folder.name}


# Notebooks


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def test_readme_has_a_line_and_a_link_for_every_notebook(path):
    assert f"({path.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text()


def test_notebook_is_committed_without_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_notebook_begins_with_a_title(notebook):
    assert re.match(r"# \w", notebook.cells[0].source)


def test_code_cells_are_short(notebook):
    lengths = [len(code_lines(cell)) for cell in code_cells(notebook)]
    assert max(lengths) <= 20
    assert statistics.median(lengths) <= 6


def test_notebook_installs_nothing_and_finds_the_package_by_itself(notebook):
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert not re.search(r"^\s*[!%]|sys\.path|filterwarnings|google\.colab", source, re.M)


def test_parameters_are_typed_literals_that_papermill_reads(path, notebook):
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assigned = ast.parse(cell.source).body
    assert all(isinstance(line, ast.AnnAssign) for line in assigned)
    inspected = papermill.inspect_notebook(path)
    assert list(inspected) == [line.target.id for line in assigned]
    for line in assigned:
        ast.literal_eval(line.value)
        found = inspected[line.target.id]
        assert found["inferred_type_name"].partition("[")[0] in LITERAL_TYPES
        assert found["help"], f"{line.target.id} has no comment"


def test_installing_says_before_it_begins_that_the_disk_is_too_small(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "no-deps.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "SPACE=1e9", ".venv/.ready"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "GB are free here, .venv takes 1e9: make room" in ended.stderr
    assert not (tmp_path / ".venv").exists()
