"""Write the reference of the public names: python docs/make_reference.py FOLDER

pdoc does it. What is listed here is public: the package, its rooms, and the modules of a room that
hold public names which the room itself doesn't export.
"""

import json
import re
import sys
from pathlib import Path

import jinja2
import pdoc

import rolloutlib

MODULES = [
    "rolloutlib",
    "rolloutlib.algorithm",
    "rolloutlib.algorithm.layers",
    "rolloutlib.evaluate",
    "rolloutlib.evaluate.methods",
    "rolloutlib.evaluate.trust",
    "rolloutlib.explorer",
    "rolloutlib.app.server",
    "rolloutlib.files",
    "rolloutlib.files.clips",
    "rolloutlib.files.dumps",
    "rolloutlib.files.sound",
    "rolloutlib.grid",
    "rolloutlib.models",
    "rolloutlib.models.clicks",
    "rolloutlib.models.families",
    "rolloutlib.models.families.base",
    "rolloutlib.models.img_focus",
    "rolloutlib.models.speech",
    "rolloutlib.models.vision",
    "rolloutlib.overlay",
    "rolloutlib.plots",
    "rolloutlib.recording",
    "rolloutlib.recording.gradients",
    "rolloutlib.recording.kinds",
    "rolloutlib.runs",
    "rolloutlib.runs.schedule",
    "rolloutlib.runs.sets",
    "rolloutlib.teaching",
    "rolloutlib.video",
]
FIELD = re.compile(r"^([a-z_]\w*(?:(?:, | to )[a-z_]\w*)*): ")


def main(folder: Path) -> None:
    """Write a page for each public module into a folder, and the index that the search reads."""
    # pdoc takes what lies below a module with it; what isn't listed is left out again.
    specs = [spec for name in MODULES for spec in (name, f"!{re.escape(name)}\\.")]
    missing = sorted(set(MODULES) - set(pdoc.extract.walk_specs(specs)))
    if missing:
        sys.exit(f"{', '.join(missing)}: there is no such module")
    pdoc.render.configure(
        footer_text=f"rolloutlib {rolloutlib.__version__}",
        template_directory=Path(__file__).parent,  # custom.css
        show_source=False,  # which would be two thirds of each page
    )
    pdoc.render.precompile_index = light_index
    as_before = pdoc.render.env.filters["to_markdown"]

    @jinja2.pass_context
    def to_markdown(context: jinja2.runtime.Context, docstring: str) -> str:
        return as_before(context, fields_as_list(docstring))

    pdoc.render.env.filters["to_markdown"] = to_markdown
    pdoc.pdoc(*specs, output_directory=folder)


def light_index(documents: list[dict[str, str]], compile_js: Path) -> str:
    """What the search reads: signatures without markup. The browser compiles it.

    As pdoc has it, compiled by Node, it is six times as large.
    """
    plain = {"signature": lambda text: re.sub(r"<[^>]+>", "", text)}
    return json.dumps(
        [{name: plain.get(name, str)(text) for name, text in one.items()} for one in documents]
    )


def fields_as_list(docstring: str) -> str:
    """Paragraphs of `name: what it is` become lists; Markdown would run their lines together.

    >>> print(fields_as_list("First.\\n\\none: this,\\nand more.  two, three: that"))
    First.
    <BLANKLINE>
    - **one**: this,
    and more.
    - **two, three**: that
    """
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(_as_list(one) if FIELD.match(one) else one for one in paragraphs)


def _as_list(paragraph: str) -> str:
    lines = re.sub(r"(?<=\S)  (?=[a-z_]\w*: )", "\n", re.sub(r"\.  (?=[a-z_])", ".\n", paragraph))
    return "\n".join(FIELD.sub(r"- **\1**: ", line) for line in lines.split("\n"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
