"""`hcm check`: one fault each, with its sentence; and what is no fault."""

import gzip
import re
import struct

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from patients import save_nifti, write_patient

from hcm_helpers import cli
from hcm_helpers.acdc import DataError
from hcm_helpers.check import check

AGAIN = "download this patient again"


@pytest.fixture
def root(tmp_path):
    """Two healthy patients; patient007 is to be harmed."""
    write_patient(tmp_path, 7)
    write_patient(tmp_path, 101, "RV", "testing")
    return tmp_path


@pytest.fixture
def folder(root):
    return root / "training" / "patient007"


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def line(table: str, name: str) -> str:
    """What stands in a line of the table."""
    (found,) = re.findall(rf"^ *{name}  +(.*)$", table, re.MULTILINE)
    return found


def write_cine(folder, frames=30, spacing=(4, 4, 10), **changed):
    """A cine of noise whose first and seventh frames are the patient's phases; `changed` gives others, as frame7=…"""
    phases = {f"frame{n}": voxels(folder / f"{folder.name}_frame{n:02d}.nii.gz") for n in (1, 7)} | changed
    cine = np.random.default_rng(0).integers(0, 200, (40, 36, 5, frames)).astype(phases["frame7"].dtype)
    for name, image in phases.items():
        cine[..., int(name[5:]) - 1] = image
    save_nifti(folder / f"{folder.name}_4d.nii.gz", cine, (*spacing, 1))


# --- what is there


def test_table(root, folder):
    write_cine(folder)
    write_patient(root, 2, "RV", spacing=(1.5, 1.25, 5), image=np.arange(40 * 36 * 5).reshape(40, 36, 5) / 2)
    table, problems = check(root)
    assert problems == []
    assert line(table, "patients").split() == ["training", "testing"]
    assert line(table, "HCM").split() == ["1", "0"]
    assert line(table, "RV").split() == ["1", "1"]
    assert line(table, "NOR").split() == ["0", "0"]
    assert line(table, "all").split() == ["2", "1"]
    assert line(table, "volumes") == "6, and 1 cines"
    assert line(table, "slices") == "5 a volume, 30 in all"
    assert line(table, "in the plane") == "1.25–4 mm"
    assert line(table, "slice to slice") == "5–10 mm"
    assert line(table, "matrix") == "40 × 36"
    assert line(table, "image types") == "int16 4, float64 2"
    assert line(table, "mask types") == "uint8 6"
    assert line(table, "same voxels") == "none"


def test_patients_with_the_same_voxels_are_told_and_are_no_fault(root, folder):
    double = write_patient(root, 118, "MINF", "testing")
    image = (folder / "patient007_frame07.nii.gz").read_bytes()
    (double / "patient118_frame01.nii.gz").write_bytes(image)  # another phase, another frame: still the same heart
    table, problems = check(root)
    assert line(table, "same voxels") == "testing/patient118 = training/patient007"
    assert problems == []


def test_a_test_set_without_masks_is_no_fault(root, folder):
    for path in folder.glob("*_gt.nii.gz"):
        path.unlink()
    table, problems = check(root)
    assert line(table, "mask types") == "none 2, uint8 2"
    assert problems == []


# --- what is wrong


@pytest.mark.parametrize(("name", "words"), [("nowhere", "no such folder"), ("empty", "holds no patientNNN folders")])
def test_no_patients_at_all(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path / name}: .*{words}"):
        check(tmp_path / name)


@pytest.mark.parametrize("whole", [True, False])
def test_a_patient_without_info(root, folder, whole):
    for path in folder.iterdir() if whole else [folder / "Info.cfg"]:
        path.unlink()
    table, problems = check(root)
    assert problems == [f"{folder / 'Info.cfg'}: there is no such file; {AGAIN}"]
    assert line(table, "unknown").split() == ["1", "0"]
    assert line(table, "volumes") == "2, and 0 cines"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("Group: HCM", "Group: ARV", "unknown group 'ARV'; it must be one of NOR, MINF, DCM, HCM, RV"),
        ("Weight: 80\n", "", f"has no line 'Weight: …'; {AGAIN}"),
        ("Height: 178.0", "Height: tall", "Height is 'tall', which is no number; correct it"),
        ("ED: 1", "ED: 0", "ED is 0, of 30 frames; correct it"),
        ("ES: 7", "ES: 31", "ES is 31, of 30 frames; correct it"),
        ("ES: 7", "ES: 1", "ED and ES are both frame 1; correct it"),
        ("Weight: 80", "Group: NOR", "Group is both 'HCM' and 'NOR'; correct it"),
    ],
)
def test_wrong_info(root, folder, old, new, sentence):
    path = folder / "Info.cfg"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert check(root)[1] == [f"{path}: {sentence}"]


def test_missing_frame(root, folder):
    path = folder / "patient007_frame07.nii.gz"
    path.unlink()
    assert check(root)[1] == [f"{path}: there is no such file; {AGAIN}"]


@pytest.mark.parametrize("name", ["frame01", "frame07_gt", "4d"])
def test_truncated_file(root, folder, name):
    write_cine(folder)
    path = folder / f"patient007_{name}.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    (problem,) = check(root)[1]
    assert re.fullmatch(rf"{re.escape(str(path))}: cannot be read \(.*\); {AGAIN}", problem)


def image_with(value, dtype=np.float32):
    image = np.random.default_rng(0).normal(60, 5, (40, 36, 5)).astype(dtype)
    image[3, 4, 2] = value
    return image


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("frame01", image_with(np.nan), "holds NaN or infinite grey values"),
        ("frame01", image_with(np.inf), "holds NaN or infinite grey values"),
        ("frame07", np.full((40, 36, 5), 12, np.int16), "every voxel has the value 12"),
        (
            "frame07_gt",
            np.zeros((40, 35, 5), np.uint8),
            "the mask has shape (40, 35, 5), its image (40, 36, 5)",
        ),
        ("frame07_gt", np.full((40, 36, 5), 4, np.uint8), "the mask has values other than 0, 1, 2, 3"),
        ("frame07_gt", np.full((40, 36, 5), np.nan, np.float32), "the mask has values other than 0, 1, 2, 3"),
        ("frame07_gt", np.ones((40, 36, 5), np.uint8), "the mask holds no left ventricle (2 or 3)"),
        ("frame07_gt", np.zeros((40, 36, 5), np.uint8), "the mask holds no left ventricle (2 or 3)"),
        ("frame01", image_with(1e300, np.float64), "holds NaN or infinite grey values"),  # in float32
    ],
)
@pytest.mark.filterwarnings("error")
def test_wrong_voxels(root, folder, name, content, sentence):
    path = folder / f"patient007_{name}.nii.gz"
    save_nifti(path, content, (4, 4, 10))
    assert check(root)[1] == [f"{path}: {sentence}; {AGAIN}"]


@pytest.mark.parametrize("frame", ["frame01", "frame07"])
def test_one_mask_is_missing(root, folder, frame):
    path = folder / f"patient007_{frame}_gt.nii.gz"
    path.unlink()
    (other,) = folder.glob("*_gt.nii.gz")
    assert check(root)[1] == [f"{path}: there is no such file, but {other.name} is there; {AGAIN}"]


@pytest.mark.parametrize(
    ("spacing", "words"),
    [
        ((0, 4, 10), "0 × 4 × 10"),
        ((4, 4, 0), "4 × 4 × 0"),
        ((4, 0.29, 10), "4 × 0.29 × 10"),
        ((5.1, 4, 10), "5.1 × 4 × 10"),
        ((4, 4, 0.9), "4 × 4 × 0.9"),
        ((4, 4, 21), "4 × 4 × 21"),
    ],
)
def test_impossible_spacing(root, folder, spacing, words):
    path = folder / "patient007_frame01.nii.gz"
    save_nifti(path, voxels(path), spacing)
    limits = "which no scanner takes (0.3 to 5 mm in the plane, 1 to 20 mm from slice to slice)"
    assert check(root)[1] == [f"{path}: has voxels of {words} mm, {limits}; {AGAIN}"]


def test_mask_with_voxels_of_another_size(root, folder):
    path = folder / "patient007_frame07_gt.nii.gz"
    save_nifti(path, voxels(path), (1, 1, 1))
    assert check(root)[1] == [f"{path}: has voxels of 1 × 1 × 1 mm, its image of 4 × 4 × 10 mm; {AGAIN}"]


@pytest.mark.parametrize(("shape", "spacing"), [((39, 36, 5), (4, 4, 10)), ((40, 36, 5), (4, 3.9, 10))])
def test_phases_that_are_no_frames_of_one_film(root, folder, shape, spacing):
    for name in ("frame07", "frame07_gt"):
        path = folder / f"patient007_{name}.nii.gz"
        save_nifti(path, voxels(path)[: shape[0]], spacing)
    path = folder / "patient007_frame07.nii.gz"
    sentence = "differs from patient007_frame01.nii.gz in its shape or its voxels' size"
    assert check(root)[1] == [f"{path}: {sentence}; {AGAIN}"]


def test_a_patient_in_two_folders(root, folder):
    second = write_patient(root, 7, split="testing")
    (problem,) = check(root)[1]
    assert problem == f"{second}: {folder} has the same name; keep one of the two"


def test_cine_with_another_number_of_frames(root, folder):
    write_cine(folder, frames=29)
    path = folder / "patient007_4d.nii.gz"
    assert check(root)[1] == [f"{path}: has 29 frames, Info.cfg says 30; {AGAIN}"]


def test_cine_of_another_heart(root, folder):
    path = folder / "patient007_4d.nii.gz"
    image = voxels(folder / "patient007_frame07.nii.gz").copy()
    image[3, 4, 2] += 1
    write_cine(folder, frame7=image)
    assert check(root)[1] == [f"{path}: frame 7 differs from patient007_frame07.nii.gz; {AGAIN}"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((40, 36, 5), np.nan, np.float32), "holds NaN or infinite grey values"),
        (np.full((40, 36, 5), 3, np.float32), "every voxel has the value 3"),
    ],
)
def test_cine_with_a_bad_frame(root, folder, image, words):
    path = folder / "patient007_frame07.nii.gz"
    save_nifti(path, voxels(path).astype(np.float32), (4, 4, 10))
    write_cine(folder, frame12=image)
    assert check(root)[1] == [f"{folder / 'patient007_4d.nii.gz'}: frame 12: {words}; {AGAIN}"]


def test_cine_with_voxels_of_another_size(root, folder):
    write_cine(folder, spacing=(1, 1, 1))
    path = folder / "patient007_4d.nii.gz"
    assert check(root)[1] == [f"{path}: its voxels have another size than those of ED, ES; {AGAIN}"]


@pytest.mark.parametrize("name", ["frame01", "4d"])
def test_more_than_the_voxels(root, folder, name):
    write_cine(folder)
    path = folder / f"patient007_{name}.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"more"))
    assert check(root)[1] == [f"{path}: cannot be read (it does not end with its last voxel); {AGAIN}"]


@pytest.mark.parametrize(
    ("place", "content", "words"),
    [
        (108, struct.pack("<f", np.inf), "cannot be read (cannot convert float infinity to integer)"),  # vox_offset
        (42, struct.pack("<hhh", 32767, 32767, 32767), "cannot be read"),  # dim: 70 TB
        (344, b"none", None),  # magic: the voxels are as they were
    ],
)
def test_odd_headers(root, folder, place, content, words):
    path = folder / "patient007_frame01.nii.gz"
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[place : place + len(content)] = content
    path.write_bytes(gzip.compress(header))
    problems = check(root)[1]
    assert len(problems) == (words is not None)
    assert all(problem.startswith(f"{path}: {words}") for problem in problems)


def test_cine_that_is_none(root, folder):
    path = folder / "patient007_4d.nii.gz"
    save_nifti(path, voxels(folder / "patient007_frame07.nii.gz"), (4, 4, 10))
    assert check(root)[1] == [f"{path}: has shape (40, 36, 5), not (X, Y, Z, frames); {AGAIN}"]


def test_all_faults_are_told_and_the_rest_is_read(root, folder):
    (folder / "patient007_frame01.nii.gz").unlink()
    (folder / "patient007_frame07_gt.nii.gz").write_bytes(b"")
    (root / "testing" / "patient101" / "Info.cfg").unlink()
    write_patient(root, 150, "DCM", "testing")
    table, problems = check(root)
    assert len(problems) == 3
    assert line(table, "volumes") == "2, and 0 cines"
    assert line(table, "DCM").split() == ["0", "1"]


# --- the command


def hcm(*arguments):
    return CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


def test_command_says_no_problems(root):
    result = hcm("check", root)
    assert result.exit_code == 0
    assert result.output == f"{check(root)[0]}\n\nno problems\n"


def test_command_prints_a_line_a_problem_and_exits_with_1(root, folder):
    (folder / "patient007_frame01.nii.gz").unlink()
    (folder / "patient007_frame07.nii.gz").unlink()
    result = hcm("check", root)
    assert result.exit_code == 1
    assert result.output.splitlines()[-3:] == ["", *check(root)[1]]


def test_command_refuses_a_folder_that_is_not_there(tmp_path):
    result = hcm("check", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1


# --- the real patients


def test_real_patients(acdc_root):
    table, problems = check(acdc_root)
    assert problems == []
    for group in ("NOR", "MINF", "DCM", "HCM", "RV"):
        assert line(table, group).split()[0] == "20"
    assert "training/patient074 = training/patient076" in line(table, "same voxels")
    assert line(table, "in the plane") == "0.7031–1.92 mm"
