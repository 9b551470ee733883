"""Reads weight files of any program: the state dict, and what else a file says of its network.
Nothing in a file is run."""

import argparse
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dm_kd import run
from dm_kd.run import UserError

# Where checkpoints keep their state dict: Fast-Datafree, CMI, timm and Lightning; RepDistiller,
# DM-KD and DeiT; others. Averaged weights come before all of them.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state", "student")
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?)($|[._])")
CLASSES = ("class_names", "classes", "label_names", "class_to_idx", "idx_to_class", "id2label")
SIZES = ("img_size", "image_size", "input_size")
SIGNS = {b"\x89HDF": "HDF5, of Keras", b"\x08": "ONNX, which has no state dict",
         b"version https": "a Git LFS pointer", b"<": "a web page"}  # what a file begins with
NUMPY = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),  # for accuracies
         *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar")
           for core in ("core", "_core"))]


def read(file: Path) -> tuple[dict[str, Tensor], dict]:
    """The state dict of a weight file, averaged weights before raw ones, and facts: "weights"
    (which of several), and if the file has them "class_names", "mean", "std", "resolution" and
    "transform_input"."""
    with open(file, "rb") as opened:
        start = opened.read(16)
    if file.suffix == ".safetensors" or start[8:10] == b'{"':
        return run.load_safetensors(file), {}
    kind = next((SIGNS[sign] for sign in SIGNS if start.startswith(sign)), None)
    if zipfile.is_zipfile(file) and any(name.endswith("/constants.pkl")
                                        for name in zipfile.ZipFile(file).namelist()):
        kind = "TorchScript, which is a program"
    if kind:
        raise UserError(f"{file} is {kind}", "a file of torch.save(model.state_dict(), FILE)")
    with torch.serialization.safe_globals([argparse.Namespace, *NUMPY]):
        content = run.load_pt(file)
    facts, keys = {}, []
    while isinstance(content, dict) and not is_state(content):
        facts = _facts(content) | facts
        inner = [key for key, value in content.items() if isinstance(value, dict)
                 and (is_state(value) or any(map(is_state, value.values())))]
        averaged = [key for key in inner if AVERAGED.search(str(key))]
        chosen = averaged or [key for key in WRAPPERS if key in inner] or inner
        if not chosen or len(inner) > 1 and chosen == inner:
            break
        keys += [chosen[0] + " (averaged)" * bool(averaged)]
        content = content[chosen[0]]
    if not is_state(content):
        raise UserError(f"no state dict in {file}",
                        "a dict of tensors, bare or under 'model' or 'state_dict'")
    facts |= {"weights": ".".join(keys)} if keys else {}
    content.pop("n_averaged", None)  # AveragedModel's counter
    return content, facts


def is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _facts(content: dict) -> dict:
    """What the keys beside the weights, and the flags among them, say of the network."""
    facts = {}
    for place in (content, *content.values()):
        place = vars(place) if isinstance(place, argparse.Namespace) else place
        if isinstance(place, dict) and not is_state(place):
            mean, std, *sizes = (_numbers(place.get(key)) for key in ("mean", "std", *SIZES))
            names = [_class_names(place.get(key)) for key in CLASSES]
            own = {"mean": std and mean, "std": mean and std,
                   "resolution": next((size[-1] for size in sizes if size), None),
                   "class_names": next(filter(None, names), None),
                   "transform_input": place.get("transform_input")}
            facts = {key: value for key, value in own.items() if value is not None} | facts
    return facts


def _numbers(value: object) -> tuple[float, ...] | None:
    value = value.tolist() if isinstance(value, Tensor) else value
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(values) if all(type(v) in (int, float) for v in values) else None


def _class_names(value: object) -> list[str] | None:
    """The names by output, from a list, {name: output} or {output: name}."""
    if isinstance(value, dict) and value:
        if all(isinstance(i, int) for i in value.values()):
            value = {i: name for name, i in value.items()}
        names = {int(i): name for i, name in value.items()}
        value = [names.get(i) for i in range(max(names) + 1)]
    return [*map(str, value)] if isinstance(value, list | tuple) else None


def under_prefix(state: dict[str, Tensor], wanted: Collection[str]) -> tuple[dict, str]:
    """The part of a state dict below the prefix with which it has most of the wanted keys, and the
    prefix. Averaged weights come first, then a student's: mdistiller saves the teacher too."""
    prefixes = {"", *(key.removesuffix(end) for key in state for end in wanted
                      if key.endswith(f".{end}"))}
    ranks = {prefix: (sum(prefix + key in state for key in wanted), bool(AVERAGED.search(prefix)),
                      "student" in prefix) for prefix in prefixes}
    best = max(sorted(ranks, key=len), key=ranks.get)
    rivals = [prefix for prefix in ranks if ranks[prefix] == ranks[best]]
    if len(rivals) > 1 and ranks[best][0] == len(wanted):
        raise UserError(f"the file has several networks that fit: {', '.join(sorted(rivals))}",
                        "a file of one of them")
    return {key.removeprefix(best): value for key, value in state.items()
            if key.startswith(best)}, best
