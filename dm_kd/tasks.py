"""The data sets a student can be judged on. To add one: write its loader and one entry in TASKS.

A Task says what the images are (size, channels, statistics, classes), how they may be augmented,
and where the real ones lie. Real images serve three ends only: training a teacher, training a small
generator, and judging the student.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dm_kd.errors import UserError, nearest

VAL_MODES = ("val", "dev", "none")
# scikit-learn's digits lie in the file in 14 contiguous blocks, one per writer (INRIA scikit-learn
# course, "non i.i.d. data"); a split that shares writers flatters by about two points.
DIGITS_WRITER_STARTS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667)
DIGITS_FOLDS = 5


@dataclass(frozen=True)
class RealData:
    """Real images of one split. images uint8 [N, C, H, W]; labels int64 [N]; ids int64 [N], the
    position in the whole data set; groups int64 [N], who made it (-1 where unknown)."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    groups: torch.Tensor


@dataclass(frozen=True)
class Task:
    """A label space and its images. mean and std are per channel, for images in [0, 1]."""

    name: str
    class_names: tuple[str, ...]  # in index order
    resolution: int  # pixels, square
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int  # training crop: pad by so many pixels (zeros), cut out at a random place
    flip: bool  # training: mirror half of the images
    folds: int  # how many --fold values there are; 1 = the data set's own split
    load: Callable[[str, int, str, Path | None], RealData]  # (split, fold, val mode, data path)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@functools.cache
def _digits_arrays() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # levels are 0..16
    writers = np.searchsorted(DIGITS_WRITER_STARTS, np.arange(len(images)), side="right") - 1
    return torch.from_numpy(images)[:, None], torch.from_numpy(digits.target).long(), writers


def split_by_group(groups: np.ndarray, fold: int, val: str, folds: int) -> tuple:
    """Indices (train, judged) of a grouped cross-validation fold; no group is in both.

    val = "dev" judges on a fifth of the training groups instead, which then leave training: the
    place to choose settings. Deterministic.
    """
    from sklearn.model_selection import GroupKFold

    train, judged = list(GroupKFold(folds).split(groups, groups=groups))[fold]
    if val == "dev":
        inner, dev = next(iter(GroupKFold(folds).split(train, groups=groups[train])))
        train, judged = train[inner], train[dev]
    return train, judged


def _load_digits(split: str, fold: int, val: str, data: Path | None) -> RealData:
    if data is not None:
        raise UserError("the digits come with scikit-learn; they have no path", data=data,
                        hint="leave out --data")
    images, labels, writers = _digits_arrays()
    train, judged = split_by_group(writers, fold, val, DIGITS_FOLDS)
    chosen = torch.from_numpy(train if split == "train" else judged)
    return RealData(images[chosen], labels[chosen], chosen, torch.from_numpy(writers)[chosen])


TASKS = {
    "digits": Task(
        name="digits", class_names=tuple("0123456789"), resolution=8, channels=1,
        mean=(0.3053,), std=(0.3760,), pad=1, flip=False, folds=DIGITS_FOLDS, load=_load_digits),
}


def get_task(name: str) -> Task:
    """The Task of that name.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    if name not in TASKS:
        raise UserError(f"unknown task '{name}'", hint=f"--task: {nearest(name, TASKS)}")
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
    return task.load(split, fold, val, data)


def first_per_class(real: RealData, per_class: int | None) -> RealData:
    """The first `per_class` images of each class (all if None).

    Raises:
        UserError: a class has fewer.
    """
    if per_class is None:
        return real
    counts = torch.bincount(real.labels[real.labels >= 0])
    if counts.min() < per_class:
        raise UserError(f"class {int(counts.argmin())} has {int(counts.min())} images only",
                        hint=f"--images-per-class {int(counts.min())} or fewer")
    chosen = torch.cat([(real.labels == c).nonzero()[:per_class, 0] for c in range(len(counts))])
    return RealData(real.images[chosen], real.labels[chosen], real.ids[chosen],
                    real.groups[chosen])
