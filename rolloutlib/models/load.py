"""Load a checkpoint, and add a LoRA adapter to it."""

import textwrap
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.utils import cached_file

from rolloutlib.extras import needs
from rolloutlib.models.families import FAMILIES
from rolloutlib.models.multimodal import MultimodalModel

FILES = ("adapter_config.json", "adapter_model.safetensors")


def load_adapter(model: PreTrainedModel, adapter_id: str | Path) -> torch.nn.Module:
    """Add a LoRA adapter to the model, by a folder's path or a Hugging Face id.

    The result is PEFT's model around the given one. Only safetensors are read;
    `disable_adapter()` switches the adapter off.

    Raises FileNotFoundError if the adapter or its safetensors are unavailable, ValueError for an
    adapter that is not LoRA, for one that changes the model's own weights, because without it the
    model would not be the base model, and for one that was made for another model: if its class, a
    layer's name or a weight's shape does not fit. ImportError without PEFT.
    """
    with needs("lora"):
        from peft import PeftConfig, PeftModel, PeftType
    adapter_id = str(adapter_id)
    try:
        folder, _ = (Path(cached_file(adapter_id, name)).parent for name in FILES)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot load the adapter {adapter_id}: expected a folder or Hugging Face id with "
            f"{' and '.join(FILES)} (pickled weights are refused). transformers says: {error}"
        ) from error
    try:
        config = PeftConfig.from_pretrained(folder)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        file = folder / FILES[0]
        raise ValueError(f"{file}: expected PEFT's settings, got {error!r}") from error

    def misfit(why: str) -> ValueError:
        return ValueError(
            f"expected an adapter for {model.name_or_path} ({type(model).__name__}), got "
            f"{adapter_id}, made for {config.base_model_name_or_path}: {textwrap.shorten(why, 400)}"
        )

    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"expected a LoRA adapter, got {kind} in {adapter_id}")
    made_for = (config.auto_mapping or {}).get("base_model_class", type(model).__name__)
    if made_for != type(model).__name__:
        raise misfit(f"it was made for a {made_for}")
    own = dict(model.named_parameters())
    sums = {name: _sum(weight) for name, weight in own.items()}
    try:
        adapted = PeftModel.from_pretrained(model, folder)
        # Load it again to see what the first call only warns about or ignores.
        result = adapted.load_adapter(folder, "default")
    except (RuntimeError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise misfit(f"PEFT says: {error}") from error
    if result.missing_keys or result.unexpected_keys:
        what = "has no" if result.missing_keys else "also has"
        names = result.missing_keys or result.unexpected_keys
        raise misfit(f"it {what} {', '.join(names)}")
    changed = [name for name, weight in own.items() if _sum(weight) != sums[name]]
    if changed:
        how = f"bias={config.bias!r}, init_lora_weights={config.init_lora_weights!r}"
        raise ValueError(
            "expected a LoRA adapter beside the base model's own weights, got one that changes "
            f"{', '.join(changed[:3])} in {adapter_id} ({how}): without it, the model would not be "
            "the base model (PEFT converts PiSSA and OLoRA, see "
            "path_initial_model_for_weight_conversion)"
        )
    return adapted.eval()


def _sum(weight: torch.Tensor) -> float | None:
    """The sum of all entries, to tell whether any was changed; None for weights not in memory."""
    return None if weight.is_meta else weight.detach().sum(dtype=torch.float64).item()


def load_model(
    name_or_path: str | Path,
    *,
    revision: str = "main",
    dtype: str | torch.dtype = "auto",
    device_map: str | dict | None = None,
    adapter_id: str | Path = "",
) -> MultimodalModel:
    """Load a checkpoint by a folder's path or a Hugging Face id, ready for questions.

    revision, dtype, device_map: as in transformers. Only safetensors are read, and a checkpoint's
    own code is never run.  adapter_id: a LoRA adapter to add, by path or id.

    Raises ValueError for a family that the package does not know and for an adapter that was made
    for another model; FileNotFoundError if a folder, a download or its safetensors are
    unavailable.
    """
    source, how = str(name_or_path), {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **how)
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"expected a checkpoint of {', '.join(FAMILIES)}, got model_type "
                f"{config.model_type!r} in {source}"
            )
        processor = AutoProcessor.from_pretrained(source, **how)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, device_map=device_map, use_safetensors=True, **how
        )
    except (OSError, SafetensorError) as error:
        raise FileNotFoundError(
            f"cannot load the checkpoint {source}: expected a folder or Hugging Face id with "
            "config, processor and safetensors weights (pickled weights are refused). Without a "
            "network use a folder, such as the default data/checkpoints/tiny-llava. "
            f"transformers says: {error}"
        ) from error
    model = load_adapter(model, adapter_id) if str(adapter_id) else model
    return MultimodalModel(model.eval(), processor, FAMILIES[config.model_type])
