"""Make the spoken words in `data/audio`: each word at a known time, by espeak-ng.

    PYTHONPATH=tests .venv/bin/python -m spoken_words data/audio

Needs the program espeak-ng 1.51. The same seed gives the same words, voices, pauses and noise. Each
word is spoken alone, its silence is cut off, and it is placed after a pause: so its first and last
sample are known.
"""

import csv
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

RATE = 16_000
CLIPS = {  # name: (words a minute, decibels of signal above noise, [(voice, sentence), …])
    "kitchen": (140, None, [("en-us", "please put the red apple on the kitchen table")]),
    "garden": (130, None, [("en-gb+f3", "the black dog slept under a tree in the garden")]),
    "train": (160, None, [("en-us+m3", "our train leaves the station early in the morning")]),
    "music": (120, 25, [("en-us", "my sister plays the piano in a large concert hall")]),
    "weather": (120, 20, [("en-us+f2", "tomorrow there will be snow in the mountains")]),
    "school": (120, 15, [("en-us", "many children walk to school along the river")]),
    "farm": (130, 30, [("en-gb", "the farmer has twenty cows and a white horse")]),
    "question": (
        *(140, None),
        [("en-us", "where did you find my green umbrella"), ("en-gb+f3", "it was behind the door")],
    ),
    "shop": (
        *(150, 25),
        [("en-us+f2", "how much is the yellow bicycle"), ("en-us+m3", "it is very expensive")],
    ),
    "travel": (
        *(150, None),
        [
            ("en-us", "when will you travel to london"),
            ("en-us+f2", "my plane leaves on monday evening"),
        ],
    ),
    "window": (
        *(140, None),
        [
            ("en-gb", "the doctor opened the window and looked at the ocean"),
            ("en-us+f2", "a small boat was waiting near the white bridge"),
        ],
    ),
}


def spoken(word: str, voice: str, speed: int) -> np.ndarray:
    """One word, from its first to its last audible sample."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", word]
    sound, rate = soundfile.read(BytesIO(subprocess.run(command, capture_output=True).stdout))
    sound = resample_poly(sound, RATE, rate)
    (loud,) = np.nonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    return 0.3 * sound[loud[0] : loud[-1] + 1] / np.abs(sound).max()


def clip(rng: np.random.Generator, speed: int, decibels: int | None, parts: list) -> tuple:
    """The sound, and (word, first sample, sample after the last, voice) of each word."""
    pieces, words, at = [np.zeros(RATE // 2)], [], RATE // 2
    for voice, sentence in parts:
        for word in sentence.split():
            sound = spoken(word, voice, speed)
            pause = np.zeros(int(RATE * rng.uniform(0.04, 0.12)))
            words.append((word, at, at + len(sound), voice))
            pieces += [sound, pause]
            at += len(sound) + len(pause)
        pieces.append(np.zeros(RATE // 2))
        at += RATE // 2
    sound = np.concatenate(pieces)
    if decibels is not None:
        loudness = np.sqrt(np.mean(sound**2))
        sound = sound + rng.normal(scale=loudness / 10 ** (decibels / 20), size=len(sound))
    return sound, words


def main(folder: str) -> None:
    """Write the sounds as FLAC, and all words as one table."""
    rng, rows = np.random.default_rng(0), []
    for name, (speed, decibels, parts) in CLIPS.items():
        sound, words = clip(rng, speed, decibels, parts)
        soundfile.write(Path(folder, f"{name}.flac"), sound, RATE, subtype="PCM_16")
        for word, start, end, voice in words:
            rows.append((name, word, start / RATE, end / RATE, voice, speed, decibels))
    with Path(folder, "words.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("clip", "word", "start", "end", "voice", "words_per_minute", "decibels"))
        table.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1])
