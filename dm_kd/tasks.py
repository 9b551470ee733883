"""The data sets that a student can be evaluated on. To add one: its loader and its entry, here.

A Task says what the images are (size, channels, statistics, classes), how they may be augmented,
and how the real ones are loaded, most of them by torchvision. Real images have three uses:
training a teacher, training a small generator, and evaluating the student.
"""

import argparse
import dataclasses
import functools
import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.models import ResNet18_Weights

from dm_kd import run
from dm_kd.run import UserError, nearest

ROOT = Path("true_dataset")
SMALL_BELOW = 100  # --resolution of a folder whose images are small
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Raw = tuple[Tensor | list[str], Tensor, Tensor | None]  # images or paths, labels, groups


@dataclass(frozen=True)
class Task:
    """A label space and its images. mean and std are per channel, for images in [0, 1].

    Small images all have `resolution` pixels per side, others are resized to it; training pads,
    crops and mirrors. Large images have any size: training takes random-resized crops, evaluation
    resizes the shorter side to 8/7 of the resolution (256 for 224) and takes the centre crop (He et
    al. 2016)."""

    name: str
    class_names: tuple[str, ...]  # in index order
    resolution: int  # pixels, square
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # (split "train" or "val", torchvision's root or None) -> uint8 [N, C, H, W] or paths, labels,
    # groups or None. None: class folders or lists, which data.py reads. With folds both splits are
    # all images, and no group is on both sides.
    load: Callable[[str, Path | None], Raw] | None = None
    large: bool = False
    pad: int = 0  # training crop: pad by so many pixels (zeros), cut out at a random place
    flip: bool = False  # training: mirror half of the images
    folds: int = 1  # how many --fold values there are; 1 = the data set's own split
    # In evaluation (shorter side before the centre crop, "bilinear" or "bicubic", whether the image
    # is squeezed into a square instead of cropped); None: as above.
    resize: tuple[int, str, bool] | None = None
    wnids: tuple[str, ...] | None = None  # WordNet ids in index order, of ImageNet or a subset
    folders: tuple[str, ...] | None = None  # class folders in index order, of --class-order

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def imagenet_classes(self) -> tuple[int, ...] | None:
        """Its classes' indices among ImageNet's 1,000; None where it is no subset of ImageNet."""
        return tuple(map(WNIDS.index, self.wnids)) if self.wnids else None


# --- loaders --------------------------------------------------------------------------------------

# scikit-learn's digits are 14 contiguous blocks, one per writer (INRIA scikit-learn course, "non
# i.i.d. data"); a split that shares writers overstates accuracy by about two points.
DIGITS_WRITER_STARTS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667)


def load_digits(split: str, root: Path | None) -> Raw:
    """All 1,797 images, whatever the split; groups are the writers."""
    from sklearn.datasets import load_digits

    if root is not None:
        raise UserError(f"the digits come with scikit-learn, not from {root}", "leave out --data")
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # levels are 0..16
    writers = np.searchsorted(DIGITS_WRITER_STARTS, np.arange(len(images)), side="right") - 1
    return (torch.from_numpy(images)[:, None], torch.from_numpy(digits.target).long(),
            torch.from_numpy(writers))


def torchvision_set(name: str, root: Path | None, **options):
    """torchvision's data set of that name, downloaded on first use."""
    return getattr(datasets, name)(root or ROOT, download=True, **options)


DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def load_fashion_mnist(split: str, root: Path | None) -> Raw:
    """Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747. Debian's files are unpacked here: they are
    compressed in another way than the published ones, whose MD5 sums torchvision asks for."""
    raw = (root or ROOT) / "FashionMNIST/raw"
    for packed in sorted(DEBIAN_FASHION.glob("*.gz")):
        if not (raw / packed.stem).exists():
            run.write_file(raw / packed.stem, gzip.decompress(packed.read_bytes()))
    data = torchvision_set("FashionMNIST", root, train=split == "train")
    return data.data[:, None], data.targets, None


def load_cifar(name: str, split: str, root: Path | None) -> Raw:
    """CIFAR10 or CIFAR100 (Krizhevsky 2009)."""
    data = torchvision_set(name, root, train=split == "train")
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(data.targets), None


def load_flowers102(split: str, root: Path | None) -> Raw:
    """Nilsback & Zisserman 2008. Training: the published train and validation splits (2,040
    images); validation: test (6,149)."""
    parts = [torchvision_set("Flowers102", root, split=name)
             for name in (("train", "val") if split == "train" else ("test",))]
    paths = [str(path) for part in parts for path in part._image_files]
    return paths, torch.tensor([label for part in parts for label in part._labels]), None


# --- class names ----------------------------------------------------------------------------------

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

# The classes of ImageNet-100 among ImageNet's 1,000, chosen by Tian et al. 2020, "Contrastive
# Multiview Coding" (arXiv 1906.05849).
IMAGENET100 = (
    15, 45, 54, 57, 64, 74, 90, 99, 119, 120, 122, 131, 137, 151, 155, 157, 158, 166, 167, 169,
    176, 180, 209, 211, 222, 228, 234, 236, 242, 246, 267, 268, 272, 275, 277, 281, 299, 305,
    313, 317, 331, 342, 368, 374, 407, 421, 431, 449, 452, 455, 479, 494, 498, 503, 508, 544,
    560, 570, 592, 593, 599, 606, 608, 619, 620, 653, 659, 662, 665, 667, 674, 682, 703, 708,
    717, 724, 748, 758, 765, 766, 772, 775, 796, 798, 830, 854, 857, 858, 872, 876, 882, 904,
    908, 936, 938, 953, 959, 960, 993, 994)
WNIDS = tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text().split())  # sorted
IMAGENET = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


# --- the table ------------------------------------------------------------------------------------

LARGE = {"resolution": 224, "channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
         "flip": True, "large": True}

TASKS = {task.name: task for task in (
    Task("digits", tuple("0123456789"), 8, 1, (0.3053,), (0.3760,), load_digits, pad=1, folds=5),
    Task("fashion_mnist", tuple(datasets.FashionMNIST.classes), 28, 1, (0.2860,), (0.3530,),
         load_fashion_mnist, pad=2, flip=True),
    Task("cifar10", tuple(CIFAR10.split()), 32, 3, (0.4914, 0.4822, 0.4465),
         (0.2470, 0.2435, 0.2616), functools.partial(load_cifar, "CIFAR10"), pad=4, flip=True),
    Task("cifar100", tuple(CIFAR100.split()), 32, 3, (0.5071, 0.4867, 0.4408),
         (0.2675, 0.2565, 0.2761), functools.partial(load_cifar, "CIFAR100"), pad=4, flip=True),
    Task("imagenet", IMAGENET, wnids=WNIDS, **LARGE),
    Task("imagenet100", tuple(IMAGENET[i] for i in IMAGENET100),
         wnids=tuple(WNIDS[i] for i in IMAGENET100), **LARGE),
    Task("flowers102", tuple(datasets.Flowers102.classes), load=load_flowers102, **LARGE),
)}


def get_task(name: str, root: Path | None = None, flags: argparse.Namespace | None = None) -> Task:
    """The Task of that name; "folder" is made from the class folders of `root`. `flags`, those of
    run.add_task_arguments, change a task of large images."""
    order = getattr(flags, "class_order", None)
    listed = order and tuple(map(str.strip, order.read_text("utf-8-sig").strip().splitlines()))
    if name == "folder":
        folders = folder_classes(root)
        names = listed or folders
        fits = {*folders} <= {*names}  # the networks may have other classes too
        task = Task("folder", names, wnids=names if {*names} <= {*WNIDS} else None, **LARGE)
    elif name in TASKS:
        task = TASKS[name]
        fits = len(listed or task.class_names) == task.num_classes
    else:
        raise UserError(f"unknown task '{name}'",
                        f"--task: {nearest(name, [*TASKS, 'folder'])}")
    if listed and not (fits and len({*listed}) == len(listed)):
        raise UserError(f"{order} does not name each class folder of {name} once: "
                        f"{', '.join(listed[:3])} ...", "--class-order FILE with a name a line")
    given = {key: value for key in ("resolution", "channels", "mean", "std")
             if (value := getattr(flags, key, None)) is not None}
    if given and not task.large:
        raise UserError(f"--{min(given)} is for tasks of large images and folders, not {name}")
    task = dataclasses.replace(task, folders=listed, **given)
    if (not len(task.mean) == len(task.std) == task.channels or min(task.std) <= 0
            or max(task.mean + task.std) > 1):
        raise UserError(f"mean {task.mean} and std {task.std} of {task.channels} channels",
                        "such as --channels 1 --mean 0.5 --std 0.25, of images in [0, 1]")
    if name == "folder" and task.resolution < SMALL_BELOW:
        task = dataclasses.replace(task, large=False, pad=task.resolution // 8)
    return task


def is_large(name: str, resolution: str) -> bool:
    """Whether a task has large images, while its flags are not parsed yet."""
    if name == "folder":
        return not resolution.isdecimal() or int(resolution) >= SMALL_BELOW
    return name in TASKS and TASKS[name].large


SPLIT_NAMES = {"train": ("train", "training"),
               "val": ("val", "validation", "valid", "test", "testing")}
SPLIT_LIKE = re.compile(r"(train|val|valid|test|dev|eval)(ing|idation|uation)?(set)?([^a-z]|$)",
                        re.IGNORECASE)
KAGGLE = "ILSVRC/Data/CLS-LOC"  # where its archive of ImageNet has train/ and val/


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits in `root`, such as train/ or Validation/, under "train", "val"."""
    root = root / KAGGLE if (root / KAGGLE).is_dir() else root
    folders = {p.name.lower(): p for p in sorted(root.glob("*")) if p.is_dir()}
    usual = {split: [folders[name] for name in names if name in folders]
             for split, names in SPLIT_NAMES.items()}
    return {split: places[0] for split, places in usual.items() if places}


def folder_classes(root: Path | None) -> tuple[str, ...]:
    """The class folders in a folder's train/, or val/, or in itself, in the order of torchvision's
    ImageFolder: sorted as text, so 10 comes before 2."""
    place = root and next(iter(split_folders(root).values()), root)
    names = sorted(p.name for p in place.glob("*") if p.is_dir()
                   and not re.match(r"\.|__MACOSX$", p.name)) if place else ()
    if len(names) < 2 or sum(map(bool, map(SPLIT_LIKE.match, names))) > 1:
        raise UserError(f"--task folder needs two class folders in train/, not {place}: "
                        f"{', '.join(names[:9])}",
                        "--data FOLDER with train/<class>/ and val/<class>/")
    return tuple(names)
