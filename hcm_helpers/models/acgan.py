"""GAN with an auxiliary classifier (Odena, Olah & Shlens 2017, arXiv 1610.09585): one network, five kinds of heart."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.augment import diff_augment
from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.dcgan import Generator, Trunk
from hcm_helpers.models.layers import Batch, CopyPenalty, Moves, divide_by_spectral_norm, game, r1_penalty, two_players


class ConditionalGenerator(nn.Module):
    """The DCGAN generator, told which group to draw: the class, one-hot, is appended to the noise.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        latent_dim: length of the noise vector z.
        width: channels of the last hidden layer.
        num_classes: how many groups there are.

    Shapes: z (B, latent_dim), c (B,) int64 → image (B, 1, image_size, image_size) in [−1, 1].
    """

    def __init__(self, image_size: int, latent_dim: int, width: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.draw = Generator(image_size, latent_dim + num_classes, width)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.draw(torch.cat([z, F.one_hot(c, self.num_classes).to(z)], dim=1))


class CosineClassifier(nn.Module):
    """Class logits cos(f, v_c) / τ of an embedding f of the features and one direction v_c a class.

    Both have length 1, so that no logit leaves [−1/τ, 1/τ] and G gains nothing by ever larger features: the remedy of
    ReACGAN against the collapse of an ACGAN, here without its term between pairs of images.

    Args:
        features: length of the features.
        num_classes: how many groups there are.
        embedding: length of f.
        temperature: τ; at 0.2 and five directions that are evenly spread the largest probability is 0.992.

    Shapes: features (B, features) → logits (B, num_classes).

    Source: Kang et al. 2021, arXiv 2111.01118, section 3.1.
    """

    def __init__(self, features: int, num_classes: int, embedding: int = 64, temperature: float = 0.2):
        super().__init__()
        self.embed = nn.Linear(features, embedding)
        self.directions = nn.Parameter(torch.randn(num_classes, embedding))
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        f = F.normalize(self.embed(features).float(), dim=1)
        v = F.normalize(self.directions.float(), dim=1)
        return f @ v.T / self.temperature


class Discriminator(nn.Module):
    """One trunk with two heads: is it real (source S), and which group is it (class C)?

    Args:
        image_size: height and width of the image.
        width: channels of the first layer.
        num_classes: how many groups there are.
        classifier: "linear" for class logits linear in the features, or "cosine", see `CosineClassifier`.
        batch_norm: of the trunk.

    Shapes: image (B, 1, image_size, image_size) → source logit (B,), class logits (B, num_classes).

    Raises:
        DataError: another classifier.
    """

    def __init__(
        self, image_size: int, width: int, num_classes: int, classifier: str = "linear", batch_norm: bool = True
    ):
        super().__init__()
        heads = {"linear": nn.Linear, "cosine": CosineClassifier}
        if classifier not in heads:
            raise DataError(f'classifier="{classifier}": choose "linear" or "cosine"')
        self.trunk = Trunk(image_size, width, batch_norm)
        self.source = nn.Linear(self.trunk.out_features, 1)
        self.classes = heads[classifier](self.trunk.out_features, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.source(features).squeeze(1), self.classes(features)


class ACGAN(nn.Module):
    """Both players of equations 6 and 7.

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        latent_dim: length of the noise vector z.
        width: channels next to the image in both networks.
        classifier: D's head for the class, "linear" or "cosine".
        class_weight: λ, the weight of L_C beside L_S; 1 in Odena et al. With a few dozen patients a group, D knows
            their groups by heart, and at λ = 1 G then collapses onto the few images that D is surest of.
        classify_fakes: D learns the class of drawn images, too, as equation 7 has it. The players can then agree on
            signs of a group that no heart has. Without it D learns from real slices only what a group looks like, as
            in Kang et al. 2021, arXiv 2111.01118.
        loss: of the source, "bce" or "hinge", see `layers.game`.
        spectral_norm: spectral normalisation in D, in place of batch normalisation.
        label_smoothing: D's target for the source of real images is 1 − label_smoothing, under "bce".
        gradient_penalty: weight γ of the R1 penalty on the source logit of D, 0 for none.
        augment: show D real and generated images through `diff_augment`.
        copy_penalty: weight of `layers.CopyPenalty` on G, 0 for none.
        num_classes: how many groups there are.
    """

    def __init__(
        self,
        image_size: int = 64,
        latent_dim: int = 100,
        width: int = 32,
        classifier: str = "linear",
        class_weight: float = 0.2,
        classify_fakes: bool = True,
        loss: str = "bce",
        spectral_norm: bool = False,
        label_smoothing: float = 0.1,
        gradient_penalty: float = 0.0,
        augment: bool = True,
        copy_penalty: float = 0.0,
        num_classes: int = len(GROUPS),
    ):
        super().__init__()
        check_image_size(image_size)
        self.generator = ConditionalGenerator(image_size, latent_dim, width, num_classes)
        self.discriminator = Discriminator(image_size, width, num_classes, classifier, batch_norm=not spectral_norm)
        if spectral_norm:
            divide_by_spectral_norm(self.discriminator)
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.class_weight, self.classify_fakes = class_weight, classify_fakes
        self.loss = game(loss, label_smoothing)
        self.gradient_penalty = gradient_penalty
        self.augment = diff_augment if augment else nn.Identity()
        self.copy_penalty = CopyPenalty(copy_penalty)

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam a player."""
        return two_players(self, learning_rate, betas)

    def train_step(self, batch: Batch) -> Moves:
        """D ascends L_S + λ L_C (equations 6 and 7), G ascends λ L_C − L_S and pays for copies.

        The paper's text has G ascend L_S − L_C, which would teach it to draw the wrong group; Odena et al. have
        it as it stands here. Under "bce" −L_S is taken in its non-saturating form, log P(S = real | X_fake); under
        "hinge" the hinge losses stand in the place of −L_S. Without `classify_fakes` D ascends the first term of L_C
        only, that of real slices; G its second one, as ever.
        """
        x, c, G, D, T = batch.images, batch.labels, self.generator, self.discriminator, self.augment
        loss, lambda_ = self.loss, self.class_weight
        z = torch.randn(len(x), self.latent_dim, device=x.device)
        c_fake = torch.randint(0, self.num_classes, (len(x),), device=x.device)
        x_fake = G(z, c_fake)

        S_real, C_real = D(T(x))
        S_fake, C_fake = D(T(x_fake.detach()))
        L_S = -loss.real(S_real) - loss.fake(S_fake)
        L_C_real, L_C_fake = -F.cross_entropy(C_real, c), -F.cross_entropy(C_fake, c_fake)
        L_C = L_C_real + L_C_fake
        loss_D = -(L_S + lambda_ * (L_C if self.classify_fakes else L_C_real))
        if self.gradient_penalty:
            loss_D = loss_D + self.gradient_penalty * r1_penalty(lambda images: D(images)[0], T(x))
        yield "discriminator", loss_D

        S_fake, C_fake = D(T(x_fake))
        loss_G = loss.fool(S_fake) + lambda_ * F.cross_entropy(C_fake, c_fake) + self.copy_penalty(x_fake)
        yield "generator", loss_G
        return {"generator": loss_G, "discriminator": loss_D, "L_S": L_S, "L_C": L_C}

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1], of the groups in labels (int64 (n,)), HCM without.

        Raises:
            DataError: a label outside the groups.
        """
        device = next(self.parameters()).device
        c = torch.full((n,), GROUPS.index("HCM")) if labels is None else labels.cpu()
        if len(c) != n or c.min() < 0 or c.max() >= self.num_classes:
            raise DataError(f"labels must be {n} numbers from 0 to {self.num_classes - 1}, the index of the group")
        z = torch.randn(n, self.latent_dim, generator=generator)
        return self.generator(z.to(device), c.to(device)).float()
