"""Show executed notebooks as pages that need neither Jupyter nor a network.

Formulas become MathML, which browsers draw themselves. Figures are inside the file, and so are
anywidgets with all that they show (`page.js` runs them).
"""

import copy
import functools
import html
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from rolloutlib.extras import needs
from rolloutlib.files.complete import write_text
from rolloutlib.runs.notebook import Notebook

with needs("notebooks"):
    import latex2mathml.converter
    import nbformat
    from nbconvert.exporters import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from pygments.formatters import HtmlFormatter

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PAGE_SCRIPT = Path(__file__).with_name("page.js")
TEMPLATES = Path(__file__).with_name("templates")

# Titles and pages, in reading order.
Contents = Sequence[tuple[str, Path]]


def mathml(latex: str, display: str = "inline") -> str:
    """A formula that needs no script; one that cannot be converted stays visible as source.

    >>> print(mathml("r"))
    <math display="inline"><mrow><mi>r</mi></mrow></math>
    """
    try:
        formula = latex2mathml.converter.convert(latex, display=display)
        return formula.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    except Exception:  # the converter raises whatever an unknown construct runs into
        return f"<code>{html.escape(latex)}</code>"


def page_of(notebook: Path) -> Path:
    """Where `write_page` puts the page of an executed notebook."""
    return notebook.with_suffix(".html")


def write_page(
    executed: Notebook | Path, page: Path | None = None, contents: Contents = ()
) -> Path:
    """Write an executed notebook as a page: beside it, or to `page`, with links to `contents`."""
    executed = Notebook.of(executed)
    page = page or page_of(executed.path)
    content = copy.deepcopy(executed.content)
    _describe_figures(content)
    state = _place_widgets(content)
    resources = {
        # A "<" in a script could end it; JSON can escape it.
        "widget_state": json.dumps({"state": state}).replace("<", "\\u003c") if state else "",
        "widget_script": PAGE_SCRIPT.read_text(encoding="utf-8"),
        "page_title": executed.title or executed.path.stem,
        "code_colours": _code_colours(),
        "contents": links_from(page, contents),
    }
    text, _ = _exporter().from_notebook_node(content, resources)
    write_text(page, text)
    return page


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


class _PageExporter(HTMLExporter):
    """nbconvert's exporter without any script of its own."""

    @property
    def default_config(self):
        config = super().default_config
        # Widgets and scripts would need JavaScript from a network: show their still forms.
        del config.NbConvertBase.display_data_priority[:2]
        return config

    def markdown2html(self, source: str) -> str:
        return MarkdownWithMath(renderer=_PageRenderer(escape=False)).render(source)


@functools.cache
def _exporter() -> _PageExporter:
    return _PageExporter(template_name="basic", template_file=str(TEMPLATES / "notebook.html.j2"))


@functools.cache
def _code_colours() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    background = ".highlight { background: none; }"
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{background}"


def _describe_figures(notebook: nbformat.NotebookNode) -> None:
    """Give each picture the alternative text that screen readers say."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in {"image/png", "image/jpeg"} & output.get("data", {}).keys():
                described = output.metadata.setdefault(kind, {})
                described.setdefault("alt", f"Figure of In [{cell.execution_count}]")


def _place_widgets(notebook: nbformat.NotebookNode) -> dict[str, object]:
    """Put a place on the page for each anywidget, and return the saved state that they need."""
    saved = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    needed: dict[str, object] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            view = output.get("data", {}).get(WIDGET_VIEW)
            inside = _with_children(view["model_id"], saved) if view else {}
            if any("_esm" in one["state"] for one in inside.values()):
                still = output.data.get("image/png", "")
                if still:
                    still = f'<img src="data:image/png;base64,{still}" alt="The widget, still">'
                place = f'<div class="widget" data-model="{html.escape(view["model_id"])}">'
                output.data = nbformat.from_dict({"text/html": f"{place}{still}</div>"})
                needed |= inside
    return needed


def _with_children(model_id: str, saved: dict) -> dict[str, object]:
    """A widget's saved state, and that of all widgets in it."""
    if model_id not in saved:
        return {}
    found = {model_id: saved[model_id]}
    for child in saved[model_id]["state"].get("children", []):
        found |= _with_children(child.removeprefix("IPY_MODEL_"), saved)
    return found
