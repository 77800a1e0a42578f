"""Sound from files: one channel, at the rate that a model of speech expects."""

from math import gcd
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.signal import resample_poly

from rolloutlib.extras import needs

RATE = 16_000  # samples per second, as Whisper's processor takes them


def load_sound(path: str | Path) -> Float[np.ndarray, " sample"]:
    """A sound file (FLAC, WAV, MP3, Ogg, …) as samples in about [-1, 1], 16,000 per second.

    Channels are averaged, and another rate is resampled.

    Raises FileNotFoundError if there is no such file, ValueError if it holds no sound.
    """
    with needs("sound"):
        import soundfile

    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a sound file, got {path}, which is missing")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"expected a sound file, got {path}: {error}") from error
    if len(samples) == 0:
        raise ValueError(f"expected sound in {path}, got none")
    common = gcd(rate, RATE)
    return resample_poly(samples.mean(1), RATE // common, rate // common).astype(np.float32)
