"""The committed table of notebook 08, and the sentences that the notebook derives from a table."""

import nbformat
import pandas as pd
import pytest
from places import ROOT

COLUMNS = ["model", "method", "score", "value", "low", "high", "n"]


@pytest.fixture(scope="module")
def tell():
    """The notebook's own function that tells what a table says."""
    notebook = nbformat.read(ROOT / "notebooks/08_faithfulness.ipynb", as_version=4)
    names = {}
    for cell in notebook.cells:
        if "verdict" in cell.metadata.get("tags", []):
            exec(cell.source, names)
    return names["tell"]


@pytest.fixture
def full():
    return pd.read_csv(ROOT / "data/results/faithfulness.csv")


def line(method, score, value):
    return ("Fuyu", method, score, value, value - 0.01, value + 0.01, 500)


@pytest.fixture
def made_up():
    """A table in which a map of the centre is better than the maps of the model."""
    points = {"receptive field, blurred": 0.95, "rollout": 0.4, "last layer": 0.6, "centre": 0.99}
    falls = {"receptive field, blurred": -3, "random": -1, "centre": -5, "last layer": -2}
    lines = [line(name, "pointing game", value) for name, value in points.items()]
    lines += [line(name, "deletion", value) for name, value in falls.items()]
    return pd.DataFrame(lines, columns=COLUMNS)


def test_the_committed_table_has_its_form(full):
    assert list(full.columns) == COLUMNS
    assert not full.isna().any(axis=None)
    assert not full.duplicated(["model", "method", "score"]).any()
    assert set(full["model"]) == {"LLaVA", "Fuyu", "Qwen3-VL", "temporal refiner"}
    assert ((full["low"] <= full["value"]) & (full["value"] <= full["high"])).all()


def test_the_committed_table_scores_every_map_of_a_model_on_the_same_cases(full):
    lines = full[full["score"].isin(["pointing game", "AUC", "average precision"])]
    counts = lines[lines["method"] != "other questions"].groupby("model")["n"]
    assert (counts.nunique() == 1).all()


def test_a_verdict_follows_from_the_committed_table(full, tell, capsys):
    tell(full)
    told = capsys.readouterr().out
    for model in full["model"].unique():
        assert f"{model}\n" in told
    assert told.count("Its pointing game") == told.count("Its deletion curve") == 4


def test_a_verdict_says_who_is_better(made_up, tell, capsys):
    tell(made_up)
    told = capsys.readouterr().out
    shown = "The map that is shown (receptive field, blurred)"
    assert f"{shown} loses to centre in pointing game" in told
    assert f"{shown} loses to centre in deletion" in told
    assert "Plain rollout loses to last layer; centre in pointing game" in told
    assert "Its pointing game reaches 0.9: 0.95 [0.94, 0.96], n = 500" in told
    assert "does not clearly beat centre: -3.00" in told


def test_a_verdict_says_what_limits_a_map(made_up, tell, capsys):
    shown = "receptive field, blurred"
    kinds = {"there": (0.5, 100), "where": (1.0, 300), "shape": (0.8, 100)}
    more = [(*line(shown, f"pointing game, {k}", v)[:-1], n) for k, (v, n) in kinds.items()]
    more.append(line("the region itself", "pointing game", 1.0))
    more.append(line("the region itself", "deletion", -9.0))
    tell(pd.concat([made_up, pd.DataFrame(more, columns=COLUMNS)]))
    told = capsys.readouterr().out
    assert "It points worst for “there”: 0.50 [0.49, 0.51]; for all else: 0.95." in told
    assert "Deletion of the region itself: -9.00" in told
    assert "clearly worse than centre." in told  # the region, which knows the answer, is left out


def test_every_shown_map_reaches_the_aim_on_500_cases(full, tell, capsys):
    tell(full)
    told = capsys.readouterr().out
    assert told.count("Its pointing game reaches 0.9") == 4
    assert told.count("Its deletion curve beats random, centre, last layer") == 4
    cases = full[full["score"] == "pointing game"].groupby(["model", "method"])["n"].max()
    assert cases.min() >= 500
