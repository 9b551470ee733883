"""NAYER: a generator from class embeddings through noisy linear layers, which are drawn anew for
each batch and learn with it, so that the diversity comes from them (Tran et al. 2024,
arXiv 2310.00258).

The preset is its program's for CIFAR-100. A call makes `loops` batches, each the best of
`inner_steps` updates with an Adam of its own; the generator is drawn anew each `life` calls,
counted from the first call and from the end of the warm-up.

What the program does differently: its class vectors are CLIP's of "a image of NAME" with _ and -
replaced by blanks, here one-hot vectors; it compares a call's later batches with the lowest loss of
its earlier ones, so that it may keep their first images, here each batch is compared with itself.
"""

import torch
from torch import Tensor, nn

from dm_kd.rivals import common

SMALL = {"nayer": {
    "bn_ema_weight": 10.0, "ce_target_weight": 0.5, "adv_dad_weight": 1.33, "latent_size": 1000,
    "generator_width": 128, "generator_rate": 4e-3, "inner_steps": 40, "loops": 2,
    "warmup_loops": 10, "life": 10, "synthesis_batch": 400, "student_steps": 0,
    "warmup_calls": 20, "pool_images": 240_000}}  # all that 20 + 200 calls make
HELP = {
    "loops": "batches of a call, each with noisy layers of its own",
    "warmup_loops": "the same for a call of the warm-up",
    "life": "calls after which the whole generator is drawn anew"}


class Method:
    KEPT = ("generator",)

    def __init__(self, context: common.Context):
        self.context = context
        self.generator = self.new_generator(0)

    def new_generator(self, call: int) -> "LabelGenerator":
        context, classes = self.context, self.context.task.num_classes
        body = context.generator(call, common.INIT)
        with common.initialised_by(context.seed, call, common.INIT, 1):
            generator = LabelGenerator(classes, -(-context.args.synthesis_batch // classes),
                                       context.args.latent_size, body)
        return generator.to(context.device)

    def make_batch(self, student: nn.Module, call: int) -> tuple[Tensor, Tensor]:
        args = self.context.args
        late = call - args.warmup_calls  # below 0 in the warm-up
        if call and 0 in (call % args.life, late % args.life):
            self.generator = self.new_generator(call)
        loops = args.loops if late >= 0 else args.warmup_loops
        batches = [self.batch(student, call, loop) for loop in range(loops)]
        return tuple(torch.cat(values) for values in zip(*batches, strict=True))

    def batch(self, student: nn.Module, call: int, loop: int) -> tuple[Tensor, Tensor]:
        context, args = self.context, self.context.args
        draw = common.numbers(context.seed, call, loop, common.DRAW, device=context.device)
        self.generator.draw_noisy(draw)
        optimizer = common.adam(self.generator, args.generator_rate)
        # each noisy layer's part is a permutation of all classes, the last one's cut off
        orders = [torch.randperm(context.task.num_classes, generator=draw, device=draw.device)
                  for _ in self.generator.noisy]
        targets = torch.cat(orders)[:args.synthesis_batch]
        images = context.make_images(optimizer, lambda: self.generator(targets),
                                     context.terms_of(call), targets, student, call,
                                     loop * args.inner_steps)
        return images, targets


class LabelGenerator(nn.Module):
    """A class's one-hot vector -> one of `copies` noisy linear layers, each for one image of each
    class -> body."""

    def __init__(self, classes: int, copies: int, latent: int, body: nn.Module):
        super().__init__()
        self.norm = nn.BatchNorm1d(classes)
        self.noisy = nn.ModuleList([nn.Linear(classes, latent) for _ in range(copies)])
        self.classes, self.body = classes, body

    def forward(self, classes: Tensor) -> Tensor:
        """int64 [B], at most all classes for each noisy layer, in this order -> [B, channels, side,
        side]."""
        x = self.norm(torch.eye(self.classes, device=classes.device)[classes])
        parts = x.split(self.classes)
        z = [layer(part) for layer, part in zip(self.noisy, parts, strict=True)]
        return self.body(torch.cat(z))

    @torch.no_grad()
    def draw_noisy(self, draw: torch.Generator) -> None:
        for layer in self.noisy:
            layer.weight.normal_(generator=draw)
            layer.bias.zero_()
