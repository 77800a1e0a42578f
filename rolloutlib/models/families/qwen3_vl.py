"""Qwen3-VL: pictures of any shape, their patches merged 2 x 2; several of them, or a video."""

from dataclasses import replace
from math import prod

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, Qwen3VLProcessor

from rolloutlib.grid import Patches, View
from rolloutlib.models.families.base import KnownFamily


class Qwen3VL(KnownFamily):
    """How `Qwen3VLForConditionalGeneration` sees: the whole picture, resized to whole tokens.

    Its tower sees all pictures of a prompt in one sequence, and the patches of each picture token
    by token, not row by row. A video's frames are seen a few at a time, usually two.
    """

    model_type = "qwen3_vl"
    processor = Qwen3VLProcessor
    prompt_template = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{prompt}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    signs = ()

    def views(
        self,
        processor: Qwen3VLProcessor,
        inputs: BatchFeature,
        shown: list[Image.Image | list[Image.Image]],
    ) -> list[View]:
        """One view for each picture and each video, from the grids that the processor made.

        Raises ValueError for a picture smaller than one token, which would have to be enlarged.
        """
        grids = [grid[1:] for grid in inputs.get("image_grid_thw", torch.empty(0, 3)).tolist()]
        grids += inputs.get("video_grid_thw", torch.empty(0, 3)).tolist()
        return [
            self._view(processor.video_processor, grid, each[0])
            if isinstance(each, list)
            else self._view(processor.image_processor, grid, each)
            for grid, each in zip(grids, shown, strict=True)
        ]

    @staticmethod
    def _view(settings, grid: list[int], picture: Image.Image) -> View:
        """`grid` counts patches; tokens are `merge_size` of them wide and high."""
        patch, merge = settings.patch_size, settings.merge_size
        if min(picture.size) < patch * merge:
            raise ValueError(
                f"expected a picture of at least {patch * merge}x{patch * merge} pixels, that is "
                f"one token, got {picture.height}x{picture.width}"
            )
        *time, rows, columns = grid
        size, grid = (rows * patch, columns * patch), (*time, rows // merge, columns // merge)
        return View(picture.size[::-1], size, (0, 0), size, patch * merge, grid)

    def patches(
        self, config: PreTrainedConfig, processor: Qwen3VLProcessor, views: list[View]
    ) -> list[Patches]:
        """All patches of the picture, after every layer of the tower, and DeepStack's branches."""
        merge, layers = config.vision_config.spatial_merge_size, config.vision_config.depth
        taps = getattr(config.vision_config, "deepstack_visual_indexes", ())  # not in Qwen3.5
        branches = tuple(number + 1 for number in taps)
        found, start = [], 0
        for view in views:
            *time, rows, columns = view.grid
            grid = (*time, rows * merge, columns * merge)
            finer = replace(view, token=view.token // merge, grid=grid)
            order = merge_order(grid, merge)
            merged = torch.arange(len(order)).view(-1, merge**2)
            where = start + order.argsort(), start + merged
            found.append(Patches(finer, layers, 0, *where, branches))
            start += len(order)
        return found


class Qwen3_5(Qwen3VL):
    """How `Qwen3_5ForConditionalGeneration` sees: as Qwen3-VL does, by the same processor."""

    model_type = "qwen3_5"


class Qwen3_5MoE(Qwen3VL):
    """How `Qwen3_5MoeForConditionalGeneration` sees: as Qwen3-VL does, by the same processor."""

    model_type = "qwen3_5_moe"


def merge_order(grid: tuple[int, ...], merge: int) -> torch.Tensor:
    """The patches of a grid in the tower's order: token by token, row by row within a token.

    >>> merge_order((2, 4), 2)
    tensor([0, 1, 4, 5, 2, 3, 6, 7])
    """
    *_, rows, columns = grid
    parted = torch.arange(prod(grid)).view(-1, rows // merge, merge, columns // merge, merge)
    return parted.transpose(2, 3).flatten()
