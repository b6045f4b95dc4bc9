"""What holds for every figure: it can be read, names its axes and units, draws its intervals, does without colour."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color, to_hex
from matplotlib.text import Text
from pictures import EXAMPLES, costs, example, group_rows, intervals

import hcm_helpers
from hcm_helpers import figures
from hcm_helpers.similarity import TITLES

LABELS = {  # what stands at the x and y axes, from the first panel on; a diagram or a grid of images has none
    "mask_overlay": [*[("", "y (mm)"), ("x (mm)", ""), ("x (mm)", ""), ("x (mm)", "")], ("x (mm)", "y (mm)")],
    "loss_curves": [("epoch", "loss"), ("epoch", "validation, lower is better")],
    "similarity_figure": [("1 = identical", ""), ("squared intensity, lower is better", "")],
    "reactions_figure": [("lower is better", ""), ("higher is better", "")],
    "power_spectrum_figure": [
        ("spatial frequency (cycles per mm)", "power (squared intensity)"),
        ("spatial frequency (cycles per mm)", "share of the real power"),
    ],
    "utility_figure": [("AUC by patient", "")] * 2 + [("gain of AUC over real only", "")] * 2,
    "anatomy_overlay": [("", "real\ny (mm)"), ("", ""), ("x (mm)", "VAE\ny (mm)"), ("x (mm)", "")],
    "measure_distributions": [("largest wall (mm)", "")],
    "cost_figure": [("time of 1,000 images (s)", "KID (less is better)")],
    "group_figure": [("share recognised, dotted: by chance", "group"), ("MS-SSIM of pairs, 1 = identical", "")],
    "correlation_map": [("", ""), ("", "rank correlation")],
    "readers_figure": [("share of right answers", "")],
}
INTERVALS = {"similarity_figure": 8, "reactions_figure": 4, "utility_figure": 6, "group_figure": 8, "readers_figure": 2}


def drawn_texts(figure, monkeypatch):
    """Every text that stands in the picture, with its box in pixels."""
    found, draw = [], Text.draw

    def record(text, renderer):
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            found.append((text, text.get_window_extent(renderer)))

    monkeypatch.setattr(Text, "draw", record)
    FigureCanvasAgg(figure).draw()
    return found


def test_every_figure_function_has_its_picture_tests():
    sources = [path.read_text(encoding="utf-8") for path in Path(hcm_helpers.__file__).parent.rglob("*.py")]
    named = [name for text in sources for name in re.findall(r"^def ([a-z]\w*)\([^)]*\) -> Figure:", text, re.M)]
    assert sorted(named) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_text_can_be_read(name, monkeypatch):
    figure = example(name)
    found = drawn_texts(figure, monkeypatch)
    assert found
    assert min(text.get_fontsize() for text, _ in found) >= 8
    for (text, a), (other, b) in itertools.combinations(found, 2):
        assert not a.overlaps(b), (text.get_text(), other.get_text())
    if figure.get_layout_engine() is not None:  # the others are cut to what they hold when they are saved
        for text, box in found:
            assert figure.bbox.x0 <= box.x0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()
            assert figure.bbox.y0 <= box.y0, text.get_text()
            assert box.y1 <= figure.bbox.y1, text.get_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_axes_say_what_they_show_and_in_which_unit(name):
    panels = [axes for axes in example(name).axes if axes.axison]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == LABELS.get(name, [])


@pytest.mark.parametrize("name", EXAMPLES)
def test_intervals_are_drawn(name):
    axes = example(name).axes
    assert sum(len(intervals(panel)) for panel in axes) == INTERVALS.get(name, 0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_series_differ_without_their_colours_and_no_legend_hides_them(name):
    figure = example(name)
    palette = {value.lower() for value in vars(figures).values() if isinstance(value, str) and value.startswith("#")}
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        assert {to_hex(line.get_color()) for line in axes.lines} <= palette
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        looks = [
            (line.get_linestyle(), line.get_marker(), line.get_markerfacecolor() in ("none", "white")) for line in lines
        ]
        assert len(set(looks)) == len(looks) or name == "power_spectrum_figure"  # whose dots lie on lines that differ
        if legend := axes.get_legend():
            box = legend.get_window_extent()
            for line in axes.lines:
                path = line.get_transform().transform_path(line.get_path())
                assert not path.intersects_bbox(box, filled=False), line.get_label()


def test_a_model_has_its_colour_and_marker_in_every_figure():
    colours, markers = zip(*figures.LOOKS.values(), strict=True)
    assert list(figures.LOOKS) == list(TITLES)
    assert len(set(colours)) == len(set(markers)) == len(TITLES)
    (cost,) = figures.cost_figure(costs().assign(model="dcgan", steps=np.nan), "kid", "KID").axes
    (distributions,) = example("measure_distributions").axes
    group = figures.group_figure(group_rows().replace("acgan", "dcgan")).axes[0]
    use = example("utility_figure").axes[1]
    for line in (cost.lines[0], group.lines[0], use.lines[1]):
        assert (line.get_color(), line.get_marker()) == figures.LOOKS["dcgan"]
    assert same_color(distributions.patches[2].get_facecolor()[:3], figures.LOOKS["dcgan"][0])
