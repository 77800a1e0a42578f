#!/bin/bash
# safetensors: a NumPy array in Fortran order is saved without an error and loaded as another one.
#
# Expected: save_file keeps the array, whatever its order in memory, as numpy.save does; or it
# refuses it, as the same library's save_file for PyTorch refuses a transposed tensor.
# Seen with safetensors 0.8.0, NumPy 2.4.6, pandas 3.1.1: the bytes are written as they lie in memory,
# beside the array's shape. Its documentation asks for arrays that are "contiguous and dense"; one in
# Fortran order is, by NumPy's own flags, and DataFrame.to_numpy() returns such arrays.
# For a user: a table of scores or a transposed map comes back with the right shape, the right numbers
# and each in the wrong place. Save numpy.ascontiguousarray(array).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'safetensors==0.8.0' 'numpy==2.4.6' 'pandas==3.1.1'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import pandas as pd
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__, "NumPy", np.__version__, "pandas", pd.__version__)
scores = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
table = pd.DataFrame({name: scores[:, n].copy() for n, name in enumerate("abc")})
arrays = {
    "as written": scores,
    "a table": table.to_numpy(),
    "a table, made contiguous": np.ascontiguousarray(table.to_numpy()),
}
kept = {}
for name, array in arrays.items():
    assert np.array_equal(array, scores) and array.flags.forc
    save_file({"scores": array}, "scores.safetensors")
    loaded = load_file("scores.safetensors")["scores"]
    np.save("scores.npy", array)
    assert np.array_equal(np.load("scores.npy"), scores)
    kept[name] = np.array_equal(loaded, scores)
    print(f"{name}: saved {array.tolist()}, loaded {loaded.tolist()}")
if kept != {"as written": True, "a table": False, "a table, made contiguous": True}:
    sys.exit(f"changed: what came back as it was: {kept}")
PYTHON
