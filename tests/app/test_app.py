"""The app: one model for all, answers in turn, and nobody sees another's picture."""

import asyncio
import base64
import gc
import http.client
import io
import json
import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from small_llava import save_small_llava, small_llava
from small_qwen3_vl import save_small_lora

from rolloutlib.app import desk as desk_module
from rolloutlib.app.desk import Ask, Desk, Stopped
from rolloutlib.app.server import LARGEST_FILE, application, read_examples
from rolloutlib.explorer import explore
from rolloutlib.models import load_model
from rolloutlib.runs.notebook import Notebook

QUESTION = "what colour is the star ?"
TOKEN = "0123456789abcdef"
ARTIFACTS = ROOT / "outputs" / "explorer"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return [str(save_small_llava(tmp_path_factory.mktemp(name))) for name in ("one", "two")]


@pytest.fixture
def endless(monkeypatch):
    """Models that never end an answer by themselves; with random weights they may at once."""

    def load(name, **how):
        model = load_model(name, **how)
        model.model.generation_config.eos_token_id = None
        return model

    monkeypatch.setattr(desk_module, "load_model", load)


@pytest.fixture
def desk(checkpoints, endless):
    desk = Desk(checkpoints)
    yield desk
    desk.close()


@pytest.fixture
def port(desk):
    """The app on a port of its own, in a thread."""
    started, ended, found = threading.Event(), [], []

    async def serve():
        stop = asyncio.Event()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            found.append(free.getsockname()[1])
        app = application(desk, TOKEN, read_examples(ROOT / "data" / "examples"), found[0])
        server = app.listen(found[0], "127.0.0.1", max_body_size=4 * LARGEST_FILE)
        ended.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        server.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    yield found[0]
    [(loop, stop)] = ended
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def reply_of(port, method, path, body=b"", token=True, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)
    cookie = {"Cookie": f"rollout-{port}={TOKEN}"} if token else {}
    connection.request(method, path, body, cookie | headers)
    reply = connection.getresponse()
    return reply.status, reply.headers, reply.read()


def png(colour="red", size=(90, 60)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def asked(port, name, content, path="/ask", **other):
    """The lines that the app answers."""
    said = {"model": name, "adapter": "", "device": "cpu", "question": QUESTION, "longest": 2}
    said |= {"head_fusion": "max", "residual": 0.9, "pictures": [["a.png", len(content)]]}
    said |= {"beyond_even": True} | other
    status, _, body = reply_of(port, "POST", path, content, **{"X-Ask": quote(json.dumps(said))})
    assert status == 200
    return [json.loads(line) for line in body.splitlines()]


def colour_of(line):
    """The colour of the picture that an answer shows."""
    [sent] = [one for one in line["buffers"] if one["path"] == ["pictures", 0, "data"]]
    return Image.open(io.BytesIO(base64.b64decode(sent["data"]))).getpixel((5, 5))


# In private


@pytest.mark.parametrize(
    "path",
    ["/", "/example/0", "/ask", "/check", "/save", "/page", "/notebook", "/lost", "/?token=no"],
)
def test_nothing_is_shown_without_the_token_or_in_a_frame(port, path):
    for method in ("GET", "POST"):
        status, headers, body = reply_of(port, method, path, token=False)
        assert status == 403 and b"address that make app printed" in body
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_the_token_of_the_address_becomes_a_cookie_that_scripts_cannot_read(port):
    status, headers, _ = reply_of(port, "GET", f"/?token={TOKEN}", token=False)
    assert status == 302 and headers["Location"] == "/"
    assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    assert reply_of(port, "GET", "/")[0] == 200


@pytest.mark.parametrize("length", [4 * LARGEST_FILE + 1, None])
def test_what_is_too_large_is_refused_before_it_is_read(port, length):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        said = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
        head = f"POST /ask HTTP/1.1\r\nHost: a\r\nCookie: rollout-{port}={TOKEN}\r\n{said}\r\n\r\n"
        line.sendall(head.encode())  # and no body
        assert line.recv(20).split()[1] in (b"413", b"400")


# Asking


@pytest.mark.parametrize(
    ("content", "other", "said"),
    [
        (b"words", {}, "expected a picture, got a.png (5 bytes)"),
        (png()[:60], {}, "expected a picture, got a.png"),
        (b"", {"pictures": []}, "The picture is missing."),
        (png(), {"question": " "}, "The question is missing."),
        (png(), {"question": "what does <image> mean?"}, "which means"),
        (png(), {"model": "other"}, "expected as model one of"),
        (png(), {"adapter": "other"}, "expected as adapter one of [''], got 'other'"),
        (png(), {"device": "cuda"}, "expected as device one of ['cpu'], got 'cuda'"),
        (png(), {"head_fusion": "odd"}, "expected as head_fusion one of"),
        (png(), {"residual": 2}, "residual must be in [0, 1], got 2"),
        (png(), {"longest": 0}, "expected 1 to 4096 tokens, got 0"),
        (png(size=(3, 3)), {"pictures": [["a.png", LARGEST_FILE + 1]]}, "at most 20 MB"),
    ],
)
def test_what_cannot_be_answered_is_said(port, checkpoints, content, other, said):
    assert said in asked(port, checkpoints[0], content, **other)[-1]["problem"]


def test_five_at_once_are_answered_in_turn_each_with_their_own_picture(port, checkpoints):
    colours = ["red", "lime", "blue", "yellow", "white"]
    with ThreadPoolExecutor(5) as people:
        lines = list(people.map(lambda one: asked(port, checkpoints[0], png(one)), colours))
    for colour, said in zip(colours, lines, strict=True):
        wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert max(abs(a - b) for a, b in zip(colour_of(said[-1]), wanted, strict=True)) < 9
    assert max(one.get("before", 0) for said in lines for one in said) >= 1
    assert "llava with 0.1 million parameters" in lines[0][-1]["about"]


def codes_of(line):
    return next(one["data"] for one in line["buffers"] if one["path"] == ["codes"])


def test_an_adapter_is_chosen_for_each_question_and_said(checkpoints, endless, tmp_path):
    lora = str(save_small_lora(tmp_path / "lora", small_llava(), target_modules=["q_proj"]))
    desk = Desk(checkpoints, [lora])
    desk.begin().result()
    assert desk.about.startswith("one") and "adapter" not in desk.about
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    found = []
    for adapter in ("", lora, ""):
        ask = Ask(checkpoints[0], [picture], QUESTION, 1, adapter=adapter)
        found.append(desk.ask(ask).result.result())
    assert "with the adapter lora: llava" in found[1]["about"]
    assert found[0]["about"] == found[2]["about"] == desk.about
    first, other, again = map(codes_of, found)
    assert first == again != other
    desk.close()


def test_what_is_loaded_and_answered_is_counted(desk, checkpoints, monkeypatch):
    said = []
    monkeypatch.setattr(
        desk_module.Ticket,
        "__setattr__",
        lambda ticket, name, value: said.append(value) or object.__setattr__(ticket, name, value),
    )
    desk.ask(Ask(checkpoints[0], [Image.new("RGB", (60, 60))], QUESTION, 2)).result.result()
    words = [one for one in said if isinstance(one, str)]
    shares = [int(one[9:-1]) for one in words if one.startswith("loading, ")]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] > 90
    told = ["looking at the picture", "answering, token 1", "answering, token 2"]
    assert words[-4:] == [*told, "drawing the maps"]


def test_another_model_takes_the_place_of_the_one_before(desk, checkpoints):
    kept = []
    for name in checkpoints:
        desk.ask(Ask(name, [Image.new("RGB", (60, 60))], QUESTION, 1)).result.result()
        kept.append(weakref.ref(desk._loaded[1].model))
    gc.collect()
    assert [one() is None for one in kept] == [True, False]


def test_an_answer_stops_between_two_tokens_and_the_next_is_given(desk, checkpoints, monkeypatch):
    begun = threading.Event()

    class Slow(desk_module.StopWhen):
        def __call__(self, ids, scores, **other) -> torch.Tensor:
            begun.set()
            self.ticket.stop.wait()
            return super().__call__(ids, scores, **other)

    ask = Ask(checkpoints[0], [Image.new("RGB", (60, 60))], QUESTION, 3)
    once = iter([Slow, desk_module.StopWhen])
    monkeypatch.setattr(desk_module, "StopWhen", lambda ticket: next(once)(ticket))
    first = desk.ask(ask)
    assert begun.wait(100)
    second = desk.ask(ask)
    assert (desk.before(first), desk.before(second)) == (0, 1)
    first.stop.set()
    with pytest.raises(Stopped):
        first.result.result(100)
    assert second.result.result(100)["state"]["words"]


def test_an_answer_keeps_nothing_in_memory(desk, checkpoints, monkeypatch):
    kept = []
    explore = desk_module.explore
    monkeypatch.setattr(
        desk_module,
        "explore",
        lambda answer, **how: kept.append(weakref.ref(answer)) or explore(answer, **how),
    )
    desk.ask(Ask(checkpoints[0], [Image.new("RGB", (60, 60))], QUESTION, 1)).result.result()
    desk.close()
    gc.collect()
    assert kept[0]() is None


# Is the place right?

LOOK = {"selected": [4], "combine": "max", "blur": 1.0}


def test_the_place_is_checked_as_the_explorer_does(port, desk, checkpoints):
    content = (ROOT / "data" / "examples" / "scene1.jpg").read_bytes()
    [*_, said] = asked(port, checkpoints[0], content)
    how = {"tokens": said["tokens"], "look": LOOK}
    [*before, last] = asked(port, checkpoints[0], content, "/check", **how)
    assert all({"said", "before"} == set(line) for line in before)
    model, picture = desk._loaded[1], Image.open(io.BytesIO(content))
    answer = model.generate(picture, QUESTION, max_new_tokens=2)
    assert answer.sequence[-2:].tolist() == said["tokens"]
    explorer = explore(answer, head_fusion="max", **LOOK)
    explorer.check()
    assert last == {"trust": explorer.maps.trust}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"tokens": [99], "look": LOOK}, r"expected ids of tokens in [0, 13], got [99]"),
        ({"tokens": [5], "look": LOOK | {"selected": [99]}}, "numbers of words in"),
        ({"tokens": [5], "look": {}}, "selected"),
    ],
)
def test_what_cannot_be_checked_is_said(port, checkpoints, other, said):
    assert said in asked(port, checkpoints[0], png(), "/check", **other)[-1]["problem"]


# To take away


def test_the_notebook_asks_the_same_by_its_parameters(port, checkpoints, tmp_path):
    said = {"model": checkpoints[0], "question": "a 'b'\n?", "names": ["x y.png"], "longest": 7}
    said |= {"adapter": "my-lora", "device": "auto", "dtype": "bfloat16"}
    said |= {"head_fusion": "max", "residual": 0.9, "beyond_even": False}
    _, _, body = reply_of(port, "POST", "/notebook", json.dumps(said))
    (tmp_path / "question.ipynb").write_bytes(body)
    nbformat.validate(nbformat.read(tmp_path / "question.ipynb", 4))
    parameters = Notebook.read(tmp_path / "question.ipynb").parameters
    expected = {"model_id": checkpoints[0], "prompt": "a 'b'\n?", "picture_paths": ["x y.png"]}
    expected |= {"max_new_tokens": 7, "residual": 0.9, "head_fusion": "max", "beyond_even": False}
    expected |= {"adapter_id": "my-lora", "device_map": "auto", "dtype": "bfloat16"}
    assert {name: one.default for name, one in parameters.items()} == expected
    assert reply_of(port, "POST", "/notebook", "{}")[0] == 400


BRING = """([way, content]) => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(content.match(/../g), (pair) => parseInt(pair, 16));
  data.items.add(new File([bytes], `${way}.png`, { type: "image/png" }));
  document.body.dispatchEvent(way === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


def test_in_a_browser_an_example_is_asked_shown_kept_and_taken_away(
    port, chromium, tmp_path, violations, faint
):
    page = chromium.new_page(viewport={"width": 360, "height": 740})
    page.set_default_timeout(240_000)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda one: complaints.append(one.text))
    page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
    assert page.locator(".examples img").count() == 3
    page.get_by_role("button", name="ask", exact=True).click()
    page.get_by_text("The picture is missing.").wait_for()
    (tmp_path / "large.png").write_bytes(bytes(LARGEST_FILE + 1))
    page.locator("#picture").set_input_files(tmp_path / "large.png")
    page.get_by_text("large.png is too large: expected at most 20 MB, got 20.0 MB.").wait_for()
    page.locator("#picture").set_input_files(ROOT / "data" / "examples" / "scene1.jpg")
    page.locator("#preview img").wait_for()
    page.get_by_label("question").fill(QUESTION)
    page.get_by_role("button", name="ask", exact=True).click()
    page.locator("#history li").wait_for()
    assert f"{QUESTION} — The model says: " in page.locator("#status").inner_text()
    assert page.locator(".rx-chip:visible").count() > 4
    page.get_by_role("button", name="Check this place").click()
    page.locator(".rx-trust strong").wait_for()
    assert page.locator(".rx-place").is_visible()
    box = page.locator("main").bounding_box()
    assert box["width"] <= 360 and page.locator("#question").bounding_box()["width"] <= 340
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / "app.png", full_page=True)
    assert violations(page) == [] and faint(page) == []
    for name, ending in (("PNG", "png"), ("SVG", "svg"), ("NumPy", "npy"), ("COCO boxes", "json")):
        with page.expect_download() as kept:
            page.get_by_role("button", name=name, exact=True).click()
        kept.value.save_as(tmp_path / f"map.{ending}")
    verdict = page.locator(".rx-trust strong").inner_text()[2:]
    assert verdict in (tmp_path / "map.svg").read_text()
    assert np.load(tmp_path / "map.npy").ndim == 3
    said = json.loads((tmp_path / "map.json").read_text())["images"][0]
    assert (said["width"], said["height"]) == Image.open(tmp_path / "map.png").size
    with page.expect_download() as kept:
        page.get_by_role("button", name="as a page").click()
    kept.value.save_as(tmp_path / "answer.html")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"nothing"}
    page.locator("#picture").set_input_files(broken)
    page.get_by_label("question").fill("another ?")
    page.get_by_role("button", name="ask", exact=True).click()
    page.get_by_text("expected a picture, got broken.png").wait_for()
    assert page.locator(".rx").count() == 0 and not page.locator("#take").is_visible()
    assert violations(page) == [] and faint(page) == []
    page.locator("#history button").click()
    page.locator(".rx-picture").wait_for()
    names = "[...document.getElementById('picture').files].map((file) => file.name)"
    assert page.evaluate(names) == ["scene1.jpg"]
    assert page.locator("#preview img").get_attribute("alt") == "scene1.jpg"
    assert page.get_by_label("question").input_value() == QUESTION
    assert page.locator(".rx-trust strong").is_visible()
    for way in ("paste", "drop"):
        page.evaluate(BRING, [way, png().hex()])
        page.get_by_text(f"{way}.png is here. Now ask.").wait_for()
        assert page.locator("#preview img").get_attribute("alt") == f"{way}.png"
        assert page.evaluate(names) == [f"{way}.png"] and page.locator(".rx").count() == 0
    page.evaluate("document.getElementById('ask').click(), document.getElementById('stop').click()")
    page.get_by_text("Stopped.").wait_for()
    page.locator("[data-example]").nth(1).click()
    page.locator("#history li").nth(1).wait_for()
    assert page.locator(".rx-picture").count() == 1
    page.close()
    own = (f"http://127.0.0.1:{port}/", "blob:", "data:")
    assert [url for url in requests if not url.startswith(own)] == [] and complaints == []
    alive = chromium.new_page()
    alive.goto((tmp_path / "answer.html").as_uri())
    alive.locator(".rx-chip").first.wait_for()
    assert "ask again" not in alive.locator(".rx-status").inner_text()
    assert violations(alive) == []
    alive.close()
