"""Reads every file of a data set in ACDC's layout, and tells what is in it and what is wrong with it."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hcm_helpers.acdc import (
    GROUPS,
    PHASES,
    DataError,
    Patient,
    Volume,
    no_patients,
    patient_folders,
    read_cine,
    read_header,
    read_patient,
    read_volume,
    same_names,
)


@dataclass(frozen=True)
class VolumeFacts:
    """What the table tells of one phase of a patient."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]  # mm
    digest: str  # of the image's voxels
    image_type: str  # as the file stores it
    mask_type: str  # "none" where there is no mask


@dataclass
class Findings:
    """What one patient's files hold, and what is wrong with them."""

    patient: str  # training/patient001
    split: str
    group: str = "unknown"
    volumes: list[VolumeFacts] = field(default_factory=list)
    cine: bool = False
    problems: list[str] = field(default_factory=list)  # a sentence each


def check(root: str | Path, workers: int | None = None) -> tuple[str, list[str]]:
    """Read all files of all patients and go on after a bad one.

    Args:
        root: as in `acdc.find_patients`.
        workers: threads; None takes one a core.

    Returns:
        A table of what is there, and the problems, a sentence each with the file's name. Patients with the same
        voxels stand in the table: they are no problem, as `slices.prepare` keeps one of them.

    Raises:
        DataError: there is no patient at all.
    """
    found = patient_folders(root)
    if not found:
        raise no_patients(root)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        findings = list(tqdm(pool.map(examine, *zip(*found, strict=True)), "check", len(found), disable=None))
    problems = same_names([folder for _, folder in found])
    return as_table(findings), problems + [problem for patient in findings for problem in patient.problems]


def examine(split: str, folder: Path) -> Findings:
    """Read all files of one patient; arguments as in `acdc.read_patient`."""
    findings = Findings(f"{split}/{folder.name}", split)
    try:
        patient = read_patient(split, folder)
    except DataError as error:  # without the frames' numbers no other file is known
        findings.problems.append(str(error))
        return findings
    findings.group = patient.group

    volumes = {}
    for phase in PHASES:
        try:
            volume = read_volume(patient, phase)
        except DataError as error:
            findings.problems.append(str(error))
            continue
        volumes[phase] = volume
        findings.volumes.append(
            VolumeFacts(
                volume.image.shape,
                volume.spacing,
                volume.digest,
                stored_type(patient.image_path(phase)),
                "none" if volume.mask is None else stored_type(patient.mask_path(phase)),
            )
        )
    if len({(volume.image.shape, volume.spacing) for volume in volumes.values()}) > 1:
        first, second = (patient.image_path(phase) for phase in PHASES)
        findings.problems.append(
            f"{second}: differs from {first.name} in its shape or its voxels' size; download this patient again"
        )
    masks = {patient.mask_path(phase): patient.mask_path(phase).is_file() for phase in PHASES}
    if set(masks.values()) == {False, True}:
        missing, other = sorted(masks, key=masks.get)
        findings.problems.append(
            f"{missing}: there is no such file, but {other.name} is there; download this patient again"
        )
    if patient.cine_path.is_file():
        findings.cine = True
        findings.problems += cine_problems(patient, volumes)
    return findings


def cine_problems(patient: Patient, volumes: dict[str, Volume]) -> list[str]:
    """What is wrong with a patient's cine, of which the volumes of the phases are two frames."""
    problems = []
    try:
        for frame, seen in enumerate(read_cine(patient), start=1):
            problems += [
                f"{patient.cine_path}: frame {frame} differs from {patient.image_path(phase).name}; "
                "download this patient again"
                for phase, volume in volumes.items()
                if frame == patient.frame(phase) and not np.array_equal(seen, volume.image)
            ]
        spacing = read_header(patient.cine_path).spacing
        if not all(np.allclose(spacing, volume.spacing, rtol=0.01) for volume in volumes.values()):
            problems.append(
                f"{patient.cine_path}: its voxels have another size than those of ED, ES; download this patient again"
            )
    except DataError as error:
        problems.append(str(error))
    return problems


def stored_type(path: Path) -> str:
    """The type in which a NIfTI file stores its voxels, such as "int16"."""
    return read_header(path).dtype.name


def same_voxels(findings: Sequence[Findings]) -> list[tuple[str, ...]]:
    """The patients that have the voxels of a phase in common, in the order of their names."""
    owners: dict[str, set[str]] = {}
    for patient in findings:
        for volume in patient.volumes:
            owners.setdefault(volume.digest, set()).add(patient.patient)
    return sorted({tuple(sorted(names)) for names in owners.values() if len(names) > 1})


def as_table(findings: Sequence[Findings]) -> str:
    """What is there, a line a fact."""
    counts = Counter((patient.group, patient.split) for patient in findings)
    splits = [split for split in ("training", "testing") if any(patient.split == split for patient in findings)]
    groups = [*GROUPS, *(["unknown"] if any(patient.group == "unknown" for patient in findings) else [])]
    lines = [("patients", "".join(f"{split:>10}" for split in splits))]
    lines += [(f"  {group}", "".join(f"{counts[group, split]:10}" for split in splits)) for group in groups]
    lines += [("  all", "".join(f"{sum(p.split == split for p in findings):10}" for split in splits))]

    volumes = [volume for patient in findings for volume in patient.volumes]
    depths = [volume.shape[2] for volume in volumes]
    lines += [
        ("volumes", f"{len(volumes)}, and {sum(patient.cine for patient in findings)} cines"),
        ("slices", f"{_range(depths)} a volume, {sum(depths)} in all"),
        ("in the plane", f"{_range(zoom for volume in volumes for zoom in volume.spacing[:2])} mm"),
        ("slice to slice", f"{_range(volume.spacing[2] for volume in volumes)} mm"),
        ("matrix", " × ".join(_range(volume.shape[axis] for volume in volumes) for axis in (0, 1))),
        ("image types", _tally(volume.image_type for volume in volumes)),
        ("mask types", _tally(volume.mask_type for volume in volumes)),
        ("same voxels", ", ".join(" = ".join(names) for names in same_voxels(findings)) or "none"),
    ]
    return "\n".join(f"{name:<16}{text}" for name, text in lines)


def _range(numbers: Iterable[float]) -> str:
    """6–21, or 10 where all are equal."""
    different = sorted(set(numbers))
    ends = different[:1] + different[1:][-1:]
    return "–".join(f"{end:.4g}" for end in ends) or "none"


def _tally(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common()) or "none"
