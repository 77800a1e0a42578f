"""How a map in the explorer is made: all settings in one place, and in words."""

from dataclasses import dataclass, fields

from rolloutlib.algorithm.attention import require_share
from rolloutlib.algorithm.transition import Settings
from rolloutlib.models.tower import SHIPPED, TOWER_RESIDUAL

BEYOND = (
    "The map shows by how much a patch's share of what is from the picture exceeds its share under "
    "even attention, and bars show the same for words among words."
)
DIVIDED = (
    "With the receptive field divided out, most relevance stays on the word itself, so how much "
    "is from the picture and how much from words means nothing; the place in the picture does."
)


@dataclass(frozen=True)
class MapSettings(Settings):
    """The settings of a rollout, and what becomes of it; the defaults are those of `SHIPPED`.

    beyond_even, to_patches, tower_residual: as in `heatmaps`.

    Raises ValueError for a setting out of range.

    >>> MapSettings(start_layer=2, to_patches=False).said
    'Rollout from layer 2 on, heads: mean, residual 0.9, order taken out, on image tokens.'
    """

    residual: float = SHIPPED["residual"]
    beyond_even: bool = SHIPPED["beyond_even"]
    to_patches: bool = True
    tower_residual: float = TOWER_RESIDUAL

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("tower residual", self.tower_residual)

    @property
    def rollout(self) -> dict[str, object]:
        """The settings that `rollout_rows` takes."""
        return {field.name: getattr(self, field.name) for field in fields(Settings)}

    @property
    def said(self) -> str:
        """The settings in words."""
        parts = [
            f"from layer {self.start_layer} on" if self.start_layer else "",
            f"heads: {self.head_fusion}",
            f"residual {self.residual:g}",
            f"lowest {self.discard_ratio:.0%} discarded" if self.discard_ratio else "",
            "receptive field divided out" if self.receptive_field else "",
            "order taken out" if self.beyond_even else "order of tokens left in",
            f"then through the vision tower, residual {self.tower_residual:g}"
            if self.to_patches
            else "on image tokens",
        ]
        first, *others = filter(None, parts)
        start = f"Rollout {first}" if self.start_layer else f"Rollout, {first}"
        return f"{', '.join([start, *others])}."

    @property
    def note(self) -> str:
        """Why shares of the whole mean nothing; "" where they do."""
        return DIVIDED if self.receptive_field else BEYOND if self.beyond_even else ""
