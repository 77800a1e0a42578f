"""NumPy and torch through one algorithm, row numbers, and numbers that vanish."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rolloutlib.algorithm import arrays
from rolloutlib.algorithm.arrays import (
    as_numpy,
    as_tensor,
    consecutive,
    numpy_too,
    on_every_core,
    positions,
    vanishing_flushed,
    working_dtype,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float32),
        (torch.bool, torch.float32),
    ],
)
def test_nothing_is_added_up_in_less_than_float32(given, expected):
    assert working_dtype(given) == expected


# Conversions


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, bool])
def test_arrays_keep_their_numbers_there_and_back(dtype):
    array = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(dtype)
    assert as_tensor(array).numpy().dtype == dtype
    np.testing.assert_array_equal(as_numpy(array), array, strict=True)


def test_memory_is_shared_where_torch_can():
    array, tensor = np.zeros((2, 3)), torch.zeros(2)
    as_tensor(array)[1, 2] = 5
    assert array[1, 2] == 5
    assert as_tensor(tensor) is tensor


@pytest.mark.parametrize("kind", ["backwards", "not to be written", "transposed"])
def test_arrays_that_torch_cannot_share_are_copied(kind):
    array = np.arange(6.0).reshape(2, 3)
    before = array.copy()
    array.flags.writeable = kind != "not to be written"
    array = {"backwards": array[::-1], "transposed": array.T}.get(kind, array)
    tensor = as_tensor(array)
    np.testing.assert_array_equal(tensor, array)
    tensor.zero_()
    np.testing.assert_array_equal(np.sort(array.ravel()), before.ravel())


def test_bfloat16_and_gradients_come_to_numpy():
    tensor = torch.tensor([1.5, 2.25], requires_grad=True)
    np.testing.assert_array_equal(as_numpy(tensor), np.float32([1.5, 2.25]), strict=True)
    half = as_numpy(tensor.detach().bfloat16())
    np.testing.assert_array_equal(half, np.float32([1.5, 2.25]), strict=True)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("wrong", [[[1.0]], 1.0, None])
def test_what_is_no_array_is_named(wrong):
    message = f"expected a NumPy array or a torch tensor, got {type(wrong).__name__}"
    for convert in (as_tensor, as_numpy, numpy_too(torch.abs)):
        with pytest.raises(ValueError, match=message):
            convert(wrong)


@numpy_too
def scaled_sum(tensor, factor=1, *, shift=0):
    """Adds up."""
    return tensor.sum() * factor + shift


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_function_answers_in_kind_and_in_the_working_type(dtype):
    tensor = torch.full((5000,), 0.1).to(dtype)
    expected = 2 * float(tensor.double().sum()) + 3
    answer = scaled_sum(tensor, 2, shift=3)
    assert isinstance(answer, torch.Tensor) and answer.dtype == working_dtype(dtype)
    assert float(answer) == pytest.approx(expected, rel=1e-6)
    in_numpy = scaled_sum(tensor.numpy(), 2, shift=3)
    assert isinstance(in_numpy, np.ndarray) and in_numpy.dtype == answer.numpy().dtype
    assert in_numpy == pytest.approx(expected, rel=1e-6)
    assert (scaled_sum.__name__, scaled_sum.__doc__) == ("scaled_sum", "Adds up.")


def test_a_function_of_tensors_can_be_led_back():
    tensor = torch.ones(3, requires_grad=True)
    scaled_sum(tensor, 4).backward()
    assert tensor.grad.tolist() == [4, 4, 4]


# Row numbers


@given(st.data(), st.integers(1, 50))
def test_positions_count_from_0_whichever_way_they_were_given(data, size):
    rows = data.draw(st.lists(st.integers(-size, size - 1), min_size=1))
    expected = [range(size)[row] for row in rows]
    for given_as in (rows, tuple(rows), np.array(rows), torch.tensor(rows, dtype=torch.int32)):
        found = positions(given_as, size)
        assert found.dtype == torch.int64 and found.tolist() == expected


def test_a_range_is_a_list_of_positions():
    assert positions(range(2, 5), 5).tolist() == [2, 3, 4]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"expected a list of row numbers, at least one, got \[\]"),
        ([1.0], r"expected a list of row numbers, at least one, got \[1.0\]"),
        ([True, False], r"at least one, got \[True, False\]"),
        (3, "at least one, got 3"),
        ([[0, 1]], r"at least one, got \[\[0, 1\]\]"),
        ([0, 5], r"rows must be in \[-5, 4\], got \[0, 5\]"),
        ([-6], r"rows must be in \[-5, 4\], got \[-6\]"),
    ],
)
def test_what_is_no_row_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        positions(rows, 5)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6)
    | st.builds(
        lambda start, length: list(range(start, start + length)),
        st.integers(0, 20),
        st.integers(1, 9),
    )
)
def test_rows_in_order_are_a_slice_of_the_same_rows(rows):
    array = torch.arange(100, 140)
    chosen = consecutive(torch.tensor(rows))
    assert array[chosen].tolist() == [100 + row for row in rows]
    in_order = rows == list(range(rows[0], rows[0] + len(rows)))
    assert isinstance(chosen, slice) == in_order


# Numbers that vanish

SMALLEST = 2.0**-126  # below it float32 numbers are denormal


def vanishes():
    return (torch.tensor([SMALLEST]) / 4).item() == 0


@pytest.fixture(params=[True, False], ids=["flushed before", "kept before"])
def flush(request):
    torch.set_flush_denormal(request.param)
    yield request.param
    torch.set_flush_denormal(False)


def test_vanishing_numbers_are_0_inside_of_the_block_alone(flush):
    assert vanishes() == flush
    with vanishing_flushed():
        assert vanishes()
        assert (torch.tensor([SMALLEST]) * 2).item() == 2 * SMALLEST
    assert vanishes() == flush


def test_the_setting_comes_back_after_an_error(flush):
    @vanishing_flushed()
    def divide():
        assert vanishes()
        return 1 / 0

    for _ in range(2):  # a decorated function can be called again
        with pytest.raises(ZeroDivisionError):
            divide()
        assert vanishes() == flush


# Cores

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets how many threads torch has; afterwards it has as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order(threads, count):
    threads(count)

    def slow_at_first(number):
        time.sleep(0.02 / (number + 1))
        return number**2

    assert list(on_every_core(slow_at_first, range(7), CPU)) == [n**2 for n in range(7)]


def test_several_run_at_a_time_each_on_one_core(threads):
    threads(3)
    together = threading.Barrier(3, timeout=60)  # nobody passes before three are there

    def meet(_):
        together.wait()
        return torch.get_num_threads(), (torch.tensor([2.0**-126]) / 4).item()

    assert list(on_every_core(meet, range(6), CPU)) == [(1, 0.0)] * 6
    assert torch.get_num_threads() == 3


def test_threads_to_come_have_as_many_cores_as_before(threads, monkeypatch):
    """Also where the workers begin after everything has been handed out to them."""
    threads(3)
    begin = arrays._keep_to_one_core
    monkeypatch.setattr(arrays, "_keep_to_one_core", lambda: (time.sleep(0.1), begin()))
    arrays._workers.cache_clear()
    assert list(on_every_core(str, range(3), CPU)) == ["0", "1", "2"]
    counted = []
    later = threading.Thread(target=lambda: counted.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert counted == [3]


def test_what_one_raises_is_raised(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        list(on_every_core(lambda number: 1 / number, [2, 1, 0, 3], CPU))


def test_a_forked_process_has_workers_of_its_own(threads):
    threads(2)
    assert list(on_every_core(str, range(3), CPU)) == ["0", "1", "2"]
    child = os.fork()
    if child == 0:
        os._exit(0 if list(on_every_core(str, range(3), CPU)) == ["0", "1", "2"] else 1)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
    assert (ended, status) == (child, 0)


def test_a_gpu_gets_one_step_after_another(threads):
    threads(2)
    here = threading.get_ident()
    meta = torch.device("meta")
    assert list(on_every_core(lambda _: threading.get_ident(), range(3), meta)) == [here] * 3
