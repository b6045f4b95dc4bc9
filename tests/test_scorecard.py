"""The page of all measures, from tables whose figures are known."""

import numpy as np
import pandas as pd
import pytest

from hcm_helpers import scorecard
from hcm_helpers.acdc import DataError

MODELS = ("vae", "diffusion")
NONE = {"low": np.nan, "high": np.nan}


@pytest.fixture
def run(tmp_path):
    """A run with the five tables: the VAE is plausible and fast, diffusion better in the rest."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    pixels = [("vae", 0.30), ("diffusion", 0.21), ("real train slices", 0.20), ("real test slices", 0.90)]
    pixels = pd.DataFrame(pixels, columns=["model", "value"]).assign(metric="SSIM", pairing="nearest test", **NONE)
    fidelity = [
        (model, measure, value)
        for model, *values in (
            ("vae", 5.0, 0.2, 0.1, 6.0),
            ("diffusion", 1.0, 0.6, 0.5, 0.8),
            ("real test slices", 0.5, 0.7, 0.6),
            ("real train slices", 0.4, 1.0, 1.0, 0.55),
        )
        for measure, value in zip(("KID", "precision", "recall", "KID to test"), values, strict=False)
    ]
    anatomy = [
        (model, masks, measure, value, distance)
        for model, masks, share, distance in (
            ("vae", "segmenter", 0.95, 3.0),
            ("diffusion", "segmenter", 0.9, 1.0),
            ("real test slices", "segmenter", 0.92, 0.6),
            ("real test slices", "expert", 0.99, 0.1),
        )
        for measure, value, distance in (("plausible", share, np.nan), ("max_wall_mm", 15.0, distance))
    ]
    tables = {
        "table1": pixels,
        "fidelity": pd.DataFrame(fidelity, columns=["model", "measure", "value"]).assign(**NONE),
        "copies": pd.DataFrame(
            {"model": [*MODELS, "real held-out slices"], "copies": [0.0, 0.013, 0.009], "low": 0.005, "high": 0.02}
        ),
        "anatomy": pd.DataFrame(anatomy, columns=["model", "masks", "measure", "value", "distance"]).assign(
            distance_low=0.25, distance_high=4.0, **NONE
        ),
        "cost": pd.DataFrame(
            {"model": [*MODELS, "diffusion"], "steps": [np.nan, np.nan, 5], "seconds_sampling": [0.4, 60.0, 12.0]}
        ),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return tmp_path


def test_real_hearts_stand_on_top_and_each_figure_in_its_place(run):
    card = scorecard.scorecard(run)
    assert list(card.index) == [scorecard.REAL, *MODELS]
    assert list(card.columns) == list(scorecard.COLUMNS)
    assert card.loc[scorecard.REAL].tolist()[:-1] == pytest.approx([0.20, 0.5, 0.55, 0.7, 0.6, 0.9, 92, 0.6])
    assert np.isnan(card.loc[scorecard.REAL, "time, s"])
    assert card.loc["vae"].tolist() == pytest.approx([0.30, 5, 6, 0.2, 0.1, 0, 95, 3, 0.4])
    assert card.loc["diffusion"].tolist() == pytest.approx([0.21, 1, 0.8, 0.6, 0.5, 1.3, 90, 1, 60])


def test_the_best_of_a_column_is_marked_and_real_hearts_do_not_compete(run):
    marks = scorecard.best(scorecard.scorecard(run))
    assert not marks.loc[scorecard.REAL].any()
    assert marks.loc["diffusion"].tolist() == [True, True, True, True, True, False, False, True, False]
    assert (marks.loc["vae"] == ~marks.loc["diffusion"]).all()
    html = scorecard.render_html(scorecard.scorecard(run))
    assert html.count("<b>") == html.count('aria-label="best">★<') == len(scorecard.COLUMNS)
    assert '<td class="best"><b>0.210</b> ' in html
    assert "<td>0.300</td>" in html
    assert html.count('<th scope="row">') == 3


def test_no_figure_is_the_best_figure(run):
    path = run / "evaluation" / "fidelity.csv"
    table = pd.read_csv(path)
    table.loc[(table["model"] == "diffusion") & (table["measure"] == "KID"), "value"] = np.nan
    table.loc[~table["model"].str.startswith("real") & (table["measure"] == "recall"), "value"] = np.nan
    table.to_csv(path, index=False)
    marks = scorecard.best(scorecard.scorecard(run))
    assert not marks[["KID", "recall"]].any(axis=None), "nor is the only one"
    assert marks["precision"].any()


def test_the_ends_of_the_intervals_stand_where_the_figures_do(run):
    low, high = scorecard.scorecard(run, "low"), scorecard.scorecard(run, "high")
    assert low.loc["vae", ["copies, %", "wall, mm off"]].tolist() == pytest.approx([0.5, 0.25])
    assert high.loc[scorecard.REAL, ["copies, %", "wall, mm off"]].tolist() == pytest.approx([2, 4])
    assert low[["KID", "time, s"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("fidelity", "vae,KID,5.0", "vae,KID,<b>"),
        ("fidelity", "vae,precision", "vae,KID"),
        ("copies", "model,copies", "model,share"),
        ("cost", None, ""),
        ("table1", None, "\xff\0"),
    ],
)
def test_a_broken_table_is_one_sentence(run, name, old, new):
    path = run / "evaluation" / f"{name}.csv"
    text = new if old is None else path.read_text().replace(old, new)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"{name}\.csv is broken \([^\n]+\); run notebook 08 again"):
        scorecard.scorecard(run)


def test_a_missing_table_is_named(run):
    (run / "evaluation" / "copies.csv").unlink()
    with pytest.raises(DataError, match=r"copies\.csv is missing; run notebook 08"):
        scorecard.scorecard(run)
