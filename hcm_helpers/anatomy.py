"""What a heart measures, by the ring of wall that its mask shows; `segmentation` draws the mask of a picture.

A mask is (S, S) uint8 with ACDC's values: 0 background, 1 right-ventricle cavity, 2 myocardium (the wall), 3
left-ventricle cavity. Where it shows no plausible heart, nothing is measured but areas: there is no thickness of
a wall that is not closed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from scipy.fft import fft, ifft
from scipy.ndimage import binary_fill_holes, gaussian_filter1d, label
from scipy.spatial import KDTree
from scipy.stats import spearmanr, wasserstein_distance
from skimage.measure import find_contours
from torch import Tensor

from hcm_helpers.acdc import LEFT_VENTRICLE, MYOCARDIUM, RIGHT_VENTRICLE, DataError
from hcm_helpers.similarity import REAL_TEST, REAL_TRAIN, TITLES, bootstrap_interval

STRUCTURES = {"right ventricle": RIGHT_VENTRICLE, "myocardium": MYOCARDIUM, "left ventricle": LEFT_VENTRICLE}
SPECK = 0.05  # what is below this share of a structure is a slip of the pen and no second piece or hole
OPEN = 0.02  # share of the cavity's rim that may lack a wall: a gap of one pixel in a cavity 12 pixels wide
WAVES = 6  # a contour is kept up to so many waves around: hypertrophy passes, the stairs of the pixels do not
SMOOTH = 4  # pixels: standard deviation of the window along the contour in which a thickness is averaged
REACH = 2  # pixels from the wall's outline within which it faces the right ventricle
FEWEST = 10  # measurements that make a distribution
SHARES = ("plausible", "right_ventricle")  # of all slices; the other measures are of the plausible ones
MEASURES = {  # the fields of Anatomy that a table compares: title, and digits behind the point
    "plausible": ("plausible", 2),
    "right_ventricle": ("with right ventricle", 2),
    "max_wall_mm": ("largest wall, mm", 1),
    "mean_wall_mm": ("mean wall, mm", 1),
    "cavity_mm2": ("cavity, mm²", 0),
    "wall_mm2": ("wall, mm²", 0),
    "asymmetry": ("septum to free wall", 2),
}
NORMAL = "normal hearts"


# From a mask to millimetres


@dataclass(frozen=True)
class Anatomy:
    """What one mask shows. Lengths and asymmetry are NaN where it shows no plausible heart."""

    plausible: bool  # one closed ring of wall round one cavity
    reason: str  # why not; empty where it is
    right_ventricle: bool  # whether a right ventricle lies against that ring, which near the apex none does
    cavity_mm2: float  # left ventricle
    wall_mm2: float
    max_wall_mm: float
    mean_wall_mm: float  # along the outer contour
    asymmetry: float  # mean thickness where the wall faces the right ventricle, divided by that of the rest


def measure(mask: np.ndarray, pixel_mm: float) -> Anatomy:
    """Whether a mask shows a plausible heart, and how large it is.

    Thickness is the distance from each point of the outer contour to the nearest of the inner one. Both contours
    are drawn at half way between pixels and smoothed, and so is the thickness along them: a drawn pixel more or
    less moves neither the mean nor the maximum by a pixel.

    Args:
        mask: (S, S) whole numbers 0 to 3.
        pixel_mm: from one pixel to the next.

    Raises:
        DataError: another shape or other values, or a pixel size that is not positive.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not np.isin(mask, range(4)).all():
        raise DataError(f"mask: must be (S, S) with values 0 to 3, not {mask.shape} of {mask.dtype}; give one slice")
    if not 0 < pixel_mm < np.inf:
        raise DataError(f"pixel_mm = {pixel_mm}: must be a positive number of millimetres; take it from the slices")
    cavity_mm2, wall_mm2 = (float((mask == k).sum() * pixel_mm**2) for k in (LEFT_VENTRICLE, MYOCARDIUM))
    inner, outer, reason = _surfaces(mask)
    if reason:
        return Anatomy(False, reason, False, cavity_mm2, wall_mm2, np.nan, np.nan, np.nan)

    outline = _contour(outer)
    thickness = KDTree(_contour(inner)).query(outline)[0]
    thickness = gaussian_filter1d(thickness, SMOOTH * len(outline) / _perimeter(outline), mode="wrap") * pixel_mm
    right = np.argwhere(_largest(mask == RIGHT_VENTRICLE)[0])
    septal = KDTree(right).query(outline)[0] <= REACH if len(right) else np.zeros(len(outline), bool)
    faced = bool(septal.mean() >= SPECK)
    known = faced and not septal.all()
    asymmetry = thickness[septal].mean() / thickness[~septal].mean() if known else np.nan
    lengths = float(thickness.max()), float(thickness.mean()), float(asymmetry)
    return Anatomy(True, "", faced, cavity_mm2, wall_mm2, *lengths)


def measure_all(masks: Iterable[np.ndarray], pixel_mm: float) -> pd.DataFrame:
    """One row a mask of (N, S, S), the fields of `Anatomy` as columns; about a millisecond each at 64×64."""
    rows = [asdict(measure(mask, pixel_mm)) for mask in masks]
    return pd.DataFrame(rows, columns=[field.name for field in fields(Anatomy)])


def wasserstein_mm(a: Iterable[float], b: Iterable[float]) -> float:
    """Distance between two samples of a measure, in its unit: how far one must be moved, on average, to be the other.

    Args:
        a, b: such as `max_wall_mm` of generated and of real slices; NaN, not measurable, is left out.

    Raises:
        DataError: fewer than ten measurements in one of them.
    """
    samples = [np.asarray(sample, dtype=float) for sample in (a, b)]
    samples = [sample[~np.isnan(sample)] for sample in samples]
    for name, sample in zip("ab", samples, strict=True):
        if len(sample) < FEWEST:
            raise DataError(f"{name}: {len(sample)} measurements are no distribution; give at least {FEWEST} slices")
    return float(wasserstein_distance(*samples))


def _surfaces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """The cavity without holes, the cavity with its wall, and the reason why this is no heart, if it is none."""
    cavity, cavity_rest = _largest(mask == LEFT_VENTRICLE)
    wall, wall_rest = _largest(mask == MYOCARDIUM)
    cavity = binary_fill_holes(cavity)  # papillary muscles may be drawn as wall
    wall &= ~cavity
    heart = binary_fill_holes(cavity | wall)
    if not wall.any() or not cavity.any():
        reason = f"no {'cavity' if wall.any() else 'wall'}"
    elif cavity_rest > SPECK or wall_rest > SPECK:
        reason = f"the {'cavity' if cavity_rest > SPECK else 'wall'} is in pieces"
    elif heart[[0, -1]].any() or heart[:, [0, -1]].any():
        reason = "the wall reaches the edge of the picture"
    elif _open_rim(cavity, wall) > OPEN:
        reason = "the wall is open"
    elif (heart & ~cavity & ~wall).sum() > SPECK * wall.sum():
        reason = "the wall has a hole"
    else:
        reason = ""
    return cavity, heart, reason


def _largest(region: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest piece of a region, corners touching, and the share of the region that lies in the others."""
    pieces, number = label(region, np.ones((3, 3)))
    if number < 2:
        return region, 0.0
    sizes = np.bincount(pieces.ravel())[1:]
    return pieces == 1 + sizes.argmax(), float(1 - sizes.max() / sizes.sum())


def _open_rim(cavity: np.ndarray, wall: np.ndarray) -> float:
    """Share of the cavity's rim, in edges of pixels, on whose other side there is no wall."""
    rim = bare = 0
    for cavity_, wall_ in ((cavity, wall), (cavity.T, wall.T)):
        for inside, beyond in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            edge = cavity_[inside] & ~cavity_[beyond]
            rim += edge.sum()
            bare += (edge & ~wall_[beyond]).sum()
    return bare / rim


def _contour(region: np.ndarray) -> np.ndarray:
    """The outline of a region, smoothed: (points, 2) as (row, column), evenly spaced by about a quarter pixel.

    Only the lowest waves around it are kept (Kuhl & Giardina 1982, doi 10.1016/0146-664X(82)90034-X), so that a
    circle or an ellipse keeps its size, as it would not under a blur.
    """
    points = max(find_contours(region.astype(np.float32), 0.5), key=len)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    count = max(64, int(4 * along[-1]))
    places = np.arange(count) * along[-1] / count
    waves = fft(np.interp(places, along, points[:, 0]) + 1j * np.interp(places, along, points[:, 1]))
    waves[WAVES + 1 : -WAVES] = 0
    smooth = ifft(waves)
    return np.stack([smooth.real, smooth.imag], axis=1)


def _perimeter(outline: np.ndarray) -> float:
    return float(np.hypot(*(outline - np.roll(outline, 1, axis=0)).T).sum())


# Whether a model makes hearts with HCM


def anatomy_table(
    models: Mapping[str, pd.DataFrame],
    train: pd.DataFrame,
    test: pd.DataFrame,
    normal: pd.DataFrame,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Are the generated hearts plausible, and have they the walls and sizes of hearts with HCM?

    Each set is compared with the training slices of HCM: generated ones as the segmenter draws them both, real ones
    so and, expert against expert, as the experts did. The distance of a real set says what a model's is worth:

    - real train slices: of one half of the patients from the other, mean over random halvings;
    - real test slices: of held-out hearts with HCM;
    - normal hearts: of a model that had learned hearts and nothing of HCM.

    The 95 % intervals come from drawing images where they are generated and patients where they are real, for a
    distance on both sides. A draw lies farther away than the sample it was drawn from, the more so the fewer the
    patients, so a distance stands low in its interval or even below it. The halves' interval spans the halvings.

    Args:
        models: name → `measure_all` of its slices, of HCM only.
        train, test, normal: `measure_slices` of HCM patients for training, of held-out ones, of patients of NOR.
        num_bootstrap: draws for an interval, and halvings.
        seed: of the draws.

    Returns:
        One row a set, kind of masks and measure: model, masks, measure, n (slices measured), drawn (from how many
        images or patients), value (share or mean), low, high, distance (Wasserstein, in the measure's unit),
        distance_low, distance_high, to_normal (the distance from the normal hearts), error (mean difference in a
        slice between the segmenter's mask and the expert's), note (in words, why there is no figure).
    """
    real = {REAL_TRAIN: train, REAL_TEST: test, NORMAL: normal}
    sets = [(name, "segmenter", table.assign(patient=table.index)) for name, table in models.items()]
    sets += [(name, *group) for name, table in real.items() for group in table.groupby("masks", sort=False)]
    rows = []
    for name, masks, table in sets:
        for measure in MEASURES:
            values, reference = _measured(table, measure), _measured(train[train["masks"] == masks], measure)
            row = {"model": name, "masks": masks, "measure": measure, "note": ""}
            row |= {"n": len(values), "drawn": values.index.nunique()}
            rows.append(row)
            if len(values) < FEWEST:
                row["note"] = f"{len(values)} of {len(table)} slices can be measured, too few for a figure"
                continue
            row["value"] = values.mean()
            row["low"], row["high"] = bootstrap_interval(values.to_numpy(), values.index, num_bootstrap, seed)
            if measure in SHARES or len(reference) < FEWEST:
                continue
            if name == REAL_TRAIN:
                draws = _halves_apart(values, num_bootstrap, seed)
                row["distance"] = np.mean(draws)
            else:
                draws = _draws_apart(values, reference, num_bootstrap, seed)
                row["distance"] = wasserstein_mm(values, reference)
            row["distance_low"], row["distance_high"] = np.quantile(draws, [0.025, 0.975])
            others = _measured(normal[normal["masks"] == masks], measure)
            if name != NORMAL and len(others) >= FEWEST:
                row["to_normal"] = wasserstein_mm(values, others)
            if name in real and masks == "segmenter":
                pairs = real[name].query("plausible").pivot(index="row", columns="masks", values=measure)
                row["error"] = pairs.reindex(columns=["segmenter", "expert"]).diff(axis=1)["expert"].abs().mean()
    columns = ["model", "masks", "measure", "n", "drawn", "value", "low", "high"]
    columns += ["distance", "distance_low", "distance_high", "to_normal", "error", "note"]
    return pd.DataFrame(rows, columns=columns)


def _measured(table: pd.DataFrame, measure: str) -> pd.Series:
    """A share's values in all slices, a measure's in the plausible ones that have it, by the patient or image."""
    kept = table if measure in SHARES else table[table["plausible"]]
    return kept.set_index("patient")[measure].astype(float).dropna()


def _draws_apart(a: pd.Series, b: pd.Series, num: int, seed: int) -> np.ndarray:
    """Wasserstein distances of sets drawn anew from both by patient or image; NaN where one has a single one."""
    rng, weights = np.random.default_rng(seed), []
    for values in (a, b):
        owners, names = values.index.factorize()
        if len(names) < 2:
            return np.array([np.nan])
        weights.append(rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num)[:, owners])
    return _distances(a.to_numpy(), b.to_numpy(), *weights)


def _halves_apart(values: pd.Series, num: int, seed: int) -> np.ndarray:
    """Wasserstein distances of a random half of the patients from the others; NaN for one patient."""
    owners, names = values.index.factorize()
    if len(names) < 2:
        return np.array([np.nan])
    rng, values = np.random.default_rng(seed), values.to_numpy()
    half = np.stack([np.isin(owners, rng.permutation(len(names))[: len(names) // 2]) for _ in range(num)])
    return _distances(values, values, half, ~half)


def _distances(a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray) -> np.ndarray:
    """Wasserstein distances of a from b with many weights at once: ∫ |F_a − F_b| over the values, as SciPy's of one.

    Shapes: a (N,), b (M,), weights (draws, N), (draws, M) → (draws,).
    """
    both = np.concatenate([a, b])
    order = np.argsort(both)
    shares = [w / w.sum(axis=1, keepdims=True) for w in (weights_a, weights_b)]
    steps = np.concatenate([shares[0], -shares[1]], axis=1)[:, order]
    return np.abs(np.cumsum(steps, axis=1)[:, :-1]) @ np.diff(both[order])


def render(table: pd.DataFrame) -> pd.DataFrame:
    """`anatomy_table` in text, as `similarity.render`: a row a set, columns (measure, "mean", "distance", "to NOR"
    or "error").

    Where there is no figure its sentence stands, or "–".
    """
    cells = {}
    for row in table.itertuples():
        title, digits = MEASURES[row.measure]
        who = TITLES[row.model] + (", expert's masks" if row.masks == "expert" else "")

        def text(value: float, low: float, high: float, digits=digits) -> str:
            interval = "" if np.isnan(low) else f" [{low:z.{digits}f}, {high:z.{digits}f}]"
            return "–" if np.isnan(value) else f"{value:z.{digits}f}{interval}"

        mean = "share" if row.measure in SHARES else "mean"
        cells.setdefault(who, {})[title, mean] = row.note or f"{text(row.value, row.low, row.high)} of {row.n}"
        if row.measure not in SHARES:
            cells[who][title, "distance"] = text(row.distance, row.distance_low, row.distance_high)
            cells[who][title, "to NOR"] = text(row.to_normal, np.nan, np.nan)
            cells[who][title, "error"] = text(row.error, np.nan, np.nan)
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis(columns=["measure", None])


# What a code has come to mean


def appearance(images: Tensor, masks: Tensor, pixel_mm: float) -> pd.DataFrame:
    """Five numbers an image, for a code to be compared with.

    Args:
        images: (N, 1, S, S) in [−1, 1].
        masks: (N, S, S) of `segment`.
        pixel_mm: from one pixel to the next.

    Returns:
        One row an image: brightness (mean grey, 0 black to 1 white), right_mm and down_mm (from the picture's centre
        to that of left ventricle and wall; NaN where the mask has neither), cavity_mm2, mean_wall_mm (NaN where the
        mask shows no plausible heart).
    """
    hearts = np.isin(masks.numpy(), (MYOCARDIUM, LEFT_VENTRICLE))
    area = hearts.sum(axis=(1, 2))
    places = np.arange(hearts.shape[1]) - (hearts.shape[1] - 1) / 2
    with np.errstate(invalid="ignore"):
        right = (hearts.sum(axis=1) @ places) / area * pixel_mm
        down = (hearts.sum(axis=2) @ places) / area * pixel_mm
    brightness = (images.float().mean(dim=(1, 2, 3)).numpy() + 1) / 2
    table = pd.DataFrame({"brightness": brightness, "right_mm": right, "down_mm": down})
    return table.join(measure_all(masks.numpy(), pixel_mm)[["cavity_mm2", "mean_wall_mm"]])


def code_correlations(codes: Tensor, measures: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each code with each measure of the images drawn from it, with 95 % interval.

    With n images the interval is tanh(artanh r ± 1.96 √((1 + r²/2) / (n − 3))).

    Args:
        codes: (N, K).
        measures: N rows, a column a measure; NaN is left out.

    Returns:
        One row a code and measure: code (from 1), measure, n (images with that measure), value, low, high; NaN where
        there are fewer than FEWEST images or no two values differ.

    Source: Bonett & Wright 2000, doi 10.1007/BF02294183.
    """
    rows = []
    for k, code in enumerate(codes.numpy().T, start=1):
        for name, column in measures.items():
            known = column.notna().to_numpy()
            n, r = int(known.sum()), np.nan
            if n >= FEWEST and column[known].nunique() > 1:
                r = spearmanr(code[known], column[known]).statistic
            reach = 1.96 * np.sqrt((1 + r**2 / 2) / (n - 3)) if n >= FEWEST else np.nan
            middle = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
            rows.append((k, name, n, r, np.tanh(middle - reach), np.tanh(middle + reach)))
    return pd.DataFrame(rows, columns=["code", "measure", "n", "value", "low", "high"])
