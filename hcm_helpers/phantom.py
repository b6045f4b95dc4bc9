"""Synthetic short-axis cardiac cine MR in the layout of ACDC: the embedded data set.

The heart comes from `heart`, `body` paints it and what lies around it (fat, lung, diaphragm, liver, stomach and
bowel, chest wall, ribs, spine, aorta), and `scanner` takes the picture; both use the voxels of `scene`.

Every tissue has the signal of balanced steady-state free precession (bSSFP) that
follows from its relaxation times. Water and fat are painted apart: fat comes back in nearly the opposite phase and
a little displaced, so that the dark line between fat and muscle arises by itself. Off-resonance darkens bands, coils
shade, and a k-space that was not sampled to its corners blurs, rings and carries the noise. The scanner is
drawn the same way for all groups, so that it tells nothing about the heart. No pixel comes from a real patient.

Arrays are (Z, X, Y) until `make_patient` returns them as (X, Y, Z).
"""

import csv
import gzip
import io
import math
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np

from hcm_helpers.acdc import GROUPS, DataError, Volume
from hcm_helpers.body import paint_heart, surroundings
from hcm_helpers.heart import Heart, draw_heart, measure, normal
from hcm_helpers.scanner import Scan, acquire, resonate, tissue_signals
from hcm_helpers.scene import Grid, texture

# Patients


def _place(rng: np.random.Generator, heart: Heart) -> tuple[Grid, float]:
    """Voxels that hold the heart, posed as in ACDC, and the distance between slices in mm."""
    pixel = round(float(rng.uniform(1.25, 1.8)), 4)
    long_side = int(np.clip(rng.uniform(330, 420) / pixel // 8 * 8, 200, 272))
    short_side = int(np.clip(long_side * rng.uniform(0.75, 0.95) // 8 * 8, 160, 256))
    across = rng.random() < 0.2  # the body then lies along the image's rows
    nx, ny = (long_side, short_side) if across else (short_side, long_side)
    turn = np.radians(rng.normal(48, 12) if across else rng.normal(0, 9))

    extent = 1.1 * heart.length + 8
    thickness = float(rng.choice([5.0, 6.5, 8.0, 10.0], p=[0.08, 0.02, 0.1, 0.8]))
    slices = max(6, math.ceil(extent / thickness))
    x = (np.arange(nx) - (nx - 1) / 2) * pixel + rng.normal(6, 9)
    y = (np.arange(ny) - (ny - 1) / 2) * pixel + rng.normal(4, 11)
    s = thickness * (np.arange(slices) + rng.uniform(0.05, 0.95))
    return Grid(x, y, s, pixel, turn), thickness


def _beat(frames: int, end_systole: int, kick: float) -> np.ndarray:
    """How far every frame is from end-diastole (0) to end-systole (1), (frames,).

    Ejection up to the frame `end_systole` (from 1), fast filling, rest, and the atrium's kick at the end,
    which gives a share of the filling; then comes frame 1 again.
    """

    def ramp(start, stop):
        return 0.5 - 0.5 * np.cos(np.pi * np.clip((filling - start) / (stop - start), 0, 1))

    frame = np.arange(frames)
    last = end_systole - 1
    filling = np.clip((frame - last) / (frames - last), 0, 1)
    ejection = 0.5 - 0.5 * np.cos(np.pi * np.clip(frame / last, 0, 1))
    return np.where(frame <= last, ejection, 1 - (1 - kick) * ramp(0, 0.45) - kick * ramp(0.7, 1))


def make_patient(group: str, rng: np.random.Generator, cine: bool = False) -> tuple[dict, dict, dict]:
    """One synthetic patient at end-diastole and end-systole.

    Args:
        group: one of GROUPS.
        rng: decides everything else; the same state gives the same patient.
        cine: whether to make every other frame of the beat too, at a tenth of a second each.

    Returns:
        The volumes, {"ED": Volume, "ES": Volume}, image float32 of whole numbers ≥ 0 and mask uint8, (X, Y, Z), the
        base first, spacing in mm; with `cine` also "cine", without mask, image (X, Y, Z, T). Then the values of ACDC's
        Info.cfg. Then the truth, the group and what `heart.measure` tells.

    Raises:
        DataError: the group is unknown.
    """
    if group not in GROUPS:
        raise DataError(f"group {group!r} is unknown: take one of {', '.join(GROUPS)}")
    heart = draw_heart(group, rng)
    frames = int(rng.integers(20, 36))
    info = {
        "ED": 1,
        "ES": round(frames * rng.uniform(0.32, 0.45)),
        "Group": group,
        "Height": round(normal(rng, 170, 9)),
        "NbFrame": frames,
        "Weight": round(normal(rng, 77, 14)),
    }
    phases = _beat(frames, info["ES"], rng.uniform(0.15, 0.35))

    grid, thickness = _place(rng, heart)
    flip, repetition = math.radians(rng.uniform(45, 70)), rng.uniform(2.8, 3.5)
    scene, depth = surroundings(rng, grid, heart, tissue_signals(rng, flip, repetition))
    falloff = np.exp(-depth / rng.uniform(200, 700)) + rng.uniform(0, 0.2) * np.exp(-depth / 18)
    shading = falloff * np.exp(0.3 * texture(rng, grid, 110, 1))
    scan = Scan(
        sampled=tuple(rng.uniform((0.7, 0.65), (1.0, 1.0))),
        taper=rng.uniform(0.1, 0.35),
        noise=(rng.uniform(0.006, 0.022) * np.exp(0.35 * np.clip(depth / 60, 0, 2))).astype(np.float32),
        ghost=rng.uniform(0, 0.03) * np.exp(2j * np.pi * rng.random()),
        ghost_at=int(rng.uniform(0.2, 0.5) * len(grid.y)),
    )
    scale, scanner, tissue = rng.uniform(170, 420), rng.integers(2**32), rng.integers(2**32)

    def frame(number):
        beat = scene.copy()
        mask = paint_heart(np.random.default_rng(tissue), beat, heart, float(phases[number - 1]))
        signal = shading * resonate(np.random.default_rng(scanner), beat, flip, repetition)
        image = acquire(np.random.default_rng([scanner, number]), signal, scan)
        image = np.rint(np.float32(scale) * image)
        return Volume(image.transpose(1, 2, 0), mask.transpose(1, 2, 0), (grid.pixel, grid.pixel, thickness))

    volumes = {phase: frame(info[phase]) for phase in ("ED", "ES")}
    if cine:
        done = {info[phase]: volume for phase, volume in volumes.items()}
        images = [(done.get(number) or frame(number)).image for number in range(1, frames + 1)]
        volumes["cine"] = Volume(np.stack(images, axis=-1), None, volumes["ED"].spacing)
    return volumes, info, {"group": group} | measure(heart)


# Files


def write_phantom(root: str | Path, patients: int = 50, seed: int = 0, cine: bool = False) -> Path:
    """Write a synthetic data set in ACDC's layout: root/training/patient001 and so on.

    The groups come in turn: patient001 is NOR, patient002 MINF, and so on. The seed and a patient's number
    alone decide the patient. The true measures of every heart stand in root/truth.csv, one row a patient. All
    is written to a temporary folder beside `root` and renamed at the end.

    Args:
        root: the folder to make; it may exist if it is empty.
        patients: how many, from 1 to 999.
        seed: the same seed gives the same bytes.
        cine: whether to write the whole beat too, as patientNNN_4d.nii.gz: seven times the time, 12 MB a patient.

    Returns:
        root.

    Raises:
        DataError: root is not an empty folder, or the number of patients is out of range.
    """
    root = Path(root)
    if not 1 <= patients <= 999:
        raise DataError(f"patients = {patients} does not fit the names patient001 to patient999: take 1 to 999")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is not an empty folder: name another for the phantom, or remove this one")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as unfinished:
        whole = Path(unfinished) / root.name
        seeds = np.random.SeedSequence(seed).spawn(patients)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # below 100 MB each
            jobs = [pool.submit(_write_patient, whole / "training", i, seeds[i], cine) for i in range(patients)]
            try:
                truths = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        table = io.StringIO()
        writer = csv.DictWriter(table, truths[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(truths)
        (whole / "truth.csv").write_text(table.getvalue())
        if root.exists():
            root.rmdir()
        whole.rename(root)
    return root


def _write_patient(folder: Path, index: int, seed: np.random.SeedSequence, cine: bool) -> dict[str, str]:
    """Write one patient; returns its row of truth.csv."""
    volumes, info, truth = make_patient(GROUPS[index % len(GROUPS)], np.random.default_rng(seed), cine)
    name = f"patient{index + 1:03d}"
    (folder / name).mkdir(parents=True)
    (folder / name / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    for phase, volume in volumes.items():
        stem = f"{name}_4d" if phase == "cine" else f"{name}_frame{info[phase]:02d}"
        _write_nifti(folder / name / f"{stem}.nii.gz", volume.image.astype(np.int16), volume.spacing)
        if volume.mask is not None:
            _write_nifti(folder / name / f"{stem}_gt.nii.gz", volume.mask, volume.spacing)
    numbers = {key: value if key == "group" else f"{value:.3f}" for key, value in truth.items()}
    return {"patient": name} | numbers


def _write_nifti(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """A .nii.gz with ACDC's affine and no time of writing in it: equal voxels are equal bytes."""
    nifti = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    nifti.header.set_zooms((*spacing, 1.0)[: voxels.ndim])
    path.write_bytes(gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0))
