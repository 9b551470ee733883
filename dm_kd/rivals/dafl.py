"""DAFL: a generator whose images the teacher is sure of, in all classes equally often (Chen et al.
2019, arXiv 1904.01186). One update of the generator, then five student steps on fresh noise.

The preset is Fast-Datafree's, whose numbers the published CIFAR tables quote; its generator is 128
wide (CMI's, for the same table, 256). It differs from DAFL's own program, which updates generator
and student on one batch, takes log10 in the balance term and larger learning rates and batches:
generator and student in turn are Fast-Datafree's simplification. Both programs that made the tables
take temperature 1 whatever is asked for: pass --temperature 1 for the published numbers. Larger
images than 64 pixels have no published preset: FastDFKD's generator, the same weights.

The programs' generator ends in a sigmoid, so that its first images are grey with hardly any
contrast. In short runs the student then learns to answer with one class and, at a high learning
rate, never recovers. DAFL's own generator ends in a batch norm: --generator-output norm.
"""

import argparse
import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from dm_kd.rivals import common
from dm_kd.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Preset(common.StreamPreset):
    onehot_weight: float
    act_weight: float
    balance_weight: float


SMALL = Preset(onehot_weight=1.0, act_weight=1e-3, balance_weight=20.0, latent_size=512,
               generator_width=128, generator_rate=1e-3, synthesis_batch=256, student_steps=5)
LARGE = dataclasses.replace(SMALL, generator_width=None)


def add_arguments(parser: argparse.ArgumentParser, name: str, large: bool) -> None:
    common.add_stream_arguments(parser, name, LARGE if large else SMALL)


def build(args: argparse.Namespace, task: Task, teacher: nn.Module, device: torch.device
          ) -> common.StreamSource:
    return common.StreamSource(common.Context(args, SMALL, task, teacher, device))
