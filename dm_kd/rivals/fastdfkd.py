"""FastDFKD: a few updates of a copy of a meta generator and of its noise make a batch, then the
meta generator follows (Fang et al. 2022, arXiv 2112.06253). Three variants of its program:

    fastdfkd          first-order MAML (arXiv 1703.03400)
    fastdfkd_reptile  Reptile (arXiv 1803.02999)
    fast_sequential   no meta generator: the updates are the generator's own

SMALL is the published CIFAR preset at 10 inner steps. Published for other numbers of inner steps:
2, --latent-rate 0.015 --generator-rate 5e-3; 5, 0.01 and 3e-3. Published weights (adv_dad,
ce_target): VGG-11 to ResNet-18 1.0, 0.5; ResNet-34 to ResNet-18 1.33, 0.5; WRN-40-2 1.1, 0.4. The
program counts calls from 1, so that the last call of the warm-up has the adversarial term already.

The 224-pixel preset is published for Reptile; its ResNet-18 row has --adv-dad-weight 1. There the
program has no warm-up, but starts from a folder of images that was never released; our 20 calls
before the first student step stand in for it.

What differs from the program: at 224 pixels it keeps the last batch, here the batch of the lowest
loss is kept, as in its CIFAR program; its kept noise maps never move, here they follow by Reptile
(its MAML adds up values of the noise instead of gradients); it truncates images to 8 bits, here
they are rounded; an unused option resets the generator's first layers in the sequential variant
too, here only in the other two, where its program does it.
"""

import argparse
import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dm_kd.rivals import common, terms
from dm_kd.run import nonnegative_float, nonnegative_int, positive_int, probability
from dm_kd.tasks import Task

setting = common.setting


@dataclass(frozen=True, kw_only=True)
class Preset(common.PoolPreset, common.GeneratorPreset):
    bn_ema_weight: float
    ce_target_weight: float
    adv_dad_weight: float
    bn_momentum: float = setting("share of the past calls in the batch statistics", probability)
    latent_rate: float = setting("Adam's learning rate of the noise")
    meta_rate: float | None = setting("Adam's learning rate of the meta generator; 0 = inner steps "
                                      "x generator rate", nonnegative_float)
    meta_pull: float | None = setting("Reptile: weight of the step from the meta generator to the "
                                      "adapted one")
    reset_call: int | None = setting("the Nth call after the warm-up begins with new first layers "
                                     "of the generator; 0 = never", nonnegative_int)
    latent_calls: int | None = setting("keep the noise maps from call to call and draw them anew "
                                       "each N calls", positive_int)
    meta_latent_rate: float | None = setting("Adam's learning rate of the kept noise maps")


MAML = Preset(
    bn_ema_weight=10.0, ce_target_weight=0.5, adv_dad_weight=1.0, bn_momentum=0.9,
    latent_size=256, generator_width=128, generator_rate=2e-3, latent_rate=0.01, meta_rate=0.0,
    meta_pull=None, reset_call=120, latent_calls=None, meta_latent_rate=None, synthesis_batch=256,
    inner_steps=10, calls_per_epoch=1, warmup_calls=20, pool_images=60_000)
LARGE_MAML = dataclasses.replace(
    MAML, bn_ema_weight=0.1, ce_target_weight=0.1, adv_dad_weight=0.1, generator_width=None,
    generator_rate=2e-4, meta_rate=1e-4, reset_call=None, latent_calls=50, meta_latent_rate=5e-3,
    synthesis_batch=100, inner_steps=50, calls_per_epoch=10, pool_images=20_000)
NO_META = {"meta_rate": None, "reset_call": None, "latent_calls": None, "meta_latent_rate": None}
SMALL = {"fastdfkd": MAML, "fastdfkd_reptile": dataclasses.replace(MAML, meta_pull=67.0),
         "fast_sequential": dataclasses.replace(MAML, **NO_META)}
LARGE = {"fastdfkd": LARGE_MAML, "fastdfkd_reptile": dataclasses.replace(LARGE_MAML, meta_pull=1.0),
         "fast_sequential": dataclasses.replace(LARGE_MAML, **NO_META)}


def add_arguments(parser: argparse.ArgumentParser, name: str, large: bool) -> None:
    common.add_arguments(parser, name, (LARGE if large else SMALL)[name])


def build(args: argparse.Namespace, task: Task, teacher: nn.Module, device: torch.device
          ) -> common.PoolSource:
    preset = (LARGE if task.crop else SMALL)[args.source]
    context = common.Context(args, preset, task, teacher, device)
    return common.PoolSource(context, FastDFKD(context))


class FastDFKD:
    """Makes a batch from a generator that it keeps; `outer` is None for fast_sequential."""

    KEPT = ("generator", "latents", "outer", "averages")

    def __init__(self, context: common.Context):
        self.context, settings = context, context.settings
        self.generator = context.generator(common.INIT)
        self.latents: Tensor | None = None  # the kept noise maps
        if settings.latent_calls:
            self.latents = torch.zeros(settings.synthesis_batch, *self.generator.shape,
                                       device=context.device)
        self.outer = None if settings.meta_rate is None else self.outer_optimizer()
        self.averages: terms.Statistics | None = None

    def outer_optimizer(self) -> torch.optim.Adam:
        settings = self.context.settings
        rate = settings.meta_rate or settings.inner_steps * settings.generator_rate
        groups = [{"params": list(self.generator.parameters()), "lr": rate}]
        if self.latents is not None:
            groups.append({"params": [self.latents], "lr": settings.meta_latent_rate})
        return torch.optim.Adam(groups, **common.ADAM)

    def start(self, call: int) -> tuple[Tensor, Tensor]:
        """Classes and noise of a call, after the resets that are due."""
        settings = self.context.settings
        targets, z = self.context.draws(call, self.generator.shape)
        if settings.reset_call and call + 1 == settings.warmup_calls + settings.reset_call:
            reset_first_layers(self.generator,
                               common.numbers(self.context.seed, call, common.INIT))
        if self.latents is not None:
            if call % settings.latent_calls == 0:
                self.latents.copy_(z)
                self.outer = self.outer_optimizer()
            z = self.latents
        return targets, z.clone().requires_grad_()

    def make_batch(self, student: nn.Module, call: int) -> tuple[Tensor, Tensor]:
        context, settings = self.context, self.context.settings
        active = context.terms_of(adversarial=call + 1 >= settings.warmup_calls)
        targets, z = self.start(call)
        network = self.generator if self.outer is None else copy.deepcopy(self.generator)
        inner = torch.optim.Adam([
            {"params": list(network.parameters()), "lr": settings.generator_rate},
            {"params": [z], "lr": settings.latent_rate}], **common.ADAM)
        sums = [torch.zeros_like(p) for p in network.parameters()]  # of the gradients, for MAML
        read = None

        def losses(images: Tensor, step: int) -> dict[str, Tensor]:
            nonlocal read
            parts, read = terms.weighted(
                active, context.teacher, context.view(images, call, step), student, targets,
                self.averages, settings.bn_momentum, bf16=context.bf16)
            return parts

        def add_gradients() -> None:
            for total, parameter in zip(sums, network.parameters(), strict=True):
                total.add_(parameter.grad)

        images = common.optimise([inner], lambda step: network(z), losses, settings.inner_steps,
                                 f"in call {call + 1}", after=add_gradients)
        if read.statistics:
            self.averages = terms.update_averages(self.averages, read.statistics,
                                                  settings.bn_momentum)
        if self.outer is not None:
            self.follow(network, z, sums)
        return images, targets

    @torch.no_grad()
    def follow(self, network: nn.Module, z: Tensor, sums: list[Tensor]) -> None:
        """The meta generator's step: along the sum of the copy's gradients (MAML), or towards the
        adapted copy (Reptile)."""
        pull = self.context.settings.meta_pull
        for meta, adapted, gradient in zip(self.generator.parameters(), network.parameters(), sums,
                                           strict=True):
            meta.grad = pull * (meta - adapted) if pull else gradient
        if self.latents is not None:
            self.latents.grad = (pull or 1.0) * (self.latents - z)
        self.outer.step()


def reset_first_layers(generator: nn.Module, draw: torch.Generator) -> None:
    """New first layers, for diversity: weights and scales N(0, 0.02), biases 0."""
    with torch.no_grad():
        for layer in (generator.first, generator.norm):
            layer.weight.copy_(0.02 * torch.randn(layer.weight.shape, generator=draw))
            layer.bias.zero_()
