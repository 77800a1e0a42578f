import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolloutlib import (
    attention_received,
    even_attention,
    rollout,
    rollout_by_layer,
    rollout_rows,
)


def random_layers(seed, depth, heads, size, batch=None, causal=False):
    """Softmax attention with some peaks, float64, `[batch head query key]` or without a batch."""
    rng = np.random.default_rng(seed)
    shape = (depth, *([] if batch is None else [batch]), heads, size, size)
    scores = np.exp(rng.normal(scale=2, size=shape))
    scores = np.tril(scores) if causal else scores
    return list(scores / scores.sum(-1, keepdims=True))


@st.composite
def cases(draw):
    """Layers and settings for one rollout."""
    depth = draw(st.integers(1, 5))
    causal = draw(st.booleans())
    layers = random_layers(
        draw(st.integers(0, 2**32 - 1)),
        depth,
        draw(st.integers(1, 4)),
        draw(st.integers(1, 9)),
        draw(st.sampled_from([None, 1, 3])),
        causal,
    )
    how = {
        "head_fusion": draw(st.sampled_from(["mean", "max", "min"])),
        "residual": draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])),
        "discard_ratio": draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])),
        "start_layer": draw(st.integers(0, depth - 1)),
        "receptive_field": draw(st.booleans()),
    }
    return layers, how


def expected_products(layers, how):
    """The float64 reference, for layers with or without a batch."""
    if layers[0].ndim == 3:
        return reference.products(layers, **how)
    items = [
        reference.products([layer[i] for layer in layers], **how) for i in range(len(layers[0]))
    ]
    return [np.stack(step) for step in zip(*items, strict=True)]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_rollout_equals_the_definition(case):
    layers, how = case
    expected = expected_products(layers, how)
    np.testing.assert_allclose(rollout(layers, **how), expected[-1], rtol=1e-6, atol=1e-12)
    for step, reference_step in zip(rollout_by_layer(layers, **how), expected, strict=True):
        np.testing.assert_allclose(step, reference_step, rtol=1e-6, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_rollout_rows_are_rows_of_the_rollout(case, data):
    layers, how = case
    size = layers[0].shape[-1]
    rows = data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=5))
    expected = expected_products(layers, how)[-1][..., rows, :]
    np.testing.assert_allclose(rollout_rows(layers, rows, **how), expected, rtol=1e-6, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_torch_and_numpy_agree(case):
    layers, how = case
    tensors = [torch.from_numpy(layer) for layer in layers]
    result = rollout(tensors, **how)
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float64
    np.testing.assert_array_equal(result.numpy(), rollout(layers, **how))


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.9])
def test_rows_sum_to_one_after_every_layer(head_fusion, discard_ratio):
    layers = random_layers(1, depth=6, heads=3, size=12, batch=2)
    settings = {"head_fusion": head_fusion, "discard_ratio": discard_ratio}
    for product in rollout_by_layer(layers, **settings):
        np.testing.assert_allclose(product.sum(-1), 1, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_accumulate_in_float32(dtype):
    layers = [torch.from_numpy(layer).to(dtype) for layer in random_layers(2, 12, 4, 50)]
    result = rollout(layers)
    assert result.dtype == torch.float32
    expected = reference.products([layer.double().numpy() for layer in layers])[-1]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_layers_longer_than_a_chunk():
    layers = random_layers(3, depth=3, heads=2, size=300)
    expected = reference.products(layers)[-1]
    np.testing.assert_allclose(rollout(layers), expected, rtol=1e-6)
    np.testing.assert_allclose(rollout_rows(layers, [299, 7]), expected[[299, 7]], rtol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_causal_layers_longer_than_a_tile(depth):
    """Their products are triangles, whose empty half is not computed."""
    layers = random_layers(10, depth, heads=2, size=1300, causal=True)
    expected = reference.products(layers)[-1]
    result = rollout(layers)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-12)
    assert not np.triu(result, 1).any()
    np.testing.assert_allclose(rollout_rows(layers, [700, 3]), expected[[700, 3]], rtol=1e-6)
    np.testing.assert_allclose(attention_received(layers)[5], np.mean(layers, (0, 1)).sum(0)[5])


def test_layers_whose_first_tokens_see_each_other():
    """Like a prefix of image tokens in some decoders: neither triangles nor full."""
    layers = random_layers(11, depth=4, heads=2, size=1300)
    for layer in layers:
        layer[:, :700, 700:] = 0
        layer[:, 700:] = np.tril(layer[:, 700:], 700)
    mixed = [layers[0], random_layers(12, 1, 2, 1300, causal=True)[0], *layers[1:]]
    expected = reference.products(mixed)[-1]
    np.testing.assert_allclose(rollout(mixed), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("discard_ratio", [0.0, 0.3])
def test_numbers_do_not_depend_on_how_many_cores_there_are(discard_ratio):
    layers = random_layers(14, depth=3, heads=2, size=1300, causal=True)
    cores, found = torch.get_num_threads(), []
    try:
        for torch_threads in (1, 3):
            torch.set_num_threads(torch_threads)
            found.append(rollout_rows(layers, [1299, 7], discard_ratio=discard_ratio))
    finally:
        torch.set_num_threads(cores)
    np.testing.assert_array_equal(*found)


def test_products_by_layer_are_not_written_over():
    layers = random_layers(13, depth=5, heads=2, size=9)
    for step, expected in zip(rollout_by_layer(layers), reference.products(layers), strict=True):
        np.testing.assert_allclose(step, expected, rtol=1e-6)


@pytest.mark.parametrize("flush", [True, False])
def test_the_setting_for_vanishing_numbers_comes_back(flush):
    torch.set_flush_denormal(flush)
    try:
        rollout([GOOD, GOOD])
        vanishing = torch.tensor([2.0**-126]) / 4
        assert (vanishing.item() == 0) == flush
    finally:
        torch.set_flush_denormal(False)


def test_layers_may_come_from_a_generator():
    layers = random_layers(4, depth=3, heads=2, size=5)
    np.testing.assert_array_equal(rollout(layer for layer in layers), rollout(layers))


def test_the_order_of_layers_matters():
    layers = random_layers(5, depth=3, heads=2, size=5)
    assert np.abs(rollout(layers) - rollout(layers[::-1])).max() > 0.01


def test_tied_entries_are_discarded_together_also_in_float32():
    offsets = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    layer = np.exp(-offsets / 3.0)[None]
    layer /= layer.sum(-1, keepdims=True)
    expected = reference.products([layer] * 3, discard_ratio=0.3)[-1]
    result = rollout([layer.astype(np.float32)] * 3, discard_ratio=0.3)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_receptive_field_makes_the_residual_grow_with_the_position():
    [layer] = random_layers(8, depth=1, heads=2, size=6, causal=True)
    share = 0.3 * np.arange(1, 7) / (0.3 * np.arange(1, 7) + 0.7)
    expected = (1 - share[:, None]) * layer.mean(0) + np.diag(share)
    result = rollout([layer], residual=0.3, receptive_field=True)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_receptive_field_without_a_residual_leaves_rows_unnormalized():
    layers = random_layers(9, depth=2, heads=2, size=4, causal=True)
    sums = rollout(layers[:1], residual=0, receptive_field=True).sum(-1)
    np.testing.assert_allclose(sums, [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-12)
    assert (rollout(layers, residual=0, receptive_field=True).sum(-1)[1:] < sums[1:]).all()


def banded(window, hole, seed=3):
    """Attention of two heads over 8 tokens: each sees the last `window`, but never `hole`."""
    place = np.arange(8)
    seen = (place <= place[:, None]) & (place > place[:, None] - window) & (place != hole)
    seen |= np.eye(8, dtype=bool)
    attention = np.random.default_rng(seed).random((2, 8, 8)) * seen
    return attention / attention.sum(-1, keepdims=True), seen.sum(1)


@pytest.mark.parametrize(("window", "hole"), [(8, 8), (3, 8), (3, 4), (1, 8)])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_receptive_field_is_what_each_row_sees(window, hole, kind):
    attention, seen = banded(window, hole)
    result = rollout([kind(attention)], residual=0, receptive_field=True)
    np.testing.assert_allclose(result, attention.mean(0) / seen[:, None], rtol=1e-12)
    rows = rollout_rows([kind(attention)] * 3, [7, 2], residual=0.4, receptive_field=True)
    whole = reference.products([attention] * 3, residual=0.4, receptive_field=True)[-1]
    np.testing.assert_allclose(rows, whole[[7, 2]], rtol=1e-12)


@pytest.mark.parametrize(("window", "hole"), [(8, 8), (3, 4)])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_even_attention_keeps_the_mask_and_nothing_else(window, hole, kind):
    attention, _ = banded(window, hole)
    even = (attention > 0).any(0)[None] / (attention > 0).any(0).sum(1)[None, :, None]
    layers = even_attention([kind(attention), kind(attention[::-1].copy())])
    expected = reference.products([even] * 2, residual=0.3)[-1]
    result = rollout(layers, residual=0.3)
    assert isinstance(result, type(kind(attention)))
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    np.testing.assert_allclose(rollout_rows(layers, [6], residual=0.3), expected[[6]], rtol=1e-12)


def test_receptive_field_of_attention_to_all_divides_by_all():
    [layer] = random_layers(3, depth=1, heads=2, size=5)
    result = rollout([layer], residual=0, receptive_field=True)
    np.testing.assert_allclose(result, layer.mean(0) / 5, rtol=1e-12)


def test_receptive_field_takes_early_bias_away_from_even_attention():
    size = 40
    even = [np.tril(np.ones((size, size))) / np.arange(1, size + 1)[:, None]] * 6
    others = [rollout(even, receptive_field=option)[-1, :-1] for option in (False, True)]
    plain, normalized = (row / row.sum() for row in others)
    assert plain[0] > 10 / size
    assert normalized[0] < 3 / size


def test_attention_received_is_the_mean_column_sum():
    layers = random_layers(6, depth=3, heads=2, size=7, batch=2)
    expected = np.mean([layer.mean(1).sum(1) for layer in layers], axis=0)
    np.testing.assert_allclose(attention_received(layers), expected, rtol=1e-12)


GOOD = np.full((2, 3, 3), 1 / 3)


@pytest.mark.parametrize(
    ("layers", "how", "message"),
    [
        ([], {}, "at least one layer"),
        ([GOOD, GOOD[:, :2, :2]], {}, "layer 1 has shape"),
        ([GOOD[:, :2]], {}, "2 queries and 3 keys"),
        ([GOOD * np.nan], {}, "must be 0 or more, got a smallest entry of nan"),
        ([GOOD - 0.5], {}, "must be 0 or more"),
        ([GOOD + np.inf], {}, "finite"),
        ([GOOD[:0]], {}, "empty"),
        ([GOOD[0, 0]], {}, "got shape"),
        ([GOOD], {"residual": 1.4}, r"residual must be in \[0, 1\], got 1.4"),
        ([GOOD], {"discard_ratio": 1.0}, r"discard ratio must be in \[0, 1\), got 1.0"),
        ([GOOD], {"head_fusion": "median"}, "got 'median'"),
        ([GOOD], {"start_layer": 1}, r"start_layer must be in \[0, 0\], got 1"),
        ([GOOD], {"start_layer": -1}, "start_layer"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_input_is_named(layers, how, message):
    for function in (rollout, rollout_by_layer, lambda *a, **k: rollout_rows(*a, [0], **k)):
        with pytest.raises(ValueError, match=message):
            function(layers, **how)


def test_as_many_rows_as_there_are_need_not_be_in_order():
    layers = random_layers(7, depth=2, heads=2, size=3)
    np.testing.assert_allclose(rollout_rows(layers, [2, 0, 0]), rollout(layers)[[2, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_rows_may_be_of_any_whole_type(dtype):
    layers = random_layers(7, depth=2, heads=2, size=3)
    rows = torch.tensor([2, 0], dtype=dtype)
    np.testing.assert_allclose(rollout_rows(layers, rows), rollout(layers)[[2, 0]])


@pytest.mark.parametrize("discard_ratio", [0.0, 0.3])
def test_attention_that_could_be_led_back_is_taken_as_numbers(discard_ratio):
    layers = [torch.tensor(each) for each in random_layers(7, depth=2, heads=2, size=3)]
    leading = [layer.clone().requires_grad_() * 1 for layer in layers]
    for function in (rollout, rollout_by_layer, lambda *a, **k: rollout_rows(*a, [0, 2], **k)):
        found = function(leading, discard_ratio=discard_ratio)
        torch.testing.assert_close(found, function(layers, discard_ratio=discard_ratio))


RANGES = [[], [3], [-4], np.array([0.5]), np.array([[0]]), np.array([True, False, True])]


@pytest.mark.parametrize("rows", RANGES)
@pytest.mark.usefixtures("without_type_checks")
def test_rows_out_of_range_are_named(rows):
    with pytest.raises(ValueError, match="row"):
        rollout_rows([GOOD], rows)
