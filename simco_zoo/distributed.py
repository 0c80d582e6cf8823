"""Where to compute: the device, and several processes under torchrun or another launcher.

Joining them, gathering rows with the right gradient, agreeing on a signal; with one process each of these is the
identity, so that callers need not ask.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_TIMEOUT = timedelta(hours=1)  # the others wait that long while the first fits a probe or writes files


def pick_device(name: str) -> torch.device:
    """Turns the ``device`` setting into a device.

    Raises:
        ValueError: If the device is unknown or not there.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); pass --device cpu or auto.") from error
    return device


def launched() -> tuple[int, int]:
    """Returns number and count of the processes that a launcher (torchrun, srun, mpirun, an operator) started.

    (0, 1) for a process on its own. The launcher tells by RANK and WORLD_SIZE; one of them alone says nothing.

    Raises:
        ValueError: If it started several that cannot find each other.
    """
    environment = os.environ
    if not {"RANK", "WORLD_SIZE"} <= environment.keys() or int(environment["WORLD_SIZE"]) < 2:
        return 0, 1
    if not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise ValueError(
            f"RANK and WORLD_SIZE say that this is process {environment['RANK']} of {environment['WORLD_SIZE']}, but "
            "MASTER_ADDR and MASTER_PORT do not say where the others are; start them with torchrun --nproc-per-node N "
            "..., or unset RANK and WORLD_SIZE."
        )
    return int(environment["RANK"]), int(environment["WORLD_SIZE"])


def init_distributed(device: torch.device) -> torch.device:
    """Joins the processes that torchrun or another launcher started, if any did; may be called again.

    Args:
        device: Where to compute; "cuda" without a number becomes this process's own GPU.

    Returns:
        This process's device.

    Raises:
        ValueError: If more processes were started on this machine than there are GPUs, or they cannot find each other.
    """
    number, count = launched()
    if count == 1 and not dist.is_torchelastic_launched():
        return device
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        local = int(os.environ.get("LOCAL_RANK", number % gpus))
        if local >= gpus:
            raise ValueError(
                f"this is process {local + 1} of this machine, but it has {gpus} GPU{'s' * (gpus != 1)}; "
                f"pass --nproc-per-node {gpus}, or --device cpu."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo next to nccl: what lies on the CPU (signals, features) is exchanged without the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        atexit.register(_leave)
    return device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Returns this process's number among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process is here."""
    all_reduce_any(False)


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag is set on any process; every process has to ask."""
    return bool(all_reduce_max(int(flag)))


def all_reduce_max(number: int) -> int:
    """Returns the largest of the processes' numbers; every process has to ask."""
    if world_size() == 1:
        return number
    votes = torch.tensor([number])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return int(votes.item())


def gather_objects(value: Any) -> list[Any]:
    """Returns every process's value, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], T], sent: Callable[[T], T] = lambda value: value) -> T:
    """Calls a function on the main process; every process gets what it returned, or raises what it raised.

    Args:
        function: Called without arguments.
        sent: Makes of the result what the other processes get, e.g. without what is too large to be sent.
    """
    if world_size() == 1:
        return function()
    outcome: tuple[Any, Exception | None] = None, None
    if is_main():
        try:
            outcome = function(), None
        except Exception as failure:
            outcome = None, failure
    shared: list[Any] = [(sent(outcome[0]) if outcome[1] is None else None, outcome[1]) if is_main() else None]
    dist.broadcast_object_list(shared, src=0)
    value, error = outcome if is_main() else shared[0]
    if error is not None:
        raise error
    return value


def mean_over_processes(values: Tensor) -> Tensor:
    """Returns the mean of a tensor over the processes."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def broadcast(values: Tensor) -> Tensor:
    """Returns the main process's values on every process; the tensor is overwritten."""
    if world_size() > 1:
        dist.broadcast(values, src=0)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows of all processes in rank order; gradient flows back to the process that a row came from.

    Args:
        rows: (N, ...), N the same on every process.

    Returns:
        (world_size * N, ...); this process's rows begin at ``rank() * N``.
    """
    return _GatherRows.apply(rows) if world_size() > 1 else rows


class _GatherRows(torch.autograd.Function):
    """all_gather forward; backward, the sum over the processes of what each of their losses says of my rows.

    A sum, not a mean: DistributedDataParallel divides by the number of processes once, when it averages the parameters'
    gradients, and the mean of the processes' losses is then what is differentiated.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
