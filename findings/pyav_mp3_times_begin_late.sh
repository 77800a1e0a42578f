#!/bin/bash
# PyAV: the first sample of an MP3 is the first sample of the sound, and its frame says 0.069 s.
#
# Expected: `frame.time` says when a frame's samples are heard, so a click at 0.5 s of the sound is
# found at 0.5 s, in an MP3 as in a FLAC of the same samples.
# Seen with PyAV 18.1.0 and soundfile 0.14.0: the decoder has already cut off the silence that MP3's
# encoder puts before the sound, so PyAV and soundfile return the same samples, but the times still
# count it: all are late by start_time, 0.069 s at 16,000 samples a second, 0.025 s at 44,100.
# For a user: words or notes that are timed by frames lie late by three and a half steps of 0.02 s,
# and only if the file is an MP3. Count samples, or take off `stream.start_time * stream.time_base`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'av==18.1.0' 'soundfile==0.14.0' 'numpy==2.4.6'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np
import soundfile

print("PyAV", av.__version__, "soundfile", soundfile.__version__)
seen = {}
for rate in (16_000, 44_100):
    sound = np.zeros(2 * rate, np.float32)
    sound[rate // 2] = 0.9  # a click at 0.5 s
    for kind in ("flac", "mp3"):
        path = f"click.{kind}"
        soundfile.write(path, sound, rate)
        by_soundfile = np.abs(soundfile.read(path)[0]).argmax() / rate
        with av.open(path) as file:
            frames = [(frame.time, np.ravel(frame.to_ndarray())) for frame in file.decode(audio=0)]
        time, samples = max(frames, key=lambda frame: np.abs(frame[1].astype(float)).max())
        by_frame = time + np.abs(samples.astype(float)).argmax() / rate
        whole = np.concatenate([samples for _, samples in frames])
        by_count = np.abs(whole.astype(float)).argmax() / rate
        seen[rate, kind] = round(by_frame - 0.5, 3)
        print(
            f"{kind}, {rate} a second: click at {by_soundfile:.3f} s by soundfile, "
            f"{by_count:.3f} s by counting PyAV's samples, {by_frame:.3f} s by its frames' times"
        )
        assert by_soundfile == by_count == 0.5 and len(whole) == len(sound)
expected = {(16_000, "flac"): 0.0, (16_000, "mp3"): 0.069}
expected |= {(44_100, "flac"): 0.0, (44_100, "mp3"): 0.025}
if seen != expected:
    sys.exit(f"changed: times are late by {seen}")
PYTHON
