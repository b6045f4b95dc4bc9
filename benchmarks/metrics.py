"""Every pair of 1,000 generated and 1,900 real slices of 64×64 by SSIM, CC and MSE, against a loop over the pairs.

The loop is scikit-image's for SSIM, with the same window, and for MSE, and NumPy's corrcoef for CC. It runs over a
sample of the pairs, in the same run, and its time is scaled up. Prints a line a metric: how many times as fast, the
largest difference on the sample, and the peak memory of the whole process.
"""

import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from skimage.metrics import mean_squared_error, structural_similarity

from hcm_helpers.similarity import pairwise

GENERATED, REAL, SIZE, SAMPLE = 1000, 1900, 64, 400
SETTINGS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
PEERS = {
    "ssim": ("scikit-image", lambda x, y: structural_similarity(x, y, **SETTINGS)),
    "cc": ("NumPy's corrcoef", lambda x, y: np.corrcoef(x.ravel(), y.ravel())[0, 1]),
    "mse": ("scikit-image", mean_squared_error),
}


def slices(number: int, seed: int) -> np.ndarray:
    """Smooth random pictures in [0, 1], a share of them alike, so that the similarities are not all near 0."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    radius = rng.uniform(0.1, 0.4, (number, 1, 1))
    heart = 1 / (1 + np.exp(40 * (np.hypot(x, y) - radius)))
    return np.clip(0.8 * heart + rng.normal(0.1, 0.1, (number, SIZE, SIZE)), 0, 1).astype(np.float32)


def timed(function: Callable) -> tuple[object, float, float]:
    """What a call returns, its wall time and its processor time in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    generated, real = slices(GENERATED, 0), slices(REAL, 1)
    x, y = (torch.from_numpy(images)[:, None] for images in (generated, real))
    rows, columns = (np.random.default_rng(2).integers(n, size=SAMPLE) for n in (GENERATED, REAL))
    for metric, (peer, compare) in PEERS.items():
        pairwise(x[:2], y[:2], metric)  # warm up
        values, wall, processor = timed(lambda metric=metric: pairwise(x, y, metric))
        loop = lambda compare=compare: [compare(generated[i], real[j]) for i, j in zip(rows, columns, strict=True)]  # noqa: E731
        theirs, wall_loop, processor_loop = timed(loop)
        scale = GENERATED * REAL / SAMPLE
        difference = np.abs(values.numpy()[rows, columns] - theirs).max()
        print(
            f"{metric:<5}{GENERATED * REAL:,} pairs in {wall:.1f} s, {wall_loop * scale / wall:.0f} times as fast as a "
            f"loop over {peer} ({1000 * wall_loop / SAMPLE:.2f} ms a pair); {processor_loop * scale / processor:.0f} "
            f"times by processor time; largest difference {difference:.0e}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory {peak / 1e9:.2f} GB, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
