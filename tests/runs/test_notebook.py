from pathlib import Path

import nbformat
import pytest

from rolloutlib.runs.notebook import Notebook, Refused


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
        ("x <- 3 +", "its parameters cell is not Python"),
        ("x = '\0'", "its parameters cell is not Python"),
    ],
)
def test_cell_that_cannot_be_understood_is_refused(source, complaint):
    with pytest.raises(Refused, match=complaint):
        parameters_of(source)


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
