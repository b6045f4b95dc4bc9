"""Slices of all frames of a cine, and hearts turned into one pose."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from patients import save_nifti, write_patient

from hcm_helpers.acdc import DataError
from hcm_helpers.slices import (
    prepare,
)


def write_cine(root, number, frames=30, **changes):
    """A patient whose left ventricle shrinks and grows, with the film; ED is its frame 1 and ES frame 7."""
    folder = write_patient(root, number, NbFrame=frames, **changes)
    name = folder.name
    noise = np.random.default_rng(number)
    x, y = np.mgrid[:40, :36]
    shape = (40, 36, 5, frames)
    film = noise.normal(60, 1, shape)
    for frame in range(frames):
        film[4 * np.hypot(x - 22, y - 15) < 22 + 8 * np.cos(2 * np.pi * frame / frames), :, frame] += 100
    film = np.rint(film).astype(np.int16)
    for frame in (1, 7):
        save_nifti(folder / f"{name}_frame{frame:02d}.nii.gz", film[..., frame - 1], (4, 4, 10))
    save_nifti(folder / f"{name}_4d.nii.gz", film, (4, 4, 10, 1))
    return folder


def test_all_frames_of_the_cine(tmp_path):
    write_cine(tmp_path / "root", 1, frames=12)
    two = prepare(tmp_path / "root", tmp_path / "two", 32)
    everything = prepare(tmp_path / "root", tmp_path / "all", 32, frames="all")
    manifest = everything.manifest
    assert manifest["frame"].nunique() == 12
    assert manifest.groupby("frame").size().tolist() == [4] * 12  # four slices hold the left ventricle
    assert manifest.query("labelled")["frame"].unique().tolist() == [1, 7]
    assert set(manifest.query("frame not in (1, 7)")["phase"]) == {"-"}
    assert not everything.masks[~torch.tensor(manifest["labelled"])].any()
    labelled = torch.tensor(manifest["labelled"])
    assert torch.equal(everything.images[labelled], two.images)
    area = (everything.images > 0).sum(dim=(1, 2, 3)).double().numpy()
    by_frame = [area[(manifest["frame"] == frame).to_numpy()].mean() for frame in range(1, 13)]
    assert np.argmin(by_frame) == 6  # the film is at its smallest in frame 7
    assert np.argmax(by_frame) == 0


def test_a_patient_without_a_cine_gives_two_phases_with_a_warning(tmp_path):
    write_cine(tmp_path / "root", 1, frames=9)
    write_patient(tmp_path / "root", 2)
    with pytest.warns(UserWarning, match="1 of 2 patients have no cine.*patient002"):
        manifest = prepare(tmp_path / "root", tmp_path / "slices", 32, frames="all").manifest
    assert manifest.groupby("patient")["frame"].nunique().to_dict() == {"patient001": 9, "patient002": 2}


def test_without_masks_the_cine_tells_where_the_heart_is(tmp_path):
    folder = write_cine(tmp_path / "root", 1, frames=9)
    with_masks = prepare(tmp_path / "root", tmp_path / "with", 32, field_of_view=96.0)
    for path in folder.glob("*_gt.nii.gz"):
        path.unlink()
    without = prepare(tmp_path / "root", tmp_path / "without", 32, field_of_view=96.0)
    facts = json.loads((tmp_path / "without/slices.json").read_text())
    assert facts["centred_without_mask"] == {"patient001": "cine"}
    cavity = [np.mean(np.nonzero(s.images[0, 0].numpy() > 0.5), axis=1) for s in (with_masks, without)]
    assert cavity[0][1] - cavity[1][1] == pytest.approx(16 / 3, abs=1)  # the box holds both ventricles; pixels of 3 mm
    np.testing.assert_allclose(cavity[1], 15.5, atol=2)  # the cavity, which moves, lies in the middle


def test_a_cine_of_another_shape(tmp_path):
    folder = write_cine(tmp_path / "root", 1, frames=9)
    cine = np.random.default_rng(0).integers(0, 200, (40, 36, 4, 9)).astype(np.int16)
    save_nifti(folder / "patient001_4d.nii.gz", cine, (4, 4, 10, 1))
    with pytest.raises(DataError, match=r"patient001_4d.nii.gz: has the shape \(40, 36, 4\), that of ED is \(40, 36"):
        prepare(tmp_path / "root", tmp_path / "slices", 32, frames="all")


def test_the_canonical_pose(tmp_path):
    """Whatever the pose, the right ventricle ends up on the left and the labels keep their areas."""
    x, y = np.mgrid[:64, :64] * 2.5
    for number, degrees in ((1, 0), (2, 70), (3, 200)):
        angle = np.radians(degrees)
        mask = np.zeros((64, 64, 3), np.uint8)
        mask[np.hypot(x - 81.1, y - 79.3) < 30] = 3
        mask[np.hypot(x - 81.1 + 42 * np.cos(angle), y - 79.3 + 42 * np.sin(angle)) < 12] = 1
        noise = np.random.default_rng(number).uniform(0, 20, mask.shape)
        write_patient(tmp_path / "root", number, image=noise + 100 * mask, mask=mask, spacing=(2.5, 2.5, 8))
    slices = prepare(tmp_path / "root", tmp_path / "slices", 64, canonical_pose=True)
    for mask in slices.masks.numpy():
        left, right = (np.mean(np.nonzero(mask == label), axis=1) for label in (3, 1))
        assert abs(left[0] - right[0]) < 0.7  # pixels: they lie side by side
        assert left[1] - right[1] == pytest.approx(42 / 2.5, abs=0.7)
        assert (mask == 3).sum() * 2.5**2 == pytest.approx(np.pi * 30**2, rel=0.02)


@pytest.mark.filterwarnings("ignore:.*image's centre")
@pytest.mark.parametrize("drawn", [True, False])
def test_a_pose_that_is_not_known_is_told(tmp_path, drawn):
    folder = write_patient(tmp_path / "root", 1)
    for path in folder.glob("*_gt.nii.gz"):
        left = np.asarray(nib.load(path).dataobj) * np.uint8(drawn)
        path.unlink()
        if drawn:
            save_nifti(path, np.where(left == 1, 0, left).astype(np.uint8), (4, 4, 10))
    straight = prepare(tmp_path / "root", tmp_path / "straight", 32)
    with pytest.warns(UserWarning, match="1 of 1 patients have no right ventricle drawn.*not turned: patient001"):
        turned = prepare(tmp_path / "root", tmp_path / "turned", 32, canonical_pose=True)
    assert torch.equal(straight.images, turned.images)


def test_what_a_turn_cuts_off_is_told(tmp_path):
    """A square of 96 mm fits into 100 mm; turned by 45°, as the right ventricle in its corner asks, it does not."""
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[12:52, 12:52] = 2
    mask[12:16, 12:16] = 1
    noise = np.random.default_rng(0).uniform(0, 20, mask.shape)
    write_patient(tmp_path / "root", 1, image=noise + 50 * mask, mask=mask, spacing=(2.4, 2.4, 8))
    prepare(tmp_path / "root", tmp_path / "straight", 32, 100.0)
    with pytest.warns(UserWarning, match="outside the field of view of 100 mm"):
        prepare(tmp_path / "root", tmp_path / "turned", 32, 100.0, canonical_pose=True)
    facts = [json.loads((tmp_path / name / "slices.json").read_text()) for name in ("straight", "turned")]
    assert facts[0]["cut_off"] == {}
    corner = (96 / np.sqrt(2) - 50) ** 2  # mm²: each corner is a right-angled triangle of this height
    assert facts[1]["cut_off"]["patient001"] == pytest.approx(4 * corner / 96**2, abs=0.02)
