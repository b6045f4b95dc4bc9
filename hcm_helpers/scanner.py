"""The phantom's scanner: the signal of each tissue, water and fat at the echo, and the image from a k-space."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import fft

from hcm_helpers.heart import normal
from hcm_helpers.scene import Scene, texture

# T1 and T2 in ms at 1.5 T and density of protons; blood is fresh, unsaturated, and gains through its density.
TISSUES = {
    "blood": (1550, 240, 1.25),
    "venous blood": (1550, 170, 1.12),
    "heart": (1000, 52, 0.88),
    "muscle": (1010, 38, 0.90),
    "fat": (300, 70, 0.95),
    "marrow": (550, 55, 0.70),
    "liver": (600, 38, 0.75),
    "spleen": (1050, 75, 0.80),
    "fluid": (2500, 800, 0.60),
    "bone": (1000, 30, 0.10),
    "lung": (1200, 40, 0.48),
}
FAT_SHIFT = -220.0  # Hz from water at 1.5 T


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


def tissue_signals(rng: np.random.Generator, flip: float, repetition: float) -> dict[str, float]:
    """The signal of each tissue, as a share of blood's; fat's and marrow's at fat's own resonance.

    T1 and T2 differ from body to body.
    """
    signals = {}
    for name, (t1, t2, density) in TISSUES.items():
        t1, t2 = t1 * math.exp(normal(rng, 0, 0.06)), t2 * math.exp(normal(rng, 0, 0.1))
        shift = FAT_SHIFT if name in ("fat", "marrow") else 0.0
        signals[name] = density * float(steady_state(t1, t2, flip, repetition, shift))
    return {name: value / signals["blood"] for name, value in signals.items()}


def resonate(rng: np.random.Generator, scene: Scene, flip: float, repetition: float) -> np.ndarray:
    """The magnetisation at the echo, complex (Z, X, Y): water and fat, each by its distance from the resonance.

    Off resonance the signal fades in bands, seldom in the heart, on which the scanner shims, and from one band to
    the next its phase turns by half a turn. Fat lies a band beyond water, so that the two are opposed where they
    meet in a voxel; not quite so when the echo does not stand in the middle of the repetition. Along the first axis
    fat is read out displaced.
    """
    u, v = scene.grid.body()
    far = np.hypot(u, v) / 100
    field = rng.uniform(10, 30) * texture(rng, scene.grid, 60, 1) * (0.5 + far)
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


def acquire(rng: np.random.Generator, signal: np.ndarray, scan: Scan) -> np.ndarray:
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
