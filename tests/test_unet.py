"""The U-Net: its sizes, what it is told, and features that keep their size."""

import math

import pytest
import torch
from awake import awake

from hcm_helpers.models import diffusion
from hcm_helpers.models.diffusion import (
    Conditions,
    UNet,
    sinusoids,
)


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_unet_returns_the_size_it_was_given_and_predicts_0_at_first(image_size):
    network = UNet(image_size, width=8)
    out = network(torch.randn(2, 1, image_size, image_size), torch.tensor([1, 1000]))
    assert out.shape == (2, 1, image_size, image_size)
    assert not out.any()  # the last layer starts at zero, so that the first loss is E ε² = 1


def test_unet_goes_down_to_8_by_8_where_attention_sits():
    seen = []
    network = UNet(64, width=8)
    network.attention.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    network(torch.zeros(2, 1, 64, 64), torch.tensor([1, 1]))
    assert seen == [(2, 16, 8, 8)]


def test_noise_conditions_and_amounts_change_what_the_network_says():
    network = awake(UNet(32, width=8, num_classes=5))
    x = torch.randn(1, 1, 32, 32)

    def out(noise=10.0, group=3.0, phase=1.0, position=0.5, amount=0.0) -> torch.Tensor:
        return network(x, torch.tensor([noise]), torch.tensor([[group, phase, position]]), torch.full((1, 5), amount))

    assert torch.equal(out(), out())
    changes = ({"noise": 11.0}, {"group": 0.0}, {"phase": 0.0}, {"position": 0.6}, {"amount": 0.5})
    for change in changes:
        assert (out(**change) - out()).abs().max() > 1e-4, change


def test_what_is_not_known_adds_nothing():
    conditions = Conditions(5, 16)
    nothing, everything = torch.full((1, 3), -1.0), torch.tensor([[2.0, 1.0, 0.25]])
    assert not conditions(nothing).any()
    alone = [torch.where(torch.arange(3) == i, everything, nothing) for i in range(3)]
    torch.testing.assert_close(sum(conditions(part) for part in alone), conditions(everything))
    assert all(conditions(part).any() for part in alone)


def test_sinusoids_of_a_time():
    expected = [math.sin(7), math.sin(0.07), math.cos(7), math.cos(0.07)]  # frequencies 1 and 10000^(−1/2)
    torch.testing.assert_close(sinusoids(torch.tensor([7]), 4), torch.tensor([expected]))


def test_active_is_the_size_of_the_nonlinearity_by_quadrature():
    x = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    mean_square = torch.trapezoid(torch.nn.functional.hardswish(x) ** 2 * density, x)
    assert mean_square.sqrt().item() == pytest.approx(diffusion.ACTIVE, abs=1e-4)


def test_filters_keep_their_length_through_training_and_outputs_their_size():
    torch.manual_seed(0)
    layer = diffusion.Conv(16, 64, gain=2.0)
    x = torch.randn(8, 16, 32, 32)
    inner = layer(x)[..., 1:-1, 1:-1]  # at the border a filter sees zeros
    assert inner.std().item() == pytest.approx(2.0, rel=0.05)
    with torch.no_grad():
        layer.weight.mul_(3.0)
    tripled = layer.eval()(x)
    assert torch.allclose(layer.train()(x), tripled / 3, atol=1e-4)
    assert torch.allclose(layer.weight.flatten(1).norm(dim=1), torch.full((64,), 2.0))


def test_features_keep_their_size_through_the_untrained_network():
    torch.manual_seed(0)
    network, sizes = UNet(64, width=32).eval(), []
    for module in network.modules():
        if isinstance(module, diffusion.ResidualBlock):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.std().item()))
    network(torch.randn(8, 1, 64, 64), torch.full((8,), 100.0))
    assert len(sizes) == 13
    assert min(sizes) > 0.8
    assert max(sizes) < 1.2


def test_dropout_takes_whole_channels_and_only_in_training():
    torch.manual_seed(0)
    block, seen = diffusion.ResidualBlock(16, 16, 8, dropout=0.5), []
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, embedding = torch.randn(8, 16, 16, 16), torch.randn(8, 8)
    block.train()(x, embedding)
    dropped = (seen[0] == 0).float().mean(dim=(2, 3))  # of each channel, the share of zeros
    whole = (dropped == 1).float().mean().item()
    assert whole == pytest.approx(0.5, abs=0.15)
    assert ((dropped == 1) | (dropped < 0.5)).all()
    block.eval()(x, embedding)
    assert (seen[1] == 0).float().mean() < 0.1
