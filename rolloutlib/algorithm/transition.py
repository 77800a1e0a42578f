"""One layer's step from its inputs to its outputs, and the product of such steps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from rolloutlib.algorithm.arrays import consecutive, on_every_core, vanishing_flushed
from rolloutlib.algorithm.attention import clear_lowest, mix_identity, require_fusion, require_share
from rolloutlib.algorithm.layers import Layer, joined, row_tiles, with_keys, without_unseen


class Product:
    """The rollout so far, in tiles of rows; each tile ends at the last key that it reaches.

    With causal attention the product is a lower triangle too. Using one of the two triangles would
    take a third of the work of a whole product; using both takes a sixth.
    """

    def __init__(self, tiles: Iterable[Float[torch.Tensor, "batch row reach"]]):
        self.tiles = list(tiles)

    def matrix(self, keys: int) -> Float[torch.Tensor, "batch query key"]:
        """The whole product, with this number of keys."""
        return with_keys(joined(self.tiles), keys)

    def after(self, part: Float[torch.Tensor, "batch row seen"]) -> torch.Tensor:
        """part · product, `[batch row reach]`; what lies beyond any reach is 0 and left out."""
        tiles = self._first(part.shape[2])
        pieces = part.split([tile.shape[1] for tile in tiles], 2)
        grown = part.new_zeros(*part.shape[:2], max(tile.shape[2] for tile in tiles))
        for piece, tile in zip(pieces, tiles, strict=True):
            for item, out in enumerate(grown):
                out[:, : tile.shape[2]].addmm_(piece[item], tile[item].to(part))
        return grown

    def _first(self, rows: int) -> list[Float[torch.Tensor, "batch row reach"]]:
        """The tiles of the first rows, this number of them."""
        tiles = []
        for tile in self.tiles:
            if rows > 0:
                tiles.append(tile[:, :rows])
            rows -= tile.shape[1]
        return tiles


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
    def after(self, product: Product | None) -> Product:
        """Ā · product: the rollout after one more layer; Ā itself if there is no product yet."""

        def grown(rows: torch.Tensor) -> torch.Tensor:
            part = self.part(rows)
            return part if product is None else product.after(part)

        return Product(self._each(grown, row_tiles(self.layer)))

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
        # The last rows first: in causal layers they take longest, so all cores end together.
        for share in self._each(carried, row_tiles(self.layer, relevance.shape[-1])[::-1]):
            if total is None:
                total = share.new_zeros(*share.shape[:-1], self.layer.shape[2])
            total[..., : share.shape[-1]] += share
            reach = max(reach, share.shape[-1])
        return total[..., :reach]
