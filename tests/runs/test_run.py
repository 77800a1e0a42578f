"""What one run leaves behind; most of these tests start a kernel."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import papermill
import pytest
from places import ROOT
from small_notebooks import left_in, statuses, write_notebook
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from rolloutlib.files.clips import read_clip
from rolloutlib.files.dumps import read_arrays
from rolloutlib.runs.kernel import private_sockets
from rolloutlib.runs.notebook import Notebook
from rolloutlib.runs.run import output_name, run_notebook


def test_output_name_depends_on_the_values_and_not_on_their_order(tmp_path):
    path = tmp_path / "look.ipynb"
    one = output_name(path, {"steps": 1, "ratio": 0.5})
    assert one == output_name(path, {"ratio": 0.5, "steps": 1})
    assert one != output_name(path, {"ratio": 0.5, "steps": 2})


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
    run = run_notebook(path, output, {}, timeout=timeout)
    assert not run.ok and error in run.error
    assert left_in(output.parent) == ["lost.failed.ipynb"]
    assert statuses(run.output) == ["completed", "failed", "pending"]


def test_what_was_executed_is_saved_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("rolloutlib.runs.run.SAVE_SECONDS", 0)
    path = write_notebook(tmp_path, "saved", "print('done')", SHOW_PART, parameters="folder = ''")
    run = run_notebook(path, tmp_path / "out" / "saved.ipynb", {"folder": str(tmp_path / "out")})
    assert run.ok, run.error
    assert "done\\n" in run.executed.content.cells[-1].outputs[0].text


SHOW_PART = """from pathlib import Path
[part] = Path(folder).glob("*.part.ipynb")
print(part.read_text())"""


def test_values_arrive_whatever_form_the_parameters_have(tmp_path):
    """Forms that papermill cannot read: it injects the values all the same."""
    path = write_notebook(
        tmp_path,
        "forms",
        "assert (formula, mark, words, one, two, name) == ('c=d', '##', '\\n', 3, None, '007')",
        parameters='formula: str = "a=b"\nmark = "# no comment"\nwords = """x = 1\ny = 2"""\n'
        "one = 1; two: int | None = 2\nfrom typing import Optional\nname: Optional[str] = None\n",
    )
    values = {"formula": "c=d", "mark": "##", "words": "\n", "one": 3, "two": None, "name": "007"}
    assert Notebook.read(path).parameters.keys() == values.keys()
    run = run_notebook(path, tmp_path / "forms.ipynb", values)
    assert run.ok, run.error


def test_run_brings_what_it_wrote(tmp_path):
    path = write_notebook(tmp_path, "half", "from rolloutlib import report; report(x=1)", "1 / 0")
    run = run_notebook(path, tmp_path / "half.ipynb", {})
    assert run.executed.path == run.output and run.executed.metrics == {"x": 1}
    assert run.executed.content == Notebook.read(run.output).content


def test_a_folder_that_another_run_left_behind_is_not_entered(tmp_path):
    """Papermill keeps one working folder for all runs of a process; overlapping ones mix it up."""
    notebook = write_notebook(
        tmp_path, "look", "1 + 1", "from pathlib import Path; Path.cwd().name"
    )
    everyones, gone = papermill.iorw.papermill_io.get_handler("local"), str(tmp_path / "gone")
    run = run_notebook(
        notebook, tmp_path / "out.ipynb", {}, on_progress=lambda *_: everyones.cwd(gone)
    )
    everyones.cwd(None)
    assert run.ok, run.error
    assert run.executed.content.cells[-1].outputs[0].data["text/plain"] == "'notebooks'"


# Notebooks of any origin

CODE = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
CELL = CODE | {"source": ["x = 1\n", "x + 1"]}
OLD = {"cell_type": "code", "language": "python", "metadata": {}, "outputs": [], "input": "1 + 1"}
ORIGINS = {
    "nbformat": {"cells": [CELL | {"id": "a"}], "metadata": {}, "nbformat_minor": 5},
    "no ids": {"cells": [CELL, CELL], "metadata": {}, "nbformat_minor": 0},
    "Colab": {
        "cells": [CELL | {"metadata": {"id": "Xy0", "colab": {"height": 35}}}],
        "metadata": {"colab": {"provenance": []}, "accelerator": "GPU"},
        "nbformat_minor": 0,
    },
    "Jupytext": {
        "cells": [CELL | {"metadata": {"lines_to_next_cell": 2}}],
        "metadata": {"jupytext": {"formats": "ipynb,py:percent", "cell_metadata_filter": "-all"}},
        "nbformat_minor": 5,
    },
    "VS Code": {
        "cells": [CELL | {"metadata": {"vscode": {"languageId": "python"}}}],
        "metadata": {"language_info": {"name": "python"}, "orig_nbformat": 4},
        "nbformat_minor": 2,
    },
    "conda": {
        "cells": [CELL],
        "metadata": {"kernelspec": {"name": "conda-env-lost-py", "display_name": "lost"}},
        "nbformat_minor": 4,
    },
    "version 3": {"worksheets": [{"cells": [OLD]}], "metadata": {"name": ""}, "nbformat": 3},
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_notebook_of_any_origin_runs(tmp_path, origin):
    path = tmp_path / "notebook.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 0} | ORIGINS[origin]))
    assert Notebook.read(path).parameters == {}
    run = run_notebook(path, tmp_path / "out" / "notebook.ipynb", {})
    assert run.ok, run.error
    outputs = run.executed.content.cells[-1].outputs
    assert [output.data["text/plain"] for output in outputs] == ["2"]


# Sockets, and what dead runs leave

LOOK_AT_SOCKETS = """
import json, os, psutil
from ipykernel.connect import get_connection_file
file = get_connection_file()
folder = os.path.dirname(file)
print(json.load(open(file))["transport"])
print(*(os.stat(path).st_mode & 0o077 for path in (folder, file)))
sockets = {one.laddr for one in psutil.Process().net_connections("unix") if one.laddr}
print(len(sockets), {os.path.dirname(socket) for socket in sockets} == {folder})
print(folder)
"""


def test_kernel_talks_through_sockets_that_only_the_user_can_open(tmp_path):
    path = write_notebook(tmp_path, "look", LOOK_AT_SOCKETS)
    run = run_notebook(path, tmp_path / "look.ipynb", {})
    assert run.ok, run.error
    *said, folder = run.executed.content.cells[-1].outputs[0].text.splitlines()
    assert said == ["ipc", "0 0", "5 True"]
    assert Path(folder).parent == Path(tempfile.gettempdir()) and not Path(folder).exists()


def test_folders_of_dead_runs_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = f"""import os, tempfile, time
tempfile.tempdir = {str(tmp_path)!r}
from rolloutlib.runs.kernel import private_sockets
with private_sockets():
    print(flush=True)
    input()
    os.kill(os.getpid(), 9)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        other.stdout.readline()
        [theirs] = tmp_path.iterdir()
        (theirs / "kernel.json").touch()
        not_ours = [tmp_path / "rolloutlib-run-link", tmp_path / "rollout-data"]
        not_ours[1].mkdir()
        not_ours[0].symlink_to(not_ours[1])
        hour_ago = time.time() - 3600
        for folder in (theirs, not_ours[1]):
            os.utime(folder, (hour_ago, hour_ago))
        with private_sockets():
            assert theirs.exists()  # it lives
        other.communicate(b"\n")
    with private_sockets():
        assert not theirs.exists()
    young = tmp_path / "rolloutlib-run-young"
    young.mkdir()
    with private_sockets():
        pass
    assert sorted(tmp_path.iterdir()) == sorted([*not_ours, young])


def test_a_run_writes_to_a_new_file_that_nobody_can_guess(tmp_path):
    seen = []
    path = write_notebook(tmp_path, "look", "1 + 1")
    output = tmp_path / "out" / "look.ipynb"
    for _ in range(2):
        run = run_notebook(
            path, output, {}, on_progress=lambda *_: seen.extend(output.parent.glob("*.part.*"))
        )
        assert run.ok, run.error
    assert len({*seen}) == 2 and all(len(part.name.split(".")[1]) == 32 for part in seen)
    assert left_in(output.parent) == ["look.ipynb"]
    assert output.stat().st_mode == path.stat().st_mode


def test_the_notebook_about_a_clip_takes_few_frames_and_many_layers(tmp_path):
    """Fewer frames than its figures show: of the 13 that are written, the model sees three. Twice
    as many layers as its default has, in a model from a folder that has no saliency decoder."""
    model, clip, maps = (str(tmp_path / name) for name in ("model", "clip.mp4", "maps.npz"))
    sizes = {"hidden_size": 24, "num_hidden_layers": 24, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, image_size=112)).save_pretrained(model)
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(model)
    given = {"model_id": model, "stop": 13, "stride": 6, "height": 84, "width": 112}
    given |= {"output_path": clip, "output_maps_path": maps}
    given |= {"output_rollout_path": str(tmp_path / "rollout.npz")}
    video = ROOT / "data" / "video" / "bigbuckbunny.mp4"
    output = tmp_path / "few.ipynb"
    notebook = ROOT / "notebooks" / "05_spatial_video.ipynb"
    run = run_notebook(notebook, output, given | {"video_path": str(video)})
    assert run.ok, run.error
    assert "24 layers, tokens before the patches: 1" in output.read_text()
    assert len(read_clip(clip).frames) == 13
    assert {array.shape for array in read_arrays(maps).values()} == {(3, 6, 8)}
    metrics = run.executed.metrics
    assert 0 <= metrics["auc_low"] <= metrics["auc"] <= 1 == metrics["auc_last_layer"]
