"""What the figures hold: axes, series and values; and that each can be read: letters, places, colours, grey print."""

import base64
import io
import itertools
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import same_color, to_hex
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.text import Text
from PIL import Image

import hcm_helpers
from hcm_helpers import diagrams, figures, notebook, widgets
from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.similarity import TITLES
from hcm_helpers.slices import Slices

DIAGRAMS = [diagrams.vae, diagrams.gan, diagrams.diffusion]  # the paper's
GAMES = {diagrams.dcgan: "halve", diagrams.acgan: "group $c$", diagrams.infogan: "code $c$"}  # and what is new in each


def history(epochs=4):
    epoch = np.arange(1, epochs + 1)
    validation = [0.9, np.nan, 0.3, 0.5, *np.full(epochs, 0.6)][:epochs]
    return pd.DataFrame({"epoch": epoch, "generator": 2.0 / epoch, "critic": epoch, "validation": validation})


def texts(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()}


def numbered_images(count, size=32):
    """Image i is −1 everywhere, but for one pixel of value i / count."""
    images = -torch.ones(count, 1, size, size)
    images[:, 0, 3, 5] = torch.arange(count) / count
    return images


def intervals(axes):
    """The ends of every interval drawn, from the first on."""
    lines = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    return [segment[:, 0].tolist() for segments in lines for segment in segments.get_segments()]


def points(axes):
    """The places of every series of points, in the order drawn."""
    return [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "None"]


def gallery():
    rows = [
        (f"{group}{number}", group, phase, position)
        for group in ("HCM", "NOR")
        for number in range(2 if group == "HCM" else 1)
        for phase in ("ED", "ES")
        for position in (0.0, 0.4, 1.0)
    ]
    manifest = pd.DataFrame(rows, columns=["patient", "group", "phase", "position"])
    labels = torch.tensor([GROUPS.index(group) for group in manifest["group"]])
    return Slices(numbered_images(18), labels, torch.zeros(18, 32, 32, dtype=torch.uint8), manifest, "fingerprint")


def one_mask():
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, 8:24, 4:12] = 1
    mask[0, 8:24, 12:28] = 2
    mask[0, 12:20, 16:24] = 3
    return mask


def costs():
    models = {"model": ["vae", "gan", "acgan"], "seconds_sampling": [1.0, 2.0, 3.0], "kid": [0.3, 0.1, None]}
    steps = {"model": "diffusion", "steps": [50, 5], "seconds_sampling": [90.0, 9.0], "kid": [0.05, 0.2]}
    return pd.concat([pd.DataFrame(models), pd.DataFrame(steps)])


def similarities():
    rows = [
        (model, pairing, metric, 0.4, 0.3, 0.45)
        for metric in ("SSIM", "MSE")
        for model, pairings in (
            ("vae", ("random", "nearest train", "nearest test")),
            ("real test slices", ["random"]),
        )
        for pairing in pairings
    ]
    return pd.DataFrame(rows, columns=["model", "pairing", "metric", "value", "low", "high"])


def reactions():
    rows = [
        (model, measure, value, value - 0.1, value + 0.2, 20, "images")
        for measure, values in (("KID", (2.0, 3.0, 1.0, 0.5)), ("recall", (0.2, 0.3, 0.4, 0.9)))
        for model, value in zip(("noise", "blur", "real test slices", "real train slices"), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["model", "measure", "value", "low", "high", "n", "drawn"])


def group_rows():
    """The interval of HCM lies beside its value, as those of a biased measure may; all groups together have none."""
    ends = {"NOR": (-0.1, 0.2), "HCM": (0.05, 0.2), "all": (np.nan, np.nan)}
    rows = [
        (model, group, measure, value, value + ends[group][0], value + ends[group][1], 10)
        for model, shift in (("acgan", 0.0), ("real test slices", 0.3))
        for measure, value in (("recognised", 0.4 + shift), ("MS-SSIM", 0.2 + shift))
        for group in ends
    ]
    return pd.DataFrame(rows, columns=["model", "group", "measure", "value", "low", "high", "n"])


def correlations():
    rows = [
        (1, "b", 0.5, 0.4, 0.6),
        (1, "a", -0.9, -0.95, -0.8),
        (2, "b", np.nan, np.nan, np.nan),
        (2, "a", 0, -0.1, 0.1),
    ]
    return pd.DataFrame(rows, columns=["code", "measure", "value", "low", "high"])


def uses():
    """Two arms beside 2 and all patients; the DCGAN has seen more than 2."""
    rows = [
        (
            patients,
            arm,
            model,
            model == "dcgan" and patients == 2,
            "patient",
            "AUC",
            0.7,
            0.6,
            0.9,
            0.1,
            -0.1,
            0.2,
            verdict,
        )
        for patients in (2, 0)
        for arm, model, verdict in (("real only", "–", "–"), ("real + DCGAN ×1", "dcgan", "no difference"))
    ]
    names = ["patients", "arm", "model", "leaks", "level", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "gain", "gain_low", "gain_high", "verdict"])


def spectra():
    noise = torch.randn(20, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return figures.power_spectrum_figure(noise, {"alike": noise, "fainter": noise * 0.5}, pixel_mm=2.0)


def pairs():
    table = pd.DataFrame({"cc": [0.9, 0.8], "cc_row": [5, 2], "patient": ["patient005", "patient002"]}, index=[3, 0])
    return figures.closest_pairs_figure(numbered_images(4), Slices(numbered_images(8), None, None, None, ""), table)


def pair():
    found = pd.DataFrame({"cc": [0.9, 0.8], "cc_row": [5, 2], "patient": ["patient005", "patient002"]}, index=[3, 0])
    return widgets.pair_figure(numbered_images(4), Slices(numbered_images(8), None, None, None, ""), found, 0, 0.85)


WALLS = {"HCM": np.arange(10.0, 31.0), "NOR": [*np.arange(5.0, 16.0), np.nan]}
EXAMPLES = {  # one a figure function
    "vae": diagrams.vae,
    "gan": diagrams.gan,
    "dcgan": diagrams.dcgan,
    "acgan": diagrams.acgan,
    "infogan": diagrams.infogan,
    "diffusion": diagrams.diffusion,
    "series": diagrams.series,
    "image_grid": lambda: figures.image_grid(numbered_images(4), 2, list("abcd"), ["up", "down"], "Four"),
    "slice_gallery": lambda: figures.slice_gallery(gallery()),
    "mask_overlay": lambda: figures.mask_overlay(numbered_images(5), one_mask().expand(5, -1, -1), 2.5, list("abcde")),
    "loss_curves": lambda: figures.loss_curves(history(40), ["generator", "critic"], title="GAN"),
    "original_and_generated": lambda: figures.original_and_generated(
        numbered_images(1)[0], dict.fromkeys(TITLES, numbered_images(1)[0])
    ),
    "similarity_figure": lambda: figures.similarity_figure(similarities()),
    "reactions_figure": lambda: figures.reactions_figure(reactions()),
    "power_spectrum_figure": spectra,
    "closest_pairs_figure": pairs,
    "utility_figure": lambda: figures.utility_figure(uses()),
    "anatomy_overlay": lambda: figures.anatomy_overlay(
        {
            "real": (numbered_images(2), one_mask().expand(2, -1, -1)),
            "VAE": (numbered_images(2), torch.zeros(2, 32, 32)),
        },
        pixel_mm=2.5,
    ),
    "measure_distributions": lambda: figures.measure_distributions(
        WALLS, {"dcgan": np.full(50, 14.0), "gan": [12.0] * 9 + [np.nan] * 11}, "largest wall (mm)"
    ),
    "cost_figure": lambda: figures.cost_figure(costs(), "kid", "KID (less is better)"),
    "group_figure": lambda: figures.group_figure(group_rows()),
    "correlation_map": lambda: figures.correlation_map(correlations(), {"a": "area", "b": "brightness"}),
    "measured": lambda: widgets.measured(numbered_images(3), one_mask().expand(3, -1, -1), 2.5),
    "marked_row": lambda: widgets.marked_row(numbered_images(3), list("abc"), 1),
    "pair_figure": pair,
    "readers_figure": lambda: widgets.readers_figure(widgets.score([True] * 20, [True, False] * 10)),
}
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


@cache
def example(name):
    return EXAMPLES[name]()


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


def test_image_grid_puts_every_image_in_its_place():
    figure = figures.image_grid(numbered_images(6), columns=4, title="Six")
    (axes,) = figure.axes
    (picture,) = axes.images
    assert picture.get_clim() == (-1, 1)
    assert picture.get_cmap().name == "gray"
    values = np.ma.filled(picture.get_array(), np.nan)
    assert values.shape == (2 * 32 + 1, 4 * 32 + 3)
    for i, (top, left) in enumerate([(0, 0), (0, 33), (0, 66), (0, 99), (33, 0), (33, 33)]):
        tile = values[top : top + 32, left : left + 32]
        assert tile[3, 5] == pytest.approx(i / 6)
        assert (np.delete(tile.ravel(), 3 * 32 + 5) == -1).all()
    assert np.isnan(values[32]).all()
    assert np.isnan(values[33:, 66:]).all()
    assert axes.get_title() == "Six"


def test_image_grid_of_one_image_has_one_column():
    (picture,) = figures.image_grid(numbered_images(1)).axes[0].images
    assert picture.get_array().shape == (32, 32)


def test_titles_stand_above_their_images():
    figure = figures.image_grid(numbered_images(4), columns=2, titles=list("abcd"), row_titles=["up", "down"])
    (axes,) = figure.axes
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places["a"][0] == places["c"][0] < places["b"][0] == places["d"][0]
    assert places["a"][1] == places["b"][1] < 0 < places["c"][1]
    assert places["up"][0] < 0
    assert places["up"][1] < places["c"][1] < places["down"][1]
    assert_texts_apart(figure)


def test_original_comes_first_and_the_models_by_name():
    images = numbered_images(3)
    figure = figures.original_and_generated(images[0], {"vae": images[1], "dcgan": images[2]})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["Original", "VAE", "DCGAN"]
    values = axes.images[0].get_array()
    assert [values[3, 5 + 33 * i] for i in range(3)] == pytest.approx([0, 1 / 3, 2 / 3])


def test_slice_gallery_shows_the_middle_slice_of_each_patient():
    slices = gallery()
    figure = figures.slice_gallery(slices, columns=2)
    assert texts(figure) == {"NOR0 · 0.40", "HCM0 · 0.40", "HCM1 · 0.40", "NOR", "HCM"}
    values = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    step = 32 + round(0.22 * 32)
    found = [values[3, 5], values[step + 3, 5], values[step + 3, 33 + 5]]
    assert found == pytest.approx([13 / 18, 1 / 18, 7 / 18])  # NOR comes first, as in GROUPS
    assert np.isnan(values[:32, 33:]).all()
    with pytest.raises(DataError, match="end-diastolic"):
        figures.slice_gallery(replace(slices, manifest=slices.manifest.assign(phase="ES")))


def test_mask_overlay_outlines_each_structure_in_millimetres():
    image = numbered_images(2)[1:]
    figure = figures.mask_overlay(image, one_mask(), pixel_mm=2.5, titles=["patient001"])
    (axes,) = figure.axes
    assert np.array_equal(axes.images[0].get_array(), image[0, 0])
    assert axes.images[0].get_clim() == (-1, 1)
    assert axes.images[0].get_extent() == [0, 80, 80, 0]
    assert axes.get_xlim() == (0, 80)
    assert axes.get_ylim() == (80, 0)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("x (mm)", "y (mm)", "patient001")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "right ventricle",
        "myocardium",
        "left ventricle",
    ]
    outlines = [c for c in axes.collections if len(c.get_linewidths()) and not c.filled]
    edges = [np.concatenate([path.vertices for path in outline.get_paths()]) for outline in outlines]
    # The outline runs between the centres of the pixels on its two sides, which is the pixel's border.
    for vertices, (left, right, top, bottom) in zip(
        edges, [(4, 12, 8, 24), (12, 28, 8, 24), (16, 24, 12, 20)], strict=True
    ):
        expected = np.array([left, top, right, bottom]) * 2.5
        np.testing.assert_allclose([*vertices.min(0), *vertices.max(0)], expected)
    with pytest.raises(DataError, match="differ"):
        figures.mask_overlay(numbered_images(2), one_mask(), 2.5)


def ring(thickness, size=32):
    """A cavity of 5 pixels in a wall of the given thickness."""
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(x - 16, y - 16)
    return torch.from_numpy(np.select([distance < 5, distance < 5 + thickness], [3, 2]).astype(np.uint8))


def test_anatomy_overlay_says_how_thick_or_why_not():
    cut = ring(4)
    cut[14:19, 16:] = 0
    sets = {
        "real": (numbered_images(3), torch.stack([ring(3), ring(6), ring(0)])),
        "VAE": (numbered_images(3), torch.stack([ring(4), cut, torch.zeros_like(cut)])),
    }
    figure = figures.anatomy_overlay(sets, pixel_mm=1.0)
    assert [axes.get_title() for axes in figure.axes] == [
        "plausible, up to 3 mm",
        "plausible, up to 6 mm",
        "no wall",
        "plausible, up to 4 mm",
        "the wall is open",
        "no wall",
    ]
    colours = [axes.title.get_color() for axes in figure.axes]
    good, bad = figures.GREEN, figures.RED
    assert colours == [good, good, bad, good, bad, bad]
    assert [axes.get_ylabel() for axes in figure.axes] == ["real\ny (mm)", "", "", "VAE\ny (mm)", "", ""]
    assert figure.axes[3].images[0].get_array()[3, 5] == pytest.approx(0)
    assert figure.axes[5].images[0].get_array()[3, 5] == pytest.approx(2 / 3)


def test_distributions_stand_under_each_other_with_the_real_medians_through_them():
    generated = {"vae": np.full(50, 14.0), "gan": [12.0] * 9 + [np.nan] * 11}
    figure = figures.measure_distributions(WALLS, generated, "largest wall (mm)")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["HCM (21)", "NOR (11)", "VAE (50)", "GAN (9)"]
    assert texts(figure) == {"9 of 20 slices can be measured, too few to draw"}
    assert len(axes.patches) == 3  # one histogram a set that can be drawn
    through = {line.get_label(): line.get_xdata()[0] for line in axes.lines if line.get_linestyle() != "-"}
    own = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-"]
    assert through == {"median of HCM": 20, "median of NOR": 10}
    assert own == [20, 10, 14]
    vae = axes.patches[2].get_data()
    assert (vae.values < vae.baseline).sum() == 1  # all in one bin, upwards from the line
    top, bottom = vae.edges[:-1][vae.values < vae.baseline], vae.edges[1:][vae.values < vae.baseline]
    assert top[0] <= 14 <= bottom[0]


def test_cost_figure_has_a_point_a_model_and_a_line_of_steps():
    figure = figures.cost_figure(costs(), "kid", "KID (less is better)")
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {"VAE": [[1, 0.3]], "GAN": [[2, 0.1]], "Diffusion, in steps": [[9, 0.2], [90, 0.05]]}
    assert {text.get_text(): text.xy for text in axes.texts} == {"5": (9, 0.2), "50": (90, 0.05)}
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "symlog", "KID (less is better)")
    with pytest.raises(DataError, match="no column ssim; it has model"):
        figures.cost_figure(costs().drop(columns="steps"), "ssim", "SSIM")
    assert len(figures.cost_figure(costs().iloc[:3].drop(columns="steps"), "kid", "KID").axes[0].lines) == 2


def test_loss_curves_draw_each_column_and_ring_the_best_epoch():
    figure = figures.loss_curves(history(), ["generator", "critic"], title="GAN")
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["generator", "critic"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [2, 1, 2 / 3, 0.5])
    assert (left.get_xlabel(), left.get_ylabel(), left.get_title()) == ("epoch", "loss", "GAN")
    assert right.get_xlim() == left.get_xlim()
    curve, ring = right.lines
    assert curve.get_xdata().tolist() == [1, 3, 4]  # the epoch without a validation is left out
    assert (ring.get_xdata().item(), ring.get_ydata().item()) == (3, 0.3)
    assert ring.get_label() == "best, epoch 3"


def test_loss_and_validation_share_axes_where_asked():
    figure = figures.loss_curves(history(), ["generator", "validation"], validation=False)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["generator", "validation", "best, epoch 3"]


def test_one_epoch_is_visible_as_a_point():
    (axes,) = figures.loss_curves(history(1), ["generator"], validation=False).axes
    assert axes.lines[0].get_marker() == "o"


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match="no column loss; it has epoch, generator"):
        figures.loss_curves(history(), ["loss"])


def test_similarity_figure_shows_ours_the_papers_and_the_real_rows():
    figure = figures.similarity_figure(similarities())
    ssim, mse = figure.axes
    assert (ssim.get_title(), mse.get_title()) == ("SSIM", "MSE")
    assert [label.get_text() for label in ssim.get_yticklabels()] == ["VAE", "real test slices"]
    assert points(ssim)[:3] == [[[0.4, -0.22], [0.4, 0.78]], [[0.4, 0]], [[0.4, 0.22]]]
    assert intervals(ssim) == [pytest.approx([0.3, 0.45])] * 4
    assert points(ssim)[3:] == [[[0.9028, 0]], []]
    assert points(mse)[3:] == [[], []]
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == ["random", "nearest train", "nearest test", "95 % interval", "paper (pairing not stated)"]
    assert ssim.get_ylim() == (1.5, -0.5)


def test_reactions_figure_shows_each_change_beside_the_undisturbed():
    panels = figures.reactions_figure(reactions()).axes
    assert [axes.get_title() for axes in panels if axes.axison] == ["KID", "recall"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["noise", "blur"]
    assert panels[0].lines[0].get_xdata() == [1.0, 1.0]
    band = panels[0].patches[0].get_extents().transformed(panels[0].transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((0.9, 1.2))
    assert points(panels[0]) == [[[2, 0], [3, 1]]]
    assert intervals(panels[1]) == [pytest.approx([0.1, 0.4]), pytest.approx([0.2, 0.5])]


def test_power_spectra_stand_beside_their_share_of_the_real_one():
    figure = spectra()
    left, right = figure.axes
    frequencies = [line.get_xdata() for line in left.lines]
    assert all(np.allclose(found, np.arange(1, 17) / 64) for found in frequencies)  # 32 pixels of 2 mm
    names = ["real", "80 % of the real slices", "alike", "fainter: half at 0.016 per mm"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    shares = {line.get_color(): line.get_ydata() for line in right.lines if len(line.get_xdata()) == 16}
    colours = [line.get_color() for line in left.lines]
    assert shares[colours[1]] == pytest.approx(np.ones(16))
    assert shares[colours[2]] == pytest.approx(np.full(16, 0.25))  # half the contrast, a quarter of the power
    assert points(right)[1] == [[pytest.approx(1 / 64), 0.5]]


def test_the_band_of_a_power_spectrum_holds_eight_in_ten_slices():
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    contrasts = torch.arange(1.0, 12.0).sqrt()[:, None, None, None]  # whose powers go as 1, 2, …, 11
    right = figures.power_spectrum_figure(image * contrasts, {}, pixel_mm=2.0).axes[1]
    (band,) = [collection for collection in right.collections if isinstance(collection, PolyCollection)]
    ends = band.get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((2 / 6, 10 / 6))


def test_closest_pairs_stand_above_their_training_slices():
    figure = pairs()
    (axes,) = figure.axes
    names = {"CC 0.90", "CC 0.80", "patient005", "patient002", "generated", "training"}
    assert texts(figure) == names
    values, step = axes.images[0].get_array(), 32 + round(0.22 * 32)
    found = [values[3, 5], values[3, 38], values[step + 3, 5], values[step + 3, 38]]
    assert found == pytest.approx([3 / 4, 0, 5 / 8, 2 / 8])


def test_diagrams_name_the_parts_that_the_paper_names():
    vae, gan, diffusion = (" ".join(sorted(texts(draw()))) for draw in DIAGRAMS)
    for word in (
        "input",
        "Encoder",
        r"\mu",
        r"\sigma",
        "$z$",
        r"\epsilon",
        "Decoder",
        "reconstruction",
        "KL",
    ):
        assert word in vae
    for word in ("noise", "Generator", "real", "generated", "Discriminator", r"\max_D", r"\max_G"):
        assert word in gan
    for word in ("Forward", "Reverse", "$x_0$", "$x_{t-1}$", "$x_t$", "$x_T", "U-Net", r"p_\theta", "$q("):
        assert word in diffusion
    arrows = [sum(isinstance(p, FancyArrowPatch) for p in draw().axes[0].patches) for draw in DIAGRAMS]
    assert arrows == [8, 7, 7]


@pytest.mark.parametrize("draw", GAMES)
def test_diagrams_of_the_other_games_name_what_is_new(draw):
    figure = draw()
    written = " ".join(texts(figure))
    for word in ("Generator", "Discriminator", "drawn?", GAMES[draw]):
        assert word in written
    assert_texts_apart(figure)


def extents(figure, artists):
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


def assert_texts_apart(figure):
    artists = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    for (a, text), (b, other) in itertools.combinations(zip(extents(figure, artists), artists, strict=True), 2):
        assert not a.overlaps(b), (text.get_text(), other.get_text())


@pytest.mark.parametrize("draw", [*DIAGRAMS, diagrams.acgan, diagrams.infogan, diagrams.series])
def test_nothing_in_a_diagram_overlaps(draw):
    figure = draw()
    assert_texts_apart(figure)
    (axes,) = figure.axes
    boxes = extents(figure, [p for p in axes.patches if isinstance(p, (FancyBboxPatch, Polygon))])
    pictures = extents(figure, axes.images)
    for a, b in itertools.combinations(boxes + pictures, 2):
        assert not a.overlaps(b)
    sheet = figure.bbox
    for text in extents(figure, axes.texts):
        assert sheet.x0 <= text.x0 < text.x1 <= sheet.x1
        assert sheet.y0 <= text.y0 < text.y1 <= sheet.y1
        for box in boxes:
            inside = box.x0 < text.x0 and text.x1 < box.x1 and box.y0 < text.y0 and text.y1 < box.y1
            assert inside or not box.overlaps(text)
        assert not any(picture.overlaps(text) for picture in pictures)


def test_the_same_figure_gives_the_same_files(tmp_path):
    paths = [figures.save(diagrams.gan(), tmp_path / name, "figure_02_gan") for name in "ab"]
    assert [path.name for path in paths[0]] == ["figure_02_gan.svg", "figure_02_gan.pdf", "figure_02_gan.png"]
    for first, second in zip(*paths, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in paths[0])
    assert b"<dc:date>" not in paths[0][0].read_bytes()


def test_files_for_print_hold_letters_and_every_pixel(tmp_path):
    figure = figures.image_grid(numbered_images(6), columns=4, title="Six")
    svg, pdf, png = figures.save(figure, tmp_path, "six")
    fonts = pdf.read_bytes()
    assert b"/FontFile2" in fonts  # TrueType, type 42
    assert b"/Type3" not in fonts
    (embedded,) = re.findall(r"data:image/png;base64,([^\"]+)", svg.read_text())
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(embedded))).convert("LA"))
    assert pixels.shape[:2] == figure.axes[0].images[0].get_array().shape
    assert pixels[3, 5 + 33 * 3, 0] == pytest.approx(255 * 0.75, abs=1)  # 3 / 6 of [−1, 1]
    assert (pixels[32, :, 1] == 0).all()  # the gap is left open
    assert figure.axes[0].images[0].get_interpolation() != "none"  # on the screen as before
    with Image.open(png) as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_figures_do_not_pile_up_in_pyplot():
    before = plt.get_fignums()
    figures.image_grid(numbered_images(2))
    assert plt.get_fignums() == before


def test_show_source_is_the_source_of_a_method(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", shown.append)
    notebook.show_source(Slices.__len__, DataError)
    method, error = (markdown.data for markdown in shown)
    assert method == "```python\ndef __len__(self) -> int:\n    return len(self.images)\n```"
    assert error.startswith("```python\nclass DataError(ValueError):\n")


def test_slider_waits_until_it_is_let_go(monkeypatch):
    shown, calls = [], []
    monkeypatch.setattr(notebook, "display", shown.append)
    notebook.slider(lambda beta, kind: calls.append((beta, kind)), beta=(0.0, 4.0, 0.5), kind=["mean", "sample"])
    beta, kind = shown[0].children[:2]
    assert beta.continuous_update is False
    beta.value = 3.5
    kind.value = "sample"
    assert calls[-1] == (3.5, "sample")


def test_group_figure_has_a_point_a_set_and_group():
    left, right = figures.group_figure(group_rows()).axes
    assert [line.get_label() for line in left.lines[:2]] == ["ACGAN", "real test slices"]
    values = [[x for x, _ in series] for axes in (left, right) for series in points(axes)]
    assert values == [pytest.approx([value] * 3) for value in (0.4, 0.7, 0.2, 0.5)]
    assert intervals(left)[:2] == [pytest.approx([0.3, 0.6]), pytest.approx([0.45, 0.6])]
    assert left.lines[-1].get_xdata()[0] == 0.5  # by chance, of two groups
    assert [label.get_text() for label in left.get_yticklabels()] == ["NOR", "HCM", "all"]


def test_correlation_map_says_value_and_interval_in_its_place():
    axes, _ = figures.correlation_map(correlations(), {"a": "area", "b": "brightness"}).axes
    np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), [[-0.9, 0.5], [0, np.nan]])
    assert axes.images[0].get_clim() == (-1, 1)
    found = {text.get_position(): text.get_text() for text in axes.texts}
    assert found[0, 0] == "−0.90\n[−0.95, −0.80]"
    assert found[1, 1] == "too few"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["area", "brightness"]
