"""Adaptive DeepInversion: pixels from noise, optimised until the teacher sees a class in them, with
its batch statistics, where the current student differs (Yin et al. 2020, arXiv 1912.08795).

SMALL is the re-implementation in Fast-Datafree and CMI whose numbers the CIFAR tables quote, with
CMI's total variation term and without Fast-Datafree's -0.001 x (the student's batch norm term). The
tables call the row "DeepInv-2k"; the programs' scripts have 1,000 iterations.

The batch of the lowest loss is kept, as in NVIDIA's program for ImageNet. The CIFAR programs return
the last one, since what they keep is an alias of the pixels.
"""

from torch import Tensor, nn

from dm_kd.rivals import common, terms

SMALL = {"adi": {
    "bn_weight": 10.0, "ce_target_weight": 1.0, "adv_js_weight": 1.0, "tv_l1_weight": 1e-3,
    "pixel_rate": 0.1, "inner_steps": 1000, "synthesis_batch": 256, "student_steps": 0,
    "warmup_calls": 0, "pool_images": 60_000}}
HELP = {"pixel_rate": "Adam's learning rate of the pixels"}


class Method:
    KEPT = ()

    def __init__(self, context: common.Context):
        self.context = context

    def make_batch(self, student: nn.Module, call: int) -> tuple[Tensor, Tensor]:
        context, task, args = self.context, self.context.task, self.context.args
        active = context.terms_of(call)
        targets, x = context.draws(call, (task.channels, task.resolution, task.resolution))
        draw = common.numbers(context.seed, call, common.VIEW)

        def losses(x: Tensor, step: int) -> dict[str, Tensor]:
            x = terms.jitter(x, context.pad, task.flip, draw)
            return terms.weighted(active, context.teacher, x, student, targets,
                                  bf16=context.bf16)[0]

        black, white = ((shade - context.mean) / context.std for shade in (0, 1))
        best = common.optimise_pixels(x, losses, args.inner_steps, lambda step: args.pixel_rate,
                                      (0.5, 0.99), (black, white), f"in call {call + 1}")
        return (best - black) / (white - black), targets
