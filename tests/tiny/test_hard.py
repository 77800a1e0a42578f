"""Hard scenes are as hard as they say, and two-place questions have two places."""

import re

import numpy as np
import pytest
from PIL import Image

from rolloutlib.tiny.hard import HARD, make_hard_scenes, pair_questions
from rolloutlib.tiny.scenes import make_scene, make_scenes

GREY = [Image.new("RGB", (500, 400), "grey")]


@pytest.fixture(scope="module")
def scenes():
    made = make_hard_scenes(5, 80, GREY, size=(168, 168))
    return {kind: made[number :: len(HARD)] for number, kind in enumerate(HARD)}


def areas(scenes):
    return [thing.mask.mean() for scene in scenes for thing in scene.objects]


def test_a_question_names_what_makes_its_scene_hard(scenes):
    for kind, made in scenes.items():
        assert {question.kind for scene in made for question in scene.questions} == {kind}


def test_every_look_alike_shares_its_colour_or_its_outline(scenes):
    for scene in scenes["look-alikes"]:
        assert 5 <= len(scene.objects) <= 7
        for thing in scene.objects:
            others = [other for other in scene.objects if other is not thing]
            assert any(o.colour == thing.colour or o.shape == thing.shape for o in others)


def test_a_strip_hides_its_share_of_every_shape_and_is_grey():
    whole, hidden = (
        make_scene(np.random.default_rng(3), GREY, objects=(1, 1), hidden=share)
        for share in (0.0, 0.4)
    )
    gone = whole.objects[0].mask & ~hidden.objects[0].mask
    assert gone.sum() / whole.objects[0].mask.sum() == pytest.approx(0.4, abs=0.02)
    assert not (hidden.objects[0].mask & ~whole.objects[0].mask).any()
    strip = np.asarray(hidden.picture)[gone]
    assert (strip == strip[0]).all() and len({*strip[0].tolist()}) == 1
    changed = (np.asarray(whole.picture) != np.asarray(hidden.picture)).any(-1)
    ys, xs = np.nonzero(whole.objects[0].mask)
    for places, axis in ((ys, 1), (xs, 0)):  # it does not reach beyond the shape
        outer = np.flatnonzero(changed.any(axis))
        across = max(np.ptp(ys), np.ptp(xs))
        assert places.mean() - across <= outer.min() and outer.max() <= places.mean() + across


def test_small_shapes_cover_one_hundredth_of_the_picture(scenes):
    assert 0.009 < np.mean(areas(scenes["small"])) < 0.012
    assert max(areas(scenes["small"])) < 0.018


def test_the_smallest_of_many_is_asked_about(scenes):
    for scene in scenes["distractors"]:
        smallest = min((thing.mask for thing in scene.objects), key=np.sum)
        assert len(scene.objects) >= 7 and len(scene.questions) >= 4
        assert all(question.region is smallest for question in scene.questions)


def test_two_places_answer_whether_one_is_left_of_the_other():
    asked = [
        (scene, question)
        for scene in make_scenes(5, 40, GREY, size=(96, 120))
        for question in pair_questions(scene.objects)
    ]
    for scene, question in asked:
        words = re.fullmatch(r"is the (\w+ \w+) (left|right) of the (\w+ \w+)\?", question.text)
        one, other = (
            next(thing for thing in scene.objects if f"{thing.colour} {thing.shape}" == name)
            for name in words.group(1, 3)
        )
        centres = [np.nonzero(thing.mask)[1].mean() for thing in (one, other)]
        holds = (centres[0] < centres[1]) == (words[2] == "left")
        assert question.answer == ("yes" if holds else "no")
        assert question.regions[0] is one.mask and question.regions[1] is other.mask
        np.testing.assert_array_equal(question.region, one.mask | other.mask)
    answers = [question.answer for _, question in asked]
    assert answers.count("yes") == answers.count("no") > 50


def test_the_same_seed_makes_the_same_scenes_and_bad_settings_are_named():
    one, other = (make_hard_scenes(3, 4, GREY, size=(60, 90)) for _ in range(2))
    assert [s.picture.tobytes() for s in one] == [s.picture.tobytes() for s in other]
    with pytest.raises(ValueError, match="count must be 0 or more, got -1"):
        make_hard_scenes(0, -1, GREY)
    for how, message in [
        ({"hidden": 1.0}, r"hidden must be in \[0, 1\), got 1.0"),
        ({"radius": (0.2, 0.6)}, r"expected radii in \(0, 0.5\].* got \(0.2, 0.6\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_scene(np.random.default_rng(0), GREY, **how)
