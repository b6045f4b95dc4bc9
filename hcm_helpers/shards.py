"""Slices of more patients than one call of `prepare` should take: in shards, and read from there in training.

Each chunk of the patients becomes a shard, a folder with images.npy, masks.npy, manifest.csv and shard.json, on
whatever machine. `gather` then finds doubles and splits over all of them, and writes an index with one row a patient;
no pixel moves. What a training holds in memory grows with the patients, and by a number for each 32 slices.
"""

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hcm_helpers.acdc import GROUPS, DataError, Patient, one_line, same_names
from hcm_helpers.cutting import Settings
from hcm_helpers.files import read_json, replacing
from hcm_helpers.slices import (
    AGAIN,
    COLUMNS,
    INDEX,
    Part,
    Slices,
    check_replaceable,
    choose,
    divide,
    make_parts,
    read_fingerprint,
    read_numbers,
    read_table,
    report,
    warn,
    write_pixels,
)

INDEX_COLUMNS = {"patient": str, "group": str, "split": str, "shard": str, "first": int, "slices": int}
WHOLE_BELOW = 2**30  # bytes of images that are read into memory, as one tensor
BLOCK = 32  # slices that lie side by side and are read together
WINDOW = 1024  # blocks that are shuffled among each other, at least


def prepare_shard(
    patients: Sequence[Patient], folder: str | Path, settings: Settings, workers: int | None = None
) -> None:
    """Write the slices of a chunk of the patients to a folder, all files at once; stopped half way, it goes on.

    Args:
        patients: the chunk.
        folder: gets images.npy (n, 1, S, S) float32, masks.npy (n, S, S) uint8, manifest.csv without the split, and
            shard.json, in the order of the patients' names; an earlier shard there is replaced.
        settings: how a patient becomes slices, the same for all shards.
        workers: threads; None takes one a core.

    Raises:
        DataError: no patients, or one that cannot be read; the folder is as it was then.
    """
    folder = Path(folder).absolute()
    check_replaceable(folder)
    if not patients:
        raise DataError(f"{folder}: no patients given for this shard; choose fewer chunks than there are patients")
    finished = folder.with_name(f".{folder.name}.parts")
    parts = make_parts(patients, settings, finished, workers)
    warn(parts, settings)
    facts = [vars(part) | {"patient": vars(part.patient), "rows": len(part.rows)} for part in parts]
    with replacing(folder, finished / "set") as temporary:
        write_pixels(parts, temporary, settings.image_size)
        rows = pd.DataFrame([row for part in parts for row in part.rows])
        rows.to_csv(temporary / "manifest.csv", index=False)
        content = {"settings": asdict(settings), "parts": facts}
        (temporary / "shard.json").write_text(json.dumps(content, indent=2, default=os.fspath) + "\n")
    shutil.rmtree(finished)


def read_shard(folder: Path) -> tuple[Settings, list[Part]]:
    """What shard.json tells; the rows of a part are numbers of slices in the shard, and its pixels the shard's folder.

    Raises:
        DataError: there is none, or it is broken.
    """
    remedy = "prepare this shard again"
    content = read_json(folder / "shard.json", remedy)
    parts, first = [], 0
    try:
        for facts in content["parts"]:
            patient = Patient(**facts["patient"] | {"folder": Path(facts["patient"]["folder"])})
            rows = range(first, first + facts["rows"])
            parts.append(Part(**facts | {"patient": patient, "pixels": folder, "rows": rows}))
            first = rows.stop
        settings = Settings(**content["settings"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{folder / 'shard.json'} is broken ({one_line(error)}): {remedy}") from error
    for record in (settings, *parts, *(part.patient for part in parts)):
        for field in fields(record):
            if not _fits(getattr(record, field.name), field.type):
                raise DataError(f"{folder / 'shard.json'} is broken ({field.name} is of another type): {remedy}")
    if not all(part.patient.group in GROUPS and part.rows and len(part.patient.name) < 100 for part in parts):
        raise DataError(f"{folder / 'shard.json'} is broken (a patient without group, slices or name): {remedy}")
    return settings, parts


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type such as float or list[str]."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(entry, get_args(kind)) for entry in value)
    return isinstance(value, int | float if kind is float else kind)


def gather(shards: Iterable[str | Path], folder: str | Path, seed: int = 0, train_fraction: float = 1.0) -> Slices:
    """Make one set of some shards, as `prepare` makes of all their patients, with the same split and fingerprint.

    Args:
        shards: folders of `prepare_shard`; they must stay where they are, as seen from `folder`.
        folder: gets patients.csv (patient, group, split, and which rows of which shard) and slices.json, in the order
            of split, group and patient; an earlier set there is replaced.
        seed, train_fraction: as in `prepare`.

    Raises:
        DataError: no shard, a broken one, shards of different settings, or a patient in two of them.
    """
    folder = Path(folder).absolute()
    check_replaceable(folder)
    read = {Path(shard).absolute(): read_shard(Path(shard).absolute()) for shard in shards}
    settings = {settings: shard for shard, (settings, _) in read.items()}
    if len(settings) != 1:
        found = " and ".join(map(str, settings.values())) or "no shards"
        raise DataError(f"{folder}: {found} cannot be gathered; prepare all shards with the same settings")
    parts = sorted((part for _, parts in read.values() for part in parts), key=lambda part: part.patient.name)
    for problem in same_names([part.patient.folder for part in parts]):
        raise DataError(problem)
    parts, split, duplicates = divide(parts, seed, train_fraction)
    index = [
        (
            part.patient.name,
            part.patient.group,
            split[part.patient.name],
            Path(os.path.relpath(part.pixels, folder)).as_posix(),
            part.rows.start,
            len(part.rows),
        )
        for part in parts
    ]
    facts = report(parts, *settings, seed, train_fraction, split, duplicates)
    with replacing(folder, folder.with_name(f".{folder.name}.part")) as temporary:
        pd.DataFrame(index, columns=list(INDEX_COLUMNS)).to_csv(temporary / INDEX, index=False)
        (temporary / "slices.json").write_text(json.dumps(facts, indent=2) + "\n")
    return load_shards(folder)


class Stack:
    """Images or masks in several files, read like a tensor by number, slice or tensor of rows; `stack[:]` reads all.

    Args:
        files: arrays (n, ..., S, S) of one type, left on disk.
        file, first, count: of each patient, (P,): where its rows lie, one after the other.
        paths: of the files; without them nothing is read ahead.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        files: list[np.ndarray],
        file: np.ndarray,
        first: np.ndarray,
        count: np.ndarray,
        paths: Sequence[Path] = (),
    ):
        self.files, self.file, self.paths = files, file, paths
        self.ends = np.cumsum(count)
        self.shift = first - (self.ends - count)  # from the row of the stack to that of the file
        self.shape = torch.Size((int(self.ends[-1]), *files[0].shape[1:]))
        self.nbytes = math.prod(self.shape) * files[0].itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def places(self, rows: int | slice | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rows, from 0, and of their patients, (n,) or () each.

        Raises:
            IndexError: there is no such row.
        """
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)}")
        return rows, np.searchsorted(self.ends, rows, side="right")

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        rows, patients = self.places(rows)
        places = (rows + self.shift[patients]).ravel()
        pixels = np.empty((len(places), *self.shape[1:]), self.files[0].dtype)
        for n, (file, place) in enumerate(zip(self.file[patients].ravel(), places, strict=True)):
            pixels[n] = self.files[file][place]
        return torch.from_numpy(pixels.reshape(*rows.shape, *self.shape[1:]))

    def read_ahead(self, rows: Tensor) -> None:
        """Have the system fetch these rows (n,) and no others while something else is done, where it can.

        Left to itself it fetches a page when it is needed, and up to megabytes around it.
        """
        if not self.paths or not hasattr(os, "posix_fadvise"):
            return
        rows, patients = self.places(rows)
        files, places = self.file[patients], rows + self.shift[patients]
        begins = np.flatnonzero((np.diff(files, prepend=-1) != 0) | (np.diff(places, prepend=-2) != 1))
        runs = sorted(zip(files[begins], places[begins], np.diff(begins, append=len(rows)), strict=True))
        size = self.nbytes // len(self)
        for number, group in itertools.groupby(runs, key=lambda run: run[0]):
            with self.paths[number].open("rb") as file:
                head = os.fstat(file.fileno()).st_size - self.files[number].nbytes
                for _, place, count in group:
                    os.posix_fadvise(file.fileno(), head + place * size, count * size, os.POSIX_FADV_WILLNEED)


class Labels:
    """One number a patient, read like a tensor (N,) int64 with one number a slice; `labels[:]` makes that tensor."""

    def __init__(self, stack: Stack, by_patient: np.ndarray):
        self.stack, self.by_patient = stack, by_patient

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        return torch.as_tensor(self.by_patient[self.stack.places(rows)[1]])


class Sharded(Slices):
    """Slices that stay on disk: images and masks are a `Stack`, labels are `Labels`, the manifest is read when used."""

    def __init__(self, index: pd.DataFrame, folder: Path):
        self.index, self.folder = index, folder
        shards, file = np.unique(index["shard"], return_inverse=True)
        for shard in shards:
            if not (folder / shard / "images.npy").is_file():
                raise DataError(f"{folder / INDEX}: there is no shard in {one_line(shard, 100)!r}; {AGAIN}")
        self.shards = [folder / shard for shard in shards]
        places = [file, index["first"].to_numpy(), index["slices"].to_numpy()]
        images, masks = ([read_numbers(s / name, True) for s in self.shards] for name in ("images.npy", "masks.npy"))
        last = (index["first"] + index["slices"]).groupby(file).max()
        size = images[0].shape[-1]
        for shard, x, mask, n in zip(self.shards, images, masks, last, strict=True):
            fitting = (x.shape, mask.shape) == ((len(x), 1, size, size), (len(x), size, size))
            if not fitting or (x.dtype, mask.dtype) != (np.float32, np.uint8) or len(x) < n:
                raise DataError(f"{shard}: images.npy, masks.npy and {folder / INDEX} do not fit each other; {AGAIN}")
        self.images = Stack(images, *places, [shard / "images.npy" for shard in self.shards])
        self.masks = Stack(masks, *places)
        self.labels = Labels(self.images, np.array([GROUPS.index(group) for group in index["group"]]))
        self.fingerprint = read_fingerprint(folder)

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """As that of `Slices`: 10^8 rows of it take more memory than most machines have."""
        columns = {column: kind for column, kind in COLUMNS.items() if column != "split"}
        tables = [read_table(shard / "manifest.csv", columns) for shard in self.shards]
        spans = zip(self.images.file, self.index["first"], self.index["slices"], strict=True)
        rows = pd.concat([tables[file][first : first + n] for file, first, n in spans], ignore_index=True)
        owners = self.index.loc[self.index.index.repeat(self.index["slices"])]
        if rows["patient"].tolist() != owners["patient"].tolist():
            raise DataError(f"{self.folder / INDEX}: does not fit the shards' manifest.csv; {AGAIN}")
        return rows.assign(split=owners["split"].to_numpy())


def load_shards(folder: Path, split: str | None = None, groups: Sequence[str] | None = None) -> Slices:
    """What `load_slices` gives of a folder of `gather`: as tensors up to WHOLE_BELOW, above it what stays on disk."""
    index = read_table(folder / INDEX, INDEX_COLUMNS)
    slices = Sharded(index[choose(index, split, groups, folder)].reset_index(drop=True), folder)
    if slices.images.nbytes >= WHOLE_BELOW:
        return slices
    tensors = (slices.images[:], slices.labels[:], slices.masks[:])
    return Slices(*tensors, slices.manifest, slices.fingerprint)


# The order of an epoch.


def new_order(n: int, block: int = 1) -> Tensor:
    """A random order of n slices, (n,) int64, from PyTorch's generator; or of their blocks of so many, and a seed."""
    if block == 1:
        return torch.randperm(n)
    return torch.cat([torch.randperm(math.ceil(n / block)), torch.randint(2**40, (1,))])


def batches(
    order: Tensor, images: Sized, batch_size: int, taken: int = 0, block: int = 1, window: int | None = None
) -> Iterator[Tensor]:
    """The batches of an epoch, each slice once; what does not fill a batch is left out.

    Slices are read a block after the other, as a disk likes it, and shuffled within a window of many blocks, which
    is all that is in memory at once: the order itself is a number a block.

    Args:
        order: of `new_order`.
        images: n slices; while the batches of a window are drawn from a Stack, the next window is read.
        batch_size: rows in a batch.
        taken: batches that are left out at the beginning, of an epoch that goes on.
        block: slices in a block, as for `new_order`; with 1, the order is that of the slices.
        window: blocks in a window; None takes WINDOW, or four times the batch if that is more.

    Yields:
        Rows, (batch_size,) int64.
    """
    n = len(images)
    if block == 1:
        yield from order[: n // batch_size * batch_size].split(batch_size)[taken:]
        return
    generator = torch.Generator().manual_seed(int(order[-1]))
    windows = order[:-1].split(window or max(WINDOW, 4 * batch_size))
    rest, following = order[:0], []
    for number in range(len(windows)):
        for blocks in windows[number + len(following) : number + 2]:
            rows = (blocks[:, None] * block + torch.arange(block, device=order.device)).flatten()
            following.append(rows[rows < n])
            if isinstance(images, Stack):
                images.read_ahead(following[-1])
        rows = following.pop(0)
        rows = torch.cat([rest, rows[torch.randperm(len(rows), generator=generator)]])
        whole = len(rows) // batch_size
        yield from rows[: whole * batch_size].view(whole, batch_size)[taken:]
        taken, rest = max(0, taken - whole), rows[whole * batch_size :]


def unevenness(batches: Iterable[Tensor], patients: Tensor) -> float:
    """How unevenly patients share the batches: the variance of their shares over that in batches drawn at random.

    A batch whose slices are k times as often of one patient as chance would have it tells less than its size says: this
    is by how much the noise of its mean is above that of a full permutation, for slices that differ by patient alone.

    Args:
        batches: rows of the slices, (B,) each.
        patients: number of the patient of each slice, (N,).

    Returns:
        1 for a full permutation, in the mean over permutations; B for batches of one patient each, of very many.
    """
    count = torch.bincount(patients).double()
    n, squares, rows = len(patients), [], torch.empty(0)
    for rows in batches:
        squares.append(torch.unique(patients[rows], return_counts=True)[1].square().sum().item())
    size = len(rows)
    even = size**2 * (count / n).square().sum().item()
    ideal = size + size * (size - 1) * (count * (count - 1)).sum().item() / (n * (n - 1))
    return (sum(squares) / len(squares) - even) / (ideal - even)
