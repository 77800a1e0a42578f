"""Through the real processor: every image token's rectangle on the original picture."""

import numpy as np
import pytest
from PIL import Image
from small_llava import small_llava, small_processor
from transformers import CLIPImageProcessor, LlavaImageProcessor

from rolloutlib.files.pictures import load_picture
from rolloutlib.models.families import FAMILIES
from rolloutlib.overlay import to_picture

SIZES = [(336, 336), (200, 500), (500, 200), (31, 20), (20, 31), (100, 1000), (4000, 6000)]


def ramp(height, width):
    """A picture that carries its own coordinates: red grows to the right, green downwards."""
    x = np.broadcast_to(np.linspace(0, 255, width, dtype=np.float32), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height, dtype=np.float32)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, x * 0], -1).round().astype(np.uint8))


def seen_by_tokens(processor, picture, view):
    """The mean red and green of each token's patch of the model's input, 0 to 255."""
    settings = processor.image_processor
    pixels = processor.image_processor(picture, return_tensors="np")["pixel_values"][0]
    mean, std = (np.array(m)[:, None, None] for m in (settings.image_mean, settings.image_std))
    pixels = (pixels * std + mean) * 255
    rows, columns = view.grid
    patches = pixels[:, : rows * view.token, : columns * view.token]
    patches = patches.reshape(3, rows, view.token, columns, view.token).mean((2, 4))
    return patches[:2].reshape(2, -1).T


def view_of(processor, picture):
    inputs = processor(images=picture, text="<image> what ?", return_tensors="pt")
    return FAMILIES["llava"].views(processor, inputs, [picture])[0]


def expected_colours(view):
    """The ramp's colours at the centre of each token's box, and which boxes lie on the picture."""
    boxes = view.boxes()
    limits = np.array([view.picture[1], view.picture[0]])
    on_picture = ((boxes[:, :2] > -1e-6) & (boxes[:, 2:] < limits + 1e-6)).all(1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (centres - 0.5) / (limits - 1) * 255, on_picture


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "image_processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        LlavaImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_pad=True
        ),
        CLIPImageProcessor(size={"height": 336, "width": 336}, do_center_crop=False),
        CLIPImageProcessor(size={"shortest_edge": 300}, crop_size={"height": 336, "width": 336}),
    ],
    ids=["crop", "pad to square", "squeeze", "crop larger than the picture"],
)
def test_boxes_are_where_the_processor_took_each_patch_from(size, image_processor):
    processor = small_processor(patch=14, image_processor=image_processor)
    picture = ramp(*size)
    view = view_of(processor, picture)
    assert view.grid == (24, 24) and view.picture == size
    expected, on_picture = expected_colours(view)
    seen = seen_by_tokens(processor, picture, view)
    assert on_picture.sum() >= 24
    # Bicubic resizing moves no colour by more than a fifth of a token or two grey levels.
    pitch = 255 * 14 / np.array([view.resized[1], view.resized[0]])
    error = np.abs(seen - expected)[on_picture]
    inner = error[(np.abs(expected[on_picture] - 127.5) < 115).all(1)]
    assert (inner <= np.maximum(0.2 * pitch, 2)).all(), inner.max(0)


def test_a_wide_picture_shows_its_middle():
    view = view_of(small_processor(patch=14, image_size=336), ramp(200, 500))
    left, top = view.boxes()[:, :2].min(0)
    right, bottom = view.boxes()[:, 2:].max(0)
    np.testing.assert_allclose([left, top, right, bottom], [150, 0, 350, 200], atol=0.5)


@pytest.mark.parametrize("size", [(200, 500), (500, 200), (20, 31), (301, 300)])
@pytest.mark.parametrize("token", [0, 23, 300, 575])
def test_a_hot_token_lights_its_own_box(size, token):
    view = view_of(small_processor(patch=14, image_size=336), ramp(*size))
    heatmap = np.zeros(576)
    heatmap[token] = 1
    pixels = to_picture(heatmap.reshape(24, 24), view)
    assert pixels.shape == size
    ys, xs = np.nonzero(pixels == 1)
    left, top, right, bottom = view.boxes()[token]
    assert ((xs + 1 > left - 0.5) & (xs < right + 0.5)).all()
    assert ((ys + 1 > top - 0.5) & (ys < bottom + 0.5)).all()
    width, height = (
        min(high, side) - max(low, 0)
        for low, high, side in [(left, right, size[1]), (top, bottom, size[0])]
    )
    assert len(ys) > 0 or min(width, height) < 1  # beyond the picture, or narrower than a pixel
    assert len(ys) == 0 or abs(len(ys) - (right - left) * (bottom - top)) <= 2 * (right - left + 2)


def test_what_the_model_never_saw_is_nan():
    view = view_of(small_processor(patch=14, image_size=336), ramp(200, 500))
    pixels = to_picture(np.ones((24, 24)), view)
    assert np.isnan(pixels[:, :149]).all() and np.isnan(pixels[:, 351:]).all()
    assert (pixels[:, 151:349] == 1).all()


def test_a_patch_that_does_not_divide_the_input_leaves_a_rim():
    settings = {"size": {"height": 384, "width": 384}, "do_center_crop": False}
    processor = small_processor(patch=14, image_processor=CLIPImageProcessor(**settings))
    view = view_of(processor, ramp(384, 384))
    assert view.grid == (27, 27)
    pixels = to_picture(np.ones((27, 27)), view)
    assert np.isnan(pixels[378:]).all() and (pixels[:378, :378] == 1).all()


def saved(tmp_path, picture, name, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def rotated_by_exif(tmp_path, picture):
    """A file whose pixels are `picture` turned anticlockwise, with the note to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    return saved(tmp_path, turned, "turned.jpg", exif=exif, quality=100)


@pytest.mark.parametrize("kind", ["L", "LA", "RGBA", "P", "CMYK", "EXIF"])
@pytest.mark.parametrize("channel", [0, 1], ids=["to the right", "downwards"])
def test_every_kind_of_file_lands_on_its_boxes(tmp_path, kind, channel):
    grey = ramp(200, 500).getchannel(channel)
    if kind == "EXIF":
        path = rotated_by_exif(tmp_path, grey)
    else:
        path = saved(tmp_path, grey.convert(kind), f"ramp.{'tiff' if kind == 'CMYK' else 'png'}")
    picture = load_picture(path)
    assert picture.mode == "RGB" and picture.size == (500, 200)
    processor = small_processor(patch=14, image_size=336)
    view = view_of(processor, picture)
    expected, _ = expected_colours(view)
    seen = seen_by_tokens(processor, picture, view)
    np.testing.assert_allclose(seen[:, 0], expected[:, channel], atol=4)


def test_small_llava_has_the_tokens_that_its_view_says():
    processor = small_processor()
    inputs = processor(images=ramp(60, 90), text="<image> what ?", return_tensors="pt")
    model = small_llava()
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16
