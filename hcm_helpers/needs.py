"""What a run will need of disk and memory, estimated before it starts."""

import inspect
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hcm_helpers.acdc import DataError, find_patients
from hcm_helpers.export import NETWORKS
from hcm_helpers.files import read_json
from hcm_helpers.models.layers import count_parameters
from hcm_helpers.run import STEPS

SLICES = 20  # of a patient in ACDC: two phases of about ten
KERNEL = 0.9e9  # bytes of memory of a notebook's Python with PyTorch, before it has any data


def disk(parameters: Mapping[str, Mapping[str, Any]], num_patients: int, image_size: int) -> float:
    """Bytes that the notebooks will write at most at a time.

    Args:
        parameters: notebook: all its parameters.
        num_patients: in the data.
        image_size: height and width of the slices.
    """
    pixels, total = image_size**2, 30e6  # tables, figures, executed notebooks, the networks of notebook 08
    if "01_data_preparation" in parameters:
        total += 2 * num_patients * SLICES * pixels * 5  # float32 image and mask, the patients' parts beside the whole
    for notebook, values in parameters.items():
        model = STEPS[notebook]
        if model:
            copies = 1 + 2 * (
                3 + len(_listed(values.get("ema_decay", [])))
            )  # weights; model, averages, moments, old and new
            total += copies * 4 * _num_parameters(model, values, image_size)
            total += values.get("num_samples", 0) * pixels * (5 if values.get("with_masks") else 4)
    return total


def memory(parameters: Mapping[str, Mapping[str, Any]], image_size: int, jobs: int) -> float:
    """Bytes of memory that `jobs` notebooks at once will take, roughly; notebook 08 holds all samples at once."""
    samples = sum(values.get("num_samples", 0) for values in parameters.values()) * image_size**2 * 4
    return jobs * KERNEL + 2 * samples


def check(folder: Path, parameters: Mapping[str, Mapping[str, Any]], jobs: int, echo: Callable[[str], None]) -> None:
    """Compare what a run will need with what there is, and say so.

    Args:
        folder: of the run, or where it will be.
        parameters: notebook: all its parameters.
        jobs: notebooks at once.
        echo: prints one line.

    Raises:
        DataError: the disk has not enough room.
    """
    preparation, prepared, num_patients = parameters.get("01_data_preparation"), folder / "slices" / "slices.json", 0
    if preparation:
        image_size, num_patients = preparation["image_size"], len(find_patients(preparation["data_dir"]))
    elif prepared.is_file():
        image_size = read_json(prepared, "run notebook 01 again").get("image_size", 64)
    else:
        return  # the first notebook will say what is missing
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if place == folder else 0
    needed, free = disk(parameters, num_patients, image_size), shutil.disk_usage(place).free + there
    if needed > free:
        raise DataError(
            f"{folder}: this run needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: make "
            "room, or choose a smaller image_size or num_samples"
        )
    wanted, available = memory(parameters, image_size, jobs), available_memory()
    text = f"disk {needed / 1e9:.1f} of {free / 1e9:.0f} GB free, memory {wanted / 1e9:.1f} of {available / 1e9:.0f} GB"
    echo(f"needs     about {text}{'; it may run out: try fewer --jobs' if wanted > available else ''}")


def available_memory() -> float:
    """Bytes of memory that are free or can be freed; where the system does not tell, all of it."""
    table = Path("/proc/meminfo")
    if table.is_file():
        rows = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return float(rows["MemAvailable"].split()[0]) * 1024
    if hasattr(os, "sysconf"):
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


def _num_parameters(model: str, values: Mapping[str, Any], image_size: int) -> int:
    network = NETWORKS[model]
    arguments = {name: values[name] for name in inspect.signature(network).parameters if values.get(name) is not None}
    return count_parameters(network(**arguments | {"image_size": image_size}))


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]
