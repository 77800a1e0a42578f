"""What happens to one layer's attention before layers are composed."""

import numpy as np
import torch
from jaxtyping import Float, Int

from rolloutlib.algorithm.arrays import Array, consecutive, numpy_too, working_dtype

HEAD_FUSIONS = ("mean", "max", "min")


def require_fusion(how: str) -> None:
    """Raise a ValueError that names the known fusions unless `how` is one of them."""
    if how not in HEAD_FUSIONS:
        raise ValueError(f"head fusion must be one of {', '.join(HEAD_FUSIONS)}, got {how!r}")


def require_share(name: str, value: float, *, below_one: bool = False) -> None:
    """Raise a ValueError unless `value` is in [0, 1], or in [0, 1) with `below_one`."""
    if not (0 <= value < 1 if below_one else 0 <= value <= 1):
        raise ValueError(f"{name} must be in [0, 1{')' if below_one else ']'}, got {value}")


def require_attention(attention: torch.Tensor) -> None:
    """Raise a ValueError if the attention is empty, negative, NaN or infinite."""
    if attention.numel() == 0:
        raise ValueError(f"attention is empty: got shape {tuple(attention.shape)}")
    low, high = attention.aminmax()
    if not low >= 0:  # a NaN makes both bounds NaN, and every comparison with NaN is false
        raise ValueError(f"attention must be 0 or more, got a smallest entry of {low.item()}")
    if high == torch.inf:
        raise ValueError("attention must be finite, got inf")


@numpy_too
def fuse_heads(
    attention: Float[Array, "*batch head query key"], how: str = "mean"
) -> Float[Array, "*batch query key"]:
    """Fuse a layer's heads into one matrix, entry by entry.

    The mean is what Abnar & Zuidema (2020) use. The maximum keeps every strong connection, the
    minimum only what all heads share; their rows no longer sum to 1. Half precision is averaged in
    float32.

    Raises ValueError for an unknown `how`, for fewer than three axes, and for attention that is
    empty, negative, NaN or infinite.

    >>> heads = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    >>> fuse_heads(heads)
    array([[0.5, 0.5],
           [0.5, 0.5]])
    >>> fuse_heads(heads, "min")
    array([[0. , 0. ],
           [0.5, 0.5]])
    """
    require_fusion(how)
    if attention.ndim < 3:
        raise ValueError(f"expected attention [... head query key], got {tuple(attention.shape)}")
    require_attention(attention)
    return merge_heads(attention, how)


def merge_heads(
    attention: Float[torch.Tensor, "*batch head query key"], how: str
) -> Float[torch.Tensor, "*batch query key"]:
    """`fuse_heads` without its checks, each of which would read all heads again."""
    if attention.shape[-3] == 1:  # a copy takes a sixth of the time of a mean over one head
        return attention.squeeze(-3).to(working_dtype(attention.dtype), copy=True)
    if how == "mean":
        return attention.mean(-3, dtype=working_dtype(attention.dtype))
    fused = attention.amax(-3) if how == "max" else attention.amin(-3)
    return fused.to(working_dtype(attention.dtype))


def attended(
    attention: Float[torch.Tensor, "*batch head query key"],
) -> Int[torch.Tensor, "*batch query"]:
    """How many keys each row attends to with any head: those whose attention is not 0."""
    return (attention > 0).any(-3).sum(-1)


@numpy_too
def normalize_rows(matrix: Float[Array, "*batch query key"]) -> Float[Array, "*batch query key"]:
    """Divide each row by its sum, so that it sums to 1; rows of zeros stay zero.

    >>> normalize_rows(np.array([[2.0, 2.0], [0.0, 0.0]]))
    array([[0.5, 0.5],
           [0. , 0. ]])
    """
    sums = matrix.sum(-1, keepdim=True)
    return matrix / torch.where(sums == 0, 1, sums)


@numpy_too
def add_residual(
    fused: Float[Array, "*batch query query"], residual: float = 0.5
) -> Float[Array, "*batch query query"]:
    """Mix in the skip connection around attention, as a share `residual` of the identity.

    (1 - r)·A + r·I, then rows normalised. If rows of A sum to 1 and r = 0.5, this is the
    (A + I) / 2 of Abnar & Zuidema (2020, section 3). With r = 0, A is returned unchanged.

    Raises ValueError for a residual outside [0, 1] and for matrices that are not square.

    >>> add_residual(np.array([[0.0, 1.0], [1.0, 0.0]]))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    require_share("residual", residual)
    if fused.ndim < 2 or fused.shape[-1] != fused.shape[-2]:
        raise ValueError(f"expected square matrices [... query key], got {tuple(fused.shape)}")
    return mix_identity(fused.clone(), torch.arange(fused.shape[-1]), residual)


def mix_identity(
    fused: Float[torch.Tensor, "*batch row key"], rows: torch.Tensor, residual: float
) -> Float[torch.Tensor, "*batch row key"]:
    """`add_residual` in place, for some rows of a matrix: `rows` are their numbers."""
    if residual == 0:
        return fused
    sums = fused.sum(-1) * (1 - residual) + residual  # above 0, because the residual is
    fused *= ((1 - residual) / sums)[..., None]
    chosen = consecutive(rows)
    if isinstance(chosen, slice):
        fused.diagonal(chosen.start, -2, -1).add_(residual / sums)
    else:
        fused[..., torch.arange(len(rows)), rows] += residual / sums
    return fused


@numpy_too
def discard_lowest(
    fused: Float[Array, "*batch query key"], ratio: float
) -> Float[Array, "*batch query key"]:
    """Discard the smallest entries of each matrix as noise: the share `ratio` of them.

    The threshold is the `int(n * ratio)`-th smallest (from 0) of a matrix's n entries. Entries
    below it become 0, and rows are normalised again. Entries equal to it are kept, even if rounding
    changed their last digits, so fewer than `ratio` of them may be discarded. A ratio of 0 returns
    the matrix unchanged.

    Raises ValueError for a ratio outside [0, 1).

    >>> discard_lowest(np.array([[0.1, 0.9], [0.4, 0.6]]), 0.5)
    array([[0., 1.],
           [0., 1.]])
    """
    require_share("discard ratio", ratio, below_one=True)
    if ratio == 0:
        return fused
    return clear_lowest(fused.detach().clone(memory_format=torch.contiguous_format), ratio)


def clear_lowest(
    fused: Float[torch.Tensor, "*batch query key"], ratio: float
) -> Float[torch.Tensor, "*batch query key"]:
    """`discard_lowest` in place, for a ratio above 0."""
    entries = fused.view(-1, fused.shape[-2:].numel())
    threshold = kth_smallest(entries, int(entries.shape[1] * ratio))
    tied = threshold * (1 - 4 * torch.finfo(fused.dtype).eps)
    highest = torch.nextafter(tied, torch.full_like(tied, -torch.inf)).tolist()
    for matrix, goes in zip(entries, highest, strict=True):  # up to this number
        torch.nn.functional.threshold_(matrix, goes, 0)  # one pass, and no mask in memory
    sums = fused.sum(-1, keepdim=True)
    return fused.div_(sums.masked_fill_(sums == 0, 1))


def kth_smallest(values: Float[torch.Tensor, "batch n"], k: int) -> Float[torch.Tensor, " batch"]:
    """The k-th smallest entry (from 0) of each row, by selection instead of sorting."""
    if values.device.type != "cpu":
        return values.kthvalue(k + 1).values
    return torch.tensor([_kth(row, k) for row in values.detach().numpy()], dtype=values.dtype)


def _kth(row: Float[np.ndarray, " n"], k: int) -> np.floating:
    """NumPy's selection, several times faster than torch's on the CPU, without the entries that
    equal the smallest: with the zeros of causal attention it would take ten times as long."""
    lowest = row.min()
    rest = row[~(row <= lowest)]
    tied = len(row) - len(rest)
    return lowest if k < tied else np.partition(rest, k - tied)[k - tied]
