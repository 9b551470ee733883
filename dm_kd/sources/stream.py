"""Generators that are trained along with the student and keep no image: DAFL, DFQ, ZSKT.

    python -m dm_kd.distill --source dfq --task cifar100 --teacher SPEC --student NAME \\
        --temperature 1 --augment none --out save/student_model/NAME

One update of the generator, then `student_steps` batches of fresh noise through it for the student.
The student sees 8-bit images (the loop's one form), the generator's own updates do not.

The presets are those of the programs that made the published CIFAR tables (zju-vipa/CMI and
Fast-Datafree), which differ from the papers'. Two defects of theirs are not here: Fast-Datafree
gives these methods the teacher as the student, so that its adversarial term is 0; and both take
temperature 1 whatever is asked for. The published numbers were made so: pass --temperature 1 for
them. Larger images than 64 pixels have no published preset: FastDFKD's generator, same weights.

Those programs' generator ends in a sigmoid: it begins with grey images of hardly any contrast. In
short runs the student learns to answer with one class before there is anything else, and at a high
rate it stays there (digits, ZSKT: 10 % right). The papers' own generators end in a batch norm:
--generator-output norm.
"""

import argparse
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dm_kd import inversion_terms
from dm_kd.sources import online
from dm_kd.sources.networks import LargeGenerator, NormalOutput, SmallGenerator
from dm_kd.tasks import Task

GENERATOR, UPDATE, BATCH, HELD = 1, 2, 3, 4  # what random numbers are for

_COMMON = {"generator_width": 256, "generator_rate": 1e-3, "synthesis_batch": 256}
PRESETS = {
    "dafl": {"terms": {"onehot": 1.0, "act": 1e-3, "balance": 20.0},
             "latent_size": 512, "student_steps": 5, **_COMMON},
    "dfq": {"terms": {"adv_kl": 1.0, "bn": 1.0, "onehot": 1.0, "balance": 20.0},
            "latent_size": 256, "student_steps": 10, **_COMMON},
    "zskt": {"terms": {"adv_kl": 1.0},
             "latent_size": 256, "student_steps": 5, **_COMMON},
}


def preset(method: str, large: bool) -> dict:
    """The preset for images of up to 64 pixels, or larger ones, whose generator has one width."""
    row = PRESETS[method]
    return {k: v for k, v in row.items() if not (large and k == "generator_width")}


def add_arguments(parser: argparse.ArgumentParser, method: str, large: bool) -> None:
    online.add_arguments(parser, method, preset(method, large))
    parser.add_argument("--generator-output", choices=("sigmoid", "norm"), default="sigmoid",
                        help="how the generator ends: a sigmoid; or a batch norm without weights, "
                             "so that its images have the task's contrast from the first update on "
                             "(default: %(default)s)")


def build(args: argparse.Namespace, task: Task, teacher: nn.Module, device: torch.device
          ) -> "StreamSource":
    """
    Raises:
        UserError: the teacher lacks what the method reads."""
    terms = online.weights(args, preset(args.source, task.crop))
    online.require(args, task, teacher, terms, device)
    return StreamSource(args, task, teacher, terms, device)


class StreamSource:
    """Batches of a generator that learns between them.

    Args:
        args: of distill, with the preset's flags.
        teacher: in eval mode on `device`; its input must have gradients.
        terms: {term of inversion_terms: weight}.
    """

    def __init__(self, args: argparse.Namespace, task: Task, teacher: nn.Module,
                 terms: dict[str, float], device: torch.device):
        self.args, self.task, self.teacher, self.terms = args, task, teacher, terms
        self.device, self.steps_per_epoch = device, args.steps_per_epoch
        output = NormalOutput(task.mean, task.std) if args.generator_output == "norm" else None
        with online.initialised_by(args.seed, GENERATOR):
            self.generator = (
                LargeGenerator(args.latent_size, task.resolution, task.channels, output,
                               args.amp == "bf16")
                if task.crop else
                SmallGenerator(args.latent_size, args.generator_width, task.resolution,
                               task.channels, output, args.amp == "bf16"))
        self.generator.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=args.generator_rate,
                                          **online.ADAM)
        self.standardize, _ = online.standardizer(task, device)
        self.made = {"generator_evaluations": 0, "teacher_passes": 0, "student_passes": 0}
        self.inputs: dict[str, str] = {}  # it reads no file

    def noise(self, count: int, moment: int, purpose: int) -> Tensor:
        draw = online.numbers(self.args.seed, moment, purpose)
        return torch.randn(count, *self.generator.shape, generator=draw).to(self.device)

    def update(self, student: nn.Module, epoch: int, step: int) -> dict[str, Tensor]:
        """One step of the generator; its terms. Nothing of student and teacher changes.

        Raises:
            DivergedError: a term is not finite."""
        size = self.args.synthesis_batch
        x = self.generator(self.noise(size, epoch * self.steps_per_epoch + step, UPDATE))
        with online.still(student):
            parts, _ = inversion_terms.weighted(self.terms, self.teacher, self.standardize(x),
                                                student, bf16=self.args.amp == "bf16")
        inversion_terms.check_finite(parts, f"in epoch {epoch + 1} at step {step + 1}")
        online.step_with(sum(parts.values()), self.optimizer)
        self.made["generator_evaluations"] += size
        self.made["teacher_passes"] += size
        if inversion_terms.OF_STUDENT & {name for name, weight in self.terms.items() if weight}:
            self.made["student_passes"] += size
        return parts

    def batches(self, epoch: int, first_step: int = 0, student: nn.Module | None = None
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images uint8 [B, C, H, W], labels -1, ids); the generator normalises over the batch, as
        it did in its updates. All that changes here does so before a batch is handed out, so that
        `state_dict` belongs to the moment after it."""
        size = self.args.batch_size
        for step in range(first_step, self.steps_per_epoch):
            moment = epoch * self.steps_per_epoch + step
            if moment % self.args.student_steps == 0:
                self.update(student, epoch, step)
            with torch.no_grad():
                images = online.to_uint8(self.generator(self.noise(size, moment, BATCH)))
            self.made["generator_evaluations"] += size
            if online.picture_due(epoch, step, self.steps_per_epoch, self.args.epochs):
                online.write_samples(self.args.out, images)
            yield images, torch.full((size,), -1), moment * size + torch.arange(size)

    def warm_up(self, student: nn.Module) -> Iterator[int]:
        """Nothing comes before the first step."""
        return iter(())

    @torch.no_grad()
    def held_out(self, student: nn.Module) -> Tensor:
        """Images of fresh noise, uint8 [online.HELD_OUT, C, H, W]; nothing changes here."""
        generator = copy.deepcopy(self.generator)
        return online.to_uint8(generator(self.noise(online.HELD_OUT, 0, HELD))).cpu()

    def budget(self) -> dict[str, int]:
        """What this source has used, in images; the loop's own passes come on top."""
        return {"images_kept": 0, **self.made}

    def state_dict(self) -> dict:
        return {"generator": self.generator.state_dict(), "made": dict(self.made),
                "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.made = dict(state["made"])
