"""Where the heart is and how it lies, in masks and films made by hand."""

import numpy as np
import pytest

from hcm_helpers.acdc import Volume
from hcm_helpers.localise import heart_centre, moving_centre, pose_angle, starts_at_base


def volume_of(mask, spacing=(2.0, 3.0, 10.0)):
    return Volume(np.zeros(mask.shape, np.float32), mask, spacing)


def test_centre_is_that_of_the_box_around_both_phases():
    diastole, systole = np.zeros((2, 50, 50, 3), dtype=np.uint8)
    diastole[10:21, 30:33, 1] = 2  # x 10…20, y 30…32
    systole[15:25, 20:31, 0] = 1  # x 15…24, y 20…30
    assert heart_centre([volume_of(diastole), volume_of(systole)]) == ((10 + 24) / 2 * 2, (20 + 32) / 2 * 3)


def test_centre_without_a_mask_is_that_of_what_moves():
    """A disc that pulses at (60, 45) mm, in a picture with a far brighter one that stands still."""
    x, y = np.mgrid[:51, :41] * np.array([2.0, 3.0])[:, None, None]
    still = 900.0 * (np.hypot(x - 20, y - 100) < 15)
    cine = [(still + 100 * (np.hypot(x - 60, y - 45) < radius))[..., None] for radius in (12, 20, 28, 20)]
    centre = moving_centre(iter(cine), (2.0, 3.0, 10.0))
    assert centre == pytest.approx((60, 45), abs=3)


@pytest.mark.parametrize("degrees", [0, 30, 90, -135])
def test_angle_of_the_pose(degrees):
    angle = np.radians(degrees)
    x, y = np.mgrid[:80, :90] * np.array([2.0, 1.5])[:, None, None]
    mask = np.zeros((80, 90, 1), np.uint8)
    mask[np.hypot(x - 80, y - 70) < 15] = 2
    mask[np.hypot(x - 80 + 40 * np.cos(angle), y - 70 + 40 * np.sin(angle)) < 10] = 1  # left of it, then turned
    assert np.exp(1j * pose_angle([volume_of(mask, (2.0, 1.5, 10.0))])) == pytest.approx(np.exp(1j * angle), abs=0.02)
    assert pose_angle([volume_of(np.zeros((8, 8, 1), np.uint8))]) is None


def test_base_is_where_the_right_ventricle_is():
    mask = np.zeros((10, 10, 8), dtype=np.uint8)
    mask[2:6, 2:6, 1:7] = 3
    mask[7, 2:6, 1:4] = 1  # slices 1 to 3 of 1 to 6
    assert starts_at_base([mask])
    assert not starts_at_base([mask[:, :, ::-1]])
    assert starts_at_base([np.where(mask == 1, 0, mask)])  # nothing tells: ACDC's order
