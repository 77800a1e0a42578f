"""Pictures of every kind as a model is to see them, and files that hold none."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rolloutlib.files.pictures import load_picture, read_picture, upright_rgb


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


@pytest.mark.parametrize("note", TURNS)
def test_a_picture_is_turned_as_its_note_says(tmp_path, note):
    exif = Image.Exif()
    exif[0x0112] = note
    noise(20, 30).save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(load_picture(tmp_path / "turned.png"))
    np.testing.assert_array_equal(upright, TURNS[note](np.asarray(noise(20, 30))))


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


def test_sixteen_bit_grey_keeps_its_range():
    grey = Image.fromarray(np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10))
    levels = np.asarray(upright_rgb(grey))[..., 0]
    assert levels.min() == 0 and levels.max() == 255 and len(np.unique(levels)) > 90


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


@pytest.mark.parametrize("size", [(200_000, 200_000), (2**31 - 1, 1)])
def test_a_header_that_promises_too_much_is_named(tmp_path, size):
    path = tmp_path / "whole.png"
    noise(20, 30).save(path)
    header = b"IHDR" + struct.pack(">2I5B", *size, 8, 2, 0, 0, 0)
    content = path.read_bytes()
    check = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(content[:12] + header + check + content[33:])
    with pytest.raises(ValueError, match="expected a picture"):
        load_picture(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_picture(tmp_path / "nowhere.png")
