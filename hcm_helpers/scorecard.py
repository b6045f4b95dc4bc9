"""One page that says it all: what notebook 08 measured of each model, a row a model and a column a question."""

from pathlib import Path

import numpy as np
import pandas as pd

from hcm_helpers import page
from hcm_helpers.acdc import DataError, one_line
from hcm_helpers.memorisation import HELD_OUT
from hcm_helpers.similarity import REAL_TEST, REAL_TRAIN, TITLES

REAL = "real hearts"
TABLES = ("table1", "fidelity", "copies", "anatomy", "cost")  # .csv in the run's folder evaluation/
ENDS = ["value", "low", "high"]
READ = {  # of each table in evaluation/: what tells its rows apart, the figures in them, and what else is read
    "table1": (["model", "pairing", "metric"], ENDS, []),
    "fidelity": (["model", "measure"], ENDS, []),
    "copies": (["model"], ["copies", "low", "high"], []),
    "anatomy": (["model", "masks", "measure"], [*ENDS, "distance", "distance_low", "distance_high"], []),
    "cost": (["model", "steps"], ["seconds_sampling"], []),
    "utility": (
        ["patients", "arm", "level", "metric"],
        [*ENDS, "gain", "gain_low", "gain_high", "n", "seeds"],
        ["model", "leaks", "verdict"],
    ),
}
FIDELITY = ["KID", "KID to test", "precision", "recall"]
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
CAPTION = "What was measured of each model’s images, beside real hearts"
STARS = "★: the best model of a column; the arrow says whether lower or higher is better."
LEGEND = (
    "SSIM with the nearest test slice, where a copy gains nothing; it is best where it is as real hearts have it. "
    "KID, precision and recall by the features of an encoder, to the training slices; KID to test to those of held-out "
    "patients, beside what the training slices reach. Copies: share of images nearer to a training slice than "
    "any held-out slice is. Plausible: share with one closed ring of wall round one cavity, as a segmentation network "
    "draws it. Wall: Wasserstein distance of the largest wall from that of the training patients. Time: for 1,000 "
    "images. Real hearts: the same of held-out patients."
)
INTERVALS = "In brackets the 95 % interval: images are drawn where they are generated, patients where they are real."


def read_table(folder: str | Path, name: str) -> pd.DataFrame:
    """A table that notebook 08 or 09 has written into a run's folder evaluation/.

    Args:
        folder: the run's.
        name: a key of READ.

    Raises:
        DataError: it is missing, or holds something else than they write.
    """
    path = Path(folder) / "evaluation" / f"{name}.csv"
    notebook = "notebook 09" if name == "utility" else "notebook 08"
    if not path.is_file():
        raise DataError(f"{path} is missing; run {notebook} to its end")
    keys, numbers, others = READ[name]
    try:
        table = pd.read_csv(path)
        table[numbers] = table[[*others, *numbers]][numbers].astype(float)  # a KeyError where one is not there
        if table.empty or table.duplicated(keys).any():
            raise ValueError("it is empty" if table.empty else "a row is there twice")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is broken ({one_line(error)}); run {notebook} again") from error
    return table


def scorecard(run: str | Path, end: str = "value") -> pd.DataFrame:
    """The figures of each model, real hearts on top.

    Args:
        run: the run's folder, in which notebook 08 has written its tables.
        end: "value", or "low" or "high" for that end of the 95 % interval, NaN where there is none.

    Returns:
        A row a set (real hearts, then the models by name), the columns of COLUMNS.

    Raises:
        DataError: a table is missing or broken.
    """
    pixels, fidelity, copies, anatomy, cost = (read_table(run, name) for name in TABLES)
    pixels = pixels[(pixels["metric"] == "SSIM") & (pixels["pairing"] == "nearest test")].set_index("model")[end]
    fidelity = fidelity.pivot(index="model", columns="measure", values=end).reindex(columns=FIDELITY)
    fidelity.loc[REAL] = fidelity.reindex([REAL_TEST]).iloc[0]
    fidelity.loc[REAL, "KID to test"] = fidelity["KID to test"].get(REAL_TRAIN)
    anatomy = anatomy[anatomy["masks"] == "segmenter"].replace({"model": {REAL_TEST: REAL}}).set_index("model")
    share = anatomy.loc[anatomy["measure"] == "plausible", end]
    distance = anatomy.loc[anatomy["measure"] == "max_wall_mm", {"value": "distance"}.get(end, f"distance_{end}")]
    copies = copies.set_index("model")[{"value": "copies"}.get(end, end)].rename({HELD_OUT: REAL})
    seconds = cost[cost["steps"].isna()].set_index("model")["seconds_sampling"]
    card = pd.DataFrame(
        {
            "SSIM": pixels.rename({REAL_TRAIN: REAL}),
            **{measure: fidelity[measure] for measure in FIDELITY},
            "copies, %": 100 * copies,
            "plausible, %": 100 * share,
            "wall, mm off": distance,
            "time, s": seconds if end == "value" else np.nan,
        }
    )
    return card.reindex([REAL, *(name for name in copies.index if name != REAL)])


def best(card: pd.DataFrame) -> pd.DataFrame:
    """Which models are the best of their column, by the digits that are shown; the real hearts do not compete."""
    marks = pd.DataFrame(False, card.index, card.columns)
    for column, (digits, better) in COLUMNS.items():
        values = card[column].drop(REAL).round(digits)
        if better == "as the real":
            values = (values - round(card.loc[REAL, column], digits)).abs()
        goal = values.max() if better == "higher" else values.min()
        marks.loc[values.index, column] = np.isclose(values, goal) & (values.count() > 1)
    return marks


def as_table(card: pd.DataFrame, low: pd.DataFrame | None = None, high: pd.DataFrame | None = None) -> page.Table:
    """`scorecard` in words, the best of each column marked, the intervals below where they are given."""
    marks = best(card)
    rows = []
    for name in card.index:
        cells = []
        for column, (digits, _) in COLUMNS.items():
            interval = () if low is None or high is None else (low.loc[name, column], high.loc[name, column])
            mark = "best" if marks.loc[name, column] else ""
            cells.append(page.number(card.loc[name, column], digits, *interval, mark=mark))
        rows.append((TITLES[name], cells))
    arrows = {"lower": " ↓", "higher": " ↑", "as the real": ""}
    head = ["", *(f"{column}{arrows[better]}" for column, (_, better) in COLUMNS.items())]
    intervals = "" if low is None else f" {INTERVALS}"
    return page.Table(CAPTION, head, rows, f"{STARS} {LEGEND}{intervals}")


def render_html(card: pd.DataFrame) -> str:
    """`scorecard` as an HTML table, the best of each column in bold with a star, its legend below."""
    return page.show(as_table(card))
