"""The diffusion model: its chain, its levels, its training and its drawing."""

import math

import numpy as np
import pytest
import torch
from awake import awake

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.devices import make_fabric
from hcm_helpers.models.diffusion import (
    Diffusion,
    as_targets,
    noise_schedule,
    timesteps,
)
from hcm_helpers.models.layers import Batch
from hcm_helpers.models.samplers import SAMPLERS
from hcm_helpers.parallel import take_step


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
    model = Diffusion(32, width=8)
    model.sampler = "leap"  # as a slider sets it
    with pytest.raises(DataError, match=r"sampler='leap'.*ancestral, ddim"):
        model.sample(1)
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


def test_without_guidance_nothing_is_told_from_the_start():
    model = awake(Diffusion(32, width=8, num_classes=5, sampling_steps=2, guidance=0.0))
    model.learn_start(torch.rand(8, 1, 32, 32), torch.tensor([[3.0, 0, 0], [0, 1, 1]]).repeat(4, 1))
    told = torch.tensor([[[3.0, 0, 0]], [[0, 1, 1]]])
    one, other = (model.sample(1, targets, torch.Generator().manual_seed(0)) for targets in told)
    assert torch.equal(one, other)
    model.guidance = 1.0
    one, other = (model.sample(1, targets, torch.Generator().manual_seed(0)) for targets in told)
    assert not torch.equal(one, other)


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


# --- training


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


# --- drawing


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


@pytest.mark.parametrize("target", [[3.5, 0, 0.5], [torch.nan, 0, 0.5], [5, 0, 0.5]])
def test_a_target_without_such_a_group_is_refused(target):
    with pytest.raises(DataError, match="labels must be 1 numbers from 0 to 4"):
        Diffusion(32, width=8, num_classes=5).sample(1, torch.tensor([target]))


@pytest.mark.parametrize("target", [[3, 7, 0.5], [3, 0.5, 0.5], [3, 0, 1.5], [3, 0, -0.5], [3, 0, torch.nan]])
def test_a_target_without_such_a_phase_or_position_is_refused(target):
    with pytest.raises(DataError, match="labels: the phase must be 0, 1 or −1"):
        Diffusion(32, width=8, num_classes=5).sample(1, torch.tensor([target]))


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
