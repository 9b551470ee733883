"""Classifiers by name, and every form in which a teacher's weights come.

    build("wrn_16_1", task)                                    a new network, random weights
    load_frozen("save/models/digits_cnn_w32", task)            a teacher: eval mode, no gradients
    load_frozen("wrn_40_2@checkpoints/cifar100_wrn40_2.pth", task)

To add a network: its class in networks.py, a line in MODELS. Besides MODELS there are
`torchvision:NAME` for each of torchvision's classifiers (on tasks with large images NAME alone),
and `timm:NAME` where timm is installed.
"""

import argparse
import contextlib
import re
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import run
from dm_kd.networks import VGG, LeNet5, ResNet, ShuffleNetV2, SmallCNN, WideResNet
from dm_kd.run import UserError, nearest
from dm_kd.tasks import Task, refuse_other_names

RUN_WEIGHTS = ("student", "model")  # NAME.safetensors and NAME.json in a run folder

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
    "shufflenet": ShuffleNetV2,
    "lenet5": partial(LeNet5, (6, 16, 120, 84)),
    "lenet5_bn": partial(LeNet5, (6, 16, 120, 84), norm=True),
    "lenet5_half": partial(LeNet5, (3, 8, 60, 42)),
}


# --- new networks ---------------------------------------------------------------------------------

class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under autocast too: bfloat16 logits at temperature 10
    cost up to 2.4 % error in the distillation gradient."""

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

    Its input is [B, task.channels, H, W], standardised; its output is logits
    [B, task.num_classes], float32 under autocast too.

    Raises:
        UserError: no such model (the nearest names are given), or timm is missing.
    """
    family, _, member = full_name(name, task).rpartition(":")
    if family == "torchvision":
        from torchvision.models import get_model

        options = {}
        if member in ("googlenet", "inception_v3"):
            # One output, in training too. The official weights saw images in [-1, 1], which these
            # two make themselves out of images with ImageNet's mean and standard deviation.
            options = {"aux_logits": False, "transform_input": True, "init_weights": True}
        model = get_model(member, weights=None, num_classes=task.num_classes, **options)
    elif family == "timm":
        import timm

        model = timm.create_model(member, num_classes=task.num_classes, in_chans=task.channels)
    else:
        model = MODELS[member](task.num_classes, task.channels)
    float32 = {nn.Linear: Float32Linear, nn.Conv2d: Float32Conv2d}
    head = [m for m in model.modules() if type(m) in float32][-1]
    head.__class__ = float32[type(head)]
    return model


def card(name: str, task: Task) -> dict:
    """What a trained network's card says of the network and its task."""
    return {"model": full_name(name, task), "task": task.name, "num_classes": task.num_classes,
            "class_names": list(task.class_names), "mean": task.mean, "std": task.std,
            "resolution": task.resolution}


def full_name(name: str, task: Task) -> str:
    """The unambiguous name of a model: on a task with large images `resnet18` is
    `torchvision:resnet18`.

    Raises:
        UserError: no such model; the nearest names are given."""
    family, _, member = name.rpartition(":")
    if not family and task.large and member in _names("torchvision"):
        family = "torchvision"
    names = _names(family)
    if (member.partition(".")[0] if family == "timm" else member) not in names:  # timm: NAME.TAG
        hint = nearest(member.lower(), names or MODELS)
        if not family and member.lower() in _names("torchvision"):
            hint = f"torchvision:{member.lower()}, or {hint}"
        raise UserError(f"unknown model '{name}'", hint)
    return f"{family}:{member}" if family else member


def _names(family: str) -> list[str]:
    """All models of a family: "torchvision", "timm", or "" for ours."""
    if family == "torchvision":
        import torchvision

        return torchvision.models.list_models(torchvision.models)
    if family == "timm":
        try:
            import timm
        except ImportError as error:
            raise UserError("timm:NAME needs the package timm", "pip install timm") from error
        return timm.list_models()
    return [] if family else list(MODELS)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- teachers -------------------------------------------------------------------------------------

def load_frozen(spec: str, task: Task) -> tuple[nn.Module, dict]:
    """A trained classifier in eval mode whose parameters want no gradient.

    Args:
        spec: NAME@FILE | NAME@none (random weights) | a run folder | torchvision:NAME[@WEIGHTS] or
            timm:NAME (both download).

    Returns:
        The network and {"name", "spec", "sha256" (of the file; where there is none, of the
        tensors), "fold", "task", "val", "seed"} (None where unknown).

    Raises:
        UserError: nothing there, unknown model, another architecture or number of classes, class
            names that differ from the card's, a damaged file, or one that would run code.
    """
    name, state, card = _resolve(spec, task)
    refuse_other_names(card.get("class_names"), task, spec,
                       f"{name}@FILE with its .safetensors if only the names differ")
    model = build(name, task)
    if state is not None:
        load_state(model, state, spec, task)
    model.eval().requires_grad_(False)
    return model, {"name": name, "spec": spec,
                   "sha256": card.get("sha256") or run.tensors_digest(model.state_dict()),
                   **{key: card.get(key) for key in ("fold", "task", "val", "seed")}}


def _resolve(spec: str, task: Task) -> tuple[str, dict | None, dict]:
    """The full model name, the state dict (None: random weights), and the card of a spec."""
    path = Path(spec)
    if spec and path.is_dir():
        return read_run(path)
    if path.is_file():
        fitting = ", ".join(_fitting(read_state(path), task))
        raise UserError(f"a weight file needs the name of its network: {path}", f"NAME@{path}" + (
            f"; its keys and shapes are those of {fitting}" if fitting else ""))
    name, _, weights = spec.partition("@")
    if "/" in name:
        raise UserError(f"no such file or folder: {spec}", "a run folder or NAME@FILE")
    name = full_name(name, task)
    if weights == "none":
        return name, None, {}
    if Path(weights).is_file():
        return name, read_state(Path(weights)), {"sha256": run.sha256_file(Path(weights))}
    if name.startswith("torchvision:") and "/" not in weights:
        return name, _download_torchvision(name, weights or "IMAGENET1K_V1", task), {}
    if name.startswith("timm:") and not weights:
        return name, _download_timm(name, task), {}
    raise UserError(f"no such weight file: {weights}" if weights else f"{name} needs its weights",
                    f"{name}@FILE, {name}@none for random weights, or a run folder")


def read_run(folder: Path) -> tuple[str, dict, dict]:
    """The model name, the state dict and the card of a finished run.

    Raises:
        UserError: not finished, no run of a classifier, or weights that are not the card's."""
    for name in RUN_WEIGHTS:
        if (folder / f"{name}.json").exists():
            state, card = run.read_with_card(folder, name)
            return card["model"], state, card
    raise UserError(f"no finished run of a classifier: {folder}",
                    "finish its training (the same command resumes it), or give NAME@FILE")


def _download_torchvision(name: str, weights: str, task: Task) -> dict:
    from torchvision.models import get_model_weights

    members = get_model_weights(name.removeprefix("torchvision:")).__members__
    if weights not in members:
        raise UserError(f"'{weights}' is neither a file nor weights of {name}",
                        f"{name}@FILE, or {name}@ with one of {', '.join(members)}")
    with contextlib.redirect_stdout(sys.stderr):  # torch announces the download
        return _clean(members[weights].get_state_dict(progress=True, check_hash=True))


def _download_timm(name: str, task: Task) -> dict:
    import timm

    member = name.removeprefix("timm:")
    weights = timm.get_pretrained_cfg(member)
    theirs, ours = torch.tensor([weights.mean, weights.std]), torch.tensor([task.mean, task.std])
    if not torch.allclose(theirs, ours, rtol=0, atol=2e-3):
        raise UserError(f"{name} was trained with mean {weights.mean} and std {weights.std}, "
                        f"{task.name} has {task.mean} and {task.std}",
                        "a model that was trained with the data's mean and std")
    with contextlib.redirect_stdout(sys.stderr):
        return timm.create_model(member, pretrained=True).state_dict()


# --- weight files ---------------------------------------------------------------------------------

# Where checkpoints keep their state dict, averaged weights first: DeiT and torchvision, timm,
# diffusion models; then Fast-Datafree, CMI and Lightning; RepDistiller and DM-KD; others.
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
_WRAPPERS = (*_AVERAGED, "state_dict", "model_state_dict", "model", "net", "state", "student")
_PREFIXES = {"module", "_orig_mod", "student", "model", "net", "backbone", "encoder"}
_OLD_KEYS = [  # torchvision's first files of DenseNet and ViT, which its own loaders rename too
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3.")]
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads that Inception and GoogLeNet only train with


class _Ignored:
    """Takes the place of NumPy's scalars in a checkpoint (its best accuracy), which nothing here
    reads: NumPy's own unpickling trusts the sizes and flags that a file states."""

    def __init__(self, *parts: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What RepDistiller's NAME_last.pth holds besides tensors. Nothing else is let in.
_HARMLESS = [argparse.Namespace, (_Ignored, "numpy.dtype"),
             (_Ignored, "numpy.core.multiarray.scalar"),
             (_Ignored, "numpy._core.multiarray.scalar")]


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or .pt file, without what checkpoints wrap around it and
    without prefixes that all keys share. Of raw and averaged weights in one file it takes the
    averaged ones and says so on standard error.

    Raises:
        UserError: it would run code, is damaged, or holds no state dict.
    """
    if file.suffix == ".safetensors":
        return _clean(run.load_safetensors(file))
    with torch.serialization.safe_globals(_HARMLESS):
        state = run.load_pt(file)
    wrappers = [key for key in _WRAPPERS if isinstance(state, dict)
                and isinstance(state.get(key), dict)]
    if wrappers:
        state = state[wrappers[0]]
        if wrappers[0] in _AVERAGED and len(wrappers) > 1:
            print(f"{file}: the averaged weights ('{wrappers[0]}') are used", file=sys.stderr)
    if not isinstance(state, dict) or not state or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"the file holds no state dict: {file}",
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
            break
        prefix = tops.pop() + "."
        state = {key.removeprefix(prefix): value for key, value in state.items()
                 if key.startswith(prefix)}
    for old, new in _OLD_KEYS:
        state = {old.sub(new, key): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}


def load_state(model: nn.Module, state: dict[str, Tensor], spec: str, task: Task) -> None:
    """Copy the weights into the network, in its own type. `spec` is for the messages.

    Raises:
        UserError: another number of classes, a key that is missing, unknown or of another shape
            (the first of each), or weights that are not finite."""
    want, have = _shapes(model.state_dict()), _shapes(state)
    head = [key for key in want if key.endswith(".weight")][-1]
    if head in have and have[head][0] != task.num_classes and have[head][1:] == want[head][1:]:
        raise UserError(f"{spec} has {have[head][0]} classes, {task.name} has {task.num_classes}")
    differences = [
        *[f"no key {key}" for key in want if key not in have][:1],
        *[f"unknown key {key}" for key in have if key not in want][:1],
        *[f"{key} is {list(have[key])}, not {list(want[key])}" for key in want
          if key in have and have[key] != want[key]][:1]]
    if differences:
        fitting = ", ".join(_fitting(state, task))
        raise UserError(f"the weights do not fit the network: {spec}: {'; '.join(differences)}",
                        f"its keys and shapes are those of {fitting}" if fitting else
                        "NAME@FILE with the network that the file was trained with")
    if not all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point()):
        raise UserError(f"the weights hold NaN or infinite values: {spec}")
    with torch.no_grad():
        for key, value in model.state_dict().items():  # MNASNet's own loader wants a version
            if key in state and state[key].shape == value.shape:
                value.copy_(state[key])


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape by key, without the counters of batch norms, which old files lack."""
    return {key: tuple(value.shape) for key, value in state.items()
            if not key.endswith("num_batches_tracked")}


def _fitting(state: dict[str, Tensor], task: Task) -> list[str]:
    """Names of usual networks for this task that have the keys and shapes of a state dict."""
    names = _names("")
    if task.large:
        usual = ("resnet", "vgg", "mobilenet", "shufflenet")
        names = [name for name in _names("torchvision") if name.startswith(usual)]
    with torch.device("meta"):  # no weights are made
        return [name for name in names
                if _shapes(build(name, task).state_dict()) == _shapes(state)]
