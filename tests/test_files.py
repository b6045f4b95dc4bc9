"""What is on a disk that is full, read-only or gone stays whole, and one sentence says so."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from test_training import slices

from hcm_helpers.acdc import DataError
from hcm_helpers.checkpoint import load_state, save_state
from hcm_helpers.files import write_whole
from hcm_helpers.models.gan import GAN
from hcm_helpers.training import fit, load_checkpoint, load_weights


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MiB, where the system lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("no small disk: mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(folder, epochs: int, width: int = 8) -> None:
    torch.manual_seed(0)
    fit(GAN(32, width=width), slices(16), slices(8), folder, epochs=epochs, batch_size=8, seed=0, resume=True)


def test_a_full_disk_takes_nothing_away(small_disk):
    train(small_disk / "gan", 1)
    before = content(small_disk)
    (small_disk / "ballast").write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 50_000))
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): make room on its disk"):
        train(small_disk / "gan", 3)
    (small_disk / "ballast").unlink()
    assert content(small_disk).keys() == before.keys()
    assert load_checkpoint(small_disk / "gan")["steps"] == 2
    load_weights(GAN(32, width=8), small_disk / "gan")
    train(small_disk / "gan", 3)
    assert load_checkpoint(small_disk / "gan")["steps"] == 6


def test_a_read_only_disk_is_told(small_disk):
    (small_disk / "a").write_text("old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DataError, match=r"a cannot be written \(Read-only file system\): choose a folder"):
        write_whole(small_disk / "a", lambda path: path.write_text("new"))
    assert (small_disk / "a").read_text() == "old"


def test_a_folder_that_has_gone_is_told(tmp_path):
    with pytest.raises(DataError, match=r"b cannot be written \(No such file or directory\): its folder has gone"):
        write_whole(tmp_path / "a" / "b", lambda path: path.write_text("new"))


def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    def half(path):
        path.write_text("ne")
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    with pytest.raises(DataError, match="No space left"):
        write_whole(tmp_path / "a", half)
    assert content(tmp_path) == {"a": b"old"}


def test_a_state_comes_back_as_it_was(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "groups": [{"lr": 1e-3, "betas": [0.5, 0.999], "params": [0, 1]}],
        "state": {0: {"step": torch.tensor(3.0), "average": shared.t()}, 1: {}},
        "again": shared,
        "none": None,
        "best": float("inf"),
        "exact": 0.1 + 0.2,
        "rng": torch.get_rng_state(),
    }
    save_state(state, tmp_path / "a.safetensors")
    back = load_state(tmp_path / "a.safetensors")
    assert back["state"].keys() == {0, 1}
    assert torch.equal(back["state"][0]["average"], shared.t())
    assert torch.equal(back["rng"], state["rng"])
    assert (back["groups"], back["none"], back["best"], back["exact"]) == (
        state["groups"],
        None,
        np.inf,
        state["exact"],
    )


@pytest.mark.parametrize("harm", [lambda b: b[:-5], lambda b: b"\xff" * 8 + b[8:], lambda b: b"", lambda b: b[:40]])
def test_a_broken_checkpoint_is_told(tmp_path, harm):
    path = tmp_path / "a.safetensors"
    save_state({"steps": 3, "x": torch.ones(4)}, path)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match="is broken"):
        load_state(path)
