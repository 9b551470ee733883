"""Classifiers by name, and teachers from run folders, weight files and downloads.

    build("wrn_16_1", task)                                    a new network, random weights
    load_frozen("save/models/digits_cnn_w32", task)            a teacher: eval mode, no gradients
    load_frozen("wrn_40_2@checkpoints/cifar100_wrn40_2.pth", task)

To add a network: its class in networks.py, a line in MODELS. Names outside MODELS are
`torchvision:NAME`, for networks that end in a linear layer (on tasks with large images NAME alone),
and `timm:NAME` if timm is installed.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import run
from dm_kd.networks import VGG, LeNet5, ResNet, SmallCNN, WideResNet
from dm_kd.run import UserError, nearest
from dm_kd.tasks import Task, refuse_other_names

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


# --- new networks ---------------------------------------------------------------------------------

class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under autocast too: at temperature 10 bfloat16 logits
    change the distillation gradient by up to 2.4 %."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


def build(name: str, task: Task) -> nn.Module:
    """A new network with random weights from torch's global generator. Its input is standardised
    images [B, task.channels, H, W]; its output logits [B, task.num_classes], float32 under autocast
    too. Raises UserError for an unknown name, or a network that does not end in a linear layer."""
    family, _, member = full_name(name, task).rpartition(":")
    if family == "torchvision":
        from torchvision.models import get_model

        model = get_model(member, weights=None, num_classes=task.num_classes)
    elif family == "timm":
        import timm

        model = timm.create_model(member, num_classes=task.num_classes, in_chans=task.channels)
    else:
        model = MODELS[member](task.num_classes, task.channels)
    head = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if type(head) is not nn.Linear:
        raise UserError(f"{name} does not end in a linear layer", "another network")
    head.__class__ = Float32Linear
    return model


def seen_note(card: dict, args: argparse.Namespace) -> list[str]:
    """A line for the log where a network may have been trained on images that are evaluated."""
    if args.val == "none" or (card["fold"] in (None, args.fold)
                              and not (args.val == "dev" and card["val"] == "val")):
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
    if not family and task.large and member in _names("torchvision"):
        family = "torchvision"
    names = _names(family)
    if (member.partition(".")[0] if family == "timm" else member) not in names:  # timm: NAME.TAG
        raise UserError(f"neither a model nor a run folder: '{name}'",
                        nearest(member.lower(), names or MODELS))
    return f"{family}:{member}" if family else member


def _names(family: str) -> list[str]:
    """All models of a family: "torchvision", "timm", or "" for ours."""
    if family == "torchvision":
        from torchvision import models

        # These two have several outputs in training, and the official weights want other inputs.
        return sorted({*models.list_models(models)} - {"googlenet", "inception_v3"})
    if family == "timm":
        import timm

        return timm.list_models()
    return [] if family else list(MODELS)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- teachers -------------------------------------------------------------------------------------

def load_frozen(spec: str, task: Task) -> tuple[nn.Module, dict]:
    """A trained classifier in eval mode whose parameters do not require gradients.

    Args:
        spec: NAME@FILE | NAME@none (random weights) | a run folder | torchvision:NAME[@WEIGHTS] or
            timm:NAME (both download).

    Returns:
        The network and {"name", "spec", "sha256" (of the file; where there is none, of the
        tensors), "fold", "task", "val", "seed"} (None where unknown).

    Raises:
        UserError: nothing at that path, another architecture, other classes or another order of
            them, a damaged file, or one that would run code.
    """
    name, state, card = _resolve(spec, task)
    refuse_other_names(card.get("class_names"), task, spec,
                       f"{name}@FILE with its .safetensors if only the names differ")
    model = build(name, task)
    if state is not None:
        load_state(model, state, spec)
    mean, std = statistics(name, task)
    if (mean, std) != (task.mean, task.std):
        model = Front(model, task, mean, std)
    model.eval().requires_grad_(False)
    return model, {"name": name, "spec": spec,
                   "sha256": card.get("sha256") or run.tensors_digest(model.state_dict()),
                   "mean": mean, "std": std,
                   **{key: card.get(key) for key in ("fold", "task", "val", "seed")}}


class Front(nn.Module):
    """A network behind one affine layer, from the task's standardised images to its own."""

    def __init__(self, model: nn.Module, task: Task, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        ours, theirs, scale, own = (torch.tensor(v).view(1, -1, 1, 1)
                                    for v in (task.mean, mean, task.std, std))
        self.register_buffer("scale", scale / own)
        self.register_buffer("shift", (ours - theirs) / own)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x * self.scale + self.shift)


def statistics(name: str, task: Task) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std that a network was trained with."""
    if name.startswith("timm:") and task.large:
        import timm

        weights = timm.get_pretrained_cfg(name.removeprefix("timm:"))
        return tuple(weights.mean), tuple(weights.std)
    return task.mean, task.std


def _resolve(spec: str, task: Task) -> tuple[str, dict | None, dict]:
    """The full model name, the state dict (None: random weights), and the card of a spec."""
    path = Path(spec)
    if spec and path.is_dir():
        return read_run(path)
    if path.is_file():
        raise UserError(f"a weight file needs the name of its network: {path}", f"NAME@{path}")
    name, _, weights = spec.partition("@")
    name = full_name(name, task)
    if weights == "none":
        return name, None, {}
    if Path(weights).is_file():
        return name, read_state(Path(weights)), {"sha256": run.sha256_file(Path(weights))}
    if name.startswith("torchvision:") and "/" not in weights:
        return name, _download_torchvision(name, weights or "IMAGENET1K_V1"), {}
    if name.startswith("timm:") and not weights:
        return name, _download_timm(name), {}
    raise UserError(f"no such weight file: {weights}" if weights else f"{name} needs its weights",
                    f"{name}@FILE, {name}@none for random weights, or a run folder")


def read_run(folder: Path) -> tuple[str, dict, dict]:
    """The model name, the state dict and the card of a finished run."""
    for name in ("student", "model"):
        if (folder / f"{name}.json").exists():
            state, card = run.read_with_card(folder, name)
            return card["model"], state, card
    raise UserError(f"no finished run of a classifier: {folder}",
                    "finish its training (the same command resumes it), or give NAME@FILE")


def _download_torchvision(name: str, weights: str) -> dict:
    from torchvision.models import get_model_weights

    members = get_model_weights(name.removeprefix("torchvision:")).__members__
    if weights not in members:
        raise UserError(f"'{weights}' is neither a file nor weights of {name}",
                        f"{name}@FILE, or {name}@ with one of {', '.join(members)}")
    with contextlib.redirect_stdout(sys.stderr):  # torch announces the download
        return members[weights].get_state_dict(progress=True, check_hash=True)


def _download_timm(name: str) -> dict:
    import timm

    with contextlib.redirect_stdout(sys.stderr):
        return timm.create_model(name.removeprefix("timm:"), pretrained=True).state_dict()


# --- weight files ---------------------------------------------------------------------------------

# Where checkpoints keep their state dict, averaged weights first: DeiT and torchvision, timm,
# diffusion models; then Fast-Datafree, CMI and Lightning; RepDistiller and DM-KD; others.
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
_WRAPPERS = (*_AVERAGED, "state_dict", "model_state_dict", "model", "net", "state", "student")
_PREFIXES = {"module", "_orig_mod", "student", "model", "net", "backbone", "encoder"}


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or .pt file, without what checkpoints wrap around it and
    without prefixes that all keys share. If a file has raw and averaged weights, the averaged ones
    are used, and a line says so. Raises UserError if there is no state dict."""
    if file.suffix == ".safetensors":
        return _clean(run.load_safetensors(file))
    with torch.serialization.safe_globals([argparse.Namespace]):  # the flags, in many programs
        state = run.load_pt(file)
    wrappers = [key for key in _WRAPPERS if isinstance(state, dict)
                and isinstance(state.get(key), dict)]
    if wrappers:
        state = state[wrappers[0]]
        if wrappers[0] in _AVERAGED and len(wrappers) > 1:
            print(f"{file}: the averaged weights ('{wrappers[0]}') are used", file=sys.stderr)
    if not isinstance(state, dict) or not state or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"no state dict in {file}",
                        "a dict of tensors, bare or under 'model' or 'state_dict'")
    return _clean(state)


def _clean(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the keys of the network itself."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}  # AveragedModel's
    while True:
        tops = {key.partition(".")[0] for key in state}
        if tops == {"student", "teacher"}:  # mdistiller saves both
            tops = {"student"}
        if len(tops) != 1 or not tops <= _PREFIXES:
            return state
        prefix = tops.pop() + "."
        state = {key.removeprefix(prefix): value for key, value in state.items()
                 if key.startswith(prefix)}


def load_state(model: nn.Module, state: dict[str, Tensor], spec: str) -> None:
    """Copy the weights into the network, in its dtype. Raises UserError with the first key that is
    missing, unknown or of another shape. `spec` is for the messages."""
    want = model.state_dict()
    shapes = [f"{key} is {list(state[key].shape)}, not {list(value.shape)}"
              for key, value in want.items() if key in state and state[key].shape != value.shape]
    missing = [f"no key {key}" for key in want  # old files lack the counters of batch norms
               if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [f"unknown key {key}" for key in state if key not in want]
    if missing or unknown or shapes:
        raise UserError(f"the weights do not fit the network: {spec}: "
                        + "; ".join(missing[:1] + unknown[:1] + shapes[:1]),
                        "NAME@FILE with the network that the file was trained with, and a task "
                        "with as many classes")
    if not all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point()):
        raise UserError(f"the weights have NaN or infinite values: {spec}")
    model.load_state_dict(state, strict=False)
