"""How alike two images are: SSIM, cross-correlation and mean squared error, and the paper's table of them.

**This module works on images in [0, 1]**, the rest of the package on [−1, 1]; `to_unit` goes from one to the
other. Only `table1` takes the package's own slices and samples and converts them itself.
"""

import html
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from hcm_helpers.acdc import DataError
from hcm_helpers.slices import Slices

METRICS = {"ssim": "SSIM", "cc": "CC", "cc_peak": "CC peak", "mse": "MSE"}
PAIRINGS = ("random", "nearest train", "nearest test")
REAL_TEST, REAL_TRAIN, MEAN_TRAIN = REFERENCE_ROWS = (
    "real test slices",
    "real train slices",
    "mean train image",
)


class Titles(dict[str, str]):
    """How figures and tables name the models; one that is not listed goes by its own name."""

    def __missing__(self, name: str) -> str:
        return name


TITLES = Titles(
    vae="VAE",
    gan="GAN",
    dcgan="DCGAN",
    acgan="ACGAN",
    infogan="InfoGAN",
    diffusion="Diffusion",
)
PAPER = {  # the figures that the paper's text gives; how it paired real and generated images it does not say
    "vae": {"SSIM": 0.9028, "CC": 0.8421},
    "gan": {"SSIM": 0.9428, "CC": 0.8421},
    "dcgan": {"SSIM": 0.9576},
    "acgan": {"SSIM": 0.9687},
    "infogan": {},
    "diffusion": {},  # "the highest SSIM scores", without a figure
}
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM, from full size down
Matches = dict[str, tuple[Tensor, Tensor]]  # metric → rows of the best references and the metric with them, (N,) each
LEGEND = (
    "SSIM with a Gaussian window of 11 pixels, σ = 1.5, on images in [0, 1]; CC is Pearson's r, CC peak "
    "the highest normalised cross-correlation over all lags; MSE is better when lower. Paper: what its "
    "text quotes, with a pairing it does not state. Random: a training slice drawn for each image (the "
    "mean image meets every test slice). Nearest: the best match, which each metric chooses for itself "
    "(CC peak: by CC). In brackets the 95 % bootstrap interval: images drawn for the models, patients "
    "for the real slices and the mean image."
)
BLOCK = 2**18  # pixels of a block of pairs: 1 MiB in float32, which a core's cache holds


def to_unit(images: Tensor) -> Tensor:
    """Images from the package's [−1, 1] to this module's [0, 1].

    Raises:
        DataError: a value is not finite, or lies outside [−1, 1].
    """
    if not torch.isfinite(images).all():
        raise DataError("images hold NaN or infinite values; train their model again with a lower learning rate")
    low, high = images.min().item(), images.max().item()
    if low < -1.001 or high > 1.001:
        raise DataError(f"images lie in [{low:.3g}, {high:.3g}], not in [−1, 1]; scale them before to_unit")
    return (images.clamp(-1, 1) + 1) / 2


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """True float32 and one core an operation, whatever the training has set.

    A variance does not survive bf16 products. And these operations are small: shared among cores each would
    be hardly faster, and many times slower where another process keeps one of them busy.
    """
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)


@plain_arithmetic()
def ssim(x: Tensor, y: Tensor, data_range: float = 1.0, sigma: float = 1.5, window: int = 11) -> Tensor:
    """Structural similarity of each image with its partner, eq. 13, means and variances by a Gaussian window.

    Equals skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False). That
    filters the whole image with mirrored borders and then averages the map of SSIM without its outer
    window // 2 pixels, exactly those whose window reaches over the border. So no mirrored pixel ever counts,
    and only the places with a whole window are computed here, (H − 10) × (W − 10) of them.

    Args:
        x, y: images (B, 1, H, W), not negative.
        data_range: L of eq. 13, the width of the images' range: 1 for [0, 1].
        sigma: of the Gaussian window, in pixels.
        window: side of the window in pixels, odd. scikit-image derives it from sigma: 2·⌊3.5·sigma + ½⌋ + 1.

    Shapes: (B, 1, H, W), (B, 1, H, W) → (B,) in [−1, 1].

    Raises:
        DataError: shapes differ, values are negative or not finite, the window is even or exceeds the image.

    Source: Wang et al. 2004, doi 10.1109/TIP.2003.819861.
    """
    x, y = _partners(x, y)
    rows, columns = (_window_matrix(size, sigma, window, x) for size in x.shape[1:])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        luminance, contrast = _terms(x, y, rows, columns, c1, c2)
        return (luminance * contrast).mean((1, 2))

    size = max(1, BLOCK // (2 * x[0].numel()))
    return torch.cat([similarity(*pair) for pair in zip(x.split(size), y.split(size), strict=True)])


@plain_arithmetic()
def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM at several scales: contrast and structure at each, luminance at the coarsest, to the powers of SCALES.

    Each scale halves the one before. There are as many as have a place for the window of 11 pixels (two at 32×32,
    three at 64×64, four at 128×128), and their weights are scaled to a sum of 1. A mean below 0 counts as 0.

    Shapes: (B, 1, H, W), (B, 1, H, W) in [0, 1] → (B,) in [0, 1].

    Source: Wang, Simoncelli & Bovik 2003, doi 10.1109/ACSSC.2003.1292216.
    """
    x, y = _partners(x, y)
    weights = SCALES[: max(1, (min(x.shape[1:]) // 8).bit_length() - 1)]
    value = torch.ones(len(x), dtype=x.dtype, device=x.device)
    for level, weight in enumerate(weights):
        if level:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        rows, columns = (_window_matrix(size, 1.5, 11, x) for size in x.shape[1:])
        luminance, contrast = _terms(x, y, rows, columns, 0.01**2, 0.03**2)
        scale = luminance * contrast if level == len(weights) - 1 else contrast
        value = value * scale.mean((1, 2)).clamp_min(0) ** (weight / sum(weights))
    return value


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each image with its partner: (B, 1, H, W), (B, 1, H, W) → (B,)."""
    x, y = _partners(x, y)
    return ((x - y) ** 2).mean((1, 2))


def cc(x: Tensor, y: Tensor) -> Tensor:
    """Zero-lag cross-correlation coefficient of each image with its partner: Pearson's r over the pixels.

    Shapes: (B, 1, H, W), (B, 1, H, W) → (B,) in [−1, 1]; 0 where an image is constant and r undefined.
    """
    x, y = _partners(x, y)
    return (_standardise(x) * _standardise(y)).sum((1, 2))


def cross_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Normalised cross-correlation of each image with its partner at every lag, "sliding one over the other".

        C(d) = Σ_p (x(p + d) − x̄)(y(p) − ȳ) / (‖x − x̄‖ ‖y − ȳ‖)

    Means and norms are those of the whole images, the same at every lag, and beyond its border an image
    counts as its mean (zero-padding after the mean is taken off). So C(0) is `cc`, |C| ≤ 1 everywhere, and a
    large lag with little overlap counts little. (Normalising by the overlap alone would give 1 to two
    corners that match.)

    Shapes: (B, 1, H, W), (B, 1, H, W) → (B, 2H − 1, 2W − 1). Lag (dy, dx) stands at
    [H − 1 + dy, W − 1 + dx]; the maximum is there if x is y moved down by dy and right by dx.
    """
    return torch.fft.fftshift(_correlations(x, y), dim=(1, 2))[:, 1:, 1:]


@plain_arithmetic()
def cc_peak(x: Tensor, y: Tensor) -> Tensor:
    """Peak of the normalised `cross_correlation` over all lags: (B, 1, H, W), (B, 1, H, W) → (B,) ≥ `cc`."""
    size = max(1, BLOCK // x[0].numel())
    pairs = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([_correlations(*pair).amax((1, 2)) for pair in pairs])


PAIRED = {"ssim": ssim, "cc": cc, "cc_peak": cc_peak, "mse": mse}


@torch.no_grad()
def pairwise(x: Tensor, y: Tensor, metric: str = "ssim") -> Tensor:
    """Every image of one set with every image of another, on the images' device.

    CC and MSE are one matrix product. A pair's SSIM costs one blur, that of x·y, for means and variances
    are made once an image; the blur is two products with a banded matrix.

    Args:
        x, y: images (N, 1, H, W) and (M, 1, H, W) in [0, 1].
        metric: "ssim", "cc" or "mse".

    Shapes: (N, 1, H, W), (M, 1, H, W) → (N, M).

    Raises:
        DataError: another metric, or images as in `ssim`.
    """
    x, y = _planes(x, y)
    cores = torch.get_num_threads()
    with plain_arithmetic():
        if metric == "ssim":
            return _pairwise_ssim(x, y, cores)
        if metric == "cc":
            return _standardise(x).flatten(1) @ _standardise(y).flatten(1).T
        if metric == "mse":
            x, y = x.flatten(1), y.flatten(1)
            squares = (x**2).sum(1)[:, None] + (y**2).sum(1)
            return ((squares - 2 * x @ y.T) / x.shape[1]).clamp_min(0)
    raise DataError(f'metric "{metric}" is none of ssim, cc, mse; for cc_peak use best_match')


def best_match(generated: Tensor, references: Tensor, metric: str = "ssim") -> tuple[Tensor, Tensor]:
    """The reference that is most like each image, by that very metric: the highest, for MSE the lowest.

    The peak over lags of every pair would take minutes, so "cc_peak" is the peak with the best match by CC.

    Args:
        generated, references: images (N, 1, H, W) and (M, 1, H, W) in [0, 1].
        metric: "ssim", "cc", "cc_peak" or "mse".

    Returns:
        index of the best reference (N,) int64, and the metric's value with it (N,).
    """
    if metric not in METRICS:
        raise DataError(f'metric "{metric}" is none of {", ".join(METRICS)}')
    values = pairwise(generated, references, "cc" if metric == "cc_peak" else metric)
    index = values.argmin(1) if metric == "mse" else values.argmax(1)
    return index, PAIRED[metric](generated, references[index])


def best_matches(images: Tensor, references: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """`best_match` by every metric: index and value, (N,) each, for "ssim", "cc", "cc_peak" and "mse"."""
    return {metric: best_match(images, references, metric) for metric in METRICS}


def compare(
    images: Tensor, references: Tensor, pairing: str = "nearest", seed: int = 0, matches: Matches | None = None
) -> dict[str, Tensor]:
    """Each image with one reference, by every metric: (N,) for each of SSIM, CC, CC peak and MSE.

    Args:
        images, references: (N, 1, H, W) and (M, 1, H, W) in [0, 1].
        pairing: "nearest", the best match of each metric by itself, or "random", any one reference.
        seed: of that draw.
        matches: their `best_matches`, where they are known.
    """
    if pairing == "nearest":
        matches = best_matches(images, references) if matches is None else matches
        return {METRICS[metric]: value for metric, (_, value) in matches.items()}
    if pairing != "random":
        raise DataError(f'pairing "{pairing}" is neither "nearest" nor "random"')
    index = torch.from_numpy(np.random.default_rng(seed).integers(len(references), size=len(images)))
    partners = references[index.to(references.device)]
    return {METRICS[metric]: PAIRED[metric](images, partners) for metric in METRICS}


def bootstrap_interval(
    values: np.ndarray, patients: np.ndarray | None = None, num_bootstrap: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean.

    Args:
        values: one number an image (N,).
        patients: whose each image is (N,). Patients are then drawn, each with all its images: slices of one
            patient are alike, and drawing them one by one would make the interval too narrow.
        num_bootstrap: number of draws.
        seed: of the draws.

    Returns:
        low and high; NaN for both where there is one patient or one image only, for then nothing can be said.
    """
    owners = np.arange(len(values)) if patients is None else np.unique(patients, return_inverse=True)[1]
    sums, counts = np.bincount(owners, weights=values), np.bincount(owners)
    if len(counts) < 2:
        return float("nan"), float("nan")
    draws = _bootstrap_draws(len(counts), num_bootstrap, seed)
    low, high = np.quantile(draws @ sums / (draws @ counts), [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=4)  # 1,000 draws of 1,000 images take longer than all that is done with them
def _bootstrap_draws(count: int, num_bootstrap: int, seed: int) -> np.ndarray:
    """How often each of `count` is drawn in each draw: (num_bootstrap, count)."""
    share = np.full(count, 1 / count)
    return np.random.default_rng(seed).multinomial(count, share, size=num_bootstrap).astype(float)


def table1(
    models: Mapping[str, Tensor],
    train: Slices,
    test: Slices,
    num_bootstrap: int = 1000,
    seed: int = 0,
    nearest_train: Mapping[str, Matches] | None = None,
    nearest_test: Mapping[str, Matches] | None = None,
) -> pd.DataFrame:
    """The paper's table 1 with its pairing made explicit, and what real hearts reach beside it.

    Each generated image meets a training slice drawn at random ("random"), and the training slice and the
    test slice that is most like it ("nearest train", "nearest test"), which each metric chooses for itself.
    Three rows say what the figures are worth:

    - real test slices: held-out hearts against the training slices, at random and nearest;
    - real train slices: against their nearest test slice, since a best match depends on how many there are to
      choose from, and there are fewer test slices;
    - mean train image: the average of all training slices against every test slice, so nothing is chosen; it
      stands in the column "random".

    The 95 % intervals of generated images come from drawing images, those of the real rows from drawing
    patients. Neither draws the references or trains a model anew.

    Args:
        models: name → generated images (N, 1, S, S) in [−1, 1].
        train, test: the real slices, as `load_slices` gives them.
        num_bootstrap: draws for an interval.
        seed: of the random pairs and of the draws.
        nearest_train, nearest_test: name → `best_matches` of the images with these slices, where they are known.

    Returns:
        One row a model, pairing and metric: model, pairing, metric, value, low, high, n (images), drawn
        ("images" or "patients").

    Raises:
        DataError: no slices, no images, images of another size, or values outside [−1, 1].
    """
    for split, slices in (("training", train), ("test", test)):
        if not len(slices):
            raise DataError(f"there is no {split} slice to compare with; choose other groups or prepare more patients")
    rows = []

    def add(name: str, pairing: str, values: dict[str, Tensor], patients: np.ndarray | None = None) -> None:
        for metric, value in values.items():
            value = value.double().cpu().numpy()
            low, high = bootstrap_interval(value, patients, num_bootstrap, seed)
            drawn = "images" if patients is None else "patients"
            rows.append((name, pairing, metric, value.mean(), low, high, len(value), drawn))

    real_train, real_test = to_unit(train.images), to_unit(test.images)
    train_patients, test_patients = (slices.manifest["patient"].to_numpy() for slices in (train, test))
    for name, images in models.items():
        if images.ndim != 4 or not len(images) or images.shape[1:] != real_train.shape[1:]:
            raise DataError(
                f"{name}: images have shape {tuple(images.shape)}, the slices {tuple(real_train.shape)}; "
                "sample this model again after training it on these slices"
            )
        images = to_unit(images)
        near, far = real_train.to(images.device), real_test.to(images.device)
        add(name, "random", compare(images, near, "random", seed))
        add(name, "nearest train", compare(images, near, matches=(nearest_train or {}).get(name)))
        add(name, "nearest test", compare(images, far, matches=(nearest_test or {}).get(name)))

    mean_image = real_train.mean(0, keepdim=True).expand_as(real_test)
    add(REAL_TEST, "random", compare(real_test, real_train, "random", seed), test_patients)
    add(REAL_TEST, "nearest train", compare(real_test, real_train), test_patients)
    add(REAL_TRAIN, "nearest test", compare(real_train, real_test), train_patients)
    add(MEAN_TRAIN, "random", {METRICS[m]: PAIRED[m](mean_image, real_test) for m in METRICS}, test_patients)
    return pd.DataFrame(rows, columns=["model", "pairing", "metric", "value", "low", "high", "n", "drawn"])


def render(table: pd.DataFrame) -> pd.DataFrame:
    """`table1` as the paper prints it, in text: a row a model, the paper's figures beside ours.

    Returns:
        Columns (metric, "paper" or pairing); cells such as "0.243 [0.231, 0.256]", or "–".
    """
    cells = {}
    for row in table.itertuples():
        digits = 4 if row.metric == "MSE" else 3
        interval = "" if pd.isna(row.low) else f" [{row.low:z.{digits}f}, {row.high:z.{digits}f}]"
        cells[row.model, row.metric, row.pairing] = f"{row.value:z.{digits}f}{interval}"
    models = list(dict.fromkeys(table["model"]))
    for model in models:
        cells |= {(model, metric, "paper"): f"{value:.4f}" for metric, value in PAPER.get(model, {}).items()}
    if "diffusion" in models:
        cells["diffusion", "SSIM", "paper"] = "“highest”"
    present = {(metric, column) for _, metric, column in cells}
    columns = [(m, column) for m in METRICS.values() for column in ("paper", *PAIRINGS) if (m, column) in present]
    return pd.DataFrame(
        [[cells.get((model, *column), "–") for column in columns] for model in models],
        index=pd.Index([TITLES[model] for model in models], name="model"),
        columns=pd.MultiIndex.from_tuples(columns, names=["metric", "pairing"]),
    )


def render_html(table: pd.DataFrame) -> str:
    """`render` as an HTML table with its legend."""
    return html_with_legend(render(table), LEGEND)


def html_with_legend(wide: pd.DataFrame, legend: str) -> str:
    """A table of text, columns on two levels, as HTML: intervals in small print under the values, the legend below."""
    wide = wide.map(lambda text: html.escape(text).replace(" [", "<br><small>[").replace("]", "]</small>"))
    wide.index = wide.index.map(html.escape)
    wide.index.name, wide.columns.names = None, [None, None]
    body = wide.to_html(escape=False, border=0, justify="center", classes="table1")
    return f"{body}\n<p><small>{legend}</small></p>"


def _planes(*sets: Tensor) -> list[Tensor]:
    """Checked images without their channel: (B, 1, H, W) → (B, H, W), at least float32."""
    for images in sets:
        if images.ndim != 4 or images.shape[1] != 1 or images.shape[2:] != sets[0].shape[2:] or not len(images):
            shapes = " and ".join(str(tuple(images.shape)) for images in sets)
            raise DataError(f"images have shapes {shapes}; give non-empty (B, 1, H, W) of one height and width")
        low = images.min().item()
        if low < -1e-6:
            raise DataError(f"images hold {low:.3g}, below 0; similarity works on [0, 1], so call to_unit first")
        if not torch.isfinite(images).all():
            raise DataError("images hold NaN or infinite values; train their model again with a lower learning rate")
    return [images[:, 0].to(torch.promote_types(images.dtype, torch.float32)) for images in sets]


def _partners(x: Tensor, y: Tensor) -> list[Tensor]:
    if x.shape != y.shape:
        raise DataError(f"images have shapes {tuple(x.shape)} and {tuple(y.shape)}; partners need the same shape")
    return _planes(x, y)


def _standardise(images: Tensor) -> Tensor:
    """Each image (B, H, W) with its mean taken off and length 1; a constant image becomes 0."""
    centred = images - images.mean((1, 2), keepdim=True)
    norm = centred.norm(dim=(1, 2), keepdim=True)
    constant = norm < 1e-6 * images[0].numel() ** 0.5  # a standard deviation of 1e-6 is rounding
    return torch.where(constant, 0, centred / norm.clamp_min(1e-12))


def _correlations(x: Tensor, y: Tensor) -> Tensor:
    """`cross_correlation` with lag (dy, dx) at [dy mod 2H, dx mod 2W]: (B, 2H, 2W), 0 where nothing overlaps."""
    x, y = _partners(x, y)
    size = (2 * x.shape[1], 2 * x.shape[2])
    spectrum = torch.fft.rfft2(_standardise(x), s=size) * torch.fft.rfft2(_standardise(y), s=size).conj()
    return torch.fft.irfft2(spectrum, s=size)


def _window_matrix(size: int, sigma: float, window: int, like: Tensor) -> Tensor:
    """The Gaussian window as a banded matrix (size − window + 1, size): row i weighs pixels from i on."""
    if window % 2 == 0 or window > size:
        raise DataError(f"window {window} must be odd and at most the image's side, {size}")
    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    matrix = torch.zeros(size - window + 1, size, dtype=torch.float64)
    for i in range(len(matrix)):
        matrix[i, i : i + window] = weights / weights.sum()
    return matrix.to(like)


def _terms(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """The two factors of eq. 13, luminance and contrast with structure: (B, H, W), (B, H, W) → (B, H', W') each."""

    def blur(images: Tensor) -> Tensor:
        return rows @ (images @ columns.T)

    level_x, level_y = x.mean((1, 2), keepdim=True), y.mean((1, 2), keepdim=True)
    x, y = x - level_x, y - level_y  # variances do not change, and lose fewer digits
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + level_x, mean_y + level_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * cov + c2) / (var_x + var_y + c2)


def _pairwise_ssim(x: Tensor, y: Tensor, cores: int) -> Tensor:
    """Eq. 13 for all pairs, (N, H, W), (M, H, W) → (N, M), blocks of y at a time that fit in the cache.

    On a CPU each core takes a share of x for itself.
    """
    height, width = x.shape[1:]
    rows, columns = (_window_matrix(size, 1.5, 11, x) for size in (height, width))
    c1, c2 = 0.01**2, 0.03**2
    on_cpu = x.device.type == "cpu"
    size = max(1, (BLOCK if on_cpu else 256 * BLOCK) // (height * width))

    def blur(images: Tensor) -> Tensor:
        sums = images.reshape(-1, width) @ columns.T  # one large product
        return rows @ sums.view(-1, height, len(columns))

    def with_moments(images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for block in images.split(size):
            mean = blur(block)
            yield block, mean, blur(block * block) - mean**2

    blocks = [(block, mean, mean**2 + c1, variance + c2) for block, mean, variance in with_moments(y)]

    @torch.no_grad()  # holds for one thread only
    def similarities(share: Tensor) -> Tensor:
        values = share.new_empty(len(share), len(y))  # a small tensor a block would keep memory from being reused
        row = iter(values)
        for images in with_moments(share):
            for image, mean, variance in zip(*images, strict=True):
                places = next(row).split(size)
                for place, (block, block_mean, block_square, block_variance) in zip(places, blocks, strict=True):
                    luminance = block_mean * (2 * mean)  # 2 μx μy
                    contrast = blur(block * (2 * image)).sub_(luminance).add_(c2)  # 2 σxy + c2
                    below = (block_square + mean**2).mul_(block_variance + variance)
                    torch.mean(contrast.mul_(luminance.add_(c1)).div_(below), (1, 2), out=place)
        return values

    if not on_cpu:
        return similarities(x)
    with ThreadPoolExecutor(cores) as pool:
        return torch.cat(list(pool.map(similarities, x.chunk(cores))))
