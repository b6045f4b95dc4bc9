"""One page that says it all: what notebook 08 measured of each model, a row a model and a column a question."""

from pathlib import Path

import numpy as np
import pandas as pd

from hcm_helpers.acdc import DataError
from hcm_helpers.memorisation import HELD_OUT
from hcm_helpers.similarity import REAL_TEST, REAL_TRAIN, TITLES

REAL = "real hearts"
TABLES = ("table1", "fidelity", "copies", "anatomy", "cost")  # .csv in the run's folder evaluation/
COLUMNS = {  # digits behind the point, and which value is the best
    "SSIM": (3, "as the real"),
    "KID": (2, "lower"),
    "KID to test": (2, "lower"),
    "precision": (2, "higher"),
    "recall": (2, "higher"),
    "copies, %": (1, "lower"),
    "plausible, %": (0, "higher"),
    "wall, mm off": (1, "lower"),
    "time, s": (1, "lower"),
}
LEGEND = (
    "SSIM with the nearest test slice, where a copy gains nothing; it is best where it is as real hearts have it. "
    "KID, precision and recall by the features of an encoder, to the training slices; KID to test to those of held-out "
    "patients, beside what the training slices reach. Copies: share of images nearer to a training slice than "
    "any held-out slice is. Plausible: share with one closed ring of wall round one cavity, as a segmentation network "
    "draws it. Wall: Wasserstein distance of the largest wall from that of the training patients. Time: for 1,000 "
    "images. Real hearts: the same of held-out patients."
)


def scorecard(run: str | Path) -> pd.DataFrame:
    """The figures of each model, real hearts on top.

    Args:
        run: the run's folder, in which notebook 08 has written its tables.

    Returns:
        A row a set (real hearts, then the models by name), the columns of COLUMNS.

    Raises:
        DataError: a table is missing.
    """
    folder = Path(run) / "evaluation"
    for name in TABLES:
        if not (folder / f"{name}.csv").is_file():
            raise DataError(f"{folder / name}.csv is missing; run notebook 08 to its end")
    pixels, fidelity, copies, anatomy, cost = (pd.read_csv(folder / f"{name}.csv") for name in TABLES)
    pixels = pixels[(pixels["metric"] == "SSIM") & (pixels["pairing"] == "nearest test")].set_index("model")["value"]
    fidelity = fidelity.pivot(index="model", columns="measure", values="value").rename({REAL_TEST: REAL})
    anatomy = anatomy[anatomy["masks"] == "segmenter"].replace({"model": {REAL_TEST: REAL}})
    shares, distances = (anatomy.pivot(index="model", columns="measure", values=v) for v in ("value", "distance"))
    card = pd.DataFrame(
        {
            "SSIM": pixels.rename({REAL_TRAIN: REAL}),
            "KID": fidelity["KID"],
            "KID to test": fidelity["KID to test"].drop(REAL).rename({REAL_TRAIN: REAL}),
            "precision": fidelity["precision"],
            "recall": fidelity["recall"],
            "copies, %": 100 * copies.set_index("model")["copies"].rename({HELD_OUT: REAL}),
            "plausible, %": 100 * shares["plausible"],
            "wall, mm off": distances["max_wall_mm"],
            "time, s": cost[cost["steps"].isna()].set_index("model")["seconds_sampling"],
        }
    )
    return card.reindex([REAL, *(name for name in copies["model"] if name != HELD_OUT)])


def best(card: pd.DataFrame) -> pd.DataFrame:
    """Which models are the best of their column, by the digits that are shown; the real hearts do not compete."""
    marks = pd.DataFrame(False, card.index, card.columns)
    for column, (digits, better) in COLUMNS.items():
        values = card[column].drop(REAL).round(digits)
        if better == "as the real":
            values = (values - round(card.loc[REAL, column], digits)).abs()
        goal = values.max() if better == "higher" else values.min()
        marks.loc[values.index, column] = np.isclose(values, goal)
    return marks


def render_html(card: pd.DataFrame) -> str:
    """`scorecard` as an HTML table, the best of each column in bold, with its legend below."""
    marks = best(card)
    rows = []
    for name in card.index:
        cells = [f"<th>{TITLES.get(name, name)}</th>"]
        for column, (digits, _) in COLUMNS.items():
            value = card.loc[name, column]
            text = "–" if pd.isna(value) else f"{value:.{digits}f}"
            cells.append(f"<td><b>{text}</b></td>" if marks.loc[name, column] else f"<td>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    arrows = {"lower": " ↓", "higher": " ↑", "as the real": ""}
    head = "".join(f"<th>{column}{arrows[better]}</th>" for column, (_, better) in COLUMNS.items())
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table><p>{LEGEND}</p>"
