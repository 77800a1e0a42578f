"""Rollout over the patches of frames, over the frames of a clip, and over both together.

All three compose layers by `rolloutlib.rollout`; only the axes are prepared here.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float

from rolloutlib.algorithm.arrays import Array, as_tensor, numpy_too
from rolloutlib.algorithm.composition import rollout
from rolloutlib.algorithm.layers import Layer


def spatial_rollout(
    layers: Iterable[Float[Array, "frame head token token"] | Layer], **settings
) -> Float[Array, "frame token token"]:
    """Rollout within each frame: how much of each patch could have reached each patch.

    R = Ā_L · … · Ā_1 for every frame, where Ā is the mean over heads plus the identity, with rows
    that sum to 1 (Abnar & Zuidema 2020). Rows of R sum to 1; nothing is normalised at the end.

    layers: first layer first, each with all frames as its batch; recorded layers work too. With
    a generator, each is used once and freed, so memory does not grow with their number.
    settings: `head_fusion`, `residual`, `discard_ratio`, `start_layer` as `rollout` takes them.

    Raises ValueError if a layer does not have four axes, and as `rollout` does.

    >>> frames = np.full((5, 2, 3, 3), 1 / 3)  # 5 frames, 2 heads, 3 tokens
    >>> spatial_rollout([frames, frames]).shape
    (5, 3, 3)
    """
    return rollout(map(_with_frames, layers), **settings)


def _with_frames(layer: Array | Layer) -> Array | Layer:
    if not isinstance(layer, Layer) and layer.ndim != 4:
        raise ValueError(f"expected layers [frame head token token], got {tuple(layer.shape)}")
    return layer


def temporal_rollout(
    layers: Iterable[Array | Layer], refiner_id: int | None = None, *, axes: str = "", **settings
) -> Float[Array, "T T"]:
    """Rollout over frames, for one instance: how much of each frame could have reached each frame.

    R = Ā_N · … · Ā_0, where Ā = (A + I) with rows that sum to 1 and A is the instance's attention
    over the T frames. Rows of R sum to 1; nothing is normalised at the end.

    layers: first layer first, each `[T T]`, any shape that `select_instance_attention` takes, or
    a recorded layer whose batch is the instances.
    refiner_id: which instance; None if every layer is `[T T]`.
    axes: names of the layers' axes, as `select_instance_attention` takes them.
    settings: `head_fusion` (of recorded layers), `residual`, `discard_ratio`, `start_layer` as
    `rollout` takes them.

    Raises ValueError as `select_instance_attention` and `rollout` do, such as for layers whose T
    differ.

    >>> backward = np.array([[1.0, 0.0], [1.0, 0.0]])  # the second frame looks at the first
    >>> temporal_rollout([backward, backward])
    array([[1.  , 0.  ],
           [0.75, 0.25]])
    """
    fusion = settings.get("head_fusion", "mean")
    chosen = (_of_instance(layer, refiner_id, axes, fusion) for layer in layers)
    return rollout(chosen, **settings)


def _of_instance(
    layer: Array | Layer, refiner_id: int | None, axes: str, fusion: str
) -> Float[Array, "query key"]:
    if not hasattr(layer, "fused"):
        return select_instance_attention(layer, refiner_id, axes)
    fused = layer.fused(torch.arange(layer.shape[1]), fusion)
    return fused[_instance(refiner_id, fused.shape, axis=0)]


@numpy_too
def select_instance_attention(
    attention: Float[Array, "*axes"], refiner_id: int | None, axes: str = ""
) -> Float[Array, "T T"]:
    """Select the `[T T]` matrix of one instance from a refiner's attention.

    axes: what each axis is, such as "instance head time time": "instance" at most once, of which
    `refiner_id` is chosen; "time" twice, of queries and then of keys; "head", which is averaged;
    and "1" for an axis of length 1. Without an instance, `refiner_id` is not looked at.

    By default the shape tells which axis is which, and only an unambiguous shape is accepted:
    "time time", "instance time time", "time instance time", "instance head time time" and
    "1 instance head time time".

    Raises ValueError, which names the shape, for an instance out of range; for axes that do not
    fit; and without axes if the last ones are not `[T T]`, or if two readings fit: `[n n n]`, and
    `[1 n T T]`, which may be one instance with n heads or n instances of a batch of one.

    >>> three = np.stack([np.eye(4), np.full((4, 4), 0.25), np.eye(4)[::-1]])
    >>> select_instance_attention(three, 1)[0]
    array([0.25, 0.25, 0.25, 0.25])
    >>> select_instance_attention(three[:, None, :3, :3], 2, "instance 1 time time")[0]
    array([0., 0., 0.])
    >>> select_instance_attention(three, 3)
    Traceback (most recent call last):
    ...
    ValueError: expected refiner_id in [0, 2] for attention of shape (3, 4, 4), got 3
    """
    shape = tuple(attention.shape)
    names = axes.split() if axes else _only_reading(shape)
    _require_axes(names, shape)
    if "instance" in names:
        place = names.index("instance")
        attention = attention.select(place, _instance(refiner_id, shape, place))
        names = [*names[:place], *names[place + 1 :]]
    merged = [place for place, name in enumerate(names) if name != "time"]
    return attention.mean(merged) if merged else attention


_LAYOUTS = {  # by the number of axes, and whether the instances are in the middle
    (2, False): "time time",
    (3, False): "instance time time",
    (3, True): "time instance time",
    (4, False): "instance head time time",
    (5, False): "1 instance head time time",
}


def _only_reading(shape: tuple[int, ...]) -> list[str]:
    """The names of the axes of this shape; ValueError unless exactly one layout fits it."""
    instances_in_middle = len(shape) == 3 and shape[0] == shape[2]
    if 0 in shape or not 2 <= len(shape) <= 5 or (len(shape) == 5 and shape[0] != 1):
        problem = "has none of the layouts [T T], [instance T T] and [instance head T T]"
    elif shape[-1] != shape[-2] and not instances_in_middle:
        problem = "does not end in two axes of equal length, its frames"
    elif instances_in_middle and shape[0] == shape[1] > 1:
        problem = "may be [instance T T] or [T instance T]"
    elif len(shape) == 4 and shape[0] == 1 < shape[1]:
        problem = f"may be one instance with {shape[1]} heads or a batch of {shape[1]} instances"
    else:
        return _LAYOUTS[len(shape), instances_in_middle and shape[1] != shape[2]].split()
    raise ValueError(
        f"expected a shape that shows the [T T] of one instance, got {shape}, which {problem}; "
        'name its axes, such as axes="instance time time"'
    )


def _require_axes(names: list[str], shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless these names fit the axes of this shape."""
    sizes = [size for size, name in zip(shape, names, strict=False) if name == "time"]
    known = {*names} <= {"instance", "head", "time", "1"} and names.count("instance") <= 1
    single = all(size == 1 for size, name in zip(shape, names, strict=False) if name == "1")
    if not (known and single and len(names) == len(shape) and len(sizes) == 2 and 0 not in shape):
        expected = 'a name for each axis: "time" twice, and "instance", "head" or "1" (of length 1)'
        raise ValueError(f"expected {expected}, got {' '.join(names)!r} for shape {shape}")
    if sizes[0] != sizes[1]:
        raise ValueError(f"expected two axes of as many frames, got {sizes} in shape {shape}")


def _instance(refiner_id: int | None, shape: tuple[int, ...], axis: int) -> int:
    """The number of an instance, checked against the axis of instances."""
    if refiner_id is None or not 0 <= refiner_id < shape[axis]:
        needed = f"refiner_id in [0, {shape[axis] - 1}] for attention of shape {tuple(shape)}"
        raise ValueError(f"expected {needed}, got {refiner_id}")
    return refiner_id


@numpy_too
def minmax_rows(matrix: Float[Array, "*batch query key"]) -> Float[Array, "*batch query key"]:
    """Scale each row to [0, 1], from its lowest key to its highest.

    (x - min) / (max - min) per row: for display only, as rows then no longer sum to 1. A row of
    equal entries becomes 0.

    >>> minmax_rows(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    array([[0. , 0.5, 1. ],
           [0. , 0. , 0. ]])
    """
    low, high = matrix.aminmax(dim=-1, keepdim=True)
    return (matrix - low) / torch.where(high > low, high - low, 1)


def space_time_relevance(
    temporal: Float[Array, "*instance_and_frame"], spatial: Float[Array, "*frame_and_grid"]
) -> Float[Array, "*instance_frame_and_grid"]:
    """When and where an instance looked: one distribution over all patches of a clip.

    C(s, p) = τ(s) · σ_s(p): temporal relevance τ over the frames s, such as a row of
    `temporal_rollout`, times the spatial map σ_s of each frame, such as a row of its
    `spatial_rollout`. Both are scaled to sum to 1 first, so C sums to 1, and summing it over a
    frame's patches gives τ back.

    temporal: `[... frame]`.  spatial: `[frame ...]`.  The result: `[... frame ...]`.

    Raises ValueError if the numbers of frames differ, if an entry is negative or not finite, and
    if τ or a frame's map is zero everywhere, so that it says nothing.

    >>> when = np.array([0.75, 0.25])
    >>> where = np.array([[1.0, 1.0], [0.0, 3.0]])
    >>> space_time_relevance(when, where)
    array([[0.375, 0.375],
           [0.   , 0.25 ]])
    """
    when, where = as_tensor(temporal), as_tensor(spatial)
    if where.ndim < 2 or when.ndim < 1 or when.shape[-1] != where.shape[0]:
        raise ValueError(
            "expected temporal [... frame] and spatial [frame ...] of the same frames, "
            f"got {tuple(when.shape)} and {tuple(where.shape)}"
        )
    when = _distribution(when, "temporal relevance")
    where = _distribution(where.flatten(1), "each frame's spatial map").view(where.shape)
    both = when.reshape(*when.shape, *[1] * (where.ndim - 1)) * where.to(when)
    return both.numpy() if isinstance(temporal, np.ndarray) else both


def _distribution(values: torch.Tensor, name: str) -> torch.Tensor:
    """The values scaled to sum to 1 along the last axis."""
    if not (values.isfinite() & (values >= 0)).all():
        raise ValueError(f"expected {name} to be finite and 0 or more, got other numbers")
    total = values.sum(-1, keepdim=True)
    if not (total > 0).all():
        raise ValueError(f"expected {name} to be above zero somewhere, got zeros only")
    return values / total
