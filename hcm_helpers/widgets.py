"""What the reader touches: pictures fast enough for a slider, a browser of patients, a quiz of real and generated.

Everything that decides (which slices, in which order, what an answer is worth) is a plain function; the panels only
join these with buttons and sliders of ipywidgets, and draw without Matplotlib where a picture has to follow a mouse.
"""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ipywidgets as ipw
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.stats import binom, binomtest
from torch import Tensor, nn

from hcm_helpers.acdc import GROUPS, DataError, Patient
from hcm_helpers.anatomy import measure
from hcm_helpers.cutting import Settings, slice_patient
from hcm_helpers.figures import BLUE, ORANGE, RED, SOFT, STRUCTURES, empty_figure, image_grid
from hcm_helpers.memorisation import closest_pairs
from hcm_helpers.slices import Slices
from hcm_helpers.training import generate

SIDE = 288  # screen pixels of a picture in a panel, at least


# Pictures


def outlined(image: Tensor | np.ndarray, mask: Tensor | np.ndarray | None = None, side: int = SIDE) -> np.ndarray:
    """A slice enlarged by whole pixels to at least `side`, with the outline of each structure of its mask.

    Shapes: image (1, S, S) in [−1, 1], mask (S, S) with ACDC's values or None → (Z, Z, 3) uint8, Z a multiple of S.
    """
    grey = np.asarray(image, dtype=np.float32)[0]
    zoom = -(-side // len(grey))
    grey = ((grey.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    picture = np.repeat(grey.repeat(zoom, 0).repeat(zoom, 1)[..., None], 3, axis=2)
    if mask is not None:
        large = np.asarray(mask).repeat(zoom, 0).repeat(zoom, 1)
        for value, (_, colour) in STRUCTURES.items():
            inside = large == value
            rim = inside & ~binary_erosion(inside, iterations=2)
            picture[rim] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return picture


def png(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG, hardly compressed: a panel sends it at once."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def measured(images: Tensor, masks: Tensor, pixel_mm: float) -> Figure:
    """Slices in a row under the outlines of their masks, each with its wall in mm, or why it cannot be measured.

    Shapes: images (N, 1, S, S) in [−1, 1], masks (N, S, S) with ACDC's values.
    """
    hearts = [measure(mask, pixel_mm) for mask in masks.numpy()]
    pictures = [outlined(image, mask) for image, mask in zip(images, masks, strict=True)]
    side, gap = len(pictures[0]), len(pictures[0]) // 20
    row = np.full((side, len(pictures) * (side + gap) - gap, 3), 255, np.uint8)
    figure, axes = empty_figure(2.1 * row.shape[1] / side, 2.1)
    axes.set_position([0, 0, 1, 1])
    axes.set_axis_off()
    axes.set_title("", y=1)  # or a place for it is sought, for half of the time of the drawing
    for i, (heart, picture) in enumerate(zip(hearts, pictures, strict=True)):
        left = i * (side + gap)
        row[:, left : left + side] = picture
        wall = f"wall {heart.mean_wall_mm:.1f} mm\nat most {heart.max_wall_mm:.1f}"
        text = wall if heart.plausible else f"no wall to measure:\n{heart.reason}"
        axes.text(left + side / 2, -gap / 2, text, ha="center", va="bottom", fontsize=8)
    axes.imshow(row)
    return figure


def marked_row(images: Tensor, titles: Sequence[str], chosen: int) -> Figure:
    """Images (N, 1, S, S) in a row, each with its title, and a frame around the chosen one."""
    figure = image_grid(images, len(images), titles)
    width = images.shape[-1]
    left = chosen * (width + max(1, width // 24))  # as image_grid leaves the gaps
    frame = Rectangle((left - 0.5, -0.5), width, width, fill=False, ec=ORANGE, lw=4, clip_on=False)
    figure.axes[0].add_patch(frame)
    return figure


def noise(number: int, length: int) -> Tensor:
    """The noise vector of a number, (1, length) from N(0, I): always the same, whatever else is chosen."""
    return torch.randn(1, length, generator=torch.Generator().manual_seed(number))


def draw_at_cost(model: nn.Module, labels: Tensor | None, count: int, seed: int = 0, **choices) -> tuple[Tensor, str]:
    """Images of a diffusion model under other choices than its own, and what they cost.

    Args:
        model: a trained diffusion model; it stays as it is.
        labels: what it is told of each image, as `generate` takes them.
        count: how many images.
        seed: of the noise, the same whatever is chosen.
        choices: attributes of the model, such as sampler, sampling_steps and guidance.

    Returns:
        Images (count, 1, S, S) in [−1, 1], and a line with evaluations an image and seconds.
    """
    own = {name: getattr(model, name) for name in choices}
    try:
        for name, value in choices.items():
            setattr(model, name, value)
        start = time.perf_counter()
        images = generate(model, count, labels, seed)
        seconds = time.perf_counter() - start
        line = f"{model.evaluations} evaluations an image, {seconds:.2f} s for {count}"
    finally:
        for name, value in own.items():
            setattr(model, name, value)
    return images, line


# The closest pairs


def pair_figure(images: Tensor, train: Slices, found: pd.DataFrame, rank: int, threshold: float) -> Figure:
    """A generated image, its nearest training slice and their difference; rank 0 is the closest pair of all.

    Args:
        images: (N, 1, S, S) in [−1, 1].
        train: the slices that the model has learned from.
        found: of these images, as `memorisation.find_nearest` gives it.
        rank: place in the order of similarity, from 0.
        threshold: the CC that no held-out slice exceeds.
    """
    pair = closest_pairs(found, rank + 1).iloc[rank]
    image, real = images[int(pair.name)].cpu(), train.images[int(pair["cc_row"])]
    side = "above" if pair["cc"] > threshold else "not above"
    names = ("generated", f"training, {pair['patient']}", "difference")
    text = f"pair {rank + 1}: CC {pair['cc']:.3f}, {side} the threshold of {threshold:.3f}"
    return image_grid(torch.stack([image, real, (image - real) / 2]), 3, names, title=text)


# Real or generated?


@dataclass(frozen=True)
class Quiz:
    """Slices in the order in which a reader sees them, (n, 1, S, S), and which of them are real, (n,) bool."""

    images: Tensor
    real: np.ndarray


@dataclass(frozen=True)
class Reader:
    """What published readers reached: the share of right answers, of all images or of the generated ones alone."""

    who: str
    share: float
    of: str  # "all" or "generated"
    link: str


READERS = (
    Reader("10 radiologists, CT of the body, progressive GAN", 0.594, "all", "https://doi.org/10.2196/23328"),
    Reader("cardiologists, perfusion maps, DCGAN", 0.611, "all", "https://doi.org/10.7759/cureus.30646"),
    Reader("the same, given a clue", 0.800, "all", "https://doi.org/10.7759/cureus.30646"),
    Reader("the 10 radiologists, generated CT alone", 0.519, "generated", "https://doi.org/10.2196/23328"),
    Reader("16 radiologists, generated images alone", 0.966, "generated", "https://arxiv.org/abs/2503.20967"),
)


def make_quiz(real: Tensor, generated: Tensor, count: int = 20, seed: int = 0) -> Quiz:
    """`count` slices, exactly half of them real, none twice, in an order that the seed decides and that tells nothing.

    Args:
        real: held-out slices (N, 1, S, S) in [−1, 1].
        generated: images of one model (M, 1, S, S).
        count: how many, an even number.
        seed: of the choice and of the order.

    Raises:
        DataError: an odd number, or fewer than half as many images in one of the two.
    """
    half = count // 2
    if count != 2 * half or count < 2:
        raise DataError(f"count={count}: choose an even number of slices, half of which are real")
    if min(len(real), len(generated)) < half:
        raise DataError(f"{len(real)} real and {len(generated)} generated slices are too few for a quiz of {count}")
    rng = np.random.default_rng(seed)
    chosen = [images.cpu()[rng.choice(len(images), half, replace=False)] for images in (real, generated)]
    order = rng.permutation(count)
    return Quiz(torch.cat(chosen)[order], order < half)


def score(answers: Sequence[bool], real: Sequence[bool]) -> pd.DataFrame:
    """How often a reader was right, with the exact binomial interval (Clopper and Pearson, 95 %).

    Args:
        answers: for each slice, whether the reader called it real.
        real: whether it was.

    Returns:
        Three rows, of all slices, the real and the generated ones: right, of, share, low, high.

    Raises:
        DataError: another number of answers than of slices.
    """
    answers, real = np.asarray(answers, bool), np.asarray(real, bool)
    if answers.shape != real.shape:
        raise DataError(f"{len(answers)} answers to {len(real)} slices; answer each of them once")
    rows = {}
    for name, those in {"all": np.ones_like(real), "real": real, "generated": ~real}.items():
        right, count = int((answers == real)[those].sum()), int(those.sum())
        interval = binomtest(right, count).proportion_ci(0.95, "exact")
        rows[name] = {"right": right, "of": count, "share": right / count, "low": interval.low, "high": interval.high}
    return pd.DataFrame(rows).T.astype({"right": int, "of": int})


def readers_figure(scores: pd.DataFrame | None = None, count: int = 20) -> Figure:
    """Published readers, the band in which somebody who guesses ends in 95 of 100 quizzes, and the reader's own score.

    Args:
        scores: as `score` gives them; None: nobody has answered.
        count: slices of the quiz.
    """
    low, high = (binom.ppf(q, count, 0.5) / count for q in (0.025, 0.975))
    names = [reader.who for reader in READERS]
    figure, ax = empty_figure(7, 0.32 * (len(READERS) + 1) + 0.9, layout="constrained")
    ax.axvspan(low, high, color="#e6e6e6", label=f"guessing, {count} slices")
    for of, colour, marker in (("all", BLUE, "o"), ("generated", RED, "s")):
        shares = {place: reader.share for place, reader in enumerate(READERS) if reader.of == of}
        ax.plot(list(shares.values()), list(shares), marker, color=colour, label=f"right, of {of}")
        if scores is not None:
            mine = scores.loc[of]
            margins = [[mine["share"] - mine["low"]], [mine["high"] - mine["share"]]]
            place = len(READERS) - 0.15 if of == "all" else len(READERS) + 0.15
            ax.errorbar(mine["share"], place, xerr=margins, fmt=marker, color=colour)
    names.append("you, with 95 % interval" if scores is not None else "you: not answered yet")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="share of right answers", xlim=(0, 1.02), ylim=(len(names) - 0.5, -0.5))
    ax.axvline(0.5, color=SOFT, lw=1, ls=":")
    ax.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def verdict(scores: pd.DataFrame) -> str:
    """One sentence on what the reader's answers show."""
    row = scores.loc["all"]
    low, high = row["low"], row["high"]
    text = f"{row['right']:.0f} of {row['of']:.0f} right, {row['share']:.0%} [{low:.0%}, {high:.0%}]: "
    if low > 0.5:
        return text + "you can tell them apart."
    return text + ("you were misled: worse than guessing." if high < 0.5 else "not told apart from guessing.")


def reader_quiz(real: Tensor, models: Mapping[str, Tensor], count: int = 20) -> ipw.VBox:
    """The quiz with two buttons; it says nothing before the last answer, then the score beside published readers.

    Args:
        real: held-out slices (N, 1, S, S) in [−1, 1].
        models: title → images of that model.
        count: slices of a quiz.
    """
    model = ipw.Dropdown(options=list(models), description="model")
    number = ipw.BoundedIntText(0, 0, 9999, description="quiz no.")
    picture, text, result = ipw.Image(format="png", width=SIDE), ipw.HTML(), ipw.Output()
    buttons = [ipw.Button(description=name, button_style="primary") for name in ("real", "generated")]
    state: dict = {}

    def show() -> None:
        done = len(state["answers"])
        text.value = f"slice {min(done + 1, count)} of {count}: real or generated?"
        if done < count:
            picture.value = png(outlined(state["quiz"].images[done]))
            return
        scores = score(state["answers"], state["quiz"].real)
        text.value = verdict(scores)
        for button in buttons:
            button.disabled = True
        truth = ["real" if real else "generated" for real in state["quiz"].real]
        right = ["✓" if a == b else "✗" for a, b in zip(state["answers"], state["quiz"].real, strict=True)]
        grid = image_grid(state["quiz"].images, 10, [f"{a} {b}" for a, b in zip(right, truth, strict=True)])
        for part in (scores.round(2), readers_figure(scores, count), grid):
            result.append_display_data(part)

    def restart(_=None) -> None:
        state.update(quiz=make_quiz(real, models[model.value], count, number.value), answers=[])
        result.outputs = ()
        for button in buttons:
            button.disabled = False
        show()

    def answer(button: ipw.Button) -> None:
        if len(state["answers"]) < count:  # a double click on the last slice comes twice
            state["answers"].append(button.description == "real")
            show()

    for button in buttons:
        button.on_click(answer)
    for control in (model, number):
        control.observe(restart, "value")
    restart()
    return ipw.VBox([ipw.HBox([model, number]), picture, text, ipw.HBox(buttons), result])


# Patients


def heartbeat(patient: Patient, settings: Settings) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Every frame that there is of a patient, cut as `prepare` cuts it: ED and ES, and the others of its cine, if any.

    Returns:
        images (n, S, S) float32 in [−1, 1], masks (n, S, S) uint8, and a row each: phase, frame, slice, position,
        labelled and the other columns of a manifest, sorted by frame and slice.
    """
    images, masks, facts = slice_patient(patient, replace(settings, frames="all"))
    rows = pd.DataFrame(facts["rows"]).sort_values(["frame", "slice"])
    return images[rows.index], masks[rows.index], rows.reset_index(drop=True)


def row_at(rows: pd.DataFrame, frame: int, slice_number: int) -> int:
    """The row of this frame's slice; of the nearest one where the frame lacks it."""
    return int((rows.loc[rows["frame"] == frame, "slice"] - slice_number).abs().idxmin())


def patient_browser(patients: Sequence[Patient], settings: Settings) -> ipw.VBox:
    """Group, patient, frame, slice, and the mask or not; a film runs over the frames that there are.

    A patient is read when chosen (a tenth of a second; a second or two with a cine), and then lies in memory.

    Args:
        patients: as `find_patients` gives them.
        settings: how `prepare` cut them.
    """
    groups = [group for group in GROUPS if any(patient.group == group for patient in patients)]
    group = ipw.Dropdown(options=groups, value=groups[-1], description="group")
    name = ipw.Dropdown(options=_names(patients, groups[-1]), description="patient")
    frame, depth = ipw.IntSlider(description="frame"), ipw.IntSlider(description="slice")
    film, mask = ipw.Play(max=1), ipw.Checkbox(True, description="mask")
    picture, text = ipw.Image(format="png", width=SIDE), ipw.HTML()
    state: dict = {}

    def draw(_=None) -> None:
        images, masks, rows = state["beat"]
        row = row_at(rows, state["frames"][frame.value], depth.value)
        here = rows.loc[row]
        drawn = mask.value and here["labelled"]
        picture.value = png(outlined(images[row][None], masks[row] if drawn else None))
        phase = "" if here["phase"] == "-" else f"{here['phase']}, "
        outline = "" if here["labelled"] else ", no mask drawn"
        text.value = f"{phase}frame {here['frame']}, slice {here['slice']}, position {here['position']:.2f}{outline}"

    def choose_patient(_=None) -> None:
        patient = next(patient for patient in patients if patient.name == name.value)
        state["beat"] = heartbeat(patient, settings)
        state["frames"] = sorted(set(state["beat"][2]["frame"]))
        film.max = frame.max = len(state["frames"]) - 1
        film.interval = 100 if frame.max > 1 else 600  # ms: a film, or two pictures in turn
        slices = state["beat"][2]["slice"]
        depth.min, depth.max = 0, int(slices.max())
        depth.min = int(slices.min())
        draw()

    def choose_group(_=None) -> None:
        name.options = _names(patients, group.value)

    group.observe(choose_group, "value")
    name.observe(choose_patient, "value")
    for control in (frame, depth, mask):
        control.observe(draw, "value")
    choose_patient()
    depth.value = (depth.min + depth.max) // 2
    link = ipw.jslink((film, "value"), (frame, "value"))
    panel = ipw.VBox([ipw.HBox([group, name, mask]), ipw.HBox([film, frame, depth]), picture, text])
    panel.link = link  # kept, or it would be collected
    return panel


def _names(patients: Sequence[Patient], group: str) -> list[str]:
    return [patient.name for patient in patients if patient.group == group]
