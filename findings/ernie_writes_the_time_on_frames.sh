#!/usr/bin/env bash
# transformers: Ernie 4.5 VL's video processor writes the time into the picture, in letters.
#
# Expected: a video of grey frames gives the same number for every pixel of a colour, as it does with
# the video processors of other families; times go into the prompt or into positions.
# Seen with transformers 5.23.0: the upper left corner of each frame gets its time, black with a white
# border, before patches are cut. Two equal frames differ, and so do their tokens.
# For a user: in a map of such a video, relevance on that corner may be relevance of the clock, which
# was never in the file. And what is asked of the processor by test pictures (which number comes from
# which pixel) is wrong wherever letters lie.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'transformers==5.23.0' 'torch==2.14.1' 'torchvision==0.29.1' \
  'pillow==12.0.0' 'matplotlib==3.11.2' 'numpy<3'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys
from pathlib import Path

import matplotlib
import torch
import transformers
from transformers import Ernie4_5_VLMoeVideoProcessor

print("transformers", transformers.__version__, "torch", torch.__version__)
font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"  # a checkpoint brings its own
grey = torch.full((2, 3, 112, 112), 128, dtype=torch.uint8)
about = {"total_num_frames": 2, "fps": 1.0, "frames_indices": [0, 1]}
lettered = {}
for draw in (True, False):
    processor = Ernie4_5_VLMoeVideoProcessor(font=str(font), draw_on_frames=draw)
    inputs = processor(
        [grey], do_sample_frames=False, video_metadata=[about], return_tensors="pt"
    )
    frames = inputs["pixel_values_videos"].float().view(2, -1, 3, 14 * 14)
    uneven = (frames.amax(-1) - frames.amin(-1) > 1e-3).any(-1)
    lettered[draw] = int(uneven.sum())
    same = bool(torch.allclose(frames[0], frames[1]))
    print(f"draw_on_frames={draw}: {lettered[draw]} of {uneven.numel()} patches of grey frames are")
    print(f"  not grey; the two frames are equal: {same}")
if not lettered[True] or lettered[False] or not Ernie4_5_VLMoeVideoProcessor.draw_on_frames:
    sys.exit(f"changed: patches that are not grey: {lettered}")
PYTHON
