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

from dm_kd import run
from dm_kd.tasks import Task

LICENCE = "CC BY 2.0, as shipped by scikit-learn (its datasets/images/README.txt)"  # of china.jpg
SMALLEST_AREA, ASPECT = 1 / 500, (3 / 4, 4 / 3)  # of the inner crop
DEGREES = 30.0  # of turning and of shearing
JITTER, HUE, JITTER_SHARE = 0.4, 0.1, 0.5  # brightness, contrast and saturation; hue; of images
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

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """-> uint8 [B, C, H, H], each a function of its seed; the labels are not used."""
        from torchvision.transforms.functional import pil_to_tensor

        patches = [patch(self.picture, self.resolution, torch.Generator().manual_seed(seed))
                   for seed in seeds]
        return torch.stack([pil_to_tensor(image) for image in patches])


def patch(picture: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
    """One augmented square of `size` pixels."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    outer = min(picture.size) // 2
    left, top = (uniform(0, side - outer + 1) // 1 for side in picture.size)
    while True:  # until the crop, of uniform area and log-uniform aspect, fits
        area = uniform(SMALLEST_AREA, 1) * outer ** 2
        aspect = math.exp(uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= outer and 0 < height <= outer:
            break
    left += uniform(0, outer - width + 1) // 1
    top += uniform(0, outer - height + 1) // 1
    side = int(math.sqrt(2) * size)
    image = picture.resize((side, side), Image.Resampling.BICUBIC,
                           box=(left, top, left + width, top + height))
    image = transforms.affine(
        image, angle=uniform(-DEGREES, DEGREES), translate=[0, 0], scale=1.0,
        shear=[uniform(-DEGREES, DEGREES), 0.0], interpolation=InterpolationMode.BILINEAR, fill=0)
    image = transforms.center_crop(image, [size, size])
    if uniform(0, 1) >= JITTER_SHARE:
        return image
    changes = [(change, uniform(1 - JITTER, 1 + JITTER)) for change in (
        transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation)]
    changes.append((transforms.adjust_hue, uniform(-HUE, HUE)))
    for i in torch.randperm(len(changes), generator=generator).tolist():
        change, amount = changes[i]
        image = change(image, amount)
    return image


def build(args: argparse.Namespace, task: Task, device: torch.device) -> OneImageGenerator:
    import sklearn.datasets

    path = args.picture or Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    picture = Image.open(path).convert("L" if task.channels == 1 else "RGB")
    settings = {"name": "one_image", "picture_sha256": run.sha256_file(path),
                "licence": "that of the picture" if args.picture else LICENCE,
                **{name: importlib.metadata.version(name) for name in ("pillow", "torchvision")}}
    return OneImageGenerator(picture, LARGE_SIDE if task.large else task.resolution, settings)
