"""The one training loop: the paper's protocol for any model that has `optimizers`, `train_step` and `sample`."""

import gc
import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm.auto import tqdm

from hcm_helpers.acdc import DataError, one_line
from hcm_helpers.checkpoint import Training, load_state
from hcm_helpers.devices import Replay, make_fabric, make_team, set_learning_rate
from hcm_helpers.fidelity import sliced_wasserstein
from hcm_helpers.files import NOT_NUMBERS, read_npz, write_whole
from hcm_helpers.models.layers import Batch
from hcm_helpers.parallel import (
    Share,
    ShareDone,
    anybody,
    disband,
    in_turn,
    is_out_of_memory,
    own_rows,
    same_on_all,
    sum_over_processes,
    take_step,
)
from hcm_helpers.shards import BLOCK, Stack, batches, new_order
from hcm_helpers.similarity import TITLES
from hcm_helpers.slices import Slices

NUM_VALIDATION_IMAGES = 256
MOST_COMPARED = 8192  # of the validation slices, about, with samples


def fit(
    model: nn.Module,
    train: Slices,
    validation: Slices,
    folder: str | Path,
    *,
    epochs: int = 100,
    batch_size: int = 32,
    learning_rate: float = 2e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    patience: int = 20,
    validate_every: int = 1,
    ema_decay: float | Sequence[float] = 0.999,
    cooldown: float = 0.0,
    num_snapshots: int = 0,
    seed: int = 0,
    resume: bool = False,
    checkpoint_seconds: float = 10.0,
) -> pd.DataFrame:
    """Train a model, keep the weights that do best in validation (or the last, see `cooldown`), return the history.

    Validation is the model's own `validation_loss` where it has one, otherwise the sliced Wasserstein distance
    between its samples and the validation slices. Both look at the averaged (EMA) weights, which are also the
    ones that are kept. When it returns, the model carries them.

    Args:
        model: offers `optimizers(learning_rate, betas)`, `train_step(batch)`, see `parallel.take_step`, and `sample`.
            A part of it that offers `meet(train)`, as `layers.CopyPenalty` does, is shown the slices beforehand.
        train, validation: slices of the training and of the validation patients.
        folder: gets weights.safetensors (those kept), history.csv, checkpoint/last.safetensors and, if asked for,
            snapshots.npz.
        epochs: at most so many passes over the training slices.
        batch_size: images in a step; what does not fill a batch waits for the next epoch's shuffle.
        learning_rate, betas: of Adam.
        patience: stop after so many epochs without a better validation; 0 never stops early.
        validate_every: epochs from one validation to the next.
        ema_decay: of the exponential moving average of the weights, an average over 1/(1 − decay) steps. Of several,
            each validation takes the one that does best.
        cooldown: share of the epochs, at the end, in which the learning rate falls to 0 in a straight line. With it,
            and without patience, the weights of the end are kept.
        num_snapshots: so many times, evenly through training, eight images are drawn from the average with the same
            noise (`load_snapshots`).
        seed: of the shuffling and of the noise in training.
        resume: go on from checkpoint/last.safetensors if it is there. On a CPU the end is the same, bit for bit, as
            that of a training that was never cut off.
        checkpoint_seconds: time from one checkpoint to the next, or a hundred times what writing one takes, if that
            is more.

    Returns:
        One row an epoch: epoch, seconds since the start, one column a loss, validation (NaN where not measured), and
        with several averages ema_decay, the one that was best.

    Raises:
        DataError: a batch of one image or larger than the training set, a checkpoint of another training, a loss that
            is not finite, or memory too small for one image.
        KeyboardInterrupt: Ctrl-C; the step has been finished and the checkpoint written.

    Source: section 2.3.2 of Rayavarapu & Rao 2025.
    """
    if batch_size < 2:
        raise DataError(f"batch_size={batch_size}: batch normalisation compares images, so choose 2 or more")
    if batch_size > len(train):
        raise DataError(
            f"batch_size={batch_size} is larger than the training set of {len(train)} slices; "
            f"choose at most {len(train)} or add groups"
        )
    settings = {"batch_size": batch_size, "learning_rate": learning_rate, "betas": list(betas), "seed": seed}
    settings |= {"ema_decay": np.atleast_1d(ema_decay).tolist()}
    labels = train.labels[:].reshape(len(train), -1)  # groups (N, 1), or targets (N, 3), the group first
    settings |= {"image_size": train.image_size, "groups": labels[:, 0].unique().tolist()}
    settings |= {"data": [train.fingerprint, validation.fingerprint]}
    schedule = {"epochs": epochs, "patience": patience, "validate_every": validate_every, "cooldown": cooldown}
    schedule |= {"num_snapshots": num_snapshots, "checkpoint_seconds": checkpoint_seconds}
    fabric, num_parts = make_team(), 1
    while True:
        try:
            history = _fit(model, train, validation, Path(folder), fabric, settings, num_parts, resume, **schedule)
            break
        except KeyboardInterrupt:
            if fabric.global_rank:
                raise ShareDone("the first process has been stopped") from None
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or fabric.world_size > 1:
                raise
        # Here, as the error holds on to what filled the memory.
        num_parts, resume = 2 * num_parts, True  # the checkpoint of the beginning is there
        if num_parts > batch_size:
            raise DataError(
                f"{type(model).__name__}: the memory of {fabric.device} is too small for one image; choose a smaller "
                "width or image_size"
            )
        normalised = any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in model.modules())
        aside = ", each with a mean and variance of its own in batch normalisation" if normalised else ""
        name = type(model).__name__
        print(f"{name}: out of memory; a batch is taken in {num_parts} parts from here on{aside}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    disband(fabric)
    load_weights(model, folder)
    return history


def _fit(
    model: nn.Module,
    train: Slices,
    validation: Slices,
    folder: Path,
    fabric: Fabric,
    settings: dict[str, Any],
    num_parts: int,
    resume: bool,
    *,
    epochs: int,
    patience: int,
    validate_every: int,
    cooldown: float,
    num_snapshots: int,
    checkpoint_seconds: float,
) -> pd.DataFrame:
    """What `fit` does, with each batch in so many parts.

    Args:
        fabric: of the processes that share a batch; the first of them writes.
        settings: what a checkpoint must agree in; the other arguments are those of `fit`.
    """
    writes = fabric.global_rank == 0
    if writes:
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    fabric.barrier()
    for part in model.modules():
        if hasattr(part, "meet"):
            part.meet(train)
    model = fabric.to_device(model).to(memory_format=torch.channels_last)
    same_on_all(model, fabric)
    training = Training(model, folder, settings, checkpoint_seconds)
    snapshots: dict[int, Tensor] = {}
    torch.manual_seed(settings["seed"])
    if resume and training.path.exists():
        training.load()
        if num_snapshots and (folder / "snapshots.npz").is_file():
            snapshots = {n: x for n, x in load_snapshots(folder).items() if n <= len(training.history)}
        looked = len(training.history) % validate_every == 0
        if patience and looked and len(training.history) - training.best_epoch >= patience:
            epochs = len(training.history)  # it had ended early
    step = Replay(
        lambda x, labels: take_step(
            model, Batch(x, labels), training.optimizers, fabric, num_parts, settings["batch_size"]
        ),
        training.optimizers.values(),
        fabric.device,
        record=num_parts == fabric.world_size == 1,
    )
    if writes and not training.steps:  # whatever lay there is of another training
        training.save()

    # Before the learning rate has fallen, weights that do as well in validation draw worse pictures.
    which = "last" if cooldown and not patience else "best"
    images, labels = _near(train, fabric)
    block = BLOCK if isinstance(train.images, Stack) else 1  # the same on any device, as a checkpoint holds the order
    progress = Progress(epochs, first=len(training.history), name=type(model).__name__)
    for epoch in range(len(training.history) + 1, epochs + 1):
        falling = min(1.0, (epochs + 1 - epoch) / (cooldown * epochs)) if cooldown else 1.0
        for group in (group for optimizer in training.optimizers.values() for group in optimizer.param_groups):
            set_learning_rate(group, group["initial_lr"] * falling)
        _take_epoch(training, step, images, labels, block, fabric)
        by_step = {name: torch.stack(values).float().cpu() for name, values in training.losses.items()}
        row = {name: values.mean().item() for name, values in by_step.items()}
        looked = epoch % validate_every == 0 or epoch == epochs
        if looked:
            values = {
                decay: validate(average, validation, fabric, settings["batch_size"], num_parts)
                for decay, average in training.averages.items()
            }
            chosen = min(values, key=values.get)
            row["validation"] = values[chosen]
            if len(values) > 1:
                row["ema_decay"] = chosen
        _check_finite(row, by_step, epoch, training)
        row = {"epoch": epoch, "seconds": training.seconds, **row}
        training.history.append(row)
        if looked:
            if row["validation"] < training.best or which == "last":
                training.best, training.best_epoch = row["validation"], epoch
                if writes:
                    save_weights(training.averages[chosen], folder)
            if writes:
                write_history(training.history, folder)
        if num_snapshots and epoch * num_snapshots // epochs > (epoch - 1) * num_snapshots // epochs:
            generator = torch.Generator().manual_seed(settings["seed"])
            with fabric.autocast():
                snapshots[epoch] = next(iter(training.averages.values())).sample(8, generator=generator).float().cpu()
            if writes:
                save_snapshots(snapshots, folder)
        progress.update(row)
        if looked and patience and epoch - training.best_epoch >= patience:
            break
    if writes:
        training.save()
    progress.close(f"{which} validation {training.best:.4g} in epoch {training.best_epoch}")
    return pd.DataFrame(training.history)


def _near(train: Slices, fabric: Fabric) -> tuple[Any, Tensor]:
    """Images and labels, on a GPU if they take at most a quarter of its memory: then no loader stands in between."""
    images, labels = train.images, train.labels
    if fabric.device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(fabric.device)[0] / 4:
        return fabric.to_device(images[:]), fabric.to_device(labels[:])
    return images, labels


def _take_epoch(training: Training, step: Replay, images: Any, labels: Tensor, block: int, fabric: Fabric) -> None:
    """The steps of an epoch that are still to be taken, with a checkpoint when one is due or Ctrl-C was pressed.

    Args:
        training: of `fabric`'s devices.
        step: of a batch.
        images, labels: all of the training slices, of which so many in a row, a block, are shuffled as one.
    """
    batch_size, epoch = training.settings["batch_size"], len(training.history) + 1
    taken = training.steps - (epoch - 1) * (len(images) // batch_size)  # before an interruption
    if not taken:
        training.order, training.losses = new_order(len(images), block), {}
    training.model.train()
    (mine,) = own_rows(batch_size, fabric)
    for indices in batches(training.order.to(images.device), images, batch_size, taken, block):
        with finishing() as interrupted:
            x = fabric.to_device(images[indices[mine]]).contiguous(memory_format=torch.channels_last)
            found = step(x, fabric.to_device(labels[indices[mine]]))
            training.steps += 1
            # An average starts short, or the first random weights would stay in it for a thousand steps.
            for decay, average in training.averages.items():
                update_average(average, training.model, min(decay, (1 + training.steps) / (10 + training.steps)))
            for name, loss in found.items():
                training.losses.setdefault(name, []).append(loss)
            if anybody(interrupted, fabric) and not interrupted:
                interrupted.append(signal.SIGINT)
            wanted = fabric.global_rank == 0 and (interrupted or time.perf_counter() > training.due)
            if wanted and all(torch.stack(values).isfinite().all() for values in training.losses.values()):
                training.save()  # else the last good one stays


def _check_finite(row: dict[str, float], by_step: dict[str, Tensor], epoch: int, training: Training) -> None:
    """Raise DataError if a loss or the validation of this epoch is not finite, with the first step at which."""
    if all(math.isfinite(value) for value in row.values()):
        return
    good = torch.stack([values.isfinite() for values in by_step.values()]).all(dim=0).tolist()
    place = "in validation" if all(good) else f"at step {training.steps - len(good) + good.index(False) + 1}"
    raise DataError(
        f"{type(training.model).__name__}: the loss is not finite {place}, in epoch {epoch} ({row}); lower "
        f"learning_rate={training.settings['learning_rate']}; the best weights of earlier epochs, if any, are in "
        f"{training.path.parent.parent}"
    )


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The state of a training in folder, at its last checkpoint: model, averages, optimizers, history and more.

    Raises:
        DataError: it is broken.
    """
    return load_state(Path(folder) / "checkpoint" / "last.safetensors")


@contextmanager
def finishing() -> Iterator[list[int]]:
    """Ctrl-C within this context waits for its end; until then it stands in the list. A second one does not wait."""
    asked: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is signal.SIG_IGN:  # it will not be heard
        yield asked
        return

    def note(number: int, frame) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, usual)
    if asked:
        raise KeyboardInterrupt("the step was finished and the checkpoint written; resume=True goes on from there")


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move each averaged weight and running statistic by 1 − decay towards the model's."""
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    floats, others = [], []
    for a, b in pairs:
        (floats if a.is_floating_point() else others).append((a, b))
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
    for a, b in others:
        a.copy_(b)


@torch.no_grad()
def validate(model: nn.Module, validation: Slices, fabric: Fabric, batch_size: int, num_parts: int = 1) -> float:
    """How well a model does on held-out slices, with the same noise each time; lower is better."""
    generator = torch.Generator().manual_seed(0)
    # Few slices are repeated, each time with other noise; of many, every k-th is taken, so that all patients count.
    rows = torch.arange(NUM_VALIDATION_IMAGES) * max(1, len(validation) / NUM_VALIDATION_IMAGES)
    rows = rows.long() % len(validation)
    images, labels = validation.images[rows], validation.labels[rows]
    if not hasattr(model, "validation_loss"):
        samples = torch.zeros(NUM_VALIDATION_IMAGES, *images.shape[1:])
        for part in in_turn(own_rows(len(samples), fabric, num_parts), fabric.device, generator):
            with Share(part, len(samples)), fabric.autocast():
                samples[part] = model.sample(part.stop - part.start, labels[part], generator).cpu()
        sum_over_processes([samples], fabric)
        some = slice(None, None, max(1, len(validation) // MOST_COMPARED))
        return sliced_wasserstein(samples, validation.images[some])  # outside of autocast: in float32
    total = torch.zeros((), device=fabric.device, dtype=torch.float64)
    for x, c in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        for part in in_turn(own_rows(len(x), fabric, num_parts), fabric.device, generator):
            batch = Batch(fabric.to_device(x[part]), fabric.to_device(c[part]))
            with Share(part, len(x)), fabric.autocast():
                total += model.validation_loss(batch, generator).item() * len(batch.images)
    sum_over_processes([total], fabric)
    return total.item() / len(images)


def generate(
    model: nn.Module,
    n: int,
    labels: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 100,
    sample: Callable | None = None,
) -> Tensor:
    """Draw n images (n, 1, H, W) in [−1, 1] from a model in batches, on its device and in its precision, to the CPU.

    Args:
        model: a trained model.
        n: how many.
        labels: the group of each, int64 (n,), for a conditional model.
        seed: the same seed gives the same images.
        batch_size: images drawn at once.
        sample: what draws them, with the arguments of the model's `sample`, which is taken if None.
    """
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    images = []
    with make_fabric().autocast():
        for start in range(0, n, batch_size):
            size = min(batch_size, n - start)
            part = None if labels is None else labels[start : start + size]
            images.append((sample or model.sample)(size, part, generator).cpu())
    model.train(was_training)
    return torch.cat(images)


# What a training leaves behind.


def save_weights(model: nn.Module, folder: Path) -> None:
    """The model's state to folder/weights.safetensors."""
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_whole(Path(folder) / "weights.safetensors", lambda path: path.write_bytes(save(state)))


def check_weights(model: nn.Module, folder: str | Path) -> None:
    """See that the tensors in folder/weights.safetensors have the shapes of the model's state, by their header alone.

    Raises:
        DataError: no weights there, or broken ones, or of another shape.
    """
    path = Path(folder) / "weights.safetensors"
    if not path.is_file():
        raise DataError(f"{path} is missing: train this model first, by its notebook or by `hcm run`")
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{path} is broken ({one_line(error)}): train this model again") from error
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = one_line(f"{one_line(name, 60)} is {found.get(name)}, not {expected.get(name)}")
            raise DataError(
                f"{path} holds weights of another network ({what}); "
                "build the model with the parameters in the run.json beside it"
            )


def load_weights(model: nn.Module, folder: str | Path) -> nn.Module:
    """The state in folder/weights.safetensors into a model of the same shape, and the model back.

    Raises:
        DataError: no weights there, or broken ones, or of another shape.
    """
    check_weights(model, folder)
    model.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
    return model


def save_samples(images: Tensor, folder: str | Path, labels: Tensor | None = None, masks: Tensor | None = None) -> None:
    """Images (n, 1, H, W) in [−1, 1], their groups (−1 for none) and masks (n, H, W), if any, to folder/samples.npz."""
    groups = np.full(len(images), -1) if labels is None else labels.numpy()
    arrays = {"images": images.numpy().astype(np.float32), "labels": groups.astype(np.int64)}
    if masks is not None:
        arrays["masks"] = masks.numpy().astype(np.uint8)
    _write_arrays(Path(folder) / "samples.npz", arrays)


def models_with(run: str | Path, file: str) -> list[str]:
    """The models in whose folder of a run a file lies: those of the series in its order, then others by their names."""
    there = {path.parent.name for path in Path(run).glob(f"*/{file}")}
    return [name for name in TITLES if name in there] + sorted(there - TITLES.keys())


def load_samples(folder: str | Path) -> tuple[Tensor, Tensor]:
    """What `save_samples` wrote: images (n, 1, H, W) and labels (n,).

    Raises:
        DataError: no samples there, or broken ones.
    """
    arrays = _read_samples(folder)
    return arrays["images"], arrays["labels"]


def load_masks(folder: str | Path) -> Tensor | None:
    """The masks (n, H, W) uint8 that were generated with the samples; None where there are none."""
    return _read_samples(folder).get("masks")


def _read_samples(folder: str | Path) -> dict[str, Tensor]:
    kinds = {"images": (torch.float32, 4), "labels": (torch.int64, 1), "masks": (torch.uint8, 3)}
    return _read_arrays(Path(folder) / "samples.npz", kinds, "run the notebook of this model")


def save_snapshots(snapshots: dict[int, Tensor], folder: str | Path) -> None:
    """Images drawn through training, epoch → (n, 1, H, W) in [−1, 1], to folder/snapshots.npz."""
    arrays = {"epochs": np.array(list(snapshots), np.int64), "images": torch.stack(list(snapshots.values())).numpy()}
    _write_arrays(Path(folder) / "snapshots.npz", arrays)


def load_snapshots(folder: str | Path) -> dict[int, Tensor]:
    """What `save_snapshots` wrote.

    Raises:
        DataError: no snapshots there, or broken ones.
    """
    kinds = {"epochs": (torch.int64, 1), "images": (torch.float32, 5)}
    arrays = _read_arrays(Path(folder) / "snapshots.npz", kinds, "train this model with num_snapshots above 0")
    return dict(zip(arrays["epochs"].tolist(), arrays["images"], strict=True))


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a name, NumPy would append .npz to it
            np.savez(file, **arrays)

    write_whole(path, write)


def _read_arrays(path: Path, kinds: dict[str, tuple[torch.dtype, int]], remedy: str) -> dict[str, Tensor]:
    """The arrays of an .npz file, all of one length, if they are of these kinds: name → type and number of dimensions.

    The masks may be lacking.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: {remedy}")
    try:
        arrays = {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
    except NOT_NUMBERS as error:
        raise DataError(f"{path} is broken ({one_line(error)}): {remedy} again") from error
    found = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    expected = kinds | found == kinds and kinds.keys() - found.keys() <= {"masks"}
    if not expected or len({len(array) for array in arrays.values()}) != 1:
        raise DataError(f"{path} is broken (it does not hold {', '.join(kinds)} of one length): {remedy} again")
    return arrays


def write_history(history: list[dict[str, float]], folder: Path) -> None:
    """The losses, one row an epoch, to folder/history.csv."""
    frame = pd.DataFrame(history)
    write_whole(Path(folder) / "history.csv", lambda path: frame.to_csv(path, index=False, float_format="%.6g"))


def write_run_json(folder: str | Path, **facts) -> None:
    """What made the files in a folder, to run.json: the given facts beside versions, machine and date."""
    record = {
        **facts,
        "versions": {name: version(name) for name in ("hcm-helpers", "torch", "numpy", "lightning-fabric")},
        "machine": {"device": str(make_fabric().device), "cpus": os.cpu_count(), "python": platform.python_version()},
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_whole(Path(folder) / "run.json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))


class Progress:
    """A bar in JupyterLab and a terminal; about ten plain lines where HCM_HEADLESS is set, as under papermill."""

    def __init__(self, epochs: int, first: int, name: str):
        self.epochs, self.every, self.name = epochs, max(1, epochs // 10), name
        self.headless = bool(os.environ.get("HCM_HEADLESS"))
        self.bar = None if self.headless else tqdm(total=epochs, initial=first, desc=name, unit="epoch")

    def update(self, row: dict[str, float]) -> None:
        losses = {k: f"{v:.3f}" for k, v in row.items() if k not in ("epoch", "seconds") and not math.isnan(v)}
        if self.bar is not None:
            self.bar.set_postfix(losses, refresh=False)
            self.bar.update()
        elif row["epoch"] % self.every == 0:
            text = "  ".join(f"{name} {value}" for name, value in losses.items())
            print(f"{self.name} epoch {row['epoch']}/{self.epochs}  {row['seconds']:.0f} s  {text}", flush=True)

    def close(self, text: str) -> None:
        if self.bar is not None:
            self.bar.close()
        print(f"{self.name}: {text}")
