"""The first GAN: losses and penalties with closed values, players that leave each other alone."""

import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from hcm_helpers.acdc import DataError
from hcm_helpers.models import gan
from hcm_helpers.models.layers import Batch, bce, count_parameters, r1_penalty
from hcm_helpers.parallel import take_step

FABRIC = Fabric(accelerator="cpu", devices=1)  # float32 on any machine


def small(image_size=32, **settings):
    torch.manual_seed(0)
    return gan.GAN(image_size, latent_dim=10, width=16, **settings)


def batch(n=6, image_size=32):
    images = torch.rand(n, 1, image_size, image_size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, torch.full((n,), 3))


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def moved(before, module):
    return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]


class Linear(nn.Module):
    """D(x) = w·x: its gradient is w wherever one looks."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return x.flatten(1) @ self.w


# The losses.


@pytest.mark.parametrize(
    ("logit", "target", "nats"),
    [
        (0.0, 1.0, math.log(2)),  # D says ½
        (0.0, 0.0, math.log(2)),
        (0.0, 0.9, math.log(2)),  # whatever the target
        (math.log(3), 1.0, math.log(4 / 3)),  # D says ¾
        (math.log(3), 0.0, math.log(4)),
        (math.log(3), 0.9, 0.9 * math.log(4 / 3) + 0.1 * math.log(4)),
        (200.0, 0.0, 200.0),  # no overflow, no log 0
    ],
)
def test_bce_has_closed_values(logit, target, nats):
    assert bce(torch.full((5,), logit), target).item() == pytest.approx(nats, rel=1e-5)


def test_bce_is_the_mean_of_logits_of_any_shape_and_precision():
    logits = torch.tensor([[0.0, math.log(3)]])
    assert bce(logits, 1.0).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, rel=1e-6)
    assert bce(torch.zeros(3, dtype=torch.bfloat16), 1.0).dtype == torch.float32


def test_smoothed_target_is_met_by_d_of_090_and_not_by_certainty():
    logits = torch.linspace(-4, 8, 1201)
    best = min(logits.tolist(), key=lambda logit: bce(torch.tensor([logit]), 0.9).item())
    assert torch.sigmoid(torch.tensor(best)).item() == pytest.approx(0.9, abs=0.005)


@pytest.mark.parametrize("w", [torch.ones(1024), torch.arange(1024) / 100, torch.zeros(1024)])
def test_r1_penalty_of_a_linear_discriminator_is_half_its_squared_norm(w):
    expected = 0.5 * w.square().sum().item()
    assert r1_penalty(Linear(w.float()), batch().images).item() == pytest.approx(expected)


def test_r1_penalty_is_a_mean_over_images_of_a_curved_discriminator():
    """D(x) = ½‖x‖² has the gradient x."""
    x = batch().images
    found = r1_penalty(lambda images: 0.5 * images.square().flatten(1).sum(1), x)
    expected = 0.5 * sum(image.square().sum().item() for image in x) / len(x)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_r1_penalty_can_be_learned_from():
    """Its gradient in w is w itself; the images are left without one."""
    w, x = torch.randn(1024), batch().images
    discriminator = Linear(w)
    r1_penalty(discriminator, x).backward()
    assert torch.allclose(discriminator.w.grad, w)
    assert x.grad is None
    assert not x.requires_grad


# The step.


@pytest.mark.parametrize("settings", [{}, {"gradient_penalty": 1.0}])
@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_each_step_moves_its_own_player_alone(player, settings):
    """The other one's learning rate is 0, so that what moves was moved by this player's step."""
    model = small(**settings)
    optimizers = model.optimizers(1e-3, (0.5, 0.999))
    other = {"generator": "discriminator", "discriminator": "generator"}[player]
    optimizers[other].param_groups[0]["lr"] = 0.0
    before = {name: weights(getattr(model, name)) for name in (player, other)}
    take_step(model, batch(), optimizers, FABRIC)
    assert all(moved(before[player], getattr(model, player)))
    assert not any(moved(before[other], getattr(model, other)))


def test_the_loss_of_d_sends_no_gradient_to_g():
    """When D steps, the weights of G have no gradient: to D, G(z) is a picture like any other."""
    model = small()
    seen = {}

    class Watched:
        """Notes, at the moment of its step, which weights of G hold a gradient."""

        def __init__(self, name):
            self.name = name

        def zero_grad(self, set_to_none=True):
            model.zero_grad(set_to_none=True)

        def step(self):
            seen[self.name] = [p.grad is not None for p in model.generator.parameters()]

    take_step(model, batch(), {name: Watched(name) for name in ("discriminator", "generator")}, FABRIC)
    assert not any(seen["discriminator"])
    assert all(seen["generator"])


@pytest.mark.parametrize(
    ("logit", "smoothing", "loss_d", "loss_g"),
    [
        (0.0, 0.1, 2 * math.log(2), math.log(2)),
        (math.log(3), 0.0, math.log(4 / 3) + math.log(4), math.log(4 / 3)),
        (math.log(3), 0.1, 0.9 * math.log(4 / 3) + 0.1 * math.log(4) + math.log(4), math.log(4 / 3)),
    ],
)
def test_losses_of_a_discriminator_that_always_says_the_same(logit, smoothing, loss_d, loss_g):
    """Smoothing is one-sided: the target of real images is 1 − smoothing, that of generated ones stays 0."""
    model = small(label_smoothing=smoothing)
    model.discriminator = Linear(torch.zeros(1024))
    model.discriminator.forward = lambda x: x.flatten(1) @ model.discriminator.w + logit
    losses = take_step(model, batch(), model.optimizers(0.0, (0.5, 0.999)), FABRIC)
    assert losses["discriminator"].item() == pytest.approx(loss_d, rel=1e-5)
    assert losses["generator"].item() == pytest.approx(loss_g, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_gradient_penalty_enters_with_its_weight(gamma):
    model = small(label_smoothing=0.0, gradient_penalty=gamma)
    w = torch.full((1024,), 0.01)  # ½‖w‖² = 0.0512
    model.discriminator = Linear(w)
    model.generator = Zeros()
    x = batch().images
    losses = take_step(model, Batch(x, torch.zeros(len(x)).long()), model.optimizers(0.0, (0.5, 0.999)), FABRIC)
    adversarial = torch.log1p(torch.exp(-x.flatten(1) @ w)).mean().item() + math.log(2)
    assert losses["discriminator"].item() == pytest.approx(adversarial + gamma * 0.0512, rel=1e-5)


class Zeros(nn.Module):
    """A generator of grey pictures."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, z):
        return self.level.expand(len(z), 1, 32, 32)


def test_generator_climbs_where_the_discriminator_is_sure_that_it_is_fake():
    """Non-saturating: at D(G(z)) ≈ 0 the gradient in the logit is −1, not −0; here D(x) = w·x − 20."""
    model = small()
    model.generator, model.discriminator = Zeros(), Linear(torch.ones(1024))
    model.discriminator.forward = lambda x: x.flatten(1) @ model.discriminator.w - 20
    optimizers = model.optimizers(0.0, (0.5, 0.999))
    take_step(model, batch(), optimizers, FABRIC)
    assert model.generator.level.grad.item() == pytest.approx(-1024, rel=1e-4)


def test_the_players_learn_to_meet_the_data():
    """All real pictures are of one dark grey: after a short game the generated ones are that dark too."""
    model = small()
    optimizers = model.optimizers(5e-3, (0.5, 0.999))
    x = Batch(torch.full((16, 1, 32, 32), -0.6), torch.zeros(16).long())
    before = model.eval().sample(64).mean()
    model.train()
    for _ in range(40):
        take_step(model, x, optimizers, FABRIC)
    assert abs(before) < 0.1
    assert model.eval().sample(64).mean() == pytest.approx(-0.6, abs=0.25)


# Networks and samples.


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_shapes_and_range(image_size):
    model = small(image_size)
    images = model.sample(3)
    assert images.shape == (3, 1, image_size, image_size)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert model.discriminator(images).shape == (3,)


def test_number_of_parameters_by_hand():
    """Width 16, 10 random numbers, 32×32: dense layers, and 2 numbers a unit for batch normalisation."""
    model = small()
    generator = (10 * 16 + 16 + 32) + (16 * 32 + 32 + 64) + (32 * 64 + 64 + 128) + (64 * 1024 + 1024)
    discriminator = (1024 * 32 + 32) + (32 * 16 + 16) + (16 + 1)
    assert count_parameters(model.generator) == generator
    assert count_parameters(model.discriminator) == discriminator


def test_networks_do_not_know_which_pixels_are_neighbours():
    """Pixels in another order, and the first layer's columns in the same order, give the same logits."""
    model = small().eval()
    x = batch().images
    before = model.discriminator(x)
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(0))
    first = model.discriminator.layers[1]
    first.weight.data = first.weight.data[:, order]
    assert torch.allclose(model.discriminator(x.flatten(1)[:, order].view_as(x)), before, atol=1e-5)


def test_other_sizes_are_refused_with_the_reason():
    with pytest.raises(DataError, match=r"image_size=50: .*halve.*one of 32, 64, 128, 256"):
        gan.GAN(50)


def test_same_seed_gives_the_same_bytes_and_another_seed_others():
    model = small().eval()
    images, again, other = (model.sample(3, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert images.numpy().tobytes() == again.numpy().tobytes()
    assert not torch.equal(images, other)
    assert not torch.equal(images[0], images[1])


def test_samples_start_from_standard_normal_noise():
    model = small()
    model.generator = nn.Sequential(nn.Linear(10, 10))
    nn.init.eye_(model.generator[0].weight)
    nn.init.zeros_(model.generator[0].bias)
    z = model.sample(20000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(z.mean(0), torch.zeros(10), atol=0.03)
    assert torch.allclose(torch.cov(z.T), torch.eye(10), atol=0.05)
