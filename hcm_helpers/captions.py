"""What each figure of a run shows: a caption for everybody, and the same in words for who cannot see it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from hcm_helpers.acdc import DataError, one_line
from hcm_helpers.page import figure
from hcm_helpers.scorecard import REAL
from hcm_helpers.similarity import TITLES
from hcm_helpers.summary import Cards, listed, said, the
from hcm_helpers.training import models_with
from hcm_helpers.utility import by_patient, in_full

DIAGRAMS = {
    "figure_1_vae_architecture": (
        "Figure 1. The variational autoencoder. To generate, one decodes a z drawn from N(0, I).",
        "Diagram from left to right: a slice x enters the encoder, which gives μ and σ; z = μ + σ ⊙ ε with noise ε "
        "from outside; the decoder turns z into the reconstruction. The KL divergence stands above μ and σ, the "
        "reconstruction loss between the two slices at the ends.",
    ),
    "figure_2_gan_architecture": (
        "Figure 2. The generative adversarial network, and what DCGAN, ACGAN and InfoGAN share with it. Dashed: what "
        "each player learns from.",
        "Diagram: noise z enters the generator, which makes an image; this and a real slice enter the discriminator, "
        "which says real or generated. A dashed line leads from its verdict back to itself, another to the generator.",
    ),
    "figure_3_diffusion_architecture": (
        "Figure 3. The diffusion model. Only the way back, from noise to image, is learned.",
        "Diagram: four pictures in a row from a clear slice to pure noise. Arrows to the right add a little noise at "
        "every step; arrows to the left, with a U-Net below them, take it away again.",
    ),
}
ONE_EACH = "Figure 4. A real slice of a test patient beside one image of each model, "
CHOSEN = {
    "generated": (ONE_EACH + "drawn at random, the fair choice.", "an image drawn at random"),
    "nearest": (ONE_EACH + "of all its images the one most like it by SSIM.", "the image most like it"),
}


def describe(path: Path, run: Path, cards: Cards | None, use: pd.DataFrame | None) -> tuple[str, str]:
    """Caption and alternative text of a figure, by its file's name and the run's own figures.

    Args:
        path: of the figure, in the run's folder figures/.
        run: that folder.
        cards: as in `summary`.
        use: as `utility.score` returns it.

    Raises:
        DataError: the history.csv that a curve was drawn from is broken.
    """
    if path.stem in DIAGRAMS:
        return DIAGRAMS[path.stem]
    if match := re.fullmatch(r"figure_4_original_and_(generated|nearest)", path.stem):
        caption, chosen = CHOSEN[match[1]]
        models = [TITLES[name] for name in models_with(run, "samples.npz")]
        return (
            caption,
            f"A row of grey slices: a real one, then {chosen} of each of {listed(models or ['the models'])}.",
        )
    if match := re.fullmatch(r"figure_0*(\d+)_(\w+)_loss", path.stem):
        return curves(int(match[1]), match[2], run / match[2] / "history.csv")
    if match := re.fullmatch(r"samples_(\w+)", path.stem):
        return grid(match[1], cards)
    if path.stem == "table_1_similarity":
        return similarity(cards)
    if path.stem == "use_in_a_classifier" and use is not None:
        return arms(use)
    words = " ".join(TITLES[word] for word in re.split(r"[_-]", path.stem))
    caption = re.sub(r"^(figure|table) 0*(\d+) ", r"\1 \2. ", words)
    caption = caption[:1].upper() + caption[1:]
    return caption, f"{caption}: a figure that this run has drawn beside those of the series."


def curves(place: int, model: str, history: Path) -> tuple[str, str]:
    """Of the losses over the epochs, from the history they were drawn from."""
    title = the(model)
    adversarial = model in ("gan", "dcgan", "acgan", "infogan")
    caption = f"Figure {place}. Losses of {title}, an epoch a value; a ring marks the best epoch in validation."
    if adversarial:
        caption += (
            " They say who is winning, not how good the images are; that is the right panel, on held-out patients."
        )
    if not history.is_file():
        return caption, f"Curves of the losses of {title} against the epoch."
    try:
        table = pd.read_csv(history).astype(float)
        epochs = table["epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{history} is broken ({one_line(error)}); train this model again") from error
    parts = []
    for name in ("generator", "discriminator") if adversarial else ("loss",):
        values = table[name].dropna() if name in table else []
        if len(values):
            label = f"the {name}’s loss" if adversarial else "the training loss"
            parts.append(f"{label} goes from {values.iloc[0]:.3g} to {values.iloc[-1]:.3g}")
    found = table["validation"].dropna() if "validation" in table else []
    if len(found):
        parts.append(f"the validation figure is lowest, {found.min():.3g}, in epoch {epochs[found.idxmin()]:.0f}")
    alt = f"Curves of {title} over epochs {epochs.min():.0f} to {epochs.max():.0f}: {listed(parts or ['empty'])}."
    return caption, alt.replace("-", "−")


def grid(model: str, cards: Cards | None) -> tuple[str, str]:
    """Of the first images that a model has drawn."""
    title, share = the(model), "plausible, %"
    caption = f"What {title} usually makes: its first 64 images, none picked, as HCM where it can be told the group."
    alt = f"Small grey images in rows of eight, drawn by {title}."
    if cards is not None and model in cards[0].index and cards[0].loc[model, share] >= 0:
        alt += f" Of all its images {said(cards, model, share)} show one closed ring of wall round one cavity"
        alt += f" (real slices: {said(cards, REAL, share)})."
    return caption, alt


def similarity(cards: Cards | None) -> tuple[str, str]:
    """Of table 1 as dots."""
    caption = "Table 1 as a figure. Hollow: what the paper’s text quotes. Grey band: real hearts by the same procedure."
    alt = "Four panels, SSIM, CC, CC peak and MSE: a row a model, with dots for a random, the nearest training and the "
    alt += "nearest test slice, and real slices below."
    if cards is not None:
        names = cards[0].index[cards[0]["SSIM"].notna()]
        values = listed(f"{TITLES[name]} {said(cards, name, 'SSIM')}" for name in names) if len(names) else "none"
        alt += f" SSIM with the nearest test slice: {values}."
    return caption, alt


def arms(use: pd.DataFrame) -> tuple[str, str]:
    """Of what generated slices do for a classifier."""
    caption = (
        "HCM or not: each arm’s AUC by patient (above) and its gain over real slices only (below), with intervals. "
    )
    caption += "Hollow: the generator has seen more HCM patients than the arm has real ones."
    rows = by_patient(use).dropna(subset=["value"])
    alt = "A line an arm, a column a number of real HCM patients, a dot with its interval each."
    if len(rows):
        lowest, highest = (
            f"{figure(row['value'], 2)} ({in_full(row)})"
            for row in (rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()])
        )
        above, below = ((rows["verdict"] == verdict).sum() for verdict in ("better", "worse"))
        alt += (
            f" The AUC runs from {lowest} to {highest}. Of the gains {above} lie wholly above 0, {below} wholly below."
        )
    return caption, alt
