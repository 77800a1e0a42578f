#!/usr/bin/env bash
# An animation of five pictures, of which the last three are equal, written by Pillow.
#
# Expected: five frames come back, at least in PNG and WebP; a GIF may merge what does not change.
# Instead: with Pillow 12.0, GIF, PNG and WebP all come back with three frames, the last one three
# times as long; AVIF and TIFF have five. FFmpeg (PyAV 16) counts three, too, and reports the average
# rate of those. The times are right, but frame k of the file is no longer map k of an analysis.
# So: count by time, not by number, or write a video.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pillow==12.0.0' 'av==16.0.1' 'numpy==2.2.6'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import PIL
from PIL import Image

print("Pillow", PIL.__version__, "PyAV", av.__version__)
frames = [Image.new("RGB", (16, 16), (40 * min(number, 2),) * 3) for number in range(5)]
counted = {}
for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
    lossless = {"lossless": True} if kind == "WEBP" else {}
    path = f"five.{kind.lower()}"
    frames[0].save(
        path, kind, save_all=True, append_images=frames[1:], duration=100, **lossless
    )
    with Image.open(path) as again:
        counted[kind] = again.n_frames
with av.open("five.gif") as clip:
    stream = clip.streams.video[0]
    times = [float(frame.time) for frame in clip.decode(stream)]
    counted["GIF by PyAV"] = len(times)
    print("GIF by PyAV at", times, "seconds,", stream.average_rate, "frames per second")
for kind, count in counted.items():
    print(f"{kind:12} {count} of 5 frames")

expected = {"GIF": 3, "PNG": 3, "WEBP": 3, "AVIF": 5, "TIFF": 5, "GIF by PyAV": 3}
if counted != expected:
    sys.exit(f"changed: {counted}")
PYTHON
