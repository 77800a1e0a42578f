#!/usr/bin/env bash
# A TIFF can say that 0 is white (PhotometricInterpretation 0), as scanners and X-ray detectors do.
#
# Expected: a library that shows it the right way round at 8 bits does so at 16 bits and in floats.
# Instead: Pillow 12.0 and OpenCV 4.12 invert the levels at 8 bits only; at 16 bits (and 32-bit
# floats) both give the stored numbers, so the picture is a negative, without a warning. imageio and
# tifffile never invert. The same scan changes from positive to negative with its depth.
# So: ask for the tag (`picture.tag_v2[262]`) of wide grey and invert yourself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pillow==12.0.0' 'tifffile==2025.10.16' \
    'opencv-python-headless==4.12.0.88' 'imageio==2.37.0' 'numpy==2.2.6'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import imageio.v3
import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__, "OpenCV", cv2.__version__, "tifffile", tifffile.__version__)
readers = {
    "Pillow": lambda path: np.asarray(Image.open(path)),
    "OpenCV": lambda path: cv2.imread(path, cv2.IMREAD_UNCHANGED),
    "imageio": imageio.v3.imread,
    "tifffile": tifffile.imread,
}
seen = {}
for dtype, black in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)):
    stored = np.zeros((8, 16), dtype)  # white on the left ...
    stored[:, 8:] = black  # ... and black on the right
    tifffile.imwrite("scan.tif", stored, photometric="miniswhite")
    for name, read in readers.items():
        left, right = read("scan.tif")[0, [0, -1]]
        seen[name, dtype.__name__] = "white first" if left > right else "black first"
for (name, dtype), order in seen.items():
    print(f"{name:8} {dtype:8} {order}")

inverted = {key for key, order in seen.items() if order == "white first"}
expected = {("Pillow", "uint8"), ("OpenCV", "uint8")}
if inverted != expected:
    sys.exit(f"changed: shown with white on the left by {sorted(inverted)}")
PYTHON
