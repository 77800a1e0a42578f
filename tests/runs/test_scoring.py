"""`rollout score` from end to end: a small checkpoint answers, and what is written."""

import json
from pathlib import Path

import pandas as pd
import pytest
from own_truth import write_scenes
from places import DATA
from small_processors import save_small

from rolloutlib import cli
from rolloutlib.runs import schedule, worker

LLAVA = DATA / "checkpoints" / "tiny-llava"


def command(folder, *more, model=LLAVA):
    return ["score", str(model), str(folder / "scenes.json"), "--out", str(folder / "out"), *more]


def finished(folder):
    """The records of finished items, and when each was written."""
    found = {path: path.stat().st_mtime_ns for path in folder.glob("out/items/*/metrics.json")}
    return {path: time for path, time in found.items() if json.loads(path.read_text())["metrics"]}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A folder whose scenes were asked about: interrupted after the first, then to the end."""
    folder = tmp_path_factory.mktemp("own")
    write_scenes(folder, scenes=1)
    execute, ran = worker.execute, []

    def interrupted(run, timeout):
        if len(ran) == 2:  # the first of them only loads the model
            raise KeyboardInterrupt
        ran.append(run)
        return execute(run, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "execute", interrupted)
        assert cli.main(command(folder)) == 130
    kept = finished(folder)
    assert cli.main(command(folder)) == 0
    yield folder, kept
    worker._APART.end(wait_seconds=0)


def test_what_was_finished_before_an_interrupt_is_kept(asked, capsys):
    folder, kept = asked
    now = finished(folder)
    assert len(kept) == 2 and len(now) == 3 and kept.items() <= now.items()
    assert cli.main(command(folder)) == 0
    assert "0 done, 0 failed, 2 skipped, 0 remaining" in capsys.readouterr().out
    assert finished(folder) == now


def test_every_region_has_a_line_and_every_category_an_interval(asked):
    folder, _ = asked
    table = pd.read_parquet(folder / "out" / "scores.parquet")
    assert [*table["item"]] == ["0a", "0b"] and [*table["picture"]] == ["scene0.png"] * 2
    about_mask, about_box = table.to_dict("records")
    assert about_mask["answer"] == about_mask["expected"] and about_mask["right"]
    assert about_box["answer"] and about_box["right"] is None
    assert table["question"][1] == f"where is the {table['category'][1]}?"
    assert table[["pointing", "mass", "AUC", "trust"]].stack().between(0, 1).all()
    assert (table["mass"] > table["area"]).all() and (table["seconds"] > 0).all()
    assert set(table["verdict"]) <= {"depends", "does not depend", "can't tell"}
    written = pd.read_csv(folder / "out" / "scores.csv", keep_default_na=False)
    assert [*written] == [*table] and [*written["question"]] == [*table["question"]]

    summary = pd.read_parquet(folder / "out" / "summary.parquet")
    pointing = summary[summary["score"] == "pointing"].set_index(["answers", "category"])
    whole = pointing.loc[("all answers", "every category")]
    assert whole["n"] == 2 and whole["value"] == table["pointing"].mean()
    assert whole["low"] <= whole["value"] <= whole["high"]
    assert pointing.loc[("right answers", "every category"), "n"] == 1
    assert pd.isna(pointing.loc[("all answers", "shape"), "low"])  # of a single answer


def test_the_page_shows_the_maps_and_needs_no_network(asked, browser):
    folder, _ = asked
    page, requests, complaints = browser(folder / "out" / "index.html")
    maps = page.locator("img")
    assert maps.count() == 2 and not requests and not complaints
    assert maps.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 100)")
    said = page.locator("body").inner_text()
    assert "2 of 2 regions were scored" in said and "The worst" in said and "The best" in said


def test_a_model_whose_tokens_have_no_place_is_refused_by_name(asked, tmp_path, capsys):
    folder, _ = asked
    before, model = finished(folder), save_small("mllama", tmp_path)
    assert cli.main(command(folder, model=model)) == 2
    assert f"{model}: its maps have no place on the picture" in capsys.readouterr().err
    assert len(finished(folder).keys() - before.keys()) == 1  # what says so


def test_a_model_that_cannot_be_loaded_and_a_silent_scheduler_are_refused(
    asked, tmp_path, capsys, monkeypatch
):
    folder, _ = asked
    assert cli.main(command(folder, model=tmp_path)) == 2
    assert f"rollout: {tmp_path}: ValueError: " in capsys.readouterr().err
    monkeypatch.setattr(schedule, "CONNECT_SECONDS", 0.2)
    assert cli.main(command(folder, "--scheduler", "tcp://127.0.0.1:9", "--residual", "0.5")) == 2
    assert "no scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


def test_an_item_that_fails_costs_only_itself(asked, capsys):
    folder, _ = asked
    file = folder / "scenes.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["question"] = "what is <image> ?"
    file.write_text(json.dumps(content))
    assert cli.main(command(folder)) == 1
    assert "0 done, 1 failed, 1 skipped, 0 remaining" in capsys.readouterr().out
    table = pd.read_csv(folder / "out" / "scores.csv", keep_default_na=False)
    assert table["error"][0] == "" and "expected a question in plain text" in table["error"][1]
    page = Path(folder, "out", "index.html").read_text()
    assert "1 of 2 regions were scored" in page and "Not scored" in page
