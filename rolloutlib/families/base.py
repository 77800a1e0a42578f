"""What the package has to know of a model family."""

from typing import ClassVar, Protocol, runtime_checkable

from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from rolloutlib.grid import View


@runtime_checkable
class Family(Protocol):
    """A model family: everything that differs from one to the next."""

    model_type: ClassVar[str]  # as in a checkpoint's config.json
    prompt_template: ClassVar[str]  # for checkpoints without a chat template; {prompt} is the text

    def views(
        self,
        processor: ProcessorMixin,
        inputs: BatchFeature,
        pictures: list[Image.Image],
    ) -> list[View]:
        """What the model saw of each picture, asked of the processor and never assumed."""
