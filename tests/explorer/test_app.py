"""The explorer as a page of its own: what it says, also in a real browser with its token."""

import gc
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from pathlib import Path

import ipywidgets
import numpy as np
import psutil
import pytest
from PIL import Image
from places import ROOT
from small_llava import save_small_llava

from rolloutlib.explorer.app import LARGEST_FILE, AskPanel, ask_panel

ARTIFACTS = ROOT / "outputs" / "explorer"
LONG = 240_000  # milliseconds: a busy machine may need them to start a kernel
QUESTION = "what colour is the star ?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_small_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def panel(checkpoint):
    panel = ask_panel(checkpoint)
    panel._model.model.generation_config.eos_token_id = None  # random weights may end at once
    return panel


def upload(panel, content, name="a.png", size=None):
    """What the browser sends of a file."""
    size = len(content) if size is None else size
    sent = {"content": memoryview(content), "name": name, "size": size}
    panel.picture.set_state(sent | {"chosen": panel.picture.chosen + 1})


def picture(size=(90, 60)):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(file, "png")
    return file.getvalue()


def test_a_large_picture_is_kept_smaller(panel):
    file = io.BytesIO()
    Image.new("RGB", (6000, 3000), "red").save(file, "png")
    upload(panel, file.getvalue())
    panel.prompt.value = QUESTION
    panel.ask.click()
    [explorer] = panel.explored.children
    assert [kept.size for kept in explorer._pictures] == [(2048, 1024)]


def test_a_picture_that_is_too_large_is_named(panel):
    file = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(file, "png")
    upload(panel, file.getvalue(), "large.png")
    panel.prompt.value = QUESTION
    panel.ask.click()
    assert "got 10,000x6,000" in panel.status.value and not panel.explored.children


def test_asking_shows_the_answer_and_its_explorer(panel):
    upload(panel, picture())
    panel.prompt.value = QUESTION
    panel.longest.value = 3
    panel.ask.click()
    [explorer] = panel.explored.children
    answered = explorer.maps.words[explorer.maps.prompt :]
    assert len(answered) == 3
    assert (explorer.settings.head_fusion, explorer.settings.residual) == ("max", 0.9)
    assert panel.status.value.startswith('<p role="status">The model says: ')
    assert not panel.ask.disabled


def test_a_new_answer_takes_the_place_of_the_old(panel):
    upload(panel, picture())
    panel.prompt.value = QUESTION
    panel.ask.click()
    [first] = panel.explored.children
    panel.ask.click()
    [second] = panel.explored.children
    assert second is not first
    assert first.comm is None and second.comm is not None


@pytest.mark.parametrize(
    ("content", "prompt", "said"),
    [
        (
            b"words",
            QUESTION,
            "The picture is missing. expected a picture, got notes.txt (5 bytes): not PNG",
        ),
        (None, QUESTION, "The picture is missing."),
        (picture(), " ", "The question is missing."),
        (picture(), "what does <image> mean?", "got &#x27;&lt;image&gt;&#x27;, which means"),
        (picture(), "red </s> star", "expected a question in plain text"),
        (picture(), "red ASSISTANT: no", "expected a question in plain text"),
    ],
)
def test_what_cannot_be_asked_is_said(panel, content, prompt, said):
    if content:
        upload(panel, content, "notes.txt")
    panel.prompt.value = prompt
    panel.ask.click()
    assert said in panel.status.value
    assert not panel.explored.children and not panel.ask.disabled


def test_an_answer_that_ends_before_it_begins_is_said(panel):
    words = range(panel._model.model.config.get_text_config().vocab_size)
    panel._model.model.generation_config.eos_token_id = list(words)
    upload(panel, picture())
    panel.prompt.value = QUESTION
    panel.ask.click()
    assert "not be answered: expected at least one generated token, got none" in panel.status.value


def test_a_checkpoint_that_is_not_there_is_said(tmp_path):
    shown = ask_panel(str(tmp_path / "nowhere"))
    assert isinstance(shown, ipywidgets.HTML) and not isinstance(shown, AskPanel)
    assert f"cannot load the checkpoint {tmp_path}/nowhere: expected a folder" in shown.value


def test_what_came_is_said_and_kept_small(panel):
    upload(panel, picture((3000, 1500)), "<b>a.png")
    assert "&lt;b&gt;a.png is here, 2048 × 1024 pixels." in panel.status.value
    assert panel.picture.picture.size == (2048, 1024) and panel.picture.content == b""


@pytest.mark.parametrize(
    ("content", "size", "said"),
    [
        (b"", LARGEST_FILE + 1, "a.png is too large: expected at most 20 MB, got 20.0 MB"),
        (b"", 150 * 2**20, "a.png is too large: expected at most 20 MB, got 150.0 MB"),
        (b"words", 5, "expected a picture, got a.png"),
        (picture()[:99], 99, "expected a picture, got a.png"),
    ],
)
def test_picture_that_cannot_be_asked_about_is_refused_at_once(panel, content, size, said):
    upload(panel, picture())
    upload(panel, content, size=size)
    assert said in panel.status.value
    assert panel.picture.picture is None and panel.picture.content == b""
    panel.prompt.value = QUESTION
    panel.ask.click()
    assert f"The picture is missing. {said}" in panel.status.value


def test_more_than_the_page_takes_is_refused_whatever_the_browser_says(panel):
    panel.picture.largest = 50
    upload(panel, picture(), size=3)
    assert "too large" in panel.status.value and panel.picture.picture is None


def test_asking_again_keeps_nothing_of_the_answers_before(panel):
    upload(panel, picture())
    panel.prompt.value, panel.longest.value = QUESTION, 2
    kept = []
    for _ in range(3):
        panel.ask.click()
        [explorer] = panel.explored.children
        arrays = [*explorer._rows.values(), explorer.maps, explorer._compute, explorer]
        kept.append([weakref.ref(one) for one in arrays])
        del explorer, arrays
    gc.collect()
    assert [any(one() is not None for one in before) for before in kept] == [False, False, True]
    assert all(one() is not None for one in kept[-1])


# In a browser


def kernels(address):
    """The processes of the app's kernels."""
    option = f"--port={re.search(r':([0-9]+)/', address)[1]}"
    found = psutil.process_iter(["cmdline"])
    [server] = [
        one for one in found if {"explorer.ipynb", option} <= set(one.info["cmdline"] or [])
    ]
    return [one for one in server.children() if "ipykernel_launcher" in words_of(one)]


def words_of(process):
    """The command of a process; nothing of one that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def connection_file(kernel):
    return Path(next(word for word in kernel.cmdline() if word.endswith(".json")))


def kernel_of(page):
    """The name of a page's kernel."""
    found = page.locator("#jupyter-config-data").text_content()
    return json.loads(found)["kernelId"]


def status_of(url, method="GET", **headers):
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.headers
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers


def wait_until(condition):
    deadline = time.monotonic() + LONG / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_private(kernel):
    """Its sockets lie in a folder that only this user can read.

    One port is left: it publishes nothing, and takes what forked processes print, with a secret.
    """
    assert len([one for one in kernel.net_connections("tcp") if one.status == "LISTEN"]) <= 1
    said = json.loads(connection_file(kernel).read_text())
    assert said["transport"] == "ipc"
    folder = Path(said["ip"]).parent
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
    assert len([one for one in folder.iterdir() if one.is_socket()]) >= 5


@pytest.fixture
def app(tmp_path, chromium):
    """`make app`: the address that it prints, with its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = ["make", "--old-file=.venv/.ready", "app", f"PORT={port}"]
    command.append(f"BIN={Path(sys.executable).parent}")
    with open(tmp_path / "voila.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield printed_address(tmp_path / "voila.log", server)
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=60)


def printed_address(log, server):
    deadline = time.monotonic() + LONG / 1000
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\w+", log.read_text()):
            return found[0]
        time.sleep(0.2)
    raise AssertionError(f"expected the app's address, got {log.read_text()}")


def test_in_a_browser_a_picture_and_a_question_are_answered_and_explored(app, chromium):
    page = chromium.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(LONG)
    asked = []
    page.on("response", lambda response: asked.append(response.url))
    page.goto(app.partition("?")[0])
    assert "/login" in page.url
    assert page.get_by_role("button", name="ask").count() == 0

    page.goto(app)
    ask = page.get_by_role("button", name="ask", exact=True)
    ask.click()
    page.get_by_text("The picture is missing.").wait_for()
    page.get_by_label("picture").set_input_files(ROOT / "data" / "images" / "coffee.png")
    page.get_by_text("coffee.png is here, 600 × 400 pixels.").wait_for()
    page.get_by_label("question").fill("what colour is at the middle centre?")
    page.get_by_label("question").press("Tab")
    ask.click()
    page.get_by_text("The model says: ").wait_for()
    page.wait_for_function("document.querySelector('.rx-picture img')?.complete", timeout=LONG)

    hash_of_map = "() => document.querySelector('.rx-picture canvas').toDataURL()"
    before = page.evaluate(hash_of_map)
    page.locator(".rx-chip").nth(4).hover()
    assert page.evaluate(hash_of_map) != before
    status = "document.querySelector('.rx-status').textContent.includes"
    page.wait_for_function(f"{status}('the kernel computes it')", timeout=LONG)
    page.locator(".widget-dropdown select").select_option("mean")
    page.wait_for_function(f"{status}('The last took')", timeout=LONG)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / "app.png")
    page.close()
    own = app.partition("?")[0]
    assert [url for url in asked if not url.startswith((own, "blob:", "data:"))] == []


def opened(chromium, address):
    page = chromium.new_context().new_page()
    page.set_default_timeout(LONG)
    page.goto(address)
    page.get_by_label("picture").wait_for()
    return page


def test_app_is_private_and_each_page_has_a_kernel_that_ends_with_it(app, chromium, tmp_path):
    root, _, token = app.partition("?token=")
    first, second = opened(chromium, app), opened(chromium, app)
    one, two = kernels(app)
    assert kernel_of(first) != kernel_of(second)
    for kernel in (one, two):
        assert_private(kernel)

    # Without the token, nothing is shown and nothing can be ended.
    path = f"api/kernels/{kernel_of(first)}"
    socket_wanted = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    socket_wanted["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert status_of(root + path)[0] == 403
    assert status_of(f"{root}{path}/channels", **socket_wanted)[0] == 403
    assert status_of(f"{root}voila/api/shutdown/{kernel_of(first)}", "POST")[0] == 403
    assert status_of(f"{root}{path}?token={token}")[0] == 200

    # No page, file or refusal is shown in a frame.
    files = ["", "login", "voila/static/voila.js", "voila/static/lost.js", "lost/page", path]
    files += ["voila/files/explorer.ipynb", "voila/templates/lab/static/voila.js"]
    for file in files:
        headers = status_of(root + file)[1]
        assert headers["X-Frame-Options"] == "DENY", file
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"], file

    # A picture above the limit is refused in the browser; the page goes on.
    (tmp_path / "large.png").write_bytes(bytes(LARGEST_FILE + 1))
    first.get_by_label("picture").set_input_files(tmp_path / "large.png")
    first.get_by_text("large.png is too large: expected at most 20 MB").wait_for()
    first.get_by_label("picture").set_input_files(ROOT / "data" / "images" / "coffee.png")
    first.get_by_text("coffee.png is here, 600 × 400 pixels.").wait_for()
    assert "up to 20 MB" in first.locator("body").inner_text()

    # What is asked appears as text.
    first.get_by_label("question").fill("what <b id='asked'>colour</b> is at the middle centre?")
    first.get_by_label("question").press("Tab")
    first.get_by_role("button", name="ask", exact=True).click()
    first.locator(".rx-chip").first.wait_for()
    assert first.locator("#asked").count() == 0

    # Loading a page again, or closing it, ends its kernel at once.
    left = kernel_of(first)
    first.reload()
    wait_until(lambda: not (words_of(one) and words_of(two)))
    first.get_by_label("picture").wait_for()
    assert kernel_of(first) != left and status_of(f"{root}{path}?token={token}")[0] == 404
    assert len(kernels(app)) == 2
    first.context.close()
    second.context.close()
    wait_until(lambda: kernels(app) == [])


def test_kernels_of_jupyterlab_are_private(tmp_path):
    """`make lab`: a kernel as its interface starts one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA")}
    options = f"--no-browser --ServerApp.port={port} --IdentityProvider.token=own"
    command = ["make", "--old-file=.venv/.ready", "lab", f"LAB={options}"]
    command.append(f"BIN={Path(sys.executable).parent}")
    url = f"http://127.0.0.1:{port}/api/kernels?token=own"
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: "/lab?token=" in (tmp_path / "lab.log").read_text())
        assert status_of(url, "POST")[0] == 201
        started = psutil.Process(server.pid)

        def found():
            below = started.children(recursive=True)
            return [one for one in below if "ipykernel_launcher" in words_of(one)]

        wait_until(lambda: found() and connection_file(found()[0]).exists())
        [kernel] = found()
        folder = connection_file(kernel).parent
        wait_until(lambda: len([one for one in folder.iterdir() if one.is_socket()]) >= 5)
        assert_private(kernel)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    wait_until(lambda: not folder.exists())
