"""Show in the explorer what each word of a speech model listened to."""

import io
import wave
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from PIL import Image

from rolloutlib.algorithm.arrays import Array
from rolloutlib.explorer.maps import Heatmaps
from rolloutlib.explorer.widget import Explorer
from rolloutlib.files.sound import RATE
from rolloutlib.grid import View
from rolloutlib.models.speech import Heard

SIZE = (960, 240)  # pixels of the spectrogram, width and height


def explore_sound(
    heard: Heard, maps: Mapping[str, Float[Array, "word step"]] | None = None, **look
) -> Explorer:
    """Explore what each written word listened to.

    The spectrogram stands in the picture's place, low bands at the bottom. Each word's map is a
    band along time over it. The sound is played from where a word listened: press P on the word, or
    the button; or click on the spectrogram.

    maps: by name, side by side; by default the rollout, `heard.relevance()`.  look: initial traits
    of `MapView`, such as `selected=[0]`.

    Raises ValueError for maps of another number of words or steps.
    """
    maps = {"": heard.relevance()} if maps is None else maps
    picture = _spectrogram(heard.spectrogram)
    grid = (1, heard.steps)
    view = View(picture.size[::-1], grid, (0, 0), grid, token=1, grid=grid)
    panels = {name: {"": Heatmaps([values[:, None]])} for name, values in maps.items()}
    sound = {"sound": wav(heard.sound), "seconds": heard.steps * heard.step}
    return Explorer([picture], [view], heard.words, panels, **({"blur": 0.0} | sound | look))


def wav(sound: Float[np.ndarray, " sample"]) -> bytes:
    """A sound as a WAV file of 16 bits, which every browser plays."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, len(sound), "NONE", ""))
        file.writeframes((np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


def _spectrogram(bands: Float[np.ndarray, "band frame"]) -> Image.Image:
    scaled = (bands - bands.min()) / max(np.ptp(bands), 1e-6)
    colours = (mpl.colormaps["gray"](scaled[::-1])[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(colours).resize(SIZE, Image.Resampling.BILINEAR)
