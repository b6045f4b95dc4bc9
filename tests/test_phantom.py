"""The phantom: its files, its hearts against ACDC's table, and what must never be half there."""

import hashlib
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.measure import regionprops

from hcm_helpers import heart as hearts
from hcm_helpers import phantom, scanner, scene
from hcm_helpers.acdc import GROUPS, DataError, find_patients, read_volume
from hcm_helpers.heart import draw_heart, left_ventricle, measure
from hcm_helpers.phantom import make_patient, write_phantom
from hcm_helpers.scanner import steady_state
from hcm_helpers.slices import prepare

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
def made():
    """Some patients of each group, made once: group → list of (volumes, info, truth)."""
    seeds = np.random.SeedSequence(7).spawn(PATIENTS_PER_GROUP * len(GROUPS))
    made = {group: [] for group in GROUPS}
    for index, seed in enumerate(seeds):
        group = GROUPS[index % len(GROUPS)]
        made[group].append(make_patient(group, np.random.default_rng(seed)))
    return made


@pytest.fixture(scope="module")
def patients(made):
    """The same: group → list of ED/ES volumes."""
    return {group: [volumes for volumes, _, _ in of_group] for group, of_group in made.items()}


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


def test_truth_is_what_the_masks_hold(made):
    """Voxels against truth, a patient: LV 8 % and 3 ml, RV 12 % and 5 ml, mass 12 %; all together within 4 %."""
    ratios = []
    for volumes, _, truth in (patient for group in GROUPS for patient in made[group]):
        counted, true = [], []
        for phase in ("ED", "ES"):
            for label, name, share, rest in ((3, "lv", 0.08, 3), (1, "rv", 0.12, 5)):
                counted.append(millilitres(volumes[phase], label))
                true.append(truth[f"{name}_{phase.lower()}_ml"])
                assert counted[-1] == pytest.approx(true[-1], abs=share * true[-1] + rest)
            counted.append(1.05 * millilitres(volumes[phase], 2))
            true.append(truth["mass_g"])
            assert counted[-1] == pytest.approx(true[-1], rel=0.12)
        ratios.append(np.array(counted) / true)
        assert truth["lv_ef"] == pytest.approx(1 - truth["lv_es_ml"] / truth["lv_ed_ml"])
    np.testing.assert_allclose(np.median(ratios, axis=0), 1, atol=0.04)


def test_truth_of_a_heart_of_known_shape():
    """A wall of 9 mm but for 4 mm in one segment of each level, named by its AHA number."""
    heart = draw_heart("NOR", np.random.default_rng(0))
    even = np.full_like(heart.wall, 9.0)
    for angle, level, number in (
        (-90, 0, 1),
        (-150, 0, 2),
        (150, 1, 9),
        (90, 1, 10),
        (30, 0, 5),
        (180, 2, 14),
        (0, 2, 16),
    ):
        wall = even.copy()
        near = np.abs((np.degrees(hearts.ANGLES) - angle + 180) % 360 - 180) < (45 if level == 2 else 30)
        rows = slice(16 * level, 16 * (level + 1))
        wall[rows, near] = 4.0
        truth = measure(replace(heart, wall=wall, ripple=np.ones_like(wall)))
        walls = {key: value for key, value in truth.items() if key.startswith("wall_")}
        assert len(walls) == 17
        assert min(walls, key=walls.get) == f"wall_{number:02d}_mm"
        assert walls[f"wall_{number:02d}_mm"] == pytest.approx(4, abs=2 if level == 2 else 1.2)  # the apex closes
        assert truth["max_wall_mm"] == pytest.approx(9, abs=1)


def test_hypertrophy_is_15_mm_and_mostly_septal():
    """Over 40 hearts: the true maximum is 15 to 30 mm; the thickest segment is basal or middle septal in half."""
    truths = [measure(draw_heart("HCM", np.random.default_rng(seed))) for seed in range(40)]
    assert min(truth["max_wall_mm"] for truth in truths) >= 15
    assert max(truth["max_wall_mm"] for truth in truths) <= 30
    thickest = [max((f"wall_{n:02d}_mm" for n in range(1, 17)), key=truth.get) for truth in truths]
    septal = [f"wall_{n:02d}_mm" for n in (2, 3, 8, 9)]
    assert np.mean([name in septal for name in thickest]) >= 0.5
    assert max(measure(draw_heart("NOR", np.random.default_rng(seed)))["max_wall_mm"] for seed in range(40)) < 13


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


def test_outflow_tract_and_right_ventricle_lie_where_they_belong():
    """Under the aortic root the wall is at most half as thick as below; to t = 0.8 the right ventricle is there."""
    heights = np.array([0.01, 0.2, 0.8, 0.99])
    for group in GROUPS:
        heart = draw_heart(group, np.random.default_rng(3))
        endo, epi = left_ventricle(heart, heights, 0.0)
        root = np.abs(hearts.ANGLES - hearts.OUTFLOW).argmin()
        wall = (epi - endo)[:, root]
        assert wall[0] < 0.55 * wall[1]
        depth = hearts.right_ventricle(heart, heights, epi, 0.0)[:, 0] - epi[:, 0]  # beside the septum, mm
        assert depth[0] > depth[2] > 4
        assert depth[3] < 2


def test_hull_closes_a_notch():
    """The hull of a square is the square, also where a side of it has been cut in."""
    facing = np.maximum(np.abs(np.cos(hearts.ANGLES)), np.abs(np.sin(hearts.ANGLES)))
    square = 10 / facing[None]
    notched = np.where(np.abs(hearts.ANGLES) < 0.5, 0.6 * square, square)
    assert hearts.hull(square) == pytest.approx(square, rel=1e-6)
    assert hearts.hull(np.concatenate([notched, 2 * square])) == pytest.approx(
        np.concatenate([square, 2 * square]), rel=1e-6
    )


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
    """Whole numbers from 0 on, 6 to 24 slices, blood brighter than wall, lung-dark background, base first."""
    for volume in (patient[phase] for group in GROUPS for patient in patients[group] for phase in ("ED", "ES")):
        image, mask = volume.image, volume.mask
        assert image.dtype == np.float32
        assert mask.dtype == np.uint8
        assert image.shape == mask.shape
        assert 6 <= image.shape[2] <= 24
        assert all(160 <= side <= 272 for side in image.shape[:2])
        assert image.min() >= 0
        assert (image == np.rint(image)).all()
        assert 1.25 <= volume.spacing[0] == volume.spacing[1] <= 1.8
        assert volume.spacing[2] in (5, 6.5, 8, 10)
        assert np.median(image[mask == 3]) > 1.3 * np.median(image[mask == 2])
        assert np.median(image[mask == 1]) > 1.3 * np.median(image[mask == 2])
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
    assert len(first) == 2 * 5 + 1
    first.pop("truth.csv"), again.pop("truth.csv")
    assert again == {name: digest for name, digest in first.items() if "patient001" in name}
    assert not set(other.values()) & set(again.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "other"]

    patient = find_patients(tmp_path / "first")[1]
    assert (patient.name, patient.group, patient.end_diastole) == ("patient002", "MINF", 1)
    assert 1 < patient.end_systole <= patient.num_frames
    seed = np.random.SeedSequence(3).spawn(2)[1]
    volumes, info, truth = make_patient("MINF", np.random.default_rng(seed))
    table = pd.read_csv(tmp_path / "first" / "truth.csv", index_col="patient")
    assert list(table.index) == ["patient001", "patient002"]
    assert list(table.columns) == list(truth)
    for name, value in truth.items():
        assert table.loc["patient002", name] == (value if name == "group" else pytest.approx(value, abs=0.0006))
    assert set(info) == {"ED", "ES", "Group", "Height", "NbFrame", "Weight"}
    for phase in ("ED", "ES"):
        image, mask = nib.load(patient.image_path(phase)), nib.load(patient.mask_path(phase))
        assert image.header.get_zooms() == pytest.approx(volumes[phase].spacing)
        assert mask.header.get_zooms() == pytest.approx(volumes[phase].spacing)
        np.testing.assert_array_equal(np.asarray(image.dataobj), volumes[phase].image)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), volumes[phase].mask)


def test_cine_holds_the_frames_and_one_smooth_beat(tmp_path, monkeypatch):
    """The 4D file has ED and ES voxel for voxel, and the same two as without cine; the cavity follows one wave."""
    masks = []
    paint = phantom.paint_heart

    def remember(*args):
        masks.append(paint(*args))
        return masks[-1]

    monkeypatch.setattr(phantom, "paint_heart", remember)
    volumes, info, _ = make_patient("RV", np.random.default_rng(2), cine=True)
    plain, plain_info, _ = make_patient("RV", np.random.default_rng(2))
    monkeypatch.undo()
    assert info == plain_info
    beat = volumes["cine"].image
    assert beat.shape == (*volumes["ED"].image.shape, info["NbFrame"])
    for phase in ("ED", "ES"):
        np.testing.assert_array_equal(beat[..., info[phase] - 1], volumes[phase].image)
        np.testing.assert_array_equal(plain[phase].image, volumes[phase].image)
        np.testing.assert_array_equal(plain[phase].mask, volumes[phase].mask)

    first, last, *others = masks[: info["NbFrame"]]
    order = [first, *others[: info["ES"] - 2], last, *others[info["ES"] - 2 :]]
    area = np.array([(mask == 3).sum() for mask in order])
    assert area.argmax() == 0
    assert area.argmin() == info["ES"] - 1
    assert (np.diff(area[: info["ES"]]) <= 0).all()
    assert (np.diff(area[info["ES"] - 1 :]) >= -0.01 * area[0]).all()
    assert np.abs(np.diff([*area, area[0]])).max() < 0.35 * (area[0] - area.min())


def test_cine_files(tmp_path):
    root = write_phantom(tmp_path / "beat", patients=1, cine=True)
    patient = find_patients(root)[0]
    beat = nib.load(patient.folder / "patient001_4d.nii.gz")
    assert beat.shape[3] == patient.num_frames
    for phase in ("ED", "ES"):
        frame = nib.load(patient.image_path(phase))
        assert beat.header.get_zooms()[:3] == frame.header.get_zooms()
        assert beat.get_data_dtype() == frame.get_data_dtype()
        same = np.asarray(beat.dataobj)[..., patient.frame(phase) - 1]
        np.testing.assert_array_equal(same, np.asarray(frame.dataobj))


def test_steady_state_agrees_with_the_pulses_one_by_one():
    """Bloch's equations, pulse after pulse until nothing changes, against the formula, on and off resonance."""
    t1, t2, flip, repetition = 1000.0, 48.0, np.radians(60), 3.2
    for offset in (0.0, 60.0, 1000 / repetition / 2):
        turn = 2 * np.pi * offset * repetition / 1000 + np.pi  # the frame turns with the alternating pulse
        pulse = np.array([[1, 0, 0], [0, np.cos(flip), np.sin(flip)], [0, -np.sin(flip), np.cos(flip)]])
        swing = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        decay = np.diag(np.exp([-repetition / t2, -repetition / t2, -repetition / t1]))
        magnetisation = np.array([0.0, 0.0, 1.0])
        for _ in range(3000):
            magnetisation = decay @ swing @ pulse @ magnetisation
            magnetisation[2] += 1 - np.exp(-repetition / t1)
        x, y, _ = pulse @ magnetisation
        assert steady_state(t1, t2, flip, repetition, offset) == pytest.approx(np.hypot(x, y), rel=1e-4)


def test_fat_and_water_oppose_where_they_meet():
    """On resonance and with the echo in its middle the signal is water minus fat; a late echo leaves a rest."""

    class Dice:  # everything drawn is 0 but the echo's delay
        def __init__(self, late):
            self.late = late

        def uniform(self, *_):
            return 0.0

        def normal(self, _, sd):
            return self.late if sd < 1 else 0.0

        def standard_normal(self, shape, dtype):
            return np.zeros(shape, dtype)

    axis = np.arange(8.0)
    grid = scene.Grid(axis, axis, np.zeros(1), 1.0, 0.0)
    water, fat = np.full((1, 8, 8), 0.6, np.float32), np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    picture = scene.Scene(grid, water, fat, {})
    signal = scanner.resonate(Dice(0.0), picture, np.radians(60), 3.0)
    np.testing.assert_allclose(np.abs(signal), np.abs(water - fat), atol=1e-5)
    late = scanner.resonate(Dice(0.4), picture, np.radians(60), 3.0)  # ms: fat turns by 2π · 220 Hz · 0.4 ms more
    expected = np.abs(water - fat * np.exp(-2j * np.pi * 220 * 0.0004))
    np.testing.assert_allclose(np.abs(late), expected, atol=1e-5)


def test_the_scanner_tells_nothing_about_the_group():
    """Pixel, slice distance and matrix come from the same dice: two groups, 300 hearts each, the same means."""

    def scanner(group, seed):
        rng = np.random.default_rng(seed)
        grid, thickness = phantom._place(rng, draw_heart(group, rng))
        return grid.pixel, thickness, len(grid.x), len(grid.y)

    drawn = {group: np.array([scanner(group, [seed, 3]) for seed in range(300)]) for group in ("RV", "DCM")}
    for column in range(4):
        first, second = drawn["RV"][:, column], drawn["DCM"][:, column]
        assert abs(first.mean() - second.mean()) < 3.5 * np.sqrt((first.var() + second.var()) / 300)


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


# --- against the real patients


def shares(image, mask, pixel):
    """Pixels of a prepared slice by tissue; lung and fat, which no mask tells, are the ends of the surroundings.

    The darkest third of what lies more than 10 mm from the heart, and the brightest tenth.
    """
    around = np.sort(image[distance_transform_edt(mask == 0) * pixel > 10])
    return {
        "blood": image[mask == 3],
        "right blood": image[mask == 1],
        "wall": image[mask == 2],
        "lung": around[: len(around) // 3],
        "fat": around[-len(around) // 10 :],
    }


@pytest.fixture(scope="module")
def cohorts(acdc_root, tmp_path_factory):
    """The training patients of ACDC and 50 phantoms: name → (patients, prepared slices)."""
    folder = tmp_path_factory.mktemp("cohorts")
    cohorts = {}
    for name, root in {"real": acdc_root, "phantom": write_phantom(folder / "phantom", seed=0)}.items():
        patients = [patient for patient in find_patients(root) if patient.official_split == "training"]
        cohorts[name] = patients, prepare(patients, folder / f"{name}-slices")
    return cohorts


def test_class_means_and_histograms_against_acdc(cohorts):
    """50 phantoms and the real patients.

    Class means of end-diastolic volume, ejection fraction and mass, from the masks, lie within one standard
    deviation of ACDC's. Grey values in [−1, 1] after `prepare`: the Wasserstein distance between real and
    synthetic histograms stays below 0.10 in blood, 0.08 in wall and lung, 0.05 in fat.
    """
    heart, grey = {}, {}
    for name, (patients, slices) in cohorts.items():
        rows = []
        for patient in patients:
            full, empty = (read_volume(patient, phase) for phase in ("ED", "ES"))
            volume = millilitres(full, 3)
            rows.append((patient.group, volume, 1 - millilitres(empty, 3) / volume, 1.05 * millilitres(full, 2)))
        heart[name] = pd.DataFrame(rows, columns=["group", "volume", "ejection", "mass"]).groupby("group")
        pictures, masks = slices.images[:, 0].numpy(), slices.masks.numpy()
        tissues = [shares(*pair, slices.pixel_mm) for pair in zip(pictures, masks, strict=True)]
        grey[name] = {key: np.concatenate([tissue[key] for tissue in tissues]) for key in tissues[0]}

    off = (heart["phantom"].mean() - heart["real"].mean()) / heart["real"].std()
    assert (off.abs() < 1).all(axis=None), f"in standard deviations of ACDC:\n{off}"
    at = np.linspace(0.005, 0.995, 199)
    distance = {
        key: np.abs(np.quantile(grey["real"][key], at) - np.quantile(grey["phantom"][key], at)).mean()
        for key in grey["real"]
    }
    print(off.round(2), {key: round(float(value), 3) for key, value in distance.items()}, sep="\n")
    bounds = {"blood": 0.10, "right blood": 0.10, "wall": 0.08, "lung": 0.08, "fat": 0.05}
    assert {key: value for key, value in distance.items() if value > bounds[key]} == {}


def test_right_ventricle_has_the_shape_of_acdc(cohorts):
    """In end-diastolic slices of the middle third: median angle, solidity, reach and area of the right ventricle.

    The angle is what it spans, in degrees, around the middle of the left one; solidity its share of its convex hull;
    reach and area are those of the left ventricle with its wall taken as 1.
    """
    medians = {}
    for name, (_, slices) in cohorts.items():
        rows = slices.manifest
        middle = rows["position"].between(0.3, 0.6) & (rows["phase"] == "ED") & (rows["group"] != "RV")
        shapes = []
        for mask in slices.masks[torch.tensor(middle.to_numpy(copy=True))].numpy():
            left, right = mask >= 2, mask == 1
            if right.sum() < 10:
                continue
            away = np.argwhere(right) - np.argwhere(left).mean(axis=0)
            turned = (away[:, 0] + 1j * away[:, 1]) / complex(*away.mean(axis=0))  # its own middle at angle 0
            low, high = np.percentile(np.angle(turned, deg=True), (2, 98))
            reach = np.hypot(*away.T).max() / np.sqrt(left.sum() / np.pi)
            shapes.append((high - low, regionprops(right.astype(int))[0].solidity, reach, right.sum() / left.sum()))
        medians[name] = np.median(shapes, axis=0)
    off = np.abs(medians["phantom"] - medians["real"])
    print(medians)
    assert (off < (8, 0.05, 0.12, 0.08)).all(), medians
