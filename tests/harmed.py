"""Files with fields, bytes and sizes changed, for test_malformed.py, and what a reader of them may do."""

import gzip
import io
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy as Files

from hcm_helpers.acdc import DataError

SECONDS = 20  # that a reader may take for a file of a few MB, on a slow machine
ZEROS = gzip.compress(bytes(2**24), 1)  # a piece of a bomb

# --- what a reader may do


@contextmanager
def a_gigabyte_at_most() -> Iterator[None]:
    """Who takes 1 GB more than is taken already gets a MemoryError; on Linux, which tells how much that is."""
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(pages.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_sentence(message: str, path: Path) -> None:
    assert str(path.parent) in message
    assert message.isprintable()
    assert len(message) < 600


def read_or_refused(path: Path, content: bytes, read: Callable[[], object]) -> None:
    """Write a file, read it, and put back what was there; the reader may raise nothing but a DataError."""
    before = path.read_bytes()
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        with a_gigabyte_at_most():
            read()
        event("read")
    except DataError as error:
        event("refused")
        check_sentence(str(error), path)
    finally:
        path.write_bytes(before)
    assert time.perf_counter() - start < SECONDS


# --- what happens to a file


def edited(content: bytes, edits: Sequence[tuple[str, int, bytes]]) -> bytes:
    """The content after some edits (kind, place, piece)."""
    for kind, place, piece in edits:
        place %= len(content) + 1
        head, tail = content[:place], content[place:]
        content = {
            "flip": head + bytes(byte ^ piece[0] for byte in tail[:1]) + tail[1:],
            "cut": head,
            "drop": head + tail[len(piece) :],
            "insert": head + piece + tail,
            "repeat": head + head[-len(piece) :] + tail,
            "replace": piece,
        }[kind]
    return content


def harmed(content: bytes) -> Files[bytes]:
    """The content with a few bytes flipped, cut off, dropped, inserted or repeated."""
    return edits.map(lambda edits: edited(content, edits))


def changed_table(table: str, edits: Sequence[tuple[str, int, int, str]]) -> bytes:
    """A CSV table after some edits (kind, row, column, value)."""
    rows = [line.split(",") for line in table.splitlines()]
    for kind, row, column, value in edits:
        row, column = row % len(rows), column % max(1, len(rows[0]))
        if kind == "cell":
            rows[row][column : column + 1] = [value]
        elif kind == "every cell":
            rows[1:] = [[*cells[:column], value, *cells[column + 1 :]] for cells in rows[1:]]
        elif kind == "no column":
            rows = [[*cells[:column], *cells[column + 1 :]] for cells in rows]
        elif kind == "more cells":
            rows[row:] = [[*cells, value] for cells in rows[row:]]
        elif kind == "no row":
            del rows[max(1, row) :]
    return "\n".join(",".join(cells) for cells in rows).encode("utf-8", "replace")


def tables(table: str) -> Files[bytes]:
    """The table with some cells, rows and columns changed, harmed, or something else in its place."""
    kinds = st.sampled_from(["cell", "cell", "every cell", "every cell", "no column", "more cells", "no row"])
    edits = st.lists(st.tuples(kinds, st.integers(0, 99), st.integers(0, 9), words), min_size=1, max_size=3)
    return edits.map(lambda edits: changed_table(table, edits)) | harmed(table.encode()) | noise


def zipped(members: Mapping[str, bytes], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


STRANGE_NUMBERS = [0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 256, 348, 352, 512, 1536, 32767, -32768, 2**31, -(2**63)]
STRANGE_NUMBERS += [0.5, 1e6, 1e9, 1e38, float("nan"), float("inf"), float("-inf")]
STRANGE_WORDS = [
    "",
    " ",
    "nan",
    "inf",
    "-1",
    "0",
    "1.5",
    "1e999",
    "9" * 400,
    "١٢",
    "1_0",
    "x",
    "é",
    "True",
    "None",
    '"',
]
STRANGE_WORDS += [
    "'",
    ",",
    "\n",
    "\r",
    "\u2028",
    "\0",
    "\x1b[2J",
    "HCM",
    "hcm",
    "train",
    "ED",
    "-",
    "patient001",
    "../x",
]
numbers = st.sampled_from(STRANGE_NUMBERS) | st.integers(-(2**31), 2**31) | st.floats(width=32)
words = st.sampled_from(STRANGE_WORDS) | st.text(max_size=30) | numbers.map(str)
plain = st.none() | st.booleans() | numbers | words
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(words, inner), max_leaves=10)
noise = st.binary(max_size=500)
kinds = st.sampled_from([*["flip", "cut", "drop", "insert", "repeat"] * 2, "replace"])
edits = st.lists(st.tuples(kinds, st.integers(0, 2**20), st.binary(min_size=1, max_size=50)), max_size=4)
compressions = st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
