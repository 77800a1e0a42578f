"""Controls for settings, with a figure that follows; a still figure where controls do not work."""

import base64
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure

from rolloutlib.algorithm.attention import HEAD_FUSIONS
from rolloutlib.explorer.settings import MapSettings
from rolloutlib.extras import needs
from rolloutlib.plots import png_of

with needs("notebooks"):
    import ipywidgets

# A rollout takes longer than a slider's step: redraw when the slider is released.
LATE = {"continuous_update": False}


class RolloutPanel(ipywidgets.VBox):
    """See what each setting does to the rollout: a figure with controls above it.

    draw: called as `draw(question, layers=(first, last), head_fusion=…, residual=…,
    discard_ratio=…)` at the start and after every change; returns the figure to show.
    questions: what to choose from.  depth: how many layers there are.

    In JupyterLab the controls are live. Where only outputs are saved, as on a page of an executed
    notebook, the panel is the figure of its current settings.

    Raises ValueError if there are no questions or no layers.
    """

    def __init__(self, draw: Callable[..., Figure], questions: Sequence[str], depth: int):
        if not questions or depth < 1:
            raise ValueError(
                f"expected questions and layers, at least one, got {len(questions)} and {depth}"
            )
        self._draw = draw
        self.question = ipywidgets.Dropdown(description="question", options=list(questions))
        self.head_fusion = ipywidgets.ToggleButtons(description="heads", options=HEAD_FUSIONS)
        self.residual = share_slider("residual", 0.5, highest=1.0)
        self.discard_ratio = share_slider("discard", 0.0, highest=0.95)
        self.layers = ipywidgets.IntRangeSlider(
            description="layers", min=0, max=depth - 1, value=(0, depth - 1), **LATE
        )
        self.figure = ipywidgets.Image(format="png")
        controls = (self.question, self.head_fusion, self.residual, self.discard_ratio, self.layers)
        for control in controls:
            control.observe(self._redraw, names="value")
        self._redraw()
        super().__init__([*controls, self.figure])

    def _redraw(self, _change=None) -> None:
        names = ("layers", "head_fusion", "residual", "discard_ratio")
        chosen = {name: getattr(self, name).value for name in names}
        self.figure.value = png_of(self._draw(self.question.value, **chosen))

    def _repr_mimebundle_(self, **kwargs) -> dict[str, object]:
        """The live view, and a picture for programs that cannot show it."""
        picture = base64.b64encode(self.figure.value).decode()
        return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}


def share_slider(name: str, value: float, *, highest: float) -> ipywidgets.FloatSlider:
    """A slider from 0 to `highest` that reports its value when it is released."""
    return ipywidgets.FloatSlider(
        description=name, value=value, min=0.0, max=highest, step=0.05, **LATE
    )


def controls(depth: int, first: MapSettings) -> dict[str, ipywidgets.Widget]:
    """The controls of the rollout itself, set to `first`; disabled until a kernel answers."""
    highest = max(0.95, first.discard_ratio)
    controls = {
        "start_layer": ipywidgets.IntSlider(max=depth - 1, description="first layer", **LATE),
        "head_fusion": ipywidgets.Dropdown(options=HEAD_FUSIONS, description="heads"),
        "residual": share_slider("residual", first.residual, highest=1.0),
        "discard_ratio": share_slider("discard", first.discard_ratio, highest=highest),
        "receptive_field": ipywidgets.Checkbox(description="receptive field", indent=False),
        "beyond_even": ipywidgets.Checkbox(description="order taken out", indent=False),
    }
    for name, control in controls.items():
        control.value, control.disabled = getattr(first, name), True
    return controls


def parts(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """A widget, its layout and style, and those of all widgets in it."""
    yield widget
    for name in ("layout", "style"):
        if part := getattr(widget, name, None):
            yield part
    for child in getattr(widget, "children", ()):
        yield from parts(child)
