"""The `rollout` command: what it refuses, its exit codes, and what a run leaves behind."""

import json
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import papermill
import psutil
import pytest
from small_notebooks import left_in, statuses, write_look, write_notebook

from rolloutlib import cli
from rolloutlib.files.dumps import write_arrays, write_dump
from rolloutlib.runs import progress
from rolloutlib.runs.run import failed_output


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_look(tmp_path)


@pytest.fixture
def no_kernel(monkeypatch):
    def start(*_, **__):
        pytest.fail("a kernel was started")

    monkeypatch.setattr(papermill, "execute_notebook", start)


# It answers at once

HEAVY = {
    "torch",
    "transformers",
    "pandas",
    "dask",
    "distributed",
    "nbformat",
    "papermill",
    "IPython",
}


def imported_by(code):
    """The modules that are there after a fresh Python ran these lines."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["score", "--help"]])
def test_help_imports_next_to_nothing(arguments):
    found = imported_by(f"import rolloutlib.cli as cli; assert cli.main({arguments}) == 0")
    assert not found & (HEAVY | {"numpy", "tqdm", "yaml", "jinja2"})
    assert len(found) < 250  # half a second of imports is more than a thousand


def test_runs_and_pages_need_no_torch():
    modules = "kinds metrics notebook parameters plan progress results run schedule scoring sets "
    modules += "truth worker"
    code = "import rolloutlib.runs.direct, rolloutlib.pages.gallery, rolloutlib.pages.scores\n"
    code += "import rolloutlib.cli\n"
    code += f"from rolloutlib.runs import {modules.replace(' ', ', ')}"
    slow = {"torch", "transformers", "rfc3987_syntax"}  # the last one is a grammar of IRIs
    assert not imported_by(code) & slow
    assert not imported_by("import rolloutlib.runs") & HEAVY


def test_help_names_the_commands_and_the_exit_codes(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(
        name in said for name in ("run", "sweep", "score", "run-all", "gallery", "130 interrupted")
    )


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
        (["-p", "steps", "-what"], "steps must be of type int, got '-what'"),
    ],
)
def test_refused_with_one_sentence(notebook, no_kernel, capsys, arguments, complaint):
    assert cli.main(["run", "notebooks/look.ipynb", *arguments]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert complaint in sentence


def test_saved_results_are_drawn_and_nothing_else_is(tmp_path, capsys):
    rolled = write_arrays(tmp_path / "a.npz", rollout=np.eye(3), layer_0=np.full((3, 3), 1 / 3))
    maps = write_arrays(tmp_path / "b.npz", late=np.random.default_rng(0).random((14, 2, 5)))
    assert cli.main(["plot", str(rolled), str(maps), "--out", str(tmp_path / "drawn")]) == 0
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"a_matrices.png", "a_minmax.png", "b_late.png"}
    strange = write_arrays(tmp_path / "c.npz", weights=np.ones((2, 3)))
    capsys.readouterr()
    assert cli.main(["plot", str(strange)]) == 2
    assert "weights: expected matrices [frame frame] or maps" in capsys.readouterr().err
    assert cli.main(["plot", str(tmp_path / "none.npz")]) == 2


def test_dumps_are_drawn_for_one_instance(tmp_path, capsys):
    layers = [np.random.default_rng(n).random((1, 4, 3, 3)) for n in range(2)]
    dumps = [str(path) for path in write_dump(tmp_path, layers, video="7", frames=(0, 2))]
    assert cli.main(["plot", *dumps, "--refiner-id", "1"]) == 2  # heads, or a batch?
    assert "may be one instance with 4 heads or a batch of 4" in capsys.readouterr().err
    named = ["--refiner-id", "1", "--axes", "1 instance time time"]
    assert cli.main(["plot", *dumps, *named, "--out", str(tmp_path / "drawn")]) == 0
    stems = [f"video_7_frames0-2_refiner_temporal_layer_{n}_attn" for n in range(2)]
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {f"{stem}_{kind}.png" for stem in stems for kind in ("matrices", "minmax")}


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


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["walk"], "No such command 'walk'"),
        (["run"], "Missing argument 'NOTEBOOK'"),
        (["run", "notebooks/look.ipynb", "-p", "steps"], "'-p' requires 2 arguments"),
        (["run", "notebooks/look.ipynb", "--timeout", "soon"], "'soon' is not a valid float"),
    ],
)
def test_command_that_cannot_be_read_is_refused_too(
    notebook, no_kernel, capsys, arguments, complaint
):
    assert cli.main(arguments) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "value"), [("prompt", "-what", "-what"), ("ratio", "-1e-3", -1e-3)]
)
def test_value_that_begins_with_a_dash_arrives(tmp_path, monkeypatch, capsys, name, text, value):
    parameters = "prompt: str = ''\nratio: float = 0.5\n"
    path = write_notebook(tmp_path, "dash", parameters=parameters)
    received = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **_: received.append(a[2]))
    cli.main(["run", str(path), "-p", name, text, "--out", str(tmp_path / "out.ipynb")])
    assert received == [{name: value}]
    refused = ["sweep", str(path), "--set", f"{name}={text},-2", "--set", "no=1"]
    assert cli.main(refused) == 2 and "unknown parameter no" in capsys.readouterr().err


# What a run leaves behind; each of these starts a kernel


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


def test_interrupt_stops_with_nothing_that_looks_finished(tmp_path):
    interrupt = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    path = write_notebook(tmp_path, "stopped", interrupt)
    output = tmp_path / "outputs" / "stopped.ipynb"
    assert cli.main(["run", str(path), "--out", str(output)]) == 130
    assert left_in(output.parent) == ["stopped.failed.ipynb"]
    assert statuses(failed_output(output)) == ["failed"]


def test_notebook_in_another_language_is_refused_and_the_others_go_on(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path, "good", "1 + 1")
    path = write_notebook(tmp_path, "other", "x <- 1")
    content = nbformat.read(path, as_version=4)
    content.metadata["kernelspec"] = {"name": "ir", "display_name": "R", "language": "R"}
    nbformat.write(content, path)
    for command in (["run", str(path)], ["sweep", str(path), "--set", "x=1"]):
        assert cli.main(command) == 2
        [sentence] = capsys.readouterr().err.splitlines()
        assert sentence == f"rollout: {path}: expected a notebook in Python, got R"
    assert cli.main(["run-all", "notebooks"]) == 2
    said = capsys.readouterr().out
    assert "1 of 2 notebooks finished" in said and "refused: notebooks/other.ipynb: exp" in said
    write_notebook(tmp_path, "bad", "1 / 0")
    assert cli.main(["run-all", "notebooks"]) == 1


# Several notebooks at a time

MEET = """
import os, pathlib, time
pathlib.Path(f"{name}.here").touch()
while len(list(pathlib.Path().glob("*.here"))) < 2:
    time.sleep(0.05)
print("threads:", os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"])
"""


def test_notebooks_run_at_the_same_time_and_share_the_cores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    for name in ("one", "two"):
        write_notebook(tmp_path, name, f"name = {name!r}", MEET)
    assert cli.main(["run-all", "notebooks", "--jobs", "2", "--timeout", "60"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == ["one", "two"]
    assert last == "2 of 2 notebooks finished; see outputs/index.html"
    cells = nbformat.read("outputs/two.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text == "threads: 3 PASSIVE\n"


def test_jobs_are_limited_by_cores_and_memory(monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    for gigabytes, jobs in ((2, 1), (15, 5), (64, 8)):
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", gigabytes * 2**30)
        assert cli._jobs(None) == (jobs, 8)
    assert cli._jobs(3) == (3, 8)
    assert cli.main(["run-all", "notebooks", "--jobs", "0"]) == 2


def test_interrupt_ends_all_notebooks_and_keeps_what_is_finished(tmp_path):
    write_notebook(tmp_path, "1_short", "1 + 1" + 9 * "  # large files begin first")
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


def test_progress_is_a_line_now_and_then_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", -1)
    with progress.ProgressBar("look", "cell") as bar:
        bar.show(2, 9)
        monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 100)
        bar.show(3, 9)
    assert capsys.readouterr().err == "look  cell 3 of 9\n"


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.ProgressBar("look", "cell") as bar:
        bar.bar.ncols, bar.bar.mininterval = 60, 0
        bar.show(3, 9, "now")
        bar.write("a line that stays")
    said = capsys.readouterr()
    assert "look:  33%|" in said.err and "3/9" in said.err and "now" in said.err
    assert said.out == "a line that stays\n"
