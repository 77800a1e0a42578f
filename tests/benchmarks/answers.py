"""What a user waits for: an answer of a model of real shape and its maps, against the answer alone.

Weights are random, so the answer means nothing; its length is fixed.
"""

from functools import partial

import torch
from PIL import Image
from small_llava import small_llava
from small_llava import small_processor as llava_processor
from small_qwen3_vl import small_processor as qwen_processor
from small_qwen3_vl import small_qwen3_vl

from benchmarks.workloads import (
    OURS,
    Ratio,
    Workload,
    float64_carried,
    float64_layers,
    float64_rows,
)
from rolloutlib import heatmaps
from rolloutlib.models.families import FAMILIES
from rolloutlib.models.multimodal import Answer, MultimodalModel


def qwen3_vl(small: bool) -> Workload:
    """14 decoder layers 1,024 wide, a tower of 12 layers, 3,072 patches."""
    text = {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 14,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    vision = {"depth": 12, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
    vision |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [3, 6, 9]}
    sizes = {} if small else {"text": text, "vision": vision, "dtype": torch.bfloat16}
    model = MultimodalModel(small_qwen3_vl(**sizes), qwen_processor(), FAMILIES["qwen3_vl"])
    picture = Image.new("RGB", (96, 64) if small else (1024, 768), "grey")
    name = "Qwen3-VL of 14 layers, 1024 x 768 pixels, 16 tokens"
    workload = _workload(name, model, picture, "what is it?", 4 if small else 16, 1.10)

    def replayed() -> torch.Tensor:
        answer = workload.contenders["plain"]()
        return heatmaps(model.record(answer), answer)

    workload.contenders["replayed"] = replayed
    workload.ratios.append(Ratio("times plain `generate`, with a replay", "replayed", "plain"))
    return workload


def llava_7b(small: bool) -> Workload:
    """The real configuration of LLaVA-1.5-7B: 14.1 GB."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 768}
    vision |= {"num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    text |= {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096}
    size = {} if small else {"image_size": 336}
    shape = {} if small else {"vision": vision, "text": text, "dtype": torch.bfloat16}
    processor = llava_processor(**size)
    model = MultimodalModel(small_llava(**size, **shape), processor, FAMILIES["llava"])
    picture = Image.new("RGB", (64, 56) if small else (640, 480), "grey")
    words = "what colour is the star ?"
    name = "LLaVA-1.5-7B, 8 tokens"
    workload = _workload(name, model, picture, words, 4 if small else 8, 1.05)
    workload.rounds = 3  # single answers differ by as much as is asked
    return workload


def _workload(
    name: str, model: MultimodalModel, picture: Image.Image, prompt: str, new: int, target: float
) -> Workload:
    asked = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    ask = partial(model.generate, picture, prompt, **asked)

    def with_maps() -> torch.Tensor:
        answer = ask(record=True)
        return heatmaps(answer.recording, answer)

    return Workload(
        f"answer and patch maps, {name}",
        {"plain": ask, OURS: with_maps},
        {OURS: lambda: float64_maps(ask(record=True))},
        [Ratio("times plain `generate`", OURS, "plain", target, larger=False)],
        rounds=1,
        tolerance=5e-4,  # rounding of bfloat16 products, through up to 56 layers
        threads=2,
    )


def float64_maps(answer: Answer) -> torch.Tensor:
    """The maps of an answer from the definition, of the queries and keys that were recorded."""
    language, vision = answer.recording["language"], answer.recording["vision"]
    relevance = torch.from_numpy(float64_rows(language, answer.rows))
    length = vision[0].shape[1]

    def carry(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        return torch.from_numpy(float64_carried(float64_layers(vision[part]), outputs.numpy()))

    return answer.image.on_patches(relevance, length, carry)
