"""The first generative adversarial network, fully connected (Goodfellow et al. 2014, arXiv 1406.2661)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.layers import Batch, CopyPenalty, Moves, bce, r1_penalty, two_players


class Generator(nn.Module):
    """Noise to image through three hidden layers, with no notion of which pixels are neighbours.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        latent_dim: length of the noise vector z.
        width: units of the first hidden layer; the second has twice, the third four times as many.

    Shapes: z (B, latent_dim) → image (B, 1, image_size, image_size) in [−1, 1].
    """

    def __init__(self, image_size: int = 64, latent_dim: int = 100, width: int = 256):
        super().__init__()
        sizes = [latent_dim, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], image_size**2), nn.Tanh())
        self.image_size = image_size

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).view(-1, 1, self.image_size, self.image_size)


class Discriminator(nn.Module):
    """Image to one logit: log-odds that it is real.

    Args:
        image_size: height and width of the image.
        width: units of the last hidden layer; the first has twice as many.

    Shapes: image (B, 1, image_size, image_size) → logit (B,).
    """

    def __init__(self, image_size: int = 64, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(image_size**2, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(2 * width, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


class GAN(nn.Module):
    """Generator and discriminator of equation 5 and the game they play.

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        latent_dim: length of the noise vector z.
        width: units of the narrowest hidden layers.
        label_smoothing: real images have the target 1 − label_smoothing (Salimans et al. 2016, section 3.4).
        gradient_penalty: weight γ of the R1 penalty on D, 0 for none.
        copy_penalty: weight of `layers.CopyPenalty` on G, 0 for none.
    """

    def __init__(
        self,
        image_size: int = 64,
        latent_dim: int = 100,
        width: int = 256,
        label_smoothing: float = 0.1,
        gradient_penalty: float = 0.0,
        copy_penalty: float = 0.0,
    ):
        super().__init__()
        check_image_size(image_size)
        self.generator = Generator(image_size, latent_dim, width)
        self.discriminator = Discriminator(image_size, width)
        self.latent_dim = latent_dim
        self.real_label = 1.0 - label_smoothing
        self.gradient_penalty = gradient_penalty
        self.copy_penalty = CopyPenalty(copy_penalty)

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam a player."""
        return two_players(self, learning_rate, betas)

    def train_step(self, batch: Batch) -> Moves:
        """One move of each player in equation 5.

        D ascends log D(x) + log(1 − D(G(z))), and G ascends log D(G(z)).
        """
        x, G, D = batch.images, self.generator, self.discriminator
        z = torch.randn(len(x), self.latent_dim, device=x.device)

        loss_D = bce(D(x), self.real_label) + bce(D(G(z).detach()), 0.0)
        if self.gradient_penalty:
            loss_D = loss_D + self.gradient_penalty * r1_penalty(D, x)
        yield "discriminator", loss_D

        x_fake = G(z)
        loss_G = bce(D(x_fake), 1.0)  # the non-saturating form (Goodfellow et al. 2014, section 3)
        loss_G = loss_G + self.copy_penalty(x_fake)
        yield "generator", loss_G
        return {"generator": loss_G, "discriminator": loss_D}

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1]; labels are not used."""
        device = next(self.parameters()).device
        z = torch.randn(n, self.latent_dim, generator=generator).to(device)
        return self.generator(z).float()
