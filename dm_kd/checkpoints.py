"""Reads weight files of any program: the state dict, and what else the file says of its network.
Nothing in a file is run.

    state, facts = read(Path("model_best.pth.tar"))
    state = under_prefix(state, model.state_dict())      without `module.`, `model.` ...
"""

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
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state", "student", "module")
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:$|[._])")
_CLASSES = ("class_names", "classes", "label_names", "class_to_idx", "idx_to_class", "id2label")
_SIZES = ("img_size", "image_size", "input_size")
_SIGNS = {  # what a file that is none of ours begins with
    b"\x89HDF": "HDF5 (Keras)", b"version https://git-lfs": "a Git LFS pointer, not the file",
    b"<": "a web page, not the file", b"\x08": "ONNX, which has no state dict"}
_NUMPY = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
          *((type(np.float64(0)).__reduce__(np.float64(0))[0], f"numpy.{core}.multiarray.scalar")
            for core in ("core", "_core"))]


def read(file: Path) -> tuple[dict[str, Tensor], dict]:
    """The state dict of a weight file, and facts: "weights" (which of several), and where the file
    has them "class_names", "mean", "std", "size" and "transform_input".

    Averaged weights come before raw ones. Raises UserError: no state dict, or a damaged file."""
    with open(file, "rb") as opened:
        start = opened.read(32)
    if file.suffix == ".safetensors" or start[8:10] == b'{"':
        return run.load_safetensors(file), {}
    _refuse_other_formats(file, start)
    with torch.serialization.safe_globals([argparse.Namespace, *_NUMPY]):  # flags, best accuracy
        state = run.load_pt(file)
    facts, names = {}, []
    while isinstance(state, dict) and not _is_state(state):
        facts = _facts(state) | facts
        inner = [key for key, value in state.items()
                 if isinstance(key, str) and isinstance(value, dict) and value]
        averaged = [key for key in inner if _AVERAGED.search(key)]
        chosen = (averaged or [key for key in _WRAPPERS if key in inner]
                  or [key for key in inner if _is_state(state[key])])
        if not chosen or (len(chosen) > 1 and not averaged and chosen[0] not in _WRAPPERS):
            break
        names.append(f"'{chosen[0]}'" + (", averaged" if averaged and len(inner) > 1 else ""))
        state = state[chosen[0]]
    if not _is_state(state):
        raise UserError(f"no state dict in {file}",
                        "a dict of tensors, bare or under 'model' or 'state_dict'")
    return state, facts | ({"weights": " of ".join(reversed(names))} if names else {})


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _refuse_other_formats(file: Path, start: bytes) -> None:
    kind = next((kind for sign, kind in _SIGNS.items() if start.startswith(sign)), None)
    if zipfile.is_zipfile(file):
        names = zipfile.ZipFile(file).namelist()
        if any(name.endswith("constants.pkl") for name in names):
            kind = "TorchScript, a program"
        elif names[0].endswith(".npy"):
            kind = "NumPy's"
    if kind:
        raise UserError(f"{file} is {kind}", "torch.save(model.state_dict(), FILE) where it was "
                        "trained, or the right file")


def _facts(content: dict) -> dict:
    """What the keys beside the weights, and the flags among them, say of the network."""
    facts = {}
    for place in (content, *content.values()):
        place = vars(place) if isinstance(place, argparse.Namespace) else place
        if not isinstance(place, dict) or _is_state(place):
            continue
        for key in ("mean", "std"):
            facts.setdefault(key, _numbers(place.get(key)))
        for key in _SIZES:
            facts.setdefault("size", (_numbers(place.get(key)) or (None,))[-1])
        for key in _CLASSES:
            facts.setdefault("class_names", _class_names(place.get(key)))
        facts.setdefault("transform_input", place.get("transform_input"))
        facts = {key: value for key, value in facts.items() if value is not None}
    return facts


def _numbers(value: object) -> tuple[float, ...] | None:
    value = value.tolist() if isinstance(value, Tensor) else value
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(values) if values and all(type(v) in (int, float) for v in values) else None


def _class_names(value: object) -> list[str | None] | None:
    """The names by output, None where an output has none, from any of the usual forms."""
    if isinstance(value, dict) and value:
        if all(isinstance(i, int) for i in value.values()):
            value = {i: name for name, i in value.items()}
        names = {int(i): name for i, name in value.items()}
        return [names.get(i) for i in range(max(names) + 1)]
    return [*map(str, value)] if isinstance(value, list | tuple) and value else None


def under_prefix(state: dict[str, Tensor], wanted: Collection[str]) -> tuple[dict, str]:
    """The part of a state dict below the prefix with which most of the wanted keys are in it, with
    those keys, and the prefix. Of several, averaged weights come first, then a student's
    (mdistiller saves the teacher too)."""
    prefixes = {""} | {key[:dot.end()] for key in state for dot in re.finditer(r"\.", key)}

    def rank(prefix: str) -> tuple:
        return (sum(prefix + key in state for key in wanted), bool(_AVERAGED.search(prefix)),
                "student" in prefix, -len(prefix))

    best = max(sorted(prefixes), key=rank)
    return {key.removeprefix(best): value for key, value in state.items()
            if key.startswith(best) and key != "n_averaged"}, best  # AveragedModel counts


