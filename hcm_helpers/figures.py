"""Every picture of the series, one function a figure. Each returns a Figure, and `save` writes it.

Images are the package's own, in [−1, 1], always drawn with black at −1 and white at 1, so that two pictures
can be compared by eye. Colours are those of Okabe and Ito, which colour-blind people tell apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, MultipleLocator
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
INK, SOFT = "#222222", "#777777"
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
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "svg.hashsalt": "hcm",  # the same figure gives the same bytes
}
mpl.rcParams.update(STYLE)
say_in_notebooks()


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write folder/name.png and folder/name.svg, each under a temporary name first, and return both paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        settings = {"format": suffix, "metadata": metadata}
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

    inch = min(1.3, 9 / columns) / width  # inches a pixel
    figure, axes = empty_figure(picture.shape[1] * inch, picture.shape[0] * inch)
    axes.set_position([0, 0, 1, 1])
    axes.set_axis_off()
    axes.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    for text, (top, left) in zip(titles or (), corners, strict=False):
        axes.text(left + width / 2, top - gap, text, ha="center", va="bottom", fontsize=8)
    for row, text in enumerate(row_titles or ()):
        centre = row * step_down + height / 2
        axes.text(-3 * gap, centre, text, ha="right", va="center", fontsize=10, fontweight="bold")
    if title:
        lift = 6 if titles is None else 18
        axes.set_title(title, pad=lift)
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
        ax.imshow(images[i, 0].cpu().numpy(), cmap="gray", vmin=-1, vmax=1, extent=extent)
        for value, (_, colour) in STRUCTURES.items():
            inside = (masks[i].cpu().numpy() == value).astype(float)
            if inside.any():
                ax.contourf(inside, levels=[0.5, 1.5], colors=[colour], alpha=0.2, extent=extent, origin="upper")
                ax.contour(inside, levels=[0.5], colors=[colour], linewidths=1.2, extent=extent, origin="upper")
        ax.grid(False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MultipleLocator(50))
        bottom = i + columns >= len(images)
        ax.set(
            title=titles[i] if titles else "",
            xlabel="x (mm)" if bottom else "",
            ylabel="y (mm)" if i % columns == 0 else "",
        )
    handles = [Patch(facecolor=colour, alpha=0.6, label=name) for name, colour in STRUCTURES.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
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
    missing = [column for column in ("epoch", *columns) if column not in history]
    if missing:
        raise DataError(f"the history has no column {', '.join(missing)}; it has {', '.join(history.columns)}")
    validation = validation and "validation" in history
    figure, axes = empty_figure(8 if validation else 5, 3, 1, 2 if validation else 1, layout="constrained")
    left = np.ravel(axes)[0]
    for column in columns:
        _curve(left, history, column)
    for ax in np.ravel(axes):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    left.set(xlabel="epoch", ylabel="loss", title=title or "")
    if len(columns) > 1:
        left.legend()
    if validation:
        right = axes[1]
        _curve(right, history, "validation", color=GREEN)
        right.set(xlabel="epoch", ylabel="validation", title="held-out patients")
        right.legend()
    return figure


def original_and_generated(original: Tensor, generated: Mapping[str, Tensor]) -> Figure:
    """Figure 4: a real image, and one of each model beside it.

    Args:
        original: (1, H, W) in [−1, 1].
        generated: model → image (1, H, W) in [−1, 1].
    """
    images = torch.stack([original.cpu(), *(image.cpu() for image in generated.values())])
    names = ["Original", *(TITLES.get(name, name) for name in generated)]
    return image_grid(images, columns=len(images), titles=names)


def similarity_figure(table: pd.DataFrame) -> Figure:
    """Table 1 as a picture: our values with intervals, the real rows shaded, the paper's hollow.

    Args:
        table: as `similarity.table1` returns it.
    """
    looks = dict(zip(PAIRINGS, ((SOFT, "o"), (RED, "s"), (BLUE, "^")), strict=True))
    paper_label = "paper (pairing not stated)"
    models = list(dict.fromkeys(table["model"]))
    metrics = [metric for metric in METRICS.values() if (table["metric"] == metric).any()]
    height = 0.42 * len(models) + 1.3
    figure, panels = empty_figure(2.5 * len(metrics) + 1.2, height, 1, len(metrics), sharey=True, layout="constrained")
    for metric, ax in zip(metrics, np.ravel(panels), strict=True):
        for shift, pairing in zip((-0.22, 0, 0.22), PAIRINGS, strict=True):
            rows = table[(table["metric"] == metric) & (table["pairing"] == pairing)]
            if rows.empty:
                continue
            places = [models.index(model) + shift for model in rows["model"]]
            margins = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
            colour, marker = looks[pairing]
            ax.errorbar(rows["value"], places, xerr=margins, fmt=marker, color=colour, markersize=5, label=pairing)
        paper = [(PAPER[m][metric], i) for i, m in enumerate(models) if metric in PAPER.get(m, {})]
        if paper:
            hollow = {"markerfacecolor": "none", "color": INK, "markersize": 7}
            ax.plot(*zip(*paper, strict=True), "D", label=paper_label, **hollow)
        real = [i for i, model in enumerate(models) if model in REFERENCE_ROWS]
        if real:
            ax.axhspan(min(real) - 0.5, max(real) + 0.5, color="#f2f2f2", zorder=0)
        ax.set(title=metric, xlabel="squared intensity, lower is better" if metric == "MSE" else "1 = identical")
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
    first = np.ravel(panels)[0]
    first.set_yticks(range(len(models)), [TITLES.get(model, model) for model in models])
    first.set_ylim(len(models) - 0.5, -0.5)
    entries = [ax.get_legend_handles_labels() for ax in np.ravel(panels)]
    handles = {text: handle for entry in entries for handle, text in zip(*entry, strict=True)}
    texts = sorted(handles, key=[*PAIRINGS, paper_label].index)
    figure.legend([handles[text] for text in texts], texts, loc="outside lower center", ncols=4)
    return figure


def reactions_figure(table: pd.DataFrame) -> Figure:
    """What each measure of fidelity says of real slices made worse: a panel a measure, a row a change.

    The line stands where the held-out slices are as they were; a row on its worse side has been noticed. A measure
    that compares with the held-out slices themselves has none, and no panel.

    Args:
        table: `fidelity.fidelity_table` of what `fidelity.disturbed` makes of the held-out slices.
    """
    changes = [model for model in dict.fromkeys(table["model"]) if model not in REFERENCE_ROWS]
    measures = list(dict.fromkeys(table.loc[table["model"] == REAL_TEST, "measure"]))
    columns = 3
    size = (9.5, (0.25 * len(changes) + 0.75) * -(-len(measures) // columns))
    figure, panels = empty_figure(*size, -(-len(measures) // columns), columns, sharey=True, layout="constrained")
    for ax in np.ravel(panels)[len(measures) :]:
        ax.set_axis_off()
    for measure, ax in zip(measures, np.ravel(panels), strict=False):
        rows = table[table["measure"] == measure].set_index("model")
        before, rows = rows.loc[REAL_TEST, "value"], rows.loc[changes]
        margins = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
        ax.axvline(before, color=INK, lw=1.2)
        ax.errorbar(rows["value"], range(len(changes)), xerr=margins, fmt="o", color=BLUE, markersize=5)
        better = MEASURES[measure]
        ax.set(title=f"{measure}\n{better} is better" if better in ("lower", "higher") else f"{measure}\n{better}")
        ax.title.set_fontsize(9)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
    first = np.ravel(panels)[0]
    first.set_yticks(range(len(changes)), changes)
    first.set_ylim(len(changes) - 0.5, -0.5)
    handle = plt.Line2D([], [], color=INK, lw=1.2, label="held-out real slices as they are")
    figure.legend(handles=[handle], loc="outside lower center")
    return figure


def power_spectrum_figure(real: Tensor, generated: Mapping[str, Tensor], pixel_mm: float) -> Figure:
    """Power at each spatial frequency, and its share of the real one's, with a dot where that falls to half.

    Args:
        real: held-out slices (N, 1, S, S) in [−1, 1].
        generated: name → images (M, 1, S, S) in [−1, 1].
        pixel_mm: side of a pixel in mm.
    """
    frequency, expected = power_spectrum(real, pixel_mm)
    figure, (left, right) = empty_figure(9, 3.2, 1, 2, layout="constrained")
    left.loglog(frequency, expected, color=INK, label="real")
    right.axhline(1, color=INK, lw=1)
    right.axhline(0.5, color=SOFT, lw=1, ls=":")
    for name, images in generated.items():
        _, power = power_spectrum(images, pixel_mm)
        color = left.loglog(frequency, power, label=name)[0].get_color()
        right.semilogx(frequency, power / expected, color=color)
        half = half_power(frequency, power, expected)
        if np.isfinite(half):
            right.plot(half, 0.5, "o", color=color, label=f"{name}: half at {half:.3f} per mm")
    left.set(xlabel="cycles per mm", ylabel="power, squared intensity", title="Power spectrum")
    right.set(xlabel="cycles per mm", ylabel="share of the real power", title="Against the real slices")
    right.set_ylim(0, 1.2 * right.get_ylim()[1])  # room for the legend
    for ax in (left, right):
        ax.legend()
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

    A column a number of real HCM patients. Hollow: the generator has seen more HCM patients than the arm has real
    ones. Dashed: real slices only, of all patients.

    Args:
        table: as `utility.score` returns it.
        metric: "AUC" or "AP".
        level: "slice" or "patient".
    """
    rows = table[(table["metric"] == metric) & (table["level"] == level)]
    arms, numbers, models = (list(dict.fromkeys(rows[column])) for column in ("arm", "patients", "model"))
    colours = dict(zip(models, (INK, BLUE, RED, GREEN, ORANGE, PURPLE, SKY), strict=False))
    size = (2.7 * len(numbers) + 1.6, 0.38 * len(arms) + 1.8)
    figure, panels = empty_figure(
        *size, 2, len(numbers), sharey=True, sharex="row", squeeze=False, layout="constrained"
    )
    for number, column in zip(numbers, panels.T, strict=True):
        shown = rows[rows["patients"] == number]
        for ax, part, names in (
            (column[0], shown, ["value", "low", "high"]),
            (column[1], shown[shown["verdict"] != "–"], ["gain", "gain_low", "gain_high"]),
        ):
            value, low, high = part[names].to_numpy().T
            places, margins = [arms.index(arm) for arm in part["arm"]], np.stack([value - low, high - value])
            for i, (model, leaks) in enumerate(zip(part["model"], part["leaks"], strict=True)):
                look = {"fmt": "o", "color": colours[model], "markerfacecolor": "white" if leaks else colours[model]}
                ax.errorbar(value[i], places[i], xerr=margins[:, i : i + 1].clip(0), markersize=5, **look)
            ax.grid(False, axis="y")
            ax.tick_params(axis="y", length=0)
        column[0].set(title=patients_in_words(number), xlabel=f"{metric} by {level}")
        column[1].set(xlabel="gain over real only")
        column[1].axvline(0, color=SOFT, lw=1)
        for reference in rows[(rows["patients"] == 0) & (rows["verdict"] == "–")]["value"]:
            column[0].axvline(reference, color=SOFT, ls=(0, (4, 3)), lw=1)
    panels[0, 0].set_yticks(range(len(arms)), arms)
    panels[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=SOFT, ls=(0, (4, 3)), lw=1, label="real only, all HCM patients"),
        Line2D(
            [], [], color=SOFT, marker="o", ls="", markerfacecolor="white", label="generator has seen more HCM patients"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
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
    """How a measure is spread in each set, as a histogram of its own height; the real medians run down as lines.

    Args:
        real, generated: name, such as "HCM" and "NOR", or a model's → values, such as `max_wall_mm`; NaN, not
            measurable, is left out, and where fewer than ten are left stands a sentence.
        label: of the axis, with the unit.
    """
    sets = {TITLES.get(name, name): np.asarray(values, float) for name, values in {**real, **generated}.items()}
    kept = {name: values[~np.isnan(values)] for name, values in sets.items()}
    bins = np.histogram_bin_edges(np.concatenate(list(kept.values())), bins=40)
    figure, ax = empty_figure(7, 0.5 * len(kept) + 0.9, layout="constrained")
    for place, (name, values) in enumerate(kept.items()):
        if len(values) < FEWEST:
            text = f"{len(values)} of {len(sets[name])} slices can be measured, too few to draw"
            ax.text(0.5, place, text, transform=ax.get_yaxis_transform(), ha="center", va="center", backgroundcolor="w")
            continue
        colour = (RED, BLUE, GREEN)[place % 3] if place < len(real) else SOFT
        density = np.histogram(values, bins)[0]
        ax.stairs(place + 0.4 - 0.8 * density / density.max(), bins, baseline=place + 0.4, fill=True, color=colour)
        median = np.median(values)
        ax.plot([median, median], [place - 0.4, place + 0.4], color=INK, lw=1.5)
        if place < len(real):
            ax.axvline(median, color=colour, lw=1, ls=":", zorder=0)
    ax.set_yticks(range(len(kept)), [f"{name} ({len(values)})" for name, values in kept.items()])
    ax.set(xlabel=label, ylim=(len(kept) - 0.5, -0.5))
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    return figure


def cost_figure(table: pd.DataFrame, quality: str, label: str) -> Figure:
    """What quality costs: the time of 1,000 images against a figure of merit, a point a model.

    Several points of one model, diffusion in several numbers of steps, are joined and each bears its number.

    Args:
        table: rows of `cost.cost_table` and `cost.draw_in_steps`, with the quality in a column: model,
            seconds_sampling, and steps where there are any.
        quality: the column to draw, on a logarithmic axis; rows that lack it are left out.
        label: of its axis, which should say whether more or less is better.
    """
    missing = [column for column in ("model", "seconds_sampling", quality) if column not in table]
    if missing:
        raise DataError(f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    figure, ax = empty_figure(6, 3.6, layout="constrained")
    for name, rows in table.dropna(subset=[quality]).groupby("model", sort=False):
        rows = rows.sort_values("seconds_sampling")
        ax.plot(rows["seconds_sampling"], rows[quality], "o-", ms=7, lw=1, label=TITLES.get(name, name))
        for row in rows.dropna(subset=["steps"]).itertuples() if "steps" in rows else ():
            place = row.seconds_sampling, getattr(row, quality)
            ax.annotate(f"{row.steps:.0f}", place, (0, 7), textcoords="offset points", ha="center", fontsize=8)
    ax.set(xscale="log", xlabel="seconds for 1,000 images", ylabel=label)
    ax.set_yscale("symlog", linthresh=0.1, linscale=0.5)  # a KID runs over three decades, and may be below 0
    ax.set_ylim(min(0, 1.5 * table[quality].min()), max(0.1, 1.8 * table[quality].max()))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
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
    for (measure, label), ax in zip(measures.items(), panels, strict=True):
        for i, (model, marker) in enumerate(zip(models, "so^Dv", strict=False)):
            rows = table[(table["model"] == model) & (table["measure"] == measure)].set_index("group").loc[groups]
            margins = (rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy()) * [[-1], [1]]
            places = np.arange(len(groups)) + 0.2 * (i - (len(models) - 1) / 2)
            look = {"fmt": marker, "markersize": 5, "color": SOFT if model in REFERENCE_ROWS else BLUE}
            look |= {"markerfacecolor": "none"} if model == REAL_TRAIN else {}
            ax.errorbar(rows["value"], places, xerr=np.maximum(margins, 0), label=TITLES.get(model, model), **look)
        ax.set(xlabel=label, xlim=(-0.02, 1.02))
        ax.grid(False, axis="y")
    panels[0].axvline(1 / (len(groups) - 1), color=INK, ls=":", lw=1)
    panels[0].set_yticks(range(len(groups)), groups)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(models))
    return figure


def correlation_map(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """A square a code and measure, with the rank correlation and its interval in it: red rises, blue falls.

    Args:
        table: as `anatomy.code_correlations` returns it.
        titles: measure → its name in words, in the order of the columns.
    """
    values, low, high = (table.pivot(index="code", columns="measure", values=name) for name in ("value", "low", "high"))
    rows = len(values)
    figure, ax = empty_figure(1.3 * len(titles) + 1, 0.7 * rows + 0.9, layout="constrained")
    shown = values[list(titles)].to_numpy()
    ax.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for i, code in enumerate(values.index):
        for j, measure in enumerate(titles):
            interval = f"[{low.loc[code, measure]:.2f}, {high.loc[code, measure]:.2f}]"
            text = "too few" if np.isnan(shown[i, j]) else f"{shown[i, j]:.2f}\n{interval}"
            colour = "white" if abs(shown[i, j]) > 0.6 else INK
            ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
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


def _curve(axes: Axes, history: pd.DataFrame, column: str, **look) -> None:
    drawn = history[["epoch", column]].dropna()
    marker = "o" if len(drawn) <= 30 else None  # a single epoch is a point and would show no line
    label = f"${column}$" if column.startswith("L_") else column.replace("_", " ")  # a symbol, or words
    line = axes.plot(drawn["epoch"], drawn[column], marker=marker, ms=3, label=label, **look)[0]
    if column == "validation" and len(drawn):
        best = drawn.loc[drawn[column].idxmin()]
        ring = {"markerfacecolor": "none", "markersize": 9, "color": line.get_color()}
        axes.plot(best["epoch"], best[column], "o", label=f"best, epoch {best['epoch']:.0f}", **ring)
