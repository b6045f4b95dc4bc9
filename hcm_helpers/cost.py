"""What a model costs: parameters, time to train, and time and network evaluations for a thousand images."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from hcm_helpers.acdc import DataError
from hcm_helpers.training import generate, load_samples, models_with

NUM_IMAGES = 1000  # that a cost is quoted for


def cost_table(run: str | Path) -> pd.DataFrame:
    """What the models of a run cost on the machine that ran it, from the run.json that each notebook leaves.

    A network evaluation is one pass of one image through the network; an image takes one, unless its
    run.json says how many `evaluations`, as that of the diffusion model does.

    Returns:
        One row a model that is there: model, parameters, seconds_training, evaluations and seconds_sampling (both
        for 1,000 images), device.

    Raises:
        DataError: the run holds no model, or a run.json is broken.
    """
    rows = []
    for name in models_with(run, "run.json"):
        path = Path(run) / name / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            row = {
                "model": name,
                "parameters": record["num_parameters"],
                "seconds_training": record["seconds_training"],
                "evaluations": NUM_IMAGES * record.get("evaluations", 1),
                "seconds_sampling": NUM_IMAGES * record["seconds_sampling"] / len(load_samples(path.parent)[1]),
                "device": record["machine"]["device"],
            }
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is broken ({error!r}): run the notebook of this model again") from error
        rows.append(row)
    if not rows:
        raise DataError(f"{run}: holds no model; run one of the notebooks 02 to 07 first")
    return pd.DataFrame(rows)


def draw_in_steps(
    model: nn.Module, steps: Sequence[int], num_images: int = 50, labels: Tensor | None = None, seed: int = 0
) -> tuple[pd.DataFrame, dict[int, Tensor]]:
    """The same images in fewer and in more sampling steps: what each number costs, and the images to judge it by.

    Args:
        model: a trained diffusion model; its own number of steps stays as it is.
        steps: numbers of sampling steps, from 1 to the length of its chain.
        num_images: how many are drawn; cost is scaled up to 1,000.
        labels: the group of each image, int64 (num_images,), for a conditional model.
        seed: of the noise, the same for each number.

    Returns:
        One row a number: model, steps, evaluations and seconds_sampling (for 1,000 images); and the images
        (num_images, 1, S, S) by the number of steps.
    """
    own, rows, images = model.sampling_steps, [], {}
    generate(model, 1, None if labels is None else labels[:1])  # the first call is slower than the others
    try:
        for number in steps:
            model.sampling_steps = number
            start = time.perf_counter()
            images[number] = generate(model, num_images, labels, seed)
            seconds = (time.perf_counter() - start) * NUM_IMAGES / num_images
            rows.append(("diffusion", number, NUM_IMAGES * model.evaluations, seconds))
    finally:
        model.sampling_steps = own
    return pd.DataFrame(rows, columns=["model", "steps", "evaluations", "seconds_sampling"]), images
