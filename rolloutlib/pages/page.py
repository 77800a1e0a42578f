"""Show executed notebooks as pages that need neither Jupyter nor a network.

Formulas become MathML, which browsers draw themselves. Figures are inside the file, and so are
explorers with all that they show. The only script is ours (`page.js`): scripts and widgets that a
notebook brings are left out, and the page's policy would stop them.
"""

import base64
import copy
import functools
import hashlib
import html
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rolloutlib.explorer.browser import STYLE, joined_module
from rolloutlib.extras import needs, without_iris
from rolloutlib.files.complete import write_text
from rolloutlib.pages.figures import as_flac, as_webp
from rolloutlib.pages.foreign import PICTURES, embedded, safe_html
from rolloutlib.runs.notebook import Notebook

with needs("notebooks"), without_iris():
    import jinja2
    import latex2mathml.converter
    import nbformat
    from mistune import HTMLRenderer
    from nbconvert.exporters import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from pygments.formatters import HtmlFormatter

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
EXPLORER = "rolloutlib.explorer.widget.MapView"  # anywidget's name of the only widget that runs
PAGE_SCRIPT = Path(__file__).with_name("page.js")
TEMPLATES = Path(__file__).with_name("templates")
LONGEST_TEXT = 1_000_000  # characters of one output
CONTENTS = "<!--contents-->"  # the place of the links to other pages
PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)

SHOWN = {"text/html", "text/markdown", "text/latex", "text/plain", *PICTURES}

# Titles and pages, in reading order.
Contents = Sequence[tuple[str, Path]]


def mathml(latex: str, display: str = "inline") -> str:
    """A formula that needs no script; one that cannot be converted stays visible as source.

    >>> print(mathml("r"))
    <math display="inline"><mrow><mi>r</mi></mrow></math>
    """
    try:
        formula = latex2mathml.converter.convert(latex, display=display)
        formula = formula.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
        return formula.replace('display="block"', 'display="block" tabindex="0"')  # it may scroll
    except Exception:  # the converter raises whatever an unknown construct runs into
        return f"<code>{html.escape(latex)}</code>"


def page_of(notebook: Path) -> Path:
    """Where `write_page` puts the page of an executed notebook."""
    return notebook.with_suffix(".html")


def write_page(
    executed: Notebook | Path,
    page: Path | None = None,
    contents: Contents = (),
    pictures: Path | None = None,
) -> Path:
    """Write an executed notebook as a page: beside it, or to `page`, with links to `contents`.

    pictures: the folder whose pictures the notebook may show; its own by default.
    """
    executed = Notebook.of(executed)
    page = page or page_of(executed.path)
    text = _text_of(executed, pictures or executed.path.parent)
    links = PAGES.get_template("navigation.html.j2").render(contents=links_from(page, contents))
    write_text(page, text.replace(CONTENTS, links, 1))
    return page


@functools.lru_cache(32)  # `run-all` writes a page at once, and again with links to all others
def _text_of(executed: Notebook, pictures: Path) -> str:
    content = copy.deepcopy(executed.content)
    _mend_outputs(content)
    state = _place_explorers(content)
    script = explorer_script() if state else ""
    resources = {
        # A "<" in a script could end it; JSON can escape it.
        "widget_state": json.dumps(state).replace("<", "\\u003c"),
        "widget_script": script,
        "policy_script": f"'sha256-{sha256_of(script)}'" if state else "'none'",
        "page_title": executed.title or executed.path.stem,
        "code_colours": _code_colours() + (STYLE if state else ""),
        "contents": CONTENTS,
        "pictures": pictures,
    }
    return _exporter().from_notebook_node(content, resources)[0]


@functools.cache
def explorer_script() -> str:
    """The explorer and what runs it on a page, as one module."""
    module = joined_module().replace("export default", "const explorer =")
    return module + PAGE_SCRIPT.read_text(encoding="utf-8")


def sha256_of(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def links_from(page: Path, contents: Contents) -> list[dict[str, object]]:
    """Links from a page to all pages of the contents; `here` is the page itself."""
    return [
        {"title": title, "href": relative(target, page.parent), "here": target == page}
        for title, target in contents
    ]


def relative(path: Path, folder: Path) -> str:
    """A link from a page in `folder`."""
    return Path(os.path.relpath(path, folder)).as_posix()


class _PageRenderer(IPythonRenderer):
    """Markdown with formulas as MathML, and links to notebooks as links to their pages."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if "://" not in url:
            url = re.sub(r"\.ipynb(?=$|#)", ".html", url)
        return super().link(text, url, title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return HTMLRenderer.image(self, text, url, title)  # `safe_html` embeds it


class _PageExporter(HTMLExporter):
    """nbconvert's exporter without any script of its own, or of the notebook."""

    @property
    def default_config(self):
        config = super().default_config
        # Widgets and scripts would need JavaScript from a network: show their still forms.
        del config.NbConvertBase.display_data_priority[:2]
        return config

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        rendered = MarkdownWithMath(renderer=_PageRenderer(escape=False)).render(source)
        return self.foreign(context, rendered)

    @jinja2.pass_context
    def foreign(self, context: jinja2.runtime.Context, source: str) -> str:
        """HTML of the notebook, made safe; as text if there is too much of it."""
        attachments = context["cell"].get("attachments", {})
        folder = context["resources"]["pictures"]
        try:
            return safe_html(source, lambda address: embedded(address, folder, attachments))
        except ValueError as problem:
            return f"<pre>{html.escape(f'[HTML left out: {problem}]')}</pre>"

    def default_filters(self) -> Iterator[tuple[str, Callable]]:
        yield from super().default_filters()
        yield "foreign", self.foreign
        yield "as_webp", as_webp


@functools.cache
def _exporter() -> _PageExporter:
    return _PageExporter(template_name="basic", template_file=str(TEMPLATES / "notebook.html.j2"))


@functools.cache
def _code_colours() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    background = ".highlight { background: none; }"
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{background}"


def _mend_outputs(notebook: nbformat.NotebookNode) -> None:
    """Give each output a form that the page can show, and each picture an alternative text."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _cut(output.text)
            elif output.output_type == "error":
                lines = "\n".join(output.traceback) or f"{output.ename}: {output.evalue}"
                output.traceback = _cut(lines).split("\n")
            else:
                _mend_data(output, f"Figure of In [{cell.execution_count}]")


def _mend_data(output: nbformat.NotebookNode, alternative: str) -> None:
    data = output.data
    if "text/plain" in data:
        data["text/plain"] = _cut(data["text/plain"])
    elif not SHOWN & data.keys():
        data["text/plain"] = f"[output of the type {', '.join(data) or 'nothing'}]"
    for kind in PICTURES & data.keys():
        described = output.metadata.get(kind)
        described = described if isinstance(described, dict) else {}
        output.metadata[kind] = {"alt": alternative} | described
    for kind in {"image/gif", "image/webp"} & data.keys() - {"text/html"}:
        picture = f"data:{kind};base64,{data[kind]}"
        data["text/html"] = f'<img alt="{alternative}" src="{html.escape(picture)}">'


def _cut(text: str) -> str:
    left = len(text) - LONGEST_TEXT
    return text if left <= 0 else f"{text[:LONGEST_TEXT]}\n[{left} more characters left out]"


def _place_explorers(notebook: nbformat.NotebookNode) -> dict[str, object]:
    """Put a place on the page for each explorer, and return the saved state that they need.

    Of other widgets without a picture, such as progress bars, their last words are shown.
    """
    saved = _saved_widgets(notebook.metadata)
    needed: dict[str, object] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            view = output.get("data", {}).get(WIDGET_VIEW)
            root = view.get("model_id") if isinstance(view, dict) else None
            found = {
                one: saved[one]
                for one in _inside(root, saved)
                if saved[one]["state"].get("_anywidget_id") == EXPLORER
            }
            if found:
                still = output.data.get("image/png", "")
                if still:
                    still = f'<img src="{as_webp(still)}" alt="The widget, still">'
                place = f'<div class="widget" data-models="{html.escape(" ".join(found))}">'
                output.data = nbformat.from_dict({"text/html": f"{place}{still}</div>"})
                needed |= {one: _without_code(found[one]) for one in found}
            elif root and output.data.keys() <= {WIDGET_VIEW, "text/plain"}:
                words = " ".join(filter(None, (_words(saved[one]) for one in _inside(root, saved))))
                if words:
                    output.data["text/plain"] = words
    return needed


def _words(saved: Mapping) -> str:
    """What a widget of text says; nothing for others."""
    value = saved["state"].get("value")
    is_text = saved.get("model_name") in ("HTMLModel", "LabelModel") and isinstance(value, str)
    return html.unescape(re.sub(r"<[^>]*>", "", value)).strip() if is_text else ""


def _saved_widgets(metadata: Mapping) -> dict[str, dict]:
    """The saved state of each widget; without those that are not as Jupyter writes them."""
    found: object = metadata
    for name in ("widgets", WIDGET_STATE, "state"):
        found = found.get(name) if isinstance(found, Mapping) else None
    kept = found.items() if isinstance(found, Mapping) else ()
    return {
        name: one
        for name, one in kept
        if isinstance(one, Mapping) and isinstance(one.get("state"), Mapping)
    }


def _inside(root: object, saved: Mapping[str, dict]) -> list[str]:
    """A widget and all widgets in it, in their order; each once."""
    found, left = {}, [root]
    while left:
        one = left.pop()
        if isinstance(one, str) and one in saved and one not in found:
            found[one] = None
            children = saved[one]["state"].get("children")
            names = reversed(children) if isinstance(children, list) else ()
            left += [name.removeprefix("IPY_MODEL_") for name in names if isinstance(name, str)]
    return [*found]


def _without_code(saved: Mapping) -> dict[str, object]:
    """A widget's state without the module and style that it brings: the page has its own."""
    state = {name: one for name, one in saved["state"].items() if name not in ("_esm", "_css")}
    return {"state": state, "buffers": [_lighter(one) for one in saved.get("buffers") or []]}


def _lighter(buffer: object) -> object:
    """The sound of an explorer as FLAC; other buffers as they are."""
    if not isinstance(buffer, Mapping) or buffer.get("path") != ["sound"]:
        return buffer
    address = as_flac(f"data:audio/wav;base64,{buffer.get('data')}")
    return {**buffer, "data": address.partition(";base64,")[2]}
