"""BigGAN-deep, the public ImageNet generators: truncation is the fidelity knob.

Brock et al. 2019 (arXiv 1809.11096); networks and weights of pytorch-pretrained-biggan (an extra;
128, 256 and 512 pixels), for the table's BigGAN row: 215 images per class.

FOLDER holds config.json and pytorch_model.bin of one size (files biggan-deep-256-config.json and
biggan-deep-256-pytorch_model.bin, renamed), which are read here as plain tensors.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import run
from dm_kd.generators import gan, latent
from dm_kd.tasks import Task

LICENCE = "Apache-2.0 as the package says; converted from DeepMind's TF Hub modules"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gan.add_arguments(parser, "biggan", "config.json and pytorch_model.bin of a BigGAN-deep")


class BigGAN(nn.Module):
    """The package's network at one truncation, called like gan.Generator."""

    def __init__(self, network: nn.Module, truncation: float):
        super().__init__()
        self.network, self.truncation, config = network, truncation, network.config
        self.config = {"resolution": config.output_dim, "channels": 3,
                       "num_classes": config.num_classes, "latent_size": config.z_dim}

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(labels, self.config["num_classes"]).float()
        return self.network(z, one_hot, self.truncation)


def build(args: argparse.Namespace, task: Task, device: torch.device) -> gan.GanGenerator:
    import pytorch_pretrained_biggan as package

    file = Path(args.weights) / "pytorch_model.bin"
    config = run.read_json(file.with_name("config.json"))
    network = package.BigGAN(package.BigGANConfig.from_dict(config))
    network.load_state_dict(run.load_pt(file))
    model = BigGAN(network, args.truncation).eval().requires_grad_(False)
    settings = {"name": "biggan", "weights_sha256": run.sha256_file(file), "licence": LICENCE,
                "truncation": args.truncation,
                "package": f"pytorch-pretrained-biggan {package.__version__}",
                **latent.generator_classes({}, config["num_classes"], task, args.weights)}
    return gan.GanGenerator(model.to(device), settings, device)
