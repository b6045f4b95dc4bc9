"""Is a generated image a copy of a training slice?

Nearness alone does not tell: a real slice of a patient whom no model has seen is near to some training slice, too. So
the line is drawn where held-out real slices end. What lies beyond it is nearer to a training slice than any slice of
another patient is. Copies that are moved, turned or in other tones may pass, for the pixels are compared in place.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hcm_helpers.acdc import DataError
from hcm_helpers.features import Extractor
from hcm_helpers.similarity import Matches, best_match, best_matches, bootstrap_interval, to_unit
from hcm_helpers.slices import Slices, load_slices

HELD_OUT = "real held-out slices"
FEWEST = 19  # held-out slices for a threshold: were they all of different patients, 1 new one in 20 would exceed it


def held_out_slices(folder: str | Path, groups: Sequence[str] | None = None) -> Slices:
    """The slices of all patients that no model learns from, validation and test, as `load_slices` gives them.

    Raises:
        DataError: there is none.
    """
    slices = load_slices(folder, groups=groups)
    rows = torch.tensor((slices.manifest["split"] != "train").to_numpy())
    if not rows.any():
        raise DataError(f"{folder}: holds no slices of validation or test to tell copies by; prepare more patients")
    parts = {name: getattr(slices, name)[rows] for name in ("images", "labels", "masks")}
    return replace(slices, **parts, manifest=slices.manifest[rows.numpy()].reset_index(drop=True))


def nearest_by_pixels(images: Tensor, train: Slices) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's r over the pixels of each image with its nearest training slice (N,), and that slice's row (N,).

    Args:
        images: (N, 1, S, S) in [−1, 1].
        train: the slices that the model has learned from.

    Raises:
        DataError: images of another size than the slices, outside [−1, 1], not finite, or none.
    """
    _check_sizes(images, train)
    rows, values = best_match(to_unit(images.cpu()), to_unit(train.images), "cc")
    return values.numpy(), rows.numpy()


def find_nearest(images: Tensor, train: Slices, extractor: Extractor, matches: Matches | None = None) -> pd.DataFrame:
    """The nearest training slice of each image by pixels, by structure and by features, each for itself.

    Args:
        images, train: as in `nearest_by_pixels`.
        extractor: a trained `features.Encoder`.
        matches: `similarity.best_matches` of the images with the training slices, where they are known.

    Returns:
        A row an image: cc (Pearson's r over the pixels), ssim, distance (Euclidean, of the features), the row in
        train of the nearest by each (cc_row, ssim_row, distance_row), and the patient of the nearest by cc.
    """
    _check_sizes(images, train)
    matches = best_matches(to_unit(images.cpu()), to_unit(train.images)) if matches is None else matches
    (cc_row, cc), (ssim_row, ssim) = ((part.cpu().numpy() for part in matches[metric]) for metric in ("cc", "ssim"))
    features, references = (extractor.features(part).double() for part in (images, train.images))
    distance, distance_row = torch.cdist(features, references).min(dim=1)
    found = {"cc": cc, "ssim": ssim, "distance": distance}
    found |= {"cc_row": cc_row, "ssim_row": ssim_row, "distance_row": distance_row}
    return pd.DataFrame(found).assign(patient=train.manifest["patient"].to_numpy()[cc_row])


def _check_sizes(images: Tensor, train: Slices) -> None:
    if images.ndim != 4 or images.shape[1:] != train.images.shape[1:] or not len(images):
        raise DataError(
            f"images have shape {tuple(images.shape)}, the slices {tuple(train.images.shape)}; "
            "draw them from a model that has learned from these slices"
        )


def copy_threshold(correlations: np.ndarray) -> float:
    """The highest of the held-out slices' correlations with their nearest training slices; copies lie above.

    If a model drew new hearts as real patients are, an image of it would lie above between once in n + 1 times, n the
    number of held-out slices, and once in m + 1, m that of their patients: each of n + 1 is as likely to be the
    highest if slices of one patient are no more alike than those of several. Rounded up to four digits, so that it is
    the same on every machine.

    Args:
        correlations: (n,), as `nearest_by_pixels` gives them for `held_out_slices`.

    Raises:
        DataError: fewer than FEWEST.
    """
    if len(correlations) < FEWEST:
        raise DataError(
            f"{len(correlations)} held-out slices are too few to tell copies by; prepare more patients, so that "
            f"validation and test have {FEWEST} slices of these groups"
        )
    return math.ceil(float(np.max(correlations)) * 1e4) / 1e4


def copies_table(found: Mapping[str, pd.DataFrame], real: pd.DataFrame, patients: np.ndarray) -> pd.DataFrame:
    """How near each model's images are to its training slices, and the share of copies among them.

    In the row of the real slices each patient is judged by a threshold from the others: what they say of themselves
    would be that no slice lies above the highest.

    Args:
        found: model → what `find_nearest` gives for its images.
        real: the same for `held_out_slices`.
        patients: whose each of these is.

    Returns:
        A row a model, the real slices last: model, n, the mean cc, its 95th percentile and maximum, the mean ssim and
        distance, threshold, copies (the share of images above it) with its 95 % interval low and high (images drawn,
        or patients of real slices), num_patients (training patients with a copy) and their names.

    Raises:
        DataError: held-out slices of one patient, or fewer than FEWEST.
    """
    correlations = real["cc"].to_numpy()
    threshold = copy_threshold(correlations)
    highest_of_others = _highest_of_others(correlations, patients)
    rows = []
    for name, nearest in {**found, HELD_OUT: real}.items():
        cc, owners = nearest["cc"].to_numpy(), patients if name == HELD_OUT else None
        above = cc > (highest_of_others if name == HELD_OUT else threshold)
        low, high = bootstrap_interval(above.astype(float), owners)
        names = sorted(set(nearest["patient"][above]))
        rows.append(
            {
                "model": name,
                "n": len(nearest),
                "cc": cc.mean(),
                "cc_p95": np.quantile(cc, 0.95),
                "cc_max": cc.max(),
                "ssim": nearest["ssim"].mean(),
                "distance": nearest["distance"].mean(),
                "threshold": threshold,
                "copies": above.mean(),
                "low": low,
                "high": high,
                "num_patients": len(names),
                "patients": " ".join(names),
            }
        )
    return pd.DataFrame(rows)


def copies_when_blurred(held_out: Slices, train: Slices, sigmas: Sequence[float] = (0, 0.5, 1, 2)) -> pd.DataFrame:
    """How many slices of unseen patients would pass for copies if they were blurred: blur is near to everything.

    What a blurred model has above the rate of equally blurred real slices is its own.

    Args:
        held_out: `held_out_slices`.
        train: the slices that the models have learned from.
        sigmas: standard deviations of the Gaussian blur, in pixels; 0 leaves the slices as they are.

    Returns:
        A row a sigma: sigma, cc (mean, to the nearest training slice), copies (share above the threshold, which is
        that of the other patients' slices as they are) with its 95 % interval over patients, low and high.

    Raises:
        DataError: held-out slices of one patient.
    """
    patients = held_out.manifest["patient"].to_numpy()
    thresholds, rows = _highest_of_others(nearest_by_pixels(held_out.images, train)[0], patients), []
    for sigma in sigmas:
        blurred = torch.from_numpy(gaussian_filter(held_out.images.cpu().numpy(), (0, 0, sigma, sigma)))
        cc = nearest_by_pixels(blurred, train)[0]
        low, high = bootstrap_interval((cc > thresholds).astype(float), patients)
        rows.append({"sigma": sigma, "cc": cc.mean(), "copies": (cc > thresholds).mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def _highest_of_others(correlations: np.ndarray, patients: np.ndarray) -> np.ndarray:
    if len(np.unique(patients)) < 2:
        raise DataError("held-out slices of one patient cannot be judged by those of others; prepare more patients")
    return np.array([correlations[patients != patient].max() for patient in patients])


def closest_pairs(found: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """The images nearest to a training slice by pixels, the nearest first; the index is the image's number."""
    return found.nlargest(count, "cc")
