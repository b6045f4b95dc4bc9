"""One of several processes that train together, for test_parallel.py: python ranks.py FOLDER.

The environment tells it its place; its notes go to FOLDER/RANK.json.
"""

import json
import sys
from pathlib import Path

import torch
from test_parallel import MODELS, Noting, losses, slices

from hcm_helpers import checkpoint, training
from hcm_helpers.parallel import ShareDone


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.cpu.get_capabilities = dict  # float32: bf16 has two digits, too few to compare
    fabric = training.make_team()
    noted = {"losses": {name: losses(name, 50, fabric=fabric) for name in MODELS if fits(name, fabric.world_size)}}
    training.make_team = lambda: fabric
    model, written = Noting(), []
    for module in (training, checkpoint):
        module.write_whole = note(written, module.write_whole)
    settings = {"epochs": 3, "batch_size": 12, "num_snapshots": 1, "checkpoint_seconds": 0.0}
    try:
        training.fit(model, slices(48), slices(21, seed=1), folder / "fit", **settings)
    except ShareDone:
        noted["done"] = True
    noted |= {"seen": model.seen, "written": written}
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps(noted))


def fits(name: str, num_processes: int) -> bool:
    """Whether a model has its turn; those made of the DCGAN's layers talk much, which takes four processes a minute."""
    return num_processes < 4 or name in ("vae", "gan", "diffusion")


def note(names: list[str], write):
    """`write_whole` that notes the names of what it writes."""
    return lambda path, content: (names.append(path.name), write(path, content))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
