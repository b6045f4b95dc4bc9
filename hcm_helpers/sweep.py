"""The steps of a sweep over models, seeds, profiles and training fractions, for the rules of workflow/Snakefile.

A folder a profile and fraction holds the slices, and in it a folder a seed what the notebooks make of them.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pandas as pd
from scipy.stats import t

from hcm_helpers import run
from hcm_helpers.acdc import patient_folders, read_patient
from hcm_helpers.cutting import Settings
from hcm_helpers.execute import Parameters, environment, execute
from hcm_helpers.files import write_whole
from hcm_helpers.resume import PLACES, inputs
from hcm_helpers.scorecard import scorecard
from hcm_helpers.shards import prepare_shard

PREPARATION, EVALUATION = "01_data_preparation", "08_evaluation"


def parameters(notebook: str, profile: str, seed: int = 0, settings: Parameters | None = None) -> Parameters:
    """All parameters of a notebook in a sweep but those that name places.

    Args:
        notebook: a key of `run.STEPS`.
        profile: a key of `run.PROFILES`.
        seed: of the notebook.
        settings: over the profile's.

    Raises:
        DataError: an unknown profile or parameter, or a value of the wrong type.
    """
    found = run.plan(profile, Path(), seed, [notebook], {notebook: settings or {}})[notebook]
    return {name: value for name, value in found.items() if name not in PLACES}


def step(notebook: str, folder: str | Path, values: Parameters, threads: int = 1, **places: str | bool) -> None:
    """Execute a notebook into a folder; one that was cut off with the same parameters goes on.

    Args:
        notebook: a key of `run.STEPS`.
        folder: gets what the notebook makes, and the executed copy in notebooks/.
        values: of `parameters`.
        threads: cores that it may use.
        places: parameters that name places, beside the folder.

    Raises:
        NotebookError: a cell failed.
    """
    folder, source = Path(folder).resolve(), run.NOTEBOOKS / f"{notebook}.ipynb"
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    if notebook != PREPARATION:
        with suppress(FileExistsError):  # another training of this seed may link them at the same moment
            (folder / "slices").symlink_to("../slices")
    begun = folder / "notebooks" / f"{notebook}.json"
    facts = {"parameters": values, "inputs": inputs(source, places)}
    places |= {"run_dir": str(folder)}
    known = run.stored_parameters(source)
    if "resume" in known:
        places |= {"resume": begun.is_file() and json.loads(begun.read_text()) == facts}
    write_whole(begun, lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))
    with environment("OMP_NUM_THREADS", str(threads)), environment("HCM_HEADLESS", "1"):
        execute(source, folder / "notebooks", values | places)


def chunk(data: str | Path, number: int, chunks: int, folder: str | Path, values: Parameters, threads: int = 1) -> None:
    """Prepare every `chunks`-th patient of a data set, from the `number`-th on, as a shard in a folder.

    Args:
        data: a folder in ACDC's layout, of which only these patients are read.
        number: of the chunk, from 0.
        chunks: how many there are.
        folder: gets the shard.
        values: `cut_parameters`.
        threads: cores that it may use.

    Raises:
        DataError: more chunks than patients, or a patient that cannot be read.
    """
    places = patient_folders(data)[number::chunks]
    prepare_shard([read_patient(*place) for place in places], folder, Settings(**values), threads)


def cut_parameters(profile: str, settings: Parameters | None = None) -> Parameters:
    """Those of notebook 01 that decide how a patient becomes slices, and so what is in a shard; as `parameters`."""
    found = parameters(PREPARATION, profile, settings=settings)
    return {field.name: found[field.name] for field in fields(Settings)}


def summary(folders: Iterable[str | Path]) -> pd.DataFrame:
    """The page of notebook 08 over seeds: mean and 95 % interval, by Student's t, of each measure.

    Args:
        folders: PROFILE/FRACTION/seedN, each with what notebook 08 has written.

    Returns:
        A row a profile, fraction, model and measure: mean, low, high (NaN of one seed), seeds.

    Raises:
        DataError: a table of notebook 08 is missing.
    """
    cards = []
    for folder in map(Path, folders):
        card = scorecard(folder).rename_axis("model").reset_index().melt("model", var_name="measure")
        cards.append(card.assign(profile=folder.parts[-3], fraction=float(folder.parts[-2]), seed=folder.name))
    by = ["profile", "fraction", "model", "measure"]
    groups = pd.concat(cards).dropna().groupby(by, sort=False)["value"]
    table = groups.agg(mean="mean", std="std", seeds="count").reset_index()
    half = t.ppf(0.975, table["seeds"] - 1) * table.pop("std") / table["seeds"] ** 0.5
    table.insert(5, "low", table["mean"] - half)
    table.insert(6, "high", table["mean"] + half)
    return table
