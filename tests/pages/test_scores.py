"""The page and the summary of scores, of a table without a model."""

import re

import numpy as np
import pandas as pd
import pytest

from rolloutlib.evaluate import mean_interval
from rolloutlib.pages.scores import summarise, write_scores

SHOWN = 12  # of the worst, and of the best


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    count = 40
    scores = {name: rng.random(count) for name in ("mass", "area", "AUC")}
    right = [None if n % 5 == 0 else n % 5 < 3 for n in range(count)]
    table = pd.DataFrame(
        {
            "item": [f"i{n}" for n in range(count)],
            "category": ["cat", "dog"] * (count // 2),
            "picture": "a.png",
            "question": "<script>alert(1)</script>",
            "expected": "yes",
            "answer": "no & <b>yes</b>",
            "right": pd.Series(right, dtype=object),
            "pointing": (np.arange(count) % 3 > 0).astype(float),
            **scores,
            "trust": np.nan,
            "verdict": None,
            "seconds": 1.0,
            "error": "",
            "run": [f"r{n}" for n in range(count)],
        }
    )
    table.loc[5, "AUC"] = np.nan
    table.loc[39, ["error", "pointing"]] = ["ValueError: <lost>", np.nan]
    return table


def test_means_and_intervals_are_those_of_what_has_a_score(table):
    summary = summarise(table).set_index(["answers", "category", "score"])
    done = table[:39]
    every = {"all answers": done, "right answers": done[[r is True for r in done["right"]]]}
    for answers, some in every.items():
        for category, part in [("every category", some), *some.groupby("category")]:
            for score in ("pointing", "mass", "AUC"):
                values = part[score].dropna()
                found = summary.loc[(answers, category, score)]
                expected = (*mean_interval(values), len(values))
                assert (*found[["value", "low", "high"]], found["n"]) == pytest.approx(expected)
    known = [r for r in done["right"] if r is not None]
    whole = summary.loc[("all answers", "every category", "right")]
    assert (whole["value"], whole["n"]) == (sum(known) / len(known), len(known))
    assert "trust" not in summary.index.unique("score")
    assert ("right answers", "every category", "right") not in summary.index


def test_the_worst_and_the_best_are_shown_once_each_and_in_order(table, tmp_path):
    text = write_scores(table, tmp_path, "a & b").read_text()
    shown = re.findall(r'src="items/(r\d+)/map.webp"', text)
    done = table[:39].set_index("run")
    worst, best = done.loc[shown[:SHOWN]], done.loc[shown[SHOWN:]]
    assert len(worst) == len(best) == SHOWN and not set(worst.index) & set(best.index)
    assert (worst["pointing"] == 0).all() and (best["pointing"] == 1).all()
    assert worst["AUC"].is_monotonic_increasing and best["AUC"].is_monotonic_decreasing
    assert text.count("<table") == text.count('<table tabindex="0"') > 0  # keys can scroll them
    assert "39 of 40 regions were scored" in text and "i39, a.png" in text


def test_words_from_the_file_and_the_model_stay_words(table, tmp_path):
    text = write_scores(table[-3:], tmp_path, "<i>title</i>").read_text()
    assert "default-src 'none'; script-src 'none'" in text
    assert not re.search(r"<script|<b>|<i>|<lost>", text)
    assert "&lt;script&gt;" in text and "<h1>&lt;i&gt;title" in text


def test_a_page_of_nothing_says_so(table, tmp_path):
    text = write_scores(table[39:], tmp_path, "none").read_text()
    assert "0 of 1 regions were scored" in text and "The worst" not in text
    assert pd.read_csv(tmp_path / "summary.csv").empty
