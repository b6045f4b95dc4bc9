"""What more than one model uses: a batch, optimizers, the losses of a GAN, a price on copies, the norm of weights."""

from collections.abc import Callable, Generator
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import Adam, Optimizer

from hcm_helpers.acdc import DataError
from hcm_helpers.slices import Slices


class Batch(NamedTuple):
    """Images (B, 1, H, W) in [−1, 1] and their groups, int64 (B,), indices into `GROUPS`."""

    images: Tensor
    labels: Tensor


# A training step: it yields a loss, (), and the name of the optimizer that shall go down it, None for all, one after
# the other, and returns the losses to be noted, by name. `parallel.take_step` walks it.
Moves = Generator[tuple[str | None, Tensor], None, dict[str, Tensor]]


def check_width(width: int) -> int:
    """Return width, or raise DataError if group normalisation cannot divide it into its eight groups."""
    if width < 8 or width % 8:
        raise DataError(f"width={width}: most layers treat their channels in 8 groups, so choose a multiple of 8")
    return width


class GroupNorm(nn.GroupNorm):
    """Group normalisation, on a CPU in float32 where its bf16 is slow.

    PyTorch's kernels for bf16 take two to four times as long as those for float32 backward, and forward on maps below
    32×32.
    """

    def forward(self, x: Tensor) -> Tensor:
        slow = x.device.type == "cpu" and (x.requires_grad or x.shape[2:].numel() < 1024)
        return super().forward(x.float()).to(x.dtype) if slow else super().forward(x)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def drawn_on(device: torch.device, generator: torch.Generator | None) -> torch.device:
    """Where random numbers for a device are drawn: there, or where the generator is, if one is given."""
    return device if generator is None else generator.device


def normal(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers on a device, see `drawn_on`."""
    return torch.randn(shape, generator=generator, device=drawn_on(device, generator)).to(device)


def adam(parameters, learning_rate: float, betas: tuple[float, float]) -> Adam:
    """The paper's optimizer (its section 2.3.2: learning rate 2e-4, β₁ 0.5, β₂ 0.999)."""
    return Adam(list(parameters), lr=learning_rate, betas=tuple(betas))


class Muon(Optimizer):
    """Momentum, and of each layer's step the nearest orthogonal matrix: every direction of it is learned equally fast.

    For weights of two or more dimensions, which it takes as matrices (out, in · height · width); the rest of a network
    is left to Adam.

    Args:
        parameters: the weights.
        lr: spectral norm of a step, times √(out / in) where that is above 1.
        momentum: share of the running mean that a step keeps.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the five iterations and their factors too.
    """

    def __init__(self, parameters, lr: float = 0.02, momentum: float = 0.95):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; weights of one shape are made orthogonal together, which is faster."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, weights in by_shape.items():
                gradients = [p.grad for p in weights]
                for p in weights:
                    if "mean" not in self.state[p]:
                        self.state[p]["mean"] = torch.zeros_like(p)
                means = [self.state[p]["mean"] for p in weights]
                torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
                ahead = [g.lerp(m, group["momentum"]) for g, m in zip(gradients, means, strict=True)]
                steps = orthogonal(torch.stack([a.reshape(shape[0], -1) for a in ahead]))
                steps = steps * (group["lr"] * max(1.0, steps.shape[1] / steps.shape[2]) ** 0.5)
                torch._foreach_sub_(weights, [direction.reshape(shape) for direction in steps])


def orthogonal(x: Tensor) -> Tensor:
    """Matrices (N, out, in) with their singular values brought near 1, roughly: to 0.7 … 1.2, as in Jordan et al. 2024.

    Of x = U S Vᵀ it keeps U and Vᵀ, by five steps of an odd polynomial, x ← (a + b x xᵀ + c (x xᵀ)²) x, which acts on
    each singular value. What stands before x are polynomials in the first x xᵀ, small where x is wide, so the five are
    multiplied there, and x by their product.
    """
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    with torch.autocast(x.device.type, enabled=False):  # in bf16 the products of factors would drift
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        square, one = x @ x.mT, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        factors = one
        for _ in range(5):
            factor = 3.4445 * one - 4.7750 * square + 2.0315 * square @ square
            factors = factor @ factors
            square = factor @ square @ factor
        x = factors @ x
    return x.mT if tall else x


def bce(logits: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy −t log σ(l) − (1−t) log(1−σ(l)) of logits l and one target t in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, target, dtype=torch.float))


def hinge(logits: Tensor, target: float) -> Tensor:
    """Mean of max(0, 1 − t l) for logits l and one target t, 1 for real and −1 for generated images.

    An image that D puts beyond the margin on its side teaches D nothing more.

    Source: Lim & Ye 2017, arXiv 1705.02894, equation 7; Miyato et al. 2018, arXiv 1802.05957, equation 16.
    """
    return F.relu(1.0 - target * logits.float()).mean()


def minus_mean(logits: Tensor) -> Tensor:
    """−E[D(G(z))], what G descends beside D's hinge loss (Miyato et al. 2018, arXiv 1802.05957, equation 17)."""
    return -logits.float().mean()


class Game(NamedTuple):
    """The three losses of an adversarial game, each of logits (B,) → ().

    Args:
        real: D's loss of real images.
        fake: D's loss of generated images.
        fool: G's loss of generated images.
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    fool: Callable[[Tensor], Tensor]


def game(loss: str, label_smoothing: float = 0.0) -> Game:
    """The losses of the game that `loss` names.

    Args:
        loss: "bce" for equation 5, G in its non-saturating form (Goodfellow et al. 2014, section 3), or "hinge".
        label_smoothing: the target of real images is 1 − label_smoothing; the hinge has no such target.

    Raises:
        DataError: another loss.
    """
    if loss == "bce":
        return Game(*(partial(bce, target=target) for target in (1.0 - label_smoothing, 0.0, 1.0)))
    if loss == "hinge":
        return Game(partial(hinge, target=1.0), partial(hinge, target=-1.0), minus_mean)
    raise DataError(f'loss="{loss}": choose "bce" or "hinge"')


class CopyPenalty(nn.Module):
    """What a generator pays for each image that is nearer to a training slice than other patients' slices come.

    Images are compared by Pearson's r after averaging them down to 16×16, so that grain hides no copy and a pixel's
    shift little. Up to r = `limit`, the 90th percentile of r between a training slice and the nearest one of another
    patient, nearness is free: hearts are alike. One patient's slices set no limit, so with them all is free.

    The slices it compares with are not kept with the weights.

    Args:
        weight: of the mean excess of r over the limit, 0 for no penalty.

    Source: after the memorisation rejection of Bai et al. 2022, arXiv 2210.12231, which gives such images no gradient;
    here they have one, away from the slice.
    """

    MOST = 4096  # slices, evenly spaced where there are more

    def __init__(self, weight: float = 0.0):
        super().__init__()
        if weight < 0:
            raise DataError(f"copy_penalty={weight}: choose 0 for none, or more, usually 10")
        self.weight = weight
        self.register_buffer("slices", torch.zeros(0, 256), persistent=False)
        self.register_buffer("limit", torch.tensor(1.0), persistent=False)

    def meet(self, train: Slices) -> None:
        """Keep the slices in mind, 16×16 of each, and set the limit."""
        if not self.weight:
            return
        rows = torch.linspace(0, len(train) - 1, min(len(train), self.MOST)).long()
        slices = self.standardise(train.images[rows])
        patients = torch.from_numpy(pd.factorize(train.manifest["patient"].iloc[rows.numpy()])[0])
        same = patients[:, None] == patients
        nearest = (slices @ slices.T).masked_fill(same, -1.0).amax(dim=1)
        limit = torch.tensor(1.0) if same.all() else nearest.quantile(0.9)
        self.slices, self.limit = slices.to(self.limit.device), limit.to(self.limit.device)

    @staticmethod
    def standardise(images: Tensor) -> Tensor:
        """Images (N, 1, S, S) as vectors (N, 256) of mean 0 and length 1, whose products are Pearson's r."""
        small = F.adaptive_avg_pool2d(images.float(), 16).flatten(1)
        return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """weight · E[max(0, r − limit)], r with the nearest slice, of images (B, 1, S, S) → ()."""
        if not self.weight:
            return x.new_zeros(())
        if not len(self.slices):
            raise DataError("copy_penalty: `meet` the training slices first, as `fit` does")
        with torch.autocast(x.device.type, enabled=False):
            nearest = (self.standardise(x) @ self.slices.T).amax(dim=1)
            return self.weight * F.relu(nearest - self.limit).mean()


def divide_by_spectral_norm(module: nn.Module) -> nn.Module:
    """Divide the kernel of each layer in a module by its largest singular value, so that D stays Lipschitz.

    A kernel (out, in, height, width) counts as the matrix (out, in · height · width). The value is followed by one
    step of the power method in each forward pass of the training.

    Source: Miyato et al. 2018, arXiv 1802.05957, section 2.1.
    """
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrizations.spectral_norm(layer)
    return module


def two_players(model: nn.Module, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
    """One Adam for a model's discriminator, one for its generator."""
    players = {"discriminator": model.discriminator, "generator": model.generator}
    return {name: adam(player.parameters(), learning_rate, betas) for name, player in players.items()}


def r1_penalty(discriminator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """½ E‖∇ₓ D(x)‖² on real images: keeps D from growing steep around the few there are.

    Source: Mescheder, Geiger & Nowozin 2018, arXiv 1801.04406, equation 9.
    """
    x = x.detach().requires_grad_(True)
    # In float32: a gradient of a gradient has no digits to spare.
    with torch.autocast(x.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(discriminator(x.float()).sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()
