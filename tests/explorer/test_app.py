"""The explorer as a page of its own: what it says, also in a real browser with its token."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
from PIL import Image
from places import ROOT
from small_llava import save_small_llava

from rolloutlib.explorer.app import AskPanel, ask_panel

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


def upload(panel, content, name="a.png"):
    file = {"name": name, "type": "image/png", "size": len(content), "content": content}
    panel.picture.value = [file | {"last_modified": datetime.now(UTC)}]


def picture():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "png")
    return file.getvalue()


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
            "not be answered: expected a picture, got notes.txt (5 bytes): not in",
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


# In a browser


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
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="picture").click()
    chooser.value.set_files(ROOT / "data" / "images" / "coffee.png")
    page.get_by_role("button", name="picture (1)").wait_for()
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
