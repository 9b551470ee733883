"""DeepInversion: pixels optimised until a teacher sees the class in them, with the batch statistics
that it remembers (Yin et al. 2020, arXiv 1912.08795).

    python -m dm_kd.synthesize --task digits --generator deepinversion --teacher SPEC \\
        --images-per-class 200 --batch-size 250 --out syn_dataset/digits_deepinversion

A shard is one batch of the optimisation, so --batch-size matters: larger is better (published: 256
at 32 x 32, 84 to 152 at 224 x 224). The presets are the authors': CIFAR-10's "paper" settings for
small images; for 224 pixels setting 0 with their README's weights: 2,000 iterations on pixels at
half the size, then 1,000 at full. Pixels are clipped after each step, as in setting 0 (their CIFAR
program lets them leave the range; what is written is 8-bit). Their programs return the last iterate
under the name of the best, mix both resolutions' losses in choosing it, and never remove their
hooks; here the best of the last stage is returned. The adaptive kind, which needs the student, is
distill's `--source adi`.

Where a batch holds fewer images than there are classes, the classes stand in the set in an order
drawn by --seed, so that a batch is of any classes, not of neighbours.
"""

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import image_set, models
from dm_kd.rivals import common
from dm_kd.rivals import terms as inversion_terms
from dm_kd.run import multiplies_bf16, nonnegative_float, positive_float, positive_int
from dm_kd.tasks import Task

WARMUP = 100  # iterations of rising rate of each stage, for 224 pixels
SMALL = {"iterations": 2000, "pixel_rate": 0.05, "bn_weight": 10.0, "tv_l2_weight": 2.5e-5,
         "l2_weight": 0.0}
LARGE = {"iterations": 3000, "pixel_rate": 0.25, "bn_weight": 0.01, "tv_l2_weight": 1e-4,
         "l2_weight": 1e-5}
HELP = {"bn_weight": "the match with the teacher's batch statistics",
        "tv_l2_weight": "total variation", "l2_weight": "the images' norm"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; None stands for the preset of the task's size of images."""
    def default(name: str) -> str:
        return f"(default: {SMALL[name]:g}, for 224 pixels {LARGE[name]:g})"

    group = parser.add_argument_group("deepinversion")
    group.add_argument("--teacher", required=True, metavar="SPEC",
                       help="a run folder, NAME@FILE, FILE, torchvision:NAME, timm:NAME; with "
                            "batch norm")
    group.add_argument("--iterations", type=positive_int, default=None, metavar="N",
                       help="updates of each batch; at 224 pixels two thirds of them at half the "
                            f"size {default('iterations')}")
    group.add_argument("--pixel-rate", type=positive_float, default=None, metavar="X",
                       help=f"Adam's learning rate of the pixels {default('pixel_rate')}")
    for name, text in HELP.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=nonnegative_float, metavar="X",
                           default=None, help=f"weight of {text} {default(name)}")
    add_teacher_dtype(group)


def add_teacher_dtype(group: argparse._ArgumentGroup) -> None:
    """--teacher-dtype, of DeepInversion and of a guided DiT."""
    group.add_argument("--teacher-dtype", choices=("bf16", "fp32"), default=None,
                       help="of the teacher's passes, bfloat16 autocast or float32; what it is "
                            "judged by stays float32 (default: bf16 on GPUs and CPUs that have "
                            "it, else fp32)")


def teacher_dtype(args: argparse.Namespace, device: torch.device) -> str:
    """What --teacher-dtype asks for, "bf16" or "fp32"."""
    return args.teacher_dtype or ("bf16" if multiplies_bf16(device) else "fp32")


def constant(rate: float) -> Callable[[int], float]:
    return lambda i: rate


def warm_cosine(rate: float, iterations: int) -> Callable[[int], float]:
    """Linear over the first WARMUP iterations, then half a cosine to zero."""
    warmup = min(WARMUP, iterations // 2)

    def at(i: int) -> float:
        if i < warmup:
            return rate * (i + 1) / warmup
        return rate * 0.5 * (1 + math.cos(math.pi * (i - warmup) / (iterations - warmup)))

    return at


def batch_numbers(seeds: list[int]) -> torch.Generator:
    """The numbers that a batch shares, a function of all its images' seeds."""
    return torch.Generator().manual_seed(image_set.batch_seed(seeds))


class DeepInversion:
    """`sample(labels, seeds) -> uint8 images` of a teacher that stays as it is.

    Args:
        teacher: in eval mode on `device`.
        settings: those that make the bytes, for the manifest; read here too.
    """

    def __init__(self, teacher: nn.Module, task: Task, settings: dict, device: torch.device):
        self.teacher, self.task, self.settings, self.device = teacher, task, settings, device
        self.resolution, self.channels, self.labels_known = task.resolution, task.channels, True
        self.bf16 = settings["teacher_dtype"] == "bf16"
        self.mixes_classes = True  # a batch shares its statistics
        self.mean = torch.tensor(task.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(task.std, device=device).view(-1, 1, 1)
        self.bounds = ((0 - self.mean) / self.std, (1 - self.mean) / self.std)
        self.terms = {"ce_target": 1.0, "bn": settings["bn_weight"],
                      "tv_l2": settings["tv_l2_weight"], "l2": settings["l2_weight"]}

    def stages(self) -> list[tuple[int, int, int, Callable[[int], float]]]:
        """[(iterations, factor by which the image is pooled, most jitter, learning rate)]."""
        n, rate = self.settings["iterations"], self.settings["pixel_rate"]
        if not self.task.crop:
            return [(n, 1, max(1, self.resolution // 16), constant(rate))]  # 2 of 32 pixels
        low = n * 2 // 3
        return [(count, factor, 30 // factor, warm_cosine(rate, count))
                for count, factor in ((low, 2), (n - low, 1)) if count]

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """labels int64 [B]; seeds: one number per image for the noise it starts from. What the
        batch shares (jitter) hangs on all seeds -> uint8 [B, C, H, W] on the CPU.

        Raises:
            DivergedError: a term is not finite."""
        shape = (self.channels, self.resolution, self.resolution)
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                         for seed in seeds]).to(self.device)
        draw = batch_numbers(seeds)
        labels, large = labels.to(self.device), self.task.crop

        for count, factor, most, rate in self.stages():
            def losses(x: Tensor, step: int, factor: int = factor, most: int = most
                       ) -> dict[str, Tensor]:
                x = F.avg_pool2d(x, factor) if factor > 1 else x
                viewed = inversion_terms.jitter(x, most, large and self.task.flip, draw)
                return inversion_terms.weighted(self.terms, self.teacher, viewed, targets=labels,
                                                first=10.0 if large else 1.0, bf16=self.bf16)[0]

            x = common.optimise_pixels(
                x, losses, count, rate, (0.5, 0.9) if large else (0.9, 0.999), self.bounds,
                f"at seed {seeds[0]}")
        pixels = ((x * self.std + self.mean) * 255 + 0.5).clamp(0, 255)
        return pixels.to(torch.uint8).cpu()


def build(args: argparse.Namespace, task: Task, device: torch.device) -> DeepInversion:
    """
    Raises:
        UserError: no such teacher, not of this task, or without batch norm."""
    teacher, card = models.load_frozen(args.teacher, task)
    teacher = teacher.to(device, memory_format=torch.channels_last)
    example = torch.zeros(2, task.channels, task.resolution, task.resolution, device=device)
    preset = LARGE if task.crop else SMALL
    chosen = {name: value if getattr(args, name) is None else getattr(args, name)
              for name, value in preset.items()}
    inversion_terms.require(teacher, {"bn"} if chosen["bn_weight"] else set(), example,
                            args.teacher, "--bn-weight 0")
    settings = {"name": "deepinversion", "licence": "as the teacher's weights",
                "teacher": card["name"], "teacher_sha256": card["sha256"],
                "teacher_dtype": teacher_dtype(args, device), **chosen}
    return DeepInversion(teacher, task, settings, device)
