"""One patient to slices: cut out the heart at one size and in one tone, in every phase."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hcm_helpers.acdc import MYOCARDIUM, PHASES, DataError, Patient, Volume, read_cine, read_volume
from hcm_helpers.localise import count_in_square, find_heart, pose_angle, starts_at_base
from hcm_helpers.resampling import crop, percentiles, resample, resample_mask, triangle_taps, turned

IMAGE_SIZES = (32, 64, 128, 256)
FRAMES = ("ed_es", "all")


def check_image_size(image_size: int) -> int:
    """Return image_size as an int, or raise DataError if the networks cannot halve it down to 4×4."""
    if image_size not in IMAGE_SIZES:
        raise DataError(
            f"image_size={image_size}: the networks halve the image down to 4×4 pixels, "
            f"so it must be one of {', '.join(map(str, IMAGE_SIZES))}"
        )
    return int(image_size)


@dataclass(frozen=True)
class Settings:
    """What decides how a patient becomes slices; arguments as in `prepare`."""

    image_size: int = 64
    field_of_view: float = 160.0
    frames: str = "ed_es"
    canonical_pose: bool = False

    def __post_init__(self):
        check_image_size(self.image_size)
        if not 0 < self.field_of_view < math.inf:
            raise DataError(f"field_of_view = {self.field_of_view}: must be a positive number of millimetres, say 160")
        if self.frames not in FRAMES:
            raise DataError(f"frames = '{self.frames}': choose 'ed_es' or 'all'")

    @property
    def pixel(self) -> float:
        """mm from one pixel to the next."""
        return self.field_of_view / self.image_size


def slice_patient(patient: Patient, settings: Settings) -> tuple[np.ndarray, np.ndarray, dict]:
    """All phases of a patient on one grid around the heart.

    Returns:
        images (n, S, S) float32 in [−1, 1], masks (n, S, S) uint8, and the facts that `Part` names.
    """
    volumes = {phase: read_volume(patient, phase) for phase in PHASES}
    drawn = [volume.mask for volume in volumes.values() if volume.mask is not None]
    centre, centred_by = find_heart(patient, volumes)
    pose = pose_angle(volumes.values()) if settings.canonical_pose else None
    turn = pose or 0.0
    from_base = starts_at_base(drawn)

    images, masks, rows, left_out, heart, heart_inside, padded = [], [], [], 0, 0, 0, 0.0
    for phase, frame, volume in _phases(patient, volumes, settings.frames):
        path = patient.cine_path if phase == "-" else patient.image_path(phase)
        if volume.image.shape != volumes["ED"].image.shape:
            raise DataError(
                f"{path}: has the shape {volume.image.shape}, that of ED is {volumes['ED'].image.shape}; "
                "download this patient again"
            )
        depth = volume.image.shape[2]
        kept, labelled = np.arange(depth), np.arange(depth)
        shown = drawn if volume.mask is None else [volume.mask]
        if shown:
            kept = np.flatnonzero(np.any([(mask >= MYOCARDIUM).any(axis=(0, 1)) for mask in shown], axis=0))
            labelled = np.flatnonzero(np.any([mask.any(axis=(0, 1)) for mask in shown], axis=0))
        left_out += depth - len(kept)

        try:
            stack, mask, padded = cut(volume, kept, centre, turn, settings)
        except DataError as error:
            raise DataError(f"{path}: {error}; download this patient again") from None
        images.append(stack)
        masks.append(mask)
        if volume.mask is not None:
            heart += np.count_nonzero(volume.mask)
            heart_inside += count_in_square(volume, centre, turn, settings.field_of_view)

        base, apex = (labelled[0], labelled[-1]) if from_base else (labelled[-1], labelled[0])
        rows += [
            {
                "patient": patient.name,
                "group": patient.group,
                "phase": phase,
                "frame": frame,
                "slice": int(z),
                "position": round(float(np.clip((z - base) / ((apex - base) or 1), 0, 1)), 4),
                "labelled": volume.mask is not None,
                "pixel_mm": settings.pixel,
                "thickness_mm": round(volume.spacing[2], 4),
            }
            for z in kept
        ]
    facts = {
        "rows": rows,
        "digests": [volume.digest for volume in volumes.values()],
        "left_out": left_out,
        "centred_by": centred_by,
        "cut_off": 1 - heart_inside / heart if heart else 0.0,
        "padded": padded,
        "turned": pose is not None,
    }
    return np.concatenate(images), np.concatenate(masks), facts


def cut(
    volume: Volume, kept: np.ndarray, centre: tuple[float, float], turn: float, settings: Settings
) -> tuple[np.ndarray, np.ndarray, float]:
    """The square around the heart, from some slices of a volume.

    Args:
        volume: one frame.
        kept: indices of the slices, (n,).
        centre: of the square, mm from the middle of voxel 0.
        turn: of the square, rad.
        settings: its size.

    Returns:
        images (n, S, S) float32, in which the 1st and 99th percentile of the square's voxels are −1 and 1; masks
        (n, S, S) uint8, 0 where none was drawn; the share of the pixels outside the volume.

    Raises:
        DataError: the two percentiles are equal; the file's name is for the caller to add.
    """
    size = settings.image_size
    canvas = size if not turn else 2 * math.ceil(0.75 * size)  # room for the corners of a turned square
    columns, lines = (
        triangle_taps(volume.image.shape[axis], volume.spacing[axis], centre[axis], canvas, settings.pixel)
        for axis in (0, 1)
    )
    inside = np.outer(lines.weight.any(axis=1), columns.weight.any(axis=1))
    x, columns = crop(columns)  # first, so that nothing is computed on the rest of the volume
    y, lines = crop(lines)
    low, high = percentiles(volume.image[x, y], (1, 99))
    if low == high:
        raise DataError(f"around the heart, every voxel has the value {low:g}")
    stack = resample(volume.image[x, y, kept], columns, lines)
    if volume.mask is None:
        mask = np.zeros((len(kept), size, size), dtype=np.uint8)
    elif turn:
        shares = [turned(resample(volume.mask[x, y, kept] == k, columns, lines), turn, size) for k in range(4)]
        mask = np.argmax(shares, axis=0).astype(np.uint8)
    else:
        mask = resample_mask(volume.mask[x, y, kept], columns, lines)
    if turn:
        stack, inside = turned(stack, turn, size), turned(inside[None].astype(float), turn, size)[0] > 0.5
    stack -= np.float32(low)
    stack *= np.float32(2 / (high - low))
    stack -= 1
    np.clip(stack, -1, 1, out=stack)
    stack[:, ~inside] = -1
    return stack, mask, 1 - float(inside.mean())


def _phases(patient: Patient, volumes: dict[str, Volume], frames: str) -> Iterator[tuple[str, int, Volume]]:
    """(phase, frame, volume): ED and ES, and if all are asked for, the cine's other frames, one after the other."""
    for phase, volume in volumes.items():
        yield phase, patient.frame(phase), volume
    if frames == "all" and patient.cine_path.is_file():
        spacing = volumes["ED"].spacing
        for frame, image in enumerate(read_cine(patient), start=1):
            if frame not in (patient.end_diastole, patient.end_systole):
                yield "-", frame, Volume(image, None, spacing)
