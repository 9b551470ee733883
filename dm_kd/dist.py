"""Ranks under torchrun, and sums over them. Without torchrun there is one rank and nothing happens.

`torchrun --nproc-per-node N -m dm_kd.distill ...` sets RANK and WORLD_SIZE.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group that torchrun describes: nccl on GPUs, gloo on CPUs.

    After --max-restarts started all ranks again the agent's store may still hold the addresses of
    the killed ones (torch 2.15 shares it between attempts): each attempt has keys of its own."""
    if world_size() > 1 and not dist.is_initialized():
        store, _, _ = next(dist.rendezvous("env://"))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank(),
                                store=dist.PrefixStore(f"attempt_{attempt}", store),
                                world_size=world_size())


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over all ranks, exact for integers."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Give every rank rank 0's values, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank; the same answer on all."""
    if not dist.is_initialized():
        return flag
    count = torch.tensor(int(flag))
    if dist.get_backend() == "nccl":
        count = count.cuda()
    return bool(total(count))
