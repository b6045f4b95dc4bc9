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
    shift, scale = torch.rand(2, len(x), 1, 1, 1, device=x.device)
    x = x + (shift - 0.5)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (scale + 0.5) + mean


def translate(x: Tensor, ratio: float = 0.125) -> Tensor:
    """Shifted by whole pixels, up to `ratio` of the side each way; what comes in is black (−1)."""
    n, _, height, width = x.shape
    reach = int(height * ratio)
    padded = F.pad(x, (reach, reach, reach, reach), value=-1.0)
    dy, dx = torch.randint(0, 2 * reach + 1, (2, n, 1, 1), device=x.device)
    rows = torch.arange(height, device=x.device)[None, :, None] + dy
    columns = torch.arange(width, device=x.device)[None, None, :] + dx
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded[image, 0, rows, columns][:, None]


def cutout(x: Tensor, ratio: float = 0.5) -> Tensor:
    """A square of `ratio` of the side set to mid-grey (0), its centre anywhere in the image."""
    n, _, height, width = x.shape
    half = int(height * ratio) // 2
    cy, cx = torch.randint(0, height, (2, n, 1, 1), device=x.device)
    rows = torch.arange(height, device=x.device)[None, :, None]
    columns = torch.arange(width, device=x.device)[None, None, :]
    cut = (cy - half <= rows) & (rows < cy + half) & (cx - half <= columns) & (columns < cx + half)
    return x * ~cut[:, None]


def jitter(
    x: Tensor,
    degrees: float = 25.0,
    shift: float = 0.08,
    scale: float = 0.15,
    gamma: float = 0.3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Each image of (B, 1, H, W) turned, shifted, scaled and in other tones, as another examination would be.

    Args:
        degrees: largest rotation either way.
        shift: largest translation either way, as a share of the side.
        scale: largest enlargement or reduction, as a share.
        gamma: brightness v in [0, 1] becomes v to a power of at most this much above or below 1.
        generator: of the draws, on the images' device; None: PyTorch's own.
    """
    n, settings = len(x), {"device": x.device, "generator": generator}
    angle = (torch.rand(n, **settings) * 2 - 1) * degrees * torch.pi / 180
    size = 1 + (torch.rand(n, **settings) * 2 - 1) * scale
    offset = (torch.rand(n, 2, **settings) * 2 - 1) * 2 * shift  # affine_grid counts the side as 2
    cosine, sine = angle.cos() * size, angle.sin() * size
    theta = torch.stack(
        [torch.stack([cosine, -sine, offset[:, 0]], 1), torch.stack([sine, cosine, offset[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    power = 1 + (torch.rand(n, 1, 1, 1, **settings) * 2 - 1) * gamma
    return ((moved + 1) / 2).clamp(1e-6, 1) ** power * 2 - 1  # above 0, where a root has no slope
