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
    folder = tmp_path / "a"
    results.write_failure(folder, record_of("a", error="no"))
    results.write_traceback(folder, "where")
    for left in ("look.1234.part.ipynb", "look.failed.ipynb", ".metrics.a1b2.part/metrics.json"):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).write_text("half of it")
    (folder / "look.ipynb").write_text("all of it")
    assert not results.is_finished(folder)
    results.write_result(folder, record_of("a", metrics={"auc": 0.5}))
    assert results.is_finished(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["look.ipynb", "metrics.json"]
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == {"auc": 0.5}


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


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([2**63, -1], ["9223372036854775808", "-1"]),
        ([2**64, None], ["18446744073709551616", None]),
        ([10**30, 0.5], [str(10**30), "0.5"]),
        ([2**60 + 1, None], [str(2**60 + 1), None]),  # a float would round it
        ([2**60 + 1, 3], [2**60 + 1, 3]),
        ([2**63, 2**63 + 1], [2**63, 2**63 + 1]),
        ([3, None], [3.0, None]),
        ([True, 2], ["True", "2"]),
        ([True, None], [True, None]),
        ([None, [1, {"a": None}]], [None, '[1, {"a": null}]']),
        ([{"b": 1}, {}], ['{"b": 1}', "{}"]),
        ([None, None], [None, None]),
        (["a", 1], ["a", "1"]),
    ],
)
def test_values_of_any_kind_make_a_table(tmp_path, values, kept):
    for run, value in zip("ab", values, strict=True):
        results.write_result(tmp_path / run, record_of(run, parameters={"seed": value}))
    results.write_table(tmp_path)
    column = pd.read_parquet(tmp_path / "results.parquet")["seed"]
    assert [None if pd.isna(value) else value for value in column] == kept


GOOD = json.dumps(record_of("bad"))
BAD = {
    "of another tool": '{"acc": 0.5}',
    "a list": "[1]",
    "cut short": GOOD[:50],
    "not UTF-8": b"\xff\xfe",
    "a metric of more than 64 bits": GOOD.replace('"metrics": {}', f'"metrics": {{"x": {2**64}}}'),
    "a list as a metric": GOOD.replace('"metrics": {}', '"metrics": {"x": [1, 2]}'),
    "an infinite metric": GOOD.replace('"metrics": {}', '"metrics": {"x": Infinity}'),
    "a metric that is a path": GOOD.replace('"metrics": {}', '"metrics": {"../x": 1}'),
    "another run": json.dumps(record_of("other")),
    "outside": json.dumps(record_of("../bad")),
    "a notebook outside": GOOD.replace('"look"', '"../../look"'),
    "deep": '{"parameters": ' + "[" * 100_000,
    "no parameters": GOOD.replace('"parameters": {}', '"parameters": 3'),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["metrics.json", "failure.json"])
def test_one_bad_record_is_left_out_with_a_notice(tmp_path, name, content):
    results.write_result(tmp_path / "good", record_of("good", metrics={"auc": 0.5}))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.warns(UserWarning, match=rf"bad/{name}: left out of the table: .+"):
        results.write_table(tmp_path)
    table = pd.read_parquet(tmp_path / "results.parquet")
    assert list(table["run"]) == ["good"] and list(table["auc"]) == [0.5]
    assert not results.is_finished(tmp_path / "bad")


def test_record_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    results.write_result(tmp_path / "a", record_of("a"))
    monkeypatch.setattr(results, "LARGEST_RECORD", 10)
    with pytest.warns(UserWarning, match="expected at most 10 bytes"):
        assert len(results.collect(tmp_path)) == 0


@pytest.mark.parametrize("run", ["..", "../b", "/etc", "a/b", "a\\b", ".hidden", "", "a\n", None])
@pytest.mark.parametrize("column", ["run", "notebook"])
def test_rows_of_a_shared_table_that_lead_out_of_its_folder_are_left_out(tmp_path, column, run):
    for name in "ab":
        results.write_result(tmp_path / name, record_of(name))
    table = results.write_table(tmp_path)
    assert list(results.read_table(tmp_path)["run"]) == ["a", "b"]
    table.loc[1, column] = run
    table.to_parquet(tmp_path / "results.parquet")
    with pytest.warns(UserWarning, match="1 rows that name no run are left out"):
        assert list(results.read_table(tmp_path)["run"]) == ["a"]


def test_table_of_another_kind_is_refused(tmp_path):
    pd.DataFrame({"run": ["a"]}).to_parquet(tmp_path / "results.parquet")
    with pytest.raises(ValueError, match=r"results\.parquet: expected a sweep's table"):
        results.read_table(tmp_path)


def test_text_in_the_csv_is_no_formula_and_numbers_stay_numbers(tmp_path):
    texts = ["=1+1", "+a", "-what", "@SUM(A1)", "\t=1", "\r=1", "-1.5", "+3", "a=b", ""]
    for number, text in enumerate(texts):
        record = record_of(f"{number}", parameters={"x": text, "n": -number}, metrics={"=m": 1})
        results.write_failure(tmp_path / f"{number}", record | {"metrics": {}})
    results.write_table(tmp_path)
    kept = pd.read_csv(tmp_path / "results.csv", dtype={"x": str}, keep_default_na=False)
    quoted = ["'=1+1", "'+a", "'-what", "'@SUM(A1)", "'\t=1", "'\r=1", "-1.5", "+3", "a=b", ""]
    assert list(kept["x"]) == quoted and list(kept["n"]) == [-n for n in range(len(texts))]
    assert list(pd.read_parquet(tmp_path / "results.parquet")["x"]) == texts
