"""What the rivals share: presets as flags, random numbers as functions of the seed, the one
optimisation loop, and the two sources of batches for engine.fit.

    StreamSource   a generator that is trained beside the student; no image is kept (dafl dfq zskt)
    PoolSource     a call makes a batch now and then; the student draws from all of them (the rest)

A method of the second kind is a class with `make_batch(student, call) -> (images float in [0, 1]
[B, C, H, W], the classes they were made for int64 [B])` and `KEPT`, the names of its attributes
that go into a checkpoint. To add one: a file here, a line in RIVALS of distill.py.
"""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dm_kd import augment, image_set, run
from dm_kd.rivals import terms
from dm_kd.rivals.networks import LargeGenerator, NormalOutput, SmallGenerator
from dm_kd.run import UserError, nonnegative_float, nonnegative_int, positive_float, positive_int
from dm_kd.tasks import Task

ADAM = {"betas": (0.5, 0.999)}  # of every generator, in every published preset
PICTURE_EPOCHS = 5
LARGE_AREA = 0.75  # least area of the views at 224 pixels (FastDFKD's program)

# The last number of a random generator's key: what it is for. Unlike for streams and pools.
GENERATOR, UPDATE, BATCH = 1, 2, 3
INIT, DRAW, VIEW, ORDER = 11, 12, 13, 14


# --- presets and flags ----------------------------------------------------------------------------

def setting(text: str, kind: Callable = positive_float) -> dataclasses.Field:
    """A field of a preset that becomes a flag with this help and type."""
    return dataclasses.field(metadata={"help": text, "type": kind})


@dataclass(frozen=True, kw_only=True)
class GeneratorPreset:
    """Settings of a generator. In every preset None means that there is no such setting for images
    of this size, and fields that end in _weight are weights of terms."""

    latent_size: int = setting("numbers in the generator's noise vector (224 pixels: channels of "
                               "its noise map)", positive_int)
    generator_width: int | None = setting("channels of the generator's first map", positive_int)
    generator_rate: float = setting("Adam's learning rate of the generator")


@dataclass(frozen=True, kw_only=True)
class StreamPreset(GeneratorPreset):
    """Settings of the methods without a pool."""

    synthesis_batch: int = setting("images in a batch of the generator's updates", positive_int)
    student_steps: int = setting("student steps after each update of the generator", positive_int)


@dataclass(frozen=True, kw_only=True)
class PoolPreset:
    """Settings of the methods with a pool."""

    synthesis_batch: int = setting("images in a batch of the method's updates", positive_int)
    inner_steps: int = setting("updates that make one batch of images", positive_int)
    calls_per_epoch: int = setting("calls for new images in an epoch, a divisor of "
                                   "--steps-per-epoch", positive_int)
    warmup_calls: int = setting("calls before the first student step, without the adversarial term",
                                nonnegative_int)
    pool_images: int = setting("most images kept; then the oldest are replaced", positive_int)


def add_arguments(parser: argparse.ArgumentParser, method: str, preset) -> None:
    """A preset's fields as flags, whose defaults are the preset's values."""
    group = parser.add_argument_group(f"source {method}", "Defaults: for the task's image size.")
    for field in dataclasses.fields(preset):
        value = getattr(preset, field.name)
        if value is None:
            continue
        term = field.name.removesuffix("_weight")
        text = field.metadata.get("help", f"weight of the term {term}")
        group.add_argument(f"--{field.name.replace('_', '-')}", default=value,
                           type=field.metadata.get("type", nonnegative_float),
                           metavar="N" if isinstance(value, int) else "X",
                           help=f"{text} (default: %(default)s)")


# --- random numbers -------------------------------------------------------------------------------

def numbers(*key: int) -> torch.Generator:
    """A generator on the CPU whose numbers are a function of the key alone."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)


@contextlib.contextmanager
def initialised_by(*key: int) -> Iterator[None]:
    """New modules made inside the block, on the CPU, have weights that are a function of the key;
    torch's global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(numbers(*key).initial_seed())
        yield


# --- the optimisation loop ------------------------------------------------------------------------

def optimise(optimizers: list[torch.optim.Optimizer], images_of: Callable[[int], Tensor],
             losses: Callable[[Tensor, int], dict[str, Tensor]], steps: int, where: str,
             rate: Callable[[int], float] | None = None,
             after: Callable[[], None] | None = None) -> Tensor:
    """Minimise a sum of terms; returns a copy of the batch of images with the lowest loss.

    Nothing but the optimizers' parameters gets a gradient. The public programs' DeepInversion for
    CIFAR keeps an alias of the pixels under the name of the best, so that it returns the last
    batch; NVIDIA's for ImageNet keeps a copy.

    Args:
        images_of: step -> images, a function of the parameters.
        losses: (images, step) -> {term: weighted scalar}.
        where: which batch this is, for the error.
        rate: step -> learning rate of the first optimizer (default: as it is).
        after: runs after each step.

    Raises:
        UserError: a term is NaN or infinite.
    """
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    best, lowest = None, math.inf
    for step in range(steps):
        if rate is not None:
            optimizers[0].param_groups[0]["lr"] = rate(step)
        images = images_of(step)
        parts = losses(images, step)
        loss = sum(parts.values())
        value = loss.item()
        if not math.isfinite(value):
            terms.check_finite({**parts, "the sum": loss}, f"{where} at step {step + 1}")
        if value < lowest:
            best, lowest = images.detach().clone(), value
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters),
                                       strict=True):
            parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
        if after is not None:
            after()
    return best


def optimise_pixels(x: Tensor, losses: Callable[[Tensor, int], dict[str, Tensor]], steps: int,
                    rate: Callable[[int], float], betas: tuple[float, float],
                    bounds: tuple[Tensor, Tensor], where: str) -> Tensor:
    """`optimise` of the pixels themselves by Adam, clipped after each step to black and white.

    Args:
        x: standardised images [B, C, H, W]; not changed.
        bounds: the standardised black and white, each [C, 1, 1].
    """
    x = x.detach().clone().requires_grad_()

    def clip() -> None:
        with torch.no_grad():
            x.copy_(torch.maximum(torch.minimum(x, bounds[1]), bounds[0]))

    best = optimise([torch.optim.Adam([x], betas=betas)], lambda step: x, losses, steps, where,
                    rate, clip)
    return torch.maximum(torch.minimum(best, bounds[1]), bounds[0])


@contextlib.contextmanager
def still(student: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the student is in eval mode and its weights want no gradient: gradients flow
    through it, and not a bit of it changes."""
    training = student.training
    wanted = [(p, p.requires_grad) for p in student.parameters()]
    student.eval().requires_grad_(False)
    try:
        yield student
    finally:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)
        student.train(training)


# --- what a method works with ---------------------------------------------------------------------

class Context:
    """Settings, task, teacher and what follows from them.

    Args:
        args: of distill, with the preset's flags.
        teacher: in eval mode on `device`; its input must have gradients.

    Raises:
        UserError: the teacher lacks what a term reads.
    """

    def __init__(self, args: argparse.Namespace, preset, task: Task, teacher: nn.Module,
                 device: torch.device):
        self.args, self.task, self.teacher, self.device = args, task, teacher, device
        self.seed, self.bf16, self.large = args.seed, args.amp == "bf16", task.crop
        self.settings = dataclasses.replace(preset, **{
            field.name: getattr(args, field.name) for field in dataclasses.fields(preset)
            if hasattr(args, field.name)})
        weights = {name.removesuffix("_weight"): value for name, value
                   in vars(self.settings).items() if name.endswith("_weight")}
        self.terms = {name: weight for name, weight in weights.items() if weight}
        self.mean, self.std = (torch.tensor(v, device=device).view(-1, 1, 1)
                               for v in (task.mean, task.std))
        self.pad = task.resolution // 8  # of the views; 4 of 32 pixels, as published
        self.pool = torch.empty(0, task.channels, task.resolution, task.resolution,
                                dtype=torch.uint8)  # the images kept so far, set by PoolSource
        example = torch.zeros(2, *self.pool.shape[1:], device=device)
        terms.require(teacher, set(self.terms), example, args.teacher,
                      "a method without the term (dafl, zskt); or its weight 0")

    def standardize(self, x: Tensor) -> Tensor:
        """Images in [0, 1] -> a network's input, with gradients."""
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def terms_of(self, adversarial: bool) -> dict[str, float]:
        """{term: weight} of a call: the student is not looked at during the warm-up."""
        return {name: weight for name, weight in self.terms.items() if name != "contrastive"
                and (adversarial or name not in terms.OF_STUDENT)}

    def generator(self, *key: int, output: nn.Module | None = None) -> nn.Module:
        """A new one, its weights a function of the key."""
        task, settings = self.task, self.settings
        with initialised_by(self.seed, *key):
            network = (LargeGenerator(settings.latent_size, task.resolution, task.channels, output,
                                      self.bf16) if self.large else
                       SmallGenerator(settings.latent_size, settings.generator_width,
                                      task.resolution, task.channels, output, self.bf16))
        return network.to(self.device, memory_format=torch.channels_last)

    def draws(self, call: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A call's classes, uniform int64 [B], and noise [B, *shape]."""
        draw, size = numbers(self.seed, call, DRAW), self.settings.synthesis_batch
        targets = torch.randint(self.task.num_classes, (size,), generator=draw)
        return targets.to(self.device), torch.randn(size, *shape, generator=draw).to(self.device)

    def view(self, images: Tensor, call: int, step: int) -> Tensor:
        """What the networks see of images in [0, 1], with gradients: at 224 pixels random-resized
        crops of 75 to 100 %, else pad and crop; mirrored where the task mirrors. Standardised."""
        if self.large:
            draw = numbers(self.seed, call, step, VIEW)
            return self.standardize(augment.resized_view(images, LARGE_AREA, True, draw))
        moment, ids = call * 100_003 + step, torch.arange(len(images))
        offsets = augment.crop_offsets(self.seed, moment, ids, self.pad)
        mirrored = augment.flips(self.seed, moment, ids) & self.task.flip
        return self.standardize(augment.pad_crop_flip(images, offsets, mirrored, self.pad))


def to_uint8(x: Tensor) -> Tensor:
    """[0, 1] -> 0 .. 255, rounded to the nearest (Fast-Datafree truncates)."""
    return (x.detach() * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def write_samples(args: argparse.Namespace, epoch: int, images: Tensor) -> None:
    """samples.png in the run's folder after the first, each fifth and the last epoch: rows of ten
    of `images`, uint8 [N, C, H, W]."""
    if epoch and (epoch + 1) % PICTURE_EPOCHS and epoch + 1 != args.epochs:
        return
    rows = [list(row) for row in images.cpu().contiguous()[:100].split(10)]
    sheet = image_set.tile(rows, scale=max(1, 32 // images.shape[2]))
    run.write_file(Path(args.out) / "samples.png", image_set.encode_png(sheet))


def state_of(owner) -> dict:
    """The attributes in `owner.KEPT`: modules, optimizers, tensors, batch statistics or None."""
    values = {name: getattr(owner, name) for name in owner.KEPT}
    return {name: value.state_dict() if hasattr(value, "state_dict") else value
            for name, value in values.items()}


def load_state(owner, state: dict, device: torch.device) -> None:
    """Put back what `state_of` gave."""
    for name, value in state.items():
        current = getattr(owner, name)
        if hasattr(current, "load_state_dict"):
            current.load_state_dict(value)
        elif isinstance(current, Tensor):
            current.copy_(value)  # in place: an optimizer may hold it
        elif value is not None:  # batch statistics
            setattr(owner, name, [tuple(v.to(device) for v in pair) for pair in value])


# --- sources --------------------------------------------------------------------------------------

class StreamSource:
    """Batches of a generator that learns between them: one update, then `student_steps` batches of
    fresh noise for the student, which sees 8-bit images; the updates do not round."""

    KEPT = ("generator", "optimizer")

    def __init__(self, context: Context):
        self.context, self.steps_per_epoch = context, context.args.steps_per_epoch
        norm = context.args.generator_output == "norm"
        self.generator = context.generator(
            GENERATOR, output=NormalOutput(context.task.mean, context.task.std) if norm else None)
        self.optimizer = torch.optim.Adam(self.generator.parameters(),
                                          lr=context.settings.generator_rate, **ADAM)

    def noise(self, count: int, moment: int, purpose: int) -> Tensor:
        draw = numbers(self.context.seed, moment, purpose)
        return torch.randn(count, *self.generator.shape, generator=draw).to(self.context.device)

    def update(self, student: nn.Module, moment: int) -> None:
        """One step of the generator; nothing of student and teacher changes."""
        context = self.context
        noise = self.noise(context.settings.synthesis_batch, moment, UPDATE)

        def losses(images: Tensor, step: int) -> dict[str, Tensor]:
            return terms.weighted(context.terms, context.teacher, context.standardize(images),
                                  student, bf16=context.bf16)[0]

        with still(student):
            optimise([self.optimizer], lambda step: self.generator(noise), losses, 1,
                     f"in the update before student step {moment + 1}")

    def batches(self, epoch: int, first_step: int = 0, student: nn.Module | None = None
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images uint8 [B, C, H, W], labels -1, ids). The generator normalises over the batch, as
        in its updates. Everything that changes does so before a batch is handed out, so that
        `state_dict` belongs to the moment after it."""
        size = self.context.args.batch_size
        for step in range(first_step, self.steps_per_epoch):
            moment = epoch * self.steps_per_epoch + step
            if moment % self.context.settings.student_steps == 0:
                self.update(student, moment)
            with torch.no_grad():
                images = to_uint8(self.generator(self.noise(size, moment, BATCH)))
            if step + 1 == self.steps_per_epoch:
                write_samples(self.context.args, epoch, images)
            yield images, torch.full((size,), -1), moment * size + torch.arange(size)

    def state_dict(self) -> dict:
        return state_of(self)

    def load_state_dict(self, state: dict) -> None:
        load_state(self, state, self.context.device)


def add_stream_arguments(parser: argparse.ArgumentParser, method: str, preset: StreamPreset
                         ) -> None:
    """The flags of a method without a pool."""
    add_arguments(parser, method, preset)
    parser.add_argument("--generator-output", choices=("sigmoid", "norm"), default="sigmoid",
                        help="last layer of the generator: a sigmoid, whose first images are grey; "
                             "or a batch norm without weights, whose images have the task's "
                             "contrast from the start (default: %(default)s)")


class PoolSource:
    """The pool, and the calls that fill it: `warmup_calls` before the first student step, then
    `calls_per_epoch` an epoch, each with the student of that moment.

    The pool is uint8 in memory and part of every checkpoint: 3 kB an image at 32 x 32, 150 kB at
    224 x 224 (where --pool-images and --checkpoint-seconds matter).

    Args:
        method: see the top of this file.

    Raises:
        UserError: an epoch can't be divided into the calls.
    """

    def __init__(self, context: Context, method):
        args, settings, task = context.args, context.settings, context.task
        if args.steps_per_epoch % settings.calls_per_epoch:
            raise UserError(f"--calls-per-epoch {settings.calls_per_epoch} does not divide "
                            f"--steps-per-epoch {args.steps_per_epoch}")
        self.context, self.method, self.steps_per_epoch = context, method, args.steps_per_epoch
        self.pool = torch.empty(settings.pool_images, task.channels, task.resolution,
                                task.resolution, dtype=torch.uint8)
        self.labels = torch.empty(settings.pool_images, dtype=torch.int64)
        self.calls, self.total = 0, 0  # total: images ever made

    @property
    def kept(self) -> int:
        return min(self.total, len(self.pool))

    def call(self, student: nn.Module) -> None:
        """Make a batch and put it into the pool; a full one loses its oldest images."""
        self.context.pool = self.pool[:self.kept]
        with still(student):
            images, classes = self.method.make_batch(student, self.calls)
        images = to_uint8(images).cpu()[-len(self.pool):]
        places = (self.total + torch.arange(len(images))) % len(self.pool)
        self.pool[places], self.labels[places] = images, classes.cpu()[-len(images):]
        self.total, self.calls = self.total + len(images), self.calls + 1

    def warm_up(self, student: nn.Module) -> None:
        """The calls before the first student step that have not been made."""
        calls = self.context.settings.warmup_calls
        if self.calls < calls:
            bar = run.progress(calls, "first images", "calls", self.calls)
            while self.calls < calls:
                self.call(student)
                bar.update(1)
            bar.close()

    def order(self, epoch: int, cycle: int, count: int) -> Tensor:
        """Ids between two calls, int64 [count], from permutations of all images, one after the
        other: place in the pool + size of the pool x number of the permutation."""
        rounds = [np.random.Generator(np.random.PCG64(
            [self.context.seed, epoch, cycle, r, ORDER])).permutation(self.kept)
            + len(self.pool) * (r + (cycle << 20)) for r in range(-(-count // self.kept))]
        return torch.from_numpy(np.concatenate(rounds)[:count])

    def batches(self, epoch: int, first_step: int = 0, student: nn.Module | None = None
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images uint8 [B, C, H, W], the classes they were made for, ids unique in the epoch).
        Everything that changes does so before a batch is handed out, so that `state_dict` belongs
        to the moment after it."""
        size, order = self.context.args.batch_size, None
        length = self.steps_per_epoch // self.context.settings.calls_per_epoch
        for step in range(first_step, self.steps_per_epoch):
            cycle, at = divmod(step, length)
            if at == 0:
                self.warm_up(student)
                self.call(student)
            if at == 0 or order is None:
                order = self.order(epoch, cycle, length * size)
            ids = order[at * size:(at + 1) * size]
            places = ids % len(self.pool)
            if step + 1 == self.steps_per_epoch:
                newest = (self.total - 1 - torch.arange(min(100, self.kept))) % len(self.pool)
                write_samples(self.context.args, epoch, self.pool[newest])
            yield self.pool[places], self.labels[places], ids

    def state_dict(self) -> dict:
        """The pool's images are not copied: write it before the next call."""
        return {"pool": first_rows(self.pool, self.kept),
                "labels": first_rows(self.labels, self.kept), "calls": self.calls,
                "total": self.total, "method": state_of(self.method)}

    def load_state_dict(self, state: dict) -> None:
        self.calls, self.total = state["calls"], state["total"]
        self.pool[:self.kept], self.labels[:self.kept] = state["pool"], state["labels"]
        load_state(self.method, state["method"], self.context.device)


def first_rows(tensor: Tensor, count: int) -> Tensor:
    """The same memory as tensor[:count], as a tensor of its own size: torch.save writes all that a
    view looks into."""
    return torch.from_numpy(tensor.numpy()[:count])
