import base64
import http.server
import io
import re
import threading

import nbformat
import numpy as np
import pytest
import soundfile
from bs4 import BeautifulSoup
from PIL import Image
from small_notebooks import write_notebook

from rolloutlib import cli
from rolloutlib.files import complete as files
from rolloutlib.pages import foreign
from rolloutlib.pages import gallery as site
from rolloutlib.pages import page as page_module
from rolloutlib.pages.page import mathml, write_page

DRAW = "import matplotlib.pyplot as plt; plt.figure(figsize=(12, 3)); plt.plot([1, 3]);"


def page_with(tmp_path, *cells):
    """The page of a notebook of these cells, as a browser would read it."""
    executed = tmp_path / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), executed)
    return BeautifulSoup(write_page(executed).read_text(), "html.parser")


def markdown(text):
    return nbformat.v4.new_markdown_cell(text)


def code_with(data):
    output = nbformat.v4.new_output("display_data", data=data)
    return nbformat.v4.new_code_cell("show()", outputs=[output])


def requests_of(page):
    """What a browser would ask the network for by itself."""
    asked = [tag.get("src") or tag.get("href") for tag in page.select("[src], link, script")]
    asked += re.findall(r"url\(|@import|import\(", str(page))
    return [address for address in asked if not (address or "").startswith("data:")]


# Formulas


@pytest.mark.parametrize(
    ("source", "formulas"),
    [
        ("$r$", 1),
        ("so $r_1 * s$ and $r_2 * s$", 2),
        ("$$\nR = \\prod_\\ell \\bar{A}_\\ell\n$$", 1),
        ("# Attention $A_\\ell$", 1),
        ("\\begin{align} a &= b \\\\ c &= d \\end{align}", 1),
        ("`$code$`", 0),
        ("```\n$code$\n```", 0),
        ("| a |\n|---|\n| $r$ |", 1),
        ("costs \\$3 and \\$4", 0),
    ],
)
def test_formulas_become_mathml_and_code_does_not(tmp_path, source, formulas):
    page = page_with(tmp_path, markdown(source))
    assert len(page.find_all("math")) == formulas
    assert ("$code$" in page.text) == ("$code$" in source)
    assert not page.select("math em")


def test_formula_that_cannot_be_converted_stays_visible():
    assert mathml(r"\foo{") == r"<code>\foo{</code>"
    assert mathml(r"\left( <a") == r"<code>\left( &lt;a</code>"


# Pages


def test_page_asks_nothing_of_the_network(tmp_path):
    widget = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1", "version_major": 2},
        "text/plain": "IntSlider()",
    }
    script = {"application/javascript": "alert(1)", "text/plain": "<script>"}
    page = page_with(tmp_path, markdown("# Look\n\n$r$"), code_with(widget), code_with(script))
    assert requests_of(page) == []
    assert not page.find_all("script")
    assert "IntSlider()" in page.text


def test_links_to_notebooks_lead_to_their_pages(tmp_path):
    links = "[a](02.ipynb) [b](training/x.ipynb#y) [c](https://example.org/n.ipynb)"
    page = page_with(tmp_path, markdown(links))
    found = [link["href"] for link in page.select("p a")]
    assert found == ["02.html", "training/x.html#y", "https://example.org/n.ipynb"]


def test_interrupted_page_leaves_the_finished_one(tmp_path, monkeypatch):
    page_with(tmp_path, markdown("# First"))

    def break_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", break_off)
    with pytest.raises(KeyboardInterrupt):
        page_with(tmp_path, markdown("# Second"))
    assert "First" in (tmp_path / "page.html").read_text()


# The index; this test starts two kernels


def test_index_has_a_card_for_each_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path, "01_draw", DRAW, title="# Draw <a> line")
    write_notebook(tmp_path, "training/02_fail", "raise ValueError('no & more')", title="# Train")
    write_notebook(tmp_path, "03_refused", "print()", parameters="image_path: str = 'lost.png'\n")
    (tmp_path / "notebooks" / "04_broken.ipynb").write_text("no notebook")
    draft = tmp_path / "notebooks" / ".ipynb_checkpoints" / "draft.ipynb"
    draft.parent.mkdir()
    draft.write_text("")

    assert cli.main(["run-all", "notebooks", "--out", "pages"]) == 1

    printed = capsys.readouterr().out
    assert re.search(r"^01_draw  [\d.]+ s  ok  ", printed, re.M)
    assert re.search(r"^02_fail  [\d.]+ s  FAILED In \[1\]: ValueError: no & more", printed, re.M)
    assert re.search(r"^03_refused  0.0 s  FAILED refused: image_path: there is no", printed, re.M)

    assert re.search(r"^04_broken  0.0 s  FAILED refused: .* not a notebook", printed, re.M)

    folder = tmp_path / "pages"
    index = BeautifulSoup((folder / "index.html").read_text(), "html.parser")
    cards = {card.h3.text: card for card in index.select(".card")}
    assert list(cards) == ["Draw <a> line", "03_refused", "04_broken", "Train"]
    assert cards["Draw <a> line"].select_one(".ok")
    assert cards["Train"].select_one(".failed").text == "failed: In [1]: ValueError: no & more"
    assert "refused" in cards["03_refused"].text and not cards["03_refused"].a

    pages = [link["href"] for link in index.select("h3 a[href]")]
    assert pages == ["01_draw.html", "training/02_fail.failed.html"]
    for page in pages:
        shown = BeautifulSoup((folder / page).read_text(), "html.parser")
        links = [link["href"] for link in shown.select("nav a")]
        targets = [(folder / page).parent / link for link in links]
        assert [target.resolve() for target in targets] == [
            folder / name for name in ("index.html", *pages)
        ]
        assert shown.select_one("nav a[aria-current]").text == shown.title.text
        assert requests_of(shown) == []

    [picture] = [image["src"] for image in index.select("img")]
    assert Image.open(folder / picture).width <= site.THUMBNAIL_SIZE[0]


def test_folder_without_notebooks_is_refused(tmp_path, capsys):
    assert cli.main(["run-all", str(tmp_path)]) == 2
    assert "no notebook" in capsys.readouterr().err


# What a notebook of any origin brings

DOT = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(DOT, "png")
PNG = base64.b64encode(DOT.getvalue()).decode()
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'


def pictures_of(page):
    return [picture.get("src", "") for picture in page.select("img")]


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "svg+xml"])
@pytest.mark.parametrize("source", ["![a](attachment:a%20b.x)", '<img src="attachment:a b.x">'])
def test_attached_picture_is_embedded(tmp_path, kind, source):
    cell = markdown(f"see {source} there")
    cell.attachments = {"a b.x": {f"image/{kind}": PNG}}
    page = page_with(tmp_path, cell)
    assert pictures_of(page) == [f"data:image/{kind};base64,{PNG}"]
    assert "see" in page.text and "there" in page.text


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "png"), ("b.JPG", "jpeg"), ("deep/c.gif", "gif"), ("d e.svg", "svg+xml")],
)
@pytest.mark.parametrize("source", ["![a](<{}>)", '<img alt="a" src="{}">', 'x <IMG SRC="./{}"> y'])
def test_local_picture_is_embedded_wherever_the_page_lies(tmp_path, name, kind, source):
    content = SVG.encode() if kind == "svg+xml" else DOT.getvalue()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    path = tmp_path / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[markdown(source.format(name))]), path)
    text = write_page(path, tmp_path / "elsewhere" / "page.html").read_text()
    embedded = base64.b64encode(content).decode()
    assert pictures_of(BeautifulSoup(text, "html.parser")) == [
        f"data:image/{kind};base64,{embedded}"
    ]


@pytest.mark.parametrize(
    "address",
    [
        "lost.png",
        "../outside.png",
        "deep/../../outside.png",
        "link.png",
        "/outside.png",
        "file:///outside.png",
        "https://example.org/a.png",
        "//example.org/a.png",
        "attachment:lost.png",
        "notes.txt",
        "",
    ],
)
@pytest.mark.parametrize("source", ["![words]({})", '<img alt="words" src="{}">'])
def test_other_picture_is_left_out_and_named(tmp_path, address, source):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "deep").mkdir()
    (folder / "notes.txt").write_text("words")
    (tmp_path / "outside.png").write_bytes(DOT.getvalue())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    page = page_with(folder, markdown(source.format(address)))
    assert pictures_of(page) == []
    address = address.removeprefix("file:///outside.png")  # which is not even kept as a text
    assert f"words [picture left out: {address}]" in page.text


def test_picture_above_the_limit_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "LARGEST_PICTURE", 9)
    (tmp_path / "a.png").write_bytes(DOT.getvalue())
    assert "left out: a.png" in page_with(tmp_path, markdown("![](a.png)")).text


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("<script>one()</script>two", "two"),
        ("<script src='https://example.org/a.js'></script>two", "two"),
        ("<SCRIPT\n>one()</SCRIPT\n>two", "two"),
        ("<p onclick='one()'>two</p>", "<p>two</p>"),
        ("<meta http-equiv='refresh' content='0;url=https://example.org'>two", "two"),
        ("<link rel='preconnect' href='https://example.org'>two", "two"),
        ("<base href='https://example.org'>two", "two"),
        ("<form action='https://example.org'><button>two</button></form>", "two"),
        ("<iframe srcdoc='<p>one</p>'></iframe>two", "two"),
        ("<a href='javascript:one()'>two</a>", "<a>two</a>"),
        (
            "<svg><script>one()</script><rect width='1'/></svg>",
            '<svg><rect width="1"></rect></svg>',
        ),
        ("a < b & c", "a &lt; b &amp; c"),
        ('<td style="color: red">two</td>', "two"),
        ('<p style="color: red">two</p>', '<p style="color: red">two</p>'),
        (
            '<audio controls><source src="data:audio/wav;base64,AA==" type="audio/wav"></audio>',
            '<audio controls><source src="data:audio/wav;base64,AA==" type="audio/wav"></audio>',
        ),
    ],
)
def test_html_keeps_its_words_and_nothing_that_acts(source, kept):
    assert foreign.safe_html(source, lambda address: address) == kept


@pytest.mark.parametrize(("subtype", "kind"), [("PCM_16", "flac"), ("PCM_24", "wav")])
def test_a_sound_loses_bytes_and_no_sample(subtype, kind):
    samples = (9000 * np.sin(np.arange(4000) / 9)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype=subtype)
    content = base64.b64encode(file.getvalue()).decode()
    source = f'<audio><source src="data:audio/wav;base64,{content}" type="audio/wav"></audio>'
    [found] = BeautifulSoup(foreign.safe_html(source, str), "html.parser").select("source")
    assert found["type"] == f"audio/{kind}"
    told, _, kept = found["src"].partition(";base64,")
    assert told == f"data:audio/{kind}" and (len(kept) < len(content) / 2) == (kind == "flac")
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(kept)), dtype="int16")
    assert rate == 16_000 and np.array_equal(heard, samples)


def test_too_many_tags_are_left_out_with_a_notice(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "MOST_TAGS", 5)
    page = page_with(tmp_path, code_with({"text/html": "<b>1</b><b>2</b><b>3</b>"}))
    assert "HTML left out: expected HTML of at most 5 tags, got 6" in page.text


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"application/x-own": "abc"}, "[output of the type application/x-own]"),
        ({"application/json": {"a": [1]}}, "[output of the type application/json]"),
        ({"application/pdf": "JVBE"}, "[output of the type application/pdf]"),
        ({}, "[output of the type nothing]"),
        ({"application/geo+json": {"a": 1}, "text/plain": "<GeoJSON>"}, "<GeoJSON>"),
        ({"text/latex": "$r$"}, "$r$"),
        ({"text/markdown": "*yes*"}, "yes"),
    ],
)
def test_output_of_any_type_is_shown_or_named(tmp_path, data, shown):
    assert shown in page_with(tmp_path, code_with(data)).text


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "svg+xml"])
def test_output_that_is_a_picture_is_one(tmp_path, kind):
    content = SVG if kind == "svg+xml" else PNG
    [source] = pictures_of(page_with(tmp_path, code_with({f"image/{kind}": content})))
    shown = "webp" if kind == "png" else kind  # it is smaller
    assert source.startswith(f"data:image/{shown};base64,")


def test_long_output_is_cut_with_a_notice(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "LONGEST_TEXT", 10)
    stream = nbformat.v4.new_output("stream", text="a" * 25)
    error = nbformat.v4.new_output("error", ename="E", evalue="v", traceback=["b" * 25])
    cell = nbformat.v4.new_code_cell("1", outputs=[stream, error])
    text = page_with(tmp_path, cell, code_with({"text/plain": "c" * 25})).text
    for letter in "abc":
        assert letter * 11 not in text and f"{letter * 10}\n[15 more characters left out]" in text


def test_error_is_shown_in_colour_and_one_without_a_traceback_too(tmp_path):
    lines = ["\x1b[31mValueError\x1b[0m: a <b>"]
    full = nbformat.v4.new_output("error", ename="ValueError", evalue="a <b>", traceback=lines)
    bare = nbformat.v4.new_output("error", ename="simpleError", evalue="of R", traceback=[])
    page = page_with(tmp_path, nbformat.v4.new_code_cell("1", outputs=[full, bare]))
    assert page.select_one(".ansi-red-fg").text == "ValueError" and "a <b>" in page.text
    assert "simpleError: of R" in page.text and "\x1b" not in page.text


@pytest.mark.parametrize("language", ["R", "julia", "rust", "no such language"])
def test_notebook_of_another_language_that_was_executed_elsewhere(tmp_path, language):
    notebook = nbformat.v4.new_notebook(cells=[code_with({"text/plain": "[1] 2"})])
    notebook.metadata["language_info"] = {"name": language}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert "[1] 2" in write_page(tmp_path / "a.ipynb").read_text()


def test_notebook_of_format_three(tmp_path):
    cell = nbformat.v3.new_code_cell("1 + 1", prompt_number=1)
    cell.outputs = [nbformat.v3.new_output("pyout", output_text="two", prompt_number=1)]
    sheet = nbformat.v3.new_worksheet(cells=[nbformat.v3.new_heading_cell("Old", level=1), cell])
    notebook = nbformat.v3.new_notebook(worksheets=[sheet])
    (tmp_path / "old.ipynb").write_text(nbformat.v3.writes_json(notebook))
    page = BeautifulSoup(write_page(tmp_path / "old.ipynb").read_text(), "html.parser")
    assert page.h1.text.startswith("Old") and "two" in page.text


VIEW = {"model_id": "1", "version_major": 2, "version_minor": 0}
MAP = {"_anywidget_id": page_module.EXPLORER, "_esm": "no()", "_css": "x{}"}


def with_state(widgets, view=VIEW):
    """An executed notebook with one widget, which has a still picture."""
    data = {page_module.WIDGET_VIEW: view, "image/png": PNG, "text/plain": "Widget()"}
    notebook = nbformat.v4.new_notebook(cells=[code_with(data)])
    notebook.metadata["widgets"] = widgets
    return notebook


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {"1": None},
        {"1": {"state": []}},
        {"1": {"state": {"children": "IPY_MODEL_1"}}},
        {"1": {"state": {"children": [None, 3, "2"]}}},
        {"1": {"state": {"children": ["IPY_MODEL_1"]}}},
        {"1": {"state": {"children": ["IPY_MODEL_2"]}}, "2": {"state": {"children": ["1"]}}},
    ],
)
def test_widgets_whose_state_is_odd_leave_their_still_picture(tmp_path, state):
    nbformat.write(with_state({page_module.WIDGET_STATE: {"state": state}}), tmp_path / "a.ipynb")
    page = BeautifulSoup(write_page(tmp_path / "a.ipynb").read_text(), "html.parser")
    assert len(pictures_of(page)) == 1 and not page.find_all("script")


def test_progress_bar_says_how_far_it_came(tmp_path):
    """As tqdm leaves it: its text is that of the beginning, and its widgets know the end."""
    children = ["IPY_MODEL_text", "IPY_MODEL_bar", "IPY_MODEL_left"]
    state = {
        "bar": {"model_name": "FloatProgressModel", "state": {"value": 9.0}},
        "text": {"model_name": "HTMLModel", "state": {"value": "<b>Loading:</b> 100%"}},
        "left": {"model_name": "HTMLModel", "state": {"value": " 9/9 [00:01&lt;00:00]"}},
        "1": {"model_name": "HBoxModel", "state": {"children": children}},
    }
    notebook = with_state({page_module.WIDGET_STATE: {"state": state}})
    [output] = notebook.cells[0].outputs
    output.data = {page_module.WIDGET_VIEW: VIEW, "text/plain": "Loading: 0%|   | 0/9"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    text = BeautifulSoup(write_page(tmp_path / "a.ipynb").read_text(), "html.parser").text
    assert "Loading: 100% 9/9 [00:01<00:00]" in text and "0/9" not in text


@pytest.mark.parametrize("view", [{}, None, 3, {"model_id": ["1"]}])
def test_widget_without_a_name_leaves_its_still_picture(tmp_path, view):
    state = {page_module.WIDGET_STATE: {"state": {"1": {"state": MAP}}}}
    nbformat.write(with_state(state, view), tmp_path / "a.ipynb")
    page = BeautifulSoup(write_page(tmp_path / "a.ipynb").read_text(), "html.parser")
    assert len(pictures_of(page)) == 1 and not page.find_all("script")


def test_picture_that_is_broken_costs_only_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in (("a", "AAAA"), ("b", "not base64"), ("c", PNG)):
        notebook = nbformat.v4.new_notebook(cells=[markdown(f"# {name}")])
        notebook.cells.append(code_with({"image/png": content}))
        (tmp_path / "outputs").mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / "outputs" / f"{name}.ipynb")
    assert cli.main(["gallery"]) == 0
    index = BeautifulSoup((tmp_path / "outputs/site/index.html").read_text(), "html.parser")
    assert [card.h3.text for card in index.select(".card")] == ["a", "b", "c"]
    assert len(pictures_of(index)) == 1 and len(index.select("h3 a[href]")) == 3


@pytest.mark.parametrize("command", [["gallery"], ["run-all", "notebooks"]])
def test_page_that_fails_costs_only_that_page(tmp_path, monkeypatch, capsys, command):
    """Starts kernels in the second case."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        path = write_notebook(tmp_path, name, "1", title=f"# Title {name}")
        (tmp_path / "outputs").mkdir(exist_ok=True)
        (tmp_path / "outputs" / path.name).write_bytes(path.read_bytes())
    render = page_module._text_of
    monkeypatch.setattr(
        page_module,
        "_text_of",
        lambda one, *rest: 1 / 0 if one.path.name == "a.ipynb" else render(one, *rest),
    )
    assert cli.main(command) == 1
    reason = "its page could not be written: ZeroDivisionError: division by zero"
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rollout:")]
    assert said.endswith(f"a.ipynb: {reason}")
    [index] = (tmp_path / "outputs").rglob("index.html")
    cards = BeautifulSoup(index.read_text(), "html.parser").select(".card")
    assert [card.h3.text for card in cards] == ["Title a", "Title b"]
    assert reason in cards[0].text and "ok" in cards[1].text
    assert [card.a is not None for card in cards] == [False, True]


def test_attachment_in_a_folder_is_run_and_written_once(tmp_path, monkeypatch, capsys):
    """Starts a kernel. The page is rendered once, although the index links it to all others."""
    monkeypatch.chdir(tmp_path)
    path = write_notebook(tmp_path, "a", "1", title="# A\n\n![](local.png) ![](attachment:b)")
    (path.parent / "local.png").write_bytes(DOT.getvalue())
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].attachments = {"b": {"image/png": PNG}}
    nbformat.write(notebook, path)
    page_module._text_of.cache_clear()
    assert cli.main(["run-all", "notebooks"]) == 0
    page = BeautifulSoup((tmp_path / "outputs" / "a.html").read_text(), "html.parser")
    assert pictures_of(page) == [f"data:image/png;base64,{PNG}"] * 2
    assert [link.text for link in page.select("nav a")] == ["All notebooks", "A"]
    assert page_module._text_of.cache_info()[:2] == (1, 1)  # hits and misses
    assert cli.main(["gallery"]) == 0
    page = BeautifulSoup((tmp_path / "outputs/site/a.html").read_text(), "html.parser")
    assert pictures_of(page) == [f"data:image/png;base64,{PNG}"] * 2


# In a real browser

FOREIGN = """export default { render({ el }) { window.reached = 1; el.textContent = "mine"; } }"""


@pytest.fixture
def arrived():
    """What was asked of a server on this machine, whose address comes first."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/seen", asked
        server.shutdown()


def test_page_runs_nothing_of_the_notebook_and_asks_for_nothing(tmp_path, browser, arrived):
    """Harmless: each attempt would only set a variable, or ask a server on this machine."""
    address, asked = arrived
    attempts = [
        "<script>window.reached = 1</script>",
        f'<img src="{address}.png" onerror="window.reached = 1">',
        f'<link rel="stylesheet" href="{address}.css"><iframe src="{address}"></iframe>',
        f"<style>body {{ background: url({address}.png) }} @import '{address}.css';</style>",
        f'<meta http-equiv="refresh" content="0;url={address}">',
    ]
    state = {"1": {"state": {"_esm": FOREIGN, "_anywidget_id": "own.Widget"}, "buffers": []}}
    notebook = with_state({page_module.WIDGET_STATE: {"state": state}})
    notebook.cells += [code_with({"text/html": attempt}) for attempt in attempts]
    notebook.cells += [markdown(attempt) for attempt in attempts]
    nbformat.write(notebook, tmp_path / "a.ipynb")
    page, _, _ = browser(write_page(tmp_path / "a.ipynb"))
    page.wait_for_timeout(500)
    assert page.url.endswith("a.html") and asked == []
    assert page.evaluate("window.reached") is None
    assert page.locator(".output_png img").count() == 1  # of the widget


def test_policy_stops_what_a_page_should_not_have(tmp_path, browser, arrived):
    """Some of these attempts written into the finished page, as if they had come through."""
    address, asked = arrived
    nbformat.write(nbformat.v4.new_notebook(cells=[markdown("# A")]), tmp_path / "a.ipynb")
    page = write_page(tmp_path / "a.ipynb")
    attempts = f"<script>window.reached = 1</script><img src='{address}.png'>"
    page.write_text(page.read_text().replace("</body>", f"{attempts}</body>"))
    opened, _, complaints = browser(page)
    opened.wait_for_timeout(500)
    assert opened.evaluate("window.reached") is None and asked == []
    assert len(complaints) == 2 and all("Content Security Policy" in one for one in complaints)
    page.write_text(re.sub("<meta [^>]*Content-Security-Policy[^>]*>", "", page.read_text()))
    assert browser(page)[0].evaluate("window.reached") == 1
    assert asked == ["/seen.png"]  # so the attempts were real


def test_widget_that_fails_leaves_its_still_picture(tmp_path, browser):
    state = {page_module.WIDGET_STATE: {"state": {"1": {"state": MAP | {"pictures": 3}}}}}
    nbformat.write(with_state(state), tmp_path / "broken.ipynb")
    page, _, complaints = browser(write_page(tmp_path / "broken.ipynb"))
    page.wait_for_function("document.images[0].complete")
    assert page.locator(".widget img").bounding_box()["width"] == 40
    assert len(complaints) == 1 and "TypeError" in complaints[0]


def test_a_page_can_be_read_by_everybody(tmp_path, browser, violations):
    error = nbformat.v4.new_output("error", ename="E", evalue="v", traceback=["\x1b[31mb\x1b[0m"])
    text = "# A\n\n$$\\sum_i " + " + ".join(["r_i"] * 60) + "$$\n\n## B\n\n[link](b.ipynb) "
    text += f"`{'long_name.' * 9}`"
    table = (
        "<table><thead><tr><th></th><th>a</th></tr></thead><tr><th>b</th><td>1</td></tr></table>"
    )
    cells = [
        markdown(text),
        nbformat.v4.new_code_cell("def f(x):  # why\n    return 'text'", outputs=[error]),
        code_with({"image/png": PNG}),
        code_with({"text/html": table}),
        code_with({"text/html": '<video controls width="640" height="360"></video>'}),
        markdown("<details><summary>Answers</summary>\n\n1. One\n\n</details>"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    contents = [("All", tmp_path / "index.html"), ("A", tmp_path / "a.html")]
    page, _, _ = browser(write_page(tmp_path / "a.ipynb", contents=contents))
    assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
