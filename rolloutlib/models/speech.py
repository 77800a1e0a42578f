"""A model that writes down speech, such as Whisper: what it wrote, and what each word listened to.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision". An encoder reads
30 seconds of sound, and a decoder attends to it in every layer while it writes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from rolloutlib.algorithm.across import rollout_across
from rolloutlib.files.sound import RATE
from rolloutlib.models.load import load_pretrained
from rolloutlib.models.whisper_tiny import kept_checkpoint
from rolloutlib.models.words import Word, by_word, read_words, special_ids
from rolloutlib.recording.capture import Recording, record_attention

TINY = "whisper-tiny.en"  # the name of the checkpoint that a pip package carries
QUIET = 0.1  # seconds of which the quietest are looked for, between two windows
SEARCHED = 5.0  # seconds at a window's end in which they are looked for


@dataclass(frozen=True)
class Heard:
    """What a model wrote down of at most 30 seconds of sound.

    spectrogram: what the model is given of the sound, log-mel, low bands first, without the silence
    after it.  start: where the sound begins, in seconds of a longer one.  words: without
    punctuation; the tokens of each are its positions in the decoder.  sequence: all tokens there.
    step: seconds of sound for each position of the encoder.  alignment_heads: (layer, head) of the
    cross-attention that the checkpoint names for finding when words were spoken; may be empty.
    """

    sound: Float[np.ndarray, " sample"] = field(repr=False)
    spectrogram: Float[np.ndarray, "band frame"] = field(repr=False)
    start: float
    text: str
    words: list[Word]
    sequence: Int[torch.Tensor, " token"] = field(repr=False)
    step: float
    alignment_heads: list[tuple[int, int]] = field(repr=False)
    recording: Recording = field(repr=False)

    @property
    def steps(self) -> int:
        """How many positions of the encoder the sound fills; the rest of 30 seconds is silence."""
        return -(-len(self.sound) // round(self.step * RATE))

    @property
    def times(self) -> Float[np.ndarray, " step"]:
        """The middle of each position of the encoder, in seconds of this sound."""
        return (np.arange(self.steps) + 0.5) * self.step

    def relevance(self, **settings) -> Float[torch.Tensor, "word step"]:
        """How relevant each moment is for each word: `rollout_across`, the mean of its tokens.

        Entries are shares of a row of the rollout, 0 or more. What is missing to 1 lies on words
        written before, and on the silence after the sound.  settings: of `rollout_across`.
        """
        parts = (self.recording[part] for part in ("language", "cross", "audio"))
        _, sound = rollout_across(*parts, self._rows, **settings)
        return self._by_word(sound[0])

    def heads(self) -> Float[torch.Tensor, "layer head word step"]:
        """The cross-attention of every head from each word to each moment, mean of its tokens."""
        return torch.stack(
            [
                torch.stack([self._by_word(head) for head in layer.probabilities(self._rows)[0]])
                for layer in self.recording["cross"]
            ]
        )

    @property
    def _rows(self) -> list[int]:
        """The query rows that predicted the words' tokens: for each, the one before it."""
        return [token - 1 for word in self.words for token in word.tokens]

    def _by_word(
        self, rows: Float[torch.Tensor, "row position"]
    ) -> Float[torch.Tensor, "word step"]:
        starts = np.cumsum([0, *(len(word.tokens) for word in self.words)])
        numbered = [
            Word(word, range(start, start + len(word.tokens)))
            for word, start in zip(self.words, starts, strict=False)
        ]
        return by_word(rows[:, : self.steps], numbered)


@dataclass(frozen=True)
class SpeechModel:
    """A Whisper ready to listen: transformers' model and processor."""

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor

    @torch.no_grad()
    def listen(
        self,
        sound: Float[np.ndarray, " sample"],
        *,
        sequence: Int[torch.Tensor, " token"] | None = None,
        start: float = 0.0,
    ) -> Heard:
        """Write down a sound of at most 30 seconds, and record what was listened to meanwhile.

        sound: 16,000 samples per second, as from `load_sound`.  sequence: what to read instead of
        writing, such as that of another model's `Heard`.

        Raises ValueError for no sound, and for a longer one.
        """
        extractor = self.processor.feature_extractor
        if not 0 < len(sound) <= extractor.n_samples:
            raise ValueError(
                f"expected sound of up to {extractor.chunk_length} seconds, got "
                f"{len(sound) / RATE:.1f}: `listen_long` cuts a longer one into windows"
            )
        inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt").to(self.model.device)
        features = inputs.input_features.to(self.model.dtype)
        with record_attention(self.model) as recording:
            if sequence is None:
                sequence = self.model.generate(features, force_unique_generate_call=True)[0]
            else:
                self.model(input_features=features, decoder_input_ids=sequence[None])
        heads = getattr(self.model.generation_config, "alignment_heads", None) or []
        text = self.processor.tokenizer.decode(sequence, skip_special_tokens=True).strip()
        frames = -(-len(sound) // extractor.hop_length)
        return Heard(
            *(sound, features[0, :, :frames].float().cpu().numpy()),
            *(start, text, self._words(sequence), sequence),
            step=extractor.chunk_length / self.model.config.max_source_positions,
            alignment_heads=[tuple(head) for head in heads],
            recording=recording,
        )

    def listen_long(
        self, sound: Float[np.ndarray, " sample"], *, progress: bool = True
    ) -> Iterator[Heard]:
        """Write down a sound of any length, window by window, with a progress bar.

        A window ends where the sound is quietest in the last five of its 30 seconds, so that no
        word is cut. Memory stays that of one window if the caller keeps none of what is yielded but
        the numbers it needs. Windows without words yield nothing.
        """
        ends = window_ends(sound, self.processor.feature_extractor.n_samples)
        bar = tqdm(zip([0, *ends], ends, strict=False), total=len(ends), disable=not progress)
        for first, end in bar:
            heard = self.listen(sound[first:end], start=first / RATE)
            if heard.words:
                yield heard
            del heard  # the next window finds this one's memory free

    def _words(self, sequence: Int[torch.Tensor, " token"]) -> list[Word]:
        """The words of the decoder's sequence, which know their positions there."""
        ids, tokenizer = sequence.tolist(), self.processor.tokenizer
        special = special_ids(tokenizer)
        return [
            Word(word.strip(), word.tokens)
            for word in read_words(tokenizer, ids)
            if any(letter.isalnum() for letter in word)
            and special.isdisjoint(ids[token] for token in word.tokens)
        ]


def load_speech_model(model_id: str | Path = TINY, **how) -> SpeechModel:
    """A Whisper: tiny.en from a pip package, or any of transformers by its folder or hub id.

    how: `dtype` and others, as in transformers' `from_pretrained`; by default float32.

    Raises ModuleNotFoundError, which says what to install, if the package is missing, and
    FileNotFoundError if a checkpoint is.
    """
    folder = kept_checkpoint() if model_id == TINY else model_id
    how = {"dtype": torch.float32} | how
    model = load_pretrained(WhisperForConditionalGeneration, folder, **how).eval()
    return SpeechModel(model, load_pretrained(WhisperProcessor, folder))


def window_ends(sound: Float[np.ndarray, " sample"], longest: int) -> list[int]:
    """Where the windows of a sound end: in silence where there is some, `longest` at most."""
    ends, size = [], round(QUIET * RATE)
    while len(sound) - (ends or [0])[-1] > longest:
        end = (ends or [0])[-1] + longest
        first = end - round(SEARCHED * RATE)
        pieces = sound[first:end][: (end - first) // size * size].reshape(-1, size)
        ends.append(first + int((pieces**2).mean(1).argmin()) * size + size // 2)
    return [*ends, len(sound)]


def matched(written: Sequence[str], spoken: Sequence[str]) -> list[tuple[int, int]]:
    """Which written word is which spoken one: pairs of numbers, in order; others are left out.

    >>> matched(["Black", "Dog", "slept"], ["the", "black", "dog", "slept"])
    [(0, 1), (1, 2), (2, 3)]
    """
    ours, theirs = ([word.casefold() for word in words] for words in (written, spoken))
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return [(a + k, b + k) for a, b, size in blocks for k in range(size)]
