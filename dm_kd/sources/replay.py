"""Methods that make batches of images now and then, keep them in a pool, and let the student draw
from all of it: FastDFKD (three variants), CMI, NAYER, adaptive DeepInversion.

    python -m dm_kd.distill --source fastdfkd --task cifar100 --teacher SPEC --student NAME \\
        --temperature 20 --out save/student_model/NAME

    fastdfkd          Fang et al. 2022 (arXiv 2112.06253), first-order MAML
    fastdfkd_reptile  the same with Reptile
    fast_sequential   the same without a meta generator: one generator, used again
    cmi               Fang et al. 2021 (arXiv 2105.08584): a new generator for each batch, contrast
    nayer             Tran et al. 2024 (arXiv 2310.00258): noisy layers on class embeddings
    adi               Yin et al. 2020 (arXiv 1912.08795), adaptive DeepInversion: pixels

Before the first student step come `warmup_calls` calls without the adversarial term (FastDFKD's
program has it in the last of them, and so do we; at 224 pixels theirs has it in all), then
`calls_per_epoch` calls an epoch, each with the student of that moment. The presets are the
published ones for CIFAR, and for 224 pixels where there is one (FastDFKD's Reptile). What the
public programs meant is done, not their slips: the batch of the lowest loss is kept for
DeepInversion too, kept noise maps really follow Reptile, adv_js does not saturate.

adi at 224 pixels has DeepInversion's weights, Adam and jitter, but all its updates at full size and
at one rate: its program begins at half the size and lets the rate rise and fall.

The pool is uint8 in memory and goes into every checkpoint: 3 kB an image at 32 x 32, 150 kB at
224 x 224 (there --pool-images and --checkpoint-seconds matter).

On a GPU the gradient of random-resized crops (cmi, and all at 224 pixels but adi) has no
deterministic kernel in torch: there a run that was killed ends close to, not in, the bits of one
that was not.
"""

import argparse
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import augment, files, inversion_terms
from dm_kd.errors import UserError
from dm_kd.run import Progress
from dm_kd.sources import online
from dm_kd.sources.networks import LabelGenerator, LargeGenerator, SmallGenerator
from dm_kd.tasks import Task

FAST = ("fastdfkd", "fastdfkd_reptile", "fast_sequential")
INIT, DRAW, VIEW, ORDER, BANK, LOCAL = 11, 12, 13, 14, 15, 16  # what random numbers are for
HEAD_WIDTH = 256  # of the contrastive head's output
LOCAL_AREA, LARGE_AREA = 0.25, 0.75  # least areas of CMI's local view, of FastDFKD's at 224

# --- presets --------------------------------------------------------------------------------------

_POOL = {"calls_per_epoch": 1, "warmup_calls": 20, "pool_images": 60_000}
_FAST = {"terms": {"bn_ema": 10.0, "ce_target": 0.5, "adv_dad": 1.0}, "bn_momentum": 0.9,
         "latent_size": 256, "generator_width": 128, "generator_rate": 2e-3, "latent_rate": 0.01,
         "inner_steps": 10, "reset_call": 120, "synthesis_batch": 256, **_POOL}
# meta_rate None: inner steps x generator rate; kept noise maps are of the 224-pixel program alone
_META = {**_FAST, "meta_rate": None, "latent_calls": 0, "meta_latent_rate": 5e-3}
_LARGE_POOL = {"calls_per_epoch": 10, "warmup_calls": 20, "pool_images": 20_000}
_LARGE_FAST = {"terms": {"bn_ema": 0.1, "ce_target": 0.1, "adv_dad": 0.1}, "bn_momentum": 0.9,
               "latent_size": 256, "generator_rate": 2e-4, "latent_rate": 0.01,
               "inner_steps": 50, "synthesis_batch": 100, **_LARGE_POOL}
_LARGE_META = {**_LARGE_FAST, "meta_rate": 1e-4, "latent_calls": 50, "meta_latent_rate": 5e-3}
_NAYER = {"generator_rate": 4e-3, "bn_momentum": 0.9, "inner_steps": 40, "loops": 2,
          "warmup_loops": 10, "life": 10}

SMALL = {
    "fastdfkd": _META,
    "fastdfkd_reptile": {**_META, "meta_pull": 67.0},
    "fast_sequential": _FAST,
    "cmi": {"terms": {"bn": 1.0, "ce_target": 1.0, "adv_dad": 0.5, "contrastive": 0.8},
            "latent_size": 256, "generator_width": 128, "generator_rate": 1e-3,
            "latent_rate": 1e-3, "head_rate": 1e-3, "inner_steps": 200, "synthesis_batch": 256,
            "contrast_temperature": 0.2, "bank_images": 4096, **_POOL},
    "nayer": {"terms": {"bn_ema": 10.0, "ce_target": 0.5, "adv_dad": 1.33}, **_NAYER,
              "latent_size": 1000, "generator_width": 128, "synthesis_batch": 400, **_POOL,
              "pool_images": 240_000},  # all that 20 + 200 calls make
    "adi": {"terms": {"bn": 10.0, "ce_target": 1.0, "adv_js": 1.0, "tv_l1": 1e-3},
            "pixel_rate": 0.1, "inner_steps": 1000, "synthesis_batch": 256, **_POOL},
}
LARGE = {  # only fastdfkd_reptile's is published; adi: DeepInversion's weights, at a constant rate
    "fastdfkd": _LARGE_META,
    "fastdfkd_reptile": {**_LARGE_META, "meta_pull": 1.0},
    "fast_sequential": _LARGE_FAST,
    "cmi": {**{k: v for k, v in SMALL["cmi"].items() if k != "generator_width"},
            "synthesis_batch": 100, "bank_images": 1000, **_LARGE_POOL},
    "nayer": {"terms": {"bn_ema": 0.1, "ce_target": 0.1, "adv_dad": 0.1}, **_NAYER,
              "latent_size": 256, "synthesis_batch": 100, **_LARGE_POOL},
    "adi": {"terms": {"bn": 0.01, "ce_target": 1.0, "adv_js": 0.2, "tv_l2": 1e-4, "l2": 1e-5},
            "pixel_rate": 0.25, "inner_steps": 2000, "synthesis_batch": 84, **_LARGE_POOL,
            "calls_per_epoch": 1},
}


def preset(method: str, large: bool) -> dict:
    """The preset for images of up to 64 pixels, or larger ones."""
    return (LARGE if large else SMALL)[method]


def add_arguments(parser: argparse.ArgumentParser, method: str, large: bool) -> None:
    online.add_arguments(parser, method, preset(method, large))
    if method == "nayer":
        parser.add_argument("--label-embeddings", default="onehot", metavar="onehot|FILE|HUB_ID",
                            help="what stands for a class: one-hot vectors; a .safetensors file "
                                 "with `embeddings` [classes, e]; or a CLIP text model's vectors "
                                 "of the class names (default: %(default)s)")


def build(args: argparse.Namespace, task: Task, teacher: nn.Module, device: torch.device
          ) -> "ReplaySource":
    """
    Raises:
        UserError: the teacher lacks what the method reads, no term for the warm-up, an epoch that
            can't be cut into the calls, or no such embeddings."""
    terms = online.weights(args, preset(args.source, task.crop))
    online.require(args, task, teacher, terms, device)
    active = {name for name, weight in terms.items() if weight}
    alone = not looks_at_student(args.source, 0, args.warmup_calls)
    if alone and active <= inversion_terms.OF_STUDENT:
        raise UserError(f"--source {args.source}: the warm-up, without the adversarial term, has "
                        "no term left", hint="--warmup-calls 0, or another weight above 0")
    if args.steps_per_epoch % args.calls_per_epoch:
        raise UserError(f"--calls-per-epoch {args.calls_per_epoch} does not divide "
                        f"--steps-per-epoch {args.steps_per_epoch}",
                        hint="as many student steps after each call")
    if getattr(args, "meta_rate", 0.0) is None:  # the published relation at 2, 5 and 10 inner steps
        args.meta_rate = args.inner_steps * args.generator_rate
    return ReplaySource(args, task, Parts(args, task, teacher, terms, device))


def looks_at_student(method: str, call: int, warmup_calls: int) -> bool:
    """Whether a call, counted from 0, has the adversarial term: those after the warm-up, of
    FastDFKD the last of the warm-up too (its program counts from 1 and begins at the 20th)."""
    return call + (method in FAST) >= warmup_calls


# --- what a maker of images works with ------------------------------------------------------------

@dataclass
class Parts:
    """Flags, task, teacher and terms, what follows from them, and the count of passes."""

    args: argparse.Namespace
    task: Task
    teacher: nn.Module  # in eval mode on `device`; its input must have gradients
    terms: dict[str, float]
    device: torch.device

    def __post_init__(self) -> None:
        self.standardize, self.bounds = online.standardizer(self.task, self.device)
        self.bf16 = self.args.amp == "bf16"
        self.pad = self.task.resolution // 8  # 4 of 32 pixels, as published
        self.made = {"generator_evaluations": 0, "teacher_passes": 0, "student_passes": 0}

    def terms_of(self, adversarial: bool) -> dict[str, float]:
        """Those of a call: during the warm-up the student is not looked at."""
        return {k: v for k, v in self.terms.items() if k != "contrastive" and v
                and (adversarial or k not in inversion_terms.OF_STUDENT)}

    def count(self, images: int, terms: dict[str, float], generated: bool = True) -> None:
        self.made["generator_evaluations"] += images * generated
        self.made["teacher_passes"] += images
        self.made["student_passes"] += images * bool(inversion_terms.OF_STUDENT & terms.keys())

    def generator(self, *key: int) -> nn.Module:
        """A new one, its weights a function of the key."""
        args, task = self.args, self.task
        with online.initialised_by(args.seed, *key):
            network = (LargeGenerator(args.latent_size, task.resolution, task.channels,
                                      bf16=self.bf16)
                       if task.crop else
                       SmallGenerator(args.latent_size, args.generator_width, task.resolution,
                                      task.channels, bf16=self.bf16))
        return network.to(self.device, memory_format=torch.channels_last)

    def draws(self, call: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A call's classes, uniform int64 [B], and noise [B, *shape]."""
        draw, size = online.numbers(self.args.seed, call, DRAW), self.args.synthesis_batch
        targets = torch.randint(self.task.num_classes, (size,), generator=draw)
        return targets.to(self.device), torch.randn(size, *shape, generator=draw).to(self.device)

    def view(self, images: Tensor, call: int, step: int) -> Tensor:
        """What the networks see of images in [0, 1], with gradients: at 224 pixels random-resized
        crops of 75 to 100 %, else pad, crop; mirrored where the task mirrors. Standardised."""
        moment = call * 100_003 + step
        if self.task.crop:
            return self.standardize(resized_view(
                images, LARGE_AREA, True, online.numbers(self.args.seed, call, step, VIEW)))
        ids = torch.arange(len(images))
        offsets = augment.crop_offsets(self.args.seed, moment, ids, self.pad)
        mirrored = augment.flips(self.args.seed, moment, ids) & self.task.flip
        return self.standardize(augment.pad_crop_flip(images, offsets, mirrored, self.pad))


def resized_view(x: Tensor, least: float, flip: bool, draw: torch.Generator) -> Tensor:
    """Random-resized crops with gradients: `least` to 100 % of the area, sides 3/4 to 4/3,
    bilinear. float [B, C, H, W] -> the same."""
    area, ratio, row, column, coin = torch.rand(5, len(x), generator=draw)
    area, ratio = least + (1 - least) * area, torch.exp(math.log(4 / 3) * (2 * ratio - 1))
    w, h = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = torch.where(coin < 0.5, -w, w) if flip else w
    theta[:, 1, 1] = h
    theta[:, 0, 2], theta[:, 1, 2] = (1 - w) * (2 * column - 1), (1 - h) * (2 * row - 1)
    grid = F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def averages_on(averages: list | None, device: torch.device
                ) -> inversion_terms.Statistics | None:
    """Batch statistics of a checkpoint, on the device."""
    return averages and [tuple(v.to(device) for v in pair) for pair in averages]


class Lowest:
    """A copy of the batch with the lowest loss so far."""

    def __init__(self):
        self.loss, self.images = math.inf, None

    def offer(self, loss: Tensor, images: Tensor) -> None:
        if loss.item() < self.loss:
            self.loss, self.images = loss.item(), images.detach().clone()


# --- FastDFKD -------------------------------------------------------------------------------------

class FastMaker:
    """A few updates of a copy of a meta generator and of the noise make a batch; then the meta
    generator follows. fast_sequential: the updates are the generator's own."""

    def __init__(self, parts: Parts):
        self.parts, self.args = parts, parts.args
        self.generator = parts.generator(INIT)
        self.outer = None if self.args.source == "fast_sequential" else self.outer_optimizer()
        self.latents: Tensor | None = None  # the kept noise maps
        self.averages: inversion_terms.Statistics | None = None

    def outer_optimizer(self, *latents: Tensor) -> torch.optim.Adam:
        groups = [{"params": list(self.generator.parameters()), "lr": self.args.meta_rate}]
        groups += [{"params": [z], "lr": self.args.meta_latent_rate} for z in latents]
        return torch.optim.Adam(groups, **online.ADAM)

    def start(self, call: int) -> tuple[Tensor, Tensor]:
        """Classes and noise of a call; resets what is due."""
        targets, z = self.parts.draws(call, self.generator.shape)
        reset = getattr(self.args, "reset_call", 0)  # of the small program alone
        if reset and call + 1 == self.args.warmup_calls + reset:
            self.generator.reset_first(online.numbers(self.args.seed, call, INIT))
        if self.outer is not None and self.args.latent_calls:
            if call % self.args.latent_calls == 0:
                self.latents = z
                self.outer = self.outer_optimizer(self.latents)
            z = self.latents
        return targets, z.clone().requires_grad_()

    def make(self, student: nn.Module, call: int, adversarial: bool, pool: Tensor
             ) -> list[tuple[Tensor, Tensor]]:
        """[(images float in [0, 1] [B, C, H, W], classes [B])]. student: held still."""
        args, terms = self.args, self.parts.terms_of(adversarial)
        targets, z = self.start(call)
        network = self.generator if self.outer is None else copy.deepcopy(self.generator)
        inner = torch.optim.Adam([{"params": list(network.parameters()),
                                   "lr": args.generator_rate},
                                  {"params": [z], "lr": args.latent_rate}], **online.ADAM)
        best, total = Lowest(), None
        sums = self.outer is not None and not hasattr(args, "meta_pull")  # MAML
        for k in range(args.inner_steps):
            images = network(z)
            losses, read = inversion_terms.weighted(
                terms, self.parts.teacher, self.parts.view(images, call, k), student, targets,
                self.averages, args.bn_momentum, bf16=self.parts.bf16)
            inversion_terms.check_finite(losses, f"in call {call + 1} at step {k + 1}")
            loss = sum(losses.values())
            best.offer(loss, images)
            online.step_with(loss, inner)
            if sums:
                gradients = [p.grad for p in network.parameters()]
                total = gradients if total is None else [a + b for a, b in zip(total, gradients,
                                                                               strict=True)]
        if read.statistics:
            self.averages = inversion_terms.update_averages(self.averages, read.statistics,
                                                            args.bn_momentum)
        self.parts.count(args.synthesis_batch * args.inner_steps, terms)
        if self.outer is not None:
            self.follow(network, z, total)
        return [(best.images, targets)]

    def follow(self, network: nn.Module, z: Tensor, gradients: list[Tensor] | None) -> None:
        """The meta generator's step: along the sum of the copy's gradients (first-order MAML,
        arXiv 1703.03400), or towards the adapted copy (Reptile, arXiv 1803.02999). The kept noise
        follows by Reptile; the public program adds up values of the noise instead of gradients."""
        pull = getattr(self.args, "meta_pull", None)
        if pull:
            gradients = [pull * (old - new).detach() for old, new in zip(
                self.generator.parameters(), network.parameters(), strict=True)]
        for parameter, gradient in zip(self.generator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        if self.latents is not None:
            self.latents.grad = (pull or 1.0) * (self.latents - z).detach()
        self.outer.step()

    def state_dict(self) -> dict:
        return {"generator": self.generator.state_dict(), "latents": self.latents,
                "outer": self.outer and self.outer.state_dict(), "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.latents = state["latents"]
        if self.latents is not None:
            self.latents = self.latents.to(self.parts.device)
        self.averages = averages_on(state["averages"], self.parts.device)
        if self.outer is not None:
            self.outer = self.outer_optimizer(*[z for z in (self.latents,) if z is not None])
            self.outer.load_state_dict(state["outer"])


# --- CMI ------------------------------------------------------------------------------------------

class ContrastiveMaker:
    """A new generator for each batch; a head, kept, tells images apart by the teacher's features.

    Its memory bank is the pool itself: features of `bank_images` of its images are computed anew
    at each call (two passes each), where the authors' program keeps vectors."""

    def __init__(self, parts: Parts):
        self.parts, self.args = parts, parts.args
        size = 1  # of a teacher's features; none are looked at where the term has weight 0
        if parts.terms["contrastive"]:
            size = self.features(torch.zeros(2, parts.task.channels, *[parts.task.resolution] * 2,
                                             device=parts.device)).shape[1]
        with online.initialised_by(self.args.seed, INIT):
            self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(),
                                      nn.Linear(size, HEAD_WIDTH)).to(parts.device)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr=self.args.head_rate,
                                               **online.ADAM)

    def features(self, x: Tensor) -> Tensor:
        """Standardised images -> [B, d]: batch norms' inputs, averaged over space."""
        with inversion_terms.reading(self.parts.teacher, False, True) as read:
            inversion_terms.lowered(self.parts.teacher, x, self.parts.bf16)
        return inversion_terms.chosen_means(read.means)

    def local(self, images: Tensor, *key: int) -> Tensor:
        """Cut-outs of 25 to 100 %, standardised."""
        return self.parts.standardize(resized_view(images, LOCAL_AREA, self.parts.task.flip,
                                                   online.numbers(self.args.seed, *key)))

    @torch.no_grad()
    def bank(self, pool: Tensor, call: int) -> tuple[Tensor, Tensor]:
        """Features [N, d] of cut-outs and wholes of some of the pool's images (N may be 0)."""
        draw = online.numbers(self.args.seed, call, BANK)
        chosen = torch.randperm(len(pool), generator=draw)[:self.args.bank_images]
        found = []
        parts = chosen.split(self.args.synthesis_batch) if len(chosen) else ()
        for i, index in enumerate(parts):
            images = pool[index].to(self.parts.device).float() / 255
            found.append((self.features(self.local(images, call, BANK, i, LOCAL)),
                          self.features(self.parts.view(images, call, self.args.inner_steps + i))))
        self.parts.made["teacher_passes"] += 2 * len(chosen)
        none = torch.zeros(0, self.head[0].in_features, device=self.parts.device)
        return tuple(torch.cat([none, *part]) for part in (
            [local for local, _ in found], [whole for _, whole in found]))

    def contrast(self, local: Tensor, whole: Tensor, bank: tuple[Tensor, Tensor]) -> Tensor:
        unit = [F.normalize(self.head(torch.cat(pair)), dim=1) for pair in (
            (local, bank[0]), (whole, bank[1]))]
        return inversion_terms.contrastive(*unit, self.args.contrast_temperature, len(local))

    def make(self, student: nn.Module, call: int, adversarial: bool, pool: Tensor
             ) -> list[tuple[Tensor, Tensor]]:
        """As FastMaker.make."""
        args, parts, terms = self.args, self.parts, self.parts.terms_of(adversarial)
        network, weight = parts.generator(call, INIT), parts.terms["contrastive"]
        targets, z = parts.draws(call, network.shape)
        z.requires_grad_()
        own = [{"params": list(network.parameters()), "lr": args.generator_rate},
               {"params": [z], "lr": args.latent_rate}]
        optimizer, best = torch.optim.Adam(own, **online.ADAM), Lowest()
        bank = self.bank(pool, call) if weight else None
        for k in range(args.inner_steps):
            images = network(z)
            losses, read = inversion_terms.weighted(
                terms, parts.teacher, parts.view(images, call, k), student, targets, means=True,
                bf16=parts.bf16)
            if weight:
                local = self.features(self.local(images, call, k, LOCAL))
                whole = inversion_terms.chosen_means(read.means)
                losses["contrastive"] = weight * self.contrast(local, whole, bank)
            inversion_terms.check_finite(losses, f"in call {call + 1} at step {k + 1}")
            loss = sum(losses.values())
            best.offer(loss, images)
            # generator and head go down the same loss
            online.step_with(loss, optimizer, *[self.head_optimizer] * bool(weight))
        parts.count(args.synthesis_batch * args.inner_steps, terms)
        parts.made["teacher_passes"] += bool(weight) * args.synthesis_batch * args.inner_steps
        return [(best.images, targets)]

    def state_dict(self) -> dict:
        return {"head": self.head.state_dict(), "head_optimizer": self.head_optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.head.load_state_dict(state["head"])
        self.head_optimizer.load_state_dict(state["head_optimizer"])


# --- NAYER ----------------------------------------------------------------------------------------

class NoisyLabelMaker:
    """A generator from class embeddings. Each batch gets fresh noisy layers and an Adam of its own
    and is the best of `inner_steps` updates; the other weights go on to the next batch, and are
    drawn anew each `life` calls, counted from the first and from the end of the warm-up (which are
    the same calls where the warm-up is a multiple of `life`, as published, else twice as many). The
    authors' program compares a call's later batches with the lowest loss of its earlier ones, so
    that what it keeps of them may be their first images; here each is compared with itself."""

    def __init__(self, parts: Parts):
        self.parts, self.args = parts, parts.args
        self.embeddings = class_embeddings(self.args.label_embeddings, parts.task)
        self.copies = -(-self.args.synthesis_batch // parts.task.num_classes)
        self.generator = self.new_generator(0)
        self.averages: inversion_terms.Statistics | None = None

    def new_generator(self, call: int) -> LabelGenerator:
        """Its weights are a function of the call."""
        args, side = self.args, self.parts.task.resolution // 16
        body = self.parts.generator(call, INIT)
        with online.initialised_by(args.seed, call, INIT, 1):
            if self.parts.task.crop:
                # its body is of maps: one linear layer spreads the vector over the first map
                body = nn.Sequential(MapLayer(args.latent_size, side), body)
            generator = LabelGenerator(self.embeddings, self.copies, args.latent_size, body)
        return generator.to(self.parts.device)

    def classes(self, draw: torch.Generator) -> Tensor:
        """[B]: each noisy layer's part is a permutation of all classes, the last one's cut off."""
        orders = [torch.randperm(self.parts.task.num_classes, generator=draw)
                  for _ in range(self.copies)]
        return torch.cat(orders)[:self.args.synthesis_batch].to(self.parts.device)

    def make(self, student: nn.Module, call: int, adversarial: bool, pool: Tensor
             ) -> list[tuple[Tensor, Tensor]]:
        """As FastMaker.make; `loops` batches, `warmup_loops` in a call of the warm-up."""
        args, terms = self.args, self.parts.terms_of(adversarial)
        late = call - args.warmup_calls  # below 0 in the warm-up
        if args.life and call and 0 in (call % args.life, late % args.life):
            self.generator = self.new_generator(call)
        loops = args.loops if late >= 0 else args.warmup_loops
        made = [self.batch(student, call, loop, terms) for loop in range(loops)]
        self.parts.count(args.synthesis_batch * args.inner_steps * loops, terms)
        return made

    def batch(self, student: nn.Module, call: int, loop: int, terms: dict[str, float]
              ) -> tuple[Tensor, Tensor]:
        """(images, classes) of fresh noisy layers."""
        args, parts = self.args, self.parts
        draw = online.numbers(args.seed, call, loop, DRAW)
        self.generator.draw_noisy(draw)
        optimizer = torch.optim.Adam(self.generator.parameters(), lr=args.generator_rate,
                                     **online.ADAM)
        targets, best, first = self.classes(draw), Lowest(), loop * args.inner_steps
        for k in range(first, first + args.inner_steps):
            images = self.generator(targets)
            losses, read = inversion_terms.weighted(
                terms, parts.teacher, parts.view(images, call, k), student, targets,
                self.averages, args.bn_momentum, bf16=parts.bf16)
            inversion_terms.check_finite(losses, f"in call {call + 1} at step {k + 1}")
            loss = sum(losses.values())
            best.offer(loss, images)
            online.step_with(loss, optimizer)
        if read.statistics:
            self.averages = inversion_terms.update_averages(self.averages, read.statistics,
                                                            args.bn_momentum)
        return best.images, targets

    def state_dict(self) -> dict:
        return {"generator": self.generator.state_dict(), "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.averages = averages_on(state["averages"], self.parts.device)


class MapLayer(nn.Module):
    """A vector [B, n] -> a map [B, n, side, side]: a learnt bias for each place, the vector's
    numbers scaled by a learnt weight there."""

    def __init__(self, size: int, side: int):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(size, side, side))
        self.bias = nn.Parameter(torch.zeros(size, side, side))

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :, None, None] * self.scale + self.bias


def class_embeddings(choice: str, task: Task) -> Tensor:
    """float32 [classes, e].

    Raises:
        UserError: no such file, other classes, or the package transformers is missing."""
    if choice == "onehot":
        return torch.eye(task.num_classes)
    if choice.endswith(".safetensors"):
        path = files.must_exist(Path(choice), "--label-embeddings", "file of embeddings")
        found = files.load_safetensors(path).get("embeddings")
        if found is None or found.ndim != 2 or len(found) != task.num_classes:
            raise UserError(f"the file must hold `embeddings` [{task.num_classes}, e]", file=path)
        return found.float()
    try:
        import transformers
    except ImportError as error:
        raise UserError("--label-embeddings of class names needs transformers",
                        hint="pip install transformers; or --label-embeddings onehot") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(choice)
        model = transformers.CLIPTextModelWithProjection.from_pretrained(
            choice, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise UserError("could not load the text model", model=choice,
                        found=str(error).splitlines()[0][:100],
                        hint="openai/clip-vit-base-patch32, a folder, or onehot") from error
    words = tokenizer([f"a photo of a {name}" for name in task.class_names], padding=True,
                      return_tensors="pt")
    with torch.no_grad():
        return model(**words).text_embeds.float()


# --- adaptive DeepInversion -----------------------------------------------------------------------

class PixelMaker:
    """Pixels from noise, optimised against teacher and student. Nothing is kept between calls."""

    def __init__(self, parts: Parts):
        self.parts, self.args = parts, parts.args

    def make(self, student: nn.Module, call: int, adversarial: bool, pool: Tensor
             ) -> list[tuple[Tensor, Tensor]]:
        """As FastMaker.make."""
        args, parts, terms = self.args, self.parts, self.parts.terms_of(adversarial)
        shape = (parts.task.channels, parts.task.resolution, parts.task.resolution)
        targets, x = parts.draws(call, shape)
        draw = online.numbers(args.seed, call, VIEW)
        # DeepInversion's ImageNet recipe: weight of the first layer, Adam's betas, most jitter
        first, betas, most = (10.0, (0.5, 0.9), 30) if parts.task.crop else (
            1.0, (0.5, 0.99), parts.pad)

        def parts_of(viewed: Tensor) -> dict[str, Tensor]:
            return inversion_terms.weighted(terms, parts.teacher, viewed, student, targets,
                                            first=first, bf16=parts.bf16)[0]

        best = inversion_terms.descend(
            x, parts_of, args.inner_steps, lambda i: args.pixel_rate, betas, parts.bounds,
            lambda x: inversion_terms.jitter(x, most, parts.task.flip, draw),
            f"in call {call + 1}")
        parts.count(args.synthesis_batch * args.inner_steps, terms, generated=False)
        black, white = parts.bounds
        return [((best - black) / (white - black), targets)]

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        assert state == {}, state


MAKERS = {**dict.fromkeys(FAST, FastMaker), "cmi": ContrastiveMaker, "nayer": NoisyLabelMaker,
          "adi": PixelMaker}


# --- the source -----------------------------------------------------------------------------------

def first_rows(tensor: Tensor, count: int) -> Tensor:
    """The same memory as tensor[:count], as a tensor of just this size: torch.save writes all that
    a view looks into."""
    return torch.from_numpy(tensor.numpy()[:count])


class ReplaySource:
    """The pool, and the calls that fill it.

    Args:
        args: of distill, with the preset's flags.
    """

    def __init__(self, args: argparse.Namespace, task: Task, parts: Parts):
        self.args, self.parts, self.maker = args, parts, MAKERS[args.source](parts)
        self.steps_per_epoch = args.steps_per_epoch
        self.pool = torch.empty(args.pool_images, task.channels, task.resolution, task.resolution,
                                dtype=torch.uint8)
        self.labels = torch.empty(args.pool_images, dtype=torch.int64)
        self.calls, self.total = 0, 0  # total: images ever made
        self.inputs = {}  # digests of what it reads, which a resumed run must find again
        if str(getattr(args, "label_embeddings", "")).endswith(".safetensors"):
            self.inputs["label_embeddings_sha256"] = files.sha256_file(Path(args.label_embeddings))

    @property
    def kept(self) -> int:
        return min(self.total, len(self.pool))

    def call(self, student: nn.Module) -> None:
        """Make images, put them into the pool; a full one loses its oldest.

        Raises:
            DivergedError: a term is not finite."""
        with online.still(student):
            made = self.maker.make(student, self.calls, looks_at_student(
                self.args.source, self.calls, self.args.warmup_calls), self.pool[:self.kept])
        for images, classes in made:
            images = online.to_uint8(images).cpu()[-len(self.pool):]
            places = (self.total + torch.arange(len(images))) % len(self.pool)
            self.pool[places], self.labels[places] = images, classes.cpu()[-len(images):]
            self.total += len(images)
        self.calls += 1

    def warm_up(self, student: nn.Module) -> Iterator[int]:
        """The calls before the first student step that are still to be made; yields after each, so
        that the loop can save and stop there."""
        if self.calls >= self.args.warmup_calls:
            return
        bar = Progress(self.args.warmup_calls, "first images", "calls", done=self.calls)
        while self.calls < self.args.warmup_calls:
            self.call(student)
            bar.update()
            yield self.calls
        bar.close()

    def order(self, epoch: int, cycle: int, count: int) -> np.ndarray:
        """Places in the pool between two calls, int64 [count]: permutations of all, one after the
        other, each place plus the pool's size times its permutation's number."""
        rounds = [np.random.Generator(np.random.PCG64(
            [self.args.seed, epoch, cycle, r, ORDER])).permutation(self.kept)
            + len(self.pool) * (r + (cycle << 20)) for r in range(-(-count // self.kept))]
        return np.concatenate(rounds)[:count]

    def batches(self, epoch: int, first_step: int = 0, student: nn.Module | None = None
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images uint8 [B, C, H, W], the classes they were made for, ids unique in the epoch). All
        that changes here does so before a batch is handed out, so that `state_dict` belongs to the
        moment after it."""
        size, last = self.args.batch_size, None
        length = self.steps_per_epoch // self.args.calls_per_epoch  # steps of a cycle
        for step in range(first_step, self.steps_per_epoch):
            cycle, at = divmod(step, length)
            if at == 0:
                for _ in self.warm_up(student):  # what the loop has left of it
                    pass
                self.call(student)
            if cycle != last:
                order, last = torch.from_numpy(self.order(epoch, cycle, length * size)), cycle
            ids = order[at * size:(at + 1) * size]
            places = ids % len(self.pool)
            if online.picture_due(epoch, step, self.steps_per_epoch, self.args.epochs):
                newest = (self.total - 1 - torch.arange(min(100, self.kept))) % len(self.pool)
                online.write_samples(self.args.out, self.pool[newest])
            yield self.pool[places], self.labels[places], ids

    def held_out(self, student: nn.Module) -> Tensor:
        """The images of one more call, without the adversarial term unless there is no other, which
        the pool does not get; uint8 [N, C, H, W]. The makers go on learning in it: for after the
        last step."""
        only = {k for k, v in self.parts.terms.items() if v} <= inversion_terms.OF_STUDENT
        with online.still(student):
            made = self.maker.make(student, self.calls, only, self.pool[:self.kept])
        return torch.cat([online.to_uint8(images).cpu() for images, _ in made])

    def budget(self) -> dict[str, int]:
        """What this source has used, in images; the loop's own passes come on top."""
        return {"images_kept": self.kept, **self.parts.made}

    def state_dict(self) -> dict:
        """The pool's images are not copied: write it before the next call."""
        return {"pool": first_rows(self.pool, self.kept),
                "labels": first_rows(self.labels, self.kept),
                "calls": self.calls, "total": self.total, "made": dict(self.parts.made),
                "maker": self.maker.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.calls, self.total, self.parts.made = state["calls"], state["total"], state["made"]
        self.pool[:self.kept], self.labels[:self.kept] = state["pool"], state["labels"]
        self.maker.load_state_dict(state["maker"])
