"""The synthetic heart of the phantom: its surfaces, its beat, and what is true of it.

A left ventricle is two surfaces around its long axis, endocardium and epicardium, as radius by height and
angle. The right ventricle leans on the septum: its free wall is a radius around the same axis. The
heart is drawn at end-diastole; every other moment follows from moving the base towards the apex and the
endocardium inwards while the wall keeps its volume. Volumes, ejection fractions and masses follow the
published groups of ACDC (Bernard et al., IEEE TMI 37(11), 2018); no value is measured on a single patient.

Coordinates in mm, with the origin on the long axis of the left ventricle: (a, b) in the plane, with the right
ventricle at −a and the diaphragm at b; s along the long axis from base to apex, and t the same as a share of
the cavity's length. A table is (HEIGHTS, ANGLES).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import brentq

ANGLES = np.linspace(-np.pi, np.pi, 512, endpoint=False)  # 0 = lateral, π/2 = inferior, ±π = septum
HEIGHTS = (np.arange(48) + 0.5) / 48  # t at which a heart's tables stand and its volumes are integrated
WIDEST = 0.25  # t at which the cavity, a truncated ellipsoid, is widest
OUTFLOW = -2.3  # angle of the aortic root, rad: between the anterior wall and the septum

# Mean and standard deviation within each group, volumes in ml; wall: mean thickness in mm; descent: how far
# the base moves towards the apex by end-systole, in mm.
CLASSES = {
    "NOR": {"volume": (130, 27), "ejection": (0.62, 0.05), "wall": (7.5, 0.7), "descent": (12, 1.5)},
    "MINF": {"volume": (181, 42), "ejection": (0.31, 0.07), "wall": (9.1, 0.8), "descent": (7, 1.0)},
    "DCM": {"volume": (283, 46), "ejection": (0.20, 0.06), "wall": (7.8, 0.8), "descent": (4, 0.7)},
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
    """What is true of one heart, whatever the slices and the phase."""

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
    right_ripple: np.ndarray  # table: width of the right ventricle as a share of the usual
    right_span: float  # its angle as a share of the usual
    lean: float  # of its free wall towards the acute margin, rad
    axis: float  # direction from the left ventricle to the right one in the body, rad
    papillary: list[tuple[float, float, float, float]]  # heads: angle, gap to the wall, radius (mm), height t
    trabeculae: float  # how dark
    band: float  # direction in which the moderator band crosses the right ventricle, rad
    fat: float  # how much around the heart


# Randomness and tables


def normal(rng: np.random.Generator, mean: float, sd: float) -> float:
    """A normal draw, held within 1.8 standard deviations so that no heart is impossible."""
    return mean + sd * float(np.clip(rng.standard_normal(), -1.8, 1.8))


def _bump(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-0.5 * (distance / width) ** 2)


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-distance / width))


def from_angle(angle: float) -> np.ndarray:
    """Distance of ANGLES from an angle, in [−π, π), (1, ANGLES)."""
    return ((ANGLES - angle + np.pi) % (2 * np.pi) - np.pi)[None, :]


def _waves(rng: np.random.Generator, amplitudes: dict[int, float]) -> np.ndarray:
    """A table of 1 plus random waves around the circle, by order, that turn slowly from base to apex."""
    waves = np.ones((len(HEIGHTS), len(ANGLES)))
    for order, amplitude in amplitudes.items():
        phase = rng.uniform(0, 2 * np.pi) + rng.standard_normal() * HEIGHTS[:, None]
        waves += rng.normal(0, amplitude) * np.cos(order * ANGLES + phase)
    return waves


def _rows(table: np.ndarray, t: np.ndarray) -> np.ndarray:
    """A table's rows at other heights, linearly interpolated, (len(t), ANGLES)."""
    row = np.clip(t * len(HEIGHTS) - 0.5, 0, len(HEIGHTS) - 1)
    low = np.minimum(row.astype(int), len(HEIGHTS) - 2)
    return table[low] + (row - low)[:, None] * (table[low + 1] - table[low])


# Drawing


def draw_heart(group: str, rng: np.random.Generator) -> Heart:
    """A heart of a group, one of GROUPS, at random."""
    draw = {name: normal(rng, *CLASSES[group][name]) for name in CLASSES[group]}
    right = {name: normal(rng, *RIGHT_VENTRICLE[group][name]) for name in RIGHT_VENTRICLE[group]}
    length = min(80 * (draw["volume"] / 130) ** 0.28 * rng.uniform(0.95, 1.05), 98)
    height, septum = HEIGHTS[:, None], from_angle(np.pi)
    wall = draw["wall"] * (1 + 0.08 * np.cos(septum)) * _waves(rng, {2: 0.09, 3: 0.07, 4: 0.04})
    motion = _waves(rng, {1: 0.05, 2: 0.05, 3: 0.04})
    ripple = _waves(rng, {2: 0.045, 3: 0.03, 4: 0.018, 5: 0.01, 6: 0.008, 8: 0.006, 11: 0.005})
    if group == "HCM":
        wall = wall + _hypertrophy(rng, draw["wall"])
        motion = motion * (0.85 + 0.5 * height)  # the apex empties altogether
    elif group == "MINF":
        scar = _bump(from_angle(rng.uniform(-np.pi, np.pi)), rng.uniform(0.6, 1.1))
        scar = scar * _step(height - rng.uniform(0.05, 0.35), 0.08)
        wall = wall * (1 - rng.uniform(0.4, 0.55) * scar)
        motion = motion * (1 - scar)
    elif group == "RV":
        ripple = ripple * (1 - rng.uniform(0.05, 0.18) * _bump(septum, 0.6))  # the septum is pressed flat
    wall = wall * (1 - 0.65 * _bump(from_angle(OUTFLOW), 0.4) * _step(0.09 - height, 0.015))
    heads = [
        (normal(rng, at, 0.12), rng.uniform(-3, 4), rng.uniform(3, 6.5), rng.uniform(0.4, 0.6))
        for at in (-0.85, -0.6, 1.0, 1.25)
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
        right_ripple=_waves(rng, {2: 0.08, 3: 0.09, 4: 0.06, 5: 0.05, 7: 0.03, 9: 0.02}),
        right_span=normal(rng, 1, 0.08),
        lean=normal(rng, 0.33, 0.15),
        axis=math.radians(normal(rng, 163, 13)),
        papillary=heads,
        trabeculae=rng.uniform(0.7, 1.0),
        band=math.pi + normal(rng, 0.0, 0.3),
        fat=0.3 + rng.gamma(2.0, 0.25),
    )


def _hypertrophy(rng: np.random.Generator, wall: float) -> np.ndarray:
    """Table of what HCM adds to the wall (mm): at the septum in most, else at the apex or all around."""
    peak = float(np.clip(15.5 + rng.gamma(2.0, 1.8), None, 27)) - wall
    height, septum = HEIGHTS[:, None], from_angle(np.pi + normal(rng, 0.45, 0.3))
    pattern = rng.choice(["septal", "apical", "concentric"], p=[0.65, 0.15, 0.2])
    if pattern == "septal":  # thickest in the basal to middle anteroseptal segments
        spread = _bump(height - rng.uniform(0.3, 0.45), rng.uniform(0.25, 0.4))
        shape = _bump(septum, rng.uniform(0.6, 1.1)) * spread
    elif pattern == "apical":
        shape = (0.75 + 0.25 * np.cos(septum)) * _step(height - 0.55, 0.07)
    else:
        shape = (0.72 + 0.28 * _bump(septum, 0.9)) * _bump(height - 0.4, 0.45)
    return peak * shape / shape.max()


# Surfaces at any moment of the beat


def _ellipsoid(t: np.ndarray, apex: np.ndarray | float) -> np.ndarray:
    """Radius at height t of an ellipsoid of radius 1 at WIDEST that ends at `apex`; level above the base."""
    return np.sqrt(np.clip(1 - ((np.maximum(t, 0) - WIDEST) / (apex - WIDEST)) ** 2, 0, None))


def _apex(heart: Heart, t: np.ndarray) -> np.ndarray:
    """t at which the epicardium ends, as seen from height t."""
    return 1 + 0.8 * _rows(heart.wall, t).mean(axis=1) / heart.length


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
    ejected = heart.ejection * phase

    def excess(inward):
        return 1 - shortening * ((rest * shrink(inward, motion)) ** 2).sum() / (rest**2).sum() - ejected

    inward = brentq(excess, -0.2, 1.5, xtol=1e-6)
    wall, ripple = _rows(heart.wall, t), _rows(heart.ripple, t)
    endo = heart.radius * ripple * _ellipsoid(t, 1.0)[:, None]
    epi = (heart.radius * ripple + wall) * _ellipsoid(t, _apex(heart, t))[:, None]
    moved = endo * shrink(inward, _rows(heart.motion, t))
    return moved, np.sqrt(moved**2 + (epi**2 - endo**2) / shortening)  # the wall keeps its volume


def right_ventricle(heart: Heart, t: np.ndarray, epi: np.ndarray, phase: float) -> np.ndarray:
    """The free wall's inner surface as radii in mm around the left ventricle's axis, (len(t), ANGLES).

    Where it is below the epicardium of the left ventricle, there is no right ventricle.

    Args:
        heart: as drawn.
        t: heights, as above.
        epi: the left ventricle's epicardium there, mm.
        phase: as above; the width follows from the right ventricle's volume.
    """
    heights = (np.arange(24) + 0.5) / 24  # half as many as HEIGHTS are enough
    wall = left_ventricle(heart, heights, phase)[1]
    slab = (heart.length - heart.descent * phase) / len(heights) / 1000  # ml for 1 mm²

    volume = heart.right_volume * (1 - heart.right_ejection * phase)

    def excess(width):
        free = np.maximum(_free_wall(heart, heights, wall, width), wall)
        return np.pi * (free**2 - wall**2).mean(axis=1).sum() * slab - volume

    width = brentq(excess, 0.0, 120.0, xtol=1e-4)
    return _free_wall(heart, t, epi, width)


def _free_wall(heart: Heart, t: np.ndarray, epi: np.ndarray, width: float) -> np.ndarray:
    """A right ventricle that reaches `width` mm beyond the septum at the base; as in `right_ventricle`.

    A rounded polygon: the free wall, straight and leaning so that the acute margin lies below; the roof, open near
    the base towards the outflow, and the floor; the two insertions at the left ventricle, about 50° from the septum's
    middle at the base and 35° near the apex, as ACDC's; and the diaphragm, on which it lies with the left ventricle.
    """
    low = np.clip(t, 0, 1)[:, None]
    front = from_angle(np.pi)  # > 0 towards the outflow, < 0 towards the diaphragm
    septum = epi[:, np.abs(front[0]).argmin(), None]
    taper = np.clip(1 - (low / 0.97) ** 1.9, 0, None) ** 0.75
    grown = width * taper * _rows(heart.right_ripple, t)
    insertion = heart.right_span * (0.93 - 0.36 * low)
    height = 1.4 * septum * np.sin(insertion)
    sides = (
        (np.cos(front - heart.lean), septum * np.cos(heart.lean) + grown),  # the way a side faces, its distance
        (np.sin(front), height + 0.4 * grown + 6 * np.clip(1 - 2.5 * low, 0, 1)),
        (-np.sin(front), height + 0.3 * grown),
        (np.sin(ANGLES), epi[:, np.abs(from_angle(np.pi / 2)).argmin(), None] + 2),
        (np.sin(np.abs(front) - insertion), 0.25 * septum),
        (-np.cos(front), 0.5 * septum),
    )
    near = (np.clip(facing, 0, None) / np.maximum(far, 1) for facing, far in sides)
    free = np.cbrt(1 / sum(share * share * share for share in near))  # the nearest side, less where two meet
    return gaussian_filter1d(free, len(ANGLES) / 45, mode="wrap")  # over 8°: the corners are round


def hull(radii: np.ndarray) -> np.ndarray:
    """Convex hull of contours around the axis; contours and hull are radii in mm, (slices, ANGLES).

    The hull lies within every line that touches the contour; 64 of these lines are enough for a sac of fat.
    """
    every = radii[:, ::8, None]
    apart = np.cos(ANGLES[::8, None] - ANGLES[None, ::8])
    support = (every * apart).max(axis=1)  # (slices, directions): how far the contour reaches
    facing = np.cos(ANGLES[:, None] - ANGLES[None, ::8])
    return np.where(facing > 0.1, support[:, None, :] / np.maximum(facing, 0.1), np.inf).min(axis=2)


# What is true


def measure(heart: Heart) -> dict[str, float]:
    """The true size of a heart: what a perfect reader would measure.

    Returns:
        Volumes in ml at end-diastole and end-systole, ejection fractions, myocardial mass in g (1.05 g/ml),
        and in mm the wall at end-diastole, measured in the short-axis plane away from the long axis: its
        maximum above t = 0.9 and its mean in each AHA segment. Segments (Cerqueira et al., Circulation
        105(4), 2002): 1 to 6 basal, 7 to 12 middle (anterior, anteroseptal, inferoseptal, inferior,
        inferolateral, anterolateral), 13 to 16 apical (anterior, septal, inferior, lateral), thirds of the
        cavity's length; 17 the apex, along the long axis.
    """
    endo, epi = left_ventricle(heart, HEIGHTS, 0.0)
    thickness = epi - endo
    end = float(_apex(heart, np.array([1.0]))[0])
    tip = 1 + (end - 1) * HEIGHTS  # beyond the cavity there is muscle only
    cap = left_ventricle(heart, tip, 0.0)[1]
    muscle = np.pi * heart.length * ((epi**2 - endo**2).mean() + (end - 1) * (cap**2).mean()) / 1000  # ml
    truth = {
        "lv_ed_ml": heart.volume,
        "lv_es_ml": heart.volume * (1 - heart.ejection),
        "lv_ef": heart.ejection,
        "rv_ed_ml": heart.right_volume,
        "rv_es_ml": heart.right_volume * (1 - heart.right_ejection),
        "rv_ef": heart.right_ejection,
        "mass_g": 1.05 * muscle,
        "max_wall_mm": thickness[HEIGHTS < 0.9].max(),
    }
    turned = (-ANGLES - np.pi / 2) % (2 * np.pi)  # from the anterior wall over the septum to the diaphragm
    for first, sectors, low, high in ((1, 6, 0, 1 / 3), (7, 6, 1 / 3, 2 / 3), (13, 4, 2 / 3, 1)):
        level = thickness[(low <= HEIGHTS) & (high > HEIGHTS)]
        sector = np.round(turned / (2 * np.pi) * sectors).astype(int) % sectors
        for number in range(sectors):
            truth[f"wall_{first + number:02d}_mm"] = level[:, sector == number].mean()
    truth["wall_17_mm"] = (end - 1) * heart.length
    return {name: float(value) for name, value in truth.items()}
