"""Small patients made by hand, in ACDC's layout."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np


def save_nifti(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """A .nii.gz as ACDC has it: the spacing in the zooms, and an affine that says 1 mm."""
    nifti = nib.Nifti1Image(voxels, None)
    nifti.header.set_zooms(spacing)
    nifti.header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
    path.write_bytes(gzip.compress(nifti.to_bytes(), compresslevel=1, mtime=0))


def write_patient(root: Path, number: int, group: str = "HCM", split: str = "training", **changes) -> Path:
    """A small patient: 40 × 36 × 5 voxels of 4 × 4 × 10 mm, a round left ventricle, noise around it.

    Slice 0 is the base: the right ventricle lies in slices 0 and 1, the left one in 0 to 3, nothing in 4.
    `changes` overrides spacing, image, mask (both for ED and ES) or lines of Info.cfg.
    """
    name = f"patient{number:03d}"
    folder = root / split / name
    folder.mkdir(parents=True)
    info = {"ED": 1, "ES": 7, "Group": group, "Height": "178.0", "NbFrame": 30, "Weight": 80}
    info |= {key: value for key, value in changes.items() if key in info}
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    x, y = np.mgrid[:40, :36]
    distance = 4 * np.hypot(x - 22, y - 15)  # mm
    mask = np.zeros((40, 36, 5), dtype=np.uint8)
    mask[distance < 36, :4] = 2
    mask[distance < 24, :4] = 3
    mask[6:12, 12:18, :2] = 1
    for frame in (info["ED"], info["ES"]):
        noise = np.random.default_rng(100 * number + frame).normal(60, 5, size=mask.shape)
        image = changes.get("image", (noise + 40 * mask).astype(np.int16))
        save_nifti(folder / f"{name}_frame{frame:02d}.nii.gz", image, changes.get("spacing", (4, 4, 10)))
        save_nifti(
            folder / f"{name}_frame{frame:02d}_gt.nii.gz",
            changes.get("mask", mask),
            changes.get("spacing", (4, 4, 10)),
        )
    return folder
