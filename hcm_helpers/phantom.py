"""Synthetic short-axis cardiac cine MR in the layout of ACDC: the embedded data set.

The heart comes from `hcm_helpers.heart`. Around it lie fat, lung, diaphragm, liver, stomach and bowel, chest
wall, ribs, spine and aorta. Every tissue has the signal of balanced steady-state free precession (bSSFP) that
follows from its relaxation times. Water and fat are painted apart: fat comes back in nearly the opposite phase and
a little displaced, so that the dark line between fat and muscle arises by itself. Off-resonance darkens bands, coils
shade, and a k-space that was not sampled to its corners blurs, rings and carries the noise. The scanner is
drawn the same way for all groups, so that it tells nothing about the heart. No pixel comes from a real patient.

Coordinates in mm, with the origin on the long axis of the left ventricle: (x, y) the image's; (u, v) the
body's, to the back and to the feet; (a, b) and t the heart's; s along the long axis from base to apex. Arrays
are (Z, X, Y) inside this module and (X, Y, Z) in what it returns.
"""

import csv
import gzip
import io
import math
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, map_coordinates

from hcm_helpers.acdc import GROUPS, DataError, Volume
from hcm_helpers.heart import (
    ANGLES,
    OUTFLOW,
    Heart,
    draw_heart,
    from_angle,
    left_ventricle,
    measure,
    normal,
    right_ventricle,
)

# T1 and T2 in ms at 1.5 T and density of protons; blood is fresh, unsaturated, and gains through its density.
TISSUES = {
    "blood": (1550, 240, 1.25),
    "venous blood": (1550, 170, 1.12),
    "heart": (1000, 52, 0.88),
    "muscle": (1010, 38, 0.90),
    "fat": (300, 70, 0.90),
    "marrow": (550, 55, 0.70),
    "liver": (600, 38, 0.75),
    "spleen": (1050, 75, 0.80),
    "fluid": (2500, 800, 0.60),
    "bone": (1000, 30, 0.10),
    "lung": (1200, 40, 0.48),
}
FAT_SHIFT = -220.0  # Hz from water at 1.5 T


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
    """The signals of water and of fat, (Z, X, Y) each, painted from back to front; `tissue` holds those of TISSUES."""

    def __init__(self, grid: Grid, water: np.ndarray, fat: np.ndarray, tissue: dict[str, float]):
        self.grid, self.water, self.fat, self.tissue = grid, water, fat, tissue

    def paint(self, cover: np.ndarray, water: np.ndarray | float, fat: np.ndarray | float = 0.0) -> None:
        """Lay a tissue over what is there; cover in [0, 1] is the share of each voxel that it fills."""
        self.water += cover * (water - self.water)
        self.fat += cover * (fat - self.fat)

    def edge(self, depth: np.ndarray, width: np.ndarray | float = 0.0) -> np.ndarray:
        """Cover of voxels that lie `depth` mm inside a surface: soft over 2 mm, or over `width` mm."""
        return np.clip(0.5 + depth / np.maximum(np.float32(2), width), 0, 1)

    def part(self, rows: slice, columns: slice) -> "Scene":
        """A window of the same memory."""
        grid = Grid(self.grid.x[rows], self.grid.y[columns], self.grid.s, self.grid.pixel, self.grid.turn)
        return Scene(grid, self.water[:, rows, columns], self.fat[:, rows, columns], self.tissue)

    def copy(self) -> "Scene":
        return Scene(self.grid, self.water.copy(), self.fat.copy(), self.tissue)

    def blob(self, centre, radii, within: np.ndarray, water, fat=0.0, rough=0.0, width: float = 2.0) -> None:
        """An ellipsoid with centre and radii along (u, v, s) in mm, kept to the cover `within`.

        `water`, `fat` and `rough`, by how many mm the surface deviates, are numbers or as large as the scene;
        `width` is that of its edge in mm.
        """
        (u0, v0, s0), (ru, rv, rs) = centre, radii
        window = self.grid.window(u0, v0, max(ru, rv) + 10)
        part = self.part(*window)
        u, v = part.grid.body()
        flat, high = ((u - u0) / ru) ** 2 + ((v - v0) / rv) ** 2, ((part.grid.s - s0) / rs) ** 2
        depth = min(ru, rv) * (1 - np.sqrt(flat + high[:, None, None].astype(np.float32)))
        water, fat, rough = (value if np.isscalar(value) else value[:, *window] for value in (water, fat, rough))
        part.paint(within[:, *window] * part.edge(depth + rough, width), water, fat)


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


def _swirls(rng: np.random.Generator, a: np.ndarray, b: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Streaks of flowing blood of about unit variance: noise four times as long as wide, in one direction a slice."""
    streaks = np.empty(np.broadcast_shapes(a.shape, bend.shape), np.float32)
    for number, streak in enumerate(streaks):
        noise = gaussian_filter(rng.standard_normal((64, 64), dtype=np.float32), 1, mode="wrap") * 3.5
        turn, across, along = rng.uniform(0, 2 * np.pi), a[number] + 6 * bend[number], b[number] + 3 * bend[number]
        places = (
            (math.cos(turn) * across + math.sin(turn) * along) / 2.5,
            (math.cos(turn) * along - math.sin(turn) * across) / 10,
        )
        streak[:] = map_coordinates(noise, places, order=1, mode="grid-wrap")
    return streaks


def _rays(rng: np.random.Generator, toward: np.ndarray, width: float) -> np.ndarray:
    """Noise of unit variance that changes with the direction only, over `width` ANGLES: streaks towards the axis."""
    noise = rng.standard_normal((len(toward), len(ANGLES)), dtype=np.float32)
    noise = gaussian_filter(noise, (0, width / 2), mode="wrap") * np.float32((width * np.sqrt(np.pi)) ** 0.5)
    return noise.ravel()[toward]


def _toward(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Index into the contours of all slices, flattened, in the direction of every point, (Z, X, Y)."""
    turns = (np.arctan2(b, a) + np.pi) * (len(ANGLES) / (2 * np.pi)) + 0.5
    return turns.astype(np.int32) % len(ANGLES) + len(ANGLES) * np.arange(len(a), dtype=np.int32)[:, None, None]


# Physics


@dataclass(frozen=True)
class Scan:
    """How one patient's k-space is sampled."""

    sampled: tuple[float, float]  # share of the width of k-space along each axis of the image
    taper: float  # share over which the window falls to 0; a short one rings
    noise: np.ndarray  # standard deviation, (1, X, Y): higher in the middle, far from the coils
    ghost: complex
    ghost_at: int  # pixels along the second axis


def steady_state(t1: float, t2: float, flip: float, repetition: float, offset: np.ndarray | float = 0.0):
    """Transverse magnetisation of bSSFP right after the pulse, as a share of the equilibrium's.

    Scheffler & Lehnhardt, Eur Radiol 13(11), 2003, with pulses of alternating sign.

    Args:
        t1, t2, repetition: in ms; flip: rad.
        offset: from the resonance, Hz; the signal vanishes nearly at half a turn a repetition.
    """
    e1, e2 = math.exp(-repetition / t1), math.exp(-repetition / t2)
    cosine = np.cos(2 * np.pi * offset * repetition / 1000 + np.pi)  # of the turn, the pulse's sign included
    below = 1 - e1 * math.cos(flip) - (e1 - math.cos(flip)) * e2**2 - e2 * (1 - e1) * (1 + math.cos(flip)) * cosine
    return (1 - e1) * math.sin(flip) * np.sqrt(1 + e2**2 - 2 * e2 * cosine) / below


def _signals(rng: np.random.Generator, flip: float, repetition: float) -> dict[str, float]:
    """The signal of each tissue, as a share of blood's; fat's and marrow's at fat's own resonance.

    T1 and T2 differ from body to body.
    """
    signals = {}
    for name, (t1, t2, density) in TISSUES.items():
        t1, t2 = t1 * math.exp(normal(rng, 0, 0.06)), t2 * math.exp(normal(rng, 0, 0.15))
        shift = FAT_SHIFT if name in ("fat", "marrow") else 0.0
        signals[name] = density * float(steady_state(t1, t2, flip, repetition, shift))
    return {name: value / signals["blood"] for name, value in signals.items()}


def _resonate(rng: np.random.Generator, scene: Scene, flip: float, repetition: float) -> np.ndarray:
    """The magnetisation at the echo, complex (Z, X, Y): water and fat, each by its distance from the resonance.

    Off resonance the signal fades in bands, seldom in the heart, on which the scanner shims, and from one band to
    the next its phase turns by half a turn. Fat lies a band beyond water, so that the two are opposed where they
    meet in a voxel; not quite so when the echo does not stand in the middle of the repetition. Along the first axis
    fat is read out displaced.
    """
    u, v = scene.grid.body()
    far = np.hypot(u, v) / 100
    field = rng.uniform(10, 30) * _texture(rng, scene.grid, 60, 1) * (0.5 + far)
    field = field + (rng.normal(0, 25) * u + rng.normal(0, 25) * v) / 100 + rng.normal(0, 25) * far**2  # Hz
    shifted = rng.uniform(0.1, 0.6)  # of a pixel
    late = rng.normal(0, 0.7) / 1000  # s, of the echo
    total = np.zeros(scene.water.shape, np.complex64)
    fat = (1 - shifted) * scene.fat + shifted * np.roll(scene.fat, 1, axis=1)
    for signal, (t1, t2), offset in ((scene.water, (1000, 80), 0.0), (fat, (300, 70), FAT_SHIFT)):
        magnitude = steady_state(t1, t2, flip, repetition, field + offset)
        magnitude = magnitude / steady_state(t1, t2, flip, repetition, offset)
        band = np.sign(np.cos(np.pi * (field + offset) * repetition / 1000))
        total += signal * (magnitude * band * np.exp(2j * np.pi * (field + offset) * late)).astype(np.complex64)
    return total


def _acquire(rng: np.random.Generator, signal: np.ndarray, scan: Scan) -> np.ndarray:
    """The magnitude image from a k-space that is sampled up to a share of its width along each axis.

    Blood pulses while the lines of k-space are read one after the other, which leaves a faint ghost of the picture.
    """
    field = np.empty(signal.shape, np.complex64)
    field.real, field.imag = rng.standard_normal((2, *signal.shape), dtype=np.float32)
    field *= scan.noise
    field += signal
    field += np.complex64(scan.ghost) * np.roll(signal, scan.ghost_at, axis=2)
    k = fft.fft2(field, overwrite_x=True)
    for axis, share in zip((1, 2), scan.sampled, strict=True):
        distance = np.abs(fft.fftfreq(signal.shape[axis])) * 2
        taper = np.clip((share - distance) / scan.taper, 0, 1).astype(np.float32)
        k *= np.expand_dims(np.sin(np.pi / 2 * taper), (0, 3 - axis))
    return np.abs(fft.ifft2(k, overwrite_x=True))


# Painting


def _surroundings(rng: np.random.Generator, grid: Grid, heart: Heart, tissue: dict[str, float]) -> tuple:
    """The Scene of everything but the heart, and the depth below the skin (mm), which the coils' shading follows."""
    shape = (len(grid.s), len(grid.x), len(grid.y))
    scene = Scene(grid, np.zeros(shape, np.float32), np.zeros(shape, np.float32), tissue)
    textures = {scale: _texture(rng, grid, scale) for scale in (4, 8, 16, 40)}  # mm
    skin, pleura = _chest(rng, scene, heart, textures)
    _abdomen(rng, scene, heart, textures, scene.edge(pleura))
    _vessels(rng, scene, heart, textures, scene.edge(pleura))
    return scene, np.maximum(skin, 0)


def _chest(rng: np.random.Generator, scene: Scene, heart: Heart, textures: dict[int, np.ndarray]) -> tuple:
    """Paint skin, fat, muscle, ribs and lung; returns the depths below the skin and below the pleura (mm)."""
    tissue, grid, (u, v) = scene.tissue, scene.grid, scene.grid.body()
    s = grid.s[:, None, None].astype(np.float32)
    fine, medium, lumps, broad = textures.values()
    warp = _texture(rng, grid, 30, 1)

    # The front wall is close to the right ventricle and nears the long axis towards the apex.
    fat_depth, muscle_depth = rng.uniform(5, 18) + rng.gamma(1.0, 6.0), rng.uniform(12, 28)
    right = right_ventricle(heart, np.array([0.3]), left_ventricle(heart, np.array([0.3]), 0.0)[1], 0.0)
    reach = float(right.max()) * abs(math.cos(heart.axis))
    front = np.maximum(reach + rng.uniform(-4, 12) - rng.uniform(0.25, 0.55) * s, 18) + fat_depth + muscle_depth
    back, half_height = rng.uniform(125, 165), rng.uniform(180, 260)
    width = (back + front) / 2
    p = (u + rng.uniform(-0.45, 0.4) * v + 9 * _texture(rng, grid, 80, 1) - (back - front) / 2) / width
    q = (v - rng.uniform(-20, 30)) / half_height
    skin = (1 - np.sqrt(p * p + q * q - 0.35 * (p * q) ** 2)) * width
    scene.paint(scene.edge(skin), tissue["muscle"])
    septa = np.exp(-((lumps / 0.12) ** 2))
    fat = tissue["fat"] * (1 + 0.06 * broad + 0.05 * medium - 0.35 * septa * np.clip(0.3 + broad, 0, 1))
    scene.paint(scene.edge(skin - 2), 0.0, fat)

    # Muscle in two sheets with a thin seam of fat between them, each grained along the wall.
    muscle = skin - fat_depth * (1 + 0.4 * _texture(rng, grid, 50, 1)) + 0.5 * lumps
    grain = np.sin(muscle * (2 * np.pi / rng.uniform(4, 8)) + 2.5 * lumps + 3 * warp + medium)
    meat = tissue["muscle"] * (1 + 0.15 * medium + 0.12 * lumps + 0.1 * grain)
    scene.paint(scene.edge(muscle, 3), meat)
    marbling = np.clip(0.5 * broad + 0.4 * lumps + 0.4 * medium + 0.3 * grain - 0.4, 0, rng.uniform(0.2, 0.8))
    scene.paint(scene.edge(muscle) * marbling, 0.0, fat)
    seam = rng.uniform(0.3, 0.45) * muscle_depth + 2 * warp
    scene.paint(
        scene.edge(rng.uniform(0.2, 1.6) - np.abs(muscle - seam), 3) * np.clip(0.6 + 0.6 * lumps, 0, 1), 0.0, fat
    )

    # Ribs in the inner sheet, cut across; then fat under the pleura, in places.
    pleura = muscle - muscle_depth - 2 * lumps[:1]
    spacing = rng.uniform(28, 42)
    along = np.arctan2(q, p) * half_height / spacing + 0.15 * warp + s / 60 + rng.uniform(0, 1)
    number = np.floor(along).astype(int)
    long, high = rng.uniform(-12, 16, 64)[number % 64], rng.uniform(2.5, 6, 64)[number % 64]  # some are cut elsewhere
    rib = np.hypot(
        (along - number - 0.5) * spacing / np.maximum(long, 0.1), (muscle - 0.68 * muscle_depth + lumps) / high
    )
    scene.paint(0.6 * scene.edge(5 * (1.35 - rib), 4), 0.0, fat)
    scene.paint(scene.edge(5 * (1.1 - rib)), rng.uniform(0.1, 0.7) * tissue["muscle"])
    marrow = rng.uniform(0.2, 0.8) * tissue["marrow"] * (1 + 0.15 * medium)
    scene.paint(scene.edge(5 * (0.75 - rib)), 0.5 * marrow, 0.5 * marrow)
    scene.paint(scene.edge(2.5 - np.abs(pleura + 1.5), 3) * np.clip(0.3 + 0.8 * broad, 0, 1), 0.0, fat)

    # Lung, its vessels more and wider towards the root.
    inside = scene.edge(pleura, 3)
    scene.paint(inside, tissue["lung"] * (1 + 0.2 * broad + 0.1 * fine) * rng.uniform(0.5, 1.3))
    vessels = np.clip(2 * (0.85 * fine + 0.4 * medium + 0.4 * broad + u / 110 - rng.uniform(2.0, 2.7)), 0, 1)
    scene.paint(inside * vessels, rng.uniform(0.4, 1.1) * tissue["blood"])
    return skin, pleura


def _abdomen(
    rng: np.random.Generator, scene: Scene, heart: Heart, textures: dict[int, np.ndarray], inside: np.ndarray
) -> None:
    """Below the diaphragm, on which the heart lies: liver in front, stomach and spleen behind, bowel and fat."""
    tissue, grid, (u, v) = scene.tissue, scene.grid, scene.grid.body()
    s = grid.s[:, None, None].astype(np.float32)
    fine, medium, lumps, broad = textures.values()
    floor = heart.radius + 0.8 * float(heart.wall.mean()) + rng.uniform(-13, -3)
    dome = rng.uniform(-0.2, 0.2) * u - (u - rng.uniform(10, 70)) ** 2 / rng.uniform(400, 1100)
    below = v - np.maximum(floor - 0.2 * s, 16) + dome - 3 * _texture(rng, grid, 40, 1)
    scene.paint(inside * scene.edge(below, 4), tissue["muscle"] * (1 + 0.2 * lumps))
    abdomen = inside * scene.edge(below - 2.5, 3)
    lean = rng.choice([0.0, 0.0, 0.5, 1.0])  # share of the room between the organs that is no fat
    scene.paint(
        abdomen,
        lean * rng.uniform(0.8, 1.6) * tissue["spleen"] * (1 + 0.15 * lumps + 0.1 * medium),
        (1 - lean) * rng.uniform(0.6, 1) * tissue["fat"] * (1 + 0.15 * broad + 0.1 * lumps),
    )

    def organ(centre, size, content, mottled, wall=0.0):
        """A rounded organ, grained, with a wall where it is hollow."""
        radii = size * rng.uniform(0.9, 1.5), size * rng.uniform(0.7, 1.0), rng.uniform(30, 80)
        place, rough = (*centre, rng.uniform(0, 80)), 2.5 * lumps + 4 * broad
        grained = content * np.clip(1 + mottled * (0.6 * lumps + 0.7 * medium + 0.3 * fine) + 0.1 * fine, 0.1, None)
        if wall:
            scene.blob(place, [r + wall for r in radii], abdomen, 0.9 * tissue["muscle"], 0.0, rough, 3)
        scene.blob(place, radii, abdomen, grained, 0.0, rough, rng.uniform(2, 6))

    for _ in range(14):
        content = rng.choice([tissue["muscle"], tissue["spleen"], tissue["bone"], tissue["liver"]])
        organ(
            (rng.uniform(-40, 120), floor + rng.uniform(25, 120)), rng.uniform(6, 20), content, 0.5, rng.choice([0, 2])
        )
    organ(
        (rng.uniform(60, 100), floor + rng.uniform(15, 45)),
        rng.uniform(20, 32),
        rng.uniform(0.8, 1.6) * tissue["spleen"],
        0.15,
    )
    stomach = rng.choice([tissue["muscle"], tissue["spleen"], 0.6 * tissue["fluid"], tissue["bone"]])
    organ((rng.uniform(10, 70), floor + rng.uniform(18, 40)), rng.uniform(18, 34), stomach, rng.uniform(0.2, 0.8), 3)
    liver = rng.uniform(0.8, 1.6) * tissue["liver"] * (1 + 0.08 * broad + 0.06 * lumps + 0.07 * medium + 0.08 * fine)
    veins = np.clip(2.5 * (0.8 * medium + 0.5 * lumps - rng.uniform(1.1, 2.0)), 0, 1)
    radii = rng.uniform(35, 80), rng.uniform(28, 55), 150.0
    place = rng.uniform(-70, 0), floor + 0.8 * radii[1] + rng.uniform(-10, 4), 60.0
    scene.blob(place, radii, abdomen, liver + rng.uniform(0, 0.5) * veins, 0.0, 3 * broad + lumps, rng.uniform(2, 7))


def _vessels(
    rng: np.random.Generator, scene: Scene, heart: Heart, textures: dict[int, np.ndarray], inside: np.ndarray
) -> None:
    """Vessels in their fat, auricle and coronary sinus at the base and the descending aorta; and the spine."""
    tissue, (_, medium, lumps, _) = scene.tissue, textures.values()
    marrow = 0.5 * tissue["marrow"] * (1 + 0.15 * medium)
    spine = rng.uniform(90, 112), rng.uniform(30, 70), 0.0
    scene.blob(spine, (20, 26, 400), inside, tissue["bone"], 0.0, lumps)
    scene.blob(spine, (17, 23, 400), inside, marrow, marrow, lumps)
    around = 1.25 * heart.radius
    for (u0, v0), size, height, sheath in (
        ((around * rng.normal(0.0, 0.2), -0.9 * around), 13, rng.uniform(4, 16), 1),
        ((around * rng.normal(0.2, 0.2), 0.95 * around), 5, rng.uniform(4, 16), 5),
        ((spine[0] - rng.uniform(26, 40), spine[1] - rng.uniform(-10, 20)), 11, 400, 0.5),
    ):
        radii = size * rng.uniform(0.8, 1.5), size * rng.uniform(0.6, 1.0), height
        scene.blob((u0, v0, 0.0), [r + sheath for r in radii], inside, 0.0, tissue["fat"], 2 * lumps, 4)
        blood = rng.uniform(0.5, 1.0) * (1 + 0.12 * lumps + 0.06 * medium)
        scene.blob((u0, v0, 0.0), radii, inside, blood, 0.0, lumps)


def _paint_heart(rng: np.random.Generator, scene: Scene, heart: Heart, phase: float) -> np.ndarray:
    """Paint the heart at a phase over its surroundings; returns the mask, (Z, X, Y)."""
    window = scene.grid.window(-20, 8, 105)
    part, tissue = scene.part(*window), scene.tissue
    fine, medium, coarse = (_texture(rng, part.grid, scale) for scale in (2.8, 5, 16))
    u, v = part.grid.body()
    c, s = math.cos(heart.axis - math.pi), math.sin(heart.axis - math.pi)
    held = rng.choice([1, 3], (len(part.grid.s), 1, 1), p=[0.9, 0.1])  # a breath a slice, some not held as well
    breath = (held * rng.normal(0, 0.6, (2, len(part.grid.s), 1, 1))).astype(np.float32)  # mm
    height = (part.grid.s - heart.descent * phase) / (heart.length - heart.descent * phase)
    t = height.astype(np.float32)[:, None, None]
    bend = rng.normal(0, 4, (2, 1, 1, 1)).astype(np.float32) * np.clip(t, 0, 1) ** 2  # mm: the apex lies aside
    a, b = c * u + s * v + breath[0] + bend[0], c * v - s * u + breath[1] + bend[1]

    # Depths (mm) below the three surfaces, and how far each moves from slice to slice, which blurs its edge.
    endo_radii, epi_radii = left_ventricle(heart, height, phase)
    right_radii = right_ventricle(heart, height, epi_radii, phase)
    slant = np.gradient(right_radii, ANGLES[1] - ANGLES[0], axis=1) / np.maximum(right_radii, 5)  # of the free wall
    toward, distance = _toward(a, b), np.hypot(a, b)
    endo, epi, right, straight = (
        radii.astype(np.float32).ravel()[toward]
        for radii in (endo_radii, epi_radii, right_radii, np.maximum(1 / np.hypot(1, slant), 0.4))
    )
    endo, epi, right = endo - distance, epi - distance, right - distance
    right = np.where(right > 0, straight, np.maximum(straight, np.float32(0.8))) * right
    mask = np.zeros(scene.water.shape, np.uint8)
    labels = mask[:, *window]
    labels[(right > 0) & (epi <= 0) & (t >= 0) & (t < 0.98)] = 1
    labels[(epi > 0) & (t >= 0)] = 2
    labels[(endo > 0) & (t >= 0) & (endo_radii.mean(axis=1) > 2)[:, None, None]] = 3

    # The painted surfaces are uneven, as their tissue is.
    endo, epi, right = endo + 0.4 * medium, epi + 0.5 * medium + 0.3 * coarse, right + 0.6 * medium + 0.4 * coarse
    endo_blur, epi_blur, right_blur = (
        np.clip(np.abs(np.gradient(radii.mean(axis=1))), 0, 12)[:, None, None].astype(np.float32)
        for radii in (endo_radii, epi_radii, right_radii)
    )

    # The pericardium bridges the grooves between the ventricles; fat fills them, and lies outside in the corners at
    # the chest wall and around the apex. Beside the lung there is hardly any.
    around = np.arctan2(b, a)
    corners = 8 * np.exp(-(((around - 2.5) / 0.6) ** 2)) + 5 * np.exp(-(((around + 2.1) / 0.6) ** 2))
    patches = 4 * _texture(rng, part.grid, 40, 1) + 0.5 * coarse
    beside = np.clip((right_radii - epi_radii) / 8, 0, 1).astype(np.float32).ravel()[toward]  # 0 where there is none
    sac = 12 * np.logaddexp(epi / 12, (right + 3 - 40 * (1 - beside)) / 12)
    thickness = np.clip(heart.fat * (corners + patches - 4 - a / 10 + (t > 0.8) * (2 - a / 10)), -9, 16)
    fat = tissue["fat"] * (1 + 0.15 * medium + 0.2 * coarse)
    part.paint(part.edge(np.minimum(sac, epi + 8), 3) * np.clip(0.5 + 0.3 * coarse, 0, 1), 0.7 * tissue["muscle"])
    part.paint(part.edge(sac + thickness, 6) * np.clip(1.1 + 0.3 * coarse, 0, 1), 0.0, fat)
    part.paint(0.5 * part.edge(-np.abs(sac - 1), 3) * np.clip(thickness / 4 - 1, 0, 1), 0.0)

    # The right ventricle: a thin wall, blood, strands of muscle from the wall inwards, the moderator band.
    muscle = tissue["heart"] * (1 + 0.1 * medium + 0.1 * coarse)
    part.paint(part.edge(right + 2.5 + 0.5 * coarse, right_blur), muscle)
    inside = part.edge(right, right_blur)
    swirls = _swirls(rng, a, b, coarse)
    inflow = rng.uniform(0.95, 1.2) * (1 + 0.06 * swirls + 0.04 * coarse + 0.03 * fine)
    part.paint(inside, tissue["venous blood"] * inflow)
    strands = 0.7 * _rays(rng, toward, 6) + 0.8 * medium + 0.4 * fine + 1.4 * (t - 0.4) + b / 60
    strands = np.clip(strands - 0.8 + (5 - right) / 4, 0, 0.85)
    across = np.abs(a * math.sin(heart.band) - b * math.cos(heart.band) + 2.5 * coarse)
    strands = np.maximum(
        strands, np.clip(0.4 + 0.5 * coarse, 0, 0.8) * np.clip(2.5 - across, 0, 1) * (a < 0) * (np.abs(t - 0.55) < 0.12)
    )
    part.paint(inside * strands * heart.trabeculae, muscle)

    # The left ventricle: wall, blood that is fresh at the base and slow at the apex, and turbulent in places;
    # trabeculae (most at the lateral wall and the apex), papillary muscles.
    wall = np.where(t < 0, np.minimum(epi, endo + 2), epi)  # above the base lies the atrium
    part.paint(part.edge(wall, epi_blur), muscle)
    cavity = part.edge(endo, endo_blur)
    turbulent = np.clip(coarse + 0.5 * medium - 1.5 - t, 0, 0.5)
    flow = rng.uniform(0.95, 1.1, (len(t), 1, 1)).astype(np.float32) * (1.05 - 0.2 * t)
    part.paint(cavity, flow * (1 + 0.06 * swirls + 0.03 * coarse + 0.03 * fine - turbulent))
    lateral = 0.8 * a / np.maximum(distance, 1) + 1.2 * np.clip(t, 0, 0.9)  # the septum is smooth
    fringe = 0.3 * _rays(rng, toward, 8) + 0.6 * fine + 0.7 * medium + 0.9 * coarse + lateral - 1.1
    part.paint(cavity * np.clip(fringe + (4 - endo) / 3, 0, 0.9) * heart.trabeculae * (t > 0.1), muscle)
    for angle, gap, size, level in heart.papillary:
        rim = endo_radii[:, np.abs(from_angle(angle)).argmin(), None, None].astype(np.float32)
        grown = np.minimum(size * (1 + 0.25 * phase), 0.3 * rim) * np.sqrt(np.clip(1 - ((t - level) / 0.32) ** 2, 0, 1))
        far = np.clip(rim - gap * (1 - 0.6 * phase) - 0.6 * grown, 0, None)
        depth = grown * (1 + 0.3 * medium + 0.2 * coarse) - np.hypot(
            a - far * math.cos(angle), b - far * math.sin(angle)
        )
        part.paint(cavity * part.edge(depth, 3) * (grown > 0), muscle)

    # The root of the aorta, between the ventricles, and the outflow of the right one.
    root = 13 - np.hypot(a - 0.75 * heart.radius * math.cos(OUTFLOW), b - 0.75 * heart.radius * math.sin(OUTFLOW))
    above = np.clip(0.4 - 20 * t, 0, 1)
    part.paint(part.edge(root + 2) * above, muscle)
    part.paint(part.edge(root) * above, 1.1 * (1 - turbulent))

    return mask


def _place(rng: np.random.Generator, heart: Heart) -> tuple[Grid, float]:
    """Voxels that hold the heart, posed as in ACDC, and the distance between slices in mm."""
    pixel = round(float(rng.uniform(1.25, 1.8)), 4)
    long_side = int(np.clip(rng.uniform(330, 420) / pixel // 8 * 8, 200, 272))
    short_side = int(np.clip(long_side * rng.uniform(0.75, 0.95) // 8 * 8, 160, 256))
    across = rng.random() < 0.2  # the body then lies along the image's rows
    nx, ny = (long_side, short_side) if across else (short_side, long_side)
    turn = np.radians(rng.normal(68, 12) if across else rng.normal(0, 9))

    extent = 1.1 * heart.length + 8
    thickness = float(rng.choice([5.0, 6.5, 8.0, 10.0], p=[0.08, 0.02, 0.1, 0.8]))
    slices = max(6, math.ceil(extent / thickness))
    x = (np.arange(nx) - (nx - 1) / 2) * pixel + rng.normal(6, 9)
    y = (np.arange(ny) - (ny - 1) / 2) * pixel + rng.normal(4, 11)
    s = thickness * (np.arange(slices) + rng.uniform(0.05, 0.95))
    return Grid(x, y, s, pixel, turn), thickness


# Patients


def _beat(frames: int, end_systole: int, kick: float) -> np.ndarray:
    """How far every frame is from end-diastole (0) to end-systole (1), (frames,).

    Ejection up to the frame `end_systole` (from 1), fast filling, rest, and the atrium's kick at the end,
    which gives a share of the filling; then comes frame 1 again.
    """

    def ramp(start, stop):
        return 0.5 - 0.5 * np.cos(np.pi * np.clip((filling - start) / (stop - start), 0, 1))

    frame = np.arange(frames)
    last = end_systole - 1
    filling = np.clip((frame - last) / (frames - last), 0, 1)
    ejection = 0.5 - 0.5 * np.cos(np.pi * np.clip(frame / last, 0, 1))
    return np.where(frame <= last, ejection, 1 - (1 - kick) * ramp(0, 0.45) - kick * ramp(0.7, 1))


def make_patient(group: str, rng: np.random.Generator, cine: bool = False) -> tuple[dict, dict, dict]:
    """One synthetic patient at end-diastole and end-systole.

    Args:
        group: one of GROUPS.
        rng: decides everything else; the same state gives the same patient.
        cine: whether to make every other frame of the beat too, at a tenth of a second each.

    Returns:
        volumes: {"ED": Volume, "ES": Volume}; image float32 of whole numbers ≥ 0 and mask uint8, (X, Y, Z),
            the base first; spacing in mm. With `cine` also "cine", without mask, image (X, Y, Z, T).
        info: the values of ACDC's Info.cfg.
        truth: the group and what `heart.measure` tells.

    Raises:
        DataError: the group is unknown.
    """
    if group not in GROUPS:
        raise DataError(f"group {group!r} is unknown: take one of {', '.join(GROUPS)}")
    heart = draw_heart(group, rng)
    frames = int(rng.integers(20, 36))
    info = {
        "ED": 1,
        "ES": round(frames * rng.uniform(0.32, 0.45)),
        "Group": group,
        "Height": round(normal(rng, 170, 9)),
        "NbFrame": frames,
        "Weight": round(normal(rng, 77, 14)),
    }
    phases = _beat(frames, info["ES"], rng.uniform(0.15, 0.35))

    grid, thickness = _place(rng, heart)
    flip, repetition = math.radians(rng.uniform(45, 70)), rng.uniform(2.8, 3.5)
    scene, depth = _surroundings(rng, grid, heart, _signals(rng, flip, repetition))
    falloff = np.exp(-depth / rng.uniform(150, 600)) + rng.uniform(0, 0.25) * np.exp(-depth / 18)
    shading = falloff * np.exp(0.3 * _texture(rng, grid, 110, 1))
    scan = Scan(
        sampled=tuple(rng.uniform((0.6, 0.55), (1.0, 0.95))),
        taper=rng.uniform(0.1, 0.35),
        noise=(rng.uniform(0.006, 0.026) * np.exp(0.35 * np.clip(depth / 60, 0, 2))).astype(np.float32),
        ghost=rng.uniform(0, 0.03) * np.exp(2j * np.pi * rng.random()),
        ghost_at=int(rng.uniform(0.2, 0.5) * len(grid.y)),
    )
    scale, scanner, tissue = rng.uniform(170, 420), rng.integers(2**32), rng.integers(2**32)

    def frame(number):
        beat = scene.copy()
        mask = _paint_heart(np.random.default_rng(tissue), beat, heart, phases[number - 1])
        signal = shading * _resonate(np.random.default_rng(scanner), beat, flip, repetition)
        image = _acquire(np.random.default_rng([scanner, number]), signal, scan)
        image = np.rint(np.float32(scale) * image)
        return Volume(image.transpose(1, 2, 0), mask.transpose(1, 2, 0), (grid.pixel, grid.pixel, thickness))

    volumes = {phase: frame(info[phase]) for phase in ("ED", "ES")}
    if cine:
        done = {info[phase]: volume for phase, volume in volumes.items()}
        images = [(done.get(number) or frame(number)).image for number in range(1, frames + 1)]
        volumes["cine"] = Volume(np.stack(images, axis=-1), None, volumes["ED"].spacing)
    return volumes, info, {"group": group} | measure(heart)


# Files


def write_phantom(root: str | Path, patients: int = 50, seed: int = 0, cine: bool = False) -> Path:
    """Write a synthetic data set in ACDC's layout: root/training/patient001 and so on.

    The groups come in turn: patient001 is NOR, patient002 MINF, and so on. The seed and a patient's number
    alone decide the patient. The true measures of every heart stand in root/truth.csv, one row a patient. All
    is written to a temporary folder beside `root` and renamed at the end.

    Args:
        root: the folder to make; it may exist if it is empty.
        patients: how many, from 1 to 999.
        seed: the same seed gives the same bytes.
        cine: whether to write the whole beat too, as patientNNN_4d.nii.gz: seven times the time, 12 MB a patient.

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
            jobs = [pool.submit(_write_patient, whole / "training", i, seeds[i], cine) for i in range(patients)]
            try:
                truths = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        table = io.StringIO()
        writer = csv.DictWriter(table, truths[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(truths)
        (whole / "truth.csv").write_text(table.getvalue())
        if root.exists():
            root.rmdir()
        whole.rename(root)
    return root


def _write_patient(folder: Path, index: int, seed: np.random.SeedSequence, cine: bool) -> dict[str, str]:
    """Write one patient; returns its row of truth.csv."""
    volumes, info, truth = make_patient(GROUPS[index % len(GROUPS)], np.random.default_rng(seed), cine)
    name = f"patient{index + 1:03d}"
    (folder / name).mkdir(parents=True)
    (folder / name / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    for phase, volume in volumes.items():
        stem = f"{name}_4d" if phase == "cine" else f"{name}_frame{info[phase]:02d}"
        _write_nifti(folder / name / f"{stem}.nii.gz", volume.image.astype(np.int16), volume.spacing)
        if volume.mask is not None:
            _write_nifti(folder / name / f"{stem}_gt.nii.gz", volume.mask, volume.spacing)
    numbers = {key: value if key == "group" else f"{value:.3f}" for key, value in truth.items()}
    return {"patient": name} | numbers


def _write_nifti(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """A .nii.gz with ACDC's affine and no time of writing in it: equal voxels are equal bytes."""
    nifti = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    nifti.header.set_zooms((*spacing, 1.0)[: voxels.ndim])
    path.write_bytes(gzip.compress(nifti.to_bytes(), compresslevel=3, mtime=0))
