"""Targets, packing and starts of the training lessons, and what a saved checkpoint answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rolloutlib.tiny import tokenizers, training, weights
from rolloutlib.tiny.patches import (
    OFFSET_UNIT,
    SILHOUETTE,
    once_half_seen,
    outline_points,
    patch_accuracy,
    patch_labels,
    patch_loss,
    prefer_objects,
    stack_labels,
)
from rolloutlib.tiny.scenes import COLOURS, SHAPES, make_scene, make_scenes

GREY = [Image.new("RGB", (300, 300), "grey")]


@pytest.fixture
def scene():
    return make_scene(np.random.default_rng(2), GREY, size=(126, 168))


# --- what each patch shows ------------------------------------------------------------------


def test_a_patch_is_labelled_with_the_object_that_covers_it(scene):
    labels = patch_labels(scene, patch=14)
    assert labels.shape.shape == (9 * 12,)
    shown = labels.on_object.reshape(9, 12)
    for row, column in np.ndindex(9, 12):
        tile = np.s_[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
        here = [thing for thing in scene.objects if thing.mask[tile].mean() > 1 / 6]
        assert bool(here) == shown[row, column]
        patch = row * 12 + column
        if here:
            assert SHAPES[labels.shape[patch]] == here[0].shape
            assert list(COLOURS)[labels.colour[patch]] == here[0].colour
            assert (labels.row[patch], labels.column[patch]) == (here[0].row, here[0].column)
        else:
            assert (labels.shape[patch], labels.colour[patch]) == (len(SHAPES), len(COLOURS))


def test_offsets_lead_to_the_middle_of_the_object(scene):
    labels = patch_labels(scene, patch=14)
    for patch in labels.on_object.nonzero()[:, 0].tolist():
        row, column = divmod(patch, 12)
        x, y = (np.array([column, row]) + 0.5) * 14 + OFFSET_UNIT * labels.offset[patch].numpy()
        thing = next(
            thing
            for thing in scene.objects
            if (thing.row, thing.column) == (labels.row[patch], labels.column[patch])
        )
        ys, xs = np.nonzero(thing.mask)
        assert abs(x - xs.mean() - 0.5) < 1e-3 and abs(y - ys.mean() - 0.5) < 1e-3


def test_silhouettes_tell_a_ring_from_a_circle():
    middle = SILHOUETTE**2 // 2
    for scene in make_scenes(0, 20, GREY, size=(168, 168)):
        labels = patch_labels(scene, patch=14)
        for patch in labels.on_object.nonzero()[:, 0].tolist():
            ring = SHAPES[labels.shape[patch]] == "ring"
            assert labels.silhouette[patch][middle] == (not ring)


def test_patches_beyond_the_picture_are_labelled_too():
    scene = make_scene(np.random.default_rng(2), GREY, size=(100, 130))
    shown = patch_labels(scene, patch=30).on_object.reshape(4, 5)
    for thing in scene.objects:
        ys, xs = np.nonzero(thing.mask)
        assert shown[int(ys.mean()) // 30, int(xs.mean()) // 30] or thing.shape == "ring"


def test_points_of_a_patch_tell_which_of_its_pixels_an_object_covers():
    scene = make_scene(np.random.default_rng(2), GREY, size=(100, 130))
    points = outline_points(scene, patch=30, across=6)
    assert points.shape == (4 * 5, 36)
    covered = np.zeros((120, 150))
    for thing in scene.objects:
        covered[:100, :130] += thing.mask
    for patch, point in np.ndindex(20, 36):
        y, x = 30 * (patch // 5) + 5 * (point // 6), 30 * (patch % 5) + 5 * (point % 6)
        tile = covered[y : y + 5, x : x + 5] > 0
        assert points[patch, point] == (tile.mean() > 0.5)
    assert points.any() and not points.all()
    with pytest.raises(ValueError, match="a multiple of 7 pixels, got 30"):
        outline_points(scene, patch=30, across=7)


def test_a_reader_in_raster_order_is_asked_once_half_of_an_object_is_read(scene):
    labels = patch_labels(scene, patch=14)
    known = once_half_seen(labels)
    for thing in scene.objects:
        patches = ((labels.row == thing.row) & (labels.column == thing.column)).nonzero()[:, 0]
        half = (len(patches) - 1) // 2  # with this one, half of them have been read
        early, late = patches[:half], patches[half:]
        assert (known.shape[early] == -100).all() and not known.on_object[early].any()
        assert (known.shape[late] == labels.shape[late]).all()
        assert (known.row[late] == thing.row).all() and (known.column[late] == thing.column).all()
    assert (known.colour == labels.colour).all()
    background = ~labels.on_object
    assert (known.shape[background] == labels.shape[background]).all()


def test_perfect_guesses_have_no_mistakes_and_hardly_a_loss(scene):
    labels = stack_labels([patch_labels(scene, patch=14)])
    sizes = {"shape": len(SHAPES) + 1, "colour": len(COLOURS) + 1, "row": 3, "column": 3}
    guesses = {
        name: 50.0 * nn.functional.one_hot(getattr(labels, name).clamp(min=0), size)
        for name, size in sizes.items()
    }
    guesses["offset"] = labels.offset
    guesses["silhouette"] = 100 * labels.silhouette - 50
    assert patch_loss(guesses, labels) < 1e-6
    assert set(patch_accuracy(guesses, labels).values()) == {1.0}


@settings(deadline=None, max_examples=30)
@given(patches=st.integers(1, 40), objects=st.integers(0, 40), seed=st.integers(0, 99))
def test_object_patches_are_kept_first_and_in_order(patches, objects, seed):
    on_object = torch.arange(40)[None] < objects
    kept = prefer_objects(on_object, patches, torch.Generator().manual_seed(seed))[0]
    assert (kept.diff() > 0).all()
    assert on_object[0, kept].sum() == min(objects, patches)


# --- starting weights -----------------------------------------------------------------------


def test_positions_are_most_like_themselves():
    table = weights.sine_cosine_positions((5, 7), 32)
    assert table.shape == (35, 32)
    assert torch.equal((table @ table.T).argmax(1), torch.arange(35))


def test_attention_starts_at_what_is_alike():
    torch.manual_seed(0)
    query, key, value, output = (nn.Linear(32, 32, bias=False) for _ in range(4))
    weights.look_for_the_same(query, key, heads=4)
    weights.copy_weakly(value, output, heads=4)
    tokens = torch.randn(10, 32)
    for head in range(4):
        rows = slice(head * 8, head * 8 + 8)
        q, k = tokens @ query.weight[rows].T, tokens @ key.weight[rows].T
        torch.testing.assert_close(q, k)
        torch.testing.assert_close(query.weight[rows] @ key.weight[rows].T, torch.eye(8))
    torch.testing.assert_close(output(value(tokens)), 0.4 * tokens)


def test_heads_that_share_a_key_start_equal_and_copy_together():
    torch.manual_seed(0)
    query, key, value = (nn.Linear(32, width, bias=False) for width in (64, 32, 32))
    output = nn.Linear(64, 32, bias=False)
    weights.look_for_the_same(query, key, heads=4)
    weights.copy_weakly(value, output, heads=4)
    queries, keys = query.weight.view(4, 2, 8, 32), key.weight.view(4, 8, 32)
    for number in range(2):
        torch.testing.assert_close(queries[:, number], keys)
    tokens = torch.randn(10, 32)
    served = value(tokens).view(10, 4, 1, 8).expand(-1, -1, 2, -1).flatten(1)
    torch.testing.assert_close(output(served), 0.4 * tokens)


# --- steps ----------------------------------------------------------------------------------


def test_training_reduces_a_loss_it_can_reduce_and_leaves_frozen_weights_alone():
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))})
    model["head"], model["frozen"] = nn.Linear(8, 1), nn.Linear(8, 8).requires_grad_(False)
    before = model["frozen"].weight.clone()
    x = torch.randn(64, 8)
    losses = training.train(
        lambda step: (model["head"](model["layers"](x)) - x[:, :1]).square().mean(),
        model,
        steps=60,
        peak=1e-1,
        title="toy",
    )
    assert len(losses) == 60 and losses[-1] < 0.1 * losses[0]
    assert torch.equal(model["frozen"].weight, before)


# --- questions packed behind one picture ----------------------------------------------------


def test_every_word_of_a_scene_is_known():
    tokenizer = tokenizers.scene_tokenizer()
    for scene in make_scenes(1, 40, GREY, size=(60, 60)):
        for question in scene.questions:
            ids = tokenizer.encode(f"USER: {question.text} ASSISTANT: {question.answer}")
            assert tokenizer.unk_token_id not in ids


def test_packed_questions_are_answered_as_if_each_were_alone(scene):
    """One pass over a pack gives the logits of separate prompts, however long the others are."""
    torch.manual_seed(0)
    tokenizer = tokenizers.scene_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config).eval()
    prefix = torch.randint(0, len(tokenizer), (1, 6))
    pack = training.pack_questions([scene.questions[:3]], tokenizer, length=14)
    places = training.packed_positions(torch.arange(6)[None], 6, pack)
    with torch.no_grad():
        packed = model(
            input_ids=torch.cat([prefix, pack.ids.flatten(1)], 1),
            position_ids=places,
            attention_mask=training.block_mask(6, 3, 14),
        ).logits[:, 6:]
        for number, logits in enumerate(packed.unflatten(1, (3, 14))[0]):
            alone = model(input_ids=torch.cat([prefix, pack.ids[:, number]], 1)).logits[0, 6:]
            torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def test_the_answer_and_its_end_are_the_only_targets(scene):
    tokenizer = tokenizers.scene_tokenizer()
    pack = training.pack_questions([scene.questions[:4]], tokenizer, length=14)
    for number, question in enumerate(scene.questions[:4]):
        targets = pack.targets[0, number]
        answer = tokenizer.decode(targets[targets >= 0])
        assert answer == f"{question.answer} {tokenizer.eos_token}"
        first = (targets >= 0).nonzero()[0, 0]
        assert tokenizer.decode(pack.ids[0, number, : first + 1]).endswith("assistant :")


def test_an_answer_is_exact_only_to_its_last_word(scene):
    tokenizer = tokenizers.scene_tokenizer()
    pack = training.pack_questions([scene.questions[:2]], tokenizer, length=14)
    logits = nn.functional.one_hot(pack.targets.clamp(min=0), len(tokenizer)).float()
    assert training.answered_exactly(logits, pack).all()
    last = (pack.targets[0, 1] >= 0).nonzero()[-1, 0]
    logits[0, 1, last] = 0.0
    assert training.answered_exactly(logits, pack).tolist() == [[True, False]]


# --- saving ---------------------------------------------------------------------------------


def test_a_checkpoint_is_half_as_large_but_computes_as_before(tmp_path):
    tokenizer = tokenizers.scene_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config)
    folder = tmp_path / "checkpoints" / "tiny"
    folder.mkdir(parents=True)
    (folder / "stale.txt").write_text("of an earlier run")
    assert training.save_checkpoint(folder, model, tokenizer) == folder
    assert not (folder / "stale.txt").exists() and [*folder.parent.iterdir()] == [folder]
    stored = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert model.dtype == torch.float32
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.dtype == torch.float32
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].half().float())
