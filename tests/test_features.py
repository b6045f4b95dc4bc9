"""The encoder knows hearts; what is degraded, asked and answered; Inception and its bytes."""

import pytest
import torch
from rings import ring_slices
from torchmetrics.image.fid import FrechetInceptionDistance

from hcm_helpers import features
from hcm_helpers.acdc import DataError
from hcm_helpers.features import Encoder, accuracy, degrade, recognise, with_targets
from hcm_helpers.fidelity import frechet_distance


def edges(images):
    """The mean step from a pixel to the next but one on its right, which noise moves less than the next."""
    return (images[..., 2:] - images[..., :-2]).abs().mean((1, 2, 3))


def test_the_encoder_knows_hearts_that_it_has_not_seen(encoder):
    found = accuracy(encoder, ring_slices(range(70, 90)))
    assert (found["slices"], found["patients"]) == (200, 20)
    assert found["group"] > 0.35  # five groups: by chance 0.2
    assert found["phase"] > 0.6
    assert found["position"] < 0.27  # 0.3 for whoever says 0.5


def test_accuracy_counts_right_answers(monkeypatch):
    slices = ring_slices(range(5))
    answer = torch.zeros(len(slices), 9)
    answer[:, 2], answer[:, 5], answer[:, 6] = 1, 1, 0  # always DCM, end-systole, half way
    model = Encoder(32, 8)
    monkeypatch.setattr(model.heads, "forward", lambda features: answer)
    found = accuracy(model, slices)
    assert found["group"] == pytest.approx(0.2)
    assert found["phase"] == pytest.approx(0.5)
    assert found["position"] == pytest.approx((0.5 + 0.25 + 0 + 0.25 + 0.5) / 5)


def test_targets_are_group_phase_and_position():
    slices = ring_slices(range(5))
    slices.manifest.loc[3, "phase"] = "-"  # a frame between
    targets = with_targets(slices)
    assert len(targets) == len(slices) - 1 == len(targets.manifest) == len(targets.masks)
    assert torch.equal(targets.images[3], slices.images[4])
    assert targets.labels[[0, 3, 8, -1]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [4, 1, 1]]


@pytest.mark.parametrize("size", [32, 64, 128])
def test_features_are_the_same_in_any_batch_and_fit_torchmetrics(size):
    torch.manual_seed(0)
    model = Encoder(size, 8).train()
    images = torch.rand(12, 1, size, size) * 2 - 1
    features = model.features(images)
    assert features.shape == (12, model.num_features)
    assert model.training
    assert torch.allclose(features, model.features(images, batch_size=5), atol=1e-5)
    metric = FrechetInceptionDistance(model.eval(), normalize=True)
    with torch.no_grad():
        metric.update(images[:10], real=True)
        metric.update(images[2:].flip(3), real=False)
    expected = frechet_distance(features[:10], model.features(images[2:].flip(3)))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-3)


def test_degraded_images_differ_by_their_amounts():
    images = ring_slices(range(20)).images
    changed, amounts = degrade(images, torch.Generator().manual_seed(0))
    untouched = (amounts == 0).all(dim=1)
    assert untouched.float().mean() == pytest.approx(0.5, abs=0.15)
    assert torch.equal(changed[untouched], images[untouched])
    assert changed.abs().max() <= 1
    change = (changed - images).flatten(1).std(dim=1)
    heavy = amounts[:, 1] > 0.7
    assert change[heavy].min() > change[untouched].max()
    smooth = (amounts[:, 0] > 0.7) & (amounts[:, 1] < 0.2)
    assert smooth.any()
    assert (edges(changed[smooth]) < 0.9 * edges(images[smooth])).all()


def test_inception_says_what_it_needs(monkeypatch):
    def refuse(*arguments):
        raise ModuleNotFoundError

    monkeypatch.setattr(features, "NoTrainInceptionV3", refuse)
    with pytest.raises(DataError, match="pip install torch-fidelity"):
        features.Inception()

    def offline(*arguments):
        raise OSError("no route to host")

    monkeypatch.setattr(features, "NoTrainInceptionV3", offline)
    with pytest.raises(DataError, match="no route to host"):
        features.Inception()


def test_inception_is_shown_three_channels_of_bytes(monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self, name, layers):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            assert layers == ["2048"]

        def forward(self, x):
            assert x.dtype == torch.uint8
            return x.flatten(1)[:, :2048].float()

    monkeypatch.setattr(features, "NoTrainInceptionV3", Network)
    images = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    found = features.Inception().features(images)
    assert found.shape == (1, 2048)
    assert found[0, [0, 1023, 1024]].tolist() == [0, 255, 0]


def test_each_image_is_recognised_by_its_largest_logit(monkeypatch):
    model = Encoder(32, 8)
    answer = torch.zeros(3, 9)
    answer[0, 4], answer[1, 0], answer[2, 3], answer[:, 5:] = 1, 2, 3, 9  # phase, position and the rest are no groups
    monkeypatch.setattr(model.heads, "forward", lambda features: answer)
    assert recognise(model, torch.zeros(3, 1, 32, 32)).tolist() == [4, 0, 3]
