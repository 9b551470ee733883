"""Classifiers: every teacher and student by name. To add one: its class in small_models.py, a line
in MODELS.

    build("wrn_16_1", task)                              a new network, random weights
    load_frozen("save/models/digits_cnn_w32", task)      a teacher: eval mode, no gradients
    load_frozen("torchvision:resnet18@IMAGENET1K_V1", task)

Besides MODELS: `torchvision:NAME` for each of its classifiers, and `timm:NAME` where timm is
installed.
"""

import argparse
import contextlib
import difflib
import functools
import re
import sys
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import files, small_models
from dm_kd.errors import DamagedError, UserError, nearest
from dm_kd.tasks import Task, refuse_other_names

WEIGHTS_NAMES = ("student", "model")  # NAME.safetensors + NAME.json in a run folder
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".ckpt", ".bin")

_RESNETS = {18: (small_models.BasicBlock, (2, 2, 2, 2)),
            34: (small_models.BasicBlock, (3, 4, 6, 3)),
            50: (small_models.Bottleneck, (3, 4, 6, 3))}
_VGG_CONVS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3),
              19: (2, 2, 4, 4, 4)}

MODELS = {  # name -> f(num_classes, channels)
    **{f"cnn_w{w}": functools.partial(small_models.SmallCNN, w) for w in (4, 8, 16, 32, 64)},
    **{f"wrn_{d}_{k}": functools.partial(small_models.WideResNet, d, k)
       for d, k in ((16, 1), (16, 2), (40, 1), (40, 2))},
    **{f"resnet{d}": functools.partial(small_models.CifarResNet, d, (16, 16, 32, 64))
       for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": functools.partial(small_models.CifarResNet, d, (32, 64, 128, 256))
       for d in (8, 32)},
    **{f"cifar_resnet{d}": functools.partial(small_models.ImageNetResNet, *_RESNETS[d], "shortcut")
       for d in (18, 34, 50)},
    **{f"cifarresnet{d}": functools.partial(small_models.ImageNetResNet, *_RESNETS[d], "downsample")
       for d in (18, 34)},
    **{f"vgg{d}_bn": functools.partial(small_models.VGG, convs)
       for d, convs in _VGG_CONVS.items()},
    "shufflenet": small_models.ShuffleNetV2,
    "lenet5": functools.partial(small_models.LeNet5, (6, 16, 120, 84)),
    "lenet5_bn": functools.partial(small_models.LeNet5, (6, 16, 120, 84), norm=True),
    "lenet5_half": functools.partial(small_models.LeNet5, (3, 8, 60, 42)),
}


# --- new networks ---------------------------------------------------------------------------------

class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 also under autocast: bfloat16 logits at temperature
    10 cost up to 2.4 % error in the distillation gradient."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


class Float32Conv2d(nn.Conv2d):
    """The same for networks that end in a 1x1 convolution (SqueezeNet)."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def build(name: str, task: Task) -> nn.Module:
    """A new network with random weights from torch's global generator.

    Its input is [B, task.channels, H, W], standardised; its output is float32 logits
    [B, task.num_classes] also under autocast.

    Raises:
        UserError: no such model (the nearest names are given), timm is missing, or the model takes
            images of other channels or another size than the task has.
    """
    model = _network(name, task.num_classes, task.channels)
    if ":" in name and not next(model.parameters()).is_meta:
        _check_size(name, model, task)
    return model


@torch.no_grad()
def _check_size(name: str, model: nn.Module, task: Task) -> None:
    """One image through it: transformers take one size only, many others no small images.

    Raises:
        UserError: the network cannot take the task's images."""
    side = task.resolution
    try:
        model.eval()(torch.zeros(1, task.channels, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} cannot take images of {side} x {side}", task=task.name,
                        found=str(error).splitlines()[0][:100],
                        hint="a model for small images, such as wrn_16_2") from error
    model.train()


def _network(name: str, num_classes: int, channels: int) -> nn.Module:
    family, _, member = name.rpartition(":")
    if family == "torchvision":
        model = _torchvision_network(member, num_classes, channels)
    elif family == "timm":
        model = _timm_network(member, num_classes, channels)
    elif name in MODELS:
        model = MODELS[name](num_classes, channels)
    else:
        other = f"torchvision:{name.lower()}, or " if name.lower() in _torchvision_names() else ""
        raise UserError(f"unknown model '{name}'", hint=other + nearest(name.lower(), MODELS))
    float32 = {nn.Linear: Float32Linear, nn.Conv2d: Float32Conv2d}
    head = [m for m in model.modules() if type(m) in float32][-1]
    head.__class__ = float32[type(head)]
    return model


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(torchvision.models)


def _torchvision_network(name: str, num_classes: int, channels: int) -> nn.Module:
    import torchvision

    _check_torchvision(name, channels)
    options = {}
    if name in ("googlenet", "inception_v3"):
        # One output, in training too; and the official weights saw images in [-1, 1], which these
        # two make themselves out of ImageNet's standardisation.
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def _check_torchvision(name: str, channels: int) -> None:
    if name not in _torchvision_names():
        raise UserError(f"unknown torchvision model '{name}'",
                        hint=nearest(name, _torchvision_names()))
    if channels != 3:
        raise UserError(f"torchvision models take 3 channels, the data has {channels}",
                        model=f"torchvision:{name}",
                        hint="a model without 'torchvision:', such as cifar_resnet18 or cnn_w8")


def _timm(name: str) -> tuple[ModuleType, object]:
    """The package timm and what it says of a model's weights (None if it has none)."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"timm:{name} needs the package timm", found=str(error)[:100],
                        hint="pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"unknown timm model '{name}'", hint=nearest(name, timm.list_models()))
    try:
        return timm, timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # what follows the dot is no set of weights of that model
        known = timm.list_pretrained(name.partition(".")[0] + ".*")
        raise UserError(f"unknown timm weights '{name}'", hint=nearest(name, known)) from error


def _timm_network(name: str, num_classes: int, channels: int) -> nn.Module:
    timm, _ = _timm(name)
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)


# --- teachers -------------------------------------------------------------------------------------

def load_frozen(spec: str, task: Task) -> tuple[nn.Module, dict]:
    """A teacher: eval mode, no parameter wants a gradient.

    Args:
        spec: NAME@FILE | NAME@none (random weights) | a run folder | a FILE (the architecture is
            read from its card, else from its keys and shapes) | torchvision:NAME[@WEIGHTS] or
            timm:NAME (both download).

    Returns:
        The network and {"name", "spec", "sha256" (of the file; where there is none, of the
        tensors), "fold", "task", "val", "seed"} (None where unknown).

    Raises:
        UserError: nothing there, unknown model, another architecture, another count of classes or
            channels (known before a download), classes of other names where its card has them.
        DamagedError: truncated weights or a digest that differs.
    """
    name, state, card = _resolve(spec, task)
    model = build(name, task)
    if state is not None:
        _load_strictly(model, state, name, spec, task)
    refuse_other_names(card.get("class_names"), task, "the model",
                       f"the data that it was trained on; {name}@FILE with its .safetensors file "
                       "if these are its classes under other names", model=spec)
    model.eval().requires_grad_(False)
    return model, {"name": name, "spec": spec,
                   "sha256": card.get("sha256") or files.tensors_digest(model.state_dict()),
                   "fold": card.get("fold"), "task": card.get("task"),
                   "val": card.get("val"), "seed": card.get("seed")}


def _resolve(spec: str, task: Task) -> tuple[str, dict | None, dict]:
    """(model name, state dict or None, card) that a spec stands for."""
    name, _, weights = ("", "", "") if Path(spec).exists() else spec.partition("@")
    if weights == "none":
        return name, None, {}
    if name.startswith("torchvision:") and not Path(weights or "/").is_file():
        return name, _download_torchvision(name, weights or "IMAGENET1K_V1", task), {}
    if weights:
        file = files.must_exist(Path(weights), f"{name}@FILE", "weights file")
        return name, read_state(file), {"sha256": files.sha256_file(file)}
    if name.startswith("timm:"):
        return name, _download_timm(name, task), {}
    path = files.must_exist(Path(spec), "NAME@FILE, a FILE or a run folder:", "model")
    if path.is_dir():
        return read_run(path)
    card_file = path.with_suffix(".json")
    if path.suffix == ".safetensors" and card_file.exists():
        state, card = files.read_with_card(path.parent, path.stem)
        return _card_model(card, card_file), state, card
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise UserError("the file's name is not that of a weights file", file=path,
                        hint=f"a file that ends in one of {' '.join(WEIGHTS_SUFFIXES)}, a run "
                             f"folder, or NAME@{path}")
    state = read_state(path)
    return recognise(path, state), state, {"sha256": files.sha256_file(path)}


def read_run(folder: Path) -> tuple[str, dict, dict]:
    """(model name, state dict, card) of a finished run.

    Raises:
        UserError: not finished, or no run of a classifier.
        DamagedError: another digest than the card's."""
    for name in WEIGHTS_NAMES:
        if (folder / f"{name}.json").exists():
            state, card = files.read_with_card(folder, name)
            return _card_model(card, folder / f"{name}.json"), state, card
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if weights:
        raise UserError("the folder holds no classifier, or the card beside its weights "
                        "(model.json or student.json) is gone", folder=folder,
                        found=", ".join(weights[:3]),
                        hint="the run folder of a classifier, or NAME@FILE for weights alone")
    unfinished = (folder / "config.yaml").exists()
    raise UserError("the run is not finished: it has no weights yet" if unfinished else
                    "the folder holds no trained model", folder=folder,
                    hint="finish its training first (the same command goes on)" if unfinished else
                    "a run folder (with student.json or model.json), or NAME@FILE")


def _card_model(card: dict, card_file: Path) -> str:
    if not isinstance(card.get("model"), str):
        raise DamagedError("the card names no model", file=card_file)
    return card["model"]


def _download_torchvision(name: str, weights: str, task: Task) -> dict:
    import torchvision

    member = name.removeprefix("torchvision:")
    _check_torchvision(member, task.channels)
    members = torchvision.models.get_model_weights(member).__members__
    known = {key: value for key, value in members.items()
             if value.meta["categories"]}  # vgg16's IMAGENET1K_FEATURES has no classifier
    if weights not in known:
        raise UserError(f"no weights '{weights}' for {name}",
                        hint=f"{name}@FILE, {name}@none, or {nearest(weights, known)}")
    _refuse_classes(len(known[weights].meta["categories"]), f"{name}@{weights}", task)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces the download
            return tidy(known[weights].get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash
        raise _download_error(f"{name}@{weights}", name, error) from error


def _download_timm(name: str, task: Task) -> dict:
    member = name.removeprefix("timm:")
    timm, weights = _timm(member)
    if not (weights and weights.has_weights):
        raise UserError(f"timm has no weights for {name}", hint=f"{name}@FILE or {name}@none")
    _refuse_channels(weights.input_size[0], name, task)
    _refuse_classes(weights.num_classes, name, task)
    theirs, ours = (*weights.mean, *weights.std), (*task.mean, *task.std)
    if any(abs(a - b) > 2e-3 for a, b in zip(theirs, ours, strict=True)):
        raise UserError("the model's weights expect images standardised in another way",
                        model=f"{name}   mean {weights.mean} std {weights.std}",
                        data=f"{task.name}   mean {task.mean} std {task.std}",
                        hint="a model that was trained with the data's mean and std")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return timm.create_model(member, pretrained=True).state_dict()
    except Exception as error:  # hub, http and file errors come in many classes
        raise _download_error(name, name, error) from error


def _download_error(what: str, name: str, error: Exception) -> UserError:
    found = (str(error).splitlines() or [type(error).__name__])[0][:100]
    return UserError(f"could not download {what}", found=found,
                     hint=f"{name}@FILE with a file you have")


# --- weights files --------------------------------------------------------------------------------

class _Unread:
    """Stands in for NumPy's scalars in a checkpoint (its best accuracy): nothing here reads them,
    and NumPy's own unpickling trusts the sizes and flags that a file states."""

    def __init__(self, *parts: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What RepDistiller's NAME_last.pth holds besides tensors. Nothing else is let in.
_HARMLESS = [argparse.Namespace, (_Unread, "numpy.dtype"),
             (_Unread, "numpy.core.multiarray.scalar"), (_Unread, "numpy._core.multiarray.scalar")]

_OLD_KEYS = [  # torchvision's first files of DenseNet and ViT, which its own loaders rename too
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3.")]
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads that Inception and GoogLeNet only train with


def read_state(file: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or .pt/.pth, `tidy`, without one wrapper ('state_dict' of
    Fast-Datafree and CMI, 'model' of RepDistiller and DM-KD, 'state', 'ema').

    Raises:
        UserError: it would run code, or holds no state dict.  DamagedError: truncated.
    """
    if file.suffix == ".safetensors":
        state = files.load_safetensors(file)
    else:
        with torch.serialization.safe_globals(_HARMLESS):
            state = files.load_pt(file)
    for wrapper in ("state_dict", "model", "state", "ema", "student"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    if not isinstance(state, dict) or not state or not all(
            isinstance(k, str) and isinstance(v, Tensor) and v.layout == torch.strided
            and not v.is_complex() for k, v in state.items()):
        raise UserError("the file holds no state dict", file=file,
                        found=f"{type(state).__name__} with {len(state)} entries"
                        if isinstance(state, (dict, list)) else type(state).__name__,
                        hint="a state dict of tensors, bare or under 'model' or 'state_dict'")
    return tidy(state)


def tidy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the keys of the network itself: without `module.`, `_orig_mod.` and
    `student.` in front of all keys, without the `teacher.` that was saved beside a `student.`,
    without heads for training only, old names made new."""
    for prefix in ("module.", "_orig_mod.", "student.") * 2:  # compile and DDP nest either way
        if {key.partition(".")[0] for key in state} == {"student", "teacher"}:
            state = {k: v for k, v in state.items() if k.startswith("student.")}
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for old, new in _OLD_KEYS:
        state = {old.sub(new, key): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape by key, without the counters of batch norms, which old files lack."""
    return {key: tuple(value.shape) for key, value in state.items()
            if not key.endswith("num_batches_tracked")}


@functools.cache
def _layout(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a network for 3 channels and 10 classes. Its weights take no memory."""
    with torch.device("meta"):
        return _shapes(_network(name, 10, 3).state_dict())


def _stem_and_head(layout: dict[str, tuple[int, ...]]) -> tuple[str, str]:
    """Keys of the first and of the last weight: the one has the image's channels (dimension 1), the
    other the classes (dimension 0)."""
    weights = [key for key in layout if key.endswith(".weight")]
    return weights[0], weights[-1]


def _without(shape: tuple[int, ...], dimension: int | None) -> tuple[int, ...]:
    return shape if dimension is None else shape[:dimension] + shape[dimension + 1:]


def _fits(have: dict[str, tuple[int, ...]], layout: dict[str, tuple[int, ...]]) -> bool:
    """Whether these are the shapes of that network, whatever its channels and classes."""
    stem, head = _stem_and_head(layout)
    free = {stem: 1, head: 0, head.removesuffix("weight") + "bias": 0}
    return have.keys() == layout.keys() and all(
        _without(have[key], free.get(key)) == _without(layout[key], free.get(key)) for key in have)


def recognise(file: Path, state: dict[str, Tensor]) -> str:
    """The name of the network whose keys and shapes these are.

    No two networks share them (tests/test_models.py), so that the folder's and the file's name
    (ResNet18/, wrn_40_2_vanilla/, S:NAME_T:..., cifar100_wrn40_2.pth) say no more than which to try
    first: ResNet18 is torchvision's, or either of ours for small images.

    Raises:
        UserError: none fits; the nearest are named.
    """
    have = _shapes(state)
    names = [*MODELS, *(f"torchvision:{n}" for n in _torchvision_names()
                        if not n.startswith("regnet"))]  # they compute while they are built
    by_letters = {_letters(name): name for name in names}
    said = _letters(f"{file.parent.name} {file.stem}")
    close = difflib.get_close_matches(said, by_letters, n=10, cutoff=0.4)
    for name in [*map(by_letters.get, close), *names]:
        if _fits(have, _layout(name)):
            return name
    alike = {name: len(have.items() & _layout(name).items()) for name in names}
    likely = sorted(filter(alike.get, names), key=alike.get, reverse=True)[:3]
    raise UserError("cannot tell the architecture from the file's keys", file=file,
                    found=f"{len(have)} keys: {', '.join(list(have)[:2])} ..."[:100],
                    hint=f"NAME@{file} with NAME " + (f"such as {', '.join(likely)}" if likely else
                                                      nearest(file.parent.name, MODELS)))


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]|torchvision:", "", name.lower())


def _load_strictly(model: nn.Module, state: dict, name: str, spec: str, task: Task) -> None:
    """Load after comparing names and shapes, so that the message fits on a screen."""
    want, have = _shapes(model.state_dict()), _shapes(state)
    stem, head = _stem_and_head(want)
    if head in have and _without(have[head], 0) == _without(want[head], 0):
        _refuse_classes(have[head][0], f"{spec}   {head} {list(have[head])}", task)
    if stem in have and _without(have[stem], 1) == _without(want[stem], 1):
        _refuse_channels(have[stem][1], f"{spec}   {stem} {list(have[stem])}", task)
    missing, extra = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    differing = [k for k in want if k in have and want[k] != have[k]]
    if missing or extra or differing:
        found = (f"{differing[0]} {list(have[differing[0]])}, {name} has "
                 f"{list(want[differing[0]])}" if differing else
                 f"{len(missing)} keys missing ({', '.join(missing[:2])} ...), "
                 f"{len(extra)} unknown ({', '.join(extra[:2])} ...)")
        raise UserError(f"the weights are not those of {name}", file=spec, found=found[:160],
                        hint="NAME@FILE with the architecture that the file was trained with")
    if not all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point()):
        raise DamagedError("the weights hold NaN or infinite values", file=spec)
    with torch.no_grad():  # names and shapes are equal; BN counters may be absent
        for key, value in model.state_dict().items():
            if key in state and state[key].shape == value.shape:
                value.copy_(state[key])  # MNASNet's load_state_dict wants a version: not in files


def _refuse_classes(theirs: int, model: str, task: Task) -> None:
    if theirs != task.num_classes:
        raise UserError(f"the model has {theirs} classes, the data has {task.num_classes}",
                        model=model, data=f"{task.name}   {task.num_classes} classes",
                        hint=f"a model trained on these {task.num_classes} classes")


def _refuse_channels(theirs: int, model: str, task: Task) -> None:
    if theirs != task.channels:
        raise UserError(f"the model takes {theirs} channels, the data has {task.channels}",
                        model=model, data=f"{task.name}   {task.channels} channels",
                        hint=f"a model of images with {task.channels} channels")


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
