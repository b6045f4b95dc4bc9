"""The network that draws masks: its loss, its Dice, what it is given to learn, and generated pairs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hearts import heart, ring

from hcm_helpers.acdc import DataError
from hcm_helpers.anatomy import STRUCTURES
from hcm_helpers.segmentation import (
    Segmenter,
    as_slices,
    dice,
    jitter_both,
    measure_slices,
    pairs_table,
    segment,
    segmentation_loss,
    with_masks,
)
from hcm_helpers.slices import prepare
from hcm_helpers.training import fit


class Reader(torch.nn.Module):
    """Reads a mask from an image whose grey values are that mask, −1 for 0 to 1 for 3."""

    image_size = 128

    def __init__(self):
        super().__init__()
        self.levels = torch.nn.Parameter(torch.tensor([-1, -1 / 3, 1 / 3, 1])[:, None, None])

    def forward(self, x):
        return -(x - self.levels).abs()


def test_real_slices_are_measured_by_expert_and_segmenter(phantom_slices):
    """The segmenter is shown the previous slice's mask, and those that no expert drew are left out."""
    masks, manifest = phantom_slices.masks[::7][:12], phantom_slices.manifest[::7][:12].reset_index(drop=True)
    images = masks.roll(1, 0)[:, None] / 1.5 - 1
    few = replace(phantom_slices, images=images, masks=masks, labels=phantom_slices.labels[::7][:12])
    few = replace(few, manifest=manifest.assign(labelled=np.arange(12) != 5))
    both = measure_slices(few, Reader())
    expert, segmenter = (both[both["masks"] == name].set_index("row") for name in ("expert", "segmenter"))
    kept = [i for i in range(12) if i != 5]
    areas = (few.masks == 3).sum((1, 2)).numpy() * few.pixel_mm**2
    assert expert["cavity_mm2"].to_numpy() == pytest.approx(areas[kept])
    assert segmenter["cavity_mm2"].to_numpy() == pytest.approx(areas[[i - 1 for i in kept]])
    assert expert["patient"].nunique() > 2
    assert expert["patient"].tolist() == segmenter["patient"].tolist() == manifest["patient"][kept].tolist()


def test_dice_by_hand():
    truth, prediction = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
    truth[0, :2, :2] = 2  # 4 pixels
    prediction[0, :2, :3] = 2  # 6, with 4 in common
    truth[1, 0, :3] = 3  # missed
    found = dice(prediction, truth)
    assert found["myocardium"] == pytest.approx(2 * 4 / 10)
    assert found["left ventricle"] == 0
    assert math.isnan(found["right ventricle"])
    with pytest.raises(DataError, match="one shape"):
        dice(prediction, truth[:1])


def test_the_loss_of_the_right_answer_is_nothing_and_of_no_answer_known():
    masks = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    sure = 50 * torch.nn.functional.one_hot(masks.long(), 4).movedim(-1, 1).float()
    assert segmentation_loss(sure, masks).item() == pytest.approx(0, abs=1e-4)
    # p = 1/4 everywhere: cross-entropy log 4; Dice of a structure with a quarter of the pixels 2·(1/16)/(1/2) = 1/4
    assert segmentation_loss(torch.zeros(2, 4, 64, 64), masks).item() == pytest.approx(math.log(4) + 0.75, abs=0.01)


def test_image_and_mask_are_moved_alike():
    """Where the image is bright, the mask says 3, before and after."""
    torch.manual_seed(0)
    masks = torch.from_numpy(ring((7, 10), (12, 16), 1.0)).repeat(6, 1, 1)
    images = torch.where(masks == 3, 1.0, -1.0)[:, None]
    moved, drawn = jitter_both(images, masks)
    assert moved.shape == images.shape
    assert drawn.shape == masks.shape
    assert ((moved[:, 0] > 0) != (drawn == 3)).float().mean() < 0.01
    assert ((drawn != masks).flatten(1).sum(1) > 20).all()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes(size):
    model = Segmenter(size, width=8)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 4, size, size)
    masks = segment(model, torch.zeros(3, 1, size, size), batch_size=2)
    assert masks.shape == (3, size, size)
    assert masks.dtype == torch.uint8
    assert model.training


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 1, 64, 64), torch.zeros(0, 1, 32, 32), torch.full((1, 1, 32, 32), math.nan)]
)
def test_segment_refuses_what_is_no_image(images):
    with pytest.raises(DataError, match="images: must be"):
        segment(Segmenter(32, width=8), images)
    with pytest.raises(DataError, match="images: must be"):
        segment(Segmenter(32, width=8), torch.full((1, 1, 32, 32), 2.0))


def test_fit_makes_it_learn_four_slices_by_heart(small_phantom, tmp_path):
    slices = with_masks(prepare(small_phantom, tmp_path / "slices", image_size=32))
    rows = [i for i in range(len(slices)) if len(slices.masks[i].unique()) == 4][::40][:4]
    few = replace(
        slices,
        images=slices.images[rows],
        labels=slices.labels[rows],
        masks=slices.masks[rows],
        manifest=slices.manifest.iloc[rows].reset_index(drop=True),
    )
    torch.manual_seed(0)
    model = Segmenter(32, width=16, dropout=0.0)
    fit(model, few, few, tmp_path, epochs=180, batch_size=4, learning_rate=2e-3, patience=0, validate_every=90)
    scores = dice(segment(model, few.images), few.masks)
    assert min(scores.values()) > 0.9


def test_slices_without_mask_are_not_learned_from(phantom_slices):
    manifest = phantom_slices.manifest.assign(labelled=np.arange(len(phantom_slices)) % 3 == 0)
    some = with_masks(replace(phantom_slices, manifest=manifest))
    assert torch.equal(some.labels, phantom_slices.masks[::3])
    assert torch.equal(some.images, phantom_slices.images[::3])
    with pytest.raises(DataError, match="none has a mask"):
        with_masks(replace(phantom_slices, manifest=manifest.assign(labelled=False)))


# Generated pairs


def test_pairs_table_by_hand():
    masks = torch.from_numpy(np.stack([heart(), ring((8, 8), (12, 12))])).repeat(1, 2, 2)
    images = masks[:, None] / 1.5 - 1
    sets = {"pairs": (images, masks), "others": (images[:1], masks[:1])}
    blind = Reader()
    blind.levels.data[1:] = 9.0  # so that all is background
    table = pairs_table({"sees": Reader(), "blind": blind}, sets)
    assert list(table["learned_from"]) == ["sees", "sees", "blind", "blind"]
    assert list(table["drawn_on"]) == ["pairs", "others"] * 2
    assert list(table["n"]) == [2, 1] * 2
    assert table[list(STRUCTURES)].to_numpy().tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2


def test_generated_pairs_take_the_place_of_slices(phantom_slices):
    masks = phantom_slices.masks[:23]
    train, validation = as_slices(phantom_slices.images[:23], masks, phantom_slices)
    assert (len(train), len(validation)) == (21, 2)
    assert torch.equal(torch.cat([train.labels, validation.labels]), masks)
    assert torch.equal(torch.cat([train.images, validation.images]), phantom_slices.images[:23])
    assert train.pixel_mm == phantom_slices.pixel_mm
    assert len(with_masks(train)) == 21
    with pytest.raises(DataError, match="9 images and 9 masks: give at least ten"):
        as_slices(phantom_slices.images[:9], masks[:9], phantom_slices)
    with pytest.raises(DataError, match="23 images and 22 masks"):
        as_slices(phantom_slices.images[:23], masks[:22], phantom_slices)
