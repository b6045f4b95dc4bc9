"""What a training leaves behind: weights, samples and no half-written file; forged ones are refused in a sentence."""

import numpy as np
import pytest
import torch
from forged import OBJECTS, PICKLE, npz, safetensors
from test_training import Counter, gan, train
from torch import Tensor, nn

from hcm_helpers.acdc import DataError
from hcm_helpers.models.gan import GAN
from hcm_helpers.training import (
    generate,
    load_masks,
    load_samples,
    load_snapshots,
    load_weights,
    save_samples,
    save_weights,
    write_run_json,
)


def test_no_half_written_file_stays(tmp_path):
    model = gan()
    train(model, tmp_path, n=16, batch_size=8, epochs=1)
    save_samples(generate(model, 4), tmp_path)
    write_run_json(tmp_path, seed=0)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["checkpoint/last.safetensors", "history.csv", "run.json", "samples.npz", "weights.safetensors"]


def test_generate_is_the_same_for_the_same_seed_in_any_mode():
    model = gan().train()
    images = generate(model, 25, seed=1, batch_size=10)
    assert images.shape == (25, 1, 32, 32)
    assert images.dtype == torch.float32
    assert model.training
    assert torch.equal(images, generate(model.eval(), 25, seed=1, batch_size=10))
    assert not model.training
    assert not torch.equal(images, generate(model, 25, seed=2, batch_size=10))
    assert len({image.numpy().tobytes() for image in images}) == 25  # no batch repeats another


def test_generate_hands_each_image_its_label():
    class Labelled(nn.Module):
        def sample(self, n: int, labels: Tensor, generator=None) -> Tensor:
            return labels.float().view(n, 1, 1, 1).expand(n, 1, 32, 32)

    labels = torch.arange(25) % 5
    assert torch.equal(generate(Labelled(), 25, labels, batch_size=10)[:, 0, 0, 0], labels.float())


@pytest.mark.parametrize("labels", [None, torch.tensor([3, 0, 4])])
def test_samples_come_back_as_they_went(tmp_path, labels):
    images = torch.rand(3, 1, 32, 32)
    save_samples(images, tmp_path, labels)
    back, groups = load_samples(tmp_path)
    assert torch.equal(back, images)
    assert groups.tolist() == ([-1, -1, -1] if labels is None else labels.tolist())
    assert groups.dtype == torch.int64


def test_weights_come_back_as_they_went(tmp_path):
    model, other = gan(), GAN(32, latent_dim=8, width=8)
    save_weights(model, tmp_path)
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("weights.safetensors", "plain")]
    assert modes[0] == modes[1]  # whoever may read the folder's other files may read the weights
    assert load_weights(other, tmp_path) is other
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_missing_files_are_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"weights.safetensors is missing: train this model first"):
        load_weights(gan(), tmp_path)
    with pytest.raises(DataError, match=r"samples.npz is missing: run the notebook"):
        load_samples(tmp_path)


@pytest.mark.parametrize("other", [GAN(32, latent_dim=9, width=8), Counter()])
def test_weights_of_another_network_are_refused_in_one_sentence(tmp_path, other):
    save_weights(gan(), tmp_path)
    with pytest.raises(DataError, match=r"weights.safetensors holds weights of another network") as caught:
        load_weights(other, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_weights_file_is_refused_in_one_sentence(tmp_path):
    save_weights(gan(), tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"weights.safetensors .*train"):
        load_weights(gan(), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        PICKLE,  # what torch.load would run
        safetensors({}, length=2**63),
        safetensors({}, length=10**8),
        safetensors(b"[" * 10**5),
        safetensors({"x": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 1]}}),
        safetensors({"x": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, bytes(16)),
        safetensors({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(8)),
        safetensors({"x": {"dtype": "object", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors({"a\n\x1b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors({"a" * 10**5: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors({"a": {"dtype": "F32", "shape": [1] * 10**4, "data_offsets": [0, 4]}}, bytes(4)),
    ],
    ids=["pickle", "endless", "long", "deep", "huge", "backwards", "short", "objects", "signs", "name", "shape"],
)
def test_a_forged_weights_file_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"weights.safetensors (is broken|holds weights of another network)") as error:
        load_weights(gan(), tmp_path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def forged_samples(**changes):
    arrays = {"images": np.zeros((3, 1, 32, 32), np.float32), "labels": np.zeros(3, np.int64)} | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    "content",
    [
        PICKLE,
        npz(**forged_samples(labels=OBJECTS)),
        npz(compressed=True, **forged_samples()),  # which may be a bomb
        npz(**forged_samples(images=None)),
        npz(**forged_samples(images=np.zeros((3, 1, 32, 32)))),
        npz(**forged_samples(labels=np.zeros(2, np.int64))),
        npz(**forged_samples(masks=np.zeros((3, 32), np.uint8))),
        npz(**forged_samples(more=np.zeros(3, np.uint8))),
        npz(**forged_samples())[:-100],
        npz(**forged_samples()).replace(b"PK\1\2\x2d\3\x2d\0\0\0", b"PK\1\2\x2d\3\x2d\0\1\0"),  # encrypted
        npz(**forged_samples()).replace(b"(3, 1, 32, 32)", b"(999999999, 1)"),
        npz(**forged_samples()).replace(b"'<f4'", b"'|O4'"),
        b"",
    ],
    ids=[
        "pickle",
        "objects",
        "packed",
        "lacking",
        "double",
        "short",
        "flat",
        "more",
        "cut",
        "locked",
        "huge",
        "renamed",
        "empty",
    ],
)
def test_forged_samples_are_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "samples.npz").write_bytes(content)
    for read in (load_samples, load_masks):
        with pytest.raises(DataError, match=r"samples.npz is broken .*: run the notebook of this model again") as error:
            read(tmp_path)
        assert str(error.value).isprintable()
    (tmp_path / "snapshots.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"snapshots.npz is broken .*: train this model with num_snapshots above 0"):
        load_snapshots(tmp_path)
