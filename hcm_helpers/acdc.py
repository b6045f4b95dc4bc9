"""The ACDC data set as it lies on disk: patients, Info.cfg, frames, spacing and masks.

Automated Cardiac Diagnosis Challenge: Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018,
doi 10.1109/TMI.2018.2837502. One folder a patient: `Info.cfg`, and for end-diastole and end-systole an image
`patientNNN_frameFF.nii.gz` and its mask `patientNNN_frameFF_gt.nii.gz`. `data/README.md` says more.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")
PHASES = ("ED", "ES")  # end-diastole: the ventricle is full; end-systole: it has contracted
# What a bad file raises. Not MemoryError: no header makes us take much memory before it has been judged.
UNREADABLE = (
    *(OSError, EOFError, ValueError, OverflowError),
    *(isal_zlib.error, zlib.error, WrapStructError, HeaderDataError),
)
LARGEST_INFO = 2**16  # bytes of an Info.cfg; ACDC's have less than 100
MOST_FRAMES = 2**15 - 1  # of a cine: more NIfTI-1 cannot count
MOST_VOXELS = 2**24  # of a volume, 512 × 512 × 64: more than three times the largest of ACDC
MOST_BETWEEN = 2**20  # bytes between a header and its voxels
BACKGROUND, RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = range(4)  # the values in a mask
SPACING_MM = ((0.3, 5), (0.3, 5), (1, 20))  # what a voxel of a short-axis stack can measure along x, y, z


class DataError(ValueError):
    """Bad input, told in one sentence: the file or parameter, and what to do about it."""


def one_line(words: object, most: int = 200) -> str:
    """What an error or a file says, as a part of a sentence: no line breaks, no control signs, not at any length."""
    text = "".join(sign if sign.isprintable() else " " for sign in str(words))
    text = " ".join(text.split()) or type(words).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


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
        """The film of the whole heartbeat, frame FF of which is volume FF − 1; it may be missing."""
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
        """Shape and two checksums of the image: the same for the same voxels, whatever the file's type.

        64 bits are enough to tell patients apart whom nobody forged, and cost a twentieth of a sha256.
        """
        voxels = np.ascontiguousarray(self.image.T)
        shape = "×".join(map(str, self.image.shape))
        return f"{shape}-{isal_zlib.crc32(voxels):08x}{isal_zlib.adler32(voxels):08x}"


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
        DataError: no such file, a key missing or with two values, a value that is no number or an impossible one, an
            unknown group or frame, ED and ES in one frame.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; download this patient again")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_INFO + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > LARGEST_INFO:
        raise DataError(f"{path}: is larger than {LARGEST_INFO} bytes; download this patient again")
    text: dict[str, str] = {}
    for line in content.decode("utf-8-sig", errors="replace").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if text.setdefault(key, value) != value:
            key, *values = (one_line(part, 40) for part in (key, text[key], value))
            raise DataError(f"{path}: {key} is both '{values[0]}' and '{values[1]}'; correct it")
    info: dict = {}
    for key in ("ED", "ES", "Group", "Height", "NbFrame", "Weight"):
        if key not in text:
            raise DataError(f"{path}: has no line '{key}: …'; download this patient again")
        try:
            info[key] = text[key] if key == "Group" else float(text[key])
        except ValueError:
            value = one_line(text[key], 40)
            raise DataError(f"{path}: {key} is '{value}', which is no number; correct it") from None
    if info["Group"] not in GROUPS:
        group = one_line(info["Group"], 40)
        raise DataError(f"{path}: unknown group '{group}'; it must be one of {', '.join(GROUPS)}")
    for key, limit in (("Height", math.inf), ("Weight", math.inf), ("NbFrame", MOST_FRAMES + 1)):
        if not 0 <= info[key] < limit:
            raise DataError(f"{path}: {key} is {info[key]:g}, which cannot be; correct it")
    for key in ("NbFrame", "ED", "ES"):
        if not 1 <= info[key] <= info["NbFrame"] or info[key] % 1:
            raise DataError(f"{path}: {key} is {info[key]:g}, of {info['NbFrame']:g} frames; correct it")
        info[key] = int(info[key])
    if info["ED"] == info["ES"]:
        raise DataError(f"{path}: ED and ES are both frame {info['ED']}; correct it")
    return info


@np.errstate(over="ignore", invalid="ignore")  # NaN and infinity are told in a sentence
def read_volume(patient: Patient, phase: str) -> Volume:
    """One phase of a patient: the image, its mask where there is one, and the voxel's size.

    The spacing is that of the header's zooms: the affine of these files says 1 mm, whatever the scanner did.

    Args:
        patient: from `find_patients`.
        phase: "ED" or "ES".

    Raises:
        DataError: a file that is missing, cut short or not three-dimensional; voxels of an impossible size; NaN
            or infinity, or one grey value throughout; a mask of another shape or voxel size, with other values than
            0 to 3, or without left ventricle.
    """
    path = patient.image_path(phase)
    image, spacing = _read_nifti(path)
    image = np.asarray(image, dtype=np.float32)
    if fault := _fault_of_grey(image):
        raise DataError(f"{path}: {fault}; download this patient again")

    path = patient.mask_path(phase)
    if not path.is_file():
        return Volume(image, None, spacing)
    values, mask_spacing = _read_nifti(path)
    if values.shape != image.shape:
        raise DataError(
            f"{path}: the mask has shape {values.shape}, its image {image.shape}; download this patient again"
        )
    mask = values.astype(np.uint8, copy=False)
    if mask.max() > LEFT_VENTRICLE or (values.dtype != np.uint8 and (mask != values).any()):
        raise DataError(f"{path}: the mask has values other than 0, 1, 2, 3; download this patient again")
    if mask.max() < MYOCARDIUM:
        raise DataError(f"{path}: the mask holds no left ventricle (2 or 3); download this patient again")
    if not np.allclose(mask_spacing, spacing, rtol=0.01):
        raise DataError(
            f"{path}: has voxels of {_in_mm(mask_spacing)}, its image of {_in_mm(spacing)}; download this patient again"
        )
    return Volume(image, mask, spacing)


def read_cine(patient: Patient) -> Iterator[np.ndarray]:
    """The frames of a patient's cine one after the other, (X, Y, Z) float32 each; no more than one is in memory.

    Raises:
        DataError: a file that is missing, cut short or not four-dimensional; another number of frames than
            Info.cfg says; a frame with NaN or infinity, or with one grey value throughout.
    """
    path = patient.cine_path
    try:
        with unzip(path) as file:
            header = Header(file.read(Header.SIZE))
            shape = header.shape
            if len(shape) != 4:
                raise DataError(f"{path}: has shape {shape}, not (X, Y, Z, frames); download this patient again")
            if shape[3] != patient.num_frames:
                raise DataError(
                    f"{path}: has {shape[3]} frames, Info.cfg says {patient.num_frames}; download this patient again"
                )
            file.read(header.offset - Header.SIZE)
            size = math.prod(shape[:3]) * header.dtype.itemsize
            for frame in range(1, shape[3] + 1):
                with np.errstate(over="ignore", invalid="ignore"):
                    image = header.voxels(file.read(size), shape[:3]).astype(np.float32)
                if fault := _fault_of_grey(image):
                    raise DataError(f"{path}: frame {frame}: {fault}; download this patient again")
                yield image
            _check_end(file)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; download this patient again") from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


class Header:
    """What a NIfTI-1 header says: shape, type and place of the voxels, and their size in mm.

    nibabel reads the fields. Its own check of them is left out, as it makes 1 mm of a spacing of 0, and so is its
    reading of the voxels, which copies them twice. A header that claims more than any heart needs is refused, so that
    what is unzipped by it is bounded.
    """

    SIZE = 348

    def __init__(self, block: bytes):
        fields = nib.Nifti1Header(block, check=False)
        num_dimensions, *dimensions = fields["dim"].tolist()
        self.shape, self.offset = tuple(dimensions[: max(num_dimensions, 0)]), max(int(fields["vox_offset"]), 352)
        self.spacing = tuple(float(zoom) for zoom in fields["pixdim"][1:4])
        self.scale = fields.get_slope_inter()
        try:
            self.dtype = fields.get_data_dtype()
        except KeyError:
            raise ValueError(f"unknown type of voxel {fields['datatype']}") from None
        known_type = self.dtype.kind in "iuf" and self.dtype.itemsize <= 8
        if fields["sizeof_hdr"] != self.SIZE or not known_type or min(self.shape, default=0) < 1:
            raise ValueError(f"no header of a picture: shape {self.shape}, voxels of type {self.dtype}")
        if math.prod(self.shape[:3]) > MOST_VOXELS or self.offset > MOST_BETWEEN:
            raise ValueError(f"no header of a heart: shape {self.shape}, from byte {self.offset} on")

    def voxels(self, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The voxels in these bytes, in the file's type, or in float32 if the header scales them."""
        size = math.prod(shape) * self.dtype.itemsize
        if len(content) < size:
            raise EOFError("it ends before its last voxel")
        voxels = np.frombuffer(content, self.dtype, math.prod(shape)).reshape(shape, order="F")
        slope, intercept = self.scale
        if slope is None or (slope, intercept) == (1, 0):
            return voxels
        return voxels * np.float32(slope) + np.float32(intercept)


def check_file(path: Path) -> None:
    """Raise OSError if something else than a file lies there, such as a named pipe, which would wait for a writer."""
    if path.exists() and not path.is_file():
        raise OSError("it is not a file")


def unzip(path: Path) -> BinaryIO:
    """A .nii.gz to read from; OSError if it is no file."""
    check_file(path)
    return igzip.open(path)


def read_header(path: Path) -> Header:
    """The header of a .nii.gz that can be read."""
    with unzip(path) as file:
        return Header(file.read(Header.SIZE))


def _read_nifti(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Voxels (X, Y, Z) in the file's type, and the spacing in mm; DataError where they cannot be had."""
    try:
        with unzip(path) as file:
            header = Header(file.read(Header.SIZE))
            if len(header.shape) != 3:
                raise DataError(f"{path}: has shape {header.shape}, not (X, Y, Z); download this patient again")
            check_spacing(path, header.spacing, "download this patient again")
            file.read(header.offset - Header.SIZE)
            voxels = header.voxels(file.read(math.prod(header.shape) * header.dtype.itemsize), header.shape)
            _check_end(file)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; download this patient again") from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    return voxels, header.spacing


def check_spacing(path: Path, spacing: tuple[float, float, float], remedy: str) -> None:
    """Raise DataError where no voxel of a short-axis stack measures this (mm)."""
    if not all(low <= zoom <= high for zoom, (low, high) in zip(spacing, SPACING_MM, strict=True)):  # nor NaN
        raise DataError(
            f"{path}: has voxels of {_in_mm(spacing)}, which no scanner takes (0.3 to 5 mm in the plane, 1 to 20 mm "
            f"from slice to slice); {remedy}"
        )


def _check_end(file: BinaryIO) -> None:
    """Read to the end, which compares the checksum there, and raise EOFError where something is left."""
    if file.read(1):
        raise EOFError("it does not end with its last voxel")


def _fault_of_grey(image: np.ndarray) -> str | None:
    """What makes a picture of these grey values impossible; None where nothing does."""
    lowest, highest = float(image.min()), float(image.max())  # NaN and infinity survive both
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return "holds NaN or infinite grey values"
    return f"every voxel has the value {lowest:g}" if lowest == highest else None


def _in_mm(spacing: tuple[float, ...]) -> str:
    return " × ".join(f"{zoom:g}" for zoom in spacing) + " mm"


def _unreadable(path: Path, error: Exception) -> DataError:
    """The one sentence; a DataError stays what it is."""
    if isinstance(error, DataError):
        return error
    return DataError(f"{path}: cannot be read ({one_line(error)}); download this patient again")
