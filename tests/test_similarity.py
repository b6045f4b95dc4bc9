"""SSIM against scikit-image, correlation against plain loops, the table against sums done by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from hcm_helpers import similarity
from hcm_helpers.acdc import DataError
from hcm_helpers.similarity import ms_ssim
from hcm_helpers.slices import Slices


def ring(size, row=0.5, column=0.5):
    """A bright ring with a dark cavity on black: (size, size) in [0, 1], float64."""
    rows, columns = np.mgrid[:size, :size] / size
    distance = np.hypot(rows - row, columns - column)
    return np.exp(-(((distance - 0.2) / 0.06) ** 2))


def pairs_of(kind, size):
    """Three pairs of images (3, size, size) in [0, 1], float64."""
    rng = np.random.default_rng(size)
    if kind == "random":
        return rng.random((3, size, size)), rng.random((3, size, size))
    x = np.stack([ring(size), ring(size, 0.4, 0.6), np.full((size, size), 0.9)])
    y = np.stack([ring(size, 0.52), np.clip(ring(size) + 0.2 * rng.random((size, size)), 0, 1), x[0] * 0.5])
    return x, y


def batch(images, dtype=torch.float32):
    return torch.tensor(np.asarray(images), dtype=dtype)[:, None]


def slices_of(images, patients):
    """Slices in [−1, 1] out of images in [0, 1]."""
    manifest = pd.DataFrame({"patient": patients})
    count, size = len(images), images.shape[-1]
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    return Slices(images * 2 - 1, torch.full((count,), 3), masks, manifest, "fingerprint")


@pytest.fixture
def bf16_products():
    """What a training may have set, and what would spoil a variance."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("kind", ["random", "structured"])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.usefixtures("bf16_products")
def test_ssim_equals_scikit_image(size, kind, data_range):
    x, y = (images * data_range for images in pairs_of(kind, size))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [structural_similarity(*p, data_range=data_range, **settings) for p in zip(x, y, strict=True)]
    ours = similarity.ssim(batch(x), batch(y), data_range=data_range)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    if data_range == 1:
        np.testing.assert_allclose(similarity.pairwise(batch(x), batch(y)).diagonal(), expected, atol=1e-5)


def test_ssim_with_another_window_equals_scikit_image():
    x, y = pairs_of("structured", 64)
    expected = [
        structural_similarity(*p, data_range=1, gaussian_weights=True, sigma=2.5, use_sample_covariance=False)
        for p in zip(x, y, strict=True)
    ]
    ours = similarity.ssim(batch(x), batch(y), sigma=2.5, window=2 * int(3.5 * 2.5 + 0.5) + 1)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_ssim_of_two_flat_images_is_the_luminance_term():
    x, y = torch.full((1, 1, 32, 32), 0.9), torch.full((1, 1, 32, 32), 0.3)
    expected = (2 * 0.9 * 0.3 + 1e-4) / (0.9**2 + 0.3**2 + 1e-4)
    assert similarity.ssim(x, y).item() == pytest.approx(expected, abs=1e-5)


def test_a_pixel_near_the_border_counts_only_through_whole_windows():
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    corner = x.clone()
    corner[..., 0, 0] = 1 - corner[..., 0, 0]
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1}
    expected = structural_similarity(x[0, 0].double().numpy(), corner[0, 0].double().numpy(), **settings)
    assert similarity.ssim(x, corner).item() == pytest.approx(expected, abs=1e-6)
    assert 0.9999 < expected < 1


def test_blocks_do_not_change_the_values(monkeypatch):
    x, y = torch.rand(7, 1, 32, 32), torch.rand(9, 1, 32, 32)
    whole, paired, peak = similarity.pairwise(x, y), similarity.ssim(x, y[:7]), similarity.cc_peak(x, y[:7])
    monkeypatch.setattr(similarity, "BLOCK", 2048)
    torch.testing.assert_close(similarity.pairwise(x, y), whole)
    torch.testing.assert_close(similarity.ssim(x, y[:7]), paired)
    torch.testing.assert_close(similarity.cc_peak(x, y[:7]), peak)
    torch.testing.assert_close(whole[range(7), range(7)], paired, atol=1e-5, rtol=0)


def test_pairwise_gives_the_threads_back():
    before = torch.get_num_threads()
    similarity.pairwise(torch.rand(3, 1, 32, 32), torch.rand(3, 1, 32, 32))
    assert torch.get_num_threads() == before


def test_cc_and_mse_equal_numpy():
    x, y = np.random.default_rng(0).random((2, 4, 16, 16))
    r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(similarity.cc(batch(x), batch(y)), r, atol=1e-6)
    np.testing.assert_allclose(similarity.mse(batch(x), batch(y)), ((x - y) ** 2).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(similarity.pairwise(batch(x), batch(y), "cc").diagonal(), r, atol=1e-6)
    errors = [[np.mean((a - b) ** 2) for b in y] for a in x]
    np.testing.assert_allclose(similarity.pairwise(batch(x), batch(y), "mse"), errors, atol=1e-6)


def test_a_constant_image_has_correlation_zero():
    flat, other = torch.full((1, 1, 16, 16), 0.7), torch.rand(1, 1, 16, 16)
    assert similarity.cc(flat, other).item() == 0
    assert similarity.cc_peak(flat, flat).item() == 0


def test_cross_correlation_equals_a_loop_over_lags():
    x, y = np.random.default_rng(1).random((2, 8, 8))
    a, b = x - x.mean(), y - y.mean()
    expected = np.zeros((15, 15))
    for dy in range(-7, 8):
        for dx in range(-7, 8):
            for row in range(8):
                for column in range(8):
                    if 0 <= row + dy < 8 and 0 <= column + dx < 8:
                        expected[7 + dy, 7 + dx] += a[row + dy, column + dx] * b[row, column]
    expected /= np.sqrt((a**2).sum() * (b**2).sum())
    ours = similarity.cross_correlation(batch([x]), batch([y]))[0]
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert ours[7, 7].item() == pytest.approx(similarity.cc(batch([x]), batch([y])).item(), abs=1e-6)
    assert similarity.cc_peak(batch([x]), batch([y])).item() == pytest.approx(expected.max(), abs=1e-6)


def test_a_shifted_copy_peaks_at_its_shift():
    height, width, down, right = 24, 32, 5, -3
    y = np.zeros((height, width))
    y[8:14, 10:20] = np.random.default_rng(2).random((6, 10))
    x = np.roll(y, (down, right), (0, 1))
    correlation = similarity.cross_correlation(batch([x]), batch([y]))[0]
    assert correlation.shape == (2 * height - 1, 2 * width - 1)
    peak = np.unravel_index(correlation.argmax().item(), correlation.shape)
    assert peak == (height - 1 + down, width - 1 + right)
    # Where they overlap both are y − ȳ; the strip that does not overlap is missing from the sum.
    mean, overlap = y.mean(), (height - 5) * (width - 3)
    expected = ((y**2).sum() - 2 * y.size * mean**2 + overlap * mean**2) / ((y**2).sum() - y.size * mean**2)
    assert similarity.cc_peak(batch([x]), batch([y])).item() == pytest.approx(expected, abs=1e-5)
    assert similarity.cc(batch([x]), batch([y])).item() < 0.5 < expected


def test_best_match_finds_the_hidden_copies_by_every_metric():
    references = batch([ring(32, row, column) for row in (0.3, 0.5, 0.7) for column in (0.35, 0.65)])
    noise = 0.05 * torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    generated = references[[4, 0, 3]] + noise
    for metric, paired in similarity.PAIRED.items():
        index, value = similarity.best_match(generated, references, metric)
        assert index.tolist() == [4, 0, 3], metric
        torch.testing.assert_close(value, paired(generated, references[[4, 0, 3]]))


def test_each_metric_chooses_its_own_match():
    image = batch([ring(32)])
    inverted_contrast = 0.25 * image + 0.6  # perfectly correlated, far in MSE
    near_in_value = (image + 0.25 * torch.rand(1, 1, 32, 32)).clamp(0, 1)
    references = torch.cat([inverted_contrast, near_in_value])
    assert similarity.best_match(image, references, "cc")[0].item() == 0
    assert similarity.best_match(image, references, "mse")[0].item() == 1
    values = similarity.compare(image, references)
    assert values["CC"].item() == pytest.approx(1, abs=1e-5)
    assert values["MSE"].item() == pytest.approx(((image - near_in_value) ** 2).mean().item(), abs=1e-6)


def test_bootstrap_by_image_equals_the_normal_interval():
    values = np.random.default_rng(3).normal(0.5, 0.1, 1000)
    low, high = similarity.bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert similarity.bootstrap_interval(values) == (low, high)


def test_bootstrap_by_patient_takes_slices_of_one_patient_as_one():
    by_patient = np.random.default_rng(4).normal(0.5, 0.1, 100)
    values, patients = np.repeat(by_patient, 10), np.repeat(np.arange(100), 10)
    low, high = similarity.bootstrap_interval(values, patients)
    half = 1.96 * by_patient.std() / np.sqrt(100)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    narrow = similarity.bootstrap_interval(values)
    assert (high - low) / (narrow[1] - narrow[0]) == pytest.approx(np.sqrt(10), rel=0.15)


def test_bootstrap_counts_the_slices_of_the_patients_drawn():
    # 50 patients with one slice of value 0, 50 with nine of value 1. Of 100 drawn, 40 to 60 are of the second
    # sort (95 % of the binomial distribution), and k of them give a mean of 9k / (9k + 100 − k).
    values = np.repeat([0.0, 1.0], [50, 450])
    patients = np.concatenate([np.arange(50), 50 + np.arange(450) // 9])
    expected = (360 / 420, 540 / 580)
    assert similarity.bootstrap_interval(values, patients) == pytest.approx(expected, abs=0.008)


def test_bootstrap_of_one_patient_says_nothing():
    assert np.isnan(similarity.bootstrap_interval(np.array([0.1, 0.2]), np.array(["a", "a"]))).all()


@pytest.fixture(scope="module")
def table():
    generator = torch.Generator().manual_seed(5)
    train = slices_of(torch.rand(6, 1, 32, 32, generator=generator), ["a", "a", "b", "b", "c", "c"])
    test = slices_of(torch.rand(4, 1, 32, 32, generator=generator), ["d", "d", "e", "e"])
    models = {"vae": train.images[[0, 3, 3]], "diffusion": test.images[[1, 1, 2, 0, 3]]}
    return similarity.table1(models, train, test, num_bootstrap=200), train, test


def cell(table, model, pairing, metric):
    rows = table.query("model == @model and pairing == @pairing and metric == @metric")
    assert len(rows) == 1
    return rows.iloc[0]


def test_table1_shows_who_copies_what(table):
    table, _, _ = table
    for model, copied, other in (("vae", "train", "test"), ("diffusion", "test", "train")):
        for metric, perfect in (("SSIM", 1), ("CC", 1), ("CC peak", 1), ("MSE", 0)):
            assert cell(table, model, f"nearest {copied}", metric).value == pytest.approx(perfect, abs=1e-5)
            assert abs(cell(table, model, f"nearest {other}", metric).value - perfect) > 0.1
    assert cell(table, "vae", "random", "SSIM").n == 3
    assert set(table.query("model == 'vae'")["drawn"]) == {"images"}


def test_table1_reference_rows_equal_plain_loops(table):
    table, train, test = table
    to_numpy = lambda slices: (slices.images[:, 0].double().numpy() + 1) / 2  # noqa: E731
    train, test = to_numpy(train), to_numpy(test)
    errors = np.array([[np.mean((a - b) ** 2) for b in train] for a in test])
    assert cell(table, "real test slices", "nearest train", "MSE").value == pytest.approx(errors.min(1).mean())
    assert cell(table, "real train slices", "nearest test", "MSE").value == pytest.approx(errors.min(0).mean())
    mean_row = cell(table, "mean train image", "random", "MSE")
    by_slice = ((test - train.mean(0)) ** 2).mean((1, 2))
    assert mean_row.value == pytest.approx(by_slice.mean())
    assert (mean_row.n, mean_row.drawn) == (4, "patients")
    # Two patients of two slices each: a draw is one of them twice, or both, with chances 1/4, 1/4 and 1/2.
    extremes = sorted([by_slice[:2].mean(), by_slice[2:].mean()])
    assert (mean_row.low, mean_row.high) == pytest.approx(extremes)
    counts = table.groupby(["model", "pairing"], sort=False).size()
    assert counts.tolist() == [4] * 10


def test_table1_is_the_same_for_the_same_seed(table):
    table, train, test = table
    models = {"vae": train.images[[0, 3, 3]]}
    again = similarity.table1(models, train, test, num_bootstrap=200)
    expected = table[table["model"] != "diffusion"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected)


def test_table1_takes_known_matches_as_they_are(table):
    table, train, test = table
    images = {"vae": train.images[[0, 3, 3]]}
    known = similarity.best_matches((images["vae"] + 1) / 2, (train.images + 1) / 2)
    again = similarity.table1(images, train, test, num_bootstrap=200, nearest_train={"vae": known})
    pd.testing.assert_frame_equal(again, table[table["model"] != "diffusion"].reset_index(drop=True))
    wrong = known | {"ssim": (known["ssim"][0], torch.full((3,), 0.25))}
    again = similarity.table1(images, train, test, num_bootstrap=20, nearest_train={"vae": wrong})
    assert cell(again, "vae", "nearest train", "SSIM").value == 0.25
    again = similarity.table1(images, train, test, num_bootstrap=20, nearest_test={"vae": wrong})
    assert cell(again, "vae", "nearest test", "SSIM").value == 0.25
    assert cell(again, "vae", "nearest train", "SSIM").value == cell(table, "vae", "nearest train", "SSIM").value


def test_rendered_table_has_the_papers_figures_beside_ours(table):
    table, _, _ = table
    wide = similarity.render(table)
    assert wide.index.tolist() == ["VAE", "Diffusion", *similarity.REFERENCE_ROWS]
    assert wide.loc["VAE", ("SSIM", "paper")] == "0.9028"
    assert wide.loc["VAE", ("CC", "paper")] == "0.8421"
    assert wide.loc["Diffusion", ("SSIM", "paper")] == "“highest”"
    assert wide.loc["VAE", ("SSIM", "nearest train")] == "1.000 [1.000, 1.000]"
    assert wide.loc["mean train image", ("SSIM", "nearest test")] == "–"
    assert ("MSE", "paper") not in wide.columns

    text = similarity.render_html(table.replace({"model": {"vae": "<b>"}}))
    assert "&lt;b&gt;" in text
    assert "<small>[" in text
    assert "<table" in text


def test_bad_input_is_refused_with_the_remedy(table):
    _, train, test = table
    good = torch.rand(2, 1, 32, 32)
    with pytest.raises(DataError, match="to_unit"):
        similarity.ssim(good * 2 - 1, good)
    with pytest.raises(DataError, match="same shape"):
        similarity.mse(good, good[:1])
    with pytest.raises(DataError, match="one height and width"):
        similarity.best_match(good, torch.rand(2, 1, 16, 16))
    with pytest.raises(DataError, match="odd"):
        similarity.ssim(good, good, window=10)
    with pytest.raises(DataError, match="at most the image"):
        similarity.ssim(good[..., :8, :8], good[..., :8, :8])
    with pytest.raises(DataError, match="none of ssim, cc, cc_peak, mse"):
        similarity.best_match(good, good, "psnr")
    with pytest.raises(DataError, match="best_match"):
        similarity.pairwise(good, good, "cc_peak")
    with pytest.raises(DataError, match="nearest"):
        similarity.compare(good, good, "closest")
    with pytest.raises(DataError, match="NaN"):
        similarity.to_unit(torch.full((1, 1, 8, 8), float("nan")))
    with pytest.raises(DataError, match="not in"):
        similarity.to_unit(good * 255)
    with pytest.raises(DataError, match="gan: images have shape"):
        similarity.table1({"gan": torch.zeros(2, 1, 64, 64)}, train, test)
    with pytest.raises(DataError, match="no test slice"):
        similarity.table1({}, train, slices_of(torch.zeros(0, 1, 32, 32), []))


def test_to_unit_maps_the_ends():
    assert similarity.to_unit(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(("size", "weights"), [(32, (0.0448, 0.2856)), (64, (0.0448, 0.2856, 0.3001))])
def test_ms_ssim_is_made_of_scikit_images_maps(size, weights):
    x, y = (smooth_image(size, seed) for seed in (0, 1))
    y = 0.7 * x + 0.3 * y
    expected, settings = 1.0, {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    for level, weight in enumerate(weights):
        _, terms = structural_similarity(x, y, data_range=1.0, **settings)
        if level < len(weights) - 1:  # without luminance, which is that of the two means
            mean_x, mean_y = (gaussian_filter(image, 1.5, truncate=3.5) for image in (x, y))
            terms = terms / ((2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4))
        expected *= terms[5:-5, 5:-5].mean() ** (weight / sum(weights))
        x, y = (image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)) for image in (x, y))
    images = [torch.tensor(smooth_image(size, seed))[None, None] for seed in (0, 1)]
    found = ms_ssim(images[0], 0.7 * images[0] + 0.3 * images[1])
    assert found.item() == pytest.approx(expected, abs=1e-6)


def smooth_image(size, seed):
    image = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 2.0)
    return (image - image.min()) / np.ptp(image)
