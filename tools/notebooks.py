"""Notebooks made ready to commit, checked, and begun: `python tools/notebooks.py store|lint|new`.

Pictures are nearly all of a stored notebook. Matplotlib writes them with 32 bits a pixel; with a few greys and colours,
which the eye does not tell from that, they take less than half of the space.
"""

import ast
import base64
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import nbformat
import numpy as np
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbstripout import strip_output
from PIL import Image

from hcm_helpers.acdc import DataError
from hcm_helpers.run import NOTEBOOKS, stored_parameters

TEMPLATE = Path(__file__).with_name("template.ipynb")
START = "00_start_here"  # a page to read: it has no parameters, and `hcm run` leaves it out
PLOT, PICTURE = (16, 48), (24, 128)  # greys and colours of what is mostly white paper, and of what is not
STORED = "P"  # Pillow's name for a palette
LINES = 15  # of a code cell, but for the parameters
MEGABYTES = 3  # of the series, 00 to 10
PLAYED = {"skip-execution", "nbval-skip"}  # tags of a cell that only a reader runs
# Beside what nbstripout removes by itself: what papermill, JupyterLab and widgets leave.
NOISE = ["metadata.papermill", "metadata.widgets", "cell.metadata.papermill", "cell.metadata.execution"]
NOISE += ["cell.metadata.collapsed", "cell.metadata.scrolled", "cell.metadata.jupyter", "cell.metadata.trusted"]
A_PATH = re.compile(r"(?<![\w.~:/+-])(?:/(?:home|root|work|tmp|Users|mnt|opt|usr|var|private)/|[A-Za-z]:\\\w+\\)[\w.]*")

FILES = click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Notebooks made ready to commit, checked, and begun."""


@cli.command()
@click.option("--run", "run_first", is_flag=True, help="Run each from its first cell to its last before.")
@FILES
def store(files: tuple[Path, ...], run_first: bool) -> None:
    """Make notebooks that have run ready to commit: small pictures, no trace of who ran them when."""
    for path in files:
        before, notebook = path.stat().st_size, nbformat.read(path, as_version=4)
        if run_first:
            os.environ["HCM_HEADLESS"] = "1"  # plain lines instead of bars
            place = {"metadata": {"path": str(path.parent)}}
            NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place).execute()
        if found := next(unfit(notebook), None):
            sys.exit(f"{path}: {found}; put that right, run the notebook anew and store it then")
        nbformat.write(stored(notebook), path)
        click.echo(f"{path.name:<28}{before / 1e6:6.2f} → {path.stat().st_size / 1e6:.2f} MB")


@cli.command()
@FILES
def lint(files: tuple[Path, ...]) -> None:
    """Print what in notebooks is against the rules of CONTRIBUTING.md, a line a fault."""
    found = [f"{path}: {fault}" for path in files for fault in faults(path)]
    click.echo("\n".join(found), nl=bool(found))
    sys.exit(bool(found))


@cli.command()
@click.argument("name")
def new(name: str) -> None:
    """Begin a notebook NAME, such as 11_transformer, from the template."""
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", name):
        sys.exit(f"{name!r} cannot name a notebook; take two digits, _ and small letters, such as 11_transformer")
    path = NOTEBOOKS / f"{name}.ipynb"
    if path.exists():
        sys.exit(f"{path} is there already; choose another name")
    title = f"# {int(name[:2])} · {name[3:].replace('_', ' ').capitalize()}"
    path.write_text(TEMPLATE.read_text(encoding="utf-8").replace("# 99 · A template", title), encoding="utf-8")
    click.echo(f"{path} is begun; write it, then: python tools/notebooks.py store --run {path}")


# --- store


def stored(notebook: NotebookNode) -> NotebookNode:
    """The notebook without noise in its metadata, the prints of a cell as one, its pictures small."""
    notebook = strip_output(notebook, keep_output=True, keep_count=True, keep_id=True, extra_keys=NOISE)
    for cell in code(notebook):
        cell.outputs = joined(cell.outputs)
        for output in pictures(cell):
            png = small(base64.b64decode(output.data["image/png"]))
            output.data["image/png"] = base64.b64encode(png).decode() + "\n"  # as Jupyter writes it
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Prints that follow each other as one: in how many they came depends on the time between them."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def small(png: bytes) -> bytes:
    """The picture on white, with evenly spaced greys and a few colours that suit it; unchanged if it has been here.

    The greys are apart, or a palette would tint them: most of our pixels are grey, and the few colours matter.
    """
    picture = Image.open(io.BytesIO(png))
    if picture.mode == STORED:
        return png
    white = Image.new("RGBA", picture.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, picture.convert("RGBA")))[..., :3]
    number, colours = PLOT if (pixels.min(axis=2) > 250).mean() > 0.8 else PICTURE
    greys = np.linspace(0, 255, number).round().astype(np.uint8)
    index = np.rint(pixels[..., 1] / 255 * (number - 1)).astype(np.uint8)
    palette = [*np.repeat(greys, 3)]
    coloured = np.ptp(pixels, axis=2) > 8
    if coloured.any():
        found, counts = np.unique(pixels[coloured], axis=0, return_counts=True)
        vivid = counts * np.ptp(found, axis=1).astype(float) ** 2
        even = found[np.argsort(-vivid)[: colours // 2]]  # of lines and patches, as in a legend, exactly
        line = Image.fromarray(pixels[coloured][None])
        others = line.quantize(colours - len(even), dither=Image.Dither.NONE)
        chosen = Image.new("P", (1, 1))
        chosen.putpalette([*even.ravel().tolist(), *others.getpalette()])
        near = line.quantize(palette=chosen, dither=Image.Dither.NONE)
        index[coloured] = number + np.asarray(near)[0]
        palette += chosen.getpalette()
    reduced = Image.fromarray(index, "P")
    reduced.putpalette(palette)
    file = io.BytesIO()
    reduced.save(file, "PNG", optimize=True)
    return file.getvalue()


# --- lint


def faults(path: Path) -> list[str]:
    """What in a stored notebook is against the rules, each in a sentence that names the cell."""
    notebook = nbformat.read(path, as_version=4)
    found = [*unfit(notebook), *not_stored(notebook), *hard_to_read(notebook)]
    if path.parent.name != "solutions":  # they follow the exercises
        found += out_of_order(notebook, has_parameters=path.stem != START)
    if path.stem != START and any("parameters" in tags(cell) for cell in notebook.cells):
        try:
            stored_parameters(path)
        except DataError as error:
            found.append(str(error).removeprefix(f"{path}: "))
    return found


def unfit(notebook: NotebookNode) -> Iterator[str]:
    """What no stored notebook may hold: an error, a warning, a path of one machine."""
    for cell in notebook.cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {cell.id} ended in {output.ename}"
            elif output.output_type == "stream":
                texts.append(output.text)
                if output.name == "stderr":
                    yield f"cell {cell.id} has printed {output.text.strip().partition(chr(10))[0][:60]!r} to stderr"
            else:
                texts += [text for kind, text in output.data.items() if kind.startswith("text/")]
        if place := next(filter(None, map(A_PATH.search, texts)), None):
            yield f"cell {cell.id} names {place[0]}, which is on one machine only"


def not_stored(notebook: NotebookNode) -> Iterator[str]:
    """What `store` mends, or running the notebook from the first cell to the last."""
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "its kernel is not python3; choose that one"
    noise = set(notebook.metadata) - {"kernelspec", "language_info"}
    noise |= {key for cell in notebook.cells for key in set(cell.metadata) - {"tags"}}
    if noise:
        yield f"it holds {', '.join(sorted(noise))} in its metadata; store it"
    run = [cell.execution_count for cell in code(notebook) if not tags(cell) & PLAYED]
    if run != [*range(1, len(run) + 1)]:
        yield "its cells have not been run in order; restart its kernel and run them all"
    for cell in code(notebook):
        if 0 < len(tags(cell) & PLAYED) < len(PLAYED):
            yield f"cell {cell.id} needs both tags, {' and '.join(sorted(PLAYED))}"
        if tags(cell) & PLAYED and (cell.outputs or cell.execution_count):
            yield f"cell {cell.id} is for the reader to run; clear its output"
        for output in pictures(cell):
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            if picture.mode != STORED:
                yield f"cell {cell.id} has a picture of more than 8 bits a pixel; store the notebook"
            if not output.metadata.get("image/png", {}).get("alt"):
                yield f"cell {cell.id} has a picture without alt text; import hcm_helpers.figures and run it anew"


def hard_to_read(notebook: NotebookNode) -> Iterator[str]:
    """Long cells, and figures that nobody speaks of."""
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        length = len(cell.source.splitlines())
        if length > LINES and "parameters" not in tags(cell):
            yield f"cell {cell.id} has {length} lines of at most {LINES}; move what is longer into the package"
        after = [later.cell_type for later in notebook.cells[i + 1 : i + 3]]
        if any(pictures(cell)) and "markdown" not in after:
            yield f"cell {cell.id} shows a figure that the next two cells say nothing about"


def out_of_order(notebook: NotebookNode, has_parameters: bool) -> Iterator[str]:
    """Title, what one learns, parameters, imports, and at the end the summary."""
    if len(notebook.cells) < 3:
        yield "it has fewer than three cells; begin it from the template"
        return
    title, learn, third = notebook.cells[:3]
    if not (title.source.startswith("# ") and "**Aim:**" in title.source and "Time:" in title.source):
        yield "its first cell has no title with **Aim:** and Time:"
    if not learn.source.startswith("## You will learn"):
        yield "its second cell is not ## You will learn"
    if has_parameters and "parameters" not in tags(third):
        yield "its third cell is not the one tagged parameters"
    beginning = True
    for cell in code(notebook):
        try:
            lines = ast.parse(cell.source).body
        except SyntaxError:
            yield f"cell {cell.id} is not plain Python; take out magics"
            continue
        imports = any(isinstance(line, ast.Import | ast.ImportFrom) for line in lines)
        if imports and not beginning:
            yield f"cell {cell.id} imports; move that up to the cell after the parameters"
        beginning = beginning and (imports or "parameters" in tags(cell))
    if has_parameters and not notebook.cells[-1].source.startswith("## Summary"):
        yield "its last cell is not ## Summary"


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell: NotebookNode) -> list[NotebookNode]:
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


if __name__ == "__main__":
    cli()
