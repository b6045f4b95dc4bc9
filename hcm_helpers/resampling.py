"""Volumes onto the pixels of slices: interpolation that averages where it must, labels, turns, percentiles."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import affine_transform

from hcm_helpers.acdc import LEFT_VENTRICLE


class Taps(NamedTuple):
    """One axis's resampling: pixel s takes weight[s, k] of voxel index[s, k].

    Shapes: index (S, K) int64, weight (S, K) float32; a row sums to 1, or to 0 outside the image.
    """

    index: np.ndarray
    weight: np.ndarray


def triangle_taps(num_voxels: int, spacing: float, centre: float, image_size: int, pixel: float) -> Taps:
    """Linear interpolation along one axis, widened where the pixels are larger than the voxels.

    A triangle that reaches one voxel to either side is linear interpolation; one that reaches a pixel
    averages the voxels that fall together in it, against aliasing.

    Args:
        num_voxels: length of the axis.
        spacing: of the voxels, mm.
        centre: of the pixels, mm from the middle of voxel 0.
        image_size: S, the number of pixels.
        pixel: their spacing, mm.
    """
    place = (centre + (np.arange(image_size) - (image_size - 1) / 2) * pixel) / spacing  # in voxels
    place = place[:, None]
    reach = max(1.0, pixel / spacing)
    index = np.ceil(place - reach).astype(int) + np.arange(math.ceil(2 * reach))
    offset = index - place
    weight = np.clip(1 - np.abs(offset) / reach, 0, None)
    tilt = (weight * offset).sum(axis=1) / ((weight * offset**2).sum(axis=1) + 1e-12)
    weight *= 1 - tilt[:, None] * offset  # the mean of the taps is the pixel's place: a ramp stays a ramp
    weight[(index < 0) | (index >= num_voxels)] = 0
    weight[((place < -0.5) | (place > num_voxels - 0.5))[:, 0]] = 0
    total = weight.sum(axis=1, keepdims=True)
    weight /= np.where(total > 0, total, 1)
    return Taps(np.clip(index, 0, num_voxels - 1), weight.astype(np.float32))


def crop(taps: Taps) -> tuple[slice, Taps]:
    """The stretch of voxels that the taps reach, and the taps counted from its start."""
    used = taps.index[taps.weight > 0]
    start, stop = int(used.min()), int(used.max()) + 1
    return slice(start, stop), Taps(np.clip(taps.index, start, stop - 1) - start, taps.weight)


def resample(volume: np.ndarray, columns: Taps, lines: Taps) -> np.ndarray:
    """Every slice of a volume on the pixels of two `triangle_taps`.

    Sums of a few shifted copies rather than matrix products: as fast, and the same bytes with any BLAS.

    Shapes: volume (X, Y, Z), columns from X, lines from Y → (Z, S, S) float32, rows along y, columns along x.
    """
    stack = volume.T.astype(np.float32, copy=False)
    for axis, taps in ((1, lines), (2, columns)):
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        total = np.float32(0)
        for index, weight in zip(taps.index.T, taps.weight.T, strict=True):
            part = stack.take(index, axis, mode="clip")  # no index is outside; the check of it costs a copy
            part *= weight.reshape(shape)
            total = np.add(total, part, out=part)
        stack = total
    return stack


def resample_mask(mask: np.ndarray, columns: Taps, lines: Taps) -> np.ndarray:
    """The label with the largest share of each pixel; shapes as in `resample`, values 0 to 3 in uint8."""
    labelled = mask.any(axis=2)
    c = np.flatnonzero(labelled.any(axis=1)[columns.index].any(axis=1))  # pixels that touch a label: a third,
    r = np.flatnonzero(labelled.any(axis=0)[lines.index].any(axis=1))  # the others are background
    columns_near, lines_near = (Taps(t.index[near], t.weight[near]) for t, near in ((columns, c), (lines, r)))
    shares = {label: resample(mask == label, columns_near, lines_near) for label in range(1, LEFT_VENTRICLE + 1)}
    largest = 1 - sum(shares.values())  # so far, that of the background
    winner = np.zeros(largest.shape, dtype=np.uint8)
    for label, share in shares.items():
        winner[share > largest] = label
        np.maximum(largest, share, out=largest)
    labels = np.zeros((mask.shape[2], len(lines.index), len(columns.index)), dtype=np.uint8)
    labels[:, r[:, None], c] = winner
    return labels


def turned(stack: np.ndarray, angle: float, image_size: int) -> np.ndarray:
    """The middle of pictures (n, C, C), turned back by an angle: (n, S, S), by linear interpolation."""
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]])  # (row, column) of the result → of the stack
    middle = (np.array(stack.shape[1:]) - 1) / 2
    offset = middle - matrix @ np.full(2, (image_size - 1) / 2)
    shape = (image_size, image_size)
    return np.stack([affine_transform(picture, matrix, offset, shape, order=1) for picture in stack])


def percentiles(grey: np.ndarray, q: Sequence[float]) -> np.ndarray:
    """What np.percentile gives, by counting where the values are few whole numbers, as in nearly all MR images."""
    if grey.min() < 0 or grey.max() >= 2**14:
        return np.percentile(grey, q)
    whole = grey.astype(np.int64)
    if (whole != grey).any():
        return np.percentile(grey, q)
    rank = np.asarray(q) / 100 * (grey.size - 1)
    up_to = np.cumsum(np.bincount(whole.ravel(order="K")))  # how many values are at most 0, 1, 2, …
    below, above = (np.searchsorted(up_to, np.floor(rank) + step, side="right") for step in (0, 1))
    above = np.minimum(above, len(up_to) - 1)
    return below + (rank - np.floor(rank)) * (above - below)
