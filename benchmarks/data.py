"""Preparing a data set against the same steps written with MONAI and with TorchIO, and loading it into training.

    python benchmarks/data.py [FOLDER]      FOLDER in ACDC's layout; a phantom of 20 patients without it

Needs `pip install -e .[bench]`. All three use two threads, read the same files, cut the same square around the
heart and resample to the same pixels; ours also finds doubles, splits, fingerprints and writes the result.
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from hcm_helpers.acdc import PHASES, Patient, find_patients, read_volume
from hcm_helpers.phantom import write_phantom
from hcm_helpers.slices import heart_centre, prepare

IMAGE_SIZE, FIELD_OF_VIEW, WORKERS = 128, 160.0, 2
PIXEL = FIELD_OF_VIEW / IMAGE_SIZE


def target(patient: Patient) -> tuple[np.ndarray, dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """Where the pixels lie: affine of the result, its shape and the crop's corners by phase; the peers get it for free."""
    volumes = {phase: read_volume(patient, phase) for phase in PHASES}
    centre = np.array(heart_centre(list(volumes.values())))
    spacing = volumes["ED"].spacing
    affine = np.diag([PIXEL, PIXEL, spacing[2], 1.0])
    affine[:2, 3] = centre - (IMAGE_SIZE - 1) / 2 * PIXEL
    shapes = {phase: (IMAGE_SIZE, IMAGE_SIZE, volume.image.shape[2]) for phase, volume in volumes.items()}
    half, size = FIELD_OF_VIEW / 2, volumes["ED"].image.shape
    corners = {
        "low": np.array([max(0, int((centre[i] - half) / spacing[i])) for i in (0, 1)] + [0]),
        "high": np.array([min(size[i], int((centre[i] + half) / spacing[i]) + 2) for i in (0, 1)] + [size[2]]),
    }
    return affine, shapes, corners


def with_monai(patient: Patient, affine, shapes, corners) -> np.ndarray:
    """(2 phases' slices, S, S) by MONAI's transforms."""
    from monai.transforms import LoadImage, ScaleIntensityRangePercentiles, SpatialCrop, SpatialResample

    images = []
    for phase in PHASES:
        for path, mode in ((patient.image_path(phase), "bilinear"), (patient.mask_path(phase), "nearest")):
            volume = LoadImage(ensure_channel_first=True)(path)
            volume.affine = torch.diag(torch.tensor([*volume.meta["pixdim"][1:4], 1.0], dtype=torch.float64))
            volume = SpatialCrop(roi_start=corners["low"], roi_end=corners["high"])(volume)
            if mode == "bilinear":
                volume = ScaleIntensityRangePercentiles(1, 99, -1, 1, clip=True)(volume)
            volume = SpatialResample(mode=mode, padding_mode="border")(
                volume, dst_affine=torch.as_tensor(affine), spatial_size=shapes[phase]
            )
            if mode == "bilinear":
                images.append(volume[0].numpy().transpose(2, 1, 0))
    return np.concatenate(images)


def with_torchio(patient: Patient, affine, shapes, corners) -> np.ndarray:
    """The same by TorchIO's."""
    import torchio

    images = []
    for phase in PHASES:
        image = torchio.ScalarImage(patient.image_path(phase))
        mask = torchio.LabelMap(patient.mask_path(phase))
        voxels = np.diag([*read_spacing(patient, phase), 1.0])
        size = np.array(image.spatial_shape)
        cut = np.stack([corners["low"], size - corners["high"]], axis=1).flatten().tolist()
        subject = torchio.Subject(
            image=torchio.ScalarImage(tensor=image.data, affine=voxels),
            mask=torchio.LabelMap(tensor=mask.data, affine=voxels),
        )
        reference = torchio.ScalarImage(tensor=torch.zeros(1, *shapes[phase]), affine=affine)
        subject = torchio.Crop(tuple(int(c) for c in cut))(subject)
        subject = torchio.RescaleIntensity((-1, 1), percentiles=(1, 99))(subject)
        subject = torchio.Resample(reference)(subject)
        images.append(subject["image"].numpy()[0].transpose(2, 1, 0))
    return np.concatenate(images)


def read_spacing(patient: Patient, phase: str) -> tuple[float, ...]:
    import nibabel

    return tuple(float(zoom) for zoom in nibabel.load(patient.image_path(phase)).header.get_zooms()[:3])


def seconds(function) -> tuple[float, object]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def share_of_a_step(slices, epochs: int = 20, batch_size: int = 16) -> float:
    """Share of a training step of the DCGAN that goes into taking a batch from the slices."""
    from hcm_helpers.models.dcgan import DCGAN
    from hcm_helpers.models.layers import Batch
    from hcm_helpers.training import make_fabric

    fabric = make_fabric()
    model = DCGAN(slices.image_size).to(memory_format=torch.channels_last)
    wrapped, *optimizers = fabric.setup(model, *model.optimizers(2e-4, (0.5, 0.999)).values())
    wrapped.mark_forward_method("train_step")
    optimizers = dict(zip(("discriminator", "generator"), optimizers, strict=True))
    taking = stepping = 0.0
    for n in range(epochs + 3):
        start = time.perf_counter()
        rows = torch.randint(len(slices), (batch_size,))
        batch = Batch(slices.images[rows].contiguous(memory_format=torch.channels_last), slices.labels[rows])
        taken = time.perf_counter()
        wrapped.train_step(batch, optimizers, fabric)
        if n >= 3:  # the first ones warm up
            taking, stepping = taking + taken - start, stepping + time.perf_counter() - start
    return taking / stepping


def main() -> None:
    torch.set_num_threads(1)  # two threads work on patients
    with tempfile.TemporaryDirectory() as folder:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else write_phantom(Path(folder) / "phantom", 20)
        patients = find_patients(root)
        with ThreadPoolExecutor(WORKERS) as pool:
            targets = list(pool.map(target, patients))
            times, results = {}, {}
            for name, peer in (("MONAI", with_monai), ("TorchIO", with_torchio)):
                peer(patients[0], *targets[0])  # its import is not part of the work
                times[name], results[name] = seconds(
                    lambda peer=peer: list(
                        pool.map(lambda job: peer(job[0], *job[1]), zip(patients, targets, strict=True))
                    )
                )
        ours, slices = seconds(
            lambda: prepare(patients, Path(folder) / "slices", IMAGE_SIZE, FIELD_OF_VIEW, workers=WORKERS)
        )
        print(f"{len(patients)} patients to {len(slices)} slices of {IMAGE_SIZE}×{IMAGE_SIZE}: {ours:.1f} s")
        for name, peer_seconds in times.items():
            differences = []
            for patient, images in zip(patients, results[name], strict=True):
                mine = slices.manifest[slices.manifest["patient"] == patient.name]
                depth = len(images) // 2
                rows = mine["slice"] + depth * (mine["phase"] == "ES")
                differences += np.abs(images[rows] - slices.images[mine.index, 0].numpy()).mean(axis=(1, 2)).tolist()
            print(
                f"{name}: {peer_seconds:.1f} s, {peer_seconds / ours:.1f} times ours; difference of the pixels, "
                f"on [-1, 1]: median slice {np.median(differences):.4f}"
            )
    torch.set_num_threads(WORKERS)
    print(f"taking a batch: {share_of_a_step(slices):.2%} of a training step")


if __name__ == "__main__":
    main()
