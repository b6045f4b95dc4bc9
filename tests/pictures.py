"""One example of each figure function, on data made by hand."""

from functools import cache

import numpy as np
import pandas as pd
import torch
from matplotlib.collections import LineCollection

from hcm_helpers import diagrams, figures, widgets
from hcm_helpers.acdc import GROUPS
from hcm_helpers.similarity import TITLES
from hcm_helpers.slices import Slices


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


@cache
def example(name):
    return EXAMPLES[name]()
