"""Prompts: the text with its image tokens, the room for an answer, and where the answer ends."""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from math import inf

import torch
from jaxtyping import Int
from jinja2 import TemplateError, UndefinedError
from PIL import Image
from transformers import (
    BatchFeature,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.video_utils import VideoMetadata

from rolloutlib.models.families import Family
from rolloutlib.models.words import special_ids

# What processors return for each token of the prompt.
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
BLANK = "\N{OBJECT REPLACEMENT CHARACTER}"
# What encloses thinking: in Qwen, GLM and most others, in Kimi, and in Gemma 4.
THINKING = (("<think>", "</think>"), ("◁think▷", "◁/think▷"), ("<|channel>thought", "<channel|>"))
ELONGATED = 200  # times as long as wide, as Qwen's processors allow; Fuyu's fail somewhat above


Shown = Image.Image | list[Image.Image]  # a picture, or the frames of a video


class WholePrompt(str):
    """A prompt that is used as it is, with its own image tokens, and not put into a template."""


def full_prompt(
    processor: ProcessorMixin,
    family: Family,
    prompt: str,
    kinds: Sequence[str],
    system: str = "",
) -> str:
    """The text for the processor, with one token for each of these, in order, before the question.

    kinds: "image" or "video".  system: what the model is told before the question, if its chat
    template has a place for it.

    The chat template is the processor's, else that of its tokenizer. If it is written for text
    alone, the tokens are the beginning of that text. Without any, it is the family's own.

    Raises ValueError for a question with special tokens, or with the text that ends a turn: it
    would be read as more than a question; for a system prompt without a place; and for what the
    template refuses.
    """
    if isinstance(prompt, WholePrompt) and not system:
        return prompt

    signs = "".join(str(getattr(processor, f"{kind}_token", None) or "") for kind in kinds)

    def put(question: str) -> str:
        if not (processor.chat_template or processor.tokenizer.chat_template):
            return family.prompt_template.format(shown=signs, prompt=question)
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]
        told = [{"type": "text", "text": system}] if system else []
        with suppress(TypeError, UndefinedError):  # as from a list that is added to a text
            whole = in_template(processor, content, told)
            if question.strip() in whole and str(content) not in whole:
                return whole
        before = f"{signs}\n" if "{shown}" in family.prompt_template else ""  # text alone
        return in_template(processor, before + question, system)

    ending = put(BLANK).partition(BLANK)[2].splitlines()
    both = f"{system}\n{prompt}" if system else prompt
    closing = [line.strip() for line in ending if line.strip() and line.strip() in both]
    if found := reserved(processor, family, both) + closing:
        raise ValueError(
            f"expected a question in plain text, got {found[0]!r}, which means something else to "
            "the model; a prompt that is used as it is is a rolloutlib.models.WholePrompt"
        )
    whole = put(prompt)
    if system and (
        isinstance(prompt, WholePrompt) or not all(t in whole for t in (system, prompt))
    ):
        raise ValueError("expected a chat template with a place for a system prompt, got none")
    return whole


def in_template(processor: ProcessorMixin, content: list | str, system: list | str) -> str:
    """One user's turn, after a system prompt if that is not empty, in the chat template.

    Raises ValueError for what the template refuses, or if it is broken.
    """
    told = [{"role": "system", "content": system}] if system else []
    own = {} if processor.chat_template else {"chat_template": processor.tokenizer.chat_template}
    turns = [*told, {"role": "user", "content": content}]
    try:
        return processor.apply_chat_template(turns, add_generation_prompt=True, **own)
    except UndefinedError:
        raise
    except TemplateError as error:
        raise ValueError(f"the checkpoint's chat template refuses the prompt: {error}") from error


def end_of_thinking(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Int[torch.Tensor, " token"],
    generated: Int[torch.Tensor, " kept"],
) -> int:
    """How many of the generated tokens are the model's thinking, tags included: those up to the
    last closing tag, or all of them if thinking was begun, perhaps by the prompt, and not ended.
    """
    before, text = tokenizer.decode(prompt[-16:]).rstrip(), tokenizer.decode(generated)
    for begin, end in THINKING:
        if end in text:
            count = text.count(end)
            return bisect_left(
                range(len(generated)),
                count,
                key=lambda length: tokenizer.decode(generated[:length]).count(end),
            )
        if begin in text or before.endswith(begin):
            return len(generated)
    return 0


def reserved(processor: ProcessorMixin, family: Family, question: str) -> list[str]:
    """The tokens of a question that are not text to the model, such as "</s>" or "<image>"."""
    tokenizer = processor.tokenizer
    named = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    signs = [*named, *family.signs]
    signs = [str(sign) for sign in signs if sign]
    known = special_ids(tokenizer) | set(tokenizer.convert_tokens_to_ids(signs))
    if (tokenizer.unk_token or question) not in question:
        known -= {tokenizer.unk_token_id}  # what the tokenizer doesn't know is text, too
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    found = tokenizer.convert_ids_to_tokens([number for number in ids if number in known])
    return found + [sign for sign in signs if sign in question]  # processors look for the text


def inputs_of(processor: ProcessorMixin, text: str, **given) -> BatchFeature:
    """The processor's output for a full prompt, with one BOS token and without an EOS token of the
    tokenizer's own: a template may begin with BOS, and EOS would end the turn before the answer.
    """
    tokenizer = processor.tokenizer
    if tokenizer.bos_token and text.lstrip().startswith(tokenizer.bos_token):
        given["add_special_tokens"] = False
    if "mm_token_type_ids" in processor.model_input_names:
        given["return_mm_token_type_ids"] = True  # models ask for them, processors may not
    inputs = processor(text=text, return_tensors="pt", **given)
    if "input_ids" not in inputs:
        raise ValueError(
            f"expected a processor that makes tokens of a question, got {type(processor).__name__} "
            f"with {', '.join(inputs)}"
        )
    for name in ("labels", "video_metadata"):  # PaliGemma's processor returns some for training
        inputs.pop(name, None)
    ends = text.rstrip().endswith(tokenizer.eos_token or "")
    if not ends and inputs["input_ids"][0, -1] == tokenizer.eos_token_id:
        for name in set(PER_TOKEN) & inputs.keys():
            inputs[name] = inputs[name][:, :-1]
    return inputs


def pictures_in(shown: Sequence[Shown]) -> list[Image.Image]:
    """The pictures, and all frames of the videos, in order."""
    return [one for each in shown for one in (each if isinstance(each, list) else [each])]


def kinds_of(shown: Sequence[Shown]) -> list[str]:
    """What each of these is to a processor: an "image" or a "video"."""
    return ["video" if isinstance(each, list) else "image" for each in shown]


def given_to(shown: Sequence[object], frame_rate: float | None = None) -> dict[str, object]:
    """The processor's arguments for pictures, of whatever kind it takes, and for videos, which are
    lists of them; of videos it takes all frames.
    """
    videos = [each for each in shown if isinstance(each, list)]
    images = [each for each in shown if not isinstance(each, list)]
    # Several belong to one prompt: LLaVA-OneVision gives each fewer tokens than if it were alone.
    given = {"images": [images] if len(images) > 1 else images} if images else {}
    if videos:
        counts = [len(frames) for frames in videos]
        given |= {
            "videos": videos,
            "video_metadata": [
                VideoMetadata(count, fps=frame_rate, frames_indices=list(range(count)))
                for count in counts
            ],
            "do_sample_frames": False,
            "return_metadata": True,  # Cosmos 3 Edge and Muse Spark need it and don't ask for it
        }
    return given


def require_videos(
    processor: ProcessorMixin, family: Family, shown: Sequence[Shown], frame_rate: float | None
) -> None:
    """Raise a ValueError for a video without a frame rate above 0, for a model that takes none, for
    frames of different sizes and for fewer than the model looks at together.
    """
    videos = [each for each in shown if isinstance(each, list)]
    if not videos:
        return
    if frame_rate is None or not 0 < frame_rate < inf:
        raise ValueError(f"frame_rate must be above 0 frames per second, got {frame_rate}")
    if getattr(processor, "video_processor", None) is None:
        raise ValueError(f"expected a model that takes video, got {family.model_type}")
    least = frames_together(processor)
    for frames in videos:
        sizes = {frame.size for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"expected frames of one size, got {sorted(sizes)}")
        if len(frames) < least:
            raise ValueError(f"expected a video of at least {least} frames, got {len(frames)}")


def frames_together(processor: ProcessorMixin) -> int:
    """How many frames of a video each of its time steps shows, as far as the processor says."""
    return getattr(processor.video_processor, "temporal_patch_size", None) or 1


def require_shapes(shown: Sequence[Shown]) -> None:
    """Raise a ValueError for no picture, and for one far longer than wide.

    Processors resize its short side to their own input, so it would take gigabytes.
    """
    if not shown or [] in shown:
        raise ValueError("expected at least one picture, got none")
    for picture in pictures_in(shown):
        if max(picture.size) > ELONGATED * min(picture.size):
            raise ValueError(
                f"expected a picture at most {ELONGATED} times as long as wide, "
                f"got {picture.width}x{picture.height} pixels"
            )


def require_room(config: PreTrainedConfig, length: int, new: int) -> None:
    """Raise a ValueError unless a prompt of this length and its answer fit the model's context."""
    if new < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, got {new}")
    context = getattr(config.get_text_config(), "max_position_embeddings", inf)
    if length + new > context:
        raise ValueError(
            f"the prompt with its image tokens is {length} tokens long and the answer up to "
            f"{new}; expected at most {context} together, the model's context"
        )


def require_text(config: PreTrainedConfig, generated: Int[torch.Tensor, " token"]) -> None:
    """Raise a ValueError if an image or video token was generated: there is no picture behind it,
    so no pass over the answer can be recorded.
    """
    signs = {getattr(config, name, None) for name in ("image_token_id", "video_token_id")}
    for number, token in enumerate(generated.tolist()):
        if token in signs:
            raise ValueError(
                f"expected an answer in text, got the image token {token} as generated token "
                f"{number}; generate with suppress_tokens=[{token}] avoids it"
            )


def without_ending(
    generated: Int[torch.Tensor, " token"], config: GenerationConfig
) -> Int[torch.Tensor, " kept"]:
    """The generated tokens before the one that closes the answer."""
    ending = config.eos_token_id
    ending = [ending] if isinstance(ending, int) else ending or []
    closing = torch.isin(generated, torch.tensor(ending, device=generated.device))
    return generated[: int(closing.int().argmax())] if closing.any() else generated
