"""Preparing a data set against the same steps written with MONAI and with TorchIO, and loading it into training.

    python benchmarks/data.py [FOLDER]      FOLDER in ACDC's layout; a phantom of 20 patients without it

Needs `pip install -e .[bench]`. All three use two threads, read the same files, find the heart by its masks, cut the
same square, scale the grey values, resample to the same pixels and write arrays. Ours does more: it also looks for
faults and doubles, splits, and writes a manifest. The median of three rounds.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from hcm_helpers.acdc import PHASES, Patient, find_patients
from hcm_helpers.phantom import write_phantom
from hcm_helpers.slices import Slices, prepare

IMAGE_SIZE, FIELD_OF_VIEW, WORKERS, ROUNDS = 128, 160.0, 2, 3
PIXEL = FIELD_OF_VIEW / IMAGE_SIZE
Pixels = tuple[np.ndarray, np.ndarray]  # images and masks of both phases, (slices, S, S) each


def square(masks: list[np.ndarray], spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Affine of the pixels around the box of all labels, and the lowest and highest voxel of the crop for them."""
    low, high, centres = [], [], []
    for axis in (0, 1):
        labelled = [np.flatnonzero(mask.any(axis=(1 - axis, 2))) for mask in masks]
        centre = (min(found[0] for found in labelled) + max(found[-1] for found in labelled)) / 2
        reach = FIELD_OF_VIEW / 2 / spacing[axis]
        low.append(max(0, int(centre - reach)))
        high.append(min(masks[0].shape[axis], int(centre + reach) + 2))
        centres.append(centre * spacing[axis])
    affine = np.diag([PIXEL, PIXEL, spacing[2], 1.0])
    affine[:2, 3] = np.array(centres) - (IMAGE_SIZE - 1) / 2 * PIXEL
    depth = masks[0].shape[2]
    return affine, np.array([*low, 0]), np.array([*high, depth])


def with_monai(patient: Patient) -> Pixels:
    from monai.transforms import LoadImage, ScaleIntensityRangePercentiles, SpatialCrop, SpatialResample

    load = LoadImage(ensure_channel_first=True)
    images, masks = ([load(path(phase)) for phase in PHASES] for path in (patient.image_path, patient.mask_path))
    spacing = np.array(images[0].meta["pixdim"][1:4], dtype=float)
    affine, low, high = square([mask[0].numpy() for mask in masks], spacing)
    results = ([], [])
    for volumes, mode, result in ((images, "bilinear", results[0]), (masks, "nearest", results[1])):
        resample = SpatialResample(mode=mode, padding_mode="border")
        for volume in volumes:
            volume.affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))  # the file's says 1 mm
            volume = SpatialCrop(roi_start=low, roi_end=high)(volume)
            if mode == "bilinear":
                volume = ScaleIntensityRangePercentiles(1, 99, -1, 1, clip=True)(volume)
            shape = (IMAGE_SIZE, IMAGE_SIZE, volume.shape[3])
            volume = resample(volume, dst_affine=torch.as_tensor(affine), spatial_size=shape)
            result.append(volume[0].numpy().transpose(2, 1, 0))
    return np.concatenate(results[0]), np.concatenate(results[1]).astype(np.uint8)


def with_torchio(patient: Patient) -> Pixels:
    import torchio

    images = [torchio.ScalarImage(patient.image_path(phase)) for phase in PHASES]
    masks = [torchio.LabelMap(patient.mask_path(phase)) for phase in PHASES]
    spacing = np.array(images[0].spacing)
    affine, low, high = square([mask.data[0].numpy() for mask in masks], spacing)
    results = ([], [])
    for image, mask in zip(images, masks, strict=True):
        size = np.array(image.spatial_shape)
        voxels = np.diag([*spacing, 1.0])  # without the directions that mean nothing in these files
        subject = torchio.Subject(
            image=torchio.ScalarImage(tensor=image.data, affine=voxels),
            mask=torchio.LabelMap(tensor=mask.data, affine=voxels),
        )
        subject = torchio.Crop(tuple(np.stack([low, size - high], axis=1).ravel().tolist()))(subject)
        subject = torchio.RescaleIntensity((-1, 1), percentiles=(1, 99))(subject)
        grid = torchio.ScalarImage(tensor=torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE, size[2]), affine=affine)
        subject = torchio.Resample(grid)(subject)
        for name, result in zip(("image", "mask"), results, strict=True):
            result.append(subject[name].numpy()[0].transpose(2, 1, 0))
    return np.concatenate(results[0]), np.concatenate(results[1]).astype(np.uint8)


def with_peer(peer: Callable[[Patient], Pixels], patients: list[Patient], folder: Path) -> list[np.ndarray]:
    """All patients by a peer, written as two arrays; returns the images by patient."""
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(peer, patients))
    for kind, arrays in zip(("images", "masks"), zip(*parts, strict=True), strict=True):
        np.save(folder / f"{peer.__name__}-{kind}.npy", np.concatenate(arrays))
    return [images for images, _ in parts]


def seconds(function: Callable, *arguments) -> tuple[float, object]:
    """The wall time of a call and what it returns; what was loaded before does not burden its garbage collection."""
    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def difference(theirs: list[np.ndarray], slices: Slices, patients: list[Patient]) -> float:
    """Mean absolute difference of the pixels, on [−1, 1], in the median slice."""
    means = []
    for patient, images in zip(patients, theirs, strict=True):
        ours = slices.manifest[slices.manifest["patient"] == patient.name]
        rows = ours["slice"] + len(images) // 2 * (ours["phase"] == "ES")
        means += np.abs(images[rows] - slices.images[ours.index, 0].numpy()).mean(axis=(1, 2)).tolist()
    return float(np.median(means))


def share_of_a_step(slices: Slices, steps: int = 20, batch_size: int = 16) -> float:
    """Share of a training step of the DCGAN that goes into taking a batch from the slices."""
    from hcm_helpers.devices import make_fabric
    from hcm_helpers.models.dcgan import DCGAN
    from hcm_helpers.models.layers import Batch
    from hcm_helpers.parallel import take_step

    fabric = make_fabric()
    model = DCGAN(slices.image_size).to(memory_format=torch.channels_last)
    optimizers = model.optimizers(2e-4, (0.5, 0.999))
    taking = stepping = 0.0
    for n in range(steps + 3):
        start = time.perf_counter()
        rows = torch.randint(len(slices), (batch_size,))
        batch = Batch(slices.images[rows].contiguous(memory_format=torch.channels_last), slices.labels[rows])
        taken = time.perf_counter()
        take_step(model, batch, optimizers, fabric)
        if n >= 3:  # the first ones warm up
            taking, stepping = taking + taken - start, stepping + time.perf_counter() - start
    return taking / stepping


def main() -> None:
    torch.set_num_threads(1)  # two threads work on patients
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else write_phantom(folder / "phantom", 20)
        patients = find_patients(root)
        peers = {"MONAI": with_monai, "TorchIO": with_torchio}

        def with_ours(patients: list[Patient]) -> Slices:
            return prepare(patients, folder / "slices", IMAGE_SIZE, FIELD_OF_VIEW, workers=WORKERS)

        with_ours(patients[:4])
        for peer in peers.values():
            peer(patients[0])  # the first call imports: not part of the work
        apart, taken = {}, {name: [] for name in ("ours", *peers)}
        for _ in range(ROUNDS):  # in turn: a busy moment of the machine falls on all of them
            spent, slices = seconds(with_ours, patients)
            taken["ours"].append(spent)
            for name, peer in peers.items():
                spent, images = seconds(with_peer, peer, patients, folder)
                taken[name].append(spent)
                apart[name] = difference(images, slices, patients)
        ours = np.median(taken.pop("ours"))
        print(f"{len(patients)} patients to {len(slices)} slices of {IMAGE_SIZE}×{IMAGE_SIZE}: {ours:.1f} s")
        for name, spent in taken.items():
            print(
                f"{name}: {np.median(spent):.1f} s, {np.median(spent) / ours:.1f} times ours; "
                f"the pixels differ by {apart[name]:.4f} in the median slice"
            )
    torch.set_num_threads(WORKERS)
    print(f"taking a batch: {share_of_a_step(slices):.2%} of a training step")


if __name__ == "__main__":
    main()
