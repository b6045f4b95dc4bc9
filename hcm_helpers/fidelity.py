"""How far the generated images lie, as a distribution, from the real ones."""

import torch
from torch import Tensor


def sliced_wasserstein(x: Tensor, y: Tensor, num_projections: int = 512, seed: int = 0) -> float:
    """Mean Wasserstein-1 distance between two sets of images over random directions of pixel space.

    Along a direction each image is one number, and the distance between two sets of numbers is the area between
    their quantile functions. 0 for equal sets; in units of the pixel value for directions of length √(pixels).

    Args:
        x, y: images (N, 1, H, W) and (M, 1, H, W), N and M need not be equal.
        num_projections: directions drawn.
        seed: of the directions.

    Source: Bonneel et al. 2015, doi 10.1007/s10851-014-0506-3.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x[0].numel(), num_projections, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(x.device)
    levels = (torch.arange(256, device=x.device) + 0.5) / 256
    quantiles = [torch.quantile(images.flatten(1).float() @ directions, levels, dim=0) for images in (x, y)]
    return (quantiles[0] - quantiles[1]).abs().mean().item()
