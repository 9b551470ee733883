"""BigGAN-deep, the public ImageNet generators: truncation is the fidelity knob.

Brock et al. 2019 (arXiv 1809.11096); networks and weights of pytorch-pretrained-biggan (an extra;
128, 256 and 512 pixels), for the table's BigGAN row: 215 images per class.

    python -m dm_kd.synthesize --task imagenet --generator biggan --weights FOLDER \\
        --truncation 1 --images-per-class 215 --out syn_dataset/imagenet_biggan

FOLDER holds config.json and pytorch_model.bin of one size (files biggan-deep-256-config.json and
biggan-deep-256-pytorch_model.bin, renamed). They are read here as plain tensors, since the
package's own loader unpickles whatever the file holds. Between the 51 truncations whose statistics
a file holds, the package swaps the weights of the two nearest: take multiples of 0.02.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import run
from dm_kd.generators import gan, latent
from dm_kd.tasks import Task

LICENCE = "Apache-2.0 as the package says; converted from DeepMind's TF Hub modules"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("biggan")
    group.add_argument("--weights", required=True, metavar="FOLDER",
                       help="config.json and pytorch_model.bin of a BigGAN-deep")
    gan.add_truncation(group)


class BigGANGenerator:
    """A BigGAN-deep with its truncation."""

    labels_known, channels = True, 3

    def __init__(self, model, settings: dict, device: torch.device):
        self.model, self.settings, self.device = model, settings, device
        self.resolution = model.config.output_dim

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """uint8 [B, 3, H, H] from z = truncation x a normal cut at +-2 of each image's own seed."""
        truncation, config = self.settings["truncation"], self.model.config
        z = torch.stack([gan.truncated_normal(seed, config.z_dim) for seed in seeds]) * truncation
        classes = latent.as_generator_classes(labels, self.settings)
        one_hot = torch.nn.functional.one_hot(classes, config.num_classes).float()
        return latent.to_images(self.model(z.to(self.device), one_hot.to(self.device), truncation))


def build(args: argparse.Namespace, task: Task, device: torch.device) -> BigGANGenerator:
    """The generator of the flags."""
    import pytorch_pretrained_biggan as package

    file = Path(args.weights) / "pytorch_model.bin"
    config = run.read_json(file.with_name("config.json"))
    model = package.BigGAN(package.BigGANConfig.from_dict(config))
    model.load_state_dict(run.load_pt(file))
    settings = {"name": "biggan", "weights_sha256": run.sha256_file(file), "licence": LICENCE,
                "truncation": args.truncation,
                "package": f"pytorch-pretrained-biggan {package.__version__}",
                **latent.generator_classes(model.config.num_classes, task, args.weights)}
    return BigGANGenerator(model.eval().requires_grad_(False).to(device), settings, device)
