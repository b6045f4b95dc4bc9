"""InfoGAN: the bound of equation 8 where its value is known, and the codes."""

from math import log, pi

import pytest
import torch
from torch import nn

from hcm_helpers.acdc import DataError
from hcm_helpers.devices import make_fabric
from hcm_helpers.models import infogan
from hcm_helpers.models.layers import Batch
from hcm_helpers.parallel import take_step
from hcm_helpers.training import generate

CEILING = log(2) - 0.5 * log(2 * pi)  # of one continuous code: −0.2258 nats, Q being a normal of variance 1


def small(image_size=32, **settings):
    torch.manual_seed(0)
    return infogan.InfoGAN(image_size, **{"latent_dim": 10, "width": 8, **settings})


def category_part(logits, category):
    """The bound without its continuous part: Q's means are right, so that part is two ceilings."""
    codes = torch.zeros(len(category), 2)
    model = small(num_categories=logits.shape[1], num_continuous=2)
    return model.mutual_information((logits, codes, codes), category, codes).item() - 2 * CEILING


@pytest.mark.parametrize("num_categories", [2, 4, 10])
def test_a_q_that_is_right_reaches_the_entropy_of_the_category(num_categories):
    category = torch.arange(50) % num_categories
    logits = 100 * nn.functional.one_hot(category, num_categories).float()
    assert category_part(logits, category) == pytest.approx(log(num_categories), abs=1e-5)


def test_a_q_that_knows_nothing_finds_no_information():
    category = torch.arange(50) % 4
    assert category_part(torch.zeros(50, 4), category) == pytest.approx(0, abs=1e-5)


def test_category_part_never_exceeds_its_entropy():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1, 10, 100):
        for _ in range(5):
            logits = scale * torch.randn(64, 4, generator=generator)
            category = torch.randint(0, 4, (64,), generator=generator)
            assert category_part(logits, category) <= log(4) + 1e-5


def test_bound_of_a_noisy_channel_is_tight_for_the_posterior_and_below_for_any_other_q():
    # The picture shows the category, but one time in four one of the three others, each as often:
    # I = log 4 − H(1/4) − ¼ log 3, in nats. 48 pictures of each category hold these shares exactly.
    category = torch.arange(4).repeat_interleave(48)
    shown = torch.cat([torch.tensor([c] * 36 + [k for k in range(4) if k != c] * 4) for c in range(4)])
    information = log(4) + 0.75 * log(0.75) + 0.25 * log(0.25) - 0.25 * log(3)

    def bound(trust):
        q = torch.full((len(shown), 4), (1 - trust) / 3)
        q[torch.arange(len(shown)), shown] = trust
        return category_part(q.log(), category)

    assert bound(0.75) == pytest.approx(information, abs=1e-5)
    assert all(bound(trust) < information - 1e-3 for trust in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99))


def test_continuous_part_by_hand():
    # Codes (0.5, −1) and (0, 0.2), means (0, 0) and (0, 1): squared errors 1.25 and 0.64, on average 0.945.
    # log N(c; mean, 1) = −0.945/2 − 2·½ log 2π = −2.310377; the codes' entropy is 2 log 2 = 1.386294.
    codes, means = torch.tensor([[0.5, -1.0], [0.0, 0.2]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    model = small(num_categories=4, num_continuous=2)
    bound = model.mutual_information((torch.zeros(2, 4), means, 0 * means), torch.tensor([0, 3]), codes)
    assert bound.item() == pytest.approx(-2.310377 + 1.386294, abs=1e-5)


def test_continuous_part_with_a_sigma_by_hand():
    # One code ½, read as ¼ with σ = ½: log N = −½ (½)² − log ½ − ½ log 2π = −0.125 + 0.693147 − 0.918939.
    model = small(num_categories=2, num_continuous=1)
    q = torch.zeros(1, 2), torch.tensor([[0.25]]), torch.tensor([[log(0.5)]])
    bound = model.mutual_information(q, torch.tensor([1]), torch.tensor([[0.5]]))
    assert bound.item() == pytest.approx(-0.125 + 0.693147 - 0.918939 + log(2), abs=1e-5)


def test_a_q_that_states_its_error_reaches_the_information_of_a_noisy_reading():
    # The reading is the code and noise of σ = 0.1: I ≈ log 2 − log(0.1 √2πe) = 1.577 nats but for the ends. No other
    # stated σ comes as near.
    generator = torch.Generator().manual_seed(0)
    codes = 2 * torch.rand(200_000, 1, generator=generator) - 1
    reading = codes + 0.1 * torch.randn(codes.shape, generator=generator)
    model = small(num_categories=2, num_continuous=1)
    category = torch.zeros(len(codes), dtype=torch.long)

    def bound(sigma):
        q = torch.zeros(len(codes), 2), reading, torch.full_like(codes, log(sigma))
        return model.mutual_information(q, category, codes).item()

    assert bound(0.1) == pytest.approx(log(2) - log(0.1) - 0.5 * log(2 * pi) - 0.5, abs=0.01)
    assert all(bound(sigma) < bound(0.1) - 0.02 for sigma in (0.05, 0.08, 0.13, 0.5, 1.0))


@pytest.mark.parametrize("least_sigma", [1.0, 0.2])
def test_q_states_a_sigma_between_the_least_and_1(least_sigma):
    model = small(least_sigma=least_sigma)
    for weight in model.discriminator.sigma.parameters():
        weight.data *= 1000
    *_, log_sigma = model.discriminator(2 * torch.rand(50, 1, 32, 32) - 1)
    assert log_sigma.exp().min() >= least_sigma - 1e-6
    assert log_sigma.exp().max() <= 1 + 1e-6
    assert (log_sigma.unique().numel() > 1) is (least_sigma < 1)


@pytest.mark.parametrize("least_sigma", [0.0, -1.0, 1.5])
def test_a_least_sigma_outside_of_its_range_is_refused(least_sigma):
    with pytest.raises(DataError, match=f"least_sigma={least_sigma}"):
        small(least_sigma=least_sigma)


def test_codes_are_uniform():
    model = small(num_categories=4, num_continuous=2)
    z, category, continuous = model.noise(20_000, torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 10)
    assert abs(z.mean()) < 0.01
    assert z.var().item() == pytest.approx(1, abs=0.02)
    # 5000 are expected in each quarter, with a standard deviation of 61
    assert torch.bincount(category, minlength=4).tolist() == pytest.approx([5000] * 4, abs=250)
    assert continuous.shape == (20_000, 2)
    assert continuous.abs().max() <= 1
    for code in continuous.T:
        assert torch.histc(code, 4, -1, 1).tolist() == pytest.approx([5000] * 4, abs=250)
    assert abs(torch.corrcoef(continuous.T)[0, 1]) < 0.03


@pytest.mark.parametrize("image_size", [32, 64, 128, 256])
def test_shapes(image_size):
    model = small(image_size, num_categories=3, num_continuous=5)
    images = model.sample(2)
    assert images.shape == (2, 1, image_size, image_size)
    source, *q = model.discriminator(images)
    assert source.shape == (2,)
    assert [part.shape for part in q] == [(2, 3), (2, 5), (2, 5)]


def test_same_seed_gives_the_same_images_and_another_seed_others():
    model = small()
    assert torch.equal(generate(model, 5, seed=0), generate(model, 5, seed=0))
    images, again, others = (model.sample(5, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(images, again)
    assert not torch.equal(images, others)


def test_each_code_changes_the_image():
    model = small(num_categories=4, num_continuous=2)
    z = torch.randn(1, 10, generator=torch.Generator().manual_seed(0)).expand(6, -1)
    category = torch.tensor([0, 1, 0, 0, 2, 3])
    continuous = torch.tensor([[0.0, 0], [0, 0], [1, 0], [0, 1], [0, 0], [0, 0]])
    images = model.generate(z, category, continuous)
    differences = (images[:, None] - images[None]).abs().flatten(2).mean(2) + torch.eye(6)
    assert differences.min() > 1e-4


class Painter(nn.Module):
    """A generator that paints the whole picture in the grey of its category, whatever z and the codes are."""

    def __init__(self):
        super().__init__()
        self.grey = nn.Parameter(torch.zeros(2))

    def forward(self, zc):
        return (zc[:, 10:12] @ self.grey)[:, None, None, None].expand(len(zc), 1, 32, 32)


class Judge(nn.Module):
    """D = ½ for all; Q takes white pictures for category 0, black ones for category 1, all codes for 0."""

    def __init__(self):
        super().__init__()
        self.trust = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        m = self.trust * x.mean(dim=(1, 2, 3))
        return 0 * m, torch.stack([m, -m], dim=1), torch.zeros(len(x), 2), torch.zeros(len(x), 2)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_generator_paints_what_q_can_read(weight):
    model = small(num_categories=2, mutual_information_weight=weight, augment=False)
    model.generator, model.discriminator = Painter(), Judge()
    optimizers = model.optimizers(learning_rate=0.01, betas=(0.5, 0.999))
    take_step(model, Batch(torch.zeros(32, 1, 32, 32), torch.zeros(32).long()), optimizers, make_fabric())
    white, black = model.generator.grey.tolist()
    assert (white > 0 > black) if weight else (white == black == 0)


def test_losses_against_equation_8_by_hand():
    # All pictures grey: D = ½, Q knows nothing of the category and says 0 for both codes.
    model = small(num_categories=2, label_smoothing=0.0, mutual_information_weight=0.5, augment=False)
    model.generator, model.discriminator = Painter(), Judge()
    drawn = []
    model.noise = lambda n, device: drawn.append(infogan.InfoGAN.noise(model, n, device=device)) or drawn[-1]
    optimizers = model.optimizers(learning_rate=0.0, betas=(0.5, 0.999))
    batch = Batch(torch.zeros(8, 1, 32, 32), torch.zeros(8).long())
    losses = take_step(model, batch, optimizers, make_fabric())
    codes = drawn[0][2]
    L_I = 2 * CEILING - 0.5 * codes.square().sum().item() / 8
    assert losses["mutual_information"].item() == pytest.approx(L_I, abs=1e-5)
    assert losses["discriminator"].item() == pytest.approx(2 * log(2) - 0.5 * L_I, abs=1e-5)
    assert losses["generator"].item() == pytest.approx(log(2) - 0.5 * L_I, abs=1e-5)


def test_hinge_and_penalty_in_equation_8_by_hand():
    # D says 0 for all: hinge 1 + 1, G 0; its source is 0 · mean, so that the penalty is 0.
    model = small(num_categories=2, loss="hinge", mutual_information_weight=0.0, gradient_penalty=1.0, augment=False)
    model.generator, model.discriminator = Painter(), Judge()
    optimizers = model.optimizers(learning_rate=0.0, betas=(0.5, 0.999))
    losses = take_step(model, Batch(torch.zeros(8, 1, 32, 32), torch.zeros(8).long()), optimizers, make_fabric())
    assert losses["discriminator"].item() == pytest.approx(2, abs=1e-5)
    assert losses["generator"].item() == pytest.approx(0, abs=1e-5)
