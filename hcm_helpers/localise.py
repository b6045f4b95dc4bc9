"""Where the heart lies in a stack of slices, and how: its centre, its pose, and which end is the base."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from hcm_helpers.acdc import MYOCARDIUM, RIGHT_VENTRICLE, Patient, Volume, read_cine


def find_heart(patient: Patient, volumes: dict[str, Volume]) -> tuple[tuple[float, float], str]:
    """Centre (x, y) of the heart in mm from the middle of voxel 0, and what it was found by.

    "mask": `heart_centre`. "cine", for a patient without masks: `moving_centre`. "image": the image's centre,
    where there is neither.
    """
    centre = heart_centre(list(volumes.values()))
    if centre is not None:
        return centre, "mask"
    first = volumes["ED"]
    if patient.cine_path.is_file():
        return moving_centre(read_cine(patient), first.spacing), "cine"
    x, y = ((first.image.shape[axis] - 1) * first.spacing[axis] / 2 for axis in (0, 1))
    return (x, y), "image"


def heart_centre(volumes: Sequence[Volume]) -> tuple[float, float] | None:
    """Centre (x, y) of the box around every label in the volumes, in mm from the middle of voxel 0; None without."""
    centre = []
    for axis in (0, 1):
        ends = []
        for volume in volumes:
            if volume.mask is not None:
                labelled = np.flatnonzero(volume.mask.any(axis=(1 - axis, 2)))
                ends += [labelled[[0, -1]] * volume.spacing[axis]] if len(labelled) else []
        if not ends:
            return None
        centre.append(float(np.min(ends) + np.max(ends)) / 2)
    return centre[0], centre[1]


def moving_centre(cine: Iterable[np.ndarray], spacing: tuple[float, float, float]) -> tuple[float, float]:
    """Centre (x, y) in mm of what moves: of the temporal standard deviation, smoothed over the size of a heart.

    Args:
        cine: volumes (X, Y, Z), one a frame; only sums over them are kept.
        spacing: (dx, dy, dz) in mm.
    """
    count, total, squares = 0, 0.0, 0.0
    for image in cine:
        count, total, squares = count + 1, total + image, squares + np.square(image)
    deviation = np.sqrt(np.maximum(squares / count - np.square(total / count), 0)).mean(axis=2)
    smooth = gaussian_filter(deviation, [20 / step for step in spacing[:2]])
    x, y = np.unravel_index(np.argmax(smooth), smooth.shape)
    return float(x * spacing[0]), float(y * spacing[1])


def pose_angle(volumes: Iterable[Volume]) -> float | None:
    """Angle (rad) of the axis from the right to the left ventricle, against the picture's x axis; None if not drawn."""
    axis = np.zeros(2)
    for volume in volumes:
        if volume.mask is not None and (volume.mask == RIGHT_VENTRICLE).any():
            left, right = (
                np.mean(np.nonzero(where)[:2], axis=1)
                for where in (volume.mask >= MYOCARDIUM, volume.mask == RIGHT_VENTRICLE)
            )
            axis += (left - right) * volume.spacing[:2]
    return math.atan2(axis[1], axis[0]) if axis.any() else None


def starts_at_base(masks: Sequence[np.ndarray]) -> bool:
    """Whether slice 0 lies at the base of the heart; yes where nothing tells.

    The right ventricle is wide at the base and ends before the apex does, so its centre of mass along z lies
    on the base's side of the middle of the heart.

    Args:
        masks: (X, Y, Z) each, of one patient; their votes are added.
    """
    towards_base = 0.0
    for mask in masks:
        labelled = np.flatnonzero(mask.any(axis=(0, 1)))
        right = np.count_nonzero(mask == RIGHT_VENTRICLE, axis=(0, 1))
        if right.any():
            towards_base += (labelled[0] + labelled[-1]) / 2 - np.average(np.arange(len(right)), weights=right)
    return towards_base >= 0


def count_in_square(volume: Volume, centre: tuple[float, float], angle: float, field_of_view: float) -> int:
    """How many labelled voxels lie in the square around a centre (mm) that is turned by an angle."""
    count = np.count_nonzero(volume.mask, axis=2)
    x, y = np.nonzero(count)
    place = (x * volume.spacing[0] - centre[0] + 1j * (y * volume.spacing[1] - centre[1])) * np.exp(-1j * angle)
    return int(count[x, y][np.maximum(np.abs(place.real), np.abs(place.imag)) <= field_of_view / 2].sum())
