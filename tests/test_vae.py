"""VAE: the two terms of equation 3 against torch.distributions and sums done by hand."""

import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from hcm_helpers.acdc import DataError
from hcm_helpers.models import vae
from hcm_helpers.models.layers import Batch, count_parameters
from hcm_helpers.parallel import take_step

FABRIC = Fabric(accelerator="cpu", devices=1)  # float32 on any machine


def small(image_size=32, **settings):
    torch.manual_seed(0)
    return vae.VAE(image_size, latent_dim=6, width=8, **settings)


def batch(n=4, image_size=32):
    images = torch.rand(n, 1, image_size, image_size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, torch.full((n,), 3))


class Says(nn.Module):
    """A network that answers the same whatever it is asked; shapes are the answer's with a batch in front."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = [torch.as_tensor(answer, dtype=torch.float) for answer in answers]

    def forward(self, x):
        out = tuple(answer.expand(len(x), *answer.shape) for answer in self.answers)
        return out if len(out) > 1 else out[0]


# The KL divergence, equation 4.


@pytest.mark.parametrize(
    ("mu", "variance", "nats"),
    [
        ([0.0, 0.0], [1.0, 1.0], 0.0),  # the prior itself
        ([3.0, 4.0], [1.0, 1.0], 12.5),  # half the squared distance of the means
        ([0.0], [math.e], (math.e - 2) / 2),
        ([1.0], [0.25], 0.5 * (math.log(4) + 1 + 0.25 - 1)),
    ],
)
def test_kl_by_hand(mu, variance, nats):
    found = vae.kl_divergence(torch.tensor([mu]), torch.tensor([variance]).log())
    assert found.shape == (1,)
    assert found.item() == pytest.approx(nats, abs=1e-6)


def test_kl_against_torch_distributions():
    mu, log_variance = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)) * 2
    q = Normal(mu, (0.5 * log_variance).exp())
    expected = kl_divergence(q, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    assert torch.allclose(vae.kl_divergence(mu, log_variance), expected, rtol=1e-4)


# The reconstruction, −log p(x|z), and the draw of z.


@pytest.mark.parametrize("s", [1.0, 0.2])
def test_reconstruction_against_torch_distributions(s):
    model, x = small(), batch().images
    x_hat = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    model.decoder = Says(x_hat)
    model.log_s.data.fill_(math.log(s))
    expected = -Independent(Normal(x_hat.expand(4, 1, 32, 32), s), 3).log_prob(x).mean().item()
    assert model.losses(x)["reconstruction"].item() == pytest.approx(expected, rel=1e-5)


def test_kl_of_the_losses_is_that_of_what_the_encoder_says():
    model = small()
    model.encoder = Says([3.0, 4.0, 0, 0, 0, 0], [0.0] * 6)
    assert model.losses(batch().images)["kl"].item() == pytest.approx(12.5, abs=1e-5)


def test_z_is_drawn_around_mu_with_the_encoders_sigma():
    """With the decoder out of the way, the first output is z itself."""
    model = small()
    model.decoder = nn.Identity()
    model.encoder = Says([2.0, -1.0], [math.log(0.25), math.log(9.0)])  # σ = ½ and 3
    z, mu, log_variance = model(torch.zeros(20000, 1, 32, 32)[:, :, :1, :1], torch.Generator().manual_seed(0))
    assert torch.allclose(mu[0], torch.tensor([2.0, -1.0]))
    assert log_variance.shape == (20000, 2)
    assert torch.allclose(z.mean(0), torch.tensor([2.0, -1.0]), atol=0.1)
    assert torch.allclose(z.std(0), torch.tensor([0.5, 3.0]), rtol=0.03)


def test_the_draw_hands_gradients_to_mu_and_sigma():
    """The reparametrisation trick: ∂z/∂μ = 1 and ∂z/∂log σ² = σ ε / 2 = (z − μ) / 2."""
    model = small()
    mu, log_variance = torch.zeros(1, 2, requires_grad=True), torch.tensor([[0.0, 1.0]], requires_grad=True)
    model.encoder, model.decoder = Says(0.0), nn.Identity()
    model.encoder.forward = lambda x: (mu, log_variance)
    z, *_ = model(torch.zeros(1, 1, 32, 32))
    z.sum().backward()
    assert torch.equal(mu.grad, torch.ones(1, 2))
    assert torch.allclose(log_variance.grad, z.detach() / 2)


# The step.


def test_step_moves_both_networks_and_s_and_reports_the_sum():
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = model.optimizers(1e-3, (0.5, 0.999))
    for _ in range(2):  # in the first step the residual blocks add nothing, and only their last layer hears of it
        losses = take_step(model, batch(), optimizers, FABRIC)
    assert losses["loss"].item() == pytest.approx((losses["reconstruction"] + losses["kl"]).item())
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert not still


def test_s_settles_at_the_error_that_the_decoder_makes():
    """−log p(x|z) is least where s² is the mean squared error: here 0.34², so s = 0.34."""
    model = small(augment=False)
    model.encoder, model.decoder = Says([0.0] * 6, [0.0] * 6), Says(torch.zeros(1, 32, 32))
    x = Batch(torch.full((4, 1, 32, 32), 0.34), torch.zeros(4))
    optimizers = model.optimizers(2e-4, (0.5, 0.999))
    for _ in range(60):  # far fewer than a training has, at the paper's learning rate
        take_step(model, x, optimizers, FABRIC)
    assert model.log_s.exp().item() == pytest.approx(0.34, rel=0.02)


def test_training_lowers_the_loss():
    model, x = small(augment=False), batch(8)
    optimizers = model.optimizers(1e-3, (0.5, 0.999))
    losses = [take_step(model, x, optimizers, FABRIC)["loss"].item() for _ in range(12)]
    assert losses[-1] < losses[0] - 20


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (900, 1.0)])
def test_the_weight_of_kl_rises_by_a_line_from_0_to_1(step, weight):
    model = small(kl_warmup=4)
    model.steps.fill_(step)
    assert float(model.kl_weight()) == weight
    assert float(small().kl_weight()) == 1


def test_warmup_takes_kl_out_of_the_step_but_not_out_of_what_is_told():
    """An encoder far from the prior, and a decoder that does not listen: only KL can move the encoder."""
    moves, losses = [], []
    for kl_warmup in (2, 0):
        model = small(augment=False, kl_warmup=kl_warmup)
        model.decoder = Says(torch.zeros(1, 32, 32))
        optimizers = model.optimizers(1e-3, (0.5, 0.999))
        bias = model.encoder.layers[-1].bias
        for _ in range(2):
            before = bias.detach().clone()
            losses.append(take_step(model, batch(), optimizers, FABRIC))
            moves.append(not torch.equal(before, bias))
            assert losses[-1]["loss"].item() == pytest.approx(
                sum(losses[-1][k].item() for k in ("reconstruction", "kl"))
            )
    assert moves == [False, True, True, True]
    assert losses[0]["kl"] == losses[2]["kl"] > 0


def test_validation_knows_no_warmup():
    model, warming = small(), small(kl_warmup=1000)
    first, second = (m.validation_loss(batch(), torch.Generator().manual_seed(0)) for m in (model, warming))
    assert first == second


def test_the_warmup_goes_on_where_the_weights_were_saved():
    model, again = small(kl_warmup=8), small(kl_warmup=8)
    optimizers = model.optimizers(1e-3, (0.5, 0.999))
    for _ in range(2):
        take_step(model, batch(), optimizers, FABRIC)
    again.load_state_dict(model.state_dict())
    assert float(again.kl_weight()) == 0.25


# What the trained model is told by: bits per dimension and active units.


@pytest.mark.parametrize("s", [1.0, 0.1])
def test_bits_per_dim_of_a_decoder_that_is_right(s):
    """No error and no KL: the density of each pixel is 1 / (s √(2π)), its bin is 2/255 wide."""
    model, x = small(), torch.zeros(3, 1, 32, 32)
    model.encoder, model.decoder = Says([0.0] * 6, [0.0] * 6), Says(torch.zeros(1, 32, 32))
    model.log_s.data.fill_(math.log(s))
    expected = -math.log2(2 / 255 / (s * math.sqrt(2 * math.pi)))
    assert model.bits_per_dim(x) == pytest.approx(expected, abs=1e-5)
    model.encoder = Says([3.0, 4.0, 0, 0, 0, 0], [0.0] * 6)  # 12.5 nats, shared by 1024 pixels
    assert model.bits_per_dim(x) == pytest.approx(expected + 12.5 / math.log(2) / 1024, abs=1e-5)


def test_bits_per_dim_of_a_model_that_knows_nothing_is_about_eight():
    """All grey values alike: a normal distribution as wide as them loses 0.25 bits to the uniform one."""
    model = small()
    model.encoder, model.decoder = Says([0.0] * 6, [0.0] * 6), Says(torch.zeros(1, 32, 32))
    model.log_s.data.fill_(math.log(math.sqrt(1 / 3)))
    assert model.bits_per_dim(batch(100).images) == pytest.approx(8 + 0.25, abs=0.02)


def test_active_units_are_those_whose_mean_follows_the_image():
    class Reads(nn.Module):
        """μ: the brightness; a constant; a tenth of the brightness; a twentieth of it."""

        def forward(self, x):
            brightness = x.mean((1, 2, 3))
            mu = torch.stack([brightness, torch.full_like(brightness, 7.0), brightness / 9, brightness / 11], dim=1)
            return mu, torch.zeros_like(mu)

    model = small()
    model.encoder = Reads()
    images = torch.tensor([-1.0, 1.0]).repeat(500)[:, None, None, None].expand(1000, 1, 32, 32)  # variance 1
    assert model.active_units(images).tolist() == [True, False, True, False]  # 1, 0, 1/81, 1/121
    assert model.active_units(images, threshold=0.1).tolist() == [True, False, False, False]


def test_augmentation_is_for_training_alone():
    model = small()
    model.augment = lambda x: torch.full_like(x, math.nan)
    loss = model.validation_loss(batch(), torch.Generator().manual_seed(0))
    assert torch.isfinite(loss)
    assert math.isnan(take_step(model, batch(), model.optimizers(1e-3, (0.5, 0.999)), FABRIC)["loss"].item())


def test_validation_loss_is_the_sum_of_both_terms_and_hears_the_generator():
    model = small()
    first, again, other = (
        model.validation_loss(batch(), torch.Generator().manual_seed(seed)).item() for seed in (0, 0, 1)
    )
    terms = model.losses(batch().images, torch.Generator().manual_seed(0))
    assert first == again == pytest.approx(sum(term.item() for term in terms.values()))
    assert first != other


# Networks and samples.


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_shapes_and_range(image_size):
    model = small(image_size)
    x_hat, mu, log_variance = model(batch(2, image_size).images)
    assert mu.shape == log_variance.shape == (2, 6)
    for images in (x_hat, model.sample(2)):
        assert images.shape == (2, 1, image_size, image_size)
        assert images.dtype == torch.float32
        assert images.abs().max() <= 1


def test_channels_double_with_each_halving_up_to_eight_times():
    assert vae.channel_plan(32, 8) == [8, 16, 32]
    assert vae.channel_plan(64, 32) == [32, 64, 128, 256]
    assert vae.channel_plan(256, 8) == [8, 16, 32, 64, 64, 64]


def test_number_of_parameters_by_hand():
    """Width 8, 6 latent numbers, 32×32: convolutions 4×4, in the encoder group normalisation; blocks 1×1, 3×3, 1×1."""
    encoder = (16 * 8 + 8) + (16 * 8 * 16 + 16 + 32) + (16 * 16 * 32 + 32 + 64) + (32 * 16 * 12 + 12)
    decoder = (6 * 512 + 512) + (16 * 32 * 16 + 16) + (16 * 16 * 8 + 8) + (16 * 8 + 1)
    assert count_parameters(small(num_blocks=0)) == encoder + decoder + 1  # and s
    blocks = sum((c * c // 4 + c // 4) + (9 * c * c // 16 + c // 4) + (c * c // 4 + c) for c in (16, 32))
    assert count_parameters(small(num_blocks=2)) == encoder + decoder + 1 + 2 * 2 * blocks


def test_a_residual_block_adds_to_what_comes_in_and_begins_with_nothing():
    block = vae.ResidualBlock(8)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x)
    nn.init.ones_(block.layers[-1].bias)
    assert torch.equal(block(x), x + 1)


def test_a_width_that_the_groups_do_not_divide_is_refused():
    with pytest.raises(DataError, match=r"width=12: .*multiple of 8"):
        vae.VAE(32, width=12)


def test_other_sizes_are_refused_with_the_reason():
    with pytest.raises(DataError, match=r"image_size=50: .*halve.*one of 32, 64, 128, 256"):
        vae.VAE(50)


def test_same_seed_gives_the_same_bytes_and_another_seed_others():
    model = small().eval()
    images, again, other = (model.sample(3, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert images.numpy().tobytes() == again.numpy().tobytes()
    assert not torch.equal(images, other)
    assert not torch.equal(images[0], images[1])


def test_samples_are_the_decoded_prior():
    """The decoder out of the way: standard normal numbers come out."""
    model = small()
    model.decoder = nn.Identity()
    z = model.sample(20000, generator=torch.Generator().manual_seed(0))
    assert z.shape == (20000, 6)
    assert torch.allclose(z.mean(0), torch.zeros(6), atol=0.03)
    assert torch.allclose(torch.cov(z.T), torch.eye(6), atol=0.05)


def test_the_fitted_prior_lies_where_the_encoder_puts_the_images():
    """Two heaps of clouds: the fitted prior draws from both and from nowhere between; N(0, I) draws between them."""

    class Heaps(nn.Module):
        def forward(self, x):
            sign = torch.where(x[:, 0, 0, 0] > 0, 1.0, -1.0)[:, None]
            return 3 * sign * torch.ones(len(x), 6), torch.full((len(x), 6), math.log(0.1**2))

    model = small(augment=False, prior_components=2)
    model.encoder, model.decoder = Heaps(), nn.Identity()
    images = torch.ones(40, 1, 32, 32)
    images[10:] = -1  # a quarter is in the first heap
    state = torch.get_rng_state()
    model.fit_prior(images)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's randomness is left alone
    z = model.sample(20000, generator=torch.Generator().manual_seed(0))
    first = z[:, 0] > 0
    assert first.float().mean() == pytest.approx(0.25, abs=0.02)
    for heap, centre in ((z[first], 3.0), (z[~first], -3.0)):
        assert torch.allclose(heap.mean(0), torch.full((6,), centre), atol=0.03)
        assert torch.allclose(heap.std(0), torch.full((6,), 0.1), atol=0.03)


def test_the_fitted_prior_is_saved_with_the_weights():
    model, again = small(), small()
    model.fit_prior(batch(20).images)
    again.load_state_dict(model.state_dict())
    first, second = (m.sample(3, generator=torch.Generator().manual_seed(0)) for m in (model.eval(), again.eval()))
    assert torch.equal(first, second)
