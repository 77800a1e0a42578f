"""A Python process apart, for calls that may end it: by `os._exit`, a signal, or a full memory.

It keeps what it loads for the next call, and does not outlive whoever started it.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

START_SECONDS = 300.0  # what the function needs may be imported first, on a busy machine
LOOK_EVERY_SECONDS = 1.0
END_SECONDS = 10.0


class Lost(RuntimeError):
    """A call that did not come back, because its process ended or took too long."""


class Apart:
    """A process that calls functions in a folder; where it has ended, the next call starts one."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.process: subprocess.Popen | None = None
        self.pipe: Connection | None = None

    def call(
        self, folder: Path, function: Callable, *arguments: object, timeout: float | None = None
    ) -> Any:
        """What a function of a module returns, called with `folder` as the working folder.

        A process that served earlier calls may have ended by what they left: the call is made
        again, in a new one. Raises `Lost` where it ends a new one, or takes `timeout` seconds.
        """
        is_new = self._start(folder)
        try:
            self.pipe.send((function, arguments))
            for seconds in (START_SECONDS, timeout):  # it says when it begins
                self._wait(seconds)
                answer = self.pipe.recv()
            return answer
        except (EOFError, OSError) as problem:
            how = self.end()
            if is_new:
                raise Lost(f"its process {how}") from problem
        except BaseException:  # a timeout, or an interrupt here
            self.end(wait_seconds=0)
            raise
        return self.call(folder, function, *arguments, timeout=timeout)

    def _start(self, folder: Path) -> bool:
        """Whether a new process was started, because there was none in this folder."""
        if self.process and folder == self.folder and self.process.poll() is None:
            return False
        self.end(wait_seconds=0)
        self.pipe, theirs = Pipe()
        command = [sys.executable, "-P", "-m", "rolloutlib.runs.apart", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                command, cwd=folder, pass_fds=[theirs.fileno()], start_new_session=True
            )
        self.folder = folder
        return True

    def _wait(self, timeout: float | None) -> None:
        """Wait for the answer. Its own children may keep the pipe open when the process ends."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.pipe.poll(LOOK_EVERY_SECONDS):
            if self.process.poll() is not None:
                raise EOFError
            if deadline and time.monotonic() > deadline:
                raise Lost(f"stopped after {timeout:g} seconds")

    def end(self, wait_seconds: float = END_SECONDS) -> str:
        """End the process and its children, and say how it ended."""
        if self.process is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(wait_seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        code, self.process = self.process.wait(), None
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def serve(pipe: Connection) -> None:
    """Make the calls that come through a pipe, one after another, until it is closed."""
    calls = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, calls), daemon=True).start()
    while True:
        function, arguments = calls.get()
        pipe.send("begins")
        pipe.send(function(*arguments))


def _listen(pipe: Connection, calls: queue.SimpleQueue) -> None:
    try:
        while True:
            calls.put(pipe.recv())
    finally:  # nobody is there any more: end, with all children
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    with suppress(OSError):  # where memory is full, Linux ends this one, and not its neighbours
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.path.insert(0, "")  # the notebook's folder, as in a kernel
    serve(Connection(int(sys.argv[1])))
