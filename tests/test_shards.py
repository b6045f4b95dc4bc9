"""Slices in shards are those of one `prepare`, bit for bit; the order of an epoch is as good as it says."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from forged import PICKLE, npy
from patients import write_patient

import hcm_helpers.shards
import hcm_helpers.slices
from hcm_helpers.acdc import GROUPS, DataError, find_patients
from hcm_helpers.cutting import Settings
from hcm_helpers.models.vae import VAE
from hcm_helpers.shards import (
    BLOCK,
    Labels,
    Sharded,
    Stack,
    batches,
    gather,
    new_order,
    prepare_shard,
    unevenness,
)
from hcm_helpers.slices import SPLITS, load_slices, prepare
from hcm_helpers.training import fit

SETTINGS = Settings(32)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """22 patients, four of each group and the first two once more, of whom one stands in the official test set."""
    root = tmp_path_factory.mktemp("root")
    for number in range(20):
        write_patient(root, number + 1, GROUPS[number % 5], "testing" if number >= 15 else "training")
    for old, new, split in ((1, 30, "training"), (2, 31, "testing")):
        source, folder = root / f"training/patient{old:03d}", root / split / f"patient{new:03d}"
        shutil.copytree(source, folder)
        for path in folder.glob("patient*"):
            path.rename(folder / path.name.replace(source.name, folder.name))
    return root


@pytest.fixture(scope="session")
def prepared(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "slices"
    prepare(root, folder, 32, seed=3, train_fraction=0.7)
    return folder


@pytest.fixture(scope="session")
def sharded(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    patients = find_patients(root)
    for chunk in range(4):
        prepare_shard(patients[chunk::4], folder / f"shards/{chunk}", SETTINGS, workers=1)
    gather([folder / f"shards/{chunk}" for chunk in range(4)], folder / "slices", seed=3, train_fraction=0.7)
    return folder / "slices"


@pytest.fixture
def on_disk(monkeypatch):
    """However few slices there are, they stay in their shards."""
    monkeypatch.setattr(hcm_helpers.shards, "WHOLE_BELOW", 0)


@pytest.fixture
def copied(sharded, tmp_path):
    """The shards and their index, to be broken."""
    shutil.copytree(sharded.parent, tmp_path / "sharded")
    return tmp_path / "sharded" / "slices"


# --- the same as in one go


@pytest.mark.parametrize("split", [None, *SPLITS])
@pytest.mark.parametrize("groups", [None, ["HCM"], ["NOR", "RV"]])
@pytest.mark.parametrize("kept_on_disk", [False, True])
def test_shards_hold_what_one_prepare_would(prepared, sharded, monkeypatch, split, groups, kept_on_disk):
    monkeypatch.setattr(hcm_helpers.shards, "WHOLE_BELOW", 0 if kept_on_disk else 2**30)
    one, many = load_slices(prepared, split, groups), load_slices(sharded, split, groups)
    assert isinstance(many, Sharded) == kept_on_disk
    assert (len(many), many.image_size, many.pixel_mm) == (len(one), 32, 5.0)
    for name in ("images", "labels", "masks"):
        ours, known = getattr(many, name)[:], getattr(one, name)
        assert ours.dtype == known.dtype
        assert torch.equal(ours, known)
    pd.testing.assert_frame_equal(many.manifest, one.manifest)
    assert many.fingerprint == one.fingerprint


def test_the_report_is_the_same(prepared, sharded):
    one, many = (json.loads((folder / "slices.json").read_text()) for folder in (prepared, sharded))
    assert one == many
    assert one["duplicates"] == {"patient002": "patient031", "patient030": "patient001"}  # across chunks
    assert sorted(path.name for path in sharded.iterdir()) == ["patients.csv", "slices.json"]
    assert sum(path.stat().st_size for path in sharded.iterdir()) < 5000


def test_the_fingerprint_depends_on_split_and_pixels(root, sharded, tmp_path):
    shards = [sharded.parent / f"shards/{chunk}" for chunk in range(4)]
    whole = gather(shards, tmp_path / "slices")
    assert whole.fingerprint == prepare(root, tmp_path / "one", 32).fingerprint
    found = {whole.fingerprint, load_slices(sharded).fingerprint, gather(shards[:3], tmp_path / "slices").fingerprint}
    prepare_shard(find_patients(root), tmp_path / "all", Settings(32, 150.0))
    found.add(gather([tmp_path / "all"], tmp_path / "slices").fingerprint)
    assert len(found) == 4


def test_a_shard_that_was_stopped_goes_on(root, tmp_path, monkeypatch):
    """Stopped at its fourth patient, it computes only the fourth and fifth; until then nothing is to be seen of it."""
    patients, computed, real = find_patients(root)[:5], [], hcm_helpers.slices.slice_patient

    def stop(patient, settings):
        if patient in patients[3:]:
            raise KeyboardInterrupt
        return real(patient, settings)

    monkeypatch.setattr(hcm_helpers.slices, "slice_patient", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_shard(patients, tmp_path / "0", SETTINGS, workers=1)
    assert not (tmp_path / "0").exists()
    monkeypatch.setattr(hcm_helpers.slices, "slice_patient", lambda p, s: computed.append(p) or real(p, s))
    prepare_shard(patients, tmp_path / "0", SETTINGS, workers=1)
    assert computed == patients[3:]
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


# --- read like a tensor


def numbered(tmp_path, on_disk=True):
    """Ten rows, the first number of which is their own; of three patients in two files, with gaps."""
    files = [np.full((8, 1, 4, 4), -1.0, np.float32) for _ in range(2)]
    for rows, (file, first) in (((0, 1, 2), (1, 5)), ((3, 4, 5, 6), (0, 1)), ((7, 8, 9), (1, 0))):
        files[file][first : first + len(rows), 0, 0, 0] = rows
    return Stack(files, np.array([1, 0, 1]), np.array([5, 1, 0]), np.array([3, 4, 3]))


def test_a_stack_is_read_as_the_tensor_would_be(tmp_path):
    stack = numbered(tmp_path)
    whole = torch.arange(10.0)
    mask = torch.tensor([True, False] * 5)
    wanted = (
        slice(None),
        slice(2, 8, 3),
        slice(-2, None),
        torch.tensor([9, 0, 3, 3, -1]),
        mask,
        torch.tensor([[1], [7]]),
    )
    for rows in wanted:
        assert torch.equal(stack[rows][..., 0, 0, 0], whole[rows])
    assert (stack[3].shape, stack[3][0, 0, 0], stack[-1][0, 0, 0]) == ((1, 4, 4), 3, 9)
    assert [int(image[0, 0, 0]) for image in stack] == list(range(10))
    assert (stack.shape, len(stack), stack.nbytes) == ((10, 1, 4, 4), 10, 10 * 16 * 4)
    labels = Labels(stack, np.array([4, 0, 2]))
    assert labels[torch.tensor([9, 2, 3])].tolist() == [2, 4, 0]
    for rows in (10, -11, torch.tensor([0, 10])):
        with pytest.raises(IndexError):
            stack[rows]


def test_exactly_what_comes_next_is_read_ahead(sharded, on_disk, monkeypatch):
    """What lies side by side in one piece; two windows before the first batch, in the end everything."""
    asked = []
    monkeypatch.setattr(
        "os.posix_fadvise", lambda file, start, size, advice: asked.append((start, size)), raising=False
    )
    images, size = load_slices(sharded).images, 32 * 32 * 4
    images.read_ahead(torch.tensor([0, 1, 2, 3, 20, 21]))
    index = load_slices(sharded).index
    rows = (index["first"][0], index["first"][2] + 4)  # of eight slices a patient
    assert sorted(asked) == [(128 + row * size, count * size) for row, count in zip(rows, (4, 2), strict=True)]
    asked.clear()
    found = batches(new_order(len(images), 8), images, 4, 0, 8, window=2)
    next(found)
    assert sum(count for _, count in asked) == 2 * 2 * 8 * size
    assert len(list(found)) == len(images) // 4 - 1
    assert sum(count for _, count in asked) == images.nbytes


def test_training_reads_from_the_shards(prepared, sharded, on_disk, tmp_path, monkeypatch):
    """Given the same order, the weights of a training from shards are those of a training in memory."""
    monkeypatch.setattr(hcm_helpers.training, "BLOCK", 1)
    weights = []
    for name, folder in (("one", prepared), ("many", sharded)):
        torch.manual_seed(0)
        train, validation = (load_slices(folder, split) for split in ("train", "validation"))
        fit(VAE(32, latent_dim=4, width=8), train, validation, tmp_path / name, epochs=2, batch_size=8)
        weights.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert isinstance(train.images, Stack)
    assert "manifest" not in vars(train)  # it was not needed
    assert weights[0] == weights[1]


def test_a_training_from_shards_goes_on(sharded, on_disk, tmp_path):
    """Cut off after an epoch, it ends as if nothing had happened: the order stands in the checkpoint."""
    train, validation = (load_slices(sharded, split) for split in ("train", "validation"))
    for name, calls in (("whole", (3,)), ("parts", (1, 3))):
        torch.manual_seed(0)
        model = VAE(32, latent_dim=4, width=8)
        for epochs in calls:
            fit(model, train, validation, tmp_path / name, epochs=epochs, batch_size=8, resume=True)
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "parts"))
    assert first == second


# --- the order of an epoch


@pytest.mark.parametrize(
    ("n", "batch_size", "block", "window"), [(1000, 7, 8, 5), (1000, 32, 1, 5), (33, 4, 32, 1), (5, 2, 8, 9)]
)
def test_each_slice_once_an_epoch(n, batch_size, block, window):
    order = new_order(n, block)
    found = list(batches(order, range(n), batch_size, 0, block, window))
    rows = torch.cat(found)
    assert {len(batch) for batch in found} == {batch_size}
    assert len(rows) == n // batch_size * batch_size == len(rows.unique())
    assert (rows.min() >= 0) & (rows.max() < n)
    for taken in range(0, len(found) + 1, 3):
        rest = list(batches(order, range(n), batch_size, taken, block, window))
        assert torch.equal(torch.cat([*found[:taken], *rest]), rows)
    assert not torch.equal(torch.cat(list(batches(new_order(n, block), range(n), batch_size, 0, block, window))), rows)


def test_slices_in_memory_keep_the_order_that_they_had():
    torch.manual_seed(5)
    order = new_order(100)
    torch.manual_seed(5)
    assert torch.equal(order, torch.randperm(100))
    assert torch.equal(torch.cat(list(batches(order, range(100), 10))), order)


def test_a_window_is_all_that_is_read_at_once():
    """The slices of 4 blocks of 8 come before those of the next 4."""
    n, block, window = 320, 8, 4
    order = new_order(n, block)
    rows = torch.cat(list(batches(order, range(n), 16, 0, block, window)))
    for k, part in enumerate(rows.split(block * window)):
        assert set((part // block).tolist()) == set(order[:-1][k * window : (k + 1) * window].tolist())
        assert (part[1:] == part[:-1] + 1).float().mean() < 0.2  # and they are shuffled


def test_unevenness_is_1_in_the_mean_over_all_permutations():
    """Two patients of two slices, in batches of two: of the three divisions one is uneven."""
    divisions = [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]]
    found = [unevenness(map(torch.tensor, division), torch.tensor([0, 0, 1, 1])) for division in divisions]
    assert found == pytest.approx([3, 0, 0])


def test_unevenness_of_known_orders():
    """400 patients of 500 slices each: one patient a batch, all at random, and ours in blocks."""
    torch.manual_seed(0)
    n, size = 200_000, 32
    patients = torch.arange(n) // 500
    assert unevenness(torch.arange(n).split(500), patients) == pytest.approx(500, rel=0.01)
    assert unevenness(torch.randperm(n).split(size), patients) == pytest.approx(1, abs=0.01)
    # Two slices of a batch are of one block with the probability 31 / (32 · 1024 − 1), and there are 31 others.
    ours = unevenness(batches(new_order(n, BLOCK), range(n), size, 0, BLOCK), patients)
    assert ours == pytest.approx(1 + 31 * 31 / (32 * 1024 - 1), abs=0.01)
    large = unevenness(batches(new_order(n, BLOCK), range(n), 512, 0, BLOCK), patients)
    assert large == pytest.approx(1 + 511 * 31 / (32 * 4 * 512 - 1), abs=0.05)
    narrow = unevenness(batches(new_order(n, BLOCK), range(n), size, 0, BLOCK, window=16), patients)
    assert narrow == pytest.approx(1 + 31 * 31 / (32 * 16 - 1), rel=0.03)
    assert (
        unevenness(batches(torch.arange(n // BLOCK + 1), range(n), size, 0, BLOCK), patients) > 1.4
    )  # 66 patients a window


# --- what is refused


def test_shards_that_do_not_fit_each_other(root, sharded, tmp_path):
    patients, shards = find_patients(root), [sharded.parent / f"shards/{chunk}" for chunk in range(4)]
    with pytest.raises(DataError, match="no shards cannot be gathered"):
        gather([], tmp_path / "slices")
    with pytest.raises(DataError, match="no patients given for this shard; choose fewer chunks"):
        prepare_shard([], tmp_path / "0", SETTINGS)
    prepare_shard(patients[:2], tmp_path / "other", Settings(64))
    with pytest.raises(DataError, match="prepare all shards with the same settings"):
        gather([shards[0], tmp_path / "other"], tmp_path / "slices")
    prepare_shard(patients[:1], tmp_path / "again", SETTINGS)
    with pytest.raises(DataError, match="has the same name"):
        gather([shards[0], tmp_path / "again"], tmp_path / "slices")
    assert not (tmp_path / "slices").exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="other files than slices"):
        gather(shards, tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"parts": [{"patient": {"name": 1}}]}', b'{"parts": 3}'])
def test_a_broken_shard_json(copied, content):
    path = copied.parent / "shards/1/shard.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard.json is broken .*prepare this shard again"):
        gather([path.parent], copied)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("slices/patients.csv", b"patient\nx\n", "has no column group"),
        ("slices/slices.json", b"{}", "has no fingerprint"),
        ("shards/2/images.npy", PICKLE, "no plain numbers"),
        ("shards/2/images.npy", npy(np.zeros((99, 1, 32, 32))), "do not fit each other"),
        ("shards/2/images.npy", npy(np.zeros((3, 1, 32, 32), np.float32)), "do not fit each other"),
        ("shards/2/masks.npy", npy(np.zeros((99, 32, 31), np.uint8)), "do not fit each other"),
        ("shards/2/manifest.csv", b"", "cannot be read"),
        ("shards/2/images.npy", None, "there is no shard in"),
    ],
)
def test_broken_shards_are_refused(copied, name, content, words):
    path = copied.parent / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"run notebook 01 again$") as error:
        load_slices(copied)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",HCM,", ",HCMX,", "group is 'HCMX'"),
        (",0,8\n", ",-1,8\n", "first is '-1'"),
        (",0,8\n", ",0,0\n", "slices is '0'"),
        (",0,8\n", ",1,8\n", "does not fit the shards' manifest"),
        (",0,8\n", f",{10**12},8\n", "do not fit each other"),
    ],
)
def test_a_wrong_value_in_the_index_is_named(copied, old, new, words):
    path = copied / "patients.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match="run notebook 01 again") as error:
        load_slices(copied)
    assert words in str(error.value)
