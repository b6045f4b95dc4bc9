"""Slices of drawn hearts, made in milliseconds: a ring in a background that each patient has of its own."""

import numpy as np
import pandas as pd
import torch

from hcm_helpers.acdc import GROUPS
from hcm_helpers.slices import Slices

WALLS = {"NOR": 3.0, "MINF": 2.0, "DCM": 1.0, "HCM": 5.5, "RV": 4.0}  # pixels


def ring_slices(numbers, groups=GROUPS, size=32) -> Slices:
    """Ten slices a patient, two phases of five positions; patient i is of the i-th group, in turn.

    The wall is as thick as the group's, the cavity shrinks towards the apex and at end-systole.
    """
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    images, rows = [], []
    for number in numbers:
        rng = np.random.default_rng(number)
        group = groups[number % len(groups)]
        waves = [(*rng.normal(0, 2 / size, 2), *rng.uniform(0, 2 * np.pi, 1)) for _ in range(4)]
        background = sum(np.cos(2 * np.pi * (a * x + b * y) + shift) for a, b, shift in waves) * 0.2 - 0.3
        wall, radius = WALLS[group] + rng.uniform(-0.2, 0.2), rng.uniform(5.5, 6.5)
        for phase in ("ED", "ES"):
            for position in (0.0, 0.25, 0.5, 0.75, 1.0):
                inner = radius * (1 - 0.5 * position) * (0.7 if phase == "ES" else 1)
                r = np.hypot(x, y)
                image = np.where(r < inner, 0.9, np.where(r < inner + wall, -0.9, background))
                images.append(image + rng.normal(0, 0.05, image.shape))
                rows.append((f"patient{number:03d}", group, phase, position))
    manifest = pd.DataFrame(rows, columns=["patient", "group", "phase", "position"])
    labels = torch.tensor([GROUPS.index(group) for group in manifest["group"]])
    tensor = torch.from_numpy(np.clip(images, -1, 1)).float()[:, None]
    return Slices(tensor, labels, torch.zeros(len(tensor), size, size, dtype=torch.uint8), manifest, "fingerprint")
