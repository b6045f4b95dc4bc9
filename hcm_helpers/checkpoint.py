"""The whole state of a training in one safetensors file: the tensors as they are, all else as JSON in its header."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hcm_helpers.acdc import DataError
from hcm_helpers.files import write_whole


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
