"""From patients to slices: every answer here was known before the code ran."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from forged import OBJECTS, PICKLE, npy
from patients import save_nifti, write_patient

import hcm_helpers.slices
from hcm_helpers.acdc import GROUPS, DataError, find_patients
from hcm_helpers.slices import (
    FILES,
    SPLITS,
    load_slices,
    prepare,
)

# --- from base to apex


@pytest.mark.parametrize("flipped", [False, True])
def test_position_runs_from_base_to_apex(tmp_path, flipped):
    folder = write_patient(tmp_path / "root", 1)
    if flipped:
        for path in folder.glob("*.nii.gz"):
            save_nifti(path, np.asarray(nib.load(path).dataobj)[:, :, ::-1], (4, 4, 10))
    manifest = prepare(tmp_path / "root", tmp_path / "slices", 32).manifest
    systole = manifest[manifest["phase"] == "ES"]
    assert systole["slice"].tolist() == ([1, 2, 3, 4] if flipped else [0, 1, 2, 3])
    expected = [1, 0.6667, 0.3333, 0] if flipped else [0, 0.3333, 0.6667, 1]
    assert systole["position"].tolist() == expected
    assert json.loads((tmp_path / "slices/slices.json").read_text())["left_out"] == 2  # one a phase


# --- grey values


def centred_mask():
    mask = np.zeros((64, 64, 3), dtype=np.uint8)
    mask[20:44, 24:40] = 3  # its box is centred on the image
    return mask


def test_percentiles_1_and_99_become_minus_1_and_1(tmp_path):
    """64 voxels of 2.5 mm are the pixels themselves, and the values 0 … n−1 have known percentiles."""
    n = 64 * 64 * 3
    image = np.random.default_rng(0).permutation(n).reshape(64, 64, 3).astype(np.int16)
    write_patient(tmp_path / "root", 1, image=image, mask=centred_mask(), spacing=(2.5, 2.5, 8))
    slices = prepare(tmp_path / "root", tmp_path / "slices", 64, 160.0)
    low, high = 0.01 * (n - 1), 0.99 * (n - 1)
    expected = np.clip(2 * (image.transpose(2, 1, 0) - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(slices.images[:3, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(slices.masks[:3].numpy(), centred_mask().transpose(2, 1, 0))
    assert (slices.pixel_mm, slices.image_size, len(slices)) == (2.5, 64, 6)
    assert slices.manifest["thickness_mm"].unique().tolist() == [8.0]


def test_padding_is_minus_1_and_does_not_count(tmp_path):
    """A heart in the corner: three quarters of the slice are padding, the rest fills the whole range."""
    mask = np.zeros((80, 80, 3), dtype=np.uint8)
    mask[:4, :4] = 3
    image = np.random.default_rng(0).uniform(1000, 1010, mask.shape).astype(np.float32)
    write_patient(tmp_path / "root", 1, image=image, mask=mask, spacing=(2.5, 2.5, 8))
    slices = prepare(tmp_path / "root", tmp_path / "slices", 64, 160.0)
    first = slices.images[:, 0]
    assert (first[:, :30] == -1).all()
    assert (first[:, :, :30] == -1).all()
    inside = first[:, 32:, 32:]
    assert inside.mean().abs() < 0.05
    assert inside.std() == pytest.approx(2 / np.sqrt(12), abs=0.03)  # that of uniform numbers in [−1, 1]


def test_the_scanner_s_scale_does_not_matter(tmp_path):
    image = np.random.default_rng(0).uniform(0, 200, (40, 36, 5)).astype(np.float32)
    write_patient(tmp_path / "a", 1, image=image)
    write_patient(tmp_path / "b", 1, image=17 * image + 300)
    a, b = (prepare(tmp_path / name, tmp_path / "slices" / name, 32).images for name in "ab")
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# --- prepare and load


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Four patients of each group."""
    root = tmp_path_factory.mktemp("acdc")
    for number in range(20):
        write_patient(root, number + 1, GROUPS[number % 5])
    return root


@pytest.fixture(scope="session")
def prepared(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "slices"
    prepare(root, folder, image_size=32)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_and_types(prepared):
    slices = load_slices(prepared)
    assert sorted(path.name for path in prepared.iterdir()) == sorted(FILES)
    assert [path.name for path in prepared.parent.iterdir()] == ["slices"]
    assert (slices.images.shape, slices.images.dtype) == ((160, 1, 32, 32), torch.float32)
    assert (slices.masks.shape, slices.masks.dtype) == ((160, 32, 32), torch.uint8)
    assert (slices.labels.shape, slices.labels.dtype) == ((160,), torch.int64)
    assert slices.images.min() == -1
    assert slices.images.max() == 1
    assert list(slices.manifest.columns) == [
        "patient",
        "group",
        "phase",
        "frame",
        "slice",
        "position",
        "labelled",
        "pixel_mm",
        "thickness_mm",
        "split",
    ]
    assert [GROUPS[label] for label in slices.labels] == slices.manifest["group"].tolist()
    assert slices.pixel_mm == 5.0
    assert len(slices.fingerprint) == 64


def test_no_patient_is_in_two_splits(prepared):
    manifest = load_slices(prepared).manifest
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()


@pytest.mark.parametrize("workers", [1, 3])
def test_same_seed_same_bytes(prepared, root, tmp_path, workers):
    prepare(find_patients(root)[::-1], tmp_path / "again", image_size=32, workers=workers)
    assert contents(tmp_path / "again") == contents(prepared)


def test_another_seed_is_another_split_of_the_same_pictures(prepared, root, tmp_path):
    first, second = load_slices(prepared), prepare(root, tmp_path / "slices", image_size=32, seed=1)
    a, b = (s.manifest.assign(row=range(len(s))).sort_values(["patient", "phase", "slice"]) for s in (first, second))
    assert torch.equal(first.images[list(a["row"])], second.images[list(b["row"])])
    assert a["split"].tolist() != b["split"].tolist()
    assert first.fingerprint != second.fingerprint


def test_what_is_loaded_is_what_was_prepared(root, tmp_path):
    prepared = prepare(root, tmp_path / "slices", image_size=64)
    loaded = load_slices(tmp_path / "slices")
    assert torch.equal(prepared.images, loaded.images)
    assert torch.equal(prepared.masks, loaded.masks)
    assert torch.equal(prepared.labels, loaded.labels)
    assert prepared.manifest.equals(loaded.manifest)
    assert prepared.fingerprint == loaded.fingerprint


def test_load_one_split_and_some_groups(prepared):
    everything = load_slices(prepared)
    part = load_slices(prepared, "train", ("HCM", "RV"))
    wanted = (everything.manifest["split"] == "train") & everything.manifest["group"].isin(["HCM", "RV"])
    assert torch.equal(part.images, everything.images[torch.tensor(wanted)])
    assert set(part.manifest["group"]) == {"HCM", "RV"}
    assert set(part.manifest["split"]) == {"train"}
    sizes = [len(load_slices(prepared, split)) for split in ("train", "validation", "test")]
    assert sizes == [80, 40, 40]  # of four patients of a group: two, one and one, with eight slices each


def test_an_earlier_set_is_replaced(root, tmp_path):
    prepare(root, tmp_path / "slices", image_size=64)
    prepare(root, tmp_path / "slices", image_size=32)
    assert load_slices(tmp_path / "slices").image_size == 32


def test_identical_patients_stand_once(root, tmp_path):
    """The same pixels with another mask and another Info.cfg, as in ACDC itself."""
    folder = tmp_path / "root"
    shutil.copytree(root, folder)
    twin = write_patient(folder, 31, "NOR", Weight=99, ES=7)
    official = write_patient(folder, 101, "NOR", "testing", ES=9)
    for frame in ("01", "07"):
        shutil.copy(
            folder / f"training/patient001/patient001_frame{frame}.nii.gz",
            twin / f"patient031_frame{frame}.nii.gz",
        )
    sixth = folder / "training/patient006"
    shutil.copy(sixth / "patient006_frame01.nii.gz", official / "patient101_frame01.nii.gz")
    slices = prepare(folder, tmp_path / "slices", image_size=32)
    facts = json.loads((tmp_path / "slices/slices.json").read_text())
    assert facts["duplicates"] == {"patient031": "patient001", "patient006": "patient101"}
    assert facts["patients"] == slices.manifest["patient"].nunique() == 20
    assert not {"patient006", "patient031"} & set(slices.manifest["patient"])


def test_without_masks_the_image_s_middle_is_taken_with_a_warning(tmp_path):
    folder = write_patient(tmp_path / "root", 1)
    for path in folder.glob("*_gt.nii.gz"):
        path.unlink()
    with pytest.warns(UserWarning, match="1 of 1 patients have neither masks nor a cine.*patient001"):
        slices = prepare(tmp_path / "root", tmp_path / "slices", image_size=32)
    assert len(slices) == 10  # nothing says which slices to leave out
    assert not slices.masks.any()
    assert not slices.manifest["labelled"].any()


def test_where_one_mask_is_missing_the_other_tells_which_slices_hold_the_heart(tmp_path):
    folder = write_patient(tmp_path / "root", 1)
    (folder / "patient001_frame07_gt.nii.gz").unlink()
    manifest = prepare(tmp_path / "root", tmp_path / "slices", image_size=32).manifest
    assert manifest.groupby("phase")["slice"].apply(list).to_dict() == {"ED": [0, 1, 2, 3], "ES": [0, 1, 2, 3]}
    assert manifest.query("labelled")["phase"].unique().tolist() == ["ED"]


def test_a_heart_that_is_cut_off_is_told(root, tmp_path):
    with pytest.warns(UserWarning, match="20 of 20 patients have a part of the heart outside .* 60 mm"):
        prepare(root, tmp_path / "slices", image_size=32, field_of_view=60.0)
    assert len(json.loads((tmp_path / "slices/slices.json").read_text())["cut_off"]) == 20


def test_padding_is_counted(tmp_path):
    """A heart in the corner of an image that covers a quarter of the field of view."""
    mask = np.zeros((32, 32, 3), dtype=np.uint8)
    mask[:2, :2] = 3
    write_patient(tmp_path / "root", 1, image=np.arange(32.0**2 * 3).reshape(mask.shape), mask=mask, spacing=(5, 5, 8))
    prepare(tmp_path / "root", tmp_path / "slices", 32, 160.0)
    facts = json.loads((tmp_path / "slices/slices.json").read_text())
    assert facts["padded"]["patient001"] == pytest.approx(0.75, abs=0.05)


def test_it_goes_on_where_it_stopped(root, tmp_path, monkeypatch):
    """Stopped by a bad file, mended, called again: only what was missing is computed, with the same result."""
    shutil.copytree(root, tmp_path / "root")
    path = tmp_path / "root/training/patient020/patient020_frame07.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    with pytest.raises(DataError):
        prepare(tmp_path / "root", tmp_path / "slices", 32, workers=1)
    path.write_bytes(whole)
    computed = []
    real = hcm_helpers.slices.slice_patient
    monkeypatch.setattr(
        hcm_helpers.slices, "slice_patient", lambda p, settings: computed.append(p.name) or real(p, settings)
    )
    prepare(tmp_path / "root", tmp_path / "slices", 32)
    assert computed == ["patient020"]
    assert [entry.name for entry in tmp_path.iterdir() if "slices" in entry.name] == ["slices"]
    monkeypatch.undo()
    prepare(tmp_path / "root", tmp_path / "again", 32)
    assert contents(tmp_path / "slices") == contents(tmp_path / "again")


def test_what_a_kill_left_is_removed(root, tmp_path, monkeypatch):
    """Killed before the set moves to its place, so that nothing is tidied: the next call does that too."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, tmp_path / "slices", 32)
    assert list(tmp_path.rglob("images.npy"))
    monkeypatch.undo()
    prepare(root, tmp_path / "slices", 32)
    assert [entry.name for entry in tmp_path.iterdir() if "slices" in entry.name] == ["slices"]


def test_other_settings_start_over(root, tmp_path):
    """Slices of another size left behind by a run that was stopped are not taken."""
    shutil.copytree(root, tmp_path / "root")
    path = tmp_path / "root/training/patient020/patient020_frame07.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(DataError):
        prepare(tmp_path / "root", tmp_path / "slices", 32, workers=1)
    path.write_bytes(whole)
    assert prepare(tmp_path / "root", tmp_path / "slices", 64).image_size == 64


def test_large_sets_stay_on_disk(root, tmp_path, monkeypatch):
    """A split lies in one piece of the file and is read through it, without a copy in memory."""
    prepare(root, tmp_path / "slices", 32)
    small = load_slices(tmp_path / "slices", "train")
    monkeypatch.setattr(hcm_helpers.slices, "MAPPED_FROM", 0)
    mapped = load_slices(tmp_path / "slices", "train")
    assert torch.equal(mapped.images, small.images)
    everything = np.load(tmp_path / "slices/images.npy", mmap_mode="r")
    assert len({load_slices(tmp_path / "slices").images.data_ptr(), everything.ctypes.data}) == 2
    splits = load_slices(tmp_path / "slices").manifest["split"].tolist()
    assert splits == sorted(splits, key=SPLITS.index)


# --- what is refused


@pytest.mark.parametrize("frames", ["ED", ""])
def test_wrong_frames(root, tmp_path, frames):
    with pytest.raises(DataError, match=f"frames = '{frames}': choose 'ed_es' or 'all'"):
        prepare(root, tmp_path / "slices", frames=frames)


@pytest.mark.parametrize("image_size", [50, 16, 0, -64, 96, 512])
def test_wrong_image_size(root, tmp_path, image_size):
    with pytest.raises(DataError, match=f"image_size={image_size}: .*one of 32, 64, 128, 256"):
        prepare(root, tmp_path / "slices", image_size=image_size)
    assert not (tmp_path / "slices").exists()


@pytest.mark.parametrize("field_of_view", [0, -160, float("nan"), float("inf")])
def test_wrong_field_of_view(root, tmp_path, field_of_view):
    with pytest.raises(DataError, match="field_of_view"):
        prepare(root, tmp_path / "slices", field_of_view=field_of_view)


def test_no_patients(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        prepare(tmp_path / "nowhere", tmp_path / "slices")
    with pytest.raises(DataError, match="no patients"):
        prepare([], tmp_path / "slices")


def test_a_mask_without_left_ventricle(tmp_path):
    folder = write_patient(tmp_path / "root", 1)
    path = folder / "patient001_frame07_gt.nii.gz"
    save_nifti(path, np.ones((40, 36, 5), np.uint8), (4, 4, 10))
    with pytest.raises(DataError, match=f"{path.name}: the mask holds no left ventricle"):
        prepare(tmp_path / "root", tmp_path / "slices")


def test_a_volume_of_one_value_around_the_heart(tmp_path):
    image = np.full((64, 64, 3), 5, np.int16)
    image[0, 0, 0] = 9  # the volume has two values, the percentiles are one
    folder = write_patient(tmp_path / "root", 1, image=image, mask=centred_mask(), spacing=(2.5, 2.5, 8))
    with pytest.raises(DataError, match=f"{folder.name}_frame01.nii.gz: .*every voxel has the value 5"):
        prepare(tmp_path / "root", tmp_path / "slices")


def test_one_bad_patient_leaves_nothing_behind_and_the_earlier_set_whole(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    prepare(tmp_path / "root", tmp_path / "run/slices", image_size=32)
    before = contents(tmp_path / "run/slices")
    path = tmp_path / "root/training/patient013/patient013_frame07.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    for name in ("slices", "other"):
        with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
            prepare(tmp_path / "root", tmp_path / "run" / name, image_size=64)
    assert [entry.name for entry in (tmp_path / "run").iterdir() if entry.name[0] != "."] == ["slices"]
    assert contents(tmp_path / "run/slices") == before


def test_a_folder_with_other_files_is_not_replaced(root, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="other files than slices"):
        prepare(root, tmp_path, image_size=32)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_load_what_is_not_there(prepared, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: .*run notebook 01 first"):
        load_slices(tmp_path / "nowhere")
    with pytest.raises(DataError, match="split = 'training': must be one of train, validation, test"):
        load_slices(prepared, "training")
    with pytest.raises(DataError, match="'hcm' is none of NOR, MINF, DCM, HCM, RV"):
        load_slices(prepared, groups=["hcm"])
    with pytest.raises(DataError, match="no slices of split any, groups none"):
        load_slices(prepared, groups=[])


@pytest.mark.parametrize("mapped_from", [0, 2**26])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("images.npy", npy(OBJECTS), "no plain numbers"),
        ("masks.npy", PICKLE, "no plain numbers"),
        ("images.npy", npy(np.zeros((4, 1, 32, 32), np.float32))[:-1], "no array of shape (4, 1, 32, 32)"),
        ("images.npy", npy(np.zeros((4, 1, 32, 32))), "do not fit each other"),
        ("masks.npy", npy(np.zeros((4, 32, 31), np.uint8)), "do not fit each other"),
        ("masks.npy", b"", "cannot be read"),
        ("slices.json", b"[" * 10**5, "is broken"),
        ("slices.json", b"[]", "is broken"),
        ("slices.json", b"{}", "has no fingerprint"),
        ("manifest.csv", b"", "cannot be read"),
        ("manifest.csv", b"patient,group\nx,HCM\n", "has no column phase"),
    ],
)
def test_broken_slices_are_refused(prepared, tmp_path, monkeypatch, name, content, words, mapped_from):
    monkeypatch.setattr(hcm_helpers.slices, "MAPPED_FROM", mapped_from)
    shutil.copytree(prepared, tmp_path / "slices")
    (tmp_path / "slices" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.* run notebook 01 again$") as error:
        load_slices(tmp_path / "slices")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",HCM,", ",HCMX,", "group is 'HCMX'"),
        (",train\n", ",tset\n", "split is 'tset'"),
        (",ED,", ",E\0\x1bD,", "phase is 'E"),
        (",5.0,10.0,", ",nan,10.0,", "pixel_mm is 'nan'"),
        (",5.0,10.0,", ",5.0,-10.0,", "thickness_mm is '-10.0'"),
        (",True,", ",maybe,", "cannot be read"),
        ("\npatient", "\n\xff", "cannot be read"),
        (",1,0,", ",1,99999999999999999999,", "cannot be read"),
    ],
)
def test_a_wrong_value_in_the_manifest_is_named(prepared, tmp_path, old, new, words):
    shutil.copytree(prepared, tmp_path / "slices")
    path = tmp_path / "slices" / "manifest.csv"
    table = path.read_text()
    assert old in table
    path.write_bytes(table.replace(old, new, 1).encode("latin-1"))
    with pytest.raises(DataError, match="run notebook 01 again") as error:
        load_slices(tmp_path / "slices")
    assert words in str(error.value)
    assert str(error.value).isprintable()


# --- whole data sets


def test_phantom(small_phantom, tmp_path):
    slices = prepare(small_phantom, tmp_path / "slices", image_size=32)
    facts = json.loads((tmp_path / "slices/slices.json").read_text())
    assert facts["patients_by_split"] == {"train": 5, "validation": 5, "test": 5}
    assert (facts["duplicates"], facts["cut_off"], facts["centred_without_mask"]) == ({}, {}, {})
    check_anatomy(slices)


def test_real_patients(acdc_root, tmp_path):
    patients = [p for p in find_patients(acdc_root) if p.official_split == "training"]
    slices = prepare(patients, tmp_path / "slices", image_size=64)
    facts = json.loads((tmp_path / "slices/slices.json").read_text())
    assert facts["duplicates"] == {"patient076": "patient074"}
    assert facts["patients_by_split"] == {"train": 69, "validation": 10, "test": 20}
    assert (facts["cut_off"], facts["centred_without_mask"]) == ({}, {})
    assert set(slices.manifest.loc[slices.manifest["position"] == 0, "slice"]) <= {0, 1, 2, 3}  # base first
    check_anatomy(slices)


def check_anatomy(slices):
    """The blood is brighter than the wall, and the left ventricle narrows towards the apex."""
    images, masks = slices.images[:, 0].numpy(), slices.masks.numpy()
    middle = ((slices.manifest["position"] > 0.3) & (slices.manifest["position"] < 0.7)).to_numpy()
    apex = (slices.manifest["position"] > 0.85).to_numpy()
    assert images[middle][masks[middle] == 3].mean() > images[middle][masks[middle] == 2].mean() + 0.5
    assert (masks[apex] >= 2).mean() < 0.6 * (masks[middle] >= 2).mean()
    assert (masks >= 2).any(axis=(1, 2)).mean() > 0.99  # a tip of a few voxels may vanish in a large pixel
