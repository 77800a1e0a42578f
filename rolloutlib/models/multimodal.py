"""Let a checkpoint answer, and replay the answer in one pass that can be recorded."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Float, Int
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from rolloutlib.files.pictures import upright_rgb
from rolloutlib.grid import ImageTokens
from rolloutlib.models.families import Family
from rolloutlib.models.geometry import Unplaced
from rolloutlib.models.prompts import (
    THINKING,
    Shown,
    end_of_thinking,
    full_prompt,
    given_to,
    inputs_of,
    kinds_of,
    require_room,
    require_shapes,
    require_text,
    require_videos,
    without_ending,
)
from rolloutlib.models.state import state_of
from rolloutlib.models.words import Word, read_words
from rolloutlib.recording.capture import Recording, record_attention
from rolloutlib.recording.gradients import record_gradients


@dataclass(frozen=True)
class Answer:
    """What a model was asked, what it answered, and where each part is in the sequence.

    inputs: the processor's output for the prompt and its pictures.
    sequence: the prompt's S token ids and the T generated ones, without the closing token.
    tokens: the T generated tokens as text, each by itself.  text: the whole answer, without
    special tokens and without the model's thinking.
    images: for each picture and each video of the prompt its tokens' positions and pixels.
    model: the one that answered, and can replay the answer.
    recording: what every layer attended to; None unless `generate` was asked to record.
    state: of the model when that was recorded, as `state_of` gives it.
    unplaced: why there are no images, if tokens stand for no place of their own; else "".
    system: what the model was told before the question.
    thought: how many of the generated tokens are its thinking, which comes before the answer.
    """

    prompt: str
    inputs: BatchFeature
    sequence: Int[torch.Tensor, " token"]
    tokens: list[str]
    text: str
    images: list[ImageTokens]
    model: "MultimodalModel" = field(repr=False, compare=False)
    recording: Recording | None = field(default=None, repr=False, compare=False)
    state: int = field(default=0, repr=False, compare=False)
    unplaced: str = ""
    system: str = ""
    thought: int = 0

    @property
    def image(self) -> ImageTokens:
        """The only picture of the prompt.

        Raises ValueError if there are several, and `Unplaced` if its tokens have no place on it.
        """
        if self.unplaced:
            raise Unplaced(self.unplaced)
        if len(self.images) != 1:
            raise ValueError(f"expected one picture in the prompt, got {len(self.images)}")
        return self.images[0]

    @cached_property
    def words(self) -> list[Word]:
        """What a person reads: the tokens merged to whole characters and words.

        Each knows its tokens. "".join gives the answer as decoded, special tokens included.
        """
        return read_words(self.model.processor.tokenizer, self.generated.tolist())

    @property
    def thinking(self) -> str:
        """What the model wrote between its tags of thinking; "" for a model that has none."""
        ids = self.generated[: self.thought]
        text = self.model.processor.tokenizer.decode(ids, skip_special_tokens=True)
        for tag in chain(*THINKING):
            text = text.replace(tag, "")
        return text.strip()

    @property
    def frames(self) -> list[Image.Image]:
        """All frames of the prompt's videos whose tokens have a place."""
        return [frame for image in self.images for frame in image.frames]

    @property
    def generated(self) -> Int[torch.Tensor, " token"]:
        """The ids of the generated tokens."""
        return self.sequence[-len(self.tokens) :]

    @property
    def rows(self) -> Int[torch.Tensor, " token"]:
        """The query rows that predicted the generated tokens: for each, the one before it."""
        end = len(self.sequence) - 1
        return torch.arange(end - len(self.tokens), end)


def _as_shown(pictures: list[Shown], *, video: bool) -> list[Shown]:
    """Upright pictures, and lists of a video's frames.  video: pictures alone are one's frames."""
    shown = [
        [upright_rgb(frame) for frame in each] if isinstance(each, list) else upright_rgb(each)
        for each in pictures
    ]
    return [shown] if video and not any(isinstance(each, list) for each in shown) else shown


@dataclass(frozen=True)
class MultimodalModel:
    """A checkpoint ready for questions: transformers' model and processor, and their family.

    model: from transformers; with an adapter, PEFT's model around it.
    """

    model: torch.nn.Module
    processor: ProcessorMixin
    family: Family

    def generate(
        self,
        pictures: Shown | list[Shown],
        prompt: str,
        *,
        max_new_tokens: int = 32,
        frame_rate: float | None = None,
        record: bool = False,
        system: str = "",
        **generation,
    ) -> Answer:
        """Ask the model about pictures, or videos, or both.

        pictures: in the order of the prompt; a list among them holds the frames of a video.
        prompt: a question in plain text, put into the checkpoint's chat template; or the whole
        text, image tokens included, as a `WholePrompt`.  frame_rate: of videos, in frames per
        second; if it is given with no list among the pictures, they are the frames of one video.
        record: keep what every layer attended to, as `answer.recording`, at almost no cost; only
        after beam search or with a cache of fixed size it takes a replay pass.
        system: what the model is told before the question, for checkpoints whose chat template has
        a place for it.  generation: anything that transformers' `generate` takes (beams, sampling,
        …), for one answer.

        Raises ValueError for a question with special tokens, if the prompt has no room for its
        image tokens or the context none for the answer, if the model generates nothing or an image
        token, for no picture, for one that is too large or too elongated, for frames of different
        sizes, for a video if the model takes none and for one without a frame rate; and for a
        model that reads the prompt by an encoder.
        """
        if self.model.config.is_encoder_decoder:
            raise ValueError(
                "expected a model whose answer continues its prompt, got an encoder and a decoder, "
                f"{self.family.model_type}: record_attention and rollout_across show its attention"
            )
        pictures = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
        pictures = _as_shown(pictures, video=frame_rate is not None)
        inputs = self.prepare(pictures, prompt, frame_rate=frame_rate, system=system)
        require_room(self.model.config, inputs["input_ids"].shape[1], max_new_tokens)
        placed = self.placed(pictures, inputs)  # what is wrong about them is said now, not later
        with record_attention(self.model) if record else nullcontext() as recording:
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **generation)
        sequences = getattr(output, "sequences", output)
        answer = self._read(placed, prompt, inputs, sequences, system=system)
        if not record:
            return answer
        whole = self._joined(recording, answer)
        return replace(answer, recording=whole, state=state_of(self.model))

    def _joined(self, recording: Recording, answer: Answer) -> Recording:
        """A recording of generation, if its calls join into one pass over the answer; else that of
        a replay. The model need not have received the answer's last token."""
        length = len(answer.sequence)
        try:
            passes = {layer.shape for layer in recording["language"]}
        except ValueError:
            return self.record(answer)
        whole = passes in ({(1, length, length)}, {(1, length - 1, length - 1)})
        return recording if whole else self.record(answer)

    def prepare(
        self,
        pictures: list[Shown],
        prompt: str,
        *,
        frame_rate: float | None = None,
        system: str = "",
    ) -> BatchFeature:
        """The model's inputs for a prompt about these pictures, on the model's device.

        pictures, frame_rate: as in `generate`.
        """
        shown = _as_shown(pictures, video=frame_rate is not None)
        require_shapes(shown)
        require_videos(self.processor, self.family, shown, frame_rate)
        text = full_prompt(self.processor, self.family, prompt, kinds_of(shown), system)
        inputs = inputs_of(self.processor, text, **given_to(shown, frame_rate))
        return inputs.to(self.model.device, self.model.dtype)

    def answer(
        self,
        pictures: list[Shown],
        prompt: str,
        inputs: BatchFeature,
        sequences: Int[torch.Tensor, "_ token"],
        *,
        system: str = "",
    ) -> Answer:
        """Read one generated sequence, prompt included, however it was generated.

        Raises ValueError for more or fewer than one, where nothing was generated, and for a
        generated image token, which has no picture.
        """
        placed = self.placed(pictures, inputs)
        return self._read(placed, prompt, inputs, sequences, system=system)

    def _read(
        self,
        placed: tuple[list[ImageTokens], str],
        prompt: str,
        inputs: BatchFeature,
        sequences: Int[torch.Tensor, "_ token"],
        *,
        system: str,
    ) -> Answer:
        if sequences.shape[0] != 1:
            raise ValueError(f"expected one generated sequence, got {sequences.shape[0]}")
        length = inputs["input_ids"].shape[1]
        generated = without_ending(sequences[0, length:], self.model.generation_config)
        if len(generated) == 0:
            raise ValueError("expected at least one generated token, got none")
        require_text(self.model.config, generated)
        tokenizer = self.processor.tokenizer
        images, unplaced = placed
        thought = end_of_thinking(tokenizer, sequences[0, :length], generated)
        return Answer(
            prompt=prompt,
            inputs=inputs,
            sequence=torch.cat([sequences[0, :length], generated]),
            tokens=[tokenizer.decode([token]) for token in generated.tolist()],
            text=tokenizer.decode(generated[thought:], skip_special_tokens=True).strip(),
            images=images,
            unplaced=unplaced,
            system=system,
            thought=thought,
            model=self,
        )

    def seen(self, pictures: list[Shown], inputs: BatchFeature) -> list[ImageTokens]:
        """Where the image tokens of a prompt are, and what part of each picture they stand for.

        pictures: as in `generate`.

        Raises ValueError if the processor's settings do not fit the number of tokens; `Unplaced` if
        tokens stand for no place of their own, as those of a resampler.
        """
        shown = _as_shown(pictures, video="pixel_values_videos" in inputs)
        return self.family.seen(self.model, self.processor, inputs, shown)

    def placed(self, pictures: list[Shown], inputs: BatchFeature) -> tuple[list[ImageTokens], str]:
        """What `seen` returns, or nothing and the reason why tokens have no place."""
        try:
            return self.seen(pictures, inputs), ""
        except Unplaced as reason:
            return [], str(reason)

    def on_pixels(self) -> str:
        """ "on pixels" if image tokens have a place on their picture; else why not."""
        picture = [Image.new("RGB", (96, 64))]
        return self.placed(picture, self.prepare(picture, "?"))[1] or "on pixels"

    def record(self, answer: Answer) -> Recording:
        """Record what every layer attended to while answering.

        That is there if `generate` recorded it and the model is as it was (`state_of`). Else it
        takes one replay pass over prompt and answer, without a cache: the same attention as in
        generation, however the tokens were chosen.
        """
        if answer.recording is not None and answer.state == state_of(self.model):
            return answer.recording
        inputs = self._replayed(answer, answer.inputs)
        with torch.no_grad(), record_attention(self.model) as recording:
            # For one logit alone, Gemma 4's last layers would compute a single row.
            self.model(**inputs, use_cache=False, logits_to_keep=2)
        return recording

    def record_gradients(
        self, answer: Answer
    ) -> tuple[Recording, Float[torch.Tensor, " generated"]]:
        """Record the attention of an answer in a form through which gradients flow.

        The same replay pass as in `record`, and the logits of the generated tokens.
        """
        with record_gradients(self.model) as recording:
            logits = self.replay(answer)
        return recording, logits.gather(-1, answer.generated.to(logits.device)[:, None])[:, 0]

    def replay(self, answer: Answer) -> Float[torch.Tensor, "generated word"]:
        """The logits of every word where each generated token was predicted, from one pass."""
        kept = len(answer.tokens) + 1
        inputs = self._replayed(answer, answer.inputs)
        return self.model(**inputs, use_cache=False, logits_to_keep=kept).logits[0, -kept:-1]

    @torch.no_grad()
    def log_probability(
        self, answer: Answer, pictures: list[Image.Image]
    ) -> Float[torch.Tensor, " picture"]:
        """How likely the same answer would be if each of these pictures replaced its own: natural
        logarithms, 0 or less, of the product over its tokens.

        One batch: the pictures have the size of the answer's own, the only one in its prompt.
        """
        batch = [
            self._replayed(answer, self.prepare([p], answer.prompt, system=answer.system))
            for p in pictures
        ]
        inputs = {name: torch.cat([one[name] for one in batch]) for name in batch[0]}
        kept = len(answer.tokens) + 1
        logits = self.model(**inputs, use_cache=False, logits_to_keep=kept).logits
        return self._of_generated(answer, logits.float().log_softmax(-1)).sum(-1)

    def _replayed(self, answer: Answer, inputs: BatchFeature) -> dict[str, torch.Tensor]:
        """The inputs of one pass over the prompt and the answer that was given."""
        replayed = dict(inputs)
        for _ in answer.tokens:  # the model says what it is given beside a generated token
            replayed = self.model._update_model_kwargs_for_generation({}, replayed)
        return replayed | {"input_ids": answer.sequence[None]}

    @staticmethod
    def _of_generated(
        answer: Answer, values: Float[torch.Tensor, "picture token word"]
    ) -> Float[torch.Tensor, "picture generated"]:
        """From values for every word, those of the generated tokens, each one row before it."""
        generated = answer.generated.to(values.device)
        before = values[:, -len(generated) - 1 : -1]
        return before.gather(-1, generated.expand(len(values), -1)[..., None])[..., 0]

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside the block, the model computes as if it had no adapter, also in replays of answers.

        Raises ValueError if the model has none.
        """
        if not hasattr(self.model, "disable_adapter"):
            raise ValueError(f"expected a model with an adapter, got {type(self.model).__name__}")
        with self.model.disable_adapter():
            yield
