"""One model for all who ask: questions wait in a queue, and each answer goes to its asker only."""

import gc
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from transformers import StoppingCriteria
from transformers.utils.logging import set_tqdm_hook

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

    head_fusion, residual: of the rollout.  longest: tokens of the answer at most.
    """

    model: str
    pictures: Sequence[Image.Image]
    question: str
    longest: int = 32
    head_fusion: str = STRONGEST["head_fusion"]
    residual: float = STRONGEST["residual"]
    adapter: str = ""
    device: str = "cpu"


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
        model = self._model(ask, ticket)
        ticket.said = "looking at the picture"
        answer = model.generate(
            [*ask.pictures],
            ask.question,
            max_new_tokens=ask.longest,
            record=True,
            stopping_criteria=[StopWhen(ticket)],
        )
        # Not plain rollout: in some decoders it ends at the first patches, whatever is asked.
        settings = {"head_fusion": ask.head_fusion, "residual": ask.residual}
        ticket.said = "drawing the maps"
        explorer = explore(answer, to_patches=True, **settings)
        return _shown(explorer, answer.text) | {"about": self.about, "dtype": self._dtype}

    def _model(self, ask: Ask, ticket: Ticket) -> MultimodalModel:
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
    return (
        f"{Path(name).name}{with_it}: {config.model_type} with {size} parameters, on {device}. "
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
