"""From patients to slices: cut out the heart, normalise, drop doubles, split; load them back.

A slice is an image (1, S, S) float32 in [−1, 1] and a mask (S, S) uint8 with ACDC's values, rows along y and
columns along x, so that `imshow` shows the usual view. What `prepare` writes stands whole or not at all, and no
more than a few patients are in memory at once, however many there are.
"""

import json
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hcm_helpers.acdc import (
    GROUPS,
    PHASES,
    DataError,
    Patient,
    find_patients,
    one_line,
)
from hcm_helpers.cutting import Settings, slice_patient
from hcm_helpers.files import NOT_NUMBERS, read_json, read_npy, replacing, sha256, write_whole

SPLITS = ("train", "validation", "test")
FILES = ("images.npy", "manifest.csv", "masks.npy", "slices.json")
INDEX = "patients.csv"  # in the place of FILES' tables of pixels where the slices lie in shards
COLUMNS = {  # of manifest.csv, with their types
    **{"patient": str, "group": str, "phase": str, "frame": int, "slice": int, "position": float, "labelled": bool},
    **{"pixel_mm": float, "thickness_mm": float, "split": str},
}
AGAIN = "run notebook 01 again"
MAPPED_FROM = 2**26  # bytes of images from which on they stay on disk and are read as they are used


@dataclass
class Slices:
    """Slices of many patients, one row each.

    Shapes: images (N, 1, S, S) float32 in [−1, 1]; labels (N,) int64, an index into GROUPS; masks (N, S, S)
    uint8; manifest N rows: patient, group, phase (ED, ES, or - for the frames between), frame (from 1), slice
    (index in the volume), position (0 base, 1 apex), labelled (whether the mask was drawn), pixel_mm,
    thickness_mm, split. The fingerprint is the sha256 of the whole prepared set.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    manifest: pd.DataFrame
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        return self.images.shape[-1]

    @property
    def pixel_mm(self) -> float:
        return float(self.manifest["pixel_mm"].iloc[0])


def drawn_slices(slices: Slices) -> Slices:
    """Those whose mask an expert drew.

    Raises:
        DataError: there are none.
    """
    drawn = torch.tensor(slices.manifest["labelled"].to_numpy(dtype=bool))
    if not drawn.any():
        raise DataError("slices: none has a mask to learn from; prepare patients with _gt.nii.gz files")
    manifest = slices.manifest[drawn.numpy()].reset_index(drop=True)
    tensors = (tensor[drawn] for tensor in (slices.images, slices.labels, slices.masks))
    return Slices(*tensors, manifest, slices.fingerprint)


@dataclass(frozen=True)
class Part:
    """What is known of one patient's slices, whose pixels lie in a file."""

    patient: Patient
    pixels: Path  # the bytes of images (n, S, S) float32 in [−1, 1], then of masks (n, S, S) uint8
    rows: Sequence  # n rows of the manifest, without the split; in a shard, the numbers of its rows there
    fingerprint: str  # sha256 of the slices and their rows of the manifest
    digests: list[str]  # of each phase's voxels
    left_out: int  # slices without left ventricle
    centred_by: str  # "mask", "cine" or "image"
    cut_off: float  # share of the heart's voxels outside the field of view
    padded: float  # share of the pixels outside the scanned image
    turned: bool  # into the canonical pose, if both ventricles are drawn


def prepare(
    patients_or_root: Sequence[Patient] | str | Path,
    folder: str | Path,
    image_size: int = 64,
    field_of_view: float = 160.0,
    seed: int = 0,
    *,
    frames: str = "ed_es",
    canonical_pose: bool = False,
    train_fraction: float = 1.0,
    workers: int | None = None,
) -> Slices:
    """Make slices of all patients and write them to a folder, all files at once.

    Slices without left ventricle (cavity or wall) are left out, and of pixel-identical patients one is kept,
    that of the official test set first; `slices.json` tells both. An earlier set in the folder is replaced.
    The patients' slices are kept beside the folder until all are there: stopped half way, it goes on from them.

    Args:
        patients_or_root: what `find_patients` gave, or the folder to give it.
        folder: gets images.npy (N, 1, S, S) float32, masks.npy (N, S, S) uint8, manifest.csv, slices.json, in the
            order of split, group and patient, so that a split lies in one piece.
        image_size: S, one of 32, 64, 128, 256.
        field_of_view: width and height of a slice in mm.
        seed: of the split into train, validation and test.
        frames: "ed_es" for the two phases with masks, "all" for every frame of the cine, where there is one.
        canonical_pose: turn each heart so that its right ventricle lies to the left of the picture.
        train_fraction: share of the training patients of each group that is kept, at least one; a smaller share is
            part of a larger one.
        workers: threads; None takes one a core. Threads are enough: unzipping and arithmetic run outside
            Python's lock.

    Raises:
        DataError: a wrong parameter or a patient that cannot be read; the folder is as it was then.
    """
    settings = Settings(image_size, field_of_view, frames, canonical_pose)
    folder = Path(folder).absolute()
    check_replaceable(folder)
    if not 0 < train_fraction <= 1:
        raise DataError(f"train_fraction = {train_fraction}: must be above 0, and 1 for all")
    given_root = isinstance(patients_or_root, str | Path)
    patients = find_patients(patients_or_root) if given_root else list(patients_or_root)
    if not patients:
        raise DataError("patients_or_root: no patients given; take them from find_patients(folder)")

    finished = folder.with_name(f".{folder.name}.parts")
    parts, split, duplicates = divide(make_parts(patients, settings, finished, workers), seed, train_fraction)
    warn(parts, settings)
    manifest = pd.DataFrame([row for part in parts for row in part.rows])
    manifest["split"] = manifest["patient"].map(split)
    facts = report(parts, settings, seed, train_fraction, split, duplicates)
    with replacing(folder, finished / "set") as temporary:
        write_pixels(parts, temporary, image_size)
        manifest.to_csv(temporary / "manifest.csv", index=False)
        (temporary / "slices.json").write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(finished)
    return load_slices(folder)


def make_parts(patients: Sequence[Patient], settings: Settings, folder: Path, workers: int | None) -> list[Part]:
    """The slices of each patient, in files of a folder, in the order of the names; what lies there is not made again.

    Raises:
        DataError: of the first patient that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        by_name = sorted(patients, key=lambda patient: patient.name)
        jobs = [pool.submit(_part, patient, settings, folder) for patient in by_name]
        try:
            return [job.result() for job in jobs]  # the first DataError is raised here
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def divide(
    parts: Sequence[Part], seed: int, train_fraction: float
) -> tuple[list[Part], dict[str, str], dict[str, str]]:
    """The parts that are kept, in the order of split, group and patient; each one's split; and `find_duplicates`."""
    duplicates = find_duplicates(parts)
    parts = [part for part in parts if part.patient.name not in duplicates]
    split = assign_splits([part.patient for part in parts], seed, train_fraction)
    parts = [part for part in parts if part.patient.name in split]
    parts.sort(key=lambda part: (SPLITS.index(split[part.patient.name]), GROUPS.index(part.patient.group)))
    return parts, split, duplicates


def report(
    parts: Sequence[Part],
    settings: Settings,
    seed: int,
    train_fraction: float,
    split: dict[str, str],
    duplicates: dict[str, str],
) -> dict:
    """What slices.json tells, of what `divide` gave."""
    contents = [(part.patient.name, split[part.patient.name], part.fingerprint) for part in parts]
    return {
        "image_size": settings.image_size,
        "field_of_view_mm": settings.field_of_view,
        "pixel_mm": settings.pixel,
        "frames": settings.frames,
        "canonical_pose": settings.canonical_pose,
        "seed": seed,
        "train_fraction": train_fraction,
        "patients": len(parts),
        "slices": sum(len(part.rows) for part in parts),
        "patients_by_split": {name: list(split.values()).count(name) for name in SPLITS},
        "left_out": sum(part.left_out for part in parts),
        "duplicates": duplicates,  # patient left out → the pixel-identical one that was kept
        "centred_without_mask": {p.patient.name: p.centred_by for p in parts if p.centred_by != "mask"},
        "cut_off": {part.patient.name: round(part.cut_off, 4) for part in parts if part.cut_off},
        "padded": {part.patient.name: round(part.padded, 4) for part in parts if part.padded},
        "fingerprint": sha256(*contents),
    }


def write_pixels(parts: Sequence[Part], folder: Path, image_size: int) -> None:
    """images.npy and masks.npy of some parts, one after the other."""
    n = sum(len(part.rows) for part in parts)
    with (folder / "images.npy").open("wb") as images, (folder / "masks.npy").open("wb") as masks:
        write_header(images, (n, 1, image_size, image_size), np.float32)
        write_header(masks, (n, image_size, image_size), np.uint8)
        for part in parts:
            content = memoryview(part.pixels.read_bytes())
            start_of_masks = 4 * len(content) // 5  # four bytes a pixel of an image, one of a mask
            images.write(content[:start_of_masks])
            masks.write(content[start_of_masks:])


def load_slices(folder: str | Path, split: str | None = None, groups: Sequence[str] | None = None) -> Slices:
    """Slices that `prepare` wrote, or that `shards.gather` found: all, or those of one split and of some groups.

    Args:
        folder: the folder given to `prepare` or `gather`.
        split: "train", "validation", "test", or None for all.
        groups: some of GROUPS, such as ("HCM",), or None for all.

    Raises:
        DataError: no slices there, broken ones, none of this split and groups, or an unknown split or group.
    """
    folder = Path(folder)
    if split is not None and split not in SPLITS:
        raise DataError(f"split = '{split}': must be one of {', '.join(SPLITS)}, or None for all")
    for group in groups or ():
        if group not in GROUPS:
            raise DataError(f"groups: '{group}' is none of {', '.join(GROUPS)}")
    if (folder / INDEX).is_file():
        from hcm_helpers.shards import load_shards  # here, as it needs this module

        return load_shards(folder, split, groups)
    for name in FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder}: holds no {name}; run notebook 01 first")

    manifest = read_table(folder / "manifest.csv")
    wanted = choose(manifest, split, groups, folder)
    rows = np.flatnonzero(wanted)
    if rows[-1] - rows[0] == len(rows) - 1:
        rows = slice(rows[0], rows[-1] + 1)  # in one piece, and so without a copy
    paths = [folder / "images.npy", folder / "masks.npy"]
    images, masks = (read_numbers(path, path.stat().st_size >= MAPPED_FROM) for path in paths)
    n, size = len(manifest), images.shape[-1]
    fitting = (images.shape, masks.shape) == ((n, 1, size, size), (n, size, size))
    if not fitting or (images.dtype, masks.dtype) != (np.float32, np.uint8):
        raise DataError(f"{folder}: images.npy, masks.npy and manifest.csv do not fit each other; {AGAIN}")
    manifest = manifest[wanted].reset_index(drop=True)
    labels = torch.tensor([GROUPS.index(group) for group in manifest["group"]], dtype=torch.int64)
    images, masks = (torch.from_numpy(array[rows]) for array in (images, masks))
    return Slices(images, labels, masks, manifest, read_fingerprint(folder))


def choose(table: pd.DataFrame, split: str | None, groups: Sequence[str] | None, folder: Path) -> np.ndarray:
    """Which rows are of a split and of some groups, (rows,) bool; None stands for all.

    Raises:
        DataError: none; it names the folder.
    """
    wanted = np.ones(len(table), dtype=bool)
    if split is not None:
        wanted &= (table["split"] == split).to_numpy()
    if groups is not None:
        wanted &= table["group"].isin(groups).to_numpy()
    if not wanted.any():
        chosen = f"split {split or 'any'}, groups {', '.join(GROUPS if groups is None else groups) or 'none'}"
        raise DataError(f"{folder}: holds no slices of {chosen}; prepare it with more patients")
    return wanted


def read_fingerprint(folder: Path) -> str:
    """That of slices.json in a folder; DataError where there is none."""
    fingerprint = read_json(folder / "slices.json", AGAIN).get("fingerprint")
    if not isinstance(fingerprint, str):
        raise DataError(f"{folder / 'slices.json'}: has no fingerprint; {AGAIN}")
    return fingerprint


def read_table(path: Path, columns: dict[str, type] = COLUMNS) -> pd.DataFrame:
    """A .csv file with these columns, in their types.

    Raises:
        DataError: it is no table, lacks a column, or has a value that cannot be.
    """
    try:
        rows = pd.read_csv(path, dtype=columns)
    except (OSError, ValueError, OverflowError) as error:  # of pandas, or where it is not UTF-8
        raise DataError(f"{path}: cannot be read ({one_line(error)}); {AGAIN}") from error
    known = {"group": GROUPS, "phase": (*PHASES, "-"), "split": SPLITS}
    least = {"frame": 1, "slice": 0, "first": 0, "slices": 1}
    for column in columns:
        if column not in rows:
            raise DataError(f"{path}: has no column {column}; {AGAIN}")
    for column in columns:
        values = rows[column]
        if column in known:
            right = values.isin(known[column])
        elif column in least:
            right = values >= least[column]
        elif column == "position":
            right = values.between(0, 1)
        elif column in ("pixel_mm", "thickness_mm"):
            right = values.between(0, math.inf, "neither")
        else:
            right = values.notna()
        if not right.all():
            raise DataError(f"{path}: {column} is '{one_line(values[~right].iloc[0], 40)}'; {AGAIN}")
    return rows


def read_numbers(path: Path, mapped: bool) -> np.ndarray:
    """The numbers in a .npy file, left on disk if that is asked for."""
    try:
        return read_npy(path, mapped)
    except NOT_NUMBERS as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); {AGAIN}") from error


def _part(patient: Patient, settings: Settings, folder: Path) -> Part:
    """The patient's slices in a file of the folder; not made again if they are there, of these files and settings."""
    files = [patient.image_path(phase) for phase in PHASES] + [patient.mask_path(phase) for phase in PHASES]
    files += [patient.cine_path, patient.folder / "Info.cfg"]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    key = sha256((settings, patient.folder, stats))[:16]
    pixels, path = (folder / f"{patient.name}-{key}.{suffix}" for suffix in ("pixels", "json"))
    if not path.is_file():
        images, masks, facts = slice_patient(patient, settings)
        with pixels.open("wb") as file:
            file.write(images.tobytes())
            file.write(masks.tobytes())
        fingerprint = sha256(images, masks, json.dumps(facts["rows"]).encode())
        text = json.dumps(facts | {"fingerprint": fingerprint})
        write_whole(path, lambda path: path.write_text(text))  # last, so that where it is both are whole
    return Part(patient, pixels, **json.loads(path.read_text()))


def find_duplicates(parts: Sequence[Part]) -> dict[str, str]:
    """Patients that share the pixels of a phase with another: name of the one to leave out → the one to keep.

    A patient of the official test set is kept before one of training, so that the test set stays whole.
    """
    owner: dict[str, str] = {}
    duplicates = {}
    for part in sorted(parts, key=lambda part: (part.patient.official_split != "testing", part.patient.name)):
        kept = [owner[digest] for digest in sorted(part.digests) if digest in owner]
        if kept:
            duplicates[part.patient.name] = kept[0]
        else:
            owner |= dict.fromkeys(part.digests, part.patient.name)
    return duplicates


def assign_splits(patients: Sequence[Patient], seed: int, train_fraction: float = 1.0) -> dict[str, str]:
    """Each patient's split: train, validation or test, so that no patient is in two.

    Of the training patients of a group the first of a random order are kept, that share, at least one.

    The official testing patients are the test set where they come with training patients; of the training
    patients then 15 % go to validation. Otherwise 10 % go to validation and 20 % to test. Every group is
    divided by itself; one of three patients or more gives at least one to each split, a smaller one is train.
    """
    official = {patient.official_split for patient in patients} == {"training", "testing"}
    split = {patient.name: "test" for patient in patients if official and patient.official_split == "testing"}
    for number, group in enumerate(GROUPS):
        names = sorted(patient.name for patient in patients if patient.group == group)
        names = [name for name in names if name not in split]
        shares = (0.15, 0.0) if official else (0.10, 0.20)
        enough = len(names) >= 3
        validation, test = (max(1, round(share * len(names))) if share and enough else 0 for share in shares)
        order = [names[i] for i in np.random.default_rng([seed, number]).permutation(len(names))]
        held_out, training = order[: validation + test], order[validation + test :]
        split |= {name: SPLITS[1 if place < validation else 2] for place, name in enumerate(held_out)}
        split |= dict.fromkeys(training[: max(1, round(train_fraction * len(training)))], SPLITS[0])
    return split


def write_header(file, shape: tuple[int, ...], dtype: type) -> None:
    """The head of a .npy file, to be followed by the array's bytes, piece after piece."""
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)


def warn(parts: Sequence[Part], settings: Settings) -> None:
    """One warning a problem that leaves the slices usable."""
    view = f"{settings.field_of_view:g} mm"
    for problem, names in (
        (
            "have neither masks nor a cine, so that their slices are cut around the image's centre",
            [part.patient.name for part in parts if part.centred_by == "image"],
        ),
        (
            f"have a part of the heart outside the field of view of {view}",
            [part.patient.name for part in parts if part.cut_off],
        ),
        (
            "have no cine, so that only ED and ES become slices",
            [p.patient.name for p in parts if settings.frames == "all" and not p.patient.cine_path.is_file()],
        ),
        (
            "have no right ventricle drawn, so that they are not turned",
            [part.patient.name for part in parts if settings.canonical_pose and not part.turned],
        ),
    ):
        if names:
            some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            warnings.warn(f"{len(names)} of {len(parts)} patients {problem}: {some}", stacklevel=3)


def check_replaceable(folder: Path) -> None:
    """Only an empty folder or an earlier set of slices may be replaced."""
    if folder.is_dir() and not {entry.name for entry in folder.iterdir()} <= {*FILES, INDEX, "shard.json"}:
        raise DataError(f"{folder}: holds other files than slices, which would be lost; name another folder")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name another folder")
