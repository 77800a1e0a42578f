"""Load a checkpoint, and add a LoRA adapter to it."""

import json
import textwrap
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from rolloutlib.extras import needs
from rolloutlib.models.asked import Asked
from rolloutlib.models.families import FAMILIES
from rolloutlib.models.limits import set_limits
from rolloutlib.models.multimodal import MultimodalModel
from rolloutlib.models.owners import Reached, stop
from rolloutlib.models.prompts import require_room

FILES = ("adapter_config.json", "adapter_model.safetensors")
# Where a checkpoint may name the files of its weights, and which of our arguments say where it is.
NAMING = {"config.json": "transformers_weights", "model.safetensors.index.json": "weight_map"}
HUB = {"revision", "local_files_only"}
LONGEST = 1_000_000  # bytes of an adapter's configuration; PEFT writes one or two thousand
REFUSED = {"layer_replication", "megatron_config"}  # copies of layers, and modules to import


def load_pretrained(kind: type, source: str | Path, **how):
    """What a class of transformers, such as `AutoModel`, loads from a path or Hugging Face id.

    All of the package and its notebooks load here: a checkpoint's own code is never run, and
    weights are read from safetensors only.  how: as in `from_pretrained`.

    Raises FileNotFoundError if the files are unavailable, broken or pickled.
    """
    how["trust_remote_code"] = False
    try:
        if issubclass(kind, PreTrainedModel) or kind.__name__.startswith("AutoModel"):
            how["use_safetensors"] = True
            require_safetensors(str(source), **{name: how[name] for name in HUB & how.keys()})
        loaded = kind.from_pretrained(source, **how)
        return with_own_tokenizer(loaded, source, **how) if kind is AutoProcessor else loaded
    except Exception as error:  # transformers trusts the names and types of what it reads
        if type(error) is ValueError or isinstance(error, ImportError):
            raise  # its own words
        raise FileNotFoundError(
            f"cannot load the checkpoint {source}: expected a folder or Hugging Face id with "
            "config, processor and safetensors weights (pickled weights are refused). Without a "
            "network use a folder, such as the default data/checkpoints/tiny-llava. "
            f"transformers says: {error}"
        ) from error


def with_own_tokenizer(processor: ProcessorMixin, source: str | Path, **how) -> ProcessorMixin:
    """The processor with the tokenizer that its checkpoint names, if that is the general class.

    For some types of models, Qwen3.5 among them, transformers takes only the vocabulary of
    tokenizer.json, and splits words by the rules of that type, whatever the checkpoint says.
    """
    named = get_tokenizer_config(source, **how).get("tokenizer_class")
    if named == "TokenizersBackend" and type(processor.tokenizer).__name__ != named:
        processor.tokenizer = load_pretrained(PreTrainedTokenizerFast, source, **how)
    return processor


def require_safetensors(source: str, **hub) -> None:
    """Raise an OSError if a checkpoint names files of another kind as its weights, or has an
    adapter in its folder, which transformers would add unasked and unchecked.
    """
    with suppress(OSError):
        if cached_file(source, FILES[0], **hub):
            raise ValueError(
                f"expected a checkpoint without an adapter, got {FILES[0]} in {source}: it belongs "
                "in a folder of its own, as adapter_id"
            )
    for name, key in NAMING.items():
        try:
            content = json.loads(Path(cached_file(source, name, **hub)).read_text("utf-8"))
        except OSError:
            continue  # there is none, or transformers says why it cannot be read
        named = content.get(key) or {}
        for file in [named] if isinstance(named, str) else named.values():
            if not file.endswith(".safetensors"):
                raise OSError(f"{name} names {file} as weights, expected safetensors")


def require_adapter(config: Path, weights: Path) -> None:
    """Raise a ValueError if an adapter's files are malformed, or ask for what they do not hold.

    PEFT makes room for all that the configuration asks for, before it reads the weights.
    """
    size = config.stat().st_size
    if size > LONGEST:
        raise ValueError(f"expected at most {LONGEST} bytes in {config}, got {size}")
    try:
        asked = json.loads(config.read_text("utf-8"))
        ranks = [asked.get("r", 1), *(asked.get("rank_pattern") or {}).values()]
        ranks = ranks if asked.get("peft_type") == "LORA" else []  # others are refused by name
        with safe_open(weights, "pt") as file:
            largest = max(max(file.get_slice(name).get_shape()) for name in file.keys())
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {config}, line {error.lineno}: {error.msg}") from error
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {weights}: {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected the settings of an adapter in {config}: {error}") from error
    if not all(isinstance(rank, int) and 1 <= rank <= largest for rank in ranks):
        raise ValueError(
            f"expected ranks in [1, {largest}], as in its weights, got {ranks} in {config}"
        )
    for name in REFUSED & asked.keys():
        if asked[name]:
            raise ValueError(f"expected an adapter without {name}, got {asked[name]!r} in {config}")


def load_adapter(model: PreTrainedModel, adapter_id: str | Path) -> torch.nn.Module:
    """Add a LoRA adapter to the model, by a folder's path or a Hugging Face id.

    The result is PEFT's model around the given one. Only safetensors are read;
    `disable_adapter()` switches the adapter off.

    Raises FileNotFoundError if the adapter or its safetensors are unavailable, ValueError for
    malformed files, for an adapter that is not LoRA, for one that changes the model's own weights,
    because without it the model would not be the base model, and for one that was made for another
    model: if its class, a layer's name or a weight's shape does not fit. ImportError without PEFT.
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
    require_adapter(folder / FILES[0], folder / FILES[1])

    def misfit(why: str) -> ValueError:
        return ValueError(
            f"expected an adapter for {model.name_or_path} ({type(model).__name__}), got "
            f"{adapter_id}, made for {config.base_model_name_or_path}: {textwrap.shorten(why, 400)}"
        )

    try:
        config = PeftConfig.from_pretrained(folder)
    except Exception as error:  # PEFT trusts the names and types of what it reads
        raise ValueError(f"cannot read {folder / FILES[0]}: {error!r}") from error
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
    except Exception as error:
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
    max_pixels: int = 0,
    min_pixels: int = 0,
    families: Collection[str] = (),
) -> MultimodalModel:
    """Load a checkpoint by a folder's path or a Hugging Face id, ready for questions.

    Takes every image-text model of transformers. LLaVA, Fuyu and Qwen3-VL have a file of their own
    in `families`; where image tokens lie is asked of all others (`Asked`).

    revision, dtype, device_map: as in transformers. Only safetensors are read, and a checkpoint's
    own code is never run.  adapter_id: a LoRA adapter to add, by path or id.
    max_pixels, min_pixels: to what size the processor reduces and enlarges pictures; 0 leaves the
    checkpoint's own limits.  families: the `model_type` of what the caller is written for, such as
    "llava"; any, if empty.

    A blank picture goes through the processor and the vision tower, so that what does not fit is
    found here.

    Raises ValueError for a model that takes no pictures and text or is of none of the families,
    for a processor that does not fit the model or has no such limits, and for an adapter that is
    malformed or was made for another model; FileNotFoundError if a folder, a download or its
    safetensors are unavailable.
    """
    source, how = str(name_or_path), {"revision": revision}
    config = load_pretrained(AutoConfig, source, **how)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            "expected a checkpoint of an image-text model of transformers, got model_type "
            f"{config.model_type!r} in {source}"
        )
    if families and config.model_type not in families:
        raise ValueError(
            f"expected a checkpoint of model_type {' or '.join(families)}, got {config.model_type} "
            f"in {source}; the notebook 10_any_model takes every image-text model of transformers"
        )
    processor = load_pretrained(AutoProcessor, source, **how)
    set_limits(processor, max_pixels=max_pixels, min_pixels=min_pixels)
    how |= {"dtype": dtype, "device_map": device_map}
    model = load_pretrained(AutoModelForImageTextToText, source, **how).eval()
    family = FAMILIES.get(config.model_type) or Asked.of(config.model_type, processor)
    loaded = MultimodalModel(model, processor, family)
    require_fit(loaded, source)
    return replace(loaded, model=load_adapter(model, adapter_id)) if str(adapter_id) else loaded


def require_fit(loaded: MultimodalModel, source: str) -> None:
    """Raise a ValueError unless the processor and the model agree on the tokens of a picture."""
    expected, processor = loaded.family.processor, loaded.processor
    if not isinstance(processor, expected):
        raise ValueError(
            f"expected a {expected.__name__} in {source}, got {type(processor).__name__}"
        )
    if getattr(processor, "patch_size", 0) is None:
        raise ValueError(f"expected patch_size in the processor's settings in {source}, got none")
    blank = [Image.new("RGB", (96, 64))]
    try:
        inputs = loaded.prepare(blank, "?")
        loaded.placed(blank, inputs)
        require_room(loaded.model.config, inputs["input_ids"].shape[1], 1)
        decoder = loaded.model.get_decoder()
        with torch.no_grad(), decoder.register_forward_pre_hook(stop), suppress(Reached):
            loaded.model(**inputs)
    except Exception as error:
        raise ValueError(
            f"the processor in {source} does not fit its model: {textwrap.shorten(str(error), 400)}"
        ) from error
