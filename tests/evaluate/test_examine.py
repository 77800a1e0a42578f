"""Cases, their scores in one table, and the committed table of notebook 08."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from places import ROOT
from small_llava import save_small_llava

from rolloutlib import load_model
from rolloutlib.evaluate import (
    local_mean,
    mass_in_region,
    mean_difference,
    pointing_game,
    region_auc,
    region_shares,
)
from rolloutlib.evaluate.cases import (
    Case,
    Shown,
    evidence_over_time,
    picture_cases,
    right_words,
)
from rolloutlib.evaluate.examine import (
    better_and_worse,
    examine,
    intervals,
    pointing_by_head,
    score_map,
    summarise,
    write_lines,
)
from rolloutlib.evaluate.figures import plot_extremes
from rolloutlib.evaluate.methods import BEYOND, METHODS, Evidence, Method
from rolloutlib.grid import ImageTokens, View
from rolloutlib.overlay import blur, to_picture
from rolloutlib.recording.kinds import DifferentiableLayer

LAST = ["over_last", "over_last_low", "over_last_high"]
ASKED = "what colour is the star ?"
VIEW = View((16, 16), (16, 16), (0, 0), (16, 16), token=4, grid=(4, 4))


@pytest.fixture(scope="module")
def full():
    return pd.read_csv(ROOT / "data/results/faithfulness.csv")


def causal(seed, size=18):
    rng = np.random.default_rng(seed)
    layers = np.tril(rng.random((3, 2, size, size)))
    return [torch.from_numpy(layer) for layer in layers / layers.sum(-1, keepdims=True)]


def picture_case(seed):
    """A case of 16 image tokens after one word; the answer likes cells without much of them."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((16, 16), bool)
    row, column = rng.integers(0, 3, 2) * 4
    pixels[row : row + 6, column : column + 6] = True
    shares = pixels.reshape(4, 4, 4, 4).mean((1, 3))
    image = ImageTokens(Image.new("RGB", (16, 16)), VIEW, torch.arange(1, 17))
    evidence = Evidence(causal(seed), torch.tensor([17]), list, image)
    likely = {"log_probability": lambda removed: -(removed * shares).sum((1, 2))}
    return Case("where", shares, evidence=evidence, pixels=pixels, view=VIEW, **likely)


SOME = {name: METHODS[name] for name in ("rollout", BEYOND, "last layer")}


def test_every_map_goes_through_the_same_steps():
    cases = [picture_case(seed) for seed in range(4)]
    found = examine(cases, SOME, shown=BEYOND, deleted=["rollout", BEYOND], curve_cases=2)
    wide = found.scores.pivot(index=["method", "score"], columns="case", values="value")
    for name, method in SOME.items():
        for number, case in enumerate(cases):
            heatmap = method.heatmap(case.evidence)
            pixels = to_picture(heatmap, VIEW, blur_tokens=0.5)
            expected = pointing_game(pixels, case.pixels)
            assert wide.loc[(name, "pointing game"), number] == expected
            auc = region_auc(blur(heatmap, 0.5), case.region)
            assert wide.loc[(name, "AUC"), number] == pytest.approx(auc)
    perfect = wide.loc["the region itself"]
    assert (perfect.loc["average precision"] >= wide.xs("average precision", level=1)).all(
        axis=None
    )
    assert set(wide.xs("deletion", level=1).dropna(axis=1).columns) == {0, 1}
    assert [name for name, _ in found.curves] == ["rollout", BEYOND] * 2
    assert all(case.evidence is None for case in found.cases)
    assert wide.loc["other questions"].notna().all(axis=None)


def test_the_worst_and_the_best_cases_say_what_was_asked_and_what_the_map_did():
    cases = [
        replace(picture_case(seed), picture=Image.new("RGB", (16, 16)), said=f"{seed}?\nyes")
        for seed in range(4)
    ]
    found = examine(cases, SOME, shown=BEYOND)
    wide = found.scores[found.scores["method"].eq(BEYOND)].pivot(
        index="case", columns="score", values="value"
    )
    order = wide["average precision"].argsort().tolist()
    chosen = [*order[:2], *order[:1:-1]]
    assert 0 < wide["pointing game"].mean() < 1
    axes = plot_extremes(found, count=2).axes
    assert axes[-1].get_ylabel() == "share of the map's range"
    for axis, case, rank in zip(
        axes, chosen, ["worst 1", "worst 2", "best 1", "best 2"], strict=False
    ):
        peak = "inside" if wide["pointing game"][case] == 1 else "outside"
        mass = mass_in_region(found.maps[case].pixels, cases[case].pixels)
        expected = f"{rank}: {case}?\nyes\npeak {peak}, {mass:.0%} of the map"
        assert axis.get_title() == expected


def test_order_is_the_rank_correlation_with_the_raster():
    shown = score_map_of(np.arange(16.0).reshape(4, 4))
    assert shown["order"] == pytest.approx(1)
    assert score_map_of(np.ones((4, 4)))["order"] == 0


def score_map_of(cells):
    return score_map(Shown(cells, to_picture(cells, VIEW)), picture_case(0))


def test_frames_are_cells_and_the_asked_one_takes_no_part():
    attention = torch.full((1, 1, 5, 5), 0.0)
    attention[..., :] = torch.tensor([0.1, 0.2, 0.5, 0.15, 0.05])
    layer = DifferentiableLayer("time", attention.requires_grad_(), 1)
    evidence = evidence_over_time([layer], layer.attention[0, 0, 2, :2], asked=2)
    region = np.array([False, True, False, False, True])
    removed = []
    likely = {"log_probability": lambda r: removed.append(r) or np.zeros(len(r))}
    case = Case("colour", region, evidence=evidence, asked=2, **likely)
    causal_only = {BEYOND: METHODS[BEYOND]}
    found = examine(
        [case, case],
        {"last layer": METHODS["last layer"], **causal_only},
        shown="last layer",
        deleted=["last layer"],
        curve_cases=1,
        steps=[0.0, 0.4, 0.8],
    )
    assert BEYOND not in set(found.scores["method"])
    wide = found.scores.pivot(index="method", columns=["score", "case"], values="value")
    assert wide.loc["last layer", ("pointing game", 0)] == 1  # frame 2 is higher, but it was asked
    assert removed[0][1].tolist() == [False, True, False, True, False]
    assert not removed[0][2, 2]  # the asked frame is the last to go
    assert "order" not in set(found.scores["score"])


def test_each_head_is_scored():
    cases = [picture_case(seed) for seed in range(2)]
    by_head = pointing_by_head(cases)
    assert by_head.shape == (3, 2)
    method = Method(lambda evidence: evidence.attention[1][0, evidence.rows])
    hits = [
        pointing_game(to_picture(method.heatmap(c.evidence), VIEW, blur_tokens=0.5), c.pixels)
        for c in cases
    ]
    assert by_head[1, 0] == np.mean(hits)


def long(scores):
    """The lines of scores, map → values by case."""
    rows = [(n, "there", k, "AUC", v) for k, values in scores.items() for n, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["case", "kind", "method", "score", "value"])


def test_a_summary_has_paired_differences():
    rng = np.random.default_rng(0)
    base = rng.random(60)
    scores = long({"last layer": base, "rollout": base - 0.02, "random": rng.random(60)})
    once = scores["case"].eq(0).map({True: "once", False: "there"})
    points = scores.assign(score="pointing game", kind=once)
    table = summarise(pd.concat([scores, points]), {"over_last": "last layer"}, ["rollout"])
    auc = table[table["score"] == "AUC"].set_index("method")
    np.testing.assert_allclose(auc.loc["rollout", LAST].astype(float), -0.02)
    random = scores[scores["method"] == "random"]["value"].to_numpy()
    expected = mean_difference(random, base)
    np.testing.assert_allclose(auc.loc["random", LAST].astype(float), expected)
    assert auc.loc["last layer", LAST].isna().all() and (auc["n"] == 60).all()
    assert set(table["score"]) == {"AUC", "pointing game", "pointing game, there"}
    assert table[["value", *LAST]].dtypes.eq(float).all()
    verdict = better_and_worse(
        table.assign(model="Fuyu"), "over_last", ["rollout", "random"], "AUC"
    )
    assert verdict.loc["Fuyu"].tolist() == ["", "random", "rollout"]
    assert intervals(table.assign(model="Fuyu"), "AUC")["Fuyu"]["rollout"][0] == pytest.approx(
        base.mean() - 0.02
    )


def test_lines_of_other_models_stay(tmp_path):
    path = tmp_path / "table.csv"
    write_lines(path, pd.DataFrame({"model": ["A", "B"], "value": [1.0, 2.0]}))
    write_lines(path, pd.DataFrame({"model": ["A"], "value": [3.0]}))
    assert pd.read_csv(path).to_dict("list") == {"model": ["B", "A"], "value": [2.0, 3.0]}


# The committed table, and what README and notebook 08 say about it


def test_the_committed_table_has_its_form(full):
    assert list(full.columns)[:7] == ["model", "method", "score", "value", "low", "high", "n"]
    assert not full.duplicated(["model", "method", "score"]).any()
    shapes = ["LLaVA", "Fuyu", "Qwen3.5"]
    hard = {f"{name}, hard scenes" for name in shapes}
    assert set(full["model"]) == {*shapes, *hard, "Qwen3-VL", "temporal refiner"}
    assert ((full["low"] <= full["value"]) & (full["value"] <= full["high"])).all()
    cells = full[full["score"].isin(["AUC", "average precision"])]
    counts = cells[cells["method"] != "other questions"].groupby("model")["n"]
    assert (counts.nunique() == 1).all() and counts.min().min() >= 100


def test_the_shown_map_beats_the_last_layer_where_we_say_so(full):
    points = full[full["score"] == "pointing game"].set_index(["method", "model"])
    plain = points[~points.index.get_level_values("model").str.endswith("hard scenes")]
    for name in (BEYOND, "beyond neutral"):
        assert (plain.loc[name, "value"] > 0.85).all()
        assert (plain.loc[name].loc[["Fuyu", "Qwen3-VL"], "over_last_low"] > 0).all()
    found = {"LLaVA": set(), "Qwen3.5": {"rollout, residual 0.9", "rows divided", BEYOND}}
    found["Qwen3.5"] |= {"strongest heads", "mean of layers", "attention alone", "with signs"}
    for name, better in found.items():
        lines = plain.xs(name, level="model")
        lines = lines[lines.index.isin(METHODS)]
        assert len(lines) == len(METHODS) - 2 * (name == "LLaVA")  # all of its layers attend
        assert set(lines.index[lines["over_last_low"] > 0]) == better
    llava = points.loc["rows divided"].loc["LLaVA"]
    assert abs(llava["value"] - points.loc[("mean of layers", "LLaVA"), "value"]) < 0.02


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    region: np.ndarray
    kind: str = "where"


def test_only_correct_answers_become_cases(tmp_path):
    model = load_model(save_small_llava(tmp_path), dtype="float32")
    model.model.generation_config.eos_token_id = None  # random weights may end before they begin
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    said = model.generate(picture, ASKED, max_new_tokens=16)
    region = np.zeros((64, 64), bool)
    region[:20, :30] = True
    asked = [
        (picture, [Question(ASKED, said.text, region)]),
        (picture, [Question(ASKED, "another", region)]),
    ]
    [case] = picture_cases(model, asked, right_words)
    assert case.said == f"{ASKED}\n{said.text}"
    assert case.evidence.rows.tolist() == said.rows.tolist()
    np.testing.assert_array_equal(case.region, region_shares(region, said.image.patch_view))
    none, every = np.zeros((1, *case.region.shape), bool), np.ones((1, *case.region.shape), bool)
    likely = case.log_probability(np.concatenate([none, every]))
    pictures = [picture, Image.fromarray(np.rint(local_mean(picture, 0.5)).astype(np.uint8))]
    expected = model.log_probability(said, pictures).numpy()
    np.testing.assert_allclose(likely, expected, rtol=1e-4)
