"""FastDFKD: a few updates of a copy of a meta generator and of its noise make a batch, then the
meta generator follows (Fang et al. 2022, arXiv 2112.06253). Three variants of its program:

    fastdfkd          first-order MAML (arXiv 1703.03400)
    fastdfkd_reptile  Reptile (arXiv 1803.02999)
    fast_sequential   no meta generator: the updates are the generator's own

SMALL is the published CIFAR preset of VGG-11 to ResNet-18 at 10 inner steps;
scripts/cifar100_baselines.sh has those of the other pairs and of 2 and 5 steps. The program counts
calls from 1, so that the last call of the warm-up has the adversarial term already.

The 224-pixel preset is published for Reptile. There the program has no warm-up, but starts from a
folder of images that was never released; our 20 calls before the first student step replace it.

What the program does differently: it truncates images to 8 bits, here they are rounded; at 224
pixels it keeps the last batch, here that of the lowest loss, as in its CIFAR program; its kept
noise maps never move, here they follow by Reptile.
"""

import copy

import torch
from torch import Tensor, nn

from dm_kd.rivals import common

RESET_CALL = 120  # after the warm-up, counted from 1: begins with new first layers (small images)
LATENT_CALLS, LATENT_RATE = 50, 5e-3  # the kept noise maps: calls of a life, Adam's learning rate
SEQUENTIAL = {
    "bn_ema_weight": 10.0, "ce_target_weight": 0.5, "adv_dad_weight": 1.0, "latent_size": 256,
    "generator_width": 128, "generator_rate": 2e-3, "latent_rate": 0.01, "synthesis_batch": 256,
    "inner_steps": 10, "student_steps": 0, "warmup_calls": 20, "pool_images": 60_000}
MAML = {**SEQUENTIAL, "meta_rate": 0.0}
SMALL = {"fast_sequential": SEQUENTIAL, "fastdfkd": MAML, "fastdfkd_reptile": MAML}
LARGE = {"fastdfkd_reptile": {
    "bn_ema_weight": 0.1, "ce_target_weight": 0.1, "adv_dad_weight": 0.1, "latent_size": 256,
    "generator_rate": 2e-4, "latent_rate": 0.01, "meta_rate": 1e-4, "synthesis_batch": 100,
    "inner_steps": 50, "student_steps": 100, "warmup_calls": 20, "pool_images": 20_000}}
HELP = {"meta_rate": "Adam's learning rate of the meta generator; 0 = inner steps x generator rate"}


class Method:
    """At 224 pixels the noise maps are kept too, as the generator's parameter `noise`."""

    def __init__(self, context: common.Context):
        self.context, args = context, context.args
        self.generator = context.generator(common.INIT)
        if context.task.large:
            self.generator.noise = nn.Parameter(torch.zeros(
                args.synthesis_batch, *self.generator.shape, device=context.device))
        self.meta, self.KEPT = args.source != "fast_sequential", ("generator",)
        if self.meta:
            self.outer, self.KEPT = self.outer_optimizer(), ("generator", "outer")

    def outer_optimizer(self) -> torch.optim.Adam:
        args, noise = self.context.args, getattr(self.generator, "noise", None)
        return common.adam(self.generator, args.meta_rate or args.inner_steps * args.generator_rate,
                           noise, LATENT_RATE)

    @torch.no_grad()
    def reset(self, call: int, z: Tensor) -> None:
        """Reset what is due before a call: the kept noise, to z; the first layers, for diversity,
        to weights and scales N(0, 0.02) and biases 0."""
        if self.context.task.large:
            if call % LATENT_CALLS == 0:
                self.generator.noise.copy_(z)
                self.outer = self.outer_optimizer()
        elif self.meta and call + 1 == self.context.args.warmup_calls + RESET_CALL:
            draw = common.numbers(self.context.seed, call, common.INIT, device=self.context.device)
            for layer in (self.generator.body[0], self.generator.body[2]):
                layer.weight.normal_(0, 0.02, generator=draw)
                layer.bias.zero_()

    def make_batch(self, student: nn.Module, call: int) -> tuple[Tensor, Tensor]:
        context, args = self.context, self.context.args
        targets, z = context.draws(call, self.generator.shape)
        self.reset(call, z)
        network = copy.deepcopy(self.generator) if self.meta else self.generator
        z = network.noise if context.task.large else z.requires_grad_()
        inner = common.adam(network, args.generator_rate, z, args.latent_rate)
        sums = [torch.zeros_like(p) for p in network.parameters()]  # of the gradients, for MAML

        def add_gradients(*_) -> None:
            for total, parameter in zip(sums, network.parameters(), strict=True):
                total.add_(parameter.grad)

        inner.register_step_post_hook(add_gradients)
        images = context.make_images(inner, lambda: network(z), context.terms_of(call + 1),
                                     targets, student, call)
        if self.meta:
            self.follow(network, sums)
        return images, targets

    @torch.no_grad()
    def follow(self, network: nn.Module, sums: list[Tensor]) -> None:
        """The meta generator's step: along the sum of the copy's gradients (MAML), or towards the
        adapted copy (Reptile)."""
        reptile = self.context.args.source == "fastdfkd_reptile"
        pull = 1.0 if self.context.task.large else 67.0  # as published
        for meta, adapted, gradient in zip(self.generator.parameters(), network.parameters(), sums,
                                           strict=True):
            meta.grad = pull * (meta - adapted) if reptile else gradient
        self.outer.step()
