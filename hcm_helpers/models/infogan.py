"""InfoGAN (Chen et al. 2016, arXiv 1606.03657): a GAN whose noise has named knobs, found without any label."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.acdc import DataError
from hcm_helpers.augment import diff_augment
from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.dcgan import Generator, Trunk
from hcm_helpers.models.layers import Batch, CopyPenalty, Moves, divide_by_spectral_norm, game, r1_penalty, two_players


class Discriminator(nn.Module):
    """D and Q on one trunk: is it real, and which code c was it drawn from?

    Args:
        image_size: height and width of the image.
        width: channels of the first layer.
        num_categories, num_continuous: of the codes.
        least_sigma: the least standard deviation that Q can state; 1 fixes it to 1.
        batch_norm: of the trunk.

    Shapes: image (B, 1, image_size, image_size) → source logit (B,); the parameters of Q(c|x): logits of the
    categorical code (B, num_categories), means μ of the continuous codes (B, num_continuous) and the logarithms of
    their standard deviations σ (B, num_continuous), between log least_sigma and 0.
    """

    def __init__(
        self,
        image_size: int,
        width: int,
        num_categories: int,
        num_continuous: int,
        least_sigma: float = 1.0,
        batch_norm: bool = True,
    ):
        super().__init__()
        self.trunk = Trunk(image_size, width, batch_norm)
        self.source = nn.Linear(self.trunk.out_features, 1)
        self.Q = nn.Sequential(nn.Linear(self.trunk.out_features, 128), nn.LeakyReLU(0.2))
        self.category = nn.Linear(128, num_categories)
        self.mean = nn.Linear(128, num_continuous)
        self.sigma = nn.Linear(128, num_continuous)
        self.least_sigma = least_sigma

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.trunk(x)
        q = self.Q(features)
        log_sigma = math.log(self.least_sigma) * self.sigma(q).sigmoid()
        return self.source(features).squeeze(1), self.category(q), self.mean(q), log_sigma


class InfoGAN(nn.Module):
    """Players of equation 8.

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        latent_dim: length of the incompressible noise z.
        width: channels next to the image in both networks.
        num_categories: values of the one categorical code, drawn with equal probability.
        num_continuous: continuous codes, each uniform on [−1, 1].
        mutual_information_weight: λ of equation 8.
        least_sigma: the least standard deviation that Q can state of a continuous code, in (0, 1]; 1 fixes it to 1.
        loss: "bce" or "hinge", see `layers.game`.
        spectral_norm: spectral normalisation in D and its trunk, in place of batch normalisation; Q stays free.
        label_smoothing: D's target for real images is 1 − label_smoothing, under "bce".
        gradient_penalty: weight γ of the R1 penalty on D, 0 for none.
        copy_penalty: weight of `layers.CopyPenalty` on G, 0 for none.
        augment: show D real and generated images through `diff_augment`.

    Raises:
        DataError: least_sigma outside (0, 1].
    """

    def __init__(
        self,
        image_size: int = 64,
        latent_dim: int = 100,
        width: int = 32,
        num_categories: int = 4,
        num_continuous: int = 2,
        mutual_information_weight: float = 1.0,
        least_sigma: float = 1.0,
        loss: str = "bce",
        spectral_norm: bool = False,
        label_smoothing: float = 0.1,
        gradient_penalty: float = 0.0,
        augment: bool = True,
        copy_penalty: float = 0.0,
    ):
        super().__init__()
        check_image_size(image_size)
        if not 0 < least_sigma <= 1:
            raise DataError(f"least_sigma={least_sigma}: choose more than 0 and at most 1, which fixes it to 1")
        codes = num_categories, num_continuous
        self.generator = Generator(image_size, latent_dim + sum(codes), width)
        self.discriminator = Discriminator(image_size, width, *codes, least_sigma, batch_norm=not spectral_norm)
        if spectral_norm:
            divide_by_spectral_norm(self.discriminator.trunk)
            divide_by_spectral_norm(self.discriminator.source)
        self.latent_dim, self.num_categories, self.num_continuous = latent_dim, *codes
        self.mutual_information_weight = mutual_information_weight
        self.loss = game(loss, label_smoothing)
        self.gradient_penalty = gradient_penalty
        self.copy_penalty = CopyPenalty(copy_penalty)
        self.augment = diff_augment if augment else nn.Identity()

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam a player; Q sits on D's trunk and moves with it, as both players want L_I high."""
        return two_players(self, learning_rate, betas)

    def noise(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw z ~ N(0, I) (n, latent_dim), a category (n,) int64 and codes in [−1, 1] (n, num_continuous)."""
        draw = {"generator": generator, "device": device}
        z = torch.randn(n, self.latent_dim, **draw)
        category = torch.randint(0, self.num_categories, (n,), **draw)
        continuous = 2 * torch.rand(n, self.num_continuous, **draw) - 1
        return z, category, continuous

    def generate(self, z: Tensor, category: Tensor, continuous: Tensor) -> Tensor:
        """G(z, c): the three parts of the input, joined. Shapes as `noise` gives them → (n, 1, H, W) in [−1, 1]."""
        one_hot = F.one_hot(category, self.num_categories).to(z)
        return self.generator(torch.cat([z, one_hot, continuous], dim=1))

    def mutual_information(self, q: tuple[Tensor, Tensor, Tensor], category: Tensor, continuous: Tensor) -> Tensor:
        """L_I = E[log Q(c|x)] + H(c), the lower bound of I(c; G(z, c)) in nats (Chen et al., equation 5).

        Q of a continuous code is a normal distribution N(μ, σ²). The category's part ends at its entropy, log
        num_categories; that of a continuous code, read exactly, at log 2 − ½ log 2π − log least_sigma.

        Args:
            q: logits (B, num_categories), μ and log σ (B, num_continuous), as D gives them.
            category, continuous: the codes that the images were drawn from.
        """
        logits, mean, log_sigma = (part.float() for part in q)
        error = (continuous - mean) / log_sigma.exp()
        log_Q = (
            -F.cross_entropy(logits, category)
            - (0.5 * error.square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(1).mean()
        )
        H = math.log(self.num_categories) + self.num_continuous * math.log(2)
        return log_Q + H

    def train_step(self, batch: Batch) -> Moves:
        """One move of each player in equation 8: min over G and Q, max over D, of V(D, G) − λ L_I(G, Q)."""
        x, D, T, loss, lambda_ = (
            batch.images,
            self.discriminator,
            self.augment,
            self.loss,
            self.mutual_information_weight,
        )
        z, category, continuous = self.noise(len(x), device=x.device)
        x_fake = self.generate(z, category, continuous)

        source_real, *_ = D(T(x))
        source_fake, *q = D(T(x_fake.detach()))
        V = loss.real(source_real) + loss.fake(source_fake)
        loss_D = V - lambda_ * self.mutual_information(q, category, continuous)
        if self.gradient_penalty:
            loss_D = loss_D + self.gradient_penalty * r1_penalty(lambda images: D(images)[0], T(x))
        yield "discriminator", loss_D

        source_fake, *q = D(T(x_fake))
        L_I = self.mutual_information(q, category, continuous)
        loss_G = loss.fool(source_fake) - lambda_ * L_I + self.copy_penalty(x_fake)
        yield "generator", loss_G
        return {"generator": loss_G, "discriminator": loss_D, "mutual_information": L_I}

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1] with random codes; labels are not used."""
        device = next(self.parameters()).device
        return self.generate(*(part.to(device) for part in self.noise(n, generator))).float()
