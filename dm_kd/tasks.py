"""The data sets a student can be judged on. To add one: its loader in real_data.py, one entry here.

A Task says what the images are (size, channels, statistics, classes), how they may be augmented,
and where the real ones lie. Real images serve three ends only: training a teacher, training a small
generator, and judging the student.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dm_kd import real_data
from dm_kd.errors import UserError, nearest
from dm_kd.real_data import RealData

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """A label space and its images. mean and std are per channel, for images in [0, 1].

    Small images (crop = False) all have `resolution` pixels per side, others are resized to it;
    training pads, crops and mirrors. With crop = True training cuts random-resized crops out of
    images of any size, and judging resizes the shorter side to 8/7 of the resolution (256 for 224)
    and cuts the centre out (He et al. 2016)."""

    name: str
    num_classes: int
    names: Callable[[], tuple[str, ...]]  # class names in index order
    resolution: int  # pixels, square
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    load: Callable[[str, str, int, Path | None], RealData]  # (split, val mode, fold, data path)
    pad: int = 0  # training crop: pad by so many pixels (zeros), cut out at a random place
    flip: bool = False  # training: mirror half of the images
    crop: bool = False
    folds: int = 1  # how many --fold values there are; 1 = the data set's own split
    wnids: tuple[str, ...] | None = None  # WordNet ids in index order, of a part of ImageNet

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names()

    @property
    def imagenet_classes(self) -> tuple[int, ...] | None:
        """Where its classes stand among ImageNet's thousand, in index order; None where its
        classes are not such a part."""
        return tuple(real_data.IMAGENET100[wnid] for wnid in self.wnids) if self.wnids else None


def _fashion_names() -> tuple[str, ...]:
    from torchvision.datasets import FashionMNIST

    return tuple(FashionMNIST.classes)


_LARGE = {"resolution": 224, "channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
          "flip": True, "crop": True}

TASKS = {task.name: task for task in (
    Task("digits", 10, lambda: tuple("0123456789"), 8, 1, (0.3053,), (0.3760,), real_data.digits,
         pad=1, folds=real_data.DIGITS_FOLDS),
    Task("fashion_mnist", 10, _fashion_names, 28, 1, (0.2860,), (0.3530,),
         real_data.fashion_mnist, pad=2, flip=True),
    Task("cifar100", 100, lambda: real_data.CIFAR100, 32, 3, (0.5071, 0.4867, 0.4408),
         (0.2675, 0.2565, 0.2761), real_data.cifar100, pad=4, flip=True),
    Task("imagenet", 1000, real_data.imagenet_names, load=real_data.imagenet, **_LARGE),
    Task("imagenet100", 100, lambda: tuple(
        real_data.imagenet_names()[i] for i in real_data.IMAGENET100.values()),
        load=real_data.imagenet100, wnids=tuple(real_data.IMAGENET100), **_LARGE),
    Task("flowers102", 102, real_data.flowers_names, load=real_data.flowers102, **_LARGE),
)}


def get_task(name: str, data: Path | None = None) -> Task:
    """The Task of that name; "folder" is made from the class folders of `data`.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    if name == "folder":
        names = real_data.folder_classes(data)
        return Task("folder", len(names), lambda: names, **_LARGE,
                    load=functools.partial(real_data.folder, names))
    if name not in TASKS:
        raise UserError(f"unknown task '{name}'",
                        hint=f"--task: {nearest(name, [*TASKS, 'folder'])}")
    return TASKS[name]


def load_real(task: Task, split: str, fold: int = 0, val: str = "val",
              data: Path | None = None) -> RealData | None:
    """Real images: split "train", or "val" (what --val says the student is judged on).

    Args:
        fold: 0 .. task.folds - 1.
        val: "val" the validation split, "dev" a part of the training data that then leaves
            training, "none" nothing (the "val" split is then None).
        data: where the files lie, if not at the usual place.

    Raises:
        UserError: no such fold, or the files are missing (the message says how to get them).
    """
    if not 0 <= fold < task.folds:
        raise UserError(f"{task.name} has folds 0 to {task.folds - 1}, not {fold}", hint="--fold 0")
    if split == "val" and val == "none":
        return None
    return task.load(split, val, fold, data)


def may_have_seen(fold: int | None, val: str | None, args: argparse.Namespace) -> bool:
    """Whether what was trained with --fold `fold` --val `val` (None: unknown) may have learnt from
    images that `args.fold` and `args.val` judge on."""
    if args.val == "none":
        return False
    return fold not in (None, args.fold) or args.val == "dev" and val not in (None, "dev")


def first_per_class(labels: torch.Tensor, per_class: int | None, seed: int | None = None
                    ) -> torch.Tensor:
    """Positions of the first `per_class` images of each class, class by class (all if None); with a
    seed, of the first in an order drawn with it, so that fewer images are part of more.

    Raises:
        UserError: a class has fewer, or labels are unknown.
    """
    if per_class is None:
        return torch.arange(len(labels))
    if labels.min() < 0:
        raise UserError("--images-per-class needs images with known labels",
                        hint="leave it out, or a list with labels")
    classes, counts = labels.unique(return_counts=True)
    if counts.min() < per_class:
        few = int(classes[counts.argmin()])
        raise UserError(f"class {few} has {int(counts.min())} images only",
                        hint=f"--images-per-class {int(counts.min())} or fewer")
    found = []
    for c in classes.tolist():
        own = (labels == c).nonzero()[:, 0]
        if seed is not None:
            own = own[torch.from_numpy(np.random.default_rng([seed, c]).permutation(len(own)))]
        found.append(own[:per_class])
    return torch.cat(found)


def absent_classes(labels: torch.Tensor, task: Task, what: str) -> str | None:
    """A line on the classes that have no image, first the `what` images; None where all have some
    or no label is known. labels: int64 [N]."""
    counts = torch.bincount(labels[labels >= 0].cpu(), minlength=task.num_classes)
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not empty or len(empty) == task.num_classes:
        return None
    return (f"{what} images: {len(empty)} of {task.num_classes} classes have no image, first: "
            f"{task.class_names[empty[0]]}")


def refuse_other_names(names: list[str] | None, task: Task, whose: str, hint: str,
                       **where: object) -> None:
    """Compare the class names that a card records with the task's, in index order. None = not
    recorded.

    Raises:
        UserError: they differ; the first difference is named."""
    if not isinstance(names, list):
        return
    for i, (theirs, ours) in enumerate(itertools.zip_longest(names, task.class_names)):
        if theirs != ours:
            raise UserError(f"{whose} was trained on other classes: class {i} is '{theirs}', in "
                            f"the data it is '{ours}'", **where, data=task.name, hint=hint)
