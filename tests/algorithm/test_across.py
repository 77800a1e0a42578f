import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolloutlib import rollout_across


def attention(rng, heads, queries, keys, causal=False):
    scores = np.exp(rng.normal(scale=2, size=(heads, queries, keys)))
    scores = np.tril(scores) if causal else scores
    return scores / scores.sum(-1, keepdims=True)


def streams(seed, depth=3, queries=5, outputs=7, heads=2):
    """Self-attention, cross-attention and an encoder's layers, float64."""
    rng = np.random.default_rng(seed)
    own = [attention(rng, heads, queries, queries, causal=True) for _ in range(depth)]
    other = [attention(rng, heads, queries, outputs) for _ in range(depth)]
    return own, other, [attention(rng, heads, outputs, outputs) for _ in range(depth + 1)]


CHOICES = {
    "head_fusion": st.sampled_from(["mean", "max", "min"]),
    "residual": st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    "discard_ratio": st.sampled_from([0.0, 0.6]),
    "receptive_field": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.fixed_dictionaries(CHOICES), st.integers(1, 9))
def test_it_is_one_product_of_block_matrices(seed, how, queries):
    parts = streams(seed, queries=queries)
    expected = reference.across(*parts, **how)[[-1, 0]]
    found = rollout_across(*parts, [-1, 0], **how)
    np.testing.assert_allclose(np.concatenate(found, -1), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("head_fusion", ["mean", "max"])
def test_rows_of_both_sum_to_one_and_torch_agrees(head_fusion):
    parts = streams(1)
    numpy = rollout_across(*parts, [4, 2], head_fusion=head_fusion)
    np.testing.assert_allclose(sum(each.sum(-1) for each in numpy), 1, rtol=1e-12)
    batched = ([torch.from_numpy(layer)[None] for layer in part] for part in parts)
    found = rollout_across(*batched, [4, 2], head_fusion=head_fusion)
    torch.testing.assert_close(found, tuple(torch.from_numpy(each)[None] for each in numpy))


def test_without_an_encoder_relevance_stays_on_its_outputs():
    decoder, cross, _ = streams(2)
    found = rollout_across(decoder, cross, [], [4])
    expected = reference.across(decoder, cross, [])[[4]]
    np.testing.assert_allclose(np.concatenate(found, -1), expected, rtol=1e-6)


def test_one_softmax_over_both_sequences():
    decoder, cross, encoder = streams(3)
    merged = [np.concatenate(pair, -1) / 2 for pair in zip(decoder, cross, strict=True)]
    expected = reference.across(merged, [], encoder)[[4]]
    found = rollout_across(merged, [], encoder, [4])
    np.testing.assert_allclose(np.concatenate(found, -1), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, c, e: (d[:2], c, e), "in pairs, .* got 2 and 3"),
        (lambda d, c, e: (d, c, [layer[:, 1:, 1:] for layer in e]), "encoder of 7 .* one of 6"),
        (lambda d, c, e: (d, [c[0][:, 1:], *c[1:]], e), r"\(1, 4, 11\), \(1, 5, 5\)"),
        (lambda d, c, e: (d, [], e), "got only self-attention, .* call rollout_rows"),
        (lambda d, c, e: ([], [], e), "at least one layer"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        rollout_across(*change(*streams(4)), [0])
