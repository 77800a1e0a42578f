import datetime
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator
from small_notebooks import LOOK, write_look, write_notebook

from rolloutlib.runs.notebook import Notebook, Parameter, Refused
from rolloutlib.runs.parameters import (
    check_parameters,
    check_values,
    read_assignments,
    read_parameter_file,
)
from rolloutlib.runs.plan import plan


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_look(tmp_path)


def given_as(path, *assignments):
    """The values that these assignments of the command line become."""
    notebook = Notebook.read(path)
    values = read_assignments(notebook.parameters, list(assignments))
    return check_parameters(notebook, values, Path.cwd())


def read_as(kind, text, default=""):
    declared = {"x": Parameter("x", kind, default)}
    return read_assignments(declared, [("x", text)])["x"]


# What is refused, before a kernel starts


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("list[str]", ["a.png"], r"x_path names one file: expected a text, got \['a.png'\]"),
        ("dict", {"day": datetime.date(2026, 1, 2)}, "x_path must be of type dict, got"),
    ],
)
def test_values_that_no_run_could_take_are_refused(tmp_path, kind, value, complaint):
    declared = {"x_path": Parameter("x_path", kind, None)}
    with pytest.raises(Refused, match=complaint):
        check_values(declared, {"x_path": value}, tmp_path)


def test_a_model_may_run_without_the_adapter_that_is_its_default(notebook):
    (notebook.parent / "lora").mkdir()
    parameters = LOOK + 'adapter_id: str = "lora"  # an adapter\n'
    write_notebook(notebook.parent.parent, "look", parameters=parameters)
    assert given_as(notebook, ("adapter_id", ""))["adapter_id"] == ""


@pytest.mark.parametrize("content", ["- 1\n", "just text", "a: [1", "1: 2", ""])
def test_parameter_file_must_hold_a_mapping(tmp_path, content):
    path = tmp_path / "parameters.yaml"
    path.write_text(content)
    with pytest.raises(Refused, match=r"parameters\.yaml"):
        read_parameter_file(path)


MANY = "a: &a0 [1]\n" + "".join(f"b{n}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(20))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a: 1\nb: [1\nc: 2", r"p\.yaml, line 3: cannot be read as YAML: expected ','"),
        ("a: 1\nb: 2026-13-45", "line 2: cannot be read as YAML: '2026-13-45' is not a value"),
        ("a: !!bool x", "line 1: cannot be read as YAML: 'x' is not a value"),
        ("a: !!int ''", "line 1: cannot be read as YAML: '' is not a value"),
        ("a: !!python/object:os.path 1", "line 1: .* could not determine a constructor"),
        ("? [1]\n: 2", "line 1: cannot be read as YAML: found unhashable key"),
        (f"a: {'1' * 5000}", "line 1: cannot be read as YAML: '1{40}' is not a value"),
        (f"\na: {'[' * 1000}", "line 2: .* at most 50 lists in each other"),
        (f"a: {'{b: ' * 60}", "line 1: .* at most 50 lists in each other"),
        (MANY, "line 7: .* 10 aliases"),
        (b"a: \xff", "cannot be read: 'utf-8' codec"),
        ("a: \0", "cannot be read as YAML"),
    ],
)
def test_malformed_parameter_file_is_refused_with_its_line(tmp_path, content, complaint):
    path = tmp_path / "p.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Refused, match=complaint) as refused:
        read_parameter_file(path)
    assert len(str(refused.value)) < 400 + len(str(path))


def test_a_few_aliases_are_read(tmp_path):
    (tmp_path / "p.yaml").write_text("a: &all [1, 2]\nb: *all\n")
    assert read_parameter_file(tmp_path / "p.yaml") == {"a": [1, 2], "b": [1, 2]}


def test_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "p.yaml").open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(Refused, match="cannot be read: expected at most 16777216 bytes"):
        read_parameter_file(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("kind", "value"),
    [("dict", {1: "a"}), ("Any", [{None: 1}]), ("dict[int, str]", {"1": "a"})],
)
def test_a_dict_whose_keys_no_run_would_get_as_they_are_is_refused(tmp_path, kind, value):
    with pytest.raises(Refused, match="x must be of type"):
        check_values({"x": Parameter("x", kind, {})}, {"x": value}, tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 200, "&a [*a]", "1" * 5000])
def test_text_that_is_no_value_at_all_is_refused(text):
    with pytest.raises(Refused, match="x must be of type"):
        read_as("list[int]", text)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "3"), ("steps", True), ("flag", 1), ("model_id", 7)]
)
def test_values_of_a_parameter_file_are_not_converted(notebook, name, value):
    with pytest.raises(Refused, match=f"{name} must be of type"):
        check_parameters(Notebook.read(notebook), {name: value}, Path.cwd())


# What a value becomes


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("flag", "true", True),
        ("flag", "False", False),
        ("steps", "010", 10),
        ("ratio", "1", 1.0),
        ("ratio", "1e-3", 1e-3),
        ("layers", "[]", []),
        ("layers", "[3, 4]", [3, 4]),
        ("untyped", "4", 4),
        ("mask_path", "", ""),
        ("model_id", "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_value_has_the_declared_type(notebook, name, text, value):
    result = given_as(notebook, (name, text))[name]
    assert result == value and type(result) is type(value)


@given(st.text())
def test_string_stays_the_text_it_is(text):
    declared = {"prompt": Parameter("prompt", "str", "")}
    assert read_assignments(declared, [("prompt", text)]) == {"prompt": text}


@given(st.floats(allow_nan=False))
def test_float_is_read_exactly(number):
    declared = {"ratio": Parameter("ratio", "float", 0.0)}
    assert read_assignments(declared, [("ratio", str(number))]) == {"ratio": number}
    assert math.copysign(1, number) == math.copysign(1, float(str(number)))


def test_files_start_at_the_callers_folder(notebook, tmp_path):
    (tmp_path / "photo.jpg").touch()
    values = given_as(notebook, ("image_path", "photo.jpg"), ("model_id", "model"))
    assert values == {
        "image_path": str(tmp_path / "photo.jpg"),
        "model_id": str(tmp_path / "model"),
    }


def test_file_to_be_written_need_not_exist(notebook, tmp_path):
    values = given_as(notebook, ("output_path", "new/folder"))
    assert values == {"output_path": str(tmp_path / "new" / "folder")}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("str | None", "007", "007"),
        ("str | None", "None", "None"),
        ("None | str", "null", "null"),
        ("Optional[str]", "007", "007"),
        ("typing.Optional[int]", "007", 7),
        ("Optional[int]", "None", None),
        ("Union[int, str]", "auto", "auto"),
        ("int | str", "12", "12"),
        ("float | None", "1", 1.0),
        ("list[int] | None", "[1, 2]", [1, 2]),
        ("list[int] | None", "null", None),
        ("List[str]", "[a]", ["a"]),
        ("tuple[int, int]", "[1, 2]", [1, 2]),
        ("Literal['1', 'auto']", "1", "1"),
        ("Literal[1, 2]", "2", 2),
        ("Annotated[str, 'a word']", "007", "007"),
        ("Final[str]", "007", "007"),
        ("dict[str, tuple[int, ...]]", "{a: [1, 2]}", {"a": [1, 2]}),
        ("int", "-3", -3),
        ("float", "-1e-3", -1e-3),
        ("torch.device", "007", "007"),  # unknown here, and the default is a text
        ("some words", "007", "007"),
        ("bool | None", "TRUE", True),
    ],
)
def test_text_becomes_what_the_annotation_says(kind, text, value):
    result = read_as(kind, text)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "default"),
    [
        ("Optional[int]", "abc", None),
        ("int | float", "many", 0),
        ("Literal['a', 'b']", "c", "a"),
        ("Literal[1]", "true", 1),
        ("list[int] | None", "[1, a]", None),
        ("dict[str, int]", "{a: b}", {}),
        ("bool | None", "maybe", None),
    ],
)
def test_text_that_is_no_value_of_the_annotation_is_refused(kind, text, default):
    with pytest.raises(Refused, match="x must be of type"):
        read_as(kind, text, default)


@pytest.mark.parametrize(
    ("kind", "default", "value", "good"),
    [
        ("str | None", "", None, True),
        ("str", None, None, True),
        ("str", "", None, False),
        ("Optional[int]", 1, True, False),
        ("float | None", None, 3, True),
        ("Literal['a', None]", "a", None, True),
        ("Path", "here", 3, True),  # what it allows is not known
        ("list[int | None]", [], [1, None], True),
        ("list['some words']", [], [1, None], True),
    ],
)
def test_values_are_held_to_the_annotation(tmp_path, kind, default, value, good):
    declared = {"x": Parameter("x", kind, default)}
    if good:
        assert check_values(declared, {"x": value}, tmp_path) == {"x": value}
    else:
        with pytest.raises(Refused, match="x must be of type"):
            check_values(declared, {"x": value}, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize(
    "line",
    [
        'd_path: str = "data.txt"  # a = "b"',
        "d_path = 'data.txt'  # it's #1",
        'd_path = """data.txt"""',
        "d_path: str | None = \\\n    'data.txt'",
        "n = 1; d_path = ('data'\n  '.txt')  # two",
        "n, d_path = 1, 'data.txt'",
    ],
)
def test_a_file_is_checked_and_counts_however_its_line_is_written(tmp_path, line):
    notebook = Notebook.read(write_notebook(tmp_path, "reads", parameters=line))
    with pytest.raises(Refused, match="d_path: there is no file or folder"):
        check_parameters(notebook, {}, tmp_path)
    keys = set()
    for content in ("one", "two"):
        (notebook.path.parent / "data.txt").write_text(content)
        check_parameters(notebook, {}, tmp_path)
        keys |= {run.key for run in plan(notebook, [{}], tmp_path)}
    assert len(keys) == 2


@given(JSON)
def test_a_value_reaches_the_notebook_as_it_was_given(value):
    checked = check_values({"x": Parameter("x", "Any", None)}, {"x": value}, Path.cwd())
    injected = {}
    exec(PythonTranslator.codify(checked), injected)
    assert repr(injected["x"]) == repr(checked["x"]) == repr(value)
