import copy
import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT
from scipy.ndimage import uniform_filter1d
from transformers import WhisperConfig, WhisperForConditionalGeneration

from rolloutlib import rollout_across
from rolloutlib.files.sound import RATE, load_sound
from rolloutlib.models.speech import SpeechModel, load_speech_model, matched, window_ends

AUDIO = ROOT / "data" / "audio"


@pytest.fixture(scope="module")
def model():
    try:
        return load_speech_model()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def heard(model):
    return model.listen(load_sound(AUDIO / "kitchen.flac"))


def test_words_are_written_and_listened_to_where_they_were_spoken(heard):
    spoken = pd.read_csv(AUDIO / "words.csv").query("clip == 'kitchen'")
    pairs = matched(heard.words, spoken.word.tolist())
    assert len(pairs) >= 7 and len(heard.words) == 9
    assert not any("<" in word for word in heard.words)
    relevance = heard.relevance()
    for ours, theirs in pairs:
        peak = heard.times[relevance[ours].argmax()]
        assert spoken.start.iloc[theirs] - 0.1 <= peak <= spoken.end.iloc[theirs] + 0.1


def test_words_of_a_real_speech_come_in_order_and_not_from_its_pauses(model):
    """The first word is left out: its map peaks in the silence before it."""
    heard = model.listen(load_sound(AUDIO / "jfk.flac"))
    assert heard.text == (
        "And so my fellow Americans ask not what your country can do for you, "
        "ask what you can do for your country."
    )
    peaks = heard.times[heard.relevance(residual=0.9).argmax(1)]
    assert (np.diff(peaks) > 0).all()
    loud = uniform_filter1d(heard.sound**2, RATE // 2) ** 0.5  # of half a second
    pauses = loud < 0.15 * loud.max()
    assert 0.2 < pauses.mean() < 0.3
    assert not pauses[(peaks[1:] * RATE).astype(int)].any()


def test_heads_are_those_of_eager_attention_in_the_rows_before_the_tokens(model, heard):
    extractor = model.processor.feature_extractor
    features = extractor(heard.sound, sampling_rate=RATE, return_tensors="pt").input_features
    whisper = model.model
    whisper.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = {"input_features": features, "decoder_input_ids": heard.sequence[None]}
        passed = whisper(**inputs, output_attentions=True)
    whisper.set_attn_implementation("sdpa")
    cross = torch.stack(passed.cross_attentions)[:, 0]
    for number, word in enumerate(heard.words):
        rows = [token - 1 for token in word.tokens]
        expected = cross[:, :, rows, : heard.steps].mean(2)
        torch.testing.assert_close(heard.heads()[:, :, number], expected, atol=1e-5, rtol=1e-4)


def test_relevance_is_the_mean_over_each_words_tokens(heard):
    parts = (heard.recording[part] for part in ("language", "cross", "audio"))
    number = max(range(len(heard.words)), key=lambda n: len(heard.words[n].tokens))
    rows = [token - 1 for token in heard.words[number].tokens]
    _, expected = rollout_across(*parts, rows, residual=0.8)
    found = heard.relevance(residual=0.8)
    assert found.shape == (len(heard.words), heard.steps) and len(heard.times) == heard.steps
    torch.testing.assert_close(found[number], expected[0, :, : heard.steps].mean(0))


def test_a_long_sound_is_read_in_windows_whose_memory_is_freed(model):
    torch.manual_seed(0)
    layers = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    config = model.model.config.to_dict() | layers | {"d_model": 24}
    small = WhisperForConditionalGeneration(WhisperConfig(**config)).eval()
    small.generation_config = copy.deepcopy(model.model.generation_config)
    small.generation_config.max_length = 12
    sound = np.random.default_rng(0).normal(size=70 * RATE).astype(np.float32)
    starts, kept = [], []
    for window in SpeechModel(small, model.processor).listen_long(sound, progress=False):
        starts.append(window.start)
        kept.append(weakref.ref(window.recording["cross"][0].query))
    del window
    gc.collect()
    np.testing.assert_allclose(np.diff([*starts, 70.0]), [27.5, 27.5, 15], atol=6)
    assert [query() for query in kept] == [None] * 3


def test_a_whisper_of_another_size_is_read_from_its_folder(model, heard, tmp_path):
    """As from the Hub: a model, here of random weights, and its processor."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3}
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48)
    config = WhisperConfig(**model.model.config.to_dict() | sizes)
    random = WhisperForConditionalGeneration(config)
    random.generation_config = copy.deepcopy(model.model.generation_config)
    random.generation_config.update(max_new_tokens=8, alignment_heads=[[2, 3]])
    random.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    found = load_speech_model(str(tmp_path))
    assert 0 < len(found.listen(heard.sound).sequence) <= 12
    again = found.listen(heard.sound, sequence=heard.sequence)
    assert again.alignment_heads == [(2, 3)]
    assert [len(again.recording[part]) for part in ("language", "cross", "audio")] == [3, 3, 2]
    assert again.heads().shape == (3, 4, len(heard.words), heard.steps)
    np.testing.assert_allclose(again.relevance().sum(1) <= 1, True)


def test_too_much_sound_and_none_are_refused(model):
    for seconds in (0, 30.5):
        with pytest.raises(
            ValueError, match=rf"up to 30 seconds, got {seconds:.1f}: `listen_long`"
        ):
            model.listen(np.zeros(int(seconds * RATE), np.float32))


def test_windows_end_where_it_is_quiet():
    rng = np.random.default_rng(0)
    sound = rng.normal(size=70 * RATE).astype(np.float32)
    for quiet in (27.0, 54.5):
        sound[int(quiet * RATE) : int((quiet + 0.4) * RATE)] = 0
    ends = window_ends(sound, 30 * RATE)
    assert ends[-1] == len(sound) and len(ends) == 3
    np.testing.assert_allclose(np.divide(ends[:2], RATE), [27.2, 54.7], atol=0.2)
    assert window_ends(sound[:RATE], 30 * RATE) == [RATE]
