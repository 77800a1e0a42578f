"""The explorer of a sound: what is sent, and in a real browser."""

import base64
import io
import wave

import numpy as np
import pytest
import soundfile
import torch
from test_explorer_browser import focused, page_of, pinned, pixels, press, wait_until_drawn

from rolloutlib.explorer import explore_sound
from rolloutlib.files.sound import RATE
from rolloutlib.models.speech import Heard
from rolloutlib.models.words import Word
from rolloutlib.recording.capture import Recording

rng = np.random.default_rng(3)
WORDS = [Word(word, [number]) for number, word in enumerate(["please", "put", "the", "apple"])]
MAPS = rng.random((4, 100)) / 1000
PEAKS = (12, 40, 55, 80)
MAPS[range(4), PEAKS] = 0.3


def heard():
    """Two seconds of a rising tone."""
    time = np.arange(2 * RATE) / RATE
    sound = (0.3 * np.sin(2 * np.pi * (300 + 400 * time) * time)).astype(np.float32)
    bands = rng.random((80, 200)).astype(np.float32)
    nothing = Recording(torch.nn.Identity())
    return Heard(sound, bands, 0.0, "", WORDS, torch.arange(4), 0.02, [], nothing)


def test_the_sound_is_sent_as_it_is():
    explorer = explore_sound(heard(), {"": MAPS})
    with wave.open(io.BytesIO(explorer.maps.sound)) as file:
        assert file.getparams()[:4] == (1, 2, RATE, 2 * RATE)
    samples, _ = soundfile.read(io.BytesIO(explorer.maps.sound))
    np.testing.assert_allclose(samples, heard().sound, atol=2 / 2**15)
    assert explorer.maps.seconds == 2.0
    assert explorer.maps.pictures[0]["grid"] == [1, 100]


def test_maps_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"expected a map of the grids \[\(1, 100\)\]"):
        explore_sound(heard(), {"": MAPS[:, 1:]})


@pytest.fixture
def page(browser, tmp_path):
    path = page_of(explore_sound(heard(), {"": MAPS}), tmp_path)
    assert base64.b64encode(b"fLaC")[:5].decode() in path.read_text()  # and not WAV
    page, asked, said = browser(path)
    wait_until_drawn(page)
    page.wait_for_function("document.querySelector('audio').readyState > 0")
    yield page
    assert asked == []
    assert [text for text in said if "willReadFrequently" not in text] == []


def test_a_words_map_is_a_band_along_time(page):
    page.locator(".rx-chip").nth(1).hover()
    painted = pixels(page).astype(int)
    bright = painted[painted.shape[0] // 2, :, :2].sum(-1)
    assert bright.argmax() * len(MAPS[1]) // len(bright) == PEAKS[1]
    assert "0.81 s" in page.locator(".rx-readout").inner_text()
    assert "0.81 s" in page.locator(".rx-chip").nth(1).get_attribute("aria-label")


def test_the_keyboard_plays_from_where_a_word_listened(page):
    page.evaluate("HTMLMediaElement.prototype.play = async function () { window.played = true; }")
    page.locator(".rx-chip").first.focus()
    press(page, "ArrowRight", "ArrowRight", "p")
    assert focused(page) == "2"
    assert page.evaluate("window.played")
    assert started(page) == pytest.approx(1.11 - 0.15, abs=0.01)
    press(page, "ArrowRight", "Enter")
    assert pinned(page) == [3]
    page.locator(".rx-from").focus()
    press(page, "Enter")
    assert started(page) == pytest.approx(1.61 - 0.15, abs=0.01)


def test_a_click_on_the_spectrogram_plays_from_there_and_names_its_word(page):
    page.evaluate("HTMLMediaElement.prototype.play = async function () {}")
    box = page.locator(".rx-picture").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.125, box["y"] + box["height"] / 2)
    assert started(page) == pytest.approx(0.25 - 0.15, abs=0.03)
    assert "“please”" in page.locator(".rx-readout").inner_text()


def started(page):
    return page.evaluate("document.querySelector('audio').currentTime")
