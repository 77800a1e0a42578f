"""Throw-away notebooks for the tests of runs and pages."""

from pathlib import Path

import nbformat

LOOK = """
model_id: str = "../model"  # a checkpoint
image_path: str = "picture.txt"  # the picture to look at
output_path: str = ""  # written here, if anywhere
mask_path: str = ""  # none by default
steps: int = 2  # how many
ratio: float = 0.5
flag: bool = False
layers: list[int] = [1, 2]  # which
untyped = 3
"""
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write_notebook(folder: Path, name: str, *cells: str, parameters: str = "", title: str = ""):
    """Write a notebook of these code cells; its parameters and its title come first."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNELSPEC})
    if title:
        notebook.cells.append(nbformat.v4.new_markdown_cell(title))
    if parameters:
        tagged = {"tags": ["parameters"]}
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata=tagged))
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def write_look(folder: Path) -> Path:
    """Write a notebook with a parameter of each kind, and the files that it reads."""
    path = write_notebook(folder, "look", "print('looked')", parameters=LOOK)
    (path.parent / "picture.txt").write_text("a picture")
    (folder / "model").mkdir(exist_ok=True)
    return path


def run_here(path: Path, **values) -> dict:
    """What the code cells of a notebook leave behind, run in this process with these parameters."""
    left = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"<{path.name}>", "exec"), left)
        if "parameters" in cell.metadata.get("tags", []):
            left |= values
    return left


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def statuses(path: Path) -> list[str]:
    """What papermill noted for each code cell of an executed notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.metadata.papermill.status for cell in cells if cell.cell_type == "code"]
