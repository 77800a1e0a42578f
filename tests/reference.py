"""Rollout in float64 NumPy, written from its definition, for the package to be compared with."""

import numpy as np


def transition(layer, head_fusion="mean", residual=0.5, discard_ratio=0.0, receptive_field=False):
    """Ā of one layer `[head query key]`."""
    fused = getattr(np.asarray(layer, dtype=np.float64), head_fusion)(axis=0)
    size = len(fused)
    if receptive_field:
        seen = (np.asarray(layer) > 0).any(axis=0).sum(axis=1)  # keys that each row sees
        fused = fused / np.maximum(seen, 1)[:, None]
    if residual > 0:
        fused = (1 - residual) * fused + residual * np.eye(size, fused.shape[1])
        fused = rows_to_one(fused)
    if discard_ratio > 0:
        threshold = np.sort(fused.ravel())[int(fused.size * discard_ratio)]
        fused = np.where(fused < threshold * (1 - 1e-12), 0, fused)
        fused = rows_to_one(fused)
    return fused


def rows_to_one(matrix):
    """Divide each row by its sum; rows of zeros stay zero."""
    matrix = matrix.copy()
    for row in matrix:
        if row.sum() > 0:
            row /= row.sum()
    return matrix


def products(layers, start_layer=0, **settings):
    """The rollout after each layer: Ā_l · (what came before)."""
    results = []
    for layer in layers[start_layer:]:
        step = transition(layer, **settings)
        results.append(step if not results else step @ results[-1])
    return results


def across(decoder, cross, encoder, **settings):
    """One square matrix a step over [decoder's positions | encoder's outputs], and their product.

    decoder: where a layer attends to both at once, its keys are of both, and `cross` is empty.
    """
    queries = len(decoder[0][0])
    both = np.shape([*cross, *encoder][0])[-1] + queries
    product = np.eye(both)
    if encoder:
        product[queries:, queries:] = products(encoder, **settings)[-1]
    for number, layer in enumerate(decoder):
        sublayers = [layer]
        if cross:
            own = np.zeros((*cross[number].shape[:2], queries))
            sublayers.append(np.concatenate([own, cross[number]], -1))
        for attention in sublayers:
            step = np.eye(both)
            step[:queries, : attention.shape[-1]] = transition(attention, **settings)
            product = step @ product
    return product[:queries]
