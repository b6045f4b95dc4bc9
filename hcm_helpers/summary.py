"""What a run has found, in sentences made of its own figures, for a reader who has not seen the code.

Two figures count as told apart where their 95 % intervals do not overlap, which asks for more than a test would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from hcm_helpers.page import figure, number
from hcm_helpers.scorecard import COLUMNS, REAL
from hcm_helpers.similarity import TITLES
from hcm_helpers.utility import by_patient, in_full

if TYPE_CHECKING:
    from hcm_helpers.report import Run

Cards = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]  # value, low and high, as `scorecard.scorecard` gives them
NOT_YET = "Not measured yet: notebook 08 has not been run to its end."


def what_ran(run: Run) -> str:
    """Profile, seed, data and models."""
    record, slices, models = run.record, run.slices, run.models
    profile = f"Profile {record['profile']}" if "profile" in record else "Notebooks that were run one by one"
    sentences = [f"{profile}, seed {run.seeds or 'not known'}."]
    if record.get("data_description"):
        sentences.append(f"Data: {record['data_description']}.")
    if slices:
        size, pixel = slices.get("image_size", "?"), slices.get("pixel_mm", "?")
        split = slices.get("patients_by_split")
        split = split if isinstance(split, dict) else {}
        roles = {"train": "to learn from", "validation": "to choose weights by", "test": "held out for the test"}
        parts = [f"{split[name]} {role}" for name, role in roles.items() if name in split]
        sentences.append(
            f"Slices: {slices.get('slices', '?')} of {size}×{size} pixels ({pixel} mm each) from "
            f"{slices.get('patients', '?')} patients{': ' if parts else ''}{', '.join(parts)}."
        )
    if models:
        sentences.append(f"Models: {listed(TITLES[name] for name in models)}.")
    return " ".join(sentences)


def nearest(card: pd.DataFrame, measure: str = "KID") -> str | None:
    """The model with the lowest KID; None where none has one."""
    values = card[measure].drop(REAL).dropna()
    return None if values.empty else values.idxmin()


def which_is_nearest(cards: Cards | None) -> str:
    """The model with the lowest KID, whom it is not told apart from, and whether held-out patients agree."""
    best = None if cards is None else nearest(cards[0])
    if best is None:
        return NOT_YET
    card, low, high = cards
    models = card["KID"].drop(REAL).dropna()
    text = f"{the(best, capital=True)} has the lowest KID{of(len(models))}: {said(cards, best, 'KID')}"
    text += f" (held-out real hearts: {said(cards, REAL, 'KID')})."
    text += " KID is a distance between two sets of images, 0 where they are alike."
    same = [name for name in models.index if name != best and low.loc[name, "KID"] <= high.loc[best, "KID"]]
    if same:
        text += " " + listed(f"{the(name)} ({said(cards, name, 'KID')})" for name in same)
        text += f" {'is' if len(same) == 1 else 'are'} not told apart from it: the intervals overlap."
    new = nearest(card, "KID to test")
    if new is not None:
        whose = "it is lowest as well" if new == best else f"{the(new)} is lowest"
        text += (
            f" By the distance to held-out patients, where a copy gains nothing, {whose}: "
            f"{said(cards, new, 'KID to test')} (the training slices themselves: {said(cards, REAL, 'KID to test')})."
        )
    return text


def does_it_copy(cards: Cards | None) -> str:
    """The share of copies of the model with the lowest KID beside that of held-out real slices."""
    best, column = None if cards is None else nearest(cards[0]), "copies, %"
    if best is None or pd.isna(cards[0].loc[best, column]):
        return NOT_YET
    card = cards[0]
    verdict = beside_real(
        cards,
        best,
        column,
        good="No more than real hearts resemble each other:",
        worse="Yes, more than real hearts resemble each other:",
        near="Perhaps (the intervals overlap):",
        unknown="Too few held-out patients to say whether more than real hearts resemble each other:",
    )
    text = f"{verdict} {said(cards, best, column)} of {the(best)}’s images are nearer to a training slice than any "
    text += f"held-out real slice is; of real slices of held-out patients {said(cards, REAL, column)}."
    shown = card[column].drop(REAL).round(COLUMNS[column][0])
    if shown.max() > shown[best]:
        text += f" The most copies are {the(shown.idxmax())}’s: {said(cards, shown.idxmax(), column)}."
    return text


def does_anatomy_hold(cards: Cards | None) -> str:
    """Closed walls and their thickness in the images of the model with the lowest KID, beside real hearts."""
    best, share, wall = None if cards is None else nearest(cards[0]), "plausible, %", "wall, mm off"
    if best is None or pd.isna(cards[0].loc[best, share]):
        return NOT_YET
    card = cards[0]
    verdict = beside_real(
        cards,
        best,
        share,
        good="At least as often as in real hearts:",
        worse="Less often than in real hearts:",
        near="Nearly as often as in real hearts (the intervals overlap):",
        unknown="Too few held-out patients to say whether as often as in real hearts:",
    )
    text = f"{verdict} {said(cards, best, share)} of {the(best)}’s images show one closed ring of wall round one "
    text += f"cavity, {said(cards, REAL, share)} of held-out real slices."
    if not pd.isna(card.loc[best, wall]):
        text += f" Where it is closed, its largest thickness is {said(cards, best, wall)} off that of the training "
        text += f"patients (held-out patients: {said(cards, REAL, wall)})."
    shown = card[share].drop(REAL).round(COLUMNS[share][0])
    if shown.max() > shown[best]:
        text += f" The most closed walls are {the(shown.idxmax())}’s: {said(cards, shown.idxmax(), share)}."
    return text


def did_it_help(table: pd.DataFrame | None, best: str | None) -> str:
    """Whether any arm of notebook 09 with generated slices told HCM from the rest better than real slices only.

    Args:
        table: as `utility.score` returns it, or None.
        best: the model with the lowest KID, of whose arms the largest gain is told.
    """
    if table is None:
        return "Not measured yet: notebook 09 has not been run."
    arms = by_patient(table)
    arms = arms[arms["model"] != "–"]
    if arms.empty:
        return "Not measured: no generated slices took part in notebook 09."
    count = arms["verdict"].value_counts()
    better, worse = arms[arms["verdict"] == "better"], count.get("worse", 0)
    verdict = "No gain is shown" if better.empty else "In part" if len(better) < len(arms) else "Yes"
    text = f"{verdict}: of {len(arms)} trials in which generated slices stood beside or in place of real ones, "
    text += f"{len(better) or 'none'} told HCM from the rest better than the real slices alone, "
    text += f"{worse or 'none'} worse, and {len(arms) - len(better) - worse} could not be told apart "
    text += "(AUC by patient, 95 % interval of the gain)."
    if not better.empty:
        names = listed(in_full(row) + " †" * bool(row.leaks) for row in better.itertuples())
        text += f" Better: {names}. Of twenty intervals about one misses by chance."
    own = arms[(arms["model"] == best) & arms["gain"].notna()]
    if not own.empty:
        row = own.loc[own["gain"].idxmax()]
        leaking = pd.concat([better["leaks"], own.loc[[row.name], "leaks"]])
        interval = "" if pd.isna(row["gain_low"]) else f" {signed(row['gain_low'], row['gain_high'])}"
        text += f" The largest gain with {the(best)}’s slices is {figure(row['gain'], 2, '+')}{interval}"
        text += f" ({in_full(row)}{' †' * bool(row['leaks'])})."
    else:
        leaking = better["leaks"]
    if leaking.any():
        text += " †: the generator has seen more HCM patients than the trial had."
    return text


def limits(record: dict[str, Any], slices: dict[str, Any]) -> list[str]:
    """What the figures of a run do not say."""
    held_out = slices.get("patients_by_split")
    test = held_out.get("test") if isinstance(held_out, dict) else None
    patients = f" Here these are {test} in all groups together." if test is not None else ""
    synthetic = "synthetic" in str(record.get("data_description"))
    formulas = "The hearts are synthetic, made by formulas: the page says how the models do on them, not on patients."
    return [
        *([formulas] if synthetic else []),
        "For research and teaching only. Nothing here is a medical device, and no image made here may guide a "
        "diagnosis.",
        "One training a model. A second one, with another seed, may change the order; the intervals do not count that.",
        f"Held-out patients are few, and what is said of real hearts rests on them.{patients}",
        "KID, precision, recall and anatomy come from small networks that this run has trained on its own training "
        "patients. They err, and their figures cannot be compared with those of other papers.",
        "Copies are looked for in place: one that is moved, turned or in other tones may pass, and a blurred image, "
        "which is near to everything, may count as one.",
        "Pixel similarity says little about anatomy and nothing about usefulness; a blurred mean image scores well.",
        "Generated images and weights may resemble the patients they were learned from: treat them as derived from the "
        "data, under its licence. That of ACDC is CC BY-NC-SA 4.0, for non-commercial use (Bernard et al. 2018, "
        "doi 10.1109/TMI.2018.2837502).",
    ]


def beside_real(cards: Cards, name: str, column: str, *, good: str, worse: str, near: str, unknown: str) -> str:
    """Of four verdicts on a model the one that holds: as good as real hearts, worse, not told apart, no interval."""
    value, low, high = (card.loc[[name, REAL], column] for card in cards)
    if COLUMNS[column][1] == "higher":  # turned round, less is better in any column
        value, low, high = -value, -high, -low
    if value[name] <= value[REAL]:
        return good
    if low.isna().any() or high.isna().any():  # of one patient, or of too few slices
        return unknown
    return worse if low[name] > high[REAL] else near


def said(cards: Cards, name: str, column: str) -> str:
    """A figure with interval and unit, such as "0.25 [0.22, 0.28]" or "4.3 [3.2, 5.5] %", on one line of the page."""
    cell = number(cards[0].loc[name, column], COLUMNS[column][0], *(end.loc[name, column] for end in cards[1:]))
    unit = "" if cell.text == "–" else next((unit for unit in ("%", "mm") if f", {unit}" in column), "")
    return " ".join(part for part in (cell.text, cell.interval, unit) if part).replace(" ", "\u00a0")


def signed(low: float, high: float) -> str:
    """An interval of a difference: [−0.19, +0.39]."""
    return f"[{figure(low, 2, '+')}, {figure(high, 2, '+')}]"


def the(model: str, capital: bool = False) -> str:
    """A model in a sentence: the VAE, the diffusion model."""
    title = "diffusion model" if model == "diffusion" else TITLES[model]
    return f"{'The' if capital else 'the'} {title}"


def of(count: int) -> str:
    """Of how many models, where there are several."""
    return f" of {count} models" if count > 1 else ""


def listed(words) -> str:
    """a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
