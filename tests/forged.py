"""Contents of files that would run code, or take too much memory, in a reader that trusts them."""

import io
import json
import zipfile

import numpy as np


def forbidden():
    raise AssertionError("a file was run")


PICKLE = b"cforged\nforbidden\n(tR."  # whoever unpickles it calls forged.forbidden()


def npy(array) -> bytes:
    """A .npy file; what is bytes already stays."""
    if isinstance(array, bytes):
        return array
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz(compressed=False, **arrays) -> bytes:
    """A .npz file of arrays or of .npy files, as NumPy writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(npy(array))
    return buffer.getvalue()


def objects(n: int) -> bytes:
    """A .npy file of n objects, which NumPy keeps as a pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (n,)})
    return buffer.getvalue() + PICKLE


OBJECTS = objects(3)


def safetensors(header, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with this header, which may state another length of itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data
