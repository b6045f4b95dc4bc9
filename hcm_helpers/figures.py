"""Every picture of the series, one function a figure. Each returns a Figure, and `save` writes it.

Images are the package's own, in [−1, 1], always drawn with black at −1 and white at 1, so that two pictures
can be compared by eye. Colours are those of Okabe and Ito, which colour-blind people tell apart; series differ in
marker or line as well, for a print in grey. Importing this module sets the style of every plot of the session.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullFormatter
from torch import Tensor

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.alt_text import say_in_notebooks
from hcm_helpers.anatomy import FEWEST, measure_all
from hcm_helpers.fidelity import MEASURES, half_power, power_spectrum
from hcm_helpers.files import write_whole
from hcm_helpers.similarity import METRICS, PAIRINGS, PAPER, REAL_TEST, REAL_TRAIN, REFERENCE_ROWS, TITLES
from hcm_helpers.slices import Slices
from hcm_helpers.utility import patients_in_words

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, SOFT, PALE = "#222222", "#777777", "#aaaaaa"
LOOKS = {  # the colour and marker of a model, in every figure; what is real is INK
    "vae": (ORANGE, "o"),
    "gan": (SKY, "s"),
    "dcgan": (GREEN, "^"),
    "acgan": (BLUE, "D"),
    "infogan": (PURPLE, "v"),
    "diffusion": (RED, "P"),
}
STRUCTURES = {
    1: ("right ventricle", BLUE),
    2: ("myocardium", ORANGE),
    3: ("left ventricle", RED),
}  # ACDC's values
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY]),
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "mathtext.fontset": "dejavusans",
    "figure.facecolor": "white",
    "image.cmap": "gray",
    "figure.constrained_layout.h_pad": 0.06,  # inches
    "figure.dpi": 80,  # on the screen: a stored notebook should stay small
    "savefig.dpi": 300,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,  # letters stay letters, of an embedded TrueType font: to be searched, copied and edited
    "svg.hashsalt": "hcm",  # the same figure gives the same bytes
}
mpl.rcParams.update(STYLE)
say_in_notebooks()


def _key(label: str, **look) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], **{"color": INK, "label": label} | look)


INTERVAL = _key("95 % interval", color=SOFT, lw=1.5)
BELOW = {"loc": "outside lower center", "ncols": 5}


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write folder/name.svg, .pdf and .png, each under a temporary name first, and return the three paths.

    The SVG's letters are outlines, which look alike in every browser; the PDF embeds its font. Both hold the images
    pixel by pixel, for they may be printed at any size.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = [(image, image.get_interpolation()) for image in figure.findobj(AxesImage)]
    paths = []
    for suffix, changing in (("svg", "Date"), ("pdf", "CreationDate"), ("png", "Software")):
        for image, on_screen in images:
            image.set_interpolation(on_screen if suffix == "png" else "none")
        settings = {"format": suffix, "metadata": {changing: None}}
        paths.append(folder / f"{name}.{suffix}")
        write_whole(paths[-1], lambda path, settings=settings: figure.savefig(path, **settings))
    return paths


def image_grid(
    images: Tensor,
    columns: int = 8,
    titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Images side by side, row after row, with white between them.

    Args:
        images: (N, 1, H, W) in [−1, 1]; an image of NaN leaves its place white.
        columns: images in a row; fewer if there are fewer.
        titles: a text above each image.
        row_titles: a text to the left of each row.
        title: a text above all.
    """
    images = images.detach().float().cpu()[:, 0].numpy()
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[1:]
    gap = max(1, width // 24)
    gap_above = gap if titles is None else max(gap, round(0.22 * width))
    step_down, step_right = height + gap_above, width + gap
    picture = np.full((rows * step_down - gap_above, columns * step_right - gap), np.nan)
    corners = [(i // columns * step_down, i % columns * step_right) for i in range(len(images))]
    for image, (top, left) in zip(images, corners, strict=True):
        picture[top : top + height, left : left + width] = image

    dpi = mpl.rcParams["figure.dpi"]
    side = min(9 / columns, 1.3 if len(images) > 2 else 2.6)  # of an image, inches, about
    inch = max(1, int(side * dpi / width + 0.4)) / dpi  # a pixel's: whole dots on the screen
    figure, axes = empty_figure(picture.shape[1] * inch, picture.shape[0] * inch)
    axes.set_position([0, 0, 1, 1])
    axes.set_axis_off()
    axes.imshow(picture, vmin=-1, vmax=1, interpolation="nearest")
    for text, (top, left) in zip(titles or (), corners, strict=False):
        axes.text(left + width / 2, top - gap, text, ha="center", va="bottom", fontsize=8)
    for row, text in enumerate(row_titles or ()):
        centre = row * step_down + height / 2
        axes.text(-3 * gap, centre, text, ha="right", va="center", fontsize=10, fontweight="bold")
    lift = 6 if titles is None else 18
    axes.set_title(title or "", pad=lift, y=1)  # without y its place is sought, for half of the time of the drawing
    return figure


def slice_gallery(slices: Slices, columns: int = 6) -> Figure:
    """A row a group, with the middle end-diastolic slice of its first patients, named patient and position.

    Args:
        slices: as `load_slices` gives them.
        columns: patients in a row; places stay white where a group has fewer.
    """
    manifest = slices.manifest.reset_index(drop=True)
    manifest = manifest[manifest["phase"] == "ED"]
    groups = [group for group in GROUPS if (manifest["group"] == group).any()]
    if not groups:
        raise DataError("these slices hold no end-diastolic one; load them without a filter")
    images, titles = [], []
    for group in groups:
        patients = manifest[manifest["group"] == group].groupby("patient")
        middle = [rows.loc[(rows["position"] - 0.5).abs().idxmin()] for _, rows in patients][:columns]
        images += [slices.images[row.name] for row in middle]
        images += [torch.full_like(slices.images[0], float("nan"))] * (columns - len(middle))
        titles += [f"{row['patient']} · {row['position']:.2f}" for row in middle] + [""] * (columns - len(middle))
    return image_grid(torch.stack(images), columns, titles, row_titles=groups)


def mask_overlay(
    images: Tensor, masks: Tensor, pixel_mm: float, titles: Sequence[str] | None = None, columns: int = 4
) -> Figure:
    """Slices with the outline and a tint of each structure that their masks mark, on axes in millimetres.

    Args:
        images: (N, 1, H, W) in [−1, 1].
        masks: (N, H, W) with ACDC's values: 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle.
        pixel_mm: side of a pixel in mm.
        titles: a text above each slice.
        columns: slices in a row.
    """
    if images.shape[:1] + images.shape[2:] != masks.shape:
        raise DataError(f"images {tuple(images.shape)} and masks {tuple(masks.shape)} differ; take them from one set")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = empty_figure(2.5 * columns, 2.6 * rows + 0.4, rows, columns, layout="constrained")
    height, width = (size * pixel_mm for size in masks.shape[1:])
    extent = (0, width, height, 0)
    for i, ax in enumerate(np.ravel(axes)):
        if i >= len(images):
            ax.set_axis_off()
            continue
        ax.imshow(images[i, 0].cpu().numpy(), vmin=-1, vmax=1, extent=extent)
        for value, (_, colour) in STRUCTURES.items():
            inside = (masks[i].cpu().numpy() == value).astype(float)
            if inside.any():
                ax.contourf(inside, levels=[0.5, 1.5], colors=[colour], alpha=0.2, extent=extent, origin="upper")
                ax.contour(inside, levels=[0.5], colors=[colour], linewidths=1.2, extent=extent, origin="upper")
        ax.grid(False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MultipleLocator(50))
        lowest, leftmost = i + columns >= len(images), i % columns == 0
        ax.set(title=titles[i] if titles else "", xlabel="x (mm)" * lowest, ylabel="y (mm)" * leftmost)
        ax.tick_params(bottom=lowest, labelbottom=lowest, left=leftmost, labelleft=leftmost)
    handles = [Patch(facecolor=colour, alpha=0.6, label=name) for name, colour in STRUCTURES.values()]
    figure.legend(handles=handles, **BELOW)
    return figure


def loss_curves(
    history: pd.DataFrame, columns: Sequence[str], validation: bool = True, title: str | None = None
) -> Figure:
    """Losses over the epochs, and beside them the validation figure with a ring at the best epoch.

    The validation figure has a panel of its own, for a GAN's is another quantity than its losses. Where it is
    the same (VAE, diffusion), name it in `columns` and set validation=False: then it shares their axes.

    Args:
        history: what `fit` returns or history.csv holds: epoch, one column a loss, validation.
        columns: the losses to draw.
        validation: draw that panel, if the history has such a column.
        title: a text above the losses.
    """
    _require("history", history, "epoch", *columns)
    validation = validation and "validation" in history
    panels = 2 if validation else 1
    figure, axes = empty_figure(2 + 3 * panels, 3, 1, panels, squeeze=False, sharex=True, layout="constrained")
    left, right = axes[0, 0], axes[0, -1]
    left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    left.set_prop_cycle(color=[BLUE, RED, ORANGE, PURPLE], linestyle=["-", "--", "-.", ":"])
    for column in columns:
        _curve(left, history, column)
    left.set(xlabel="epoch", ylabel="loss", title=title or "")
    if len(columns) > 1:
        left.legend()
    if validation:
        _curve(right, history, "validation")
        right.set(xlabel="epoch", ylabel="validation, lower is better", title="held-out patients")
        right.legend()
    return figure


def original_and_generated(original: Tensor, generated: Mapping[str, Tensor]) -> Figure:
    """Figure 4: a real image, and one of each model beside it.

    Args:
        original: (1, H, W) in [−1, 1].
        generated: model → image (1, H, W) in [−1, 1].
    """
    images = torch.stack([original.cpu(), *(image.cpu() for image in generated.values())])
    names = ["Original", *(TITLES[name] for name in generated)]
    return image_grid(images, columns=len(images), titles=names)


def similarity_figure(table: pd.DataFrame) -> Figure:
    """Table 1 as a picture: our values with intervals, the real rows shaded, the paper's hollow.

    Args:
        table: as `similarity.table1` returns it.
    """
    looks = dict(zip(PAIRINGS, ((-0.22, SOFT, "o"), (0, RED, "s"), (0.22, BLUE, "^")), strict=True))
    hollow = {"marker": "D", "ls": "", "markerfacecolor": "none", "color": INK, "markersize": 7}
    models = list(dict.fromkeys(table["model"]))
    metrics = [metric for metric in METRICS.values() if (table["metric"] == metric).any()]
    size = (max(7.5, 2.5 * len(metrics) + 1.2), 0.42 * len(models) + 1.3)
    figure, panels = empty_figure(*size, 1, len(metrics), sharey=True, squeeze=False, layout="constrained")
    for metric, ax in zip(metrics, panels[0], strict=True):
        for pairing, (shift, colour, marker) in looks.items():
            rows = table[(table["metric"] == metric) & (table["pairing"] == pairing)]
            _intervals(ax, rows, [models.index(model) + shift for model in rows["model"]], color=colour, marker=marker)
        for place, model in enumerate(models):
            ax.plot(PAPER.get(model, {}).get(metric, []), [place] * (metric in PAPER.get(model, {})), **hollow)
            if model in REFERENCE_ROWS:
                ax.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", lw=0, zorder=0)
        ax.set(title=metric, xlabel="squared intensity, lower is better" if metric == "MSE" else "1 = identical")
    _as_rows(panels, [TITLES[model] for model in models])
    keys = [_key(pairing, color=colour, marker=marker, ls="") for pairing, (_, colour, marker) in looks.items()]
    figure.legend(handles=[*keys, INTERVAL, _key("paper (pairing not stated)", **hollow)], **BELOW)
    return figure


def reactions_figure(table: pd.DataFrame) -> Figure:
    """What each measure of fidelity says of real slices made worse: a panel a measure, a row a change.

    The line stands where the held-out slices are as they were, in the band of their interval; a row on its worse side
    has been noticed. A measure that compares with the held-out slices themselves has none, and no panel.

    Args:
        table: `fidelity.fidelity_table` of what `fidelity.disturbed` makes of the held-out slices.
    """
    changes = [model for model in dict.fromkeys(table["model"]) if model not in REFERENCE_ROWS]
    measures = list(dict.fromkeys(table.loc[table["model"] == REAL_TEST, "measure"]))
    columns, lines = 3, -(-len(measures) // 3)
    size = (9.5, (0.25 * len(changes) + 1.0) * lines + 0.3)
    figure, panels = empty_figure(*size, lines, columns, sharey=True, squeeze=False, layout="constrained")
    for ax in panels.flat[len(measures) :]:
        ax.set_axis_off()
    for measure, ax in zip(measures, panels.flat, strict=False):
        rows = table[table["measure"] == measure].set_index("model")
        value, low, high = rows.loc[REAL_TEST, ["value", "low", "high"]]
        ax.axvline(value, color=INK, lw=1.2)
        ax.axvspan(low, high, color=PALE, alpha=0.4, lw=0)
        _intervals(ax, rows.loc[changes], range(len(changes)), color=BLUE)
        better = MEASURES[measure]
        ax.set(title=measure, xlabel=f"{better} is better" if better in ("lower", "higher") else f"best {better}")
    _as_rows(panels, changes)
    as_they_are = (Patch(color=PALE, alpha=0.4), _key("", lw=1.2))
    figure.legend(
        [as_they_are, INTERVAL], ["held-out real slices as they are, with interval", INTERVAL.get_label()], **BELOW
    )
    return figure


def power_spectrum_figure(real: Tensor, generated: Mapping[str, Tensor], pixel_mm: float) -> Figure:
    """Power at each spatial frequency, and its share of the real one's, with a dot where that falls to half.

    The band holds the middle 80 % of the real slices, each by itself.

    Args:
        real: held-out slices (N, 1, S, S) in [−1, 1].
        generated: name → images (M, 1, S, S) in [−1, 1].
        pixel_mm: side of a pixel in mm.
    """
    frequency, _ = power_spectrum(real, pixel_mm)
    each = torch.stack([power_spectrum(image[None], pixel_mm)[1] for image in real])
    expected, band = each.mean(dim=0), torch.quantile(each, torch.tensor([0.1, 0.9], dtype=each.dtype), dim=0)
    figure, (left, right) = empty_figure(9, 3.4, 1, 2, layout="constrained")
    left.plot(frequency, expected, color=INK, label="real")
    left.fill_between(frequency, *band, color=PALE, alpha=0.4, lw=0, label="80 % of the real slices")
    right.fill_between(frequency, *band / expected, color=PALE, alpha=0.4, lw=0)
    right.axhline(1, color=INK)
    right.axhline(0.5, color=SOFT, lw=1, ls=":")
    highest = 1.0
    for (name, images), colour, line in zip(generated.items(), cycle((BLUE, RED, GREEN)), cycle(("--", "-.", ":"))):
        power = power_spectrum(images, pixel_mm)[1]
        half = half_power(frequency, power, expected)
        text = f"{name}: half at {half:.3f} per mm" if np.isfinite(half) else name
        left.plot(frequency, power, color=colour, ls=line, label=text)
        right.plot(frequency, power / expected, color=colour, ls=line)
        right.plot(half, 0.5, "o", color=colour)
        highest = max(highest, (power / expected).max().item())
    left.set(yscale="log", ylabel="power (squared intensity)", title="Power spectrum")
    right.set(ylabel="share of the real power", title="Against the real slices", ylim=(0, 1.2 * highest))
    for ax in (left, right):
        ax.set(xscale="log", xlabel="spatial frequency (cycles per mm)")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(_plain)
        ax.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(**BELOW | {"ncols": 2 + min(2, len(generated))})
    return figure


def closest_pairs_figure(images: Tensor, train: Slices, pairs: pd.DataFrame) -> Figure:
    """Generated images, each above the training slice that is nearest by its pixels.

    Args:
        images: (N, 1, S, S) in [−1, 1].
        train: the slices that the model has learned from.
        pairs: of these, as `memorisation.closest_pairs` gives them.
    """
    numbers, rows = torch.tensor(pairs.index.tolist()), torch.tensor(pairs["cc_row"].tolist())
    pictures = torch.cat([images.cpu()[numbers], train.images[rows]])
    titles = [f"CC {value:.2f}" for value in pairs["cc"]] + pairs["patient"].tolist()
    return image_grid(pictures, len(rows), titles, row_titles=("generated", "training"))


def utility_figure(table: pd.DataFrame, metric: str = "AUC", level: str = "patient") -> Figure:
    """How well HCM is told from the rest, an arm a line, and below what it gains over real slices only.

    A column a number of real HCM patients. White inside: the generator has seen more HCM patients than the arm has
    real ones. Dashed: real slices only, of all patients.

    Args:
        table: as `utility.score` returns it.
        metric: "AUC" or "AP".
        level: "slice" or "patient".
    """
    rows = table[(table["metric"] == metric) & (table["level"] == level)]
    arms, numbers = (list(dict.fromkeys(rows[column])) for column in ("arm", "patients"))
    size = (max(7, 2.7 * len(numbers) + 1.6), 0.38 * len(arms) + 1.8)
    figure, panels = empty_figure(
        *size, 2, len(numbers), sharey=True, sharex="row", squeeze=False, layout="constrained"
    )
    for number, column in zip(numbers, panels.T, strict=True):
        shown = rows[rows["patients"] == number]
        for ax, part, names in (
            (column[0], shown, ["value", "low", "high"]),
            (column[1], shown[shown["verdict"] != "–"], ["gain", "gain_low", "gain_high"]),
        ):
            for (arm, model, leaks), one in part.groupby(["arm", "model", "leaks"], sort=False):
                colour, marker = LOOKS.get(model, (INK, "o"))
                look = {"color": colour, "marker": marker, "markerfacecolor": "white" if leaks else colour}
                _intervals(ax, one, [arms.index(arm)], names, **look)
        column[0].set(title=patients_in_words(number), xlabel=f"{metric} by {level}")
        column[1].set(xlabel=f"gain of {metric} over real only")
        column[1].axvline(0, color=SOFT, lw=1)
        column[1].xaxis.set_major_locator(MaxNLocator(5))
        for reference in rows[(rows["patients"] == 0) & (rows["verdict"] == "–")]["value"]:
            column[0].axvline(reference, color=SOFT, ls=(0, (4, 3)), lw=1)
    _as_rows(panels, arms)
    all_real = _key("real only, all HCM patients", color=SOFT, ls=(0, (4, 3)), lw=1)
    leaky = _key("generator has seen more HCM patients", color=SOFT, marker="o", ls="", markerfacecolor="white")
    figure.legend(handles=[all_real, leaky, INTERVAL], **BELOW)
    return figure


def anatomy_overlay(sets: Mapping[str, tuple[Tensor, Tensor]], pixel_mm: float) -> Figure:
    """A row a set of slices under the masks drawn on them, each with its largest wall or why it is no heart.

    Args:
        sets: name, such as "real" → images (n, 1, S, S) in [−1, 1] and masks (n, S, S), the same n in each.
        pixel_mm: side of a pixel in mm.
    """
    images, masks = (torch.cat([pair[i].cpu() for pair in sets.values()]) for i in (0, 1))
    columns = len(images) // len(sets)
    found = measure_all(masks, pixel_mm).itertuples()
    titles = [heart.reason or f"plausible, up to {heart.max_wall_mm:.0f} mm" for heart in found]
    figure = mask_overlay(images, masks, pixel_mm, titles, columns)
    for ax, title in zip(figure.axes, titles, strict=True):
        ax.set_title(title, color=GREEN if title.startswith("plausible") else RED, fontsize=8)
    for row, name in enumerate(sets):
        figure.axes[row * columns].set_ylabel(f"{name}\ny (mm)")
    return figure


def measure_distributions(
    real: Mapping[str, Sequence[float]], generated: Mapping[str, Sequence[float]], label: str
) -> Figure:
    """How a measure is spread in each set, as a histogram of its own height, with its median; the real ones run down.

    Args:
        real, generated: name, such as "HCM" and "NOR", or a model's → values, such as `max_wall_mm`; NaN, not
            measurable, is left out, and where fewer than ten are left stands a sentence.
        label: of the axis, with the unit.
    """
    sets = {TITLES[name]: np.asarray(values, float) for name, values in {**real, **generated}.items()}
    kept = {name: values[~np.isnan(values)] for name, values in sets.items()}
    bins = np.histogram_bin_edges(np.concatenate(list(kept.values())), bins=40)
    figure, ax = empty_figure(7, 0.5 * len(kept) + 0.9, layout="constrained")
    for place, (name, values) in enumerate(kept.items()):
        if len(values) < FEWEST:
            text = f"{len(values)} of {len(sets[name])} slices can be measured, too few to draw"
            ax.text(0.5, place, text, transform=ax.get_yaxis_transform(), ha="center", va="center", backgroundcolor="w")
            continue
        colour, line = (INK, SOFT, PALE)[place % 3], (":", "--", "-.")[place % 3]
        if place >= len(real):
            colour = LOOKS.get(list(generated)[place - len(real)], (SOFT,))[0]
        density = np.histogram(values, bins)[0]
        ax.stairs(
            place + 0.4 - 0.8 * density / density.max(), bins, baseline=place + 0.4, fill=True, color=colour, alpha=0.5
        )
        median = np.median(values)
        ax.plot([median, median], [place - 0.4, place + 0.4], color=colour, lw=2)
        if place < len(real):
            ax.axvline(median, color=colour, lw=1, ls=line, zorder=0, label=f"median of {name}")
    _as_rows(ax, [f"{name} ({len(values)})" for name, values in kept.items()])
    ax.set(xlabel=label)
    figure.legend(**BELOW)
    return figure


def cost_figure(table: pd.DataFrame, quality: str, label: str) -> Figure:
    """What quality costs: the time of 1,000 images against a figure of merit, a point a model.

    Several points of one model, diffusion in several numbers of steps, are joined and each bears that number.

    Args:
        table: rows of `cost.cost_table` and `cost.draw_in_steps`, with the quality in a column: model,
            seconds_sampling, and steps where there are any.
        quality: the column to draw, on a logarithmic axis; rows that lack it are left out.
        label: of its axis, which should say whether more or less is better.
    """
    _require("table", table, "model", "seconds_sampling", quality)
    figure, ax = empty_figure(6, 3.6, layout="constrained")
    for name, rows in table.dropna(subset=[quality]).groupby("model", sort=False):
        rows = rows.sort_values("seconds_sampling")
        colour, marker = LOOKS.get(name, (INK, "o"))
        in_steps = rows.dropna(subset=["steps"]) if "steps" in rows else rows[:0]
        title = TITLES[name] + ", in steps" * bool(len(in_steps))
        ax.plot(rows["seconds_sampling"], rows[quality], marker=marker, color=colour, ms=7, lw=1, label=title)
        for row in in_steps.itertuples():
            place = row.seconds_sampling, getattr(row, quality)
            ax.annotate(f"{row.steps:.0f}", place, (5, 5), textcoords="offset points", fontsize=8)
    ax.set(xscale="log", xlabel="time of 1,000 images (s)", ylabel=label)
    ax.set_yscale("symlog", linthresh=0.1, linscale=0.5)  # a KID runs over three decades, and may be below 0
    ax.set_ylim(min(0, 1.5 * table[quality].min()), max(0.1, 1.8 * table[quality].max()))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(_plain)
    figure.legend(loc="outside right center")
    return figure


def group_figure(table: pd.DataFrame) -> Figure:
    """Whether the group asked for is recognised, and how alike the images of a group are, drawn ones beside real.

    Args:
        table: as `fidelity.group_table` returns it.
    """
    measures = {"recognised": "share recognised, dotted: by chance", "MS-SSIM": "MS-SSIM of pairs, 1 = identical"}
    groups, models = (list(dict.fromkeys(table[name])) for name in ("group", "model"))
    figure, panels = empty_figure(8, 0.45 * len(groups) + 1, 1, 2, sharey=True, layout="constrained")
    looks = {REAL_TEST: {"color": INK, "marker": "o"}, REAL_TRAIN: {"color": INK, "marker": "o", "mfc": "white"}}
    for (measure, label), ax in zip(measures.items(), panels, strict=True):
        for i, model in enumerate(models):
            rows = table[(table["model"] == model) & (table["measure"] == measure)].set_index("group").loc[groups]
            places = np.arange(len(groups)) + 0.2 * (i - (len(models) - 1) / 2)
            look = looks.get(model) or dict(zip(("color", "marker"), LOOKS.get(model, (INK, "o")), strict=True))
            _intervals(ax, rows, places, label=TITLES[model], **look)
        ax.set(xlabel=label, xlim=(-0.02, 1.02))
    panels[0].axvline(1 / (len(groups) - 1), color=INK, ls=":", lw=1)
    _as_rows(panels, groups)
    panels[0].set_ylabel("group")
    figure.legend(handles=[*panels[0].get_legend_handles_labels()[0], INTERVAL], **BELOW)
    return figure


def correlation_map(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """A square a code and measure, with the rank correlation and its interval in it: red rises, blue falls.

    Args:
        table: as `anatomy.code_correlations` returns it.
        titles: measure → its name in words, in the order of the columns.
    """
    values, low, high = (table.pivot(index="code", columns="measure", values=name) for name in ("value", "low", "high"))
    rows = len(values)
    figure, ax = empty_figure(1.4 * len(titles) + 1, 0.7 * rows + 0.9, layout="constrained")
    shown = values[list(titles)].to_numpy()
    picture = ax.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    figure.colorbar(picture, label="rank correlation", ticks=[-1, 0, 1])
    for i, code in enumerate(values.index):
        for j, measure in enumerate(titles):
            interval = f"[{low.loc[code, measure]:.2f}, {high.loc[code, measure]:.2f}]"
            text = "too few" if np.isnan(shown[i, j]) else f"{shown[i, j]:.2f}\n{interval}"
            colour = "white" if abs(shown[i, j]) > 0.6 else INK
            ax.text(j, i, text.replace("-", "−"), ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(len(titles)), titles.values())
    ax.set_yticks(range(rows), [f"code {code}" for code in values.index])
    ax.grid(False)
    ax.tick_params(length=0)
    return figure


def empty_figure(width: float, height: float, rows: int = 1, columns: int = 1, **settings) -> tuple[Figure, Axes]:
    """A figure that pyplot does not keep: a notebook shows it once, and its memory is freed."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), **settings)
    plt.close(figure)
    return figure, axes


def _curve(axes: Axes, history: pd.DataFrame, column: str) -> None:
    """A loss as a line, and the validation in green with squares wherever it stands, its best epoch in a ring."""
    drawn = history[["epoch", column]].dropna()
    label = f"${column}$" if column.startswith("L_") else column.replace("_", " ")  # a symbol, or words
    look = {"marker": "o" if len(drawn) == 1 else None}  # a single epoch is a point and would show no line
    if column == "validation":
        look = {"marker": "s", "markevery": max(1, len(drawn) // 20), "color": GREEN, "ls": "-"}
    axes.plot(drawn["epoch"], drawn[column], ms=3, label=label, **look)
    if column == "validation" and len(drawn):
        best = drawn.loc[drawn[column].idxmin()]
        ring = {"markerfacecolor": "none", "markersize": 9, "color": GREEN}
        axes.plot(best["epoch"], best[column], "o", label=f"best, epoch {best['epoch']:.0f}", **ring)


def _intervals(
    axes: Axes, rows: pd.DataFrame, places: Sequence[float], names: Sequence[str] = ("value", "low", "high"), **look
) -> None:
    """A point a row, on a line from end to end of its interval, which may lie beside it; NaN: no interval."""
    value, low, high = rows[list(names)].to_numpy(float).T
    known = ~np.isnan(low)
    axes.hlines(np.array(places)[known], low[known], high[known], color=look["color"], lw=1.5)
    axes.plot(value, places, **{"marker": "o", "markersize": 5, "ls": ""} | look)


def _as_rows(panels: Axes | np.ndarray, names: Sequence[str]) -> None:
    """Names down the y axis that the panels share, the first on top, without lines between them."""
    first, *_ = np.ravel(panels)
    for ax in np.ravel(panels):
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
    first.set_yticks(range(len(names)), names)
    first.set_ylim(len(names) - 0.5, -0.5)


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _require(what: str, table: pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"the {what} has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
