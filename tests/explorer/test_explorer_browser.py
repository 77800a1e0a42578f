"""The explorer in a real browser: on a page without a kernel, and in JupyterLab.

Screenshots and times are left in outputs/explorer.
"""

import base64
import json
import os
import re
import secrets
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import ipywidgets
import matplotlib as mpl
import nbformat
import numpy as np
import psutil
import pytest
from ipywidgets.embed import dependency_state
from lab_servers import address_in, free_port
from PIL import Image
from places import ROOT
from small_llava import save_small_llava
from small_notebooks import write_notebook

from rolloutlib.explorer import Explorer, Heatmaps, Mark, explore, explore_clip
from rolloutlib.grid import View
from rolloutlib.models import load_model
from rolloutlib.pages.page import WIDGET_STATE, WIDGET_VIEW, write_page

ARTIFACTS = ROOT / "outputs" / "explorer"
LARGE = {"width": 1300, "height": 1000}

LONG = 240_000  # milliseconds: a busy machine may need them to start a kernel
CELLS = [
    """import json
from pathlib import Path
import numpy as np
from PIL import Image
from rolloutlib import explore, load_model""",
    """noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
model = load_model(checkpoint_path)
question = "what colour is the star ?"
answer = model.generate(Image.fromarray(noise), question, max_new_tokens=3, min_new_tokens=3)""",
    """explorer = explore(answer, blur=0.0)
explorer.maps.observe(
    lambda _: Path("selected.json").write_text(json.dumps(explorer.selected)), "selected"
)
explorer""",
]


def pixels(page, number=0):
    """What is painted over a picture: red, green, blue, opacity."""
    script = """number => {
      const canvas = document.querySelectorAll(".rx-picture canvas")[number];
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return [canvas.height, canvas.width, btoa(String.fromCharCode(...data))];
    }"""
    height, width, data = page.evaluate(script, number)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)


def wait_until_drawn(page):
    page.wait_for_function("document.querySelector('.rx-picture img')?.complete", timeout=LONG)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def focused(page):
    return page.evaluate("document.activeElement.dataset.word")


def pinned(page):
    words = page.locator('.rx-chip[aria-pressed="true"]').all()
    return [int(word.get_attribute("data-word")) for word in words]


# A page without a kernel

rng = np.random.default_rng(1)
WORDS = ["where", "is", "it", "top", "left"]
ON_PICTURE = rng.random((5, 6, 8)) / 100
ON_WORDS = rng.random((5, 5)) / 50
# 6 x 8 tokens of 10 pixels from the middle of a wider picture.
VIEW = View((60, 120), (60, 120), (0, 20), (60, 80), 10, (6, 8))
PICTURE = Image.fromarray(rng.integers(0, 256, (60, 120, 3), dtype=np.uint8))


def five_words(**look):
    sheet = Heatmaps([ON_PICTURE], ON_WORDS)
    look = {"display": "flat"} | look
    return Explorer([PICTURE], [VIEW], WORDS, {"": {"": sheet}}, prompt=3, **look)


def page_of(explorer, folder):
    """Its page on disk, as the gallery writes the page of an executed notebook."""
    state = {"state": dependency_state([explorer], drop_defaults=False)}
    data = {WIDGET_VIEW: {"model_id": explorer.model_id}, "text/plain": "Explorer()"}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data)])
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {WIDGET_STATE: state}})
    notebook.cells += [nbformat.v4.new_markdown_cell("# Page"), cell]
    nbformat.write(notebook, folder / "page.ipynb")
    return write_page(folder / "page.ipynb")


@pytest.fixture
def show(browser, tmp_path):
    """`show(explorer)`: its page, open."""
    complaints = []

    def open_page(explorer, **how):
        page, asked, said = browser(page_of(explorer, tmp_path), viewport=LARGE, **how)
        complaints.extend([asked, said])
        wait_until_drawn(page)
        return page

    yield open_page
    # Chromium warns about reading pixels, which these tests do and the explorer does not.
    assert [text for part in complaints for text in part if "willReadFrequently" not in text] == []


def expected_colours(heatmap, power=1.0, colours="viridis"):
    """The colour of each token without blur, from the definition, not from the package."""
    scaled = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    return 255 * mpl.colormaps[colours](scaled**power)


def token_colours(page):
    painted = pixels(page)
    side = painted.shape[0] // 6
    return painted[side // 2 :: side, side // 2 :: side]


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_pinned_words_combine_to_the_colours_of_the_definition(show, combine):
    page = show(five_words(blur=0.0, power=2.0))
    page.get_by_label("pinned words").select_option(combine)
    for word in (0, 4):
        page.locator(".rx-chip").nth(word).click()
    page.mouse.move(1, 1)
    pair = ON_PICTURE[[0, 4]]
    heatmap = pair.mean(0) if combine == "mean" else pair.max(0)
    expected = expected_colours(heatmap, power=2.0)
    np.testing.assert_allclose(token_colours(page), expected, atol=4)


def test_pointing_recolours_at_once_and_leaving_brings_the_answer_back(show):
    page = show(five_words(blur=0.0))
    whole = token_colours(page)
    np.testing.assert_allclose(whole, expected_colours(ON_PICTURE[3:].mean(0)), atol=4)
    page.locator(".rx-chip").nth(1).hover()
    np.testing.assert_allclose(token_colours(page), expected_colours(ON_PICTURE[1]), atol=4)
    page.mouse.move(1, 1)
    np.testing.assert_array_equal(token_colours(page), whole)


def test_blur_is_that_of_the_package(show, tmp_path):
    explorer = five_words(blur=1.0, opacity=1.0)
    page = show(explorer)
    painted = pixels(page)[..., :3]
    saved = np.asarray(Image.open(explorer.save(tmp_path / "map.png")))[:, 20:100]
    small = Image.fromarray(painted).resize((80, 60), Image.Resampling.BOX)
    assert np.abs(np.asarray(small, float) - saved).mean() < 4


def test_controls_of_the_look_do_what_they_say(show):
    page = show(five_words(blur=0.0))
    for name in ("cividis", "magma"):
        page.get_by_label("colours").select_option(name)
        expected = expected_colours(ON_PICTURE[3:].mean(0), colours=name)
        np.testing.assert_allclose(token_colours(page), expected, atol=4)
    page.get_by_label("power").fill("2")
    expected = expected_colours(ON_PICTURE[3:].mean(0), power=2.0, colours="magma")
    np.testing.assert_allclose(token_colours(page), expected, atol=4)
    canvas = page.locator(".rx-picture canvas").first
    assert canvas.evaluate("part => part.style.opacity") == "0.8"
    page.get_by_label("opacity").fill("0.5")
    assert canvas.evaluate("part => part.style.opacity") == "0.5"
    before = pixels(page).astype(float)
    page.get_by_label("blur, in patches").fill("1")
    after = pixels(page).astype(float)
    assert np.abs(np.diff(after, axis=1)).max() < np.abs(np.diff(before, axis=1)).max() / 2


def test_the_map_fades_is_outlined_or_lies_beside_the_picture(show):
    page = show(five_words(blur=0.0, display="fading"))
    heatmap = ON_PICTURE[3:].mean(0)
    scaled = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    np.testing.assert_allclose(token_colours(page)[..., 3], 255 * scaled**0.5, atol=1)
    assert "half as opaque" in page.locator(".rx-said").inner_text()
    low, high = page.locator(".rx-scale > span").all_inner_texts()[:2]
    assert [low, high] == [f"{100 * end:.2g} %" for end in (heatmap.min(), heatmap.max())]
    page.locator("select").first.select_option("outline")
    share = """canvas => {
      const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return all.filter((value, place) => place % 4 === 3 && value).length / (all.length / 4);
    }"""
    assert 0.02 < page.locator(".rx-picture canvas").evaluate(share) < 0.8
    assert not page.locator(".rx-plain").is_visible()
    page.locator("select").first.select_option("beside")
    assert page.locator(".rx-plain").is_visible()
    page.locator("select").first.select_option("slider")
    assert not page.locator(".rx-plain").is_visible()
    kept = {}
    for share in (0.75, 1):
        page.get_by_role("slider", name="where the map begins").fill(str(share))
        over = page.locator(".rx-over").evaluate("part => getComputedStyle(part).clipPath")
        assert over == f"inset(0px 0px 0px {100 * share:g}%)"
        with page.expect_download() as saved:
            page.get_by_role("button", name="PNG").click()
        kept[share] = np.asarray(Image.open(saved.value.path()).convert("RGB"))
    changed = (kept[0.75] != kept[1]).any(-1)
    assert not changed[:, :90].any() and changed[:, 90:100].mean() > 0.9
    page.get_by_label("one scale for all words").check()
    page.mouse.move(1, 1)
    assert page.locator(".rx-scale > span").nth(1).inner_text() == f"{100 * ON_PICTURE.max():.2g} %"
    assert "one scale for all words" in page.locator(".rx-said").inner_text()


def test_special_tokens_and_long_prompts_fold_and_the_picture_is_saved(show):
    words = [f"w{number}" for number in range(60)]
    sheet = Heatmaps([rng.random((60, 6, 8)) / 100])
    tokens = [["w", word[1:]] for word in words]
    look = {"special": [0, 59], "tokens": tokens, "prompt": 55}
    page = show(Explorer([PICTURE], [VIEW], words, {"": {"": sheet}}, **look))
    assert page.locator(".rx-chip:visible").count() == 30 + 4
    assert page.locator('.rx-chip[data-word="0"]').is_hidden()
    page.locator('.rx-chip[data-word="15"]').focus()
    press(page, "ArrowRight")
    assert focused(page) == "40"
    assert page.locator('.rx-chip[data-word="40"] .rx-token').all_inner_texts() == ["w", "40"]
    page.get_by_role("button", name="special tokens").click()
    page.get_by_role("button", name="whole prompt").click()
    assert page.locator(".rx-chip:visible").count() == 60
    with page.expect_download() as saved:
        page.get_by_role("button", name="PNG").click()
    assert Image.open(saved.value.path()).size == PICTURE.size
    assert page.get_by_role("button", name="NumPy").is_disabled()


def test_explorers_of_one_group_point_together(show):
    other = Explorer([PICTURE], [VIEW], WORDS, {"": {"": Heatmaps([ON_PICTURE[::-1]])}}, group="g")
    both = ipywidgets.Box([five_words(group="g"), other])
    page = show(both)
    page.locator(".rx-chip").nth(2).hover()
    said = page.locator(".rx-readout").all_inner_texts()
    assert len(said) == 2 and all(one.startswith("“it”: ") for one in said)
    page.locator(".rx-picture").last.hover(position={"x": 200, "y": 100})
    assert page.locator(".rx-cursor:visible").count() == 2
    page.mouse.move(1, 1)
    assert page.locator(".rx-cursor:visible").count() == 0


def test_a_difference_says_and_shows_what_is_more_and_what_is_less(show, violations):
    other = Heatmaps([ON_PICTURE[::-1]], ON_WORDS)
    one = five_words(blur=0.0, display="fading", group="g")
    both = one.minus(
        Explorer([PICTURE], [VIEW], [*WORDS[:4], "right"], {"": {"": other}}, prompt=3)
    )
    both.maps.blur, both.maps.group, both.maps.name = 0.0, "g", "one minus <b>other"
    page = show(ipywidgets.Box([one, both]))
    assert page.locator("figcaption").all_inner_texts() == ["one minus <b>other"]
    page.locator(".rx-chip").nth(4).hover()  # and so the word beside it
    change = ON_PICTURE[4] - ON_PICTURE[0]
    shares = change / np.abs(change).max()
    painted, side = pixels(page, 1), pixels(page, 1).shape[0] // 6
    painted = painted[side // 2 :: side, side // 2 :: side]
    np.testing.assert_allclose(painted[..., 3], 255 * np.abs(shares) ** 0.5, atol=2)
    solid = painted[..., 3] > 100  # others lose their colour with their opacity
    colours = 255 * mpl.colormaps["RdBu_r"]((shares + 1) / 2)
    np.testing.assert_allclose(painted[solid][:, :3], colours[solid][:, :3], atol=4)
    said = page.locator(".rx-readout").last.inner_text()
    high, low = (np.unravel_index(at, (6, 8)) for at in (change.argmax(), change.argmin()))
    assert said == (
        f"“left | right”: {signed(change.sum())} of the whole is from the picture; "
        f"most more at row {high[0] + 1} of 6, column {high[1] + 1} of 8 ({signed(change[high])}), "
        f"most less at row {low[0] + 1} of 6, column {low[1] + 1} of 8 ({signed(change[low])})"
    )
    ends = page.locator(".rx-scale").last.locator("span").all_inner_texts()[:2]
    far = f"{100 * np.abs(change).max():.2g} %"
    assert ends == [f"-{far}", f"+{far}"]
    assert violations(page) == []


def signed(share):
    return f"{'+' if share >= 0 else '−'}{100 * abs(share):.1f} %"


def test_a_finger_points_pins_and_asks_the_picture(show):
    page = show(five_words(blur=0.0), has_touch=True)
    whole = token_colours(page)
    page.locator(".rx-chip").nth(1).tap()
    assert pinned(page) == [1]
    np.testing.assert_allclose(token_colours(page), expected_colours(ON_PICTURE[1]), atol=4)
    bounds = page.locator(".rx-picture").bounding_box()
    x = bounds["x"] + bounds["width"] * (20 + 6.5 * 10) / 120
    page.touchscreen.tap(x, bounds["y"] + bounds["height"] * 2.5 / 6)
    said = page.locator(".rx-readout").inner_text()
    assert said.startswith("patch in row 3 of 6, column 7 of 8, relevant for ")
    page.locator(".rx-chip").nth(1).tap()
    assert pinned(page) == []
    np.testing.assert_array_equal(token_colours(page), whole)


def test_pointing_at_the_picture_shows_for_which_words_the_patch_is_relevant(show):
    page = show(five_words())
    bounds = page.locator(".rx-picture").bounding_box()
    row, column = 2, 6
    x = bounds["x"] + bounds["width"] * (20 + (column + 0.5) * 10) / 120
    y = bounds["y"] + bounds["height"] * (row + 0.5) / 6
    page.mouse.move(x, y)
    drawn = ON_PICTURE[:, row, column]
    said = page.locator(".rx-readout").inner_text()
    assert said.startswith(
        f"patch in row 3 of 6, column 7 of 8, relevant for “{WORDS[drawn.argmax()]}”"
    )
    bars = page.locator(".rx-bar").evaluate_all("bars => bars.map(bar => bar.style.transform)")
    shares = [float(re.fullmatch(r"scaleX\((.*)\)", bar)[1]) for bar in bars]
    np.testing.assert_allclose(shares, drawn / drawn.max(), atol=2e-3)
    page.mouse.move(bounds["x"] + 3, y)  # where the model saw nothing
    assert page.locator(".rx-readout").inner_text().startswith("whole answer")


def test_keyboard_alone_reaches_words_pins_picture_and_settings(show):
    page = show(five_words())
    page.locator("summary").focus()  # of the code above the explorer
    for _ in range(3):
        press(page, "Tab")
        if page.evaluate("document.activeElement.className") == "rx-picture":
            break
    press(page, "ArrowRight", "ArrowRight")
    assert page.locator(".rx-readout").inner_text().startswith("patch in row 4 of 6, column 6 of 8")
    press(page, "Tab")
    assert focused(page) == "3"  # the first word of the answer
    press(page, "ArrowLeft", "Enter", "Home", "Space")
    assert focused(page) == "0"
    assert pinned(page) == [0, 2]
    before = pixels(page)
    press(page, "ArrowRight")
    assert (pixels(page) != before).any()
    press(page, "Escape")
    assert pinned(page) == []
    press(page, "Tab", "Tab", "Tab", "ArrowRight")
    assert page.get_by_label("power").input_value() == "1.25"


def test_a_word_says_its_relevance_to_those_who_cannot_see(show):
    page = show(five_words())
    share, (row, column) = ON_PICTURE[1].sum(), divmod(int(ON_PICTURE[1].argmax()), 8)
    label = page.locator(".rx-chip").nth(1).get_attribute("aria-label")
    place = f"row {row + 1} of 6, column {column + 1} of 8"
    most = (
        f"most, without blur, at {place} "
        f"({100 * ON_PICTURE[1].max() / share:.1f} % of what is from the picture)"
    )
    whole = (
        f"“is”, word of the prompt, {100 * share:.0f} % of the whole is from the picture, {most}"
    )
    assert label.startswith(f"{whole}; {100 * (1 - share):.0f} % is from words: ")
    assert page.locator(".rx-readout").get_attribute("role") == "status"
    toolbar = page.get_by_role("toolbar", name="answer")
    assert toolbar.get_by_role("button").count() == 2


def test_nothing_jumps_when_pointing_and_pinning(show):
    page = show(five_words())

    def places():
        script = """[...document.querySelectorAll(".rx *:not(.rx-cursor, .rx-bar)")].map(part => {
          const { x, y, width, height } = part.getBoundingClientRect();
          return [x, y, width, height];
        })"""
        return page.evaluate(script)

    before = places()
    page.locator(".rx-chip").nth(2).hover()
    assert places() == before
    page.locator(".rx-chip").nth(2).click()
    assert places() == before
    page.locator(".rx-picture").hover()
    assert places() == before


def test_sheets_and_panels_are_data(show):
    edges = Heatmaps([rng.random((1, 6, 8)) / 100], colours="cyan")
    panels = {
        name: {
            "edge detection": edges,
            "decision focus": Heatmaps([rng.random((5, 6, 8)) / 100], colours="red"),
            "click": Mark(x, 0.5),
        }
        for name, x in (("adapter on", 0.3), ("adapter off", 0.6))
    }
    page = show(Explorer([PICTURE], [VIEW], WORDS, panels, prompt=3))
    assert page.locator("figcaption").all_inner_texts() == ["adapter on", "adapter off"]
    assert page.locator(".rx-cross:visible").count() == 2
    before = [pixels(page, number) for number in range(4)]
    page.locator(".rx-chip").nth(1).hover()
    after = [pixels(page, number) for number in range(4)]
    same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True, False]  # edges are the same for all words
    assert not np.array_equal(after[1], after[3])
    page.get_by_label("click", exact=True).uncheck()
    page.get_by_label("edge detection").uncheck()
    assert page.locator(".rx-cross:visible").count() == 0
    assert page.locator(".rx-picture canvas:visible").count() == 2
    page.screenshot(path=ARTIFACTS / "panels.png")


def test_a_clip_has_time_a_film_strip_and_a_matrix(show, violations):
    relevance = rng.random((4, 4, 6, 8)) * rng.random((4, 4, 1, 1)) + 1e-3
    frames = [PICTURE.point(lambda v, k=k: v * (k + 1) // 4) for k in range(4)]
    page = show(explore_clip(frames, VIEW, ["f0", "f1", "f2", "f3"], relevance))
    shares = relevance.sum((2, 3)) / relevance.sum((1, 2, 3))[:, None]

    matrix = page.locator(".rx-matrix")
    bounds = matrix.bounding_box()
    matrix.hover(position={"x": bounds["width"] * 0.1, "y": bounds["height"] * 0.6})  # row 2
    thumbs = page.locator(".rx-thumb")
    said = [thumbs.nth(k).get_attribute("aria-label") for k in range(4)]
    rounded = [f"{100 * s:.{1 if s < 0.0995 else 0}f} %" for s in shares[2]]
    assert said == [f"frame {k}: {share}" for k, share in enumerate(rounded)]

    before = pixels(page)
    matrix.click(position={"x": bounds["width"] * 0.9, "y": bounds["height"] * 0.6})
    assert pinned(page) == [2]
    assert thumbs.nth(3).get_attribute("aria-current") == "true"
    assert (pixels(page) != before).any()
    page.get_by_role("slider", name="time").fill("1")
    assert thumbs.nth(1).get_attribute("aria-current") == "true"
    page.get_by_role("button", name="play").click()
    page.wait_for_selector(".rx-thumb:first-child[aria-current=true]", timeout=LONG)
    page.get_by_role("button", name="pause").click()
    page.screenshot(path=ARTIFACTS / "clip.png")
    assert violations(page) == []


def test_maps_with_a_scale_each_are_not_compared_in_a_matrix(show):
    relevance = rng.random((2, 3, 6, 8))
    page = show(explore_clip([PICTURE] * 3, VIEW, ["a", "b"], relevance, together=False))
    assert page.locator(".rx-matrix").count() == 0
    before = pixels(page)
    page.get_by_role("slider", name="time").fill("2")
    assert (pixels(page) != before).any()
    assert page.locator(".rx-readout").inner_text().startswith("all words: ")


def test_a_page_with_sixty_four_words_is_below_five_megabytes(tmp_path):
    view = View((3000, 4000), (336, 448), (0, 56), (336, 336), 14, (24, 24))
    photo = Image.open(ROOT / "data" / "images" / "retina.jpg").convert("RGB").resize((4000, 3000))
    sheet = Heatmaps([rng.random((64, 24, 24))], rng.random((64, 64)))
    words = [f"word{number}" for number in range(64)]
    explorer = Explorer([photo], [view], words, {"": {"": sheet}}, prompt=40)
    assert page_of(explorer, tmp_path).stat().st_size < 5e6


def test_five_hundred_words_on_a_large_picture_stay_smooth(show):
    """CPU time, not clock time: other programs may keep this one waiting."""
    view = View((3000, 4000), (3008, 4000), (0, 0), (3008, 4000), 32, (94, 125))
    picture = Image.linear_gradient("L").convert("RGB").resize((4000, 3000))
    words = [f"word{number}" for number in range(500)]
    sheet = Heatmaps([rng.random((500, 94, 125)) / 12000], rng.random((500, 500)) / 1000)
    explorer = Explorer([picture], [view], words, {"": {"": sheet}}, prompt=100)
    page = show(explorer)
    point_at_all = """() => document.querySelectorAll(".rx-chip").forEach(chip => {
      chip.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      document.body.offsetHeight;  // style and layout are part of it
    })"""
    browser_tools = page.context.new_cdp_session(page)
    browser_tools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds():
        metrics = browser_tools.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in metrics if each["name"] == "TaskDuration")

    before = seconds()
    page.evaluate(point_at_all)
    milliseconds = 1000 * (seconds() - before) / len(words)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    measured = {"words": len(words), "milliseconds_per_hover": milliseconds}
    (ARTIFACTS / "hover.json").write_text(json.dumps(measured))
    assert 0 < milliseconds < 16


# Is the place right?


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The explorer of an answer whose place was checked, and what was found."""
    model = load_model(save_small_llava(tmp_path_factory.mktemp("checked")))
    answer = model.generate(PICTURE, "what star ?", max_new_tokens=2, min_new_tokens=2)
    explorer = explore(answer, blur=1.0)
    return explorer, explorer.check()


def test_what_was_found_is_shown_with_its_map_only(show, checked):
    explorer, found = checked
    page = show(explorer)
    verdict, frame, line = (
        page.locator(f".rx-{name}") for name in ("trust strong", "place", "trust")
    )
    assert verdict.inner_text()[2:] == found.sentence
    assert "whole answer" in line.inner_text() and line.get_attribute("role") == "status"
    outer, inner = (one.bounding_box() for one in (page.locator(".rx-picture"), frame))
    edges = [
        (inner[a] - outer[a]) / outer[s] * n
        for a, s, n in (("x", "width", 120), ("y", "height", 60))
    ]
    np.testing.assert_allclose(edges, found.box[:2], atol=0.2)
    np.testing.assert_allclose(
        inner["width"] / outer["width"] * 120, found.box[2] - found.box[0], atol=0.2
    )
    assert page.get_by_role("button", name="Check this place").is_disabled()  # nobody is there
    page.locator(".rx-chip").nth(4).hover()  # another map, for a moment
    assert not frame.is_visible() and not verdict.is_visible()
    page.mouse.move(1, 1)
    assert frame.is_visible() and verdict.is_visible()
    page.locator(".rx-chip").nth(4).click()
    page.mouse.move(1, 1)
    assert not frame.is_visible() and verdict.count() == 0
    assert "needs the notebook" in line.inner_text()
    page.locator(".rx-chip").nth(4).click()
    page.mouse.move(1, 1)
    page.get_by_label("power").fill("2")  # the same place
    assert frame.is_visible()
    page.get_by_label("blur, in patches").fill("2")
    assert not frame.is_visible()


# A notebook: executed without a browser, and in JupyterLab


@contextmanager
def jupyterlab(folder):
    """JupyterLab on this folder, on loopback with a token: its log, and its notebook's page."""
    token = secrets.token_hex(16)
    options = [
        f"--ServerApp.port={free_port()}",
        f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={token}",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.open_browser=False",
        "--ServerApp.allow_root=True",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
        "--LabApp.news_url=None",
    ]
    own = {f"JUPYTER_{kind}_DIR": f"{folder}/../{kind}" for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | own | {"JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "jupyterlab", *options]
    log = folder.parent / "lab.log"
    with open(log, "w") as said:
        server = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            yield log, f"/lab/tree/explore.ipynb?token={token}"
        finally:  # asked to end, it once took more than half a minute
            kernels = psutil.Process(server.pid).children(recursive=True)
            server.kill()
            server.wait()
            for kernel in kernels:
                with suppress(psutil.NoSuchProcess):
                    kernel.kill()


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, chromium):
    """The folder of a notebook with an explorer and of its executed copy; JupyterLab on it."""
    folder = tmp_path_factory.mktemp("explorer")
    save_small_llava(folder / "checkpoint")
    parameters = f'checkpoint_path: str = "{folder}/checkpoint"  # a small LLaVA'
    path = write_notebook(folder, "explore", *CELLS, parameters=parameters)
    command = [
        sys.executable,
        "-m",
        "rolloutlib.cli",
        "run",
        path,
        "--out",
        folder / "run" / "explore.ipynb",
    ]
    with jupyterlab(path.parent) as (log, at):  # starts while the notebook runs
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder, address_in(log) + at


def test_executed_without_a_browser_it_leaves_a_picture_and_lives_on_a_page(browser, notebook):
    folder, _ = notebook
    executed = folder / "run" / "explore.ipynb"
    [output] = nbformat.read(executed, as_version=4).cells[-1].outputs
    assert WIDGET_VIEW in output.data
    assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")

    page, asked, _ = browser(write_page(executed), viewport=LARGE)
    wait_until_drawn(page)
    assert "need the notebook with its kernel" in page.locator(".rx-status").inner_text()
    before = pixels(page)
    page.locator(".rx-chip").nth(5).hover()
    assert (pixels(page) != before).any()
    page.screenshot(path=ARTIFACTS / "page.png")
    assert asked == []


def test_jupyterlab_run_all_point_pin_and_turn_a_control(chromium, notebook):
    folder, address = notebook
    page = chromium.new_page(viewport=LARGE)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function("window.jupyterapp?.restored", timeout=LONG)
    idle = """() => {
      const context = window.jupyterapp.shell.currentWidget?.sessionContext;
      return context?.isReady && context.session?.kernel?.status === "idle";
    }"""
    page.wait_for_function(idle, timeout=LONG)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".rx-chip", timeout=LONG)
    said = "document.querySelector('.rx-status').textContent.includes"
    page.wait_for_function(f"{said}('the kernel computes it')", timeout=LONG)
    wait_until_drawn(page)
    page.locator(".rx").scroll_into_view_if_needed()
    page.screenshot(path=ARTIFACTS / "lab-before.png")

    whole = pixels(page)
    page.locator(".rx-chip").nth(4).hover()
    assert (pixels(page) != whole).any()

    page.locator(".rx-chip").nth(4).focus()  # from here on by keyboard alone
    press(page, "Enter", "ArrowRight", "Space")
    assert pinned(page) == [4, 5]
    chosen = folder / "notebooks" / "selected.json"
    deadline = time.monotonic() + 30
    while not (chosen.exists() and chosen.read_text() == "[4, 5]"):
        assert time.monotonic() < deadline, "the kernel was not told what is pinned"
        time.sleep(0.1)
    press(page, "Escape")
    assert pinned(page) == []

    page.get_by_role("button", name="Check this place").focus()
    press(page, "Enter")
    page.locator(".rx-trust strong").wait_for(timeout=LONG)
    assert page.locator(".rx-place").is_visible()
    page.screenshot(path=ARTIFACTS / "lab-checked.png")

    page.locator(".rx-chip").nth(10).focus()
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(1, 1)
    before = pixels(page)
    np.testing.assert_array_equal(before, whole)
    page.locator(".widget-dropdown select").select_option("max")
    page.wait_for_function(f"{said}('The last took')", timeout=LONG)
    assert (pixels(page) != before).any()
    assert page.locator(".rx-trust strong").count() == 0  # of the map before
    page.screenshot(path=ARTIFACTS / "lab-after.png")
    server = address.partition("/lab/")[0]
    own = (server, server.replace("http", "ws", 1), "blob:", "data:")
    assert [url for url in asked if not url.startswith(own)] == []
