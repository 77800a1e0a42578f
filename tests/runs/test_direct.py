import nbformat
import pandas as pd
import pytest
from PIL import Image
from small_notebooks import write_notebook

from rolloutlib import cli
from rolloutlib.runs import direct, schedule
from rolloutlib.runs.notebook import Notebook, Refused
from rolloutlib.runs.plan import plan
from rolloutlib.runs.run import run_notebook
from rolloutlib.runs.schedule import sweep
from rolloutlib.runs.worker import call

PARAMETERS = "image_path: str = '../photo.png'  # a picture\nfactor: int = 1  # of its width\n"
LOAD = "from rolloutlib import report\nfrom rolloutlib.files.pictures import load_picture"
OPEN = "picture = load_picture(image_path)\npicture.uses = getattr(picture, 'uses', 0) + 1"
MEASURE = """
def measure():
    if factor == 13:
        raise ValueError("thirteen")
    return {"width": factor * picture.width, "uses": picture.uses}
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    Image.new("RGB", (70, 20)).save(tmp_path / "wide.png")
    cells = (LOAD, OPEN, MEASURE, "1 / 0 if factor == 7 else None", "report(**measure())")
    path = write_notebook(tmp_path, "measure", *cells, parameters=PARAMETERS)
    return tag(path, 1, 2, 3, function="measure")


def tag(path, *numbers, function):
    content = nbformat.read(path, as_version=4)
    content.metadata["rollout"] = {"direct": function}
    for number in numbers:
        content.cells[number].metadata["tags"] = ["direct"]
    nbformat.write(content, path)
    return path


def test_sweep_calls_the_function_and_keeps_what_it_loads(notebook, capsys):
    arguments = ["--set", "factor=1,2,7,13", "--set", "image_path=photo.png,wide.png"]
    command = ["sweep", str(notebook), *arguments, "--direct", "--workers", "1", "--out", "out"]
    assert cli.main(command) == 1
    assert "6 done, 2 failed, 0 skipped" in capsys.readouterr().out
    table = pd.read_parquet("out/results.parquet")
    failed, done = table[table["factor"] == 13], table[table["factor"] != 13]
    assert (failed["error"] == "ValueError: thirteen").all() and (done["error"] == "").all()
    assert sorted(done["width"]) == [30, 60, 70, 140, 210, 490]  # 7 too: other cells do not run
    assert done["uses"].max() >= 3  # one failed of the four with a picture that was loaded once
    assert (done["peak_memory_mb"] > 10).all() and set(done["route"]) == {"direct"}
    [trace, _] = sorted(notebook.parent.parent.glob("out/*/traceback.failed.txt"))
    assert "<measure.ipynb>" in trace.read_text()
    assert cli.main(command) == 1
    assert "0 done, 2 failed, 6 skipped" in capsys.readouterr().out


def test_notebook_is_read_once_here_and_once_by_each_run(notebook, tmp_path, monkeypatch):
    read, found = nbformat.read, []
    monkeypatch.setattr(
        nbformat, "read", lambda path, **how: found.append(path) or read(path, **how)
    )
    monkeypatch.setattr(schedule, "_outcomes", lambda client, todo, _: [(run, "") for run in todo])
    command = ["sweep", str(notebook), "--set", "factor=1,2", "--direct", "--workers", "1"]
    assert cli.main(command) == 0 and found == [notebook]
    [planned] = plan(Notebook.read(notebook), [{}], tmp_path, "measure")
    assert call(planned)["error"] == "" and found == [notebook] * 3


def test_both_routes_report_the_same(notebook, tmp_path):
    run = run_notebook(notebook, tmp_path / "run.ipynb", {"factor": 3})
    assert run.ok, run.error
    values = {"image_path": str(tmp_path / "photo.png"), "factor": 3}
    assert run.executed.metrics == {"width": 90, "uses": 1}
    assert direct.call(Notebook.read(notebook), values) == {"width": 90, "uses": 1}


def test_edited_notebook_is_called_as_it_is_now(notebook, tmp_path):
    values = {"image_path": str(tmp_path / "wide.png"), "factor": 2}
    assert direct.call(Notebook.read(notebook), values)["width"] == 140
    notebook.write_text(notebook.read_text().replace("factor * picture", "5 * picture"))
    assert direct.call(Notebook.read(notebook), values)["width"] == 350


def test_what_the_notebook_itself_loads_follows_its_parameters(notebook, tmp_path):
    own = "def load_wide():\n    return load_picture(image_path).resize((factor, 1))\n"
    notebook = write_notebook(
        tmp_path,
        "own",
        *(LOAD, f"{own}picture = load_wide()", "def measure():\n    return {'w': picture.width}"),
        parameters=PARAMETERS,
    )
    tag(notebook, 1, 2, 3, function="measure")
    values = {"image_path": str(tmp_path / "photo.png")}
    for factor in (3, 5):
        called = direct.call(Notebook.read(notebook), values | {"factor": factor})
        assert called == {"w": factor}


def test_notebook_that_cannot_be_called_is_refused(notebook):
    tag(notebook, function="lost")
    with pytest.raises(Refused, match="no cell tagged 'direct' defines the function lost"):
        sweep(notebook, [{}], "out", direct=True)
    tag(notebook, function="")
    with pytest.raises(Refused, match="names no function"):
        sweep(notebook, [{}], "out", direct=True)


# Runs that end in any other way

ENDS = """
import os, resource, signal, sys, time

def fill_memory():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (2**33, limits[1]))
        return bytearray(2**33)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)

ways = {
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sys.exit": lambda: sys.exit("enough"),
    "interrupt": lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5)),
    "memory": fill_memory,
    "hang": lambda: time.sleep(600),
    "helper": lambda: __import__("helper").check(),
}

def measure():
    ways.get(how, str)()
    return {"square": number**2}
"""


def test_a_run_that_ends_its_process_costs_itself_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = "how: str = ''\nnumber: int = 0\n"
    path = tag(write_notebook(tmp_path, "ends", ENDS, parameters=parameters), 1, function="measure")
    (path.parent / "helper.py").write_text("def check():\n    open('helper.py').close()\n")
    errors = {
        "exit": "its process ended with exit code 3",
        "kill": "its process was ended by SIGKILL",
        "sys.exit": "SystemExit: enough",
        "interrupt": "KeyboardInterrupt: ",
        "memory": "MemoryError: ",
        "hang": "stopped after 5 seconds",
        "helper": "",  # it works in the notebook's folder, and finds what lies there
    }
    ways = [way for one in errors for way in (one, "")]
    sets = [{"how": way, "number": number} for number, way in enumerate(ways)]
    done = sweep(path, sets, tmp_path / "out", direct=True, workers=2, timeout=5)
    table = done.table.sort_values("number")
    assert list(table["error"]) == [errors.get(way, "") for way in ways]
    good = table[table["error"] == ""]
    assert len(good) == 8 and (good["square"] == good["number"] ** 2).all()


def test_what_is_loaded_with_a_list_is_kept_too():
    def load_something(name, families=()):
        return [name, families]

    first = direct._kept(load_something)("here", families=["llava"])
    assert first == ["here", ("llava",)]
    assert direct._kept(load_something)("here", families=["llava"]) is first
