"""A batch in shares, as if it were in one piece: over several processes, or in turn where memory is short.

Each share's gradients, weighted by its size, add up to those of the batch, if the loss is a mean over its images. For
that the shares must see what the batch in one piece would see: the same noise, image by image, and in batch
normalisation the same mean and variance. Both are seen to here, so a model need not know of it; only parts taken in
turn are normalised by themselves.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from hcm_helpers.acdc import DataError
from hcm_helpers.models.layers import Batch


def take_step(
    model: nn.Module,
    batch: Batch,
    optimizers: dict[str, Optimizer],
    fabric: Fabric,
    num_parts: int = 1,
    size: int | None = None,
) -> dict[str, Tensor]:
    """One training step: each loss that `model.train_step` yields goes down by the optimizer that it names.

    Args:
        model: its `train_step(batch)` yields pairs of an optimizer's name, or None for all, and a loss, (); it is
            called on when that step has been taken, and returns the losses to be noted.
        batch: the rows that this process computes, see `own_rows`; mostly all.
        optimizers: by name.
        fabric: of the processes that share the batch; mostly one.
        num_parts: of these rows, computed one after the other, to save memory.
        size: of the whole batch, if several processes share it.

    Returns:
        The losses of the batch, () each, without their graph.
    """
    size = size or len(batch.images)
    shares = [Share(rows, size) for rows in own_rows(size, fabric, num_parts)]
    lengths = [share.num_rows for share in shares]
    pieces = zip(batch.images.split(lengths), batch.labels.split(lengths), strict=True)
    walks = [model.train_step(Batch(*piece)) for piece in pieces]
    losses: list[dict[str, Tensor]] = []
    with fabric.autocast():
        while True:
            for share, walk in in_turn(zip(shares, walks, strict=True), fabric.device):
                try:
                    with share:
                        name, loss = next(walk)
                except StopIteration as end:
                    losses.append({name: share.of(loss.detach()) for name, loss in end.value.items()})
                    continue
                players = list(optimizers.values()) if name is None else [optimizers[name]]
                if walk is walks[0]:
                    for optimizer in players:
                        optimizer.zero_grad(set_to_none=True)
                fabric.backward(share.of(loss))
            if losses:
                break
            if fabric.world_size > 1:
                sum_over_processes([p.grad for p in weights(players) if p.grad is not None], fabric)
            for optimizer in players:
                optimizer.step()
            # Autocast keeps its bf16 copies of the weights; the next player must see the weights as they are now.
            torch.clear_autocast_cache()
    total = {name: sum(part[name] for part in losses) for name in losses[0]}
    sum_over_processes(list(total.values()), fabric)
    return total


class Share(TorchFunctionMode):
    """Within this context, what is drawn at random for a share of a batch is the share of what the batch would get.

    It must be drawn by torch.randn, rand, randint or dropout, the images along the first axis. Batch normalisation
    takes mean and variance over all processes. A batch in one piece is left alone.

    Args:
        rows: the share.
        size: of the whole batch.
    """

    def __init__(self, rows: slice, size: int):
        super().__init__()
        self.rows, self.size, self.num_rows = rows, size, rows.stop - rows.start

    def __enter__(self):
        return super().__enter__() if self.num_rows < self.size else self

    def __exit__(self, *error):
        return super().__exit__(*error) if self.num_rows < self.size else None

    def of(self, mean: Tensor) -> Tensor:
        """What a mean over the share adds to the mean over the batch."""
        return mean if self.num_rows == self.size else mean * (self.num_rows / self.size)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.randn, torch.rand, torch.randint):
            *bounds, shape = args if function is torch.randint or not isinstance(args[0], int) else (args,)
            if shape and shape[0] == self.num_rows:
                return function(*bounds, (self.size, *shape[1:]), **kwargs)[self.rows]
        if function is F.dropout and args[0].shape[0] == self.num_rows:
            x, *others = args
            last = x.ndim == 4 and x[:1].is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format  # it is drawn in the order of memory
            whole = torch.empty((self.size, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
            return x * function(whole.fill_(1), *others, **kwargs)[self.rows]
        if function is F.batch_norm and dist.is_initialized() and kwargs.get("training", args[5:6] == (True,)):
            return self._batch_norm(*args, **kwargs)
        return function(*args, **kwargs)

    def _batch_norm(self, x, running_mean, running_var, weight, bias, training, momentum, eps) -> Tensor:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        values = x.float()
        count = x.numel() / x.shape[1] * self.size / self.num_rows
        mean = all_reduce(values.sum(axes)) / count
        shape = [1, -1] + [1] * (x.ndim - 2)
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        if running_mean is not None:
            running_mean.lerp_(mean.detach(), momentum)
            running_var.lerp_(variance.detach() * (count / (count - 1)), momentum)
        scale = (variance + eps).rsqrt()
        scale, shift = (scale, 0.0) if weight is None else (scale * weight, bias.view(shape))
        return (centred * scale.view(shape) + shift).to(x.dtype)


def own_rows(size: int, fabric: Fabric, num_parts: int = 1) -> list[slice]:
    """The rows of a batch that this process computes, in so many parts, or in as many as it has rows.

    Raises:
        DataError: the batch has fewer rows than there are processes.
    """
    if size < fabric.world_size:
        processes = fabric.world_size
        raise DataError(f"batch_size={size}: {processes} processes share it, so choose {processes} or more")
    bounds = [size * k // fabric.world_size for k in (fabric.global_rank, fabric.global_rank + 1)]
    num_rows = bounds[1] - bounds[0]
    num_parts = min(num_parts, num_rows)
    edges = [bounds[0] + num_rows * k // num_parts for k in range(num_parts + 1)]
    return [slice(*pair) for pair in pairwise(edges)]


def in_turn(parts: Iterable[Any], device: torch.device, generator: torch.Generator | None = None) -> Iterator[Any]:
    """One part after the other, each with the random numbers that the first one gets."""
    parts = list(parts)
    if len(parts) > 1:
        state = None if generator is None else generator.get_state()
        states = [torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None]
    for number, part in enumerate(parts):
        if number:
            torch.set_rng_state(states[0])
            if states[1] is not None:
                torch.cuda.set_rng_state(states[1], device)
            if generator is not None:
                generator.set_state(state)
        yield part


def weights(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """All that these optimizers move."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def sum_over_processes(tensors: list[Tensor], fabric: Fabric) -> None:
    """Add each tensor up over the processes, in place; they travel as one."""
    if fabric.world_size == 1 or not tensors:
        return
    together = fabric.to_device(torch.cat([tensor.float().reshape(-1) for tensor in tensors]))
    dist.all_reduce(together)
    for tensor, part in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def same_on_all(model: nn.Module, fabric: Fabric) -> None:
    """Give all processes the weights of the first."""
    if fabric.world_size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def anybody(asked: Iterable[Any], fabric: Fabric) -> bool:
    """Whether this list has something in it, in any of the processes."""
    if fabric.world_size == 1:
        return bool(asked)
    found = fabric.to_device(torch.tensor(float(bool(asked))))
    dist.all_reduce(found)
    return found.item() > 0


def disband(fabric: Fabric) -> None:
    """End the work of several processes; the first goes on alone.

    Raises:
        ShareDone: in all the others.
    """
    if fabric.world_size == 1:
        return
    fabric.barrier()
    dist.destroy_process_group()
    if fabric.global_rank:
        raise ShareDone("this process has done its share of the training")


class ShareDone(Exception):
    """A process beside the first has nothing more to do in this notebook; no error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the system had no memory to give."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
