"""Read frames from a video file and write frames to one, with PyAV."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rolloutlib.extras import needs
from rolloutlib.files.complete import complete_file

with needs("video"):
    import av

Frame = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Clip:
    """Some frames of a video. numbers: which ones, from 0. rate: the video's frames per second."""

    frames: list[Frame]
    numbers: range
    rate: Fraction


def read_clip(path: str | Path, start: int = 0, stop: int | None = None, stride: int = 1) -> Clip:
    """Read every `stride`-th frame of a video from `start` up to but excluding `stop` (or its end).

    Frames are upright RGB at the video's own size.

    Raises FileNotFoundError for a missing file, ValueError for one that is not a video, is
    empty, is cut short, or ends before `stop`, and for a range without frames.
    """
    frames = list(read_frames(path, start, stop, stride))
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
    number, cut_off = -1, 0
    with _opened(path) as container:
        stream = container.streams.video[0]
        try:
            for packet in container.demux(stream):
                cut_off += packet.is_discard
                for frame in packet.decode():
                    number += 1
                    if number == stop:
                        return
                    if number >= start and (number - start) % stride == 0:
                        pixels = frame.to_ndarray(format="rgb24")
                        yield np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
        except av.FFmpegError as error:
            raise ValueError(f"{path}: is damaged after frame {number}: {error}") from error
        # A file that was trimmed without re-encoding keeps frames that no player shows.
        promised = stream.frames - cut_off if stop is None else stop
    if number + 1 < max(promised, start + 1):
        raise ValueError(f"{path}: expected {max(promised, start + 1)} frames, got {number + 1}")


def _opened(path: str | Path) -> av.container.InputContainer:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a video at {path}, got no such file")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, ValueError) as error:
        size = Path(path).stat().st_size
        raise ValueError(f"expected a video, got {path} ({size} bytes): {error}") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"expected a video, got {path} without a video stream")
    return container


def write_clip(path: str | Path, frames: Iterable[Frame], rate: Fraction | float) -> Path:
    """Write frames as a video (H.264 in `.mp4`) or, for short loops, as `.gif`.

    The file appears only when it is complete; after an error, an older file is still there.
    rate: frames per second. Odd heights and widths are kept.

    Raises ValueError for no frames, for frames of different sizes, and for other file types.
    """
    path = Path(path)
    write = {".mp4": _write_mp4, ".gif": _write_gif}.get(path.suffix)
    if write is None:
        raise ValueError(f"expected a name that ends in .mp4 or .gif, got {path}")
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
        # Every player shows colour at half resolution, but that needs even sizes.
        stream.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        for frame in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _write_gif(path: Path, frames: Iterator[Frame], rate: Fraction) -> None:
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=float(1000 / rate), loop=0)
