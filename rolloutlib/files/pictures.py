"""Pictures as a model should see them: upright, RGB, complete and of bounded size."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # the only ones that are opened
PIXELS, SIDE = 50_000_000, 65_536  # of a picture, at most
WHITES = (1, *(2**bits - 1 for bits in (8, 10, 12, 14, 16)))  # what white can be in wide numbers
DARKEST = 64  # a brightest level above 1 and below this fits none of them

# What a note of EXIF says, and what undoes it.
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def load_picture(path: str | Path) -> Image.Image:
    """Read a picture (PNG, JPEG, WebP, GIF, BMP, TIFF or PPM) as `upright_rgb` gives it.

    Raises FileNotFoundError for a missing file, ValueError for one that is not such a picture, is
    empty, is cut short or is too large.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a picture at {path}, got no such file")
    with path.open("rb") as file:
        return _read(file, str(path))


def read_picture(content: bytes, name: str) -> Image.Image:
    """Read a picture from a file's content, as `load_picture` does.  name: for error messages."""
    return _read(io.BytesIO(content), name)


def _read(file: io.BufferedIOBase, name: str) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as picture:
            return upright_rgb(picture)
    except Exception as error:  # decoders raise nearly anything when bytes are wrong
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"not {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
        size = file.seek(0, io.SEEK_END)
        raise ValueError(f"expected a picture, got {name} ({size} bytes): {why}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Rotate a picture by its EXIF orientation and convert it to RGB, transparency as white.

    Every picture that is given to this package goes through here, so that what is drawn on is what
    the model saw. One that was given by this function is given back as it is.

    Levels of grey in more than 8 bits, or as fractions, are scaled: white is the smallest of 1 and
    the largest numbers of 8, 10, 12, 14 and 16 bits that is not below the brightest level.

    Raises ValueError for other levels, for a format that `load_picture` does not read, and for more
    than `PIXELS` pixels or `SIDE` pixels along one side, before anything is decoded.
    """
    _require_bounded(picture)
    if type(picture) is Image.Image and picture.mode == "RGB" and not picture.info:
        return picture
    picture.load()
    turn, wide = _turn(picture), picture.mode[0] in "IF"
    rgb = (_eight_bits(picture) if wide else _on_white(picture)).convert("RGB")
    rgb.info.clear()
    # Of 16 bits per colour Pillow keeps the upper 8, and of 12 bits in 16 so the upper 4.
    brightest = max(high for _, high in rgb.getextrema())
    if 0 < brightest < 16 and not wide and np.max(_tiff_tag(picture, 258, 8)) > 8:
        raise ValueError(f"expected 16 bits per colour, got levels of at most {brightest * 256}")
    return rgb if turn is None else rgb.transpose(turn)


def _require_bounded(picture: Image.Image) -> None:
    if not isinstance(picture, Image.Image):
        raise ValueError(f"expected a picture of Pillow, got {type(picture).__name__}")
    if picture.format not in (None, "MPO", *FORMATS):  # MPO: several JPEGs in one file
        raise ValueError(f"expected {', '.join(FORMATS)}, got {picture.format}")
    require_size(*picture.size)
    require_size(*(_tiff_tag(picture, tag, 1) for tag in (322, 323)))  # of a tile


def require_size(width: int, height: int) -> None:
    """Raise a ValueError unless a picture of this size fits `PIXELS` and `SIDE`."""
    if not (0 < width <= SIDE and 0 < height <= SIDE and width * height <= PIXELS):
        raise ValueError(
            f"expected a picture of 1 to {PIXELS:,} pixels, at most {SIDE:,} along a side, "
            f"got {width:,}x{height:,}"
        )


def _tiff_tag(picture: Image.Image, tag: int, default: object) -> object:
    return getattr(picture, "tag_v2", {}).get(tag, default)


def _turn(picture: Image.Image) -> Transpose | None:
    """How to turn a picture upright; None if it is, or if its EXIF cannot be read."""
    try:
        return TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # EXIF comes from cameras and editors of every kind
        return None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Levels of grey in 16 or 32 bits, scaled to 8."""
    levels = np.asarray(picture)
    low, high = levels.min(), levels.max()
    if not (low >= 0 and (high <= 1 or DARKEST <= high <= WHITES[-1])):
        raise ValueError(
            f"expected levels of grey in [0, 1], or of 8 to 16 bits with the brightest at "
            f"{DARKEST} or more, got {low:g} to {high:g}"
        )
    white = next(white for white in WHITES if high <= white)
    grey = np.rint(np.multiply(levels, 255 / white, dtype=np.float32)).astype(np.uint8)
    if _tiff_tag(picture, 262, 1) == 0:  # white is 0; Pillow inverts this in 8 bits only
        grey = 255 - grey
    if "transparency" in picture.info:
        grey[levels == picture.info["transparency"]] = 255
    return Image.fromarray(grey)


def _on_white(picture: Image.Image) -> Image.Image:
    """Eight bits per colour, on white where the picture is transparent."""
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size, "white")
        picture.paste(rgba, mask=rgba.getchannel("A"))
    return picture
