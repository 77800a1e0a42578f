"""The explorer: the maps of all words are sent to the browser once, as bytes.

Pointing, pinning and colouring then happen there (`browser/`), with or without a kernel; only what
changes the rollout itself is computed in Python.
"""

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

from rolloutlib.evaluate.figures import draw_frame
from rolloutlib.evaluate.trust import PeakCheck, nothing
from rolloutlib.explorer import saving
from rolloutlib.explorer.browser import STYLE, joined_module
from rolloutlib.explorer.checking import check, finding
from rolloutlib.explorer.controls import controls, parts
from rolloutlib.explorer.maps import DIVERGING, Heatmaps, Mark, Panels, codes
from rolloutlib.explorer.settings import MapSettings
from rolloutlib.extras import needs
from rolloutlib.files.complete import complete_file
from rolloutlib.files.pictures import upright_rgb
from rolloutlib.grid import View
from rolloutlib.overlay import blend, crosshair, is_flat, outline, paint, range_label, to_picture
from rolloutlib.plots import plot_pictures, png_of

with needs("notebooks"):
    import anywidget
    import ipywidgets
    import traitlets

COLOURS = ("viridis", "cividis", "magma", "turbo", "cyan", "red")
DISPLAYS = ("fading", "flat", "outline", "beside", "slider")
LONGEST_ALONE, LONGEST_OF_SEVERAL = 1600, 640  # pixels of the pictures that the browser gets
QUALITY = 80  # of these pictures, as WebP
SETTINGS = (
    "First layer, heads, residual, discard, receptive field and order change the rollout itself"
)
FILM = {"columns": 8, "height": 1.4}
WRAP = {"flex_flow": "row wrap"}
STILL = f"{SETTINGS}: they need the notebook with its kernel running."
READY = f"{SETTINGS}: the kernel computes it when you release a control."


class MapView(anywidget.AnyWidget):
    """The part of an `Explorer` that runs in the browser. Each trait says what it shows."""

    _esm = joined_module()
    _css = STYLE

    pictures = traitlets.List().tag(sync=True)
    words = traitlets.List(traitlets.Unicode()).tag(sync=True)
    prompt = traitlets.Int().tag(sync=True)  # how many of the first words are the prompt's
    title = traitlets.Unicode().tag(sync=True)
    palettes = traitlets.Dict().tag(sync=True)
    panels = traitlets.List().tag(sync=True)
    codes = traitlets.Bytes().tag(sync=True)  # the numbers of all maps, as unsigned 16-bit shares

    selected = traitlets.List(traitlets.Int()).tag(sync=True)
    combine = traitlets.Enum(("mean", "max"), "mean").tag(sync=True)
    colours = traitlets.Enum(COLOURS, COLOURS[0]).tag(sync=True)
    power = traitlets.Float(1.0, min=0.25, max=4).tag(sync=True)
    blur = traitlets.Float(0.5, min=0, max=3).tag(sync=True)  # in tokens
    opacity = traitlets.Float(0.8, min=0, max=1).tag(sync=True)
    display = traitlets.Enum(DISPLAYS, DISPLAYS[0]).tag(
        sync=True
    )  # how the map lies on the picture
    split = traitlets.Float(0.5, min=0, max=1).tag(sync=True)  # where a slider's map begins
    hidden = traitlets.List(traitlets.Unicode()).tag(sync=True)
    picture = traitlets.Int().tag(sync=True)
    together = traitlets.Bool().tag(sync=True)  # one colour scale for all pictures
    sound = traitlets.Bytes().tag(sync=True)  # WAV, if the picture is a spectrogram
    seconds = traitlets.Float().tag(sync=True)  # of the sound; 0 if there is none
    shared = traitlets.Bool().tag(sync=True)  # one colour scale for all words and pictures
    weights = traitlets.List(traitlets.Int()).tag(sync=True)  # of words in a mean: their tokens
    tokens = traitlets.List().tag(sync=True)  # for each word, what its tokens read
    special = traitlets.List(traitlets.Int()).tag(sync=True)  # words that are special tokens
    name = traitlets.Unicode().tag(sync=True)  # of what is shown, beside others
    group = traitlets.Unicode().tag(sync=True)  # explorers of one group point together
    made = traitlets.Unicode().tag(sync=True)  # the settings of the rollout, in words
    note = traitlets.Unicode().tag(sync=True)  # where shares of the whole mean nothing: why
    checks = traitlets.Enum(("", "kernel"), "").tag(sync=True)  # who can check
    trust = traitlets.Dict().tag(sync=True)  # what `checking.check` says
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
    """Show what is relevant for each word: pictures, and words that recolour them when pointed at.

    pictures, views: what is shown, and how each one's maps lie on it.
    words: what can be pointed at: tokens or frames.  prompt: how many of them were asked.
    panels: pictures side by side → sheets on each → `Heatmaps` or a `Mark`; or a function that
    computes them from the `MapSettings` of a rollout of `depth` layers, whose controls then appear
    below.  settings: the initial ones.
    labels: a name for each picture.  title: what to call the words together.
    verify: `check_peak` for the answer that is shown; then the place can be checked.
    look: initial traits of `MapView`, such as `power` or `colours`.

    `selected` holds the numbers of the pinned words; `figure()` and `save("map.png")` draw what is
    shown, with the current settings; `save` also writes SVG, PDF, NumPy and COCO's boxes. Where
    only outputs are saved, a picture of everything remains.

    Raises ValueError if pictures, views and maps do not fit each other.
    """

    def __init__(
        self,
        pictures: Sequence[Image.Image],
        views: Sequence[View],
        words: Sequence[str],
        panels: Panels | Callable[[MapSettings], Panels],
        *,
        depth: int = 0,
        settings: MapSettings | None = None,
        prompt: int = 0,
        labels: Sequence[str] = (),
        title: str = "words",
        verify: Callable[..., PeakCheck] | None = None,
        **look,
    ):
        labels = list(labels) or [f"picture {number}" for number in range(1, len(pictures) + 1)]
        if not words or not len(pictures) == len(views) == len(labels) > 0:
            raise ValueError(
                "expected words, and a view and a label for each picture, got "
                f"{len(words)} words, {len(pictures)} pictures, {len(views)} views, "
                f"{len(labels)} labels"
            )
        self._pictures, self._views = list(map(upright_rgb, pictures)), list(views)
        longest = LONGEST_ALONE if len(pictures) == 1 else LONGEST_OF_SEVERAL
        self._small = [picture.copy() for picture in self._pictures]
        for small in self._small:
            small.thumbnail((longest, longest))
        self._compute = panels if callable(panels) else lambda settings: panels
        self._verify = verify
        self._first = settings = settings or MapSettings()
        self.maps = MapView(
            pictures=list(map(_sent, self._small, views, labels)),
            words=list(words),
            weights=[len(getattr(word, "tokens", "")) or 1 for word in words],
            prompt=prompt,
            title=title,
            status=STILL if depth else "",
            checks="kernel" if verify else "",
            **({"together": len(pictures) > 1} | look),
        )
        self._controls = controls(depth, settings) if depth else {}
        self._show(self._compute(settings))
        for control in self._controls.values():
            control.observe(self._recompute, names="value")
        self.maps.on_msg(self._greet)
        super().__init__([self.maps, ipywidgets.HBox(list(self._controls.values()), layout=WRAP)])

    @property
    def settings(self) -> MapSettings | None:
        """The current settings of the rollout; None if the maps were given, not computed."""
        chosen = {name: control.value for name, control in self._controls.items()}
        return replace(self._first, **chosen) if chosen else None

    @property
    def selected(self) -> list[int]:
        """The numbers of the pinned words, counted from 0. It can also be set."""
        return list(self.maps.selected)

    @selected.setter
    def selected(self, words: Sequence[int]) -> None:
        self.maps.selected = list(words)

    @property
    def shown(self) -> list[int]:
        """The numbers of the words whose maps are combined: the pinned, or else the answer's."""
        return self.selected or list(range(self.maps.prompt, len(self.maps.words)))

    def close(self) -> None:
        """Remove all parts from the browser, and maps, pictures and the recording from memory."""
        for widget in parts(self):
            widget.unobserve_all()
            if widget is not self:
                widget.close()
        self._pictures, self._small, self._panels, self._rows = [], [], {}, {}
        self._compute, self._verify = lambda settings: {}, None
        super().close()

    def figure(self) -> Figure:
        """What is shown, for print: every panel, and every picture of a clip.

        If the place of the map shown was checked, it has the frame and the verdict of the check.
        """
        return self._figure(self._pictures)

    def save(self, path: str | Path) -> Path:
        """Save what is shown; the ending of the file's name says what.

        .png, .jpg, .webp: the picture shown, at its own size, with panels side by side.
        .svg, .pdf: `figure()`.
        .npy: the map of the picture shown on its tokens, `[panel row column]`, as shares.
        .json: boxes round the map's peaks, in COCO's format; each panel is a category.

        Raises ValueError for another ending.
        """
        content = saving.content(self, Path(path).suffix.lower())
        with complete_file(path) as part:
            part.write_bytes(content)
        return Path(path)

    def check(self, on_progress: Callable[[int, int], object] = nothing) -> PeakCheck:
        """Does the whole answer depend on the place where the map shown is highest?

        `check_peak` of the map of the pinned words, or else of the answer, blurred as shown. What
        it finds is shown beside the map as long as that map is shown.

        Raises ValueError if the explorer does not show one answer about one picture, and as
        `check_peak` does.
        """
        if self._verify is None:
            raise ValueError("expected an explorer of an answer about one picture, got another")
        return check(self, self._verify, on_progress)

    def minus(self, other: "Explorer") -> "Explorer":
        """What is more relevant for each word here than in another explorer; it follows both.

        The shares there are subtracted from the shares here: red is more here, blue more there.
        Words are compared by their numbers: those of the answers, and those of the prompts if they
        are the same.

        Raises ValueError unless both show one map of each word on the same grids.
        """
        views, others = ([view.grid for view in each._views] for each in (self, other))
        if views != others:
            raise ValueError(f"expected maps on the same grids, got {views} and {others}")
        prompts = [each.maps.words[: each.maps.prompt] for each in (self, other)]
        prompt = len(prompts[0]) if prompts[0] == prompts[1] else 0
        firsts = [0, 0] if prompt else list(map(len, prompts))
        both = [each.maps.words[at:] for each, at in zip((self, other), firsts, strict=True)]
        pairs = zip(*both, strict=False)
        words = [a if a == b else f"{a.strip()} | {b.strip()}" for a, b in pairs]

        def compared() -> Panels:
            mine, theirs = (
                each._of_words(at, len(words))
                for each, at in zip((self, other), firsts, strict=True)
            )
            ends = np.cumsum([np.prod(grid) for grid in views])
            *on_pictures, on_words = np.split(mine - theirs, ends, axis=1)
            maps = [m.reshape(-1, *grid) for m, grid in zip(on_pictures, views, strict=True)]
            return {"": {"": Heatmaps(maps, on_words, DIVERGING, signed=True)}}

        labels = [picture["label"] for picture in self.maps.pictures]
        special = {number - firsts[0] for number in self.maps.special} & {*range(len(words))}
        look = {"labels": labels, "title": self.maps.title, "together": self.maps.together}
        look["special"] = sorted(special)
        found = Explorer(self._pictures, self._views, words, compared(), prompt=prompt, **look)
        for each in (self, other):
            each.maps.observe(lambda _: found._show(compared()), "codes")
        return found

    def _of_words(self, first: int, count: int) -> Float[np.ndarray, "word relevance"]:
        """The only map of each of these words, on pictures and on these words."""
        [rows, *others] = self._rows.values()
        if others or len(rows) != len(self.maps.words):
            raise ValueError(f"expected one map of each word, got {[*self._rows]}")
        cells, chosen = rows.shape[1] - len(rows), slice(first, first + count)
        return np.hstack([rows[chosen, :cells], rows[chosen, cells:][:, chosen]])

    def shown_picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """The picture that is shown with everything on it, panels side by side."""
        number = self.maps.picture
        picture = self._pictures[number]
        painted = [self._painted(panel, number, picture) for panel in self._panels]
        return np.hstack([np.asarray(picture)] * (self.maps.display == "beside") + painted)

    @property
    def panel_names(self) -> list[str]:
        """The names of the pictures side by side."""
        return list(self._panels)

    def shown_map(self, panel: str) -> tuple[Float[np.ndarray, "rows columns"], View]:
        """The combined map of the words shown, on the tokens of the picture shown, and its view."""
        row = self._combined(self._rows[panel, self._lead(panel)])
        number = self.maps.picture
        return self._grid(row, number), self._views[number]

    def _lead(self, panel: str) -> str:
        """The sheet that tells words apart, as in the browser: the first that is shown."""
        sheets = [name for name in self._panels[panel] if (panel, name) in self._rows]
        able = [name for name in sheets if len(self._rows[panel, name]) == len(self.maps.words)]
        visible = [name for name in able if name not in self.maps.hidden]
        return next(iter(visible + able + sheets))

    def _figure(self, pictures: Sequence[Image.Image]) -> Figure:
        several = len(pictures) > 1
        names = [picture["label"] for picture in self.maps.pictures] if several else [self._title()]
        painted, titles = [], []
        for panel in self._panels:
            painted += [self._painted(panel, k, picture) for k, picture in enumerate(pictures)]
            titles += [f"{panel}: {name}" if panel else name for name in names]
        look = FILM if several else {"columns": 2}
        figure = plot_pictures(painted, titles, **look, scale=self._bars())
        if several:
            figure.suptitle(self._title(), parse_math=False)
        if found := finding(self.maps):  # on the first panel, as in the browser
            axis, [picture] = figure.axes[0], pictures
            axis.set_title(f"{titles[0]}\n{found['sentence']}", parse_math=False)
            pairs = zip(found["box"], picture.size * 2, strict=True)
            draw_frame(axis, [share * length for share, length in pairs], found["verdict"])
        return figure

    def _bars(self) -> dict[str, str]:
        """The colours of each bar of `figure()` by its label, if they are true of what is shown."""
        sheets = [
            (name or panel, sheet)
            for panel, sheets in self._panels.items()
            for name, sheet in sheets.items()
            if isinstance(sheet, Heatmaps) and name not in self.maps.hidden
        ]
        flat = self.maps.shared or self.maps.display in ("flat", "outline")
        if flat or any(sheet.signed for _, sheet in sheets):
            return {}
        names: dict[str, dict[str, None]] = {}  # of what has these colours, each once
        for name, sheet in sheets:
            names.setdefault(sheet.colours or self.maps.colours, {})[name] = None
        label = range_label(self.maps.power)
        if len(names) == 1:
            return {label: next(iter(names))}
        return {f"{', '.join(named)}\n{label}": colours for colours, named in names.items()}

    def _title(self) -> str:
        if not self.selected:
            every = f"{self.maps.combine} of all {self.maps.title}"
            return "whole answer" if self.maps.prompt else every
        pinned = [self.maps.words[word].strip() for word in self.selected]  # each with its space
        return f"{self.maps.combine} of {', '.join(pinned)}" if len(pinned) > 1 else pinned[0]

    def _painted(
        self, panel: str, number: int, picture: Image.Image
    ) -> UInt8[np.ndarray, "height width 3"]:
        """One picture with everything that lies on it."""
        view = replace(self._views[number], picture=picture.size[::-1])
        sheets = self._panels[panel].items()
        shown = [(name, sheet) for name, sheet in sheets if name not in self.maps.hidden]
        for name, sheet in sorted(shown, key=lambda one: isinstance(one[1], Mark)):  # marks on top
            if isinstance(sheet, Mark):
                point = sheet.x * picture.width, sheet.y * picture.height
                shown = blend(picture, crosshair(view.picture, point), 1)
            else:
                scaled = self._scaled(self._rows[panel, name], number, view, sheet.signed)
                shown = self._coloured(picture, scaled, sheet)
            picture = Image.fromarray(shown)
        return np.asarray(picture)

    def _coloured(
        self, picture: Image.Image, scaled: Float[np.ndarray, "height width"], sheet: Heatmaps
    ) -> UInt8[np.ndarray, "height width 3"]:
        colours, signed = sheet.colours or self.maps.colours, sheet.signed
        if self.maps.display == "slider":
            scaled[:, : round(self.maps.split * picture.width)] = np.nan
        if self.maps.display == "outline":
            return blend(picture, outline(scaled, colours, signed=signed), 1)
        flat = self.maps.display == "flat"
        return paint(picture, scaled, colours, self.maps.opacity, flat=flat, signed=signed)

    def _combined(
        self, rows: Float[np.ndarray, "word relevance"]
    ) -> Float[np.ndarray, " relevance"]:
        """One row for the words shown."""
        if len(rows) == 1:
            return rows[0]
        if self.maps.combine == "max":
            return rows[self.shown].max(0)
        weights = [self.maps.weights[word] for word in self.shown]
        return np.average(rows[self.shown], 0, weights)  # the mean over their tokens

    def _grid(
        self, row: Float[np.ndarray, " relevance"], number: int
    ) -> Float[np.ndarray, "rows columns"]:
        """The part of a row that lies on one picture."""
        ends = np.cumsum([0, *(np.prod(view.grid) for view in self._views)])
        return row[ends[number] : ends[number + 1]].reshape(self._views[number].grid)

    def _scaled(
        self, rows: Float[np.ndarray, "word relevance"], number: int, view: View, signed: bool
    ) -> Float[np.ndarray, "height width"]:
        """The combined map of the words shown, at the picture's resolution and in [0, 1]; in
        [-1, 1] if it is signed."""
        combined, cells = self._combined(rows), sum(int(np.prod(v.grid)) for v in self._views)
        grid, blur = self._grid(combined, number), self.maps.blur
        smooth = to_picture(np.maximum(grid, 0), view, blur_tokens=blur)
        if signed:
            smooth -= to_picture(np.maximum(-grid, 0), view, blur_tokens=blur)
        one_picture = combined[:cells] if self.maps.together else smooth[~np.isnan(smooth)]
        measured = rows[:, :cells] if self.maps.shared else one_picture
        measured = np.abs(measured) if signed else measured
        low, high = measured.min(initial=np.inf), measured.max(initial=0)
        if high <= 0:  # nothing to show: the bare picture
            return np.full_like(smooth, np.nan)
        if signed:
            shares = np.clip(smooth / high, -1, 1)
            return np.sign(shares) * np.abs(shares) ** self.maps.power
        if is_flat(low, high):
            return smooth * 0
        return np.clip((smooth - low) / (high - low), 0, 1) ** self.maps.power

    def _show(self, panels: Panels) -> None:
        """Keep these maps and send them to the browser, in one message."""
        settings = self.settings
        self._panels = panels
        self._rows = {
            (panel, name): self._rows_of(sheet)
            for panel, sheets in panels.items()
            for name, sheet in sheets.items()
            if isinstance(sheet, Heatmaps)
        }
        sheets = [sheet for panel in panels.values() for sheet in panel.values()]
        own = [sheet.colours for sheet in sheets if isinstance(sheet, Heatmaps) and sheet.colours]
        with self.maps.hold_sync():
            self.maps.trust = {}
            self.maps.palettes = {name: _palette(name) for name in dict.fromkeys([*COLOURS, *own])}
            self.maps.made = settings.said if settings else ""
            self.maps.note = settings.note if settings else ""
            self.maps.panels = [
                {"name": panel, "sheets": [self._sheet(panel, name) for name in sheets]}
                for panel, sheets in panels.items()
            ]
            self.maps.codes = b"".join(
                codes(rows, panels[panel][name].signed)
                for (panel, name), rows in self._rows.items()
            )

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
        peaks = np.abs(self._rows[panel, name]).max(1).tolist()
        return {"name": name, "colours": sheet.colours, "peaks": peaks, "signed": sheet.signed}

    def _recompute(self, _change) -> None:
        self.maps.status, self.maps.busy = "Computing in the kernel …", True
        began = time.perf_counter()
        try:
            self._show(self._compute(self.settings))
            self.maps.status = f"{READY} The last took {time.perf_counter() - began:.1f} s."
        except Exception as error:
            self.maps.status = f"The kernel could not compute this: {error}"
            raise
        finally:
            self.maps.busy = False

    def _greet(self, _widget, content: dict, _buffers) -> None:
        """Tell a browser that there is a kernel, and enable the controls; or send it a file."""
        if kind := content.get("save"):
            file = saving.content(self, f".{kind}")
            self.maps.send({"saved": f"map.{kind}"}, [file])
        elif content == {"check": True}:
            self.check()
        elif content == {"ask": "kernel"}:
            self.maps.send({"kernel": True})
            self.maps.status = READY if self._controls else ""
            for control in self._controls.values():
                control.disabled = False

    def _repr_mimebundle_(self, **kwargs) -> dict[str, object]:
        """The live view, and a picture for programs that cannot show it."""
        picture = base64.b64encode(png_of(self._figure(self._small))).decode()
        return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}


def _palette(name: str) -> bytes:
    """256 colours, as red, green, blue and opacity."""
    return (mpl.colormaps[name](np.arange(256)) * 255).round().astype(np.uint8).tobytes()


def _sent(picture: Image.Image, view: View, label: str) -> dict[str, object]:
    """A picture as sent to the browser, with the grid and where on the picture it lies."""
    boxes, (height, width), file = view.boxes(), view.picture, io.BytesIO()
    picture.save(file, "webp", quality=QUALITY)
    return {
        "data": file.getvalue(),
        "type": "image/webp",
        "label": label,
        "width": picture.width,
        "height": picture.height,
        "grid": list(view.grid),
        "box": (np.r_[boxes[0, :2], boxes[-1, 2:]] / [width, height, width, height]).tolist(),
    }
