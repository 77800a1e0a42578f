#!/usr/bin/env bash
# dask-jobqueue: importing it changes what Ctrl-C does to the whole program.
#
# Expected: an import leaves signals alone; Ctrl-C raises KeyboardInterrupt, which `except` and
# `finally` blocks, notebooks and command lines can answer.
# Seen with dask-jobqueue 0.9.0: `from dask_jobqueue import SLURMCluster` sets a handler for SIGINT
# that calls sys.exit(), even if no cluster is ever made.
# For a user: Ctrl-C in a long sweep ends with exit code 0 instead of 130, so that a job script goes on
# as if all was done; code that saves its state on KeyboardInterrupt never runs; and the cell that one
# interrupts in a notebook ends with SystemExit. Put back `signal.getsignal(signal.SIGINT)` after it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'dask-jobqueue==0.9.0' 'distributed==2026.8.0'
cd "$folder"
cat > interrupted.py <<'PYTHON'
import signal
import sys

if sys.argv[1] == "with":
    from dask_jobqueue import SLURMCluster  # noqa: F401

try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(130)
PYTHON
seen=""
for when in without with; do
  code=0
  "$folder/venv/bin/python" interrupted.py "$when" || code=$?
  echo "$when the import, Ctrl-C ends the program with exit code $code"
  seen="$seen $code"
done
[ "$seen" = " 130 0" ] || { echo "changed: exit codes$seen"; exit 1; }
