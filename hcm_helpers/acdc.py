"""The ACDC data set as it lies on disk: patients, Info.cfg, frames, spacing and masks.

Automated Cardiac Diagnosis Challenge: Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018,
doi 10.1109/TMI.2018.2837502. One folder a patient: `Info.cfg`, and for end-diastole and end-systole an image
`patientNNN_frameFF.nii.gz` and its mask `patientNNN_frameFF_gt.nii.gz`. `data/README.md` says more.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from hcm_helpers.files import sha256

GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")
PHASES = ("ED", "ES")  # end-diastole: the ventricle is full; end-systole: it has contracted
BACKGROUND, RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = range(4)  # the values in a mask
SPACING_MM = ((0.3, 5), (0.3, 5), (1, 20))  # what a voxel of a short-axis stack can measure along x, y, z


class DataError(ValueError):
    """Bad input, told in one sentence: the file or parameter, and what to do about it."""


@dataclass(frozen=True)
class Patient:
    """One patient's folder and what its Info.cfg says."""

    name: str
    folder: Path
    group: str  # one of GROUPS
    end_diastole: int  # frame number, counted from 1
    end_systole: int
    num_frames: int
    height_cm: float
    weight_kg: float
    official_split: str  # "training" or "testing", the challenge's own division

    def frame(self, phase: str) -> int:
        """The frame number (from 1) of a phase, "ED" or "ES"."""
        return {"ED": self.end_diastole, "ES": self.end_systole}[phase]

    def image_path(self, phase: str) -> Path:
        return self.folder / f"{self.name}_frame{self.frame(phase):02d}.nii.gz"

    def mask_path(self, phase: str) -> Path:
        return self.folder / f"{self.name}_frame{self.frame(phase):02d}_gt.nii.gz"

    @property
    def cine_path(self) -> Path:
        return self.folder / f"{self.name}_4d.nii.gz"


@dataclass(frozen=True)
class Volume:
    """A stack of short-axis slices.

    Shapes: image (X, Y, Z) float32 in the scanner's own grey values; mask (X, Y, Z) uint8 with 0 background,
    1 right-ventricle cavity, 2 myocardium, 3 left-ventricle cavity, or None; spacing (dx, dy, dz) in mm.
    """

    image: np.ndarray
    mask: np.ndarray | None
    spacing: tuple[float, float, float]

    @property
    def digest(self) -> str:
        """sha256 of the image: the same for the same voxels, whatever the file's type."""
        return sha256(self.image.shape, self.image.T)


def find_patients(root: str | Path) -> list[Patient]:
    """All patients below a folder, in the order of their names.

    Args:
        root: a folder with `training/` and `testing/` (one is enough), or the unpacked archive with
            `ACDC/database/` in it, or a folder of patientNNN folders (which then count as training).

    Raises:
        DataError: no patient there, one without Info.cfg, an unknown group, or a name that stands twice.
    """
    patients = [read_patient(split, folder) for split, folder in patient_folders(root)]
    if not patients:
        raise no_patients(root)
    for problem in same_names([patient.folder for patient in patients]):
        raise DataError(problem)
    return sorted(patients, key=lambda patient: patient.name)


def no_patients(root: str | Path) -> DataError:
    """The error that says that a folder holds no patients."""
    problem = "holds no patientNNN folders" if Path(root).is_dir() else "there is no such folder"
    return DataError(f"{root}: {problem}; `hcm download` gets ACDC, and data/README.md says where else to put it")


def same_names(folders: list[Path]) -> list[str]:
    """A sentence for each patient's folder whose name another has as well."""
    neighbours = pairwise(sorted(folders, key=lambda folder: folder.name))
    return [
        f"{second}: {first} has the same name; keep one of the two"
        for first, second in neighbours
        if first.name == second.name
    ]


def holds_acdc(root: str | Path) -> bool:
    """Whether there are patients in the ACDC layout below a folder; reads none of them."""
    return any((folder / "Info.cfg").is_file() for _, folder in patient_folders(root))


def patient_folders(root: str | Path) -> list[tuple[str, Path]]:
    """Pairs (official split, folder of a patient) below a folder as `find_patients` takes it; none is read."""
    root = Path(root)
    for base in (root, root / "database", root / "ACDC" / "database"):
        found = [
            (split, folder)
            for split in ("training", "testing")
            for folder in sorted((base / split).glob("patient*"))
            if folder.is_dir()
        ]
        if found:
            return found
    return [("training", folder) for folder in sorted(root.glob("patient*")) if folder.is_dir()]


def read_patient(official_split: str, folder: Path) -> Patient:
    """The patient of one folder, by its Info.cfg.

    Args:
        official_split: "training" or "testing".
        folder: patientNNN.

    Raises:
        DataError: as `read_info`.
    """
    info = read_info(folder / "Info.cfg")
    return Patient(
        name=folder.name,
        folder=folder,
        group=info["Group"],
        end_diastole=info["ED"],
        end_systole=info["ES"],
        num_frames=info["NbFrame"],
        height_cm=info["Height"],
        weight_kg=info["Weight"],
        official_split=official_split,
    )


def read_info(path: str | Path) -> dict:
    """The lines `key: value` of an Info.cfg.

    Returns:
        ED, ES and NbFrame (int, frames counted from 1), Group (one of GROUPS), Height (float, cm), Weight
        (float, kg). Numbers stand in the files both as `178` and as `178.0`.

    Raises:
        DataError: no such file, a key missing, a value that is no number, an unknown group or frame.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; download this patient again")
    lines = (line.partition(":") for line in path.read_text(errors="replace").splitlines())
    text = {key.strip(): value.strip() for key, _, value in lines}
    info: dict = {}
    for key in ("ED", "ES", "Group", "Height", "NbFrame", "Weight"):
        if key not in text:
            raise DataError(f"{path}: has no line '{key}: …'; download this patient again")
        try:
            info[key] = text[key] if key == "Group" else float(text[key])
        except ValueError:
            raise DataError(f"{path}: {key} is '{text[key]}', which is no number; correct it") from None
    if info["Group"] not in GROUPS:
        raise DataError(f"{path}: unknown group '{info['Group']}'; it must be one of {', '.join(GROUPS)}")
    for key in ("NbFrame", "ED", "ES"):
        if not 1 <= info[key] <= info["NbFrame"] or info[key] % 1:
            raise DataError(f"{path}: {key} is {text[key]}, of {text['NbFrame']} frames; correct it")
        info[key] = int(info[key])
    return info


def read_volume(patient: Patient, phase: str) -> Volume:
    """One phase of a patient: the image, its mask where there is one, and the voxel's size.

    The spacing is that of the header's zooms: the affine of these files says 1 mm, whatever the scanner did.

    Args:
        patient: from `find_patients`.
        phase: "ED" or "ES".

    Raises:
        DataError: a file that is missing, cut short or not three-dimensional; voxels of an impossible size; NaN
            or infinity, or one grey value throughout; a mask of another shape, or with other values than 0 to 3.
    """
    path = patient.image_path(phase)
    image, spacing = _read_nifti(path)
    image = np.asarray(image, dtype=np.float32)
    lowest, highest = float(image.min()), float(image.max())  # NaN and infinity survive both
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise DataError(f"{path}: holds NaN or infinite grey values; download this patient again")
    if lowest == highest:
        raise DataError(f"{path}: every voxel has the value {lowest:g}; download this patient again")

    path = patient.mask_path(phase)
    if not path.is_file():
        return Volume(image, None, spacing)
    values, _ = _read_nifti(path)
    if values.shape != image.shape:
        raise DataError(
            f"{path}: the mask has shape {values.shape}, its image {image.shape}; download this patient again"
        )
    mask = values.astype(np.uint8, copy=False)
    if mask.max() > LEFT_VENTRICLE or (values.dtype != np.uint8 and (mask != values).any()):
        raise DataError(f"{path}: the mask has values other than 0, 1, 2, 3; download this patient again")
    return Volume(image, mask, spacing)


def read_cine(patient: Patient) -> np.ndarray:
    """All frames of a patient, (X, Y, Z, NbFrame) in the file's type; frame 1 of Info.cfg has index 0 here.

    Raises:
        DataError: a file that is missing, cut short or not four-dimensional; another number of frames.
    """
    cine, _ = _read_nifti(patient.cine_path, axes="XYZT")
    if cine.shape[3] != patient.num_frames:
        raise DataError(
            f"{patient.cine_path}: has {cine.shape[3]} frames, Info.cfg says {patient.num_frames}; "
            "download this patient again"
        )
    return cine


def _read_nifti(path: Path, axes: str = "XYZ") -> tuple[np.ndarray, tuple[float, float, float]]:
    """Voxels in the file's type, and the spacing in mm along x, y, z; DataError where they cannot be had."""
    try:
        content = gzip.decompress(path.read_bytes())
        header = nib.Nifti1Header(content[:348], check=False)  # the check would make 1 mm of 0 mm
        voxels = np.asarray(nib.Nifti1Image.from_bytes(content).dataobj)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; download this patient again") from None
    except (OSError, EOFError, ValueError, zlib.error, WrapStructError, HeaderDataError) as error:
        reason = " ".join(str(error).split())  # nibabel's messages run over several lines
        raise DataError(f"{path}: cannot be read ({reason}); download this patient again") from error
    spacing = tuple(float(zoom) for zoom in header["pixdim"][1:4])
    if voxels.ndim != len(axes) or voxels.size == 0:
        raise DataError(f"{path}: has shape {voxels.shape}, not ({', '.join(axes)}); download this patient again")
    if not all(low <= zoom <= high for zoom, (low, high) in zip(spacing, SPACING_MM, strict=True)):  # nor NaN
        size = " × ".join(f"{zoom:g}" for zoom in spacing)
        raise DataError(
            f"{path}: has voxels of {size} mm, which no scanner takes (0.3 to 5 mm in the plane, 1 to 20 mm from "
            "slice to slice); download this patient again"
        )
    return voxels, spacing
