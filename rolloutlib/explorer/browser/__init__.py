"""The part of the explorer that lives in the browser: ES modules of which each is one thing."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
# A text, not a path: anywidget watches files, and keeps every widget of one in memory.
STYLE = (FOLDER / "widget.css").read_text(encoding="utf-8")
# A part imports from those before it.
PARTS = (
    "dom",
    "numbers",
    "maps",
    "moments",
    "words",
    "pictures",
    "film",
    "sound",
    "controls",
    "saving",
    "trust",
    "widget",
)


def joined_module() -> str:
    """All parts as one ES module, as anywidget takes one text: without imports and most exports."""
    text = "\n".join((FOLDER / f"{part}.js").read_text(encoding="utf-8") for part in PARTS)
    text = re.sub(r"^import .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^export (?!default)", "", text, flags=re.MULTILINE)
