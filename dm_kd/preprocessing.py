"""What a trained network was fed: its statistics, input size and resizing, and the layers that make
it a network of a task's standardised images.

What is known wins in this order: the --teacher-* flags, the weight file or a run's card, timm's or
torchvision's record of the weights, the task.
"""

import argparse
import dataclasses
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
from dm_kd.tasks import WNIDS, Task, refuse_other_names


@dataclass(frozen=True)
class Input:
    """mean and std are of images in [0, 1]. Evaluation resizes the shorter side to `short` pixels,
    with `squeeze` both sides, and crops `size` pixels a side; `fixed`: no other size will do."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    short: int = 0  # 0: 8/7 of the size
    interpolation: str = "bilinear"
    squeeze: bool = False
    fixed: bool = False

    def __str__(self) -> str:
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return (f"mean {mean}, std {std}, {self.interpolation} {self.short} to {self.size} pixels"
                + ", squeezed" * self.squeeze)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for what neither a weight file nor timm or torchvision says of the network's input.
    They do not apply to run folders."""
    add = parser.add_argument_group("input of a network from a weight file").add_argument
    add("--teacher-mean", type=numbers, metavar="X,X,X", help="of images in [0, 1], or in [0, 255]")
    add("--teacher-std", type=numbers, metavar="X,X,X", help="likewise")
    add("--teacher-size", type=run.positive_int, metavar="N", help="pixels a side")
    add("--teacher-resize", type=resizing, metavar="N[,bicubic]",
        help="evaluate: shorter side before the centre crop; 0: none, the image is squeezed into a "
             "square")


def numbers(text: str) -> tuple[float, ...]:
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5)."""
    return tuple(float(part) for part in text.split(","))


def resizing(text: str) -> str:
    if not re.fullmatch(r"\d+(,(bilinear|bicubic))?", text):
        raise argparse.ArgumentTypeError(f"{text} is not N, N,bilinear or N,bicubic")
    return text


# --- where it is known ----------------------------------------------------------------------------

def of_timm(record: dict) -> dict:
    """The part of a `pretrained_cfg` that is an Input's."""
    record = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic",
              "fixed_input_size": False} | record
    size = record["input_size"][-1]
    return {"mean": tuple(record["mean"]), "std": tuple(record["std"]), "size": size,
            "short": math.floor(size / record["crop_pct"]), "fixed": record["fixed_input_size"],
            "interpolation": "bilinear" if record["interpolation"] == "bilinear" else "bicubic",
            "squeeze": record["crop_mode"] == "squash"}


def of_torchvision(transforms) -> dict:
    """The part of `weights.transforms()` that is an Input's."""
    return {"mean": tuple(transforms.mean), "std": tuple(transforms.std),
            "size": transforms.crop_size[0], "short": transforms.resize_size[0],
            "interpolation": transforms.interpolation.value}


def of_flags(flags: argparse.Namespace | None) -> dict:
    given = {key: getattr(flags, f"teacher_{key}", None) for key in ("mean", "std", "size")}
    if text := getattr(flags, "teacher_resize", None):
        short, _, interpolation = text.partition(",")
        given |= {"short": int(short), "squeeze": short == "0",
                  "interpolation": interpolation or "bilinear"}
    return given


def join(task: Task, sources: dict[str, dict], spec: str) -> tuple[Input, str]:
    """The Input of the sources by name, later ones first, over the task's; and who said what."""
    values = {"mean": task.mean, "std": task.std, "size": task.resolution}
    said = dict.fromkeys(values, "the task")
    for name, source in sources.items():
        source = {key: value for key, value in source.items() if value is not None}
        if "short" in values and values["size"] != source.get("size", values["size"]):
            values["short"] = round(values["short"] * source["size"] / values["size"])
        values |= source
        said |= dict.fromkeys(source.keys() & said.keys(), name)
    for key in ("mean", "std"):
        if len(values[key]) not in (1, task.channels):
            raise UserError(f"{spec}: {key} has {len(values[key])} numbers, {task.name} has "
                            f"{task.channels} channels")
    if max(*values["mean"], *values["std"]) > 2:  # of pixels in [0, 255]
        values |= {key: tuple(v / 255 for v in values[key]) for key in ("mean", "std")}
    values |= {key: tuple(values[key]) * (task.channels // len(values[key]))
               for key in ("mean", "std")}
    if not values.get("short"):
        values["short"] = (values["size"] if values.get("squeeze")
                           else round(values["size"] * RESIZE_RATIO))
    return Input(**values), "; ".join(
        f"{', '.join(key for key in said if said[key] == name)} of {name}"
        for name in dict.fromkeys(said.values()))


# --- how it is used -------------------------------------------------------------------------------

def own_task(task: Task, own: Input) -> Task:
    """The task with the images that the network is evaluated on in its own way; small images stay
    as they are."""
    if not task.large:
        return task
    resize = (own.short, own.interpolation, own.squeeze)
    usual = (round(own.size * RESIZE_RATIO), "bilinear", False)
    return dataclasses.replace(task, resolution=own.size, resize=None if resize == usual else resize)


class Front(nn.Module):
    """A network of a task's standardised images [B, C, H, W] around one that was trained with
    another Input: one affine layer, and where it needs another size a resize, in front of it.
    rows: the outputs of the task's classes; None: all as they are."""

    def __init__(self, model: nn.Module, task: Task, own: Input, size: int | None,
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


def in_front(model: nn.Module, task: Task, own: Input, rows: Sequence[int] | None) -> nn.Module:
    """The network itself where it needs nothing in front of it."""
    size = own.size if own.fixed or not task.large else None
    if (own.mean, own.std, size or task.resolution, rows) == (
            tuple(task.mean), tuple(task.std), task.resolution, None):
        return model
    return Front(model, task, own, size, rows)


def recorded(own: dict, task: Task) -> dict:
    """What a generated set's manifest says of its teacher's statistics where they are not the
    task's."""
    return {f"teacher_{key}": [*own[key]] for key in ("mean", "std")
            if own[key] != getattr(task, key)}


def class_rows(names: Sequence[str | None] | None, task: Task, spec: str
               ) -> tuple[list[int] | None, str]:
    """The outputs of the task's classes in a network whose outputs have these names (None: not
    known), None for all as they are; and a phrase for the log. A UserError where a class of the
    task is not among the names."""
    if not names or names == [*map(str, range(len(names)))]:
        return None, "not in the file, taken for the task's"
    for form in (str, lambda name: str(name).partition(",")[0].strip().lower().replace("_", " ")):
        theirs = [*map(form, names)]
        for known in (task.class_names, getattr(task, "wnids", None) or ()):
            ours = [*map(form, known)]
            if theirs == ours:
                return None, "of the file, as the task's"
            if ours and set(ours) <= set(theirs) and len(set(theirs)) == len(theirs):
                return [theirs.index(name) for name in ours], "of the file, mapped to the task's"
    refuse_other_names(names, task, spec, "a file of the weights alone if only the names differ")
    return None, ""
