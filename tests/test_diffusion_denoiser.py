"""The denoiser D(x; σ) and the loss, under both recipes."""

import math

import pytest
import torch
from awake import awake

from hcm_helpers.models.diffusion import (
    Diffusion,
    as_targets,
)
from hcm_helpers.models.layers import Batch

RECIPES = ("epsilon", "edm")


@pytest.mark.parametrize("recipe", RECIPES)
def test_denoise_finds_the_image_where_the_network_is_right(recipe, generator):
    model = Diffusion(32, width=8, recipe=recipe, sigma_data=0.5)
    x_0 = torch.rand(2, 1, 32, 32, generator=generator) * 2 - 1
    epsilon = torch.randn(x_0.shape, generator=generator)
    for sigma in (0.01, 0.7, 20.0):
        x = x_0 + sigma * epsilon
        # what F must say, from Karras et al.'s equation 7, with the factors of their table 1
        total = math.sqrt(sigma**2 + 0.5**2)
        answer = epsilon if recipe == "epsilon" else (x_0 - 0.5**2 / total**2 * x) / (sigma * 0.5 / total)
        model.network.forward = lambda x, noise, targets, answer=answer: answer
        torch.testing.assert_close(model.denoise(x, torch.tensor(sigma)), x_0, atol=1e-4, rtol=0)


def test_the_network_of_edm_gets_inputs_of_variance_1_at_every_level(generator):
    model, seen = Diffusion(32, width=8, sigma_data=0.3), []
    model.network.forward = lambda x, noise, targets: seen.append((x, noise)) or torch.zeros_like(x)
    x_0 = 0.3 * torch.randn(64, 1, 32, 32, generator=generator)
    for sigma in (0.05, 0.3, 10.0):
        model.denoise(x_0 + sigma * torch.randn(x_0.shape, generator=generator), torch.tensor(sigma))
        assert seen[-1][0].std().item() == pytest.approx(1, abs=0.02)
        assert seen[-1][1][0].item() == pytest.approx(250 * math.log(sigma))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_epsilon_is_asked_at_the_time_of_the_level(schedule, generator):
    model, seen = Diffusion(32, width=8, recipe="epsilon", schedule=schedule), []
    model.network.forward = lambda x, t, targets: seen.append((x, t)) or torch.zeros_like(x)
    x_0, epsilon = torch.rand(2, 1, 32, 32, generator=generator), torch.randn(2, 1, 32, 32, generator=generator)
    for t in (1, 2, 300, 900):
        x = x_0 + model.sigmas[t - 1] * epsilon
        model.denoise(x, model.sigmas[t - 1])
        torch.testing.assert_close(seen[-1][1], torch.tensor([float(t)]), atol=0.01, rtol=0)
        torch.testing.assert_close(seen[-1][0], model.diffuse(x_0, torch.tensor([t, t]), epsilon), atol=1e-4, rtol=1e-4)
    between = (model.sigmas[299] * model.sigmas[300]).sqrt()
    assert model.time_of(between[None]).item() == pytest.approx(300.5, abs=0.01)
    assert model.time_of(torch.tensor([1e-6, 1e6])).tolist() == pytest.approx([1, 1000])


@pytest.mark.parametrize("recipe", RECIPES)
def test_denoise_stays_in_range(recipe):
    model = Diffusion(32, width=8, recipe=recipe)
    model.network.forward = lambda x, noise, targets: torch.full_like(x, -5.0 if recipe == "epsilon" else 5.0)
    assert torch.equal(model.denoise(torch.full((2, 1, 32, 32), 2.0), torch.tensor(9.0)), torch.ones(2, 1, 32, 32))


@pytest.mark.parametrize("recipe", ["epsilon", "edm"])
def test_one_level_for_all_is_that_level_for_each(recipe, generator):
    model = Diffusion(32, width=8, recipe=recipe, num_classes=5).eval()
    torch.nn.init.normal_(model.network.out[2].weight, generator=generator)
    x, targets = torch.randn(3, 1, 32, 32, generator=generator), as_targets(torch.tensor([0, 3, 4]))
    with torch.no_grad():
        together = model.denoise(x, torch.tensor(0.7), targets)
        torch.testing.assert_close(together, model.denoise(x, torch.full((3,), 0.7), targets))


def test_guidance_goes_on_beyond_the_conditions(generator):
    """Equation 6 of Ho & Salimans: w times the way from the untold guess to the told one."""
    model = awake(Diffusion(32, width=8, num_classes=5))
    x, sigma = torch.randn(2, 1, 32, 32, generator=generator), torch.tensor(0.5)
    targets, nothing = torch.tensor([[3.0, 0.0, 0.2], [1.0, 1.0, 0.9]]), torch.full((2, 3), -1.0)
    with torch.no_grad():
        told, untold = (model._denoise(x, sigma, which) for which in (targets, nothing))
        for weight in (0.0, 1.0, 2.5):
            model.guidance = weight
            expected = (untold + weight * (told - untold)).clamp(-1, 1)
            torch.testing.assert_close(model.denoise(x, sigma, targets), expected, atol=1e-5, rtol=0)
    assert (told - untold).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_first_loss_of_epsilon_is_1_whatever_the_image(schedule, generator):
    model = Diffusion(32, width=8, recipe="epsilon", schedule=schedule).eval()
    for grey in (0.0, -0.5):
        batch = Batch(torch.full((64, 1, 32, 32), grey), torch.zeros(64, dtype=torch.long))
        assert model.validation_loss(batch, generator).item() == pytest.approx(1, abs=0.02)


def test_the_first_loss_of_edm_is_1_for_images_of_sigma_data(generator):
    """The target (x_0 − c_skip x) / c_out has variance 1 at every level, and the untrained network says 0."""
    model = Diffusion(32, width=8, sigma_data=0.3).eval()
    batch = Batch(0.3 * torch.randn(64, 1, 32, 32, generator=generator), torch.zeros(64, dtype=torch.long))
    assert model.validation_loss(batch, generator).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_network_that_is_right_has_loss_0(recipe):
    model = Diffusion(32, width=8, recipe=recipe, sigma_data=0.5)
    x_0 = torch.full((16, 1, 32, 32), 0.3)

    def right(x, noise, targets, amounts):
        if recipe == "epsilon":
            a = model.alpha_bar[noise][:, None, None, None]
            return (x - a.sqrt() * x_0) / (1 - a).sqrt()
        sigma = (noise / 250).exp()[:, None, None, None]
        total = (sigma**2 + 0.5**2).sqrt()  # x is the noisy image divided by it
        return (x_0 - 0.5**2 / total * x) / (sigma * 0.5 / total)

    model.network.forward = right
    loss = model.loss(Batch(x_0, torch.zeros(16, dtype=torch.long)), generator=torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0, abs=1e-4)
