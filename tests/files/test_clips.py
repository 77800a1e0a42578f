import av
import numpy as np
import pytest
from PIL import Image
from places import DATA

from rolloutlib.files.clips import frame_rate, read_clip, read_frames, write_clip

RABBIT = DATA / "video/bigbuckbunny.mp4"


def grey_frames(count=10, height=48, width=64):
    """Each frame brighter than the one before."""
    return [np.full((height, width, 3), 20 * number, np.uint8) for number in range(count)]


@pytest.fixture
def video(tmp_path):
    return write_clip(tmp_path / "grey.mp4", grey_frames(), rate=12.5)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63)])
def test_frames_come_back_in_size_rate_and_order(tmp_path, size):
    path = write_clip(tmp_path / "clip.mp4", grey_frames(10, *size), rate=12.5)
    clip = read_clip(path)
    assert clip.rate == 12.5 and clip.numbers == range(10)
    for read, written in zip(clip.frames, grey_frames(10, *size), strict=True):
        assert read.shape == (*size, 3)
        assert np.abs(read.astype(int) - written).mean() < 3


def test_a_range_of_frames(video):
    clip = read_clip(video, 2, 9, 3)
    assert list(clip.numbers) == [2, 5, 8]
    assert [round(frame.mean() / 20) for frame in clip.frames] == [2, 5, 8]


def test_the_rabbit_is_whole():
    assert frame_rate(RABBIT) == 25
    clip = read_clip(RABBIT, 0, 132, 60)
    assert [frame.shape for frame in clip.frames] == [(720, 1280, 3)] * 3


@pytest.mark.parametrize(("start", "stop", "stride"), [(-1, 3, 1), (3, 3, 1), (0, 3, 0)])
def test_ranges_without_frames_are_named(video, start, stop, stride):
    with pytest.raises(ValueError, match=f"got {start}, {stop}, {stride}"):
        read_clip(video, start, stop, stride)


def test_a_video_that_ends_early_is_named(video):
    with pytest.raises(ValueError, match=r"grey\.mp4: expected 11 frames, got 10"):
        read_clip(video, 0, 11)
    with pytest.raises(ValueError, match=r"expected 31 frames, got 10"):
        read_clip(video, 30)


@pytest.mark.parametrize(
    "content", [b"", b"not a video at all", None], ids=["empty", "text", "half"]
)
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(RABBIT.read_bytes()[:500_000] if content is None else content)
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        read_clip(path)


def test_a_video_with_a_damaged_middle_is_named(tmp_path):
    whole = bytearray(RABBIT.read_bytes())
    whole[200_000:400_000] = bytes(200_000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"damaged\.mp4"):
        read_clip(path, 0, 120, 40)


def test_a_video_trimmed_without_encoding_is_whole(video, tmp_path):
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(video)) as whole, av.open(str(trimmed), "w") as part:
        stream = whole.streams.video[0]
        out = part.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                early = int(4 / stream.average_rate / stream.time_base)  # before the start
                packet.pts, packet.dts = packet.pts - early, packet.dts - early
                packet.stream = out
                part.mux(packet)
    shown = [round(frame.mean() / 20) for frame in read_clip(trimmed).frames]
    assert shown == [4, 5, 6, 7, 8, 9]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_clip(tmp_path / "none.mp4")


def test_a_gif_loops_at_its_rate(tmp_path):
    path = write_clip(tmp_path / "clip.gif", grey_frames(4), rate=10)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (4, (64, 48), 100)


def broken_frames():
    yield from grey_frames(5)
    raise ZeroDivisionError


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (broken_frames, ZeroDivisionError),
        (lambda: iter(()), ValueError),
        (lambda: grey_frames(2) + grey_frames(1, 24, 24), ValueError),
    ],
    ids=["exception", "none", "sizes"],
)
@pytest.mark.usefixtures("without_type_checks")
def test_a_failed_write_leaves_what_was_there(tmp_path, name, frames, error):
    path = tmp_path / name
    path.write_bytes(b"before")
    with pytest.raises(error):
        write_clip(path, frames(), rate=25)
    assert [found.name for found in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"before"


def test_other_endings_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif, got .*clip\.avi"):
        write_clip(tmp_path / "clip.avi", grey_frames(), rate=25)


def test_frames_are_read_one_after_another(video):
    frames = read_frames(video)
    assert next(frames).mean() < next(frames).mean()
