"""The whole state of a training, and its file: the tensors as safetensors, all else as JSON in its header."""

import json
import math
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hcm_helpers.acdc import DataError
from hcm_helpers.files import write_whole

KEPT = ("history", "order", "steps", "best", "best_epoch")  # of a Training, as they are


class Training:
    """What changes in the course of a training; a checkpoint holds all of it.

    Args:
        model: on its device.
        folder: of the checkpoint.
        settings: learning_rate, betas, ema_decay and what else a checkpoint must agree in.
        checkpoint_seconds: see `fit`.
    """

    def __init__(self, model: nn.Module, folder: Path, settings: dict[str, Any], checkpoint_seconds: float):
        self.model, self.settings, self.checkpoint_seconds = model, settings, checkpoint_seconds
        self.path = folder / "checkpoint" / "last.safetensors"
        self.averages = {decay: deepcopy(model).eval() for decay in settings["ema_decay"]}
        self.optimizers = model.optimizers(settings["learning_rate"], tuple(settings["betas"]))
        self.history: list[dict[str, float]] = []  # a row an epoch
        self.losses: dict[str, list[Tensor]] = {}  # of the steps of this epoch
        self.order = torch.empty(0, dtype=torch.int64)  # of the slices in this epoch, or of their blocks
        self.steps, self.best, self.best_epoch = 0, math.inf, 0
        self.start = time.perf_counter()
        self.due = self.start + checkpoint_seconds  # when the next checkpoint is

    @property
    def seconds(self) -> float:
        """Since the beginning, without the time between an interruption and its end."""
        return time.perf_counter() - self.start

    def save(self) -> None:
        """Write the checkpoint."""
        device = next(self.model.parameters()).device
        state = {name: getattr(self, name) for name in ("settings", *KEPT, "losses", "seconds")}
        state |= {
            "model": self.model.state_dict(),
            "averages": [average.state_dict() for average in self.averages.values()],
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if device.type == "cuda" else None,
        }
        begun = time.perf_counter()
        save_state(state, self.path)
        now = time.perf_counter()
        self.due = now + max(self.checkpoint_seconds, 100 * (now - begun) if self.checkpoint_seconds else 0.0)

    def load(self) -> None:
        """Go on from the checkpoint.

        Raises:
            DataError: it is broken, of another network, or of a training with other settings. (Of the model's own
                parameters, such as the weights of its losses, nothing is known here; `run` compares those.)
        """
        state, device = load_state(self.path), next(self.model.parameters()).device
        changed = [name for name, value in self.settings.items() if state["settings"].get(name) != value]
        if changed or state["optimizers"].keys() != self.optimizers.keys():
            what = ", ".join(changed) or "the optimizer"
            raise DataError(f"{self.path} is of a training that differs in {what}: delete its folder to train anew")
        weights = self.model.state_dict(), state["model"]
        here, there = ({name: tuple(tensor.shape) for name, tensor in part.items()} for part in weights)
        if here != there:
            odd = next(name for name in here | there if here.get(name) != there.get(name))
            raise DataError(
                f"{self.path} is of another network: {odd} is {there.get(odd, 'missing')} there, "
                f"{here.get(odd, 'missing')} here; take the parameters it was begun with, or delete its folder"
            )
        for name in KEPT:
            setattr(self, name, state[name])
        self.losses = {name: [loss.to(device) for loss in values] for name, values in state["losses"].items()}
        self.start = time.perf_counter() - state["seconds"]
        self.model.load_state_dict(state["model"])
        for average, weights in zip(self.averages.values(), state["averages"], strict=True):
            average.load_state_dict(weights)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            match_layout(optimizer)
        torch.set_rng_state(state["rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"])


def save_state(state: dict[str, Any], path: Path) -> None:
    """Nested dicts and lists of tensors, numbers, texts and None to a file; a tuple comes back as a list."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(state, tensors))
    write_whole(path, lambda part: part.write_bytes(save(tensors, {"state": text})))


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        DataError: the file is broken, or not of `save_state`.
    """
    try:
        with safe_open(path, "pt") as file:
            return _unpacked(json.loads(file.metadata()["state"]), file)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is broken ({error!r}): delete its folder to train anew") from error


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with tensors put aside under a number, and dicts as pairs, as JSON would turn the keys into texts."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # what shares memory is refused
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(item, tensors) for item in value]
    return value


def _unpacked(value: Any, file: safe_open) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, file) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return file.get_tensor(value["tensor"])
        return {key: _unpacked(item, file) for key, item in value["pairs"]}
    return value


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay an optimizer's state out in memory as its weights are, which a file does not tell and a fast step needs."""
    for weights, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weights.shape:
                state[name] = torch.empty_like(weights, dtype=value.dtype).copy_(value)
