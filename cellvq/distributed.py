"""One run in several processes: who takes part, and the wrappers under which they stay as one.

``torchrun --nproc-per-node 8 -m cellvq pretrain ...`` starts the processes. The engines are torch's
own: DistributedDataParallel (each process holds the model) and FSDP2 (each holds a part of it).
Without torchrun every function here does nothing, so that callers need not ask.
"""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cellvq import InputError

ENGINES = ("ddp", "fsdp")
"""How several processes share a model."""


def enter() -> torch.device:
    """Join the other processes of a torchrun, if this is one; return the device to work on."""
    cuda = torch.cuda.is_available()
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    if not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Wait until every process is here."""
    if size() > 1:
        dist.barrier()


def agree(value: float) -> float:
    """Return the first process's value in all of them."""
    if size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    if torch.cuda.is_available():
        shared = shared.cuda()
    dist.broadcast(shared, 0)
    return shared.item()


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if size() > 1:
        dist.all_reduce(value)
    return value


def share_of(values: np.ndarray) -> np.ndarray:
    """Return this process's part of some values; the parts follow each other in order."""
    return np.array_split(values, size())[rank()]


def share(model: nn.Module, engine: str) -> nn.Module:
    """Make the processes train one model; call what is returned, and keep ``model`` for the rest.

    Args:
        model: the model, on its device; the first process's weights become those of all.
        engine: ``ddp`` or ``fsdp``.

    Raises:
        InputError: the engine is unknown.
    """
    if engine not in ENGINES:
        raise InputError(f"no engine is called {engine!r}; there are: {', '.join(ENGINES)}")
    if size() == 1:
        return model
    for value in model.state_dict().values():
        dist.broadcast(value, 0)
    if engine == "ddp":
        # The codebook's buffers are kept equal by the quantiser itself.
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "encode")
    return model


def whole(value: Tensor) -> Tensor:
    """Return a tensor in one piece; where it lies in parts, every process has to call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """Lay a whole tensor out over the processes as ``pattern`` is, if that lies in parts."""
    if not hasattr(pattern, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(pattern.device)
    return distribute_tensor(value, pattern.device_mesh, pattern.placements)
