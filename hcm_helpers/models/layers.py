"""What more than one model uses: a batch, an optimizer step, the two GAN losses, and the image-size rule."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from hcm_helpers.acdc import DataError


class Batch(NamedTuple):
    """Images (B, 1, H, W) in [−1, 1] and their groups, int64 (B,), indices into `GROUPS`."""

    images: Tensor
    labels: Tensor


def check_width(width: int) -> int:
    """Return width, or raise DataError if group normalisation cannot divide it into its eight groups."""
    if width < 8 or width % 8:
        raise DataError(f"width={width}: the layers are normalised in 8 groups of channels, so choose a multiple of 8")
    return width


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def adam(parameters, learning_rate: float, betas: tuple[float, float]) -> Adam:
    """The paper's optimizer (its section 2.3.2: learning rate 2e-4, β₁ 0.5, β₂ 0.999)."""
    return Adam(list(parameters), lr=learning_rate, betas=tuple(betas))


def step(optimizer: Optimizer, loss: Tensor, fabric: Fabric) -> None:
    """One step of one player down its loss."""
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    optimizer.step()
    # Autocast keeps its bf16 copies of the weights until the training step ends; the next player in the
    # same step must see the weights as they are now.
    torch.clear_autocast_cache()


def bce(logits: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy −t log σ(l) − (1−t) log(1−σ(l)) of logits l and one target t in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, target, dtype=torch.float))


def r1_penalty(discriminator: nn.Module, x: Tensor) -> Tensor:
    """½ E‖∇ₓ D(x)‖² on real images: keeps D from growing steep around the few there are.

    Source: Mescheder, Geiger & Nowozin 2018, arXiv 1801.04406, equation 9.
    """
    x = x.detach().requires_grad_(True)
    # In float32: a gradient of a gradient has no digits to spare.
    with torch.autocast(x.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(discriminator(x.float()).sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()
