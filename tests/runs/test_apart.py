"""Calls in a process of their own; the functions are those that end one in every way there is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rolloutlib.runs.apart import Apart, Lost


@pytest.fixture
def apart():
    apart = Apart()
    yield apart
    apart.end(wait_seconds=0)


def test_calls_share_a_process_which_works_in_the_folder(apart, tmp_path):
    assert apart.call(tmp_path, os.getcwd) == str(tmp_path)
    process = apart.call(tmp_path, os.getpid)
    assert process != os.getpid() and process == apart.call(tmp_path, os.getpid)
    assert apart.call(tmp_path.parent, os.getcwd) == str(tmp_path.parent)
    assert process != apart.call(tmp_path.parent, os.getpid)
    assert not psutil.pid_exists(process)


@pytest.mark.parametrize(
    ("function", "arguments", "how"),
    [
        (os._exit, [3], "its process ended with exit code 3"),
        (sys.exit, [4], "its process ended with exit code 4"),
        (signal.raise_signal, [signal.SIGKILL], "its process was ended by SIGKILL"),
        (signal.raise_signal, [signal.SIGSEGV], "its process was ended by SIGSEGV"),
        (signal.raise_signal, [signal.SIGINT], "its process"),
        (exec, ["import os, time\nos.fork() and os._exit(5)\ntime.sleep(600)"], "exit code 5"),
        (exec, ["import os\nos.closerange(3, 256)\nos._exit(6)"], "its process"),
        (time.sleep, [600], "stopped after 1 seconds"),
    ],
)
def test_a_call_that_does_not_come_back_is_lost_and_the_next_one_comes(
    apart, tmp_path, function, arguments, how
):
    with pytest.raises(Lost, match=how):
        apart.call(tmp_path, function, *arguments, timeout=1)
    assert apart.call(tmp_path, abs, -1) == 1


def test_a_call_that_an_earlier_one_took_along_is_made_again(apart, tmp_path):
    later = "import os, threading\nthreading.Timer(0.5, os._exit, [7]).start()"
    apart.call(tmp_path, exec, later)
    once = f"open({str(tmp_path / 'calls')!r}, 'a').write('x'); import time; time.sleep(1.5)"
    apart.call(tmp_path, exec, once)
    assert (tmp_path / "calls").read_text() == "xx"


def test_it_ends_with_its_children_when_nobody_is_there_any_more(tmp_path):
    code = f"""import os, threading, time
from pathlib import Path
from rolloutlib.runs.apart import Apart
long = "import os, time; os.fork(); open(str(os.getpid()), 'w').close(); time.sleep(600)"
threading.Thread(target=Apart().call, args=(Path({str(tmp_path)!r}), exec, long)).start()
while len(os.listdir({str(tmp_path)!r})) < 2:
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], timeout=120)
    processes = [int(path.name) for path in tmp_path.iterdir()]
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes) == 2 and not any(map(psutil.pid_exists, processes))


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="not Linux")
def test_full_memory_ends_it_first(apart, tmp_path):
    score = apart.call(tmp_path, Path.read_text, Path("/proc/self/oom_score_adj"))
    assert int(score) == 1000
