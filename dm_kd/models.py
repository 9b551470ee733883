"""Classifiers by name, and teachers from run folders, weight files and downloads.

    build("wrn_16_1", task)                                    a new network, random weights
    load_frozen("save/models/digits_cnn_w32", task)            a teacher: eval mode, no gradients
    load_frozen("wrn_40_2@checkpoints/cifar100_wrn40_2.pth", task)
    load_frozen("my_model.py:build@weights.pth", task)         build(num_classes) -> nn.Module

To add a network: its class in networks.py, a line in MODELS. Names outside MODELS are
`torchvision:NAME`, for networks that end in a linear layer (on tasks with large images NAME alone),
and `timm:NAME` if timm is installed.
"""

import argparse
import contextlib
import copy
import runpy
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import checkpoints, preprocessing, run
from dm_kd.networks import VGG, LeNet5, ResNet, SmallCNN, WideResNet
from dm_kd.run import UserError, nearest
from dm_kd.tasks import WNIDS, Task

_VGG_CONVS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3),
              19: (2, 2, 4, 4, 4)}
_IMAGENET_RESNET = {
    d: partial(ResNet, blocks, (64, 64, 128, 256, 512), bottleneck=d == 50)
    for d, blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3)))}

MODELS = {  # name -> f(num_classes, channels)
    **{f"cnn_w{w}": partial(SmallCNN, w) for w in (4, 8, 16, 32, 64)},
    **{f"wrn_{d}_{k}": partial(WideResNet, d, k) for d, k in ((16, 1), (16, 2), (40, 1), (40, 2))},
    **{f"resnet{d}": partial(ResNet, ((d - 2) // 6,) * 3, (16, 16, 32, 64))
       for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": partial(ResNet, ((d - 2) // 6,) * 3, (32, 64, 128, 256)) for d in (8, 32)},
    # DAFL's and Fast-Datafree's; DM-KD's; torchvision's with a 3x3 stem, and with its max-pool.
    **{f"cifar_resnet{d}": partial(f, skip="shortcut", head="linear")
       for d, f in _IMAGENET_RESNET.items()},
    **{f"cifarresnet{d}": partial(_IMAGENET_RESNET[d], stem_relu=False) for d in (18, 34)},
    **{f"cifarresnet{d}_relu": f for d, f in _IMAGENET_RESNET.items()},
    **{f"cifarresnet{d}_relu_pool": partial(f, pool=True) for d, f in _IMAGENET_RESNET.items()},
    **{f"vgg{d}_bn": partial(VGG, convs) for d, convs in _VGG_CONVS.items()},
    "lenet5": partial(LeNet5, (6, 16, 120, 84)),
    "lenet5_bn": partial(LeNet5, (6, 16, 120, 84), norm=True),
    "lenet5_half": partial(LeNet5, (3, 8, 60, 42)),
}

SIDE_HEADS = ("AuxLogits.", "aux1.", "aux2.")  # Inception's and GoogLeNet's, only for training


# --- new networks ---------------------------------------------------------------------------------

class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under autocast too: at temperature 10 bfloat16 logits
    change the distillation gradient by up to 2.4 %."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


def build(name: str, task: Task, num_classes: int | None = None) -> nn.Module:
    """A new network with random weights from torch's global generator: standardised images
    [B, task.channels, H, W] to logits [B, num_classes] (default: the task's), float32 under
    autocast too."""
    classes = num_classes or task.num_classes
    family, _, member = full_name(name, task).rpartition(":")
    if family.endswith(".py"):
        return _build_own(Path(family), member, task, classes)
    if family == "torchvision":
        from torchvision.models import get_model

        # Those two have several outputs in training, unless their side heads are left out.
        plain = member in ("googlenet", "inception_v3")
        model = get_model(member, weights=None, num_classes=classes,
                          **({"aux_logits": False, "init_weights": True} if plain else {}))
    elif family == "timm":
        import timm

        model = timm.create_model(member, num_classes=classes, in_chans=task.channels)
    else:
        model = MODELS[member](classes, task.channels)
    head = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if not isinstance(head, nn.Linear):
        raise UserError(f"{name} does not end in a linear layer", "another network")
    head.__class__ = Float32Linear
    return model


def _build_own(file: Path, function: str, task: Task, classes: int) -> nn.Module:
    """The network of the user's own `function(num_classes)` in a Python file."""
    sys.path.insert(0, str(file.parent.absolute()))  # it may import its neighbours
    model = runpy.run_path(str(file))[function](classes)
    with torch.no_grad():
        logits = model.eval()(torch.zeros(2, task.channels, task.resolution, task.resolution))
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != [2, classes]:
        raise UserError(f"{file}:{function}({classes}) returns {shape} for 2 images",
                        f"logits [2, {classes}]")
    return model.train()


def seen_note(card: dict, args: argparse.Namespace) -> list[str]:
    """A line for the log where a network may have been trained on images that are evaluated."""
    if args.val == "none" or (card["fold"] in (None, args.fold)
                              and not (args.val == "dev" and card["val"] in ("val", "none"))):
        return []
    return [f"note: {card['spec']} was trained with --fold {card['fold']} --val {card['val']}; it "
            f"may have seen images of --fold {args.fold} --val {args.val}"]


def card(name: str, task: Task) -> dict:
    """The part of a trained network's card that describes the network and its task."""
    return {"model": full_name(name, task), "task": task.name, "num_classes": task.num_classes,
            "class_names": list(task.class_names), "mean": task.mean, "std": task.std,
            "resolution": task.resolution}


def full_name(name: str, task: Task) -> str:
    """The unambiguous name of a model: on a task with large images `resnet18` is
    `torchvision:resnet18`. Raises UserError with the nearest names for an unknown one."""
    family, _, member = name.rpartition(":")
    if family.endswith(".py"):
        return name
    names = MODELS if not family else ()
    if family == "timm":
        import timm

        names, member = timm.list_models(), member.partition(".")[0]  # timm: NAME.TAG
    elif family == "torchvision" or task.large and not family:
        from torchvision import models as torchvision_models

        theirs = torchvision_models.list_models(torchvision_models)
        if family or member in theirs:
            names, name = theirs, f"torchvision:{member}"
    if member not in names:
        raise UserError(f"neither a model nor a run folder: '{name}'",
                        nearest(member.lower(), names or MODELS))
    return name


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- teachers -------------------------------------------------------------------------------------

def load_frozen(spec: str, task: Task, flags: argparse.Namespace | None = None
                ) -> tuple[nn.Module, dict]:
    """A trained classifier in eval mode whose parameters do not require gradients. Whatever it was
    trained with, its input is standardised by the task's statistics, and its logits are in the
    order of the task's classes.

    spec: NAME@FILE | NAME@none (random weights) | a run folder | FILE.py:FUNCTION@FILE |
    torchvision:NAME[@WEIGHTS] or timm:NAME (both download).
    flags: those of `preprocessing.add_arguments`.

    Returns the network and {"name", "spec", "sha256" (of the file; where there is none, of the
    tensors), "input" (its own), "assumed" (a line for the log), "fold", "task", "val", "seed"}
    (None where unknown).
    """
    name, state, card = _resolve(spec, task)
    names = card.get("class_names")
    rows, order = preprocessing.class_rows(names, task, spec)
    outputs = len(names or task.class_names)
    if (state and not names and task.imagenet_classes and outputs < len(WNIDS)
            and len([value for value in state.values() if value.ndim == 2][-1]) == len(WNIDS)):
        rows, outputs, order = task.imagenet_classes, len(WNIDS), "ImageNet's"
    model = build(name, task, outputs)
    note = load_state(model, state, spec, task) if state else "random"
    own, shown = preprocessing.join(task, _records(name, model, task, card, flags), spec)
    # Transformers of timm and of torchvision have one size; small images were made larger for it.
    fixed = (getattr(model, "pretrained_cfg", {}).get("fixed_input_size")
             or hasattr(model, "image_size") or getattr(flags, "teacher_size", None))
    size = own["resolution"] if fixed or not task.large else None
    if hasattr(model, "transform_input"):  # Inception's, from ImageNet's statistics to its own
        model.transform_input = bool(card.get("transform_input", "official" in card))
    sha256 = card.get("sha256") or run.sha256(run.encoded(model.state_dict()))
    if (rows is not None or size not in (None, task.resolution)
            or (own["mean"], own["std"]) != (tuple(task.mean), tuple(task.std))):
        model = preprocessing.Front(model, task, own, size, rows)
    weights = ", ".join(filter(None, (sha256[:8], card.get("weights"), note)))
    return model.eval().requires_grad_(False), {
        "name": name, "spec": spec, "sha256": sha256, "input": own,
        "assumed": f"{spec}: weights {weights}; {shown}; class order {order}",
        **{key: card.get(key) for key in ("fold", "task", "val", "seed")}}


def _records(name: str, model: nn.Module, task: Task, card: dict,
             flags: argparse.Namespace | None) -> dict[str, dict]:
    """What is known of a network's input, by source, the surest last."""
    told = {key: card[key] for key in ("mean", "std", "resolution", "resize") if key in card}
    if "model" in card:  # a run's
        return {"its card": told}
    records = {}
    record = getattr(model, "pretrained_cfg", {})  # of timm's networks, also in one's own program
    if task.large and record:
        records[f"timm's {record['tag']}"] = preprocessing.of_timm(record)
    elif name.startswith("torchvision:"):
        weights = card.get("official") or (task.wnids and next(iter(_torchvision_weights(name)), 0))
        if weights:
            records[f"torchvision's {weights.name}"] = preprocessing.of_torchvision(weights)
    records |= {"the file": told, "the flags": preprocessing.of_flags(flags)}
    if name.startswith("torchvision:") and hasattr(model, "image_size"):
        records["the network"] = {"resolution": model.image_size}
    return records


def _resolve(spec: str, task: Task) -> tuple[str, dict | None, dict]:
    """The full model name, the state dict (None: random weights), and what is known of a spec."""
    path = Path(spec)
    if path.is_dir():
        name, state, card = read_run(path)
        if ".py:" in name:
            raise UserError(f"{path}: its network is a program, {name}, which you must name",
                            f"FILE.py:FUNCTION@{path}/student.safetensors")
        return name, state, card
    if path.is_file():
        raise UserError(f"a weight file needs the name of its network: {path}",
                        f"NAME@{path}{_names_that_fit(checkpoints.read(path)[0], task)}")
    name, _, weights = spec.partition("@")
    name = full_name(name, task)
    family, _, member = name.rpartition(":")
    if weights == "none":
        return name, None, {}
    if family == "torchvision" and not Path(weights).is_file():
        return name, *_download_torchvision(name, weights or "IMAGENET1K_V1")
    if family == "timm" and not weights:
        import timm

        with contextlib.redirect_stdout(sys.stderr):
            return name, timm.create_model(member, pretrained=True).state_dict(), {}
    if not weights:
        raise UserError(f"{name} needs its weights",
                        f"{name}@FILE, {name}@none for random weights, or a run folder")
    return name, *_read_file(family, name, Path(weights))


def _read_file(family: str, name: str, file: Path) -> tuple[dict, dict]:
    """State dict and facts of a weight file, and of timm's config.json beside it."""
    state, card = checkpoints.read(file)
    card["sha256"] = run.sha256_file(file)
    if family == "timm" and (file.parent / "config.json").is_file():
        config = run.read_json(file.parent / "config.json")
        record = config.get("pretrained_cfg", config)
        names = {"class_names": record.get("label_names") or config.get("label_names")}
        card |= preprocessing.of_timm(record) | names
    if family == "torchvision":
        for weights in _torchvision_weights(name):  # their names end in the digest's start
            if f"-{card['sha256'][:8]}." in weights.url:
                card |= {"official": weights, "weights": f"torchvision's {weights.name}"}
    return state, card


def read_run(folder: Path) -> tuple[str, dict, dict]:
    """The model name, the state dict and the card of a finished run."""
    for name in ("student", "model"):
        if (folder / f"{name}.json").exists():
            state, card = run.read_with_card(folder, name)
            return card["model"], state, card
    raise UserError(f"no finished run of a classifier: {folder}",
                    "finish its training (the same command resumes it), or give NAME@FILE")


def _torchvision_weights(name: str):
    from torchvision.models import get_model_weights

    return get_model_weights(name.removeprefix("torchvision:"))


def _download_torchvision(name: str, weights: str) -> tuple[dict, dict]:
    members = _torchvision_weights(name).__members__
    if weights not in members:
        raise UserError(f"'{weights}' is neither a file nor weights of {name}",
                        f"{name}@FILE, or {name}@ with one of {', '.join(members)}")
    with contextlib.redirect_stdout(sys.stderr):  # torch announces the download
        state = members[weights].get_state_dict(progress=True, check_hash=True)
    return state, {"official": members[weights], "weights": f"torchvision's {weights}"}


def load_state(model: nn.Module, state: dict[str, Tensor], spec: str, task: Task) -> str:
    """Copy the weights into the network, in its dtype; returns below which prefix they were."""
    want = model.state_dict()
    part, prefix = checkpoints.under_prefix(state, want)
    missing = [f"no key {key}" for key in want  # old files lack the counters of batch norms
               if key not in part and not key.endswith("num_batches_tracked")]
    unknown = [f"unknown key {key}" for key in part
               if key not in want and not key.startswith(SIDE_HEADS)]
    shapes = [f"{key} is {list(part[key].shape)}, not {list(value.shape)}"
              for key, value in want.items() if key in part and part[key].shape != value.shape]
    if missing or unknown or shapes:
        raise UserError(f"the weights do not fit the network: {spec}: "
                        + "; ".join(missing[:1] + unknown[:1] + shapes[:1]),
                        "NAME@FILE with the network that the file was trained with, and a task "
                        f"with as many classes{_names_that_fit(state, task)}")
    if not all(torch.isfinite(v).all() for v in part.values() if v.is_floating_point()):
        raise UserError(f"the weights have NaN or infinite values: {spec}")
    model.load_state_dict({key: part[key] for key in want if key in part}, strict=False)
    return prefix and f"below '{prefix}'"


def _names_that_fit(state: dict[str, Tensor], task: Task) -> str:
    """A phrase with the names whose networks have these keys and shapes, whatever the classes."""
    names = []
    for name in (*MODELS, *(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101))):
        with torch.device("meta"):
            want = build(name, task).state_dict()
        part, _ = checkpoints.under_prefix(state, want)
        if all(key in part and part[key].shape[1:] == value.shape[1:]
               for key, value in want.items() if not key.endswith("num_batches_tracked")):
            names.append(name)
    return f"; its keys are those of {', '.join(names)}" if names else ""


# --- are its results plausible? -------------------------------------------------------------------

def doubt(logits: Tensor, labels: Tensor) -> str:
    """A phrase that doubts a network whose accuracy is at most twice chance (or half way from
    chance to 100 % where that is less), "" for others; chance is that of the classes among the
    labels. logits [N, classes], labels int64 [N]."""
    if not torch.isfinite(logits).all():
        raise UserError("the network's logits have NaN or infinite values",
                        "weights in another precision, damaged ones, or other statistics")
    chance = 100 / len(labels.unique())
    acc1 = 100 * (logits.argmax(1) == labels.to(logits.device)).double().mean().item()
    if acc1 > min(2 * chance, 50 + chance / 2) + 1e-6:
        return ""
    return (f"top-1 is {acc1:.1f} %, chance {chance:.1f} %: another class order, other statistics, "
            "or the wrong weights?")


def refuse_single_values(model: nn.Module, task: Task) -> None:
    """Raise a UserError if batch norm gets one value a channel where images are normalised one by
    one: its running variance would be undefined."""
    try:
        copy.deepcopy(model)(torch.zeros(1, task.channels, task.resolution, task.resolution))
    except ValueError as error:  # torch's
        raise UserError(f"batch norm: {error}",
                        "more images in a step, a process and a group of --bn-group") from error
