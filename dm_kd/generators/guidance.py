"""DiffDFKD: a teacher guides the sampling of a diffusion model (arXiv 2504.00870).

At each step x_t moves along the gradient of the teacher's loss of the predicted clean image, then
`latent_cutmix` may put boxes of other images into it.

What the public program (github.com/xhqi0109/DiffDFKD) does differently: as released it cannot run
(the clean image is predicted without a gradient). It takes the raw gradient, whose size is the
loss's; here it has unit length for each image, times sqrt(1 - alpha bar_t), so that the weight
means the same at every step and for every teacher. Its batches are of one class and it trains a
student between them; here a shard has many classes, the student stays as it is, and after a cutmix
the cross-entropy takes each class by its share of the area. It leaves out the last of its T steps.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import augment, image_set
from dm_kd.rivals import terms
from dm_kd.run import nonnegative_float
from dm_kd.tasks import Task

WEIGHTS, ADVERSARY = {"ce_target": 1.0, "bn": 0.1}, {"adv_dad": 1.0}  # the public program's
MIXES = 5  # parts of the sampling with a latent cutmix between them


def add_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--teacher-guidance", type=nonnegative_float, default=0.0, metavar="W",
        help="move x_t at each step by W sqrt(1 - alpha bar) along the gradient of --teacher's "
             "cross-entropy and batch statistics (DiffDFKD) (default: %(default)s)")
    add("--teacher", default=None, metavar="SPEC", help="as in distill")
    add("--student", default=None, metavar="SPEC",
        help="of an earlier set: --teacher-guidance also moves to images on which it differs from "
             "the teacher (default: none)")
    add("--latent-cutmix", action="store_true",
        help="at every fifth of the sampling put boxes of other images of the batch into x_t "
             "(DiffDFKD); labels are then unknown")


class TeacherGuidance:
    """Moves x_t to where the teacher sees the class and its own batch statistics, by steps of
    length `weight`, in units of x_t."""

    def __init__(self, teacher: nn.Module, task: Task, weight: float, device: torch.device,
                 student: nn.Module | None = None, bf16: bool = False):
        self.teacher, self.student, self.weight, self.bf16 = teacher, student, weight, bf16
        self.side, self.num_classes = task.resolution, task.num_classes
        self.mean, self.std = (torch.tensor(v, device=device).view(-1, 1, 1)
                               for v in (task.mean, task.std))

    def parts(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """{term: weighted scalar} of images about -1 to 1; labels or the classes' shares [B, C]."""
        images = (images.float().clamp(-1, 1) + 1) / 2
        if images.shape[2] != self.side:  # by products, whose gradient is deterministic on a GPU
            unit = torch.eye(images.shape[2], device=images.device)[None, None]
            rows = F.interpolate(unit, (self.side, len(unit[0, 0])), mode="bicubic", antialias=True)
            images = rows[0, 0] @ images @ rows[0, 0].T
        x = (images - self.mean) / self.std
        parts, _ = terms.weighted(WEIGHTS, self.teacher, x, targets=labels, bf16=self.bf16)
        if self.student is not None:
            # the teacher's logits are constants, as in the public program
            parts |= terms.weighted(ADVERSARY, lambda x: self.teacher(x.detach()), x, self.student,
                                    bf16=self.bf16)[0]
        return parts

    def move(self, x: Tensor, labels: Tensor, clean: Callable[[Tensor], Tensor], noise: Tensor
             ) -> Tensor:
        """x_t [B, C, H, W], moved. clean: x_t -> images; noise: sqrt(1 - alpha bar)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = sum(self.parts(clean(x), labels).values())
            gradient, = torch.autograd.grad(loss, x)
        return x.detach() - self.weight * noise * F.normalize(gradient.flatten(1)).view_as(x)


def latent_cutmix(x: Tensor, done: int, steps: int, seeds: list[int]
                  ) -> tuple[Tensor, dict | None]:
    """At each fifth of the sampling put a box of another image of the batch into x_t [B, C, H, W]:
    share ~ Beta(a, a), a ~ U(0, 1), a function of all the seeds. Returns the batch and the draws.
    """
    if done == steps or done % max(steps // MIXES, 1):
        return x, None
    key = image_set.batch_seed(seeds)
    a = np.random.Generator(np.random.PCG64([key, done])).uniform(1e-3, 1)
    draws = augment.draw_mixing(len(x), *x.shape[2:], key, 0, done, 0.0, a, 1.0)
    draws = {name: augment.send(value, x.device) for name, value in draws.items()}
    return augment.mix(x, draws), draws


def steering(generator, predict: Callable, labels: Tensor, seeds: list[int]) -> Callable:
    """(x_t, i) -> x_t moved by the teacher of a DiTGenerator, mixed if its settings say so; called
    for each step in turn."""
    teacher, process = generator.teacher, generator.diffusion
    shares = F.one_hot(labels, teacher.num_classes).float() if teacher else None

    def steer(x: Tensor, i: int) -> Tensor:
        nonlocal shares

        def clean(x: Tensor) -> Tensor:
            out = predict(x, process.network_times[i].expand(len(x))).to(x.dtype)
            x0 = process.predict_x0(x, i, out[:, :x.shape[1]])
            return generator.vae.decode(x0) if generator.vae else x0

        if teacher:
            x = teacher.move(x, shares, clean, process.at("noise", i))
        if "latent_cutmix" in generator.settings:
            x, draws = latent_cutmix(x, process.steps - i, process.steps, seeds)
            if teacher and draws:
                shares = torch.lerp(shares[draws["partner"]], shares, draws["lam"].float())
        return x

    return steer
