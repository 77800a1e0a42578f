"""Pictures of every kind as a model is to see them, and files that hold none."""

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

import rolloutlib
from rolloutlib.files.pictures import FORMATS, PIXELS, load_picture, read_picture, upright_rgb


def noise(height, width):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


# What the numbers of the EXIF note say (6.4.A of the standard): how to turn what is stored.
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def stored(picture, format, **about):
    """The content of a picture's file."""
    file = io.BytesIO()
    picture.save(file, format, **about)
    return file.getvalue()


def noted(note):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    return exif


@pytest.mark.parametrize("note", TURNS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_a_picture_is_turned_as_its_note_says(format, note):
    content = stored(noise(20, 30), format, exif=noted(note), lossless=True)
    expected = TURNS[note](np.asarray(noise(20, 30)))
    np.testing.assert_array_equal(read_picture(content, "turned"), expected)
    np.testing.assert_array_equal(upright_rgb(Image.open(io.BytesIO(content))), expected)


ODD = {
    "a fraction over 0": (ExifTags.Base.XResolution, TiffImagePlugin.IFDRational(72, 0)),
    "text for a number": (ExifTags.Base.ISOSpeedRatings, "fast"),
    "a number for text": (ExifTags.Base.Make, 7),
    "no such tag": (0xFDE8, b"\x00\xff"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_notes_of_a_camera_do_no_harm(kind):
    exif = noted(6)
    tag, value = ODD[kind]
    exif[tag] = value
    seen = read_picture(stored(noise(20, 30), "JPEG", exif=exif, quality=95), "odd")
    assert seen.size == (20, 30)


@pytest.mark.parametrize("type_and_value", [(2, b"6\0\0\0"), (5, bytes(4)), (3, b"\x63\0\0\0")])
def test_a_turn_that_cannot_be_read_is_none(type_and_value):
    kind, value = type_and_value
    content = bytearray(stored(noise(20, 30), "JPEG", exif=noted(6)))
    [at] = [content.find(struct.pack(">HHI", 0x0112, 3, 1))]
    content[at + 2 : at + 12] = struct.pack(">HI", kind, 2 if kind == 2 else 1) + value
    assert read_picture(bytes(content), "odd").size == (30, 20)


def test_a_header_that_pillow_cannot_write_again_is_read():
    """Pillow's own turning writes all notes again, and fails at the first odd one."""
    exif = noted(6)
    exif[ExifTags.Base.XResolution] = TiffImagePlugin.IFDRational(72, 1)
    content = bytearray(stored(noise(20, 30), "JPEG", exif=exif))
    at = content.find(struct.pack(">HHI", 0x011A, 5, 1))
    content[at + 2 : at + 4] = struct.pack(">H", 2)  # it says that these bytes are text
    assert read_picture(bytes(content), "odd").size == (20, 30)


def test_an_upright_picture_is_given_back_and_not_turned_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(20, 30).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as stored:
        upright = upright_rgb(stored)
        assert stored.size == (30, 20) and upright.size == (20, 30)
    assert upright_rgb(upright) is upright


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_every_mode_becomes_rgb_of_the_same_colours(mode):
    given = Image.new("RGB", (4, 3), "white")
    given.paste("black", (0, 0, 2, 3))
    given = given.convert(mode)
    before = given.tobytes()
    seen = upright_rgb(given)
    assert seen.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(seen), np.repeat([[[0], [0], [255], [255]]] * 3, 3, 2))
    assert (given.mode, given.tobytes()) == (mode, before)


@pytest.mark.parametrize("alpha", [0, 51, 128, 255])
def test_half_transparent_colours_are_mixed_with_white(alpha):
    seen = np.asarray(upright_rgb(Image.new("RGBA", (2, 2), (200, 0, 100, alpha))))
    expected = 255 + (np.array([200, 0, 100]) - 255) * alpha / 255
    np.testing.assert_allclose(seen, np.broadcast_to(expected, (2, 2, 3)), atol=1)


def test_bytes_are_read_like_the_file_that_holds_them(tmp_path):
    noise(20, 30).save(tmp_path / "noise.png")
    content = (tmp_path / "noise.png").read_bytes()
    assert read_picture(content, "any") == load_picture(tmp_path / "noise.png") == noise(20, 30)
    message = r"got upload \(3 bytes\): not PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM"
    with pytest.raises(ValueError, match=message):
        read_picture(b"abc", "upload")


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
WIDE = {
    "fractions": RAMP.astype(np.float32),
    "fractions of bytes": (RAMP * 255).astype(np.float32),
    "fractions of 16 bits": (RAMP * 65535).astype(np.float32),
    "10 in 16 bits": (RAMP * 1023).round().astype(np.uint16),
    "12 in 16 bits": (RAMP * 4095).round().astype(np.uint16),
    "14 in 16 bits": (RAMP * 16383).round().astype(np.uint16),
    "16 bits": (RAMP * 65535).round().astype(np.uint16),
    "16 in 32 bits": (RAMP * 65535).round().astype(np.int32),
}


@pytest.mark.parametrize("kind", WIDE)
def test_wide_grey_keeps_its_range(kind):
    given = Image.fromarray(WIDE[kind])
    for seen in (upright_rgb(given), read_picture(stored(given, "TIFF"), "wide")):
        np.testing.assert_allclose(np.asarray(seen)[..., 1].flatten(), np.arange(256), atol=1)


def test_dark_fractions_stay_dark():
    assert np.asarray(upright_rgb(Image.fromarray(np.full((2, 2), 0.2, np.float32)))).max() == 51
    assert np.asarray(upright_rgb(Image.new("I;16", (2, 2)))).max() == 0


@pytest.mark.parametrize("scale", [-1.0, 3.7, 70_000.0, np.nan, np.inf])
def test_levels_without_a_known_white_are_refused(scale):
    with pytest.raises(
        ValueError, match=r"expected levels of grey in \[0, 1\], or of 8 to 16 bits"
    ):
        upright_rgb(Image.fromarray(((RAMP + 0.1) * scale).astype(np.float32)))


@pytest.mark.parametrize("scale", [-(2**20), 20, 70_000, 2**31 - 1])
def test_whole_numbers_without_a_known_white_are_refused(scale):
    with pytest.raises(ValueError, match=r"expected levels of grey"):
        upright_rgb(Image.fromarray((RAMP * scale).astype(np.int32)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_white_is_zero_is_inverted(dtype):
    white = np.iinfo(dtype).max
    content = bytearray(stored(Image.fromarray((RAMP * white).round().astype(dtype)), "TIFF"))
    at = content.find(struct.pack("<HHI", 262, 3, 1))
    content[at + 8 : at + 10] = bytes(2)
    seen = np.asarray(read_picture(bytes(content), "negative"))[..., 0]
    np.testing.assert_allclose(seen.flatten(), np.arange(256)[::-1], atol=1)


def tiff_of_colours(levels):
    """A TIFF of 16 bits per colour, which Pillow reads but does not write."""
    height, width, _ = levels.shape
    tags = {256: width, 257: height, 259: 1, 262: 2, 273: 200, 277: 3, 278: height}
    entries = [struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags.items()]
    entries.insert(2, struct.pack("<2H2I", 258, 3, 3, 190))
    entries.append(struct.pack("<2H2I", 279, 4, 1, levels.nbytes))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    return (
        head.ljust(190, b"\0") + struct.pack("<3H", 16, 16, 16).ljust(10, b"\0") + levels.tobytes()
    )


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_colours_of_too_few_bits_in_sixteen_are_refused(bits):
    levels = (RAMP[..., None].repeat(3, 2) * (2**bits - 1)).round().astype("<u2")
    if bits <= 12:
        with pytest.raises(ValueError, match="expected 16 bits per colour, got levels of at most"):
            read_picture(tiff_of_colours(levels), "dark")
    else:
        seen = np.asarray(read_picture(tiff_of_colours(levels), "colours"))
        np.testing.assert_array_equal(seen, levels >> 8)


def test_wide_grey_is_white_where_it_is_transparent():
    levels = np.array([[0, 30_000], [65_535, 0]], np.uint16)
    content = stored(Image.fromarray(levels), "PNG", transparency=0)
    seen = np.asarray(read_picture(content, "holes"))[..., 0]
    np.testing.assert_array_equal(seen, [[255, 117], [255, 255]])


@pytest.mark.parametrize("mode", ["LAB", "HSV", "RGBX", "RGBa", "PA", "LA", "I;16B", "I;16L"])
def test_rare_modes_become_rgb_of_the_same_colours(mode):
    colour = (200, 200, 200) if mode in ("LA", "I;16B", "I;16L", "PA") else (200, 30, 60)
    given = Image.new("RGB", (4, 3), colour)
    if mode == "LAB":
        profiles = map(ImageCms.createProfile, ("sRGB", "LAB"))
        given = ImageCms.profileToProfile(given, *profiles, outputMode="LAB")
    elif mode.startswith("I"):
        given = Image.new(mode, (4, 3), 200 * 257)
    else:
        for step in {"PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,)):
            given = given.convert(step) if step != "LA" else given.convert("L").convert("LA")
    seen = upright_rgb(given)
    np.testing.assert_allclose(np.asarray(seen)[1, 1], colour, atol=4)  # P has few colours


def test_what_is_not_a_picture_of_pillow_is_named(without_type_checks):
    with pytest.raises(ValueError, match="expected a picture of Pillow, got ndarray"):
        upright_rgb(np.zeros((4, 4, 3), np.uint8))


# A picture of these formats is not opened, whatever it holds; nor is one opened elsewhere decoded.
OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
    "ICO": stored(noise(16, 16), "ICO"),
    "TGA": stored(noise(16, 16), "TGA"),
    "PCX": stored(noise(16, 16), "PCX"),
    "JPEG2000": stored(noise(16, 16), "JPEG2000"),
}


@pytest.mark.parametrize("format", OTHERS)
def test_formats_that_are_not_listed_are_not_opened(tmp_path, format):
    path = tmp_path / "picture.png"
    path.write_bytes(OTHERS[format])
    with pytest.raises(ValueError, match="not PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM"):
        load_picture(path)
    with Image.open(path) as opened, pytest.raises(ValueError, match=f"PPM, got {format}"):
        upright_rgb(opened)


@pytest.mark.parametrize("format", [*FORMATS, "MPO"])
def test_formats_that_are_listed_are_opened(format):
    content = stored(
        Image.new("RGB", (30, 20), "red"),
        format,
        **(
            {"save_all": True, "append_images": [noise(20, 30)]}
            if format in ("MPO", "GIF", "TIFF", "WEBP", "PNG")
            else {}
        ),
    )
    seen = read_picture(content, "any")
    assert seen.size == (30, 20) and not seen.info
    np.testing.assert_allclose(np.asarray(seen).mean((0, 1)), (255, 0, 0), atol=4)


def test_pictures_are_opened_in_one_place():
    folder = Path(rolloutlib.__file__).parent
    opening = [p.name for p in folder.rglob("*.py") if "Image.open(" in p.read_text()]
    assert opening == ["pictures.py"]


def test_what_is_transparent_becomes_white():
    picture = upright_rgb(Image.new("RGBA", (4, 4), (200, 0, 0, 0)))
    assert np.asarray(picture).min() == 255


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"expected a picture, got .*{len(content)} bytes"):
        load_picture(path)


def test_a_file_that_breaks_off_is_named(tmp_path):
    path = tmp_path / "whole.jpg"
    noise(200, 300).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="expected a picture"):
        load_picture(path)


def png_of_size(width, height):
    """A header that promises a picture of this size, and hardly anything behind it."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    content = stored(noise(20, 30), "PNG")
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def bmp_of_size(width, height):
    content = bytearray(stored(noise(20, 30), "BMP"))
    content[18:26] = struct.pack("<2i", width, height)
    return bytes(content)


def gif_of_size(width, height):
    content = bytearray(stored(noise(20, 30), "GIF"))
    content[6:10] = struct.pack("<2H", width, height)
    return bytes(content)


def gif_of_frame(width, height):
    content = bytearray(stored(noise(20, 30), "GIF"))
    at = content.find(b",\0\0\0\0")
    content[at + 5 : at + 9] = struct.pack("<2H", width, height)
    return bytes(content)


def tiff_of_tile(width, height):
    """A picture of 10x10 pixels, in one tile of this size."""
    tags = {256: 10, 257: 10, 258: 8, 259: 5, 262: 1, 277: 1, 322: width, 323: height, 324: 146}
    entries = [struct.pack("<2H2I", tag, 4, 1, value) for tag, value in {**tags, 325: 4}.items()]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return head + b"".join(entries) + bytes(4) + bytes(40)


def tiff_of_size(width, height):
    content = stored(Image.new("L", (10, 10)), "TIFF", tiffinfo={270: "small"})
    for tag, value in ((256, width), (257, height)):
        at = content.find(struct.pack("<HH", tag, 4))
        content = content[: at + 8] + struct.pack("<I", value) + content[at + 12 :]
    return content


@pytest.mark.parametrize(
    "content_of",
    [png_of_size, bmp_of_size, gif_of_size, gif_of_frame, tiff_of_tile, tiff_of_size],
)
@pytest.mark.parametrize("size", [(10_000, 5_001), (60_000, 60_000)])
def test_a_header_that_promises_too_much_is_refused_before_decoding(content_of, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"expected a picture, got big .*(at most|exceeds limit)"):
        read_picture(content_of(*size), "big")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000), (10_001, 5_000)])
def test_a_large_picture_is_refused_by_every_entrance(size):
    message = f"expected a picture of 1 to {PIXELS:,} pixels, at most 65,536 along a side, got"
    with pytest.raises(ValueError, match=message):
        upright_rgb(Image.new("1", size))
    with pytest.raises(ValueError, match=message):
        read_picture(png_of_size(*size), "large")


def test_the_largest_picture_takes_less_than_a_gigabyte(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGBA", (10_000, 5_000), (9, 9, 9, 128)).save(path, compress_level=1)
    measured = (
        "import sys; from rolloutlib.files.pictures import load_picture;"
        "load_picture(sys.argv[1]);"
        "print(*(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"
    )
    told = subprocess.run([sys.executable, "-c", measured, path], stdout=-1, check=True, text=True)
    assert int(told.stdout) < 1_000_000  # kB


SMALL = [
    *(stored(noise(9, 13), "PNG", **about) for about in ({}, {"exif": noted(6)})),
    stored(Image.fromarray(WIDE["16 bits"]), "PNG"),
    *(stored(noise(9, 13), "JPEG", exif=noted(6), progressive=kind) for kind in (0, 1)),
    *(stored(noise(9, 13), "WEBP", lossless=kind, exif=noted(6)) for kind in (0, 1)),
    *(stored(noise(9, 13), format) for format in ("GIF", "BMP", "PPM", "TIFF")),
    *(stored(noise(9, 13), "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg")),
    stored(Image.fromarray(WIDE["fractions"]), "TIFF", exif=noted(8)),
]
PATCH = st.tuples(st.integers(0, 60) | st.integers(0, 4000), st.binary(min_size=1, max_size=8))


@settings(max_examples=400)
@given(st.sampled_from(SMALL), st.lists(PATCH, max_size=3), st.floats(0.2, 2))
def test_changed_bytes_make_a_picture_or_one_named_error(content, patches, kept):
    changed = bytearray(content)
    for at, new in patches:
        at %= len(changed)
        changed[at : at + len(new)] = new
    try:
        seen = read_picture(bytes(changed[: int(kept * len(changed))]), "changed")
    except ValueError as error:
        assert str(error).startswith("expected a picture, got changed (")
    else:
        assert type(seen) is Image.Image and seen.mode == "RGB" and not seen.info


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_picture(tmp_path / "nowhere.png")
