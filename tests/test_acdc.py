"""The ACDC layout on disk: what is read from it, and what is refused."""

import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from patients import save_nifti, write_patient

from hcm_helpers.acdc import (
    GROUPS,
    PHASES,
    DataError,
    Header,
    find_patients,
    holds_acdc,
    read_cine,
    read_info,
    read_volume,
)


@pytest.fixture
def folder(tmp_path):
    """One healthy patient, to be harmed."""
    return write_patient(tmp_path, 7)


def read_both(root):
    return [read_volume(patient, phase) for patient in find_patients(root) for phase in PHASES]


def assert_one_sentence(error: pytest.ExceptionInfo, *words) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert str(word) in message


# --- what is read


def test_info_with_and_without_decimals(tmp_path):
    path = tmp_path / "Info.cfg"
    path.write_text("ED: 4\nES: 11.0\nGroup: RV\nHeight: 150.5\nNbFrame: 12\nWeight: 66\n")
    expected = {"ED": 4, "ES": 11, "Group": "RV", "Height": 150.5, "NbFrame": 12, "Weight": 66.0}
    assert read_info(path) == expected


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])  # the latter is what Windows' editors begin a file with
def test_info_that_went_through_an_editor(folder, mark):
    path = folder / "Info.cfg"
    before = read_info(path)
    path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_info(path) == before


def test_a_zip_in_two_pieces(folder, tmp_path):
    path = folder / "patient007_frame01.nii.gz"
    (patient,) = find_patients(tmp_path)
    before = read_volume(patient, "ED")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    assert read_volume(patient, "ED").digest == before.digest


def test_patients_of_both_folders_in_order_of_name(tmp_path):
    write_patient(tmp_path, 101, "RV", "testing")
    write_patient(tmp_path, 2, "DCM")
    write_patient(tmp_path, 1, "NOR", ES=12)
    first, second, third = find_patients(tmp_path)
    assert [first.name, second.name, third.name] == ["patient001", "patient002", "patient101"]
    assert [first.group, second.group, third.group] == ["NOR", "DCM", "RV"]
    assert [first.official_split, second.official_split, third.official_split] == [
        "training",
        "training",
        "testing",
    ]
    assert (first.end_diastole, first.end_systole, first.num_frames) == (1, 12, 30)
    assert (first.height_cm, first.weight_kg) == (178.0, 80.0)
    assert first.image_path("ES").name == "patient001_frame12.nii.gz"
    assert first.mask_path("ES").is_file()


@pytest.mark.parametrize("below", [".", "database", "ACDC/database"])
def test_root_may_be_the_unpacked_archive(tmp_path, below):
    write_patient(tmp_path / below, 1)
    assert len(find_patients(tmp_path)) == 1
    assert holds_acdc(tmp_path)


def test_root_may_be_a_folder_of_patients(tmp_path):
    write_patient(tmp_path, 1, split="anything")
    assert [p.official_split for p in find_patients(tmp_path / "anything")] == ["training"]


def test_an_empty_or_missing_folder_holds_no_acdc(tmp_path):
    assert not holds_acdc(tmp_path)
    assert not holds_acdc(tmp_path / "nowhere")


def test_spacing_is_that_of_the_zooms(tmp_path):
    write_patient(tmp_path, 1, spacing=(1.5, 1.25, 6.5))  # the affine says 1 mm
    volume = read_both(tmp_path)[0]
    assert volume.spacing == (1.5, 1.25, 6.5)
    assert volume.image.shape == volume.mask.shape == (40, 36, 5)
    assert (volume.image.dtype, volume.mask.dtype) == (np.float32, np.uint8)


def test_voxels_come_back_as_they_were_written(tmp_path):
    image = np.arange(40 * 36 * 5, dtype=np.int16).reshape(40, 36, 5)
    write_patient(tmp_path, 1, image=image)
    np.testing.assert_array_equal(read_both(tmp_path)[0].image, image)


def test_a_patient_without_masks_is_read(folder, tmp_path):
    for path in folder.glob("*_gt.nii.gz"):
        path.unlink()
    assert [volume.mask for volume in read_both(tmp_path)] == [None, None]


# --- what is refused, with the file's name


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_missing_or_empty_folder(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        find_patients(tmp_path / name)
    assert_one_sentence(error, tmp_path / name, "data/README.md")


def test_no_info(folder, tmp_path):
    (folder / "Info.cfg").unlink()
    with pytest.raises(DataError) as error:
        find_patients(tmp_path)
    assert_one_sentence(error, folder / "Info.cfg", "no such file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Group": "ARV"}, ["unknown group 'ARV'", *GROUPS]),
        ({"Height": "tall"}, ["Height", "'tall'"]),
        ({"ES": 31}, ["ES is 31", "of 30 frames"]),
        ({"ED": 0}, ["ED is 0"]),
        ({"ED": "nan"}, ["ED is nan"]),
        ({"ES": "7.5"}, ["ES is 7.5"]),
        ({"NbFrame": "1e300"}, ["NbFrame is 1e+300"]),
        ({"Height": "nan"}, ["Height is nan"]),
        ({"Weight": "-80"}, ["Weight is -80"]),
        ({"Group": "\x1b[2J" + 5000 * "HCM "}, ["unknown group '[2JHCM HCM"]),
    ],
)
def test_wrong_line_of_info(folder, tmp_path, change, words):
    lines = (folder / "Info.cfg").read_text().splitlines()
    (key, value), *_ = change.items()
    lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in lines]
    (folder / "Info.cfg").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        find_patients(tmp_path)
    assert_one_sentence(error, folder / "Info.cfg", *words)


def test_an_info_that_is_no_info(folder, tmp_path):
    with (folder / "Info.cfg").open("a") as file:
        file.truncate(10**9)  # a hole, which takes no place on the disk
    with pytest.raises(DataError) as error:
        find_patients(tmp_path)
    assert_one_sentence(error, folder / "Info.cfg", "larger than 65536 bytes")


@pytest.mark.parametrize("key", ["ED", "ES", "Group", "Height", "NbFrame", "Weight"])
def test_missing_line_of_info(folder, tmp_path, key):
    lines = (folder / "Info.cfg").read_text().splitlines()
    (folder / "Info.cfg").write_text("\n".join(line for line in lines if not line.startswith(f"{key}:")))
    with pytest.raises(DataError) as error:
        find_patients(tmp_path)
    assert_one_sentence(error, folder / "Info.cfg", f"'{key}: …'")


def test_the_same_name_twice(tmp_path):
    write_patient(tmp_path, 1)
    write_patient(tmp_path, 1, split="testing")
    with pytest.raises(DataError) as error:
        find_patients(tmp_path)
    assert_one_sentence(error, "training/patient001", "testing/patient001")


@pytest.mark.parametrize("name", ["patient007_frame01.nii.gz", "patient007_frame07_gt.nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file(folder, tmp_path, name, share):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, folder / name, "cannot be read")


def test_a_zip_with_too_few_voxels(folder, tmp_path):
    path = folder / "patient007_frame01.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, path, "cannot be read")


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", b"\x1f\x8b" + bytes(50)])
def test_no_nifti_at_all(folder, tmp_path, content):
    path = folder / "patient007_frame01.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, path, "cannot be read")


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"vox_offset": 1e9},
        {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        {"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1], "datatype": 64},
        {"dim": [7] + 7 * [32767]},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["frame01", "frame07_gt", "4d"])
def test_a_bomb_is_not_unzipped(folder, tmp_path, name, claims):
    path = folder / f"patient007_{name}.nii.gz"
    content = gzip.decompress((folder / "patient007_frame01.nii.gz").read_bytes())
    header = nib.Nifti1Header(content[:348])
    header["dim"] = [4, 40, 36, 5, 30, 1, 1, 1] if name == "4d" else header["dim"]
    for field, value in claims.items():
        header[field] = value
    content = header.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content, 1) + 128 * gzip.compress(bytes(2**24), 1))  # 2 GB in 9 MB
    (patient,) = find_patients(tmp_path)
    tracemalloc.start()
    with pytest.raises(DataError) as error:
        [read_volume(patient, phase) for phase in PHASES] if name != "4d" else list(read_cine(patient))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22
    assert_one_sentence(error, path, "download this patient again")


def test_a_header_claims_a_heart():
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 64))
    header["vox_offset"] = 2**20
    assert Header(header.binaryblock).shape == (512, 512, 64)
    header.set_data_shape((512, 512, 65))
    with pytest.raises(ValueError, match="no header of a heart"):
        Header(header.binaryblock)


@pytest.mark.parametrize(("place", "bits"), [(0.5, 0b100), (0.0, 0b110)])  # a wrong voxel, a wrong block
def test_flipped_bits(folder, tmp_path, place, bits):
    path = folder / "patient007_frame01.nii.gz"
    content = bytearray(path.read_bytes())
    content[10 + int(place * len(content))] ^= bits  # the gzip header has 10 bytes
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, path, "cannot be read")


def test_missing_image(folder, tmp_path):
    path = folder / "patient007_frame07.nii.gz"
    path.unlink()
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, path, "no such file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_an_image_is_not_waited_for(folder, tmp_path):
    path = folder / "patient007_frame07.nii.gz"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, path, "not a file")


def harm_image(value):
    image = np.random.default_rng(0).normal(60, 5, (40, 36, 5)).astype(np.float32)
    image[3, 4, 2] = value
    return image


@pytest.mark.parametrize(
    ("name", "voxels", "words"),
    [
        ("frame01", harm_image(np.nan), ["NaN"]),
        ("frame01", harm_image(np.inf), ["NaN or infinite"]),
        ("frame07", harm_image(-np.inf), ["NaN or infinite"]),
        ("frame07", np.full((40, 36, 5), 12, np.int16), ["every voxel has the value 12"]),
        ("frame01", np.zeros((40, 36, 5, 2), np.int16), ["(40, 36, 5, 2)"]),
        ("frame01_gt", np.zeros((40, 35, 5), np.uint8), ["(40, 35, 5)", "(40, 36, 5)"]),
        ("frame01_gt", np.full((40, 36, 5), 4, np.uint8), ["0, 1, 2, 3"]),
        ("frame01_gt", np.full((40, 36, 5), -1, np.int16), ["0, 1, 2, 3"]),
        ("frame01_gt", np.full((40, 36, 5), 1.5, np.float32), ["0, 1, 2, 3"]),
    ],
)
def test_wrong_voxels(folder, tmp_path, name, voxels, words):
    path = folder / f"patient007_{name}.nii.gz"
    save_nifti(path, voxels, (4, 4, 10, 1)[: voxels.ndim])
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, path, *words)


@pytest.mark.parametrize("spacing", [(4, np.nan, 10), (4, np.inf, 10), (4, 4, 0), (0.2, 4, 10), (4, 4, 30)])
def test_impossible_spacing(folder, tmp_path, spacing):
    path = folder / "patient007_frame01.nii.gz"
    save_nifti(path, harm_image(1), spacing)
    with pytest.raises(DataError) as error:
        read_both(tmp_path)
    assert_one_sentence(error, path, "mm")


# --- the real patients, against what notes/acdc.md and data/README.md say of them


def test_real_patients(acdc_root):
    patients = [patient for patient in find_patients(acdc_root) if patient.official_split == "training"]
    assert len(patients) == 100
    assert {group: sum(p.group == group for p in patients) for group in GROUPS} == dict.fromkeys(GROUPS, 20)
    assert [p.name for p in patients if p.end_diastole != 1] == ["patient090"]
    volume = read_volume(patients[89], "ES")
    assert 0.70 <= volume.spacing[0] == volume.spacing[1] <= 1.95
    assert set(np.unique(volume.mask)) == {0, 1, 2, 3}
