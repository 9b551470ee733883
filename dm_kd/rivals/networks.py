"""The rivals' image generators: noise -> images in [0, 1].

DAFL's (Chen et al. 2019, arXiv 1904.01186) with the sizes that Fast-Datafree and NAYER publish. All
but the output in bfloat16 takes a quarter of the time at 28 pixels on a CPU that multiplies it.
"""

import torch
from torch import Tensor, nn


class NormalOutput(nn.Module):
    """A batch norm without weights, so that a batch's pixels have the task's mean and standard
    deviation (a number for each channel) from the first update on, as in DAFL's and ZSKT's own
    programs; clipped to black and white."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.norm = nn.BatchNorm2d(len(mean), affine=False)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * self.std + self.mean).clamp(0, 1)


class Generator(nn.Module):
    """Noise [B, *shape] -> body -> output, images in [0, 1]. bf16: of the body."""

    def __init__(self, shape: tuple[int, ...], body: list[nn.Module], bf16: bool = False,
                 output: nn.Module | None = None):
        super().__init__()
        self.shape, self.bf16 = shape, bf16
        self.body, self.output = nn.Sequential(*body), output or nn.Sigmoid()

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.body(z)
        return self.output(x.float())


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
                         nn.LeakyReLU(0.2))


def up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), conv(inputs, outputs))


def small_generator(latent: int, width: int, side: int, channels: int, bf16: bool = False,
                    output: nn.Module | None = None) -> Generator:
    """A vector -> a map [width, side / 4, side / 4] -> two stages."""
    base = (width, side // 4, side // 4)
    body = [nn.Linear(latent, width * (side // 4) ** 2), nn.Unflatten(1, base),
            nn.BatchNorm2d(width), up(width, 128), up(128, 64), nn.Conv2d(64, channels, 3, 1, 1)]
    return Generator((latent,), body, bf16, output)


def large_generator(latent: int, side: int, channels: int, bf16: bool = False) -> Generator:
    """A map of noise [latent, side / 16, side / 16] -> four stages (FastDFKD, ImageNet)."""
    body = [conv(latent, 128), up(128, 128), up(128, 64), up(64, 64), up(64, 64),
            nn.Conv2d(64, channels, 3, 1, 1)]
    return Generator((latent, side // 16, side // 16), body, bf16)
