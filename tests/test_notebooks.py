"""Notebooks and profiles fit together, and the whole series runs, at a size at which nothing is learned."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from hcm_helpers import run, scorecard, training
from hcm_helpers.phantom import write_phantom

MODELS = [model for model in run.STEPS.values() if model]
TINY = {model: {"epochs": 1, "batch_size": 8, "num_samples": 300} for model in MODELS}
TINY["acgan"] |= {"judge_epochs": 1}
TINY["infogan"] |= {"segmenter_epochs": 1}
TINY["diffusion"] |= {"sampling_steps": 5, "compare_steps": [2, 5]}
NETWORKS = {"encoder_epochs": 1, "segmenter_epochs": 1, "steps_compared": [2], "num_compared": 10}
TINY |= {"evaluation": {"num_bootstrap": 20} | NETWORKS, "augmentation": {"seeds": 1, "steps": 2, "num_bootstrap": 20}}


def test_the_folder_holds_the_series_and_nothing_else():
    assert sorted(path.stem for path in run.NOTEBOOKS.glob("*.ipynb")) == ["00_start_here", *sorted(run.STEPS)]


@pytest.mark.parametrize("notebook", run.STEPS)
def test_notebook_has_the_common_parameters_and_kernel(notebook):
    path = run.NOTEBOOKS / f"{notebook}.ipynb"
    parameters = run.stored_parameters(path)
    assert parameters["run_dir"] == "../runs/quick"
    assert parameters["seed"] == 0
    assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("profile", run.PROFILES)
def test_profile_fits_the_notebooks(profile):
    parameters = run.plan(profile, Path("/runs/a"), 0, list(run.STEPS), {})
    for step, values in run.PROFILES[profile].items():
        arrived = parameters[run.find_step(step)]
        assert {name: arrived[name] for name in values} == values


def check_series(folder):
    record = json.loads((folder / "run.json").read_text())
    assert list(record["notebooks"]) == list(run.STEPS)
    assert {notebook["state"] for notebook in record["notebooks"].values()} == {"done"}
    for model in MODELS:
        images, _ = training.load_samples(folder / model)
        assert images.shape == (300, 1, 32, 32)
        assert images.abs().max() <= 1
        assert images.std() > 0
    table = pd.read_csv(folder / "evaluation" / "table1.csv")
    assert set(MODELS) < set(table["model"])
    assert table["value"].notna().all()
    trial = pd.read_csv(folder / "evaluation" / "utility.csv")
    assert {"–", *MODELS} == set(trial["model"])
    assert trial["value"].between(0, 1).all()
    card = scorecard.scorecard(folder)
    assert list(card.index) == [scorecard.REAL, *MODELS]
    assert card[["SSIM", "KID", "precision", "recall", "copies, %", "plausible, %"]].notna().all(axis=None)
    drawn, vector = (sorted(path.stem for path in (folder / "figures").glob(f"*.{kind}")) for kind in ("png", "svg"))
    assert drawn == vector
    assert len(drawn) >= 8, "figures 1 to 8 of the paper"
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/') == len(drawn)
    assert "not been run yet" not in page


def test_series_on_the_phantom(tmp_path):
    patients = write_phantom(tmp_path / "phantom", patients=30)  # six a group: four to learn from
    with_masks = TINY | {"diffusion": TINY["diffusion"] | {"with_masks": True}}
    folder = run.run_series("quick", patients, overrides=with_masks, home=tmp_path)
    check_series(folder)
    assert training.load_masks(folder / "diffusion").shape == (300, 32, 32)
    pairs = pd.read_csv(folder / "evaluation" / "pairs.csv").set_index(["learned_from", "drawn_on"])
    learned, drawn_on = (set(names) for names in pairs.index.levels)
    assert learned == {"real slices", "pairs of Diffusion"}
    assert drawn_on == {"real test slices", "real test slices, HCM", "pairs of Diffusion"}
    codes = pd.read_csv(folder / "infogan" / "codes.csv")
    assert set(codes["measure"]) == {"brightness", "right_mm", "down_mm", "cavity_mm2", "mean_wall_mm"}


@pytest.mark.acdc
def test_series_on_real_patients(tmp_path, acdc_root):
    check_series(run.run_series("quick", acdc_root, overrides=TINY, home=tmp_path))


@pytest.mark.parametrize("notebook", run.STEPS)
def test_every_exercise_has_its_solution(notebook):
    """The exercises are a numbered list at a notebook's end; a solution is a section, with an answer in words."""
    texts = markdown(run.NOTEBOOKS / f"{notebook}.ipynb")
    asked = re.findall(r"^(\d)\. ", texts[-1].split("### Exercises")[1], re.MULTILINE)
    answers = markdown(run.NOTEBOOKS / "solutions" / f"{notebook[:2]}_solutions.ipynb")
    assert [number for text in answers for number in re.findall(r"^## Exercise (\d)$", text, re.MULTILINE)] == asked
    assert sum(text.startswith("**Seen:**") for text in answers) == len(asked)


def markdown(path):
    return [
        "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"
    ]
