"""Sweeps as they are: real kernels, Dask clusters on loopback, and processes that are killed."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import nbformat
import pandas as pd
import psutil
import pytest
from distributed import Client, Security
from places import ROOT
from small_notebooks import write_notebook

from rolloutlib import cli
from rolloutlib.runs import schedule as sweeps
from rolloutlib.runs.notebook import Notebook, Refused
from rolloutlib.runs.plan import plan

PARAMETERS = """
number: int = 1  # is squared
wait: float = 0.0  # seconds
words: list[str] = []  # only said
size: int = 0  # of what is printed, in bytes
output_path: str = "../said.txt"  # written
"""
CELLS = (
    "import time, pathlib",
    "time.sleep(wait)\nprint('x' * size)\npathlib.Path(output_path).write_text(str(words));",
    "if number == 13: raise ValueError('thirteen')",
    "from rolloutlib import report\nreport(square=number**2)",
)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_notebook(tmp_path, "square", *CELLS, parameters=PARAMETERS)


@contextlib.contextmanager
def started(*command, **settings):
    """A process group of its own, which does not outlive the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env=ENVIRONMENT,
        start_new_session=True,
        **settings,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rollout_sweep(*arguments, **settings):
    return started("rolloutlib.cli", "sweep", "notebooks/square.ipynb", *arguments, **settings)


def finished_in(out):
    return sorted(path.parent.name for path in Path(out).glob("*/metrics.json"))


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


# Planning: nothing is started


def test_ten_thousand_sets_are_planned_in_seconds(notebook, tmp_path):
    (tmp_path / "model").mkdir()
    sets = [{"number": n, "wait": w / 10} for n in range(1000) for w in range(10)]
    started = time.process_time()
    planned = plan(Notebook.read(notebook), sets, tmp_path / "out")
    assert time.process_time() - started < 5
    assert len({run.key for run in planned}) == 10_000
    assert not (tmp_path / "out").exists()


def test_sets_that_amount_to_the_same_run_are_one(notebook, tmp_path):
    sets = [{}, {"number": 1}, {"number": 1, "wait": 0}, {"number": 2}]
    assert [run.values["number"] for run in plan(Notebook.read(notebook), sets, tmp_path)] == [1, 2]


def test_what_a_run_writes_goes_to_its_own_folder(notebook, tmp_path):
    [run] = plan(Notebook.read(notebook), [{"number": 2}], tmp_path / "out")
    assert run.given == {"number": 2, "output_path": str(run.folder / "said.txt")}
    assert "output_path" not in run.values


@pytest.mark.parametrize(
    ("sets", "complaint"),
    [
        ([], "at least one set"),
        ([{"number": 1}, {"number": 1.5}], "set 2: number must be of type int, got 1.5"),
        ([{"nummer": 1}], "set 1: unknown parameter nummer: did you mean number"),
        ([{"output_path": "x"}], "output_path: each run of a sweep writes to its own folder"),
        ([{"number": "a"}] * 5, "set 3: .*; and 2 more sets"),
    ],
)
def test_sweep_with_a_bad_set_is_refused_as_a_whole(notebook, tmp_path, sets, complaint):
    with pytest.raises(Refused, match=complaint):
        sweeps.sweep(notebook, sets, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "expected a file with parameter sets, or --set"),
        (["--set", "number=1,x"], "number must be of type int, got 'x'"),
        (["--set", "number=1", "--direct"], "names no function"),
        (["lost.yaml"], "lost.yaml: cannot be read"),
    ],
)
def test_command_is_refused_with_one_sentence(notebook, capsys, arguments, complaint):
    assert cli.main(["sweep", "notebooks/square.ipynb", *arguments]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert complaint in sentence


@pytest.mark.parametrize(
    "default", ["{1, 2}", "b'a'", "{1: 2, 'a': 3}", "'\\ud800'", "0x" + "f" * 5000]
)
def test_default_that_no_table_can_hold_is_refused(tmp_path, default):
    path = write_notebook(tmp_path, "odd", parameters=f"x = {default}\n")
    with pytest.raises(Refused, match="x: a sweep's table cannot hold this default"):
        plan(Notebook.read(path), [{}], tmp_path)


@pytest.mark.parametrize("workers", ["0", "-2"])
def test_no_workers_are_refused(notebook, capsys, workers):
    assert cli.main(["sweep", str(notebook), "--set", "number=1", "--workers", workers]) == 2
    assert f"Invalid value for '--workers': {workers} is not in the range x>=1" in (
        capsys.readouterr().err
    )


def test_parameter_with_the_name_of_a_column_is_refused(tmp_path):
    path = write_notebook(tmp_path, "clash", parameters="seconds: float = 1.0\n")
    with pytest.raises(Refused, match="seconds"):
        plan(Notebook.read(path), [{}], tmp_path)


def test_scheduler_that_does_not_answer_is_refused(notebook, monkeypatch, tmp_path):
    monkeypatch.setattr(sweeps, "CONNECT_SECONDS", 1)
    with pytest.raises(Refused, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        sweeps.sweep(notebook, [{}], tmp_path / "out", scheduler="tcp://127.0.0.1:9")


# A cluster that was there before: its scheduler, and two workers of one process each


@pytest.fixture
def cluster(tmp_path):
    """The scheduler's address and process, and its two workers."""
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    loopback = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file)
    worker = ("distributed.cli.dask_worker", "--nthreads", 1, "--no-nanny", *loopback)
    with (
        started("distributed.cli.dask_scheduler", "--port", 0, *loopback, **quiet) as scheduler,
        started(*worker, **quiet) as one,
        started(*worker, **quiet) as two,
    ):
        wait_until(lambda: file.exists() and file.read_text())  # it is made before it is written
        yield json.loads(file.read_text())["address"], scheduler, (one, two)


def test_killed_worker_and_killed_scheduler_lose_nothing(notebook, cluster, tmp_path, capsys):
    address, scheduler, (victim, _) = cluster
    sets = ["--set", "number=1,2,3", "--set", "wait=0,0.1"]
    arguments = ["sweep", str(notebook), *sets, "--scheduler", address, "--out", "out"]

    def kill_midway():
        wait_until(lambda: len(finished_in("out")) >= 2)
        victim.kill()

    killer = threading.Thread(target=kill_midway)
    killer.start()
    assert cli.main(arguments) == 0
    killer.join()
    assert victim.wait() == -signal.SIGKILL

    assert "6 done, 0 failed, 0 skipped, 0 remaining; see" in capsys.readouterr().out
    table = pd.read_parquet("out/results.parquet")
    assert len(finished_in("out")) == len(table) == 6
    assert set(zip(table["number"], table["wait"], strict=True)) == {
        (number, wait) for number in range(1, 4) for wait in (0.0, 0.1)
    }
    assert (table["square"] == table["number"] ** 2).all()
    assert (table["seconds"] > table["wait"]).all() and (table["peak_memory_mb"] > 10).all()
    assert (table["error"] == "").all() and (table["route"] == "papermill").all()
    assert sorted(p.name for p in (tmp_path / "out" / table["run"][0]).iterdir()) == [
        "metrics.json",
        "said.txt",
        "square.ipynb",
    ]

    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/*")}
    assert cli.main(arguments) == 0
    assert "0 done, 0 failed, 6 skipped, 0 remaining" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").glob("*/*")}

    def kill_scheduler():
        wait_until(lambda: len(finished_in("out")) >= 8)
        scheduler.kill()

    killer = threading.Thread(target=kill_scheduler)
    killer.start()
    more = [*arguments, "--set", "words=[a],[b]"]
    assert cli.main(more) == 1
    killer.join()
    assert "the scheduler went away" in capsys.readouterr().err
    kept = len(pd.read_csv("out/results.csv"))
    assert 8 <= kept < 18
    assert len(finished_in("out")) >= kept


# A cluster that the sweep brings itself


def test_failed_run_is_kept_for_post_mortem_and_the_others_go_on(notebook, tmp_path, capsys):
    about = ["--set", "number=12,13", "--workers", "1", "--out", "out"]
    arguments = ["sweep", "notebooks/square.ipynb", *about]
    planned = plan(Notebook.read(notebook), [{"number": 12}, {"number": 13}], tmp_path / "out")
    good, bad = (run.folder for run in planned)
    for folder in (good, bad):  # what a killed worker leaves behind
        folder.mkdir(parents=True)
        (folder / "square.0123abcd.part.ipynb").write_text('{"cells": [')
        (folder / ".metrics.a1b2.part").mkdir()
        (folder / ".metrics.a1b2.part" / "metrics.json").write_text('{"run"')

    assert cli.main(arguments) == 1

    printed = capsys.readouterr().out
    assert "1 done, 1 failed, 0 skipped, 0 remaining" in printed
    assert re.search(rf"{bad.name} +13 In \[5\]: ValueError: thirteen", printed)
    assert finished_in("out") == [good.name]
    assert not list(good.glob("*part*")) and not list(good.glob(".*part*"))
    failed = nbformat.read(bad / "square.failed.ipynb", as_version=4)
    outputs = [output for cell in failed.cells for output in cell.get("outputs", [])]
    assert [output.output_type for output in outputs] == ["stream", "error"]
    assert "thirteen" in "\n".join(outputs[1].traceback)
    table = pd.read_parquet("out/results.parquet").set_index("run")
    assert table.loc[bad.name, "error"] == "In [5]: ValueError: thirteen"
    assert table.loc[good.name, "square"] == 144

    before = (good / "metrics.json").stat().st_mtime_ns
    assert cli.main(arguments) == 1  # only what failed is tried again
    assert "0 done, 1 failed, 1 skipped, 0 remaining" in capsys.readouterr().out
    assert (good / "metrics.json").stat().st_mtime_ns == before


def test_a_run_that_ends_its_worker_takes_no_other_along(tmp_path, monkeypatch):
    """Also where workers are given more than one run at a time, as other clusters may do."""
    monkeypatch.setitem(sweeps.LOCAL_SETTINGS, "distributed.scheduler.worker-saturation", 9.0)
    monkeypatch.chdir(tmp_path)
    fatal = "import os\nif number == 0: os.kill(os.getppid(), 9)"
    path = write_notebook(tmp_path, "fatal", fatal, parameters="number: int = 1\n")
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        done = sweeps.sweep(path, [{"number": n} for n in range(3)], "out", workers=1)
    errors = dict(zip(done.table["number"], done.table["error"], strict=True))
    lost = "its worker was lost, and so were those that tried it again"
    assert errors == {0: lost, 1: "", 2: ""}


def test_the_cluster_here_demands_certificates_of_its_own():
    with sweeps._client("", 1) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        [worker] = client.scheduler_info()["workers"]
        assert worker.startswith("tls://127.0.0.1:")
        for security in (Security.temporary(), None):
            with pytest.raises((OSError, ValueError, TypeError)):
                Client(address, security=security, timeout=3, set_as_default=False)
        with pytest.raises(OSError):
            Client(address.replace("tls", "tcp"), timeout=3, set_as_default=False)


def test_interrupt_ends_every_process_and_keeps_what_is_finished(notebook):
    arguments = ["--set", "wait=0,300,301", "--workers", 2, "--out", "out"]
    with rollout_sweep(*arguments, stderr=subprocess.PIPE, text=True) as command:
        wait_until(lambda: finished_in("out"))
        wait_until(lambda: len(list(Path("out").glob("*/*.part.ipynb"))) == 2)
        children = psutil.Process(command.pid).children(recursive=True)
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does
        _, said = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "rollout: interrupted" in said.splitlines() and "Traceback" not in said
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) >= 4 and not alive
    table = pd.read_csv("out/results.csv")  # a run under way may have noted its kernel's end
    assert finished_in("out") == list(table["run"][table["error"].isna()])
    assert len(finished_in("out")) == 1


def test_full_disk_fails_what_does_not_fit_and_nothing_else(notebook):
    """A limit on the size of files stands for the disk: writing beyond it fails in the same way."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    arguments = ["--set", "size=10,200000", "--out", "out"]
    with rollout_sweep(*arguments, stdout=subprocess.PIPE, text=True, preexec_fn=limit) as command:
        printed, _ = command.communicate(timeout=120)
    assert command.returncode == 1
    assert "1 done, 1 failed" in printed and "File too large" in printed
    table = pd.read_csv("out/results.csv").set_index("size")
    assert finished_in("out") == [table.loc[10, "run"]]
    assert "File too large" in table.loc[200_000, "error"]


def test_two_sweeps_over_one_folder_at_once_agree(notebook):
    arguments = ["--set", "number=1,2", "--workers", 1, "--out", "out"]
    with rollout_sweep(*arguments) as one, rollout_sweep(*arguments) as two:
        assert one.wait(120) == 0 and two.wait(120) == 0
    table = pd.read_csv("out/results.csv")
    assert sorted(table["square"]) == [1, 4] and table["error"].isna().all()
    assert len(finished_in("out")) == len(list(Path("out").glob("*/square.ipynb"))) == 2
    assert not list(Path("out").rglob("*part*"))


# Slurm: no cluster here, so only what would be handed to it


def test_lines_for_slurm_in_the_readme_make_a_job_script():
    readme = (ROOT / "README.md").read_text()
    [code] = re.findall(r"```python\n(from dask_jobqueue.*?)```", readme, re.S)
    imported, made, scaled = filter(None, code.splitlines())
    assert scaled == "cluster.scale(jobs=100)"
    names, interrupted = {}, signal.getsignal(signal.SIGINT)
    exec(imported, names)
    signal.signal(signal.SIGINT, interrupted)  # the import takes Ctrl-C
    with dask.config.set({"jobqueue.slurm.scheduler-options": {"host": "127.0.0.1"}}):
        exec(made, names)
    with names["cluster"] as cluster:
        script = cluster.job_script()
    assert re.search(r"^#SBATCH --cpus-per-task=1$", script, re.M)
    assert re.search(r"^#SBATCH --mem=8G$", script, re.M)
    assert re.search(r"^#SBATCH -t 02:00:00$", script, re.M)
    assert re.search(
        rf"^{re.escape(sys.executable)} -m distributed\.cli\.dask_worker", script, re.M
    )
    assert "--nthreads 1" in script and "tcp://127.0.0.1" in script
