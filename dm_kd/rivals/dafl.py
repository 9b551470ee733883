"""DAFL: a generator whose images the teacher is sure of, in all classes equally often (Chen et al.
2019, arXiv 1904.01186). One update of the generator, then five student steps on fresh noise.

The preset is Fast-Datafree's, whose numbers the published CIFAR tables quote; its generator is 128
wide (CMI's 256). It updates generator and student in turn; DAFL's own program updates both on one
batch, takes log10 in the balance term and larger learning rates and batches. Fast-Datafree and CMI
ignore --T: pass --temperature 1 for the published numbers.

Their generator ends in a sigmoid, so that its first images are grey with hardly any contrast. In
short runs the student then learns to predict one class for all and, at a high learning rate, never
recovers. DAFL's own generator ends in a batch norm: --generator-output norm.
"""

import torch
from torch import Tensor, nn

from dm_kd.rivals import common, terms
from dm_kd.rivals.networks import NormalOutput

INIT, UPDATE, BATCH = 1, 2, 3  # what random numbers are for, see common.py
SMALL = {"dafl": {
    "onehot_weight": 1.0, "act_weight": 1e-3, "balance_weight": 20.0, "latent_size": 512,
    "generator_width": 128, "generator_rate": 1e-3, "generator_output": "sigmoid",
    "synthesis_batch": 256, "student_steps": 5, "warmup_calls": 0, "pool_images": 0}}


class Method:
    """A generator that learns between the student's steps (DAFL, DFQ, ZSKT). A call is one update,
    then fresh images for `student_steps` steps, which replace all of those before."""

    KEPT = ("generator", "optimizer")

    def __init__(self, context: common.Context):
        self.context, args, task = context, context.args, context.task
        norm = NormalOutput(task.mean, task.std) if args.generator_output == "norm" else None
        self.generator = context.generator(INIT, output=norm)
        self.optimizer = common.adam(self.generator, args.generator_rate)

    def noise(self, count: int, call: int, purpose: int) -> Tensor:
        draw = common.numbers(self.context.seed, call, purpose, device=self.context.device)
        return torch.randn(count, *self.generator.shape, generator=draw, device=draw.device)

    def make_batch(self, student: nn.Module, call: int) -> tuple[Tensor, Tensor]:
        """The generator stays in train mode, as in the programs. Labels are -1."""
        context, args = self.context, self.context.args
        noise = self.noise(args.synthesis_batch, call, UPDATE)

        def losses(images: Tensor, step: int) -> dict[str, Tensor]:
            return terms.weighted(context.terms, context.teacher, context.standardize(images),
                                  student, bf16=context.bf16)[0]

        common.optimise([self.optimizer], lambda: self.generator(noise), losses, 1,
                        f"in call {call + 1}")
        fresh = self.noise(args.student_steps * args.batch_size, call, BATCH)
        with torch.no_grad():
            images = torch.cat([self.generator(z) for z in fresh.split(args.batch_size)])
        return images, torch.full((len(images),), -1)
