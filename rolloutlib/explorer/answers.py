"""Show an answer, or a clip, in the explorer."""

import html
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from PIL import Image

from rolloutlib.algorithm.arrays import Array
from rolloutlib.algorithm.attention import normalize_rows
from rolloutlib.algorithm.composition import rollout_rows
from rolloutlib.algorithm.layers import Layer, with_keys
from rolloutlib.evaluate.trust import check_peak
from rolloutlib.explorer.maps import Heatmaps, Panels
from rolloutlib.explorer.settings import MapSettings
from rolloutlib.explorer.widget import Explorer
from rolloutlib.extras import needs
from rolloutlib.grid import View
from rolloutlib.models import Answer
from rolloutlib.models.tower import SHIPPED, TOWER_RESIDUAL, beyond, even_rows, on_picture
from rolloutlib.models.words import Word, by_word, read_parts, read_words, special_ids

with needs("notebooks"):
    import ipywidgets


@dataclass(frozen=True)
class Words:
    """What can be pointed at in a prompt and its answer: every word outside pictures.

    texts: prompt first; each knows its tokens, which are numbered from 0 and leave out pictures.
    prompt: how many of them belong to the prompt.
    positions: where each token is in the sequence.
    rows: the query row behind each token: its own for a token of the prompt; for a generated token
    the row before it, which predicted it.
    """

    texts: list[Word]
    prompt: int
    positions: Int[torch.Tensor, " token"]
    rows: Int[torch.Tensor, " token"]

    def drawn(
        self, relevance: Float[torch.Tensor, "word key"]
    ) -> Float[torch.Tensor, "word other_word"]:
        """How relevant every other word is for each: the sum over its tokens."""
        on_tokens = relevance[:, self.positions.to(relevance.device)]
        return torch.stack([on_tokens[:, word.tokens].sum(-1) for word in self.texts], 1)


def explore(
    answer: Answer,
    *,
    to_patches: bool = True,
    tower_residual: float = TOWER_RESIDUAL,
    beyond_even: bool = SHIPPED["beyond_even"],
    start_layer: int = 0,
    end_layer: int | None = None,
    head_fusion: str = SHIPPED["head_fusion"],
    residual: float = SHIPPED["residual"],
    discard_ratio: float = 0.0,
    receptive_field: bool = False,
    **look,
) -> Explorer:
    """Explore where the model looked for each word of its answer, and of the question.

    Shows the language model's rollout, from `model.record(answer)`: the row that predicted each
    generated word, and the row of each word of the prompt; for one before the picture nothing in it
    is relevant. A word of several tokens has the mean of their rows. The time steps of a video are
    pictures along a time slider, each shown by its first frame. By default these are the maps of
    `heatmaps(recording, answer, residual=0.9, beyond_even=True)`, as `08_faithfulness` scores them.

    to_patches, tower_residual: carry each map through the vision tower, as `heatmaps` does.
    beyond_even: take out the order of tokens, as `heatmaps` does: on the pictures together, and
    likewise among the words. Without it, rows are scaled to sum to 1.
    start_layer to receptive_field: of the language model's rollout, as in `rollout`. Controls
    change these and `beyond_even`.  end_layer: layers from this one on are left out.
    look: initial traits of `MapView`, such as `power=2`.

    Raises ValueError for a setting out of range.
    """
    rollout = head_fusion, residual, discard_ratio, start_layer, receptive_field
    behind = to_patches and any(image.patches for image in answer.images)
    first = MapSettings(*rollout, beyond_even, behind, tower_residual)
    recording = answer.model.record(answer)
    layers, words = recording["language"][:end_layer], words_of(answer)
    pictures, views, labels = _seen(answer, to_patches)

    def panels(how: MapSettings) -> Panels:
        relevance = by_word(_relevance(layers, answer, words, how), words.texts)
        on_pictures = []
        for image in answer.images:
            maps = on_picture(recording, image, relevance, to_patches, tower_residual).cpu()
            on_pictures += [maps] if maps.ndim == 3 else maps.unbind(1)
        return {"": {"": Heatmaps(on_pictures, words.drawn(relevance).cpu())}}

    shown = {"depth": len(layers), "settings": first, "prompt": words.prompt}
    if len(answer.images) == 1 and not answer.frames:
        shown["verify"] = partial(check_peak, answer)
    look = {"labels": labels} | _tokens_of(answer, words) | look
    return Explorer(pictures, views, words.texts, panels, **shown, **look)


def explore_clip(
    frames: Sequence[Image.Image],
    view: View,
    words: Sequence[str],
    relevance: Float[Array, "word frame rows columns"],
    **look,
) -> Explorer:
    """Explore when and where each word looked in a clip: a map of every frame, along a time slider.

    words: what the rows of the relevance belong to, such as the names of the frames.
    relevance: such as `space_time_relevance` returns; it is scaled to sum to 1 over the clip.
    look: as in `Explorer`, such as `labels` of the frames; `together=False` gives each map its own
    scale, so no matrix compares the frames.
    """
    shares = normalize_rows(relevance.reshape(len(relevance), -1)).reshape(relevance.shape)
    panels = {"": {"": Heatmaps(list(shares.swapaxes(0, 1)))}}
    look = {"labels": [f"frame {number}" for number in range(len(frames))]} | look
    return Explorer(frames, [view] * len(frames), words, panels, **look)


def words_of(answer: Answer) -> Words:
    """The words of a prompt and its answer, and the query rows behind each of them."""
    outside = torch.ones(len(answer.sequence), dtype=torch.bool)
    for image in answer.images:
        outside[int(image.positions[0]) : int(image.positions[-1]) + 1] = False
    positions = outside.nonzero().flatten()
    asked = len(positions) - len(answer.tokens)
    gaps = (positions.diff() > 1).nonzero().flatten() + 1
    tokenizer, texts, first = answer.model.processor.tokenizer, [], 0
    for run in positions.tensor_split(sorted({*gaps.tolist(), asked})):  # no word spans a picture
        words = read_words(tokenizer, answer.sequence[run].tolist())
        texts += [Word(word, (first + token for token in word.tokens)) for word in words]
        first += len(run)
    prompt, rows = len(texts) - len(answer.words), torch.cat([positions[:asked], answer.rows])
    return Words(texts, prompt, positions, rows)


def compare(answers: Mapping[str, Answer | Explorer], **settings) -> ipywidgets.Box:
    """Explore answers side by side, each under its name: pointing at one points at all.

    They may be of different models or questions: what is linked is the place in the picture, and
    a word with the same number, if the question or the word is the same. Beside two of them stands
    their difference, the first minus the second; or why there is none.

    answers: by name. An explorer brings settings of its own, such as other layers, or was made
    while the model's adapter was off.  settings: of the others, as in `explore`.

    Raises ValueError for fewer than two answers.
    """
    if len(answers) < 2:
        raise ValueError(f"expected at least 2 answers, got {len(answers)}")
    shown: dict[str, ipywidgets.Widget] = {
        name: one if isinstance(one, Explorer) else explore(one, **settings)
        for name, one in answers.items()
    }
    if len(shown) == 2:
        one, other = shown
        try:
            shown[f"{one} minus {other}"] = shown[one].minus(shown[other])
        except ValueError as problem:
            shown[""] = ipywidgets.HTML(html.escape(f"There is no difference: {problem}"))
    group = secrets.token_hex(8)
    for name, widget in shown.items():
        widget.layout = ipywidgets.Layout(flex="1 1 20em", min_width="0")
        if isinstance(widget, Explorer):
            widget.maps.name, widget.maps.group = name, group
    return ipywidgets.Box([*shown.values()], layout=ipywidgets.Layout(flex_flow="row wrap"))


def _relevance(
    layers: Sequence[Layer], answer: Answer, words: Words, how: MapSettings
) -> Float[torch.Tensor, "token key"]:
    """How relevant every token is for each token outside pictures; rows sum to at most 1."""
    # A model need not have received the last token that it generated; no row attends to it.
    keys = len(answer.sequence)
    rows = with_keys(rollout_rows(layers, words.rows, **how.rollout), keys)[0]
    if not how.beyond_even:
        return normalize_rows(rows)
    even = with_keys(even_rows(layers, words.rows, **how.rollout), keys)[0]
    seen = torch.cat([words.positions[:0], *(image.positions for image in answer.images)])
    on_pictures, on_words = (beyond(rows, even, some) for some in (seen, words.positions))
    return on_pictures + on_words * (1 - on_pictures.sum(-1, keepdim=True))


def _tokens_of(answer: Answer, words: Words) -> dict[str, list]:
    """What the tokens of each word read, and which words are special tokens."""
    tokenizer = answer.model.processor.tokenizer
    ids = [answer.sequence[words.positions[word.tokens]].tolist() for word in words.texts]
    special = special_ids(tokenizer)
    return {
        "tokens": [[str(part) for part in read_parts(tokenizer, of_word)] for of_word in ids],
        "special": [number for number, of_word in enumerate(ids) if special & {*of_word}],
    }


def _seen(answer: Answer, to_patches: bool) -> tuple[list[Image.Image], list[View], list[str]]:
    """The pictures of an answer, how maps lie on them, and their names if they have any."""
    pictures, views, labels = [], [], []
    for number, image in enumerate(answer.images):
        view = image.patch_view if to_patches else image.view
        if not image.frames:
            pictures, views = [*pictures, image.picture], [*views, view]
            labels.append(f"picture {number}")
            continue
        pictures += [image.frames[start] for start in image.steps]
        views += [replace(view, grid=view.grid[-2:])] * len(image.steps)
        for start, end in pairwise([*image.steps, len(image.frames)]):
            labels.append(f"frames {start}–{end - 1}" if end > start + 1 else f"frame {start}")
    return pictures, views, labels if answer.frames else []
