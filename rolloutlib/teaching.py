"""Attention rollout as a class with figures, in the form that courses teach.

Every figure is shown, as at the end of a script, and returned.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from rolloutlib.algorithm.arrays import Array
from rolloutlib.algorithm.attention import (
    HEAD_FUSIONS,
    add_residual,
    discard_lowest,
    fuse_heads,
    normalize_rows,
    require_fusion,
    require_share,
)
from rolloutlib.algorithm.composition import rollout, rollout_by_layer
from rolloutlib.files.complete import complete_file
from rolloutlib.plots import plot_matrices

LABELS = {"axis_labels": ("Input Tokens", "Output Tokens"), "label": "Cumulative Attention"}
EXAMPLE_TOKENS = ["[CLS]", "The", "quick", "brown", "fox", "jumps", "over", "[SEP]"]

Layers = Sequence[Array]
Rollout = Float[Array, "*batch query key"]


class AttentionRollout:
    """Rollout with its settings kept together, and the figures that go with it.

    discard_ratio: share of the smallest entries of each layer set to 0, in [0, 1).
    head_fusion: "mean", "max" or "min".
    include_residual: mix each layer with the identity, half and half.

    Raises ValueError for settings out of range.

    >>> import numpy as np
    >>> layers = [np.full((2, 3, 3), 1 / 3)] * 2
    >>> AttentionRollout(discard_ratio=0).compute_rollout(layers).sum(axis=-1)
    array([1., 1., 1.])
    """

    def __init__(
        self, discard_ratio: float = 0.1, head_fusion: str = "mean", include_residual: bool = True
    ):
        require_share("discard_ratio", discard_ratio, below_one=True)
        require_fusion(head_fusion)
        self.discard_ratio, self.head_fusion = discard_ratio, head_fusion
        self.include_residual = include_residual

    @property
    def _settings(self) -> dict:
        return {
            "discard_ratio": self.discard_ratio,
            "head_fusion": self.head_fusion,
            "residual": 0.5 if self.include_residual else 0.0,
        }

    def _fuse_heads(
        self, attention_heads: Float[Array, "*batch head query key"]
    ) -> Float[Array, "*batch query key"]:
        """One layer's heads as one matrix: see `rolloutlib.fuse_heads`."""
        return fuse_heads(attention_heads, self.head_fusion)

    def _add_residual(
        self, attention: Float[Array, "*batch query query"]
    ) -> Float[Array, "*batch query query"]:
        """(A + I) / 2 with rows that sum to 1: see `rolloutlib.add_residual`."""
        return add_residual(attention)

    def _apply_discard_ratio(
        self, attention: Float[Array, "*batch query key"]
    ) -> Float[Array, "*batch query key"]:
        """The smallest entries set to 0: see `rolloutlib.discard_lowest`."""
        return discard_lowest(attention, self.discard_ratio)

    def compute_rollout(self, attention_layers: Layers) -> Rollout:
        """The rollout of all layers: see `rolloutlib.rollout`. A batch stays a batch."""
        return rollout(attention_layers, **self._settings)

    def compute_rollout_by_layer(self, attention_layers: Layers) -> list[Rollout]:
        """The rollout after each layer: see `rolloutlib.rollout_by_layer`."""
        return rollout_by_layer(attention_layers, **self._settings)

    def visualize(
        self,
        rollout: Rollout,
        tokens: Sequence[str],
        title: str = "Attention Rollout",
        save_path: str | Path | None = None,
        *,
        gamma: float = 1.0,
    ) -> Figure:
        """Draw one rollout with its tokens; with `save_path`, also save it to that file.

        gamma: colours follow value ** gamma, as in `plot_matrices`.
        """
        figure = plot_matrices([rollout], tokens, [""], title=title, gamma=gamma, **LABELS)
        if save_path:
            with complete_file(save_path) as part:
                figure.savefig(part, dpi=150)
        return _shown(figure)

    def compare_with_single_layer(
        self,
        attention_layers: Layers,
        tokens: Sequence[str],
        layer_idx: int = -1,
        *,
        gamma: float = 1.0,
    ) -> Figure:
        """Draw one layer's fused attention beside the rollout of all layers.

        Raises ValueError for a layer that does not exist.
        """
        count = len(attention_layers)
        if not -count <= layer_idx < count:
            raise ValueError(f"layer_idx must be in [{-count}, {count - 1}], got {layer_idx}")
        single = rollout([attention_layers[layer_idx]], head_fusion=self.head_fusion, residual=0)
        both = [single, self.compute_rollout(attention_layers)]
        titles = [f"Single Layer ({layer_idx % count})", "Attention Rollout (All Layers)"]
        labels = LABELS | {"label": "Attention, cumulative attention"}
        title = "Single Layer vs. Attention Rollout"
        figure = plot_matrices(both, tokens, titles, title=title, gamma=gamma, **labels)
        figure.axes[0].set(xlabel="Key Tokens", ylabel="Query Tokens")
        figure.axes[1].set(ylabel="Output Tokens")
        return _shown(figure)

    def visualize_evolution(
        self,
        attention_layers: Layers,
        tokens: Sequence[str],
        layers_to_show: Sequence[int] | None = None,
        *,
        gamma: float = 1.0,
    ) -> Figure:
        """Draw how the rollout grows: after these layers, counted from 0.

        By default after every layer of at most six; of more, after the first, a quarter, two and
        three quarters (rounded down), and the last.

        Raises ValueError for layers that do not exist.
        """
        products = self.compute_rollout_by_layer(attention_layers)
        count = len(products)
        if layers_to_show is None:
            step = count // 4
            quarters = [0, step, 2 * step, 3 * step, count - 1]
            layers_to_show = range(count) if count <= 6 else quarters
        if not layers_to_show or not all(0 <= number < count for number in layers_to_show):
            raise ValueError(f"layers_to_show must be in [0, {count - 1}], got {layers_to_show}")
        shown = [products[number] for number in layers_to_show]
        titles = [f"After Layer {number}" for number in layers_to_show]
        title = "Attention Rollout Evolution"
        return _shown(plot_matrices(shown, tokens, titles, title=title, gamma=gamma, **LABELS))


def compare_discard_ratios(
    attention_layers: Layers,
    tokens: Sequence[str],
    ratios: Sequence[float] = (0.0, 0.1, 0.3, 0.5),
    *,
    gamma: float = 1.0,
) -> Figure:
    """Draw the rollout with each of these discard ratios, on one colour scale."""
    rollouts = [AttentionRollout(ratio).compute_rollout(attention_layers) for ratio in ratios]
    titles = [f"Discard Ratio: {ratio}" for ratio in ratios]
    title = "Effect of Discard Ratio"
    return _shown(plot_matrices(rollouts, tokens, titles, title=title, gamma=gamma, **LABELS))


def compare_head_fusion(
    attention_layers: Layers, tokens: Sequence[str], *, gamma: float = 0.5
) -> Figure:
    """Draw the rollout with the mean, the maximum and the minimum of the heads.

    On one colour scale, which follows the square root: a minimum keeps little but the diagonal,
    and on a linear scale it would leave the other panels dark.
    """
    each = [AttentionRollout(head_fusion=how) for how in HEAD_FUSIONS]
    rollouts = [fused.compute_rollout(attention_layers) for fused in each]
    titles = [f"Head Fusion: {how}" for how in HEAD_FUSIONS]
    title = "Effect of Head Fusion Method"
    return _shown(plot_matrices(rollouts, tokens, titles, title=title, gamma=gamma, **LABELS))


def example_attention_rollout() -> list[Figure]:
    """Draw four figures of a made-up transformer: rollout, single layer, evolution, discard ratios.

    6 layers of 8 equal heads over 8 tokens. Attention decreases with distance, more slowly in later
    layers, which also look more at the first and the last token.
    """
    layers, roller = _example_layers(), AttentionRollout(discard_ratio=0.1, head_fusion="mean")
    return [
        roller.visualize(roller.compute_rollout(layers), EXAMPLE_TOKENS),
        roller.compare_with_single_layer(layers, EXAMPLE_TOKENS),
        roller.visualize_evolution(layers, EXAMPLE_TOKENS),
        compare_discard_ratios(layers, EXAMPLE_TOKENS),
    ]


def _example_layers(count: int = 6, heads: int = 8) -> list[Float[np.ndarray, "head query key"]]:
    places = np.arange(len(EXAMPLE_TOKENS))
    layers = []
    for depth in np.arange(count) / count:
        attention = np.exp(-abs(np.subtract.outer(places, places)) * (1 - depth / 2))
        attention[:, 0] += 0.3 * depth
        attention[:, -1] += 0.2 * depth
        layers.append(np.stack([normalize_rows(attention)] * heads))
    return layers


def _shown(figure: Figure) -> Figure:
    plt.show()
    return figure
