"""Every stored notebook keeps the rules; tools/notebooks.py stores, checks and begins them as CONTRIBUTING.md says."""

import base64
import io
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from nbconvert import HTMLExporter
from PIL import Image

from hcm_helpers import figures, run
from hcm_helpers.alt_text import describe
from tools import notebooks

ROOT = run.NOTEBOOKS.parent
SERIES = [*sorted(run.NOTEBOOKS.rglob("[!.]*.ipynb")), *sorted((ROOT / "examples").glob("*.ipynb")), notebooks.TEMPLATE]


@pytest.fixture
def template():
    return nbformat.read(notebooks.TEMPLATE, as_version=4)


def cell(notebook, name):
    return next(cell for cell in notebook.cells if cell.id == name)


def in_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def from_png(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


# --- what is stored


@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    assert notebooks.faults(path) == []


def test_all_notebooks_together_are_small():
    sizes = {path: path.stat().st_size for path in SERIES}
    series = sum(size for path, size in sizes.items() if path.parent == run.NOTEBOOKS)
    assert series < notebooks.MEGABYTES * 1e6
    assert sum(sizes.values()) - series < 1e6, "solutions, example and template"


def test_the_start_names_every_notebook_with_the_times_of_the_readme():
    start = (run.NOTEBOOKS / f"{notebooks.START}.ipynb").read_text(encoding="utf-8")
    readme = (run.NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")
    times = dict(re.findall(r"^\| \[(\w+)\]\(notebooks/\w+\.ipynb\) \|.*\| ([^|]+) \|$", readme, re.MULTILINE))
    ours = dict(re.findall(r"\| \[[^]]+\]\((\w+)\.ipynb\) \| [^|]+ \| ([^|]+) \|", start))
    assert list(times) == list(run.STEPS)
    assert ours == times


def test_converted_to_html_each_picture_has_its_words():
    path = run.NOTEBOOKS / f"{notebooks.START}.ipynb"
    html = HTMLExporter(template_name="classic").from_filename(str(path))[0]
    words = re.findall(r'<img alt="([^"]*)"', html)
    assert len(words) == 1
    assert "02 VAE" in words[0]


# --- lint

HARMS = {
    "ended in ValueError": lambda nb: cell(nb, "noise").outputs.append(
        nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    ),
    "to stderr": lambda nb: cell(nb, "noise").outputs.append(
        nbformat.v4.new_output("stream", name="stderr", text="UserWarning: old\n")
    ),
    "printed '' to stderr": lambda nb: cell(nb, "noise").outputs.append(
        nbformat.v4.new_output("stream", name="stderr", text="\n")
    ),
    "names /home/jane": lambda nb: cell(nb, "idea").update(source="see /home/jane/x.npy"),
    "names C:\\Users\\jane": lambda nb: cell(nb, "noise").outputs[0].update(text="C:\\Users\\jane\\x"),
    "not python3": lambda nb: nb.metadata.kernelspec.update(name="my-env"),
    "holds widgets": lambda nb: nb.metadata.update(widgets={}),
    "holds papermill": lambda nb: cell(nb, "noise").metadata.update(papermill={"duration": 1.0}),
    "not been run in order": lambda nb: cell(nb, "noise").update(execution_count=9),
    "needs both tags": lambda nb: cell(nb, "noise-show").metadata.update(tags=["skip-execution"]),
    "clear its output": lambda nb: cell(nb, "noise-show").metadata.update(tags=["skip-execution", "nbval-skip"]),
    "more than 8 bits": lambda nb: (
        cell(nb, "noise-show")
        .outputs[0]
        .data.update({"image/png": base64.b64encode(in_png(np.zeros((2, 2, 4), np.uint8))).decode()})
    ),
    "without alt text": lambda nb: cell(nb, "noise-show").outputs[0].metadata.clear(),
    "has 16 lines": lambda nb: cell(nb, "noise").update(source="\n".join(["x = 1"] * 16)),
    "say nothing about": lambda nb: (
        [cell(nb, name).update(source="", cell_type="raw") for name in ("noise-show-said",)]
        + [nb.cells.remove(cell(nb, "summary"))]
    ),
    "**Aim:**": lambda nb: cell(nb, "title").update(source="# 99"),
    "## You will learn": lambda nb: cell(nb, "learn").update(source="Learn"),
    "tagged parameters": lambda nb: nb.cells.insert(2, nb.cells.pop(3)),
    "not `name = literal`": lambda nb: cell(nb, "parameters").update(source="image_size = 2 * 16"),
    "cell noise imports": lambda nb: cell(nb, "noise").update(source="import os"),
    "not plain Python": lambda nb: cell(nb, "noise").update(source="%matplotlib inline"),
    "fewer than three cells": lambda nb: nb.cells.__delitem__(slice(2, None)),
    "## Summary": lambda nb: nb.cells.append(nbformat.v4.new_markdown_cell("bye")),
}


@pytest.mark.parametrize("fault", HARMS)
def test_lint_finds(fault, template, tmp_path):
    HARMS[fault](template)
    nbformat.write(template, tmp_path / "99_x.ipynb")
    found = notebooks.faults(tmp_path / "99_x.ipynb")
    assert any(fault in sentence for sentence in found), found
    result = CliRunner().invoke(notebooks.cli, ["lint", str(tmp_path / "99_x.ipynb")])
    assert result.exit_code == 1
    assert fault in result.output


def test_a_web_address_is_no_path():
    for text in ("https://example.org/home/jane", "../tmp/x", "runs/quick/tmp/x", "a/work/b", "X:\n"):
        assert not notebooks.A_PATH.search(text), text


# --- store


def test_pictures_become_small_and_look_the_same():
    pixels = np.repeat(np.random.default_rng(0).integers(0, 256, (200, 200, 1), np.uint8), 3, axis=2)
    pixels[:3, :3] = [213, 94, 0]  # a rare colour among greys
    png = in_png(np.dstack([pixels, np.full((200, 200), 255, np.uint8)]))
    small = notebooks.small(png)
    assert len(small) < 0.75 * len(png)
    after = from_png(small)
    assert np.abs(after - pixels).max() <= 6
    assert (after[:3, :3] == [213, 94, 0]).all()
    assert (np.ptp(after[3:], axis=2) == 0).all(), "no grey is tinted"
    assert notebooks.small(small) == small


def test_what_is_transparent_becomes_white():
    assert (from_png(notebooks.small(in_png(np.zeros((4, 4, 4), np.uint8)))) == 255).all()


def test_a_plot_keeps_its_colours():
    figure, axes = figures.empty_figure(4, 3)
    for i in range(6):
        axes.plot([0, 1], [i, i], lw=4)
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    before, after = from_png(file.getvalue()), from_png(notebooks.small(file.getvalue()))
    colours = {tuple(line) for line in before.reshape(-1, 3)[np.ptp(before.reshape(-1, 3), axis=1) > 60].tolist()}
    wide = [colour for colour in colours if (before == colour).all(axis=2).sum() > 500]
    assert len(wide) >= 6, "six lines, and the even rims of them"
    for colour in wide:
        assert np.abs(after[(before == colour).all(axis=2)] - colour).max() <= 12


def test_store_removes_what_tells_who_ran_it_when(template, tmp_path):
    template.metadata.update(papermill={"duration": 3.0}, widgets={})
    noise = cell(template, "noise")
    noise.metadata.update(execution={"iopub.execute_input": "2026"}, papermill={})
    text = noise.outputs[0].text
    noise.outputs = [nbformat.v4.new_output("stream", name="stdout", text=part) for part in (text[:5], text[5:])]
    path = tmp_path / "99_x.ipynb"
    nbformat.write(template, path)
    assert CliRunner().invoke(notebooks.cli, ["store", str(path)]).exit_code == 0
    assert path.read_text() == notebooks.TEMPLATE.read_text()


@pytest.mark.parametrize("fault", ["ended in ValueError", "to stderr", "names /home/jane"])
def test_store_refuses_what_no_notebook_may_hold(fault, template, tmp_path):
    HARMS[fault](template)
    path = tmp_path / "99_x.ipynb"
    nbformat.write(template, path)
    before = path.read_bytes()
    result = CliRunner().invoke(notebooks.cli, ["store", str(path)])
    assert result.exit_code == 1
    assert fault in result.output
    assert path.read_bytes() == before


# --- new


def test_a_begun_notebook_keeps_the_rules(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    assert CliRunner().invoke(notebooks.cli, ["new", "11_score_models"]).exit_code == 0
    path = tmp_path / "11_score_models.ipynb"
    assert nbformat.read(path, as_version=4).cells[0].source.startswith("# 11 · Score models\n")
    assert notebooks.faults(path) == []
    for name in ("11_score_models", "score", "../11_x", "11_Übung"):
        assert CliRunner().invoke(notebooks.cli, ["new", name]).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["11_score_models.ipynb"]


# --- alt text


def test_a_figure_in_words():
    figure, (left, right) = plt.subplots(1, 2)
    left.plot([1, 2], label="train")
    left.plot([2, 1], label="validation")
    left.set(xlabel="epoch", ylabel="loss", title="GAN")
    left.legend()
    right.imshow(np.eye(2))
    right.set_title(r"$\hat{x}_t \sim N(0, \sigma)$")
    figure.suptitle("Training")
    plt.close(figure)
    assert describe(figure) == (
        "Training. Curves “GAN”, loss against epoch; series: train, validation. Picture “hatx_t sim N(0, sigma)”."
    )


def test_of_many_words_the_first_are_said():
    figure = figures.image_grid(torch.zeros(20, 1, 8, 8), titles=[f"CC 0.{i:02d}" for i in range(20)])
    assert describe(figure).endswith("CC 0.11, and 8 more.")
