"""CMI: a new generator for each batch, whose images a contrastive term keeps different from each
other and from those made before (Fang et al. 2021, arXiv 2105.08584).

The preset is its program's for training from scratch, whose scripts have 200 updates a batch where
the tables say "CMI-500". The published numbers of some pairs start from 50,000 images inverted
before and train 40 epochs of 2,000 steps.

What differs from the program: its memory bank keeps features of old images, here features of
`bank_images` images of the pool are computed at each call (two teacher passes each); it rounds the
crops of its views to whole pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import augment
from dm_kd.rivals import common, terms

HEAD_WIDTH, HEAD_RATE = 256, 1e-3  # of the contrastive head: its output, Adam's learning rate
TEMPERATURE = 0.2  # of the contrastive term
LOCAL_AREA = 0.25  # least area of the local view
BANK, LOCAL = 15, 16  # what random numbers are for, see common.py
SMALL = {"cmi": {
    "bn_weight": 1.0, "ce_target_weight": 1.0, "adv_dad_weight": 0.5, "contrastive_weight": 0.8,
    "latent_size": 256, "generator_width": 128, "generator_rate": 1e-3, "latent_rate": 1e-3,
    "bank_images": 4096, "synthesis_batch": 256, "inner_steps": 200, "student_steps": 0,
    "warmup_calls": 0, "pool_images": 60_000}}
HELP = {"bank_images": "images of the pool that a call is contrasted with"}


class Method:
    KEPT = ("head", "head_optimizer")

    def __init__(self, context: common.Context):
        self.context, self.layers, task = context, feature_layers(context.teacher), context.task
        black = torch.zeros(2, task.channels, task.resolution, task.resolution)
        size = self.features(black.to(context.device)).shape[1]
        with common.initialised_by(context.seed, common.INIT):
            self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(),
                                      nn.Linear(size, HEAD_WIDTH)).to(context.device)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr=HEAD_RATE)

    def features(self, x: Tensor) -> Tensor:
        with terms.recorded(self.layers, spatial_mean) as means:
            terms.logits(self.context.teacher, x, self.context.bf16)
        return torch.cat(means, 1)

    def local(self, images: Tensor, *key: int) -> Tensor:
        """Crops of 25 to 100 %, standardised."""
        return self.context.standardize(augment.resized_view(
            images, LOCAL_AREA, self.context.task.flip, common.numbers(self.context.seed, *key)))

    @torch.no_grad()
    def bank(self, call: int) -> tuple[list[Tensor], list[Tensor]]:
        """Features [n, d] of crops and of wholes of some of the pool's images, if it has any."""
        context, args, local, whole = self.context, self.context.args, [], []
        order = torch.randperm(len(context.pool), generator=common.numbers(
            context.seed, call, BANK))[:args.bank_images]
        for i, ids in enumerate(order.split(args.synthesis_batch) if len(order) else ()):
            images = augment.send(context.pool[ids], context.device).float() / 255
            local.append(self.features(self.local(images, call, BANK, i, LOCAL)))
            whole.append(self.features(context.view(images, call, args.inner_steps + i)))
        return local, whole

    def make_batch(self, student: nn.Module, call: int) -> tuple[Tensor, Tensor]:
        context, args = self.context, self.context.args
        network = context.generator(call, common.INIT)
        draw_weights(network, common.numbers(context.seed, call, common.INIT))
        targets, z = context.draws(call, network.shape)
        optimizer = common.adam(network, args.generator_rate, z.requires_grad_(), args.latent_rate)
        active, bank = context.terms_of(call), self.bank(call)

        def losses(images: Tensor, step: int) -> dict[str, Tensor]:
            with terms.recorded(self.layers, spatial_mean) as means:
                parts, _ = terms.weighted(active, context.teacher, context.view(images, call, step),
                                          student, targets, bf16=context.bf16)
            local = self.features(self.local(images, call, step, LOCAL))
            features = [local, *bank[0]], [torch.cat(means, 1), *bank[1]]
            unit = [F.normalize(self.head(torch.cat(parts)), dim=1) for parts in features]
            return parts | {"contrastive": args.contrastive_weight * contrastive(*unit, len(local))}

        # generator and head minimise the same loss
        images = common.optimise([optimizer, self.head_optimizer], lambda: network(z), losses,
                                 args.inner_steps, f"in call {call + 1}")
        return images, targets


def contrastive(local: Tensor, whole: Tensor, current: int) -> Tensor:
    """Match each crop with its own image among all: cross-entropy of local wholeᵀ / 0.2 with the
    diagonal, the mean over the first `current` images plus the mean over those of the pool. No
    gradient flows through `whole`. local, whole: unit vectors [N, d]."""
    logits = local.float() @ whole.detach().float().T / TEMPERATURE
    each = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device),
                           reduction="none")
    own = each[:current].mean()
    return own if current == len(each) else own + each[current:].mean()


def spatial_mean(layer: nn.Module, x: Tensor) -> Tensor:
    return x.float().mean((2, 3))


def feature_layers(teacher: nn.Module) -> list[nn.Module]:
    """Layers whose inputs, averaged over space, are the features: the stages of a ResNet with
    layer1 to layer4 (512 numbers of a ResNet-34, which the program tells by its name), else all
    batch norms."""
    stages = [getattr(teacher, f"layer{i}", None) for i in range(1, 5)]
    return terms.batch_norms(teacher) if None in stages else stages


@torch.no_grad()
def draw_weights(network: nn.Module, draw: torch.Generator) -> None:
    """New weights N(0, 0.02), batch norms' scales N(1, 0.02), biases 0."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            scale = float(isinstance(layer, nn.BatchNorm2d))
            layer.weight.copy_(scale + 0.02 * torch.randn(layer.weight.shape, generator=draw))
            if layer.bias is not None:
                layer.bias.zero_()
