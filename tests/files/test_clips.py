import struct
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from places import DATA

from rolloutlib.files.clips import frame_rate, read_clip, read_frames, write_clip
from rolloutlib.files.pictures import SIDE

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


CORNERS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


def corners(height=48, width=64):
    """Red, green / blue, grey."""
    red, green, blue, grey = CORNERS.values()
    small = np.array([[red, green], [blue, grey]], np.uint8)
    return small.repeat(height // 2, 0).repeat(width // 2, 1)


def corner_names(frame):
    """The colours of a frame's corners, row by row."""
    names = list(CORNERS)
    far = [
        [np.abs(frame[y, x].astype(int) - colour).sum() for colour in CORNERS.values()]
        for y in (5, -5)
        for x in (5, -5)
    ]
    return [names[int(np.argmin(one))] for one in far]


def patched(path, name, changes):
    """A copy of a file with other bytes: {where: bytes}, where counts from a four-letter name."""
    content = bytearray(path.read_bytes())
    for (box, after), new in changes.items():
        at = content.find(box) + after
        content[at : at + len(new)] = new
    copy = path.with_name(name)
    copy.write_bytes(content)
    return copy


# The matrix (a, b, c, d) of an MP4: x' = a x + c y, y' = b x + d y, with y downward.
DISPLAYED = {
    "as stored": ((1, 0, 0, 1), "red green blue grey"),
    "clockwise": ((0, 1, -1, 0), "blue red grey green"),
    "upside down": ((-1, 0, 0, -1), "grey blue green red"),
    "anticlockwise": ((0, -1, 1, 0), "green grey red blue"),
    "mirrored": ((-1, 0, 0, 1), "green red grey blue"),
    "mirrored upside down": ((1, 0, 0, -1), "blue grey red green"),
    "transposed": ((0, 1, 1, 0), "red blue green grey"),
    "transversed": ((0, -1, -1, 0), "grey green blue red"),
}


@pytest.mark.parametrize("name", DISPLAYED)
def test_a_video_is_turned_and_mirrored_as_its_matrix_says(tmp_path, name):
    (a, b, c, d), expected = DISPLAYED[name]
    one = 65536
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path = write_clip(tmp_path / "plain.mp4", [corners()] * 3, rate=10)
    [frame, *_] = read_clip(patched(path, "shown.mp4", {(b"tkhd", 44): matrix})).frames
    assert corner_names(frame) == expected.split()
    assert frame.shape == ((64, 48, 3) if a == 0 else (48, 64, 3))


def yuv_video(path, size, levels, pixels="yuv420p", codec="libx264", **about):
    """A video of one colour, given by its own levels.  about: what its header says."""
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for name, value in about.items():
            setattr(stream.codec_context, name, value)
        for number in range(3):
            frame = av.VideoFrame(width, height, pixels)
            for plane, level in zip(frame.planes, levels, strict=True):
                wide = np.uint16 if "10" in pixels else np.uint8
                room = plane.buffer_size // np.dtype(wide).itemsize
                plane.update(np.full(room, level, wide).tobytes())
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# What BT.601 and BT.709 say of luma 81 and chroma 90, 240 (video range), and full-range grey.
AS_601, AS_709 = (254, 0, 0), (255, 24, 0)


@pytest.mark.parametrize(
    ("size", "about", "expected"),
    [
        ((480, 640), {}, AS_601),
        ((720, 1280), {}, AS_709),
        ((1280, 720), {}, AS_709),
        ((536, 1280), {}, AS_709),
        ((720, 1280), {"colorspace": 5}, AS_601),
        ((480, 640), {"colorspace": 1}, AS_709),
    ],
)
def test_colours_are_read_by_their_tags_or_by_the_size(tmp_path, size, about, expected):
    path = yuv_video(tmp_path / "colour.mp4", size, (81, 90, 240), **about)
    frame = read_clip(path).frames[0]
    np.testing.assert_allclose(frame[5, 5], expected, atol=3)


@pytest.mark.parametrize(
    ("pixels", "levels", "about", "expected"),
    [
        ("yuv420p", (235, 128, 128), {}, 255),
        ("yuv420p", (235, 128, 128), {"color_range": 2}, 235),
        ("yuv420p10", (502, 512, 512), {}, 128),
        ("yuv444p", (16, 128, 128), {}, 0),
    ],
)
def test_depth_and_range_are_those_of_the_header(tmp_path, pixels, levels, about, expected):
    path = yuv_video(tmp_path / "grey.mp4", (48, 64), levels, pixels, **about)
    np.testing.assert_allclose(read_clip(path).frames[0], expected, atol=2)


def test_what_is_written_has_the_colours_that_are_read(tmp_path):
    for size in [(48, 64), (720, 1280)]:
        path = write_clip(tmp_path / "corners.mp4", [corners(*size)] * 2, rate=10)
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).colorspace == 1
        frame = read_clip(path).frames[0].astype(int)
        for y, x in [(5, 5), (5, -5), (-5, 5), (-5, -5)]:
            np.testing.assert_allclose(frame[y, x], corners(*size)[y, x], atol=6)


@pytest.mark.parametrize(("aspect", "width"), [("2:1", 128), ("8:9", 57), ("1:1", 64)])
def test_pixels_that_are_not_square_are_shown_square(tmp_path, aspect, width):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect.replace(":", "/"))
        for frame in [corners()] * 2:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    [frame, *_] = read_clip(path).frames
    assert frame.shape == (48, width, 3) and corner_names(frame) == list(CORNERS)


def video_at(path, moments, codec="mpeg4"):
    """Frames at these moments, counted in tenths of a second, each brighter than the last."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for moment, pixels in zip(moments, grey_frames(len(moments)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = moment
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def brightness(clip):
    return [round(frame.mean() / 20) for frame in clip.frames]


@pytest.mark.parametrize("name", ["jumps.avi", "jumps.mp4", "jumps.mkv", "jumps.ts"])
def test_frames_at_uneven_times_are_all_read(tmp_path, name):
    path = video_at(tmp_path / name, [0, 1, 2, 3, 14, 15, 26, 27])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert brightness(read_clip(path)) == list(range(8))
    counts_empty_frames = name.endswith("avi")
    assert ["has 8 frames, its header" in str(one.message) for one in told] == (
        [True] if counts_empty_frames else []
    )


def test_a_header_that_counts_too_many_frames_is_told(tmp_path):
    path = video_at(tmp_path / "plain.avi", range(8))
    many = struct.pack("<I", 60)
    more = patched(path, "more.avi", {(b"avih", 24): many, (b"strh", 40): many})
    with pytest.warns(UserWarning, match=r"more\.avi: has 8 frames, its header counts 60"):
        assert brightness(read_clip(more)) == list(range(8))
    assert brightness(read_clip(more, 2, 8, 3)) == [2, 5]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_sample_without_bytes_is_no_frame(tmp_path, codec):
    path = video_at(tmp_path / "plain.mp4", range(8), codec)
    at = 16 + 4 * 7  # the size of the last of eight samples
    empty = patched(path, "empty.mp4", {(b"stsz", at): bytes(4)})
    with pytest.warns(UserWarning, match=r"has 7 frames, its header counts 8"):
        assert len(read_clip(empty).frames) == 7


@pytest.mark.parametrize("share", [0.5, 0.75])
@pytest.mark.parametrize("name", ["cut.avi", "cut.mkv", "cut.mp4"])
def test_a_file_cut_off_is_named(tmp_path, name, share):
    path = video_at(tmp_path / name, range(0, 120, 10))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=name):
        read_clip(path)


@pytest.mark.parametrize("count", [1, 2])
def test_a_video_of_few_frames_is_read(tmp_path, count):
    path = write_clip(tmp_path / "short.mp4", grey_frames(count), rate=10)
    assert brightness(read_clip(path)) == list(range(count))


def test_a_video_without_frames_is_named(tmp_path):
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(ValueError, match=r"none\.mkv"):
        read_clip(path)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_is_above_zero(tmp_path, rate):
    with pytest.raises(ValueError, match=f"rate must be above 0 frames per second, got {rate}"):
        write_clip(tmp_path / "clip.mp4", grey_frames(2), rate)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\ngrey.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile grey.mp4\n",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_names_other_files_is_not_opened(video, name):
    video_at(video.with_name("grey.ts"), range(5))
    video.with_name(name).write_text(PLAYLISTS[name])
    with pytest.raises(ValueError, match=r"expected a video \(MP4, MOV, Matroska, WebM, AVI"):
        read_clip(video.with_name(name))


@pytest.mark.parametrize("name", ["picture.png", "sound.wav", "frames.y4m", "old.flv"])
def test_other_containers_are_not_opened(tmp_path, name):
    path = tmp_path / name
    if name.endswith("png"):
        Image.new("RGB", (64, 48)).save(path)
    elif name.endswith("wav"):
        path.write_bytes(b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + bytes(24))
    else:
        video_at(path, range(3), "rawvideo" if name.endswith("y4m") else "flv1")
    with pytest.raises(ValueError, match=name):
        read_clip(path)


def test_a_name_that_looks_like_a_protocol_is_a_file(video, monkeypatch):
    monkeypatch.chdir(video.parent)
    video.rename(video.with_name("subfile:grey.mp4"))
    assert len(read_clip("subfile:grey.mp4").frames) == 10


@pytest.mark.parametrize("stride", [1, 2])
def test_frames_that_would_fill_the_memory_are_refused(video, monkeypatch, stride):
    monkeypatch.setattr("rolloutlib.files.clips.TOGETHER", 5 * 48 * 64 * 3)
    assert len(read_clip(video, 0, 5 * stride, stride).frames) == 5
    if stride == 1:
        with pytest.raises(ValueError, match=r"grey\.mp4: expected frames of at most"):
            read_clip(video)
    assert len(list(read_frames(video))) == 10


@pytest.mark.parametrize("codec", [b"ZZZZ", b"\0\1\2\3", b"wmv9"])
def test_a_codec_that_is_not_known_is_named(tmp_path, codec):
    path = video_at(tmp_path / "plain.avi", range(3))
    strange = patched(path, "strange.avi", {(b"strh", 12): codec, (b"strf", 24): codec})
    with pytest.raises(ValueError, match=r"strange\.avi"):
        read_clip(strange)


def test_a_video_larger_than_a_picture_may_be_is_refused(tmp_path):
    path = video_at(tmp_path / "plain.avi", range(3), "rawvideo")
    wide = struct.pack("<I", SIDE + 1)
    large = patched(path, "large.avi", {(b"strf", 12): wide})
    with pytest.raises(ValueError, match=f"got {SIDE + 1:,}x48"):
        read_clip(large)
