"""`rollout score` on scenes and screens: the small checkpoints answer, and what is written."""


import pytest
from own_truth import write_scenes
from places import DATA

from rolloutlib import cli
from rolloutlib.runs import worker
from rolloutlib.runs.schedule import Progress

LLAVA = DATA / "checkpoints" / "tiny-llava"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes that were asked about by a command that was interrupted, and then by another."""
    folder = tmp_path_factory.mktemp("own")
    file, out, show = write_scenes(folder), folder / "out", Progress.__str__
    command = ["score", str(LLAVA), str(file), "--out", str(out), "--timeout", "300"]

    def interrupt(progress):
        if progress.done == 2:
            raise KeyboardInterrupt
        return show(progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "__str__", interrupt)
        assert cli.main(command) == 130
    kept = finished(out)
    assert cli.main(command) == 0
    yield folder, kept
    worker._APART.end(wait_seconds=0)


def finished(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("items/*/metrics.json")}


def test_what_was_finished_before_an_interrupt_is_kept(folder):
    folder, kept = folder
    now = finished(folder / "out")
    assert len(kept) == 3 and len(now) == 5  # one of them loaded the model
    assert kept.items() <= now.items()
