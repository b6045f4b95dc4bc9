"""What the figures hold: axes, series and values, and that no text of a diagram runs into another."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from hcm_helpers import diagrams, figures, notebook
from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.slices import Slices

DIAGRAMS = [diagrams.vae, diagrams.gan, diagrams.diffusion]
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
    rows = [
        (f"{group}{number}", group, phase, position)
        for group in ("HCM", "NOR")
        for number in range(2 if group == "HCM" else 1)
        for phase in ("ED", "ES")
        for position in (0.0, 0.4, 1.0)
    ]
    manifest = pd.DataFrame(rows, columns=["patient", "group", "phase", "position"])
    labels = torch.tensor([GROUPS.index(group) for group in manifest["group"]])
    masks = torch.zeros(18, 32, 32, dtype=torch.uint8)
    slices = Slices(numbered_images(18), labels, masks, manifest, "fingerprint")
    figure = figures.slice_gallery(slices, columns=2)
    assert texts(figure) == {"NOR0 · 0.40", "HCM0 · 0.40", "HCM1 · 0.40", "NOR", "HCM"}
    values = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    step = 32 + round(0.22 * 32)
    found = [values[3, 5], values[step + 3, 5], values[step + 3, 33 + 5]]
    assert found == pytest.approx([13 / 18, 1 / 18, 7 / 18])  # NOR comes first, as in GROUPS
    assert np.isnan(values[:32, 33:]).all()
    with pytest.raises(DataError, match="end-diastolic"):
        figures.slice_gallery(Slices(slices.images, labels, masks, manifest.assign(phase="ES"), ""))


def test_mask_overlay_outlines_each_structure_in_millimetres():
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, 8:24, 4:12] = 1
    mask[0, 8:24, 12:28] = 2
    mask[0, 12:20, 16:24] = 3
    figure = figures.mask_overlay(numbered_images(1), mask, pixel_mm=2.5, titles=["patient001"])
    (axes,) = figure.axes
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
        figures.mask_overlay(numbered_images(2), mask, 2.5)


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
    real = {"HCM": np.arange(10.0, 31.0), "NOR": [*np.arange(5.0, 16.0), np.nan]}
    generated = {"vae": np.full(50, 14.0), "gan": [12.0] * 9 + [np.nan] * 11}
    figure = figures.measure_distributions(real, generated, "largest wall (mm)")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["HCM (21)", "NOR (11)", "VAE (50)", "GAN (9)"]
    assert texts(figure) == {"9 of 20 slices can be measured, too few to draw"}
    assert len(axes.patches) == 3  # one histogram a set that can be drawn
    through = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    own = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-"]
    assert through == [20, 10]
    assert own == [20, 10, 14]
    vae = axes.patches[2].get_data()
    assert (vae.values < vae.baseline).sum() == 1  # all in one bin, upwards from the line
    top, bottom = vae.edges[:-1][vae.values < vae.baseline], vae.edges[1:][vae.values < vae.baseline]
    assert top[0] <= 14 <= bottom[0]


def test_cost_figure_has_a_point_a_model_and_a_line_of_steps():
    costs = pd.DataFrame(
        {"model": ["vae", "gan", "acgan"], "seconds_sampling": [1.0, 2.0, 3.0], "kid": [0.3, 0.1, None]}
    )
    steps = pd.DataFrame({"model": "diffusion", "steps": [50, 5], "seconds_sampling": [90.0, 9.0], "kid": [0.05, 0.2]})
    figure = figures.cost_figure(pd.concat([costs, steps]), "kid", "KID (less is better)")
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {"VAE": [[1, 0.3]], "GAN": [[2, 0.1]], "Diffusion": [[9, 0.2], [90, 0.05]]}
    assert {text.get_text(): text.xy for text in axes.texts} == {"5": (9, 0.2), "50": (90, 0.05)}
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "symlog", "KID (less is better)")
    with pytest.raises(DataError, match="no column ssim; it has model"):
        figures.cost_figure(costs, "ssim", "SSIM")
    assert len(figures.cost_figure(costs, "kid", "KID").axes[0].lines) == 2


def test_loss_curves_draw_each_column_and_ring_the_best_epoch():
    figure = figures.loss_curves(history(), ["generator", "critic"], title="GAN")
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["generator", "critic"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [2, 1, 2 / 3, 0.5])
    assert (left.get_xlabel(), left.get_ylabel(), left.get_title()) == ("epoch", "loss", "GAN")
    assert right.get_ylabel() == "validation"
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
    rows = [
        (model, pairing, metric, 0.4, 0.3, 0.45)
        for metric in ("SSIM", "MSE")
        for model, pairings in (
            ("vae", ("random", "nearest train", "nearest test")),
            ("real test slices", ["random"]),
        )
        for pairing in pairings
    ]
    table = pd.DataFrame(rows, columns=["model", "pairing", "metric", "value", "low", "high"])
    figure = figures.similarity_figure(table)
    ssim, mse = figure.axes
    assert (ssim.get_title(), mse.get_title()) == ("SSIM", "MSE")
    assert [label.get_text() for label in ssim.get_yticklabels()] == ["VAE", "real test slices"]
    assert len(ssim.containers) == len(mse.containers) == 3
    points, _, (bars,) = ssim.containers[0]
    assert points.get_xdata().tolist() == [0.4, 0.4]
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], [0.3, 0.45])
    (paper,) = [line for line in ssim.lines if line.get_label().startswith("paper")]
    assert paper.get_xydata().tolist() == [[0.9028, 0]]
    assert paper.get_markerfacecolor() == "none"
    assert not [line for line in mse.lines if line.get_label().startswith("paper")]
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == ["random", "nearest train", "nearest test", "paper (pairing not stated)"]
    assert ssim.get_ylim() == (1.5, -0.5)


def test_reactions_figure_shows_each_change_beside_the_undisturbed():
    rows = [
        (model, measure, value, value - 0.1, value + 0.2, 20, "images")
        for measure, values in (("KID", (2.0, 3.0, 1.0, 0.5)), ("recall", (0.2, 0.3, 0.4, 0.9)))
        for model, value in zip(("noise", "blur", "real test slices", "real train slices"), values, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["model", "measure", "value", "low", "high", "n", "drawn"])
    figure = figures.reactions_figure(table)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["KID\nlower is better", "recall\nhigher is better"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["noise", "blur"]
    line, dots = panels[0].lines[:2]
    assert list(line.get_xdata()) == [1.0, 1.0]
    assert list(dots.get_xdata()) == [2.0, 3.0]
    (bars,) = panels[1].collections
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [
        pytest.approx([0.1, 0.4]),
        pytest.approx([0.2, 0.5]),
    ]


def test_power_spectra_stand_beside_their_share_of_the_real_one():
    noise = torch.randn(40, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    real, fainter = noise[:20], noise[:20] * torch.tensor(0.5)
    figure = figures.power_spectrum_figure(real, {"alike": real, "fainter": fainter}, pixel_mm=2.0)
    left, right = figure.axes
    frequencies = [line.get_xdata() for line in left.lines]
    assert all(np.allclose(found, np.arange(1, 17) / 64) for found in frequencies)  # 32 pixels of 2 mm
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["real", "alike", "fainter"]
    shares = {line.get_color(): line.get_ydata() for line in right.lines if len(line.get_xdata()) == 16}
    colours = [line.get_color() for line in left.lines]
    assert shares[colours[1]] == pytest.approx(np.ones(16))
    assert shares[colours[2]] == pytest.approx(np.full(16, 0.25))  # half the contrast, a quarter of the power
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["fainter: half at 0.016 per mm"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["cycles per mm"] * 2


def test_closest_pairs_stand_above_their_training_slices():
    train = Slices(numbered_images(8), None, None, None, "")
    pairs = pd.DataFrame({"cc": [0.9, 0.8], "cc_row": [5, 2], "patient": ["patient005", "patient002"]}, index=[3, 0])
    figure = figures.closest_pairs_figure(numbered_images(4), train, pairs)
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


@pytest.mark.parametrize("draw", [*DIAGRAMS, diagrams.acgan, diagrams.infogan])
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
    assert [path.name for path in paths[0]] == ["figure_02_gan.png", "figure_02_gan.svg"]
    for first, second in zip(*paths, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "figure_02_gan.png",
        "figure_02_gan.svg",
    ]
    assert b"<dc:date>" not in paths[0][1].read_bytes()


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
    rows = [
        (model, group, measure, value, value - 0.1, value + 0.2, 10)
        for model, shift in (("acgan", 0.0), ("real test slices", 0.3))
        for measure, value in (("recognised", 0.4 + shift), ("MS-SSIM", 0.2 + shift))
        for group in ("NOR", "HCM", "all")
    ]
    table = pd.DataFrame(rows, columns=["model", "group", "measure", "value", "low", "high", "n"])
    figure = figures.group_figure(table)
    left, right = figure.axes
    assert [container.get_label() for container in left.containers] == ["ACGAN", "real test slices"]
    points = [container.lines[0].get_xdata().tolist() for axes in (left, right) for container in axes.containers]
    assert points == [pytest.approx([value] * 3) for value in (0.4, 0.7, 0.2, 0.5)]
    bars = left.containers[0].lines[2][0].get_segments()
    assert [(bar[0][0], bar[1][0]) for bar in bars] == [pytest.approx((0.3, 0.6))] * 3
    assert left.lines[-1].get_xdata()[0] == 0.5  # by chance, of two groups
    assert [label.get_text() for label in left.get_yticklabels()] == ["NOR", "HCM", "all"]


def test_correlation_map_says_value_and_interval_in_its_place():
    rows = [
        (1, "b", 0.5, 0.4, 0.6),
        (1, "a", -0.9, -0.95, -0.8),
        (2, "b", np.nan, np.nan, np.nan),
        (2, "a", 0, -0.1, 0.1),
    ]
    table = pd.DataFrame(rows, columns=["code", "measure", "value", "low", "high"])
    (axes,) = figures.correlation_map(table, {"a": "area", "b": "brightness"}).axes
    np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), [[-0.9, 0.5], [0, np.nan]])
    found = {text.get_position(): text.get_text() for text in axes.texts}
    assert found[0, 0] == "-0.90\n[-0.95, -0.80]"
    assert found[1, 1] == "too few"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["area", "brightness"]
