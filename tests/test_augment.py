"""Augmentation against pictures that one can count: whole-pixel shifts, squares of grey, quarter turns."""

import math

import pytest
import torch
import torch.nn.functional as F

from hcm_helpers import augment
from hcm_helpers.augment import color, cutout, diff_augment, jitter, translate


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def dot(n=1, size=32, row=16, column=16):
    """n black pictures with one white pixel: (n, 1, size, size)."""
    x = torch.full((n, 1, size, size), -1.0)
    x[:, 0, row, column] = 1.0
    return x


def letter(size=32):
    """A smooth bright F, unlike itself in every turn and mirror: (1, 1, size, size), black at its border."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    spots = [(0.3, 0.4), (0.3, 0.55), (0.45, 0.4), (0.45, 0.5), (0.6, 0.4), (0.7, 0.4)]
    light = sum(torch.exp(-((y - row).square() + (x - column).square()) / 0.006) for row, column in spots)
    return (light.clamp(max=1) * 2 - 1)[None, None]


def turned_by(monkeypatch, value, x, **settings):
    """`jitter` with every random number replaced by 0, one end of each range, or by 1, the other end."""
    monkeypatch.setattr(augment.torch, "rand", lambda *shape, **_: torch.full(shape, float(value)))
    return jitter(x, **settings)


# color


def test_color_keeps_the_shape_and_changes_each_image_by_itself():
    x = letter().expand(4, 1, 32, 32)
    out = color(x)
    assert out.shape == x.shape
    assert len({round(image.mean().item(), 4) for image in out}) == 4


def test_color_shifts_the_mean_by_half_at_most_and_scales_the_contrast_by_half_to_one_and_a_half():
    x = torch.tensor([-1.0, 1.0]).repeat(2000, 1, 32, 16)  # mean 0, standard deviation 1
    out = color(x).flatten(1)
    shift, scale = out.mean(1), out.std(1, correction=0)
    for values, low, high in ((shift, -0.5, 0.5), (scale, 0.5, 1.5)):
        assert low <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high + 1e-5


# translate


@pytest.mark.parametrize(("size", "reach"), [(32, 4), (64, 8)])
def test_translate_moves_a_pixel_by_whole_pixels_up_to_an_eighth_each_way(size, reach):
    out = translate(dot(400, size, size // 2, size // 2))
    image, _, row, column = (out == 1).nonzero(as_tuple=True)
    assert torch.equal(image, torch.arange(400))  # one white pixel in each
    assert set(out.unique().tolist()) == {-1.0, 1.0}  # whole pixels: nothing between
    expected = set(range(-reach, reach + 1))
    assert set((row - size // 2).tolist()) == expected
    assert set((column - size // 2).tolist()) == expected


def test_translate_fills_with_black():
    out = translate(torch.ones(200, 1, 32, 32))
    black = (out == -1).flatten(1).sum(1)
    sides = 32 - torch.arange(5)
    possible = {32 * 32 - int(rows * columns) for rows in sides for columns in sides}
    assert set(out.unique().tolist()) == {-1.0, 1.0}
    assert set(black.tolist()) <= possible
    assert len(set(black.tolist())) > 5


def test_translate_of_no_ratio_is_the_identity():
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    assert torch.equal(translate(x, ratio=0.0), x)


# cutout


@pytest.mark.parametrize(("size", "ratio", "side"), [(32, 0.5, 16), (64, 0.5, 32), (32, 0.25, 8)])
def test_cutout_sets_a_square_of_the_ratio_to_grey_or_what_of_it_lies_in_the_image(size, ratio, side):
    out = cutout(torch.ones(300, 1, size, size), ratio)
    gone = (out == 0)[:, 0]
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(gone.flatten(1).sum(1), rows * columns)  # a full rectangle
    assert rows.max() == columns.max() == side  # whole where it lies inside
    assert rows.min() >= side // 2  # its centre is inside, so half of it is
    inside = gone[:, 0].any(1) | gone[:, -1].any(1) | gone[:, :, 0].any(1) | gone[:, :, -1].any(1)
    assert set(gone[~inside].flatten(1).sum(1).tolist()) == {side * side}


def test_cutout_reaches_every_pixel():
    out = cutout(torch.ones(2000, 1, 32, 32))
    assert ((out == 0).any(0)).all()


# all three


def test_diff_augment_keeps_the_shape_and_lets_the_gradient_through():
    x = (torch.rand(8, 1, 32, 32) * 2 - 1).requires_grad_()
    out = diff_augment(x)
    assert out.shape == x.shape
    out.sum().backward()
    reached = (x.grad != 0).flatten(1).float().mean(1)
    assert (reached > 0.25).all()  # at the worst a quarter is shifted out and a quarter cut


def test_translate_hands_each_pixel_its_own_gradient():
    x = dot().requires_grad_()
    out = translate(x)
    out[out == 1].sum().backward()
    assert torch.equal(x.grad, (dot() + 1) / 2)


def test_draws_differ_between_images_and_agree_between_equal_seeds():
    x = letter().repeat(4, 1, 1, 1)
    torch.manual_seed(3)
    first = diff_augment(x)
    torch.manual_seed(3)
    assert torch.equal(diff_augment(x), first)
    assert not torch.equal(diff_augment(x), first)
    assert not torch.equal(first[0], first[1])


# jitter


def test_jitter_by_nothing_is_the_identity():
    x = torch.rand(5, 1, 32, 32) * 2 - 1
    assert torch.allclose(jitter(x, degrees=0.0, shift=0.0, scale=0.0, gamma=0.0), x, atol=1e-5)


@pytest.mark.parametrize(("value", "turns"), [(1.0, 1), (0.0, -1)])
def test_jitter_by_90_degrees_is_a_quarter_turn(monkeypatch, value, turns):
    """Also tells the direction: the largest angle turns counter-clockwise, as torch.rot90 does."""
    out = turned_by(monkeypatch, value, letter(), degrees=90.0, shift=0.0, scale=0.0, gamma=0.0)
    assert torch.allclose(out, torch.rot90(letter(), turns, dims=(2, 3)), atol=1e-4)
    assert not torch.allclose(out, torch.rot90(letter(), -turns, dims=(2, 3)), atol=0.1)


def test_jitter_shifts_by_a_share_of_the_side(monkeypatch):
    out = turned_by(monkeypatch, 1.0, letter(), degrees=0.0, shift=0.125, scale=0.0, gamma=0.0)
    assert torch.allclose(out[..., :28, :28], letter()[..., 4:, 4:], atol=1e-4)  # an eighth of 32


def test_jitter_scales_about_the_centre(monkeypatch):
    """Sampling twice as far from the centre draws the picture at half its size: 2×2 pixels become one."""
    out = turned_by(monkeypatch, 1.0, letter(64), degrees=0.0, shift=0.0, scale=1.0, gamma=0.0)
    assert torch.allclose(out[..., 16:48, 16:48], F.avg_pool2d(letter(64), 2), atol=1e-4)


def test_jitter_stays_within_its_limits_and_draws_each_image_by_itself():
    """A spot right of the centre moves: its direction then gives the angle, its distance the scale."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    spot = 2 * torch.exp(-(y.square() + (x - 16).square()) / 8) - 1
    out = jitter(spot.expand(300, 1, 64, 64), degrees=10.0, shift=0.0, scale=0.08, gamma=0.0)[:, 0] + 1
    total = out.sum((1, 2))
    across, down = (out * x).sum((1, 2)) / total, (out * y).sum((1, 2)) / total
    degrees = torch.atan2(down, across) * 180 / math.pi
    distance = torch.hypot(across, down) / 16
    assert 9 < degrees.abs().max() < 10.2
    assert 1 / 1.08 - 0.01 < distance.min() < 0.94
    assert 1.07 < distance.max() < 1 / 0.92 + 0.01
    assert degrees.std() > 4  # spread over the range, not at its ends or all alike


@pytest.mark.parametrize(("value", "power"), [(1.0, 1.3), (0.0, 0.7)])
def test_jitter_changes_the_tones_by_a_power(monkeypatch, value, power):
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    out = turned_by(monkeypatch, value, x, degrees=0.0, shift=0.0, scale=0.0, gamma=0.3)
    torch.testing.assert_close((out + 1) / 2, ((x + 1) / 2) ** power, atol=1e-4, rtol=0)


def test_jitter_draws_from_the_generator_it_is_given():
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    first, again, other = (jitter(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_jitter_keeps_the_range_and_lets_the_gradient_through():
    x = (torch.rand(4, 1, 32, 32) * 2 - 1).requires_grad_()
    out = jitter(x)
    assert out.shape == x.shape
    assert out.abs().max() <= 1 + 1e-5  # a mean of neighbours, and what comes in is a mirror image
    out.sum().backward()
    assert (x.grad.abs().flatten(1).sum(1) > 0).all()
