"""Files that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside its place and rename it, so that a file that is there is whole.

    Args:
        path: where the file belongs; what was there is replaced.
        write: is called with the temporary path; if it fails, what was there stays.
    """
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)
