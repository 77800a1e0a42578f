import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from rolloutlib import rollout_rows
from rolloutlib.explorer.controls import RolloutPanel

rng = np.random.default_rng(0)
RECORDED = {name: list(rng.dirichlet(np.ones(6), (4, 2, 6))) for name in ("where?", "what?")}


def draw(question, *, layers, **settings):
    chosen = RECORDED[question][layers[0] : layers[1] + 1]
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.bar(range(6), rollout_rows(chosen, [-1], **settings)[0])
    return figure


@pytest.fixture
def panel():
    return RolloutPanel(draw, list(RECORDED), depth=4)


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("question", "what?"),
        ("head_fusion", "max"),
        ("residual", 0.9),
        ("discard_ratio", 0.5),
        ("layers", (2, 3)),
    ],
)
def test_turning_a_control_redraws_the_figure(panel, control, value):
    before = panel.figure.value
    assert Image.open(io.BytesIO(before)).size == (300, 200)
    getattr(panel, control).value = value
    assert panel.figure.value != before


def test_turning_back_brings_the_first_figure_back(panel):
    before = panel.figure.value
    panel.residual.value = 0.1
    panel.residual.value = 0.5
    assert panel.figure.value == before


def test_a_page_without_a_kernel_gets_the_present_figure(panel):
    panel.head_fusion.value = "min"
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == panel.figure.value


def test_the_figure_is_not_left_open_to_be_shown_twice(panel):
    before = plt.get_fignums()
    panel.residual.value = 0.2
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("questions", "depth"), [([], 4), (["where?"], 0)])
def test_nothing_to_choose_from_is_named(questions, depth):
    with pytest.raises(ValueError, match="expected questions and layers, at least one"):
        RolloutPanel(draw, questions, depth)
