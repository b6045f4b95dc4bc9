"""Other cohorts of short-axis cine MR, such as M&Ms: a table of files becomes a folder in ACDC's layout."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import Opener

from hcm_helpers.acdc import (
    GROUPS,
    MYOCARDIUM,
    UNREADABLE,
    DataError,
    Header,
    check_file,
    check_spacing,
    one_line,
)

COLUMNS = ("patient", "group", "image", "mask", "ED", "ES")


def convert_cohort(table: str | Path, root: str | Path) -> Path:
    """Write the patients of a table in ACDC's layout: root/training/patient_NAME and so on; all or none.

    Args:
        table: a CSV file, one row a patient: `patient`, a name; `group`, one of GROUPS; `image` and `mask`, NIfTI
            files (X, Y, Z, frames), relative to the table's folder; `ED` and `ES`, frames counted from 1. It may
            have `split` (training or testing) and `labels`, the mask's values of the right ventricle, the
            myocardium and the left ventricle: "1 2 3" without it, "3 2 1" in M&Ms.
        root: the folder to make; it may exist if it is empty.

    Returns:
        root.

    Raises:
        DataError: a column or a file is missing or cannot be read, or a value in the table is wrong.
    """
    table, root = Path(table), Path(root)
    if not table.is_file():
        raise DataError(f"{table}: there is no such file; name the table of the cohort")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: is not an empty folder; name another for the cohort")
    try:
        rows = pd.read_csv(table, dtype=str, skipinitialspace=True, index_col=False, keep_default_na=False).fillna("")
    except ValueError as error:  # of pandas, or where it is not UTF-8
        raise DataError(f"{table}: cannot be read ({one_line(error)}); save it as CSV in UTF-8") from error
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        raise DataError(
            f"{table}: has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}, and commas between them"
        )
    for value in rows[rows.columns.intersection([*COLUMNS, "split", "labels"])].to_numpy().ravel():
        if not value.isprintable() or len(value) > 255:
            raise DataError(f"{table}: '{one_line(value, 40)}' is no line of a name, a path or a number; correct it")
    if rows.empty or rows["patient"].duplicated().any():
        problem = "holds no patients" if rows.empty else "names a patient twice"
        raise DataError(f"{table}: {problem}; give every patient one row")
    unfinished = root.absolute().with_name(f".{root.absolute().name}.{os.getpid()}")
    try:
        for row in rows.to_dict("records"):
            _convert_patient(row, table, unfinished)
        if root.exists():
            root.rmdir()
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _convert_patient(row: dict[str, str], table: Path, root: Path) -> None:
    name, where = row["patient"], f"{table}: patient {row['patient']}"
    if not name.replace("_", "").replace("-", "").isalnum():
        raise DataError(f"{where}: a name may hold letters, digits, - and _ only; correct it")
    if row["group"] not in GROUPS:
        raise DataError(f"{where}: unknown group '{row['group']}'; it must be one of {', '.join(GROUPS)}")
    split = row.get("split") or "training"
    if split not in ("training", "testing"):
        raise DataError(f"{where}: unknown split '{split}'; it must be training or testing")
    labels = (row.get("labels") or "1 2 3").split()
    if sorted(labels) != ["1", "2", "3"]:
        raise DataError(f"{where}: labels '{row['labels']}' are not the values 1, 2 and 3 in some order; correct them")
    to_acdc = np.zeros(256, np.uint8)  # value in the cohort's mask → in ACDC's
    to_acdc[[int(label) for label in labels]] = (1, 2, 3)

    for column in ("image", "mask"):
        if not row[column]:
            raise DataError(f"{where}: names no {column}; leave the patient out or name its file")
    image, mask = (_open(table.parent / row[column]) for column in ("image", "mask"))
    shape = image.voxels.shape
    if mask.voxels.shape != shape:
        raise DataError(f"{where}: the mask has shape {mask.voxels.shape}, its image {shape}; correct the table")
    if not np.allclose(image.spacing, mask.spacing, rtol=0.01):
        raise DataError(f"{where}: the mask's voxels have another size than the image's; correct the table")
    frames = {}
    for phase in ("ED", "ES"):
        if not row[phase].isdecimal() or not 1 <= int(row[phase]) <= shape[3]:
            raise DataError(f"{where}: {phase} is {row[phase]}, of {shape[3]} frames counted from 1; correct it")
        frames[phase] = int(row[phase])
    if frames["ED"] == frames["ES"]:
        raise DataError(f"{where}: ED and ES are both frame {frames['ED']}; correct it")

    folder = root / split / f"patient_{name}"
    folder.mkdir(parents=True)
    facts = frames | {"Group": row["group"], "Height": 0, "NbFrame": shape[3], "Weight": 0}  # 0: not known
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in facts.items()))
    for frame in frames.values():
        path = folder / f"{folder.name}_frame{frame:02d}"
        _save(image, _frame(image, frame), Path(f"{path}.nii.gz"))
        values, source = _frame(mask, frame), table.parent / row["mask"]
        if not np.isin(values, (0, 1, 2, 3)).all():
            raise DataError(f"{source}: has values other than 0, 1, 2, 3; name another mask")
        values = to_acdc[values.astype(np.uint8)]
        if values.max() < MYOCARDIUM:
            raise DataError(f"{source}: holds no left ventricle in frame {frame}; ED and ES must be counted from 1")
        _save(mask, values, Path(f"{path}_gt.nii.gz"))
    cine = folder / f"{folder.name}_4d.nii.gz"
    if row["image"].endswith(".nii.gz"):
        shutil.copyfile(table.parent / row["image"], cine)
    else:
        _save(image, np.stack([_frame(image, frame) for frame in range(1, shape[3] + 1)], axis=3), cine)


class Film(NamedTuple):
    """A file with frames, whose voxels (X, Y, Z, frames) are read one frame at a time."""

    path: Path
    voxels: ArrayProxy
    spacing: tuple[float, float, float]  # mm
    affine: np.ndarray


def _open(path: Path) -> Film:
    """The film in a file, by its header.

    `nibabel.load` would read what stands between header and voxels too, as much of it as that says of itself.
    """
    try:
        check_file(path)
        with Opener(path) as file:
            block = file.read(Header.SIZE)
        header = Header(block)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; correct the table") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); name another file in the table") from error
    if len(header.shape) != 4:
        raise DataError(f"{path}: has shape {header.shape}, not (X, Y, Z, frames); name another file in the table")
    check_spacing(path, header.spacing, "name another file in the table")
    slope, intercept = header.scale
    voxels = ArrayProxy(path, (header.shape, header.dtype, header.offset, slope or 1, intercept or 0))
    return Film(path, voxels, header.spacing, nib.Nifti1Header(block, check=False).get_best_affine())


def _frame(film: Film, frame: int) -> np.ndarray:
    """Volume (X, Y, Z) of a frame counted from 1."""
    try:
        return np.asarray(film.voxels[..., frame - 1])
    except UNREADABLE as error:
        raise DataError(f"{film.path}: cannot be read ({one_line(error)}); name another file in the table") from error


def _save(source: Film, voxels: np.ndarray, path: Path) -> None:
    """A volume, or a film, with the voxel's size of the file it comes from."""
    volume = nib.Nifti1Image(voxels, None)
    # As it is: nibabel's other form would take it apart, which not every affine bears.
    volume.header.set_sform(source.affine)
    volume.header.set_zooms((*source.spacing, 1)[: voxels.ndim])
    nib.save(volume, path)
