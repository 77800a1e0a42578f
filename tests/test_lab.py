"""`make lab`: kernels that other users of the machine cannot reach."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
from lab_servers import LONG, address_in, free_port
from places import ROOT


def words_of(process):
    """The command of a process; nothing of one that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def connection_file(kernel):
    return Path(next(word for word in kernel.cmdline() if word.endswith(".json")))


def wait_until(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_private(kernel):
    """Its sockets lie in a folder that only this user can read.

    One port is left: it publishes nothing, and takes what forked processes print, with a secret.
    """
    assert len([one for one in kernel.net_connections("tcp") if one.status == "LISTEN"]) <= 1
    said = json.loads(connection_file(kernel).read_text())
    assert said["transport"] == "ipc"
    folder = Path(said["ip"]).parent
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
    assert len([one for one in folder.iterdir() if one.is_socket()]) >= 5


def test_kernels_of_jupyterlab_are_private(tmp_path):
    """`make lab`: a kernel as its interface starts one."""
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA")}
    options = f"--no-browser --ServerApp.port={free_port()} --IdentityProvider.token=own"
    command = ["make", "--old-file=.venv/.ready", "lab", f"LAB={options}"]
    command.append(f"BIN={Path(sys.executable).parent}")
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"{address_in(tmp_path / 'lab.log')}/api/kernels?token=own"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as reply:
            assert reply.status == 201
        started = psutil.Process(server.pid)

        def found():
            below = started.children(recursive=True)
            return [one for one in below if "ipykernel_launcher" in words_of(one)]

        wait_until(lambda: found() and connection_file(found()[0]).exists())
        [kernel] = found()
        folder = connection_file(kernel).parent
        wait_until(lambda: len([one for one in folder.iterdir() if one.is_socket()]) >= 5)
        assert_private(kernel)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    wait_until(lambda: not folder.exists())
