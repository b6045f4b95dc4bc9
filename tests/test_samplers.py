"""Samplers on Gaussians and their mixtures, whose best denoiser is known in closed form."""

import math

import numpy as np
import pytest
import torch

from hcm_helpers.models import samplers
from hcm_helpers.models.diffusion import noise_schedule
from hcm_helpers.models.samplers import SAMPLERS, ancestral, euler, heun, log_levels, rho_levels

MEAN, STD = 0.2, 0.15
SHARES, MEANS, STDS = (torch.tensor(values, dtype=torch.float64) for values in ((0.3, 0.7), (-0.5, 0.4), (0.1, 0.2)))
FOLLOWERS = [name for name in SAMPLERS if name != "ancestral"]  # of the curve


@pytest.fixture(scope="module")
def far() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise at level 80, and where the curve of the mixture leads it at level 0.05."""
    x = 80 * torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, heun(mixture, x, rho_levels(6001, 80, 0.05)[:-1])


def gaussian(x, sigma):
    """E[x_0 | x] of pixels from N(MEAN, STD²)."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def mixture(x, sigma):
    """E[x_0 | x] of pixels from two normal distributions."""
    variance = STDS**2 + sigma**2
    log_share = SHARES.log() - 0.5 * variance.log() - 0.5 * (x[..., None] - MEANS) ** 2 / variance
    return (log_share.softmax(-1) * (MEANS + STDS**2 / variance * (x[..., None] - MEANS))).sum(-1)


def chain(schedule: str, num_steps: int = 1000) -> torch.Tensor:
    """σ_T … σ_1 and 0 of Ho et al.'s chain from the definition."""
    alpha_bar = np.cumprod(1 - noise_schedule(schedule, num_steps).numpy())
    return torch.tensor([*np.sqrt((1 - alpha_bar) / alpha_bar)[::-1], 0.0], dtype=torch.float64)


def test_rho_levels_are_the_formula_of_karras_et_al():
    levels = rho_levels(18)
    assert len(levels) == 19
    for i in (0, 5, 17):
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert levels[i].item() == pytest.approx(expected, rel=1e-9)
    assert levels[-1] == 0


def test_log_levels_have_even_steps_in_log_snr():
    levels = log_levels(10)
    steps = levels[:-1].log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(9))
    assert (levels[0].item(), levels[-2].item(), levels[-1].item()) == pytest.approx((80, 0.002, 0))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("ipndm", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3)])
def test_the_order_of_convergence_is_the_one_of_theory(name, order, far):
    """Twice the steps, 2^order times less error. (iPNDM's weights are for even steps, so it has two of its four.)"""
    x, exact = far
    spread = log_levels if name.startswith("dpmpp") else rho_levels
    levels = lambda steps: spread(steps + 1, 80, 0.05)[:-1]  # noqa: E731 — the last step to 0 is none of the curve
    errors = [(SAMPLERS[name](mixture, x, levels(steps)) - exact).abs().mean().item() for steps in (80, 160, 320)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, order, atol=0.3)
    assert errors[-1] < 0.005


@pytest.mark.parametrize("name", FOLLOWERS)
def test_each_noise_is_carried_to_its_quantile(name):
    """The curve of a Gaussian is the straight map between the two (Song et al. 2021, arXiv 2011.13456)."""
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    levels = chain("cosine")[10:] if name == "ddim" else rho_levels(400)
    start = MEAN + (STD**2 + levels[0] ** 2).sqrt() * z
    np.testing.assert_allclose(SAMPLERS[name](gaussian, start, levels), MEAN + STD * z, atol=0.006)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mixture_comes_out_with_its_moments(name, generator):
    levels = chain("linear", 250) if name in ("ancestral", "ddim") else rho_levels(60)
    x = levels[0] * torch.randn(10_000, generator=generator, dtype=torch.float64)
    x = SAMPLERS[name](mixture, x, levels, generator)
    mean = (SHARES * MEANS).sum()
    std = (SHARES * (STDS**2 + MEANS**2)).sum().sub(mean**2).sqrt()
    # standard errors 0.0044 and 0.0024; Euler's sixty steps are short by 0.005
    assert x.mean().item() == pytest.approx(mean.item(), abs=0.015)
    assert x.std().item() == pytest.approx(std.item(), abs=0.012)
    assert (x < -0.1).double().mean().item() == pytest.approx(0.3 + 0.7 * 0.0062, abs=0.015)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ancestral_sampling_with_the_best_denoiser_returns_the_data(schedule, generator):
    levels = chain(schedule)
    x = ancestral(gaussian, levels[0] * torch.randn(10_000, generator=generator).double(), levels, generator)
    # The standard errors are STD/100 = 0.0015 and 0.0011. A chain of 1000 steps, whose variance β̃ is the
    # smaller of the two in Ho et al., is short of spread by 0.0019 (cosine) or 0.0037 (linear).
    assert x.mean().item() == pytest.approx(MEAN, abs=0.005)
    assert x.std().item() == pytest.approx(STD, abs=0.007)
    quantiles = torch.quantile(x, torch.tensor([0.1587, 0.8413], dtype=torch.float64))
    np.testing.assert_allclose(quantiles, [MEAN - STD, MEAN + STD], atol=0.012)


def test_ancestral_sampling_forgets_where_it_began(generator):
    levels = chain("linear")[::4]
    x = torch.full((10_000,), 3.0, dtype=torch.float64) * levels[0]  # three standard deviations off, all of them
    x = ancestral(gaussian, x, levels, generator)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)


def test_ancestral_is_algorithm_2_of_ho_et_al_for_consecutive_times(generator):
    T = 30
    beta = noise_schedule("linear", T)
    alpha_bar = torch.cumprod(1 - beta, 0)
    levels = chain("linear", T)

    def denoise(x, sigma):  # any function to [−1, 1]
        return 0.9 * torch.sin(x + sigma)

    def epsilon_theta(x_t, t):  # the same network, when asked for the noise in x_t
        sigma = levels[T - t]
        x = x_t * (1 + sigma**2).sqrt()
        return (x - denoise(x, sigma)) / sigma

    x_t = torch.randn(50, generator=generator, dtype=torch.float64)
    state = generator.get_state()
    ours = ancestral(denoise, x_t * (1 + levels[0] ** 2).sqrt(), levels, generator)

    generator.set_state(state)
    for t in range(T, 0, -1):
        alpha_t, bar_t = 1 - beta[t - 1].item(), alpha_bar[t - 1].item()
        sigma = math.sqrt((1 - bar_t / alpha_t) / (1 - bar_t) * (1 - alpha_t))  # σ_t² = β̃_t, the second of their two
        z = torch.randn(x_t.shape, generator=generator).double() if t > 1 else 0
        x_t = (x_t - (1 - alpha_t) / math.sqrt(1 - bar_t) * epsilon_theta(x_t, t)) / math.sqrt(alpha_t) + sigma * z
    torch.testing.assert_close(ours, x_t, rtol=1e-6, atol=1e-6)


def test_a_stride_of_the_posterior_is_as_many_small_ones(generator):
    """With x_0 known, a stride from one level to another has the mean and the spread of all those between."""
    known = lambda x, sigma: torch.full_like(x, 0.4)  # noqa: E731
    x = torch.full((20_000,), -0.7, dtype=torch.float64)
    levels = torch.linspace(2, 1, 101, dtype=torch.float64)
    small, stride = (ancestral(known, x, sigmas, generator) for sigmas in (levels, levels[[0, -1]]))
    assert stride.mean().item() == pytest.approx(small.mean().item(), abs=0.02)
    assert stride.std().item() == pytest.approx(small.std().item(), abs=0.02)


def test_ddim_is_equation_12_of_song_et_al():
    """√ᾱ_s x̂_0 + √(1 − ᾱ_s) ε̂, for x_t = √ᾱ_t x."""
    sigma, lower = torch.tensor([2.0, 0.5], dtype=torch.float64)
    a_t, a_s = (1 / (1 + s**2) for s in (sigma, lower))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    x_t, x_0 = a_t.sqrt() * x, gaussian(x, sigma)
    epsilon = (x_t - a_t.sqrt() * x_0) / (1 - a_t).sqrt()
    expected = a_s.sqrt() * x_0 + (1 - a_s).sqrt() * epsilon
    torch.testing.assert_close(a_s.sqrt() * euler(gaussian, x, torch.stack([sigma, lower])), expected)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_the_last_step_leaves_what_the_denoiser_saw(name, steps, generator):
    seen = []

    def denoise(x, sigma):
        seen.append(torch.tanh(x + sigma))
        return seen[-1]

    x = SAMPLERS[name](denoise, torch.ones(10), rho_levels(steps), generator)
    assert len(seen) == (2 * steps - 1 if name == "heun" else steps)
    if name != "ipndm" or steps == 1:  # whose last slope is a mean of four
        torch.testing.assert_close(x, seen[-1], atol=1e-6, rtol=0)


def test_multistep_guesses_that_lie_on_a_curve_are_followed_exactly():
    """x̂_0 a parabola in λ = −log σ: three guesses know all of it, so ten steps are as good as a thousand."""
    path = lambda x, sigma: 0.3 - 0.1 * sigma.log() + 0.02 * sigma.log() ** 2 + 0 * x  # noqa: E731
    x = torch.ones(3, dtype=torch.float64)
    starts = torch.tensor([1.0, 0.999, 0.998], dtype=torch.float64)  # two tiny steps to make its acquaintance
    coarse, fine = (
        samplers.dpmpp_3m(path, x, torch.cat([starts, log_levels(steps, 0.997, 0.1)[:-1]])) for steps in (10, 3000)
    )
    torch.testing.assert_close(coarse, fine, rtol=1e-6, atol=1e-6)
