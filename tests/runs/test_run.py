"""What one run leaves behind; most of these tests start a kernel."""

import papermill
import pytest
from small_notebooks import left_in, statuses, write_notebook

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
