"""What a trained network was fed (statistics, size, resizing) and how its outputs are ordered, and
the layers that make it a network of a task's standardised images and classes.
"""

import argparse
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import run
from dm_kd.augment import RESIZE_RATIO
from dm_kd.run import UserError


@dataclass(frozen=True)
class Input:
    """mean and std are of images in [0, 1]. Evaluation resizes the shorter side to `short` pixels,
    with `squeeze` both sides, and crops `size` pixels a side. fixed: no other size will do."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    short: int = 0  # 0: 8/7 of the size, squeezed the size
    interpolation: str = "bilinear"
    squeeze: bool = False
    fixed: bool = False

    def __str__(self) -> str:
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return (f"mean {mean}, std {std}, {self.interpolation} {self.short} to {self.size} pixels"
                + ", squeezed" * self.squeeze)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for what is not known of the network in a weight file. Run folders ignore them."""
    add = parser.add_argument_group("input of a network from a weight file").add_argument
    add("--teacher-mean", type=numbers, metavar="X,X,X", help="of images in [0, 1] or [0, 255]")
    add("--teacher-std", type=numbers, metavar="X,X,X", help="likewise")
    add("--teacher-size", type=run.positive_int, metavar="N", help="pixels a side")
    add("--teacher-resize", type=resizing, metavar="N[,bicubic]",
        help="evaluate: shorter side before the centre crop; 0: the image is squeezed into a "
             "square")


def numbers(text: str) -> tuple[float, ...]:
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5)."""
    return tuple(float(part) for part in text.split(","))


def resizing(text: str) -> str:
    if re.fullmatch(r"\d+(,bilinear|,bicubic)?", text):
        return text
    raise argparse.ArgumentTypeError(f"{text} is not N, N,bilinear or N,bicubic")


# --- where it is known ----------------------------------------------------------------------------

def of_timm(record: dict) -> dict:
    """What a `pretrained_cfg` says of an Input."""
    size = record["input_size"][-1]
    return {"mean": tuple(record["mean"]), "std": tuple(record["std"]), "size": size,
            "short": math.floor(size / record.get("crop_pct", 0.875)),
            "interpolation": ("bilinear" if record.get("interpolation") == "bilinear"
                              else "bicubic"),
            "squeeze": record.get("crop_mode") == "squash",
            "fixed": record.get("fixed_input_size", False)}


def of_torchvision(transforms) -> dict:
    """What `weights.transforms()` says of an Input."""
    return {"mean": tuple(transforms.mean), "std": tuple(transforms.std),
            "size": transforms.crop_size[0], "short": transforms.resize_size[0],
            "interpolation": transforms.interpolation.value}


def of_flags(flags: argparse.Namespace | None) -> dict:
    given = {key: getattr(flags, f"teacher_{key}", None) for key in ("mean", "std", "size")}
    if text := getattr(flags, "teacher_resize", None):
        short, _, interpolation = text.partition(",")
        given |= {"short": int(short), "squeeze": short == "0",
                  "interpolation": interpolation or "bilinear"}
    return {key: value for key, value in given.items() if value is not None}


def join(task, sources: dict[str, dict], spec: str) -> tuple[Input, str]:
    """The Input that the sources tell, by name, later ones first, else the task's; and a phrase
    about who told it."""
    values = {"mean": tuple(task.mean), "std": tuple(task.std), "size": task.resolution, "short": 0}
    for source in sources.values():
        if source.get("size", values["size"]) != values["size"]:
            values["short"] = 0
        values |= source
    if max(*values["mean"], *values["std"]) > 2:  # of pixels in [0, 255]
        values |= {key: tuple(v / 255 for v in values[key]) for key in ("mean", "std")}
    for key in ("mean", "std"):
        if len(values[key]) not in (1, task.channels):
            raise UserError(f"{spec}: {key} has {len(values[key])} numbers, {task.name} has "
                            f"{task.channels} channels")
        values[key] *= task.channels // len(values[key])
    if not values["short"]:
        ratio = 1 if values.get("squeeze") else RESIZE_RATIO
        values["short"] = round(values["size"] * ratio)
    return Input(**values), "; ".join([*(name for name in sources if sources[name]), "the task"])


# --- how it is used -------------------------------------------------------------------------------

def own_task(task, own: Input):
    """The task with large images resized and cropped as the network was evaluated."""
    resize = (own.short, own.interpolation, own.squeeze)
    if resize == (round(own.size * RESIZE_RATIO), "bilinear", False):
        resize = None
    return dataclasses.replace(task, resolution=own.size, resize=resize) if task.large else task


class Front(nn.Module):
    """A network of a task's standardised images [B, C, H, W] around one that was trained with
    another Input: in front of it one affine layer, and a resize to `size` if that is given. rows:
    the outputs of the task's classes, in their order; None: all, as they are."""

    def __init__(self, model: nn.Module, task, own: Input, size: int | None,
                 rows: Sequence[int] | None):
        super().__init__()
        self.model, self.size, self.mode = model, size, own.interpolation
        mean, std, own_mean, own_std = (torch.tensor(values).view(1, -1, 1, 1) for values in
                                        (task.mean, task.std, own.mean, own.std))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        self.register_buffer("rows", None if rows is None else torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        if self.size and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode=self.mode, antialias=True)
        logits = self.model(x * self.scale + self.shift)
        return logits if self.rows is None else logits[:, self.rows]


def in_front(model: nn.Module, task, own: Input, rows: Sequence[int] | None) -> nn.Module:
    """The network as one of the task's images and classes; itself where it is that already."""
    size = own.size if own.fixed or not task.large else None
    fits = (own.mean, own.std, rows) == (tuple(task.mean), tuple(task.std), None)
    if fits and size in (None, task.resolution):
        return model
    return Front(model, task, own, size, rows)


def recorded(own: dict, task) -> dict:
    """What a set's manifest says of its teacher's statistics where they are not the task's."""
    return {f"teacher_{key}": [*own[key]] for key in ("mean", "std")
            if own[key] != tuple(getattr(task, key))}


def class_rows(names: list[str] | None, task, spec: str) -> tuple[list[int] | None, str]:
    """The outputs of the task's classes in a network whose outputs have these names (None: not
    known), None for all as they are; and a phrase for the log. A UserError where they lack a class
    of the task."""
    if not names or names == [*map(str, range(len(names)))]:
        return None, "not in the file, taken for the task's"
    for form in (str, lambda name: name.partition(",")[0].strip().lower().replace("_", " ")):
        theirs = [*map(form, names)]
        for ours in ([*map(form, known)] for known in (task.class_names, task.wnids) if known):
            if theirs == ours:
                return None, "of the file, as the task's"
            if {*ours} <= {*theirs} and len({*theirs}) == len(theirs):
                return [*map(theirs.index, ours)], "of the file, mapped to the task's"
    i, (theirs, ours) = next((i, pair) for i, pair in enumerate(itertools.zip_longest(
        names, task.class_names)) if pair[0] != pair[1])
    raise UserError(f"{spec} was trained on other classes: class {i} is '{theirs}', in {task.name} "
                    f"it is '{ours}'", "a file of the weights alone if only the names differ")
