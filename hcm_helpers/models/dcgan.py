"""Deep convolutional GAN (Radford, Metz & Chintala 2015, arXiv 1511.06434).

The three rules of the paper's section 2.1.3: strided convolutions instead of pooling and dense layers; ReLU in
the generator and LeakyReLU in the discriminator; batch normalisation in both, or spectral normalisation in the
discriminator (Miyato et al. 2018, arXiv 1802.05957).
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.augment import diff_augment
from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.layers import Batch, CopyPenalty, Moves, divide_by_spectral_norm, game, r1_penalty, two_players


class Generator(nn.Module):
    """Noise to image by fractionally strided convolutions.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        latent_dim: length of the noise vector z (with the class or the code appended, where a model has one).
        width: channels of the last hidden layer; doubles with each halving of the size.

    Shapes: z (B, latent_dim) → image (B, 1, image_size, image_size) in [−1, 1].
    """

    def __init__(self, image_size: int = 64, latent_dim: int = 100, width: int = 32):
        super().__init__()
        size, channels = 4, width * image_size // 8
        layers = [nn.ConvTranspose2d(latent_dim, channels, 4, bias=False), *norm_relu(channels)]  # 1×1 → 4×4
        while size < image_size // 2:
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
                *norm_relu(channels // 2),
            ]
            size, channels = size * 2, channels // 2  # size × size → 2·size × 2·size
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1), nn.Tanh())
        self.layers.apply(initialise)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class Trunk(nn.Module):
    """The discriminator without its last layer: image to features by strided convolutions.

    Args:
        image_size: height and width of the image.
        width: channels of the first layer; doubles with each halving of the size.
        batch_norm: normalise the features of a batch in every layer but the first.

    Shapes: image (B, 1, image_size, image_size) → features (B, 16 · out_channels) of the 4×4 map.
    """

    def __init__(self, image_size: int = 64, width: int = 32, batch_norm: bool = True):
        super().__init__()
        # No batch normalisation in the first layer, as Radford et al. advise: D sees the raw brightness.
        layers = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        size, channels = image_size // 2, width
        while size > 4:
            layers.append(nn.Conv2d(channels, channels * 2, 4, stride=2, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(channels * 2)] if batch_norm else []
            layers.append(nn.LeakyReLU(0.2))
            size, channels = size // 2, channels * 2  # size × size → size/2 × size/2
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.out_features = channels * 16
        self.layers.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Discriminator(nn.Module):
    """Image to one logit: log-odds that it is real. Shapes: (B, 1, image_size, image_size) → (B,)."""

    def __init__(self, image_size: int = 64, width: int = 32, batch_norm: bool = True):
        super().__init__()
        self.trunk = Trunk(image_size, width, batch_norm)
        self.source = nn.Linear(self.trunk.out_features, 1)  # a 4×4 convolution over the 4×4 map

    def forward(self, x: Tensor) -> Tensor:
        return self.source(self.trunk(x)).squeeze(1)


class DCGAN(nn.Module):
    """Convolutional players in the game of equation 5, or in its hinge form.

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        latent_dim: length of the noise vector z.
        width: channels next to the image in both networks.
        loss: "bce" or "hinge", see `layers.game`.
        spectral_norm: spectral normalisation in D, in place of batch normalisation.
        label_smoothing: D's target for real images is 1 − label_smoothing, under "bce".
        gradient_penalty: weight γ of the R1 penalty on D, 0 for none.
        copy_penalty: weight of `layers.CopyPenalty` on G, 0 for none.
        augment: show D real and generated images through `diff_augment`.
    """

    def __init__(
        self,
        image_size: int = 64,
        latent_dim: int = 100,
        width: int = 32,
        loss: str = "bce",
        spectral_norm: bool = False,
        label_smoothing: float = 0.1,
        gradient_penalty: float = 0.0,
        augment: bool = True,
        copy_penalty: float = 0.0,
    ):
        super().__init__()
        check_image_size(image_size)
        self.generator = Generator(image_size, latent_dim, width)
        self.discriminator = Discriminator(image_size, width, batch_norm=not spectral_norm)
        if spectral_norm:
            divide_by_spectral_norm(self.discriminator)
        self.latent_dim = latent_dim
        self.loss = game(loss, label_smoothing)
        self.gradient_penalty = gradient_penalty
        self.copy_penalty = CopyPenalty(copy_penalty)
        self.augment = diff_augment if augment else nn.Identity()

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam a player."""
        return two_players(self, learning_rate, betas)

    def train_step(self, batch: Batch) -> Moves:
        """One move of each player in equation 5, both seen through the augmentation T."""
        x, G, D, T, loss = batch.images, self.generator, self.discriminator, self.augment, self.loss
        z = torch.randn(len(x), self.latent_dim, device=x.device)
        x_fake = G(z)

        loss_D = loss.real(D(T(x))) + loss.fake(D(T(x_fake.detach())))
        if self.gradient_penalty:
            loss_D = loss_D + self.gradient_penalty * r1_penalty(D, T(x))
        yield "discriminator", loss_D

        loss_G = loss.fool(D(T(x_fake)))  # under "bce" log D(G(z)) up, instead of log(1 − D(G(z))) down
        loss_G = loss_G + self.copy_penalty(x_fake)
        yield "generator", loss_G
        return {"generator": loss_G, "discriminator": loss_D}

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1]; labels are not used."""
        device = next(self.parameters()).device
        z = torch.randn(n, self.latent_dim, generator=generator).to(device)
        return self.generator(z).float()


def norm_relu(channels: int) -> list[nn.Module]:
    """Batch normalisation and ReLU, the pair after each hidden layer of the generator."""
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def initialise(layer: nn.Module) -> None:
    """Weights from N(0, 0.02²), batch-norm scales from N(1, 0.02²) (Radford et al. 2015, section 4)."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
