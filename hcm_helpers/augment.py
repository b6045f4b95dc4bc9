"""Differentiable augmentation: a discriminator that sees every image shifted, dimmed and cut cannot learn a
few hundred patients by heart, and the generator still gets its gradient through the augmentation.

Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv 2006.10738.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def diff_augment(x: Tensor) -> Tensor:
    """Brightness, contrast, translation and cutout, drawn anew for each image of (B, 1, H, W) in [−1, 1]."""
    return cutout(translate(color(x)))


def color(x: Tensor) -> Tensor:
    """Brightness shifted by up to ±0.5, contrast scaled by 0.5 to 1.5."""
    shift, scale = (torch.rand(len(x), 1, 1, 1, device=x.device) for _ in range(2))
    x = x + (shift - 0.5)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (scale + 0.5) + mean


def translate(x: Tensor, ratio: float = 0.125) -> Tensor:
    """Shifted by whole pixels, up to `ratio` of the side each way; what comes in is black (−1)."""
    n, _, height, width = x.shape
    reach = int(height * ratio)
    padded = F.pad(x, (reach, reach, reach, reach), value=-1.0)
    dy, dx = (torch.randint(0, 2 * reach + 1, (n, 1, 1), device=x.device) for _ in range(2))
    rows = torch.arange(height, device=x.device)[None, :, None] + dy
    columns = torch.arange(width, device=x.device)[None, None, :] + dx
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded[image, 0, rows, columns][:, None]


def cutout(x: Tensor, ratio: float = 0.5) -> Tensor:
    """A square of `ratio` of the side set to mid-grey (0), its centre anywhere in the image."""
    n, _, height, width = x.shape
    half = int(height * ratio) // 2
    cy, cx = (torch.randint(0, height, (n, 1, 1), device=x.device) for _ in range(2))
    rows = torch.arange(height, device=x.device)[None, :, None]
    columns = torch.arange(width, device=x.device)[None, None, :]
    cut = (cy - half <= rows) & (rows < cy + half) & (cx - half <= columns) & (columns < cx + half)
    return x * ~cut[:, None]


def jitter(x: Tensor, generator: torch.Generator | None = None, **reach: float) -> Tensor:
    """Each image of (B, 1, H, W) turned, shifted, scaled and in other tones, as another examination would be.

    Args:
        generator: of the draws, on the images' device; None: PyTorch's own.
        reach: how far, as in `move`.
    """
    return move(x, jitter_amounts(len(x), x.device, generator), **reach)


def jitter_amounts(n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """How much to turn, scale, shift across and down, and change in tone: (n, 5) for n images, uniform in [−1, 1]."""
    shapes = ((n, 1), (n, 1), (n, 2), (n, 1))
    return torch.cat([torch.rand(*shape, device=device, generator=generator) * 2 - 1 for shape in shapes], dim=1)


def move(
    x: Tensor, amounts: Tensor, degrees: float = 25.0, shift: float = 0.08, scale: float = 0.15, gamma: float = 0.3
) -> Tensor:
    """Images (B, 1, H, W) in [−1, 1] changed by amounts (B, 5) of `jitter_amounts`; 0 changes nothing but rounding.

    Args:
        degrees: the rotation of amount 1.
        shift: the translation of amount 1, as a share of the side.
        scale: by how much the picture is smaller at amount 1, as a share.
        gamma: brightness v in [0, 1] becomes v to the power 1 + gamma at amount 1.
    """
    angle, size = amounts[:, 0] * degrees * torch.pi / 180, 1 + amounts[:, 1] * scale
    offset = amounts[:, 2:4] * 2 * shift  # affine_grid counts the side as 2
    cosine, sine = angle.cos() * size, angle.sin() * size
    theta = torch.stack(
        [torch.stack([cosine, -sine, offset[:, 0]], 1), torch.stack([sine, cosine, offset[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    power = 1 + amounts[:, 4, None, None, None] * gamma
    return ((moved + 1) / 2).clamp(1e-6, 1) ** power * 2 - 1  # above 0, where a root has no slope
