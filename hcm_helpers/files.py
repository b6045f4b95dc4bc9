"""Files that are whole or not there, read without a line of them being run, and what tells contents apart."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hcm_helpers.acdc import DataError, one_line

# The first line of a .npy file, as NumPy writes it for plain numbers in C order.
HEAD_OF_NUMBERS = re.compile(
    rb"\x93NUMPY\x01\0..\{'descr': '(<f[248]|[<|][iu][1248])', 'fortran_order': False, "
    rb"'shape': \((\d{1,15}(?:, ?\d{1,15})*),?\), \} *\n",
    re.DOTALL,
)
NOT_NUMBERS = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile)  # what a bad .npy or .npz raises

REMEDIES = {
    errno.ENOSPC: "make room on its disk, then go on by `hcm run --resume`; what was written before is whole",
    errno.EROFS: "choose a folder that is not read-only",
    errno.EACCES: "choose a folder that you may write to; on Windows close the notebooks that read it",
    errno.ENOENT: "its folder has gone; put it back, or begin a new run",
}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside its place and rename it, so that a file that is there is whole.

    Args:
        path: where the file belongs; what was there is replaced.
        write: is called with the temporary path; if it fails, what was there stays.

    Raises:
        DataError: the disk is full or has gone, or nothing may be written there.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        with part.open("r+b") as file:
            os.fsync(file.fileno())  # or after a power cut the name could stand before the content
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise refusal(path, error) from error


@contextmanager
def replacing(folder: Path, temporary: Path) -> Iterator[Path]:
    """A new folder to be filled in this context, which then takes the place of what was there; or nothing changes.

    Args:
        folder: where it belongs.
        temporary: its place until then, on the same disk; what an interruption left there is removed.

    Raises:
        DataError: as `write_whole`.
    """
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:  # on Windows also where a file is mapped into memory and cannot be replaced
        raise refusal(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refusal(path: Path, error: OSError) -> DataError:
    """One sentence about a file that could not be written, and what to do."""
    remedy = REMEDIES.get(error.errno, "see that it can be written to, then go on by `hcm run --resume`")
    return DataError(f"{path} cannot be written ({error.strerror or error}): {remedy}")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: something else is in it, or it cannot be read; the remedy is for the caller to tell.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is broken ({one_line(error)}): {remedy}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is broken (it holds no object): {remedy}")
    return content


def read_head(file: BinaryIO, size: int) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of the numbers in a .npy file of so many bytes; the file then stands at the first of them.

    NumPy's own reader evaluates what it finds, and takes memory before it knows whether the file is long enough.

    Raises:
        ValueError: something else than plain numbers, or more or fewer of them than the shape says.
    """
    line = file.readline(1000)
    head = HEAD_OF_NUMBERS.fullmatch(line)
    if head is None:
        raise ValueError("it holds no plain numbers as numpy.save writes them")
    dtype, shape = np.dtype(head[1].decode()), tuple(int(length) for length in head[2].split(b","))
    if len(line) + dtype.itemsize * math.prod(shape) != size:
        raise ValueError(f"its {size} bytes are no array of shape {shape}")
    return dtype, shape


def read_npy(path: Path, mapped: bool = False) -> np.ndarray:
    """The numbers in a .npy file; one of NOT_NUMBERS if it holds anything else.

    Args:
        path: the file.
        mapped: leave them on disk until they are used; what is written to them stays in memory, and the file is
            not held open.
    """
    with path.open("rb") as file:
        dtype, shape = read_head(file, path.stat().st_size)
        if mapped:
            import torch  # here, as --help need not wait; NumPy's mapping would keep the file open, and shards are many

            content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
            return content.numpy()[file.tell() :].view(dtype).reshape(shape)
        return np.fromfile(file, dtype).reshape(shape)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a .npz file, name → numbers; one of NOT_NUMBERS if it holds anything else.

    It must be as `np.savez` writes it, not compressed, so that what it takes in memory is what it takes on disk.
    """
    arrays = {}
    with zipfile.ZipFile(path) as members:
        contents = sum(member.file_size for member in members.infolist())
        if contents > path.stat().st_size or any(member.compress_type for member in members.infolist()):
            raise ValueError("it is compressed, as numpy.savez does not")
        for member in members.infolist():
            with members.open(member) as file:
                dtype, shape = read_head(file, member.file_size)
                content = bytearray(file.read())  # not bytes, which PyTorch must not write to
                arrays[member.filename.removesuffix(".npy")] = np.frombuffer(content, dtype).reshape(shape)
    return arrays


def sha256(*contents) -> str:
    """The digest of some bytes, arrays or tuples."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(repr(content).encode() if isinstance(content, tuple) else np.ascontiguousarray(content))
    return digest.hexdigest()


def clone_or_wheel(clone: str, wheel: str = "") -> Path:
    """A folder that lies beside the package in a clone, and in the package in a wheel (pyproject.toml).

    Args:
        clone: its path in a clone.
        wheel: its name in a wheel, if it is another.
    """
    package = Path(__file__).resolve().parent
    beside = package.parent / clone
    return beside if (package.parent / "pyproject.toml").is_file() else package / (wheel or clone)
