"""Contents of files that would run code, or take too much memory, in a reader that trusts them."""

import io
import json
import pickle

import numpy as np


def forbidden():
    raise AssertionError("a file was run")


class Evil:
    """It calls `forbidden` when it is unpickled."""

    def __reduce__(self):
        return forbidden, ()


PICKLE = pickle.dumps(Evil())


def npy(array) -> bytes:
    """A .npy file, of objects as well, which are pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(compressed=False, **arrays) -> bytes:
    """A .npz file, of objects as well."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


OBJECTS = np.array([Evil()] * 3)


def safetensors(header, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with this header, which may state another length of itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data
