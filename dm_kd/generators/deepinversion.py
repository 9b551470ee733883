"""DeepInversion: pixels optimised until a teacher sees the class in them, with the batch statistics
that it remembers (Yin et al. 2020, arXiv 1912.08795).

A shard is one batch of the optimisation; larger is better (published: 256 at 32 x 32, 84 to 152 at
224 x 224). The presets are the authors': CIFAR-10's "paper" settings for small images; for 224
pixels setting 0 with their README's weights: 2,000 iterations at half the size, then 1,000 at full.

What their programs do differently: the CIFAR program does not clip the pixels and returns the last
iterate, an alias of what it meant to keep; the ImageNet program clips, but compares the losses of
both resolutions. Here pixels are clipped after each step and the batch of the lowest loss of the
last stage is kept. The adaptive kind, which needs the student, is distill's `--source adi`.
"""

import argparse
import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import image_set, models, preprocessing
from dm_kd.generators.diffusion import noise_source
from dm_kd.rivals import terms
from dm_kd.rivals.common import optimise_pixels
from dm_kd.run import multiplies_bf16, nonnegative_float, positive_float, positive_int
from dm_kd.tasks import Task

WARMUP = 100  # iterations of rising rate of each stage, for 224 pixels
SMALL = {"iterations": 2000, "pixel_rate": 0.05, "bn_weight": 10.0, "tv_l2_weight": 2.5e-5,
         "l2_weight": 0.0}
LARGE = {"iterations": 3000, "pixel_rate": 0.25, "bn_weight": 0.01, "tv_l2_weight": 1e-4,
         "l2_weight": 1e-5}
FLAGS = {"iterations": positive_int, "pixel_rate": positive_float, "bn_weight": nonnegative_float}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("deepinversion")
    group.add_argument("--teacher", required=True, metavar="SPEC",
                       help="a run folder, NAME@FILE, torchvision:NAME, timm:NAME; with batch norm")
    preprocessing.add_arguments(parser)
    for name, kind in FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X",
                           help=f"default: {SMALL[name]:g}, for 224 pixels {LARGE[name]:g}")


def warm_cosine(rate: float, iterations: int) -> Callable[[int], float]:
    """Linear over the first WARMUP iterations, then half a cosine to zero."""
    warmup = min(WARMUP, iterations // 2)
    return lambda i: rate * (i + 1) / warmup if i < warmup else (
        rate * 0.5 * (1 + math.cos(math.pi * (i - warmup) / (iterations - warmup))))


class DeepInversion:
    labels_known, mixes_classes = True, True  # a batch shares its statistics

    def __init__(self, teacher: nn.Module, task: Task, settings: dict, device: torch.device):
        self.teacher, self.task, self.settings, self.device = teacher, task, settings, device
        self.resolution, self.channels = task.resolution, task.channels
        self.mean, self.std = (torch.tensor(v, device=device).view(-1, 1, 1)
                               for v in (task.mean, task.std))
        self.bounds = ((0 - self.mean) / self.std, (1 - self.mean) / self.std)
        self.terms = {"ce_target": 1.0, "bn": settings["bn_weight"],
                      "tv_l2": settings["tv_l2_weight"], "l2": settings["l2_weight"]}

    def stages(self) -> list[tuple[int, int, int, Callable[[int], float]]]:
        """[(iterations, factor by which the image is pooled, most jitter, learning rate)]."""
        n, rate = self.settings["iterations"], self.settings["pixel_rate"]
        if not self.task.large:
            return [(n, 1, max(1, self.resolution // 16), lambda i: rate)]  # 2 of 32 pixels
        low = n * 2 // 3
        return [(count, factor, 30 // factor, warm_cosine(rate, count))
                for count, factor in ((low, 2), (n - low, 1)) if count]

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """uint8 [B, C, H, W]. What the batch shares (jitter) depends on all seeds."""
        x = noise_source(seeds, (self.channels, self.resolution, self.resolution), self.device)()
        draw = torch.Generator().manual_seed(image_set.batch_seed(seeds))
        labels, large = labels.to(self.device), self.task.large
        bf16 = self.settings["teacher_dtype"] == "bf16"

        for count, factor, most, rate in self.stages():
            def losses(x: Tensor, step: int, factor=factor, most=most) -> dict[str, Tensor]:
                x = F.avg_pool2d(x, factor) if factor > 1 else x
                x = terms.jitter(x, most, large and self.task.flip, draw)
                return terms.weighted(self.terms, self.teacher, x, targets=labels,
                                      first=10.0 if large else 1.0, bf16=bf16)[0]

            x = optimise_pixels(x, losses, count, rate, (0.5, 0.9) if large else (0.9, 0.999),
                                self.bounds, f"at seed {seeds[0]}")
        pixels = ((x * self.std + self.mean) * 255 + 0.5).clamp(0, 255)
        return pixels.to(torch.uint8).cpu()


def build(args: argparse.Namespace, task: Task, device: torch.device) -> DeepInversion:
    teacher, card = models.load_frozen(args.teacher, task, args)
    print(card["assumed"], file=sys.stderr)
    teacher = teacher.to(device, memory_format=torch.channels_last)
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    chosen = (LARGE if task.large else SMALL) | given
    if chosen["bn_weight"]:
        terms.batch_norms(teacher)
    settings = {"name": "deepinversion", "licence": "as the teacher's weights",
                "teacher": card["name"], "teacher_sha256": card["sha256"],
                "teacher_dtype": "bf16" if multiplies_bf16(device) else "fp32", **chosen}
    settings |= {f"teacher_{key}": [*card["input"][key]] for key in ("mean", "std")
                 if card["input"][key] != tuple(getattr(task, key))}
    return DeepInversion(teacher, task, settings, device)
