"""Pictures as a model should see them: upright, RGB and complete."""

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


def load_picture(path: str | Path) -> Image.Image:
    """Read a picture of any format, upright and in RGB: see `upright_rgb`.

    Raises FileNotFoundError for a missing file, ValueError for one that is not a picture, is empty
    or is cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a picture at {path}, got no such file")
    return read_picture(path.read_bytes(), str(path))


def read_picture(content: bytes, name: str) -> Image.Image:
    """Read a picture from a file's content, as `load_picture` does.  name: for error messages."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return upright_rgb(picture)
    except (OSError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        why = "not in a format that Pillow reads" if unknown else error
        raise ValueError(f"expected a picture, got {name} ({len(content)} bytes): {why}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Rotate a picture by its EXIF orientation and convert it to RGB, transparency as white.

    A picture that was given by this function is given back as it is.
    """
    if type(picture) is Image.Image and picture.mode == "RGB" and not picture.info:
        return picture
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip instead of scale
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    picture = picture.convert("RGB")
    picture.info.clear()
    return picture
