"""JupyterLab as tests start it: on a port that was free a moment ago, or on the next one."""

import re
import socket
import time

LONG = 240  # seconds: a busy machine may need them to start a kernel


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def address_in(log):
    """Where the server that writes this log answers: another program may have taken its port."""
    deadline = time.monotonic() + LONG
    while not (said := re.search(r"http://127\.0\.0\.1:\d+(?=/lab)", log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return said[0]
