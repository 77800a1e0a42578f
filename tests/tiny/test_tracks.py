"""Clips of balls whose colours, places and hidden frames are known."""

import numpy as np
import pytest
import torch

from rolloutlib.tiny.tracks import PALETTE, SIZE, make_tracks


@pytest.fixture(scope="module")
def tracks():
    return make_tracks([5, 5], clips=20)


def test_the_same_seed_gives_the_same_clips():
    one, same, other = make_tracks(3, 2), make_tracks(3, 2), make_tracks(4, 2)
    assert torch.equal(one.pictures, same.pictures)
    assert not torch.equal(one.pictures, other.pictures)


def test_every_ball_is_hidden_for_one_stretch(tracks):
    hidden = (~tracks.visible).transpose(1, 2).flatten(0, 1).int()
    length = hidden.sum(1)
    assert length.min() >= 3 and length.max() <= 8
    changes = torch.diff(hidden, prepend=torch.zeros(len(hidden), 1), dim=1)
    assert (changes == 1).sum(1).eq(1).all()


def test_visible_balls_are_painted_and_hidden_ones_are_not(tracks):
    last = tracks.visible.shape[2] - 1  # painted over the others
    for clip in range(5):
        region = tracks.region(clip, last)
        np.testing.assert_array_equal(region.any((1, 2)), tracks.visible[clip, :, last])
        pictures = tracks.pictures[clip].movedim(1, -1).numpy()
        colour = PALETTE[tracks.colour[clip, last]]
        np.testing.assert_allclose(pictures[region], np.broadcast_to(colour, (region.sum(), 3)))
        frame = int(np.flatnonzero(tracks.visible[clip, :, last])[0])
        ys, xs = np.nonzero(region[frame])
        centre = tracks.centre[clip, frame, last] * torch.tensor([SIZE[1], SIZE[0]])
        np.testing.assert_allclose([xs.mean() + 0.5, ys.mean() + 0.5], centre, atol=0.6)


def test_balls_of_a_clip_differ_in_colour_and_stay_in_the_frame(tracks):
    assert tracks.pictures.shape == (20, 16, 3, *SIZE)
    assert all(len(set(clip.tolist())) == 3 for clip in tracks.colour)
    assert 0 <= tracks.colour.min() and tracks.colour.max() < len(PALETTE)
    assert 0 <= tracks.centre.min() and tracks.centre.max() <= 1
    assert 0 <= tracks.pictures.min() and tracks.pictures.max() <= 1
    moved = tracks.centre.diff(dim=1).norm(dim=-1)
    assert (moved.amax(1) > 0).all() and moved.max() < 0.2  # each runs, and none jumps


def test_observations_are_the_colour_of_visible_balls_and_noise():
    exact = make_tracks(2, 3, noise=0.0)
    expected = np.eye(len(PALETTE))[exact.colour][:, None] * exact.visible.numpy()[..., None]
    np.testing.assert_array_equal(exact.observations, expected)
    loud = make_tracks(2, 50, noise=0.3)
    quiet = make_tracks(2, 50, noise=0.0)
    noise = (loud.observations - quiet.observations).flatten()
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 0.3) < 0.01


def test_a_region_is_a_disc_by_its_definition(tracks):
    clip, ball = 4, 1
    region = tracks.region(clip, ball)
    assert region.shape == (16, *SIZE)
    for frame in range(16):
        x, y = tracks.centre[clip, frame, ball].double() * torch.tensor([SIZE[1], SIZE[0]])
        ys, xs = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
        distance = np.hypot(xs - float(x), ys - float(y))
        radius = float(tracks.radius[clip, ball])
        seen = bool(tracks.visible[clip, frame, ball])
        clear = abs(distance - radius) > 1e-3  # centres are float32
        np.testing.assert_array_equal(region[frame][clear], (seen & (distance < radius))[clear])


def test_frames_and_instances_are_as_asked():
    tracks = make_tracks(0, 2, frames=5, instances=2)
    assert tracks.visible.shape == (2, 5, 2) and tracks.radius.shape == (2, 2)
    hidden = (~tracks.visible).sum(1)
    assert hidden.min() >= 1 and hidden.max() <= 2  # a fifth to a half of five


def test_without_frames_nothing_of_them_is_left():
    tracks = make_tracks(seed=0, clips=1, frames=6)
    removed = np.zeros((2, 6), bool)
    removed[1, [0, 4]] = True
    observations, pictures = tracks.without(removed)
    assert torch.equal(observations[0], tracks.observations[0])
    assert torch.equal(pictures[0], tracks.pictures[0])
    assert not observations[1, [0, 4]].any()
    mean = tracks.pictures[0, 4].mean((1, 2), keepdim=True).expand(3, 48, 64)
    torch.testing.assert_close(pictures[1, 4], mean)
    assert torch.equal(pictures[1, 1], tracks.pictures[0, 1])
