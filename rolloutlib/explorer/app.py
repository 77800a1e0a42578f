"""The explorer as a page of its own, for the reader's picture and question."""

import html

from transformers.utils.logging import disable_progress_bar

from rolloutlib.evaluate.methods import STRONGEST
from rolloutlib.explorer import explore
from rolloutlib.extras import needs
from rolloutlib.files.pictures import read_picture
from rolloutlib.models import MultimodalModel, load_model

with needs("notebooks"):
    import ipywidgets

FIRST = "Choose a picture, write a question, and ask."
LONGEST = 4096  # pixels along a side of a picture
LABELLED = {"style": {"description_width": "initial"}}


class AskPanel(ipywidgets.VBox):
    """Upload a picture, ask the model about it, and explore where it looks.

    model: any that `load_model` returns. `status` shows its answer, or why there is none.
    """

    def __init__(self, model: MultimodalModel):
        self._model = model
        self.picture = ipywidgets.FileUpload(accept="image/*", description="picture")
        self.prompt = ipywidgets.Text(description="question", layout={"width": "32em"}, **LABELLED)
        self.longest = ipywidgets.BoundedIntText(
            32, min=1, max=4096, description="tokens at most", layout={"width": "13em"}, **LABELLED
        )
        self.ask = ipywidgets.Button(description="ask", button_style="primary")
        self.status = ipywidgets.HTML(said(FIRST))
        self.explored = ipywidgets.VBox()
        self.ask.on_click(self._answer)
        asked = [self.picture, self.prompt, self.longest, self.ask]
        row = ipywidgets.HBox(asked, layout={"flex_flow": "row wrap"})
        super().__init__([row, self.status, self.explored])

    def _answer(self, _button) -> None:
        if not self.picture.value or not self.prompt.value.strip():
            missing = "question" if self.picture.value else "picture"
            self.status.value = said(f"The {missing} is missing. {FIRST}")
            return
        self.ask.disabled, self.status.value = True, said("The model is answering …")
        try:
            [file] = self.picture.value
            picture = read_picture(bytes(file["content"]), file["name"])
            picture.thumbnail((LONGEST, LONGEST))  # it is kept as long as its answer is shown
            longest = self.longest.value
            answer = self._model.generate(picture, self.prompt.value, max_new_tokens=longest)
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
