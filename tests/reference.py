"""Rollout and matrices in float64 NumPy, written from their definitions, to be compared with."""

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


def state_matrix(layer):
    """M of a recorded state, `[batch head query key]`: token by token, the identity as values."""

    def of(*names):
        return (np.asarray(getattr(layer, name), dtype=np.float64) for name in names)

    query, key, decay, write = of("query", "key", "decay", "write")
    batch, tokens, heads = write.shape
    query, key = (x.repeat(heads // x.shape[2], 2) for x in (query, key))
    if layer.unit:
        query, key = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6) for x in (query, key))
    decay = decay.reshape(batch, tokens, heads, -1)
    decay = decay if layer.rates is None else decay * next(of("rates"))
    kept = np.zeros((batch, heads, query.shape[-1], tokens))
    matrix = np.zeros((batch, heads, tokens, tokens))
    for i in range(tokens):
        kept *= np.exp(decay[:, i, :, :, None])
        value = np.broadcast_to(np.eye(tokens)[i], (batch, heads, tokens))
        if layer.erases:
            value = value - (key[:, i, :, :, None] * kept).sum(2)
        kept += write[:, i, :, None, None] * key[:, i, :, :, None] * value[:, :, None]
        matrix[:, :, i] = (query[:, i, :, :, None] * kept).sum(2) * layer.scaling
        if layer.skip is not None:
            matrix[:, :, i, i] += next(of("skip"))
    return matrix
