"""Other ways to the same numbers: in plain code, and by other packages."""

import importlib.util
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch

Layers = list[torch.Tensor]


def teaching_class(layers: Layers, discard_ratio: float) -> torch.Tensor:
    """Fuse, add the residual, discard by sorting, multiply: as teaching code does."""
    product = None
    for attention in layers:
        fused = attention.mean(dim=0)
        fused = 0.5 * (fused + torch.eye(len(fused)))
        fused = fused / fused.sum(dim=-1, keepdim=True)
        if discard_ratio > 0:
            flat = fused.flatten()
            threshold = torch.sort(flat)[0][int(len(flat) * discard_ratio)]
            fused = fused.clone()
            fused[fused < threshold] = 0
            fused = fused / (fused.sum(dim=1, keepdim=True) + 1e-10)
        product = fused if product is None else torch.matmul(fused, product)
    return product


def video_procedure(layers: list[np.ndarray]) -> np.ndarray:
    """Spatial rollout step by step: average all layers, then normalize and multiply each frame."""
    averaged = [np.mean(attention, axis=1) for attention in layers]
    rollouts = []
    for frame in range(len(averaged[0])):
        steps = [layer[frame] + np.eye(layer.shape[-1], dtype=layer.dtype) for layer in averaged]
        steps = [step / step.sum(axis=1, keepdims=True) for step in steps]
        product = np.eye(steps[0].shape[-1], dtype=steps[0].dtype)
        for step in steps:
            product = step @ product
        rollouts.append(product)
    return np.stack(rollouts)


def eager_attention(layers: list) -> Layers:
    """Every recorded layer's whole attention, as a model returns it with `output_attentions`."""
    return [_probabilities(layer, torch.float32) for layer in layers]


def dense_product(attentions: Layers, rows: list[int]) -> torch.Tensor:
    """The whole product of stored attention `[1 head query key]`; only some rows are used."""
    return teaching_class([attention[0] for attention in attentions], 0.0)[rows]


def column_sums(layers: list) -> torch.Tensor:
    """Attention received, from each layer's whole attention."""
    return torch.stack([part.mean((0, 1)).sum(0) for part in eager_attention(layers)]).mean(0)


def exponentials_alone(layers: list, heads: int, height: int, width: int) -> None:
    """2^(QKᵀ) of recorded layers in tiles of some heads; the result is not used.

    With the fastest tiles of those tried.
    """
    room = torch.empty(heads * height * width)
    for layer in layers:
        for query, key in zip(layer.query[0].split(heads), layer.key[0].split(heads), strict=True):
            for start in range(0, layer.shape[1], height):
                some = query[:, start : start + height]
                seen = start + some.shape[1] if layer.causal else layer.shape[2]
                for keys in key[:, :seen].split(width, 1):
                    shape = (len(some), some.shape[1], keys.shape[1])
                    scores = room[: math.prod(shape)].view(shape)
                    scores.baddbmm_(some, keys.mT, beta=0, alpha=layer.scaling).exp2_()


def peers_for_heads(model, inputs: dict) -> dict[str, Callable]:
    """Installed packages that give the attention of every head: `[layer head query key]`."""
    peers, given = {}, {**inputs}
    if importlib.util.find_spec("attnread"):
        from attnread import extract_attention

        def attnread() -> torch.Tensor:
            heads = extract_attention(model, given)
            _, last, _ = list(heads)[-1]  # stream, layer, head
            return torch.cat(list(heads.values())).unflatten(0, (last + 1, -1))

        peers["attnread"] = attnread
    if importlib.util.find_spec("vl_saliency"):
        from vl_saliency.core.extractor import SaliencyExtractor

        tokenizer = SimpleNamespace(pad_token_id=-1)
        extractor = SaliencyExtractor(
            model, SimpleNamespace(tokenizer=tokenizer), store_grads=False
        )
        ids = {"input_ids": given["input_ids"], "pixel_values": given["pixel_values"]}

        def vl_saliency() -> torch.Tensor:
            model.set_attn_implementation({"text_config": "eager"})
            trace = extractor.capture(None, **ids)
            model.set_attn_implementation({"text_config": "sdpa"})
            return trace.attn[0].flatten(-2)

        peers["vl-saliency"] = vl_saliency
    return peers


def _probabilities(layer, dtype: torch.dtype) -> torch.Tensor:
    scores = layer.query.to(dtype) @ layer.key.to(dtype).mT * layer.scaling
    if layer.causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


# Other packages


def installed_peers(layers: Layers) -> dict[str, Callable]:
    """Rollout of a list of attention by each package of peers.txt that is installed."""
    batched = [layer[None] for layer in layers]
    found = {
        "fast-vit-rollout": ("fast_vit_rollout", "vit_rollout", _fast_vit_rollout),
        "torchxai-explain": ("torchxai", "methods/attention_rollout", _torchxai),
        "glassbox-vit": ("glassbox_vit", "rollout_explainer", _glassbox),
    }
    return {
        name: make(package, module, batched)
        for name, (package, module, make) in found.items()
        if importlib.util.find_spec(package)
    }


def _fast_vit_rollout(package: str, module: str, layers: Layers) -> Callable:
    peer = _without_model(_load(package, module).ViTAttentionRollout)
    peer.head_fusion, peer.discard_ratio, peer.attentions = "mean", 0.0, layers
    return lambda: peer._compute_rollout()[0]


def _torchxai(package: str, module: str, layers: Layers) -> Callable:
    peer = _without_model(importlib.import_module("torchxai.methods").AttentionRollout)
    peer.head_fusion, peer.discard_ratio, peer._attention_maps = "mean", 0.0, layers
    peer.model = torch.nn.Identity()
    return peer._compute_rollout  # the map of the first row, after the whole product


def _glassbox(package: str, module: str, layers: Layers) -> Callable:
    peer = _without_model(_load(package, module).AttentionRolloutExplainer)
    return lambda: peer._calculate_rollout(layers)[0]


def _without_model(kind: type) -> object:
    """The class, ready for attention, without the model that it would record."""
    return kind.__new__(kind)


def _load(package: str, module: str):
    """One module of a package, without what the package's other modules import."""
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(module, f"{folder}/{module}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
