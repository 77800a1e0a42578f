"""Show executed notebooks as pages that need neither Jupyter nor a network.

Each notebook becomes one HTML file that opens from the disk: formulas are MathML, which browsers
draw themselves, figures are inside the file, and so are anywidgets with all that they show
(`page.js` runs them).
"""

import base64
import functools
import html
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import latex2mathml.converter
import nbformat
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from rolloutlib.files.complete import complete_file

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PAGE_SCRIPT = Path(__file__).with_name("page.js")

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --paper: #ffffff; --box: #f6f8fa; --link: #0969da; --good: #1a7f37; --bad: #d1242f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --paper: #0d1117; --box: #151b23; --link: #4493f8; --good: #3fb950; --bad: #f85149; } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 52rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.6 system-ui, sans-serif; }
body.gallery { max-width: 76rem; }
a { color: var(--link); }
h1, h2, h3 { line-height: 1.25; }
.anchor-link { visibility: hidden; margin-left: 0.3em; text-decoration: none; }
:hover > .anchor-link { visibility: visible; }
img { max-width: 100%; height: auto; background: white; }
math[display="block"] { overflow-x: auto; overflow-y: hidden; padding: 0.2rem 0; }
table { border: 0; border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: 0.2rem 0.7rem; }
pre { overflow-x: auto; margin: 0; }
pre, code { font: 0.82rem/1.5 ui-monospace, monospace; }
details.code { margin: 0.8rem 0; border: 1px solid var(--line); border-radius: 6px;
  background: var(--box); padding: 0.4rem 0.8rem; }
details.code > summary { color: var(--soft); font-size: 0.75rem; cursor: pointer; }
.output { margin: 0.5rem 0 1rem; overflow-x: auto; }
.output pre { white-space: pre-wrap; }
.output_stderr pre { color: var(--soft); }
nav { display: flex; gap: 0.3rem 1rem; overflow-x: auto; font-size: 0.85rem;
  border-bottom: 1px solid var(--line); padding-bottom: 0.6rem; margin-bottom: 1.5rem; }
nav a { color: var(--soft); text-decoration: none; white-space: nowrap; }
nav a:hover, nav a[aria-current] { color: var(--link); }
@media (min-width: 88rem) {
  nav { position: fixed; left: 0; top: 0; bottom: 0; width: 15rem; padding: 1.5rem 1rem;
    flex-direction: column; overflow: hidden auto; border: 0;
    border-right: 1px solid var(--line); }
  nav a { white-space: normal; } }
.output_error pre { border-left: 3px solid var(--bad); padding-left: 0.8rem; }
.ansi-red-fg { color: var(--bad); } .ansi-green-fg { color: var(--good); }
.ansi-blue-fg, .ansi-cyan-fg { color: var(--link); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
  background: var(--box); }
.card a { color: inherit; text-decoration: none; }
.card img { display: block; width: 100%; height: 11rem; object-fit: contain; }
.card h2 { font-size: 1.05rem; margin: 0.8rem 1rem 0.3rem; }
.card p { color: var(--soft); font-size: 0.85rem; margin: 0.3rem 1rem 0.9rem; }
.ok { color: var(--good); } .failed { color: var(--bad); overflow-wrap: anywhere; }
"""

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title | e }}</title>
<style>{{ style }}</style>
</head>
"""

NAVIGATION = """{% if contents %}<nav>
{%- for link in contents %}
<a href="{{ link.href | e }}"{% if link.here %} aria-current="page"{% endif %}>
{{- link.title | e }}</a>
{%- endfor %}
</nav>{% endif %}
"""

PAGE = (
    "{%- extends 'basic/index.html.j2' -%}\n"
    "{%- block header -%}{%- set title = resources.page_title -%}"
    "{%- set style = resources.page_style -%}\n"
    + HEAD
    + """{%- endblock header -%}
{%- block body_header -%}{%- set contents = resources.contents -%}<body>
"""
    + NAVIGATION
    + """{%- endblock body_header -%}
{%- block body_footer -%}
{%- if resources.widget_state %}
<script type="application/json" id="widget-state">{{ resources.widget_state }}</script>
<script type="module">
{{ resources.widget_script }}</script>
{%- endif -%}
</body></html>{%- endblock body_footer -%}
{%- block input_group -%}
<details class="code" open><summary>In [{{ cell.execution_count or ' ' }}]</summary>
{{ cell.source | highlight_code(metadata=cell.metadata) }}
</details>
{%- endblock input_group -%}
{%- block output_area_prompt -%}{%- endblock output_area_prompt -%}
{%- block empty_in_prompt -%}{%- endblock empty_in_prompt -%}
"""
)

# Titles and pages, in the order in which they are to be read.
Contents = Sequence[tuple[str, Path]]


def mathml(latex: str, display: str = "inline") -> str:
    """Draw a formula without a script; one that cannot be converted stays visible as source.

    >>> print(mathml("r"))
    <math display="inline"><mrow><mi>r</mi></mrow></math>
    """
    try:
        formula = latex2mathml.converter.convert(latex, display=display)
        return formula.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    except Exception:  # the converter raises whatever an unknown construct runs into
        return f"<code>{html.escape(latex)}</code>"


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The first heading's words, or nothing."""
    for cell in notebook.cells:
        heading = cell.cell_type == "markdown" and re.search(r"^#+\s+(.+)$", cell.source, re.M)
        if heading:
            return re.sub(r"[*`$]", "", heading[1]).strip()
    return ""


def figure_of(notebook: nbformat.NotebookNode) -> bytes | None:
    """The PNG that stands for the notebook: of the cell with the tag `card`, else the first."""
    chosen = [cell for cell in notebook.cells if "card" in cell.metadata.get("tags", [])]
    for cell in [*chosen, *notebook.cells]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"])
    return None


def page_of(notebook: Path) -> Path:
    """Where `write_page` puts the page of an executed notebook."""
    return notebook.with_suffix(".html")


def write_page(executed: Path, page: Path | None = None, contents: Contents = ()) -> Path:
    """Write an executed notebook as a page: beside it, or to `page`, with links to `contents`."""
    page = page or page_of(executed)
    notebook = nbformat.read(executed, as_version=4)
    _describe_figures(notebook)
    state = _place_widgets(notebook)
    resources = {
        # A "<" in a script could end it; JSON can say it in other signs.
        "widget_state": json.dumps({"state": state}).replace("<", "\\u003c") if state else "",
        "widget_script": PAGE_SCRIPT.read_text(encoding="utf-8"),
        "page_title": title_of(notebook) or executed.stem,
        "page_style": STYLE + _code_colours(),
        "contents": links_from(page, contents),
    }
    text, _ = _exporter().from_notebook_node(notebook, resources)
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


def write_text(path: Path, text: str) -> None:
    """Write a page in one step, so that an interrupt leaves no half of it."""
    with complete_file(path) as part:
        part.write_text(text, encoding="utf-8")


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
        still = config.NbConvertBase.display_data_priority[2:]
        config.NbConvertBase.display_data_priority = still
        return config

    def markdown2html(self, source: str) -> str:
        return MarkdownWithMath(renderer=_PageRenderer(escape=False)).render(source)


@functools.cache
def _exporter() -> _PageExporter:
    return _PageExporter(template_name="basic", raw_template=PAGE)


@functools.cache
def _code_colours() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    background = ".highlight { background: none; }"
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{background}"


def _describe_figures(notebook: nbformat.NotebookNode) -> None:
    """Give each picture the alternative text that readers of the page without sight get."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in ("image/png", "image/jpeg"):
                if kind in output.get("data", {}):
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
