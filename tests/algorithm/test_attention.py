import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rolloutlib import add_residual, discard_lowest, fuse_heads, normalize_rows
from rolloutlib.algorithm.attention import kth_smallest, merge_heads

matrices = npst.arrays(np.float64, (4, 4), elements=st.floats(0, 10))


@given(matrices)
def test_normalized_rows_sum_to_one_or_stay_zero(matrix):
    sums = normalize_rows(matrix).sum(-1)
    np.testing.assert_allclose(sums, (matrix.sum(-1) > 0).astype(float), atol=1e-9)


def test_rows_are_normalized_not_columns_in_a_batch():
    matrix = torch.rand(2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(normalize_rows(matrix)[1], matrix[1] / matrix[1].sum(1)[:, None])


@pytest.mark.parametrize(("how", "reduce"), [("mean", "mean"), ("max", "max"), ("min", "min")])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_heads_are_fused_over_their_own_axis(how, reduce, batch):
    attention = np.random.default_rng(0).random((*batch, 5, 4, 6))
    np.testing.assert_allclose(fuse_heads(attention, how), getattr(attention, reduce)(axis=-3))


@pytest.mark.parametrize("how", ["mean", "max", "min"])
def test_a_single_head_is_copied(how):
    attention = torch.rand(2, 1, 3, 3)
    fused = merge_heads(attention, how)
    torch.testing.assert_close(fused, attention[:, 0], atol=0, rtol=0)
    assert fused.data_ptr() != attention.data_ptr()  # the caller may change it


def test_half_precision_mean_is_taken_in_float32():
    attention = torch.rand(64, 2, 2, generator=torch.manual_seed(0)).bfloat16()
    fused = fuse_heads(attention)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, attention.double().mean(0).float())


@given(matrices, st.floats(0.01, 1))
def test_residual_is_a_share_of_identity(matrix, residual):
    rows = normalize_rows(matrix + 0.1)
    expected = (1 - residual) * rows + residual * np.eye(4)
    np.testing.assert_allclose(add_residual(rows, residual), expected, atol=1e-12)


def test_no_residual_leaves_the_matrix():
    matrix = np.array([[0.2, 0.2], [0.0, 0.0]])
    np.testing.assert_array_equal(add_residual(matrix, 0), matrix)


@given(st.integers(0, 10_000), st.floats(0, 0.99))
def test_discard_keeps_what_is_not_below_the_threshold(seed, ratio):
    matrix = np.random.default_rng(seed).permutation(36).reshape(6, 6) + 1.0
    kept = discard_lowest(matrix, ratio) > 0
    assert (~kept).sum() == int(36 * ratio)
    assert matrix[kept].min() > matrix[~kept].max(initial=0)


@given(npst.arrays(np.float32, (2, 40), elements=st.sampled_from([0, 0, 0, 0.125, 0.25, 0.75])))
def test_selection_among_many_equal_entries_is_that_of_sorting(values):
    for k in range(40):
        np.testing.assert_array_equal(kth_smallest(torch.tensor(values), k), np.sort(values)[:, k])


def test_each_matrix_of_a_batch_has_its_own_threshold():
    low, high = np.arange(1.0, 10).reshape(3, 3), np.arange(101.0, 110).reshape(3, 3)
    both = discard_lowest(np.stack([low, high]), 0.5)
    np.testing.assert_array_equal(both[0], discard_lowest(low, 0.5))
    np.testing.assert_array_equal(both[1], discard_lowest(high, 0.5))


def test_inputs_are_left_as_they_were():
    attention = np.random.default_rng(0).random((2, 3, 3))
    before = attention.copy()
    add_residual(attention[0])
    discard_lowest(attention[0], 0.5)
    normalize_rows(attention[0])
    np.testing.assert_array_equal(attention, before)


def test_read_only_arrays_are_taken():
    attention = np.full((2, 3, 3), 1 / 3)
    attention.flags.writeable = False
    np.testing.assert_allclose(fuse_heads(attention), 1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fuse_heads(np.ones((2, 2))), "expected attention"),
        (lambda: fuse_heads(np.ones((2, 2, 2)), "sum"), "got 'sum'"),
        (lambda: add_residual(np.ones((2, 3))), "square"),
        (lambda: add_residual(np.ones((2, 2)), -0.1), "got -0.1"),
        (lambda: add_residual(np.ones((2, 2)), float("nan")), "got nan"),
        (lambda: discard_lowest(np.ones((2, 2)), 1), "got 1"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
