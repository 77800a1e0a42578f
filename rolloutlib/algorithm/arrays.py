"""NumPy and torch arrays through one algorithm: NumPy in gives NumPy out."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

Array = np.ndarray | torch.Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type to accumulate in: float64 stays, everything narrower becomes float32."""
    return torch.promote_types(dtype, torch.float32)


def as_tensor(array: Array) -> torch.Tensor:
    """The same numbers as a torch tensor, copied only where torch must."""
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if not isinstance(array, torch.Tensor):
        raise ValueError(f"expected a NumPy array or a torch tensor, got {type(array).__name__}")
    return array


def as_numpy(array: Array) -> np.ndarray:
    """The same numbers in NumPy, which has no bfloat16 and follows no gradients."""
    tensor = as_tensor(array).detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def numpy_too(function: Callable) -> Callable:
    """Let a function of one torch tensor take a NumPy array as well, and answer in kind.

    The function gets at least float32: half types are too coarse to add up in.
    """

    @functools.wraps(function)
    def either(array: Array, *args, **kwargs) -> Array:
        tensor = as_tensor(array)
        result = function(tensor.to(working_dtype(tensor.dtype)), *args, **kwargs)
        return result.numpy() if isinstance(array, np.ndarray) else result

    return either


def positions(rows: Sequence[int] | Array, size: int) -> torch.Tensor:
    """Row numbers as indices from 0; negative ones count from the end.

    Raises ValueError for no rows, for what is no list of whole numbers, and out of range.

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
    """The positions as a slice where they follow each other, which copies nothing."""
    numbers = positions.cpu().numpy()  # small steps take less time in NumPy
    run = slice(int(numbers[0]), int(numbers[0]) + len(numbers))
    in_order = np.array_equal(numbers, np.arange(run.start, run.stop))
    return run if in_order else positions


@contextmanager
def vanishing_flushed() -> Iterator[None]:
    """Inside the block, or the function so decorated, numbers below 1e-38 become 0 in float32.

    Peaked attention is full of such denormal numbers, with which a processor computes tens of
    times more slowly. The thread's own setting comes back afterwards.
    """
    kept = torch.tensor(2.0**-140).item() == 0  # torch sets the flag, but does not tell it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(kept)
