"""A step of a sweep goes on where it was cut off, the table over seeds is Student's, and the Snakefile fits them."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from stand_ins import write_notebook

from hcm_helpers import run, sweep
from hcm_helpers.acdc import DataError

SNAKEFILE = Path(__file__).parents[1] / "workflow" / "Snakefile"
TRAIN = 'run_dir = "../runs/quick"\nseed = 0\nepochs = 2\nresume = False'
TELL = """
from pathlib import Path
place = Path(run_dir) / "told.txt"
place.write_text((place.read_text() if place.exists() else "") + f"{epochs}{seed}{int(resume)} ")
assert (Path(run_dir) / "slices" / "slices.json").is_file()
"""


def test_a_step_is_told_to_go_on_if_it_was_begun_with_the_same_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks", "02_vae", TRAIN, TELL)
    (tmp_path / "sweep" / "slices").mkdir(parents=True)
    (tmp_path / "sweep" / "slices" / "slices.json").write_text("{}")
    for epochs in (3, 3, 4):
        sweep.step("02_vae", tmp_path / "sweep" / "seed5", {"epochs": epochs, "seed": 5})
    assert (tmp_path / "sweep" / "seed5" / "told.txt").read_text() == "350 351 450 "


def test_parameters_of_a_sweep_name_no_places():
    found = sweep.parameters("04_dcgan", "cpu", seed=3, settings={"epochs": 7})
    assert (found["epochs"], found["seed"], found["width"]) == (7, 3, run.PROFILES["cpu"]["dcgan"]["width"])
    assert not found.keys() & {"run_dir", "data_dir", "resume"}
    with pytest.raises(DataError, match="epoch"):
        sweep.parameters("04_dcgan", "cpu", settings={"epoch": 7})


def test_the_table_has_the_mean_and_students_interval_over_seeds(monkeypatch):
    values = {"seed0": 1.0, "seed1": 2.0, "seed2": 3.0}
    monkeypatch.setattr(sweep, "scorecard", lambda folder: pd.DataFrame({"KID": [values[folder.name]]}, index=["vae"]))
    table = sweep.summary(f"runs/sweep/quick/0.5/{seed}" for seed in values)
    (row,) = table.to_dict("records")
    assert (row["profile"], row["fraction"], row["model"], row["measure"]) == ("quick", 0.5, "vae", "KID")
    assert (row["mean"], row["seeds"]) == (2.0, 3)
    half = 4.302653 / 3**0.5  # t of 2 degrees of freedom at 97.5 %, times the standard deviation 1, by √3
    assert row["high"] == pytest.approx(2 + half, rel=1e-6)
    assert row["low"] == pytest.approx(2 - half, rel=1e-6)


def test_what_the_snakefile_calls_is_there_and_takes_as_many_arguments():
    text = SNAKEFILE.read_text()
    found = set(re.findall(r"(?<![\w.])(acdc|cli|run|shards|sweep)\.(\w+)(\()?", text))
    assert {("sweep", "step", "("), ("run", "choose_data", "("), ("run", "STEPS", "")} <= found
    for module, name, called in found:
        thing = getattr(importlib.import_module(f"hcm_helpers.{module}"), name)
        assert callable(thing) or not called
    inspect.signature(sweep.step).bind("notebook", "folder", "parameters", "threads", data_dir="")
    inspect.signature(sweep.chunk).bind("data", 0, 1, "folder", "parameters", "threads")


@pytest.mark.skipif(not shutil.which("snakemake", path=Path(sys.executable).parent), reason="no snakemake is installed")
def test_snakemake_plans_each_step_once(tmp_path):
    snakemake = Path(sys.executable).parent / "snakemake"
    command = [snakemake, "--snakefile", SNAKEFILE, "-c2", "--dry-run", "--quiet", "rules"]
    command += ["--config", "seeds=3", "models=vae,dcgan"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE))
    assert jobs == {"slices": "1", "train": "6", "evaluate": "3", "table": "1", "total": "11"}
