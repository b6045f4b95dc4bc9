"""Files that are whole or not there, and what tells contents apart."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside its place and rename it, so that a file that is there is whole.

    Args:
        path: where the file belongs; what was there is replaced.
        write: is called with the temporary path; if it fails, what was there stays.
    """
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)


def sha256(*contents) -> str:
    """The digest of some bytes, arrays or tuples."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(repr(content).encode() if isinstance(content, tuple) else np.ascontiguousarray(content))
    return digest.hexdigest()
