"""The image generators of the online sources: noise (or a class) -> images in [0, 1].

Written from DAFL (Chen et al. 2019, arXiv 1904.01186) with the sizes that FastDFKD, CMI and NAYER
publish. Where a size was published for 32 x 32 only, the first map is a quarter of the side.
With bf16 all but the output computes in bfloat16 autocast: a quarter of the time at 28 pixels on a
CPU with such instructions. Teacher, student and losses behind it are float32 as ever.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd.inversion_terms import lower


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class NormalOutput(nn.Module):
    """A batch norm without weights, so that the batch's pixels have the task's mean and deviation
    from the first update on, as in DAFL's and ZSKT's own programs; cut off at black and white.

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


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
                         nn.LeakyReLU(0.2))


class SmallGenerator(nn.Module):
    """A vector -> a map of side / 4 -> twice its size, twice.

    Args:
        latent: numbers in a vector.
        width: channels of the first map. FastDFKD and NAYER: 128. CMI's for DAFL, DFQ and ZSKT:
            256.
        side: pixels, a multiple of 4.
        output: what makes images in [0, 1] of the last map (default: a sigmoid).
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
        with lower(z, self.bf16):
            x = self.norm(self.first(z).view(-1, *self.base))  # [B, width, side/4, side/4]
            x = self.last(self.block2(up(self.block1(up(x)))))
        return self.output(x.float())  # [B, channels, side, side]

    def reset_first(self, draw: torch.Generator) -> None:
        """New first layers, for diversity (FastDFKD): weights and scales N(0, 0.02), biases 0."""
        with torch.no_grad():
            for layer in (self.first, self.norm):
                layer.weight.copy_(0.02 * torch.randn(layer.weight.shape, generator=draw))
                layer.bias.zero_()


class LargeGenerator(nn.Module):
    """A map of noise [256, side/16, side/16] -> four times twice its size (FastDFKD, ImageNet)."""

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
        with lower(z, self.bf16):
            x = self.first(z)
            for block in self.blocks:
                x = block(up(x))
            x = self.last(x)
        return self.output(x.float())  # [B, channels, side, side]


class LabelGenerator(nn.Module):
    """A class's embedding -> noisy linear layer -> SmallGenerator (NAYER, Tran et al. 2024,
    arXiv 2310.00258).

    Each noisy layer makes one image of each class; a batch of N C images has N of them. They are
    drawn anew for each batch and learn with it: the diversity comes from them, not from z.

    Args:
        embeddings: [classes, e]; one-hot rows, or a text model's vectors of the class names.
        copies: N.
    """

    def __init__(self, embeddings: Tensor, copies: int, latent: int, body: nn.Module):
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.norm = nn.BatchNorm1d(embeddings.shape[1])
        self.noisy = nn.ModuleList([nn.Linear(embeddings.shape[1], latent) for _ in range(copies)])
        self.body = body

    def forward(self, classes: Tensor) -> Tensor:
        """classes int64 [B], at most C for each noisy layer, in this order -> [B, ch, side,
        side]."""
        x = self.norm(self.embeddings[classes])  # [B, e]
        size = len(self.embeddings)
        z = [layer(part) for layer, part in zip(self.noisy, x.split(size), strict=True)]
        return self.body(torch.cat(z))

    def draw_noisy(self, draw: torch.Generator) -> None:
        """New weights N(0, 1), biases 0."""
        with torch.no_grad():
            for layer in self.noisy:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw))
                layer.bias.zero_()
