"""What several processes, checkpoints and a resume cost in training: the diffusion model of profile cpu at 64×64.

    python benchmarks/parallel.py [PROCESSES]

Prints images a second of one process with one thread and of several with one thread each, on the same batches; what
share of a training its checkpoints take; and the seconds that going on from one takes.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from hcm_helpers import checkpoint, training
from hcm_helpers.acdc import GROUPS
from hcm_helpers.models.diffusion import Diffusion
from hcm_helpers.parallel import ShareDone
from hcm_helpers.slices import Slices

BATCHES, EPOCHS, STEPS = (16, 32), 6, 16  # of profile cpu, and of those for a GPU


def model() -> Diffusion:
    torch.manual_seed(0)
    return Diffusion(64, 32, augment=0.3, dropout=0.1, num_classes=len(GROUPS), sampling_steps=10)


def noise(n: int) -> Slices:
    images = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(n)) * 2 - 1
    return Slices(images, torch.arange(n) % 5, torch.zeros(n, 64, 64).byte(), pd.DataFrame({"patient": range(n)}), "")


def train(folder: Path, epochs: int = EPOCHS, batch_size: int = 16, **settings) -> pd.DataFrame:
    settings = {"batch_size": batch_size, "ema_decay": [0.98, 0.995], "validate_every": 100} | settings
    return training.fit(model(), noise(STEPS * batch_size), noise(16), folder, epochs=epochs, **settings)


def one_of_several(folder: Path, batch_size: int) -> None:
    torch.set_num_threads(1)
    try:
        history = train(folder, batch_size=batch_size, checkpoint_seconds=1e9)
    except ShareDone:
        return
    seconds = history["seconds"].diff().iloc[1:-1].median()  # the first epoch warms up, the last one validates
    print(f"rate {STEPS * batch_size / seconds:.1f}")


def rate(processes: int, batch_size: int, folder: Path) -> float:
    """Images a second."""
    place = {"HCM_DEVICES": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    place |= {"OMP_NUM_THREADS": "1", "HCM_HEADLESS": "1"}
    command = [sys.executable, __file__, "--rank", folder, str(batch_size)]
    started = [
        subprocess.Popen(command, env=os.environ | place | {"LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    return float(outputs[0].split("rate ")[1])


def main() -> None:
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for batch_size in BATCHES:
            alone, together = (rate(n, batch_size, folder / f"{n}_{batch_size}") for n in (1, processes))
            print(
                f"batches of {batch_size}: one process {alone:.1f} images/s, {processes} of one thread each "
                f"{together:.1f}, {together / alone:.2f} times"
            )

        torch.set_num_threads(1)
        seconds: list[float] = []
        save = checkpoint.save_state

        def timed(*arguments) -> None:
            start = time.perf_counter()
            save(*arguments)
            seconds.append(time.perf_counter() - start)

        checkpoint.save_state = timed
        train(folder / "saved", epochs=1, checkpoint_seconds=1.0)
        taken = sorted(seconds)[len(seconds) // 2]
        every = max(10.0, 100 * taken)
        size = (folder / "saved/checkpoint/last.safetensors").stat().st_size
        share = f"{100 * taken / every:.2f} % of the time"
        print(f"a checkpoint of {size / 1e6:.0f} MB takes {taken:.2f} s, every {every:.0f} s: {share}")

        first = {}
        training.take_step = stop
        for resume in (True, False):  # anew would begin with a checkpoint of its own
            start = time.perf_counter()
            with suppress(Stopped):
                train(folder / "saved", epochs=2, resume=resume)
            first[resume] = time.perf_counter() - start
        print(f"to the first step: {first[False]:.2f} s anew, {first[True]:.2f} s from a checkpoint")


class Stopped(Exception):
    """The first step would be taken now."""


def stop(*arguments) -> None:
    """In the place of `training.take_step`."""
    raise Stopped


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        one_of_several(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
