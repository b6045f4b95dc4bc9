"""Synthetic short-axis cardiac cine MR in the layout of ACDC: the embedded data set.

A left ventricle is two surfaces around its long axis, endocardium and epicardium, as radius by height and
angle; a right ventricle lies beside it. The heart is drawn at end-diastole; end-systole follows from moving
the base towards the apex and the endocardium inwards while the wall keeps its volume. Around it lie fat,
lung, diaphragm, liver, bowel, chest wall, ribs, spine and aorta.

Every tissue has a signal, and fat's is negative, as its phase is against water's in balanced steady-state
free precession (bSSFP); the image is the magnitude, so that the dark line between fat and muscle comes by
itself. Volumes, ejection fractions and masses follow the published groups of ACDC (Bernard et al., IEEE TMI
37(11), 2018); no pixel comes from a real patient.

Coordinates in mm, with the origin on the long axis of the left ventricle: (x, y) the image's; (u, v) the
body's, to the back and to the feet; (a, b) the heart's, with the right ventricle at −a; s along the long axis
from base to apex, and t the same as a share of the cavity's length. Arrays are (Z, X, Y) inside this module
and (X, Y, Z) in what it returns.
"""

import gzip
import math
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from hcm_helpers.acdc import GROUPS, DataError, Volume

ANGLES = np.linspace(-np.pi, np.pi, 512, endpoint=False)  # of a contour: 0 = lateral wall, ±π = septum
HEIGHTS = (np.arange(48) + 0.5) / 48  # t at which a heart's tables stand and its volumes are integrated
WIDEST = 0.25  # t at which the cavity, a truncated ellipsoid, is widest
FAT = -0.72  # signal; blood's is 1

# Mean and standard deviation within each group, volumes in ml; wall: mean thickness in mm; descent: how far
# the base moves towards the apex by end-systole, in mm.
CLASSES = {
    "NOR": {"volume": (130, 27), "ejection": (0.62, 0.05), "wall": (7.4, 0.7), "descent": (12, 1.5)},
    "MINF": {"volume": (181, 42), "ejection": (0.31, 0.07), "wall": (9.0, 0.8), "descent": (7, 1.0)},
    "DCM": {"volume": (283, 46), "ejection": (0.20, 0.06), "wall": (7.7, 0.8), "descent": (4, 0.7)},
    "HCM": {"volume": (132, 33), "ejection": (0.70, 0.07), "wall": (8.3, 0.8), "descent": (9, 1.2)},
    "RV": {"volume": (117, 32), "ejection": (0.57, 0.05), "wall": (6.6, 0.7), "descent": (10, 1.4)},
}
RIGHT_VENTRICLE = {
    "NOR": {"volume": (150, 32), "ejection": (0.55, 0.05)},
    "MINF": {"volume": (125, 32), "ejection": (0.53, 0.06)},
    "DCM": {"volume": (178, 50), "ejection": (0.32, 0.08)},
    "HCM": {"volume": (118, 30), "ejection": (0.61, 0.05)},
    "RV": {"volume": (217, 42), "ejection": (0.34, 0.07)},
}


@dataclass(frozen=True)
class Heart:
    """What is true of one heart, whatever the slices and the phase. A table is (HEIGHTS, ANGLES)."""

    volume: float  # of the left ventricle at end-diastole, ml
    ejection: float
    length: float  # of the cavity from base to apex, mm
    descent: float  # of the base by end-systole, mm
    radius: float  # of the cavity where it is widest, mm
    wall: np.ndarray  # table: thickness at end-diastole, mm
    motion: np.ndarray  # table: inward motion of the endocardium, 1 = healthy, 0 = akinetic
    ripple: np.ndarray  # table: radius of the endocardium as a share of the ellipsoid's
    right_volume: float
    right_ejection: float
    right_ripple: np.ndarray  # (ANGLES,): the same for the right ventricle
    axis: float  # direction from the left ventricle to the right one in the body, rad
    papillary: list[tuple[float, float, float, float]]  # heads: angle, gap to the wall, radius (mm), height t
    trabeculae: float  # how dark
    fat: float  # how much around the heart


@dataclass(frozen=True)
class Grid:
    """The voxels: coordinates in mm of the image's axes and of the slices, pixel size, turn of the image."""

    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    pixel: float
    turn: float

    def body(self) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of every pixel, each (X, Y)."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        x, y = self.x[:, None], self.y[None, :]
        return (c * x + s * y).astype(np.float32), (c * y - s * x).astype(np.float32)

    def window(self, u: float, v: float, reach: float) -> tuple[slice, slice]:
        """The rows and columns within `reach` mm of a point of the body."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        spans = ((self.x, c * u - s * v), (self.y, s * u + c * v))
        return tuple(slice(*np.searchsorted(axis, (at - reach, at + reach))) for axis, at in spans)


class Scene:
    """The signal of every voxel, painted from back to front."""

    def __init__(self, grid: Grid, signal: np.ndarray):
        self.grid, self.signal = grid, signal

    def paint(self, cover: np.ndarray, signal: np.ndarray | float) -> None:
        """Lay a tissue over what is there; cover in [0, 1] is the share of each voxel that it fills."""
        self.signal += cover * (signal - self.signal)

    def edge(self, depth: np.ndarray, width: np.ndarray | float = 0.0) -> np.ndarray:
        """Cover of voxels that lie `depth` mm inside a surface: soft over one pixel, or over `width` mm."""
        return np.clip(0.5 + depth / np.maximum(np.float32(self.grid.pixel), width), 0, 1)

    def part(self, rows: slice, columns: slice) -> "Scene":
        """A window of the same memory."""
        grid = Grid(self.grid.x[rows], self.grid.y[columns], self.grid.s, self.grid.pixel, self.grid.turn)
        return Scene(grid, self.signal[:, rows, columns])

    def blob(self, centre, radii, within: np.ndarray, signal: float) -> None:
        """An ellipsoid with centre and radii along (u, v, s) in mm, kept to the cover `within`."""
        (u0, v0, s0), (ru, rv, rs) = centre, radii
        window = self.grid.window(u0, v0, max(ru, rv) + 3)
        part = self.part(*window)
        u, v = part.grid.body()
        flat, high = ((u - u0) / ru) ** 2 + ((v - v0) / rv) ** 2, ((part.grid.s - s0) / rs) ** 2
        depth = min(ru, rv) * (1 - np.sqrt(flat + high[:, None, None].astype(np.float32)))
        part.paint(within[:, *window] * part.edge(depth), signal)


# Randomness and tables


def _normal(rng: np.random.Generator, mean: float, sd: float) -> float:
    """A normal draw, held within 1.8 standard deviations so that no heart is impossible."""
    return mean + sd * float(np.clip(rng.standard_normal(), -1.8, 1.8))


def _bump(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-0.5 * (distance / width) ** 2)


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-distance / width))


def _from_angle(angle: float) -> np.ndarray:
    """Distance of ANGLES from an angle, in [−π, π), (1, ANGLES)."""
    return ((ANGLES - angle + np.pi) % (2 * np.pi) - np.pi)[None, :]


def _waves(rng: np.random.Generator, amplitudes: dict[int, float]) -> np.ndarray:
    """A table of 1 plus random waves around the circle, by order, that turn slowly from base to apex."""
    waves = np.ones((len(HEIGHTS), len(ANGLES)))
    for order, amplitude in amplitudes.items():
        phase = rng.uniform(0, 2 * np.pi) + rng.standard_normal() * HEIGHTS[:, None]
        waves += rng.normal(0, amplitude) * np.cos(order * ANGLES + phase)
    return waves


def _texture(rng: np.random.Generator, grid: Grid, scale: float, slices: int | None = None) -> np.ndarray:
    """Gaussian noise of unit variance, correlated over `scale` mm in the plane, (slices or Z, X, Y)."""
    x, y = ((axis - axis[0]) * 2 / scale for axis in (grid.x, grid.y))
    knots = rng.standard_normal((slices or len(grid.s), int(x[-1]) + 2, int(y[-1]) + 2), dtype=np.float32)
    knots = gaussian_filter(knots, (0, 1, 1), mode="wrap", truncate=3) * np.float32(2 * np.sqrt(np.pi))
    for axis, at in ((1, x), (2, y)):  # linear interpolation between the knots
        low = at.astype(int)
        weight = np.expand_dims((at - low).astype(np.float32), (0, 3 - axis))
        first, second = np.take(knots, low, axis), np.take(knots, low + 1, axis)
        knots = first + weight * (second - first)
    return knots


def _rows(table: np.ndarray, t: np.ndarray) -> np.ndarray:
    """A table's rows at other heights, linearly interpolated, (len(t), ANGLES)."""
    row = np.clip(t * len(HEIGHTS) - 0.5, 0, len(HEIGHTS) - 1)
    low = np.minimum(row.astype(int), len(HEIGHTS) - 2)
    return table[low] + (row - low)[:, None] * (table[low + 1] - table[low])


def _toward(contours: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Radius of a slice's contour in the direction of every point: (Z, ANGLES) → (Z, X, Y)."""
    turns = (np.arctan2(b, a) + np.pi) * (len(ANGLES) / (2 * np.pi)) + 0.5
    rows = np.arange(len(contours))[:, None, None]
    return contours.astype(np.float32)[rows, turns.astype(np.int32) % len(ANGLES)]


def _solve(rising, target: float, low: float, high: float) -> float:
    """The x in [low, high] at which a rising function reaches the target, by bisection."""
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


# Anatomy


def draw_heart(group: str, rng: np.random.Generator) -> Heart:
    """A heart of a group, one of GROUPS, at random."""
    draw = {name: _normal(rng, *CLASSES[group][name]) for name in CLASSES[group]}
    right = {name: _normal(rng, *RIGHT_VENTRICLE[group][name]) for name in RIGHT_VENTRICLE[group]}
    length = min(80 * (draw["volume"] / 130) ** 0.28 * rng.uniform(0.95, 1.05), 98)
    height, septum = HEIGHTS[:, None], _from_angle(np.pi)
    wall = draw["wall"] * (1 + 0.08 * np.cos(septum)) * _waves(rng, {2: 0.03, 3: 0.03, 4: 0.02})
    motion = _waves(rng, {1: 0.05, 2: 0.05, 3: 0.04})
    ripple = _waves(rng, {2: 0.035, 3: 0.018, 4: 0.01, 5: 0.008, 6: 0.006, 8: 0.004})
    if group == "HCM":
        wall = wall + _hypertrophy(rng, draw["wall"])
        motion = motion * (0.85 + 0.5 * height)  # the apex empties altogether
    elif group == "MINF":
        scar = _bump(_from_angle(rng.uniform(-np.pi, np.pi)), rng.uniform(0.6, 1.1))
        scar = scar * _step(height - rng.uniform(0.05, 0.35), 0.08)
        wall = wall * (1 - rng.uniform(0.4, 0.55) * scar)
        motion = motion * (1 - scar)
    elif group == "RV":
        ripple = ripple * (1 - rng.uniform(0.05, 0.18) * _bump(septum, 0.6))  # the septum is pressed flat
    heads = [
        (_normal(rng, at, 0.15), rng.uniform(0, 5), rng.uniform(2.8, 5.5), rng.uniform(0.4, 0.6))
        for at in (-0.9, -0.6, 0.9, 1.3)
    ]
    section = np.pi * (_ellipsoid(HEIGHTS, 1.0) ** 2).mean()
    return Heart(
        **{name: draw[name] for name in ("volume", "ejection", "descent")},
        length=length,
        radius=float(np.sqrt(1000 * draw["volume"] / (length * section))),
        wall=wall,
        motion=np.clip(motion, 0.02, None),
        ripple=ripple / np.sqrt((ripple**2).mean(axis=1, keepdims=True)),
        right_volume=right["volume"],
        right_ejection=right["ejection"],
        right_ripple=_waves(rng, {2: 0.03, 3: 0.04, 4: 0.02, 5: 0.015, 7: 0.008})[0],
        axis=math.radians(_normal(rng, 159, 12)),
        papillary=heads,
        trabeculae=rng.uniform(0.5, 1.0),
        fat=0.2 + rng.gamma(2.0, 0.35),
    )


def _hypertrophy(rng: np.random.Generator, wall: float) -> np.ndarray:
    """Table of what HCM adds to the wall (mm): at the septum in most, else at the apex or all around."""
    peak = float(np.clip(16.2 + rng.gamma(2.0, 1.8), None, 27)) - wall
    height, septum = HEIGHTS[:, None], _from_angle(np.pi + _normal(rng, 0.3, 0.4))
    pattern = rng.choice(["septal", "apical", "concentric"], p=[0.65, 0.15, 0.2])
    if pattern == "septal":
        spread = _bump(height - rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.4))
        shape = _bump(septum, rng.uniform(0.6, 1.1)) * spread
    elif pattern == "apical":
        shape = (0.75 + 0.25 * np.cos(septum)) * _step(height - 0.55, 0.07)
    else:
        shape = (0.72 + 0.28 * _bump(septum, 0.9)) * _bump(height - 0.4, 0.45)
    return peak * shape / shape.max()


def _ellipsoid(t: np.ndarray, apex: float) -> np.ndarray:
    """Radius at height t of an ellipsoid of radius 1 at WIDEST that ends at `apex`; level above the base."""
    return np.sqrt(np.clip(1 - ((np.maximum(t, 0) - WIDEST) / (apex - WIDEST)) ** 2, 0, None))


def left_ventricle(heart: Heart, t: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Endocardium and epicardium as radii in mm, each (len(t), ANGLES).

    Args:
        heart: as drawn.
        t: heights as shares of the cavity's length at this phase; below 0 is above the base.
        phase: 0 = end-diastole, 1 = end-systole; between them the volume falls linearly.
    """
    shortening = 1 - heart.descent * phase / heart.length

    def shrink(inward, motion):
        return np.clip(1 - inward * motion, 0.06, None)

    motion = heart.motion[:, ::8]  # 64 angles give the volume
    rest = heart.radius * _ellipsoid(HEIGHTS, 1.0)[:, None] * heart.ripple[:, ::8]
    inward = _solve(
        lambda c: 1 - shortening * ((rest * shrink(c, motion)) ** 2).sum() / (rest**2).sum(),
        heart.ejection * phase,
        *(-0.2, 1.5),
    )
    wall, ripple = _rows(heart.wall, t), _rows(heart.ripple, t)
    apex = 1 + 0.8 * wall.mean(axis=1) / heart.length
    endo = heart.radius * ripple * _ellipsoid(t, 1.0)[:, None]
    epi = (heart.radius * ripple + wall) * _ellipsoid(t, apex)[:, None]
    moved = endo * shrink(inward, _rows(heart.motion, t))
    return moved, np.sqrt(moved**2 + (epi**2 - endo**2) / shortening)  # the wall keeps its volume


def right_ventricle(heart: Heart, t: np.ndarray, epi: np.ndarray, width: float) -> tuple:
    """The right ventricle as ellipses behind the left one, which hides part of them.

    Args:
        heart: as drawn.
        t: heights, as above.
        epi: the left ventricle's epicardium there, mm.
        width: how far the right ventricle reaches beyond the septum at the base, mm.

    Returns:
        a of the centres in mm, (len(t),), and radii around them in mm, (len(t), ANGLES).
    """
    radius, low = epi.mean(axis=1), np.clip(t, 0, 1)
    bulge = width * np.clip(1 - (low / 0.95) ** 2, 0, None) ** 0.7
    half = (radius * np.clip(0.65 + 1.1 * low, None, 1.3) + bulge) / 2 + 0.1
    tall = radius * (1.12 - 0.65 * low) + 0.2 * bulge + 0.1
    ellipse = 1 / np.hypot(np.cos(ANGLES) / half[:, None], np.sin(ANGLES) / tall[:, None])
    corners = 0.05 * np.cos(3 * (ANGLES - 2.2)) - 0.07 * np.sin(ANGLES)  # at the diaphragm, at the outflow
    return half - radius - bulge, ellipse * (1 + corners) * heart.right_ripple


def _right_width(heart: Heart, phase: float) -> float:
    """The width (mm) that gives the right ventricle its volume at a phase."""
    t, step = HEIGHTS[::4], 4.0
    epi = left_ventricle(heart, t, phase)[1]
    a, b = np.meshgrid(np.arange(-130, 30, step), np.arange(-80, 80, step), indexing="ij")
    free = np.hypot(a, b) > _toward(epi, a, b)
    voxel = step**2 * (heart.length - heart.descent * phase) / len(t) / 1000  # ml

    def volume(width):
        centre, radii = right_ventricle(heart, t, epi, width)
        beside = a - centre[:, None, None]
        return (free & (np.hypot(beside, b) < _toward(radii, beside, b))).sum() * voxel

    return _solve(volume, heart.right_volume * (1 - heart.right_ejection * phase), 0.0, 80.0)


# Painting


def _surroundings(rng: np.random.Generator, grid: Grid, heart: Heart) -> tuple[Scene, np.ndarray]:
    """Everything but the heart, and the depth below the skin (mm), which the coils' shading follows."""
    u, v = grid.body()
    s = grid.s[:, None, None].astype(np.float32)
    scene = Scene(grid, np.zeros((len(s), *u.shape), np.float32))
    fibres, lumps = _texture(rng, grid, 5), _texture(rng, grid, 12)
    broad = _texture(rng, grid, 45)

    # The trunk. Its front wall is close to the right ventricle and nears the long axis towards the apex.
    fat_depth, muscle_depth = rng.uniform(7, 22), rng.uniform(9, 14)
    reach = heart.radius + 8 + 0.85 * _right_width(heart, 0.0) * abs(math.cos(heart.axis))
    front = np.maximum(reach + rng.uniform(2, 10) - rng.uniform(0.4, 0.65) * s, 18) + fat_depth + muscle_depth
    back, half_height = rng.uniform(125, 165), rng.uniform(190, 260)
    width = (back + front) / 2
    p = (u + rng.uniform(-0.12, 0.2) * v + 9 * _texture(rng, grid, 80, 1) - (back - front) / 2) / width
    q = (v - rng.uniform(-20, 30)) / half_height
    skin = (1 - np.sqrt(p * p + q * q - 0.35 * (p * q) ** 2)) * width
    scene.paint(scene.edge(skin), FAT * (1 + 0.05 * lumps + 0.04 * fibres))
    muscle = skin - fat_depth * (1 + 0.3 * _texture(rng, grid, 50, 1))
    scene.paint(scene.edge(muscle), 0.25 + 0.04 * fibres + FAT * np.clip(fibres + 0.8 * lumps - 1.1, 0, 0.7))

    # The chest: lung with vessels, ribs in the wall, fat under the pleura.
    pleura = muscle - muscle_depth - 2 * lumps[:1]
    inside = scene.edge(pleura)
    vessels = np.clip(2 * (_texture(rng, grid, 4) + 0.4 * broad - 1.9), 0, 1)
    scene.paint(inside, rng.uniform(0.05, 0.12) * (1 + 0.25 * broad) + 0.7 * vessels)
    along = (np.arctan2(q, p) * half_height / 26 + rng.uniform(0, 1)) % 1 - 0.5
    rib = np.hypot(along * 26 / 7, (muscle - 0.65 * muscle_depth) / 4.5)
    scene.paint(scene.edge(4.5 * (1 - rib)), 0.08)
    scene.paint(scene.edge(4.5 * (0.65 - rib)), FAT / 2)
    scene.paint(scene.edge(1.5 - np.abs(pleura + 1.5)) * np.clip(0.7 + lumps, 0, 1), FAT)

    # Below the diaphragm, on which the heart lies: liver with vessels, then fat with bowel.
    floor = heart.radius + 0.8 * float(heart.wall.mean()) + rng.uniform(-7, 3)
    dome = rng.uniform(-0.3, 0.05) * u - (u - rng.uniform(-10, 40)) ** 2 / rng.uniform(260, 420)
    below = v - np.maximum(floor - 0.2 * s, 16) + dome - 3 * _texture(rng, grid, 40, 1)
    veins = np.clip(2.5 * (_texture(rng, grid, 7) - 1.8), 0, 1)
    scene.paint(inside * scene.edge(below), rng.uniform(0.26, 0.42) + 0.025 * fibres + 0.4 * veins)
    abdomen = inside * scene.edge(below - 4)
    lower = below - rng.uniform(25, 80) + rng.uniform(0.1, 0.6) * u + 6 * lumps
    scene.paint(abdomen * scene.edge(lower), FAT * (0.9 + 0.1 * broad))
    for _ in range(26):
        centre = rng.uniform(-40, 120), floor + rng.uniform(18, 130), rng.uniform(-20, 110)
        radii = rng.uniform(7, 24), rng.uniform(6, 20), rng.uniform(20, 60)
        content = float(rng.choice([0.1, 0.25, 0.35, 0.5, 0.8])) * rng.uniform(0.8, 1.2)
        if centre[0] > -10 or centre[1] > floor + 70:  # not in the liver
            scene.blob(centre, [r + 2 for r in radii], abdomen, 0.25)
            scene.blob(centre, radii, abdomen, content)

    # Vessels with their walls: auricle and vena cava at the base, the descending aorta; and the spine.
    spine = rng.uniform(88, 105), rng.uniform(25, 60), 0.0
    scene.blob(spine, (20, 26, 400), inside, 0.2)
    scene.blob(spine, (17, 23, 400), inside, FAT / 2)
    around = 1.25 * heart.radius
    for (u0, v0), size, height in (
        ((around * rng.normal(0.1, 0.2), -0.95 * around), 18, rng.uniform(6, 20)),
        ((around * rng.normal(0.2, 0.2), 1.1 * around), 11, rng.uniform(6, 20)),
        ((spine[0] - rng.uniform(28, 36), spine[1] - rng.uniform(-10, 15)), 12, 400),
    ):
        radii = size * rng.uniform(0.9, 1.3), size * rng.uniform(0.6, 1.0), height
        scene.blob((u0, v0, 0.0), [r + 1.5 for r in radii], inside, 0.25)
        scene.blob((u0, v0, 0.0), radii, inside, rng.uniform(0.6, 1.05))
    return scene, np.maximum(skin, 0)


def _paint_heart(rng: np.random.Generator, scene: Scene, heart: Heart, phase: float) -> np.ndarray:
    """Paint the heart at a phase over its surroundings; returns the mask, (Z, X, Y)."""
    window = scene.grid.window(-20, 8, 105)
    part = scene.part(*window)
    fine, medium, coarse = (_texture(rng, part.grid, scale) for scale in (2.8, 5, 16))
    u, v = part.grid.body()
    c, s = math.cos(heart.axis - math.pi), math.sin(heart.axis - math.pi)
    breath = rng.normal(0, 0.5, (2, len(part.grid.s), 1, 1)).astype(np.float32)  # mm, as one breath-hold a slice
    a, b = c * u + s * v + breath[0], c * v - s * u + breath[1]
    height = (part.grid.s - heart.descent * phase) / (heart.length - heart.descent * phase)
    t = height.astype(np.float32)[:, None, None]

    # Depths (mm) below the three surfaces, and how far each moves from slice to slice, which blurs its edge.
    endo_radii, epi_radii = left_ventricle(heart, height, phase)
    centre, right_radii = right_ventricle(heart, height, epi_radii, _right_width(heart, phase))
    distance, beside = np.hypot(a, b), a - centre[:, None, None].astype(np.float32)
    endo, epi = _toward(endo_radii, a, b) - distance, _toward(epi_radii, a, b) - distance
    right = np.where(t < 0.95, _toward(right_radii, beside, b) - np.hypot(beside, b), -50)
    endo_blur, epi_blur, right_blur = (
        np.clip(np.abs(np.gradient(radii.mean(axis=1))), 0, 12)[:, None, None].astype(np.float32)
        for radii in (endo_radii, epi_radii, right_radii)
    )

    # Fat fills the grooves between the ventricles and lies thicker in front and around the apex.
    near_apex = t > 0.8
    layer = 1 + 3 * _texture(rng, part.grid, 22, 1) + coarse - a / 12 - u / 20 + near_apex * (5 - u / 6)
    hull = 4 * np.logaddexp(epi / 4, (right + 2.5) / 4)
    part.paint(part.edge(hull + np.clip(heart.fat * layer, -1, 18)), FAT * (0.95 + 0.15 * medium))

    # The right ventricle: a thin wall, blood, strands of muscle.
    muscle = rng.uniform(0.22, 0.4) + 0.025 * medium
    part.paint(part.edge(right + 2.5, right_blur), muscle)
    inside = part.edge(right, right_blur)
    part.paint(inside, rng.uniform(0.6, 0.9) + 0.06 * coarse + 0.05 * medium)
    strands = np.clip(0.8 * medium + 0.6 * fine - 0.4 + (4 - right) / 6 + 1.2 * (t - 0.5), 0, 0.85)
    part.paint(inside * strands * heart.trabeculae, muscle)

    # The left ventricle: wall, blood, trabeculae (most at the lateral wall and the apex), papillary muscles.
    part.paint(part.edge(epi, epi_blur), muscle)
    cavity = part.edge(endo, endo_blur)
    part.paint(cavity, 1.05 + 0.06 * coarse + 0.04 * medium + 0.04 * fine)
    lateral = 0.3 * a / np.maximum(distance, 1) + 0.84 * np.clip(t, 0, 0.8)
    fringe = np.clip(0.7 * fine + 0.4 * medium + lateral - 0.25 + (2.5 - endo) / 4, 0, 0.9)
    part.paint(cavity * fringe * heart.trabeculae * (t > 0.1), muscle)
    for angle, gap, size, level in heart.papillary:
        grown = size * (1 + 0.25 * phase) * np.sqrt(np.clip(1 - ((t - level) / 0.32) ** 2, 0, 1))
        rim = endo_radii[:, np.abs(_from_angle(angle)).argmin(), None, None].astype(np.float32)
        far = np.clip(rim - gap * (1 - 0.6 * phase) - 0.6 * grown, 0, None)
        depth = grown * (1 + 0.3 * medium) - np.hypot(a - far * math.cos(angle), b - far * math.sin(angle))
        part.paint(cavity * part.edge(depth) * (grown > 0), muscle)

    mask = np.zeros(scene.signal.shape, np.uint8)
    labels = mask[:, *window]
    labels[(right > 0) & (t >= 0)] = 1
    labels[(epi > 0) & (t >= 0)] = 2
    labels[(endo > 0) & (t >= 0) & (endo_radii.mean(axis=1) > 2)[:, None, None]] = 3
    return mask


def _place(rng: np.random.Generator, heart: Heart) -> tuple[Grid, float]:
    """Voxels that hold the heart, posed as in ACDC, and the distance between slices in mm."""
    pixel = round(float(rng.uniform(1.3, 1.8)), 4)
    long_side = int(np.clip(rng.uniform(340, 430) / pixel // 8 * 8, 208, 256))
    short_side = int(np.clip(long_side * rng.uniform(0.75, 0.95) // 8 * 8, 160, 240))
    across = rng.random() < 0.15  # the body then lies along the image's rows
    nx, ny = (long_side, short_side) if across else (short_side, long_side)
    turn = np.radians(rng.normal(72, 8) if across else rng.normal(0, 6))

    extent = 1.1 * heart.length + 8
    thickness = float(np.clip(rng.choice([8.0, 9.0, 10.0, 10.0]), np.ceil(extent / 10), 10))
    slices = int(np.clip(np.ceil(extent / thickness), 8, 10))
    x = (np.arange(nx) - (nx - 1) / 2) * pixel + rng.normal(6, 9)
    y = (np.arange(ny) - (ny - 1) / 2) * pixel + rng.normal(4, 11)
    s = thickness * (np.arange(slices) + rng.uniform(0.05, 0.95))
    return Grid(x, y, s, pixel, turn), thickness


def _acquire(rng: np.random.Generator, scene: Scene, shading: np.ndarray, noise: float) -> np.ndarray:
    """The magnitude image: point spread, coil shading, Rician noise."""
    signal = shading * gaussian_filter(scene.signal, (0, 0.55, 0.55), truncate=3)
    real, imaginary = np.float32(noise) * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    return np.hypot(signal + real, imaginary)


def make_patient(group: str, rng: np.random.Generator) -> tuple[dict[str, Volume], dict[str, str | int | float]]:
    """One synthetic patient at end-diastole and end-systole.

    Args:
        group: one of GROUPS.
        rng: decides everything else; the same state gives the same patient.

    Returns:
        volumes: {"ED": Volume, "ES": Volume}; image float32 of whole numbers ≥ 0 and mask uint8, (X, Y, Z),
            8 to 10 slices with the base first; spacing in mm.
        info: the values of ACDC's Info.cfg.

    Raises:
        DataError: the group is unknown.
    """
    if group not in GROUPS:
        raise DataError(f"group {group!r} is unknown: take one of {', '.join(GROUPS)}")
    heart = draw_heart(group, rng)
    grid, thickness = _place(rng, heart)
    scene, depth = _surroundings(rng, grid, heart)
    falloff = np.exp(-depth / rng.uniform(200, 500)) + rng.uniform(0, 0.5) * np.exp(-depth / 18)
    shading = falloff * np.exp(0.15 * _texture(rng, grid, 120, 1))
    noise, scale, tissue = rng.uniform(0.008, 0.025), rng.uniform(170, 420), rng.integers(2**32)
    volumes = {}
    for name, phase in (("ED", 0.0), ("ES", 1.0)):
        beat = Scene(grid, scene.signal.copy())
        mask = _paint_heart(np.random.default_rng(tissue), beat, heart, phase)
        image = np.rint(np.float32(scale) * _acquire(rng, beat, shading, noise))
        spacing = (grid.pixel, grid.pixel, thickness)
        volumes[name] = Volume(image.transpose(1, 2, 0), mask.transpose(1, 2, 0), spacing)
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


# Files


def write_phantom(root: str | Path, patients: int = 50, seed: int = 0) -> Path:
    """Write a synthetic data set in ACDC's layout: root/training/patient001 and so on.

    The groups come in turn: patient001 is NOR, patient002 MINF, and so on. The seed and a patient's number
    alone decide the patient. All is written to a temporary folder beside `root` and renamed at the end.

    Args:
        root: the folder to make; it may exist if it is empty.
        patients: how many, from 1 to 999.
        seed: the same seed gives the same bytes.

    Returns:
        root.

    Raises:
        DataError: root is not an empty folder, or the number of patients is out of range.
    """
    root = Path(root)
    if not 1 <= patients <= 999:
        raise DataError(f"patients = {patients} does not fit the names patient001 to patient999: take 1 to 999")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is not an empty folder: name another for the phantom, or remove this one")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as unfinished:
        whole = Path(unfinished) / root.name
        seeds = np.random.SeedSequence(seed).spawn(patients)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # below 100 MB each
            jobs = [pool.submit(_write_patient, whole / "training", i, seeds[i]) for i in range(patients)]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if root.exists():
            root.rmdir()
        whole.rename(root)
    return root


def _write_patient(folder: Path, index: int, seed: np.random.SeedSequence) -> None:
    volumes, info = make_patient(GROUPS[index % len(GROUPS)], np.random.default_rng(seed))
    name = f"patient{index + 1:03d}"
    (folder / name).mkdir(parents=True)
    (folder / name / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    for phase, volume in volumes.items():
        stem = f"{name}_frame{info[phase]:02d}"
        _write_nifti(folder / name / f"{stem}.nii.gz", volume.image.astype(np.int16), volume.spacing)
        _write_nifti(folder / name / f"{stem}_gt.nii.gz", volume.mask, volume.spacing)


def _write_nifti(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """A .nii.gz with ACDC's affine and no time of writing in it: equal voxels are equal bytes."""
    nifti = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    nifti.header.set_zooms(spacing)
    path.write_bytes(gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0))
