"""Notebooks of a few lines in the place of the series'."""

from pathlib import Path

import nbformat


def write_notebook(folder: Path, name: str, parameters: str, code: str = "pass") -> None:
    """A notebook of two code cells, the first tagged `parameters`."""
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / f"{name}.ipynb")
