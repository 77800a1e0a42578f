import datetime
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_notebooks import write_notebook

from rolloutlib import cli
from rolloutlib.runs import run as runs
from rolloutlib.runs.notebook import Parameter, Refused, declared_parameters
from rolloutlib.runs.parameters import (
    check_parameters,
    check_values,
    read_assignments,
    read_parameter_file,
)

PARAMETERS = """
model_id: str = "../model"  # a checkpoint
image_path: str = "picture.txt"  # the picture to look at
output_path: str = ""  # written here, if anywhere
mask_path: str = ""  # none by default
steps: int = 2  # how many
ratio: float = 0.5
flag: bool = False
layers: list[int] = [1, 2]  # which
untyped = 3
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    path = write_notebook(tmp_path, "look", "print('looked')", parameters=PARAMETERS)
    (path.parent / "picture.txt").write_text("a picture")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def no_kernel(monkeypatch):
    def start(*_, **__):
        pytest.fail("a kernel was started")

    monkeypatch.setattr(papermill, "execute_notebook", start)


def given_as(notebook, *assignments):
    """The values that these assignments of the command line become."""
    values = read_assignments(declared_parameters(notebook), list(assignments))
    return check_parameters(notebook, values, Path.cwd())


# What is refused, before a kernel starts


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-p", "step", "3"], "unknown parameter step: did you mean steps?"),
        (["-p", "zzz", "3"], "unknown parameter zzz: there are model_id, image_path"),
        (["-p", "steps", "many"], "steps must be of type int, got 'many'"),
        (["-p", "steps", "1.5"], "steps must be of type int, got '1.5'"),
        (["-p", "ratio", "half"], "ratio must be of type float"),
        (["-p", "flag", "maybe"], "flag must be of type bool, got 'maybe'"),
        (["-p", "layers", "1,2"], "layers must be of type list[int], got '1,2'"),
        (["-p", "layers", "[1, two]"], "layers must be of type list[int], got [1, 'two']"),
        (["-p", "layers", "[1"], "layers must be of type list[int], got '[1'"),
        (["-p", "image_path", "lost.jpg"], "image_path: there is no file or folder"),
        (["-p", "image_path", ""], "image_path must not be empty"),
        (["-p", "model_id", "./lost"], "model_id: there is no folder"),
        (["-p", "model_id", "/lost"], "model_id: there is no folder"),
        (["-p", "model_id", "~/lost"], "model_id: there is no folder"),
        (["-p", "model_id", "data/checkpoints/lost"], "model_id: there is no folder"),
        (["-p", "model_id", "lost/"], "model_id: there is no folder"),
        (["-y", "lost.yaml"], "lost.yaml: cannot be read"),
        (["--out", "page.html"], "--out must name an .ipynb file"),
        (["--out", "notebooks/look.ipynb"], "--out must not be the notebook itself"),
        (["--out", "lost/../notebooks/look.ipynb"], "--out must not be the notebook itself"),
        (["-p", "image_path", "~nobody-of-this-name/a.png"], "image_path: there is no file"),
    ],
)
def test_refused_with_one_sentence(notebook, no_kernel, capsys, arguments, complaint):
    assert cli.main(["run", "notebooks/look.ipynb", *arguments]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert complaint in sentence


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("list[str]", ["a.png"], r"x_path names one file: expected a text, got \['a.png'\]"),
        ("dict", {"day": datetime.date(2026, 1, 2)}, "x_path must be of type dict, got"),
    ],
)
def test_values_that_no_run_could_take_are_refused(tmp_path, kind, value, complaint):
    declared = {"x_path": Parameter("x_path", kind, None)}
    with pytest.raises(Refused, match=complaint):
        check_values(declared, {"x_path": value}, tmp_path)


def test_folder_that_cannot_be_written_to_is_a_failed_run(notebook, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["run", "notebooks/look.ipynb", "--out", "file/look.ipynb"]) == 1
    assert "look  0.0 s  FAILED In [0]: FileExistsError:" in capsys.readouterr().out
    assert cli.main(["run-all", "notebooks", "--out", "file"]) == 1
    [*_, complaint] = capsys.readouterr().err.splitlines()
    assert complaint.startswith("rollout: [Errno ") and "file" in complaint


def test_running_all_never_takes_its_outputs_for_notebooks(notebook, tmp_path, capsys):
    before = notebook.read_bytes()
    assert cli.main(["run-all", "notebooks", "--out", "notebooks"]) == 2
    assert "--out must not be the notebook itself" in capsys.readouterr().err
    for _ in range(2):
        assert cli.main(["run-all", ".", "--out", "outputs"]) == 0
        assert "1 of 1 notebooks finished" in capsys.readouterr().out
    assert notebook.read_bytes() == before


def test_a_model_may_run_without_the_adapter_that_is_its_default(notebook):
    (notebook.parent / "lora").mkdir()
    parameters = PARAMETERS + 'adapter_id: str = "lora"  # an adapter\n'
    write_notebook(notebook.parent.parent, "look", parameters=parameters)
    assert given_as(notebook, ("adapter_id", ""))["adapter_id"] == ""


def test_default_that_is_missing_is_refused(notebook, no_kernel, capsys):
    (notebook.parent / "picture.txt").unlink()
    assert cli.main(["run", "notebooks/look.ipynb"]) == 2
    assert str(notebook.parent / "picture.txt") in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [None, b"", b"text", b"{}", b"[]", b"\xff\x00", b'{"cells": 3}']
)
def test_what_is_no_notebook_is_refused(tmp_path, no_kernel, capsys, content):
    path = tmp_path / "broken.ipynb"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["run", str(path)]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert str(path) in sentence


def test_default_that_is_no_literal_is_refused(tmp_path):
    path = write_notebook(tmp_path, "derived", parameters="steps: int = 2 * 3\n")
    with pytest.raises(Refused, match="steps: the default must be a literal"):
        declared_parameters(path)


@pytest.mark.parametrize("content", ["- 1\n", "just text", "a: [1", "1: 2", ""])
def test_parameter_file_must_hold_a_mapping(tmp_path, content):
    path = tmp_path / "parameters.yaml"
    path.write_text(content)
    with pytest.raises(Refused, match=r"parameters\.yaml"):
        read_parameter_file(path)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "3"), ("steps", True), ("flag", 1), ("model_id", 7)]
)
def test_values_of_a_parameter_file_are_not_converted(notebook, name, value):
    with pytest.raises(Refused, match=f"{name} must be of type"):
        check_parameters(notebook, {name: value}, Path.cwd())


# What a value becomes


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("flag", "true", True),
        ("flag", "False", False),
        ("steps", "010", 10),
        ("ratio", "1", 1.0),
        ("ratio", "1e-3", 1e-3),
        ("layers", "[]", []),
        ("layers", "[3, 4]", [3, 4]),
        ("untyped", "4", 4),
        ("mask_path", "", ""),
        ("model_id", "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_value_has_the_declared_type(notebook, name, text, value):
    result = given_as(notebook, (name, text))[name]
    assert result == value and type(result) is type(value)


@given(st.text())
def test_string_stays_the_text_it_is(text):
    declared = {"prompt": Parameter("prompt", "str", "")}
    assert read_assignments(declared, [("prompt", text)]) == {"prompt": text}


@given(st.floats(allow_nan=False))
def test_float_is_read_exactly(number):
    declared = {"ratio": Parameter("ratio", "float", 0.0)}
    assert read_assignments(declared, [("ratio", str(number))]) == {"ratio": number}
    assert math.copysign(1, number) == math.copysign(1, float(str(number)))


def test_files_start_at_the_callers_folder(notebook, tmp_path):
    (tmp_path / "photo.jpg").touch()
    values = given_as(notebook, ("image_path", "photo.jpg"), ("model_id", "model"))
    assert values == {
        "image_path": str(tmp_path / "photo.jpg"),
        "model_id": str(tmp_path / "model"),
    }


def test_file_to_be_written_need_not_exist(notebook, tmp_path):
    values = given_as(notebook, ("output_path", "new/folder"))
    assert values == {"output_path": str(tmp_path / "new" / "folder")}


def test_output_name_depends_on_the_values_and_not_on_their_order(notebook):
    one = runs.output_name(notebook, {"steps": 1, "ratio": 0.5})
    assert one == runs.output_name(notebook, {"ratio": 0.5, "steps": 1})
    assert one != runs.output_name(notebook, {"ratio": 0.5, "steps": 2})


# What a run leaves behind; each of these starts a kernel


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def statuses(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.metadata.papermill.status for cell in cells if cell.cell_type == "code"]


def test_success_gives_the_notebook_its_values_and_its_own_folder(tmp_path, monkeypatch):
    # Another kernel of the same name, such as an old installation leaves behind.
    stale = tmp_path / "jupyter" / "kernels" / "python3"
    stale.mkdir(parents=True)
    (stale / "kernel.json").write_text(json.dumps({"argv": ["/lost"], "display_name": "stale"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    path = write_notebook(
        tmp_path,
        "values {of} 3",
        "from pathlib import Path",
        "assert (steps, flag, layers, prompt) == (5, True, [3], '007')",
        "assert Path(image_path).is_absolute() and Path('values {of} 3.ipynb').exists()",
        "print('all as given')",
        parameters="steps: int = 2\nflag: bool = False\nlayers: list[int] = [1]\n"
        "prompt: str = ''\nimage_path: str = ''\n",
    )
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "given.yaml").write_text("steps: 4\nlayers: [3]\n")
    assignments = ["-p", "steps", "5", "-p", "flag", "true", "-p", "prompt", "007"]
    files = ["-p", "image_path", "photo.jpg", "-y", "given.yaml"]

    assert cli.main(["run", str(path), *assignments, *files, "--echo"]) == 0

    [executed] = (tmp_path / "outputs").glob("*.ipynb")
    assert executed.name.startswith("values {of} 3-")
    assert left_in(executed.parent) == [executed.with_suffix(".html").name, executed.name]
    assert nbformat.read(executed, as_version=4).metadata.papermill.output_path == str(executed)


def test_failure_keeps_what_was_finished_and_success_removes_the_failure(tmp_path, capsys):
    output = tmp_path / "outputs" / "sum.ipynb"
    output.parent.mkdir()
    output.write_text("finished before")

    path = write_notebook(tmp_path, "sum", "raise ValueError('no\\nmore')")
    assert cli.main(["run", str(path), "--out", str(output)]) == 1
    assert "FAILED In [1]: ValueError: no" in capsys.readouterr().out
    assert output.read_text() == "finished before"
    assert left_in(output.parent) == ["sum.failed.html", "sum.failed.ipynb", "sum.ipynb"]
    assert "ValueError" in (output.parent / "sum.failed.html").read_text()

    path = write_notebook(tmp_path, "sum", "1 + 1")
    assert cli.main(["run", str(path), "--out", str(output)]) == 0
    assert left_in(output.parent) == ["sum.html", "sum.ipynb"]


@pytest.mark.parametrize(
    ("cell", "timeout", "error"),
    [
        ("import os; os.kill(os.getpid(), 9)", None, "In [2]: the kernel died"),
        ("import time; time.sleep(60)", 1.5, "In [2]: stopped after 1.5 seconds"),
        ("import sys; sys.exit(0)", None, "the notebook stopped before its last cell"),
    ],
    ids=["killed", "timeout", "exit"],
)
def test_lost_run_does_not_look_finished(tmp_path, cell, timeout, error):
    path = write_notebook(tmp_path, "lost", "x = 1", cell, "print('never')")
    output = tmp_path / "outputs" / "lost.ipynb"
    run = runs.run_notebook(path, output, {}, timeout=timeout)
    assert not run.ok and error in run.error
    assert left_in(output.parent) == ["lost.failed.ipynb"]
    assert statuses(run.output) == ["completed", "failed", "pending"]


def test_interrupt_stops_with_nothing_that_looks_finished(tmp_path):
    interrupt = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    path = write_notebook(tmp_path, "stopped", interrupt)
    output = tmp_path / "outputs" / "stopped.ipynb"
    assert cli.main(["run", str(path), "--out", str(output)]) == 130
    assert left_in(output.parent) == ["stopped.failed.ipynb"]
    assert statuses(runs.failed_output(output)) == ["failed"]


# Several notebooks at a time

MEET = """
import os, pathlib, time
pathlib.Path(f"{name}.here").touch()
while len(list(pathlib.Path().glob("*.here"))) < 2:
    time.sleep(0.05)
print("threads:", os.environ["OMP_NUM_THREADS"])
"""


def test_notebooks_run_at_the_same_time_and_share_the_cores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    for name in ("one", "two"):
        write_notebook(tmp_path, name, f"name = {name!r}", MEET)
    assert cli.main(["run-all", "notebooks", "--jobs", "2", "--timeout", "60"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == ["one", "two"]
    assert last == "2 of 2 notebooks finished; see outputs/index.html"
    cells = nbformat.read("outputs/two.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text == "threads: 3\n"


def test_jobs_are_limited_by_cores_and_memory(monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    for gigabytes, jobs in ((2, 1), (15, 5), (64, 8)):
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", gigabytes * 2**30)
        assert cli._jobs(None) == (jobs, 8)
    assert cli._jobs(3) == (3, 8)
    with pytest.raises(SystemExit):
        cli.main(["run-all", "notebooks", "--jobs", "0"])


def test_interrupt_ends_all_notebooks_and_keeps_what_is_finished(tmp_path):
    write_notebook(tmp_path, "1_short", "1 + 1")
    for name in ("2_long", "3_long"):
        cell = f"import pathlib, time; pathlib.Path('{name}').touch(); time.sleep(600)"
        write_notebook(tmp_path, name, cell)
    write_notebook(tmp_path, "4_late", "1 + 1")
    command = [sys.executable, "-m", "rolloutlib.cli", "run-all", "notebooks", "--jobs", "2"]
    outputs = tmp_path / "outputs"
    awaited = [
        outputs / "1_short.html",
        *(tmp_path / "notebooks" / n for n in ("2_long", "3_long")),
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not all(path.exists() for path in awaited):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        kernels = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "rollout: interrupted"
    assert "Traceback" not in said
    gone, alive = psutil.wait_procs(kernels, timeout=20)
    assert len(gone) == 2 and not alive
    assert left_in(outputs) == [
        "1_short.html",
        "1_short.ipynb",
        "2_long.failed.ipynb",
        "3_long.failed.ipynb",
    ]
    assert statuses(outputs / "2_long.failed.ipynb") == ["failed"]
