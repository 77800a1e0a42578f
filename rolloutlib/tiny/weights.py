"""Initial weights that save a small model from discovering the obvious."""

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from rolloutlib.tiny.screens import NUMBERS


def sine_cosine_positions(
    grid: tuple[int, int], width: int
) -> Float[torch.Tensor, "patch {width}"]:
    """The place of a patch, as sines and cosines of its row and column (Vaswani et al. 2017)."""
    waves = torch.exp(-torch.arange(width // 4) * np.log(1000.0) / (width // 4))
    ys, xs = torch.meshgrid(*(torch.arange(n, dtype=torch.float) for n in grid), indexing="ij")
    angles = torch.stack([ys.flatten(), xs.flatten()], 1)[..., None] * waves
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


@torch.no_grad()
def look_for_the_same(query: nn.Linear, key: nn.Linear, heads: int) -> None:
    """Start attention as "same content, same place": a head's queries and keys are equal.

    heads: of the keys; each may serve several heads of the queries.
    """
    for projection in key.weight.chunk(heads):
        nn.init.orthogonal_(projection)
    served = query.out_features // key.out_features
    query.weight.copy_(_repeat_heads(key.weight, heads, served))


@torch.no_grad()
def copy_weakly(value: nn.Linear, output: nn.Linear, heads: int, strength: float = 0.4) -> None:
    """Start a layer as a weak copy of what it attends to, each head in its own subspace.

    heads: of the values; each may serve several heads of the queries.
    """
    value.weight.copy_(torch.eye(*value.weight.shape) * strength**0.5)
    served = output.in_features // value.out_features
    output.weight.copy_(_repeat_heads(value.weight, heads, served).T / served)


def _repeat_heads(weight: torch.Tensor, heads: int, times: int) -> torch.Tensor:
    return weight.unflatten(0, (heads, -1)).repeat_interleave(times, 0).flatten(0, 1)


CYCLES = (0.5, 0.75, 1, 1.5, 2, 3, 5, 8)  # of a number's sines and cosines over 0..999


def number_codes() -> Float[torch.Tensor, "number code"]:
    """Each of NUMBERS as sines and cosines, so that neighbours are similar.

    >>> codes = number_codes()
    >>> likeness = codes @ codes[60] / codes[60].norm() ** 2
    >>> likeness.argmax().item(), round(likeness[61].item(), 2), round(likeness[90].item(), 2)
    (60, 0.98, 0.07)
    """
    angles = torch.tensor(NUMBERS)[:, None] / 1000 * 2 * torch.pi * torch.tensor(CYCLES)
    return torch.cat([angles.sin(), angles.cos()], 1)


def cosine_basis(fine: int, coarse: int, side: int = 16) -> Float[torch.Tensor, "wave pixel"]:
    """A patch of (3, side, side) pixels as waves: `fine` frequencies per direction for brightness,
    `coarse` ones for red against blue and green against both. Orthonormal, like JPEG's.

    >>> basis = cosine_basis(12, 5)
    >>> basis.shape, torch.allclose(basis @ basis.T, torch.eye(194), atol=1e-5)
    (torch.Size([194, 768]), True)
    """
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    at = (torch.arange(side) + 0.5) / side
    waves = torch.cos(torch.pi * torch.arange(side)[:, None] * at) * (2 / side) ** 0.5
    waves[0] /= 2**0.5
    parts = [
        torch.einsum("uy,vx,oc->ouvcyx", waves[:count], waves[:count], part)
        for count, part in ((fine, colours[:1]), (coarse, colours[1:]))
    ]
    return torch.cat([part.reshape(-1, 3 * side**2) for part in parts])
