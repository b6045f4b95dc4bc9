"""Images together with their masks."""

import pytest
import torch

from hcm_helpers.models.diffusion import (
    Diffusion,
    split_masks,
    with_mask_channels,
)
from hcm_helpers.models.layers import Batch
from hcm_helpers.phantom import write_phantom
from hcm_helpers.slices import prepare


def test_image_and_mask_count_alike_in_the_loss(generator):
    """The untrained network says 0, so a channel's loss is the mean square of its target: 1 for N(0, σ_data²)."""
    model = Diffusion(32, width=8, sigma_data=0.5, with_masks=True)
    x = 0.5 * torch.randn(200, 4, 32, 32, generator=generator)
    labels = torch.zeros(200, dtype=torch.long)
    assert model.validation_loss(Batch(x, labels), generator).item() == pytest.approx(1, abs=0.02)
    losses = []
    for channels in ([0], [1, 2, 3]):
        louder = x.clone()
        louder[:, channels] *= 3
        losses.append(model.validation_loss(Batch(louder, labels), torch.Generator().manual_seed(1)).item() - 1)
    assert losses[0] > 0.5
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_masks_go_into_channels_and_come_back(tmp_path):
    write_phantom(tmp_path / "phantom", 5)
    slices = prepare(tmp_path / "phantom", tmp_path / "slices", 32)
    slices.manifest.loc[[0, 3], "labelled"] = False
    both = with_mask_channels(slices)
    assert len(both) == len(slices) - 2
    assert both.images.shape[1] == 4
    images, masks = split_masks(both.images)
    kept = [i for i in range(len(slices)) if i not in (0, 3)]
    assert torch.equal(images, slices.images[kept])
    assert torch.equal(masks, slices.masks[kept])
    assert masks.dtype == torch.uint8
    assert torch.equal(both.labels, slices.labels[kept])
    assert both.manifest["patient"].tolist() == slices.manifest["patient"][kept].tolist()


def test_an_unsure_mask_is_background():
    channels = torch.tensor([0.9, -0.2, -0.1, -0.3, 0.9, 0.1, 0.3, -1.0]).reshape(2, 4, 1, 1)
    assert split_masks(channels)[1].flatten().tolist() == [0, 2]


def test_a_model_with_masks_draws_what_its_denoiser_knows():
    model = Diffusion(32, width=8, with_masks=True, sampling_steps=5)
    truth = torch.full((3, 4, 32, 32), -1.0)
    truth[:, 0], truth[:, 2, :16] = 0.3, 1.0
    model.denoise = lambda x, sigma, targets: truth
    images, masks = split_masks(model.sample_channels(3))
    torch.testing.assert_close(images, truth[:, :1])
    assert masks[:, :16].eq(2).all()
    assert not masks[:, 16:].any()
    torch.testing.assert_close(model.sample(3), images)
