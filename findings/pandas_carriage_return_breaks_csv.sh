#!/bin/bash
# A table of answers is written by DataFrame.to_csv and read again by pandas.read_csv.
#
# One would expect: a text that needs quotes gets them, so what is written is what is read.
# Instead: a text with a carriage return in it, as progress bars and Windows text have, is written
#   without quotes. read_csv takes the return for the end of the line: one row becomes two, without
#   an error, and every column after it moves. A text with a line feed is quoted and comes back.
#   pyarrow quotes both.
# With: pandas 3.1.1 on Linux, pyarrow 26.0.1.
# For a user: write with quoting=csv.QUOTE_NONNUMERIC, or keep the table as Parquet.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pandas==3.1.1' 'pyarrow==26.0.1'
"$folder/venv/bin/python" - <<'EOF'
import csv
import io
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.csv

print(f"pandas {pd.__version__}, pyarrow {pa.__version__}")
texts = ["50 %\r100 %", "two\nlines"]
seen = {}
for text in texts:
    table = pd.DataFrame({"answer": [text, "red"], "score": [1, 2]})
    written = {"default": table.to_csv(index=False)}
    written["quoted"] = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    sink = io.BytesIO()
    pa.csv.write_csv(pa.Table.from_pandas(table), sink)
    written["pyarrow"] = sink.getvalue().decode()
    for how, content in written.items():
        read = pd.read_csv(io.StringIO(content, newline=""))
        seen[text, how] = len(read)
        print(f"{text!r}, {how}: {content!r} is read as {read.values.tolist()}")
expected = {(text, how): 2 for text in texts for how in ("default", "quoted", "pyarrow")}
expected[texts[0], "default"] = 3
if seen != expected:
    sys.exit(f"changed: expected {expected} rows, got {seen}")
EOF
