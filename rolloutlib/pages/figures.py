"""Figures and sounds of a page: as they are, in as few bytes as WebP and FLAC allow."""

import base64
import functools
import io

from rolloutlib.extras import needs
from rolloutlib.files.pictures import read_picture

WAV = {"audio/wav", "audio/x-wav", "audio/wave"}
QUALITY = 88  # of what is smaller as WebP with losses, such as photographs
LOSSLESS = {"lossless": True, "method": 1, "quality": 50}  # half the time, a hundredth more bytes


def as_webp(png: str) -> str:
    """A PNG as a WebP of the same pixels, both as base64: without losses where that is smaller.

    What is transparent becomes white. A PNG that cannot be read, and one that is smaller than any
    WebP, is returned as it is, under its own type: the result is a `data:` address.
    """
    return f"data:image/{_smallest(png)}"


@functools.lru_cache(512)  # `run-all` writes a page at once, and again with links to all others
def _smallest(png: str) -> str:
    kinds = {"png": png}
    try:
        picture = read_picture(base64.b64decode(png), "a figure")
        for how in (LOSSLESS, {"method": 3, "quality": QUALITY}):
            file = io.BytesIO()
            picture.save(file, "webp", **how)
            found = base64.b64encode(file.getvalue()).decode()
            kinds["webp"] = min(kinds.get("webp", found), found, key=len)
    except ValueError:  # a picture of any origin
        pass
    kind = min(kinds, key=lambda name: len(kinds[name]))
    return f"{kind};base64,{kinds[kind]}"


@functools.lru_cache(32)
def as_flac(address: str) -> str:
    """A WAV as a FLAC of the same samples, both as a `data:` address; FLAC loses nothing.

    What is no WAV of 16 bits is returned as it is; so is everything where soundfile is missing.
    """
    kind, _, content = address.removeprefix("data:").partition(";base64,")
    if kind not in WAV:
        return address
    try:
        with needs("sound"):
            import soundfile
        source, file = io.BytesIO(base64.b64decode(content)), io.BytesIO()
        if soundfile.info(source).subtype != "PCM_16":
            return address
        source.seek(0)
        samples, rate = soundfile.read(source, dtype="int16")
        soundfile.write(file, samples, rate, format="FLAC")
    except (ImportError, ValueError, RuntimeError):  # a sound of any origin
        return address
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"
