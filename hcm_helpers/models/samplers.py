"""From noise to image: ways to follow a denoiser D(x; σ) down a list of noise levels.

All work on x = x_0 + σ ε, the image with noise of standard deviation σ on it, not scaled; the chain of Ho et al. is the
same one seen through x_t = x / √(1 + σ²), with σ² = (1 − ᾱ_t) / ᾱ_t. What they have in common: `denoise(x, sigma)` is
the network's guess of x_0, one call a network evaluation, and the way down is the curve

    dx/dσ = (x − D(x; σ)) / σ        (Karras et al. 2022, arXiv 2206.00364, equations 1 and 3),

on which only `ancestral` is a random walk. The last level is 0, where all but `ipndm` take the guess as it is.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from hcm_helpers.acdc import DataError

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), σ ()) → x̂_0 (B, C, H, W)


# Noise levels


def rho_levels(steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0) -> Tensor:
    """Levels σ_0 = sigma_max > … > sigma_min, evenly spaced in σ^(1/ρ), and 0: (steps + 1,) float64.

    Source: Karras et al. 2022, equation 5.
    """
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _with_zero(torch.linspace(*ends, steps, dtype=torch.float64) ** rho)


def log_levels(steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002) -> Tensor:
    """Levels from sigma_max to sigma_min, evenly spaced in log σ, and 0: (steps + 1,) float64.

    Evenly in log-SNR, as DPM-Solver++ wants them (Lu et al. 2022, arXiv 2211.01095).
    """
    return _with_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64).exp())


def _with_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


# Ways down


def ancestral(denoise: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Equation 12: draw each level from the posterior given the level above and x̂_0, with fresh noise.

    With s = σ'²/σ², the posterior of x_0 + σ' ε' is N(s x + (1 − s) x̂_0, σ'² (1 − s)): equation 7 of Ho et al. 2020,
    arXiv 2006.11239, written for x instead of x_t, and for any two levels.

    Args:
        denoise: gives x̂_0 for (x, σ).
        x: noise of standard deviation sigmas[0], (B, C, H, W).
        sigmas: the levels to visit, falling, the last one 0.
        generator: of the noise that each step adds, on the CPU; on a GPU it only seeds another, for the CPU is slow.
    """
    if x.is_cuda:
        seed = torch.randint(2**62, (), generator=generator).item()
        generator = torch.Generator(x.device).manual_seed(seed)
    for sigma, lower in pairwise(sigmas.to(x)):
        x_0, share = denoise(x, sigma), (lower / sigma) ** 2
        noise = torch.randn(x.shape, generator=generator, device=x.device).to(x)
        x = share * x + (1 - share) * x_0 + lower * (1 - share).sqrt() * noise
    return x


def euler(denoise: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Straight along the slope: the same x̂_0 and the same noise, less of it. Arguments as `ancestral`; draws nothing.

    On the levels of a chain it is DDIM (Song, Meng & Ermon 2020, arXiv 2010.02502, equation 12 with σ = 0).
    """
    for sigma, lower in pairwise(sigmas.to(x)):
        x = x + (lower - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def heun(denoise: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Along the mean of the slopes here and there: two evaluations a step, one in the last. Arguments as `ancestral`.

    Source: Karras et al. 2022, algorithm 1.
    """
    for sigma, lower in pairwise(sigmas.to(x)):
        slope = (x - denoise(x, sigma)) / sigma
        there = x + (lower - sigma) * slope
        if lower > 0:
            slope = (slope + (there - denoise(there, lower)) / lower) / 2
        x = x + (lower - sigma) * slope
    return x


def ipndm(denoise: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Along a mean of the last four slopes, each evaluated once (Adams–Bashforth). Arguments as `ancestral`.

    The weights are those of even steps, although the steps are not: for few steps that did better than the exact ones
    on published checkpoints.

    Source: Zhang & Chen 2022, arXiv 2204.13902.
    """
    weights = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    slopes: list[Tensor] = []
    for sigma, lower in pairwise(sigmas.to(x)):
        slopes = [(x - denoise(x, sigma)) / sigma, *slopes[:3]]  # the newest first
        slope = sum(w * slope for w, slope in zip(weights[len(slopes) - 1], slopes, strict=True))
        x = x + (lower - sigma) * slope
    return x


def dpmpp_2m(denoise: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """DPM-Solver++ with the last two guesses: x̂_0 goes on as a line in λ = −log σ. Arguments as `ancestral`.

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2, but the line's integral is taken exactly (`_dpmpp`).
    """
    return _dpmpp(denoise, x, sigmas, order=2)


def dpmpp_3m(denoise: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """DPM-Solver++ with the last three guesses: x̂_0 goes on as a parabola in λ = −log σ. Arguments as `ancestral`.

    Source: Lu et al. 2022, arXiv 2211.01095, section 4.
    """
    return _dpmpp(denoise, x, sigmas, order=3)


def _dpmpp(denoise: Denoiser, x: Tensor, sigmas: Tensor, order: int) -> Tensor:
    """The exact solution of the curve if x̂_0 were a polynomial of degree order − 1 in λ = −log σ.

    Over a step of width h in λ, x' = e⁻ʰ x + ∫₀ʰ e^(s − h) x̂_0(λ + s) ds. For a polynomial in u = s/h of coefficients
    c_0, c_1, c_2 the integral is Σ c_k φ_k, φ_0 = 1 − e⁻ʰ, φ_k = 1 − k φ_(k−1) / h.
    """
    guesses: list[tuple[Tensor, Tensor]] = []  # (λ, x̂_0), the newest first
    for sigma, lower in pairwise(sigmas.to(x)):
        here = -sigma.log()
        guesses = [(here, denoise(x, sigma)), *guesses[: order - 1]]
        x_0 = guesses[0][1]
        if lower == 0:
            return x_0
        h = -lower.log() - here
        terms = [x_0]
        if len(guesses) > 1:
            steps = [(above[0] - below[0]) / h for above, below in pairwise(guesses)]
            slopes = [(above[1] - below[1]) / r for (above, below), r in zip(pairwise(guesses), steps, strict=True)]
            terms.append(slopes[0])
            if len(guesses) > 2:
                bend = (slopes[0] - slopes[1]) / (steps[0] + steps[1])
                terms = [x_0, slopes[0] + steps[0] * bend, bend]
        phi = -torch.expm1(-h)
        x = (-h).exp() * x + phi * terms[0]
        for k, term in enumerate(terms[1:], start=1):
            phi = 1 - k * phi / h
            x = x + phi * term
    return x


SAMPLERS = {
    "ancestral": ancestral,
    "ddim": euler,
    "euler": euler,
    "heun": heun,
    "ipndm": ipndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
}


def find_sampler(name: str) -> Callable[..., Tensor]:
    """The sampler of this name.

    Raises:
        DataError: there is none.
    """
    if name not in SAMPLERS:
        raise DataError(f"sampler={name!r}: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
