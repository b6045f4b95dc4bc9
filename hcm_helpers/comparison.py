"""Several runs side by side on one page: how each was made, what differs, and each measure with a column a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hcm_helpers import page
from hcm_helpers.acdc import DataError
from hcm_helpers.page import Cell, Table, number
from hcm_helpers.report import Run, optional_table, read_cards, read_run, run_title, write_page
from hcm_helpers.scorecard import COLUMNS, INTERVALS, LEGEND, REAL
from hcm_helpers.similarity import TITLES
from hcm_helpers.summary import Cards, nearest, said, the
from hcm_helpers.utility import by_patient, in_full

ABSENT = Cell("–")
READING = (
    "A dash: not measured in this run. Each run has trained the networks that measure KID, precision, recall and "
    "anatomy itself, so read a figure beside the real hearts of its own run."
)


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write a page that sets runs side by side.

    Args:
        folders: the runs', at least two.
        path: of the page.

    Returns:
        The page's path.

    Raises:
        DataError: a folder holds no run or is named twice, a file is broken, or the page cannot be written.
    """
    for folder in folders:
        if folders.count(folder) > 1:
            raise DataError(f"{folder} is named twice; name each run once")
    runs = [read_run(folder) for folder in folders]
    names = unique_names(runs)
    cards, uses = [read_cards(folder) for folder in folders], [optional_table(folder, "utility") for folder in folders]
    same = len({run.slices.get("fingerprint") for run in runs}) == 1 and "fingerprint" in runs[0].slices
    html = page.render(
        "comparison",
        names=names,
        summary=summary(names, cards, same),
        facts=facts_table(names, runs),
        settings=settings_table(names, runs),
        reading=" ".join(["★: the best run of a row." if same else "", READING, LEGEND, INTERVALS]).strip(),
        measures=[measure_table(column, names, cards, same) for column in COLUMNS],
        use=use_table(names, uses),
    )
    write_page(path, html)
    return path


def unique_names(runs: Sequence[Run]) -> list[str]:
    """The runs' names, or their folders where two have the same name."""
    names = [run_title(run) for run in runs]
    return [str(run.folder) if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]


def summary(names: Sequence[str], cards: Sequence[Cards | None], same: bool) -> list[tuple[str, str]]:
    """Whether the runs can be compared, and the model with the lowest KID of each."""
    if same:
        words = "All runs stand on the same slices (equal fingerprints), so the better figure of a row is marked."
    else:
        words = "The runs stand on different slices, or it is not known on which; so nothing is marked as better."
    pairs = [("Can they be compared?", words)]
    for name, card in zip(names, cards, strict=True):
        best = None if card is None else nearest(card[0])
        if best is None:
            pairs.append((name, "Notebook 08 has not been run to its end."))
            continue
        text = f"{the(best, capital=True)} has the lowest KID: {said(card, best, 'KID')} (held-out real hearts: "
        text += f"{said(card, REAL, 'KID')}). Copies: {said(card, best, 'copies, %')}; plausible hearts: "
        text += f"{said(card, best, 'plausible, %')}; largest wall off by {said(card, best, 'wall, mm off')}."
        pairs.append((name, text))
    return pairs


def measure_table(column: str, names: Sequence[str], cards: Sequence[Cards | None], marked: bool) -> Table:
    """One measure: a row a model, a column a run, the best of each row marked where they can be compared."""
    digits, better = COLUMNS[column]
    models = list(dict.fromkeys([REAL, *(name for card in cards if card is not None for name in card[0].index)]))
    figures = np.full((len(cards), 3, len(models)), np.nan)  # value, low and high
    for place, card in enumerate(cards):
        if card is not None:
            figures[place] = [end[column].reindex(models) for end in card]
    shown = np.round(figures[:, 0], digits)
    marks = best_of_rows(abs(shown - shown[:, :1]) if better == "as the real" else shown, better)
    rows = []
    for place, name in enumerate(models):
        if np.isfinite(shown[:, place]).any():
            stars = marks[:, place] & (marked and name != REAL)
            cells = [
                number(value, digits, low, high, "best" if star else "")
                for (value, low, high), star in zip(figures[:, :, place], stars, strict=True)
            ]
            rows.append((TITLES[name], cells))
    arrows = {"lower": "lower is better", "higher": "higher is better", "as the real": "best where real hearts are"}
    return Table(f"{column} ({arrows[better]})", ["", *names], rows)


def best_of_rows(values: np.ndarray, better: str) -> np.ndarray:
    """Which runs are best at each model, (runs, models); none where fewer than two have a figure, or all the same."""
    worst = np.where(np.isnan(values), -np.inf if better == "higher" else np.inf, values)
    goal = worst.max(0) if better == "higher" else worst.min(0)
    marks = np.isclose(values, goal)
    return marks & (marks.sum(0) < np.isfinite(values).sum(0))


def use_table(names: Sequence[str], uses: Sequence[pd.DataFrame | None]) -> Table:
    """AUC by patient of each arm of notebook 09, a column a run."""
    columns = []
    for use in uses:
        rows = [] if use is None else by_patient(use).itertuples()
        columns.append({in_full(row): number(row.value, 2, row.low, row.high) for row in rows})
    arms = list(dict.fromkeys(arm for column in columns for arm in column))
    rows = [(arm, [column.get(arm, ABSENT) for column in columns]) for arm in arms]
    return Table("HCM or not: AUC by patient, higher is better", ["", *names], rows)


def facts_table(names: Sequence[str], runs: Sequence[Run]) -> Table:
    """How each run was made: profile, seed, data and slices, and the versions that differ."""
    facts = [
        {
            "profile": run.record.get("profile"),
            "seed": run.seeds or None,
            "data": run.record.get("data_description"),
            "image size": run.slices.get("image_size"),
            "slices": run.slices.get("slices"),
            "fingerprint": str(run.slices.get("fingerprint", "–"))[:12],
            "models": ", ".join(TITLES[name] for name in run.models) or "–",
            "started": run.record.get("started"),
        }
        for run in runs
    ]
    made = [run.noted("machine") | run.noted("versions") for run in runs]
    for name in dict.fromkeys(name for column in made for name in column):
        if len({as_text(column.get(name)) for column in made if column}) > 1:  # of equal versions there are many
            for column, told in zip(facts, made, strict=True):
                column[name.replace("_", " ")] = told.get(name)
    rows = [(name, [Cell(as_text(column[name])) for column in facts]) for name in facts[0]]
    return Table("The runs", ["", *names], rows)


def settings_table(names: Sequence[str], runs: Sequence[Run]) -> Table:
    """The parameters that differ, of the steps that at least two runs have.

    That a run lacks one counts where `hcm run` has noted all of the step's, and not where only the model's are known.
    """
    settings = [run.settings for run in runs]
    rows = []
    for step in dict.fromkeys(step for steps in settings for step in steps):
        having = [steps[step] for steps in settings if step in steps]
        for name in dict.fromkeys(name for values in having for name in values) if len(having) > 1 else ():
            texts = [as_text(steps.get(step, {}).get(name)) for steps in settings]
            noted = [
                text
                for text, steps, run in zip(texts, settings, runs, strict=True)
                if name in steps.get(step, {}) or step in {notebook[3:] for notebook in run.notebooks}
            ]
            if len(set(noted)) > 1:
                rows.append((f"{step}.{name}", [Cell(text) for text in texts]))
    return Table("Parameters that differ", ["", *names], rows)


def as_text(value: Any) -> str:
    """A text as it is, None as a dash, anything else as JSON."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
