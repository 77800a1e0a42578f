"""Prompts: the text with its image tokens, the room for an answer, and where the answer ends."""

from math import inf

import torch
from jaxtyping import Int
from PIL import Image
from transformers import BatchFeature, GenerationConfig, PreTrainedConfig, ProcessorMixin
from transformers.video_utils import VideoMetadata

from rolloutlib.models.families import Family

ELONGATED = 200  # times as long as wide, as Qwen's processors allow; Fuyu's fail somewhat above


def full_prompt(
    processor: ProcessorMixin, family: Family, prompt: str, kind: str, count: int
) -> str:
    """The text for the processor, with one token for each "image" or "video"."""
    token = getattr(processor, f"{kind}_token", None)
    if token and token in prompt:
        return prompt
    if processor.chat_template is None:
        return family.prompt_template.format(prompt=prompt)
    content = [{"type": kind}] * count + [{"type": "text", "text": prompt}]
    conversation = [{"role": "user", "content": content}]
    return processor.apply_chat_template(conversation, add_generation_prompt=True)


def video_inputs(
    processor: ProcessorMixin,
    family: Family,
    frames: list[Image.Image],
    prompt: str,
    frame_rate: float,
) -> BatchFeature:
    """The processor's output for one video with all its frames.  frame_rate: frames per second.

    Raises ValueError for a model that takes no video, for frames of different sizes, for fewer than
    the model looks at together, and for a frame rate that is not above 0.
    """
    if not 0 < frame_rate < inf:
        raise ValueError(f"frame_rate must be above 0 frames per second, got {frame_rate}")
    if getattr(processor, "video_processor", None) is None:
        raise ValueError(f"expected a model that takes video, got {family.model_type}")
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise ValueError(f"expected frames of one size, got {sorted(sizes)}")
    least = processor.video_processor.temporal_patch_size
    if len(frames) < least:
        raise ValueError(f"expected a video of at least {least} frames, got {len(frames)}")
    numbers = list(range(len(frames)))
    return processor(
        videos=[frames],
        text=full_prompt(processor, family, prompt, "video", 1),
        video_metadata=[VideoMetadata(len(frames), fps=frame_rate, frames_indices=numbers)],
        do_sample_frames=False,
        return_tensors="pt",
    )


def require_shapes(pictures: list[Image.Image]) -> None:
    """Raise a ValueError for no picture, and for one far longer than wide.

    Processors resize its short side to their own input, so it would take gigabytes.
    """
    if not pictures:
        raise ValueError("expected at least one picture, got none")
    for picture in pictures:
        if max(picture.size) > ELONGATED * min(picture.size):
            raise ValueError(
                f"expected a picture at most {ELONGATED} times as long as wide, "
                f"got {picture.width}x{picture.height} pixels"
            )


def require_room(config: PreTrainedConfig, length: int, new: int) -> None:
    """Raise a ValueError unless a prompt of this length and its answer fit the model's context."""
    if new < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, got {new}")
    context = config.get_text_config().max_position_embeddings
    if length + new > context:
        raise ValueError(
            f"the prompt with its image tokens is {length} tokens long and the answer up to "
            f"{new}; expected at most {context} together, the model's context"
        )


def without_ending(
    generated: Int[torch.Tensor, " token"], config: GenerationConfig
) -> Int[torch.Tensor, " kept"]:
    """The generated tokens before the one that closes the answer."""
    ending = config.eos_token_id
    ending = [ending] if isinstance(ending, int) else ending or []
    closing = torch.isin(generated, torch.tensor(ending, device=generated.device))
    return generated[: int(closing.int().argmax())] if closing.any() else generated
