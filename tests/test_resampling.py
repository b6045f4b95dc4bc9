"""Resampling: ramps, constants, stripes and rings, whose pixels are known."""

import numpy as np
import pytest

from hcm_helpers.resampling import percentiles, resample, resample_mask, triangle_taps, turned


@pytest.mark.parametrize(
    ("spacing", "pixel"),
    [(1.5, 1.25), (2.5, 2.5), (1.25, 2.5), (1.52, 2.5), (1.95, 5.0)],  # finer, equal, coarser
)
def test_a_linear_ramp_stays_itself(spacing, pixel):
    x, y, _ = np.meshgrid(np.arange(100), np.arange(90), np.arange(2), indexing="ij")
    ramp = (3 * x * spacing + 5 * y * spacing).astype(np.float32)  # 3 a mm along x, 5 a mm along y
    columns = triangle_taps(100, spacing, centre=70.3, image_size=16, pixel=pixel)
    lines = triangle_taps(90, spacing, centre=60.9, image_size=16, pixel=pixel)
    place = (np.arange(16) - 7.5) * pixel
    expected = 3 * (70.3 + place)[None, :] + 5 * (60.9 + place)[:, None]
    for picture in resample(ramp, columns, lines):
        np.testing.assert_allclose(picture, expected, rtol=1e-5)


@pytest.mark.parametrize("spacing", [0.7, 1.52, 1.95, 2.5, 4.0])
def test_a_constant_stays_itself_up_to_the_edge(spacing):
    taps = triangle_taps(40, spacing, centre=0.0, image_size=64, pixel=2.5)  # half of it beyond the edge
    picture = resample(np.full((40, 40, 1), 7.0), taps, taps)[0]
    inside = taps.weight.any(axis=1)
    np.testing.assert_allclose(picture[np.ix_(inside, inside)], 7, rtol=1e-6)
    assert (picture[~inside] == 0).all()
    place = (np.arange(64) - 31.5) * 2.5  # mm; voxel 0 begins half a voxel before 0
    np.testing.assert_array_equal(inside, (place >= -spacing / 2) & (place <= 39.5 * spacing))


def test_stripes_finer_than_a_pixel_become_grey():
    stripes = np.zeros((96, 96, 1))
    stripes[::2] = 1
    taps = triangle_taps(96, 1.0, centre=47.75, image_size=32, pixel=2.0)
    np.testing.assert_allclose(resample(stripes, taps, taps), 0.5, atol=1e-6)


def test_rows_are_y_and_columns_are_x():
    volume = np.zeros((32, 32, 1))
    volume[20, 5] = 1
    taps = triangle_taps(32, 1.0, centre=15.5, image_size=32, pixel=1.0)
    assert np.argwhere(resample(volume, taps, taps)[0]).tolist() == [[5, 20]]
    mask = volume.astype(np.uint8)
    mask[21:24, 5] = 2
    labels = resample_mask(mask, taps, taps)[0]
    assert labels[5, 20:24].tolist() == [1, 2, 2, 2]
    assert np.count_nonzero(labels) == 4


@pytest.mark.parametrize("spacing", [0.8, 1.5, 1.9])
@pytest.mark.parametrize("image_size", [64, 128])
def test_rings_keep_their_areas(spacing, image_size):
    length = round(180 / spacing)
    middle = (length - 1) / 2
    x, y = np.mgrid[:length, :length]
    distance = spacing * np.hypot(x - middle - 3.3, y - middle + 2.1)
    mask = np.zeros((length, length, 1), dtype=np.uint8)
    mask[distance < 40] = 2
    mask[distance < 30] = 3
    taps = triangle_taps(length, spacing, middle * spacing, image_size, 160 / image_size)
    labels = resample_mask(mask, taps, taps)
    area = (160 / image_size) ** 2 * np.bincount(labels.ravel(), minlength=4)
    assert area[3] == pytest.approx(np.pi * 30**2, rel=0.03)
    assert area[2] == pytest.approx(np.pi * (40**2 - 30**2), rel=0.05)
    assert area[1] == 0


def test_a_mask_of_large_voxels_is_not_eaten_at_the_edge_of_its_box():
    mask = np.zeros((16, 16, 1), dtype=np.uint8)
    mask[4:8, 4:12] = 1  # 40 × 80 mm of 10 mm voxels
    taps = triangle_taps(16, 10.0, centre=75.0, image_size=64, pixel=2.5)
    labels = resample_mask(mask, taps, taps)[0]
    assert np.count_nonzero(labels) * 2.5**2 == pytest.approx(40 * 80, rel=0.01)  # the corners are rounded
    assert (np.ptp(np.argwhere(labels), axis=0) + 1).tolist() == [32, 16]  # 80 mm of rows, 40 of columns


def test_a_turned_picture_has_its_right_ventricle_on_the_left():
    rows, columns = np.mgrid[:96, :96] - 47.5
    angle = np.radians(50)
    spot = np.hypot(columns + 20 * np.cos(angle), rows + 20 * np.sin(angle)) < 4
    picture = turned(spot[None].astype(float), angle, 64)[0]
    row, column = np.average(np.indices((64, 64)).reshape(2, -1), axis=1, weights=picture.ravel())
    assert (row, column) == pytest.approx((31.5, 11.5), abs=0.1)
    assert picture.sum() == pytest.approx(spot.sum(), rel=0.02)


@pytest.mark.parametrize("top", [1, 7, 255, 4031])
def test_percentiles_by_counting_are_numpy_s(top):
    grey = np.random.default_rng(top).integers(0, top + 1, (31, 17, 3)).astype(np.float32)
    for q in ((1, 99), (0, 100), (37.5, 50)):
        np.testing.assert_allclose(percentiles(grey, q), np.percentile(grey, q), rtol=1e-6)
    np.testing.assert_allclose(percentiles(grey - 0.5, (1, 99)), np.percentile(grey - 0.5, (1, 99)), rtol=1e-6)
