"""Noise, the lower bound: Gaussian pixels with the task's mean and deviation."""

import argparse

import torch
from torch import Tensor

from dm_kd.generators.diffusion import noise_source
from dm_kd.tasks import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


class NoiseGenerator:
    labels_known = False
    settings = {"name": "noise", "licence": "none (computed)"}

    def __init__(self, task: Task):
        self.channels, self.resolution = task.channels, task.resolution
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (task.mean, task.std))

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """-> uint8 [B, C, H, W]; the labels are not used."""
        shape = (self.channels, self.resolution, self.resolution)
        noise = noise_source(seeds, shape, torch.device("cpu"))()
        return ((noise * self.std + self.mean) * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def build(args: argparse.Namespace, task: Task, device: torch.device) -> NoiseGenerator:
    return NoiseGenerator(task)
