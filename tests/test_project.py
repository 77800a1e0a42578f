"""The files around the package agree with each other, and the notebooks keep their form."""

import ast
import functools
import gc
import importlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions, requires, version
from itertools import chain, groupby
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

import rolloutlib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
SOURCES = sorted((ROOT / "rolloutlib").rglob("*.py"))
ROOMS = (ROOT / "rolloutlib").glob("*/__init__.py")
LITERAL_TYPES = {"int", "float", "bool", "str", "list"}


def requirements(lines):
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


REQUIRED = requirements(chain(PROJECT["dependencies"], *EXTRAS.values()))
del REQUIRED[PROJECT["name"]]  # extras that bring each other
DIRECT, BROUGHT = (
    requirements(line for line in part.splitlines() if line and line[0] != "#")
    for part in (ROOT / "constraints.txt").read_text().split("# Brought by others\n")
)
PINNED = DIRECT | BROUGHT


# What is installed


def test_every_direct_dependency_is_pinned_and_others_only_if_they_decide_safety():
    assert DIRECT.keys() == REQUIRED.keys()
    assert BROUGHT.keys() <= closure([f"{PROJECT['name']}[all]"]) - DIRECT.keys()
    assert {"tornado", "jupyter-server", "mistune", "pillow", "bleach", "nbconvert"} <= set(PINNED)


@pytest.mark.parametrize("name", sorted(PINNED))
def test_pinned_version_is_in_range_and_installed(name):
    [pin] = PINNED[name].specifier
    assert pin.operator == "=="
    assert name in BROUGHT or REQUIRED[name].specifier.contains(pin.version)
    assert PINNED[name].specifier.contains(version(name))


def test_conda_installs_python_and_leaves_the_rest_to_pip():
    python, pip, by_pip = ENVIRONMENT
    assert Requirement(PROJECT["name"] + PROJECT["requires-python"]).specifier.contains(
        python.removeprefix("python=")
    )
    assert pip == "pip"
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[all,test]"]}


def test_pip_accepts_what_conda_would_hand_to_it(tmp_path):
    """Emulates conda's pip step; conda's own solve is not covered."""
    lines = "\n".join(ENVIRONMENT[-1]["pip"]).replace("-c ", f"-c {ROOT}/")
    listing = tmp_path / "requirements.txt"
    listing.write_text(lines)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-r", listing]
    command.append("--no-build-isolation")  # asks no index for setuptools, which is here
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "Failed to establish a new connection" in done.stderr:
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, done.stderr


def test_the_core_is_light():
    assert len(PROJECT["dependencies"]) <= 16


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_package_that_an_extra_brings_is_imported_where_that_extra_is_named(path):
    owners = distributions()
    for module, extra in imports(ast.parse(path.read_text())):
        if module in sys.stdlib_module_names | {"rolloutlib"}:
            continue
        brought = brought_by(extra)
        assert any(canonicalize_name(name) in brought for name in owners.get(module, [])), (
            f"{module} does not come with {extra or 'the core'}"
        )


def test_every_dependency_is_imported():
    """Except those that others load by name: accelerate and torchvision, and what a page opens."""
    modules = {module for path in SOURCES for module, _ in imports(ast.parse(path.read_text()))}
    names = distributions()
    used = {canonicalize_name(name) for module in modules for name in names.get(module, [])}
    by_name = {"accelerate", "torchvision", "cryptography", "jupyterlab", "pyarrow"}
    assert brought_by("all") - used == by_name


@functools.cache
def distributions():
    """The distributions that each installed module comes from: a second of reading."""
    return packages_distributions()


def test_every_package_of_the_tests_is_used_by_them_or_by_the_checks():
    commands = (ROOT / "Makefile").read_text() + (ROOT / "docs/make_reference.py").read_text()
    found = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]
    modules = {module for path in found for module, _ in imports(ast.parse(path.read_text()))}
    names = distributions()
    used = {canonicalize_name(name) for module in modules for name in names.get(module, [])}
    # What builds the package, `lint-imports`, `-n`, lines of the README that a test runs, and what
    # SmolVLM's processor imports.
    by_name = {"setuptools", "import-linter", "pytest-xdist", "dask-jobqueue", "num2words"}
    left = set(requirements(EXTRAS["test"])) - used - by_name
    assert all(name in commands for name in left), left


def brought_by(extra):
    """What the core and an extra install, by name; extras may bring each other."""
    names, left = set(requirements(PROJECT["dependencies"])), {extra} - {""}
    while left:
        for name, found in requirements(EXTRAS[left.pop()]).items():
            left |= found.extras
            names.add(name)
    return names - {PROJECT["name"]}


def imports(node, extra=""):
    """Every module that is imported, with the extra of the `with needs(extra)` around it."""
    match node:
        case ast.Import():
            yield from ((alias.name.partition(".")[0], extra) for alias in node.names)
        case ast.ImportFrom():
            yield node.module.partition(".")[0], extra
        case ast.With(items=[ast.withitem(ast.Call(ast.Name("needs"), [named])), *_]):
            extra = named.value
    for child in ast.iter_child_nodes(node):
        yield from imports(child, extra)


# Names


def test_what_readme_and_notebooks_name_is_reachable_after_a_bare_import():
    named = set(re.findall(r"\brolloutlib(?:\.[A-Za-z_]\w*)+", (ROOT / "README.md").read_text()))
    for path in NOTEBOOKS:
        for cell in code_cells(nbformat.read(path, as_version=4)):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("rolloutlib"):
                    named |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert len(named) > 100
    lines = ["import rolloutlib", *sorted(named)]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.parametrize("searching", [True, False])
def test_an_import_leaves_the_search_for_garbage_as_it_was(monkeypatch, searching):
    seen, name = [], "anything"
    monkeypatch.setattr(rolloutlib, "_imported", lambda name: seen.append(gc.isenabled()) or name)
    (gc.enable if searching else gc.disable)()
    try:
        assert getattr(rolloutlib, name) == name
        monkeypatch.undo()
        with pytest.raises(AttributeError):
            getattr(rolloutlib, name)
        assert seen == [False] and gc.isenabled() == searching
    finally:
        gc.enable()


@pytest.mark.parametrize("room", ["", *sorted(path.parent.name for path in ROOMS)])
def test_every_name_that_a_room_lists_is_there(room):
    module = importlib.import_module(f"rolloutlib.{room}".rstrip("."))
    assert module.__all__
    assert all(getattr(module, name) is not None for name in module.__all__)
    listed = {path.stem for path in Path(module.__file__).parent.glob("*.py")} - {"__init__", "cli"}
    assert not room or listed <= {*module.__all__}


# The core alone


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Python of a new environment with the wheel in it and, of the packages installed here, only
    those that the wheel itself requires."""
    folder = tmp_path_factory.mktemp("core")
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in kept.stdout.splitlines():
        if name.startswith("rolloutlib/") or name in ("pyproject.toml", "README.md", "LICENSE"):
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "tree"]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    [site] = (folder / "venv/lib").glob("python*/site-packages")
    for name in closure(PROJECT["dependencies"]):
        for file in distribution(name).files:
            top = Path(file.parts[0])
            if top.name not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(distribution(name).locate_file(top))
    return python


def closure(lines, extra=""):
    """The names of the packages that these lines require, directly or indirectly."""
    found = set()
    for needed in map(Requirement, lines):
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            found.add(canonicalize_name(needed.name))
            for more in ["", *needed.extras]:
                found |= closure_of(needed.name, more)
    return found


@functools.cache
def closure_of(name, extra):
    return closure(requires(name) or [], extra)


ROLL_OUT = """
import numpy as np
import torch
from transformers import ViTConfig, ViTModel
import rolloutlib
from rolloutlib.plots import plot_matrices

whole = rolloutlib.rollout([np.full((2, 3, 3), 1 / 3)] * 2)
assert isinstance(whole, np.ndarray) and np.allclose(whole.sum(-1), 1)
plot_matrices([whole], ["a", "b", "c"], [""])
settings = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, image_size=8)
model = ViTModel(ViTConfig(num_hidden_layers=2, patch_size=4, **settings)).eval()
with torch.no_grad(), rolloutlib.record_attention(model) as recording:
    model(torch.rand(1, 3, 8, 8))
rows = rolloutlib.rollout_rows(recording["vision"], [0])
assert rows.shape == (1, 1, 5) and torch.allclose(rows.sum(-1), torch.ones(1, 1))
assert rolloutlib.load_model
"""
MISSING = {
    "rolloutlib.explore": ("ipywidgets", "notebooks"),
    "rolloutlib.runs.Notebook": ("nbformat", "notebooks"),
    "rolloutlib.pages.write_page": (r"\w+", "notebooks"),
    "rolloutlib.report(share=0.5)": ("IPython", "notebooks"),
    "rolloutlib.runs.sweep": (r"\w+", "(notebooks|sweeps)"),
    "import rolloutlib.files.clips": ("av", "video"),
    "rolloutlib.files.sound.load_sound('a.wav')": ("soundfile", "sound"),
    "rolloutlib.models.load.load_adapter(None, ADAPTER)": ("peft", "lora"),
}


@pytest.fixture(scope="module")
def said(core):
    """Where the package lies after it rolled out, and what each line says whose package is
    missing; one process does all of it."""
    adapter = ROOT / "data/checkpoints/tiny-qwen3-vl-click-lora"
    code = f"""{ROLL_OUT}
import json
ADAPTER, said = {str(adapter)!r}, [rolloutlib.__file__]
for line in {[*MISSING]}:
    try:
        exec(line)
    except ImportError as problem:
        said.append(str(problem))
print(json.dumps(said))
"""
    command = [core, "-c", code]
    ended = subprocess.run(command, cwd=core.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_wheel_without_extras_rolls_out(core, said):
    assert said[0].startswith(str(core.parent.parent))


@pytest.mark.parametrize("line", MISSING)
def test_a_missing_package_is_named_with_its_extra(said, line):
    complaints = dict(zip(MISSING, said[1:], strict=True))
    missing, extra = MISSING[line]
    expected = rf"{missing} is not installed: pip install 'rolloutlib\[{extra}\]'"
    assert re.fullmatch(expected, complaints[line])


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


def test_code_cells_are_few_and_words_stand_between_them(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("code") <= 45
    assert max(len([*run]) for kind, run in groupby(kinds) if kind == "code") <= 4


def test_exercises_check_themselves_except_where_a_model_has_to_be_trained(path, notebook):
    place = [cell for cell in notebook.cells if "## On your own" in cell.source][-1]
    after = notebook.cells[notebook.cells.index(place) :]
    checks = [
        cell.source
        for cell in after
        if cell.cell_type == "code" and re.search(r"^\w+ = None\b", cell.source, re.M)
    ]
    assert bool(checks) == (path.parent.name != "training")
    assert all("assert " in check for check in checks)


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
