"""Models by name, and every form in which a teacher's weights come, or are refused."""

import argparse
import collections
import io
import os
import shutil
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch._subclasses.fake_tensor import FakeTensorMode

from dm_kd import models, run
from dm_kd.run import UserError
from dm_kd.tasks import get_task


def images_of(num_classes, channels, resolution) -> types.SimpleNamespace:
    """What a model needs to know of a task, with ImageNet's statistics."""
    return types.SimpleNamespace(
        name=f"{num_classes} classes", num_classes=num_classes, channels=channels,
        resolution=resolution, mean=(0.485, 0.456, 0.406)[:channels],
        std=(0.229, 0.224, 0.225)[:channels], large=resolution > 64, class_names=())


CIFAR100, CIFAR10 = images_of(100, 3, 32), images_of(10, 3, 32)
IMAGENET = images_of(1000, 3, 224)
DIGITS = get_task("digits")


def state_of(name, task=DIGITS) -> dict:
    torch.manual_seed(7)
    return models.build(name, task).state_dict()


def same(model, state) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[k], v) for k, v in state.items())


def refusal(spec, task=DIGITS) -> str:
    """The message of a teacher that is refused."""
    with pytest.raises(UserError) as caught:
        models.load_frozen(str(spec), task)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


# --- new networks ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["cnn_w4", "wrn_16_1", "torchvision:squeezenet1_1"])
def test_logits_are_float32_under_autocast(name):
    task = DIGITS if ":" not in name else CIFAR10
    model = models.build(name, task).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, task.channels, 64, 64))
    assert logits.dtype == torch.float32 and logits.shape == (2, 10)
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(("name", "task", "near"), [
    ("wrn_40_3", CIFAR10, "wrn_40_"), ("resnet8x5", CIFAR10, "resnet8x4"),
    ("ResNet18", CIFAR10, "torchvision:resnet18"), ("torchvision:resnet19", CIFAR10, "resnet18"),
    ("resnet19", IMAGENET, "resnet1"), ("timm:resnet19", CIFAR10, "resnet18")])
def test_an_unknown_model_names_the_nearest(name, task, near):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=near):
        models.build(name, task)


def test_a_bare_name_is_torchvisions_on_large_tasks_and_ours_on_small_ones():
    assert models.full_name("resnet18", IMAGENET) == "torchvision:resnet18"
    assert models.full_name("vgg11_bn", IMAGENET) == "torchvision:vgg11_bn"
    assert models.full_name("vgg11_bn", CIFAR10) == "vgg11_bn"
    assert models.full_name("cnn_w8", IMAGENET) == "cnn_w8"


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "squeezenet1_1", "vit_b_16"])
def test_a_torchvision_classifier_gives_one_tensor_of_float32_logits(name):
    with torch.device("meta"):
        model = models.build(f"torchvision:{name}", CIFAR100)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        model.to_empty(device="cpu")
        for mode in (model.train(), model.eval()):
            logits = mode(torch.randn(2, 3, 224, 224))
            assert logits.shape == (2, 100) and logits.dtype == torch.float32


@pytest.mark.parametrize("task", [DIGITS, CIFAR100], ids=["digits", "cifar100"])
def test_a_timm_network_is_a_student_and_its_file_a_teacher(task, tmp_path):
    pytest.importorskip("timm")
    state = state_of("timm:test_resnet", task)
    torch.save(state, tmp_path / "x.pth")
    model, card = models.load_frozen(f"timm:test_resnet@{tmp_path / 'x.pth'}", task)
    assert same(model, state) and card["name"] == "timm:test_resnet"
    assert model(torch.randn(2, task.channels, 32, 32)).shape == (2, task.num_classes)


def test_a_missing_timm_is_reported_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in refusal("timm:resnet18", IMAGENET)


# --- teachers -------------------------------------------------------------------------------------

def test_a_teacher_is_in_eval_mode_without_gradients_and_known_by_its_weights():
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, card = models.load_frozen("cnn_w4@none", DIGITS)
        digests.append(card["sha256"])
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 64


def test_a_run_folder_is_a_teacher(teacher_folder):
    model, card = models.load_frozen(str(teacher_folder), DIGITS)
    weights = teacher_folder / "model.safetensors"
    assert same(model, safetensors.torch.load_file(weights))
    assert card == {"name": "cnn_w4", "spec": str(teacher_folder), "fold": 0, "task": "digits",
                    "sha256": run.sha256_file(weights), "val": "val", "seed": 0}


def test_a_teacher_of_other_class_names_is_refused(tmp_path):
    card = {"model": "cnn_w4", "task": "digits", "class_names": [*"0213456789"]}
    run.write_with_card(tmp_path, "model", state_of("cnn_w4"), card)
    message = refusal(tmp_path)
    assert "class 1 is '2'" in message and "'1'" in message
    models.load_frozen(f"cnn_w4@{tmp_path / 'model.safetensors'}", DIGITS)  # the hint's way out


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_name_at_file_is_a_teacher_in_float32(tmp_path, suffix, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_of("cnn_w4").items()}
    file = tmp_path / f"x.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(state, file)
    (tmp_path / "x.json").write_text('{"acc": 90}')  # no card of ours
    model, card = models.load_frozen(f"cnn_w4@{file}", DIGITS)
    assert same(model, state) and card["sha256"] == run.sha256_file(file)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


WRAPPED = {
    "RepDistiller": lambda s: {"epoch": 240, "accuracy": torch.tensor(65.3), "model": s,
                               "optimizer": {"state": {}, "param_groups": [{}]}},
    "Fast-Datafree": lambda s: {"epoch": 200, "arch": "wrn", "state_dict": s, "best_acc1": 65.3,
                                "scheduler": {"milestones": collections.Counter([120, 150])}},
    "DM-KD": lambda s: {"epoch": 3, "model": collections.OrderedDict(s), "optimizer": {}},
    "mdistiller": lambda s: {"epoch": 3, "model": {
        **prefixed("module.student.")(s),
        **prefixed("module.teacher.")({k: v + 1 for k, v in s.items()})}},
    "Lightning": lambda s: {"state_dict": prefixed("model.")(s), "epoch": 3, "callbacks": {}},
    "net": lambda s: {"net": s, "acc": 90.0}, "state": lambda s: {"state": s},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.1},
    "student": lambda s: {"student": s}, "ema alone": lambda s: {"state_dict_ema": s},
    "averaged": lambda s: {"n_averaged": torch.tensor(5), **prefixed("module.")(s)},
    "compiled in DDP": prefixed("module._orig_mod."), "DDP compiled": prefixed("_orig_mod.module."),
    "backbone": prefixed("backbone."), "encoder": prefixed("encoder."),
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k}}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrappers_and_prefixes_are_removed(tmp_path, wrap, capsys):
    state = state_of("cnn_w4")
    torch.save(WRAPPED[wrap](state), tmp_path / "x.pt")
    model, _ = models.load_frozen(f"cnn_w4@{tmp_path / 'x.pt'}", DIGITS)
    assert same(model, {k: v for k, v in state.items() if "num_batches" not in k})
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("raw", "averaged"), [("state_dict", "state_dict_ema"),
                                               ("model", "model_ema"), ("model", "ema")])
def test_averaged_weights_are_preferred_and_this_is_said(tmp_path, raw, averaged, capsys):
    state = state_of("cnn_w4")
    torch.save({raw: {k: v + 1 for k, v in state.items()}, averaged: state}, tmp_path / "x.pt")
    model, _ = models.load_frozen(f"cnn_w4@{tmp_path / 'x.pt'}", DIGITS)
    assert same(model, state) and averaged in capsys.readouterr().err


def repdistiller_last(state, numpy_core: bytes) -> bytes:
    """RepDistiller's NAME_last.pth: argparse's result and NumPy's scalars beside the weights, as
    written with NumPy 1 (numpy.core) or 2 (numpy._core)."""
    buffer = io.BytesIO()
    torch.save({"opt": argparse.Namespace(model="resnet8", learning_rate=0.05, lr_decay=[150, 180]),
                "model": state, "accuracy": np.float64(72.5), "single": np.float32(1.5),
                "epoch": np.int64(240)}, buffer, _use_new_zipfile_serialization=False)
    assert b"numpy._core.multiarray" in buffer.getvalue()
    return buffer.getvalue().replace(b"numpy._core.multiarray", numpy_core + b".multiarray")


@pytest.mark.parametrize("numpy_core", [b"numpy.core", b"numpy._core"])
def test_a_file_with_a_namespace_and_numpy_scalars_is_a_teacher(tmp_path, numpy_core):
    state = state_of("resnet8")
    (tmp_path / "resnet8_last.pth").write_bytes(repdistiller_last(state, numpy_core))
    model, _ = models.load_frozen(f"resnet8@{tmp_path / 'resnet8_last.pth'}", DIGITS)
    assert same(model, state)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # for that file alone


@pytest.mark.parametrize("name", ["googlenet", "mnasnet0_5"])
def test_official_weights_give_torchvisions_own_logits(name, monkeypatch, tmp_path):
    """GoogLeNet's file has heads for training only and standardises images its own way; MNASNet's
    own loader wants a version. Both downloaded and from a file."""
    options = {"transform_input": True, "init_weights": False} if name == "googlenet" else {}
    theirs = torchvision.models.get_model(name, weights=None, **options).eval()
    state = dict(theirs.state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: state)
    torch.save(state, tmp_path / "x.pth")
    x = torch.randn(2, 3, 64, 64)
    for spec in (f"torchvision:{name}", f"{name}@{tmp_path / 'x.pth'}"):
        model, card = models.load_frozen(spec, IMAGENET)
        with torch.no_grad():
            assert torch.equal(model(x), theirs(x)) and card["name"] == f"torchvision:{name}"


@pytest.mark.parametrize(("name", "old", "new"), [
    ("densenet121", "norm.1.", "norm1."), ("densenet121", "conv.2.", "conv2."),
    ("vit_b_16", "mlp.linear_1.", "mlp.0."), ("vit_b_16", "mlp.linear_2.", "mlp.3.")])
def test_the_old_key_names_of_official_files_are_understood(name, old, new, tmp_path):
    with torch.device("meta"):
        keys = torchvision.models.get_model(name).state_dict().keys()
    old_keys = {key.replace(new, old) for key in keys}
    torch.save({key: torch.zeros(0) for key in old_keys}, tmp_path / "x.pth")
    assert old_keys != keys and models.read_state(tmp_path / "x.pth").keys() == keys


# --- teachers that are refused --------------------------------------------------------------------

def test_a_timm_teacher_of_other_statistics_is_refused_before_the_download(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("a download"))
    assert "mean (0.5, 0.5, 0.5)" in refusal("timm:vit_base_patch16_224", IMAGENET)


def test_a_bare_weight_file_asks_for_its_network_and_names_those_that_fit(tmp_path):
    torch.save(state_of("cifarresnet18_relu", CIFAR10), tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth", CIFAR10)
    assert f"NAME@{tmp_path / 'x.pth'}" in message
    assert "cifarresnet18, cifarresnet18_relu, cifarresnet18_relu_pool" in message
    torch.save(state_of("resnet34", IMAGENET), tmp_path / "x.pth")
    assert "torchvision" not in (message := refusal(tmp_path / "x.pth", IMAGENET))
    assert "resnet34" in message


def test_a_teacher_of_another_number_of_classes_is_refused_with_both(tmp_path):
    torch.save(state_of("cnn_w4", CIFAR100), tmp_path / "x.pt")
    message = refusal(f"cnn_w4@{tmp_path / 'x.pt'}", CIFAR10)
    assert "has 100 classes" in message and "has 10" in message


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_the_first_differing_key_is_named(tmp_path, change):
    state = state_of("cnn_w4")
    if change == "missing":
        del state["features.0.weight"]
    elif change == "unknown":
        state["features.0.weight2"] = torch.zeros(1)
    else:
        state["features.0.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "x.pt")
    assert "features.0.weight" in refusal(f"cnn_w4@{tmp_path / 'x.pt'}")


def test_weights_of_another_architecture_name_both_keys_and_what_fits(tmp_path):
    torch.save(state_of("resnet8"), tmp_path / "x.pt")
    message = refusal(f"wrn_16_1@{tmp_path / 'x.pt'}")
    assert "block1.layer.0.bn1.weight" in message and "bn1.num" not in message
    assert "layer1.0.conv1.weight" in message and "resnet8" in message


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = state_of("cnn_w4")
    state["fc.bias"][0] = float("nan")
    torch.save(state, tmp_path / "x.pt")
    assert "NaN" in refusal(f"cnn_w4@{tmp_path / 'x.pt'}")


class Bomb:
    """A pickle that would touch a file when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    canary, state = tmp_path / "canary", state_of("cnn_w4")
    torch.save({"fc.weight": Bomb(canary)}, tmp_path / "zip.pth")
    torch.save(Bomb(canary), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": state, "opt": argparse.Namespace(a=Bomb(canary))}, tmp_path / "opt.pth")
    for name in ("zip", "old", "opt"):
        assert "system" in refusal(f"cnn_w4@{tmp_path / name}.pth")
    data = repdistiller_last(state, b"numpy._core")
    for name in (b"numpy\ndtype", b"numpy._core.multiarray\nscalar", b"argparse\nNamespace"):
        (tmp_path / "evil.pth").write_bytes(data.replace(name, b"os\nsystem"))
        assert "system" in refusal(f"cnn_w4@{tmp_path / 'evil.pth'}")
    assert not canary.exists()


@pytest.mark.parametrize("content", [{}, [], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3),
                                     {"model": {}}, "text", None])
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert "no state dict" in refusal(f"cnn_w4@{tmp_path / 'x.pt'}")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    state, file = state_of("cnn_w4"), tmp_path / f"x.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(state, file)
    data = file.read_bytes()
    for length in [0, 1, 8, len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:length])
        assert str(file) in refusal(f"cnn_w4@{file}"), length


def test_folders_and_paths_without_a_model_are_refused(teacher_folder, tmp_path):
    assert str(tmp_path / "none") in refusal(tmp_path / "none")
    assert str(tmp_path / "none") in refusal(f"cnn_w4@{tmp_path / 'none'}")
    assert "no finished run" in refusal(tmp_path)  # empty
    folder = shutil.copytree(teacher_folder, tmp_path / "copy")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert "sha256" in refusal(folder)
