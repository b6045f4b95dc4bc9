"""Where a walk from noise to image begins."""

import pytest
import torch

from hcm_helpers.models.diffusion import (
    Diffusion,
)


def ramps(n: int, generator: torch.Generator) -> torch.Tensor:
    """Images of a normal distribution with two directions: (n, 1, 32, 32), mean 0.1, ramps down and across."""
    ramp = torch.linspace(-1, 1, 32)
    down, across = ramp[:, None].expand(32, 32), ramp[None, :].expand(32, 32)
    weights = torch.randn(n, 2, 1, 1, generator=generator)
    return 0.1 + 0.5 * weights[:, :1] * down + 0.2 * weights[:, 1:] * across


def test_untaught_a_walk_begins_in_pure_noise_of_80(generator):
    model = Diffusion(32, width=8, sampler="heun", sampling_steps=5)
    x = model.start(400, generator)
    assert model.levels()[0] == pytest.approx(80)
    assert x.std().item() == pytest.approx(80, rel=0.01)
    assert x.mean().item() == pytest.approx(0, abs=0.5)


def test_a_walk_begins_in_the_normal_distribution_of_the_images_under_noise(generator):
    model = Diffusion(32, width=8, sampler="dpmpp_2m", sampling_steps=5)
    images = ramps(3000, generator)
    model.learn_start(images)
    sigma = model.levels()[0].item()
    assert sigma == pytest.approx(5)  # half of that at 64×64
    x, images = model.start(4000, generator).flatten(1), images.flatten(1)
    torch.testing.assert_close(x.mean(0).mean(), images.mean(), atol=0.02, rtol=0)
    ramp = torch.linspace(-1, 1, 32)  # down, across, and one of which the images know nothing
    for direction in (ramp[:, None].expand(32, 32), ramp[None, :].expand(32, 32), ramp[:, None] * ramp):
        direction = direction.flatten() / direction.norm()
        expected = (images @ direction).var() + sigma**2
        torch.testing.assert_close((x @ direction).var(), expected, rtol=0.08, atol=0)
    assert model.start(2, generator, sigma=0.0).std() < 1  # no noise: images of that distribution


def test_what_a_walk_is_told_moves_its_beginning(generator):
    """Images with a ramp across whose height is cos(π position), up or down by the phase, and one of chance down."""
    model = Diffusion(32, width=8, num_classes=5)
    n, ramp = 3000, torch.linspace(-1, 1, 32)
    phase, position = torch.randint(0, 2, (n,), generator=generator), torch.rand(n, generator=generator)
    targets = torch.stack([torch.full((n,), 3.0), phase.float(), position], dim=1)
    heights = lambda t: torch.cos(torch.pi * t[:, 2]) + 0.5 * (2 * t[:, 1] - 1)  # noqa: E731
    chance = 0.3 * torch.randn(n, 1, 1, 1, generator=generator) * ramp[:, None]
    model.learn_start(0.1 + heights(targets)[:, None, None, None] * ramp + chance, targets)

    told = torch.tensor([[3.0, 0.0, 0.0], [3.0, 1.0, 0.0], [3.0, 0.0, 1.0], [3.0, 1.0, 0.5]])
    starts = model.start(4000, generator, told.repeat(1000, 1), sigma=0.0).unflatten(0, (1000, 4))
    expected = 0.1 + heights(told)[:, None, None] * ramp.expand(32, 32)
    torch.testing.assert_close(starts.mean(0)[:, 0], expected, atol=0.05, rtol=0)
    # About these means only chance is left, and none of what was told.
    torch.testing.assert_close(starts.std(0)[:, 0], 0.3 * ramp[:, None].abs().expand(4, 32, 32), atol=0.05, rtol=0)
    for hide, left in ((1, 1.0), (2, -0.5)):  # not told the phase: what the position says, and the other way round
        unknown = told[:1].clone()
        unknown[0, hide] = -1
        start = model.start(2000, generator, unknown.expand(2000, 3), sigma=0.0).mean(0)[0]
        torch.testing.assert_close(start, 0.1 + left * ramp.expand(32, 32), atol=0.05, rtol=0)
    untold = model.start(2000, generator, sigma=0.0).mean(0)[0]
    torch.testing.assert_close(untold, torch.full((32, 32), 0.1), atol=0.05, rtol=0)


def test_a_walk_from_there_with_the_best_denoiser_returns_the_data(generator):
    model = Diffusion(32, width=8, sampler="dpmpp_2m", sampling_steps=40)
    model.learn_start(ramps(3000, generator))
    mean, directions = model.start_mean.flatten(), model.start_directions.flatten(1)[:2]
    variance, unit = directions.square().sum(1), directions / directions.norm(dim=1, keepdim=True)

    def best(x, sigma, targets=None):  # of a normal distribution: each direction shrunk towards the mean
        along = (x.flatten(1) - mean) @ unit.T * variance / (variance + sigma**2)
        return (mean + along @ unit).view_as(x)

    model.denoise = best
    walked, true = model.sample(2000, generator=generator).flatten(1), ramps(2000, generator).clamp(-1, 1).flatten(1)
    torch.testing.assert_close(walked.std(0), true.std(0), atol=0.03, rtol=0)
    torch.testing.assert_close(walked.mean(0), true.mean(0), atol=0.05, rtol=0)


def test_the_start_is_kept_with_the_weights_and_the_images_are_the_same(generator):
    model, again = Diffusion(32, width=8, sampling_steps=3), Diffusion(32, width=8, sampling_steps=3)
    model.learn_start(ramps(20, generator))  # fewer images than directions
    again.load_state_dict(model.state_dict())
    drawn = [m.sample(3, generator=torch.Generator().manual_seed(1)) for m in (model, again)]
    assert torch.equal(*drawn)
    assert torch.equal(again.levels(), model.levels())
