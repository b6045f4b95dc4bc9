"""DCGAN: the three rules of section 2.1.3, shapes at every size, and players that leave each other alone."""

import pytest
import torch
from torch import nn

from hcm_helpers.acdc import DataError
from hcm_helpers.devices import make_fabric
from hcm_helpers.models import dcgan
from hcm_helpers.models.layers import Batch, count_parameters
from hcm_helpers.parallel import take_step
from hcm_helpers.training import generate

SIZES = (32, 64, 128, 256)


def small(image_size=32, **settings):
    torch.manual_seed(0)
    return dcgan.DCGAN(image_size, latent_dim=10, width=8, **settings)


def batch(n=6, image_size=32):
    images = torch.rand(n, 1, image_size, image_size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, torch.full((n,), 3))


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def unchanged(before, module):
    return all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("image_size", SIZES)
def test_shapes(image_size):
    model = small(image_size)
    images = model.sample(2)
    assert images.shape == (2, 1, image_size, image_size)
    assert images.abs().max() <= 1
    assert model.discriminator(images).shape == (2,)


@pytest.mark.parametrize("image_size", SIZES)
def test_each_layer_of_the_generator_doubles_the_picture_from_4_by_4(image_size):
    sides = []
    model = small(image_size)
    for layer in model.generator.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda layer, inputs, output: sides.append(output.shape[-1]))
    model.sample(2)
    assert sides == [4 * 2**i for i in range(len(sides))]
    assert sides[-1] == image_size


def test_other_sizes_are_refused():
    with pytest.raises(DataError, match="image_size=50"):
        dcgan.DCGAN(50)


@pytest.mark.parametrize("image_size", SIZES)
def test_rule_1_no_pooling_and_no_dense_hidden_layer(image_size):
    model = small(image_size)
    names = [type(layer).__name__ for layer in model.modules()]
    assert not [name for name in names if "Pool" in name or "Upsample" in name]
    assert not [layer for layer in model.generator.modules() if isinstance(layer, nn.Linear)]
    dense = [layer for layer in model.discriminator.modules() if isinstance(layer, nn.Linear)]
    assert all(layer.out_features == 1 for layer in dense), "the only dense layer gives the logit"
    strides = [c.stride for c in model.discriminator.modules() if isinstance(c, nn.Conv2d)]
    assert len(strides) >= 3
    assert set(strides) == {(2, 2)}


@pytest.mark.parametrize("image_size", SIZES)
def test_rule_2_relu_in_the_generator_and_leaky_relu_in_the_discriminator(image_size):
    model = small(image_size)

    def activations(network):
        kinds = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Tanh, nn.Sigmoid)
        return [type(layer) for layer in network.modules() if isinstance(layer, kinds)]

    *hidden, last = activations(model.generator)
    assert last is nn.Tanh
    assert set(hidden) == {nn.ReLU}
    assert set(activations(model.discriminator)) == {nn.LeakyReLU}


def test_rule_3_batch_normalisation_in_both():
    model = small()
    for network in (model.generator, model.discriminator):
        assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) >= 2
    first = next(i for i, k in enumerate(model.discriminator.modules()) if isinstance(k, nn.Conv2d))
    after = list(model.discriminator.modules())[first + 1]
    assert not isinstance(after, nn.BatchNorm2d), "D sees the brightness of the picture as it is"


def test_number_of_parameters_by_hand():
    # channels 10 → 32 → 16 → 8 → 1 by kernels of 4×4, a bias at the end, two numbers a normalised channel
    generator = 10 * 32 * 16 + 32 * 16 * 16 + 16 * 8 * 16 + 8 * 16 + 1 + 2 * (32 + 16 + 8)
    assert count_parameters(small().generator) == generator


def test_same_seed_gives_the_same_images_and_another_seed_others():
    model = small()
    assert torch.equal(generate(model, 5, seed=0), generate(model, 5, seed=0))
    images, again, others = (model.sample(5, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(images, again)
    assert not torch.equal(images, others)
    assert not torch.equal(images[0], images[1])


class Watched:
    """An optimizer that notes which weights of both networks its step changed."""

    def __init__(self, optimizer, model):
        self.optimizer, self.model, self.moved = optimizer, model, None

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self):
        networks = {"generator": self.model.generator, "discriminator": self.model.discriminator}
        before = {name: weights(network) for name, network in networks.items()}
        self.optimizer.step()
        self.moved = {name for name, network in networks.items() if not unchanged(before[name], network)}


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_penalty": 1.0}, {"augment": False}, {"loss": "hinge", "spectral_norm": True}],
)
def test_each_player_moves_only_its_own_weights(settings):
    model = small(**settings)
    optimizers = {name: Watched(optimizer, model) for name, optimizer in model.optimizers(2e-4, (0.5, 0.999)).items()}
    losses = take_step(model, batch(), optimizers, make_fabric())
    assert {name: optimizer.moved for name, optimizer in optimizers.items()} == {
        "generator": {"generator"},
        "discriminator": {"discriminator"},
    }
    assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values())


class AlwaysSays(nn.Module):
    """A discriminator that gives every picture the same logit, by way of it, so that G gets a gradient."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(float(logit)))

    def forward(self, x):
        return self.logit + 0 * x.mean(dim=(1, 2, 3))


def test_losses_against_equation_5_by_hand():
    model = small(label_smoothing=0.1, augment=False)
    model.discriminator = AlwaysSays(0.0)  # D(x) = 1/2 for whatever it sees
    optimizers = model.optimizers(0.0, (0.5, 0.999))
    losses = take_step(model, batch(), optimizers, make_fabric())
    assert losses["discriminator"].item() == pytest.approx(2 * 0.693147, abs=1e-4)  # −log ½ twice
    assert losses["generator"].item() == pytest.approx(0.693147, abs=1e-4)

    model.discriminator = AlwaysSays(2.0)  # D(x) = 1/(1 + e⁻²) = 0.880797
    losses = take_step(model, batch(), model.optimizers(0.0, (0.5, 0.999)), make_fabric())
    real, fake = 0.9 * 0.126928 + 0.1 * 2.126928, 2.126928
    assert losses["discriminator"].item() == pytest.approx(real + fake, abs=1e-3)
    assert losses["generator"].item() == pytest.approx(0.126928, abs=1e-3)


def test_losses_of_the_hinge_by_hand():
    model = small(loss="hinge", augment=False)
    model.discriminator = AlwaysSays(0.25)
    losses = take_step(model, batch(), model.optimizers(0.0, (0.5, 0.999)), make_fabric())
    assert losses["discriminator"].item() == pytest.approx(0.75 + 1.25, abs=1e-4)
    assert losses["generator"].item() == pytest.approx(-0.25, abs=1e-4)
