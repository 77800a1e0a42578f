"""One model for all who ask: questions wait in a queue, and each answer goes to its asker only."""

import gc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from transformers import StoppingCriteria

from rolloutlib.evaluate.methods import STRONGEST
from rolloutlib.explorer import Explorer, explore
from rolloutlib.extras import needs
from rolloutlib.models import MultimodalModel, load_model

with needs("notebooks"):
    from ipywidgets.embed import dependency_state

SAID = "Heads, residual and the question are chosen above; ask again to change them."


class Stopped(Exception):
    """Whoever asked does not wait for the answer any more."""


class StopWhen(StoppingCriteria):
    """Ends an answer between two of its tokens."""

    def __init__(self, stop: threading.Event):
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: object, **_) -> torch.Tensor:
        if self.stop.is_set():
            raise Stopped
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Ask:
    """A question as it came: `model` is one of the desk's; `pictures` are upright.

    head_fusion, residual: of the rollout.  longest: tokens of the answer at most.
    """

    model: str
    pictures: Sequence[Image.Image]
    question: str
    longest: int = 32
    head_fusion: str = STRONGEST["head_fusion"]
    residual: float = STRONGEST["residual"]


@dataclass(eq=False)
class Ticket:
    """A place in the queue; `said` is where the work is, in a word."""

    stop: threading.Event = field(default_factory=threading.Event)
    said: str = "waiting"
    result: Future | None = None


class Desk:
    """Answers questions one after the other, by a model out of `allowed`.

    allowed: folders or ids as `load_model` takes; the first is loaded first.  how: the other
    arguments of `load_model`. One model is in memory at a time, whoever asks.
    """

    def __init__(self, allowed: Sequence[str], **how):
        self.allowed, self._how = list(allowed), how
        self._work = ThreadPoolExecutor(max_workers=1)
        self._loaded: tuple[str, MultimodalModel | None] = ("", None)
        self._queue: list[Ticket] = []

    def ask(self, ask: Ask) -> Ticket:
        """Queue a question. The ticket's result is what `_shown` returns, or what went wrong."""
        ticket = Ticket()
        self._queue.append(ticket)
        ticket.result = self._work.submit(self._answer, ask, ticket)
        ticket.result.add_done_callback(lambda _: self._queue.remove(ticket))
        return ticket

    def before(self, ticket: Ticket) -> int:
        """How many are answered before this one."""
        return self._queue.index(ticket) if ticket in self._queue else 0

    def close(self) -> None:
        """Answer nobody any more."""
        for ticket in self._queue:
            ticket.stop.set()
        self._work.shutdown(cancel_futures=True)

    def _answer(self, ask: Ask, ticket: Ticket) -> dict[str, object]:
        if ticket.stop.is_set():
            raise Stopped
        model = self._model(ask.model, lambda: setattr(ticket, "said", "loading the model"))
        ticket.said = "answering"
        answer = model.generate(
            [*ask.pictures],
            ask.question,
            max_new_tokens=ask.longest,
            record=True,
            stopping_criteria=[StopWhen(ticket.stop)],
        )
        # Not plain rollout: in some decoders it ends at the first patches, whatever is asked.
        settings = {"head_fusion": ask.head_fusion, "residual": ask.residual}
        explorer = explore(answer, to_patches=True, **settings)
        return _shown(explorer, answer.text) | {"about": described(ask.model, model)}

    def _model(self, name: str, loading: Callable[[], object]) -> MultimodalModel:
        if self._loaded[0] != name:
            loading()
            self._loaded = ("", None)  # first free the one before
            gc.collect()
            self._loaded = (name, load_model(name, **self._how))
        return self._loaded[1]


def described(name: str, model: MultimodalModel) -> str:
    """A model in one line: what it is, and what it can do."""
    config, millions = model.model.config, model.model.num_parameters() / 1e6
    size = f"{millions / 1000:.1f} billion" if millions >= 1000 else f"{millions:.1f} million"
    return (
        f"{Path(name).name}: {config.model_type} with {size} parameters. "
        "It answers questions about pictures."
    )


def _shown(explorer: Explorer, text: str) -> dict[str, object]:
    """The explorer as a page shows it without a kernel, and the answer; nothing of it is kept."""
    explorer.maps.status = SAID
    name = explorer.maps.model_id
    state = dependency_state([explorer.maps], drop_defaults=False)[name]
    explorer.close()
    kept = {key: value for key, value in state["state"].items() if key not in ("_esm", "_css")}
    return {"answer": text, "state": kept, "buffers": state.get("buffers", [])}
