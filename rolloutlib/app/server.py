"""The app's page and what it asks for: on this machine only, with a token, in no frame.

Nothing is written to the disk. What was asked and answered is kept by the browser alone.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from rolloutlib.algorithm.attention import HEAD_FUSIONS
from rolloutlib.app.desk import LOOK, Ask, Desk, Stopped, Ticket
from rolloutlib.app.kept import as_notebook, as_page
from rolloutlib.explorer.browser import STYLE, joined_module
from rolloutlib.explorer.checking import MADE_OF
from rolloutlib.extras import needs
from rolloutlib.files.pictures import read_picture
from rolloutlib.models.tower import SHIPPED
from rolloutlib.pages.page import PAGE_SCRIPT, PAGES, sha256_of

with needs("app"):
    import jinja2
    from tornado import iostream, web

LARGEST_FILE = 20 * 2**20  # bytes of an uploaded picture
MOST_PICTURES = 4
LONGEST_SIDE = 2048  # pixels of what is kept of it
TURN = 0.2  # seconds between two looks at the queue
TEMPLATES = Path(__file__).with_name("templates")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "


class Private(web.RequestHandler):
    """Answers only who has the token: in the address at first, then in a cookie."""

    def initialize(self, desk: Desk, token: str, examples: Sequence[dict], cookie: str) -> None:
        self.desk, self.token, self.examples, self.cookie = desk, token, examples, cookie

    def set_default_headers(self) -> None:
        script = f"script-src 'sha256-{sha256_of(page_script())}'"
        self.set_header("Content-Security-Policy", POLICY + script)
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        given = self.get_query_argument("token", "") or self.get_cookie(self.cookie, "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise web.HTTPError(403, reason="open the address that make app printed")

    def write_error(self, status_code: int, **kwargs) -> None:
        self.finish(self._reason)


class Page(Private):
    def get(self) -> None:
        if self.get_query_argument("token", ""):
            self.set_cookie(self.cookie, self.token, httponly=True, samesite="Strict")
            self.redirect("/")
            return
        self.write(page(self.desk, self.examples))


class Example(Private):
    def get(self, number: str) -> None:
        if int(number) >= len(self.examples):
            raise web.HTTPError(404)
        path = self.examples[int(number)]["path"]
        self.set_header("Content-Type", f"image/{path.suffix[1:].replace('jpg', 'jpeg')}")
        self.write(path.read_bytes())


@web.stream_request_body
class Question(Private):
    """Takes pictures one after the other as the body, and says how the answer comes along.

    Each line of the reply is JSON: where the work is, and at last the answer or what went wrong.
    """

    def prepare(self) -> None:
        super().prepare()
        self.ticket, self.body = None, bytearray()
        size = int(self.request.headers.get("Content-Length", LARGEST_FILE * MOST_PICTURES + 1))
        if size > LARGEST_FILE * MOST_PICTURES:  # refused before it is read
            self.set_header("Connection", "close")
            raise web.HTTPError(413, reason="the pictures are too large")

    def data_received(self, chunk: bytes) -> None:
        self.body += chunk

    async def post(self) -> None:
        try:
            self.ticket = self._queued(json.loads(unquote(self.request.headers["X-Ask"])))
        except (ValueError, KeyError, TypeError) as problem:
            self.write({"problem": str(problem)})
            return
        result = asyncio.wrap_future(self.ticket.result)
        try:
            while not (await asyncio.wait([result], timeout=TURN))[0]:
                self._tell(said=self.ticket.said, before=self.desk.before(self.ticket))
                await self.flush()
            self._tell(**result.result())
        except iostream.StreamClosedError:
            self.ticket.stop.set()
        except Stopped:
            self._tell(problem="Stopped.")
        except Exception as problem:  # whatever a model or a picture of any origin makes it raise
            logging.getLogger(__name__).exception("a question could not be answered")
            self._tell(problem=f"This could not be answered: {problem}")

    def on_connection_close(self) -> None:
        if self.ticket:
            self.ticket.stop.set()

    def _tell(self, **what: object) -> None:
        self.write(json.dumps(what) + "\n")

    def _queued(self, said: dict) -> Ticket:
        return self.desk.ask(self._asked(said))

    def _asked(self, said: dict) -> Ask:
        for name, allowed in (self.desk.allowed | {"head_fusion": HEAD_FUSIONS}).items():
            if said[name] not in allowed:
                raise ValueError(f"expected as {name} one of {[*allowed]}, got {said[name]!r}")
        if not said["question"].strip():
            raise ValueError("The question is missing.")
        longest = int(said["longest"])
        if not 1 <= longest <= 4096:
            raise ValueError(f"expected 1 to 4096 tokens, got {longest}")
        residual = float(said["residual"])
        if not 0 <= residual <= 1:
            raise ValueError(f"residual must be in [0, 1], got {residual}")
        chosen = {name: said[name] for name in (*self.desk.allowed, "head_fusion", "question")}
        chosen |= {"residual": residual, "beyond_even": bool(said["beyond_even"])}
        return Ask(pictures=self._pictures(said), longest=longest, **chosen)

    def _pictures(self, said: dict) -> list:
        found, start = [], 0
        for name, size in said["pictures"][:MOST_PICTURES]:
            if size > LARGEST_FILE:
                raise ValueError(f"{name}: expected at most {LARGEST_FILE // 2**20} MB")
            picture = read_picture(bytes(self.body[start : start + size]), name)
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            found.append(picture)
            start += size
        if not found:
            raise ValueError("The picture is missing.")
        return found


class Check(Question):
    """Takes the pictures again, and says whether the answer depends on the map's highest place."""

    def _queued(self, said: dict) -> Ticket:
        return self.desk.check(self._asked(said), said["tokens"], said["look"])


class Save(Question):
    """Takes the pictures again, and makes a file of what is shown."""

    def _queued(self, said: dict) -> Ticket:
        return self.desk.as_file(self._asked(said), said["tokens"], said["look"], said["kind"])


class Kept(Private):
    """An answer as a page of its own, or its question as a notebook, from what the browser has."""

    def post(self, kind: str) -> None:
        said = json.loads(self.request.body)
        try:
            self.write(as_page(said) if kind == "page" else as_notebook(said))
        except (KeyError, TypeError) as problem:
            raise web.HTTPError(400, reason="not an answer of this app") from problem


def page_script() -> str:
    """The explorer, what runs it without a kernel, and the page's own script, as one module."""
    explorer = joined_module().replace("export default", "const explorer =")
    own = (TEMPLATES / "app.js").read_text(encoding="utf-8")
    return explorer + PAGE_SCRIPT.read_text(encoding="utf-8") + own


def page(desk: Desk, examples: Sequence[dict]) -> str:
    """The page that everybody opens; it holds nothing of anybody."""
    loader = jinja2.ChoiceLoader([jinja2.FileSystemLoader(TEMPLATES), PAGES.loader])
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("app.html.j2")
    return template.render(
        choices={
            name: [(one, Path(one).name or f"no {name}") for one in allowed]
            for name, allowed in desk.allowed.items()
        },
        about=desk.about,
        examples=[(one["path"], one["question"]) for one in examples],
        heads=HEAD_FUSIONS,
        shipped=SHIPPED,
        largest=LARGEST_FILE,
        most=MOST_PICTURES,
        made_of=MADE_OF,
        look=LOOK,
        style=STYLE,
        script=page_script(),
    )


def application(desk: Desk, token: str, examples: Sequence[dict], port: int) -> web.Application:
    """The app. examples: `path` and `question` of each."""
    shared = {"desk": desk, "token": token, "examples": examples, "cookie": f"rollout-{port}"}
    routes = [
        (r"/", Page, shared),
        (r"/example/(\d+)", Example, shared),
        (r"/ask", Question, shared),
        (r"/check", Check, shared),
        (r"/save", Save, shared),
        (r"/(page|notebook)", Kept, shared),
        (r".*", Private, shared),
    ]
    return web.Application(routes, log_function=lambda handler: None)


def read_examples(folder: Path) -> list[dict]:
    """The pictures of a folder with their questions, as its `examples.json` pairs them."""
    file = folder / "examples.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return [{"path": folder / name, "question": question} for name, question in found.items()]
