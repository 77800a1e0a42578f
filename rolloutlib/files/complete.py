"""Files that appear only when they are complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PART = ".part"  # what a process that was killed leaves behind ends in this


@contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """A temporary file of the same name, moved to `path` when the block ends without an error.

    It lies in a folder of its own beside `path`. The folder's name is random, and only the user can
    open it, so nobody else's file or link can be in its place. After an error it is removed, and an
    older file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.stem[:40]}.", suffix=PART, dir=path.parent) as folder:
        part = Path(folder, path.name)
        yield part
        os.replace(part, path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one step, so that an interrupt leaves no half of it."""
    with complete_file(path) as part:
        part.write_text(text, encoding="utf-8")
