"""How far the generated images lie, as a distribution, from the real ones.

All but the sliced Wasserstein distance and MS-SSIM compare the images' `features`.
"""

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.features import Encoder, Extractor, recognise
from hcm_helpers.similarity import REAL_TEST, REAL_TRAIN, TITLES, bootstrap_interval, ms_ssim, to_unit
from hcm_helpers.slices import Slices

MEASURES = {  # and what a better image gives
    "KID": "lower",
    "KID to test": "lower",
    "FD": "lower",
    "relative FD": "lower",
    "precision": "higher",
    "density": "higher",
    "recall": "higher",
    "recall of all": "higher",
    "coverage": "higher",
    "MS-SSIM": "as the real",
    "sliced Wasserstein": "lower",
}
FEWEST = 10  # images that make a distribution
LARGEST_SUBSET = 1000  # of KID (Bińkowski et al. 2018)
NEIGHBOURS = 5
DRAWS = 10  # of subsets, and of halves of the patients
PAIRS, PAIRS_EACH = 1000, 10  # for MS-SSIM: at least so many, and so many an image


# From two sets of features or images to a figure


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """FD, the Fréchet distance of two Gaussians: ‖μ − μ'‖² + tr(Σ + Σ' − 2√ΣΣ'), means and covariances of the features.

    Few images make it larger, the more so the more features there are: compare figures of one number of images only.

    Shapes: (N, D), (M, D) → a number in squares of the features' unit.

    Raises:
        DataError: fewer than FEWEST images.

    Source: Heusel et al. 2017, arXiv 1706.08500.
    """
    x, y = _features(x, y)
    if x.shape[1] > len(x) + len(y):  # turned into the space that they span, where the distance is the same
        basis = torch.linalg.qr(torch.cat([x, y]).T).Q
        x, y = x @ basis, y @ basis
    metric = FrechetInceptionDistance(_as_they_are(x.shape[1]))
    metric.update(x, real=True)
    metric.update(y, real=False)
    return metric.compute().item()


def kernel_distance(
    x: Tensor, y: Tensor, patients: np.ndarray | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """KID, the unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³, and its 95 % interval.

    The value is torchmetrics' mean over random subsets as large as the smaller set, but of 1,000 at most. For the
    interval the estimate from all pairs is written as the mean of one contribution an image of y, its projection
    (Hoeffding 1948, doi 10.1214/aoms/1177730196), and these are drawn; x stays as it is.

    Args:
        x: features of the reference (N, D).
        y: features (M, D).
        patients: whose each image of y is; patients are then drawn instead of images.
        seed: of the subsets and draws.

    Returns:
        value, low and high; the value may be negative.

    Raises:
        DataError: fewer than FEWEST images.

    Source: Bińkowski et al. 2018, arXiv 1801.01401.
    """
    x, y = _features(x, y)
    size = min(len(x), len(y), LARGEST_SUBSET)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # it keeps all features; so do we
        torch.manual_seed(seed)
        subsets = 1 if size == len(x) == len(y) else 100
        metric = KernelInceptionDistance(_as_they_are(x.shape[1]), subsets=subsets, subset_size=size)
        metric.update(x, real=True)
        metric.update(y, real=False)
        value = metric.compute()[0].item()

    xx, xy, yy = (((a @ b.T) / x.shape[1] + 1) ** 3 for a, b in ((x, x), (x, y), (y, y)))
    among_x = (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1))
    among_y = (yy.sum(dim=1) - yy.diagonal()) / (len(y) - 1)
    contributions = among_x + 2 * among_y - among_y.mean() - 2 * xy.mean(dim=0)
    contributions += value - contributions.mean()  # all pairs and the subsets differ by a little
    return value, *bootstrap_interval(contributions.numpy(), patients, seed=seed)


def neighbourhoods(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> dict[str, Tensor]:
    """Precision, density, recall and coverage: one number an image, whose mean is the figure.

    The neighbourhood of an image is the ball up to its k-th nearest neighbour in its own set.

    - precision: generated images inside the neighbourhood of any real one;
    - density: of how many real ones, divided by k (so that one lonely real image does not let everything pass);
    - recall: real images inside the neighbourhood of any generated one;
    - coverage: real images with any generated one inside their own neighbourhood.

    Recall and coverage depend on the number of generated images, precision and density do not: coverage grows with
    it, recall need not, as more images have smaller neighbourhoods.

    Shapes: real (M, D), generated (N, D) → precision and density (N,), recall and coverage (M,).

    Raises:
        DataError: not more than k images.

    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991 (precision, recall); Naeem et al. 2020, arXiv 2002.09797.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise DataError(f"{name}: {len(features)} images have no {k}-th neighbour each; give more than k={k}")
    real, generated = real.double(), generated.double()
    # In the direct way, as the one through a product would give an image a distance from itself.
    d = torch.cdist(real, generated, compute_mode="donot_use_mm_for_euclid_dist")
    radius_real, radius_generated = (
        torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + 1).values for f in (real, generated)
    )
    within_real = d < radius_real[:, None]
    return {
        "precision": within_real.any(dim=0).double(),
        "density": within_real.double().sum(dim=0) / k,
        "recall": (d < radius_generated).any(dim=1).double(),
        "coverage": within_real.any(dim=1).double(),
    }


def diversity(images: Tensor, patients: np.ndarray | None = None, seed: int = 0) -> tuple[float, float, float]:
    """Mean MS-SSIM of random pairs of images, low where they are diverse, and its 95 % interval.

    Args:
        images: (N, 1, S, S) in [−1, 1], at least two.
        patients: whose each image is; patients are then drawn instead of images.
        seed: of the pairs and draws.

    Returns:
        value, low and high; NaN for an interval of fewer than three images or patients.

    Source: Odena et al. 2017, arXiv 1610.09585.
    """
    rng = np.random.default_rng(seed)
    size = max(PAIRS, PAIRS_EACH * len(images))  # fewer would add a noise of their own to the interval
    i = rng.integers(len(images), size=size)
    j = (i + rng.integers(1, len(images), size=size)) % len(images)
    unit = to_unit(images)
    pairs = zip(torch.from_numpy(i).split(100), torch.from_numpy(j).split(100), strict=True)
    values = torch.cat([ms_ssim(unit[a], unit[b]) for a, b in pairs]).double().cpu().numpy()

    owners = np.arange(len(images)) if patients is None else np.unique(patients, return_inverse=True)[1]
    number = owners.max() + 1
    if number < 3:
        return float(values.mean()), float("nan"), float("nan")
    drawn = rng.multinomial(number, np.full(number, 1 / number), size=1000)
    # Two patients drawn a and b times are a · b times a pair; the pairs within one are there as often as the patient.
    weights = drawn[:, owners[i]] * np.where(owners[i] == owners[j], 1, drawn[:, owners[j]])
    weights = weights[weights.any(axis=1)]  # of few images a draw may be one image throughout, which has no pair
    low, high = np.quantile(weights @ values / weights.sum(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def sliced_wasserstein(x: Tensor, y: Tensor, num_projections: int = 512, seed: int = 0) -> float:
    """Mean Wasserstein-1 distance between two sets of images over random directions of pixel space.

    Along a direction each image is one number, and the distance between two sets of numbers is the area between
    their quantile functions. 0 for equal sets; in units of the pixel value, along directions of length 1.

    Args:
        x, y: images (N, 1, H, W) and (M, 1, H, W), N and M need not be equal.
        num_projections: directions drawn.
        seed: of the directions.

    Source: Bonneel et al. 2015, doi 10.1007/s10851-014-0506-3.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x[0].numel(), num_projections, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(x.device)
    levels = (torch.arange(256, device=x.device) + 0.5) / 256
    quantiles = [torch.quantile(images.flatten(1).float() @ directions, levels, dim=0) for images in (x, y)]
    return (quantiles[0] - quantiles[1]).abs().mean().item()


def power_spectrum(images: Tensor, pixel_mm: float = 1.0) -> tuple[Tensor, Tensor]:
    """Power of a set of images at each spatial frequency, the mean over images and directions.

    A slice ends at its border, and its opposite borders differ: a Hann window fades it out towards them, or that
    step would put power at all frequencies. White noise of variance v has the power v everywhere.

    Args:
        images: (N, 1, S, S).
        pixel_mm: side of a pixel in mm.

    Returns:
        Frequency in cycles per mm and power in squared intensity, each (S // 2,), from one cycle across the image to
        one in two pixels.
    """
    x = images[:, 0].double()
    size = x.shape[-1]
    window = torch.hann_window(size, dtype=x.dtype, device=x.device)
    window = window[:, None] * window
    x = window * (x - x.mean(dim=(1, 2), keepdim=True))
    power = torch.fft.fft2(x).abs().square().mean(dim=0) / window.square().sum()
    cycles = torch.fft.fftfreq(size, 1 / size, device=x.device)  # across the image: 0, 1, …, −1
    radius = torch.hypot(cycles[:, None], cycles).round()
    rings = torch.arange(1, size // 2 + 1)
    return rings / (size * pixel_mm), torch.stack([power[radius == ring].mean() for ring in rings]).cpu()


def half_power(frequency: Tensor, power: Tensor, real: Tensor) -> float:
    """The lowest frequency at which a spectrum has fallen to half of the real one; NaN if it never has.

    Args:
        frequency, power: of the generated images, as `power_spectrum` gives them.
        real: power of the real ones at the same frequencies.
    """
    ratio = power / real
    below = (ratio < 0.5).nonzero()
    if not len(below):
        return float("nan")
    i = int(below[0])
    if i == 0:
        return frequency[0].item()
    share = (ratio[i - 1] - 0.5) / (ratio[i - 1] - ratio[i])  # of the way from ring i − 1 to ring i
    return torch.lerp(frequency[i - 1].double(), frequency[i].double(), share).item()


# From models to a table


def fidelity_table(
    models: Mapping[str, Tensor], extractor: Extractor, train: Slices, test: Slices, seed: int = 0
) -> pd.DataFrame:
    """Every measure of every model against the training slices, and what real hearts reach.

    FD, relative FD, recall, coverage and the sliced Wasserstein distance depend on the number of images. So all rows
    are given the same, that of the smallest set: the figure is the mean over DRAWS random subsets of so many, and
    column n says how many. Two rows say what the figures are worth:

    - real test slices: held-out patients against the training slices;
    - real train slices: one random half of the training patients against the other, mean of DRAWS halvings.

    Two measures have rows of their own. "KID to test" does not look at the training slices: it is taken to the
    held-out ones, where a copy gains nothing, and its row of real train slices compares all of them. "recall of all"
    takes all images of a model, whose neighbourhoods are smaller than those of few: it asks more closely what models
    that draw equally many leave out. There are not so many real slices, so it has no row of them.

    An Encoder has seen the training slices and knows them better than any other: by so much the first is worse.

    Relative FD compares with one half of the training patients only: FD of n images from it, divided by FD of n real
    images of the other half from it, means of DRAWS halvings (after Woodland et al. 2024, arXiv 2311.13717). It is 1
    where images are as far from real hearts as other patients' hearts are.

    The 95 % intervals draw images of a model, but patients of real slices; those of both recalls and coverage draw the
    training patients, whose slices they count. Nothing trains a model anew. FD and the sliced Wasserstein distance
    have none: a bootstrap repeats images, and would shift them.

    Args:
        models: name → generated images (N, 1, S, S) in [−1, 1].
        extractor: a trained `Encoder`, or `Inception()`.
        train, test: the real slices, of the groups that the models have learned.
        seed: of the subsets, halves and draws.

    Returns:
        One row a model and measure: model, measure, value, low, high, n (images), drawn ("images", "patients", or
        "" without an interval).

    Raises:
        DataError: images or slices too few for a distribution, of another size, outside [−1, 1] or not finite, or
            training slices of one patient.
    """
    patients, test_patients = (slices.manifest["patient"].to_numpy() for slices in (train, test))
    sets = {name: (images, None) for name, images in models.items()} | {REAL_TEST: (test.images, test_patients)}
    for name, (images, _) in {REAL_TRAIN: (train.images, patients), **sets}.items():
        _check(name, images, train.images)
    rng = np.random.default_rng(seed)
    halves = _halves(patients, rng)
    n = min(*(len(images) for images, _ in sets.values()), *(len(half) for pair in halves for half in pair))
    if n < FEWEST:
        raise DataError(f"{REAL_TRAIN}: half of the patients have {n}, fewer than {FEWEST}; prepare more patients")

    def draw(rows: Tensor) -> Tensor:
        return rows[torch.from_numpy(rng.permutation(len(rows))[:n])]

    rows = []

    def add(name: str, measure: str, value: float, low=np.nan, high=np.nan, count: int = n, drawn: str = "") -> None:
        rows.append((name, measure, float(value), low, high, count, drawn))

    real, held_out = (extractor.features(slices.images) for slices in (train, test))
    halves = [(draw(a), b) for a, b in halves]
    unit = np.mean([frechet_distance(real[b], real[a]) for a, b in halves])
    for name, (images, owners) in sets.items():
        images, drawn = images.cpu(), "images" if owners is None else "patients"
        found = extractor.features(images)
        parts = [draw(torch.arange(len(images))) for _ in range(DRAWS)]
        add(name, "KID", *kernel_distance(real, found, owners, seed), len(images), drawn)
        if owners is None:
            add(name, "KID to test", *kernel_distance(held_out, found, seed=seed), len(images), drawn)
        add(name, "FD", np.mean([frechet_distance(real, found[part]) for part in parts]))
        from_halves = [frechet_distance(real[b], found[part]) for (_, b), part in zip(halves, parts, strict=True)]
        add(name, "relative FD", np.mean(from_halves) / unit)
        near = neighbourhoods(real, found)
        for measure in ("precision", "density"):
            interval = bootstrap_interval(near[measure].numpy(), owners, seed=seed)
            add(name, measure, near[measure].mean(), *interval, len(images), drawn)
        if owners is None:
            interval = bootstrap_interval(near["recall"].numpy(), patients, seed=seed)
            add(name, "recall of all", near["recall"].mean(), *interval, len(images), "patients")
        near = [neighbourhoods(real, found[part]) for part in parts]
        for measure in ("recall", "coverage"):
            values = torch.stack([found[measure] for found in near]).mean(dim=0).numpy()
            add(name, measure, values.mean(), *bootstrap_interval(values, patients, seed=seed), n, "patients")
        add(name, "MS-SSIM", *diversity(images, owners, seed), len(images), drawn)
        add(name, "sliced Wasserstein", np.mean([sliced_wasserstein(train.images, images[part]) for part in parts]))

    add(REAL_TRAIN, "KID", np.mean([kernel_distance(real[b], real[a], seed=seed)[0] for a, b in halves]))
    add(REAL_TRAIN, "KID to test", *kernel_distance(held_out, real, patients, seed), len(train), "patients")
    add(REAL_TRAIN, "FD", unit)
    add(REAL_TRAIN, "relative FD", 1)
    near = [neighbourhoods(real[b], real[a]) for a, b in halves]
    for measure in near[0]:
        add(REAL_TRAIN, measure, np.mean([found[measure].mean() for found in near]))
    add(REAL_TRAIN, "MS-SSIM", *diversity(train.images, patients, seed), len(train), "patients")
    distances = [sliced_wasserstein(train.images[b], train.images[a]) for a, b in halves]
    add(REAL_TRAIN, "sliced Wasserstein", np.mean(distances))
    return pd.DataFrame(rows, columns=["model", "measure", "value", "low", "high", "n", "drawn"])


def group_table(
    models: Mapping[str, tuple[Tensor, Tensor]], encoder: Encoder, train: Slices, test: Slices, seed: int = 0
) -> pd.DataFrame:
    """Does a model draw the group that it was asked for, and does it draw many hearts of it or always the same?

    The judge has learned from the training slices and knows them better than any others. So its share of held-out
    slices is what drawn ones are to be measured by: more says that the model draws what the judge goes by more
    plainly than patients show it, less that it does not draw it.

    Args:
        models: name → images (N, 1, S, S) in [−1, 1] and the groups asked for, int64 (N,), an index into GROUPS.
        encoder: trained on the training slices.
        train, test: real slices.
        seed: of the draws and pairs.

    Returns:
        Two rows a set and group, and two for all groups: model, group, measure, value, low, high, n. Measures:
        "recognised", the share that the encoder puts into its own group, and "MS-SSIM", the mean of pairs within the
        group, for all groups the mean of the groups, without an interval. Intervals, 95 %, draw images of a model,
        but patients of real slices.
    """
    sets = {name: (images.cpu(), labels.cpu(), None) for name, (images, labels) in models.items()}
    for name, slices in ((REAL_TEST, test), (REAL_TRAIN, train)):
        sets[name] = slices.images, slices.labels, slices.manifest["patient"].to_numpy()
    rows = []
    for name, (images, labels, owners) in sets.items():
        right = (recognise(encoder, images) == labels).double().numpy()
        everything = [("recognised", right.mean(), *bootstrap_interval(right, owners, seed=seed))]
        within = []
        for index in labels.unique().tolist():
            members = (labels == index).numpy()
            whose = None if owners is None else owners[members]
            share = right[members].mean(), *bootstrap_interval(right[members], whose, seed=seed)
            likeness = diversity(images[members], whose, seed)
            within.append(likeness[0])
            for measure, values in (("recognised", share), ("MS-SSIM", likeness)):
                rows.append((name, GROUPS[index], measure, *values, members.sum()))
        everything.append(("MS-SSIM", np.mean(within), np.nan, np.nan))
        rows += [(name, "all", *values, len(images)) for values in everything]
    return pd.DataFrame(rows, columns=["model", "group", "measure", "value", "low", "high", "n"])


def render(table: pd.DataFrame) -> pd.DataFrame:
    """`fidelity_table` in text, a row a model: "0.243 [0.231, 0.256]", with n above, or beside where rows differ."""
    columns = {}
    for measure in dict.fromkeys(table["measure"]):
        rows = table[table["measure"] == measure]
        one = rows["n"].nunique() == 1
        arrow = {"lower": " ↓", "higher": " ↑"}.get(MEASURES[measure], "")
        columns[f"{measure}{arrow}" + (f", n = {rows['n'].iloc[0]}" if one else "")] = {
            TITLES[row.model]: ("–" if pd.isna(row.value) else f"{row.value:z.3f}")
            + ("" if pd.isna(row.low) else f" [{row.low:z.3f}, {row.high:z.3f}]")
            + ("" if one else f", n = {row.n}")
            for row in rows.itertuples()
        }
    return pd.DataFrame(columns).fillna("–").rename_axis("model")


def disturbed(images: Tensor, train: Tensor, others: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Held-out real images made worse in five ways, to see which measure notices which.

    Args:
        images: held-out slices (N, 1, S, S) in [−1, 1].
        train: training slices, of which a tenth of the images become copies.
        others: slices of other groups.
        seed: of the noise and of the copies.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator)
    width = images.shape[-1] / 64
    copied = images.clone()
    places = torch.randperm(len(images), generator=generator)[: max(1, round(0.1 * len(images)))]
    copied[places] = train[torch.randint(len(train), (len(places),), generator=generator)]
    return {
        "noise": (images + 0.2 * noise).clamp(-1, 1),
        "blur": torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, 1.5 * width, 1.5 * width))),
        "one image repeated": images[:1].repeat(len(images), 1, 1, 1),
        "other groups": others,
        "10 % copies": copied,
    }


def _check(name: str, images: Tensor, slices: Tensor) -> None:
    """Raise DataError unless the images are enough, of the slices' size, finite and in [−1, 1]."""
    if images.ndim != 4 or images.shape[1:] != slices.shape[1:]:
        raise DataError(
            f"{name}: images have shape {tuple(images.shape)}, the slices {tuple(slices.shape)}; "
            "sample this model again after training it on these slices"
        )
    if len(images) < FEWEST:
        raise DataError(f"{name}: {len(images)} images are no distribution; give at least {FEWEST}")
    try:
        to_unit(images)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _halves(patients: np.ndarray, rng: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
    """DRAWS times the rows of one random half of the patients and those of the other."""
    names = np.unique(patients)
    if len(names) < 2:
        raise DataError(f"{REAL_TRAIN}: are all of patient {names[0]}, who has no halves; prepare more patients")
    first = [np.isin(patients, rng.permutation(names)[: len(names) // 2]) for _ in range(DRAWS)]
    return [tuple(torch.from_numpy(np.flatnonzero(rows)) for rows in (half, ~half)) for half in first]


def _features(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features in double precision, for a distance of near sets loses digits; DataError if too few."""
    for features in (x, y):
        if len(features) < FEWEST:
            raise DataError(f"{len(features)} images are no distribution; give at least {FEWEST}")
    return x.double(), y.double()


def _as_they_are(num_features: int) -> nn.Module:
    """What torchmetrics takes for a feature network, where features are computed already."""
    network = nn.Identity()
    network.num_features = num_features
    return network
