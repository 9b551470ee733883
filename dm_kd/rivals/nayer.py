"""NAYER: a generator from class embeddings through noisy linear layers, which are drawn anew for
each batch and learn with it, so that the diversity comes from them (Tran et al. 2024,
arXiv 2310.00258).

SMALL is its program's CIFAR-100 preset. A call makes `loops` batches, each the best of
`inner_steps` updates with an Adam of its own; the generator is drawn anew each `life` calls,
counted from the first call and from the end of the warm-up. No preset is published for 224 pixels:
FastDFKD's weights there.

What differs from the program: its classes are CLIP vectors of "a image of NAME" with _ and - as
blanks (--label-embeddings openai/clip-vit-base-patch32 gives these), here one-hot vectors by
default; it compares a call's later batches with the lowest loss of its earlier ones, so that it may
keep their first images, here each batch is compared with itself.
"""

import argparse
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import run
from dm_kd.rivals import common, terms
from dm_kd.run import UserError, nonnegative_int, positive_int, probability
from dm_kd.tasks import Task

setting = common.setting


@dataclass(frozen=True, kw_only=True)
class Preset(common.PoolPreset, common.GeneratorPreset):
    bn_ema_weight: float
    ce_target_weight: float
    adv_dad_weight: float
    bn_momentum: float = setting("share of the past calls in the batch statistics", probability)
    loops: int = setting("batches of a call, each with noisy layers of its own", positive_int)
    warmup_loops: int = setting("the same for a call of the warm-up", positive_int)
    life: int = setting("calls after which the whole generator is drawn anew; 0 = never",
                        nonnegative_int)


SMALL = Preset(bn_ema_weight=10.0, ce_target_weight=0.5, adv_dad_weight=1.33, bn_momentum=0.9,
               latent_size=1000, generator_width=128, generator_rate=4e-3, inner_steps=40, loops=2,
               warmup_loops=10, life=10, synthesis_batch=400, calls_per_epoch=1, warmup_calls=20,
               pool_images=240_000)  # all that 20 + 200 calls make
LARGE = dataclasses.replace(SMALL, bn_ema_weight=0.1, ce_target_weight=0.1, adv_dad_weight=0.1,
                            latent_size=256, generator_width=None, synthesis_batch=100,
                            calls_per_epoch=10, pool_images=20_000)


def add_arguments(parser: argparse.ArgumentParser, name: str, large: bool) -> None:
    common.add_arguments(parser, name, LARGE if large else SMALL)
    parser.add_argument("--label-embeddings", default="onehot", metavar="onehot|FILE|HUB_ID",
                        help="vectors of the classes: one-hot; a .safetensors file with "
                             "`embeddings` [classes, e]; or a CLIP text model's of the class names "
                             "(default: %(default)s)")


def build(args: argparse.Namespace, task: Task, teacher: nn.Module, device: torch.device
          ) -> common.PoolSource:
    context = common.Context(args, LARGE if task.crop else SMALL, task, teacher, device)
    return common.PoolSource(context, Nayer(context))


class Nayer:
    KEPT = ("generator", "embeddings", "averages")

    def __init__(self, context: common.Context):
        self.context = context
        self.embeddings = class_embeddings(context.args.label_embeddings, context.task)
        self.copies = -(-context.settings.synthesis_batch // context.task.num_classes)
        self.generator = self.new_generator(0)
        self.averages: terms.Statistics | None = None

    def new_generator(self, call: int) -> "LabelGenerator":
        """Its weights are a function of the call."""
        context, size = self.context, self.context.settings.latent_size
        body = context.generator(call, common.INIT)
        with common.initialised_by(context.seed, call, common.INIT, 1):
            if context.large:  # its body takes maps
                body = nn.Sequential(MapLayer(size, context.task.resolution // 16), body)
            generator = LabelGenerator(self.embeddings, self.copies, size, body)
        return generator.to(context.device)

    def make_batch(self, student: nn.Module, call: int) -> tuple[Tensor, Tensor]:
        """All batches of a call, one after the other."""
        settings = self.context.settings
        late = call - settings.warmup_calls  # below 0 in the warm-up
        if settings.life and call and 0 in (call % settings.life, late % settings.life):
            self.generator = self.new_generator(call)
        loops = settings.loops if late >= 0 else settings.warmup_loops
        batches = [self.batch(student, call, loop) for loop in range(loops)]
        return tuple(torch.cat(values) for values in zip(*batches, strict=True))

    def batch(self, student: nn.Module, call: int, loop: int) -> tuple[Tensor, Tensor]:
        """(images, classes) of fresh noisy layers."""
        context, settings = self.context, self.context.settings
        active = context.terms_of(adversarial=call >= settings.warmup_calls)
        draw = common.numbers(context.seed, call, loop, common.DRAW)
        self.generator.draw_noisy(draw)
        optimizer = torch.optim.Adam(self.generator.parameters(), lr=settings.generator_rate,
                                     **common.ADAM)
        # each noisy layer's part is a permutation of all classes, the last one's cut off
        orders = [torch.randperm(context.task.num_classes, generator=draw)
                  for _ in range(self.copies)]
        targets = torch.cat(orders)[:settings.synthesis_batch].to(context.device)
        first, read = loop * settings.inner_steps, None

        def losses(images: Tensor, step: int) -> dict[str, Tensor]:
            nonlocal read
            parts, read = terms.weighted(
                active, context.teacher, context.view(images, call, first + step), student, targets,
                self.averages, settings.bn_momentum, bf16=context.bf16)
            return parts

        images = common.optimise([optimizer], lambda step: self.generator(targets), losses,
                                 settings.inner_steps, f"in call {call + 1}, loop {loop + 1}")
        if read.statistics:
            self.averages = terms.update_averages(self.averages, read.statistics,
                                                  settings.bn_momentum)
        return images, targets


class LabelGenerator(nn.Module):
    """A class's embedding -> noisy linear layer -> a generator's body. Each noisy layer makes one
    image of each class; a batch of N C images has N of them.

    Args:
        embeddings: [classes, e].
        copies: N.
    """

    def __init__(self, embeddings: Tensor, copies: int, latent: int, body: nn.Module):
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.norm = nn.BatchNorm1d(embeddings.shape[1])
        self.noisy = nn.ModuleList([nn.Linear(embeddings.shape[1], latent) for _ in range(copies)])
        self.body = body

    def forward(self, classes: Tensor) -> Tensor:
        """classes int64 [B], at most C for each noisy layer, in this order -> [B, ch, side,
        side]."""
        x = self.norm(self.embeddings[classes])  # [B, e]
        size = len(self.embeddings)
        z = [layer(part) for layer, part in zip(self.noisy, x.split(size), strict=True)]
        return self.body(torch.cat(z))

    def draw_noisy(self, draw: torch.Generator) -> None:
        """New weights N(0, 1), biases 0."""
        with torch.no_grad():
            for layer in self.noisy:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw))
                layer.bias.zero_()


class MapLayer(nn.Module):
    """A vector [B, n] -> a map [B, n, side, side]: a trained bias for each place, the vector's
    numbers scaled by a trained weight there."""

    def __init__(self, size: int, side: int):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(size, side, side))
        self.bias = nn.Parameter(torch.zeros(size, side, side))

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :, None, None] * self.scale + self.bias


def class_embeddings(choice: str, task: Task) -> Tensor:
    """float32 [classes, e].

    Raises:
        UserError: embeddings of another number of classes."""
    if choice == "onehot":
        return torch.eye(task.num_classes)
    if choice.endswith(".safetensors"):
        embeddings = run.load_safetensors(Path(choice))["embeddings"].float()
        if len(embeddings) != task.num_classes:
            raise UserError(f"{choice} has embeddings of {len(embeddings)} classes, the task has "
                            f"{task.num_classes}")
        return embeddings
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(choice)
    model = transformers.CLIPTextModelWithProjection.from_pretrained(
        choice, use_safetensors=True).eval()
    prompts = [f"a image of {re.sub('[_-]', ' ', name)}" for name in task.class_names]
    with torch.no_grad():
        return model(**tokenizer(prompts, padding=True, return_tensors="pt")).text_embeds.float()
