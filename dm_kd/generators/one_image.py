"""One-Image: strongly augmented patches of a single picture, of which no label is known.

Asano & Saeed 2022, "The augmented image prior" (arXiv 2112.00725): the paper's patches - a square
half as wide as the picture, of that a crop of 1/500 to all of its area, resized to sqrt(2) times
the size, turned and sheared by up to 30 degrees, the centre cut out, colours jittered in half of
them. They are stored as PNG, not JPEG. The default picture comes with scikit-learn.
"""

import argparse
import importlib.metadata
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from dm_kd import run
from dm_kd.tasks import Task

LICENCE = "CC BY 2.0, as shipped by scikit-learn (its datasets/images/README.txt)"  # of china.jpg
SMALLEST_AREA = 1 / 500  # of the inner crop
DEGREES = 30.0  # of turning and of shearing
JITTER, JITTER_SHARE = (0.4, 0.4, 0.4, 0.1), 0.5  # brightness, contrast, saturation, hue; of images
LARGE_SIDE = 256  # pixels of a patch for tasks of large images, as the paper's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one_image")
    group.add_argument("--picture", type=Path, default=None, metavar="FILE",
                       help="any picture (default: scikit-learn's china.jpg)")


class OneImageGenerator:
    """Patches of `picture`, an RGB or grey PIL image."""

    labels_known = False

    def __init__(self, picture: Image.Image, resolution: int, settings: dict):
        self.picture, self.resolution, self.settings = picture, resolution, settings
        self.channels = len(picture.getbands())
        self.patch = v2.Compose([
            v2.RandomCrop(min(picture.size) // 2),
            v2.RandomResizedCrop(int(math.sqrt(2) * resolution), (SMALLEST_AREA, 1),
                                 interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomAffine(DEGREES, shear=DEGREES, interpolation=v2.InterpolationMode.BILINEAR),
            v2.CenterCrop(resolution), v2.RandomApply([v2.ColorJitter(*JITTER)], JITTER_SHARE),
            v2.PILToTensor()])

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """-> uint8 [B, C, H, H], each a function of its seed; the labels are not used."""
        patches = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.default_generator.manual_seed(seed)
                patches.append(self.patch(self.picture))
        return torch.stack(patches)


def build(args: argparse.Namespace, task: Task, device: torch.device) -> OneImageGenerator:
    import sklearn.datasets

    path = args.picture or Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    picture = Image.open(path).convert("L" if task.channels == 1 else "RGB")
    settings = {"name": "one_image", "picture_sha256": run.sha256_file(path),
                "licence": "that of the picture" if args.picture else LICENCE,
                **{name: importlib.metadata.version(name) for name in ("pillow", "torchvision")}}
    return OneImageGenerator(picture, LARGE_SIDE if task.large else task.resolution, settings)
