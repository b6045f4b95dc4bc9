"""What many patients cost: preparation, disk, memory, reading from shards and the order of an epoch.

    python benchmarks/scale.py [FOLDER ...] [--gigabytes 2] [--disk FOLDER]

FOLDER in ACDC's layout; without one a phantom of 8 patients with cines is drawn. docs/scale.md computes from these
figures what a large cohort costs. One thread throughout. To read from a cold disk, the files are taken out of the page
cache before each round (posix_fadvise); what lies below the machine's own disk, such as the cache of a host, is not
within reach. Runs on Linux.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import hcm_helpers.shards
from hcm_helpers.acdc import GROUPS, Patient, find_patients
from hcm_helpers.cutting import Settings
from hcm_helpers.files import read_npy
from hcm_helpers.models.vae import VAE
from hcm_helpers.phantom import write_phantom
from hcm_helpers.shards import BLOCK, WINDOW, Stack, batches, gather, new_order, prepare_shard, unevenness
from hcm_helpers.slices import load_slices, write_header
from hcm_helpers.training import fit

COHORT, CHUNKS = 50_000, 250  # patients and shards of the cohort with files of holes
BATCH = 32


def apart(function: Callable, *arguments) -> tuple[float, dict[str, float], object]:
    """A call in a process of its own: seconds, what it used, and what it returns.

    Of a core it used `cpu` seconds, in which what else runs on the machine does not count. Memory is in MB: what was
    resident before (Python and PyTorch), the peak with the call, and what it keeps of its own at the end, without
    pages of files, which the system takes back when it needs them.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_report, args=(theirs, function, *arguments))
    process.start()
    theirs.close()
    result = ours.recv()
    process.join()
    return result


def _report(pipe, function: Callable, *arguments) -> None:
    torch.set_num_threads(1)
    before = memory()
    start, worked = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds, worked, after = time.perf_counter() - start, time.process_time() - worked, memory()
    more = {
        "cpu": worked,
        "before": before["VmRSS"],
        "peak": after["VmHWM"],
        "own": after["RssAnon"] - before["RssAnon"],
    }
    pipe.send((seconds, more, result))


def memory() -> dict[str, float]:
    """Of this process, in MB: VmRSS now, VmHWM at most so far, RssAnon now and not backed by files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}


# Preparation


def with_frames(root: Path, frames: str) -> list[Patient]:
    """Patients with a cine, if all frames are asked for; those with the largest files first, as they take most."""
    patients = [patient for patient in find_patients(root) if frames != "all" or patient.cine_path.is_file()]
    largest = {patient.name: max(path.stat().st_size for path in patient.folder.iterdir()) for patient in patients}
    return sorted(patients, key=lambda patient: -largest[patient.name])


def prepare_some(root: Path, count: int, image_size: int, frames: str, folder: Path) -> tuple[int, int, int]:
    """Patients, slices and bytes of one shard."""
    patients = with_frames(root, frames)[:count]
    prepare_shard(patients, folder, Settings(image_size, frames=frames), workers=1)
    slices = sum(part["rows"] for part in json.loads((folder / "shard.json").read_text())["parts"])
    return len(patients), slices, sum(path.stat().st_size for path in folder.iterdir())


def preparation(root: Path, folder: Path) -> None:
    for frames in ("ed_es", "all"):
        everyone = len(with_frames(root, frames))
        calls = [(64, everyone), (256, everyone), (128, everyone // 4), (128, everyone)]
        for number, (image_size, count) in enumerate(calls):
            if not count:
                continue
            place = folder / f"shard-{frames}-{number}"
            _, used, (patients, slices, size) = apart(prepare_some, root, count, image_size, frames, place)
            print(
                f"prepare   {root.name}, {frames}, {image_size}×{image_size}: {patients} patients, {slices} slices; "
                f"{used['cpu'] / patients:.2f} s of a core a patient, {1000 * used['cpu'] / slices:.1f} ms a slice, "
                f"{size / slices:.0f} bytes a slice; peak memory {used['peak']:.0f} MB"
            )


# A cohort of 50,000 patients whose pixels are holes


def write_holes(folder: Path, patients: int, chunks: int, slices: int, image_size: int = 64) -> list[Path]:
    """Shards as `prepare_shard` writes them, of so many slices a patient, but with files that take no room."""
    settings, shards = asdict(Settings(image_size, frames="all")), []
    for number in range(chunks):
        shard = folder / "shards" / str(number)
        shard.mkdir(parents=True)
        parts = []
        for patient in range(number, patients, chunks):
            name = f"patient{patient + 1:05d}"
            facts = {"name": name, "folder": f"data/training/{name}", "group": GROUPS[patient % 5], "end_diastole": 1}
            facts |= {"end_systole": 20, "num_frames": 50, "height_cm": 170, "weight_kg": 70}
            facts |= {"official_split": "training"}
            part = {"patient": facts, "rows": slices, "fingerprint": "0" * 64, "digests": [name + "ED", name + "ES"]}
            part |= {"left_out": 0, "centred_by": "mask", "cut_off": 0.0, "padded": 0.0, "turned": False}
            parts.append(part | {"pixels": str(shard)})
        (shard / "shard.json").write_text(json.dumps({"settings": settings, "parts": parts}))
        rows = slices * len(parts)
        for name, shape, kind in (("images", (rows, 1), np.float32), ("masks", (rows,), np.uint8)):
            with (shard / f"{name}.npy").open("wb") as file:
                write_header(file, (*shape, image_size, image_size), kind)
                file.truncate(file.tell() + rows * image_size**2 * np.dtype(kind).itemsize)
        shards.append(shard)
    return shards


def gathered(shards: list[Path], folder: Path) -> int:
    return len(gather(shards, folder))


def epoch_begun(folder: Path, steps: int) -> tuple[int, float, float, float]:
    """Training slices, seconds until the first rows of an epoch, milliseconds for those of a batch, and MB held."""
    before = memory()["RssAnon"]
    train = load_slices(folder, "train")
    start = time.perf_counter()
    rows = batches(new_order(len(train), BLOCK), range(len(train)), BATCH, 0, BLOCK)
    next(rows)
    first, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(steps):
        train.labels[next(rows)]
    return len(train), first, 1000 * (time.perf_counter() - start) / steps, memory()["RssAnon"] - before


def cohort(folder: Path, slices: int) -> None:
    shards = write_holes(folder, COHORT, CHUNKS, slices)
    seconds, used, count = apart(gathered, shards, folder / "slices")
    index = sum(path.stat().st_size for path in (folder / "slices").iterdir())
    print(
        f"gather    {COHORT} patients, {count:.2e} slices in {CHUNKS} shards (holes): {seconds:.1f} s, index "
        f"{index / 1e6:.1f} MB, peak memory {used['peak']:.0f} MB, {used['before']:.0f} MB before"
    )
    _, _, (count, first, each, held) = apart(epoch_begun, folder / "slices", 2000)
    print(
        f"epoch     of {count:.2e} training slices: first rows after {first:.2f} s, then {each:.3f} ms a batch of "
        f"{BATCH} with its labels; memory of its own {held:.0f} MB"
    )


# Reading


def write_noise(folder: Path, gigabytes: float, image_size: int) -> list[Path]:
    """Eight files of images, of noise, so that no disk makes them smaller."""
    rng, paths = np.random.default_rng(0), []
    each = int(gigabytes * 1e9 / 8 / (4 * image_size**2)) // BLOCK * BLOCK
    for number in range(8):
        paths.append(folder / f"noise-{image_size}-{number}.npy")
        with paths[-1].open("wb") as file:
            write_header(file, (each, 1, image_size, image_size), np.float32)
            for _ in range(each // BLOCK):
                file.write(rng.bytes(BLOCK * 4 * image_size**2))
            file.flush()
            os.fsync(file.fileno())
    return paths


def forget(paths: Iterable[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_in(paths: list[Path], block: int, most: int) -> tuple[int, float]:
    """Slices read in batches, in blocks, and the seconds.

    Block 1: at random; 0: one after the other; −n: in blocks of n, but without reading ahead.
    """
    files = [read_npy(path, mapped=True) for path in paths]
    count = np.array([len(file) for file in files])
    stack = Stack(files, np.arange(len(files)), np.zeros(len(files), int), count, paths if block > 0 else ())
    n = len(stack)
    torch.manual_seed(0)
    rows = (
        torch.arange(n).split(BATCH) if block == 0 else batches(new_order(n, abs(block)), stack, BATCH, 0, abs(block))
    )
    start, taken = time.perf_counter(), 0
    for indices in rows:
        stack[indices]
        taken += len(indices)
        if taken >= most:
            break
    return taken, time.perf_counter() - start


def reading(folder: Path, gigabytes: float) -> None:
    for image_size in (64, 128):
        paths = write_noise(folder, gigabytes, image_size)
        size = 4 * image_size**2
        n = sum(path.stat().st_size for path in paths) // size
        for name, block, most in (
            ("one after the other", 0, n // 2),
            (f"blocks of {BLOCK}, read ahead", BLOCK, n // 2),
            ("at random", 1, min(n, 2_000)),
            (f"blocks of {BLOCK}, not read ahead", -BLOCK, min(n, 4_000)),
        ):
            rates = []
            for cold in (True, True, False):
                if cold:
                    forget(paths)
                _, _, (taken, seconds) = apart(read_in, paths, block, most)
                rates.append(taken / seconds)
            cold, warm = sorted(rates[:2]), rates[2]
            print(
                f"read      {image_size}×{image_size}, {name}: cold {cold[0]:.0f} and {cold[1]:.0f} slices/s "
                f"({cold[0] * size / 1e9:.2f} and {cold[1] * size / 1e9:.2f} GB/s), again {warm:.0f} "
                f"({warm * size / 1e9:.2f} GB/s)"
            )
        for path in paths:
            path.unlink()


# The order


def order_quality(patients: int = 8_000, slices: int = 500) -> None:
    n = patients * slices
    owner = torch.arange(n) // slices
    for size, block, window in (
        (BATCH, n, 1),  # as on disk
        (BATCH, 1, 1),  # a full permutation
        (BATCH, BLOCK, 1),
        (BATCH, BLOCK, 64),
        (BATCH, BLOCK, WINDOW),
        (8 * BATCH, BLOCK, WINDOW),
        (64 * BATCH, BLOCK, WINDOW),
        (64 * BATCH, BLOCK, None),
    ):
        order = torch.arange(n) if block == n else new_order(n, block)
        found = list(batches(order, range(n), size, 0, 1 if block == n else block, window))
        rows = torch.cat(found)
        distinct = np.mean([len(owner[batch].unique()) for batch in found[:5000]]) / size
        drift = np.corrcoef(np.arange(len(rows)), rows.numpy())[0, 1]
        print(
            f"order     batches of {size}, blocks of {block}, window of {window or 'its own choice'}: unevenness "
            f"{unevenness(found, owner):.3f}, {distinct:.1%} as many patients as slices in a batch, correlation "
            f"with the place on disk {drift:.3f}"
        )


# Training


def train_some(folder: Path) -> int:
    """An epoch of a small VAE at 64×64, from shards that hold holes; how many slices it had."""
    hcm_helpers.shards.WHOLE_BELOW = 0
    train, validation = load_slices(folder, "train"), load_slices(folder, "validation")
    with tempfile.TemporaryDirectory() as place:
        fit(VAE(64, latent_dim=8, width=8), train, validation, place, epochs=1, batch_size=BATCH, patience=0)
    return len(train)


def training(folder: Path) -> None:
    hcm_helpers.shards.WHOLE_BELOW = 0
    for patients in (20, 80):
        shards = write_holes(folder / str(patients), patients, 4, slices=500)
        gather(shards, folder / str(patients) / "slices")
        _, used, count = apart(train_some, folder / str(patients) / "slices")
        print(
            f"train     {count} slices, VAE of width 8: {count / used['cpu']:.0f} slices a second of a core, "
            f"memory of its own {used['own']:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--disk", type=Path, help="where the shards are written; default: the temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"HCM_HEADLESS": "1", "OMP_NUM_THREADS": "1"}
    order_quality()
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        folder = Path(folder)
        roots = arguments.folders or [write_phantom(folder / "phantom", 8, cine=True)]
        for root in roots:
            preparation(root, folder / root.resolve().name)
        cohort(folder / "cohort", slices=2_000)
        training(folder / "training")
        reading(folder, arguments.gigabytes)


if __name__ == "__main__":
    sys.exit(main())
