"""Flow matching (Lipman et al. 2023, arXiv 2210.02747): a seventh model, in one file beside the package.

The straight lines are those of its section 4.1 (example II) and of rectified flow (Liu, Gong & Liu 2023, arXiv
2209.03003); the network is the U-Net of notebook 07.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.diffusion import UNet
from hcm_helpers.models.layers import Batch, Moves, Muon, adam, check_width, drawn_on, normal


class Flow(nn.Module):
    """A velocity v(x, t) that carries noise, at t = 0, to images, at t = 1.

    A noise x_0 and an image x_1 are joined by a straight line, x_t = (1 − t) x_0 + t x_1, on which the velocity is
    x_1 − x_0. Many lines pass through any one x at t; the network learns the mean of their velocities there, and to
    follow the means leads from the noises to the images.

    Args:
        image_size: height and width of the images: 32, 64, 128 or 256.
        width: channels of the U-Net at half size, a multiple of 8.
        dropout: share of channels dropped in training.
        sampling_steps: strides from noise to image, two evaluations of the network each.
    """

    def __init__(self, image_size: int = 64, width: int = 32, dropout: float = 0.1, sampling_steps: int = 10):
        super().__init__()
        self.network = UNet(check_image_size(image_size), check_width(width), dropout=dropout)
        self.shape, self.sampling_steps = (1, image_size, image_size), sampling_steps

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """Muon for the convolutions but the last, at ten times the rate, as in notebook 07; Adam for the rest."""
        last = self.network.out[2].weight
        matrices = [p for p in self.parameters() if p.ndim == 4 and p is not last]
        rest = [p for p in self.parameters() if p.ndim != 4 or p is last]
        return {"muon": Muon(matrices, 10 * learning_rate), "adam": adam(rest, learning_rate, betas)}

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t) for x (B, 1, H, W) and t (B,) or (1,) in [0, 1]; same shape as x."""
        return self.network(x, 1000 * t).float()

    def loss(self, x_1: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """E‖v(x_t, t) − (x_1 − x_0)‖² per pixel, t uniform on [0, 1], for images x_1 (B, 1, H, W)."""
        x_0 = normal(x_1.shape, x_1.device, generator)
        t = torch.rand(len(x_1), generator=generator, device=drawn_on(x_1.device, generator)).to(x_1.device)
        x_t = torch.lerp(x_0, x_1, t[:, None, None, None])  # (1 − t) x_0 + t x_1
        return ((self.velocity(x_t, t) - (x_1 - x_0)) ** 2).mean()

    def train_step(self, batch: Batch) -> Moves:
        """One step of the network towards the velocities of a batch of lines."""
        loss = self.loss(batch.images)
        yield None, loss
        return {"loss": loss}

    def validation_loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """The training loss on held-out images."""
        return self.loss(batch.images, generator)

    @property
    def evaluations(self) -> int:
        """Passes through the network that an image takes."""
        return 2 * self.sampling_steps

    def start(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n noises x_0 (n, 1, H, W)."""
        return normal((n, *self.shape), next(self.parameters()).device, generator)

    @torch.no_grad()
    def follow(self, x: Tensor) -> Tensor:
        """Where the velocity carries noises x (n, 1, H, W) to, by the midpoint rule."""
        stride = 1 / self.sampling_steps
        for t in torch.arange(self.sampling_steps, device=x.device)[:, None] * stride:
            halfway = x + stride / 2 * self.velocity(x, t)
            x = x + stride * self.velocity(halfway, t + stride / 2)
        return x

    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n images (n, 1, H, W) in [−1, 1]; labels are not used."""
        return self.follow(self.start(n, generator)).clamp(-1, 1)
