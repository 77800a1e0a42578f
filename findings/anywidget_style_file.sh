#!/bin/bash
# anywidget: a style (or module) that is given as a file keeps every widget in memory, for good.
#
# Expected: a widget that was closed, and that nobody holds, is collected, as with `_css` as a text.
# Seen with anywidget 0.11.0 and ipywidgets 8.1.9: where `_css` is a pathlib.Path, each widget
# connects itself to the file's signal of changes, which belongs to the class; close() does not
# disconnect it. Of 20 closed widgets, 20 are still there, with all their traits.
# For a user: a long-lived kernel (a dashboard, an app) grows by each widget's pictures and arrays.
# Read the file yourself: `_css = Path("style.css").read_text()`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'anywidget==0.11.0' 'ipywidgets==8.1.9'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gc
import sys
import weakref
from importlib.metadata import version
from pathlib import Path

import anywidget

Path("style.css").write_text("b { color: red; }")
MODULE = "export default { render({ el }) { el.textContent = 'b'; } }"


class StyledByText(anywidget.AnyWidget):
    _esm, _css = MODULE, Path("style.css").read_text()


class StyledByFile(anywidget.AnyWidget):
    _esm, _css = MODULE, Path("style.css")


def alive(kind):
    """How many of 20 closed widgets are still there."""
    made = []
    for _ in range(20):
        widget = kind()
        made.append(weakref.ref(widget))
        widget.layout.close()
        widget.close()
        del widget
    gc.collect()
    return sum(one() is not None for one in made)


print("anywidget", version("anywidget"), "ipywidgets", version("ipywidgets"))
seen = {kind.__name__: alive(kind) for kind in (StyledByText, StyledByFile)}
print("still there of 20:", seen)
if seen != {"StyledByText": 0, "StyledByFile": 20}:
    sys.exit(f"changed: expected 0 and 20 of them, got {seen}")
PYTHON
