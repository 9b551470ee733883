"""Ranks under torchrun, which sets RANK and WORLD_SIZE, and sums over them; one rank without it."""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group that torchrun describes: nccl on GPUs, gloo on CPUs."""
    if world_size() > 1 and not dist.is_initialized():
        day = timedelta(days=1)  # rank 0 may be packing a data set
        store, _, _ = next(dist.rendezvous("env://", timeout=day))
        # torch 2.15: a restarted group needs keys of its own
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank(),
                                store=dist.PrefixStore(attempt, store),
                                world_size=world_size(), timeout=day)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over all ranks, in place; exact for integers. A command that runs in one
    process fails here under torchrun."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def average(tensors: list[torch.Tensor]) -> None:
    """Replace the tensors by their means over all ranks: one sum of all of them together."""
    if world_size() > 1:
        flat = total(torch.cat([tensor.flatten() for tensor in tensors])) / world_size()
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def totals(*values: int) -> list[int]:
    """The sums of integers over all ranks; the same answer on all."""
    if world_size() == 1:
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return total(torch.tensor(values, device=device)).tolist()


def wait() -> None:
    if world_size() > 1:
        dist.barrier()


def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Give every rank rank 0's values, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
