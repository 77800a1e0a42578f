import base64
import io
import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from PIL import Image
from small_notebooks import write_notebook

from rolloutlib import cli
from rolloutlib.files import complete as files
from rolloutlib.pages import gallery as site
from rolloutlib.pages.page import mathml, write_page
from rolloutlib.runs.run import run_notebook

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
    cards = {card.h2.text: card for card in index.select(".card")}
    assert list(cards) == ["Draw <a> line", "03_refused", "04_broken", "Train"]
    assert cards["Draw <a> line"].select_one(".ok")
    assert cards["Train"].select_one(".failed").text == "failed: In [1]: ValueError: no & more"
    assert "refused" in cards["03_refused"].text and not cards["03_refused"].a.get("href")

    pages = [link["href"] for link in index.select("a[href]")]
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


# Widgets, in a real browser; the first of these tests starts a kernel

DOT = io.BytesIO()
Image.new("RGB", (40, 30)).save(DOT, "png")
COUNTER = """
import anywidget, ipywidgets, traitlets
class Counter(anywidget.AnyWidget):
    _esm = '''
    export default { render({ model, el }) {
      const button = document.createElement("button");
      const draw = () => { button.textContent = `${model.get("words")[0]} ${model.get("count")}`; };
      button.onclick = () => { model.set("count", model.get("count") + 1); model.save_changes(); };
      model.on("change:count", draw);
      const bytes = new Uint8Array(model.get("data").buffer);
      el.append(button, `</script> sum ${bytes.reduce((a, b) => a + b, 0)}`);
      draw();
    } };
    '''
    _css = "button { color: rgb(1, 2, 3); }"
    count = traitlets.Int(3).tag(sync=True)
    words = traitlets.List(["</script><b>clicked"]).tag(sync=True)
    data = traitlets.Bytes(bytes([1, 2, 200])).tag(sync=True)
counter = Counter()
ipywidgets.VBox([ipywidgets.IntSlider(), counter])
"""
BROKEN = {
    "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
    "image/png": base64.b64encode(DOT.getvalue()).decode(),
    "text/plain": "Broken()",
}


def test_anywidget_is_alive_on_a_page_from_the_disk(tmp_path, browser):
    path = write_notebook(tmp_path, "count", COUNTER, title="# Count $r$")
    run = run_notebook(path, tmp_path / "count.ipynb", {})
    assert run.ok, run.error
    page, asked, complaints = browser(write_page(run.output))
    button = page.locator("button")
    button.click()
    button.click()
    assert button.inner_text() == "</script><b>clicked 5"
    assert "</script> sum 203" in page.locator(".widget").inner_text()
    assert button.evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
    assert page.locator("h1 math mi").bounding_box()["height"] > 5
    assert "VBox(" not in page.locator(".output").inner_text()
    assert asked == [] and complaints == []


def test_widget_that_fails_leaves_its_still_picture(tmp_path, browser):
    module = "export default { render() { throw new Error('broken off') } }"
    state = {"1": {"state": {"_esm": module}, "buffers": []}}
    notebook = nbformat.v4.new_notebook(cells=[code_with(BROKEN)])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    page, _, complaints = browser(write_page(tmp_path / "broken.ipynb"))
    page.wait_for_function("document.images[0].complete")
    assert page.locator(".widget img").bounding_box()["width"] == 40
    assert len(complaints) == 1 and "broken off" in complaints[0]
