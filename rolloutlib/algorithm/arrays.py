"""NumPy and torch arrays through one algorithm: NumPy in gives NumPy out."""

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

Array = np.ndarray | torch.Tensor
Item, Result = TypeVar("Item"), TypeVar("Result")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float64 stays float64, narrower types become float32."""
    return torch.promote_types(dtype, torch.float32)


def as_tensor(array: Array) -> torch.Tensor:
    """The same numbers as a torch tensor, copied only if torch requires it."""
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if not isinstance(array, torch.Tensor):
        raise ValueError(f"expected a NumPy array or a torch tensor, got {type(array).__name__}")
    return array


def as_numpy(array: Array) -> np.ndarray:
    """The same numbers as a NumPy array: detached, and in float32 if they were bfloat16."""
    tensor = as_tensor(array).detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def numpy_too(function: Callable) -> Callable:
    """Let a function of a torch tensor take a NumPy array too: NumPy in gives NumPy out.

    The tensor is converted to at least float32: half precision is too coarse for sums.
    """

    @functools.wraps(function)
    def either(array: Array, *args, **kwargs) -> Array:
        tensor = as_tensor(array)
        result = function(tensor.to(working_dtype(tensor.dtype)), *args, **kwargs)
        return result.numpy() if isinstance(array, np.ndarray) else result

    return either


def positions(rows: Sequence[int] | Array, size: int) -> torch.Tensor:
    """Row numbers as indices from 0; negative ones count from the end.

    Raises ValueError unless the rows are a non-empty list of integers in range.

    >>> positions([0, -1], 5)
    tensor([0, 4])
    """
    numbers = torch.as_tensor(rows).cpu()
    whole = not (numbers.is_floating_point() or numbers.dtype == torch.bool)
    if numbers.ndim != 1 or len(numbers) == 0 or not whole:
        raise ValueError(f"expected a list of row numbers, at least one, got {rows!r}")
    numbers = numbers.long()
    if numbers.min() < -size or numbers.max() >= size:
        raise ValueError(f"rows must be in [{-size}, {size - 1}], got {numbers.tolist()}")
    return numbers % size


def consecutive(positions: torch.Tensor) -> slice | torch.Tensor:
    """Turn consecutive positions into a slice, so that indexing copies nothing."""
    numbers = positions.cpu().numpy()  # faster than torch on small arrays
    run = slice(int(numbers[0]), int(numbers[0]) + len(numbers))
    in_order = np.array_equal(numbers, np.arange(run.start, run.stop))
    return run if in_order else positions


@contextmanager
def vanishing_flushed() -> Iterator[None]:
    """Round float32 numbers below 1e-38 to 0 inside the block or the decorated function.

    Peaked attention is full of these denormal numbers, and processors compute with them tens of
    times more slowly. Afterwards the thread gets its previous setting back.
    """
    kept = torch.tensor(2.0**-140).item() == 0  # torch can set this flag, but not read it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(kept)


def on_every_core(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device
) -> Iterator[Result]:
    """The function of each item, in order; on the CPU, as many at a time as torch has threads.

    Each runs on one core. If several cores shared a step that fits the cache, each of its small
    products would wait for the slowest of them. So does what the caller makes of a result before
    it takes the next one: torch's own threads would compete with the workers.
    """
    every = torch.get_num_threads()
    if device.type != "cpu" or min(every, len(items)) == 1:
        yield from map(function, items)
        return
    pool, ahead = _workers(every), deque()
    torch.set_num_threads(1)
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > every:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        torch.set_num_threads(every)
        wait([future for future in ahead if not future.cancel()])


@functools.cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them for each layer takes as long as a part of its work."""
    every, started = torch.get_num_threads(), threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, initializer=_keep_to_one_core)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(every)  # the workers' number is also that of threads to come
    return pool


os.register_at_fork(after_in_child=_workers.cache_clear)  # a fork has none of the threads


def _keep_to_one_core() -> None:
    torch.get_num_threads()  # gives a new thread everyone's number, which would else come later
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a setting of each thread, see `vanishing_flushed`
