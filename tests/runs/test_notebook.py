from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolloutlib.runs.notebook import Notebook, Refused

INFINITE = ("float", float("inf"))


def notebook_of(*cells):
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return Notebook(Path("a.ipynb"), nbformat.v4.new_notebook(cells=cells))


def parameters_of(source):
    notebook = notebook_of(source)
    notebook.content.cells[0].metadata["tags"] = ["parameters"]
    return notebook.parameters


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('x: str = "a = b"  # with an =', {"x": ("str", "a = b")}),
        ("x: str = '#f00'  # a colour", {"x": ("str", "#f00")}),
        ('x = """two\ny = 3  # no"""  # lines', {"x": ("str", "two\ny = 3  # no")}),
        ("x: list[int] = [\n    1,  # one\n]", {"x": ("list[int]", [1])}),
        ("x = \\\n    -1.5  # below", {"x": ("float", -1.5)}),
        ("x = 1; y = [2]  # both", {"x": ("int", 1), "y": ("list", [2])}),
        ("x: str | None = None", {"x": ("str | None", None)}),
        ("x: Optional[str] = 'a'", {"x": ("Optional[str]", "a")}),
        ("x: 'list[str]' = []", {"x": ("list[str]", [])}),
        ("x: Literal['a', 'b'] = 'a'", {"x": ("Literal['a', 'b']", "a")}),
        ("x: torch.dtype = 'float32'", {"x": ("torch.dtype", "float32")}),
        ("x = None", {"x": ("Any", None)}),
        ("a = b = 1", {"a": ("int", 1), "b": ("int", 1)}),
        ("a, b = 1, 'c'", {"a": ("int", 1), "b": ("str", "c")}),
        ("# how many\nx = 1\n\ny = 2", {"x": ("int", 1), "y": ("int", 2)}),
        ("y = 2  # two\nx = 1", {"y": ("int", 2), "x": ("int", 1)}),
        ("%matplotlib inline\nimport os\nos.x = f()\nx = 1  # one", {"x": ("int", 1)}),
        ("x: int\nif True:\n    y = 1", {}),
        ("x = 1\nx = 2", {"x": ("int", 2)}),
        ("*a, b = 1, 2, 3", {"a": ("list", [1, 2]), "b": ("int", 3)}),
        ("a, (b, *c) = 1, 'xyz'", {"a": ("int", 1), "b": ("str", "x"), "c": ("list", ["y", "z"])}),
        ("x: str | None\nx = None", {"x": ("str | None", None)}),
        ("x = [1, (2, {'a': {3: b'4'}}), {5}]", {"x": ("list", [1, (2, {"a": {3: b"4"}}), {5}])}),
        ("x = -0x_ff; y = 1_0e-1; z = 1e999", dict(x=("int", -255), y=("float", 1.0), z=INFINITE)),
        ("x = ('a' 'b'\n  # = 3\n  'c')", {"x": ("str", "abc")}),
        ("x = 1\ndef f():\n    x = 2\n[x for x in 'ab']", {"x": ("int", 1)}),
    ],
)
def test_every_form_of_an_assignment_is_a_parameter(source, found):
    parameters = parameters_of(source)
    assert found == {name: (p.kind, p.default) for name, p in parameters.items()}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("steps: int = 2 * 3", r"a\.ipynb: steps: the default must be a literal, got 2 \* 3"),
        ("folder = Path('x')", "folder: the default must be a literal"),
        ("x = 1\nx += 1", "x: the default must be a literal, got x \\+= 1"),
        ("x = 1\nif not x:\n    x = 2", "x: the default must be a literal, got if not x"),
        ("x = 1\ndel x", "x: the default must be a literal, got del x"),
        ("x = 1\nfor x in []: pass", "x: the default must be a literal, got for x in"),
        ("a, b = 1", "its parameters cell is not Python: cannot unpack"),
        (f"x = {'[' * 250}{']' * 250}", "its parameters cell is not Python: too many nested"),
        (f"x = {'-' * 100_000}1", "its parameters cell is not Python"),
        ("x <- 3 +", "its parameters cell is not Python"),
        ("x = '\0'", "its parameters cell is not Python"),
    ],
)
def test_cell_that_cannot_be_understood_is_refused(source, complaint):
    with pytest.raises(Refused, match=complaint):
        parameters_of(source)


# Cells made at random; an hour of these was run before

TEXTS = st.text(max_size=6) | st.text("#='\"\\\n{}[]:;% a", max_size=10)
KEYS = st.none() | st.booleans() | st.integers() | TEXTS
PLAIN = KEYS | st.floats(allow_nan=False, allow_infinity=False) | st.binary(max_size=3)
LITERALS = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=5,
)
LAYOUTS = [
    "{a} = {x}",
    "{a}={x}  # a = b",
    '{a}: str | None = {x}  # it\'s "one"',
    "{a}: 'list[int]' = \\\n    {x}",
    "{a}: int\n{a} = (\n  {x}  # = in\n)",
    "{a} = {b} = {x}; {a} = 2",
    "{a}, {b} = {x}, {x}  # both",
    "*{a}, {b} = {x}, 1, {x}",
    "[{a}, ({b}, c)] = {x}, ({x}, 'c')",
    "# {a} = 3\n\n'{b} = 4'\n{a} = {x}",
    "def f(): {a} = 1",
]
LINES = st.builds(
    str.replace,
    st.builds(
        str.format,
        st.sampled_from(LAYOUTS),
        a=st.sampled_from("pq"),
        b=st.sampled_from("rs"),
        x=st.just("{x}"),
    ),
    st.just("{x}"),
    LITERALS.map(repr),
)


@given(st.lists(LINES, min_size=1, max_size=4).map("\n".join))
def test_reading_a_cell_finds_what_executing_it_gives(source):
    executed = {}
    exec(source, executed)
    given = {
        name: repr(value) for name, value in executed.items() if len(name) == 1 and name != "f"
    }
    assert {name: repr(p.default) for name, p in parameters_of(source).items()} == given


def test_notebook_without_a_kernel_or_parameters_has_none(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "bare.ipynb")
    assert Notebook.read(tmp_path / "bare.ipynb").parameters == {}


def test_digest_depends_on_what_cells_say_and_on_nothing_else():
    before, saved = notebook_of("a = 1", "b"), notebook_of("a = 1", "b")
    saved.content.metadata["kernelspec"] = {"name": "other", "display_name": "Other"}
    [cell, _] = saved.content.cells
    cell.metadata["collapsed"] = True
    cell.execution_count = 7
    cell.outputs = [nbformat.v4.new_output("stream", text="1")]
    assert saved.digest == before.digest
    assert notebook_of("a = 1", "c").digest != before.digest
    assert notebook_of("a = 1\nb").digest != before.digest


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("# See *where* it `looks`", "See where it looks"),
        ("words\n\n## Later", "Later"),
        ("no heading", ""),
    ],
)
def test_title_is_the_first_headings_words(source, title):
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
    assert Notebook(Path("a.ipynb"), content).title == title


@pytest.mark.parametrize(
    ("kernelspec", "info", "language"),
    [
        ({"name": "ir", "display_name": "R", "language": "R"}, {"name": "R"}, "R"),
        ({"name": "ir", "display_name": "R"}, {}, "R"),
        ({"name": "rust", "display_name": "Rust", "language": "rust"}, {}, "rust"),
        ({"name": "julia-1.10", "display_name": "Julia"}, {}, "Julia"),
        ({}, {"name": "scala"}, "scala"),
        ({"name": "mine", "display_name": "SQL", "language": "sql"}, {"name": "python"}, "sql"),
        ({"name": "conda-env-x-py", "display_name": "x"}, {}, None),
        ({"name": "xpython", "display_name": "x", "language": "python"}, {"name": "python"}, None),
        ({}, {"name": "ipython"}, None),
        ({}, {}, None),
    ],
)
def test_notebook_in_another_language_is_refused(kernelspec, info, language):
    notebook = notebook_of("x = 1")
    notebook.content.cells[0].metadata["tags"] = ["parameters"]
    given = {"kernelspec": kernelspec, "language_info": info}
    notebook.content.metadata.update({name: value for name, value in given.items() if value})
    if language is None:
        assert list(notebook.parameters) == ["x"]
        return
    with pytest.raises(Refused, match=f"a.ipynb: expected a notebook in Python, got {language}$"):
        _ = notebook.parameters
