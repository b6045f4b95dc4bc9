"""From patients to slices: resample, crop around the heart, normalise, drop doubles, split; load them back.

A slice is an image (1, S, S) float32 in [−1, 1] and a mask (S, S) uint8 with ACDC's values, rows along y and
columns along x, so that `imshow` shows the usual view. What `prepare` writes stands whole or not at all.
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
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hcm_helpers.acdc import (
    GROUPS,
    LEFT_VENTRICLE,
    MYOCARDIUM,
    PHASES,
    RIGHT_VENTRICLE,
    DataError,
    Patient,
    Volume,
    find_patients,
    read_volume,
)
from hcm_helpers.files import sha256

IMAGE_SIZES = (32, 64, 128, 256)
SPLITS = ("train", "validation", "test")
FILES = ("images.npy", "manifest.csv", "masks.npy", "slices.json")


@dataclass
class Slices:
    """Slices of many patients, one row each.

    Shapes: images (N, 1, S, S) float32 in [−1, 1]; labels (N,) int64, an index into GROUPS; masks (N, S, S)
    uint8; manifest N rows: patient, group, phase, slice (index in the volume), position (0 base, 1 apex),
    pixel_mm, thickness_mm, split. The fingerprint is the sha256 of the whole prepared set.
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


def check_image_size(image_size: int) -> int:
    """Return image_size as an int, or raise DataError if the networks cannot halve it down to 4×4."""
    if image_size not in IMAGE_SIZES:
        raise DataError(
            f"image_size={image_size}: the networks halve the image down to 4×4 pixels, "
            f"so it must be one of {', '.join(map(str, IMAGE_SIZES))}"
        )
    return int(image_size)


def prepare(
    patients_or_root: Sequence[Patient] | str | Path,
    folder: str | Path,
    image_size: int = 64,
    field_of_view: float = 160.0,
    seed: int = 0,
    workers: int | None = None,
) -> Slices:
    """Make slices of all patients and write them to a folder, all files at once.

    Slices without left ventricle (cavity or wall) are left out, and of pixel-identical patients one is kept,
    that of the official test set first; `slices.json` tells both. An earlier set in the folder is replaced.

    Args:
        patients_or_root: what `find_patients` gave, or the folder to give it.
        folder: gets images.npy (N, 1, S, S) float32, masks.npy (N, S, S) uint8, manifest.csv, slices.json.
        image_size: S, one of 32, 64, 128, 256.
        field_of_view: width and height of a slice in mm.
        seed: of the split into train, validation and test.
        workers: threads; None takes one a core. Threads are enough: unzipping and arithmetic run outside
            Python's lock.

    Raises:
        DataError: a wrong parameter or a patient that cannot be read; nothing has been written then.
    """
    image_size = check_image_size(image_size)
    if not 0 < field_of_view < math.inf:
        raise DataError(f"field_of_view = {field_of_view}: must be a positive number of millimetres, say 160")
    folder = Path(folder)
    _check_replaceable(folder)
    given_root = isinstance(patients_or_root, str | Path)
    patients = find_patients(patients_or_root) if given_root else list(patients_or_root)
    if not patients:
        raise DataError("patients_or_root: no patients given; take them from find_patients(folder)")

    patients = sorted(patients, key=lambda patient: patient.name)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        parts = list(
            pool.map(lambda patient: slice_patient(patient, image_size, field_of_view), patients)
        )  # the first DataError is raised here
    duplicates = find_duplicates(parts)
    parts = [part for part in parts if part.patient.name not in duplicates]
    split = assign_splits([part.patient for part in parts], seed)

    images = np.concatenate([part.images for part in parts])[:, None]
    masks = np.concatenate([part.masks for part in parts])
    manifest = pd.DataFrame([row for part in parts for row in part.rows])
    manifest["split"] = manifest["patient"].map(split)
    for kind, problem in (
        ("no_mask", "have no masks, so that their slices are cut around the image's centre"),
        ("cut_off", f"have a part of the heart outside the field of view of {field_of_view:g} mm"),
    ):
        names = [part.patient.name for part in parts if getattr(part, kind)]
        if names:
            warnings.warn(f"{len(names)} of {len(parts)} patients {problem}: {_some(names)}", stacklevel=2)

    table = manifest.to_csv(index=False).encode()
    facts = {
        "image_size": image_size,
        "field_of_view_mm": field_of_view,
        "pixel_mm": field_of_view / image_size,
        "seed": seed,
        "patients": len(parts),
        "slices": len(images),
        "patients_by_split": {name: list(split.values()).count(name) for name in SPLITS},
        "left_out": sum(part.left_out for part in parts),
        "duplicates": duplicates,  # patient left out → the pixel-identical one that was kept
        "no_mask": [part.patient.name for part in parts if part.no_mask],
        "cut_off": {part.patient.name: round(part.cut_off, 4) for part in parts if part.cut_off},
        "fingerprint": sha256(table, images, masks),
    }

    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        np.save(temporary / "images.npy", images)
        np.save(temporary / "masks.npy", masks)
        (temporary / "manifest.csv").write_bytes(table)
        (temporary / "slices.json").write_text(json.dumps(facts, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _as_slices(images, masks, manifest, facts["fingerprint"])


def load_slices(folder: str | Path, split: str | None = None, groups: Sequence[str] | None = None) -> Slices:
    """Slices that `prepare` wrote: all, or those of one split and of some groups.

    Args:
        folder: the folder given to `prepare`.
        split: "train", "validation", "test", or None for all.
        groups: some of GROUPS, such as ("HCM",), or None for all.

    Raises:
        DataError: no slices there, none of this split and groups, or an unknown split or group.
    """
    folder = Path(folder)
    if split is not None and split not in SPLITS:
        raise DataError(f"split = '{split}': must be one of {', '.join(SPLITS)}, or None for all")
    for group in groups or ():
        if group not in GROUPS:
            raise DataError(f"groups: '{group}' is none of {', '.join(GROUPS)}")
    for name in FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder}: holds no {name}; run notebook 01 first")

    manifest = pd.read_csv(folder / "manifest.csv", dtype={"patient": str})
    wanted = np.ones(len(manifest), dtype=bool)
    if split is not None:
        wanted &= (manifest["split"] == split).to_numpy()
    if groups is not None:
        wanted &= manifest["group"].isin(groups).to_numpy()
    if not wanted.any():
        chosen = f"split {split or 'any'}, groups {', '.join(GROUPS if groups is None else groups) or 'none'}"
        raise DataError(f"{folder}: holds no slices of {chosen}; prepare it with more patients")
    images, masks = (np.load(folder / name, mmap_mode="r") for name in ("images.npy", "masks.npy"))
    if not len(images) == len(masks) == len(manifest):
        raise DataError(f"{folder}: images, masks and manifest differ in length; run notebook 01 again")
    facts = json.loads((folder / "slices.json").read_text())
    chosen = manifest[wanted].reset_index(drop=True)
    return _as_slices(images[wanted], masks[wanted], chosen, facts["fingerprint"])


@dataclass(frozen=True)
class PatientSlices:
    """What `slice_patient` makes of one patient."""

    patient: Patient
    images: np.ndarray  # (n, S, S) float32 in [−1, 1]
    masks: np.ndarray  # (n, S, S) uint8
    rows: list[dict]  # n rows of the manifest, without the split
    digests: frozenset[str]  # sha256 of each phase's voxels
    left_out: int  # slices without left ventricle
    no_mask: bool
    cut_off: float  # share of the heart's voxels outside the field of view


def slice_patient(patient: Patient, image_size: int, field_of_view: float) -> PatientSlices:
    """Both phases of a patient on one grid around the heart; arguments as in `prepare`."""
    pixel = field_of_view / image_size
    volumes = {phase: read_volume(patient, phase) for phase in PHASES}
    centre = heart_centre(list(volumes.values()))
    from_base = starts_at_base([volume.mask for volume in volumes.values() if volume.mask is not None])

    images, masks, rows, left_out, heart, heart_inside = [], [], [], 0, 0, 0
    for phase, volume in volumes.items():
        depth = volume.image.shape[2]
        kept, labelled = np.arange(depth), np.arange(depth)
        if volume.mask is not None:
            kept = np.flatnonzero((volume.mask >= MYOCARDIUM).any(axis=(0, 1)))
            labelled = np.flatnonzero(volume.mask.any(axis=(0, 1)))
            if len(kept) == 0:
                raise DataError(
                    f"{patient.mask_path(phase)}: the mask holds no left ventricle (2 or 3); "
                    "download this patient again"
                )
        left_out += depth - len(kept)

        columns, lines = (
            triangle_taps(volume.image.shape[axis], volume.spacing[axis], centre[axis], image_size, pixel)
            for axis in (0, 1)
        )
        x, columns = _crop(columns)  # first, so that nothing is computed on the rest of the volume
        y, lines = _crop(lines)
        crop = volume.image[x, y]
        low, high = np.percentile(crop, (1, 99))
        if low == high:
            raise DataError(
                f"{patient.image_path(phase)}: around the heart, every voxel has the value {low:g}; "
                "download this patient again"
            )
        stack = resample(crop[:, :, kept], columns, lines)
        stack = np.clip((stack - low) * (2 / (high - low)) - 1, -1, 1)
        inside = lines.weight.any(axis=1)[:, None] & columns.weight.any(axis=1)
        images.append(np.where(inside, stack, -1).astype(np.float32))
        if volume.mask is None:
            masks.append(np.zeros((depth, image_size, image_size), dtype=np.uint8))
        else:
            mask_crop = volume.mask[x, y]
            masks.append(resample_mask(mask_crop[:, :, kept], columns, lines))
            heart += np.count_nonzero(volume.mask)
            heart_inside += np.count_nonzero(mask_crop)

        base, apex = (labelled[0], labelled[-1]) if from_base else (labelled[-1], labelled[0])
        rows += [
            {
                "patient": patient.name,
                "group": patient.group,
                "phase": phase,
                "slice": int(z),
                "position": round(abs(float(z - base)) / max(1, abs(int(apex - base))), 4),
                "pixel_mm": pixel,
                "thickness_mm": round(volume.spacing[2], 4),
            }
            for z in kept
        ]
    return PatientSlices(
        patient=patient,
        images=np.concatenate(images),
        masks=np.concatenate(masks),
        rows=rows,
        digests=frozenset(volume.digest for volume in volumes.values()),
        left_out=left_out,
        no_mask=any(volume.mask is None for volume in volumes.values()),
        cut_off=1 - heart_inside / heart if heart else 0.0,
    )


def heart_centre(volumes: Sequence[Volume]) -> tuple[float, float]:
    """Centre (x, y) of the box around every label in the volumes, or of the image where there is no mask.

    In mm from the middle of voxel 0.
    """
    centre = []
    for axis in (0, 1):
        ends = []
        for volume in volumes:
            if volume.mask is not None:
                labelled = np.flatnonzero(volume.mask.any(axis=(1 - axis, 2)))
                ends += [labelled[[0, -1]] * volume.spacing[axis]] if len(labelled) else []
        if not ends:
            ends = [(0.0, (volumes[0].image.shape[axis] - 1) * volumes[0].spacing[axis])]
        centre.append(float(np.min(ends) + np.max(ends)) / 2)
    return centre[0], centre[1]


def starts_at_base(masks: Sequence[np.ndarray]) -> bool:
    """Whether slice 0 lies at the base of the heart; yes where nothing tells.

    The right ventricle is wide at the base and ends before the apex does, so its centre of mass along z lies
    on the base's side of the middle of the heart.

    Args:
        masks: (X, Y, Z) each, of one patient; their votes are added.
    """
    towards_base = 0.0
    for mask in masks:
        labelled = np.flatnonzero(mask.any(axis=(0, 1)))
        right = np.count_nonzero(mask == RIGHT_VENTRICLE, axis=(0, 1))
        if right.any():
            towards_base += (labelled[0] + labelled[-1]) / 2 - np.average(np.arange(len(right)), weights=right)
    return towards_base >= 0


class Taps(NamedTuple):
    """One axis's resampling: pixel s takes weight[s, k] of voxel index[s, k].

    Shapes: index (S, K) int64, weight (S, K) float32; a row sums to 1, or to 0 outside the image.
    """

    index: np.ndarray
    weight: np.ndarray


def triangle_taps(num_voxels: int, spacing: float, centre: float, image_size: int, pixel: float) -> Taps:
    """Linear interpolation along one axis, widened where the pixels are larger than the voxels.

    A triangle that reaches one voxel to either side is linear interpolation; one that reaches a pixel
    averages the voxels that fall together in it, against aliasing.

    Args:
        num_voxels: length of the axis.
        spacing: of the voxels, mm.
        centre: of the pixels, mm from the middle of voxel 0.
        image_size: S, the number of pixels.
        pixel: their spacing, mm.
    """
    place = (centre + (np.arange(image_size) - (image_size - 1) / 2) * pixel) / spacing  # in voxels
    place = place[:, None]
    reach = max(1.0, pixel / spacing)
    index = np.ceil(place - reach).astype(int) + np.arange(math.ceil(2 * reach))
    offset = index - place
    weight = np.clip(1 - np.abs(offset) / reach, 0, None)
    tilt = (weight * offset).sum(axis=1) / ((weight * offset**2).sum(axis=1) + 1e-12)
    weight *= 1 - tilt[:, None] * offset  # the mean of the taps is the pixel's place: a ramp stays a ramp
    weight[(index < 0) | (index >= num_voxels)] = 0
    weight[((place < -0.5) | (place > num_voxels - 0.5))[:, 0]] = 0
    total = weight.sum(axis=1, keepdims=True)
    weight /= np.where(total > 0, total, 1)
    return Taps(np.clip(index, 0, num_voxels - 1), weight.astype(np.float32))


def resample(volume: np.ndarray, columns: Taps, lines: Taps) -> np.ndarray:
    """Every slice of a volume on the pixels of two `triangle_taps`.

    Sums of a few shifted copies rather than matrix products: as fast, and the same bytes with any BLAS.

    Shapes: volume (X, Y, Z), columns from X, lines from Y → (Z, S, S) float32, rows along y, columns along x.
    """
    stack = volume.T.astype(np.float32, copy=False)
    stack = sum(stack[:, index] * weight[:, None] for index, weight in zip(*map(np.transpose, lines), strict=True))
    return sum(stack[..., index] * weight for index, weight in zip(*map(np.transpose, columns), strict=True))


def resample_mask(mask: np.ndarray, columns: Taps, lines: Taps) -> np.ndarray:
    """The label with the largest share of each pixel; shapes as in `resample`, values 0 to 3 in uint8."""
    labelled = mask.any(axis=2)
    c = np.flatnonzero(labelled.any(axis=1)[columns.index].any(axis=1))  # pixels that touch a label: a third,
    r = np.flatnonzero(labelled.any(axis=0)[lines.index].any(axis=1))  # the others are background
    columns_near, lines_near = (Taps(t.index[near], t.weight[near]) for t, near in ((columns, c), (lines, r)))
    shares = [resample(mask == label, columns_near, lines_near) for label in range(LEFT_VENTRICLE + 1)]
    labels = np.zeros((mask.shape[2], len(lines.index), len(columns.index)), dtype=np.uint8)
    labels[:, r[:, None], c] = np.argmax(shares, axis=0)
    return labels


def find_duplicates(parts: Sequence[PatientSlices]) -> dict[str, str]:
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


def assign_splits(patients: Sequence[Patient], seed: int) -> dict[str, str]:
    """Each patient's split: train, validation or test, so that no patient is in two.

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
        for place, name in enumerate(order):
            split[name] = SPLITS[0 if place >= validation + test else 1 if place < validation else 2]
    return split


def _crop(taps: Taps) -> tuple[slice, Taps]:
    """The stretch of voxels that the taps reach, and the taps counted from its start."""
    used = taps.index[taps.weight > 0]
    start, stop = int(used.min()), int(used.max()) + 1
    return slice(start, stop), Taps(np.clip(taps.index, start, stop - 1) - start, taps.weight)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_replaceable(folder: Path) -> None:
    """Only an empty folder or an earlier set of slices may be replaced."""
    if folder.is_dir() and not {entry.name for entry in folder.iterdir()} <= set(FILES):
        raise DataError(f"{folder}: holds other files than slices, which would be lost; name another folder")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name another folder")


def _as_slices(images: np.ndarray, masks: np.ndarray, manifest: pd.DataFrame, fingerprint: str) -> Slices:
    labels = torch.tensor([GROUPS.index(group) for group in manifest["group"]], dtype=torch.int64)
    return Slices(torch.from_numpy(images), labels, torch.from_numpy(masks), manifest, fingerprint)
