"""One model for all who ask: questions wait in a queue, and each answer goes to its asker only."""

import base64
import gc
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from transformers import StoppingCriteria
from transformers.utils.logging import set_tqdm_hook

from rolloutlib.explorer import Explorer, explore
from rolloutlib.explorer.checking import MADE_OF
from rolloutlib.explorer.saving import content
from rolloutlib.extras import needs
from rolloutlib.models import Answer, MultimodalModel, load_model
from rolloutlib.models.tower import SHIPPED

with needs("notebooks"):
    from ipywidgets.embed import dependency_state

# Traits of `MapView` that a saved file depends on, beside the maps.
LOOK = (*MADE_OF, "colours", "power", "opacity", "display", "split", "hidden", "picture")
LOOK += ("together", "shared")
SMALL = 100  # million parameters: with fewer, a model can't answer what people ask
SAID = "Heads, residual, order and the question are chosen above; ask again to change them."


class Stopped(Exception):
    """Whoever asked does not wait for the answer any more."""


class StopWhen(StoppingCriteria):
    """Ends an answer between two of its tokens, and counts them."""

    def __init__(self, ticket: "Ticket"):
        self.ticket, self.tokens = ticket, 0

    def __call__(self, input_ids: torch.Tensor, scores: object, **_) -> torch.Tensor:
        if self.ticket.stop.is_set():
            raise Stopped
        self.tokens += 1
        self.ticket.said = f"answering, token {self.tokens}"
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Ask:
    """A question as it came: `model`, `adapter` and `device` are the desk's; pictures are upright.

    head_fusion, residual, beyond_even: of the map, as in `explore`.  longest: tokens of the answer
    at most.
    """

    model: str
    pictures: Sequence[Image.Image]
    question: str
    longest: int = 32
    head_fusion: str = SHIPPED["head_fusion"]
    residual: float = SHIPPED["residual"]
    beyond_even: bool = SHIPPED["beyond_even"]
    adapter: str = ""
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, object]:
        """Those of the map."""
        return {name: getattr(self, name) for name in SHIPPED}


@dataclass(eq=False)
class Ticket:
    """A place in the queue; `said` is where the work is, in a word."""

    stop: threading.Event = field(default_factory=threading.Event)
    said: str = "waiting"
    result: Future | None = None


class Desk:
    """Answers questions one after the other, by a model, an adapter and a device out of `allowed`.

    models, adapters: folders or ids as `load_model` takes; by default no adapter is used.
    devices: each a `device_map` as there.  dtype: as there. One model is in memory at a time,
    whoever asks.
    """

    def __init__(
        self,
        models: Sequence[str],
        adapters: Sequence[str] = (),
        devices: Sequence[str] = ("cpu",),
        dtype: str = "auto",
    ):
        adapters = dict.fromkeys(["", *adapters])
        self.allowed = {"model": [*models], "adapter": [*adapters], "device": [*devices]}
        self.about = ""  # the model in memory, in one line
        self._dtype, self._work = dtype, ThreadPoolExecutor(max_workers=1)
        self._loaded: tuple[tuple[str, ...], MultimodalModel | None] = ((), None)
        self._queue: list[Ticket] = []

    def begin(self) -> Future:
        """Load the first of all that is allowed, before anybody asks."""
        first = {name: choices[0] for name, choices in self.allowed.items()}
        return self._work.submit(self._model, Ask(pictures=[], question="", **first), Ticket())

    def ask(self, ask: Ask) -> Ticket:
        """Queue a question. The ticket's result is what `_shown` returns, or what went wrong."""
        return self._queued(self._answer, ask)

    def check(self, ask: Ask, tokens: Sequence[int], look: Mapping[str, object]) -> Ticket:
        """Queue a check of the place where the map of an answer is highest.

        tokens: the ids of the answer that was given.  look: what the map shown is made of, by the
        names in `MADE_OF`. The ticket's result has the trait `trust`, or it is what went wrong.
        """
        return self._queued(self._check, ask, tokens, {name: look[name] for name in MADE_OF})

    def as_file(
        self, ask: Ask, tokens: Sequence[int], look: Mapping[str, object], kind: str
    ) -> Ticket:
        """Queue a file of what is shown of an answer.

        look: of the map shown, by the names in `LOOK`, and the trait `trust`.  kind: the ending of
        the file, as `Explorer.save` says. The ticket's result has the file's name, `saved`, and as
        `data` its bytes in base64.
        """
        return self._queued(self._save, ask, tokens, look, kind)

    def _queued(self, work: Callable[..., dict], *what: object) -> Ticket:
        ticket = Ticket()
        self._queue.append(ticket)
        ticket.result = self._work.submit(work, ticket, *what)
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

    def _answer(self, ticket: Ticket, ask: Ask) -> dict[str, object]:
        model = self._model(ask, ticket)
        ticket.said = "looking at the picture"
        answer = model.generate(
            [*ask.pictures],
            ask.question,
            max_new_tokens=ask.longest,
            record=True,
            stopping_criteria=[StopWhen(ticket)],
        )
        tokens = answer.generated.tolist()
        about = {"about": self.about, "dtype": self._dtype, "tokens": tokens}
        ticket.said = "drawing the maps"
        said = answer.text or "nothing but special tokens"
        return _shown(explore(answer, **ask.settings), said) | about

    def _check(
        self, ticket: Ticket, ask: Ask, tokens: Sequence[int], look: Mapping[str, object]
    ) -> dict[str, object]:
        def tell(done: int, pictures: int) -> None:
            if ticket.stop.is_set():
                raise Stopped
            ticket.said = f"{done} of {pictures} altered pictures seen"

        with self._explorer(ticket, ask, tokens, look) as explorer:
            explorer.check(tell)
            return {"trust": explorer.maps.trust}

    def _save(
        self, ticket: Ticket, ask: Ask, tokens: Sequence[int], look: Mapping, kind: str
    ) -> dict[str, object]:
        with self._explorer(ticket, ask, tokens, {name: look[name] for name in LOOK}) as explorer:
            explorer.maps.trust = look["trust"]
            data = content(explorer, f".{kind}")
        return {"saved": f"map.{kind}", "data": base64.b64encode(data).decode()}

    @contextmanager
    def _explorer(
        self, ticket: Ticket, ask: Ask, tokens: Sequence[int], look: Mapping[str, object]
    ) -> Iterator[Explorer]:
        """The explorer of an answer that was given before."""
        model = self._model(ask, ticket)
        ticket.said = "looking again"
        explorer = explore(_given(model, ask, tokens), **ask.settings, **look)
        try:
            yield explorer
        finally:
            explorer.close()

    def _model(self, ask: Ask, ticket: Ticket) -> MultimodalModel:
        if ticket.stop.is_set():
            raise Stopped
        wanted = ask.model, ask.adapter, ask.device
        if self._loaded[0] != wanted:
            self.about, self._loaded = "", ((), None)  # first free the one before
            gc.collect()
            ticket.said = "loading"
            with weights_counted(lambda share: setattr(ticket, "said", f"loading, {share:.0%}")):
                how = {"device_map": ask.device, "dtype": self._dtype}
                self._loaded = wanted, load_model(ask.model, adapter_id=ask.adapter, **how)
            self.about = described(*wanted, self._loaded[1])
        return self._loaded[1]


def _given(model: MultimodalModel, ask: Ask, tokens: Sequence[int]) -> Answer:
    """The answer that was given before, from its tokens."""
    words = model.model.get_input_embeddings().num_embeddings
    if not all(0 <= token < words for token in tokens):
        raise ValueError(f"expected ids of tokens in [0, {words - 1}], got {[*tokens]}")
    inputs = model.prepare([*ask.pictures], ask.question)
    given = torch.tensor([[*tokens]], device=inputs["input_ids"].device)
    sequences = torch.cat([inputs["input_ids"], given], 1)
    return model.answer([*ask.pictures], ask.question, inputs, sequences)


@contextmanager
def weights_counted(tell: Callable[[float], object]) -> Iterator[None]:
    """Inside the block, `tell` hears what share of its weights transformers has loaded."""

    def counted(weights: Collection) -> Iterator:
        for number, weight in enumerate(weights):
            tell(number / len(weights))
            yield weight

    def hook(factory: Callable, args: tuple, how: dict) -> object:
        return counted(*args) if how.get("desc") == "Loading weights" else factory(*args, **how)

    before = set_tqdm_hook(hook)
    try:
        yield
    finally:
        set_tqdm_hook(before)


def described(name: str, adapter: str, device: str, model: MultimodalModel) -> str:
    """A model in one line: what it is, and what it can do."""
    config, millions = model.model.config, model.model.num_parameters() / 1e6
    size = f"{millions / 1000:.1f} billion" if millions >= 1000 else f"{millions:.1f} million"
    with_it = f" with the adapter {Path(adapter).name}" if adapter else ""
    can = "It answers questions about pictures."
    if millions < SMALL:
        can = "It is small: it answers only questions like those that it was trained on."
    called = f"{Path(name).name}{with_it}: {config.model_type} with {size} parameters"
    return f"{called}, on {device}. {can}"


def _shown(explorer: Explorer, text: str) -> dict[str, object]:
    """The explorer as a page shows it without a kernel, and the answer; nothing of it is kept."""
    explorer.maps.status = SAID
    name = explorer.maps.model_id
    state = dependency_state([explorer.maps], drop_defaults=False)[name]
    explorer.close()
    kept = {key: value for key, value in state["state"].items() if key not in ("_esm", "_css")}
    return {"answer": text, "state": kept, "buffers": state.get("buffers", [])}
