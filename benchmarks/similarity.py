"""Our SSIM against scikit-image's on the same 200 pairs of 64×64, in one run on one core: prints one line."""

import time

import numpy as np
import torch
from skimage.metrics import structural_similarity

from hcm_helpers.similarity import pairwise, ssim


def milliseconds(function, repeats: int = 10) -> float:
    """The shortest processor time of some runs: what the work takes when nothing disturbs it."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    torch.set_num_threads(1)  # as many as scikit-image uses
    x, y = (np.random.default_rng(n).random((n, 64, 64), dtype=np.float32) for n in (10, 20))
    first, second = np.repeat(x, 20, axis=0), np.tile(y, (10, 1, 1))  # each of x with each of y
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}

    def theirs() -> np.ndarray:
        return np.array([structural_similarity(*pair, **settings) for pair in zip(first, second, strict=True)])

    def pair_by_pair() -> torch.Tensor:
        return ssim(torch.from_numpy(first)[:, None], torch.from_numpy(second)[:, None])

    def all_pairs() -> torch.Tensor:
        return pairwise(torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None]).flatten()

    values = theirs()
    difference = max(np.abs(ours().numpy() - values).max() for ours in (pair_by_pair, all_pairs))
    peer, paired, crossed = milliseconds(theirs), milliseconds(pair_by_pair), milliseconds(all_pairs)
    print(
        f"SSIM of 200 pairs against scikit-image: {peer / paired:.1f} times as fast pair by pair, "
        f"{peer / crossed:.1f} times as all pairs of 10 × 20 images "
        f"({peer:.0f}, {paired:.0f} and {crossed:.0f} ms; largest difference {difference:.0e})"
    )


if __name__ == "__main__":
    main()
