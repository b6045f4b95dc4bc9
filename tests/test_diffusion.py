"""The diffusion chain on Gaussian data, whose best denoiser and so every sample is known in closed form."""

import math

import numpy as np
import pytest
import torch

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.models.diffusion import (
    Diffusion,
    UNet,
    ancestral,
    ddim,
    noise_schedule,
    sinusoids,
    timesteps,
)
from hcm_helpers.models.layers import Batch

MEAN, STD = 0.2, 0.15  # 5 standard deviations lie within [−1, 1], so that the clamp of x̂_0 never acts


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def alpha_bars(schedule: str = "linear", num_steps: int = 1000) -> torch.Tensor:
    """ᾱ₀ … ᾱ_T from the definition, ᾱ_t = Π (1 − β_s), in double precision."""
    return torch.tensor([1.0, *np.cumprod(1 - noise_schedule(schedule, num_steps).numpy())], dtype=torch.float64)


def gaussian_denoiser(alpha_bar: torch.Tensor, mean: float = MEAN, std: float = STD):
    """x̂_0 from the best ε-prediction: E[ε | x_t] for pixels from N(mean, std²), both jointly normal."""

    def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
        signal, noise = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
        epsilon = noise * (x - signal * mean) / (signal**2 * std**2 + noise**2)
        return ((x - noise * epsilon) / signal).clamp(-1, 1)

    return denoise


# --- the chain forwards


def test_linear_schedule_has_the_ends_of_ho_et_al():
    beta = noise_schedule("linear", 1000)
    assert len(beta) == 1000
    assert beta[0].item() == pytest.approx(1e-4)
    assert beta[-1].item() == pytest.approx(0.02)
    np.testing.assert_allclose(np.diff(beta.numpy()), (0.02 - 1e-4) / 999)


def test_linear_schedule_of_another_length_ends_in_about_the_same_noise():
    logs = [math.log(alpha_bars("linear", steps)[-1]) for steps in (250, 1000)]
    assert logs[0] == pytest.approx(logs[1], rel=0.05)  # ln ᾱ_T, about −10


def test_cosine_schedule_is_the_formula_of_nichol_and_dhariwal():
    alpha_bar = alpha_bars("cosine")
    for t in (1, 250, 500, 900):  # f(t) / f(0), equation 17; the clamp of β acts at the very end only
        f = [math.cos((s / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for s in (t, 0)]
        assert alpha_bar[t].item() == pytest.approx(f[0] / f[1], rel=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_chain_ends_in_noise(schedule):
    beta = noise_schedule(schedule, 1000)
    assert ((beta > 0) & (beta < 1)).all()
    alpha_bar = Diffusion(32, width=8, schedule=schedule).alpha_bar
    assert alpha_bar[0] == 1
    assert (alpha_bar[1:] < alpha_bar[:-1]).all()
    assert 0 < alpha_bar[-1] < 1e-4


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_one_stride_is_as_many_small_steps(schedule, generator):
    model = Diffusion(32, width=8, num_steps=100, schedule=schedule, sampling_steps=10)
    beta = noise_schedule(schedule, 100).float()
    x_0, t = 0.6, 40
    small = torch.full((400, 1, 32, 32), x_0)
    for s in range(t):  # equation 9, forty times
        epsilon = torch.randn(small.shape, generator=generator)
        small = (1 - beta[s]).sqrt() * small + beta[s].sqrt() * epsilon
    start, epsilon = torch.full_like(small, x_0), torch.randn(small.shape, generator=generator)
    stride = model.diffuse(start, torch.full((400,), t), epsilon)
    # 409,600 pixels: the standard error of a mean is below 0.0016, that of a standard deviation below 0.0011
    assert stride.mean().item() == pytest.approx(small.mean().item(), abs=0.008)
    assert stride.std().item() == pytest.approx(small.std().item(), abs=0.006)


def test_diffuse_keeps_the_image_at_0_and_each_image_has_its_own_time(generator):
    model = Diffusion(32, width=8)
    x, epsilon = torch.randn(2, 3, 1, 32, 32, generator=generator)
    x_t = model.diffuse(x, torch.tensor([0, 500, 1000]), epsilon)
    assert torch.equal(x_t[0], x[0])
    share = (1 - model.alpha_bar[500]).item()
    torch.testing.assert_close(x_t[1], (1 - share) ** 0.5 * x[1] + share**0.5 * epsilon[1])
    torch.testing.assert_close(x_t[2], epsilon[2], atol=0.01, rtol=0)


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match="schedule='quadratic'"):
        Diffusion(32, width=8, schedule="quadratic")
    with pytest.raises(DataError, match=r"sampler='heun'.*ancestral, ddim"):
        Diffusion(32, width=8, sampler="heun")
    with pytest.raises(DataError, match=r"prediction='x_0'.*'epsilon' or 'v'"):
        Diffusion(32, width=8, prediction="x_0")


@pytest.mark.parametrize("width", [0, 20])
def test_a_width_that_the_groups_do_not_divide_is_refused(width):
    with pytest.raises(DataError, match=rf"width={width}: .*multiple of 8"):
        Diffusion(32, width=width)


# --- the chain backwards


def test_timesteps_go_from_the_end_to_0():
    path = timesteps(1000, 50)
    assert (len(path), path[0], path[-1]) == (51, 1000, 0)
    assert set(np.diff(path)) == {-20}
    assert timesteps(1000, 1) == [1000, 0]
    assert timesteps(10, 10) == list(range(10, -1, -1))
    odd = timesteps(1000, 7)
    assert (odd[0], odd[-1]) == (1000, 0)
    assert set(np.diff(odd)) <= {-142, -143}


@pytest.mark.parametrize("steps", [0, 1001])
def test_timesteps_refuse_what_the_chain_has_not(steps):
    with pytest.raises(DataError, match=f"sampling_steps={steps}.*1 to 1000"):
        timesteps(1000, steps)
    with pytest.raises(DataError, match=f"sampling_steps={steps}"):
        Diffusion(32, width=8, sampling_steps=steps)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ancestral_sampling_with_the_best_denoiser_returns_the_data(schedule, generator):
    alpha_bar = alpha_bars(schedule)
    x = torch.randn(10_000, generator=generator, dtype=torch.float64)
    x = ancestral(gaussian_denoiser(alpha_bar), x, alpha_bar, timesteps(1000, 1000), generator)
    # The standard errors are STD/100 = 0.0015 and 0.0011. A chain of 1000 steps, whose variance β̃ is the
    # smaller of the two in Ho et al., is short of spread by 0.0019 (cosine) or 0.0037 (linear).
    assert x.mean().item() == pytest.approx(MEAN, abs=0.005)
    assert x.std().item() == pytest.approx(STD, abs=0.007)
    quantiles = torch.quantile(x, torch.tensor([0.1587, 0.8413], dtype=torch.float64))
    np.testing.assert_allclose(quantiles, [MEAN - STD, MEAN + STD], atol=0.012)


def test_ancestral_sampling_forgets_where_it_began(generator):
    alpha_bar = alpha_bars("linear")
    x = torch.full((10_000,), 3.0, dtype=torch.float64)  # x_T far from N(0, 1): ᾱ_T says how little is kept of it
    x = ancestral(gaussian_denoiser(alpha_bar), x, alpha_bar, timesteps(1000, 250), generator)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddim_carries_each_noise_to_its_quantile(schedule):
    alpha_bar = alpha_bars(schedule)
    x_T = torch.linspace(-3, 3, 13, dtype=torch.float64)
    x_0 = ddim(gaussian_denoiser(alpha_bar), x_T, alpha_bar, timesteps(1000, 1000))
    # the probability flow of a Gaussian is the straight map between the two (Song et al. 2021, 2011.13456)
    np.testing.assert_allclose(x_0, MEAN + STD * x_T, atol=0.01)


def test_ddim_converges_as_its_steps_grow():
    alpha_bar = alpha_bars("cosine")
    x_T = torch.linspace(-3, 3, 13, dtype=torch.float64)
    errors = []
    for steps in (5, 10, 20, 40, 80):
        x_0 = ddim(gaussian_denoiser(alpha_bar), x_T, alpha_bar, timesteps(1000, steps))
        errors.append((x_0 - (MEAN + STD * x_T)).abs().max().item())
    ratios = np.divide(errors[1:], errors[:-1])
    assert (ratios < 0.65).all()  # a method of first order: half the error with twice the steps
    assert errors[-1] < 0.03


def test_ancestral_is_algorithm_2_of_ho_et_al_for_consecutive_times(generator):
    T = 30
    beta = noise_schedule("linear", T)
    alpha_bar = alpha_bars("linear", T)

    def denoise(x, t):  # any function to [−1, 1]
        return 0.9 * torch.sin(x + t)

    def epsilon_theta(x, t):  # the same network, when asked for the noise
        return (x - alpha_bar[t].sqrt() * denoise(x, t)) / (1 - alpha_bar[t]).sqrt()

    x = torch.randn(50, generator=generator, dtype=torch.float64)
    state = generator.get_state()
    ours = ancestral(denoise, x, alpha_bar, list(range(T, -1, -1)), generator)

    generator.set_state(state)
    for t in range(T, 0, -1):
        beta_t = beta[t - 1].item()
        alpha_t, bar_t = 1 - beta_t, math.prod(1 - b.item() for b in beta[:t])
        sigma = math.sqrt((1 - bar_t / alpha_t) / (1 - bar_t) * beta_t)  # σ_t² = β̃_t, the second of their two
        z = torch.randn(x.shape, generator=generator).double() if t > 1 else 0
        x = (x - beta_t / math.sqrt(1 - bar_t) * epsilon_theta(x, t)) / math.sqrt(alpha_t) + sigma * z
    torch.testing.assert_close(ours, x, rtol=1e-6, atol=1e-6)


def test_a_stride_of_the_posterior_is_as_many_small_ones(generator):
    """With x_0 known, a stride from t to s has the mean and the spread of going through all times between."""
    alpha_bar, x_0 = alpha_bars("cosine"), 0.4
    known = lambda x, t: torch.full_like(x, x_0)  # noqa: E731
    x_t = torch.full((20_000,), -0.7, dtype=torch.float64)
    small = ancestral(known, x_t, alpha_bar, list(range(300, 199, -1)), generator)
    stride = ancestral(known, x_t, alpha_bar, [300, 200], generator)
    assert stride.mean().item() == pytest.approx(small.mean().item(), abs=0.01)
    assert stride.std().item() == pytest.approx(small.std().item(), abs=0.01)


@pytest.mark.parametrize("sampler", [ancestral, ddim])
@pytest.mark.parametrize("steps", [1, 5, 1000])
def test_the_last_step_leaves_what_the_denoiser_saw(sampler, steps, generator):
    seen = []

    def denoise(x, t):
        seen.append(torch.tanh(x + t))
        return seen[-1]

    x = sampler(denoise, torch.ones(10), alpha_bars("cosine").float(), timesteps(1000, steps), generator)
    torch.testing.assert_close(x, seen[-1], atol=1e-6, rtol=0)
    assert len(seen) == steps


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_denoise_finds_the_image_where_the_network_is_right(prediction, generator):
    model = Diffusion(32, width=8, prediction=prediction)
    x_0 = torch.rand(2, 1, 32, 32, generator=generator) * 2 - 1
    epsilon = torch.randn(x_0.shape, generator=generator)
    for t in (1, 300, 900):
        a = model.alpha_bar[t]
        answer = epsilon if prediction == "epsilon" else a.sqrt() * epsilon - (1 - a).sqrt() * x_0
        model.network.forward = lambda x, t, labels, answer=answer: answer
        x_t = model.diffuse(x_0, torch.tensor([t, t]), epsilon)
        torch.testing.assert_close(model.denoise(x_t, t), x_0, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_denoise_stays_in_range(prediction):
    model = Diffusion(32, width=8, prediction=prediction)
    model.network.forward = lambda x, t, labels: torch.full_like(x, -5.0)
    assert torch.equal(model.denoise(torch.full((2, 1, 32, 32), 2.0), 800), torch.ones(2, 1, 32, 32))


# --- the network


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


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """The zeroed layers filled, so that everything reaches the output."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_time_and_group_change_what_the_network_says():
    network = awake(UNet(32, width=8, num_classes=5))
    x = torch.randn(1, 1, 32, 32)

    def out(t: int, label: int) -> torch.Tensor:
        return network(x, torch.tensor([t]), torch.tensor([label]))

    assert torch.equal(out(10, 3), out(10, 3))
    assert (out(10, 3) - out(11, 3)).abs().max() > 1e-4
    assert (out(10, 3) - out(10, 0)).abs().max() > 1e-3


def test_sinusoids_of_a_time():
    expected = [math.sin(7), math.sin(0.07), math.cos(7), math.cos(0.07)]  # frequencies 1 and 10000^(−1/2)
    torch.testing.assert_close(sinusoids(torch.tensor([7]), 4), torch.tensor([expected]))


# --- the model


@pytest.mark.parametrize(("prediction", "schedule"), [("epsilon", "linear"), ("epsilon", "cosine"), ("v", "linear")])
def test_the_first_loss_is_that_of_predicting_nothing(prediction, schedule, generator):
    model = Diffusion(32, width=8, prediction=prediction, schedule=schedule).eval()
    labels = torch.zeros(64, dtype=torch.long)
    zero = model.validation_loss(Batch(torch.zeros(64, 1, 32, 32), labels), generator).item()
    grey = model.validation_loss(Batch(torch.full((64, 1, 32, 32), -0.5), labels), generator).item()
    kept = model.alpha_bar[1:].mean().item()
    if prediction == "epsilon":  # E ε² = 1 whatever the image
        assert zero == pytest.approx(1, abs=0.02)
        assert grey == pytest.approx(1, abs=0.02)
    else:  # E v² = ᾱ_t + (1 − ᾱ_t) x², t uniform; over 64 times its standard error is below 0.05
        assert zero == pytest.approx(kept, abs=0.12)
        assert grey == pytest.approx(kept + (1 - kept) * 0.25, abs=0.12)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_network_that_is_right_has_loss_0(prediction):
    model = Diffusion(32, width=8, prediction=prediction)
    x_0 = torch.full((16, 1, 32, 32), 0.3)

    def right(x_t, t, labels):
        a = model.alpha_bar[t][:, None, None, None]
        epsilon = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        return epsilon if prediction == "epsilon" else (a.sqrt() * x_t - x_0) / (1 - a).sqrt()

    model.network.forward = right
    loss = model.loss(Batch(x_0, torch.zeros(16, dtype=torch.long)), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_the_same_seed_gives_the_same_samples_in_range():
    model = awake(Diffusion(32, width=8, sampling_steps=4))
    for sampler in ("ancestral", "ddim"):
        model.sampler = sampler
        images, again, others = (model.sample(3, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert images.shape == (3, 1, 32, 32)
        assert images.abs().max() <= 1
        assert torch.equal(images, again)
        assert not torch.equal(images, others)


def test_a_conditional_model_draws_the_group_it_is_told_and_hcm_by_default():
    model = awake(Diffusion(32, width=8, num_classes=5, sampling_steps=4))

    def draw(labels: torch.Tensor | None) -> torch.Tensor:
        return model.sample(2, labels, torch.Generator().manual_seed(0))

    hcm = torch.full((2,), GROUPS.index("HCM"))
    assert torch.equal(draw(None), draw(hcm))
    assert not torch.equal(draw(None), draw(torch.zeros(2, dtype=torch.long)))


def test_an_unconditional_model_does_not_look_at_labels(generator):
    model = awake(Diffusion(32, width=8, sampling_steps=2))
    x = torch.zeros(2, 1, 32, 32)
    losses = [
        model.validation_loss(Batch(x, torch.tensor(labels)), torch.Generator().manual_seed(0))
        for labels in ([0, 0], [3, 4])
    ]
    assert losses[0] == losses[1]
