"""Put the pointer on a word and see where the model looked: in a notebook, or on a page of its own.

The maps of all words go to the browser once, as bytes; from then on pointing, pinning and colouring
happen there (`widget.js`), with or without a kernel. Only what changes the rollout itself is
computed in Python.
"""

import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anywidget
import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import traitlets
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from PIL import Image

from rolloutlib.algorithm.arrays import Array, as_tensor
from rolloutlib.algorithm.attention import HEAD_FUSIONS, normalize_rows
from rolloutlib.algorithm.composition import rollout_rows
from rolloutlib.explorer.controls import LATE, share_slider
from rolloutlib.files.complete import complete_file
from rolloutlib.grid import View
from rolloutlib.models import Answer
from rolloutlib.models.tower import through_tower
from rolloutlib.overlay import blend, colour, crosshair, is_flat, to_picture
from rolloutlib.plots import plot_pictures

COLOURS = ("viridis", "cividis", "magma", "turbo", "cyan", "red")
LONGEST_ALONE, LONGEST_OF_SEVERAL = 1600, 640  # pixels of the pictures that the browser gets
STEPS = 65535  # of a row's highest value: what a map's numbers are rounded to in the browser
SETTINGS = "First layer, heads, residual, discard and receptive field change the rollout itself"
FILM = {"columns": 8, "height": 1.4}
WRAP = {"flex_flow": "row wrap"}
STILL = f"{SETTINGS}: they need the notebook with its kernel running."
READY = f"{SETTINGS}: the kernel computes it when you let go."


@dataclass(frozen=True)
class Heatmaps:
    """What each word drew on.

    on_pictures: for each picture `[word row column]` on its grid of tokens; one map instead of
    one for each word where it is the same for all.
    on_words: `[word word]`, what each drew on the words; None where that is not known.
    colours: a name out of `COLOURS`, or "" to leave it to the reader.
    """

    on_pictures: Sequence[Float[Array, "word rows columns"]]
    on_words: Float[Array, "word word"] | None = None
    colours: str = ""

    def rows(self, words: int) -> Float[np.ndarray, "word relevance"]:
        """All of it in one array: the cells of the pictures, one after the other, then the words.

        Rows are read as shares: one that sums to more than 1 is scaled to sum to 1.

        Raises ValueError for maps of another number of words, negative or not finite.
        """
        parts = [as_tensor(part).flatten(1).cpu().double().numpy() for part in self.on_pictures]
        count = len(parts[0])
        blank = np.zeros((count, words))
        parts.append(blank if self.on_words is None else np.asarray(self.on_words, dtype=float))
        if count not in (1, words) or any(len(part) != count for part in parts):
            got = [len(part) for part in parts]
            raise ValueError(f"expected maps for {words} words, or one for all, got {got}")
        rows = np.concatenate(parts, 1)
        if not (np.isfinite(rows).all() and (rows >= 0).all()):
            raise ValueError("expected relevance of finite numbers, 0 or more, got others")
        return rows / np.maximum(rows.sum(1, keepdims=True), 1)


@dataclass(frozen=True)
class Mark:
    """One place on the picture, such as a click; x and y in shares of its width and height."""

    x: float
    y: float


@dataclass(frozen=True)
class Words:
    """What of a prompt and its answer can be pointed at: all but pictures and marks in them.

    texts: prompt first.  prompt: how many of them were asked.
    positions: where each stands in the sequence.
    rows: the query row that made each: its own of a word of the prompt, of a generated one the row
    before it, which predicted it.
    """

    texts: list[str]
    prompt: int
    positions: Int[torch.Tensor, " word"]
    rows: Int[torch.Tensor, " word"]


Sheets = Mapping[str, Heatmaps | Mark]  # what lies over one picture, each to be switched by name
Panels = Mapping[str, Sheets]  # pictures side by side, such as with an adapter and without


class MapView(anywidget.AnyWidget):
    """The part of an `Explorer` that lives in the browser. Each trait says what it shows."""

    _esm = Path(__file__).with_name("widget.js")
    _css = Path(__file__).with_name("widget.css")

    pictures = traitlets.List().tag(sync=True)
    words = traitlets.List(traitlets.Unicode()).tag(sync=True)
    prompt = traitlets.Int().tag(sync=True)  # how many of the words, the first ones, were asked
    title = traitlets.Unicode().tag(sync=True)
    palettes = traitlets.Dict().tag(sync=True)
    panels = traitlets.List().tag(sync=True)
    codes = traitlets.Bytes().tag(sync=True)  # the numbers of all maps, as unsigned 16-bit shares

    selected = traitlets.List(traitlets.Int()).tag(sync=True)
    combine = traitlets.Enum(("mean", "max"), "mean").tag(sync=True)
    colours = traitlets.Enum(COLOURS, COLOURS[0]).tag(sync=True)
    power = traitlets.Float(1.0, min=0.25, max=4).tag(sync=True)
    blur = traitlets.Float(0.5, min=0, max=3).tag(sync=True)  # in tokens
    opacity = traitlets.Float(0.5, min=0, max=1).tag(sync=True)
    hidden = traitlets.List(traitlets.Unicode()).tag(sync=True)
    picture = traitlets.Int().tag(sync=True)
    together = traitlets.Bool().tag(sync=True)  # one scale of colours for all pictures
    busy = traitlets.Bool().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)

    @traitlets.validate("selected")
    def _known(self, proposal) -> list[int]:
        unknown = [word for word in proposal["value"] if not 0 <= word < len(self.words)]
        if unknown:
            raise traitlets.TraitError(
                f"expected numbers of words in [0, {len(self.words) - 1}], got {unknown}"
            )
        return proposal["value"]


class Explorer(ipywidgets.VBox):
    """What did each word draw on? Pictures, and words that recolour them when pointed at.

    pictures, views: what is shown, and how each one's maps lie on it.
    words: whatever can be pointed at: tokens, or frames.  prompt: how many of the first were asked.
    panels: pictures side by side → sheets on each → `Heatmaps` or a `Mark`; or a function that
    computes them from the settings of a `rollout` of `depth` layers, for which controls then appear
    below.  settings: what it is called with first; without them, the rollout's own.
    labels: a name for each picture.  title: what the words are together.
    look: traits of `MapView` to begin with, such as `power` or `colours`.

    `selected` are the numbers of the pinned words, `figure()` and `save("map.png")` draw what is
    shown, with the settings chosen. Where only outputs are kept, the picture of the whole stays.

    Raises ValueError where pictures, views and maps do not fit each other.
    """

    def __init__(
        self,
        pictures: Sequence[Image.Image],
        views: Sequence[View],
        words: Sequence[str],
        panels: Panels | Callable[..., Panels],
        *,
        depth: int = 0,
        settings: Mapping[str, object] | None = None,
        prompt: int = 0,
        labels: Sequence[str] = (),
        title: str = "words",
        **look,
    ):
        labels = list(labels) or [f"picture {number}" for number in range(1, len(pictures) + 1)]
        if not words or not len(pictures) == len(views) == len(labels) > 0:
            raise ValueError(
                "expected words, and a view and a label for each picture, got "
                f"{len(words)} words, {len(pictures)} pictures, {len(views)} views, "
                f"{len(labels)} labels"
            )
        self._pictures, self._views = list(pictures), list(views)
        longest = LONGEST_ALONE if len(pictures) == 1 else LONGEST_OF_SEVERAL
        self._small = [_at_most(picture, longest) for picture in pictures]
        self._compute = panels if callable(panels) else lambda: panels
        self.maps = MapView(
            pictures=list(map(_sent, self._small, views, labels)),
            words=list(words),
            prompt=prompt,
            title=title,
            palettes={name: _palette(name) for name in COLOURS},
            status=STILL if depth else "",
            **({"together": len(pictures) > 1} | look),
        )
        self._show(self._compute(**(settings or {})))
        self._controls = _controls(depth, **(settings or {})) if depth else {}
        for control in self._controls.values():
            control.observe(self._recompute, names="value")
        self.maps.on_msg(self._greet)
        super().__init__([self.maps, ipywidgets.HBox(list(self._controls.values()), layout=WRAP)])

    @property
    def settings(self) -> dict[str, object]:
        """What the rollout is computed with now."""
        return {name: control.value for name, control in self._controls.items()}

    @property
    def selected(self) -> list[int]:
        """The numbers of the pinned words, counted from 0. It can be set, too."""
        return list(self.maps.selected)

    @selected.setter
    def selected(self, words: Sequence[int]) -> None:
        self.maps.selected = list(words)

    @property
    def shown(self) -> list[int]:
        """The numbers of the words whose maps are combined: the pinned, or else the answer's."""
        return self.selected or list(range(self.maps.prompt, len(self.maps.words)))

    def close(self) -> None:
        """Take all parts out of the browser and out of memory."""
        for child in self.children:
            for part in getattr(child, "children", ()):
                part.close()
            child.close()
        super().close()

    def figure(self) -> Figure:
        """What is shown, for a page of paper: every panel, and of a clip every picture."""
        return self._figure(self._pictures)

    def save(self, path: str | Path) -> Path:
        """Write the picture that is shown, at its own size; panels side by side."""
        number = self.maps.picture
        painted = [self._painted(panel, number, self._pictures[number]) for panel in self._panels]
        with complete_file(path) as part:
            Image.fromarray(np.hstack(painted)).save(part)
        return Path(path)

    def _figure(self, pictures: Sequence[Image.Image]) -> Figure:
        several = len(pictures) > 1
        names = [picture["label"] for picture in self.maps.pictures] if several else [self._title()]
        painted, titles = [], []
        for panel in self._panels:
            painted += [self._painted(panel, k, picture) for k, picture in enumerate(pictures)]
            titles += [f"{panel}: {name}" if panel else name for name in names]
        figure = plot_pictures(painted, titles, **(FILM if several else {"columns": 2}))
        if several:
            figure.suptitle(self._title(), parse_math=False)
        return figure

    def _title(self) -> str:
        if not self.selected:
            every = f"{self.maps.combine} of all {self.maps.title}"
            return "whole answer" if self.maps.prompt else every
        pinned = [self.maps.words[word] for word in self.selected]
        return f"{self.maps.combine} of {', '.join(pinned)}" if len(pinned) > 1 else pinned[0]

    def _painted(
        self, panel: str, number: int, picture: Image.Image
    ) -> UInt8[np.ndarray, "height width 3"]:
        """One picture with all that lies on it."""
        view = replace(self._views[number], picture=(picture.height, picture.width))
        marks = []
        for name, sheet in self._panels[panel].items():
            if name in self.maps.hidden:
                continue
            if isinstance(sheet, Mark):
                marks.append(sheet)
                continue
            scaled = self._scaled(self._rows[panel, name], number, view)
            coloured = colour(scaled, sheet.colours or self.maps.colours)
            picture = Image.fromarray(blend(picture, coloured, self.maps.opacity))
        for mark in marks:
            point = mark.x * picture.width, mark.y * picture.height
            cross = crosshair((picture.height, picture.width), point)
            picture = Image.fromarray(blend(picture, cross, opacity=1))
        return np.asarray(picture.convert("RGB"))

    def _scaled(
        self, rows: Float[np.ndarray, "word relevance"], number: int, view: View
    ) -> Float[np.ndarray, "height width"]:
        """The combined map of the words shown, at the picture's pixels and in [0, 1]."""
        chosen = rows if len(rows) == 1 else rows[self.shown]
        combined = chosen.mean(0) if self.maps.combine == "mean" else chosen.max(0)
        ends = np.cumsum([np.prod(view.grid) for view in self._views])
        cells = combined[: ends[-1]]
        grid = cells[ends[number] - np.prod(view.grid) : ends[number]].reshape(view.grid)
        smooth = to_picture(grid, view, blur_tokens=self.maps.blur)
        measured = cells if self.maps.together else smooth[~np.isnan(smooth)]
        low, high = measured.min(initial=np.inf), measured.max(initial=0)
        if high <= 0:  # nothing to show: the bare picture
            return np.full_like(smooth, np.nan)
        if is_flat(low, high):
            return smooth * 0
        return np.clip((smooth - low) / (high - low), 0, 1) ** self.maps.power

    def _show(self, panels: Panels) -> None:
        """Keep these maps and send them to the browser, in one message."""
        self._panels = panels
        self._rows = {
            (panel, name): self._rows_of(sheet)
            for panel, sheets in panels.items()
            for name, sheet in sheets.items()
            if isinstance(sheet, Heatmaps)
        }
        with self.maps.hold_sync():
            self.maps.panels = [
                {"name": panel, "sheets": [self._sheet(panel, name) for name in sheets]}
                for panel, sheets in panels.items()
            ]
            self.maps.codes = b"".join(map(_codes, self._rows.values()))

    def _rows_of(self, heatmaps: Heatmaps) -> Float[np.ndarray, "word relevance"]:
        grids = [tuple(part.shape[1:]) for part in heatmaps.on_pictures]
        expected = [view.grid for view in self._views]
        if grids != expected:
            raise ValueError(f"expected a map of the grids {expected}, got {grids}")
        return heatmaps.rows(len(self.maps.words))

    def _sheet(self, panel: str, name: str) -> dict[str, object]:
        sheet = self._panels[panel][name]
        if isinstance(sheet, Mark):
            return {"name": name, "point": [sheet.x, sheet.y], "peaks": []}
        return {"name": name, "colours": sheet.colours, "peaks": _peaks(self._rows[panel, name])}

    def _recompute(self, _change) -> None:
        self.maps.status, self.maps.busy = "Computing in the kernel …", True
        began = time.perf_counter()
        try:
            self._show(self._compute(**self.settings))
            self.maps.status = f"{READY} The last took {time.perf_counter() - began:.1f} s."
        except Exception as error:
            self.maps.status = f"The kernel could not compute this: {error}"
            raise
        finally:
            self.maps.busy = False

    def _greet(self, _widget, content: dict, _buffers) -> None:
        """A browser asks whether there is a kernel: only then can the controls be turned."""
        if content == {"ask": "kernel"} and self._controls:
            self.maps.status = READY
            for control in self._controls.values():
                control.disabled = False

    def _repr_mimebundle_(self, **kwargs) -> dict[str, object]:
        """The live view, and the picture for readers that cannot show one."""
        figure = self._figure(self._small)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        plt.close(figure)  # or the notebook would show it once more below the cell
        still = {"image/png": base64.b64encode(file.getvalue()).decode()}
        return super()._repr_mimebundle_(**kwargs) | still


def explore(
    answer: Answer,
    *,
    to_patches: bool = False,
    start_layer: int = 0,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    receptive_field: bool = False,
    **look,
) -> Explorer:
    """Where did the model look for each word of its answer, and of the question?

    Replays the answer, rolls the language model's attention out, and shows the row that predicted
    each generated word, and the row of each word of the prompt. A word that stands before the
    picture drew nothing from it. Rows are scaled to sum to 1. A video's steps in time are pictures
    along a time slider, each the first of its frames.

    to_patches: carry each map on through the vision tower, as `through_tower` does, with the same
    residual.
    start_layer to receptive_field: the language model's rollout to begin with, as `rollout` takes
    them; controls change them.  look: traits of `MapView` to begin with, such as `power=2`.

    Raises ValueError for a setting out of its range.
    """
    recording = answer.model.record(answer)
    layers, words = recording["language"], words_of(answer)
    pictures, views, labels = _seen(answer, to_patches)

    def panels(**settings) -> Panels:
        relevance = normalize_rows(rollout_rows(layers, words.rows, **settings)[0])
        on_pictures = []
        for image in answer.images:
            if to_patches:
                kept = settings["residual"]
                maps = through_tower(recording, image, relevance, residual=kept).cpu()
            else:
                maps = image.heatmaps(relevance).cpu()
            on_pictures += [maps] if maps.ndim == 3 else maps.unbind(1)
        return {"": {"": Heatmaps(on_pictures, relevance.cpu()[:, words.positions])}}

    return Explorer(
        pictures,
        views,
        words.texts,
        panels,
        depth=len(layers),
        settings={
            "start_layer": start_layer,
            "head_fusion": head_fusion,
            "residual": residual,
            "discard_ratio": discard_ratio,
            "receptive_field": receptive_field,
        },
        prompt=words.prompt,
        **({"labels": labels} | look),
    )


def explore_clip(
    frames: Sequence[Image.Image],
    view: View,
    words: Sequence[str],
    relevance: Float[Array, "word frame rows columns"],
    **look,
) -> Explorer:
    """When and where did each of these look in a clip? Maps of every frame, along a time slider.

    words: what the rows of the relevance belong to, such as the names of the frames.
    relevance: scaled to sum to 1 over the clip, such as `space_time_relevance` gives it.
    look: as `Explorer` takes it, such as `labels` of the frames; `together=False` for maps of which
    each has its own scale, so that no matrix compares the frames.
    """
    shares = normalize_rows(relevance.reshape(len(relevance), -1)).reshape(relevance.shape)
    maps = Heatmaps(list(shares.swapaxes(0, 1)))
    labels = [f"frame {number}" for number in range(len(frames))]
    return Explorer(
        frames, [view] * len(frames), words, {"": {"": maps}}, **({"labels": labels} | look)
    )


def words_of(answer: Answer) -> Words:
    """Which words were asked and answered, and which query row made each of them?"""
    outside = torch.ones(len(answer.sequence), dtype=torch.bool)
    for image in answer.images:
        outside[int(image.positions[0]) : int(image.positions[-1]) + 1] = False
    positions = outside.nonzero().flatten()
    prompt = len(positions) - len(answer.tokens)
    decode = answer.model.processor.tokenizer.decode
    texts = [decode([token]) for token in answer.sequence[positions].tolist()]
    return Words(texts, prompt, positions, torch.cat([positions[:prompt], answer.rows]))


def _seen(answer: Answer, to_patches: bool) -> tuple[list[Image.Image], list[View], list[str]]:
    """The pictures of an answer, how maps lie on them, and their names if they have any."""
    views = [image.patch_view if to_patches else image.view for image in answer.images]
    if not answer.frames:
        return [image.picture for image in answer.images], views, []
    steps, *grid = views[0].grid
    together = answer.model.processor.video_processor.temporal_patch_size
    starts = range(0, len(answer.frames), together)
    ends = [min(start + together, len(answer.frames)) - 1 for start in starts]
    labels = [f"frames {start}–{end}" for start, end in zip(starts, ends, strict=True)]
    frames = [answer.frames[start] for start in starts]
    return frames, [replace(views[0], grid=tuple(grid))] * steps, labels


def _controls(
    depth: int,
    *,
    start_layer: int = 0,
    head_fusion: str = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    receptive_field: bool = False,
) -> dict[str, ipywidgets.Widget]:
    """What changes the rollout itself; out of use until a kernel answers."""
    first = {"description": "first layer", "value": start_layer, "max": depth - 1}
    field = {"description": "receptive field", "value": receptive_field, "indent": False}
    controls = {
        "start_layer": ipywidgets.IntSlider(**first, **LATE),
        "head_fusion": ipywidgets.Dropdown(
            description="heads", options=HEAD_FUSIONS, value=head_fusion
        ),
        "residual": share_slider("residual", residual, highest=1.0),
        "discard_ratio": share_slider("discard", discard_ratio, highest=max(0.95, discard_ratio)),
        "receptive_field": ipywidgets.Checkbox(**field),
    }
    for control in controls.values():
        control.disabled = True
    return controls


def _at_most(picture: Image.Image, longest: int) -> Image.Image:
    small = picture.convert("RGB")
    small.thumbnail((longest, longest))
    return small


def _sent(picture: Image.Image, view: View, label: str) -> dict[str, object]:
    """A picture as the browser gets it, with the grid and where on the picture it lies."""
    boxes = view.boxes()
    height, width = view.picture
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=90)
    return {
        "data": file.getvalue(),
        "type": "image/jpeg",
        "label": label,
        "width": picture.width,
        "height": picture.height,
        "grid": list(view.grid),
        "box": (np.r_[boxes[0, :2], boxes[-1, 2:]] / [width, height, width, height]).tolist(),
    }


def _palette(name: str) -> bytes:
    """256 colours as red, green, blue and opacity."""
    return (mpl.colormaps[name](np.arange(256)) * 255).round().astype(np.uint8).tobytes()


def _peaks(rows: Float[np.ndarray, "word relevance"]) -> list[float]:
    return rows.max(1).tolist()


def _codes(rows: Float[np.ndarray, "word relevance"]) -> bytes:
    """Each number as a share of its row's highest: exact to half a step of 1 / 65535 of that."""
    peaks = rows.max(1, keepdims=True)
    return (rows / np.where(peaks > 0, peaks, 1) * STEPS).round().astype("<u2").tobytes()
