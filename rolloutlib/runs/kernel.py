"""The kernel of one run: its Python, its sockets, its memory, and how far it has come."""

import fcntl
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rolloutlib.extras import needs, without_iris

with needs("notebooks"), without_iris():
    import nbformat
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

# Notebooks in an old format, and their cells, keep their old class.
Node = nbformat.NotebookNode | nbformat.v3.NotebookNode
SOCKETS = "rolloutlib-run-"
# One that was made just now may not be locked yet.
YOUNG_SECONDS = 60


@contextmanager
def private_sockets() -> Iterator[dict[str, str]]:
    """Settings of a kernel whose channels no other user can open, as they would a TCP port.

    Its sockets lie in a temporary folder, which is locked while the run lives. Folders of runs that
    were killed are removed first.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*"):
        with suppress(OSError):  # another user's, or of a run that lives
            status = left.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > YOUNG_SECONDS:
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SOCKETS) as folder, _locked(folder):
        yield {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}


@contextmanager
def _locked(folder: Path | str) -> Iterator[None]:
    """Raises OSError where somebody else holds the lock, which ends with its process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def kernel_watched_by(position: "Position") -> type[AsyncKernelManager]:
    """A class of kernels, as papermill takes one; each tells `position` where it is."""

    class WatchedKernel(AsyncKernelManager):
        # This very Python, whatever other kernels of the same name Jupyter finds.
        kernel_spec = KernelSpec(**get_kernel_dict())

        def __init__(self, **settings) -> None:
            super().__init__(**settings)
            position.kernel = self

    return WatchedKernel


def peak_memory(process: int | str = "self") -> int | None:
    """The most bytes of memory that a process has held so far; None where there is no /proc."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    return 1024 * int(found[1]) if found else None


@dataclass
class Position:
    """How far a run has come, for whoever watches it and for the report when it fails."""

    on_progress: Callable[[int, int], None]
    notebook: Node | None = None  # as far as it was executed
    index: int = 0
    cells_started: int = 0
    cells: int = 0
    kernel: AsyncKernelManager | None = None
    peak_bytes: int | None = None
    interrupted: bool = False

    def start(self, notebook: Node) -> None:
        self.notebook = notebook
        self.cells = sum(is_executed(cell) for cell in notebook.cells)

    def enter(self, cell: Node, cell_index: int) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.on_progress(self.cells_started, self.cells)
        self.index = cell_index
        self.cells_started += 1

    def leave(self, cell: Node, cell_index: int, execute_reply: dict) -> None:
        self.peak_bytes = (self.process and peak_memory(self.process)) or self.peak_bytes

    @property
    def process(self) -> int | None:
        """The kernel's process, while there is one."""
        kernel = self.kernel and self.kernel.provisioner
        return kernel.pid if kernel and kernel.has_process else None

    def interrupt(self) -> None:
        """End the kernel of a run in another thread, as Ctrl-C does in the main thread."""
        self.interrupted = True
        with suppress(ProcessLookupError):
            if self.process:
                os.kill(self.process, signal.SIGKILL)


def is_executed(cell: Node) -> bool:
    skipped = "skip-execution" in cell.metadata.get("tags", [])
    return cell.cell_type == "code" and bool(cell.source.strip()) and not skipped
