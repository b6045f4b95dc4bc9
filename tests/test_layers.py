"""The losses of a game by hand, Muon's orthogonal steps, and a discriminator of spectral norm 1."""

from copy import deepcopy
from math import log

import pytest
import torch
from torch import nn

from hcm_helpers.acdc import DataError
from hcm_helpers.models import layers
from hcm_helpers.models.acgan import ACGAN
from hcm_helpers.models.dcgan import DCGAN
from hcm_helpers.models.infogan import InfoGAN
from hcm_helpers.training import load_weights, save_weights, update_average

LOGITS = torch.tensor([-2.0, 0.0, 0.5, 3.0])
NORMED = {"loss": "hinge", "spectral_norm": True}
SMALL = {"latent_dim": 10, "width": 8}


def test_hinge_by_hand():
    # real: max(0, 1 − l) = 3, 1, ½, 0; generated: max(0, 1 + l) = 0, 1, 1½, 4
    assert layers.hinge(LOGITS, 1.0).item() == pytest.approx(4.5 / 4)
    assert layers.hinge(LOGITS, -1.0).item() == pytest.approx(6.5 / 4)
    assert layers.minus_mean(LOGITS).item() == pytest.approx(-1.5 / 4)


def test_an_image_beyond_the_margin_moves_no_one_but_the_generator():
    logits = torch.tensor([1.5, -0.5], requires_grad=True)
    assert torch.autograd.grad(layers.hinge(logits, 1.0), logits)[0].tolist() == [0.0, -0.5]
    assert torch.autograd.grad(layers.minus_mean(logits), logits)[0].tolist() == [-0.5, -0.5]


def test_the_games_by_hand():
    even = torch.zeros(3)
    game = layers.game("bce", label_smoothing=0.2)
    assert [part(even).item() for part in game] == pytest.approx([log(2)] * 3)
    sure = torch.full((3,), log(3.0))  # D(x) = ¾
    low, high = -log(3 / 4), -log(1 / 4)
    assert [part(sure).item() for part in game] == pytest.approx([0.8 * low + 0.2 * high, high, low], abs=1e-6)
    game = layers.game("hinge", label_smoothing=0.2)
    assert [part(even + 0.5).item() for part in game] == pytest.approx([0.5, 1.5, -0.5])


@pytest.mark.parametrize("model", [DCGAN, ACGAN, InfoGAN])
def test_another_loss_is_refused(model):
    with pytest.raises(DataError, match='loss="wgan": choose "bce" or "hinge"'):
        model(32, loss="wgan")


def kernels(discriminator):
    """The kernels, as matrices, that D computes with in evaluation, when nothing moves any more."""
    modules = discriminator.eval().modules()
    return [layer.weight.detach().flatten(1) for layer in modules if isinstance(layer, nn.Conv2d | nn.Linear)]


def test_largest_singular_value_of_each_kernel_is_1():
    torch.manual_seed(0)
    model = DCGAN(64, **SMALL, **NORMED)
    for weight in model.discriminator.parameters():
        weight.data *= 30  # whatever the size of what is learned
    images = model.sample(4)
    for _ in range(30):  # a step of the power method each
        model.discriminator(images)
    largest = [torch.linalg.svdvals(kernel)[0].item() for kernel in kernels(model.discriminator)]
    assert len(largest) == 5
    assert largest == pytest.approx([1.0] * 5, abs=0.02)


def test_spectral_norm_takes_the_place_of_batch_normalisation_in_the_discriminator_only():
    for model in (DCGAN(32, **SMALL, **NORMED), ACGAN(32, **SMALL, **NORMED), InfoGAN(32, **SMALL, **NORMED)):
        for network, some in ((model.generator, True), (model.discriminator, False)):
            assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) is some
            assert any("parametrizations" in name for name in network.state_dict()) is not some
    assert not any("mean.parametrizations" in name for name in model.state_dict()), "Q is not bounded"


@pytest.mark.parametrize("model", [DCGAN, ACGAN, InfoGAN])
def test_a_normed_model_is_copied_averaged_saved_and_loaded(model, tmp_path):
    torch.manual_seed(0)
    first, second = (model(32, **SMALL, **NORMED) for _ in range(2))
    average = deepcopy(first).eval()
    update_average(average, second, 0.75)
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            expected = 0.75 * first.state_dict()[name] + 0.25 * second.state_dict()[name]
            assert torch.allclose(value, expected, atol=1e-6), name
    save_weights(average, tmp_path)
    loaded = load_weights(second, tmp_path).eval()
    images = average.sample(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.sample(3, generator=torch.Generator().manual_seed(0)), images)
    answers = (network.discriminator(images) for network in (average, loaded))
    ours, theirs = (answer if isinstance(answer, tuple) else (answer,) for answer in answers)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_group_normalisation_in_bf16_is_that_of_float32(size, needs_grad):
    x = torch.randn(2, 16, size, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = x.to(memory_format=torch.channels_last).requires_grad_(needs_grad)
    norm = layers.GroupNorm(8, 16)
    torch.nn.init.normal_(norm.weight)
    found = norm(x)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.nn.functional.group_norm(x.float(), 8, norm.weight, norm.bias)
    torch.testing.assert_close(found.float(), wanted, rtol=0.01, atol=0.02)


def test_r1_penalty_of_a_linear_discriminator_is_half_the_square_of_its_slope():
    slope = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    penalty = layers.r1_penalty(lambda x: (x * slope).flatten(1).sum(1), torch.rand(5, 1, 4, 4))
    assert penalty.item() == pytest.approx(0.5 * slope.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 6, 9), (3, 9, 6)])
def test_orthogonal_keeps_the_directions_and_evens_out_the_sizes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = torch.linalg.svdvals(layers.orthogonal(x))
    assert ((s > 0.65) & (s < 1.25)).all(), "as far as five iterations bring them"
    torch.testing.assert_close(layers.orthogonal(100 * x), layers.orthogonal(x))
    # U and V are those of x: in its own axes the result is diagonal.
    own_u, sizes, own_vh = torch.linalg.svd(x, full_matrices=False)
    inner = own_u.mT @ layers.orthogonal(x) @ own_vh.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-6, rtol=0)
    sizes = sizes / sizes.norm(dim=1, keepdim=True)
    for _ in range(5):
        sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
    torch.testing.assert_close(inner.diagonal(dim1=1, dim2=2), sizes, atol=1e-6, rtol=0)


def test_muon_goes_down_in_steps_of_its_rate():
    """On Σ (W − target)² a step has the spectral norm lr √(out/in), and many small ones arrive."""
    target = torch.randn(8, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    weight, other = nn.Parameter(torch.zeros(8, 2, 2, 1)), nn.Parameter(torch.zeros(4, 4))
    muon = layers.Muon([weight, other], lr=0.1)
    for number in range(200):
        before = weight.detach().clone()
        muon.zero_grad()
        ((weight - target) ** 2).sum().backward()
        muon.param_groups[0]["lr"] = 0.1 * (1 - number / 200)
        muon.step()
        if number == 0:
            size = torch.linalg.matrix_norm((weight.detach() - before).reshape(8, 4), 2).item()
            assert size == pytest.approx(0.1 * 2**0.5, rel=0.3)
    assert (weight - target).abs().max() < 0.05
    assert not other.any(), "it had no gradient"


def test_muon_goes_on_from_its_state():
    def two_steps(stop: bool) -> torch.Tensor:
        weight = nn.Parameter(torch.ones(3, 5))
        muon = layers.Muon([weight], lr=0.1)
        for number in range(2):
            if number and stop:
                state = deepcopy(muon.state_dict())
                muon = layers.Muon([weight], lr=9.0)
                muon.load_state_dict(state)
            weight.grad = torch.arange(15.0).reshape(3, 5) * (-1) ** number + 1
            muon.step()
        return weight.detach()

    assert torch.equal(two_steps(stop=True), two_steps(stop=False))
