#!/bin/bash
# nbformat beside jupyterlab: who imports it first builds grammars of IRIs that no notebook has.
#
# Expected: importing nbformat, which reads and checks notebooks, costs its own few modules.
# Seen with nbformat 5.11.1, jsonschema 4.26.0 and rfc3987-syntax 1.1.0: jupyter-events, which comes
# with every Jupyter server, asks for jsonschema's extra "format-nongpl"; with it, jsonschema imports
# rfc3987_syntax to check formats, and that builds 39 parsers by lark while it is imported, whether a
# schema names such a format or not: about a second on the machine where it was seen.
# Without the extra, none is built.
# For a user: papermill, nbclient, nbconvert and whatever starts many short processes around
# notebooks pay it in every process.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nbformat==5.11.1 jsonschema==4.26.0 rfc3987-syntax==1.1.0 \
  lark==1.3.1 jupyter-events==0.12.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time
from importlib.metadata import requires

import lark

wanted = [line for line in requires("jupyter-events") if line.startswith("jsonschema")]
built, make = [], lark.Lark.__init__


def counted(self, *given, **how):
    built.append(how.get("start"))
    make(self, *given, **how)


lark.Lark.__init__ = counted
began = time.perf_counter()
import nbformat

whole = time.perf_counter() - began
with_format = len(built)

for name in [name for name in sys.modules if name.partition(".")[0] in {
    "nbformat", "jsonschema", "rfc3987_syntax"
}]:
    del sys.modules[name]
sys.modules["rfc3987_syntax"] = None  # as where the extra is not installed
began = time.perf_counter()
import nbformat

print("jupyter-events requires", *wanted)
print(f"parsers built: {with_format}, in {whole:.2f} s; without the extra: "
      f"{len(built) - with_format}, in {time.perf_counter() - began:.2f} s")
if with_format != 39 or len(built) != with_format:
    sys.exit("changed: importing nbformat built 39 parsers")
PYTHON
