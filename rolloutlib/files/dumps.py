"""Attention of a refiner on disk, one compressed NumPy file per layer, as DVIS's scripts write.

    video_{id}_frames{a}-{b}_refiner_temporal_layer_{i}_attn.npz       key: attention_weights
    video_{id}_frames{a}-{b}_refiner_temporal_layer_{i}_attn.meta.json

Nothing is ever unpickled: a file from somebody else can hold only numbers, never code.
"""

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rolloutlib.algorithm.arrays import Array, as_numpy
from rolloutlib.files.complete import complete_file

KEY, META = "attention_weights", ".meta.json"
VIDEO = r"\w[\w .@=+-]{0,99}"  # an id is part of a file's name, and no path
MOST, MOST_META = 2**30, 2**20  # bytes of one array, and of its further information
NAME = re.compile(
    rf"video_(?P<video>{VIDEO})_frames(?P<first>\d+)-(?P<last>\d+)"
    r"_refiner_temporal_layer_(?P<layer>\d+)_attn\.npz"
)


@dataclass(frozen=True)
class Dump:
    """The temporal attention of one stretch of a video, first layer first."""

    video: str
    frames: tuple[int, int]  # first and last, as in the file names
    layers: list[np.ndarray]
    meta: dict = field(default_factory=dict)  # that of the first layer


def dump_path(folder: str | Path, video: str, frames: Sequence[int], layer: int) -> Path:
    """The file of a layer's attention.

    >>> dump_path("dumps", "7", (0, 30), 2).name
    'video_7_frames0-30_refiner_temporal_layer_2_attn.npz'

    Raises ValueError for an id that is not made of letters, digits, blanks and ".@=+-".
    """
    first, last = frames
    name = f"video_{video}_frames{first}-{last}_refiner_temporal_layer_{layer}_attn.npz"
    if not NAME.fullmatch(name):
        raise ValueError(f"a video's id and its frames must make a file's name, got {name!r}")
    return Path(folder, name)


def write_dump(
    folder: str | Path,
    layers: Sequence[Array],
    *,
    video: str,
    frames: Sequence[int],
    meta: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write the attention of a refiner's layers, first layer first; returns the paths.

    Older files of the same frames are replaced once all layers are written.

    meta: further information to store as JSON; the shape is added.

    Raises ValueError for no layers, and for an id as `dump_path` does.
    """
    if not layers:
        raise ValueError("expected at least one layer, got none")
    paths = [dump_path(folder, video, frames, number) for number in range(len(layers))]
    with ExitStack() as files:  # all or none: layers of two runs do not make one rollout
        for number, (path, layer) in enumerate(zip(paths, layers, strict=True)):
            array = as_numpy(layer)
            file = files.enter_context(files.enter_context(complete_file(path)).open("wb"))
            np.savez_compressed(file, **{KEY: array})
            about = {"video_id": video, "layer": number, "shape": list(array.shape), **(meta or {})}
            part = files.enter_context(complete_file(path.with_suffix(META)))
            part.write_text(json.dumps(about, indent=2) + "\n")
    there = _layers_found(Path(folder), video)[tuple(frames)]
    for number in there.keys() - set(range(len(layers))):
        there[number].unlink()
        there[number].with_suffix(META).unlink(missing_ok=True)
    return paths


def read_dump(folder: str | Path, video: str, frames: Sequence[int] | None = None) -> Dump:
    """Read the attention of every layer of a video.

    frames: first and last, needed if the folder has several stretches of the video.

    Raises FileNotFoundError if there is no dump of the video; ValueError, which names the file,
    if one is empty, broken, pickled or without the key, if layers are missing, and if their
    numbers of frames differ.
    """
    found = _layers_found(Path(folder), video)
    stretch = _one_stretch(found, frames, f"video {video} in {folder}")
    numbered = found[stretch]
    if sorted(numbered) != list(range(len(numbered))):
        wanted = f"layers 0 to {max(numbered)} of video {video} in {folder}"
        raise ValueError(f"expected {wanted}, got only {sorted(numbered)}")
    paths = [numbered[number] for number in range(len(numbered))]
    layers = [read_array(path, KEY) for path in paths]
    shape = layers[0].shape
    for path, layer in zip(paths, layers, strict=True):
        if layer.shape != shape:
            raise ValueError(f"{path}: expected shape {shape} as in layer 0, got {layer.shape}")
    return Dump(video, stretch, layers, _read_meta(paths[0].with_suffix(META)))


def _layers_found(folder: Path, video: str) -> dict[tuple[int, int], dict[int, Path]]:
    """The files of a video: by their first and last frame, then by layer."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        name = NAME.fullmatch(path.name)
        if name and name["video"] == video:
            stretch = int(name["first"]), int(name["last"])
            found.setdefault(stretch, {})[int(name["layer"])] = path
    if not found:
        raise FileNotFoundError(f"{folder}: expected video_{video}_frames….npz, got no such file")
    return found


def _one_stretch(found: Mapping, frames: Sequence[int] | None, what: str) -> tuple[int, int]:
    if frames is None and len(found) == 1:
        return next(iter(found))
    if frames is not None and tuple(frames) in found:
        return tuple(frames)
    listed = ", ".join(f"{first}-{last}" for first, last in found)
    raise ValueError(f"expected frames to be one of {listed} for {what}, got {frames}")


def _read_meta(path: Path) -> dict:
    if not path.exists():
        return {}
    size = path.stat().st_size
    try:
        if size > MOST_META:
            raise ValueError(f"the most is {MOST_META}")
        meta = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {size} bytes: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: expected names and values, got a {type(meta).__name__}")
    return meta


def read_array(path: str | Path, key: str) -> np.ndarray:
    """Read one array of numbers from an `.npz` file.

    Raises ValueError, which names the file, if it is empty, cut short, altered or pickled, has no
    such key, or holds anything but floats, finite and 0 or more, of 1 GiB at most. Kind and size
    are read from the array's header before its numbers.
    """
    path = Path(path)
    try:
        _require_moderate(path, key)
        with np.load(path, allow_pickle=False) as file:
            names, array = file.files, file[key] if key in file.files else None
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever the broken content runs into
        got = f"{path.stat().st_size} bytes"
        raise ValueError(f"{path}: expected arrays of numbers, got {got}: {error}") from error
    if array is None:
        raise ValueError(f"{path}: expected the key {key!r}, got {', '.join(names) or 'none'}")
    if array.dtype.kind != "f" or array.size == 0 or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(
            f"{path}: expected floats, finite and 0 or more, got {array.dtype} of shape "
            f"{array.shape}, or numbers outside that range"
        )
    return array


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of an `.npz` file, as `write_arrays` writes them, by name.

    Raises ValueError as `read_array` does, and for a file that is not an archive.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist()]
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: expected an .npz file of arrays, got another: {error}"
        ) from error
    return {name: read_array(path, name) for name in names}


def _require_moderate(path: Path, key: str) -> None:
    """Raise a ValueError if the header of an array promises too much."""
    with zipfile.ZipFile(path) as file:
        member = f"{key}.npy"
        if member not in file.namelist():
            return
        with file.open(member) as start:
            version = np.lib.format.read_magic(start)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, dtype = read(start)
    size = math.prod(shape) * dtype.itemsize
    if size > MOST:
        raise ValueError(f"{dtype} of shape {shape} takes {size} bytes, the most is {MOST}")


def write_arrays(path: str | Path, **arrays: np.ndarray) -> Path:
    """Write arrays to a compressed `.npz` file, which appears only when it is complete."""
    path = Path(path)
    with complete_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path
