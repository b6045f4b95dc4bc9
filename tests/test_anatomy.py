"""Anatomy: rings whose wall is known, hearts that are none, the phantom's truth, and what a code goes with."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hearts import ellipse, heart, ring
from scipy.spatial import KDTree
from scipy.stats import wasserstein_distance

from hcm_helpers import anatomy
from hcm_helpers.acdc import DataError, find_patients
from hcm_helpers.anatomy import (
    MEASURES,
    NORMAL,
    anatomy_table,
    measure,
    measure_all,
    render,
    wasserstein_mm,
)
from hcm_helpers.similarity import REAL_TEST, REAL_TRAIN
from hcm_helpers.slices import prepare


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


@pytest.mark.parametrize("size", [64, 128])
def test_the_wall_of_the_phantom_is_as_thick_as_its_truth(size, small_phantom, phantom_slices, tmp_path):
    """At end-diastole: mean and asymmetry over a heart's middle third, and its largest thickness."""
    slices = phantom_slices if size == 128 else prepare(small_phantom, tmp_path / "slices", size)
    truth = pd.read_csv(small_phantom / "truth.csv").set_index("patient")
    segments = {number: truth[f"wall_{number:02d}_mm"] for number in range(7, 13)}
    septum, free = (segments[8] + segments[9]) / 2, sum(segments[number] for number in (7, 10, 11, 12)) / 4
    table = measure_all(slices.masks, slices.pixel_mm).join(slices.manifest)
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


# The table


def measured(walls, plausible=True):
    """As `measure_all` gives it: these largest walls, and the other measures twice, three times … as large."""
    walls = np.asarray(walls, float)
    table = pd.DataFrame({name: walls * (i + 1) for i, name in enumerate(list(MEASURES)[2:])})
    return table.assign(plausible=plausible, right_ventricle=np.arange(len(walls)) % 4 == 0)


def real(walls, patients, error=0.0):
    """As `measure_slices` gives it: the segmenter's walls are the expert's plus and minus `error` in turn."""
    offset = np.where(np.arange(len(walls)) % 2, error, -error)
    both = pd.concat({"expert": measured(walls), "segmenter": measured(walls + offset)}, names=["masks", "row"])
    both = both.reset_index()
    return both.assign(patient=np.asarray(patients)[both["row"]])


WALLS = 10 + np.arange(40) / 10  # mm


@pytest.fixture(scope="module")
def table():
    """Forty training slices of eight patients, and sets that are shifted from them by what is known."""
    owners = np.arange(40) % 8
    half_open = measured(WALLS)
    half_open.loc[:19, ["plausible", "cavity_mm2"]] = False, 1e6
    models = {"vae": measured(WALLS + 1.5), "gan": half_open, "dcgan": measured(WALLS, np.arange(40) < 9)}
    held_out, normal = real(WALLS + 1, owners // 2, error=0.25), real(WALLS - 4, owners * 0)
    return anatomy_table(models, real(WALLS, owners), held_out, normal, num_bootstrap=200)


def found(table, model, measure="max_wall_mm", masks="segmenter"):
    keys = table["model"] == model, table["measure"] == measure, table["masks"] == masks
    (row,) = table[np.logical_and.reduce(keys)].to_dict("records")
    return row


def test_the_table_has_a_row_for_each_set_kind_of_mask_and_measure(table):
    sets = list(dict.fromkeys(zip(table["model"], table["masks"], strict=True)))
    both = [(name, masks) for name in (REAL_TRAIN, REAL_TEST, NORMAL) for masks in ("expert", "segmenter")]
    assert sets == [("vae", "segmenter"), ("gan", "segmenter"), ("dcgan", "segmenter"), *both]
    assert len(table) == len(sets) * len(MEASURES)


def test_means_and_distances_are_those_of_the_shifts(table):
    vae, held_out, normal = found(table, "vae"), found(table, REAL_TEST, masks="expert"), found(table, NORMAL)
    assert vae["value"] == pytest.approx(11.95 + 1.5)
    assert [row["distance"] for row in (vae, held_out, normal)] == pytest.approx([1.5, 1, 4])
    assert [row["to_normal"] for row in (vae, held_out)] == pytest.approx([5.5, 5])
    assert np.isnan(normal["to_normal"])
    assert found(table, "vae", "asymmetry")["distance"] == pytest.approx(5 * 1.5)
    for row in (vae, held_out):
        assert row["low"] < row["value"] < row["high"]
        assert 0 < row["distance_low"] < row["distance"] < row["distance_high"]
    assert [(row["n"], row["drawn"]) for row in (vae, held_out, normal)] == [(40, 40), (40, 4), (40, 1)]
    assert np.isnan([normal["low"], normal["distance_low"]]).all()  # of one patient nothing can be drawn
    assert np.isnan(found(table, "vae", "plausible")["distance"])


def test_only_plausible_slices_are_measured_and_all_count_for_the_shares(table):
    assert found(table, "gan", "plausible")["value"] == 0.5
    assert found(table, "gan", "right_ventricle")["value"] == 0.25
    cavity = found(table, "gan", "cavity_mm2")
    assert (cavity["n"], cavity["value"]) == (20, pytest.approx(3 * WALLS[20:].mean()))


def test_the_segmenters_error_is_its_difference_from_the_expert(table):
    errors = {name: found(table, name, "mean_wall_mm")["error"] for name in (REAL_TRAIN, REAL_TEST)}
    assert errors == pytest.approx({REAL_TRAIN: 0, REAL_TEST: 2 * 0.25})
    assert math.isnan(found(table, REAL_TEST, masks="expert")["error"])


def test_masks_are_compared_with_masks_of_the_same_hand():
    """A segmenter that draws the training walls 3 mm too thick."""
    train = real(WALLS, np.arange(40) % 8)
    train.loc[train["masks"] == "segmenter", "max_wall_mm"] += 3
    test = real(WALLS, np.arange(40) % 4)
    table = anatomy_table({"vae": measured(WALLS + 3)}, train, test, test, num_bootstrap=10)
    assert found(table, "vae")["distance"] == pytest.approx(0)
    assert found(table, REAL_TEST)["distance"] == pytest.approx(3)
    assert found(table, REAL_TEST, masks="expert")["distance"] == pytest.approx(0)


def test_the_halves_of_two_patients_are_the_two():
    train = real(np.concatenate([WALLS[:12], WALLS[:12] + 2.5]), np.repeat(["a", "b"], 12))
    row = found(anatomy_table({}, train, train, train, num_bootstrap=20), REAL_TRAIN)
    assert (row["distance"], row["distance_low"], row["distance_high"]) == pytest.approx((2.5, 2.5, 2.5))


def test_distances_of_many_draws_equal_scipys_of_each():
    rng = np.random.default_rng(5)
    a, b = rng.normal(12, 3, 40), np.round(rng.normal(14, 4, 25))  # with ties
    weights = [rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=30) for values in (a, b)]
    expected = [wasserstein_distance(a, b, *drawn) for drawn in zip(*weights, strict=True)]
    np.testing.assert_allclose(anatomy._distances(a, b, *weights), expected, rtol=1e-10)


def test_few_patients_make_a_distance_less_sure_than_many():
    train = real(np.repeat(WALLS, 3), np.repeat(np.arange(40), 3))
    few, many = real(WALLS, np.arange(40) // 10), real(WALLS, np.arange(40))
    rows = [found(anatomy_table({}, train, test, train, num_bootstrap=200), REAL_TEST) for test in (few, many)]
    width = [row["distance_high"] - row["distance_low"] for row in rows]
    assert width[0] > 2 * width[1]


def test_too_few_plausible_slices_give_a_sentence_and_no_figure(table):
    row = found(table, "dcgan")
    assert row["note"] == "9 of 40 slices can be measured, too few for a figure"
    assert np.isnan([row["value"], row["low"], row["distance"], row["distance_low"]]).all()
    assert found(table, "dcgan", "plausible")["value"] == pytest.approx(9 / 40)
    text = render(table)
    assert text.loc["DCGAN", ("largest wall, mm", "mean")] == row["note"]
    assert text.loc["DCGAN", ("largest wall, mm", "distance")] == "–"


def test_without_a_reference_there_is_no_distance():
    train = real(WALLS, np.arange(40) % 8)
    table = anatomy_table({"vae": measured(WALLS)}, train.assign(plausible=False), train, train, num_bootstrap=10)
    assert found(table, REAL_TRAIN)["note"].startswith("0 of 40")
    assert found(table, "vae")["value"] == pytest.approx(11.95)
    assert table["distance"].isna().all()


def test_rendered_cells_say_figure_interval_and_number(table):
    text, row = render(table), found(table, "vae")
    expected = f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}] of 40"
    assert text.loc["VAE", ("largest wall, mm", "mean")] == expected
    assert text.loc[f"{REAL_TEST}, expert's masks", ("largest wall, mm", "distance")].startswith("1.0 [")
    assert text.loc[REAL_TEST, ("mean wall, mm", "error")] == "0.5"
    assert text.loc[NORMAL, ("largest wall, mm", "mean")] == "8.0 of 40"
    assert text.loc["GAN", ("plausible", "share")].startswith("0.50 [")


# Codes


def test_appearance_by_hand():
    masks = np.zeros((3, 64, 64), np.uint8)
    masks[0] = ring((8, 8), (12, 12), centre=(22, 40))
    masks[1, :2, :2] = 3  # a bare cavity in the upper left corner
    images = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 1, 64, 64)
    found = anatomy.appearance(images, torch.from_numpy(masks), 1.5)
    assert found["brightness"].tolist() == pytest.approx([0, 0.5, 1])
    assert found["right_mm"].tolist()[:2] == pytest.approx([(22 - 31.5) * 1.5, -31 * 1.5], abs=1e-6)
    assert found["down_mm"].tolist()[:2] == pytest.approx([(40 - 31.5) * 1.5, -31 * 1.5], abs=1e-6)
    assert found.loc[2, ["right_mm", "down_mm"]].isna().all()
    assert found["cavity_mm2"].tolist()[1:] == pytest.approx([4 * 1.5**2, 0])
    assert found["mean_wall_mm"][0] == pytest.approx(4 * 1.5, abs=0.3)
    assert found["mean_wall_mm"][1:].isna().all()


def test_rank_correlation_and_its_interval_by_hand():
    codes = torch.tensor([[1.0, 5], [2, 4], [3, 3], [4, 2], [5, 1]] * 4)
    ranks = np.array([2.0, 1, 4, 3, 5] * 4)
    measures = pd.DataFrame({"area": np.exp(ranks), "few": [1.0] * 5 + [np.nan] * 15, "same": 1.0})
    table = anatomy.code_correlations(codes, measures).set_index(["code", "measure"])
    # differences of ranks 1, 1, 1, 1, 0: r = 1 − 6 · 4 / (5 · 24) = 0.8, and the same for four of each
    assert table.loc[(1, "area"), ["value", "n"]].tolist() == pytest.approx([0.8, 20])
    assert table.loc[(2, "area"), "value"] == pytest.approx(-0.8)
    reach = 1.96 * math.sqrt(1.32 / 17)
    assert table.loc[(1, "area"), ["low", "high"]].tolist() == pytest.approx(
        [math.tanh(math.atanh(0.8) - reach), math.tanh(math.atanh(0.8) + reach)]
    )
    assert table.loc[[(1, "few"), (2, "same")], ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc[(1, "few"), "n"] == 5
