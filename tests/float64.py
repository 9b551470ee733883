"""Run the package in float64, where equality is claimed that rounding must not decide."""

import contextlib
import sys
from unittest import mock

import torch


@contextlib.contextmanager
def float64():
    """Inside the block new tensors, `.float()` and dtype=torch.float32 are float64.

    The package's functools caches are emptied before and after, so that no tensor of one kind is
    taken for the other. Operators that know float32 only (bf16 autocast, private kernels) must be
    off."""
    default = torch.get_default_dtype()
    _empty_caches()
    with contextlib.ExitStack() as stack:
        torch.set_default_dtype(torch.float64)
        stack.callback(_empty_caches)
        stack.callback(torch.set_default_dtype, default)
        for name in ("float32", "float"):
            stack.enter_context(mock.patch.object(torch, name, torch.float64))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        stack.enter_context(mock.patch.object(torch.nn.Module, "float", torch.nn.Module.double))
        yield


@contextlib.contextmanager
def before_rounding():
    """A list of what the block turns into uint8, as it was before: about 0 to 255."""
    images, real = [], torch.Tensor.to

    def to(tensor: torch.Tensor, *args, **options) -> torch.Tensor:
        if any(value is torch.uint8 for value in (*args, *options.values())):
            images.append(tensor.detach().clone())
        return real(tensor, *args, **options)

    with mock.patch.object(torch.Tensor, "to", to):
        yield images


def _empty_caches() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("dm_kd"):
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()
