import json

import pandas as pd
import pytest

import rolloutlib
from rolloutlib.runs import results
from rolloutlib.runs.notebook import Parameter

DECLARED = {
    "model_id": Parameter("model_id", "str", "model"),
    "image_path": Parameter("image_path", "str", ""),
    "ratio": Parameter("ratio", "float", 0.0),
}


def key_of(digest="d", route="", **values):
    return results.run_key(digest, route, DECLARED, values, results.identity)


def record_of(run, *, parameters=None, metrics=None, error=""):
    return {
        "run": run,
        "notebook": "look",
        "route": "papermill",
        "parameters": parameters or {},
        "metrics": metrics or {},
        "versions": results.versions(),
        "seconds": 1.5,
        "peak_memory_mb": 100.0,
        "error": error,
    }


# Names


def test_key_depends_on_notebook_route_values_and_version(monkeypatch):
    base = key_of(ratio=0.5)
    assert len(base) == 16 and base == key_of(ratio=0.5)
    others = {key_of("other", ratio=0.5), key_of(route="m:f", ratio=0.5), key_of(ratio=0.25)}
    monkeypatch.setattr(rolloutlib, "__version__", "9.9")
    others.add(key_of(ratio=0.5))
    assert len(others) == 4 and base not in others


def test_key_depends_on_the_content_of_a_checkpoint_and_not_on_its_place(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "deep" / "model.safetensors").write_bytes(b"weights")
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    assert key_of(model_id=here) == key_of(model_id=there)
    (tmp_path / "there" / "deep" / "model.safetensors").write_bytes(b"Weights")
    assert key_of(model_id=here) != key_of(model_id=there)
    (tmp_path / "there" / "deep" / "model.safetensors").write_bytes(b"weights")
    assert key_of(model_id=here) == key_of(model_id=there)
    (tmp_path / "there" / "config.json").rename(tmp_path / "there" / "other.json")
    assert key_of(model_id=here) != key_of(model_id=there)


def test_large_file_counts_with_its_size_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LARGEST_READ", 3)
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    before = results.identity(str(file))
    assert results.identity(str(file)) == before
    file.write_bytes(b"12345")
    assert results.identity(str(file)) != before


def test_checkpoint_that_is_no_file_counts_with_its_name_and_release(tmp_path, monkeypatch):
    assert results.identity("pytest") != results.identity("numpy")
    before = results.identity("pytest")
    monkeypatch.setattr(results, "version", lambda name: "0.0")
    assert results.identity("pytest") != before


def test_hub_checkpoint_counts_with_the_commit_that_is_cached(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = {results.identity("owner/name")}
    for commit in ("aaa", "bbb"):
        repository = tmp_path / "models--owner--name"
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        found.add(results.identity("owner/name"))
    assert len(found) == 3


# What is finished


@pytest.mark.parametrize("content", [None, "", '{"run": ', "[]"])
def test_result_that_cannot_be_read_is_not_finished(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert not results.is_finished(tmp_path)


def test_result_replaces_what_earlier_attempts_left(tmp_path):
    results.write_failure(tmp_path, record_of("a", error="no"))
    results.write_traceback(tmp_path, "where")
    for left in ("look.1234.part.ipynb", "look.failed.ipynb", ".metrics.a1b2.part/metrics.json"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_text("half of it")
    (tmp_path / "look.ipynb").write_text("all of it")
    assert not results.is_finished(tmp_path)
    results.write_result(tmp_path, record_of("a", metrics={"auc": 0.5}))
    assert results.is_finished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look.ipynb", "metrics.json"]
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == {"auc": 0.5}


@pytest.mark.parametrize("name", ["seconds", "torch", "ratio"])
def test_metric_with_the_name_of_another_column_is_an_error(tmp_path, name):
    record = record_of("a", parameters={"ratio": 0.5}, metrics={name: 1.0})
    with pytest.raises(ValueError, match=name):
        results.write_result(tmp_path, record)
    assert not results.is_finished(tmp_path)


# The table


def test_table_has_a_row_for_each_run_and_columns_of_one_kind(tmp_path):
    first = {"ratio": 0.0, "layers": [1, 2], "prompt": "a"}
    second = {"ratio": 1.0, "layers": [], "prompt": "b"}
    metrics = [{"auc": 0.5, "best": 3}, {"auc": None, "best": "none"}]
    for run, parameters, measured in zip("abc", [first, second], metrics, strict=False):
        results.write_result(
            tmp_path / run, record_of(run, parameters=parameters, metrics=measured)
        )
    results.write_failure(tmp_path / "c", record_of("c", parameters=first, error="ValueError: no"))
    (tmp_path / "empty").mkdir()

    results.write_table(tmp_path)

    table = pd.read_parquet(tmp_path / "results.parquet")
    assert table.attrs == {"parameters": ["ratio", "layers", "prompt"], "metrics": ["auc", "best"]}
    assert list(table["run"]) == ["a", "b", "c"]
    assert list(table["ratio"]) == [0.0, 1.0, 0.0] and table["ratio"].dtype == float
    assert list(table["layers"]) == ["[1, 2]", "[]", "[1, 2]"]
    assert list(table["best"][:2]) == ["3", "none"]
    assert table["auc"][0] == 0.5 and table["auc"][1:].isna().all()
    assert list(table["error"]) == ["", "", "ValueError: no"]
    assert list(pd.read_csv(tmp_path / "results.csv").columns) == list(table.columns)


def test_a_metric_may_be_a_parameter_of_another_notebook(tmp_path):
    one = record_of("a", parameters={"ratio": 0.5}, metrics={"auc": 0.7})
    other = record_of("b", parameters={"auc": 0.9}, metrics={"ratio": 0.1})
    for record in (one, other):
        results.write_result(tmp_path / record["run"], record)
    table = results.write_table(tmp_path)
    assert list(table["ratio"]) == [0.5, 0.1] and list(table["auc"]) == [0.7, 0.9]


def test_table_of_no_runs_is_empty(tmp_path):
    assert len(results.write_table(tmp_path)) == 0
    assert len(pd.read_parquet(tmp_path / "results.parquet")) == 0
