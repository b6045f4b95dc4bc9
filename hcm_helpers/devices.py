"""Where a training runs: on which devices, in which precision, alone or in a team, on a GPU without Python's delay."""

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterable

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would name the precision at each call


def make_fabric(devices: int = 1, num_nodes: int = 1) -> Fabric:
    """One device, a GPU where there is one, in bf16 where the device computes it in hardware; or several.

    bf16 keeps float32's range, so nothing overflows and no loss needs scaling.
    """
    if torch.cuda.is_available():
        fast_bf16 = torch.cuda.is_bf16_supported()
    else:
        keep_memory()
        capabilities = torch.cpu.get_capabilities()
        fast_bf16 = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    precision = "bf16-mixed" if fast_bf16 else "32-true"
    strategy = Gathered() if devices * num_nodes > 1 else "auto"
    # Who is in a team is told by `team`. Were Fabric to look around, it would start MPI where mpi4py is installed, and
    # that may end a notebook's kernel.
    place = LightningEnvironment()
    return Fabric(devices=devices, num_nodes=num_nodes, precision=precision, strategy=strategy, plugins=place)


def keep_memory() -> None:
    """Have the C library keep what is freed for the next tensors, up to half a GiB, and not give it back at once.

    What is given back is asked for again at the next layer, and the system zeroes it page by page: a sixth of an
    evaluation of the diffusion model. Known to glibc, so to most of Linux; elsewhere nothing is done.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        library.mallopt(M_TRIM_THRESHOLD, 1 << 29)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)


class Gathered(DDPStrategy):
    """For processes that `team` has started; Fabric's own launchers refuse to work in a notebook."""

    def _configure_launcher(self) -> None:
        self._launcher = None


def make_team() -> Fabric:
    """The processes that `hcm run --devices` has started for this notebook's first training, or this one alone."""
    fabric = make_fabric(*(int(os.environ.pop(name, 1)) for name in ("HCM_DEVICES", "HCM_NODES")))
    if fabric.world_size > 1:
        fabric.launch()  # waits for the others
    return fabric


class Replay:
    """A training step that a GPU runs a few times, records as a graph of kernels, and from then on plays back.

    The networks are small: started one by one from Python, their kernels would wait for it most of the time. A graph
    has the batch, the losses and the learning rates at fixed places in memory, and its step must not ask the GPU for a
    number on the way. On a CPU each step runs as it is.

    Args:
        step: takes tensors of fixed shapes and returns losses, () each.
        optimizers: that it steps.
        device: where it runs.
        generators: of random numbers on that device that it uses beside PyTorch's own.
        record: False to run each step as it is on a GPU too.
    """

    WARM_UP = 3  # steps before the recording, in which optimizers make their state and cuDNN chooses its kernels

    def __init__(
        self,
        step: Callable[..., dict[str, Tensor]],
        optimizers: Iterable[Optimizer],
        device: torch.device,
        generators: Iterable[torch.Generator] = (),
        record: bool = True,
    ):
        self.step, self.device, self.generators = step, device, list(generators)
        self.count, self.graph = 0, None
        # A recording's memory is not that of the main stream.
        self.aside = torch.cuda.Stream() if device.type == "cuda" and record else None
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", float(group["lr"]))
                if device.type == "cuda":
                    group["lr"] = torch.tensor(group["initial_lr"], device=device)
                    group["capturable"] = True  # Adam's: it counts its steps on the device
            for state in optimizer.state.values():  # of a run that goes on
                if "step" in state:
                    state["step"] = state["step"].to(device)

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        if self.aside is None:
            return detached(self.step(*inputs))
        self.count += 1
        if self.count <= self.WARM_UP:
            self.aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.aside):
                losses = detached(self.step(*inputs))
            torch.cuda.current_stream().wait_stream(self.aside)
            return losses
        if self.graph is None:
            self.inputs = [x.clone() for x in inputs]
            self.graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self.graph.register_generator_state(generator)
            with torch.cuda.graph(self.graph, stream=self.aside):
                self.losses = detached(self.step(*self.inputs))
        for place, x in zip(self.inputs, inputs, strict=True):
            place.copy_(x)
        self.graph.replay()
        return {name: loss.clone() for name, loss in self.losses.items()}


def detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses without the graph that they were computed by."""
    return {name: loss.detach() for name, loss in losses.items()}


def set_learning_rate(group: dict, value: float) -> None:
    """The learning rate of an optimizer's group of weights, at its place on a GPU where `Replay` has put it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value
