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
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Polygon
from matplotlib.ticker import MaxNLocator, MultipleLocator
from torch import Tensor

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.anatomy import FEWEST, measure_all
from hcm_helpers.fidelity import MEASURES
from hcm_helpers.files import write_whole
from hcm_helpers.similarity import METRICS, PAIRINGS, PAPER, REAL_TEST, REFERENCE_ROWS, TITLES
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
    figure, axes = _figure(picture.shape[1] * inch, picture.shape[0] * inch)
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
    figure, axes = _figure(2.5 * columns, 2.6 * rows + 0.4, rows, columns, layout="constrained")
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
    figure, axes = _figure(8 if validation else 5, 3, 1, 2 if validation else 1, layout="constrained")
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
    figure, panels = _figure(2.5 * len(metrics) + 1.2, height, 1, len(metrics), sharey=True, layout="constrained")
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

    The line stands where the held-out slices are as they were; a row on its worse side has been noticed.

    Args:
        table: `fidelity.fidelity_table` of what `fidelity.disturbed` makes of the held-out slices.
    """
    changes = [model for model in dict.fromkeys(table["model"]) if model not in REFERENCE_ROWS]
    measures = list(dict.fromkeys(table["measure"]))
    columns = 3
    size = (9.5, (0.25 * len(changes) + 0.75) * -(-len(measures) // columns))
    figure, panels = _figure(*size, -(-len(measures) // columns), columns, sharey=True, layout="constrained")
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
    figure, panels = _figure(*size, 2, len(numbers), sharey=True, sharex="row", squeeze=False, layout="constrained")
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
    figure, ax = _figure(7, 0.5 * len(kept) + 0.9, layout="constrained")
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
        quality: the column to draw; rows that lack it are left out.
        label: of its axis, which should say whether more or less is better.
    """
    missing = [column for column in ("model", "seconds_sampling", quality) if column not in table]
    if missing:
        raise DataError(f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    figure, ax = _figure(6, 3.6, layout="constrained")
    for name, rows in table.dropna(subset=[quality]).groupby("model", sort=False):
        rows = rows.sort_values("seconds_sampling")
        ax.plot(rows["seconds_sampling"], rows[quality], "o-", ms=7, lw=1, label=TITLES.get(name, name))
        for row in rows.dropna(subset=["steps"]).itertuples() if "steps" in rows else ():
            place = row.seconds_sampling, getattr(row, quality)
            ax.annotate(f"{row.steps:.0f}", place, (0, 7), textcoords="offset points", ha="center", fontsize=8)
    ax.set(xscale="log", xlabel="seconds for 1,000 images", ylabel=label)
    ax.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    figure.legend(loc="outside right center")
    return figure


def architecture_vae() -> Figure:
    """Figure 1: input → encoder → μ, σ → z → decoder → reconstruction, and where the two losses arise."""
    axes = _diagram(11.2, 4.0)
    middle = 2.25
    _picture(axes, 0.1, middle, _heart(), "input $x$")
    _funnel(axes, 1.9, 3.6, middle, 2.2, 1.3, "Encoder\n$q_\\phi(z\\,|\\,x)$", BLUE)
    _box(axes, 4.25, middle + 0.62, 0.9, 0.7, "$\\mu$", GREEN, size=14)
    _box(axes, 4.25, middle - 0.62, 0.9, 0.7, "$\\sigma$", GREEN, size=14)
    _box(axes, 6.0, middle, 0.9, 0.9, "$z$", ORANGE, size=14)
    _funnel(axes, 7.5, 9.2, middle, 1.3, 2.2, "Decoder\n$p_\\theta(x\\,|\\,z)$", BLUE)
    _picture(axes, 9.7, middle, _heart(blur=2.0), "reconstruction $\\hat{x}$")

    _arrow(axes, (1.4, middle), (1.9, middle))
    for sign in (1, -1):
        _arrow(axes, (3.6, middle + sign * 0.35), (4.25, middle + sign * 0.62))
        _arrow(axes, (5.15, middle + sign * 0.62), (6.0, middle + sign * 0.22))
    _arrow(axes, (6.9, middle), (7.5, middle))
    _arrow(axes, (9.2, middle), (9.7, middle))
    _arrow(axes, (6.45, 1.15), (6.45, middle - 0.45))
    _text(axes, 6.45, 0.98, "$\\epsilon \\sim N(0, I)$")
    _text(axes, 6.45, middle + 0.75, "$z = \\mu + \\sigma \\odot \\epsilon$")

    _bracket(axes, 4.25, 5.15, middle + 1.22, 0.14, GREEN)
    _text(axes, 4.7, middle + 1.5, "KL divergence $\\mathrm{KL}(q_\\phi(z\\,|\\,x)\\,\\|\\,N(0, I))$", GREEN)
    _bracket(axes, 0.75, 10.35, 0.66, -0.24, RED)
    _text(axes, 5.55, 0.3, "reconstruction loss $-\\log p_\\theta(x\\,|\\,z)$", RED)
    return axes.figure


def architecture_gan() -> Figure:
    """Figure 2: the generator draws from noise, the discriminator judges, and both learn from that."""
    axes = _diagram(11.2, 4.7)
    top, low = 3.5, 1.5
    middle = (top + low) / 2
    _box(axes, 0.1, low, 1.3, 0.9, "noise\n$z \\sim N(0, I)$", ORANGE)
    _funnel(axes, 2.0, 3.7, low, 0.8, 1.5, "Generator\n$G$", BLUE)
    _picture(axes, 4.3, low, _heart(noise=0.25), "generated $G(z)$")
    _picture(axes, 4.3, top, _heart(), "real $x$")
    _funnel(axes, 6.7, 8.5, middle, 2.2, 1.2, "Discriminator\n$D$", GREEN)
    _box(axes, 9.2, middle, 1.8, 0.9, "$D(\\cdot)$\nreal or generated?", INK)

    _arrow(axes, (1.4, low), (2.0, low))
    _arrow(axes, (3.7, low), (4.3, low))
    _arrow(axes, (5.6, top), (6.7, middle + 0.6))
    _arrow(axes, (5.6, low), (6.7, middle - 0.6))
    _arrow(axes, (8.5, middle), (9.2, middle))
    _path(axes, [(10.1, middle + 0.45), (10.1, 4.1), (7.6, 4.1), (7.6, middle + 0.9)], GREEN)
    _text(axes, 8.85, 4.33, "$\\max_D\\;\\log D(x) + \\log(1 - D(G(z)))$", GREEN)
    _path(axes, [(10.1, middle - 0.45), (10.1, 0.32), (2.85, 0.32), (2.85, low - 0.62)], BLUE)
    _text(axes, 8.0, 0.55, "$\\max_G\\;\\log D(G(z))$", BLUE)
    return axes.figure


def architecture_diffusion() -> Figure:
    """Figure 3: noise is added step by step; a network that predicts it takes the steps back."""
    axes = _diagram(11.2, 4.3)
    middle, side = 2.35, 1.3
    lefts = (0.1, 2.95, 6.95, 9.8)
    kept = (1.0, 0.75, 0.5, 0.0)  # share of the signal that is left
    names = ("$x_0$", "$x_{t-1}$", "$x_t$", "$x_T \\sim N(0, I)$")
    for left, share, name in zip(lefts, kept, names, strict=True):
        _picture(axes, left, middle, share**0.5 * _heart() + (1 - share) ** 0.5 * _noise(), name)
    for i, between in ((0, "dots"), (1, "step"), (2, "dots")):
        start, end = lefts[i] + side, lefts[i + 1]
        if between == "dots":
            _text(axes, (start + end) / 2, middle, "· · ·", SOFT, size=16)
        for height, colour, ends in ((0.38, BLUE, (start, end)), (-0.38, RED, (end, start))):
            first, last = (x + np.sign(ends[1] - ends[0]) * pad for x, pad in zip(ends, (0.08, -0.08), strict=True))
            _arrow(axes, (first, middle + height), (last, middle + height), colour)
    centre = (lefts[1] + side + lefts[2]) / 2
    _text(axes, centre, middle + 0.62, "$q(x_t\\,|\\,x_{t-1})$", BLUE)
    _text(axes, centre, middle + 0.1, "$p_\\theta(x_{t-1}\\,|\\,x_t)$", RED)
    _text(axes, 5.6, 4.0, "Forward process: a little Gaussian noise at every step", BLUE, size=12)
    _text(axes, 5.6, 3.6, "$q(x_t\\,|\\,x_{t-1}) = N(x_t;\\,\\sqrt{1-\\beta_t}\\,x_{t-1},\\,\\beta_t I)$", BLUE)
    _box(axes, centre - 0.95, 0.92, 1.9, 0.62, "U-Net $\\epsilon_\\theta(x_t, t)$", RED)
    _arrow(axes, (centre, 1.23), (centre, middle - 0.44), RED)
    _text(
        axes,
        5.6,
        0.2,
        "Reverse process: the network predicts the noise, and a step takes part of it away",
        RED,
        12,
    )
    return axes.figure


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **settings) -> tuple[Figure, Axes]:
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


def _diagram(width: float, height: float) -> Axes:
    """An empty sheet whose unit is an inch."""
    axes = _figure(width, height)[1]
    axes.set_position([0, 0, 1, 1])
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return axes


def _text(axes: Axes, x: float, y: float, text: str, colour: str = INK, size: float = 11) -> None:
    axes.text(x, y, text, color=colour, fontsize=size, ha="center", va="center", linespacing=1.5)


def _box(
    axes: Axes,
    left: float,
    middle: float,
    width: float,
    height: float,
    text: str,
    colour: str,
    size: float = 11,
) -> None:
    shape = "round,pad=0,rounding_size=0.12"
    corner = (left, middle - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, fc=_tint(colour), ec=colour, lw=1.5))
    _text(axes, left + width / 2, middle, text, size=size)


def _funnel(
    axes: Axes, left: float, right: float, middle: float, before: float, after: float, text: str, colour: str
) -> None:
    """A trapezoid that narrows or widens from left to right, as the data do in a network."""
    corners = [(left, middle - before / 2), (left, middle + before / 2)]
    corners += [(right, middle + after / 2), (right, middle - after / 2)]
    axes.add_patch(Polygon(corners, fc=_tint(colour), ec=colour, lw=1.5, joinstyle="round"))
    _text(axes, (left + right) / 2, middle, text)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 2, "shrinkB": 2}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, lw=1.4, **look))


def _path(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    """A dashed line around corners that ends in an arrow: what a network learns from."""
    axes.plot(*zip(*points[:-1], strict=True), color=colour, lw=1.3, ls=(0, (4, 3)))
    _arrow(axes, points[-2], points[-1], colour)


def _bracket(axes: Axes, left: float, right: float, y: float, depth: float, colour: str) -> None:
    """A line that gathers what lies from left to right; it opens downwards for a positive depth."""
    low, high = y - depth / 2, y + depth / 2
    axes.plot([left, left, right, right], [low, high, high, low], color=colour, lw=1.3)


def _picture(axes: Axes, left: float, middle: float, image: np.ndarray, name: str, side: float = 1.3) -> None:
    extent = (left, left + side, middle - side / 2, middle + side / 2)
    axes.imshow(image, cmap="gray", vmin=-1, vmax=1, extent=extent, aspect="auto", zorder=2)
    _text(axes, left + side / 2, middle - side / 2 - 0.2, name)


def _tint(colour: str) -> tuple[float, ...]:
    return tuple(1 - 0.14 * (1 - channel) for channel in mpl.colors.to_rgb(colour))


def _noise(size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.6, (size, size))


def _heart(size: int = 64, noise: float = 0.0, blur: float = 1.0) -> np.ndarray:
    """A drawn short axis: bright cavities, a thick dark wall, grey around; (size, size) in [−1, 1]."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1

    def disc(across: float, down: float, radius: float, stretch: float = 1.0) -> np.ndarray:
        distance = radius - np.hypot((x - across) / stretch, y - down)
        return 1 / (1 + np.exp(-distance * size / (2.5 * blur)))

    picture = np.full((size, size), -0.75)
    for shape, level in (
        (disc(0.0, 0.05, 0.92, 1.05), -0.35),
        (disc(-0.38, -0.12, 0.46, 1.0), 0.75),
        (disc(0.2, 0.08, 0.56), -0.55),
        (disc(0.28, 0.1, 0.27), 0.85),
    ):
        picture = picture * (1 - shape) + level * shape
    return np.clip(picture + noise * _noise(size), -1, 1)
