"""Figures of a page: as sharp as they are, in as few bytes as WebP allows."""

import base64
import functools
import io

from rolloutlib.files.pictures import read_picture

QUALITY = 88  # of what is smaller as WebP with losses, such as photographs


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
        for how in ({"lossless": True}, {"quality": QUALITY}):
            file = io.BytesIO()
            picture.save(file, "webp", method=3, **how)
            found = base64.b64encode(file.getvalue()).decode()
            kinds["webp"] = min(kinds.get("webp", found), found, key=len)
    except ValueError:  # a picture of any origin
        pass
    kind = min(kinds, key=lambda name: len(kinds[name]))
    return f"{kind};base64,{kinds[kind]}"
