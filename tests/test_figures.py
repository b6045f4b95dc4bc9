"""What the figures hold: axes, series and values, pictures in their places, files for print."""

import base64
import io
import itertools
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from pictures import (
    WALLS,
    correlations,
    costs,
    gallery,
    group_rows,
    history,
    intervals,
    numbered_images,
    one_mask,
    pairs,
    points,
    reactions,
    similarities,
    spectra,
    texts,
)
from PIL import Image

from hcm_helpers import diagrams, figures
from hcm_helpers.acdc import DataError

DIAGRAMS = [diagrams.vae, diagrams.gan, diagrams.diffusion]  # the paper's
GAMES = {diagrams.dcgan: "halve", diagrams.acgan: "group $c$", diagrams.infogan: "code $c$"}  # and what is new in each


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
