"""From an image to its features: the numbers of a network by which sets of images are compared in `fidelity`.

Those of `Encoder` are learned from the training patients, so that figures made of them are not comparable with
published ones, which rest on `Inception`.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.image.fid import NoTrainInceptionV3

from hcm_helpers.acdc import GROUPS, PHASES, DataError
from hcm_helpers.augment import jitter
from hcm_helpers.cutting import check_image_size
from hcm_helpers.models.layers import Batch, GroupNorm, Moves, adam, check_width, drawn_on, normal
from hcm_helpers.similarity import to_unit
from hcm_helpers.slices import Slices


class Extractor(nn.Module):
    """A network whose output is an image's features: (B, 1, S, S) in [−1, 1] → (B, num_features).

    So it can be the feature module of torchmetrics' FID and KID. Any size S will do if image_size is None.
    """

    num_features: int
    image_size: int | None = None

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Features (N, num_features) of images (N, 1, S, S), float32, computed on the network's device, on the CPU.

        Raises:
            DataError: images of another size than the network's, outside [−1, 1], not finite, or none.
        """
        size = self.image_size or images.shape[-1]
        if images.ndim != 4 or tuple(images.shape[1:]) != (1, size, size) or not len(images):
            raise DataError(f"images: must be (N, 1, {size}, {size}), at least one, not {tuple(images.shape)}")
        to_unit(images)  # checks the range
        device, was_training = next(self.parameters()).device, self.training
        self.eval()
        found = [self(part.to(device)).float().cpu() for part in images.split(batch_size)]
        self.train(was_training)
        return torch.cat(found)


class Block(nn.Module):
    """Two convolutions beside a shortcut. Shapes: (B, channels, H, W) → the same."""

    def __init__(self, channels: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            *(GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(GroupNorm(8, channels), nn.SiLU(), nn.Dropout(dropout)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Encoder(Extractor):
    """A small residual network that learns to tell group, phase and position of a slice, and what was done to it.

    The first three are what a heart's picture must have right: how thick the wall and how wide the cavity is, whether
    the right ventricle and the papillary muscles are there. We have these labels; a self-supervised network would
    learn from us which changes do not matter instead, and of a few hundred slices hardly more. Such features alone
    pass over blur and grain, though, the faults of generated images: blurred real slices came out nearer to the
    training slices than sharp ones. So half of the images are made blurred and noisy, and the network tells by how
    much. It learns from all groups, for one alone has no group to tell, and the more patients the better;
    `accuracy` says what it knows of patients that it has not seen.

    The features are the mean of the last feature map over its places, each in units of its standard deviation over
    the training slices, so that none outweighs the others. `training.fit` trains it on slices whose labels are those
    of `with_targets`.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        width: channels at half size; doubled at each smaller one, down to 4×4, up to eight times as many.
        dropout: share of features dropped in training below half size.

    Shapes: (B, 1, image_size, image_size) in [−1, 1] → (B, num_features): 4 · width at 32×32, else 8 · width.
    """

    def __init__(self, image_size: int = 64, width: int = 16, dropout: float = 0.2):
        super().__init__()
        self.image_size = check_image_size(image_size)
        num_levels = (image_size // 4).bit_length() - 1  # 64: 32×32, 16×16, 8×8, 4×4
        channels = [min(check_width(width) * 2**level, 8 * width) for level in range(num_levels)]
        # As in `diffusion.UNet`: four neighbouring pixels become four channels, no convolution runs at full size.
        layers = [nn.PixelUnshuffle(2), nn.Conv2d(4, width, 3, padding=1), Block(width)]
        for above, below in pairwise(channels):
            layers += [nn.Conv2d(above, below, 3, stride=2, padding=1), Block(below, dropout)]
        self.num_features = channels[-1]
        self.trunk = nn.Sequential(*layers, GroupNorm(8, self.num_features), nn.SiLU())
        self.standardise = nn.BatchNorm1d(self.num_features, affine=False)
        self.heads = nn.Linear(self.num_features, len(GROUPS) + 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.standardise(self.trunk(x).mean(dim=(2, 3)).float())

    def answers(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of the groups (B, 5), logit of end-systole (B,), position (B,), amounts of blur and noise (B, 2)."""
        out = self.heads(features).float()
        return out[:, :-4], out[:, -4], out[:, -3].sigmoid(), out[:, -2:].sigmoid()

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam."""
        return {"encoder": adam(self.parameters(), learning_rate, betas)}

    def train_step(self, batch: Batch) -> Moves:
        """One step down the loss, on images turned, shifted, scaled and in other tones, half of them degraded."""
        losses = self.losses(*degrade(jitter(batch.images)), batch.labels, label_smoothing=0.1)
        yield None, sum(losses.values())
        return losses

    def validation_loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """The training loss on held-out images, half of them degraded."""
        return sum(self.losses(*degrade(batch.images, generator), batch.labels).values())

    def losses(
        self, images: Tensor, amounts: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """Cross-entropy of group and of phase, and five times the mean errors of the rest, numbers of like size.

        Shapes: images (B, 1, S, S), amounts (B, 2) of `degrade`, targets (B, 3) of `with_targets`.
        """
        group, phase, position, degraded = self.answers(self(images))
        return {
            "group": F.cross_entropy(group, targets[:, 0].long(), label_smoothing=label_smoothing),
            "phase": F.binary_cross_entropy_with_logits(phase, targets[:, 1]),
            "position": 5 * F.l1_loss(position, targets[:, 2]),
            "degraded": 5 * F.l1_loss(degraded, amounts),
        }


def degrade(images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Half of the images blurred and noisy, each by amounts of its own in [0, 1], and these amounts.

    1 is a mean over S/16 + 1 pixels both ways, and Gaussian noise of standard deviation 0.3.

    Shapes: (B, 1, S, S) → (B, 1, S, S), (B, 2).
    """
    n, reach = len(images), images.shape[-1] // 32
    where = drawn_on(images.device, generator)
    amounts, kept = (torch.rand(n, k, generator=generator, device=where) for k in (2, 1))
    amounts = amounts * (kept < 0.5)
    noise = normal(images.shape, images.device, generator)
    amounts = amounts.to(images.device)
    blur, grain = amounts[:, :, None, None, None].unbind(dim=1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    blurred = images.lerp(F.avg_pool2d(padded, 2 * reach + 1, stride=1), blur)
    return (blurred + 0.3 * grain * noise).clamp(-1, 1), amounts


def with_targets(slices: Slices) -> Slices:
    """The slices of end-diastole and end-systole, with targets (N, 3) in the labels' place: what an Encoder learns.

    Targets are float32: the group's index in GROUPS, 0 for end-diastole and 1 for end-systole, and the position from
    0 (base) to 1 (apex).
    """
    rows = torch.tensor(slices.manifest["phase"].isin(PHASES).to_numpy())
    manifest = slices.manifest[rows.numpy()].reset_index(drop=True)
    phase, position = (manifest["phase"] == PHASES[1]).to_numpy(), manifest["position"].to_numpy()
    targets = np.stack([slices.labels[rows].numpy(), phase, position], axis=1).astype(np.float32)
    parts = {"images": slices.images[rows], "masks": slices.masks[rows]}
    return replace(slices, **parts, labels=torch.from_numpy(targets), manifest=manifest)


@torch.no_grad()
def accuracy(encoder: Encoder, slices: Slices) -> dict[str, float]:
    """How well the encoder tells held-out slices: share with the right group and phase, mean error of the position.

    Args:
        encoder: after `training.fit`.
        slices: of patients that it has not seen, as `load_slices` gives them.

    Returns:
        group, phase: shares; position: 0.1 is a tenth of the way from base to apex; slices, patients: their number.
    """
    held_out = with_targets(slices)
    features = encoder.features(held_out.images).to(next(encoder.parameters()).device)
    group, phase, position, _ = (answer.cpu() for answer in encoder.answers(features))
    true_group, true_phase, true_position = held_out.labels.T
    return {
        "group": (group.argmax(dim=1) == true_group).float().mean().item(),
        "phase": ((phase > 0) == (true_phase > 0)).float().mean().item(),
        "position": (position - true_position).abs().mean().item(),
        "slices": len(held_out),
        "patients": held_out.manifest["patient"].nunique(),
    }


@torch.no_grad()
def recognise(encoder: Encoder, images: Tensor) -> Tensor:
    """The group that the encoder takes each image for, an index into GROUPS: (N, 1, S, S) → (N,) int64."""
    features = encoder.features(images).to(next(encoder.parameters()).device)
    return encoder.answers(features)[0].argmax(dim=1).cpu()


class Inception(Extractor):
    """Inception-v3, trained on photographs: the features of published FIDs, with the same weights.

    Raises:
        DataError: torch-fidelity is not installed, or its weights, 91 MB from the web, cannot be had.
    """

    num_features = 2048

    def __init__(self):
        super().__init__()
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", [str(self.num_features)])
        except ModuleNotFoundError:
            raise DataError(
                "Inception features need torch-fidelity, which is not installed: `pip install torch-fidelity`, or "
                "take those of an Encoder"
            ) from None
        except OSError as error:
            raise DataError(
                f"the weights of Inception cannot be downloaded ({error}); try again with a connection, or take the "
                "features of an Encoder"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        return self.network(((x.clamp(-1, 1) + 1) * 127.5).round().byte().expand(-1, 3, -1, -1))
