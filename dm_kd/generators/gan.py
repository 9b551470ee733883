"""A small class-conditional GAN for small images, with truncation as its fidelity knob.

Networks after Miyato & Koyama 2018 (arXiv 1802.05637: projection discriminator) and Brock et al.
2019, "BigGAN" (arXiv 1809.11096: class-conditional gains, truncation). train_generator has the
losses: with BigGAN's spectral norm and hinge loss every class collapsed to one picture at this
size.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import run
from dm_kd.generators import latent
from dm_kd.tasks import Task

GROUPS = 8  # of the normalisation
CUT = 2.0  # standard deviations at which the normal distribution is cut (BigGAN's public networks)


def start_size(resolution: int) -> tuple[int, int]:
    """(side of the first map, number of doublings): 8 = 4 x 2, 28 = 7 x 4."""
    side, doublings = resolution, 0
    while side % 2 == 0 and side > 4:
        side, doublings = side // 2, doublings + 1
    return side, doublings


class ConditionalNorm(nn.Module):
    """Group norm (an image must not depend on its batch) with a gain and a bias per class."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.gain, self.bias = (nn.Embedding(num_classes, width) for _ in range(2))
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = F.group_norm(x, GROUPS)
        return x * self.gain(labels)[..., None, None] + self.bias(labels)[..., None, None]


class GeneratorBlock(nn.Module):
    """Two convolutions that double the size, beside an identity path."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.norm1, self.norm2 = (ConditionalNorm(width, num_classes) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x, labels)), scale_factor=2)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), labels)))
        return F.interpolate(x, scale_factor=2) + h


class Generator(nn.Module):
    """(z [B, latent_size], labels [B]) -> images [B, C, H, H] in [-1, 1]. width: a multiple of
    GROUPS."""

    def __init__(self, resolution: int, channels: int, num_classes: int, width: int,
                 latent_size: int):
        super().__init__()
        self.config = {"resolution": resolution, "channels": channels, "num_classes": num_classes,
                       "width": width, "latent_size": latent_size}
        self.side, doublings = start_size(resolution)
        self.embed = nn.Embedding(num_classes, latent_size)
        self.first = nn.Linear(2 * latent_size, width * self.side ** 2)
        self.blocks = nn.ModuleList(GeneratorBlock(width, num_classes) for _ in range(doublings))
        self.norm = ConditionalNorm(width, num_classes)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = self.first(torch.cat([z, self.embed(labels)], 1))
        x = x.view(len(z), -1, self.side, self.side)
        for block in self.blocks:
            x = block(x, labels)
        return torch.tanh(self.last(F.relu(self.norm(x, labels))))


class Discriminator(nn.Module):
    """(images [B, C, H, H], labels [B]) -> [B], psi(h) + <embedding of the class, h>."""

    def __init__(self, resolution: int, channels: int, num_classes: int, width: int):
        super().__init__()
        layers, (side, doublings) = [], start_size(resolution)
        for i in range(doublings + 1):
            layers += [nn.Conv2d(width if i else channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
            if i < doublings:
                layers += [nn.Conv2d(width, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        size = 4 * width
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side ** 2, size),
                                      nn.LeakyReLU(0.2))
        self.psi = nn.Linear(size, 1)
        self.embed = nn.Embedding(num_classes, size)
        nn.init.normal_(self.embed.weight, std=size ** -0.5)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.features(x)
        return self.psi(h)[:, 0] + (self.embed(labels) * h).sum(1)


def truncated_normal(seed: int, count: int) -> Tensor:
    """Unit normal numbers cut at +-CUT, float32 [count], by the inverse of the distribution;
    torch's trunc_normal_ differs from version to version."""
    low = 0.5 * (1 + math.erf(-CUT / math.sqrt(2)))
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.special.ndtri(low + uniform * (1 - 2 * low)).float()


class GanGenerator:
    labels_known = True

    def __init__(self, model: nn.Module, settings: dict, device: torch.device):
        self.model, self.settings, self.device = model, settings, device
        self.resolution, self.channels = model.config["resolution"], model.config["channels"]

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """uint8 [B, C, H, H], from z = truncation x a cut normal of each image's own seed."""
        z = torch.stack([truncated_normal(seed, self.model.config["latent_size"])
                         for seed in seeds]) * self.settings["truncation"]
        classes = latent.as_generator_classes(labels, self)
        return latent.to_images(self.model(z.to(self.device), classes))


# --- flags and files ------------------------------------------------------------------------------

def add_arguments(parser: argparse.ArgumentParser, name: str = "gan",
                  weights: str = "a folder of train_generator --kind gan") -> None:
    add = parser.add_argument_group(name).add_argument
    add("--weights", required=True, metavar="FOLDER", help=weights)
    add("--truncation", type=run.probability, default=1.0, metavar="X",
        help="factor of the latent noise, 0 to 1: smaller gives more typical, less varied images "
             "(default: %(default)s)")


def build(args: argparse.Namespace, task: Task, device: torch.device) -> GanGenerator:
    state, card = run.read_with_card(Path(args.weights), "gan")
    latent.generator_classes(card, card["config"]["num_classes"], task, args.weights)
    model = Generator(**card["config"])
    model.load_state_dict(state)
    settings = {"name": "gan", "weights_sha256": card["sha256"], "licence": card["licence"],
                "trained_on": card["trained_on"], "truncation": args.truncation}
    return GanGenerator(model.eval().requires_grad_(False).to(device), settings, device)
