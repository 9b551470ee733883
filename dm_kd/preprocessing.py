"""What a trained network was fed (statistics, size, resizing) and in which order its outputs are,
and the layers that make it a network of a task's standardised images and classes.

Its own input is a dict of those fields of a Task that differ from network to network: mean, std,
resolution and resize.
"""

import argparse
import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import run
from dm_kd.augment import usual_resize
from dm_kd.run import UserError


def add_arguments(parser: argparse.ArgumentParser, evaluates: bool = False) -> None:
    """Flags for what is not known of the network in a weight file. Run folders ignore them."""
    add = parser.add_argument_group("input of a network from a weight file").add_argument
    add("--teacher-mean", type=run.numbers, metavar="X,X,X", help="of images in [0, 1] or [0, 255]")
    add("--teacher-std", type=run.numbers, metavar="X,X,X", help="likewise")
    add("--teacher-size", type=run.positive_int, metavar="N", help="pixels a side")
    if evaluates:  # training has crops of its own
        add("--teacher-resize", type=resizing, metavar="N[,bicubic]",
            help="shorter side before the centre crop; 0: squeeze the image into a square")


def resizing(text: str) -> str:
    if re.fullmatch(r"\d+(,bilinear|,bicubic)?", text):
        return text
    raise argparse.ArgumentTypeError(f"{text} is not N, N,bilinear or N,bicubic")


# --- where it is known ----------------------------------------------------------------------------

def of_timm(record: dict) -> dict:
    size = record["input_size"][-1]
    mode = "bilinear" if record.get("interpolation") == "bilinear" else "bicubic"
    return {"mean": record["mean"], "std": record["std"], "resolution": size,
            "resize": (math.floor(size / record.get("crop_pct", 0.875)), mode,
                       record.get("crop_mode") == "squash")}


def of_torchvision(weights) -> dict:
    transforms = weights.transforms()
    return {"mean": transforms.mean, "std": transforms.std, "resolution": transforms.crop_size[0],
            "resize": (transforms.resize_size[0], transforms.interpolation.value, False)}


def of_flags(flags: argparse.Namespace | None) -> dict:
    names = {"mean": "mean", "std": "std", "resolution": "size"}
    given = {key: getattr(flags, f"teacher_{name}", None) for key, name in names.items()}
    if text := getattr(flags, "teacher_resize", None):
        short, _, mode = text.partition(",")
        given["resize"] = (int(short), mode or "bilinear", short == "0")
    return {key: value for key, value in given.items() if value is not None}


def join(task, sources: dict[str, dict], spec: str) -> tuple[dict, str]:
    """The input that the sources tell, by name, later ones first, else the task's; and a phrase
    for the log."""
    own = {"mean": task.mean, "std": task.std, "resolution": task.resolution, "resize": None}
    for source in sources.values():
        if source.get("resolution", own["resolution"]) != own["resolution"]:
            own["resize"] = None
        own |= source
    for key in ("mean", "std"):
        if len(own[key]) not in (1, task.channels):
            raise UserError(f"{spec}: {key} has {len(own[key])} numbers, {task.name} has "
                            f"{task.channels} channels")
        own[key] = tuple(own[key]) * (task.channels // len(own[key]))
    if max(own["mean"] + own["std"]) > 2:  # of pixels in [0, 255]
        own |= {key: tuple(v / 255 for v in own[key]) for key in ("mean", "std")}
    size, usual = own["resolution"], usual_resize(own["resolution"])
    short, mode, squeeze = own["resize"] or usual
    own["resize"] = None if (short, mode, squeeze) == usual else (short or size, mode, squeeze)
    mean, std = (" ".join(f"{v:g}" for v in own[key]) for key in ("mean", "std"))
    said = ["the task", *(name for name, source in sources.items() if source)]
    how = f"{mode} {short or size} to " * task.large + f"{size} pixels{', squeezed' * squeeze}"
    return own, (f"mean {mean}, std {std}, evaluated at {how} "
                 f"(from {', else '.join(reversed(said))})")


# --- how it is used -------------------------------------------------------------------------------

class Front(nn.Module):
    """A network of a task's standardised images [B, C, H, W] around one that was trained with
    another input: in front of it one affine layer, and a resize to `size` if that is given. rows:
    the outputs of the task's classes, in their order; None: all, as they are."""

    def __init__(self, model: nn.Module, task, own: dict, size: int | None,
                 rows: Sequence[int] | None):
        super().__init__()
        self.model, self.size = model, size
        self.mode = own["resize"][1] if own["resize"] else "bilinear"
        mean, std, own_mean, own_std = (torch.tensor(values).view(1, -1, 1, 1) for values in
                                        (task.mean, task.std, own["mean"], own["std"]))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        self.register_buffer("rows", None if rows is None else torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        if self.size and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode=self.mode, antialias=True)
        logits = self.model(x * self.scale + self.shift)
        return logits if self.rows is None else logits[:, self.rows]


def class_rows(names: list[str] | None, task, spec: str) -> tuple[list[int] | None, str]:
    """The outputs of the task's classes in a network whose outputs have these names (None: not
    known), None for all as they are; and a phrase for the log."""
    counted = names == [*map(str, range(len(names or ())))]  # not names, unless the task's are so
    if not names or counted and {*names} != {*task.class_names}:
        return None, "not in the file, taken for the task's"
    for form in (str, lambda name: name.partition(",")[0].strip().lower().replace("_", " ")):
        theirs = [*map(form, names)]
        for ours in ([*map(form, known)] for known in (task.class_names, task.wnids) if known):
            if theirs == ours:
                return None, "of the file, as the task's"
            if {*ours} <= {*theirs} and len({*theirs}) == len(theirs):
                return [*map(theirs.index, ours)], "of the file, mapped to the task's"
    lacking = next((name for name in task.class_names if name not in names), "each name once")
    raise UserError(f"{spec} was trained on other classes: {', '.join(names[:4])} ... lack "
                    f"{lacking}",
                    "a file of the weights alone if only the names differ")
