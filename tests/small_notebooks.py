"""Throw-away notebooks for the tests of runs and pages."""

from pathlib import Path

import nbformat

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
