"""What a run needs, against what a file holds and against a disk that is nearly full."""

import shutil
from collections import namedtuple

import pytest

from hcm_helpers import needs
from hcm_helpers.acdc import DataError
from hcm_helpers.models.gan import GAN
from hcm_helpers.models.layers import count_parameters

GAN_PARAMETERS = {"03_gan": {"latent_dim": 64, "width": 128, "ema_decay": 0.99, "num_samples": 1000}}


def test_disk_of_a_model_is_samples_weights_and_two_checkpoints():
    weights = 4 * count_parameters(GAN(64, latent_dim=64, width=128))
    expected = 30e6 + 1000 * 64 * 64 * 4 + weights * (1 + 2 * 4)  # model, average and Adam's two moments, old and new
    assert needs.disk(GAN_PARAMETERS, 100, 64) == pytest.approx(expected)
    more = {"03_gan": GAN_PARAMETERS["03_gan"] | {"num_samples": 2000}}
    assert needs.disk(more, 100, 64) - needs.disk(GAN_PARAMETERS, 100, 64) == 1000 * 64 * 64 * 4


def test_slices_grow_with_patients_and_with_the_square_of_the_side():
    one = needs.disk({"01_data_preparation": {}}, 100, 64) - 30e6
    assert one == 2 * 100 * 20 * 64 * 64 * 5
    assert needs.disk({"01_data_preparation": {}}, 100, 128) - 30e6 == 4 * one


def test_a_disk_that_is_too_small_is_told_before_the_start(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    said = []
    (tmp_path / "a" / "slices").mkdir(parents=True)
    (tmp_path / "a" / "slices" / "slices.json").write_text('{"image_size": 64}')
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(DataError, match=r"needs about 0\.2 GB and its disk has 0\.0 GB free: make room"):
        needs.check(tmp_path / "a", GAN_PARAMETERS, 1, said.append)
    assert not said
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
    needs.check(tmp_path / "a", GAN_PARAMETERS, 1, said.append)
    assert said[0].startswith("needs     about disk 0.2 of 1000 GB free, memory 0.9 of ")
    monkeypatch.setattr(needs, "available_memory", lambda: 1e8)
    needs.check(tmp_path / "a", GAN_PARAMETERS, 1, said.append)
    assert said[1].endswith("it may run out: try fewer --jobs")
