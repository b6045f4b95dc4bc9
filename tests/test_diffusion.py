"""The diffusion model: its chain, its denoiser under both recipes, its conditions and its network."""

import math

import numpy as np
import pytest
import torch

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.devices import make_fabric
from hcm_helpers.models import diffusion
from hcm_helpers.models.diffusion import (
    Conditions,
    Diffusion,
    UNet,
    as_targets,
    noise_schedule,
    sinusoids,
    split_masks,
    timesteps,
    with_mask_channels,
)
from hcm_helpers.models.layers import Batch
from hcm_helpers.models.samplers import SAMPLERS
from hcm_helpers.parallel import take_step
from hcm_helpers.phantom import write_phantom
from hcm_helpers.slices import prepare


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def alpha_bars(schedule: str = "linear", num_steps: int = 1000) -> torch.Tensor:
    """ᾱ₀ … ᾱ_T from the definition, ᾱ_t = Π (1 − β_s), in double precision."""
    return torch.tensor([1.0, *np.cumprod(1 - noise_schedule(schedule, num_steps).numpy())], dtype=torch.float64)


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
    model = Diffusion(32, width=8, num_steps=100, schedule=schedule)
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
    with pytest.raises(DataError, match=r"sampler='leap'.*ancestral, ddim"):
        Diffusion(32, width=8, sampler="leap")
    with pytest.raises(DataError, match=r"recipe='v'.*'epsilon' or 'edm'"):
        Diffusion(32, width=8, recipe="v")
    with pytest.raises(DataError, match=r"optimizer='sgd'.*'muon' or 'adam'"):
        Diffusion(32, width=8, optimizer="sgd")


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
        Diffusion(32, width=8, sampler="ancestral", sampling_steps=steps)
    with pytest.raises(DataError, match="sampling_steps=0"):
        Diffusion(32, width=8, sampling_steps=0)


# --- the denoiser


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


# --- levels


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_levels_fall_from_noise_to_0_in_as_many_steps_as_asked_for(sampler):
    model = Diffusion(32, width=8, sampler=sampler, sampling_steps=12)
    levels = model.levels()
    assert len(levels) == 13
    assert (levels.diff() < 0).all()
    assert 50 < levels[0] <= 200
    assert levels[-1] == 0
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.sample(1)
    assert len(calls) == model.evaluations


def test_guidance_costs_two_evaluations():
    model = Diffusion(32, width=8, num_classes=5, sampler="heun", sampling_steps=4)
    assert model.evaluations == 7
    model.guidance = 1.5
    assert model.evaluations == 14


def test_levels_of_the_chain_are_those_of_its_times():
    model = Diffusion(32, width=8, sampler="ddim", schedule="linear", sampling_steps=4)
    alpha_bar = alpha_bars("linear")[[1000, 750, 500, 250]]
    torch.testing.assert_close(
        model.levels()[:-1], ((1 - alpha_bar) / alpha_bar).sqrt().clamp(max=200), rtol=1e-5, atol=0
    )


# --- where a walk begins


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


# --- the model


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


def trained_on(model: Diffusion, batch: Batch) -> list[tuple]:
    """What the network is given in 20 training steps."""
    seen = []
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    fabric = make_fabric()
    optimizers = model.optimizers(1e-4, (0.9, 0.999))
    for _ in range(20):
        take_step(model, batch, optimizers, fabric)
    return seen


def test_muon_takes_the_convolutions_and_adam_the_rest():
    model = Diffusion(32, width=8, num_classes=5)
    found = model.optimizers(1e-3, (0.9, 0.999))
    taken = {name: {id(p) for group in opt.param_groups for p in group["params"]} for name, opt in found.items()}
    assert {id(p) for p in model.parameters()} == taken["muon"] | taken["adam"]
    assert not taken["muon"] & taken["adam"]
    names = {name for name, p in model.named_parameters() if id(p) in taken["muon"]}
    assert names == {name for name, p in model.named_parameters() if p.ndim == 4} - {"network.out.2.weight"}
    assert (found["muon"].param_groups[0]["lr"], found["adam"].param_groups[0]["lr"]) == pytest.approx((1e-2, 1e-3))
    (only,) = Diffusion(32, width=8, optimizer="adam").optimizers(1e-3, (0.5, 0.999)).values()
    assert isinstance(only, torch.optim.Adam)


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_training_step_moves_every_weight_it_can(optimizer):
    torch.manual_seed(0)
    model = Diffusion(32, width=8, optimizer=optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    batch = Batch(torch.rand(4, 1, 32, 32) * 2 - 1, torch.zeros(4, dtype=torch.long))
    fabric, optimizers = make_fabric(), model.optimizers(1e-3, (0.9, 0.999))
    for _ in range(3):  # the last layer begins at zero, so that the others wait for a gradient
        take_step(model, batch, optimizers, fabric)
    still = [name for (name, p), b in zip(model.named_parameters(), before, strict=True) if torch.equal(p, b)]
    assert set(still) <= {"network.amounts.weight"}, "nothing was done to the images"


def test_each_condition_is_withheld_as_often_as_asked_for():
    torch.manual_seed(0)
    model = Diffusion(32, width=8, num_classes=5, drop_conditions=0.25)
    targets = torch.tensor([[3.0, 1.0, 0.5]]).expand(64, 3)
    seen = torch.cat([inputs[2] for inputs in trained_on(model, Batch(torch.zeros(64, 1, 32, 32), targets))])
    withheld = seen == -1
    # 1,280 draws, standard error 0.014: each alone or all together, 1 − 0.75²; all three by the second, or by chance
    np.testing.assert_allclose(withheld.float().mean(0), 1 - 0.75**2, atol=0.05)
    assert withheld.all(dim=1).float().mean().item() == pytest.approx(0.25 + 0.75 * 0.25**3, abs=0.05)
    assert torch.equal(seen[~withheld], targets.repeat(20, 1)[~withheld])


def test_the_network_is_told_what_was_done_to_an_image():
    torch.manual_seed(0)
    model = Diffusion(32, width=8, augment=0.4)
    seen = trained_on(model, Batch(torch.zeros(64, 1, 32, 32), torch.zeros(64)))
    moved = torch.cat([inputs[3] for inputs in seen]).any(dim=1)
    assert moved.float().mean().item() == pytest.approx(0.4, abs=0.05)
    plain = trained_on(Diffusion(32, width=8), Batch(torch.zeros(4, 1, 32, 32), torch.zeros(4)))
    assert all(inputs[3] is None for inputs in plain)


def test_the_same_seed_gives_the_same_samples_in_range():
    model = awake(Diffusion(32, width=8, sampling_steps=4))
    for model.sampler in SAMPLERS:
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
    targets = model.targets(2, hcm, torch.Generator().manual_seed(0))
    assert targets[:, 0].tolist() == [3, 3]
    assert ((targets[:, 2] >= 0) & (targets[:, 2] <= 1)).all()
    chosen = torch.tensor([[3.0, 0.0, 0.1], [-1.0, 1.0, -1.0]])
    assert torch.equal(model.targets(2, chosen), chosen)
    many = model.targets(4000, torch.zeros(4000), torch.Generator().manual_seed(0))
    assert many[:, 1].mean().item() == pytest.approx(0.5, abs=0.04)
    assert many[:, 2].mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("labels", [[5, 0], [-2, 0], [0]])
def test_labels_outside_the_groups_are_refused(labels):
    with pytest.raises(DataError, match="labels must be 2 numbers from 0 to 4"):
        Diffusion(32, width=8, num_classes=5).sample(2, torch.tensor(labels))


def test_groups_alone_are_targets_of_unknown_phase_and_position():
    assert as_targets(torch.tensor([3, 0])).tolist() == [[3, -1, -1], [0, -1, -1]]


def test_an_unconditional_model_does_not_look_at_labels(generator):
    model = awake(Diffusion(32, width=8, sampling_steps=2))
    x = torch.zeros(2, 1, 32, 32)
    losses = [
        model.validation_loss(Batch(x, torch.tensor(labels)), torch.Generator().manual_seed(0))
        for labels in ([0, 0], [3, 4])
    ]
    assert losses[0] == losses[1]


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
