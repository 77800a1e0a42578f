import numpy as np
import pytest
import soundfile

from rolloutlib.files.sound import load_sound


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_a_tone_keeps_its_pitch_at_any_rate(tmp_path, rate, channels):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "tone.flac", np.stack([tone] * channels, 1), rate)
    loaded = load_sound(tmp_path / "tone.flac")
    assert loaded.dtype == np.float32 and loaded.shape == (16_000,)
    assert np.abs(np.fft.rfft(loaded)).argmax() == 440
    assert loaded.std() == pytest.approx(0.5 / 2**0.5, rel=1e-2)


def test_files_without_sound_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.wav"):
        load_sound(tmp_path / "nothing.wav")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"expected a sound file, got .*text\.wav"):
        load_sound(tmp_path / "text.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(ValueError, match=r"expected sound in .*empty\.wav"):
        load_sound(tmp_path / "empty.wav")
