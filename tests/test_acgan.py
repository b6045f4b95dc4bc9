"""ACGAN: the signs of equations 6 and 7, labels that are obeyed, labels that are refused."""

from math import log

import pytest
import torch
from torch import nn

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.devices import make_fabric
from hcm_helpers.models import acgan, layers
from hcm_helpers.models.layers import Batch
from hcm_helpers.parallel import take_step

NO_STEP = {"learning_rate": 0.0, "betas": (0.5, 0.999)}


def small(image_size=32, **settings):
    torch.manual_seed(0)
    return acgan.ACGAN(image_size, **{"latent_dim": 10, "width": 8, **settings})


class Painter(nn.Module):
    """A generator that paints the whole picture in the grey of its class, and notes what it was asked for."""

    def __init__(self, greys):
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(greys))
        self.asked = None

    def forward(self, z, c):
        self.asked = c
        return self.grey[c][:, None, None, None].expand(len(c), 1, 32, 32)


class Judge(nn.Module):
    """A discriminator with logits linear in the picture's mean grey m: source a·m, classes (b·m, −b·m)."""

    def __init__(self, source, classes):
        super().__init__()
        self.source, self.classes = nn.Parameter(torch.tensor(source)), nn.Parameter(torch.tensor(classes))

    def forward(self, x):
        m = x.mean(dim=(1, 2, 3))
        return self.source * m, torch.stack([self.classes * m, -self.classes * m], dim=1)


def with_stubs(greys, source, classes, **settings):
    model = small(num_classes=2, label_smoothing=0.0, augment=False, class_weight=0.5, **settings)
    model.generator, model.discriminator = Painter(greys), Judge(source, classes)
    return model


def test_losses_against_equations_6_and_7_by_hand():
    # Real pictures are white (m = 1) and of class 0; the generator paints all of its own black (m = −1).
    # P(S=real|white) = σ(log 3) = 3/4, P(S=real|black) = 1/4; P(C=0|white) = 4/5, P(C=0|black) = 1/5.
    model = with_stubs(greys=[-1.0, -1.0], source=log(3), classes=log(2))
    white = Batch(torch.ones(8, 1, 32, 32), torch.zeros(8, dtype=torch.long))
    losses = take_step(model, white, model.optimizers(**NO_STEP), make_fabric())

    asked = model.generator.asked
    log_class = torch.where(asked == 0, log(1 / 5), log(4 / 5)).mean().item()
    L_S = log(3 / 4) + log(3 / 4)
    L_C = log(4 / 5) + log_class
    assert losses["L_S"].item() == pytest.approx(L_S, abs=1e-5)
    assert losses["L_C"].item() == pytest.approx(L_C, abs=1e-5)
    assert losses["discriminator"].item() == pytest.approx(-(L_S + 0.5 * L_C), abs=1e-5)
    # G ascends λ L_C − L_S, with log P(S=real|X_fake) in place of −L_S
    assert losses["generator"].item() == pytest.approx(-(log(1 / 4) + 0.5 * log_class), abs=1e-5)


def test_without_classify_fakes_only_real_slices_teach_d_the_class():
    # As above, but D's loss lacks the class of what was drawn; L_C is told whole, and G's loss is the same.
    model = with_stubs(greys=[-1.0, -1.0], source=log(3), classes=log(2), classify_fakes=False)
    white = Batch(torch.ones(8, 1, 32, 32), torch.zeros(8, dtype=torch.long))
    losses = take_step(model, white, model.optimizers(**NO_STEP), make_fabric())

    log_class = torch.where(model.generator.asked == 0, log(1 / 5), log(4 / 5)).mean().item()
    assert losses["L_C"].item() == pytest.approx(log(4 / 5) + log_class, abs=1e-5)
    assert losses["discriminator"].item() == pytest.approx(-(2 * log(3 / 4) + 0.5 * log(4 / 5)), abs=1e-5)
    assert losses["generator"].item() == pytest.approx(-(log(1 / 4) + 0.5 * log_class), abs=1e-5)


def test_hinge_takes_the_place_of_equation_6_and_the_penalty_that_of_the_source():
    # Source logits ½ for white and −½ for black: 1 − ½ = ½ real, 1 − ½ = ½ generated; G: −(−½). The source is ½ of a
    # mean over 32² pixels, so its slope has the square ¼ / 32²; the classes have none of this penalty.
    model = with_stubs(greys=[-1.0, -1.0], source=0.5, classes=0.0)
    model.loss, model.gradient_penalty = layers.game("hinge"), 1000.0
    white = Batch(torch.ones(8, 1, 32, 32), torch.zeros(8, dtype=torch.long))
    losses = take_step(model, white, model.optimizers(**NO_STEP), make_fabric())
    assert losses["L_S"].item() == pytest.approx(-1.0, abs=1e-5)
    penalty = 1000 * 0.5 * 0.25 / 32**2
    assert losses["discriminator"].item() == pytest.approx(1.0 + 0.5 * 2 * log(2) + penalty, abs=1e-4)
    assert losses["generator"].item() == pytest.approx(0.5 + 0.5 * log(2), abs=1e-5)


def test_cosine_classifier_by_hand():
    # Embeddings (3, 4) and (0, −2) have the directions (0.6, 0.8) and (0, −1); the classes lie along (1, 0) and (0, 1).
    head = acgan.CosineClassifier(2, num_classes=2, embedding=2, temperature=0.5)
    head.embed.weight.data, head.embed.bias.data = torch.eye(2), torch.zeros(2)
    head.directions.data = torch.tensor([[7.0, 0.0], [0.0, 0.1]])
    logits = head(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    assert logits.flatten().tolist() == pytest.approx([1.2, 1.6, 0.0, -2.0], abs=1e-6)


def test_no_class_logit_of_the_cosine_classifier_leaves_its_bounds():
    model = small(classifier="cosine")
    for weight in model.discriminator.classes.parameters():
        weight.data *= 1000
    _, classes = model.discriminator(torch.rand(8, 1, 32, 32))
    assert classes.abs().max() <= 5.0001


def test_another_classifier_is_refused():
    with pytest.raises(DataError, match='classifier="softmax": choose "linear" or "cosine"'):
        small(classifier="softmax")


def test_generator_moves_towards_the_class_it_was_asked_for():
    # Class 0 is white, class 1 is black, and the source does not depend on the picture: only L_C moves G.
    # G on L_S − L_C, as the paper's text has it, would paint class 0 black and class 1 white.
    model = with_stubs(greys=[0.0, 0.0], source=0.0, classes=1.0)
    optimizers = model.optimizers(learning_rate=0.01, betas=(0.5, 0.999))
    batch = Batch(torch.zeros(16, 1, 32, 32), torch.arange(16) % 2)
    take_step(model, batch, optimizers, make_fabric())
    white, black = model.generator.grey.tolist()
    assert white > 0 > black


def test_generator_moves_towards_what_looks_real():
    # White looks real, and the classes do not depend on the picture: only L_S moves G.
    model = with_stubs(greys=[0.0, 0.0], source=1.0, classes=0.0)
    optimizers = model.optimizers(learning_rate=0.01, betas=(0.5, 0.999))
    batch = Batch(torch.ones(16, 1, 32, 32), torch.arange(16) % 2)
    take_step(model, batch, optimizers, make_fabric())
    assert min(model.generator.grey.tolist()) > 0


@pytest.mark.parametrize("image_size", [32, 64, 128, 256])
def test_shapes(image_size):
    model = small(image_size)
    images = model.sample(3, torch.tensor([0, 2, 4]))
    assert images.shape == (3, 1, image_size, image_size)
    source, classes = model.discriminator(images)
    assert source.shape == (3,)
    assert classes.shape == (3, len(GROUPS))


@pytest.mark.parametrize("labels", [[0, 5], [-1, 0], [0], [0, 1, 2]])
def test_labels_outside_the_groups_or_too_few_are_refused(labels):
    with pytest.raises(DataError, match="from 0 to 4"):
        small().sample(2, torch.tensor(labels))


def test_label_changes_the_image_and_hcm_is_the_default():
    model = small()

    def draw(labels):
        return model.sample(4, labels, torch.Generator().manual_seed(3))

    hcm, normal = (torch.full((4,), GROUPS.index(group)) for group in ("HCM", "NOR"))
    assert torch.equal(draw(None), draw(hcm))
    assert not torch.equal(draw(hcm), draw(normal))


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "hinge", "spectral_norm": True, "classifier": "cosine"}], ids=["2017", "normed"]
)
def test_images_follow_their_label_after_a_short_training(settings):
    """Class 0 is bright on the left, class 1 on the right: the brighter half tells the class."""

    def halves(n, generator):
        c = torch.randint(0, 2, (n,), generator=generator)
        x = 0.2 * torch.randn(n, 1, 32, 32, generator=generator) - 0.6
        left = (torch.arange(32) < 16).float()
        return Batch((x + 1.2 * torch.where(c[:, None, None, None] == 0, left, 1 - left)).clamp(-1, 1), c)

    model = small(num_classes=2, augment=False, class_weight=1.0, **settings)
    optimizers, fabric = model.optimizers(1e-3, (0.5, 0.999)), make_fabric()
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        take_step(model, halves(16, generator), optimizers, fabric)
    labels = torch.arange(100) % 2
    images = model.eval().sample(100, labels, torch.Generator().manual_seed(1))
    difference = images[..., 16:].mean(dim=(1, 2, 3)) - images[..., :16].mean(dim=(1, 2, 3))
    assert ((difference > 0) == (labels == 1)).float().mean() > 0.95
    assert difference.abs().mean() > 0.5
