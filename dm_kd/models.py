"""Classifiers: every teacher and student by name. To add one: write it and add a line to MODELS.

    build("wrn_16_1", task)                              a new network, random weights
    load_frozen("save/models/digits_cnn_w32", task)      a teacher: eval mode, no gradients
    load_frozen("torchvision:resnet18@IMAGENET1K_V1", task)

Key names are those of the public checkpoints of each family, so that their files load.
"""

import contextlib
import functools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import files
from dm_kd.errors import DamagedError, UserError, nearest
from dm_kd.tasks import Task

WEIGHTS_NAMES = ("student", "model")  # NAME.safetensors + NAME.json in a run folder


# --- small CNN for 8x8 images --------------------------------------------------------------------

class SmallCNN(nn.Module):
    """Six 3x3 convolutions with BN for tiny images: three at full size, three at half.

    Widths w, w, w, 2w, 2w, 2w; global average pool; one linear layer.
    """

    def __init__(self, width: int, num_classes: int, channels: int):
        super().__init__()
        widths = [channels, width, width, width, 2 * width, 2 * width, 2 * width]
        layers = []
        for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if index == 3 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                       nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # [B, 2w, H/2, W/2]
        return self.fc(x.mean((2, 3)))  # [B, classes]


# --- wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146) ------------------------

class WideBlock(nn.Module):
    """Pre-activation block; the 1x1 shortcut, if any, sees the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = (None if inputs == outputs else
                             nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(*[
            WideBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1)
            for i in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-widen: (depth - 4) / 6 blocks per stage, widths 16k, 32k, 64k, strides 1, 2, 2."""

    def __init__(self, depth: int, widen: int, num_classes: int, channels: int):
        super().__init__()
        assert (depth - 4) % 6 == 0, depth
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(blocks, widths[0], widths[1], 1)
        self.block2 = WideStage(blocks, widths[1], widths[2], 2)
        self.block3 = WideStage(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        init_he(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))  # [B, 64k, H/4, W/4]
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


# --- CIFAR ResNets (He et al. 2016, arXiv 1512.03385, section 4.2) --------------------------------

class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None if stride == 1 and inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages; `widths` = stem and stages."""

    def __init__(self, depth: int, widths: tuple[int, ...], num_classes: int, channels: int):
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = [nn.Sequential(*[
            BasicBlock(widths[s] if i == 0 else widths[s + 1], widths[s + 1],
                       2 if i == 0 and s > 0 else 1) for i in range(blocks)]) for s in range(3)]
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(widths[3], num_classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # [B, w0, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [B, w3, H/4, W/4]
        return self.fc(x.mean((2, 3)))


def init_he(model: nn.Module) -> None:
    """He-normal convolutions (fan-out), as both papers' code bases do (arXiv 1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# --- the table of names ---------------------------------------------------------------------------

MODELS = {  # name -> f(num_classes, channels)
    **{f"cnn_w{w}": functools.partial(SmallCNN, w) for w in (4, 8, 16, 32, 64)},
    **{f"wrn_{d}_{k}": functools.partial(WideResNet, d, k)
       for d, k in ((16, 1), (16, 2), (40, 1), (40, 2))},
    **{f"resnet{d}": functools.partial(CifarResNet, d, (16, 16, 32, 64))
       for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": functools.partial(CifarResNet, d, (32, 64, 128, 256)) for d in (8, 32)},
}


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 also under autocast: bfloat16 logits at temperature
    10 cost up to 2.4 % error in the distillation gradient."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


def build(name: str, task: Task) -> nn.Module:
    """A new network with random weights from torch's global generator.

    Its input is [B, task.channels, H, W], standardised; its output is float32 logits
    [B, task.num_classes] also under autocast.

    Raises:
        UserError: no such model; the nearest names are given.
    """
    if name.startswith("torchvision:"):
        model = _build_torchvision(name.removeprefix("torchvision:"), task)
    elif name in MODELS:
        model = MODELS[name](task.num_classes, task.channels)
    else:
        raise UserError(f"unknown model '{name}'",
                        hint=nearest(name, [*MODELS, "torchvision:resnet18"]))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    last.__class__ = Float32Linear
    return model


def _build_torchvision(name: str, task: Task) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models(torchvision.models):
        raise UserError(f"unknown torchvision model '{name}'",
                        hint=nearest(name, torchvision.models.list_models(torchvision.models)))
    if task.channels != 3:
        raise UserError(f"torchvision models take 3 channels, {task.name} has {task.channels}",
                        hint=nearest("cnn", MODELS))
    return torchvision.models.get_model(name, weights=None, num_classes=task.num_classes)


def load_frozen(spec: str, task: Task) -> tuple[nn.Module, dict]:
    """A teacher: eval mode, no parameter wants a gradient.

    Args:
        spec: NAME@FILE | NAME@none (random weights) | a run folder | a FILE with a card or in a
            folder of the model's name | torchvision:NAME[@WEIGHTS] (downloads).

    Returns:
        The network and {"name", "spec", "sha256", "fold", "task"} (None where unknown).

    Raises:
        UserError: nothing there, unknown model, another architecture, another class count.
        DamagedError: truncated weights or a digest that differs.
    """
    name, state, card = _resolve(spec, task)
    model = build(name, task)
    if state is not None:
        _load_strictly(model, state, name, spec, task)
    model.eval().requires_grad_(False)
    return model, {"name": name, "spec": spec, "sha256": card.get("sha256"),
                   "fold": card.get("fold"), "task": card.get("task")}


def _resolve(spec: str, task: Task) -> tuple[str, dict | None, dict]:
    """(model name, state dict or None, card) that a spec stands for."""
    name, _, weights = ("", "", "") if Path(spec).exists() else spec.partition("@")
    if spec.startswith("torchvision:") and weights != "none" and not Path(weights or "/").is_file():
        return name, _download_torchvision(name, weights or "IMAGENET1K_V1"), {}
    if weights == "none":
        return name, None, {}
    if weights:
        file = files.must_exist(Path(weights), f"{name}@FILE", "weights file")
        return name, read_state(file), {"sha256": files.sha256_file(file)}
    path = files.must_exist(Path(spec), "--teacher NAME@FILE, a FILE or a run folder:", "teacher")
    if path.is_dir():
        return _resolve_folder(path)
    card_file = path.with_suffix(".json")
    if card_file.exists():
        state, card = files.read_with_card(path.parent, path.stem)
        return _card_model(card, card_file), state, card
    for known in (path.parent.name, path.stem):
        if known in MODELS:
            return known, read_state(path), {"sha256": files.sha256_file(path)}
    raise UserError("cannot tell the architecture from the file's folder or name", file=path,
                    hint=f"NAME@{path} with NAME {nearest(path.parent.name, MODELS)}")


def _resolve_folder(folder: Path) -> tuple[str, dict, dict]:
    for name in WEIGHTS_NAMES:
        if (folder / f"{name}.json").exists():
            state, card = files.read_with_card(folder, name)
            return _card_model(card, folder / f"{name}.json"), state, card
    unfinished = (folder / "config.yaml").exists()
    raise UserError("the run is not finished: it has no weights yet" if unfinished else
                    "the folder holds no trained model", folder=folder,
                    hint="finish its training first (the same command goes on)" if unfinished else
                    "a run folder (with student.json or model.json), or NAME@FILE")


def _card_model(card: dict, card_file: Path) -> str:
    if not isinstance(card.get("model"), str):
        raise DamagedError("the card names no model", file=card_file)
    return card["model"]


def _download_torchvision(name: str, weights: str) -> dict:
    import torchvision

    try:
        enum = torchvision.models.get_model_weights(name.removeprefix("torchvision:"))
        with contextlib.redirect_stdout(sys.stderr):  # torch announces the download
            return enum[weights].get_state_dict(progress=True, check_hash=True)
    except KeyError as error:
        raise UserError(f"no weights '{weights}' for {name}",
                        hint=f"{name}@FILE, {name}@none, or "
                             f"{nearest(weights, enum.__members__)}") from error
    except ValueError as error:
        raise UserError(f"unknown torchvision model '{name}'") from error
    except OSError as error:  # urllib's errors are OSErrors
        raise UserError(f"could not download {name}@{weights}", found=str(error)[:100],
                        hint=f"--teacher {name}@FILE with a file you have") from error


def read_state(file: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or .pt/.pth: one wrapper and `module.`/`_orig_mod.` removed.

    Raises:
        UserError: it would run code, or holds no state dict.  DamagedError: truncated.
    """
    state = (files.load_safetensors(file) if file.suffix == ".safetensors"
             else files.load_pt(file))
    for wrapper in ("state_dict", "model", "state", "ema"):
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
    for prefix in ("module.", "_orig_mod.", "student.") * 2:  # compile and DDP nest either way
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _load_strictly(model: nn.Module, state: dict, name: str, spec: str, task: Task) -> None:
    """Load after comparing names and shapes, so that the message fits on a screen."""
    want = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    have = {key: tuple(value.shape) for key, value in state.items()}
    want = {k: v for k, v in want.items() if not k.endswith("num_batches_tracked")}
    have = {k: v for k, v in have.items() if not k.endswith("num_batches_tracked")}
    last = [key for key in want if key.endswith(".weight")][-1]
    if last in have and have[last][1:] == want[last][1:] and have[last] != want[last]:
        raise UserError(f"teacher has {have[last][0]} classes, the data has {task.num_classes}",
                        teacher=f"{spec}   {last} {list(have[last])}",
                        data=f"{task.name}   {task.num_classes} classes",
                        hint=f"a teacher trained on these {task.num_classes} classes")
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
    model.load_state_dict(state, strict=False)  # names were compared; BN counters may be absent


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
