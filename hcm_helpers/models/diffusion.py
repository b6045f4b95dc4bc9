"""Denoising diffusion: one U-Net, two trainings, and a denoiser D(x; σ) that any of the `samplers` can follow.

The trainings are the paper's, ε-prediction along a chain of T noisings (Ho, Jain & Abbeel 2020, arXiv 2006.11239), and
that of Karras et al. 2022, "EDM" (arXiv 2206.00364).
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.augment import jitter_amounts, move
from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.layers import Batch, Moves, Muon, adam, check_width, drawn_on, normal
from hcm_helpers.models.samplers import find_sampler, log_levels, rho_levels
from hcm_helpers.slices import Slices, drawn_slices

NUM_DIRECTIONS = 32  # of the normal distribution in which a walk can begin
ACTIVE = 0.5758  # root mean square of hardswish(x), x ~ N(0, 1)


class Conv(nn.Conv2d):
    """A convolution whose filters get their length, `gain`, back before each step of the training.

    Independent inputs of variance 1 so become outputs of variance gain², and no normalisation is needed to hold the
    features at one size. It is done in place, so in training there is one forward pass before each backward one.
    An average of such weights is a little shorter, by half a percent at the end of profile cpu.

    Source: Karras et al. 2024, "EDM2", arXiv 2312.02696, sections 2.3 to 2.5.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, gain: float = 1.0):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self.gain = gain
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Give the filters their length back, after a step has changed it."""
        self.weight.mul_(self.gain / torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.restore()
        return super().forward(x)


class PixelNorm(nn.Module):
    """The features of each pixel brought to mean 0 and variance 1. Shapes: (B, C, H, W) → same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)  # in memory, C is the last


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; the embedding of t scales the channels between them.

    The sum is 7 parts of the shortcut to 3 of the convolutions, over √(7² + 3²), so that it is as large as each.
    Dropout takes whole channels, which costs nothing.

    Shapes: x (B, in_channels, H, W), embedding (B, embedding_dim) → (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, dropout: float):
        super().__init__()
        self.keep, add = 0.7 / math.hypot(0.7, 0.3), 0.3 / math.hypot(0.7, 0.3)
        self.conv1 = Conv(in_channels, out_channels, gain=1 / ACTIVE)
        self.conv2 = Conv(out_channels, out_channels, gain=add / ACTIVE)
        self.embed = zeroed(nn.Linear(embedding_dim, out_channels))
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if in_channels == out_channels else Conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.hardswish(x))
        scale = self.dropout(1 + self.embed(embedding))  # (B, out_channels)
        h = self.conv2(F.hardswish(h * scale[:, :, None, None]))
        return torch.add(h, self.shortcut(x), alpha=self.keep)


class Attention(nn.Module):
    """Every place looks at every other: the septum learns where the free wall is. Shapes: (B, C, H, W) → same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = PixelNorm()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (B, H·W, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class Conditions(nn.Module):
    """Group, phase and position of a slice to a vector; what is not known adds nothing.

    Args:
        num_classes: how many groups there are.
        embedding_dim: length of the vector.

    Shapes: targets (B, 3) → (B, embedding_dim). The targets are those of `features.with_targets`: index of the group,
    0 for end-diastole and 1 for end-systole, position from 0 (base) to 1 (apex); −1 is "not known" in each.
    """

    NUM_WAVES = 4  # cosines of the position, beside a constant

    def __init__(self, num_classes: int, embedding_dim: int):
        super().__init__()
        self.num_classes = num_classes
        self.num_features = num_classes + 2 + 1 + self.NUM_WAVES
        self.embed = nn.Linear(self.num_features, embedding_dim, bias=False)

    def forward(self, targets: Tensor) -> Tensor:
        return self.embed(self.features(targets))

    def features(self, targets: Tensor) -> Tensor:
        """The targets (B, 3) in numbers from −1 to 1, (B, num_features); those of what is not known are 0."""
        group, phase, position = targets.unbind(dim=1)
        groups = group[:, None] == torch.arange(self.num_classes, device=targets.device)
        phases = phase[:, None] == torch.arange(2, device=targets.device)
        waves = torch.cos(torch.pi * position[:, None] * torch.arange(self.NUM_WAVES + 1, device=targets.device))
        return torch.cat([groups.float(), phases.float(), waves.float() * (position >= 0)[:, None]], dim=1)


class UNet(nn.Module):
    """Noisy image and how noisy it is, to what the training wants to know of it.

    The picture is folded by 2 on the way in, four neighbouring pixels becoming four channels, and unfolded on
    the way out, so that no convolution runs at full size: on a CPU that is worth a factor of four. Features keep
    their size through each `Conv`, and are normalised only after a change to a smaller picture, before attention and
    before the last layer.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        width: channels at half size; twice as many at each smaller one, down to 8×8, where attention sits.
        num_classes: groups it can be told, with phase and position; 0 for an unconditional network.
        dropout: share of channels dropped in training below half size.
        channels: C, 1 for images, 4 for images with masks.

    Shapes: x (B, C, image_size, image_size), noise (B,) or (1,) on a scale of about a thousand, targets (B, 3) of
    `Conditions` or None, amounts (B, 5) of `augment.jitter_amounts` or None → (B, C, image_size, image_size).
    """

    def __init__(
        self, image_size: int = 64, width: int = 32, num_classes: int = 0, dropout: float = 0.1, channels: int = 1
    ):
        super().__init__()
        num_levels = int(math.log2(image_size // 8))  # 64: 32×32, 16×16, 8×8
        widths = [width] + [2 * width] * (num_levels - 1)
        embedding_dim = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim))
        self.conditions = Conditions(num_classes, embedding_dim) if num_classes else None
        self.amounts = nn.Linear(5, embedding_dim, bias=False)  # what was done to the image; nothing adds nothing
        self.stem = Conv(4 * channels, width)

        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        for level, c in enumerate(widths):
            drop = dropout if level else 0.0
            block = lambda inputs, c=c, drop=drop: ResidualBlock(inputs, c, embedding_dim, drop)  # noqa: E731
            self.down.append(nn.ModuleList([block(c), block(c)]))
            self.up.append(nn.ModuleList([block(2 * c), block(c)]))
            if level < num_levels - 1:
                below = widths[level + 1]
                self.shrink.append(nn.Sequential(Conv(c, below, stride=2), PixelNorm()))  # size → size/2
                self.grow.append(nn.Sequential(Conv(below, c), nn.Upsample(scale_factor=2.0)))
        self.middle = ResidualBlock(widths[-1], widths[-1], embedding_dim, dropout)
        self.attention = Attention(widths[-1])
        self.out = nn.Sequential(PixelNorm(), nn.Hardswish(), zeroed(nn.Conv2d(width, 4 * channels, 3, padding=1)))

    def forward(self, x: Tensor, noise: Tensor, targets: Tensor | None = None, amounts: Tensor | None = None) -> Tensor:
        embedding = self.time(sinusoids(noise, self.width))
        if self.conditions is not None and targets is not None:
            embedding = embedding + self.conditions(targets)
        if amounts is not None:
            embedding = embedding + self.amounts(amounts)
        embedding = F.silu(embedding)

        h = self.stem(F.pixel_unshuffle(x, 2))  # (B, C, S, S) → (B, 4 C, S/2, S/2) → (B, width, S/2, S/2)
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


def zeroed(layer: nn.Module) -> nn.Module:
    """The same layer with all weights 0, so that at the start it says nothing."""
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
    cosine: ᾱ_t ∝ cos²(π/2 · (t/T + 0.008) / 1.008), ᾱ₀ = 1 (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 17).

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
    """A denoiser D(x; σ) of images with noise of any level on them, and the ways to draw with it.

    - recipe "epsilon": an image drowns in noise along a chain (equations 9 and 10), and the network names the noise
      (11); D(x; σ) = x − σ ε_θ(x_t, t), where x_t = x / √(1 + σ²) and t is the time whose level is σ.
    - recipe "edm": D(x; σ) = c_skip x + c_out F(c_in x; ln σ), with factors for which input and target of the network
      F have variance 1 at every level, so that none is harder for being louder.

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        width: channels of the U-Net at half size.
        recipe: of the training, "epsilon" or "edm".
        num_steps: T, the length of the chain.
        schedule: of the chain, "linear" or "cosine", see `noise_schedule`.
        sigma_data: standard deviation of the images' pixels.
        P_mean, P_std: ln σ of the training images of "edm" is normal with this mean and standard deviation.
        dropout: share of channels dropped in training.
        augment: share of the training images that are turned, shifted, scaled and in other tones (`augment.move`); the
            network is told by how much, and in drawing that nothing was done, so none of it leaks into the images
            (Karras et al. 2020, arXiv 2006.06676; 2022, appendix F.2).
        num_classes: groups it is told, together with phase and position (`Conditions`); 0: it is told nothing.
        drop_conditions: share of training images of which one of the three is withheld, for each, and of which all
            are; so it can draw without them.
        guidance: weight w of the conditions in drawing, D_w = D(x; σ) + w (D(x; σ, c) − D(x; σ)); 1 for the plain
            conditional model, which takes one evaluation instead of two (Ho & Salimans 2022, arXiv 2207.12598).
        with_masks: whether it draws each image together with its mask, from `with_mask_channels`.
        optimizer: "muon" for the convolutions (`layers.Muon`), or the paper's "adam" for all.
        sampler: a name of `samplers.SAMPLERS`; "ancestral" is the paper's equation 12.
        sampling_steps: levels that `sample` visits.

    Raises:
        DataError: unknown recipe, schedule, optimizer, sampler, or more steps than the chain of the sampler has.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 32,
        recipe: str = "edm",
        num_steps: int = 1000,
        schedule: str = "cosine",
        sigma_data: float = 0.4,
        P_mean: float = -0.8,
        P_std: float = 1.2,
        dropout: float = 0.1,
        augment: float = 0.0,
        num_classes: int = 0,
        drop_conditions: float = 0.1,
        guidance: float = 1.0,
        with_masks: bool = False,
        optimizer: str = "muon",
        sampler: str = "dpmpp_2m",
        sampling_steps: int = 20,
    ):
        super().__init__()
        check_image_size(image_size)
        check_width(width)
        find_sampler(sampler)  # refuses an unknown one
        if recipe not in ("epsilon", "edm"):
            raise DataError(f"recipe={recipe!r}: choose 'epsilon' or 'edm'")
        if optimizer not in ("muon", "adam"):
            raise DataError(f"optimizer={optimizer!r}: choose 'muon' or 'adam'")
        if not 2 <= num_steps <= 100_000:
            raise DataError(f"num_steps={num_steps}: choose 2 to 100,000, usually 1000")
        self.optimizer = optimizer
        self.with_masks, self.channels = with_masks, 4 if with_masks else 1
        self.network = UNet(image_size, width, num_classes, dropout, self.channels)
        self.image_size, self.num_steps, self.num_classes = image_size, num_steps, num_classes
        self.recipe, self.sigma_data, self.P_mean, self.P_std = recipe, sigma_data, P_mean, P_std
        self.augment, self.drop_conditions, self.guidance = augment, drop_conditions, guidance
        self.sampler, self.sampling_steps = sampler, sampling_steps
        alpha_bar = torch.cumprod(1 - noise_schedule(schedule, num_steps), dim=0)
        # ᾱ₀ = 1 in front, so that alpha_bar[t] is ᾱ_t of the equations
        self.register_buffer("alpha_bar", torch.cat([torch.ones(1), alpha_bar]).float(), persistent=False)
        # σ_1 … σ_T of the chain
        self.register_buffer("sigmas", ((1 - alpha_bar) / alpha_bar).sqrt().float(), persistent=False)
        # Where a walk begins: pure noise of σ = 80, until `learn_start`.
        self.register_buffer("start_sigma", torch.tensor(80.0))
        self.register_buffer("start_mean", torch.zeros(self.channels, image_size, image_size))
        self.register_buffer("start_directions", torch.zeros(NUM_DIRECTIONS, self.channels, image_size, image_size))
        told = self.network.conditions.num_features if num_classes else 0
        self.register_buffer("start_slopes", torch.zeros(told, self.channels, image_size, image_size))
        if self.follows_chain:
            timesteps(num_steps, sampling_steps)  # refuses too many
        elif sampling_steps < 1:
            raise DataError(f"sampling_steps={sampling_steps}: choose 1 or more")

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """Adam for all, or Muon for the U-Net's convolutions, at ten times the rate, and Adam for the rest."""
        if self.optimizer == "adam":
            return {"adam": adam(self.parameters(), learning_rate, betas)}
        # The last convolution names pixels, not features; Adam is usual for it.
        matrices = [p for p in self.network.parameters() if p.ndim == 4 and p is not self.network.out[2].weight]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.parameters() if id(p) not in chosen]
        return {"muon": Muon(matrices, 10 * learning_rate), "adam": adam(rest, learning_rate, betas)}

    def diffuse(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """q(x_t | x_0) in one stride: √ᾱ_t x_0 + √(1 − ᾱ_t) ε (Ho et al., equation 4). t (B,) in 0 … T."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * epsilon

    def loss(self, batch: Batch, amounts: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """The mean squared error per pixel of what the network names; where there are masks, they count as the image.

        "epsilon": E‖ε − ε_θ(x_t, t)‖², t uniform on 1 … T (Ho et al., equation 14). "edm": E‖F − (x_0 − c_skip x) /
        c_out‖², which is E[(1/c_out²) ‖D(x; σ) − x_0‖²], ln σ ~ N(P_mean, P_std²) (Karras et al., equation 8).

        Args:
            batch: images, with their masks' channels if the model has masks; groups or targets of `Conditions`.
            amounts: (B, 5), by how much the images have been moved, or None.
            generator: of times, levels and noise; None: PyTorch's own, on the images' device.
        """
        x, targets = batch.images, as_targets(batch.labels) if self.num_classes else None
        n, epsilon = len(x), normal(x.shape, x.device, generator)
        if self.recipe == "epsilon":
            where = drawn_on(x.device, generator)
            t = torch.randint(1, self.num_steps + 1, (n,), generator=generator, device=where).to(x.device)
            found, target = self.network(self.diffuse(x, t, epsilon), t, targets, amounts), epsilon
        else:
            sigma = (self.P_mean + self.P_std * normal((n,), x.device, generator)).exp()
            noisy = x + sigma[:, None, None, None] * epsilon
            c_skip, c_out, c_in = self.preconditioning(sigma)
            found = self.network(c_in * noisy, 250 * sigma.log(), targets, amounts)
            target = (x - c_skip * noisy) / c_out
        error = (found.float() - target) ** 2
        return (error[:, :1].mean() + error[:, 1:].mean()) / 2 if self.with_masks else error.mean()

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in at σ (B,), each (B, 1, 1, 1) (Karras et al. 2022, table 1)."""
        sigma, square = sigma[:, None, None, None], sigma[:, None, None, None] ** 2 + self.sigma_data**2
        return self.sigma_data**2 / square, sigma * self.sigma_data / square.sqrt(), 1 / square.sqrt()

    def denoise(self, x: Tensor, sigma: Tensor, targets: Tensor | None = None) -> Tensor:
        """D(x; σ), the network's guess of x_0 in x = x_0 + σ ε, kept in [−1, 1]; with guidance where it has a weight.

        Shapes: x (B, C, H, W), sigma () or (B,), targets (B, 3) of `Conditions` or None → (B, C, H, W).
        """
        if targets is None or not self.num_classes or self.guidance == 1:
            return self._denoise(x, sigma, targets).clamp(-1, 1)
        told, untold = self._denoise(x.repeat(2, 1, 1, 1), sigma.expand(len(x)).repeat(2), _both(targets)).chunk(2)
        return (untold + self.guidance * (told - untold)).clamp(-1, 1)

    def _denoise(self, x: Tensor, sigma: Tensor, targets: Tensor | None) -> Tensor:
        sigma = torch.as_tensor(sigma, device=x.device).reshape(-1).float()  # (1,), one for all images, or (B,)
        targets = targets if self.num_classes else None
        if self.recipe == "epsilon":
            x_t = x / (1 + sigma**2).sqrt()[:, None, None, None]
            return x - sigma[:, None, None, None] * self.network(x_t, self.time_of(sigma), targets).float()
        c_skip, c_out, c_in = self.preconditioning(sigma)
        return c_skip * x + c_out * self.network(c_in * x, 250 * sigma.log(), targets).float()

    def time_of(self, sigma: Tensor) -> Tensor:
        """The time t, not always whole, at which the chain has the levels σ (B,): between two times by log σ."""
        logs, here = self.sigmas.log(), sigma.log().clamp(self.sigmas[0].log(), self.sigmas[-1].log())
        above = torch.searchsorted(logs, here).clamp(1, self.num_steps - 1)
        return above + (here - logs[above - 1]) / (logs[above] - logs[above - 1])

    def train_step(self, batch: Batch) -> Moves:
        """One step of the network towards what lies under the noise."""
        x, targets, amounts = batch.images, as_targets(batch.labels), None
        if self.augment:
            moved = torch.rand(len(x), 1, device=x.device) < self.augment
            amounts = jitter_amounts(len(x), x.device) * moved
            x = torch.where(moved[:, :, None, None], move(x, amounts), x)
        if self.num_classes:
            drop = torch.rand(len(x), 4, device=x.device) < self.drop_conditions
            targets = targets.masked_fill(drop[:, :3] | drop[:, 3:], -1.0)
        loss = self.loss(Batch(x, targets), amounts)
        yield None, loss
        return {"loss": loss}

    def validation_loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """The training loss on held-out images as they are."""
        return self.loss(batch, generator=generator)

    @torch.no_grad()
    def learn_start(self, images: Tensor, targets: Tensor | None = None) -> None:
        """Let walks begin at σ = 10 (at 64×64) in the images' normal distribution, not at σ = 80 in pure noise.

        Under so much noise nothing of an image is to be seen but its place in the normal distribution of all, of mean
        μ and covariance Σ, so x is drawn from N(μ, Σ + σ² I). Training hardly ever shows the network more noise. Of Σ
        it keeps the directions of most variance: those of a variance far below σ² drown in the noise. Noise averages
        out over the pixels of a shape, so σ grows as the side of the image does.

        What a conditional network is told moves μ, by a ridge regression on the `Conditions.features`: a heart that is
        told to lie at the apex must not begin as one of the base.

        Args:
            images: the training slices (N, C, S, S), with their masks' channels if the model has masks.
            targets: their targets (N, 3) of `Conditions`; None: μ is the same for all.

        Source: Wang & Vastola 2024, arXiv 2412.09726.
        """
        x = images.flatten(1).float()
        mean = x.mean(dim=0)
        rest = x - mean
        self.start_slopes.zero_()
        if targets is not None and self.num_classes:
            told = self.network.conditions.features(targets)  # (N, F)
            penalty = torch.eye(told.shape[1], device=told.device)  # ridge regression: what is withheld adds little
            slopes = torch.linalg.solve(told.T @ told + penalty, told.T @ rest)
            self.start_slopes.copy_(slopes.view_as(self.start_slopes))
            rest = rest - told @ slopes
        # The rest is U S Vᵀ: N weights of variance 1, times S/√N, times the directions V.
        _, deviations, directions = torch.linalg.svd(rest, full_matrices=False)
        directions = (deviations[:, None] / len(x) ** 0.5 * directions)[:NUM_DIRECTIONS]
        self.start_sigma.fill_(10 * self.image_size / 64)
        self.start_mean.copy_(mean.view_as(self.start_mean))
        self.start_directions.zero_()[: len(directions)] = directions.view(-1, *self.start_mean.shape)

    def start(
        self,
        n: int,
        generator: torch.Generator | None = None,
        targets: Tensor | None = None,
        sigma: float | None = None,
    ) -> Tensor:
        """Draw n beginnings of a walk, (n, C, S, S).

        Args:
            n: how many.
            generator: of all noise, on the CPU.
            targets: what the walk will be told, (n, 3) of `Conditions`; None: nothing.
            sigma: the level; None: the first of the `levels`.
        """
        device = self.start_mean.device
        weights = torch.randn(n, len(self.start_directions), generator=generator).to(device)
        noise = torch.randn(n, *self.start_mean.shape, generator=generator).to(device)
        with torch.autocast(device.type, enabled=False):
            x = self.start_mean + torch.einsum("nk,kchw->nchw", weights, self.start_directions)
            if targets is not None and self.num_classes:
                told = self.network.conditions.features(targets.to(device))
                x = x + torch.einsum("nf,fchw->nchw", told, self.start_slopes)
        return x + (self.levels()[0].item() if sigma is None else sigma) * noise

    def levels(self) -> Tensor:
        """The noise levels that `sample` visits, from 80, or where `learn_start` begins, to 0: float64.

        "ancestral" and "ddim" take those of evenly spread times of the chain, from its end on, "dpmpp_2m" and
        "dpmpp_3m" `log_levels`, the others `rho_levels`. Shape: (sampling_steps + 1,).

        Raises:
            DataError: more steps than the chain has.
        """
        if self.follows_chain:
            chain = torch.cat([torch.zeros(1, dtype=torch.float64), self.sigmas.double().cpu()])
            return chain[timesteps(self.num_steps, self.sampling_steps)].clamp(max=200)  # above, nothing is seen
        spread = log_levels if self.sampler.startswith("dpmpp") else rho_levels
        return spread(self.sampling_steps, self.start_sigma.item())

    @property
    def follows_chain(self) -> bool:
        """Whether the sampler visits times of the chain."""
        return self.sampler in ("ancestral", "ddim")

    @property
    def evaluations(self) -> int:
        """Passes through the network that an image takes."""
        steps = 2 * self.sampling_steps - 1 if self.sampler == "heun" else self.sampling_steps
        return steps * (2 if self.num_classes and self.guidance != 1 else 1)

    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1], as `sample_channels` does, without their masks."""
        return self.sample_channels(n, labels, generator)[:, :1]

    @torch.no_grad()
    def sample_channels(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1], or (n, 4, H, W) with masks, for `split_masks`.

        Args:
            n: how many.
            labels: for a conditional network, the groups (n,), to which phase and position are drawn as slices have
                them, either phase and any position; or the targets (n, 3) of `Conditions`. None: HCM.
            generator: of all noise, on the CPU.

        Raises:
            DataError: labels of another number, outside the groups, or with no such phase or position; a sampler that
                there is not.
        """
        targets = self.targets(n, labels, generator).to(self.alpha_bar.device) if self.num_classes else None
        follow = find_sampler(self.sampler)
        x = self.start(n, generator, targets if self.guidance else None)  # at weight 0 nothing is told
        return follow(lambda x, sigma: self.denoise(x, sigma, targets), x, self.levels(), generator).clamp(-1, 1)

    def targets(self, n: int, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """The targets (n, 3) that `sample` takes for its labels."""
        labels = torch.full((n,), GROUPS.index("HCM")) if labels is None else labels.cpu()
        if labels.ndim == 1:
            phase, position = torch.rand(2, len(labels), generator=generator)
            labels = torch.stack([labels.float(), (phase < 0.5).float(), position], dim=1)
        group, phase, position = labels.float().T if labels.shape == (n, 3) else torch.full((3, 1), torch.nan)
        if not ((group.frac() == 0) & (group >= -1) & (group < self.num_classes)).all():
            raise DataError(f"labels must be {n} numbers from 0 to {self.num_classes - 1}, the index of the group")
        told = ((phase == -1) | (phase == 0) | (phase == 1)) & ((position == -1) | (position >= 0) & (position <= 1))
        if not told.all():
            raise DataError("labels: the phase must be 0, 1 or −1 for not known, the position from 0 to 1 or −1")
        return labels.float()


def with_mask_channels(slices: Slices) -> Slices:
    """Slices whose images have three channels more, one a structure of the mask: 1 where it is, −1 elsewhere.

    Slices whose mask nobody drew are left out.

    Raises:
        DataError: none was drawn.
    """
    drawn = drawn_slices(slices)
    structures = torch.stack([drawn.masks == value for value in (1, 2, 3)], dim=1) * 2.0 - 1
    return replace(drawn, images=torch.cat([drawn.images, structures], dim=1))


def split_masks(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, 1, S, S) and masks (N, S, S) uint8 of (N, 4, S, S): the structure that is surest, if it is above 0."""
    surest, structure = channels[:, 1:].max(dim=1)
    return channels[:, :1], torch.where(surest > 0, structure + 1, 0).to(torch.uint8)


def as_targets(labels: Tensor) -> Tensor:
    """Targets (B, 3) as they are; groups (B,) with phase and position not known."""
    return labels.float() if labels.ndim == 2 else F.pad(labels[:, None].float(), (0, 2), value=-1.0)


def _both(targets: Tensor) -> Tensor:
    """The targets, and below them as many that tell nothing."""
    return torch.cat([targets, torch.full_like(targets, -1.0)])


def timesteps(num_steps: int, sampling_steps: int) -> list[int]:
    """The times a sampler visits, T first and 0 last, evenly spread.

    Raises:
        DataError: fewer than one step or more than the chain has.
    """
    if not 1 <= sampling_steps <= num_steps:
        raise DataError(f"sampling_steps={sampling_steps}: the chain has {num_steps} steps, so choose 1 to {num_steps}")
    return [round(num_steps * i / sampling_steps) for i in range(sampling_steps, -1, -1)]
