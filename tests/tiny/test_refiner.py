import pytest
import torch
from places import DATA

from rolloutlib import record_attention
from rolloutlib.tiny.refiner import RefinerConfig, TemporalRefiner
from rolloutlib.tiny.tracks import make_tracks
from rolloutlib.video import temporal_rollout

TRAINED = DATA / "checkpoints/tiny-refiner"


@pytest.fixture(scope="module")
def tracks():
    return make_tracks([5, 5], clips=20)


def test_clips_do_not_hear_of_each_other(tracks):
    model = TemporalRefiner(RefinerConfig(depth=2)).eval()
    with torch.no_grad():
        both = model(tracks.observations[:2], tracks.pictures[:2])[-1]
        alone = model(tracks.observations[1:2], tracks.pictures[1:2])[-1]
    assert both.colour.shape == (2, 16, 3, 8) and both.centre.shape == (2, 16, 3, 2)
    torch.testing.assert_close(both.centre[1:], alone.centre, atol=1e-5, rtol=0)


def test_time_attention_is_recorded_by_clip_and_instance(tracks):
    model = TemporalRefiner(RefinerConfig(depth=2)).eval()
    with torch.no_grad(), record_attention(model) as recording:
        model(tracks.observations[:2], tracks.pictures[:2])
    with torch.no_grad(), record_attention(model) as alone:
        model(tracks.observations[1:2], tracks.pictures[1:2])
    layers = recording["time_attention"]
    assert [layer.probabilities().shape for layer in layers] == [(6, 4, 16, 16)] * 2
    torch.testing.assert_close(
        temporal_rollout(layers, 4), temporal_rollout(alone["time_attention"], 1)
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path, tracks):
    model = TemporalRefiner(RefinerConfig(depth=1, width=32)).eval()
    model.save_pretrained(tmp_path)
    loaded = TemporalRefiner.from_pretrained(tmp_path).eval()
    inputs = tracks.observations[:1], tracks.pictures[:1]
    with torch.no_grad():
        assert torch.equal(loaded(*inputs)[-1].centre, model(*inputs)[-1].centre)


def test_the_trained_refiner_draws_on_visible_frames(tracks):
    model = TemporalRefiner.from_pretrained(TRAINED).eval()
    with torch.no_grad(), record_attention(model) as recording:
        answer = model(tracks.observations, tracks.pictures)[-1]
    right = answer.colour.argmax(-1) == tracks.colour[:, None]
    assert right[~tracks.visible].float().mean() > 0.98
    gains = []
    for number, seen in enumerate(tracks.visible.transpose(1, 2).flatten(0, 1)):
        relevance = temporal_rollout(recording["time_attention"], number)[~seen]
        gains.append(relevance[:, seen].sum(-1).mean() - seen.float().mean())
    assert torch.stack(gains).mean() > 0.08


def test_the_trained_refiner_is_small():
    assert sum(file.stat().st_size for file in TRAINED.iterdir()) < 6e6
