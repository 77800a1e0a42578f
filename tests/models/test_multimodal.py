import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_fuyu import save_small_fuyu
from small_llava import WORDS, save_small_llava, small_llava, small_processor
from small_qwen3_vl import save_small_qwen3_vl
from transformers import LlavaImageProcessor

from rolloutlib import heatmaps, load_model, rollout, rollout_rows
from rolloutlib.models import WholePrompt
from rolloutlib.recording.gradients import weigh_by_gradient

QUESTION = "what colour is the star ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_llava(tmp_path_factory.mktemp("checkpoints") / "small-llava")


@pytest.fixture(scope="module")
def llava(folder):
    return load_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))


@pytest.fixture(scope="module")
def answer(llava, picture):
    return llava.generate(picture, QUESTION, max_new_tokens=4, min_new_tokens=4)


def test_an_answer_says_where_everything_stands(llava, answer):
    assert len(answer.tokens) == 4 and answer.text == " ".join(answer.tokens)
    length = answer.inputs["input_ids"].shape[1]
    assert answer.rows.tolist() == list(range(length - 1, length + 3))
    assert answer.image.view.grid == (4, 4) and answer.image.view.picture == (60, 90)
    ids = answer.sequence[answer.image.positions]
    assert (ids == WORDS.index("<image>")).all() and len(ids) == 16


def test_rows_predict_their_tokens(llava, answer):
    with torch.no_grad():
        logits = llava.model(
            **(dict(answer.inputs) | {"input_ids": answer.sequence[None], "attention_mask": None})
        ).logits[0]
    logits[:, WORDS.index("</s>")] = -torch.inf  # generation was told not to end
    predicted = logits[answer.rows].argmax(-1)
    assert predicted.tolist() == answer.sequence[-4:].tolist()


def test_a_recorded_answer_rolls_out(llava, answer):
    recording = llava.record(answer)
    relevance = rollout_rows(recording["language"], answer.rows)
    whole = rollout(recording["language"])
    torch.testing.assert_close(relevance, whole[:, answer.rows])
    torch.testing.assert_close(relevance.sum(-1), torch.ones(1, 4))
    heatmaps = answer.image.heatmaps(relevance[0])
    assert heatmaps.shape == (4, 4, 4)
    positions = answer.image.positions
    torch.testing.assert_close(heatmaps[2].flatten(), relevance[0, 2, positions])
    assert len(recording["vision"]) == 3


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "implementation"), [("bfloat16", "eager"), ("float16", "sdpa")])
def test_sharp_attention_in_half_precision_is_no_error(tmp_path, picture, dtype, implementation):
    """Eager attention rounds its scores: those of a hundred are off by a half in bfloat16."""
    model = load_model(save_small_llava(tmp_path), dtype=dtype)
    model.model.set_attn_implementation(implementation)
    for name, weight in model.model.named_parameters():
        if "q_proj.weight" in name or "k_proj.weight" in name:
            weight.mul_(6)
    answer = model.generate(picture, QUESTION, max_new_tokens=2, min_new_tokens=2, record=True)
    maps = heatmaps(answer.recording, answer)
    assert maps.shape[0] == 2 and maps.isfinite().all() and (maps >= 0).all()


@pytest.mark.parametrize(
    "generation",
    [
        {"max_new_tokens": 1},
        {},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["one token", "several", "beams", "fixed cache", "guessed tokens"],
)
@pytest.mark.parametrize("save", [save_small_llava, save_small_fuyu, save_small_qwen3_vl])
def test_recorded_while_generating_is_as_replayed(save, tmp_path, picture, generation):
    model = load_model(save(tmp_path / "model"), dtype="float32")
    generation = {"max_new_tokens": 6} | generation
    generation["min_new_tokens"] = generation["max_new_tokens"]
    answer = model.generate(picture, QUESTION, record=True, **generation)
    assert model.record(answer) is answer.recording
    replayed = model.record(replace(answer, recording=None))
    for to_patches in (True, False):
        torch.testing.assert_close(
            heatmaps(answer.recording, answer, to_patches=to_patches),
            heatmaps(replayed, answer, to_patches=to_patches),
            atol=1e-6,
            rtol=1e-5,
        )
    plain = model.generate(picture, QUESTION, **generation)
    assert plain.text == answer.text and plain.recording is None


@pytest.mark.parametrize("save", [save_small_llava, save_small_fuyu, save_small_qwen3_vl])
def test_log_probabilities_are_those_of_generation(save, tmp_path, picture):
    """For its own picture and for another one, in one batch, for every family."""
    model = load_model(save(tmp_path), dtype="float32")
    inputs = model.prepare([picture], QUESTION)
    made = model.model.generate(
        **inputs,
        max_new_tokens=3,
        min_new_tokens=3,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer = model.answer([picture], QUESTION, inputs, made.sequences)
    steps = torch.cat(made.logits)[: len(answer.tokens)].log_softmax(-1)
    expected = steps.gather(-1, answer.sequence[-len(answer.tokens) :, None]).sum()
    own, other = model.log_probability(answer, [picture, picture.rotate(180)])
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)
    [alone] = model.log_probability(answer, [picture.rotate(180)])
    torch.testing.assert_close(other, alone, atol=1e-4, rtol=0)
    assert abs(other - own) > 1e-4


def test_gradients_come_with_the_logits_of_the_answer(llava, answer, picture):
    recording, logits = llava.record_gradients(answer)
    [own] = llava.log_probability(answer, [picture])
    assert logits.shape == (4,) and logits.requires_grad
    assert own < 0
    layers = weigh_by_gradient(recording["language"], logits[1])
    assert (layers[-1].weights[0, answer.rows[1]] > 0).any()
    last_but_one = answer.rows[2]
    assert (layers[-1].weights[0, last_but_one] == 0).all()  # a later row does not affect it


def test_two_pictures_in_one_prompt(llava, picture):
    other = picture.resize((40, 200))
    answer = llava.generate(
        [picture, other], WholePrompt("<image> <image> what colour ?"), max_new_tokens=2
    )
    assert [image.view.picture for image in answer.images] == [(60, 90), (200, 40)]
    first, second = (image.positions for image in answer.images)
    assert len(first) == len(second) == 16 and first.max() < second.min()
    with pytest.raises(ValueError, match="one picture in the prompt, got 2"):
        answer.image  # noqa: B018


def test_the_closing_token_is_no_part_of_the_answer(llava, picture):
    inputs = llava.prepare([picture], QUESTION)
    ids = inputs["input_ids"][0]
    ending = torch.tensor([WORDS.index(word) for word in ("red", "</s>", "<pad>")])
    answer = llava.answer([picture], QUESTION, inputs, torch.cat([ids, ending])[None])
    assert answer.tokens == ["red"] and answer.rows.tolist() == [len(ids) - 1]


def test_the_text_of_an_answer_has_no_special_tokens(llava, picture):
    inputs = llava.prepare([picture], QUESTION)
    ending = torch.tensor([WORDS.index(word) for word in ("red", "<pad>", "star")])
    sequence = torch.cat([inputs["input_ids"][0], ending])[None]
    answer = llava.answer([picture], QUESTION, inputs, sequence)
    assert answer.tokens == ["red", "<pad>", "star"] and answer.text == "red star"


def test_a_chat_template_is_used_where_there_is_one(folder, tmp_path, picture):
    copy = shutil.copytree(folder, tmp_path / "with-template")
    template = (
        "{% for part in messages[0].content %}"
        "{% if part.type == 'image' %}<image> {% else %}colour {{ part.text }}{% endif %}"
        "{% endfor %}"
    )
    (copy / "chat_template.jinja").write_text(template)
    llava = load_model(copy, dtype="float32")
    ids = llava.prepare([picture], "star ?")["input_ids"][0].tolist()
    assert [WORDS[i] for i in ids if i != WORDS.index("<image>")] == ["colour", "star", "?"]


def test_a_folder_of_the_7b_shape_loads(tmp_path, picture):
    model = small_llava(
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
        },
        text={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 1,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
        },
        dtype=torch.bfloat16,
    )
    model.save_pretrained(tmp_path, max_shard_size="200MB")
    small_processor().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    del model
    llava = load_model(tmp_path)
    answer = llava.generate(picture, QUESTION, max_new_tokens=1, min_new_tokens=1)
    relevance = rollout_rows(llava.record(answer)["language"], answer.rows)
    torch.testing.assert_close(relevance.sum(-1), torch.ones(1, 1))


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_every_selection_of_features_finds_its_grid(tmp_path, picture, strategy):
    model = small_llava()
    model.config.vision_feature_select_strategy = strategy
    model.save_pretrained(tmp_path)
    processor = small_processor()
    processor.vision_feature_select_strategy = strategy
    processor.save_pretrained(tmp_path)
    llava = load_model(tmp_path, dtype="float32")
    answer = llava.generate(picture, QUESTION, max_new_tokens=1, min_new_tokens=1)
    image_ids = (answer.sequence == WORDS.index("<image>")).nonzero().flatten()
    assert len(image_ids) == (16 if strategy == "default" else 17)
    torch.testing.assert_close(answer.image.positions, image_ids[-16:])


def test_a_processor_that_pads_to_a_square_loads(tmp_path, picture):
    small_llava().save_pretrained(tmp_path)
    settings = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    padding = LlavaImageProcessor(do_pad=True, **settings)
    small_processor(image_processor=padding).save_pretrained(tmp_path)
    answer = load_model(tmp_path, dtype="float32").generate(
        picture, QUESTION, max_new_tokens=1, min_new_tokens=1
    )
    boxes = answer.image.view.boxes()
    np.testing.assert_allclose(boxes.min(0)[:2], [0, -15])
    np.testing.assert_allclose(boxes.max(0)[2:], [90, 75])


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "message"),
    [
        (WholePrompt("USER: <image> <image> what ?"), 2, "image"),
        ("what ? " * 1010, 2, "at most 1024 together"),
        (QUESTION, 2000, "at most 1024 together"),
        (QUESTION, 0, "max_new_tokens must be 1 or more, got 0"),
    ],
)
def test_a_prompt_without_room_is_named(llava, picture, prompt, new_tokens, message):
    with pytest.raises(ValueError, match=message):
        llava.generate(picture, prompt, max_new_tokens=new_tokens)


def test_a_template_without_an_image_token_is_named(folder, tmp_path, picture):
    copy = shutil.copytree(folder, tmp_path / "without-image")
    (copy / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    with pytest.raises(ValueError, match="0 <image> tokens and 1 images"):
        load_model(copy, dtype="float32").generate(picture, QUESTION)


def test_nothing_generated_is_an_error(llava, picture):
    ending = {"bad_words_ids": None, "forced_eos_token_id": WORDS.index("</s>")}
    with pytest.raises(ValueError, match="at least one generated token, got none"):
        llava.generate(picture, QUESTION, max_new_tokens=1, **ending)


def test_several_sequences_are_refused(llava, picture):
    with pytest.raises(ValueError, match="one generated sequence, got 2"):
        llava.generate(picture, QUESTION, max_new_tokens=2, num_beams=2, num_return_sequences=2)


@pytest.mark.parametrize("save", [save_small_llava, save_small_fuyu, save_small_qwen3_vl])
@pytest.mark.parametrize("size", [(3000, 1), (1, 10_000), (12_010, 60)])
def test_an_elongated_picture_is_refused_before_it_is_resized(save, size, tmp_path, monkeypatch):
    model = load_model(save(tmp_path), dtype="float32")
    monkeypatch.setattr(type(model.model), "generate", None)
    with pytest.raises(ValueError, match=f"200 times as long as wide, got {size[0]}x{size[1]}"):
        model.generate(Image.new("RGB", size), QUESTION)


@pytest.mark.parametrize("save", [save_small_llava, save_small_fuyu, save_small_qwen3_vl])
@pytest.mark.parametrize("size", [(6000, 33), (33, 6000)])
def test_a_long_picture_is_answered(save, size, tmp_path):
    model = load_model(save(tmp_path), dtype="float32")
    answer = model.generate(
        Image.new("RGB", size, "red"), QUESTION, max_new_tokens=1, min_new_tokens=1
    )
    assert answer.image.view.picture == size[::-1]


def test_the_model_sees_the_picture_upright_and_wide_grey_scaled(llava, answer, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    levels = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    plain = picture.convert("L").convert("RGB")
    for name, grey in {
        "16": levels,
        "12": levels // 16,
        "fractions": levels / np.float32(65535),
    }.items():
        file = io.BytesIO()
        Image.fromarray(grey).transpose(Image.Transpose.ROTATE_90).save(file, "TIFF", exif=exif)
        [given, expected] = (llava.prepare([p], QUESTION) for p in (Image.open(file), plain))
        difference = given["pixel_values"] - expected["pixel_values"]
        assert difference.abs().max() < 0.03, name


def test_no_picture_is_named(llava):
    with pytest.raises(ValueError, match="expected at least one picture, got none"):
        llava.generate([], QUESTION)


@pytest.mark.parametrize("save", [save_small_llava, save_small_fuyu, save_small_qwen3_vl])
def test_a_generated_image_token_is_refused_by_name(save, tmp_path, picture):
    model = load_model(save(tmp_path), dtype="float32")
    token = model.model.config.image_token_id
    inputs = model.prepare([picture], QUESTION)
    sequence = torch.cat([inputs["input_ids"], torch.tensor([[5, token, 5]])], 1)
    with pytest.raises(ValueError, match=f"got the image token {token} as generated token 1"):
        model.answer([picture], QUESTION, inputs, sequence)


def test_a_generated_video_token_is_refused_by_name(tmp_path, picture):
    qwen = load_model(save_small_qwen3_vl(tmp_path), dtype="float32")
    inputs = qwen.prepare([picture], QUESTION)
    token = qwen.model.config.video_token_id
    sequence = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
    with pytest.raises(ValueError, match=rf"suppress_tokens=\[{token}\]"):
        qwen.answer([picture], QUESTION, inputs, sequence)


def test_what_cannot_be_placed_is_refused_before_it_is_generated(llava, picture, monkeypatch):
    monkeypatch.setattr(llava.processor, "num_additional_image_tokens", 2)
    monkeypatch.setattr(type(llava.model), "generate", lambda *_, **__: pytest.fail("it began"))
    monkeypatch.setattr(llava.processor, "vision_feature_select_strategy", "default")
    monkeypatch.setattr(llava.model.config, "vision_feature_layer", [-2, -1])
    with pytest.raises(ValueError, match="expected one vision_feature_layer"):
        llava.generate(picture, QUESTION)


def test_words_are_whole_characters_and_know_their_tokens(tmp_path, picture):
    qwen = load_model(save_small_qwen3_vl(tmp_path), dtype="float32")  # a token is a byte
    inputs = qwen.prepare([picture], QUESTION)
    ids = qwen.processor.tokenizer("ein Stern 😀 é", return_tensors="pt")["input_ids"]
    answer = qwen.answer([picture], QUESTION, inputs, torch.cat([inputs["input_ids"], ids], 1))
    assert answer.words == ["ein", " Stern", " 😀", " é"]
    assert [word.tokens for word in answer.words[2:]] == [[9, 10, 11, 12, 13], [14, 15, 16]]
    assert "".join(answer.words) == answer.text and len(answer.tokens) == 17
