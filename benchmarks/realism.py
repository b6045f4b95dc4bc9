"""How easily a small network tells the phantom from real patients: `python benchmarks/realism.py data/acdc`.

64×64 slices of the real training patients and of as many phantom patients; half of the patients of each train the
network, the others are told apart. An AUC of 0.5 would mean that it cannot.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from hcm_helpers.acdc import find_patients
from hcm_helpers.phantom import write_phantom
from hcm_helpers.slices import Slices, prepare

EPOCHS, SEEDS, BATCH = 3, 3, 32


def halves(slices: Slices, rng: np.random.Generator) -> list[torch.Tensor]:
    """The images of one half of the patients, and of the other."""
    patients = rng.permutation(slices.manifest["patient"].unique())
    first = slices.manifest["patient"].isin(patients[: len(patients) // 2]).to_numpy(copy=True)
    return [slices.images[first], slices.images[~first]]


def auc(real: Slices, phantom: Slices, seed: int) -> float:
    """AUC, on patients it has not seen, of a network trained for EPOCHS."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    seen, held_out = zip(halves(real, rng), halves(phantom, rng), strict=True)
    layers = []
    for channels, wider in ((1, 16), (16, 32), (32, 64), (64, 64)):  # 64×64 → 4×4
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    x, y = torch.cat(seen), torch.cat([torch.full((len(s),), float(i)) for i, s in enumerate(seen)])
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH)[:-1]:
            loss = F.binary_cross_entropy_with_logits(network(x[rows])[:, 0], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        scores = [network(images)[:, 0].numpy() for images in held_out]
    truth = np.repeat([0, 1], [len(s) for s in scores])
    return float(roc_auc_score(truth, np.concatenate(scores)))


def main() -> None:
    if len(sys.argv) != 2:
        print("skipped: name the folder of ACDC, as in `python benchmarks/realism.py data/acdc`")
        return
    with tempfile.TemporaryDirectory() as folder:
        patients = [patient for patient in find_patients(sys.argv[1]) if patient.official_split == "training"]
        real = prepare(patients, Path(folder) / "real")
        phantom = prepare(write_phantom(Path(folder) / "phantom", len(patients), 1), Path(folder) / "slices")
        found = [auc(real, phantom, seed) for seed in range(SEEDS)]
    print(
        f"AUC of real against phantom, {EPOCHS} epochs, seeds 0 to {SEEDS - 1}:", *(f"{value:.3f}" for value in found)
    )


if __name__ == "__main__":
    main()
