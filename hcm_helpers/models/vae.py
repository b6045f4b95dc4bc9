"""Variational autoencoder (Kingma & Welling 2013, arXiv 1312.6114)."""

import math
from itertools import pairwise

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.acdc import DataError
from hcm_helpers.augment import jitter
from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.layers import Batch, GroupNorm, Moves, adam, check_width, normal


class ResidualBlock(nn.Module):
    """Narrow, look around, widen, and add that to what came in (He et al. 2015, arXiv 1512.03385, figure 5).

    With a quarter of the channels in between it is cheap beside the strided convolution before it. What is added
    begins as 0: the decoder's features are faint, and random offsets would draw a grid through all pictures.

    Shapes: (B, channels, H, W) → the same.
    """

    def __init__(self, channels: int):
        super().__init__()
        narrow = channels // 4
        layers = [nn.Conv2d(channels, narrow, 1), nn.SiLU(), nn.Conv2d(narrow, narrow, 3, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(narrow, channels, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Encoder(nn.Module):
    """Image to a normal distribution over the latent space (equation 1).

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        latent_dim: length of z.
        width: channels of the first layer; doubles with each halving of the size, up to eight times.
        num_blocks: residual blocks at each size below the first.

    Shapes: x (B, 1, image_size, image_size) → μ and log σ², each (B, latent_dim).
    """

    def __init__(self, image_size: int = 64, latent_dim: int = 64, width: int = 32, num_blocks: int = 1):
        super().__init__()
        channels = channel_plan(image_size, width)
        layers: list[nn.Module] = [nn.Conv2d(1, channels[0], 4, stride=2, padding=1), nn.SiLU()]
        for inputs, outputs in pairwise(channels):
            # size × size → size/2 × size/2
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), GroupNorm(8, outputs), nn.SiLU()]
            layers += [ResidualBlock(outputs) for _ in range(num_blocks)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 16, 2 * latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_variance = self.layers(x).float().chunk(2, dim=1)
        return mu, log_variance


class Decoder(nn.Module):
    """A point of the latent space to an image (equation 2).

    Shapes: z (B, latent_dim) → x̂ (B, 1, image_size, image_size) in [−1, 1].
    """

    def __init__(self, image_size: int = 64, latent_dim: int = 64, width: int = 32, num_blocks: int = 1):
        super().__init__()
        channels = channel_plan(image_size, width)[::-1]
        layers: list[nn.Module] = [nn.Linear(latent_dim, channels[0] * 16)]
        layers += [nn.Unflatten(1, (channels[0], 4, 4))]
        for inputs, outputs in pairwise(channels):
            # size × size → 2·size × 2·size. No normalisation: between two hearts the features are faint, and
            # it would blow them up to full contrast, so that samples were full of noise.
            layers += [ResidualBlock(inputs) for _ in range(num_blocks)]
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 1, 4, stride=2, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def channel_plan(image_size: int, width: int) -> list[int]:
    """Channels at each size from image_size/2 down to 4, e.g. [32, 64, 128, 256] for 64 and 32."""
    return [width * min(2**i, 8) for i in range(int(math.log2(image_size // 4)))]


def kl_divergence(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL( N(μ, diag σ²) ‖ N(0, I) ) of each row in nats: −½ Σⱼ (1 + log σⱼ² − μⱼ² − σⱼ²) (equation 4)."""
    return -0.5 * (1 + log_variance - mu.square() - log_variance.exp()).sum(dim=1)


class VAE(nn.Module):
    """Encoder, decoder and the bound of equation 3.

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        latent_dim: length of z.
        width: channels next to the image in both networks.
        augment: show the network each image turned, shifted, scaled and in other tones (`jitter`).
        prior_components: normal distributions in the mixture that `fit_prior` fits.
        num_blocks: residual blocks at each size but the largest, in both networks; 0: one convolution a size.
        kl_warmup: training steps in which the weight of KL rises from 0 to 1; 0: it is 1 from the start.
    """

    def __init__(
        self,
        image_size: int = 64,
        latent_dim: int = 64,
        width: int = 32,
        augment: bool = True,
        prior_components: int = 10,
        num_blocks: int = 1,
        kl_warmup: int = 0,
    ):
        super().__init__()
        check_image_size(image_size)
        check_width(width)
        if not 0 <= num_blocks <= 16:
            raise DataError(f"num_blocks={num_blocks}: choose 0 to 16")
        self.encoder = Encoder(image_size, latent_dim, width, num_blocks)
        self.decoder = Decoder(image_size, latent_dim, width, num_blocks)
        # p(x|z) = N(x; x̂, s²) with one s for all pixels, learned: it sets the weight of the two terms of
        # equation 3 by itself (Rybkin, Daniilidis & Levine 2020, arXiv 2006.13202).
        self.log_s = nn.Parameter(torch.tensor(-1.0))
        self.latent_dim = latent_dim
        self.kl_warmup = kl_warmup
        self.register_buffer("steps", torch.tensor(0))  # of training, so far: kept with the weights
        self.augment = jitter if augment else nn.Identity()
        # What `sample` draws z from: a mixture of normal distributions, all of them N(0, I) until `fit_prior`.
        self.register_buffer("prior_weights", torch.full((prior_components,), 1 / prior_components))
        self.register_buffer("prior_means", torch.zeros(prior_components, latent_dim))
        self.register_buffer("prior_factors", torch.eye(latent_dim).repeat(prior_components, 1, 1))

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam: encoder and decoder pull the same rope.

        Adam moves a weight by about its learning rate a step. That is too little for log s, which has to come
        from −1 to the logarithm of the decoder's error within a few hundred steps: it has a rate of its own.
        """
        networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        players = [{"params": networks}, {"params": [self.log_s], "lr": 2e-3}]
        return {"vae": adam(players, learning_rate, betas)}

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x̂, μ and log σ² of a batch, with one z = μ + σ ε drawn for each (the reparametrisation trick)."""
        mu, log_variance = self.encoder(x)
        epsilon = normal(mu.shape, mu.device, generator)
        z = mu + (0.5 * log_variance).exp() * epsilon
        return self.decoder(z), mu, log_variance

    def losses(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The two terms of equation 3, −log p(x|z) and KL, in nats an image: means over the batch."""
        x_hat, mu, log_variance = self(x, generator)
        s = self.log_s.exp()
        squared_error = (x - x_hat.float()).square().flatten(1).sum(1)
        num_pixels = x[0].numel()
        reconstruction = squared_error / (2 * s**2) + num_pixels * (self.log_s + 0.5 * math.log(2 * math.pi))
        return {"reconstruction": reconstruction.mean(), "kl": kl_divergence(mu, log_variance).mean()}

    def kl_weight(self) -> Tensor | float:
        """β: 0 in the first step of the warm-up, growing by the same amount each step, 1 from its end on.

        At the start the decoder cannot yet use z, and KL alone would push every cloud onto the prior; some
        numbers of z do not come back from there (Sønderby et al. 2016, arXiv 1602.02282, section 2.3).
        """
        return (self.steps / self.kl_warmup).clamp(max=1) if self.kl_warmup else 1.0

    def train_step(self, batch: Batch) -> Moves:
        """One step down L_VAE = E[−log p(x|z)] + β KL (equation 3, with β = 1 after the warm-up)."""
        terms = self.losses(self.augment(batch.images))
        beta, steps = self.kl_weight(), self.steps + 1
        loss = terms["reconstruction"] + beta * terms["kl"]
        yield None, loss / batch.images[0].numel()  # per pixel: alike at all sizes
        self.steps.copy_(steps)
        return {"loss": terms["reconstruction"] + terms["kl"], **terms}  # with β = 1, as in validation

    def validation_loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """L_VAE of held-out images, in nats an image."""
        terms = self.losses(batch.images, generator)
        return terms["reconstruction"] + terms["kl"]

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor, generator: torch.Generator | None = None) -> float:
        """L_VAE as the bits that it takes to store one pixel of 8 bits with this model; lower is better.

        256 grey values in [−1, 1] lie Δ = 2/255 apart. A grey value has the probability p(x) Δ, its density times
        the width of its bin, so a slice of n pixels costs L_VAE / ln 2 − n log₂ Δ bits. 8 is a pixel without a model.

        Args:
            images: held-out slices (N, 1, H, W) in [−1, 1].
            generator: of the one z drawn for each.

        Source: Theis, van den Oord & Bethge 2016, arXiv 1511.01844, section 3.1.
        """
        terms = self.losses(images.to(self.log_s.device), generator)
        nats = (terms["reconstruction"] + terms["kl"]).item()
        return nats / (images[0].numel() * math.log(2)) - math.log2(2 / 255)

    @torch.no_grad()
    def active_units(self, images: Tensor, threshold: float = 0.01) -> Tensor:
        """Which numbers of z tell one image from another, bool (latent_dim,): those with Var_x(E[z|x]) > threshold.

        Args:
            images: (N, 1, H, W) in [−1, 1].
            threshold: in units of the prior's variance, which is 1.

        Source: Burda, Grosse & Salakhutdinov 2015, arXiv 1509.00519, section 5.2.
        """
        mu, _ = self.encoder(images.to(self.log_s.device))
        return mu.var(dim=0) > threshold

    @torch.no_grad()
    def fit_prior(self, images: Tensor, seed: int = 0, num_draws: int = 8) -> None:
        """Let `sample` draw z from where the encoder puts images, instead of from N(0, I).

        The clouds q(z|x) of a few hundred slices leave most of N(0, I) empty, and a z from there decodes to
        nothing. So a Gaussian mixture is fitted, by expectation maximisation, to draws from the clouds.

        Args:
            images: the training slices (N, 1, H, W) in [−1, 1].
            seed: of the draws and of the mixture's start.
            num_draws: draws for each slice, each time through the augmentation.

        Source: Ghosh et al. 2020, "From variational to deterministic autoencoders", arXiv 1903.12436, section 4.
        """
        device = self.log_s.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            draws = []
            for batch in images.repeat(num_draws, 1, 1, 1).split(256):
                mu, log_variance = self.encoder(self.augment(batch.to(device)))
                draws.append(mu + (0.5 * log_variance).exp() * torch.randn(mu.shape).to(mu))
        mixture = GaussianMixture(len(self.prior_weights), reg_covar=1e-3, random_state=seed)
        mixture.fit(torch.cat(draws).double().cpu().numpy())
        self.prior_weights.copy_(torch.from_numpy(mixture.weights_))
        self.prior_means.copy_(torch.from_numpy(mixture.means_))
        self.prior_factors.copy_(torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)))

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw z from the prior and decode it: (n, 1, H, W) in [−1, 1]; labels are not used."""
        device = self.log_s.device
        k = torch.multinomial(self.prior_weights.cpu(), n, replacement=True, generator=generator).to(device)
        epsilon = torch.randn(n, self.latent_dim, generator=generator).to(device)
        with torch.autocast(device.type, enabled=False):  # a product of small matrices: nothing to win, digits to lose
            z = self.prior_means[k] + (self.prior_factors[k] @ epsilon[:, :, None])[:, :, 0]
        return self.decoder(z).float()
