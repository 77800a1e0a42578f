"""One layer's step from its inputs to its outputs, and the product of such steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float

from rolloutlib.algorithm.arrays import consecutive, on_every_core, vanishing_flushed
from rolloutlib.algorithm.attention import clear_lowest, mix_identity, require_fusion, require_share
from rolloutlib.algorithm.layers import Layer, joined, row_tiles, with_keys, without_unseen


class Product:
    """The rollout so far, in tiles of rows; each tile knows how many keys it reaches.

    With causal attention the product is a lower triangle too. Using one of the two triangles would
    take a third of the work of a whole product; using both takes a sixth.

    earlier: the product one layer before; it is multiplied, then its memory is reused.
    """

    def __init__(self, earlier: "Product | None", shape: tuple[int, int, int]):
        self.earlier, self.shape = earlier, shape
        self.matrices: list[Float[torch.Tensor, "query key"]] = []  # one for each item of the batch
        self.spare: list[torch.Tensor] = [] if earlier is None else earlier.spare
        # Rows, and the first key from which all of them are 0.
        self.tiles: list[tuple[slice, int]] = []

    @property
    def matrix(self) -> Float[torch.Tensor, "batch query key"]:
        """The whole product; a batch of one is not copied."""
        one = len(self.matrices) == 1
        return self.matrices[0][None] if one else torch.stack(self.matrices)

    def append(self, part: Float[torch.Tensor, "batch row seen"]) -> None:
        """Set the next rows to part · earlier, or to the part if there is no earlier product."""
        first = self.tiles[-1][0].stop if self.tiles else 0
        rows = slice(first, first + part.shape[1])
        steps = self.earlier.steps(part.shape[2]) if self.earlier else None
        reach = steps[0][1] if steps else part.shape[2]
        for item, some in enumerate(part):
            if first == 0:
                self.matrices.append(self._room(part))
            out = self.matrices[item][rows]
            if steps:
                _multiply(some, self.earlier.matrices[item].to(part), steps, out)
            else:
                out[:, :reach] = some
            out[:, reach:] = 0
            if self.earlier and rows.stop == self.shape[1]:
                self.spare.append(self.earlier.matrices[item])
        self.tiles.append((rows, reach))

    def _room(self, part: torch.Tensor) -> Float[torch.Tensor, "query key"]:
        """Memory for one item, reused from a product that is no longer needed if there is one."""
        while self.spare:
            room = self.spare.pop()
            if room.dtype == part.dtype and room.device == part.device:
                return room
        return part.new_empty(self.shape[1:])

    def steps(self, seen: int) -> list[tuple[slice, int]]:
        """The first `seen` rows, grouped by reach, longest reach first."""
        below = (tile for tile in self.tiles if tile[0].start < seen)
        steps = []
        for reach, tiles in groupby(below, key=lambda tile: tile[1]):
            (first, _), *_, (last, _) = [*tiles] * 2
            steps.append((slice(first.start, min(last.stop, seen)), reach))
        return sorted(steps, key=lambda step: -step[1])


def _multiply(
    part: Float[torch.Tensor, "row seen"],
    product: Float[torch.Tensor, "query key"],
    steps: list[tuple[slice, int]],
    out: Float[torch.Tensor, "row key"],
) -> None:
    """out = part · product, skipping zeros; beyond the longest reach `out` is left unchanged."""
    (rows, reach), *others = steps
    torch.mm(part[:, rows], product[rows, :reach], out=out[:, :reach])
    for rows, reach in others:
        out[:, :reach].addmm_(part[:, rows], product[rows, :reach])


@dataclass(frozen=True)
class Settings:
    """The settings of a rollout; `rolloutlib.rollout` explains each.

    Raises ValueError for a setting out of range.

    >>> Settings(residual=1.4)
    Traceback (most recent call last):
        ...
    ValueError: residual must be in [0, 1], got 1.4
    """

    head_fusion: str = "mean"
    residual: float = 0.5
    discard_ratio: float = 0.0
    start_layer: int = 0
    receptive_field: bool = False

    def __post_init__(self) -> None:
        require_fusion(self.head_fusion)
        require_share("residual", self.residual)
        require_share("discard ratio", self.discard_ratio, below_one=True)


class Transition:
    """One layer's step from its inputs to its outputs: rows of Ā, that is fused attention,
    divided by its receptive field if asked for, with the residual mixed in and the lowest entries
    discarded, in that order.

    Rows of Ā come without the keys that `Layer.fused` may leave out."""

    def __init__(self, layer: Layer, settings: Settings):
        self.layer, self.settings = layer, settings
        # The discard threshold depends on the whole matrix, so that is computed once.
        self.whole = None
        if settings.discard_ratio > 0:
            whole = with_keys(joined(self._each(self.mixed, row_tiles(layer))), layer.shape[2])
            self.whole = clear_lowest(whole, settings.discard_ratio)

    def _each(
        self, function: Callable[[torch.Tensor], torch.Tensor], tiles: Sequence[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """The function of each tile of rows, in order."""
        return on_every_core(function, tiles, self.layer.device)

    def mixed(self, rows: torch.Tensor) -> Float[torch.Tensor, "batch row seen"]:
        """Rows of the fused attention with the residual mixed in."""
        fused = self.layer.fused(rows, self.settings.head_fusion)
        if self.settings.receptive_field:
            # Rows that see nothing attend evenly to all keys, so they are left as they are.
            fused = fused / self.layer.visible(rows).clamp(min=1)[..., None]
        return mix_identity(fused, rows, self.settings.residual)

    def part(self, rows: torch.Tensor) -> Float[torch.Tensor, "batch row seen"]:
        """Rows of Ā, at most one tile of them."""
        if self.whole is None:
            return self.mixed(rows)
        return without_unseen(self.whole[:, consecutive(rows)], rows)

    @vanishing_flushed()
    def rows(self, rows: torch.Tensor) -> Float[torch.Tensor, "batch row seen"]:
        """Rows of Ā, any number of them."""
        return joined(self._each(self.part, rows.split(len(row_tiles(self.layer)[0]))))

    @vanishing_flushed()
    def after(self, product: "Product | None") -> "Product":
        """Ā · product: the rollout after one more layer; Ā itself if there is no product yet."""
        grown = Product(product, self.layer.shape)
        for part in self._each(self.part, row_tiles(self.layer)):
            grown.append(part)
        grown.earlier = None
        return grown

    @vanishing_flushed()
    def before(
        self, relevance: Float[torch.Tensor, "batch row seen_query"]
    ) -> Float[torch.Tensor, "batch row seen"]:
        """relevance · Ā: rows of the rollout, carried one layer back.

        Relevance that ends before the last query has none there. So in causal layers, rows after
        the last wanted one cost nothing.
        """

        def carried(rows: torch.Tensor) -> torch.Tensor:
            part = self.part(rows)
            return relevance[..., consecutive(rows)].to(part) @ part

        total, reach = None, 0
        for share in self._each(carried, row_tiles(self.layer, relevance.shape[-1])):
            if total is None:
                total = share.new_zeros(*share.shape[:-1], self.layer.shape[2])
            total[..., : share.shape[-1]] += share
            reach = max(reach, share.shape[-1])
        return total[..., :reach]
