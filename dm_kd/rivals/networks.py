"""The rivals' image generators: noise -> images in [0, 1].

DAFL's (Chen et al. 2019, arXiv 1904.01186) with the sizes that Fast-Datafree and NAYER publish. For
sizes other than 32 x 32 the first map is a quarter of the side. With bf16 all but the output runs
in bfloat16 autocast, a quarter of the time at 28 pixels on a CPU with such instructions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
                         nn.LeakyReLU(0.2))


class NormalOutput(nn.Module):
    """A batch norm without weights, so that a batch's pixels have the task's mean and standard
    deviation from the first update on, as in DAFL's and ZSKT's own programs; clipped to black and
    white.

    Args:
        mean, std: of the task's images in [0, 1], a number for each channel.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.norm = nn.BatchNorm2d(len(mean), affine=False)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * self.std + self.mean).clamp(0, 1)


class SmallGenerator(nn.Module):
    """A vector -> a map of side / 4 -> two stages that double its side.

    Args:
        latent: numbers in a vector.
        width: channels of the first map.
        side: pixels, a multiple of 4.
        output: last layer, whose images are in [0, 1] (default: a sigmoid).
    """

    def __init__(self, latent: int, width: int, side: int, channels: int,
                 output: nn.Module | None = None, bf16: bool = False):
        super().__init__()
        assert side % 4 == 0, side
        self.bf16 = bf16
        self.shape, self.base = (latent,), (width, side // 4, side // 4)
        self.first = nn.Linear(latent, math.prod(self.base))
        self.norm = nn.BatchNorm2d(width)
        self.block1, self.block2 = conv(width, 128), conv(128, 64)
        self.last, self.output = nn.Conv2d(64, channels, 3, 1, 1), output or nn.Sigmoid()

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.norm(self.first(z).view(-1, *self.base))  # [B, width, side/4, side/4]
            x = self.last(self.block2(up(self.block1(up(x)))))
        return self.output(x.float())  # [B, channels, side, side]


class LargeGenerator(nn.Module):
    """A map of noise [latent, side/16, side/16] -> four stages that double its side (FastDFKD,
    ImageNet)."""

    def __init__(self, latent: int, side: int, channels: int, output: nn.Module | None = None,
                 bf16: bool = False):
        super().__init__()
        assert side % 16 == 0, side
        self.bf16 = bf16
        self.shape = (latent, side // 16, side // 16)
        self.first = conv(latent, 128)
        self.blocks = nn.ModuleList([conv(a, b) for a, b in ((128, 128), (128, 64), (64, 64),
                                                             (64, 64))])
        self.last, self.output = nn.Conv2d(64, channels, 3, 1, 1), output or nn.Sigmoid()

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.first(z)
            for block in self.blocks:
                x = block(up(x))
            x = self.last(x)
        return self.output(x.float())  # [B, channels, side, side]
