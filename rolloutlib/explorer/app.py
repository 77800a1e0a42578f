"""The explorer as a page of its own, for the reader's picture and question."""

import html
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from rolloutlib.evaluate.methods import STRONGEST
from rolloutlib.explorer import explore
from rolloutlib.extras import needs
from rolloutlib.files.pictures import read_picture
from rolloutlib.models import MultimodalModel, load_model

with needs("notebooks"):
    import anywidget
    import ipywidgets
    import traitlets

LARGEST_FILE = 20 * 2**20  # bytes of an uploaded picture
LONGEST_SIDE = 2048  # pixels of what is kept of it
FIRST = f"Choose a picture of at most {LARGEST_FILE // 2**20} MB, write a question, and ask."
LABELLED = {"style": {"description_width": "initial"}}


class Upload(anywidget.AnyWidget):
    """Takes one picture from the browser, which reads no file above `largest` bytes.

    `picture` is upright, at most LONGEST_SIDE pixels long, and None where `problem` says why.
    """

    _esm = Path(__file__).with_name("upload.js").read_text(encoding="utf-8")

    accept = traitlets.Unicode("image/*").tag(sync=True)
    largest = traitlets.Int(LARGEST_FILE).tag(sync=True)
    # What comes from a browser is a memoryview.
    content = traitlets.Bytes().tag(sync=True, from_json=lambda sent, widget: bytes(sent))
    name = traitlets.Unicode().tag(sync=True)
    size = traitlets.Int().tag(sync=True)
    chosen = traitlets.Int().tag(sync=True)  # how often: set last
    picture, problem = None, ""

    @traitlets.observe("chosen")
    def _keep(self, _change) -> None:
        self.picture, self.problem = None, ""
        try:
            if max(self.size, len(self.content)) > self.largest:
                limit, size = self.largest / 2**20, self.size / 2**20
                raise ValueError(
                    f"{self.name} is too large: expected at most {limit:.0f} MB, got {size:.1f} MB"
                )
            self.picture = read_picture(self.content, self.name)
            self.picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        except ValueError as error:
            self.problem = str(error)
        self.content = b""  # also in the browser


class AskPanel(ipywidgets.VBox):
    """Upload a picture, ask the model about it, and explore where it looks.

    model: any that `load_model` returns. `status` shows its answer, or why there is none.
    """

    def __init__(self, model: MultimodalModel):
        self._model = model
        self.picture = Upload()
        self.prompt = ipywidgets.Text(description="question", layout={"width": "32em"}, **LABELLED)
        self.longest = ipywidgets.BoundedIntText(
            32, min=1, max=4096, description="tokens at most", layout={"width": "13em"}, **LABELLED
        )
        self.ask = ipywidgets.Button(description="ask", button_style="primary")
        self.status = ipywidgets.HTML(said(FIRST))
        self.explored = ipywidgets.VBox()
        self.picture.observe(self._say_what_came, "chosen")
        self.ask.on_click(self._answer)
        asked = [self.picture, self.prompt, self.longest, self.ask]
        row = ipywidgets.HBox(asked, layout={"flex_flow": "row wrap"})
        super().__init__([row, self.status, self.explored])

    def _say_what_came(self, _change) -> None:
        kept = self.picture.picture
        came = kept and f"{self.picture.name} is here, {kept.width} × {kept.height} pixels."
        self.status.value = said(came or f"This cannot be asked about: {self.picture.problem}")

    def _answer(self, _button) -> None:
        picture = self.picture.picture
        if not picture or not self.prompt.value.strip():
            missing = "question" if picture else "picture"
            why = f"{self.picture.problem}. " if self.picture.problem else ""
            self.status.value = said(f"The {missing} is missing. {why}{FIRST}")
            return
        self.ask.disabled, self.status.value = True, said("The model is answering …")
        try:
            longest = self.longest.value
            answer = self._model.generate(
                picture, self.prompt.value, max_new_tokens=longest, record=True
            )
            # Not plain rollout: in some decoders it ends at the first patches, whatever is asked.
            self._show(explore(answer, to_patches=True, **STRONGEST))
            self.status.value = said(f"The model says: {answer.text}")
        except Exception as error:
            self._show()
            self.status.value = said(f"This could not be answered: {error}")
            raise
        finally:
            self.ask.disabled = False

    def _show(self, *explorers: ipywidgets.Widget) -> None:
        """Replace what was there, which would keep its recorded layers in memory."""
        for old in self.explored.children:
            old.close()
        self.explored.children = explorers


def ask_panel(model_id: str, **how) -> ipywidgets.Widget:
    """The panel for a checkpoint as in `load_model`, or a text that says why it is unavailable."""
    disable_progress_bar()  # it would stay on the page, at 100 %
    try:
        return AskPanel(load_model(model_id, **how))
    except (OSError, ValueError) as error:
        return ipywidgets.HTML(said(str(error)))


def said(text: str) -> str:
    """A line of text that screen readers read out when it changes."""
    return f'<p role="status">{html.escape(text)}</p>'
