"""Files that are whole or not there, and what tells contents apart."""

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from hcm_helpers.acdc import DataError

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


def refusal(path: Path, error: OSError) -> DataError:
    """One sentence about a file that could not be written, and what to do."""
    remedy = REMEDIES.get(error.errno, "see that it can be written to, then go on by `hcm run --resume`")
    return DataError(f"{path} cannot be written ({error.strerror or error}): {remedy}")


def sha256(*contents) -> str:
    """The digest of some bytes, arrays or tuples."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(repr(content).encode() if isinstance(content, tuple) else np.ascontiguousarray(content))
    return digest.hexdigest()
