"""The phantom: its files, its hearts against ACDC's table, and what must never be half there."""

import hashlib
import math

import nibabel as nib
import numpy as np
import pytest

from hcm_helpers import phantom
from hcm_helpers.acdc import GROUPS, DataError, find_patients
from hcm_helpers.phantom import draw_heart, left_ventricle, make_patient, write_phantom

# Means over 30 patients each of ACDC, from the masks: ejection fraction, end-diastolic volume (ml), mass (g).
ACDC = {
    "NOR": (0.62, 130, 100),
    "MINF": (0.31, 181, 134),
    "DCM": (0.20, 283, 166),
    "HCM": (0.70, 132, 175),
    "RV": (0.57, 117, 82),
}
PATIENTS_PER_GROUP = 4


@pytest.fixture(scope="module")
def patients():
    """Some patients of each group, made once: group → list of ED/ES volumes."""
    seeds = np.random.SeedSequence(7).spawn(PATIENTS_PER_GROUP * len(GROUPS))
    made = {group: [] for group in GROUPS}
    for index, seed in enumerate(seeds):
        group = GROUPS[index % len(GROUPS)]
        made[group].append(make_patient(group, np.random.default_rng(seed))[0])
    return made


def millilitres(volume, label):
    return (volume.mask == label).sum() * math.prod(volume.spacing) / 1000


def ring_area(inner, outer):
    """Area (mm²) between two closed polygons given as radii at equal angles, by the shoelace formula."""

    def polygon(radii):
        angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
        x, y = radii * np.cos(angles), radii * np.sin(angles)
        return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))

    return polygon(outer) - polygon(inner)


def wall_thickness(mask, pixel):
    """Length (mm) of the wall along 72 rays from the middle of the cavity, in one slice."""
    middle = np.argwhere(mask == 3).mean(axis=0)
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    steps = np.arange(0, 90, 0.25) / pixel
    rays = middle[:, None, None] + np.stack([np.cos(angles), np.sin(angles)])[:, :, None] * steps
    rows, columns = np.rint(rays).astype(int).clip(0, np.array(mask.shape)[:, None, None] - 1)
    return (mask[rows, columns] == 2).sum(axis=1) * 0.25


def cavity_slices(volume, smallest=150):
    """Slices, without the first, where the cavity covers at least `smallest` mm²."""
    area = (volume.mask == 3).sum(axis=(0, 1)) * volume.spacing[0] ** 2
    return [z for z in np.flatnonzero(area >= smallest) if z > np.flatnonzero(area)[0]]


@pytest.mark.parametrize("group", GROUPS)
def test_hearts_of_a_group_have_the_means_of_acdc(group):
    """Over 60 hearts: ejection fraction within 0.02, volume within 8 %, mass within 10 % of the table's."""
    ejection, volume, mass = [], [], []
    heights = (np.arange(40) + 0.5) / 40
    for seed in range(60):
        heart = draw_heart(group, np.random.default_rng([seed, 1]))
        endo, epi = left_ventricle(heart, heights, phase=0.0)
        empty, _ = left_ventricle(heart, heights, phase=1.0)
        nothing = np.zeros(endo.shape[1])
        slab, short_slab = heart.length / 40, (heart.length - heart.descent) / 40
        full = sum(ring_area(nothing, contour) for contour in endo) * slab / 1000
        rest = sum(ring_area(nothing, contour) for contour in empty) * short_slab / 1000
        wall = sum(ring_area(*pair) for pair in zip(endo, epi, strict=True)) * slab / 1000
        ejection.append(1 - rest / full)
        volume.append(full)
        mass.append(1.05 * wall)
    assert np.mean(ejection) == pytest.approx(ACDC[group][0], abs=0.02)
    assert np.mean(volume) == pytest.approx(ACDC[group][1], rel=0.08)
    assert np.mean(mass) == pytest.approx(ACDC[group][2], rel=0.10)


@pytest.mark.parametrize("group", GROUPS)
def test_masks_of_a_group_measure_as_in_acdc(group, patients):
    """Over 4 patients in 8 to 10 mm slices: ejection fraction within 0.08, volume and mass within 30 %."""
    full = np.array([millilitres(patient["ED"], 3) for patient in patients[group]])
    empty = np.array([millilitres(patient["ES"], 3) for patient in patients[group]])
    mass = np.array([1.05 * millilitres(patient["ED"], 2) for patient in patients[group]])
    assert np.mean(1 - empty / full) == pytest.approx(ACDC[group][0], abs=0.08)
    assert np.mean(full) == pytest.approx(ACDC[group][1], rel=0.30)
    assert np.mean(mass) == pytest.approx(ACDC[group][2], rel=0.30)


def test_masks_hold_the_volume_of_their_heart():
    """The mask of every patient against the volume its heart was drawn with (slices of 8 to 10 mm: 10 %)."""
    for group in GROUPS:
        heart = draw_heart(group, np.random.default_rng(5))
        volumes, _ = make_patient(group, np.random.default_rng(5))
        assert millilitres(volumes["ED"], 3) == pytest.approx(heart.volume, rel=0.10)
        assert millilitres(volumes["ED"], 1) == pytest.approx(heart.right_volume, rel=0.20)


def test_the_wall_keeps_its_volume():
    """Each ring's area grows by the shortening alone, whatever the motion."""
    heart = draw_heart("MINF", np.random.default_rng(0))
    heights = np.array([0.2, 0.5, 0.7])
    shortening = 1 - heart.descent / heart.length
    for ed, es in zip(
        zip(*left_ventricle(heart, heights, 0.0), strict=True),
        zip(*left_ventricle(heart, heights, 1.0), strict=True),
        strict=True,
    ):
        assert ring_area(*es) * shortening == pytest.approx(ring_area(*ed), rel=0.01)


def test_only_hypertrophic_walls_are_thick(patients):
    def thickest(patient):
        volume = patient["ED"]
        slices = cavity_slices(volume)
        return max(wall_thickness(volume.mask[:, :, z], volume.spacing[0]).max() for z in slices)

    hypertrophic = [thickest(patient) for patient in patients["HCM"]]
    assert min(hypertrophic) >= 15
    assert max(hypertrophic) <= 30
    assert max(thickest(patient) for patient in patients["NOR"]) < 12


def test_an_infarct_is_thin_and_does_not_thicken():
    """In the middle of the scar the wall stays within 1 mm; opposite it, it thickens by more than 1 mm."""
    heart = draw_heart("MINF", np.random.default_rng(1))
    height = np.array([0.75])
    (endo, epi), (endo_es, epi_es) = (left_ventricle(heart, height, phase) for phase in (0.0, 1.0))
    row = int(0.75 * len(heart.motion))
    scar, healthy = heart.motion[row].argmin(), heart.motion[row].argmax()
    before, after = (epi - endo)[0], (epi_es - endo_es)[0]
    assert heart.motion[row, scar] < 0.1
    assert before[scar] < 0.7 * before[healthy]
    assert after[scar] == pytest.approx(before[scar], abs=1)
    assert after[healthy] > before[healthy] + 1


def test_right_ventricle_is_large_in_its_group(patients):
    def ratio(group):
        return np.mean([millilitres(p["ED"], 1) / millilitres(p["ED"], 3) for p in patients[group]])

    assert ratio("RV") > 1.5
    assert ratio("RV") > ratio("NOR") > ratio("DCM")


def test_cavity_lies_in_a_closed_ring_of_wall(patients):
    """No pixel of the left ventricle's cavity touches anything but cavity and wall, in any slice."""
    for volume in (patient[phase] for group in GROUPS for patient in patients[group] for phase in ("ED", "ES")):
        mask = volume.mask
        assert set(np.unique(mask)) == {0, 1, 2, 3}
        for axis in (0, 1):
            for shift in (-1, 1):
                beside = np.roll(mask, shift, axis)
                assert set(np.unique(beside[mask == 3])) <= {2, 3}


def test_images_look_like_those_of_acdc(patients):
    """Whole numbers from 0 on, 8 to 10 slices, blood brighter than wall, lung-dark background, base first."""
    for volume in (patient[phase] for group in GROUPS for patient in patients[group] for phase in ("ED", "ES")):
        image, mask = volume.image, volume.mask
        assert image.dtype == np.float32
        assert mask.dtype == np.uint8
        assert image.shape == mask.shape
        assert 8 <= image.shape[2] <= 10
        assert all(160 <= side <= 256 for side in image.shape[:2])
        assert image.min() >= 0
        assert (image == np.rint(image)).all()
        assert 1.3 <= volume.spacing[0] == volume.spacing[1] <= 1.8
        assert 8 <= volume.spacing[2] <= 10
        assert np.median(image[mask == 3]) > 1.4 * np.median(image[mask == 2])
        assert np.median(image[mask == 1]) > 1.4 * np.median(image[mask == 2])
        area = (mask == 3).sum(axis=(0, 1))
        assert area[np.flatnonzero(area)[0]] > area[np.flatnonzero(area)[-1]]
        where = np.argwhere(mask > 0)
        assert (where.min(axis=0)[:2] > 3).all()
        assert (where.max(axis=0)[:2] < np.array(mask.shape[:2]) - 4).all()


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_are_those_of_acdc_and_the_seed_decides_their_bytes(tmp_path):
    first = digests(write_phantom(tmp_path / "first", patients=2, seed=3))
    again = digests(write_phantom(tmp_path / "again", patients=1, seed=3))
    other = digests(write_phantom(tmp_path / "other", patients=1, seed=4))
    assert len(first) == 2 * 5
    assert again == {name: digest for name, digest in first.items() if "patient001" in name}
    assert not set(other.values()) & set(again.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "other"]

    patient = find_patients(tmp_path / "first")[1]
    assert (patient.name, patient.group, patient.end_diastole) == ("patient002", "MINF", 1)
    assert 1 < patient.end_systole <= patient.num_frames
    seed = np.random.SeedSequence(3).spawn(2)[1]
    volumes, info = make_patient("MINF", np.random.default_rng(seed))
    assert set(info) == {"ED", "ES", "Group", "Height", "NbFrame", "Weight"}
    for phase in ("ED", "ES"):
        image, mask = nib.load(patient.image_path(phase)), nib.load(patient.mask_path(phase))
        assert image.header.get_zooms() == pytest.approx(volumes[phase].spacing)
        assert mask.header.get_zooms() == pytest.approx(volumes[phase].spacing)
        np.testing.assert_array_equal(np.asarray(image.dataobj), volumes[phase].image)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), volumes[phase].mask)


def test_an_interrupted_phantom_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(path, voxels, spacing):
        if "patient001" in path.name and "gt" in path.name:
            raise OSError("No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(phantom, "_write_nifti", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_phantom(tmp_path / "phantom", patients=2)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantom(tmp_path, patients=1)
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantom(tmp_path / "mine.txt", patients=1)
    with pytest.raises(DataError, match="1 to 999"):
        write_phantom(tmp_path / "none", patients=0)
    with pytest.raises(DataError, match="NOR, MINF, DCM, HCM, RV"):
        make_patient("HOCM", np.random.default_rng(0))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "precious"
