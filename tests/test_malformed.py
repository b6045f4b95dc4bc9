"""Nobody let in: any file is read or refused in one sentence, soon, within a gigabyte, and none is run.

The files are random, or true ones with fields, bytes and sizes changed. Each time the same thousand come;
`pytest --hypothesis-profile=thorough tests/test_malformed.py` tries some fifteen thousand others, in a minute or two.
"""

import ast
import gzip
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from forged import npy, safetensors
from harmed import (
    ZEROS,
    a_gigabyte_at_most,
    check_sentence,
    compressions,
    edited,
    edits,
    harmed,
    noise,
    numbers,
    plain,
    read_or_refused,
    tables,
    values,
    words,
    zipped,
)
from hypothesis import event, example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy as Files
from patients import save_nifti, write_patient
from torch import nn

from hcm_helpers import download
from hcm_helpers.acdc import GROUPS, PHASES, find_patients, read_patient
from hcm_helpers.check import examine
from hcm_helpers.checkpoint import load_state, save_state
from hcm_helpers.cohort import convert_cohort
from hcm_helpers.cutting import Settings, slice_patient
from hcm_helpers.shards import gather, prepare_shard
from hcm_helpers.slices import load_slices, prepare
from hcm_helpers.training import load_masks, load_samples, load_snapshots, load_weights, save_weights

ROOT = Path(__file__).parent.parent
# Of pandas, which reads on: a number that is none as a whole one, a line with more cells than columns. Of our own zips.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered in cast"),
    pytest.mark.filterwarnings("ignore:Length of header or names does not match"),
    pytest.mark.filterwarnings("ignore:Duplicate name"),
]


def test_a_gigabyte_is_enough():
    if not Path("/proc/self/statm").is_file():
        pytest.skip("only Linux tells how much memory is taken")
    with pytest.raises(MemoryError), a_gigabyte_at_most():
        bytes(2**31)
    with a_gigabyte_at_most():
        bytes(2**29)


# --- Info.cfg and NIfTI files


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> Path:
    """The folder of a patient with a cine of three frames."""
    folder = write_patient(tmp_path_factory.mktemp("malformed"), 1, NbFrame=3, ES=2)
    first, second = (nib.load(folder / f"patient001_frame{frame:02d}.nii.gz").get_fdata() for frame in (1, 2))
    film = np.stack([first, second, first[::-1]], axis=-1).astype(np.int16)
    save_nifti(folder / "patient001_4d.nii.gz", film, (4, 4, 10, 1))
    assert not examine("training", folder).problems
    return folder


def read_all(folder: Path) -> None:
    """Read all files of a patient, and make slices of it if nothing is wrong with it."""
    findings = examine("training", folder)
    for problem in findings.problems:
        event("a problem")
        check_sentence(problem, folder / "Info.cfg")
    if not findings.problems:
        slice_patient(read_patient("training", folder), Settings(32, frames="all"))


INFO = {"ED": "1", "ES": "2", "Group": "HCM", "Height": "178.0", "NbFrame": "3", "Weight": "80"}


def info(changes: Mapping[str, str], more: Sequence[str], end: str, encoding: str) -> bytes:
    lines = [*(f"{key}: {value}" for key, value in (INFO | changes).items()), *more]
    return end.join(lines).encode(encoding, "replace")


infos = st.builds(
    info,
    st.dictionaries(st.sampled_from([*INFO]) | words, words, max_size=3),
    st.lists(words | st.sampled_from(["ED: 1", "ED: 2", "x" * 99999]), max_size=2),
    st.sampled_from(["\n", "\n", "\r\n", "\r", "\x0b", "\0"]),
    st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)


@given(infos | harmed(info({}, [], "\n", "utf-8")) | noise)
def test_info(patient, content):
    def read():
        found = read_patient("training", patient)
        assert found.group in GROUPS
        assert 1 <= found.end_diastole <= found.num_frames
        assert 0 <= found.height_cm < float("inf")
        assert 0 <= found.weight_kg < float("inf")
        for phase in PHASES:
            found.mask_path(phase).is_file()  # a name that no disk takes would raise

    read_or_refused(patient / "Info.cfg", content, read)


HEADER = nib.Nifti1Header().structarr.dtype
IMPORTANT = ["dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "sizeof_hdr", "magic"]
NIFTI = [
    "patient001_frame01.nii.gz",
    "patient001_frame02.nii.gz",
    "patient001_frame02_gt.nii.gz",
    "patient001_4d.nii.gz",
]


def with_fields(content: bytes, fields: Sequence[tuple[str, int, float]], swapped: bool) -> bytes:
    """A NIfTI file whose header has other numbers in some fields (name, place, number), perhaps in other endianness."""
    header = np.frombuffer(content[:348], HEADER).copy()
    for name, place, number in fields:
        entries = header[name].reshape(-1)
        if entries.dtype.kind in "iu":
            limits = np.iinfo(entries.dtype)
            number = int(min(max(np.nan_to_num(number), limits.min), limits.max))
        with np.errstate(over="ignore"):
            entries[place % len(entries)] = str(number) if entries.dtype.kind == "S" else number
        header[name] = entries.reshape(header[name].shape)
    return (header.byteswap() if swapped else header).tobytes() + content[348:]


def nii_gz(content: bytes, way: str) -> bytes:
    """A .nii.gz of a NIfTI file, whole or with something that is no part of it."""
    pieces = {"two": (content[:400], content[400:]), "empty": (b"", content, b"")}.get(way, (content,))
    whole = b"".join(gzip.compress(piece, 1) for piece in pieces)
    ends = {"bomb": 128 * ZEROS, "garbage": b"garbage", "zeros": bytes(512), "again": whole}
    return content if way == "not zipped" else whole + ends.get(way, b"")


ways = st.sampled_from(["whole"] * 4 + ["bomb"] * 2 + ["two", "empty", "garbage", "zeros", "again", "not zipped"])
fields = st.tuples(st.sampled_from(IMPORTANT) | st.sampled_from(HEADER.names), st.integers(0, 7), numbers)
headers = st.tuples(st.lists(fields, max_size=4), st.booleans())


@given(st.sampled_from(NIFTI), headers, ways)
def test_nifti_headers(patient, name, header, way):
    content = gzip.decompress((patient / name).read_bytes())
    read_or_refused(patient / name, nii_gz(with_fields(content, *header), way), lambda: read_all(patient))


@given(st.sampled_from(NIFTI), edits, ways, edits)
def test_nifti_files(patient, name, inside, way, outside):
    content = edited(gzip.decompress((patient / name).read_bytes()), inside)
    read_or_refused(patient / name, edited(nii_gz(content, way), outside), lambda: read_all(patient))


# --- what `prepare` leaves


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    """The folder of the slices of three patients."""
    root = tmp_path_factory.mktemp("three")
    for number in range(3):
        write_patient(root, number + 1, GROUPS[number])
    prepare(root, root / "slices", image_size=32)
    return root / "slices"


def load(folder: Path) -> None:
    """Load the slices; what is loaded fits together."""
    for split in (None, "train"):
        found = load_slices(folder, split)
        n, size = len(found.manifest), found.image_size
        assert (found.images.shape, found.masks.shape) == ((n, 1, size, size), (n, size, size))
        assert len(found.labels) == n > 0
        assert 0 < found.pixel_mm < float("inf")
        assert isinstance(found.fingerprint, str)


@given(st.data())
def test_manifest(slices, data):
    path = slices / "manifest.csv"
    read_or_refused(path, data.draw(tables(path.read_text())), lambda: load(slices))


deep = st.sampled_from([b"[" * 10**5, b'{"fingerprint": ' * 10**4, b'{"fingerprint": ' + b"9" * 5000 + b"}"])
facts = values | st.fixed_dictionaries({"fingerprint": values})


@given(facts.map(lambda facts: json.dumps(facts).encode()) | deep | noise)
def test_facts(slices, content):
    read_or_refused(slices / "slices.json", content, lambda: load(slices))


DTYPES = [
    "<f4",
    "<f4",
    ">f4",
    "<f8",
    "<f2",
    "<f16",
    "|u1",
    "<u2",
    "<i8",
    "|b1",
    "|O",
    "<c8",
    "|S0",
    "<U9",
    "|V4",
    "<M8[s]",
]
DTYPES += ["f4,f4", "(2,2)f4", "i4,(2", [("a", "<f4")], [("a", "|O")], ("<f4", (2,)), "", ",", None, 5]
lengths = st.sampled_from([0, 1, 3, 4, 8, 12, 32, -1, 2**15, 2**31, 2**40, 2**62, 10**30, True, 1.5])
shapes = st.lists(lengths, max_size=5).map(tuple) | plain
heads = st.builds(
    "{{'descr': {!r}, 'fortran_order': {!r}, 'shape': {!r}, }}".format,
    st.sampled_from(DTYPES),
    st.sampled_from([False] * 4 + [True, 2, "x"]),
    shapes,
)
odd_heads = st.sampled_from(
    ["{[]: 1}", "(" * 5000, "-" * 9000 + "1", "[" * 99 + "]" * 99, "{'descr': '''", "__import__('os')"]
)


def npy_with(head: str, version: bytes, data: bytes) -> bytes:
    text = head.encode("utf-8", "replace") + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\1\0" else 4, "little") + text + data


def npy_files(array: np.ndarray) -> Files[bytes]:
    """The .npy file of an array, with another head, in another order, harmed, or something else in its place."""
    versions = st.sampled_from([b"\1\0"] * 4 + [b"\2\0", b"\3\0", b"\x09\0"])
    data, whole = array.tobytes(), npy(array)
    forged = st.tuples(heads | odd_heads, versions).map(lambda head: npy_with(*head, data))
    turned = st.permutations(range(array.ndim)).map(lambda axes: npy(array.transpose(axes)))
    return forged | turned | harmed(whole) | harmed(whole[:128]).map(lambda head: head + data) | noise


@given(st.sampled_from(["images.npy", "masks.npy"]), st.data())
def test_arrays_of_slices(slices, name, data):
    content = data.draw(npy_files(np.load(slices / name)))
    read_or_refused(slices / name, content, lambda: load(slices))


# --- shards


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """The folder of a set gathered from two shards of three patients."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(3):
        write_patient(root, number + 1, GROUPS[number])
    patients = find_patients(root)
    for name, chunk in (("a", patients[:2]), ("b", patients[2:])):
        prepare_shard(chunk, root / name, Settings(32))
    gather([root / "a", root / "b"], root / "set")
    return root / "set"


@given(st.data())
def test_index_of_shards(sharded, data):
    path = sharded / "patients.csv"
    read_or_refused(path, data.draw(tables(path.read_text())), lambda: load(sharded))


@given(st.data())
def test_facts_of_shards(sharded, data):
    path = sharded.parent / "a" / "shard.json"
    whole = path.read_bytes()
    changes = st.dictionaries(st.sampled_from(["settings", "parts", "x"]), values, min_size=1, max_size=2)
    forged = changes.map(lambda changes: json.dumps(json.loads(whole) | changes).encode())
    facts = st.dictionaries(st.sampled_from([*json.loads(whole)["parts"][0], "x"]), values, min_size=1, max_size=3)
    inside = facts.map(lambda facts: json.dumps(with_part(json.loads(whole), facts)).encode())
    content = data.draw(forged | inside | harmed(whole) | deep | noise)

    def read():
        gather([sharded.parent / "a", sharded.parent / "b"], sharded.parent / "again")
        load(sharded.parent / "again")

    read_or_refused(path, content, read)
    shutil.rmtree(sharded.parent / "again", ignore_errors=True)


def with_part(content: dict, facts: dict) -> dict:
    """The content of a shard.json whose first part has some other facts."""
    first, *others = content["parts"]
    return content | {"parts": [first | facts, *others]}


# --- what a training leaves


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a trained network."""
    folder = tmp_path_factory.mktemp("trained")
    save_weights(network(), folder)
    for name in ("samples.npz", "snapshots.npz"):
        (folder / name).touch()
    return folder


SAMPLES = {
    "images.npy": np.ones((3, 1, 8, 8), np.float32),
    "labels.npy": np.zeros(3, np.int64),
    "masks.npy": np.ones((3, 8, 8), np.uint8),
}
SNAPSHOTS = {"epochs.npy": np.arange(3), "images.npy": np.ones((3, 8, 1, 8, 8), np.float32)}
BOMB = {"images.npy": npy(np.zeros((3, 1, 2**11, 2**11), np.float32)), "labels.npy": npy(np.zeros(3, np.int64))}


def npz_files(arrays: Mapping[str, np.ndarray]) -> Files[bytes]:
    """The .npz file of some arrays, one of them forged, one lacking, one more or harmed."""
    true = {name: st.just(npy(array)) for name, array in arrays.items()}
    forged = {name: st.just(npy(array)) | npy_files(array) for name, array in arrays.items()}
    members = st.fixed_dictionaries({}, optional=true) | st.fixed_dictionaries(forged)
    more = st.builds(dict.__or__, members, st.dictionaries(words.map(lambda word: f"x{word}"), noise, max_size=1))
    files = st.builds(zipped, members | more, compressions)
    return files | files.flatmap(harmed) | st.just(zipped(BOMB, zipfile.ZIP_DEFLATED)) | noise


@given(npz_files(SAMPLES))
def test_samples(trained, content):
    def read():
        images, labels = load_samples(trained)
        assert images.ndim == 4
        assert len(images) == len(labels) > 0
        assert load_masks(trained) is None or len(load_masks(trained)) == len(images)

    read_or_refused(trained / "samples.npz", content, read)


@given(npz_files(SNAPSHOTS))
def test_snapshots(trained, content):
    def read():
        assert all(images.ndim == 4 for images in load_snapshots(trained).values())

    read_or_refused(trained / "snapshots.npz", content, read)


tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "C64", "object"]),
        "shape": st.lists(st.integers(0, 5) | st.sampled_from([-1, 2**32, 2**63, 1.5]), max_size=3),
        "data_offsets": st.lists(st.integers(0, 99) | st.sampled_from([-1, 2**32, 2**63, 2**64]), max_size=3),
    }
)


@given(st.data())
def test_weights(trained, data):
    path = trained / "weights.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    changes = st.dictionaries(st.sampled_from([*header, "__metadata__"]) | words, tensors | values, max_size=3)
    texts = changes.map(lambda changes: json.dumps(header | changes).encode()) | deep
    forged = st.tuples(texts, st.none() | st.integers(0, 2**64 - 1)).map(
        lambda drawn: safetensors(drawn[0], whole[start:], drawn[1])
    )
    content = data.draw(forged | harmed(whole) | harmed(whole[:start]).map(lambda head: head + whole[start:]) | noise)
    read_or_refused(path, content, lambda: load_weights(network(), trained))


STATE = {"steps": 3, "history": [{"epoch": 1, "loss": 0.5}], "model": {"weight": torch.ones(2, 3)}, "rng_cuda": None}
packed = st.fixed_dictionaries(
    {}, optional={"tensor": values, "pairs": values | st.lists(st.lists(values, max_size=3))}
)


@given(st.data())
def test_checkpoints(trained, data):
    path = trained / "last.safetensors"
    save_state(STATE, path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    text = header["__metadata__"]["state"]
    states = (packed | values).map(json.dumps) | harmed(text.encode()).map(lambda part: part.decode(errors="replace"))
    headers = states.map(lambda state: json.dumps(header | {"__metadata__": {"state": state}}).encode())
    forged = headers.map(lambda head: safetensors(head, whole[start:], None))
    content = data.draw(forged | harmed(whole) | harmed(whole[:start]).map(lambda head: head + whole[start:]) | noise)
    read_or_refused(path, content, lambda: load_state(path))


# --- what comes from elsewhere

paths = (
    st.sampled_from(["training/patient001/", "ACDC/database/testing/patient2/", "../", "/", "C:", "x" * 300]) | words
)
names = st.builds("a{}{}".format, paths, st.sampled_from(["Info.cfg", "b.nii.gz", "..", "y" * 300]) | words)
names |= st.builds(
    "{}{}".format, st.sampled_from(["training/patient001/", "ACDC/training/patient1/", "../", "/"]), words
)
contents = st.sampled_from([b"", b"x", bytes(10**5)]) | noise
zips = st.builds(zipped, st.dictionaries(names, contents, min_size=1, max_size=4), compressions)


# A zip of version 6.4, which no Python knows: found by chance.
OTHER_VERSION = b"PK\1\2\0\0@" + bytes(42) + b"PK\5\6" + bytes(8) + b"1" + bytes(9)


@given(zips | zips.flatmap(harmed) | noise)
@example(OTHER_VERSION)
def test_archives(tmp_path_factory, content):
    """What is unpacked lies in its folder, and of what is refused nothing stays but perhaps the archive."""
    root = tmp_path_factory.mktemp("archive")
    (root / "archive.zip").touch()

    def read():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download, "get", lambda url, archive, part, sha256: archive.write_bytes(content))
            download.download(root / "acdc", space=0)

    read_or_refused(root / "archive.zip", content, read)
    assert {path.name for path in root.iterdir()} <= {"archive.zip", "acdc", ".acdc.download"}
    assert {path.parents[1].name for path in root.glob("acdc/**/*") if path.is_file()} <= {"training", "testing"}
    shutil.rmtree(root)


TABLE = "patient,group,image,mask,ED,ES\nA,HCM,image.nii.gz,mask.nii.gz,1,2\n"


@pytest.fixture(scope="module")
def cohort(patient, tmp_path_factory) -> Path:
    """The folder of another cohort, of one patient."""
    folder = tmp_path_factory.mktemp("cohort")
    shutil.copy(patient / "patient001_4d.nii.gz", folder / "image.nii.gz")
    mask = nib.load(patient / "patient001_frame01_gt.nii.gz").get_fdata().astype(np.uint8)
    save_nifti(folder / "mask.nii.gz", np.stack([mask] * 3, axis=-1), (4, 4, 10, 1))
    (folder / "table.csv").write_text(TABLE)
    return folder


def convert_or_refuse(cohort: Path, name: str, content: bytes) -> None:
    def read():
        convert_cohort(cohort / "table.csv", cohort / "acdc")

    read_or_refused(cohort / name, content, read)
    shutil.rmtree(cohort / "acdc", ignore_errors=True)
    assert {path.name for path in cohort.iterdir()} == {"image.nii.gz", "mask.nii.gz", "table.csv"}


@given(tables(TABLE))
def test_tables_of_cohorts(cohort, content):
    convert_or_refuse(cohort, "table.csv", content)


@given(st.sampled_from(["image.nii.gz", "mask.nii.gz"]), headers, edits, ways)
def test_films_of_cohorts(cohort, name, header, inside, way):
    content = with_fields(gzip.decompress((cohort / name).read_bytes()), *header)
    convert_or_refuse(cohort, name, nii_gz(edited(content, inside), way))


# --- no file and no variable is code

RUNS_CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.read_pickle", "np.load"}
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "subprocess", "yaml"}


def sources() -> Iterator[ast.Module]:
    """The code of the package and of the notebooks, without Jupyter's own commands."""
    for path in (ROOT / "hcm_helpers").rglob("*.py"):
        yield ast.parse(path.read_text(encoding="utf-8"))
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        lines = [line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"]]
        yield ast.parse("".join(line for line in lines if not line.startswith(("%", "!"))))


def test_nothing_unpickles_and_no_text_is_run():
    for source in sources():
        for node in ast.walk(source):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {module.partition(".")[0] for module in modules} & MODULES
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                assert ast.unparse(node.func) not in RUNS_CODE, call
                assert not call.startswith("torch.load(") or "weights_only=True" in call, call


def test_the_environment_is_asked_for_plain_output_and_the_number_of_processes_only():
    asked = set()
    for source in sources():
        for node in ast.walk(source):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                asked.add(ast.unparse(node.slice))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
                asked.add(ast.unparse(node.args[0]))
    # `name` in `execute.environment`, which sets the number of threads, as `team` does
    threads = {"name", "'OMP_NUM_THREADS'"}
    assert asked == {"'HCM_HEADLESS'", "'LOCAL_WORLD_SIZE'", "'SLURM_NNODES'"} | threads
