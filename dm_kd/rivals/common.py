"""What the rivals share: presets as flags, random numbers that are functions of the seed, the one
optimisation loop, and the source of batches for engine.fit.

To add a method: a file here and a line in RIVALS of distill.py. The file has

- presets SMALL and, where one is published for 224 pixels, LARGE: {method: {setting: value}}. Each
  setting is a flag; NAME_weight is the weight of a loss term. Its HELP explains further settings;
- a class `Method(context)` with `make_batch(student, call) -> (images float in [0, 1] [B, C, H, W],
  their classes int64 [B])`, and `KEPT`, its modules and optimizers that a checkpoint holds.
"""

import argparse
import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from dm_kd import augment
from dm_kd.rivals import terms
from dm_kd.rivals.networks import Generator, large_generator, small_generator
from dm_kd.run import UserError, nonnegative_float, nonnegative_int
from dm_kd.tasks import Task

LARGE_AREA = 0.75  # least area of the views at 224 pixels (FastDFKD's program)
HELP = {
    "latent_size": "numbers in the generator's noise vector (224 pixels: channels of its map)",
    "generator_width": "channels of the generator's first map",
    "generator_rate": "Adam's learning rate of the generator",
    "latent_rate": "Adam's learning rate of the noise",
    "synthesis_batch": "images in a batch of the method's updates",
    "generator_output": "last layer of the generator: sigmoid (its first images are grey) or norm, "
                        "a batch norm without weights, whose images have the task's contrast",
    "inner_steps": "updates that make one batch of images",
    "student_steps": "student steps after each call for new images; 0 = an epoch's",
    "warmup_calls": "calls before the first student step, without the adversarial term",
    "pool_images": "size of the pool; a full one loses its oldest images; 0 = those of one call"}

# The last number of a random generator's key: what it is for.
INIT, DRAW, VIEW, ORDER = 11, 12, 13, 14


def load(file: str) -> ModuleType:
    """A method's module, by the name of its file."""
    return importlib.import_module(f"dm_kd.rivals.{file}")


def add_arguments(parser: argparse.ArgumentParser, method: str, module: ModuleType, large: bool
                  ) -> None:
    presets = getattr(module, "LARGE", {}) if large else module.SMALL
    if method not in presets:
        raise UserError(f"no published preset for large images: --source {method}")
    group, texts = parser.add_argument_group(f"source {method}"), HELP | getattr(module, "HELP", {})
    for name, value in presets[method].items():
        text = texts.get(name) or f"weight of the term {name.removesuffix('_weight')}"
        kind = {int: nonnegative_int, float: nonnegative_float}.get(type(value), str)
        group.add_argument(f"--{name.replace('_', '-')}", default=value, type=kind,
                           choices=("sigmoid", "norm") if kind is str else None,
                           help=f"{text} (default: %(default)s)")


# --- random numbers -------------------------------------------------------------------------------

def numbers(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers are a function of the key, and of the kind of device."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed) >> 1)


@contextlib.contextmanager
def initialised_by(*key: int) -> Iterator[None]:
    """The weights of modules made inside the block, on the CPU, are a function of the key; torch's
    global random generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(numbers(*key).initial_seed())
        yield


# --- the optimisation loop ------------------------------------------------------------------------

def adam(network: nn.Module, rate: float, noise: Tensor | None = None, noise_rate: float = 0.0
         ) -> torch.optim.Adam:
    """Of a generator and, where given, of its noise."""
    groups = [{"params": [p for p in network.parameters() if p is not noise], "lr": rate}]
    if noise is not None:
        groups.append({"params": [noise], "lr": noise_rate})
    return torch.optim.Adam(groups, betas=(0.5, 0.999))  # as every published preset


def optimise(optimizers: list[torch.optim.Optimizer], images_of: Callable[[], Tensor],
             losses: Callable[[Tensor, int], dict[str, Tensor]], steps: int, where: str) -> Tensor:
    """Minimise a sum of terms; returns a copy of the batch of images with the lowest loss. Only the
    optimizers' parameters get a gradient.

    losses: (images, step) -> {term: weighted scalar}.  where: which batch this is, for the
    UserError if the sum becomes NaN or infinite."""
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    best, lowest, history = 0.0, math.inf, []  # on the device; read back after the last step
    for step in range(steps):
        images = images_of()
        loss = sum(losses(images, step).values())
        history.append(loss.detach())
        better = history[-1] < lowest
        best = torch.where(better, images.detach(), best)
        lowest = torch.where(better, history[-1], lowest)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters),
                                       strict=True):
            parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    if lost := [step for step, finite in enumerate(torch.stack(history).isfinite()) if not finite]:
        raise UserError(f"NaN or infinite loss of the images {where} at step {lost[0] + 1}",
                        "a lower rate or smaller weights of the terms; in another --out")
    return best


def optimise_pixels(x: Tensor, losses: Callable[[Tensor, int], dict[str, Tensor]], steps: int,
                    rate: Callable[[int], float], betas: tuple[float, float],
                    bounds: tuple[Tensor, Tensor], where: str) -> Tensor:
    """`optimise` of the pixels themselves by Adam, clipped after each step to `bounds`, the
    standardised black and white [C, 1, 1]. x: standardised; not changed."""
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=1.0, betas=betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def after(*_) -> None:
        schedule.step()
        x.data = x.data.clamp(*bounds)

    optimizer.register_step_post_hook(after)
    return optimise([optimizer], lambda: x, losses, steps, where).clamp(*bounds)


# --- what a method works with ---------------------------------------------------------------------

class Context:
    """Settings, task, frozen teacher and what follows from them."""

    def __init__(self, args: argparse.Namespace, task: Task, teacher: nn.Module,
                 device: torch.device):
        self.args, self.task, self.teacher, self.device = args, task, teacher, device
        self.seed, self.bf16 = args.seed, args.amp == "bf16"
        self.terms = {name: weight for name in terms.NAMES
                      if (weight := getattr(args, f"{name}_weight", 0.0))}
        self.mean, self.std = (torch.tensor(v, device=device).view(-1, 1, 1)
                               for v in (task.mean, task.std))
        self.pad = task.resolution // 8  # of the views; 4 of 32 pixels, as published
        self.pool: Tensor | None = None  # the images kept so far, set by Source
        self.averages: terms.Statistics = []  # of bn_ema, over past calls
        if terms.OF_STATISTICS & self.terms.keys():
            terms.batch_norms(teacher)

    def standardize(self, x: Tensor) -> Tensor:
        """Images in [0, 1] -> a network's input, with gradients."""
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def terms_of(self, call: int) -> dict[str, float]:
        """{term: weight}; in the warm-up without those that look at the student."""
        late = call >= self.args.warmup_calls
        return {name: weight for name, weight in self.terms.items()
                if late or name not in terms.OF_STUDENT}

    def generator(self, *key: int, output: nn.Module | None = None) -> Generator:
        side, channels, latent = self.task.resolution, self.task.channels, self.args.latent_size
        with initialised_by(self.seed, *key):
            network = (large_generator(latent, side, channels, self.bf16) if self.task.large else
                       small_generator(latent, self.args.generator_width, side, channels,
                                       self.bf16, output))
        return network.to(self.device, memory_format=torch.channels_last)

    def draws(self, call: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A call's classes, uniform int64 [B], and noise [B, *shape]."""
        size, draw = self.args.synthesis_batch, numbers(self.seed, call, DRAW, device=self.device)
        targets = torch.randint(self.task.num_classes, (size,), generator=draw, device=self.device)
        return targets, torch.randn(size, *shape, generator=draw, device=self.device)

    def view(self, images: Tensor, call: int, step: int) -> Tensor:
        """Augmented, standardised images with gradients, of images in [0, 1]: at 224 pixels
        random-resized crops of 75 to 100 %, else pad and crop; mirrored where the task mirrors."""
        if self.task.large:
            draw = numbers(self.seed, call, step, VIEW)
            return self.standardize(augment.resized_view(images, LARGE_AREA, True, draw))
        moment, ids = call * 100_003 + step, torch.arange(len(images))
        offsets = augment.crop_offsets(self.seed, moment, ids, self.pad)
        mirrored = augment.flips(self.seed, moment, ids) & self.task.flip
        return self.standardize(augment.pad_crop_flip(images, offsets, mirrored, self.pad))

    def make_images(self, optimizer: torch.optim.Optimizer, images_of: Callable[[], Tensor],
                    active: dict[str, float], targets: Tensor, student: nn.Module, call: int,
                    first_view: int = 0) -> Tensor:
        """`optimise` over views of the images, with running averages of the batch statistics
        (fastdfkd, nayer)."""
        statistics: terms.Statistics = []

        def losses(images: Tensor, step: int) -> dict[str, Tensor]:
            nonlocal statistics
            x = self.view(images, call, first_view + step)
            parts, statistics = terms.weighted(active, self.teacher, x, student, targets,
                                               self.averages, bf16=self.bf16)
            return parts

        images = optimise([optimizer], images_of, losses, self.args.inner_steps,
                          f"in call {call + 1}")
        self.averages = terms.blend(self.averages, [
            (mean.detach(), variance.detach()) for mean, variance in statistics])
        return images


# --- the source -----------------------------------------------------------------------------------

class Source:
    """A pool of images and the calls of a method that fill it: `warmup_calls` before the first
    student step, then one before each `student_steps`. The pool is uint8 in memory and part of
    every checkpoint: 3 kB an image at 32 x 32, 150 kB at 224 x 224."""

    def __init__(self, context: Context, module: ModuleType):
        self.context, args, task = context, context.args, context.task
        self.method = module.Method(context)
        self.steps_per_epoch = args.steps_per_epoch
        self.length = args.student_steps or args.steps_per_epoch  # steps between two calls
        size = args.pool_images or self.length * args.batch_size
        self.pool = torch.empty(size, task.channels, task.resolution, task.resolution,
                                dtype=torch.uint8)
        self.labels = torch.empty(size, dtype=torch.int64)
        self.calls, self.total = 0, 0  # total: images ever made
        self.pause = lambda: None  # engine.fit's: saves, and stops after a signal

    @property
    def kept(self) -> int:
        return min(self.total, len(self.pool))

    def call(self, student: nn.Module) -> None:
        """Make a batch and put it into the pool. Gradients flow through the student, in eval mode,
        and not a bit of it changes."""
        self.context.pool = self.pool[:self.kept]
        student.eval().requires_grad_(False)
        images, classes = self.method.make_batch(student, self.calls)
        student.train().requires_grad_()
        # rounded to the nearest, Fast-Datafree truncates
        images = (images * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu()[-len(self.pool):]
        places = (self.total + torch.arange(len(images))) % len(self.pool)
        self.pool[places], self.labels[places] = images, classes.cpu()[-len(images):]
        self.total, self.calls = self.total + len(images), self.calls + 1

    def order(self, cycle: int) -> Tensor:
        """Ids of the steps until the next call, from one permutation of all images after the other:
        place in the pool + size of the pool x number of the permutation. cycle: calls since the
        warm-up."""
        count = self.length * self.context.args.batch_size
        rounds = [np.random.Generator(np.random.PCG64(
            [self.context.seed, cycle, r, ORDER])).permutation(self.kept)
            + len(self.pool) * (r + (cycle << 20)) for r in range(-(-count // self.kept))]
        return torch.from_numpy(np.concatenate(rounds)[:count])

    def batches(self, epoch: int, first_step: int, student: nn.Module
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, classes they were made for, ids never used before). All changes come before a
        batch is handed out, so `state_dict` belongs to the moment after it."""
        args, order = self.context.args, None
        for step in range(first_step, self.steps_per_epoch):
            cycle, at = divmod(epoch * self.steps_per_epoch + step, self.length)
            due = args.warmup_calls + cycle + 1
            if self.calls + 1 < due:
                print(f"making the first images: {due - self.calls} calls", file=sys.stderr)
            while self.calls < due:
                self.call(student)
                if self.calls < due:
                    self.pause()
            if at == 0 or order is None:
                order = self.order(cycle)
            ids = order[at * args.batch_size:(at + 1) * args.batch_size]
            places = ids % len(self.pool)
            yield self.pool[places], self.labels[places], ids

    def state_dict(self) -> dict:
        """Clones, since torch.save writes all the memory that a view looks into."""
        return {"pool": self.pool[:self.kept].clone(), "labels": self.labels[:self.kept].clone(),
                "calls": self.calls, "total": self.total, "averages": self.context.averages,
                "method": {name: getattr(self.method, name).state_dict()
                           for name in self.method.KEPT}}

    def load_state_dict(self, state: dict) -> None:
        self.calls, self.total = state["calls"], state["total"]
        self.pool[:self.kept], self.labels[:self.kept] = state["pool"], state["labels"]
        self.context.averages = [tuple(value.to(self.context.device) for value in pair)
                                 for pair in state["averages"]]
        for name, value in state["method"].items():
            getattr(self.method, name).load_state_dict(value)
