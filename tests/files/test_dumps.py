import io
import json

import numpy as np
import pytest

from rolloutlib.files import dumps
from rolloutlib.files.dumps import KEY, dump_path, read_array, read_dump, write_arrays, write_dump


def layers(depth=3, shape=(4, 5, 5)):
    rng = np.random.default_rng(0)
    return [rng.random(shape, dtype=np.float32) for _ in range(depth)]


@pytest.fixture
def folder(tmp_path):
    write_dump(tmp_path, layers(), video="7", frames=(0, 4), meta={"model": "tiny"})
    return tmp_path


def first(folder):
    return dump_path(folder, "7", (0, 4), 0)


def test_what_is_written_is_read_again(folder):
    dump = read_dump(folder, "7")
    assert dump.frames == (0, 4)
    assert dump.meta == {"video_id": "7", "layer": 0, "shape": [4, 5, 5], "model": "tiny"}
    for read, written in zip(dump.layers, layers(), strict=True):
        np.testing.assert_array_equal(read, written)


def test_names_and_keys_are_those_of_the_analysis_scripts(folder):
    name = "video_7_frames0-4_refiner_temporal_layer_2_attn"
    assert (folder / f"{name}.meta.json").exists()
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        assert file.files == ["attention_weights"]


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    write_dump(tmp_path, layers(11), video="a_b", frames=(3, 7))
    for read, written in zip(read_dump(tmp_path, "a_b").layers, layers(11), strict=True):
        np.testing.assert_array_equal(read, written)


def test_no_layers_are_named(tmp_path):
    with pytest.raises(ValueError, match="at least one layer, got none"):
        write_dump(tmp_path, [], video="7", frames=(0, 4))


def test_fewer_layers_replace_more(folder):
    other = [layer / 2 for layer in layers(2)]
    write_dump(folder, other, video="7", frames=(0, 4))
    assert len(list(folder.iterdir())) == 4
    for read, written in zip(read_dump(folder, "7").layers, other, strict=True):
        np.testing.assert_array_equal(read, written)


def test_a_dump_without_meta_is_read(folder):
    for path in folder.glob("*.json"):
        path.unlink()
    assert read_dump(folder, "7").meta == {}


def test_several_stretches_ask_which(folder):
    write_dump(folder, layers(), video="7", frames=(5, 9))
    assert read_dump(folder, "7", (5, 9)).frames == (5, 9)
    with pytest.raises(ValueError, match="one of 0-4, 5-9 for video 7"):
        read_dump(folder, "7")


def pickled():
    file = io.BytesIO()
    np.savez(file, **{KEY: np.array([{"a": 1}], dtype=object)})
    return file.getvalue()


def other_key():
    file = io.BytesIO()
    np.savez(file, weights=np.ones((2, 2)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda good: b"", "expected arrays of numbers, got 0 bytes"),
        (lambda good: b"not an archive", "expected arrays of numbers, got 14 bytes"),
        (lambda good: good[: len(good) // 2], "expected arrays of numbers"),
        (lambda good: good[:100] + b"\0\0\0\0" + good[104:], "expected arrays of numbers"),
        (lambda good: pickled(), "allow_pickle=False"),
        (lambda good: other_key(), "expected the key 'attention_weights', got weights"),
    ],
    ids=["empty", "text", "truncated", "altered", "pickled", "other key"],
)
def test_a_spoilt_file_is_named(folder, spoil, message):
    path = first(folder)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        read_dump(folder, "7")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "array",
    [np.ones((2, 2), int), np.full((2, 2), np.nan), -np.ones((2, 2)), np.ones((0, 2))],
    ids=["integers", "nan", "negative", "no frames"],
)
def test_arrays_that_are_no_attention_are_refused(tmp_path, array):
    path = write_arrays(tmp_path / "a.npz", **{KEY: array})
    with pytest.raises(ValueError, match="expected floats, finite and 0 or more"):
        read_array(path, KEY)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch, dtype):
    path = write_arrays(tmp_path / "large.npz", **{KEY: np.ones((9, 9), dtype)})
    monkeypatch.setattr(dumps, "MOST", 81 * np.dtype(dtype).itemsize)
    assert read_array(path, KEY).shape == (9, 9)
    monkeypatch.setattr(dumps, "MOST", 81 * np.dtype(dtype).itemsize - 1)
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("the numbers were read"))
    with pytest.raises(ValueError, match=r"large\.npz: expected arrays .* shape \(9, 9\) takes"):
        read_array(path, KEY)


@pytest.mark.parametrize("text", ["[" * 9000, "[]", '"' + "a" * 2**20 + '"'])
def test_meta_that_is_no_short_set_of_names_is_named(folder, text):
    first(folder).with_suffix(".meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json: expected (JSON|names and values), got"):
        read_dump(folder, "7")


def test_layers_whose_frames_differ_are_named(folder):
    write_arrays(dump_path(folder, "7", (0, 4), 1), **{KEY: np.ones((4, 6, 6))})
    with pytest.raises(ValueError, match=r"layer_1.*expected shape \(4, 5, 5\).*got \(4, 6, 6\)"):
        read_dump(folder, "7")


def test_a_missing_layer_is_named(folder):
    dump_path(folder, "7", (0, 4), 1).unlink()
    with pytest.raises(ValueError, match=r"expected layers 0 to 2.*got only \[0, 2\]"):
        read_dump(folder, "7")


def test_a_missing_video_is_named(folder):
    with pytest.raises(FileNotFoundError, match="video_8_"):
        read_dump(folder, "8")


def test_spoilt_meta_is_named(folder):
    path = first(folder).with_suffix(".meta.json")
    path.write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match=r"meta\.json: expected JSON"):
        read_dump(folder, "7")


def test_a_failed_write_leaves_what_was_there(folder, monkeypatch):
    """The disk is full after two layers; these must not be mixed with older ones."""

    def full(file, **arrays):
        if "layer_2" in file.name:
            file.write(b"half")
            raise OSError("no space left")
        save(file, **arrays)

    before = {path: path.read_bytes() for path in folder.iterdir()}
    save = np.savez_compressed
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        write_dump(folder, [2 * layer for layer in layers()], video="7", frames=(0, 4))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("video", ["../7", "a/b", "/7", "..", "", ".7", "a\\b", "a\nb", "a" * 101])
def test_an_id_that_leads_out_of_the_folder_is_refused(tmp_path, video):
    with pytest.raises(ValueError, match="must make a file's name, got 'video_"):
        write_dump(tmp_path / "in", layers(1), video=video, frames=(0, 4))
    assert not [*tmp_path.rglob("*.npz")]


@pytest.mark.parametrize("frames", [("../0", "4"), (0, "4/.."), (-1, 3), (0.5, 2)])
def test_frames_that_are_no_numbers_are_refused(tmp_path, frames, without_type_checks):
    with pytest.raises(ValueError, match="must make a file's name"):
        dump_path(tmp_path, "7", frames, 0)


@pytest.mark.parametrize("video", ["7", "0a-1b_c", "my clip 2", "größe", "a..b", "x@2+3=5"])
def test_ids_in_use_are_taken(tmp_path, video):
    write_dump(tmp_path, layers(1), video=video, frames=(0, 4))
    assert read_dump(tmp_path, video).video == video


def test_spoilt_meta_that_is_deep_is_named(folder):
    first(folder).with_suffix(".meta.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"meta\.json: expected JSON"):
        read_dump(folder, "7")
