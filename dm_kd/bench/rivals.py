"""How fast the rivals make their images and teach their student, on random images and weights.

    sh scripts/bench.sh rivals --threads 1
    python -m dm_kd.bench.rivals --threads 1 [--methods dafl,fastdfkd]

A is a plain restatement of each public loop: float32, NCHW, weights of teacher and student in the
graph (so that both get gradients nobody uses), hooks left on, crops image by image, and for those
with a pool each image a PNG that the student's batches decode again. Ours: dm_kd.sources and
generators.deepinversion as distill and synthesize run them. Both begin with the same weights,
noise and crops; that their terms agree, over two calls, is asserted before any speed. The
restatement leaves the public programs' slips out (inversion_terms names them): else there would be
nothing to compare. DiffDFKD's rows are of a small pixel DiT with random weights, steered by teacher
and student: what is compared is the guided sampling step, not the authors' Stable Diffusion.

Times are per 1,000 images, scaled from --inner-steps to the preset's number of them, and per
student step with its share of making the images, as the preset has it.
"""

import argparse
import contextlib
import copy
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import (
    augment,
    distill,
    engine,
    frozen,
    image_set,
    inversion_terms,
    models,
    objectives,
    run,
)
from dm_kd.bench import measure
from dm_kd.errors import UserError
from dm_kd.generators import deepinversion, dit
from dm_kd.generators.diffusion import noise_source
from dm_kd.image_files import read_image
from dm_kd.sources import online, replay, stream
from dm_kd.tasks import Task, get_task

STORED = ("deepinversion", "diffdfkd")  # whose images are made before the student's first step
METHODS = (*stream.PRESETS, *replay.MAKERS, *STORED)
# DiffDFKD's; weight: ours, of the step along the gradient of unit length, so that a wrong one shows
GUIDED = {"terms": dit.GUIDANCE_TERMS | dit.ADVERSARY, "steps": 50, "scale": 3.0, "weight": 10.0}
LIMIT = 5e-3  # of a term, relative: two summation orders, and Adam's steps between
SMALLEST = 1e-6  # a term below it is 0
FAVOUR = 3.0  # of the student's logit of the teacher's class
TEMPERATURE = 10.0
KEEPS = 400  # student steps between two calls of a method with a pool (its epoch)


# --- a plain restatement --------------------------------------------------------------------------

class Watch:
    """A teacher with hooks on its batch norms and its last linear layer."""

    def __init__(self, teacher: nn.Module):
        self.teacher, self.norms, self.features = teacher, [], None
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self.note)
        inversion_terms.last_linear(teacher).register_forward_pre_hook(self.keep)

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.norms.append((module, mean, variance, x.mean([2, 3])))

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]

    def __call__(self, x: Tensor) -> Tensor:
        self.norms = []
        return self.teacher(x)


def plain_bn(norms: list[tuple], averages: list[tuple] | None = None, m: float = 0.0) -> Tensor:
    total = 0.0
    for i, (module, mean, variance, _) in enumerate(norms):
        if averages is not None:
            mean = (1 - m) * mean + m * averages[i][0]
            variance = (1 - m) * variance + m * averages[i][1]
        total = total + (module.running_var - variance).norm(2) + (module.running_mean - mean
                                                                   ).norm(2)
    return total


def plain_terms(weights: dict[str, float], watch: Watch, student: nn.Module, x: Tensor,
                targets: Tensor | None = None, averages: list[tuple] | None = None, m: float = 0.0
                ) -> dict[str, Tensor]:
    """A method's weighted terms, each written out once more."""
    t = watch(x)
    s = student(x) if inversion_terms.OF_STUDENT & weights.keys() else None
    p = F.softmax(t, 1)
    mean = p.mean(0)

    def kl() -> Tensor:
        return F.kl_div(F.log_softmax(s, 1), p, reduction="none").sum(1)

    def js() -> Tensor:
        a, b = F.softmax(s / 3, 1), F.softmax(t / 3, 1)
        middle = ((a + b) / 2).log()
        return (F.kl_div(middle, a, reduction="batchmean") + F.kl_div(middle, b,
                                                                      reduction="batchmean")) / 2

    def differences() -> tuple[Tensor, ...]:
        return (x[:, :, :, :-1] - x[:, :, :, 1:], x[:, :, :-1] - x[:, :, 1:],
                x[:, :, :-1, :-1] - x[:, :, 1:, 1:], x[:, :, 1:, :-1] - x[:, :, :-1, 1:])

    values = {
        "bn": lambda: plain_bn(watch.norms), "bn_ema": lambda: plain_bn(watch.norms, averages, m),
        "ce_target": lambda: F.cross_entropy(t, targets),
        "onehot": lambda: F.cross_entropy(t, t.max(1)[1]),
        "act": lambda: -watch.features.abs().mean(),
        "balance": lambda: (mean * torch.log(mean)).sum(),
        "adv_kl": lambda: -kl().mean(),
        "adv_dad": lambda: -(kl() * (t.max(1)[1] == s.max(1)[1]).float()).mean(),
        "adv_js": lambda: -js(), "tv_l1": lambda: sum(d.abs().mean() for d in differences()),
        "tv_l2": lambda: sum(torch.norm(d) for d in differences()),
        "l2": lambda: torch.norm(x.reshape(len(x), -1), dim=1).mean()}
    return {name: weight * values[name]() for name, weight in weights.items() if weight}


def plain_view(x: Tensor, offsets: Tensor, mirrored: Tensor, pad: int) -> Tensor:
    """Crops of the padded images, one after the other."""
    side, padded, out = x.shape[2], F.pad(x, [pad] * 4), []
    for image, (top, left), mirror in zip(padded, offsets.tolist(), mirrored.tolist(),
                                          strict=True):
        cut = image[:, top:top + side, left:left + side]
        out.append(cut.flip(2) if mirror else cut)
    return torch.stack(out)


class Plain:
    """A method's public loop, on copies of our source's networks with the same numbers.

    Args:
        source: ours, fresh; what it draws (noise, classes, crops) is drawn here too.
    """

    def __init__(self, args: argparse.Namespace, task: Task, source, teacher: nn.Module,
                 student: nn.Module, weights: dict[str, float], device: torch.device, folder: Path):
        self.args, self.task, self.source, self.device = args, task, source, device
        self.teacher = nchw(teacher).requires_grad_(True)
        self.watch, self.student = Watch(self.teacher), nchw(student)
        self.weights, self.folder, self.saved = weights, folder, 0
        self.seen: list[dict[str, float]] = []  # the terms of each update
        self.mean, self.std = (torch.tensor(v, device=device).view(1, -1, 1, 1)
                               for v in (task.mean, task.std))
        self.averages: list[tuple] | None = None
        holder = getattr(source, "maker", source)
        self.generator = nchw(holder.generator) if hasattr(holder, "generator") else None
        self.head = nchw(holder.head) if hasattr(holder, "head") else None
        if self.head is not None:
            self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr=args.head_rate,
                                                   betas=(0.5, 0.999))
        if args.source in stream.PRESETS:
            self.outer = torch.optim.Adam(self.generator.parameters(), lr=args.generator_rate,
                                          betas=(0.5, 0.999))
        elif hasattr(args, "meta_rate"):
            self.outer = torch.optim.Adam(self.generator.parameters(), lr=args.meta_rate,
                                          betas=(0.5, 0.999))

    def standardize(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def view(self, images: Tensor, call: int, step: int) -> Tensor:
        pad, moment, ids = self.source.parts.pad, call * 100_003 + step, torch.arange(len(images))
        return self.standardize(plain_view(
            images, augment.crop_offsets(self.args.seed, moment, ids, pad),
            augment.flips(self.args.seed, moment, ids) & self.task.flip, pad))

    def terms(self, call: int) -> dict[str, float]:
        """Without the student in the warm-up."""
        first = self.args.warmup_calls - self.args.source.startswith("fast")  # they count from 1
        return {k: v for k, v in self.weights.items() if k != "contrastive" and (
            call >= first or k not in inversion_terms.OF_STUDENT)}

    def loss(self, terms: dict[str, float], x: Tensor, *rest, **more) -> Tensor:
        parts = plain_terms(terms, self.watch, self.student, x, *rest, **more)
        self.seen.append({name: value.item() for name, value in parts.items()})
        return sum(parts.values())

    def save(self, images: Tensor) -> None:
        """Each image a PNG, as those with a pool keep them."""
        for image in (images * 255).clamp(0, 255).to(torch.uint8).cpu():
            (self.folder / f"{self.saved}.png").write_bytes(image_set.encode_png(image))
            self.saved += 1

    def keep_averages(self) -> None:
        m, now = getattr(self.args, "bn_momentum", 0.0), [
            (mean.detach(), variance.detach()) for _, mean, variance, _ in self.watch.norms]
        self.averages = now if self.averages is None else [
            (m * a + (1 - m) * b, m * c + (1 - m) * d)
            for (a, c), (b, d) in zip(self.averages, now, strict=True)]

    # --- DAFL, DFQ, ZSKT

    def stream(self, call: int) -> None:
        """An update, then `student_steps` batches."""
        noise = self.source.noise(self.args.synthesis_batch, call * self.args.student_steps,
                                  stream.UPDATE)
        loss = self.loss(self.weights, self.standardize(self.generator(noise)))
        self.outer.zero_grad()
        loss.backward()
        self.outer.step()
        for _ in range(self.args.student_steps):
            with torch.no_grad():
                self.generator(torch.randn(self.args.batch_size, self.args.latent_size,
                                           device=self.device))

    # --- FastDFKD

    def fast(self, call: int) -> None:
        args, terms, losses, best = self.args, self.terms(call), [], None
        targets, z = self.source.parts.draws(call, self.generator.shape)
        meta = args.source != "fast_sequential"
        network = copy.deepcopy(self.generator) if meta else self.generator
        z.requires_grad_()
        inner = torch.optim.Adam([{"params": network.parameters(), "lr": args.generator_rate},
                                  {"params": [z], "lr": args.latent_rate}], betas=(0.5, 0.999))
        self.generator.zero_grad(set_to_none=False)
        sums = [torch.zeros_like(p) for p in network.parameters()]
        for k in range(args.inner_steps):
            images = network(z)
            loss = self.loss(terms, self.view(images, call, k), targets, self.averages,
                             args.bn_momentum)
            losses.append(loss.item())
            if losses[-1] == min(losses):
                best = images.data
            inner.zero_grad()
            loss.backward()
            for total, p in zip(sums, network.parameters(), strict=True):
                total += p.grad
            inner.step()
        self.keep_averages()
        if meta:
            pull = getattr(args, "meta_pull", None)
            for p, q, total in zip(self.generator.parameters(), network.parameters(), sums,
                                   strict=True):
                p.grad = pull * (p.data - q.data) if pull else total
            self.outer.step()
        self.save(best)

    # --- CMI

    def project(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(x), dim=1)

    def means(self) -> Tensor:
        return inversion_terms.chosen_means([means for *_, means in self.watch.norms])

    def cmi(self, call: int) -> None:
        """With the contrast of the batch's own images: their bank keeps vectors, ours pixels."""
        args, terms, losses, best = self.args, self.terms(call), [], None
        parts = self.source.parts
        network = nchw(parts.generator(call, replay.INIT))
        targets, z = parts.draws(call, network.shape)
        z.requires_grad_()
        optimizer = torch.optim.Adam([{"params": network.parameters(), "lr": args.generator_rate},
                                      {"params": [z], "lr": args.latent_rate}], betas=(0.5, 0.999))
        for k in range(args.inner_steps):
            images = network(z)
            loss = self.loss(terms, self.view(images, call, k), targets)
            whole = self.project(self.means())
            cut = replay.resized_view(images, replay.LOCAL_AREA, self.task.flip, online.numbers(
                args.seed, call, k, replay.LOCAL))
            self.watch(self.standardize(cut))
            logits = self.project(self.means()) @ whole.detach().T / args.contrast_temperature
            contrast = self.weights["contrastive"] * F.cross_entropy(
                logits, torch.arange(len(logits), device=logits.device))
            self.seen[-1]["contrastive"] = contrast.item()
            loss = loss + contrast
            losses.append(loss.item())
            if losses[-1] == min(losses):
                best = images.data
            optimizer.zero_grad()
            self.head_optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.head_optimizer.step()
        self.save(best)

    # --- NAYER

    def nayer(self, call: int) -> None:
        args, terms, maker = self.args, self.terms(call), self.source.maker
        if call and (call % args.life == 0 or (call - args.warmup_calls) % args.life == 0):
            self.generator = nchw(maker.new_generator(call))
        for loop in range(args.warmup_loops if call < args.warmup_calls else args.loops):
            draw, losses, best = online.numbers(args.seed, call, loop, replay.DRAW), [], None
            self.generator.draw_noisy(draw)
            targets = maker.classes(draw)
            optimizer = torch.optim.Adam(self.generator.parameters(), lr=args.generator_rate,
                                         betas=(0.5, 0.999))
            for k in range(args.inner_steps):
                images = self.generator(targets)
                loss = self.loss(terms, self.view(images, call, loop * args.inner_steps + k),
                                 targets, self.averages, args.bn_momentum)
                losses.append(loss.item())
                if losses[-1] == min(losses):
                    best = images.data
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            self.keep_averages()
            self.save(best)

    # --- DeepInversion

    def pixels(self, x: Tensor, targets: Tensor, weights: dict[str, float], steps: int, rate: float,
               betas: tuple[float, float], most: int, flip: bool, draw: torch.Generator
               ) -> Tensor:
        low, high = self.standardize(torch.zeros_like(x)), self.standardize(torch.ones_like(x))
        x = x.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=rate, betas=betas)
        for _ in range(steps):
            loss = self.loss(weights, inversion_terms.jitter(x, most, flip, draw), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            x.data = torch.maximum(torch.minimum(x.data, high), low)
        return x.detach() * self.std + self.mean

    def adi(self, call: int) -> None:
        args, side = self.args, self.task.resolution
        targets, x = self.source.parts.draws(call, (self.task.channels, side, side))
        self.save(self.pixels(x, targets, self.terms(call), args.inner_steps, args.pixel_rate,
                              (0.5, 0.99), self.source.parts.pad, self.task.flip,
                              online.numbers(args.seed, call, replay.VIEW)))

    def call(self, number: int) -> None:
        kinds = dict.fromkeys(stream.PRESETS, self.stream) | {
            "cmi": self.cmi, "nayer": self.nayer, "adi": self.adi}
        self.student.eval()
        kinds.get(self.args.source, self.fast)(number)
        self.student.train()

    def step(self, optimizer: torch.optim.Optimizer, images: list[Path] | Tensor) -> None:
        """A student step of 8-bit images, or of the pool's files, which are decoded."""
        if not isinstance(images, Tensor):
            images = torch.stack([read_image(path.read_bytes(), path, self.task.channels)
                                  for path in images])
        ids = torch.arange(len(images))
        x = images.float().to(self.device) / 255
        if self.args.source not in stream.PRESETS:
            x = plain_view(x, augment.crop_offsets(0, 0, ids, self.task.pad),
                           augment.flips(0, 0, ids) & self.task.flip, self.task.pad)
        x = self.standardize(x)
        with torch.no_grad():
            t = self.teacher(x)
        s = self.student(x)
        loss = F.kl_div(F.log_softmax(s / TEMPERATURE, 1), F.softmax(t / TEMPERATURE, 1),
                        reduction="batchmean") * TEMPERATURE ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()


def nchw(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)


class PlainInversion(Plain):
    """DeepInversion's program for small images.

    Args:
        size: images in a batch.
    """

    def __init__(self, generator: deepinversion.DeepInversion, size: int, device: torch.device,
                 folder: Path):
        self.size = size
        args = types.SimpleNamespace(source="deepinversion", seed=0)
        super().__init__(args, generator.task, generator, generator.teacher, nn.Identity(),
                         generator.terms, device, folder)

    def call(self, number: int) -> None:
        (steps, _, most, _), = self.source.stages()
        labels, seeds = inversion_batch(self.size, number, self.task.num_classes)
        draw = deepinversion.batch_numbers(seeds)
        side = (self.task.channels, self.task.resolution, self.task.resolution)
        x = torch.stack([torch.randn(side, generator=torch.Generator().manual_seed(seed))
                         for seed in seeds]).to(self.device)
        self.save(self.pixels(x, labels.to(self.device), self.weights, steps,
                              self.source.settings["pixel_rate"], (0.9, 0.999), most, False, draw))


class PlainGuided(Plain):
    """DiffDFKD's loop: at each step of the sampler the gradient through network and teacher, then
    the network once more for the step itself.

    Args:
        size: images in a batch.
    """

    def __init__(self, generator: dit.DiTGenerator, task: Task, student: nn.Module, size: int,
                 device: torch.device, folder: Path):
        self.size, self.network = size, copy.deepcopy(generator.model).requires_grad_(True)
        args = types.SimpleNamespace(source="diffdfkd", seed=0)
        super().__init__(args, task, generator, generator.teacher.teacher, student,
                         generator.teacher.terms, device, folder)

    def predict(self, x: Tensor, labels: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """(clean image, what stands for the variance), with classifier-free guidance."""
        nulls, channels = torch.full_like(labels, self.task.num_classes), x.shape[1]
        t = self.source.diffusion.network_times[i].expand(2 * len(x))
        yes, no = self.network(torch.cat([x, x]), t, torch.cat([labels, nulls])).chunk(2)
        noise = no[:, :channels] + GUIDED["scale"] * (yes[:, :channels] - no[:, :channels])
        return self.source.diffusion.predict_x0(x, i, noise), yes[:, channels:]

    def call(self, number: int) -> None:
        labels, seeds = inversion_batch(self.size, number, self.task.num_classes)
        process, labels = self.source.diffusion, labels.to(self.device)
        draw = noise_source(seeds, (self.task.channels, *[self.task.resolution] * 2), self.device)
        x = draw()
        self.student.eval()
        for i in reversed(range(process.steps)):
            x.requires_grad_()
            image = (self.predict(x, labels, i)[0].clamp(-1, 1) + 1) / 2
            loss = self.loss(self.weights, self.standardize(image), labels)
            gradient, = torch.autograd.grad(loss, x)
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            x = (x - GUIDED["weight"] * process.at("noise", i) * gradient / length).detach()
            with torch.no_grad():
                clean, raw = self.predict(x, labels, i)
            x = process.posterior_mean(clean.clamp(-1, 1), x, i)
            if i > 0:
                x = x + torch.exp(process.log_variance(raw, i) / 2) * draw()
        self.student.train()
        self.save((x + 1) / 2)


def inversion_batch(size: int, number: int, classes: int) -> tuple[Tensor, list[int]]:
    """Classes and seeds of a batch."""
    return torch.arange(size) % classes, [number * size + i for i in range(size)]


# --- ours -----------------------------------------------------------------------------------------

@contextlib.contextmanager
def terms_seen() -> Iterator[list[dict[str, float]]]:
    """The terms of each update inside the block: all pass through check_finite."""
    seen, real = [], inversion_terms.check_finite

    def note(parts: dict[str, Tensor], where: str) -> None:
        real(parts, where)
        seen.append({name: value.item() for name, value in parts.items()})

    inversion_terms.check_finite = note
    try:
        yield seen
    finally:
        inversion_terms.check_finite = real


def our_call(source, student: nn.Module, number: int, size: int) -> None:
    """What `Plain.call` is the restatement of. size: images in a batch of those that are stored."""
    if isinstance(source, stream.StreamSource):
        epoch, first = divmod(number * source.args.student_steps, source.steps_per_epoch)
        for _ in itertools.islice(source.batches(epoch, first, student), source.args.student_steps):
            pass
    elif isinstance(source, replay.ReplaySource):
        assert source.calls == number, (source.calls, number)
        source.call(student)
    else:
        with_classes = source.model if isinstance(source, dit.DiTGenerator) else source.task
        source.sample(*inversion_batch(size, number, with_classes.num_classes))


def guided_generator(steps: int, task: Task, teacher: nn.Module, student: nn.Module,
                     device: torch.device) -> dit.DiTGenerator:
    """A small pixel DiT with random weights, steered by teacher and student."""
    model = dit.DiT(task.resolution, 4 if task.resolution > 16 else 2, task.channels, width=64,
                    depth=2, heads=2, num_classes=task.num_classes)
    for parameter in model.parameters():  # a new one is the zero function; larger ones overflow
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    guidance = dit.TeacherGuidance(copy.deepcopy(teacher), task, GUIDED["weight"], device,
                                   copy.deepcopy(student).eval().requires_grad_(False))
    settings = {"guidance_scale": GUIDED["scale"], "steps": steps, "sampler": "ddpm",
                "guided_channels": "all"}
    return dit.DiTGenerator(model.to(device).eval().requires_grad_(False), settings, device, True,
                            None, guidance)


def make_pair(method: str, options: argparse.Namespace, task: Task, teacher: nn.Module,
              student: nn.Module, device: torch.device, folder: Path) -> tuple:
    """(our source or generator, its restatement, the student that ours looks at)."""
    if method == "deepinversion":
        settings = {**deepinversion.SMALL, "iterations": options.inner_steps,
                    "teacher_dtype": "fp32"}
        ours = deepinversion.DeepInversion(copy.deepcopy(teacher), task, settings, device)
        return ours, PlainInversion(ours, options.synthesis_batch, device, folder), student
    if method == "diffdfkd":
        ours = guided_generator(options.inner_steps, task, teacher, student, device)
        return ours, PlainGuided(ours, task, student, options.synthesis_batch, device,
                                 folder), student
    small = {"synthesis-batch": options.synthesis_batch, "inner-steps": options.inner_steps,
             "warmup-calls": 2 if method in replay.FAST else 1, "warmup-loops": 3}
    preset = (stream if method in stream.PRESETS else replay).preset(method, False)
    known = {k: v for k, v in small.items() if k.replace("-", "_") in preset}
    args = distill.parse(["--task", task.name, "--source", method, "--teacher", "none", "--student",
                          "none", "--batch-size", str(options.batch_size), "--out", str(folder),
                          "--amp", "none",  # both sides' generators in float32, to compare terms
                          *[word for k, v in known.items() for word in (f"--{k}", str(v))]])
    if method == "cmi":
        args.bank_images = 0  # the bank is what differs: theirs keeps vectors
    module = stream if method in stream.PRESETS else replay
    ours = module.build(args, task, copy.deepcopy(teacher), device)
    plain = Plain(args, task, ours, teacher, student, online.weights(args, preset), device, folder)
    return ours, plain, copy.deepcopy(student)


def published(method: str) -> tuple[dict, int]:
    """A method's preset, and how many updates of the images stand in a call of it."""
    if method == "deepinversion":
        return deepinversion.SMALL, deepinversion.SMALL["iterations"]
    if method == "diffdfkd":
        return GUIDED, GUIDED["steps"]
    if method in stream.PRESETS:
        return stream.PRESETS[method], 1
    preset = replay.SMALL[method]
    return preset, preset["inner_steps"] * preset.get("loops", 1)


# --- one method -----------------------------------------------------------------------------------

def method_part(method: str, args: argparse.Namespace, task: Task, teacher: nn.Module,
                student: nn.Module, device: torch.device) -> dict:
    """Compare a method's losses, then time its calls and its student's steps: the record's part."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        ours, plain, mine = make_pair(method, args, task, teacher, student, device, folder)
        with terms_seen() as seen:
            for number in (0, 1):
                our_call(ours, mine, number, args.synthesis_batch)
        for number in (0, 1):
            plain.call(number)
        checks = equivalence(method, seen, plain.seen)
        measure.require(checks)
        numbers = {"A": itertools.count(2), "ours": itertools.count(2)}
        variants = {"A images": lambda: plain.call(next(numbers["A"])),
                    "ours images": lambda: our_call(ours, mine, next(numbers["ours"]),
                                                    args.synthesis_batch),
                    **step_variants(plain, teacher, student, args, task, device, folder)}
        times = measure.interleave(variants, args.repeats, device)
    return summary(method, times, args, device) | {"equivalence": checks}


def equivalence(method: str, ours: list[dict[str, float]], plain: list[dict[str, float]]) -> dict:
    """Each term's largest difference over the updates, relative to its largest value."""
    assert [row.keys() for row in ours] == [row.keys() for row in plain], (ours, plain)
    checks = {}
    for name in dict.fromkeys(name for row in plain for name in row):
        a, b = (torch.tensor([row[name] for row in rows if name in row]) for rows in (ours, plain))
        largest = b.abs().max().item()
        what = f"{len(a)} updates" + (", 0 in both" if largest < SMALLEST else "")
        error = (a - b).abs().max().item() / max(largest, SMALLEST)
        checks[f"{method}: {name}, {what}"] = {"value": error, "limit": LIMIT}
    return checks


def step_variants(plain: Plain, teacher: nn.Module, student: nn.Module, args: argparse.Namespace,
                  task: Task, device: torch.device, folder: Path) -> dict[str, Callable]:
    """A student step of each, on images that are made already."""
    shape = (args.batch_size, task.channels, task.resolution, task.resolution)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels, ids = torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels))
    files = pixels
    if plain.args.source not in stream.PRESETS:
        files = [folder / f"pool_{i}.png" for i in range(len(pixels))]
        for path, image in zip(files, pixels, strict=True):
            path.write_bytes(image_set.encode_png(image))
    flags = types.SimpleNamespace(
        augment="none" if plain.args.source in stream.PRESETS else "default", mixup=0.0, cutmix=0.0,
        mix_share=1.0, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4)
    view = engine.make_view(task, flags, False)
    network = copy.deepcopy(student).to(memory_format=torch.channels_last).train()
    optimizer, amp = engine.make_optimizer(network, flags), engine.resolve_amp("auto", device)
    fast = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
    fast = frozen.prepare(fast, view.plain(pixels[:4], device), amp)
    marks = labels.to(device)

    def ours() -> None:
        x, _ = view.train(pixels, marks, ids, 0, 0, 0)
        engine.train_step(network, fast, optimizer, objectives.kd, x, marks, TEMPERATURE, amp)

    plain.student = nchw(student).train()
    sgd = torch.optim.SGD(plain.student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return {"A step": lambda: plain.step(sgd, files), "ours step": ours}


def summary(method: str, times: dict, args: argparse.Namespace, device: torch.device) -> dict:
    """A printed row: seconds per 1,000 images and per student step of both, and the ratios."""
    clock = measure.choose_clock(device, args.threads)
    preset, updates = published(method)
    made, per_step = args.synthesis_batch, None
    if method in stream.PRESETS:
        made, scale = preset["student_steps"] * args.batch_size, 1.0
        per_step = 1 / preset["student_steps"]
    else:
        made *= preset.get("loops", 1)
        scale = updates / (args.inner_steps * preset.get("loops", 1))
        per_step = 0.0 if method in STORED else scale / KEEPS
    row = {"method": method, "clock": clock, "updates_per_call": updates}
    whole = {}
    for who in ("A", "ours"):
        calls, steps = times[f"{who} images"][clock], times[f"{who} step"][clock]
        whole[who] = [c * per_step + s for c, s in zip(calls, steps, strict=True)]
        row[who] = {
            "seconds_per_1000_images": measure.spread([1000 * scale * c / made for c in calls]),
            "seconds_per_student_step": measure.spread(whole[who])}
    row["ratio_images"] = measure.ratio(times, "A images", "ours images", clock)
    row["ratio_step"] = measure.spread([a / b for a, b in zip(whole["A"], whole["ours"],
                                                              strict=True)])
    cells = [f"{row[who][key]['median']:9.3f}" for key in (
        "seconds_per_1000_images", "seconds_per_student_step") for who in ("A", "ours")]
    print(f"  {method:<18} {cells[0]} {cells[1]} {row['ratio_images']['median']:6.2f}x  "
          f"{cells[2]} {cells[3]} {row['ratio_step']['median']:6.2f}x")
    return row


# --- the command ----------------------------------------------------------------------------------

def method_list(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    if not chosen or not set(chosen) <= set(METHODS):
        raise argparse.ArgumentTypeError(f"of {','.join(METHODS)}, got {text}")
    return chosen


def add_arguments(parser) -> None:
    for flag, default, what in (("--task", "cifar100", "whose images' size, of small images"),
                                ("--teacher", "wrn_16_2", "random weights"),
                                ("--student", "wrn_16_1", "random weights")):
        parser.add_argument(flag, default=default, metavar="NAME",
                            help=f"{what} (default: %(default)s)")
    for flag, default, what in (
            ("--synthesis-batch", 32, "images of an update"),
            ("--batch-size", 32, "images of a student step"),
            ("--inner-steps", 4, "updates of a timed call")):
        parser.add_argument(flag, type=run.positive_int, default=default, metavar="N",
                            help=f"{what} (default: %(default)s)")
    parser.add_argument("--methods", type=method_list, default=METHODS, metavar="LIST",
                        help="default: all")


def body(argv: list[str]) -> None:
    args = measure.parse("rivals", __doc__, 1, 5, argv, add_arguments)
    task = get_task(args.task)
    if task.crop:
        raise UserError("the public loops restated here are those of small images",
                        hint="--task cifar100")
    if args.dry_run:
        print(f"would time {args.repeats} rounds of {len(args.methods)} methods, {args.teacher} -> "
              f"{args.student}, {args.synthesis_batch} images an update, about 5 minutes, into "
              f"{args.out}")
        return
    device = run.use_device(args)
    torch.manual_seed(args.seed)
    teacher, student = (models.build(name, task) for name in (args.teacher, args.student))
    with torch.no_grad():
        for _ in range(3):  # its batch norms know its activations
            teacher(torch.randn(16, task.channels, task.resolution, task.resolution))
        # random networks have one class each for a new generator's grey images: the same one here,
        # else adv_dad is 0 whatever it does
        grey = torch.zeros(1, task.channels, task.resolution, task.resolution)
        favourite = teacher.eval()(grey).argmax()
        inversion_terms.last_linear(student).bias[favourite] += FAVOUR
    teacher = teacher.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    student = student.to(device, memory_format=torch.channels_last)
    print(f"rivals, {args.teacher} -> {args.student}, {task.resolution} px, {device}, "
          f"{args.threads} threads\n  {'method':<18} {'s / 1,000 images':>27}  {'':>7}"
          f"{'s / student step':>20}\n  {'':<18} {'A':>9} {'ours':>9} {'ratio':>7}  {'A':>9} "
          f"{'ours':>9} {'ratio':>7}")
    parts = [method_part(method, args, task, teacher, student, device) for method in args.methods]
    args.methods = ",".join(args.methods)
    measure.record(args, "rivals", device, {"rows": parts})


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
