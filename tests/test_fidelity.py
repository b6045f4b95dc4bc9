"""Distances between sets of images: closed forms and cases by hand, and what noise, blur and collapse do to them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rings import ring_slices
from scipy.linalg import sqrtm

from hcm_helpers import fidelity
from hcm_helpers.acdc import DataError
from hcm_helpers.fidelity import (
    disturbed,
    diversity,
    fidelity_table,
    frechet_distance,
    group_table,
    half_power,
    kernel_distance,
    neighbourhoods,
    power_spectrum,
    render,
    sliced_wasserstein,
)
from hcm_helpers.similarity import REAL_TEST, REAL_TRAIN, ms_ssim

TRAIN, TEST = ring_slices(range(8), ("HCM",)), ring_slices(range(100, 108), ("HCM",))
OTHERS = ring_slices(range(100, 104), ("DCM",))


@pytest.fixture(scope="module")
def table(encoder):
    changed = disturbed(TEST.images, TRAIN.images, OTHERS.images)
    return fidelity_table(changed, encoder, TRAIN, TEST)


def normal(n, d, seed, shift=0.0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (n, d)))


# Closed forms and cases by hand


def test_fd_of_a_gaussian_and_a_shifted_one_is_the_square_of_the_shift():
    x = normal(500, 6, 0)
    shift = torch.tensor([1.0, -2.0, 0, 0, 0.5, 0])
    assert frechet_distance(x, x + shift) == pytest.approx(5.25, abs=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, 3 * x) == pytest.approx(
        4 * (x.mean(0).square().sum() + torch.trace(torch.cov(x.T))).item(), rel=1e-6
    )
    large = normal(200_000, 2, 1), normal(200_000, 2, 2, shift=2.0, scale=3.0)
    assert frechet_distance(*large) == pytest.approx(2 * 2.0**2 + 2 * (3 - 1) ** 2, rel=0.02)


def test_fd_of_any_two_sets_is_that_by_scipy():
    x, y = normal(60, 5, 0) @ normal(5, 5, 1), normal(70, 5, 2) @ normal(5, 5, 3) + 1
    (a, b), (mean_a, mean_b) = (np.cov(f.T) for f in (x, y)), (f.mean(0) for f in (x, y))
    expected = (mean_a - mean_b).square().sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_fd_with_more_features_than_images_is_the_same_in_the_space_they_span(monkeypatch):
    x, y = normal(12, 40, 0), normal(15, 40, 1, shift=0.3)
    turned = frechet_distance(x, y)
    a, b = np.cov(x.T), np.cov(y.T)
    roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    expected = (x.mean(0) - y.mean(0)).square().sum().item() + np.trace(a) + np.trace(b) - 2 * roots
    assert turned == pytest.approx(expected, rel=1e-4)


def mmd(x, y):
    """The unbiased estimate, pair by pair."""

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_kid_is_the_unbiased_mmd():
    x, y = normal(20, 3, 0), normal(20, 3, 1, shift=0.5)
    value, low, high = kernel_distance(x, y)
    assert value == pytest.approx(mmd(x, y), rel=1e-6)
    assert low < value < high
    assert low == pytest.approx(value - (high - value), abs=0.2 * (high - low))
    more = normal(60, 3, 2, shift=0.5)
    assert kernel_distance(x, more)[0] == pytest.approx(mmd(x, more), rel=0.2)  # subsets of 20 of the 60


def test_kid_is_zero_on_average_for_equal_distributions_and_its_interval_covers_that(monkeypatch):
    x = normal(1000, 4, 0)
    monkeypatch.setattr(fidelity, "LARGEST_SUBSET", 10)  # the value is not looked at
    intervals = [kernel_distance(x, normal(50, 4, seed, shift=0.5))[1:] for seed in range(1, 41)]
    truth = mmd_of_normals(shift=0.5, d=4)
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.8 <= covered <= 1.0
    values = [kernel_distance(normal(10, 4, seed), normal(10, 4, 1000 + seed))[0] for seed in range(100)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 10


def test_kids_interval_is_as_wide_as_leaving_one_out_says():
    x, y = normal(15, 3, 0, shift=1.5), normal(15, 3, 1)
    without = np.array([mmd(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(15)])
    error = np.sqrt(14 / 15 * ((without - without.mean()) ** 2).sum())
    _, low, high = kernel_distance(x, y)
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.15)


def mmd_of_normals(shift, d):
    """E[(x·y/d + 1)³] in closed form: with s = x·y, E s = x̄·ȳ and E s² as for independent normals, E s³ likewise."""

    def expectation(a, b):  # means a and b in every coordinate, unit variances
        first = a * b
        second = (1 + a * a) * (1 + b * b)
        third = (a**3 + 3 * a) * (b**3 + 3 * b)
        m1 = d * first
        m2 = d * second + d * (d - 1) * first**2
        m3 = d * third + 3 * d * (d - 1) * second * first + d * (d - 1) * (d - 2) * first**3
        return m3 / d**3 + 3 * m2 / d**2 + 3 * m1 / d + 1

    return expectation(0, 0) + expectation(shift, shift) - 2 * expectation(0, shift)


def test_kid_of_patients_has_a_wider_interval_than_of_their_images():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(8), 10)
    y = torch.from_numpy(rng.normal(0, 1, (8, 4))[patients] + rng.normal(0, 0.1, (80, 4)))
    _, low, high = kernel_distance(normal(100, 4, 1), y)
    _, low_patients, high_patients = kernel_distance(normal(100, 4, 1), y, patients)
    assert high_patients - low_patients > 1.5 * (high - low)


def test_the_same_seed_gives_the_same_kid_and_leaves_the_other_draws_alone():
    x, y = normal(40, 3, 0), normal(30, 3, 1)
    torch.manual_seed(5)
    first = kernel_distance(x, y)
    after = torch.rand(1)
    assert kernel_distance(x, y) == first
    assert kernel_distance(x, y, seed=1)[0] != first[0]
    torch.manual_seed(5)
    assert torch.rand(1) == after


def line(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


def test_neighbourhoods_by_hand():
    # On a line with k = 1: real 0, 1, 3, 10 have radii 1, 1, 2, 7; generated 0.5, 2.5, 20, 21: 2, 2, 1, 1.
    found = neighbourhoods(line(0, 1, 3, 10), line(0.5, 2.5, 20, 21), k=1)
    assert found["precision"].tolist() == [1, 1, 0, 0]
    assert found["density"].tolist() == [2, 1, 0, 0]  # 0.5 lies within 0 and 1; 2.5 within 3 (10's ball starts at 3)
    assert found["recall"].tolist() == [1, 1, 1, 0]
    assert found["coverage"].tolist() == [1, 1, 1, 0]
    found = neighbourhoods(line(0, 1, 3, 10), line(0.4, 0.5, 9, 9.1), k=1)  # whose radii are 0.1
    assert found["recall"].tolist() == [0, 0, 0, 0]
    assert found["coverage"].tolist() == [1, 1, 0, 1]
    found = neighbourhoods(line(0, 1, 3, 10), line(0.5, 2.5, 20, 21), k=2)  # radii 3, 2, 3, 9
    assert found["density"].tolist() == [1.5, 2, 0, 0]
    assert found["precision"].tolist() == [1, 1, 0, 0]
    assert found["coverage"].tolist() == [1, 1, 1, 1]


def test_density_sees_the_outlier_that_precision_lets_pass():
    real = torch.cat([normal(100, 2, 0), torch.full((1, 2), 50.0)])
    between = torch.full((20, 2), 25.0) + normal(20, 2, 1)
    found = neighbourhoods(real, between)
    assert found["precision"].mean() == 1
    assert found["density"].mean() == pytest.approx(0.2)  # one ball of k = 5


def test_diversity_of_one_image_is_one_and_of_noise_low():
    one = ring_slices([0]).images[:1].repeat(20, 1, 1, 1)
    assert diversity(one)[0] == pytest.approx(1, abs=1e-5)
    noise = torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    value, low, high = diversity(noise)
    assert low <= value <= high < 0.2


def test_diversity_of_two_images_is_their_ms_ssim():
    x, y = TEST.images[:1], TEST.images[15:16]
    value, low, _ = diversity(torch.cat([x, y]))
    assert value == pytest.approx(ms_ssim((x + 1) / 2, (y + 1) / 2).item(), abs=1e-6)
    assert np.isnan(low), "two images have one pair only"


def test_the_interval_of_diversity_is_as_wide_as_diversity_varies():
    def sample(seed: int) -> torch.Tensor:
        which = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.3
        return torch.where(which[:, None, None, None], TEST.images[:1], -TEST.images[:1])

    found = np.array([diversity(sample(seed)) for seed in range(30)])
    assert (found[:, 2] - found[:, 1]).mean() == pytest.approx(2 * 1.96 * found[:, 0].std(ddof=1), rel=0.3)


def test_diversity_of_few_images_has_an_interval():
    noise = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert np.isfinite(diversity(noise)).all(), "a draw of one image three times has no pair and does not count"


def test_no_image_is_a_pair_with_itself_and_patients_widen_the_interval():
    images = torch.cat([TEST.images[k : k + 1].repeat(10, 1, 1, 1) for k in range(0, 80, 16)])
    value, low, high = diversity(images, np.repeat(np.arange(5), 10))
    one = np.mean([diversity(images[[a, b]])[0] for a in range(0, 50, 10) for b in range(a + 10, 50, 10)])
    assert value == pytest.approx(9 / 49 + 40 / 49 * one, abs=0.04)
    _, low_images, high_images = diversity(images)
    assert high - low > 1.5 * (high_images - low_images)


# The table, and what disturbs it


def values(table, measure):
    return table[table["measure"] == measure].set_index("model")["value"]


def test_the_table_has_every_measure_with_its_number(table, encoder):
    models = ["noise", "blur", "one image repeated", "other groups", "10 % copies", REAL_TEST, REAL_TRAIN]
    assert table["model"].drop_duplicates().tolist() == models
    assert not table.duplicated(["model", "measure"]).any()
    assert set(table["measure"]) == set(fidelity.MEASURES)
    # Test slices are not compared with themselves, and real slices are fewer than a model's.
    assert len(table) == len(models) * len(fidelity.MEASURES) - 3
    assert table[table["measure"] == "recall of all"]["model"].tolist() == models[:-2]
    matched = table[table["measure"].isin(["FD", "relative FD", "recall", "coverage", "sliced Wasserstein"])]
    assert set(matched["n"]) == {40}  # of half the training patients, and of the other groups
    whole = table[table["measure"].isin(["KID", "precision", "density"])].set_index("model")["n"]
    assert set(whole[["noise", REAL_TEST]]) == {80}
    with_interval = table[table["drawn"] != ""]
    assert (with_interval["low"] <= with_interval["high"]).all()
    assert table[table["drawn"] == ""][["low", "high"]].isna().all().all()
    drawn = table.set_index(["model", "measure"])["drawn"]
    assert (drawn["noise", "KID"], drawn[REAL_TEST, "KID"], drawn["noise", "recall"]) == (
        "images",
        "patients",
        "patients",
    )
    assert values(table, "relative FD")[REAL_TRAIN] == 1
    features = [encoder.features(slices.images) for slices in (TRAIN, TEST)]
    expected = kernel_distance(*features, TEST.manifest["patient"].to_numpy())
    found = table.set_index(["model", "measure"]).loc[(REAL_TEST, "KID"), ["value", "low", "high"]]
    assert found.tolist() == pytest.approx(expected)
    # to the held-out slices: training slices as real, and "other groups" as images of a model
    to_test = table[table["measure"] == "KID to test"].set_index("model")[["value", "low", "high"]]
    assert to_test.loc[REAL_TRAIN].tolist() == pytest.approx(
        kernel_distance(*reversed(features), TRAIN.manifest["patient"].to_numpy())
    )
    assert to_test.loc["other groups"].tolist() == pytest.approx(
        kernel_distance(features[1], encoder.features(OTHERS.images))
    )
    assert REAL_TEST not in to_test.index
    all_images = table[table["measure"] == "recall of all"].set_index("model").loc["10 % copies"]
    images = disturbed(TEST.images, TRAIN.images, OTHERS.images)["10 % copies"]
    near = fidelity.neighbourhoods(features[0], encoder.features(images))["recall"]
    assert (all_images["value"], all_images["n"]) == (pytest.approx(near.mean().item()), len(images))


@pytest.mark.parametrize(
    ("measure", "disturbance", "direction"),
    [
        *((measure, change, 1) for measure in ("KID", "FD") for change in ("noise", "blur", "one image repeated")),
        *((measure, "other groups", 1) for measure in ("KID", "FD", "relative FD", "sliced Wasserstein")),
        *((measure, "10 % copies", -1) for measure in ("KID", "FD")),
        *((measure, change, -1) for measure in ("precision", "density") for change in ("noise", "blur")),
        *((measure, change, -1) for measure in ("recall", "coverage") for change in ("noise", "blur")),
        *((measure, "one image repeated", -1) for measure in ("recall", "coverage")),
        *((measure, "other groups", -1) for measure in ("precision", "density", "recall", "coverage")),
        *((measure, "10 % copies", 1) for measure in ("recall", "coverage")),
        ("MS-SSIM", "one image repeated", 1),
        ("MS-SSIM", "blur", 1),
        ("sliced Wasserstein", "one image repeated", 1),
    ],
)
def test_each_measure_notices(table, measure, disturbance, direction):
    found = values(table, measure)
    before, after = found[REAL_TEST], found[disturbance]
    assert direction * (after - before) > 0.02 * abs(before)


def test_one_image_repeated_is_no_diversity_and_covers_nothing(table):
    assert values(table, "MS-SSIM")["one image repeated"] == pytest.approx(1, abs=1e-5)
    assert values(table, "recall")["one image repeated"] == 0


def test_a_real_model_of_many_images_is_compared_by_as_few(encoder):
    more = ring_slices(range(200, 215), ("HCM",)).images
    found = fidelity_table({"gan": more}, encoder, TRAIN, TEST).set_index(["model", "measure"])
    assert found.loc[("gan", "FD"), "n"] == 40
    assert found.loc[("gan", "KID"), "n"] == 150
    assert found.loc[("gan", "relative FD"), "value"] == pytest.approx(1, abs=0.4), "as good as real hearts"


def test_render_is_a_row_a_model(table):
    wide = render(table)
    assert wide.index.tolist() == table["model"].drop_duplicates().tolist()
    assert "FD ↓, n = 40" in wide
    assert "MS-SSIM" in wide
    assert wide.loc[REAL_TEST, "KID to test ↓"] == "–"
    cell = wide.loc["noise", "KID ↓"]
    assert cell.startswith(f"{values(table, 'KID')['noise']:.3f} [")
    assert cell.endswith(", n = 80")


def test_disturbed_images_are_what_their_names_say():
    changed = disturbed(TEST.images, TRAIN.images, OTHERS.images)
    assert torch.equal(changed["one image repeated"], TEST.images[:1].expand(80, -1, -1, -1))
    same = (changed["10 % copies"] == TEST.images).flatten(1).all(dim=1)
    assert (~same).sum() == 8
    for image in changed["10 % copies"][~same]:
        assert (TRAIN.images == image).flatten(1).all(dim=1).any()
    assert changed["noise"].abs().max() <= 1
    assert (changed["noise"] - TEST.images).abs().mean() > 0.05
    steps = [(images[..., 1:] - images[..., :-1]).abs().mean() for images in (changed["blur"], TEST.images)]
    assert steps[0] < steps[1]


# Bad input


def test_bad_input_is_named(encoder):
    good = TEST.images
    for images, sentence in (
        (good[:9], "gan: 9 images are no distribution"),
        (good[:0], "gan: 0 images are no distribution"),
        (torch.zeros(20, 1, 64, 64), "gan: images have shape"),
        (good * 1.5, "gan: images lie in"),
        (torch.full_like(good, float("nan")), "gan: images hold NaN"),
    ):
        with pytest.raises(DataError, match=sentence):
            fidelity_table({"gan": images}, encoder, TRAIN, TEST)
    empty = replace(TEST, images=good[:0], manifest=TEST.manifest.iloc[:0])
    with pytest.raises(DataError, match="real test slices: 0 images"):
        fidelity_table({"gan": good}, encoder, TRAIN, empty)
    with pytest.raises(DataError, match="patient000, who has no halves"):
        fidelity_table({"gan": good}, encoder, ring_slices([0]), TEST)
    few = replace(TRAIN, images=TRAIN.images[5:25], manifest=TRAIN.manifest.iloc[5:25].reset_index(drop=True))
    with pytest.raises(DataError, match="half of the patients have 5"):
        fidelity_table({"gan": good}, encoder, few, TEST)
    with pytest.raises(DataError, match="5-th neighbour"):
        neighbourhoods(normal(5, 2, 0), normal(20, 2, 1))
    with pytest.raises(DataError, match="9 images"):
        kernel_distance(normal(9, 2, 0), normal(20, 2, 1))
    with pytest.raises(DataError, match="9 images"):
        frechet_distance(normal(20, 2, 0), normal(9, 2, 1))
    for images in (torch.zeros(2, 1, 64, 64), torch.zeros(0, 1, 32, 32), torch.full((1, 1, 32, 32), float("nan"))):
        with pytest.raises(DataError, match="images"):
            encoder.features(images)


# Pixels


def test_sliced_wasserstein_of_a_shift():
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(x, x) == 0
    # A shift by c moves every projection by c · Σ direction, whose mean size over directions is c · √(2/π).
    assert sliced_wasserstein(x, x + 0.5) == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.1)


# Groups


def test_the_group_table_counts_right_answers_and_compares_within_a_group(monkeypatch):
    train, test = ring_slices(range(10)), ring_slices(range(100, 105))
    images, labels = torch.cat([test.images[:5], test.images[10:15]]), torch.tensor([0] * 5 + [1] * 5)
    images[5:] = images[5]  # of MINF always the same
    monkeypatch.setattr("hcm_helpers.fidelity.recognise", lambda encoder, x: torch.arange(len(x)) % 5)
    table = group_table({"acgan": (images, labels)}, None, train, test).set_index(["model", "group", "measure"])
    assert table.loc[("acgan", "all", "recognised"), "value"] == pytest.approx(0.2)  # images 0 and 6
    assert table.loc[("acgan", "MINF", "recognised"), ["value", "n"]].tolist() == pytest.approx([0.2, 5])
    assert table.loc[("acgan", "MINF", "MS-SSIM"), "value"] == pytest.approx(1)
    within = table.loc[("acgan", "NOR", "MS-SSIM"), "value"]
    assert within == diversity(images[:5])[0] < 0.999
    assert table.loc[("acgan", "all", "MS-SSIM"), "value"] == pytest.approx((1 + within) / 2)
    assert table.loc[(REAL_TRAIN, "HCM", "recognised"), "n"] == 20
    assert np.isnan(table.loc[(REAL_TEST, "HCM", "recognised"), "low"])  # one patient
    assert list(table.index.get_level_values("model").unique()) == ["acgan", REAL_TEST, REAL_TRAIN]


def waves(cycles_across, cycles_down, size=32):
    place = torch.arange(size) / size
    return torch.sin(2 * np.pi * (cycles_across * place + cycles_down * place[:, None]))[None, None]


def test_power_of_white_noise_is_its_variance_at_all_frequencies():
    noise = 0.3 * torch.randn(400, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    frequency, power = power_spectrum(noise, pixel_mm=2.5)
    assert frequency.tolist() == pytest.approx([k / 80 for k in range(1, 17)])  # 32 pixels of 2.5 mm are 80 mm
    assert power.numpy() == pytest.approx(np.full(16, 0.09), rel=0.1)


@pytest.mark.parametrize(("across", "down", "ring"), [(5, 0, 5), (0, 5, 5), (3, 4, 5), (-6, 8, 10)])
def test_power_of_a_wave_lies_at_its_frequency_in_any_direction(across, down, ring):
    _, power = power_spectrum(waves(across, down) + 0.7)  # a brightness that is no frequency
    assert power.argmax() == ring - 1
    assert power[ring - 2 : ring + 1].sum() > 0.99 * power.sum()  # the window lets it leak to its neighbours only


def test_the_border_of_a_slice_is_no_detail():
    """A slope from left to right is smooth, though its two ends differ; repeated as it is, it would be a saw."""
    slope = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    _, power = power_spectrum(slope)
    assert power[8:].sum() < 1e-4 * power.sum()


def test_power_is_that_of_an_image_squared():
    _, once = power_spectrum(TEST.images)
    _, twice = power_spectrum(torch.cat([2 * TEST.images, 2 * TEST.images]))
    assert torch.allclose(twice, 4 * once)


def test_blur_takes_the_high_frequencies_and_half_power_says_where():
    """A Gaussian of s pixels multiplies the power by exp(−(2π f s)²): half at f = √(ln 2) / (2π s)."""
    noise = torch.randn(300, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.from_numpy(fidelity.gaussian_filter(noise.numpy(), (0, 0, 1, 1), mode="wrap"))
    frequency, real = power_spectrum(noise)
    _, power = power_spectrum(blurred)
    assert half_power(frequency, power, real) == pytest.approx(np.sqrt(np.log(2)) / (2 * np.pi), rel=0.05)
    assert (power[-8:] / real[-8:]).max() < 0.01
    assert power[0] / real[0] > 0.95


def test_half_power_by_hand():
    frequency, real = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([2.0, 2.0, 4.0])
    assert half_power(frequency, torch.tensor([2.0, 1.6, 0.8]), real) == pytest.approx(0.25)  # 1, 0.8, 0.2 of it
    assert half_power(frequency, torch.tensor([0.2, 2.0, 4.0]), real) == pytest.approx(0.1)
    assert np.isnan(half_power(frequency, torch.tensor([2.0, 1.6, 2.4]), real))
