"""Other cohorts: what is written in ACDC's layout is what the table named."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from patients import save_nifti

from hcm_helpers.acdc import DataError, find_patients, read_cine, read_volume
from hcm_helpers.cohort import convert_cohort
from hcm_helpers.slices import prepare

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 900, (20, 24, 3, 6)).astype(np.int16)
MASK = np.zeros((20, 24, 3, 6), np.uint8)
MASK[4:14, 6:16] = 2
MASK[6:12, 8:14] = 1  # the left ventricle in M&Ms
MASK[0:3, 6:12, :, :] = 3  # the right one
EMPTY_IN_FRAME_3 = np.where(np.arange(6) == 2, 0, MASK).astype(np.uint8)
SPACING = (1.5, 1.4, 9.0)
FILES = {  # name: voxels and their size in mm
    "a.nii.gz": (IMAGE, SPACING),
    "a_gt.nii.gz": (MASK, SPACING),
    "flat.nii.gz": (IMAGE, (0, 0, 0)),
    "gap_gt.nii.gz": (EMPTY_IN_FRAME_3, SPACING),
    "half_gt.nii.gz": (MASK / np.float32(2), SPACING),
    "small_gt.nii.gz": (MASK, (1, 1, 1)),
}


def write_table(folder, lines, header="patient,group,image,mask,ED,ES,labels,split"):
    for name, (voxels, spacing) in FILES.items():
        save_nifti(folder / name, voxels, (*spacing, 0.03))
    (folder / "cohort.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "cohort.csv"


def test_frames_labels_and_spacing(tmp_path):
    table = write_table(
        tmp_path, ["A0S9,HCM,a.nii.gz,a_gt.nii.gz,2,5,3 2 1,training", "B1,NOR,a.nii.gz,a_gt.nii.gz,1,4,,testing"]
    )
    first, second = find_patients(convert_cohort(table, tmp_path / "root"))
    assert (first.name, first.group, first.official_split) == ("patient_A0S9", "HCM", "training")
    assert (second.name, second.group, second.official_split) == ("patient_B1", "NOR", "testing")
    for phase, frame in (("ED", 2), ("ES", 5)):
        volume = read_volume(first, phase)
        np.testing.assert_array_equal(volume.image, IMAGE[..., frame - 1])
        np.testing.assert_array_equal(volume.mask, np.array([0, 3, 2, 1])[MASK[..., frame - 1]])
        np.testing.assert_allclose(volume.spacing, SPACING)
    np.testing.assert_array_equal(read_volume(second, "ED").mask, MASK[..., 0])  # labels as in ACDC
    np.testing.assert_array_equal(np.stack(list(read_cine(first)), axis=3), IMAGE)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_what_stands_between_header_and_voxels_is_not_read(tmp_path, name):
    """An extension that says it has 2 GB, in a file that unzips to as much."""
    table = write_table(tmp_path, [f"A,HCM,{name},a_gt.nii.gz,1,2,3 2 1,"])
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    header = nib.Nifti1Header(content[:348])
    header["vox_offset"] = 1024
    extension = bytes([1, 0, 0, 0]) + (2**31 - 16).to_bytes(4, "little")
    content = header.binaryblock + extension.ljust(1024 - 348, b"\0") + content[352:]
    bomb = gzip.compress(content) + 128 * gzip.compress(bytes(2**24), 1)
    (tmp_path / name).write_bytes(bomb if name.endswith(".gz") else content)
    tracemalloc.start()
    convert_cohort(table, tmp_path / "root")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
    (patient,) = find_patients(tmp_path / "root")
    np.testing.assert_array_equal(read_volume(patient, "ES").image, IMAGE[..., 1])


def test_a_film_that_ends_too_early_and_is_not_zipped(tmp_path):
    table = write_table(tmp_path, ["A,HCM,a.nii,a_gt.nii.gz,1,2,3 2 1,"])
    (tmp_path / "a.nii").write_bytes(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:-1])
    with pytest.raises(DataError, match=r"a\.nii: cannot be read .*name another file in the table"):
        convert_cohort(table, tmp_path / "root")


@pytest.mark.parametrize("value", [0, np.nan])
def test_an_affine_that_maps_nowhere_is_no_hindrance(tmp_path, value):
    table = write_table(tmp_path, ["A,HCM,a.nii.gz,a_gt.nii.gz,1,2,3 2 1,"])
    content = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    content[280:292] = np.full(3, value, np.float32).tobytes()  # srow_x
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    (patient,) = find_patients(convert_cohort(table, tmp_path / "root"))
    np.testing.assert_array_equal(read_volume(patient, "ED").image, IMAGE[..., 0])


@pytest.mark.parametrize(
    ("cell", "shown"), [("1\x1b[2J", "'1 [2J'"), ("9" * 5000, "'9999"), ("a" * 300 + ".nii.gz", "'aaaa")]
)
def test_a_strange_cell_is_told_in_one_sentence(tmp_path, cell, shown):
    table = write_table(tmp_path, [f"A,HCM,{cell},{cell},{cell},2,,"])
    with pytest.raises(DataError, match="is no line of a name, a path or a number; correct it") as error:
        convert_cohort(table, tmp_path / "root")
    assert shown in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_it_can_be_prepared(tmp_path):
    table = write_table(tmp_path, ["A,HCM,a.nii.gz,a_gt.nii.gz,1,2,3 2 1,"])
    slices = prepare(convert_cohort(table, tmp_path / "root"), tmp_path / "slices", 32, frames="all")
    assert len(slices) == 3 * 6
    assert set(slices.manifest["group"]) == {"HCM"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("A,HMC,a.nii.gz,a_gt.nii.gz,1,2,,", "patient A: unknown group 'HMC'; it must be one of NOR"),
        ("A,HCM,b.nii.gz,a_gt.nii.gz,1,2,,", "b.nii.gz: there is no such file; correct the table"),
        ("A,HCM,a.nii.gz,cohort.csv,1,2,,", "cohort.csv: cannot be read"),
        ("A,HCM,.,a_gt.nii.gz,1,2,,", "cannot be read (it is not a file)"),
        ("A,HCM,a.nii.gz,a_gt.nii.gz,0,2,,", "patient A: ED is 0, of 6 frames counted from 1"),
        ("A,HCM,a.nii.gz,a_gt.nii.gz,1,7,,", "patient A: ES is 7, of 6 frames counted from 1"),
        ("A,HCM,a.nii.gz,a_gt.nii.gz,1,x,,", "patient A: ES is x"),
        ("A,HCM,a.nii.gz,a_gt.nii.gz,²,3,,", "patient A: ED is ²"),
        ("A,HCM,a.nii.gz,a_gt.nii.gz,2,2,,", "patient A: ED and ES are both frame 2"),
        ("A,HCM,a.nii.gz,,1,2,,", "patient A: names no mask"),
        ("A,HCM", "patient A: names no image"),
        ("A,HCM,a.nii.gz,small_gt.nii.gz,1,2,,", "patient A: the mask's voxels have another size than the image's"),
        ("A,HCM,flat.nii.gz,a_gt.nii.gz,1,2,,", "flat.nii.gz: has voxels of 0 × 0 × 0 mm"),
        ("A,HCM,a.nii.gz,half_gt.nii.gz,1,2,,", "half_gt.nii.gz: has values other than 0, 1, 2, 3"),
        ("A,HCM,a.nii.gz,gap_gt.nii.gz,1,3,,", "gap_gt.nii.gz: holds no left ventricle in frame 3"),
        ("A,HCM,a.nii.gz,a.nii.gz,1,2,,", "a.nii.gz: has values other than 0, 1, 2, 3"),
        ("A,HCM,a.nii.gz,a_gt.nii.gz,1,2,3 2,", "patient A: labels '3 2' are not the values 1, 2 and 3"),
        ("A,HCM,a.nii.gz,a_gt.nii.gz,1,2,,test", "patient A: unknown split 'test'"),
        ("../A,HCM,a.nii.gz,a_gt.nii.gz,1,2,,", "patient ../A: a name may hold letters"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path, line, sentence):
    table = write_table(tmp_path, [line])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError) as raised:
        convert_cohort(table, tmp_path / "root")
    assert sentence in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.filterwarnings("ignore:Length of header")
def test_empty_cells_at_the_end_of_a_line(tmp_path):
    """As spreadsheets write them; pandas would take the first column for the rows' names."""
    table = write_table(tmp_path, ["A,HCM,a.nii.gz,a_gt.nii.gz,1,2,3 2 1,training,"])
    (patient,) = find_patients(convert_cohort(table, tmp_path / "root"))
    assert patient.name == "patient_A"


@pytest.mark.parametrize("content", [b"", "patient,group\nMüller,HCM\n".encode("latin-1")])
def test_a_table_that_is_none(tmp_path, content):
    (tmp_path / "cohort.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"cohort.csv: cannot be read \(.*\); save it as CSV"):
        convert_cohort(tmp_path / "cohort.csv", tmp_path / "root")


def test_a_table_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.csv: there is no such file"):
        convert_cohort(tmp_path / "nowhere.csv", tmp_path / "root")
    with pytest.raises(DataError, match=r"cohort.csv: has no column mask, ES; it needs"):
        convert_cohort(write_table(tmp_path, ["A,HCM,a.nii.gz,1"], "patient,group,image,ED"), tmp_path / "root")
    with pytest.raises(DataError, match="holds no patients"):
        convert_cohort(write_table(tmp_path, []), tmp_path / "root")
    line = "A,HCM,a.nii.gz,a_gt.nii.gz,1,2,,"
    with pytest.raises(DataError, match="names a patient twice"):
        convert_cohort(write_table(tmp_path, [line, line]), tmp_path / "root")
    with pytest.raises(DataError, match="is not an empty folder"):
        convert_cohort(write_table(tmp_path, [line]), tmp_path)
