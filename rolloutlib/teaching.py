"""Attention rollout as a class with figures, in the form that courses teach."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from matplotlib.figure import Figure

from rolloutlib.algorithm.arrays import Array
from rolloutlib.algorithm.attention import HEAD_FUSIONS, require_fusion, require_share
from rolloutlib.algorithm.composition import rollout, rollout_by_layer
from rolloutlib.files.complete import complete_file
from rolloutlib.plots import plot_matrices

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
    ) -> Figure:
        """Draw one rollout with its tokens; with `save_path`, also save it to that file."""
        figure = plot_matrices([rollout], tokens, [""], title=title)
        if save_path:
            with complete_file(save_path) as part:
                figure.savefig(part, dpi=150)
        return figure

    def compare_with_single_layer(
        self, attention_layers: Layers, tokens: Sequence[str], layer_idx: int = -1
    ) -> Figure:
        """Draw one layer's fused attention beside the rollout of all layers.

        Raises ValueError for a layer that does not exist.
        """
        count = len(attention_layers)
        if not -count <= layer_idx < count:
            raise ValueError(f"layer_idx must be in [{-count}, {count - 1}], got {layer_idx}")
        chosen = attention_layers[layer_idx]
        single = rollout([chosen], head_fusion=self.head_fusion, residual=0)
        both = [single, self.compute_rollout(attention_layers)]
        titles = [f"Layer {layer_idx % count} alone", "Rollout of all layers"]
        return plot_matrices(both, tokens, titles, label="Attention")

    def visualize_evolution(
        self,
        attention_layers: Layers,
        tokens: Sequence[str],
        layers_to_show: Sequence[int] | None = None,
    ) -> Figure:
        """Draw how the rollout grows: after these layers, or after about five spread evenly.

        Raises ValueError for layers that do not exist.
        """
        products = self.compute_rollout_by_layer(attention_layers)
        count = len(products)
        if layers_to_show is None:
            step = 1 if count <= 6 else count // 4
            layers_to_show = sorted({*range(0, count, step), count - 1})
        if not layers_to_show or not all(0 <= number < count for number in layers_to_show):
            raise ValueError(f"layers_to_show must be in [0, {count - 1}], got {layers_to_show}")
        shown = [products[number] for number in layers_to_show]
        titles = [f"After layer {number}" for number in layers_to_show]
        return plot_matrices(shown, tokens, titles, columns=3)


def compare_discard_ratios(
    attention_layers: Layers, tokens: Sequence[str], ratios: Sequence[float] = (0.0, 0.1, 0.3, 0.5)
) -> Figure:
    """Draw the rollout with each of these discard ratios, on one colour scale."""
    rollouts = [AttentionRollout(ratio).compute_rollout(attention_layers) for ratio in ratios]
    return plot_matrices(rollouts, tokens, [f"Discard ratio {ratio}" for ratio in ratios])


def compare_head_fusion(attention_layers: Layers, tokens: Sequence[str]) -> Figure:
    """Draw the rollout with the mean, the maximum and the minimum of the heads.

    On one colour scale, which follows the square root: a minimum keeps little but the diagonal,
    and on a linear scale it would leave the other panels dark.
    """
    each = [AttentionRollout(head_fusion=how) for how in HEAD_FUSIONS]
    rollouts = [fused.compute_rollout(attention_layers) for fused in each]
    titles = [f"Head fusion: {how}" for how in HEAD_FUSIONS]
    return plot_matrices(rollouts, tokens, titles, gamma=0.5)
