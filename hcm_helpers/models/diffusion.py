"""Denoising diffusion (Ho, Jain & Abbeel 2020, arXiv 2006.11239), sampled step by step or in a few strides."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.models.layers import Batch, adam, check_width, step
from hcm_helpers.slices import check_image_size


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; the embedding of t scales and shifts what lies between them.

    Shapes: x (B, in_channels, H, W), embedding (B, embedding_dim) → (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, in_channels), nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.embed = nn.Linear(embedding_dim, 2 * out_channels)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.embed(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.shortcut(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Every place looks at every other: the septum learns where the free wall is. Shapes: (B, C, H, W) → same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (B, H·W, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """Noisy image and time to the noise in it.

    The picture is folded by 2 on the way in, four neighbouring pixels becoming four channels, and unfolded on
    the way out, so that no convolution runs at full size: on a CPU that is worth a factor of four.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        width: channels at half size; twice as many at each smaller one, down to 8×8, where attention sits.
        num_classes: groups it can be told to draw; 0 for an unconditional network.
        dropout: share of features dropped in training below half size.

    Shapes: x (B, 1, image_size, image_size), t (B,) in 1 … T, labels (B,) or None → (B, 1, image_size, image_size).
    """

    def __init__(self, image_size: int = 64, width: int = 32, num_classes: int = 0, dropout: float = 0.1):
        super().__init__()
        num_levels = int(math.log2(image_size // 8))  # 64: 32×32, 16×16, 8×8
        channels = [width] + [2 * width] * (num_levels - 1)
        embedding_dim = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim))
        self.classes = nn.Embedding(num_classes, embedding_dim) if num_classes else None
        self.stem = nn.Conv2d(4, width, 3, padding=1)

        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        for level, c in enumerate(channels):
            drop = dropout if level else 0.0
            block = lambda inputs, c=c, drop=drop: ResidualBlock(inputs, c, embedding_dim, drop)  # noqa: E731
            self.down.append(nn.ModuleList([block(c), block(c)]))
            self.up.append(nn.ModuleList([block(2 * c), block(c)]))
            if level < num_levels - 1:
                below = channels[level + 1]
                self.shrink.append(nn.Conv2d(c, below, 3, stride=2, padding=1))  # size → size/2
                self.grow.append(nn.Sequential(nn.Conv2d(below, c, 3, padding=1), nn.Upsample(scale_factor=2.0)))
        self.middle = ResidualBlock(channels[-1], channels[-1], embedding_dim, dropout)
        self.attention = Attention(channels[-1])
        self.out = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), zeroed(nn.Conv2d(width, 4, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.time(sinusoids(t, self.width))
        if self.classes is not None:
            embedding = embedding + self.classes(labels)
        embedding = F.silu(embedding)

        h = self.stem(F.pixel_unshuffle(x, 2))  # (B, 1, S, S) → (B, 4, S/2, S/2) → (B, width, S/2, S/2)
        skips = []
        for level, blocks in enumerate(self.down):
            h = self.shrink[level - 1](h) if level else h
            for block in blocks:
                h = block(h, embedding)
            skips.append(h)

        h = self.attention(self.middle(h, embedding))

        for level, blocks in reversed(list(enumerate(self.up))):
            h = torch.cat([h, skips[level]], dim=1)
            for block in blocks:
                h = block(h, embedding)
            h = self.grow[level - 1](h) if level else h
        return F.pixel_shuffle(self.out(h), 2)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The same layer with all weights 0: a residual block then starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """Time (B,) as sines and cosines of dim/2 frequencies (B, dim), as in Vaswani et al. 2017, section 3.5."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def noise_schedule(schedule: str, num_steps: int) -> Tensor:
    """β₁ … β_T of equation 9, float64 (num_steps,).

    linear: from 1e-4 to 0.02 (Ho et al. 2020, section 4; scaled by 1000/T for other T).
    cosine: ᾱ_t = cos²(π/2 · (t/T + 0.008) / 1.008) (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 17).

    Raises:
        DataError: another name.
    """
    if schedule == "linear":
        scale = 1000 / num_steps
        return torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), num_steps, dtype=torch.float64)
    if schedule == "cosine":
        t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    raise DataError(f"schedule={schedule!r}: choose 'linear' or 'cosine'")


class Diffusion(nn.Module):
    """A chain that drowns an image in noise (equations 9 and 10) and a network that swims back (11 and 12).

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        width: channels of the U-Net at half size.
        num_steps: T, the length of the chain.
        schedule: "linear" or "cosine", see `noise_schedule`.
        prediction: what the network names, the noise "epsilon" (Ho et al.) or the velocity
            "v" = √ᾱ_t ε − √(1 − ᾱ_t) x_0 (Salimans & Ho 2022, arXiv 2202.00512), which weighs the coarse anatomy
            more and learns it sooner.
        dropout: share of features dropped in training.
        num_classes: groups it is conditioned on; 0 for none.
        sampler: "ancestral" (equation 12, Ho et al., algorithm 2) or "ddim" (Song et al. 2020, arXiv 2010.02502).
        sampling_steps: how many of the T steps `sample` takes.

    Raises:
        DataError: an unknown schedule or sampler, or more sampling steps than the chain has.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 32,
        num_steps: int = 1000,
        schedule: str = "cosine",
        prediction: str = "v",
        dropout: float = 0.1,
        num_classes: int = 0,
        sampler: str = "ddim",
        sampling_steps: int = 50,
    ):
        super().__init__()
        check_image_size(image_size)
        check_width(width)
        if sampler not in SAMPLERS:
            raise DataError(f"sampler={sampler!r}: choose one of {', '.join(SAMPLERS)}")
        if prediction not in ("epsilon", "v"):
            raise DataError(f"prediction={prediction!r}: choose 'epsilon' or 'v'")
        self.network = UNet(image_size, width, num_classes, dropout)
        self.image_size, self.num_steps, self.num_classes = image_size, num_steps, num_classes
        self.prediction, self.sampler, self.sampling_steps = prediction, sampler, sampling_steps
        alpha_bar = torch.cumprod(1 - noise_schedule(schedule, num_steps), dim=0)
        # ᾱ₀ = 1 in front, so that alpha_bar[t] is ᾱ_t of the equations
        self.register_buffer("alpha_bar", torch.cat([torch.ones(1), alpha_bar]).float(), persistent=False)
        timesteps(num_steps, sampling_steps)  # refuses too many

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam: there is no opponent."""
        return {"diffusion": adam(self.parameters(), learning_rate, betas)}

    def diffuse(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """q(x_t | x_0) in one stride: √ᾱ_t x_0 + √(1 − ᾱ_t) ε (Ho et al., equation 4). t (B,) in 0 … T."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * epsilon

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """E‖ε − ε_θ(x_t, t)‖² per pixel (Ho et al., equation 14), or the same for v; t uniform on 1 … T."""
        x, labels = batch.images, batch.labels if self.num_classes else None
        t = torch.randint(1, self.num_steps + 1, (len(x),), generator=generator).to(x.device)
        epsilon = torch.randn(x.shape, generator=generator).to(x.device)
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        velocity = alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x
        target = epsilon if self.prediction == "epsilon" else velocity
        return F.mse_loss(self.network(self.diffuse(x, t, epsilon), t, labels).float(), target)

    def denoise(self, x_t: Tensor, t: int, labels: Tensor | None = None) -> Tensor:
        """x̂_0: the image that the network sees in x_t (B, 1, H, W), kept in [−1, 1]; t in 1 … T, one for the batch."""
        output = self.network(x_t, torch.full((len(x_t),), t, device=x_t.device), labels).float()
        alpha_bar = self.alpha_bar[t]
        if self.prediction == "epsilon":
            x_0 = (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
        else:
            x_0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
        return x_0.clamp(-1, 1)

    def train_step(self, batch: Batch, optimizers: dict[str, Optimizer], fabric: Fabric) -> dict[str, Tensor]:
        """One step of the network towards the noise that was added."""
        loss = self.loss(batch)
        step(optimizers["diffusion"], loss, fabric)
        return {"loss": loss}

    def validation_loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """The training loss on held-out images."""
        return self.loss(batch, generator)

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1]; a conditional network draws the groups in labels, HCM without."""
        device = self.alpha_bar.device
        if self.num_classes:
            labels = torch.full((n,), GROUPS.index("HCM")) if labels is None else labels
            labels = labels.to(device)
        else:
            labels = None
        x = torch.randn(n, 1, self.image_size, self.image_size, generator=generator).to(device)
        path = timesteps(self.num_steps, self.sampling_steps)
        return SAMPLERS[self.sampler](lambda x, t: self.denoise(x, t, labels), x, self.alpha_bar, path, generator)


def timesteps(num_steps: int, sampling_steps: int) -> list[int]:
    """The times a sampler visits, T first and 0 last, evenly spread.

    Raises:
        DataError: fewer than one step or more than the chain has.
    """
    if not 1 <= sampling_steps <= num_steps:
        raise DataError(f"sampling_steps={sampling_steps}: the chain has {num_steps} steps, so choose 1 to {num_steps}")
    return [round(num_steps * i / sampling_steps) for i in range(sampling_steps, -1, -1)]


def ancestral(denoise, x: Tensor, alpha_bar: Tensor, path: list[int], generator: torch.Generator | None) -> Tensor:
    """Equation 12: draw x_s from the posterior q(x_s | x_t, x̂_0), one step of the path after the other.

    Args:
        denoise: gives x̂_0 for (x_t, t).
        x: noise x_T (B, 1, H, W).
        alpha_bar: ᾱ_0 … ᾱ_T.
        path: the times to visit, from T down to 0.
        generator: of the noise that each step adds.

    Source: Ho et al. 2020, algorithm 2, with the posterior of their equation 7 written for any s < t.
    """
    for t, s in pairwise(path):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        x_0 = denoise(x, t)
        beta = 1 - a_t / a_s  # the noise that the chain adds between s and t
        mean = (a_s.sqrt() * beta * x_0 + (a_t / a_s).sqrt() * (1 - a_s) * x) / (1 - a_t)
        variance = beta * (1 - a_s) / (1 - a_t)  # 0 at the last step, where s = 0
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=generator).to(x)
    return x


def ddim(denoise, x: Tensor, alpha_bar: Tensor, path: list[int], generator: torch.Generator | None = None) -> Tensor:
    """The deterministic path: the same x̂_0 and the same ε, mixed anew for the next time; arguments as `ancestral`.

    Source: Song, Meng & Ermon 2020, equation 12 with σ = 0.
    """
    for t, s in pairwise(path):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        x_0 = denoise(x, t)
        epsilon = (x - a_t.sqrt() * x_0) / (1 - a_t).sqrt()  # what x̂_0 leaves as noise
        x = a_s.sqrt() * x_0 + (1 - a_s).sqrt() * epsilon
    return x


SAMPLERS = {"ancestral": ancestral, "ddim": ddim}
