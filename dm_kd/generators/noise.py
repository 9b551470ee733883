"""Noise: independent Gaussian pixels with the task's mean and deviation, clipped to 0..255; what a
student learns from images that carry nothing.
"""

import argparse

import torch
from torch import Tensor

from dm_kd.tasks import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


class NoiseGenerator:
    def __init__(self, task: Task):
        self.channels, self.resolution = task.channels, task.resolution
        self.mean = torch.tensor(task.mean).view(-1, 1, 1)
        self.std = torch.tensor(task.std).view(-1, 1, 1)
        self.settings = {"name": "noise", "licence": "none (computed)"}
        self.labels_known = False

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """-> uint8 [B, C, H, W]; the labels are not used."""
        shape = (self.channels, self.resolution, self.resolution)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                             for seed in seeds])
        return ((noise * self.std + self.mean) * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def build(args: argparse.Namespace, task: Task, device: torch.device) -> NoiseGenerator:
    return NoiseGenerator(task)
