"""From an image to its mask: a network that draws the masks which an expert would draw, and what it is worth.

A mask is as in `anatomy`: (S, S) uint8, 0 background, 1 right-ventricle cavity, 2 myocardium, 3 left-ventricle cavity.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from hcm_helpers.acdc import DataError
from hcm_helpers.anatomy import STRUCTURES, measure_all
from hcm_helpers.augment import jitter
from hcm_helpers.cutting import check_image_size
from hcm_helpers.devices import make_fabric
from hcm_helpers.models.layers import Batch, GroupNorm, Moves, adam, check_width
from hcm_helpers.slices import Slices, drawn_slices


class Block(nn.Module):
    """Two convolutions beside a shortcut. Shapes: (B, in_channels, H, W) → (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            *(GroupNorm(8, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)),
            *(GroupNorm(8, out_channels), nn.SiLU(), nn.Dropout(dropout)),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


class Segmenter(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv 1505.04597) of residual blocks that draws the mask of a slice.

    As in `diffusion.UNet`, four neighbouring pixels become four channels on the way in, and on the way out each
    place draws its four pixels, so that no convolution runs at full size. `training.fit` trains it on slices
    whose labels are their masks, see `with_masks`.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        width: channels at half size; doubled at each smaller one up to four times as many, down to 4×4.
        dropout: share of features dropped in training below half size.

    Shapes: (B, 1, image_size, image_size) in [−1, 1] → logits (B, 4, image_size, image_size), a channel a value
    of the mask.
    """

    def __init__(self, image_size: int = 64, width: int = 32, dropout: float = 0.1):
        super().__init__()
        check_image_size(image_size)
        check_width(width)
        self.image_size = image_size
        num_levels = (image_size // 4).bit_length() - 1  # 64: 32×32, 16×16, 8×8, 4×4
        channels = [min(width * 2**level, 4 * width) for level in range(num_levels)]
        drops = [0.0] + [dropout] * (num_levels - 1)
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.ModuleList(Block(c, c, drop) for c, drop in zip(channels, drops, strict=True))
        self.up = nn.ModuleList(Block(2 * c, c, drop) for c, drop in zip(channels, drops, strict=True))
        steps = list(pairwise(channels))
        self.shrink = nn.ModuleList(nn.Conv2d(c, below, 3, stride=2, padding=1) for c, below in steps)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(below, c, 2, stride=2) for c, below in steps)
        self.middle = Block(channels[-1], channels[-1], dropout)
        self.out = nn.Sequential(GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(F.pixel_unshuffle(x, 2))  # (B, 1, S, S) → (B, 4, S/2, S/2) → (B, width, S/2, S/2)
        skips = []
        for level, block in enumerate(self.down):
            h = block(self.shrink[level - 1](h) if level else h)
            skips.append(h)
        h = self.middle(h)
        for level, block in reversed(list(enumerate(self.up))):
            h = block(torch.cat([h, skips[level]], dim=1))
            h = self.grow[level - 1](h) if level else h
        return F.pixel_shuffle(self.out(h), 2)

    def optimizers(self, learning_rate: float, betas: tuple[float, float]) -> dict[str, Optimizer]:
        """One Adam."""
        return {"segmenter": adam(self.parameters(), learning_rate, betas)}

    def train_step(self, batch: Batch) -> Moves:
        """One step down the loss, on images turned, shifted, scaled and in other tones together with their masks."""
        x, y = jitter_both(*batch)
        loss = segmentation_loss(self(x), y)
        yield None, loss
        return {"loss": loss}

    def validation_loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """The training loss on held-out images as they are; it draws nothing, so the generator has no use."""
        return segmentation_loss(self(batch.images), batch.labels)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus 1 − soft Dice, mean of the three structures: −log p_y + 1 − 2 Σ p y / (Σ p + Σ y).

    The sums run over the batch, so that a slice without a structure does no harm.

    Shapes: logits (B, 4, H, W), masks (B, H, W) with values 0 to 3 → ().

    Source: Isensee et al. 2021 (nnU-Net), doi 10.1038/s41592-020-01008-z; soft Dice: Milletari et al. 2016, arXiv
    1606.04797.
    """
    logits, masks = logits.float(), masks.long()
    p = logits.softmax(dim=1)[:, 1:]
    y = F.one_hot(masks, 4).movedim(-1, 1)[:, 1:]
    overlap, total = (p * y).sum((0, 2, 3)), (p + y).sum((0, 2, 3))
    return F.cross_entropy(logits, masks) + 1 - ((2 * overlap + 1) / (total + 1)).mean()


def jitter_both(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """`augment.jitter` of images (B, 1, H, W) and their masks (B, H, W), moved alike."""
    shares = F.one_hot(masks.long(), 4).movedim(-1, 1)
    moved = jitter(torch.cat([images, shares.to(images)], dim=1))
    return moved[:, :1], moved[:, 1:].argmax(dim=1)  # the change of tones keeps the order of the shares


def with_masks(slices: Slices) -> Slices:
    """The slices whose mask was drawn, with masks (N, S, S) in the labels' place: what `fit` gives a Segmenter.

    Raises:
        DataError: none of them was drawn.
    """
    drawn = drawn_slices(slices)
    return replace(drawn, labels=drawn.masks)


@torch.no_grad()
def segment(model: Segmenter, images: Tensor, batch_size: int = 64) -> Tensor:
    """Masks (N, S, S) uint8 of images (N, 1, S, S) in [−1, 1], on the model's device, to the CPU.

    Raises:
        DataError: images of another size than the model's, outside [−1, 1] or not finite.
    """
    size = model.image_size
    if images.ndim != 4 or tuple(images.shape[1:]) != (1, size, size):
        raise DataError(f"images: must be (N, 1, {size}, {size}), as the segmenter is, not {tuple(images.shape)}")
    if not len(images) or not images.abs().max() <= 1.001:  # a NaN compares as false
        raise DataError("images: must be finite and in [−1, 1], at least one; draw them anew from their model")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with make_fabric().autocast():
        masks = [model(part.to(device)).argmax(dim=1).to("cpu", torch.uint8) for part in images.split(batch_size)]
    model.train(was_training)
    return torch.cat(masks)


def measure_slices(slices: Slices, segmenter: Segmenter) -> pd.DataFrame:
    """Real slices measured twice, on the masks an expert drew and on the segmenter's.

    Returns:
        Two rows a slice with an expert's mask: masks ("expert" or "segmenter"), row (among these slices), patient,
        and the fields of `Anatomy`.
    """
    drawn = with_masks(slices)
    masks = {"expert": drawn.masks, "segmenter": segment(segmenter, drawn.images)}
    tables = {name: measure_all(drawings, slices.pixel_mm) for name, drawings in masks.items()}
    both = pd.concat(tables, names=["masks", "row"]).reset_index()
    return both.assign(patient=drawn.manifest["patient"].to_numpy()[both["row"]])


def dice(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """2 |A ∩ B| / (|A| + |B|) of each of STRUCTURES, over all slices given; NaN where neither mask has it.

    ACDC's figure is the one of a patient's slices of one phase together.

    Shapes: (N, S, S), (N, S, S) with values 0 to 3.

    Raises:
        DataError: their shapes differ.
    """
    if prediction.shape != truth.shape:
        raise DataError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)}: give masks of one shape")
    overlap = {name: ((prediction == k) & (truth == k)).sum().item() for name, k in STRUCTURES.items()}
    total = {name: ((prediction == k).sum() + (truth == k).sum()).item() for name, k in STRUCTURES.items()}
    return {name: 2 * overlap[name] / total[name] if total[name] else float("nan") for name in STRUCTURES}


def as_slices(images: Tensor, masks: Tensor, real: Slices) -> tuple[Slices, Slices]:
    """Generated images and masks in the place of slices with an expert's mask, for `fit` of a Segmenter.

    Args:
        images, masks: (N, 1, S, S) in [−1, 1] and (N, S, S) with values 0 to 3, as a model drew them.
        real: slices that the model has learned from; pixel size and fingerprint are theirs.

    Returns:
        Nine tenths to learn from and the last tenth to validate by, so that no real slice has a say.

    Raises:
        DataError: another number of masks than of images, or fewer than ten.
    """
    if len(images) != len(masks) or len(images) < 10:
        raise DataError(f"{len(images)} images and {len(masks)} masks: give at least ten images with a mask each")
    manifest = pd.DataFrame({"labelled": True, "pixel_mm": real.pixel_mm}, index=range(len(images)))
    last = len(images) - len(images) // 10
    parts = (slice(None, last), slice(last, None))
    train, validation = (
        Slices(images[p], masks[p], masks[p], manifest[p].reset_index(drop=True), real.fingerprint) for p in parts
    )
    return train, validation


def pairs_table(segmenters: Mapping[str, Segmenter], sets: Mapping[str, tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """`dice` of each segmenter on each set: what a network that learned from generated pairs is worth on real ones.

    Args:
        segmenters: what it has learned from → network.
        sets: name → images (N, 1, S, S) and masks (N, S, S).

    Returns:
        A row a segmenter and set: learned_from, drawn_on, n (slices), and one column a structure.
    """
    rows = []
    for learned_from, segmenter in segmenters.items():
        for name, (images, masks) in sets.items():
            row = {"learned_from": learned_from, "drawn_on": name, "n": len(images)}
            rows.append(row | dice(segment(segmenter, images), masks))
    return pd.DataFrame(rows)
