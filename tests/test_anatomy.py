"""Anatomy: rings whose wall is known, hearts that are none, the phantom's truth, and a network that overfits."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial import KDTree

from hcm_helpers.acdc import DataError, find_patients
from hcm_helpers.anatomy import (
    Segmenter,
    dice,
    jitter_both,
    measure,
    measure_all,
    segment,
    segmentation_loss,
    wasserstein_mm,
    with_masks,
)
from hcm_helpers.slices import prepare
from hcm_helpers.training import fit


def ellipse(radii, centre=(32, 32), turn=0.0, size=64):
    """The pixels inside an ellipse: radii (a, b) along an axis turned from x, centre (x, y)."""
    y, x = np.mgrid[:size, :size]
    along = (x - centre[0]) * math.cos(turn) + (y - centre[1]) * math.sin(turn)
    across = (y - centre[1]) * math.cos(turn) - (x - centre[0]) * math.sin(turn)
    return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1


def ring(inner, outer, offset=0.0, centre=(32, 32), turn=0.0, size=64):
    """A cavity of radii `inner` in a wall up to radii `outer`, shifted in it by `offset` along its axis."""
    shifted = centre[0] + offset * math.cos(turn), centre[1] + offset * math.sin(turn)
    mask = np.zeros((size, size), np.uint8)
    mask[ellipse(outer, centre, turn, size)] = 2
    mask[ellipse(inner, shifted, turn, size)] = 3
    return mask


def heart():
    """A ring of 20 and 12 pixels with a right ventricle on its left."""
    mask = ring((12, 12), (20, 20), centre=(38, 32))
    mask[ellipse((16, 16), (16, 32)) & (mask == 0)] = 1
    return mask


def curve(radii, centre, turn):
    angle = np.linspace(0, 2 * np.pi, 2000)
    along, across = radii[0] * np.cos(angle), radii[1] * np.sin(angle)
    c, s = math.cos(turn), math.sin(turn)
    return np.stack([centre[0] + c * along - s * across, centre[1] + s * along + c * across], axis=1)


# Thickness


@pytest.mark.parametrize("thickness", [3, 5, 8, 12])
@pytest.mark.parametrize("radius", [4, 9, 16])
@pytest.mark.parametrize("centre", [(32, 32), (31.5, 32.5), (30.3, 33.8)])
def test_a_ring_is_as_thick_as_drawn(thickness, radius, centre):
    mask = ring((radius, radius), (radius + thickness,) * 2, centre=centre)
    found = measure(mask, 1.0)
    assert found.plausible
    assert found.max_wall_mm == pytest.approx(thickness, abs=0.5)
    assert found.mean_wall_mm == pytest.approx(thickness, abs=0.25)
    assert found.cavity_mm2 == pytest.approx(math.pi * radius**2, rel=0.02, abs=6)


@pytest.mark.parametrize("seed", range(12))
def test_an_eccentric_ring_has_its_known_maximum_and_mean(seed):
    rng = np.random.default_rng(seed)
    thickness, radius, turn = rng.uniform(5, 9), rng.uniform(5, 13), rng.uniform(0, 2 * np.pi)
    offset = rng.uniform(0.2, 0.6) * (thickness - 2)
    mask = ring((radius,) * 2, (radius + thickness,) * 2, offset, tuple(rng.uniform(30, 33, 2)), turn)
    angle = np.linspace(0, 2 * np.pi, 1000)
    outside = (radius + thickness) * np.exp(1j * angle)  # distance to the inner circle is known for each
    found = measure(mask, 1.0)
    assert found.max_wall_mm == pytest.approx(thickness + offset, abs=0.5)
    assert found.mean_wall_mm == pytest.approx((abs(outside - offset) - radius).mean(), abs=0.25)


@pytest.mark.parametrize("seed", range(12))
def test_an_elliptical_ring_has_the_distance_between_its_curves(seed):
    rng = np.random.default_rng(seed)
    thickness, radius, turn = rng.uniform(3, 9), rng.uniform(6, 11), rng.uniform(0, np.pi)
    inner, outer = (1.5 * radius, radius), (1.5 * radius + thickness, radius + thickness)
    centre = tuple(rng.uniform(30, 33, 2))
    distance = KDTree(curve(inner, centre, turn)).query(curve(outer, centre, turn))[0]
    found = measure(ring(inner, outer, 0.0, centre, turn), 1.0)
    assert found.max_wall_mm == pytest.approx(distance.max(), abs=0.5)
    assert found.mean_wall_mm == pytest.approx(distance.mean(), abs=0.25)


def test_lengths_go_with_the_pixel_and_areas_with_its_square():
    one, two = measure(heart(), 1.0), measure(heart(), 2.5)
    for name, factor in (("max_wall_mm", 2.5), ("mean_wall_mm", 2.5), ("wall_mm2", 6.25), ("cavity_mm2", 6.25)):
        assert getattr(two, name) == pytest.approx(factor * getattr(one, name))
    assert two.asymmetry == pytest.approx(one.asymmetry)


def test_a_mask_turned_by_a_quarter_or_mirrored_measures_the_same():
    mask = ring((7, 9), (16, 15), 2.0, turn=0.4)
    first = measure(mask, 1.0)
    for other in (np.rot90(mask), mask.T, mask[::-1]):
        assert measure(other, 1.0).max_wall_mm == pytest.approx(first.max_wall_mm, abs=0.15)


# Asymmetry


def test_an_even_ring_has_an_asymmetry_of_one_and_a_thick_septum_more():
    assert measure(heart(), 1.0).asymmetry == pytest.approx(1.0, abs=0.05)
    thick = heart()
    thick[thick == 3] = 2
    thick[ellipse((10, 10), (42, 32))] = 3  # 14 pixels of wall on the left, 6 on the right
    assert measure(thick, 1.0).asymmetry > 1.5
    thin = heart()
    thin[thin == 3] = 2
    thin[ellipse((10, 10), (34, 32))] = 3
    assert measure(thin, 1.0).asymmetry < 0.7


def test_without_a_right_ventricle_or_with_one_far_away_there_is_no_asymmetry():
    mask = heart()
    mask[mask == 1] = 0
    alone = measure(mask, 1.0)
    mask[2:8, 2:8] = 1
    far = measure(mask, 1.0)
    for found in (alone, far):
        assert found.plausible
        assert not found.right_ventricle
        assert math.isnan(found.asymmetry)
    assert measure(heart(), 1.0).right_ventricle


# What is no heart


def test_specks_pinholes_and_a_gap_of_one_pixel_in_a_large_ring_are_forgiven():
    mask = heart()
    mask[1, 1], mask[60, 5:8] = 3, 2  # far away
    mask[32, 38], mask[32, 45] = 0, 2  # in the cavity, and a papillary muscle
    found = measure(mask, 1.0)
    assert found.plausible
    assert found.max_wall_mm == pytest.approx(measure(heart(), 1.0).max_wall_mm, abs=0.05)
    mask = ring((14, 14), (20, 20))
    mask[32, 46:] = 0
    assert measure(mask, 1.0).plausible


def cut_open():
    mask = heart()
    mask[29:36, 38:] = 0
    mask[29:36, 38:50] = 3
    return mask


def open_to_the_right_ventricle():
    mask = heart()
    mask[29:36, 16:28] = 1
    return mask


def two_cavities():
    mask = heart()
    mask[:, 37:40][mask[:, 37:40] == 3] = 2
    return mask


def two_walls():
    mask = heart()
    mask[2:12, 2:12] = 2
    return mask


def hollow_wall():
    mask = heart()
    mask[28:36, 51:57] = 0
    return mask


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((64, 64), np.uint8), "no wall"),
        (np.where(heart() == 2, 0, heart()), "no wall"),
        (np.where(heart() == 3, 2, heart()), "no cavity"),
        (np.where(heart() == 3, 0, heart()), "no cavity"),
        (cut_open(), "the wall is open"),
        (open_to_the_right_ventricle(), "the wall is open"),
        (two_cavities(), "the cavity is in pieces"),
        (two_walls(), "the wall is in pieces"),
        (hollow_wall(), "the wall has a hole"),
        (heart()[:, 20:58], "the wall reaches the edge of the picture"),
    ],
)
def test_what_is_no_closed_ring_is_told_and_not_measured(mask, reason):
    found = measure(mask, 2.0)
    assert not found.plausible
    assert found.reason == reason
    assert math.isnan(found.max_wall_mm)
    assert math.isnan(found.mean_wall_mm)
    assert math.isnan(found.asymmetry)
    assert found.wall_mm2 == 4 * (mask == 2).sum()
    assert found.cavity_mm2 == 4 * (mask == 3).sum()


def test_the_smallest_cavity_is_measured():
    mask = ring((4, 4), (6, 6))
    mask[mask == 3] = 2
    mask[32, 32] = 3
    assert measure(mask, 1.0).max_wall_mm == pytest.approx(5.5, abs=0.6)


def test_measure_all_has_one_row_a_mask_as_measure_gives_it():
    masks = np.stack([heart(), np.zeros_like(heart()), cut_open()])
    for given in (masks, torch.from_numpy(masks)):
        table = measure_all(given, 1.5)
        assert table["plausible"].tolist() == [True, False, False]
        assert table["max_wall_mm"][0] == measure(heart(), 1.5).max_wall_mm
        assert table["max_wall_mm"][1:].isna().all()
    assert list(measure_all(masks[:0], 1.5)) == list(table)


@pytest.mark.parametrize(
    ("mask", "pixel"),
    [(heart()[None], 1.0), (heart() + 1, 1.0), (heart() / 2, 1.0), (heart(), 0.0), (heart(), float("nan"))],
)
def test_measure_refuses_what_is_no_mask(mask, pixel):
    with pytest.raises(DataError, match=r"mask:|pixel_mm"):
        measure(mask, pixel)


# Distance


def test_wasserstein_of_a_shift_is_the_shift_and_nan_is_left_out():
    a = np.arange(10.0)
    assert wasserstein_mm(a, a) == 0
    assert wasserstein_mm([*a, np.nan], pd.Series(a[::-1] + 2.5)) == pytest.approx(2.5)


def test_wasserstein_of_too_few_is_refused():
    a = np.arange(10.0)
    with pytest.raises(DataError, match="b: 9 measurements"):
        wasserstein_mm(a, np.where(a == 3, np.nan, a))


# The phantom's truth


@pytest.fixture(scope="module")
def phantom_slices(small_phantom, tmp_path_factory):
    return prepare(small_phantom, tmp_path_factory.mktemp("anatomy") / "slices", image_size=128)


def test_the_wall_of_the_phantom_is_as_thick_as_its_truth(small_phantom, phantom_slices):
    """At end-diastole: mean and asymmetry over a heart's middle third, and its largest thickness."""
    truth = pd.read_csv(small_phantom / "truth.csv").set_index("patient")
    segments = {number: truth[f"wall_{number:02d}_mm"] for number in range(7, 13)}
    septum, free = (segments[8] + segments[9]) / 2, sum(segments[number] for number in (7, 10, 11, 12)) / 4
    table = measure_all(phantom_slices.masks, phantom_slices.pixel_mm).join(phantom_slices.manifest)
    table["height"] = 1.1 * table["position"]  # in lengths of the cavity, beyond which the labels end so far
    table = table[table["phase"] == "ED"]
    middle = table[table["height"].between(1 / 3, 2 / 3)]
    assert middle["plausible"].all()
    assert middle["right_ventricle"].all()
    found = middle.groupby("patient")[["mean_wall_mm", "asymmetry"]].mean()
    assert (found["mean_wall_mm"] - (2 * septum + 4 * free) / 6).abs().mean() < 0.5
    assert (found["asymmetry"] - septum / free).abs().mean() < 0.1
    largest = table[table["height"] < 0.9].groupby("patient")["max_wall_mm"].max()
    assert (largest - truth["max_wall_mm"]).abs().mean() < 1.0


def test_real_masks_are_plausible_and_hypertrophy_is_thick(acdc_root, tmp_path):
    patients = [patient for patient in find_patients(acdc_root) if patient.group in ("NOR", "HCM")][::5]
    slices = prepare(patients, tmp_path / "slices", image_size=64)
    table = measure_all(slices.masks, slices.pixel_mm).join(slices.manifest)
    assert table["plausible"].mean() > 0.9
    largest = table[table["phase"] == "ED"].groupby(["group", "patient"])["max_wall_mm"].max().groupby("group").mean()
    assert largest["HCM"] > 15 > largest["NOR"]


# Segmentation


def test_dice_by_hand():
    truth, prediction = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
    truth[0, :2, :2] = 2  # 4 pixels
    prediction[0, :2, :3] = 2  # 6, with 4 in common
    truth[1, 0, :3] = 3  # missed
    found = dice(prediction, truth)
    assert found["myocardium"] == pytest.approx(2 * 4 / 10)
    assert found["left ventricle"] == 0
    assert math.isnan(found["right ventricle"])
    with pytest.raises(DataError, match="one shape"):
        dice(prediction, truth[:1])


def test_the_loss_of_the_right_answer_is_nothing_and_of_no_answer_known():
    masks = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    sure = 50 * torch.nn.functional.one_hot(masks.long(), 4).movedim(-1, 1).float()
    assert segmentation_loss(sure, masks).item() == pytest.approx(0, abs=1e-4)
    # p = 1/4 everywhere: cross-entropy log 4; Dice of a structure with a quarter of the pixels 2·(1/16)/(1/2) = 1/4
    assert segmentation_loss(torch.zeros(2, 4, 64, 64), masks).item() == pytest.approx(math.log(4) + 0.75, abs=0.01)


def test_image_and_mask_are_moved_alike():
    """Where the image is bright, the mask says 3, before and after."""
    torch.manual_seed(0)
    masks = torch.from_numpy(ring((7, 10), (12, 16), 1.0)).repeat(6, 1, 1)
    images = torch.where(masks == 3, 1.0, -1.0)[:, None]
    moved, drawn = jitter_both(images, masks)
    assert moved.shape == images.shape
    assert drawn.shape == masks.shape
    assert ((moved[:, 0] > 0) != (drawn == 3)).float().mean() < 0.01
    assert ((drawn != masks).flatten(1).sum(1) > 20).all()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes(size):
    model = Segmenter(size, width=8)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 4, size, size)
    masks = segment(model, torch.zeros(3, 1, size, size), batch_size=2)
    assert masks.shape == (3, size, size)
    assert masks.dtype == torch.uint8
    assert model.training


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 1, 64, 64), torch.zeros(0, 1, 32, 32), torch.full((1, 1, 32, 32), math.nan)]
)
def test_segment_refuses_what_is_no_image(images):
    with pytest.raises(DataError, match="images: must be"):
        segment(Segmenter(32, width=8), images)
    with pytest.raises(DataError, match="images: must be"):
        segment(Segmenter(32, width=8), torch.full((1, 1, 32, 32), 2.0))


def test_fit_makes_it_learn_four_slices_by_heart(small_phantom, tmp_path):
    slices = with_masks(prepare(small_phantom, tmp_path / "slices", image_size=32))
    rows = [i for i in range(len(slices)) if len(slices.masks[i].unique()) == 4][::40][:4]
    few = replace(
        slices,
        images=slices.images[rows],
        labels=slices.labels[rows],
        masks=slices.masks[rows],
        manifest=slices.manifest.iloc[rows].reset_index(drop=True),
    )
    torch.manual_seed(0)
    model = Segmenter(32, width=16, dropout=0.0)
    fit(model, few, few, tmp_path, epochs=180, batch_size=4, learning_rate=2e-3, patience=0, validate_every=90)
    scores = dice(segment(model, few.images), few.masks)
    assert min(scores.values()) > 0.9


def test_slices_without_mask_are_not_learned_from(phantom_slices):
    manifest = phantom_slices.manifest.assign(labelled=np.arange(len(phantom_slices)) % 3 == 0)
    some = with_masks(replace(phantom_slices, manifest=manifest))
    assert torch.equal(some.labels, phantom_slices.masks[::3])
    assert torch.equal(some.images, phantom_slices.images[::3])
    with pytest.raises(DataError, match="none has a mask"):
        with_masks(replace(phantom_slices, manifest=manifest.assign(labelled=False)))
