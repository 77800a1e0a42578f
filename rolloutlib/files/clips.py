"""Read frames from a video file and write frames to one, with PyAV."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import inf
from pathlib import Path
from warnings import warn

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rolloutlib.extras import needs
from rolloutlib.files.complete import complete_file
from rolloutlib.files.pictures import require_size

with needs("video"):
    import av

Frame = UInt8[np.ndarray, "height width 3"]

# The only containers that are opened; what they name outside the file is not followed.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts"
READ = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
TOGETHER = 4e9  # bytes of the frames that are kept in memory
HD = 720, 1280  # height and width from which colours without tags are those of BT.709
UNTAGGED, BT709 = 2, 1  # as FFmpeg numbers them


@dataclass(frozen=True)
class Clip:
    """Some frames of a video. numbers: which ones, from 0. rate: the video's frames per second."""

    frames: list[Frame]
    numbers: range
    rate: Fraction


def read_clip(path: str | Path, start: int = 0, stop: int | None = None, stride: int = 1) -> Clip:
    """Read every `stride`-th frame of a video from `start` up to but excluding `stop` (or its end).

    The video is MP4, MOV, Matroska, WebM, AVI, GIF or MPEG-TS. Frames are upright RGB with square
    pixels at the video's own height, as players show them. HD without colour tags is read as
    BT.709. Warns of a header that counts more frames than there are.

    Raises FileNotFoundError for a missing file, ValueError for one that is not such a video, is
    empty, is cut short, is too large for a picture, or ends before `stop`, for frames of more than
    4 GB together, and for a range without frames.
    """
    frames, size = [], 0
    for frame in read_frames(path, start, stop, stride):
        frames.append(frame)
        size += frame.nbytes
        if size > TOGETHER:
            raise ValueError(
                f"{path}: expected frames of at most {TOGETHER / 1e9:g} GB together, got more from "
                f"{start} on; take fewer, or one at a time with read_frames"
            )
    return Clip(frames, range(start, start + stride * len(frames), stride), frame_rate(path))


def frame_rate(path: str | Path) -> Fraction:
    """Frames per second, on average. Raises as `read_clip` does."""
    with _opened(path) as container:
        return container.streams.video[0].average_rate or Fraction(25)


def read_frames(
    path: str | Path, start: int = 0, stop: int | None = None, stride: int = 1
) -> Iterator[Frame]:
    """The frames of `read_clip` one at a time, for videos that do not fit into memory."""
    if start < 0 or stride < 1 or (stop is not None and stop <= start):
        raise ValueError(
            "expected start of 0 or more, stop above start and stride of 1 or more, "
            f"got {start}, {stop}, {stride}"
        )
    number, hidden, end = -1, 0, 0.0
    with _opened(path) as container:
        stream = container.streams.video[0]
        whole = _claimed_size(path, stream) <= container.size
        try:
            for packet in container.demux(stream):
                hidden += packet.is_discard
                if packet.dts is not None and not packet.size:
                    continue  # stands for the frame before it
                for frame in packet.decode():
                    number += 1
                    end = float(((frame.pts or 0) + (frame.duration or 0)) * stream.time_base)
                    if number == stop:
                        return
                    if number >= start and (number - start) % stride == 0:
                        yield _upright_rgb(frame, stream.sample_aspect_ratio)
        except av.FFmpegError as error:
            raise ValueError(f"{path}: is damaged after frame {number}: {error}") from error
        # A file that was trimmed without re-encoding keeps frames that no player shows.
        counted = stream.frames - hidden
        seconds = _tagged_seconds(stream)
    least = start + 1 if stop is None else stop
    if number + 1 < least:
        raise ValueError(f"{path}: expected {least} frames, got {number + 1}")
    if seconds > end + 1 or (number + 1 < counted and not whole):
        raise ValueError(f"{path}: is cut off after frame {number}")
    if number + 1 < counted:
        warn(f"{path}: has {number + 1} frames, its header counts {counted}", stacklevel=2)


def _claimed_size(path: str | Path, stream: av.VideoStream) -> int:
    """How many bytes a file has by its index, and by its header if it is an AVI."""
    with Path(path).open("rb") as file:
        kind, size = file.read(4), int.from_bytes(file.read(4), "little")
    ends = [entry.pos + entry.size for entry in stream.index_entries]
    return max([*ends, 8 + size if kind == b"RIFF" else 0])


def _tagged_seconds(stream: av.VideoStream) -> float:
    """How long a stream of Matroska, which does not count frames, says that it is; else 0."""
    parts = re.findall(r"\d+(?:\.\d+)?", stream.metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))


def _upright_rgb(frame: av.VideoFrame, aspect: Fraction | None) -> Frame:
    """A frame as players show it.  aspect: of its pixels, width to height; None for squares."""
    is_hd = frame.height >= HD[0] or frame.width >= HD[1]
    untagged = frame.colorspace == UNTAGGED
    pixels = frame.reformat(
        width=round(frame.width * (aspect or 1)),
        format="rgb24",
        src_colorspace="ITU709" if is_hd and untagged else None,
    ).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:  # x' = a x + c y and y' = b x + d y, for turns and mirrors
        right, down, _, over, below, *_ = np.frombuffer(matrix, np.int32)
        if abs(down) > abs(right):
            pixels, right, below = pixels.swapaxes(0, 1), over, down
        pixels = pixels[:: -1 if below < 0 else 1, :: -1 if right < 0 else 1]
    return np.ascontiguousarray(pixels)


def _opened(path: str | Path) -> av.container.InputContainer:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a video at {path}, got no such file")
    try:
        container = av.open(f"file:{path}", options=READ)
    except (av.FFmpegError, ValueError) as error:
        size = Path(path).stat().st_size
        raise ValueError(
            "expected a video (MP4, MOV, Matroska, WebM, AVI, GIF or MPEG-TS), "
            f"got {path} ({size} bytes): {error}"
        ) from error
    try:
        video = next(iter(container.streams.video), None)
        if video is None or video.codec_context is None:
            raise ValueError(f"expected a video, got {path} without a stream that can be decoded")
        require_size(round(video.width * (video.sample_aspect_ratio or 1)), video.height)
    except ValueError:
        container.close()
        raise
    return container


def write_clip(path: str | Path, frames: Iterable[Frame], rate: Fraction | float) -> Path:
    """Write frames as a video (H.264 in `.mp4`) or, for short loops, as `.gif`.

    The file appears only when it is complete; after an error, an older file is still there.
    rate: frames per second. Odd heights and widths are kept.

    Raises ValueError for no frames, for frames of different sizes, for a rate that is not above 0,
    and for other file types.
    """
    path = Path(path)
    write = {".mp4": _write_mp4, ".gif": _write_gif}.get(path.suffix)
    if write is None:
        raise ValueError(f"expected a name that ends in .mp4 or .gif, got {path}")
    if not 0 < rate < inf:
        raise ValueError(f"rate must be above 0 frames per second, got {rate}")
    with complete_file(path) as part:
        write(part, _of_one_size(frames), Fraction(rate).limit_denominator(1001))
    return path


def _of_one_size(frames: Iterable[Frame]) -> Iterator[Frame]:
    shape = None
    for frame in frames:
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"expected frames of shape {shape}, got {frame.shape}")
        yield frame
    if shape is None:
        raise ValueError("expected at least one frame, got none")


def _write_mp4(path: Path, frames: Iterator[Frame], rate: Fraction) -> None:
    first = next(frames)
    height, width = first.shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"crf": "23", "preset": "veryfast"}
        )
        stream.width, stream.height = width, height
        stream.codec_context.colorspace = BT709
        # Every player shows colour at half resolution, but that needs even sizes.
        stream.pix_fmt = pix = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        for frame in chain([first], frames):
            rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(rgb.reformat(format=pix, dst_colorspace="ITU709")))
        container.mux(stream.encode(None))


def _write_gif(path: Path, frames: Iterator[Frame], rate: Fraction) -> None:
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=float(1000 / rate), loop=0)
