"""What the sources share that make images while the student learns (stream, replay): presets as
flags, random numbers as functions of (seed, step), a student that holds still, the count of passes.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dm_kd import files, image_set, inversion_terms
from dm_kd.errors import UserError
from dm_kd.run import nonnegative_float, nonnegative_int, positive_float, positive_int, probability
from dm_kd.tasks import Task

# of the student, where no images say what an epoch is: Fast-Datafree, CMI; FastDFKD for 224 pixels
STEPS_PER_EPOCH, LARGE_STEPS_PER_EPOCH = 400, 1000
PICTURE_EPOCHS = 5
HELD_OUT = 256  # images of a stream that student and teacher are compared on at the end
ADAM = {"betas": (0.5, 0.999)}  # of every generator, in every published preset

SETTINGS = {  # what a preset may hold besides its terms: (type, metavar, what it says)
    "latent_size": (positive_int, "N", "numbers in the generator's noise vector (channels of its "
                                       "noise map for 224-pixel tasks)"),
    "generator_width": (positive_int, "N", "channels of the generator's first map"),
    "generator_rate": (positive_float, "X", "Adam's learning rate of the generator"),
    "latent_rate": (positive_float, "X", "Adam's learning rate of the noise vectors"),
    "meta_rate": (positive_float, "X", "Adam's learning rate of the meta generator; where the "
                                       "preset has none, inner steps x generator rate"),
    "meta_latent_rate": (positive_float, "X", "Adam's learning rate of the kept noise maps"),
    "meta_pull": (positive_float, "X", "Reptile: weight of the step from the meta generator to "
                                       "the adapted one"),
    "pixel_rate": (positive_float, "X", "Adam's learning rate of the pixels"),
    "head_rate": (positive_float, "X", "Adam's learning rate of the contrastive head"),
    "synthesis_batch": (positive_int, "N", "images in a batch of the generator's updates"),
    "inner_steps": (positive_int, "N", "updates that make one batch of images"),
    "loops": (positive_int, "N", "batches of images that a call makes, each with noisy layers of "
                                 "its own"),
    "warmup_loops": (positive_int, "N", "the same for a call of the warm-up"),
    "life": (nonnegative_int, "N", "calls after which the whole generator is drawn anew, counted "
                                   "from the first and from the end of the warm-up; 0 = never"),
    "student_steps": (positive_int, "N", "student steps after each update of the generator"),
    "calls_per_epoch": (positive_int, "N", "calls of the generator in an epoch, a divisor of "
                                           "--steps-per-epoch"),
    "warmup_calls": (nonnegative_int, "N", "calls before the first student step, without the "
                                           "adversarial term"),
    "reset_call": (nonnegative_int, "N", "the Nth call after the warm-up begins with new first "
                                         "layers of the generator; 0 = never"),
    "latent_calls": (nonnegative_int, "N", "keep the noise maps from call to call and draw them "
                                           "anew each N calls; 0 = fresh ones in every call"),
    "pool_images": (positive_int, "N", "most images kept; then the oldest are replaced"),
    "bn_momentum": (probability, "M", "share of the past calls in the batch statistics"),
    "contrast_temperature": (positive_float, "X", "temperature of the contrastive term"),
    "bank_images": (positive_int, "N", "images of the pool that a call is contrasted with"),
}


def add_arguments(parser: argparse.ArgumentParser, method: str, preset: dict) -> None:
    """A preset's terms and settings as flags, whose defaults are the preset's values."""
    group = parser.add_argument_group(
        f"source {method}", "Defaults are the preset for the task's size of images. An epoch has "
        f"{STEPS_PER_EPOCH} steps by default, of 224 pixels {LARGE_STEPS_PER_EPOCH}.")
    for term, weight in preset["terms"].items():
        group.add_argument(f"--{term.replace('_', '-')}-weight", type=nonnegative_float,
                           default=weight, metavar="X",
                           help=f"weight of the term {term} (default: %(default)s)")
    for name, value in preset.items():
        if name != "terms":
            kind, metavar, text = SETTINGS[name]
            group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value,
                               metavar=metavar,
                               help=text if value is None else f"{text} (default: %(default)s)")


def weights(args: argparse.Namespace, preset: dict) -> dict[str, float]:
    """{term: weight} as the flags have it."""
    return {term: getattr(args, f"{term}_weight") for term in preset["terms"]}


def check(args: argparse.Namespace, world_size: int) -> None:
    """
    Raises:
        UserError: more than one process, or a flag that needs stored images."""
    if world_size > 1:
        raise UserError(f"--source {args.source} trains a generator in one process, not in "
                        f"{world_size}", hint="NGPU=1, without torchrun")
    for flag, given in (("--images-per-class", args.images_per_class is not None),
                        ("--label-weight", args.label_weight > 0),
                        ("--source-labels", args.source_labels != "task"),
                        ("--cache-teacher", args.cache_teacher is not None)):
        if given:
            raise UserError(f"--source {args.source} makes its images while the student learns; "
                            f"it takes no {flag}", hint=f"leave out {flag}")


def numbers(*key: int) -> torch.Generator:
    """A generator on the CPU whose numbers are a function of the key alone."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)


def step_with(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """A step of all of the optimizers' parameters; no other tensor gets a gradient."""
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    for optimizer in optimizers:
        optimizer.step()


@contextlib.contextmanager
def initialised_by(*key: int) -> Iterator[None]:
    """New modules inside the block, made on the CPU, have weights that are a function of the key;
    torch's global numbers outside, a GPU's too, go on as if there had been no block."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(numbers(*key).initial_seed())
        yield


@contextlib.contextmanager
def still(student: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the student is in eval mode and none of its weights wants a gradient, so
    that it is only looked through: not a bit of it changes."""
    training = student.training
    wanted = [(p, p.requires_grad) for p in student.parameters()]
    student.eval().requires_grad_(False)
    try:
        yield student
    finally:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)
        student.train(training)


def standardizer(task: Task, device: torch.device):
    """f(images in [0, 1]) -> standardised, with gradients; and the standardised black and white."""
    mean = torch.tensor(task.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(task.std, device=device).view(-1, 1, 1)

    def standardize(x: Tensor) -> Tensor:
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)

    return standardize, ((0 - mean) / std, (1 - mean) / std)


def example_images(task: Task) -> Tensor:
    """Four uint8 images of the task's shape with all values in them, for trials of a network."""
    shape = (4, task.channels, task.resolution, task.resolution)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers(0))


def to_uint8(x: Tensor) -> Tensor:
    """[0, 1] -> 0 .. 255, rounded to the nearest."""
    return (x.detach() * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def require(args: argparse.Namespace, task: Task, teacher: nn.Module, terms: dict[str, float],
            device: torch.device) -> None:
    """
    Raises:
        UserError: the teacher lacks what a term reads, or no term is left."""
    active = {name for name, weight in terms.items() if weight}
    if not active:
        raise UserError(f"--source {args.source}: every term has weight 0",
                        hint="leave out the --...-weight flags")
    example = torch.zeros(2, task.channels, task.resolution, task.resolution, device=device)
    inversion_terms.require(teacher, active, example, args.teacher,
                            "a method without the term (dafl, zskt); or its weight 0")


def write_samples(out: Path, images: Tensor) -> None:
    """samples.png in the run's folder: rows of ten of what the source makes now. uint8
    [N, C, H, W]."""
    rows = [list(row) for row in images.cpu().contiguous()[:100].split(10)]
    sheet = image_set.tile(rows, scale=max(1, 32 // images.shape[2]))
    files.durable_write(Path(out) / "samples.png", image_set.encode_png(sheet))


def picture_due(epoch: int, step: int, steps_per_epoch: int, epochs: int) -> bool:
    """At the last step of the first, of each fifth and of the last epoch."""
    return step + 1 == steps_per_epoch and (
        epoch == 0 or (epoch + 1) % PICTURE_EPOCHS == 0 or epoch + 1 == epochs)
