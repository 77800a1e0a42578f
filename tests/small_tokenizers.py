"""Tokenizers of every kind, trained in a moment on a few sentences, and answers made of them."""

import json
from functools import cache

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BatchFeature,
    ByT5Tokenizer,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rolloutlib.models import Answer, MultimodalModel
from rolloutlib.models.families import FAMILIES
from rolloutlib.tiny.tokenizers import fuyu_tokenizer, scene_tokenizer, screen_tokenizer

TEXTS = [
    "the star is red, the star is blue; starred and reddish.",
    "click (412, 96) on the button, don't wait: 3.14 of 999!",
    "点击按钮 (412, 96)，然后等待。",
    "das große Mädchen öffnet das Fenster – été, naïve café",
    "ёлка красная и синяя звезда",
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<|im_end|>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def _fast(tokenizer: Tokenizer, **settings) -> PreTrainedTokenizerFast:
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    extra = {"additional_special_tokens": ["<image>", "<|im_end|>"]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names | extra | settings))


def _trained(tokenizer: Tokenizer, trainer: type, size: int, **how) -> Tokenizer:
    how = {"special_tokens": SPECIAL, "vocab_size": size, "show_progress": False} | how
    tokenizer.train_from_iterator(TEXTS * 3, trainer(**how))
    return tokenizer


def byte_level(**settings) -> PreTrainedTokenizerFast:
    """As GPT-2 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(
        _trained(tokenizer, trainers.BpeTrainer, 330, initial_alphabet=ALPHABET), **settings
    )


def byte_fallback(template: str = "<s> $A", **settings) -> PreTrainedTokenizerFast:
    """As Llama and Mistral: pieces that begin with "▁", and bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    known = list("▁abcdefghijklmnopqrstuvwxyz(),.")
    ascii_only = {"initial_alphabet": known, "limit_alphabet": len(known)}
    special = [*SPECIAL, *BYTES]
    _trained(tokenizer, trainers.BpeTrainer, 500, special_tokens=special, **ascii_only)
    # Bytes are ordinary tokens; only training needed them as special ones.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(SPECIAL)]
    return with_ends(_fast(Tokenizer.from_str(json.dumps(content)), **settings), template)


def with_ends(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """The tokenizer with what it adds to a text, such as "<s> $A </s>"."""
    numbers = [(sign, SPECIAL.index(sign)) for sign in ("<s>", "</s>")]
    ends = processors.TemplateProcessing(single=template, special_tokens=numbers)
    tokenizer.backend_tokenizer.post_processor = ends
    return tokenizer


def unigram(**settings) -> PreTrainedTokenizerFast:
    """As T5: SentencePiece's Unigram."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _fast(_trained(tokenizer, trainers.UnigramTrainer, 150, unk_token="<unk>"), **settings)


def word_piece(**settings) -> PreTrainedTokenizerFast:
    """As BERT, which tidies the spaces before punctuation when it decodes.

    Its pieces are listed: WordPieceTrainer finds other ones in every process.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    letters = sorted(set(normalizer.normalize_str("".join(TEXTS))) - {" "})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), "star", "red", "##red"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    settings = {"clean_up_tokenization_spaces": True} | settings
    return _fast(tokenizer, **settings)


def end_of_word(**settings) -> PreTrainedTokenizerFast:
    """As CLIP: the last piece of a word ends with "</w>"."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    how = {"end_of_word_suffix": "</w>"}
    return _fast(_trained(tokenizer, trainers.BpeTrainer, 160, **how), **settings)


KINDS = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "unigram": unigram,
    "word piece": word_piece,
    "end of word": end_of_word,
    "words": scene_tokenizer,
    "screens": screen_tokenizer,
    "fuyu": fuyu_tokenizer,
    "slow": ByT5Tokenizer,
}


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """One tokenizer of each kind, by its name."""
    return KINDS[kind]()


def processor_of(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> LlavaProcessor:
    """A processor with this tokenizer and chat template: 56 pixels, 4 x 4 patches."""
    sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    return LlavaProcessor(
        CLIPImageProcessor(**sizes),
        tokenizer,
        14,
        "default",
        template,
        num_additional_image_tokens=1,
    )


def answered(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Answer:
    """An answer of these tokens, after a prompt of one token."""
    return Answer(
        prompt="",
        inputs=BatchFeature(),
        sequence=torch.tensor([0, *ids]),
        tokens=[tokenizer.decode([number]) for number in ids],
        text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
        images=[],
        model=MultimodalModel(torch.nn.Identity(), processor_of(tokenizer), FAMILIES["llava"]),
    )
