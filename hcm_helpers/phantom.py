"""Synthetic short-axis cardiac cine MR in the layout of ACDC: the embedded data set.

A heart is two surfaces around the long axis of the left ventricle (endocardium and epicardium, as radius by
angle and height) and a right ventricle beside it. It is drawn once at end-diastole; end-systole follows from
moving the base towards the apex and the endocardium inwards while the volume of the wall stays the same.
Around it lie fat, lung, liver, bowel, chest wall, ribs, spine and aorta. Every tissue has a water and a fat
signal; the image is |water − fat|, as in balanced SSFP at the opposed-phase echo time, so that the dark line
between fat and muscle comes by itself. No pixel comes from a real patient.

Two frames of coordinates, both in mm with the origin on the long axis of the left ventricle: the body's
(u to the back, v to the feet) and the image's (x, y), turned against it by a random angle. s runs along the
long axis from base to apex, t is s as a share of the cavity's length. Arrays are (slice, x, y) inside this
module and (x, y, slice) in what it returns.
"""

import gzip
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from hcm_helpers.acdc import GROUPS, DataError, Volume

ANGLES = np.linspace(-np.pi, np.pi, 512, endpoint=False)  # contours are tables over these; 0 = lateral, ±π = septum
HEIGHTS = (np.arange(48) + 0.5) / 48  # shares of the cavity's length at which volumes are integrated
WIDEST = 0.25  # the cavity is a truncated ellipsoid, widest at this share of its length
FAT = (0.03, 0.85)  # (water, fat) signal; blood near the coil is 1

# Means and standard deviations over the 150 patients of ACDC for the volumes (ml) and ejection fractions;
# wall: mean thickness (mm); descent: how far the base moves towards the apex by end-systole (mm).
CLASSES = {
    "NOR": dict(volume=(130, 27), ejection=(0.62, 0.05), wall=(7.2, 0.8), rv=(150, 32), rv_ejection=0.55, descent=12),
    "MINF": dict(volume=(181, 42), ejection=(0.31, 0.07), wall=(8.3, 0.8), rv=(125, 32), rv_ejection=0.53, descent=7),
    "DCM": dict(volume=(283, 46), ejection=(0.20, 0.06), wall=(7.4, 0.8), rv=(178, 50), rv_ejection=0.32, descent=4),
    "HCM": dict(volume=(132, 33), ejection=(0.70, 0.07), wall=(8.6, 0.8), rv=(118, 30), rv_ejection=0.61, descent=9),
    "RV": dict(volume=(117, 32), ejection=(0.57, 0.05), wall=(6.3, 0.7), rv=(217, 42), rv_ejection=0.34, descent=10),
}


@dataclass(frozen=True)
class Heart:
    """What is true of one heart, whatever the slices and the phase."""

    volume: float  # of the left ventricle at end-diastole, ml
    ejection: float
    length: float  # of the cavity from base to apex, mm
    descent: float
    radius: float  # of the cavity where it is widest, mm
    wall: np.ndarray  # (HEIGHTS, ANGLES) thickness at end-diastole, mm
    motion: np.ndarray  # (HEIGHTS, ANGLES) inward motion of the endocardium, 1 = healthy, 0 = akinetic
    ripple: np.ndarray  # (HEIGHTS, ANGLES) radius of the endocardium as a share of the ellipsoid's
    rv_volume: float
    rv_ejection: float
    rv_ripple: np.ndarray  # (ANGLES,) the same for the right ventricle
    rv_lift: float  # how far the right ventricle reaches up to the outflow tract, as a share of the radius
    axis: float  # direction from the left ventricle to the right one in the body's frame, rad
    papillary: np.ndarray  # (heads, 4): angle, gap to the wall (mm), radius (mm), height t
    trabeculae: float
    fat: float  # how much lies around the heart


@dataclass(frozen=True)
class Grid:
    """The voxels: image axes in mm and the same points in the body's frame."""

    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    pixel: float
    thickness: float
    turn: float

    def body(self) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of all pixels of a slice, each (X, Y)."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        x, y = self.x[:, None], self.y[None, :]
        return (c * x + s * y).astype(np.float32), (c * y - s * x).astype(np.float32)

    def window(self, u: float, v: float, reach: float) -> tuple[slice, slice]:
        """The pixels within `reach` mm of a point of the body, along both axes of the image."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        spans = ((self.x, c * u - s * v), (self.y, s * u + c * v))
        return tuple(slice(*np.searchsorted(axis, (at - reach, at + reach))) for axis, at in spans)

    def crop(self, span: tuple[slice, slice]) -> "Grid":
        return Grid(self.x[span[0]], self.y[span[1]], self.s, self.pixel, self.thickness, self.turn)


def _normal(rng: np.random.Generator, mean: float, sd: float) -> float:
    """A normal draw, held within 1.8 standard deviations so that no heart is impossible."""
    return mean + sd * float(np.clip(rng.standard_normal(), -1.8, 1.8))


def _bump(distance: np.ndarray | float, width: float) -> np.ndarray:
    return np.exp(-0.5 * (distance / width) ** 2)


def _angle_from(angle: float) -> np.ndarray:
    """Distance of every entry of ANGLES from an angle, in [−π, π)."""
    return (ANGLES - angle + np.pi) % (2 * np.pi) - np.pi


def _ripple(rng: np.random.Generator, amplitudes: dict[int, float]) -> np.ndarray:
    """1 plus random waves around the circle, turning slowly from base to apex: (HEIGHTS, ANGLES)."""
    waves = np.ones((len(HEIGHTS), len(ANGLES)))
    for order, amplitude in amplitudes.items():
        phase = rng.uniform(0, 2 * np.pi) + rng.normal(0, 1.0) * HEIGHTS[:, None]
        waves += rng.normal(0, amplitude) * np.cos(order * ANGLES + phase)
    return waves


def _hypertrophy(rng: np.random.Generator, wall: float) -> np.ndarray:
    """Extra wall of one HCM heart (mm): septal in most, apical or concentric in some."""
    peak = float(np.clip(17 + rng.gamma(2.0, 2.0), 17, 28)) - wall
    height, around = HEIGHTS[:, None], _angle_from(np.pi + _normal(rng, 0.3, 0.4))[None, :]
    pattern = rng.choice(["septal", "apical", "concentric"], p=[0.65, 0.15, 0.2])
    if pattern == "septal":
        shape = _bump(around, rng.uniform(0.6, 1.1)) * _bump(height - rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.4))
    elif pattern == "apical":
        shape = (0.75 + 0.25 * np.cos(around)) / (1 + np.exp((0.55 - height) / 0.07))
    else:
        shape = (0.72 + 0.28 * _bump(around, 0.9)) * _bump(height - 0.4, 0.45)
    return peak * shape / shape.max()


def draw_heart(group: str, rng: np.random.Generator) -> Heart:
    """One heart of a group, at random.

    Args:
        group: one of GROUPS.
        rng: the only source of randomness.
    """
    c = CLASSES[group]
    volume, ejection, wall = (_normal(rng, *c[key]) for key in ("volume", "ejection", "wall"))
    length = min(80 * (volume / 130) ** 0.28 * rng.uniform(0.95, 1.05), 99)
    septum, height = _angle_from(np.pi)[None, :], HEIGHTS[:, None]
    thickness = wall * (1 + 0.08 * np.cos(septum)) * _ripple(rng, {2: 0.03, 3: 0.03, 4: 0.02})
    motion = _ripple(rng, {1: 0.05, 2: 0.05, 3: 0.04})
    ripple = _ripple(rng, {2: 0.035, 3: 0.018, 4: 0.01, 5: 0.008, 6: 0.006, 8: 0.004})
    if group == "HCM":
        thickness = thickness + _hypertrophy(rng, wall)
        motion = motion * (0.85 + 0.5 * height)  # the apex empties altogether
    elif group == "MINF":
        scar = _bump(_angle_from(rng.uniform(-np.pi, np.pi))[None, :], rng.uniform(0.5, 0.9)) ** 0.7
        scar = scar / (1 + np.exp((rng.uniform(0.05, 0.35) - height) / 0.08))
        thickness = thickness * (1 - rng.uniform(0.4, 0.55) * scar)
        motion = motion * (1 - scar)
    elif group == "RV":
        ripple = ripple * (1 - rng.uniform(0.05, 0.18) * _bump(septum, 0.6))  # the septum is pressed flat
    heads = [(_normal(rng, at, 0.15), rng.uniform(0, 5)) for at in (-0.9, -0.6, 0.9, 1.3)]
    papillary = [(at, gap, rng.uniform(2.8, 5.5), rng.uniform(0.4, 0.6)) for at, gap in heads]
    return Heart(
        volume=volume,
        ejection=ejection,
        length=length,
        descent=c["descent"] * rng.uniform(0.75, 1.25),
        radius=float(np.sqrt(1000 * volume / (np.pi * length * _ellipsoid(HEIGHTS, 1.0) ** 2).mean())),
        wall=thickness,
        motion=np.clip(motion, 0.02, None),
        ripple=ripple / np.sqrt((ripple**2).mean()),
        rv_volume=_normal(rng, *c["rv"]),
        rv_ejection=_normal(rng, c["rv_ejection"], 0.05),
        rv_ripple=_ripple(rng, {2: 0.03, 3: 0.04, 4: 0.02, 5: 0.015, 7: 0.008})[0],
        rv_lift=rng.uniform(0, 0.25),
        axis=np.radians(_normal(rng, 155, 12)),
        papillary=np.array(papillary),
        trabeculae=rng.uniform(0.5, 1.0),
        fat=0.2 + rng.gamma(2.0, 0.35),
    )


def _ellipsoid(t: np.ndarray, apex: float) -> np.ndarray:
    """Radius at height t of an ellipsoid that is 1 wide at WIDEST and ends at `apex`."""
    return np.sqrt(np.clip(1 - ((np.maximum(t, 0) - WIDEST) / (apex - WIDEST)) ** 2, 0, None))


def _at(table: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Rows of a (HEIGHTS, ANGLES) table at other heights, linearly interpolated."""
    row = np.clip(t * len(HEIGHTS) - 0.5, 0, len(HEIGHTS) - 1)
    low = np.minimum(row.astype(int), len(HEIGHTS) - 2)
    return table[low] + (row - low)[:, None] * (table[low + 1] - table[low])


def _solve(function, target: float, low: float, high: float) -> float:
    """x in [low, high] at which a rising function reaches the target, by bisection."""
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < target else (low, middle)
    return middle


def left_ventricle(heart: Heart, t: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Endocardium and epicardium as radii (mm) by height and angle, each (len(t), ANGLES).

    Args:
        heart: as drawn.
        t: heights as shares of the cavity's length at this phase; below 0 is above the base.
        phase: 0 = end-diastole, 1 = end-systole; between them the volume falls linearly.
    """
    shortening = 1 - heart.descent * phase / heart.length

    def diastole(t):
        wall, ripple = _at(heart.wall, t), _at(heart.ripple, t)
        endo = heart.radius * _ellipsoid(t, 1.0)[:, None] * ripple
        apical = wall.mean(axis=1) * 0.8 / heart.length
        return endo, (heart.radius * ripple + wall) * _ellipsoid(t, 1 + apical)[:, None]

    rest, motion = diastole(HEIGHTS)[0], heart.motion
    inward = _solve(
        lambda c: 1 - shortening * (rest * np.clip(1 - c * motion, 0.06, None)).__pow__(2).sum() / (rest**2).sum(),
        heart.ejection * phase, 0.0, 1.5,
    )  # fmt: skip
    endo, epi = diastole(t)
    moved = endo * np.clip(1 - inward * _at(motion, t), 0.06, None)
    return moved, np.sqrt(moved**2 + (epi**2 - endo**2) / shortening)  # the wall keeps its volume


def right_ventricle(heart: Heart, t: np.ndarray, epi: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Contour of the right ventricle as (centre (len(t), 2), radius (len(t), ANGLES)) in mm, axis along −first.

    An ellipse from the long axis to `width` mm beyond the septum; what lies within the left ventricle's
    epicardium does not belong to it.
    """
    radius = epi.mean(axis=1)
    bulge = width * np.clip(1 - (np.maximum(t, 0) / 0.95) ** 2, 0, None) ** 0.7
    half = (radius * np.clip(0.65 + 1.1 * t, 0.65, 1.3) + bulge) / 2
    tall = radius * (1.12 - 0.65 * np.clip(t, 0, 1)) + 0.2 * bulge
    lift = radius * heart.rv_lift * (1 - np.clip(t, 0, 1))
    half, tall = np.maximum(half, 0.1), np.maximum(tall, 0.1)
    ellipse = 1 / np.hypot(np.cos(ANGLES) / half[:, None], np.sin(ANGLES) / tall[:, None])
    corner = 1 + 0.07 * np.cos(3 * (ANGLES - 2.2))  # at the diaphragm
    return np.stack([half - radius - bulge, -lift], axis=1), ellipse * corner * heart.rv_ripple


class Scene:
    """Water and fat signal of all voxels, painted from back to front."""

    def __init__(self, grid: Grid, water: np.ndarray, fat: np.ndarray):
        self.grid, self.water, self.fat = grid, water, fat

    def paint(self, cover: np.ndarray, water: np.ndarray | float, fat: np.ndarray | float = 0.0) -> None:
        """Lay a tissue over what is there; cover in [0, 1] is the share of each voxel that it fills."""
        self.water += cover * (water - self.water)
        self.fat += cover * (fat - self.fat)

    def edge(self, distance: np.ndarray, width: np.ndarray | float = 0.0) -> np.ndarray:
        """Cover of a voxel that lies `distance` mm inside a surface, over a pixel or a wider slope (mm)."""
        return np.clip(0.5 + distance / np.maximum(width, self.grid.pixel), 0, 1)

    def view(self, span: tuple[slice, slice]) -> "Scene":
        return Scene(self.grid.crop(span), self.water[:, *span], self.fat[:, *span])

    def blob(self, centre, radii, within: np.ndarray, water: float, fat: float = 0.0) -> None:
        """An ellipsoid with centre and radii along (u, v, s) in mm, cut to `within` (cover by voxel)."""
        (u0, v0, s0), (ru, rv, rs) = centre, radii
        span = self.grid.window(u0, v0, max(ru, rv) + 3)
        part = self.view(span)
        u, v = part.grid.body()
        s = (part.grid.s - s0)[:, None, None]
        n = np.sqrt(((u - u0) / ru) ** 2 + ((v - v0) / rv) ** 2 + (s / rs) ** 2)
        part.paint(within[:, *span] * part.edge((1 - n) * min(ru, rv)), water, fat)


def _texture(rng: np.random.Generator, grid: Grid, scale: float, slices: int | None = None) -> np.ndarray:
    """Gaussian noise of unit variance with a correlation length of `scale` mm in the plane, (slices, X, Y)."""

    step = scale / 2
    x, y = ((axis - axis[0]) / step for axis in (grid.x, grid.y))
    knots = rng.standard_normal((slices or len(grid.s), int(x[-1]) + 2, int(y[-1]) + 2), dtype=np.float32)
    knots = gaussian_filter(knots, (0, 1, 1), mode="wrap", truncate=3) * np.float32(2 * np.sqrt(np.pi))
    for axis, at in ((1, x), (2, y)):  # linear interpolation between the knots
        low = at.astype(int)
        weight = np.expand_dims((at - low).astype(np.float32), (0, 3 - axis))
        first, second = np.take(knots, low, axis), np.take(knots, low + 1, axis)
        knots = first + weight * (second - first)
    return knots


def _surroundings(rng: np.random.Generator, grid: Grid, heart: Heart) -> tuple[Scene, np.ndarray]:
    """Everything but the heart, and the depth below the skin (mm) that the coils' shading follows."""
    u, v = grid.body()
    s = grid.s[:, None, None].astype(np.float32)
    shape = (len(s), *u.shape)
    scene = Scene(grid, np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    # The trunk: front wall close to the right ventricle at the base, and nearing the axis towards the apex.
    fat_depth, muscle_depth = rng.uniform(7, 22), rng.uniform(9, 14)
    reach = heart.radius + 8 + 0.85 * _rv_width(heart, 0.0)[0] * abs(np.cos(heart.axis))
    front = np.maximum(reach + rng.uniform(2, 10) - rng.uniform(0.4, 0.65) * s, 18) + fat_depth + muscle_depth
    back, half_height = rng.uniform(125, 165), rng.uniform(190, 260)
    width = (back + front) / 2
    slant = rng.uniform(-0.12, 0.2)
    p = (u + slant * v + 9 * _texture(rng, grid, 80, 1) - (back - front) / 2) / width
    q = (v - rng.uniform(-20, 30)) / half_height
    skin = (1 - np.sqrt(p * p + q * q - 0.35 * (p * q) ** 2)) * width
    fibres, lumps = _texture(rng, grid, 5), _texture(rng, grid, 12)
    scene.paint(scene.edge(skin), FAT[0], FAT[1] * (1 + 0.05 * lumps + 0.04 * fibres))
    wavy = skin - fat_depth * (1 + 0.3 * _texture(rng, grid, 50, 1))
    scene.paint(scene.edge(wavy), 0.25 + 0.04 * fibres, np.clip(fibres + 0.8 * lumps - 1.1, 0, 0.7))

    # Lung above the diaphragm, with vessels; liver and fat below it. Ribs in the wall.
    inner = wavy - muscle_depth - 2 * lumps[:1]
    inside = scene.edge(inner)
    near_hilum, lung = _texture(rng, grid, 45), rng.uniform(0.05, 0.12)
    vessels = np.clip(2.0 * (_texture(rng, grid, 4) + 0.4 * near_hilum - 1.9), 0, 1)
    scene.paint(inside, lung * (1 + 0.25 * near_hilum) + 0.7 * vessels)
    along = (np.arctan2(q, p) * half_height / 26 + rng.uniform(0, 1)) % 1 - 0.5
    rib = np.hypot(along * 26 / 7, (wavy - 0.65 * muscle_depth) / 4.5)
    scene.paint(scene.edge(4.5 * (1 - rib)), 0.08)
    scene.paint(scene.edge(4.5 * (0.65 - rib)), 0.1, 0.45)
    scene.paint(scene.edge(1.5 - np.abs(inner + 1.5)) * np.clip(0.7 + lumps, 0, 1), 0.03, 0.7)  # below the pleura

    floor = heart.radius + 0.8 * heart.wall.mean() + rng.uniform(-7, 3)
    tilt, top = rng.uniform(-0.3, 0.05), rng.uniform(-10, 40)
    below = v - np.maximum(floor - 0.2 * s, 16) + tilt * u - (u - top) ** 2 / rng.uniform(260, 420) - 3 * _texture(rng, grid, 40, 1)
    liver = rng.uniform(0.26, 0.42)
    veins = np.clip(2.5 * (_texture(rng, grid, 7) - 1.8), 0, 1)
    scene.paint(inside * scene.edge(below), liver + 0.025 * fibres + 0.4 * veins)
    lower = below - rng.uniform(25, 80) + rng.uniform(0.1, 0.6) * u + 6 * lumps
    abdomen = inside * scene.edge(below - 4)
    scene.paint(abdomen * scene.edge(lower), 0.05, FAT[1] * (0.9 + 0.1 * near_hilum))
    for _ in range(26):
        at = rng.uniform(-40, 120), floor + rng.uniform(18, 130), rng.uniform(-20, 110)
        radii = rng.uniform(7, 24), rng.uniform(6, 20), rng.uniform(20, 60)
        content = rng.choice([0.1, 0.25, 0.35, 0.5, 0.8]) * rng.uniform(0.8, 1.2)
        if at[0] > -10 or at[1] > floor + 70:
            scene.blob(at, [r + 2 for r in radii], abdomen, 0.25)
            scene.blob(at, radii, abdomen, content)

    # At the base: the auricle behind the heart's upper edge, the inferior vena cava at its lower one.
    for at, size in (((0.1, -1.05), 15), ((0.2, 1.15), 10)):
        radii = size * rng.uniform(0.8, 1.4), size * rng.uniform(0.6, 1.0), rng.uniform(10, 22)
        centre = heart.radius * 1.25 * (at[0] + rng.normal(0, 0.2)), heart.radius * 1.25 * at[1], 0.0
        scene.blob(centre, [r + 1.5 for r in radii], inside, 0.25)
        scene.blob(centre, radii, inside, rng.uniform(0.7, 1.0))

    # Behind: spine and, in most, the descending aorta in cross-section.
    spine = rng.uniform(88, 105), rng.uniform(25, 60), 0.0
    scene.blob(spine, (20, 26, 400), inside, 0.2)
    scene.blob(spine, (17, 23, 400), inside, 0.1, 0.5)
    if rng.random() < 0.7:
        centre = spine[0] - rng.uniform(28, 36), spine[1] - rng.uniform(-10, 15), 0.0
        scene.blob(centre, (13.5, 13, 400), inside, 0.2)
        scene.blob(centre, (11.5, 11, 400), inside, rng.uniform(0.8, 1.15))
    return scene, np.maximum(skin, 0)


def _rv_width(heart: Heart, phase: float) -> tuple[float, float]:
    """Width of the right ventricle (mm) that gives it its volume at a phase, and that volume (ml)."""
    t = HEIGHTS[::3]
    epi = left_ventricle(heart, t, phase)[1]
    step, wanted = 3.0, heart.rv_volume * (1 - heart.rv_ejection * phase)
    a, b = np.meshgrid(np.arange(-130, 40, step), np.arange(-90, 90, step), indexing="ij")
    height = (heart.length - heart.descent * phase) / len(t)
    outside = np.hypot(a, b) > _around(epi, a, b)

    def volume(width):
        centre, contour = right_ventricle(heart, t, epi, width)
        a1, b1 = a - centre[:, :1, None], b - centre[:, 1:, None]
        inside = np.hypot(a1, b1) < _around(contour, a1, b1)
        return (inside & outside).sum() * step**2 * height / 1000

    return _solve(volume, wanted, 2.0, 80.0), wanted


def _around(table: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Radius in the direction of every point (a, b), per slice: (Z, ANGLES) → (Z, *shape of a)."""
    index = np.floor((np.arctan2(b, a) + np.pi) * (len(ANGLES) / (2 * np.pi)) + 0.5).astype(np.int32) % len(ANGLES)
    rows = np.arange(len(table))[:, None, None]
    return table.astype(np.float32)[rows, index]


def _beat(rng: np.random.Generator, scene: Scene, heart: Heart, phase: float) -> np.ndarray:
    """Paint the heart at a phase into its surroundings; returns the mask (Z, X, Y)."""
    grid = scene.grid
    mask = np.zeros(scene.water.shape, np.uint8)
    span = grid.window(-25 * 1.0, 10.0, 105)
    part = scene.view(span)
    u, v = part.grid.body()
    c, s = np.cos(heart.axis - np.pi), np.sin(heart.axis - np.pi)  # turn the right ventricle to −a
    shift = rng.normal(0, 0.5, (2, len(grid.s), 1, 1)).astype(np.float32)  # breath holds differ by slice
    a, b = c * u + s * v + shift[0], c * v - s * u + shift[1]
    t = ((grid.s - heart.descent * phase) / (heart.length - heart.descent * phase)).astype(np.float32)

    # Signed distances (mm, positive inside) and how far each surface moves within a slice.
    endo_table, epi_table = left_ventricle(heart, t, phase)
    centre, rv_table = right_ventricle(heart, t, epi_table, _rv_width(heart, phase)[0])
    slope = lambda table: np.clip(np.abs(np.gradient(table.mean(axis=1))), 0, 12)[:, None, None]  # noqa: E731
    radius = np.hypot(a, b)
    endo = _around(endo_table, a, b) - radius
    epi = _around(epi_table, a, b) - radius
    a1, b1 = a - centre[:, :1, None].astype(np.float32), b - centre[:, 1:, None].astype(np.float32)
    rv = _around(rv_table, a1, b1) - np.hypot(a1, b1)
    rv = np.where((t < 0.95)[:, None, None], rv, -50)

    # Fat around the heart: it fills the grooves between the ventricles, more in front than at the lung.
    fine, medium, coarse = (_texture(rng, part.grid, scale) for scale in (2.8, 5, 16))
    low = (t > 0.8)[:, None, None]
    filled = 4 * np.logaddexp(epi / 4, (rv + 2.5) / 4)
    layer = heart.fat * (1 + 3 * _texture(rng, part.grid, 22, 1) + coarse - a / 12 - u / 20 + 5 * low - low * u / 6)
    part.paint(part.edge(filled + np.clip(layer, -1, 18)), 0.05, FAT[1] * (0.8 + 0.12 * medium))
    wall = rng.uniform(0.22, 0.4) + 0.025 * medium
    part.paint(part.edge(rv + 2.5, slope(rv_table)), wall)

    inside = part.edge(rv, slope(rv_table))
    part.paint(inside, rng.uniform(0.6, 0.9) + 0.06 * coarse + 0.05 * medium)
    strands = np.clip(0.8 * medium + 0.5 * fine - 0.6 + (4 - rv) / 5 + 0.8 * (t - 0.5)[:, None, None], 0, 0.85)
    part.paint(inside * strands * heart.trabeculae, wall)
    part.paint(part.edge(epi, slope(epi_table)), wall)

    # The cavity: blood, trabeculae along its edge, two groups of papillary muscles.
    cavity = part.edge(endo, slope(endo_table))
    part.paint(cavity, 1.05 + 0.06 * coarse + 0.04 * medium + 0.04 * fine)
    lateral = 0.5 + 0.25 * a / np.maximum(radius, 1) + 0.7 * (np.clip(t, 0, 0.8) - 0.3)[:, None, None]
    fringe = np.clip(0.7 * fine + 0.4 * medium + 1.2 * lateral - 0.6 + (2.5 - endo) / 4, 0, 0.9)
    part.paint(cavity * fringe * heart.trabeculae * (t > 0.1)[:, None, None], wall)
    for angle, gap, size, height in heart.papillary:
        grown = size * (1 + 0.25 * phase) * np.sqrt(np.clip(1 - ((t - height) / 0.32) ** 2, 0, 1))
        rim = endo_table[:, np.abs(_angle_from(angle)).argmin()]
        far = np.clip(rim - gap * (1 - 0.6 * phase) - 0.6 * grown, 0, None)[:, None, None]
        apart = np.hypot(a - far * np.cos(angle), b - far * np.sin(angle))
        grown = grown[:, None, None]
        part.paint(cavity * part.edge(grown * (1 + 0.3 * medium) - apart) * (grown > 0), wall)

    below_base = (t >= 0)[:, None, None]
    labels = np.zeros(endo.shape, np.uint8)
    labels[(rv > 0) & below_base] = 1
    labels[(epi > 0) & below_base] = 2
    labels[(endo > 0) & (endo_table.mean(axis=1) > 2.0)[:, None, None] & below_base] = 3
    mask[:, *span] = labels
    return mask


def make_patient(group: str, rng: np.random.Generator) -> tuple[dict[str, Volume], dict[str, str | int | float]]:
    """One synthetic patient at end-diastole and end-systole.

    Args:
        group: one of GROUPS.
        rng: decides everything else; the same state gives the same patient.

    Returns:
        volumes: {"ED": Volume, "ES": Volume}; image float32 of whole numbers ≥ 0 and mask uint8, (X, Y, Z),
            Z = 8 to 10 with the base first; spacing in mm.
        info: the values of ACDC's Info.cfg.

    Raises:
        DataError: unknown group.
    """
    if group not in GROUPS:
        raise DataError(f"group {group!r} is unknown; take one of {', '.join(GROUPS)}")
    heart = draw_heart(group, rng)
    grid = _place(rng, heart)
    scene, depth = _surroundings(rng, grid, heart)
    shading = (np.exp(-depth / rng.uniform(200, 500)) + 0.4 * np.exp(-depth / 18)) * np.exp(0.15 * _texture(rng, grid, 120, 1))
    tissue = rng.integers(2**32)  # the heart's own texture is the same in both phases
    noise, scale = rng.uniform(0.008, 0.025), rng.uniform(170, 420)
    volumes = {}
    for name, phase in (("ED", 0.0), ("ES", 1.0)):
        beat = Scene(grid, scene.water.copy(), scene.fat.copy())
        mask = _beat(np.random.default_rng(tissue), beat, heart, phase)
        image = _acquire(rng, beat, shading, noise) * scale
        spacing = (grid.pixel, grid.pixel, grid.thickness)
        order = (1, 2, 0)
        volumes[name] = Volume(np.rint(image).transpose(order), mask.transpose(order), spacing)
    frames = int(rng.integers(20, 36))
    info = {
        "ED": 1,
        "ES": round(frames * rng.uniform(0.32, 0.45)),
        "Group": group,
        "Height": round(_normal(rng, 170, 9)),
        "NbFrame": frames,
        "Weight": round(_normal(rng, 77, 14)),
    }
    return volumes, info


def _place(rng: np.random.Generator, heart: Heart) -> Grid:
    """Matrix, spacing and pose of a stack that holds the heart, as ACDC's are."""
    pixel = round(float(rng.uniform(1.3, 1.8)), 4)
    long_side = int(np.clip(rng.uniform(340, 430) / pixel // 8 * 8, 208, 256))
    short_side = int(np.clip(long_side * rng.uniform(0.75, 0.95) // 8 * 8, 160, 240))
    across = rng.random() < 0.15  # the long side of the picture then lies from left to right
    nx, ny = (long_side, short_side) if across else (short_side, long_side)
    turn = np.radians(rng.normal(72, 8) if across else rng.normal(0, 6))

    extent = 1.1 * heart.length + 8
    thickness = float(np.clip(rng.choice([8.0, 9.0, 10.0, 10.0]), np.ceil(extent / 10), 10))
    slices = int(np.clip(np.ceil(extent / thickness), 8, 10))
    first = rng.uniform(0.05, 0.95) * thickness
    off_x, off_y = rng.normal((6, 4), (9, 11))
    x = (np.arange(nx) - (nx - 1) / 2) * pixel + off_x
    y = (np.arange(ny) - (ny - 1) / 2) * pixel + off_y
    s = first + thickness * np.arange(slices)
    return Grid(x, y, s, pixel, thickness, turn)


def _acquire(rng: np.random.Generator, scene: Scene, shading: np.ndarray, noise: float) -> np.ndarray:
    """What the scanner makes of the signals: point spread, opposed phases, coil shading, Rician noise."""
    signal = shading * np.abs(gaussian_filter(scene.water - scene.fat, (0, 0.55, 0.55), truncate=3))
    real, imaginary = noise * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    return np.hypot(signal + real, imaginary)


def write_phantom(root: str | Path, patients: int = 50, seed: int = 0) -> Path:
    """Write a synthetic data set in the layout of ACDC: root/training/patient001 and so on.

    The groups come in turn (patient001 is NOR, patient002 MINF, …). A patient depends on the seed and on its
    number alone. The data set is written to a temporary folder beside `root` and renamed when it is whole.

    Args:
        root: folder to make; it may exist if it is empty.
        patients: how many, from 1 to 999.
        seed: the same seed gives the same bytes.

    Raises:
        DataError: `root` is not empty or not a folder, or `patients` is out of range.
    """
    root = Path(root)
    if not 1 <= patients <= 999:
        raise DataError(f"patients is {patients}; it must be from 1 to 999, as names are patient001 to patient999")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: is not an empty folder; choose another folder for the phantom or remove this one")
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        seeds = np.random.SeedSequence(seed).spawn(patients)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda i: _write_patient(unfinished / "training", i, seeds[i]), range(patients)))
        unfinished.chmod(0o755)
        if root.exists():
            root.rmdir()
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _write_patient(folder: Path, index: int, seed: np.random.SeedSequence) -> None:
    volumes, info = make_patient(GROUPS[index % len(GROUPS)], np.random.default_rng(seed))
    name = f"patient{index + 1:03d}"
    place = folder / name
    place.mkdir(parents=True)
    (place / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    for phase, volume in volumes.items():
        stem = f"{name}_frame{info[phase]:02d}"
        _write_nifti(place / f"{stem}.nii.gz", volume.image.astype(np.int16), volume.spacing)
        _write_nifti(place / f"{stem}_gt.nii.gz", volume.mask, volume.spacing)


def _write_nifti(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """A .nii.gz with ACDC's header, and no time in its gzip header so that equal voxels are equal bytes."""
    nifti = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    nifti.header.set_zooms(spacing)
    path.write_bytes(gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0))
