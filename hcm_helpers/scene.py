"""The phantom's paper and brush: its voxels, the signals of water and fat in them, and random textures.

Coordinates in mm, with the origin on the long axis of the left ventricle: (x, y) the image's; (u, v) the
body's, to the back and to the feet; (a, b) and t the heart's; s along the long axis from base to apex. Arrays
are (Z, X, Y).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from hcm_helpers.heart import ANGLES


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


def texture(rng: np.random.Generator, grid: Grid, scale: float, slices: int | None = None) -> np.ndarray:
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


def swirls(rng: np.random.Generator, a: np.ndarray, b: np.ndarray, bend: np.ndarray) -> np.ndarray:
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


def rays(rng: np.random.Generator, toward: np.ndarray, width: float) -> np.ndarray:
    """Noise of unit variance that changes with the direction only, over `width` ANGLES: streaks towards the axis."""
    noise = rng.standard_normal((len(toward), len(ANGLES)), dtype=np.float32)
    noise = gaussian_filter(noise, (0, width / 2), mode="wrap") * np.float32((width * np.sqrt(np.pi)) ** 0.5)
    return noise.ravel()[toward]


def toward_axis(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Index into the contours of all slices, flattened, in the direction of every point, (Z, X, Y)."""
    turns = (np.arctan2(b, a) + np.pi) * (len(ANGLES) / (2 * np.pi)) + 0.5
    return turns.astype(np.int32) % len(ANGLES) + len(ANGLES) * np.arange(len(a), dtype=np.int32)[:, None, None]
