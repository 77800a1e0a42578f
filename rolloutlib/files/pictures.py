"""Pictures as a model is to see them: upright, RGB, whole."""

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


def load_picture(path: str | Path) -> Image.Image:
    """Read a picture of any kind as `upright_rgb` gives it.

    Raises FileNotFoundError for a missing file, ValueError for one that is no picture, is empty
    or breaks off.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a picture at {path}, got no such file")
    return read_picture(path.read_bytes(), str(path))


def read_picture(content: bytes, name: str) -> Image.Image:
    """Read what a file holds as `load_picture` reads the file.  name: what an error calls it."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return upright_rgb(picture)
    except (OSError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        why = "of no kind that Pillow reads" if unknown else error
        raise ValueError(f"expected a picture, got {name} ({len(content)} bytes): {why}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF note says and convert it to RGB, what is transparent to white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip and not scale
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")
