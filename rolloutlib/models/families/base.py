"""What the package has to know about a model family."""

from typing import ClassVar, Protocol, runtime_checkable

from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from rolloutlib.grid import Patches, View


@runtime_checkable
class Family(Protocol):
    """A model family: everything that differs from one to the next."""

    model_type: ClassVar[str]  # as in a checkpoint's config.json
    processor: ClassVar[type[ProcessorMixin]]  # the class whose settings `views` reads
    prompt_template: ClassVar[str]  # for checkpoints without a chat template; {prompt} is the text
    # What the processor writes beside the tokenizer's special tokens, and a question must not.
    signs: ClassVar[tuple[str, ...]]

    def views(
        self, processor: ProcessorMixin, inputs: BatchFeature, pictures: list[Image.Image]
    ) -> list[View]:
        """What the model saw of each picture, as reported by the processor, never guessed.

        For a video, `pictures` are its frames, and there is one view.
        """

    def patches(
        self, config: PreTrainedConfig, processor: ProcessorMixin, views: list[View]
    ) -> list[Patches] | list[None]:
        """The patches of the vision tower behind each view; None if there is no tower."""
