"""Networks by name, and every way a teacher's weights may come, or fail."""

import argparse
import collections
import json
import os
import shutil
import sys
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch._subclasses.fake_tensor import FakeTensorMode

from dm_kd import files, models
from dm_kd.errors import DamagedError, UserError
from dm_kd.tasks import get_task


def images_of(num_classes, channels, resolution) -> types.SimpleNamespace:
    """What a model needs to know of a task, with ImageNet's statistics."""
    return types.SimpleNamespace(
        name=f"{num_classes} classes", num_classes=num_classes, channels=channels,
        resolution=resolution, mean=(0.485, 0.456, 0.406)[:channels],
        std=(0.229, 0.224, 0.225)[:channels])


CIFAR100, CIFAR10 = images_of(100, 3, 32), images_of(10, 3, 32)
IMAGENET, GREY = images_of(1000, 3, 224), images_of(1000, 1, 224)
DIGITS = get_task("digits")


def state_of(name, task=DIGITS) -> dict:
    torch.manual_seed(7)
    return models.build(name, task).state_dict()


def refusal(kind, spec, task=DIGITS) -> str:
    """The message of a refused teacher."""
    with pytest.raises(kind) as caught:
        models.load_frozen(str(spec), task)
    assert len(str(caught.value).splitlines()) <= 6 and len(str(caught.value)) < 1000
    return str(caught.value)


# --- new networks ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["cnn_w4", "wrn_16_1", "resnet8", "torchvision:resnet18"])
def test_logits_are_float32_under_autocast_and_the_features_are_not(name):
    task = DIGITS if ":" not in name else CIFAR10
    model, seen = models.build(name, task).eval(), []
    model.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    x = torch.randn(2, task.channels, task.resolution, task.resolution)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.float32 and seen == [torch.bfloat16]
    assert not torch.equal(logits, logits.bfloat16().float())


def test_the_same_seed_builds_the_same_network_and_another_does_not():
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(models.build("cnn_w4", DIGITS).state_dict()["fc.weight"])
    assert torch.equal(built[0], built[1]) and not torch.equal(built[0], built[2])


@pytest.mark.parametrize(("name", "near"), [
    ("wrn_40_3", "wrn_40_"), ("resnet8x5", "resnet8x4"), ("cnn8", "cnn_w8"),
    ("ResNet18", "torchvision:resnet18, or did you mean"), ("vgg11", "vgg11_bn"),
    ("torchvision:resnet19", "resnet18"), ("torchvision:resnet18:2", "resnet18")])
def test_an_unknown_model_names_the_nearest(name, near):
    with pytest.raises(UserError, match=near):
        models.build(name, CIFAR10)


def test_torchvision_models_refuse_grey_images():
    with pytest.raises(UserError, match="3 channels"):
        models.build("torchvision:resnet18", DIGITS)


@pytest.mark.parametrize("name", ["vit_b_32", "alexnet"])
def test_a_model_that_cannot_take_the_tasks_images_says_so_before_any_training(name):
    with pytest.raises(UserError, match="cannot take images of 32 x 32"):
        models.build(f"torchvision:{name}", CIFAR100)


CLASSIFIERS = [n for n in torchvision.models.list_models(torchvision.models)
               if not n.startswith("regnet")]  # they compute while they are built: no meta device


@pytest.mark.parametrize("name", [  # one of each family
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_16"])
def test_a_torchvision_classifier_gives_one_tensor_of_float32_logits(name):
    with torch.device("meta"):
        model = models.build(f"torchvision:{name}", CIFAR100)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        model.to_empty(device="cpu")
        for mode in (model.train(), model.eval()):
            logits = mode(torch.randn(2, 3, 224, 224))
            assert logits.shape == (2, 100) and logits.dtype == torch.float32


def test_the_last_weight_of_every_torchvision_classifier_has_the_tasks_classes():
    for name in CLASSIFIERS:  # as build() and the comparison with a file suppose
        layout = models._layout(f"torchvision:{name}")
        stem, head = models._stem_and_head(layout)
        assert layout[stem][1] == 3 and layout[head][0] == 10, name


def test_a_regnet_gives_logits():
    model = models.build("torchvision:regnet_y_400mf", CIFAR100).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 100)


# --- timm, an extra -------------------------------------------------------------------------------

def test_a_missing_timm_is_reported_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for spec in ("timm:resnet18", "timm:resnet18@none"):
        message = refusal(UserError, spec, IMAGENET)
        assert "pip install timm" in message and "timm:resnet18" in message


@pytest.mark.parametrize("task", [DIGITS, CIFAR100], ids=["digits", "cifar100"])
def test_a_timm_student_is_random_and_has_the_tasks_channels_and_classes(task):
    pytest.importorskip("timm")
    model = models.build("timm:test_resnet", task)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, task.channels, 32, 32))
    assert logits.shape == (2, task.num_classes) and logits.dtype == torch.float32


def test_a_timm_file_is_a_teacher(tmp_path):
    pytest.importorskip("timm")
    state = state_of("timm:test_resnet", CIFAR100)
    torch.save(state, tmp_path / "x.pth")
    model, card = models.load_frozen(f"timm:test_resnet@{tmp_path / 'x.pth'}", CIFAR100)
    assert same(model, state) and card["name"] == "timm:test_resnet"


@pytest.mark.parametrize(("spec", "task", "expected"), [
    ("timm:resnet19", IMAGENET, "resnet18"), ("timm:resnet18.none", IMAGENET, "resnet18."),
    ("timm:resnet18", CIFAR10, "1000 classes, the data has 10"),
    ("timm:resnet18", GREY, "3 channels, the data has 1"),
    ("timm:vit_base_patch16_224", IMAGENET, "standardised"),
    ("timm:resnet18", IMAGENET, "could not download")])
def test_a_timm_teacher_that_does_not_fit_is_refused_before_the_download(
        spec, task, expected, monkeypatch):
    timm = pytest.importorskip("timm")

    def create_model(name, pretrained):
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", create_model)
    assert expected in refusal(UserError, spec, task)


# --- teachers -------------------------------------------------------------------------------------

def same(model, state) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[k], v) for k, v in state.items())


def test_a_teacher_is_in_eval_mode_and_wants_no_gradient():
    model, card = models.load_frozen("cnn_w4@none", DIGITS)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert card["name"] == "cnn_w4"


def test_a_teacher_without_a_file_is_known_by_its_weights():
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        digests.append(models.load_frozen("cnn_w4@none", DIGITS)[1]["sha256"])
    assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 64


def test_a_run_folder_is_a_teacher(teacher_folder):
    model, card = models.load_frozen(str(teacher_folder), DIGITS)
    assert same(model, safetensors.torch.load_file(teacher_folder / "model.safetensors"))
    assert card["name"] == "cnn_w4" and card["fold"] == 0 and card["task"] == "digits"
    assert card["sha256"] == files.sha256_file(teacher_folder / "model.safetensors")


@pytest.mark.parametrize(("names", "shown"), [
    ([*"012345678", "nine"], "class 9 is 'nine', in the data it is '9'"),
    ([*"0213456789"], "class 1 is '2', in the data it is '1'"),
    ([*"012345678"], "class 9 is 'None'")])
def test_a_teacher_of_classes_of_other_names_is_refused(tmp_path, names, shown):
    card = {"model": "cnn_w4", "fold": 0, "task": "digits", "class_names": names}
    files.write_with_card(tmp_path / "run", "model", state_of("cnn_w4"), card)
    message = refusal(UserError, tmp_path / "run")
    assert shown in message and "cnn_w4@FILE" in message
    weights = tmp_path / "run/model.safetensors"
    assert shown in refusal(UserError, weights)
    models.load_frozen(f"cnn_w4@{weights}", DIGITS)  # the way out that the message names


@pytest.mark.parametrize("names", [None, list("0123456789")])
def test_a_teacher_of_the_same_names_or_of_an_older_card_is_taken(tmp_path, names):
    card = {"model": "cnn_w4", "task": "digits", **({"class_names": names} if names else {})}
    files.write_with_card(tmp_path, "model", state_of("cnn_w4"), card)
    assert models.load_frozen(str(tmp_path), DIGITS)[1]["name"] == "cnn_w4"


def test_a_file_beside_its_card_is_a_teacher(teacher_folder):
    model, card = models.load_frozen(str(teacher_folder / "model.safetensors"), DIGITS)
    assert card["name"] == "cnn_w4" and card["sha256"]


@pytest.mark.parametrize("path", ["resnet8/any.pth", "any/resnet8.pth", "any.pth", "wrn_16_1.pth"])
def test_a_file_is_recognised_by_its_keys_whatever_its_name(tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    state = state_of("resnet8")
    torch.save(state, tmp_path / path)
    model, card = models.load_frozen(str(tmp_path / path), DIGITS)
    assert card["name"] == "resnet8" and same(model, state)
    assert card["sha256"] == files.sha256_file(tmp_path / path)


def test_a_safetensors_file_without_card_is_recognised(tmp_path):
    safetensors.torch.save_file(state_of("cnn_w8"), tmp_path / "x.safetensors")
    _, card = models.load_frozen(str(tmp_path / "x.safetensors"), DIGITS)
    assert card["name"] == "cnn_w8"


def test_a_json_file_beside_a_pth_file_is_no_card(tmp_path):
    torch.save(state_of("cnn_w4"), tmp_path / "x.pth")
    (tmp_path / "x.json").write_text('{"acc": 90}')
    assert models.load_frozen(str(tmp_path / "x.pth"), DIGITS)[1]["name"] == "cnn_w4"


# Where DM-KD, RepDistiller, Fast-Datafree and CMI keep teachers, and what is in those places.
PLACES = [
    ("save/models/ResNet18/resnet18.pth", "torchvision:resnet18"),
    ("save/models/ResNet34/resnet34.pth", "torchvision:resnet34"),
    ("save/models/ResNet50/resnet50.pth", "torchvision:resnet50"),
    ("save/models/ShuffleV2/shufflenetv2_x1.pth", "torchvision:shufflenet_v2_x1_0"),
    ("save/models/ResNet18/ckpt.pth", "cifar_resnet18"), ("ResNet18/ckpt.pth", "cifarresnet18"),
    ("save/models/ResNet50_vanilla/ckpt_epoch_240.pth", "cifar_resnet50"),
    ("save/models/ShuffleV2_vanilla/ckpt_epoch_240.pth", "shufflenet"),
    ("save/models/wrn_40_2_vanilla/ckpt_epoch_240.pth", "wrn_40_2"),
    ("save/models/resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet32x4"),
    ("save/models/vgg13_vanilla/ckpt_epoch_240.pth", "vgg13_bn"),
    ("save/S:wrn_16_1_T:wrn_40_2_cifar100_kd_r:1_a:0_b:0_1/wrn_16_1_best.pth", "wrn_16_1"),
    ("save/student_model/first/imagenet/torchvision_latest.pth", "torchvision:resnet18"),
    ("checkpoints/pretrained/cifar100_resnet34.pth", "cifar_resnet34"),
    ("checkpoints/pretrained/cifar10_resnet18.pth", "cifar_resnet18"),
    ("checkpoints/pretrained/cifar100_wrn40_2.pth", "wrn_40_2"),
    ("checkpoints/pretrained/cifar100_vgg11.pth", "vgg11_bn"),
    ("vgg11_bn-6002323d.pth", "torchvision:vgg11_bn"), ("x.pth", "cifarresnet34")]


@pytest.mark.parametrize(("path", "name"), PLACES, ids=[path for path, _ in PLACES])
def test_the_public_places_of_teachers_are_understood(path, name):
    task = IMAGENET if ":" in name else CIFAR100
    with torch.device("meta"):
        state = models.build(name, task).state_dict()
    assert models.recognise(Path(path), state) == name


def test_no_two_networks_have_the_same_keys_and_shapes():
    for name in (names := [*models.MODELS, *(f"torchvision:{n}" for n in CLASSIFIERS)]):
        layout = models._layout(name)
        assert [other for other in names if models._fits(layout, models._layout(other))] == [name]


def test_recognising_draws_no_random_numbers():
    before = torch.get_rng_state()
    for name in ("cnn_w64", "vgg8_bn", "torchvision:shufflenet_v2_x0_5"):
        models._layout.__wrapped__(name)  # not from the cache
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("path", "contents"), [
    ("wrn_16_1_vanilla/x.pth", lambda s: {"epoch": 240, "accuracy": torch.tensor(65.3), "model": s,
                                          "optimizer": {"state": {}, "param_groups": [{}]}}),
    ("pretrained/cifar100_wrn16_1.pth", lambda s: {
        "epoch": 200, "arch": "wrn16_1", "state_dict": s, "best_acc1": 65.3,
        "scheduler": {"milestones": collections.Counter([120, 150]), "gamma": 0.1}}),
    ("imagenet/wrn_16_1_latest.pth", lambda s: {
        "epoch": 3, "model": collections.OrderedDict(s), "optimizer": {}, "best_acc": 12.5}),
    ("bare/x.pth", lambda s: s)], ids=["RepDistiller", "Fast-Datafree", "DM-KD", "bare"])
def test_public_checkpoint_files_are_teachers(tmp_path, path, contents):
    (tmp_path / path).parent.mkdir()
    state = state_of("wrn_16_1", CIFAR100)
    torch.save(contents(state), tmp_path / path)
    model, card = models.load_frozen(str(tmp_path / path), CIFAR100)
    assert card["name"] == "wrn_16_1" and same(model, state)


def repdistiller_last(state, numpy_core: bytes) -> bytes:
    """RepDistiller's NAME_last.pth: argparse's result and NumPy's scalars beside the weights, as
    written with NumPy 1 (numpy.core) or 2 (numpy._core)."""
    import io

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
    model, card = models.load_frozen(str(tmp_path / "resnet8_last.pth"), DIGITS)
    assert card["name"] == "resnet8" and same(model, state)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # for that file alone


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_name_at_file_is_a_teacher(tmp_path, suffix):
    state, file = state_of("cnn_w4"), tmp_path / f"x.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(state, file)
    model, card = models.load_frozen(f"cnn_w4@{file}", DIGITS)
    assert same(model, state) and card["sha256"] == files.sha256_file(file)


@pytest.mark.parametrize("wrap", [
    lambda s: {"state_dict": s, "epoch": 3, "acc1": 90.0}, lambda s: {"model": s, "best": 1},
    lambda s: {"state": s}, lambda s: {"ema": s},
    lambda s: {"module." + k: v for k, v in s.items()},
    lambda s: {"_orig_mod." + k: v for k, v in s.items()},
    lambda s: {"student." + k: v for k, v in s.items()},
    lambda s: {"student": s, "epoch": 3},
    lambda s: {where + k: v + plus for where, plus in (("teacher.", 1), ("student.", 0))
               for k, v in s.items()},
    lambda s: {"state_dict": {where + k: v + plus for where, plus in (
        ("module.student.", 0), ("module.teacher.", 1)) for k, v in s.items()}},
    lambda s: {"model": {"module._orig_mod." + k: v for k, v in s.items()}},
    lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    lambda s: {k: v.half().float() if v.is_floating_point() else v for k, v in s.items()}],
    ids=["state_dict", "model", "state", "ema", "module", "orig_mod", "student.",
         "student", "student and teacher", "the same inside", "both",
         "no counters", "as half"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrap):
    state = state_of("cnn_w4")
    torch.save(wrap(state), tmp_path / "x.pt")
    model, _ = models.load_frozen(f"cnn_w4@{tmp_path / 'x.pt'}", DIGITS)
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(value, state[key], atol=1e-3), key


def test_the_order_of_module_and_orig_mod_does_not_matter(tmp_path):
    state = {"_orig_mod.module." + k: v for k, v in state_of("cnn_w4").items()}
    torch.save(state, tmp_path / "x.pt")
    models.load_frozen(f"cnn_w4@{tmp_path / 'x.pt'}", DIGITS)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in state_of("cnn_w4").items()}
    torch.save(state, tmp_path / "x.pt")
    model, _ = models.load_frozen(f"cnn_w4@{tmp_path / 'x.pt'}", DIGITS)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- teachers that are refused --------------------------------------------------------------------

def test_a_teacher_of_other_classes_is_refused_with_both_counts(tmp_path):
    torch.save(state_of("cnn_w4", CIFAR100), tmp_path / "x.pt")
    for spec in (f"cnn_w4@{tmp_path / 'x.pt'}", tmp_path / "x.pt"):
        message = refusal(UserError, spec, CIFAR10)
        assert "100 classes, the data has 10" in message and "fc.weight" in message


def test_a_teacher_of_other_channels_is_refused_with_both_counts(tmp_path):
    torch.save(state_of("cnn_w4", CIFAR10), tmp_path / "x.pt")
    for spec in (f"cnn_w4@{tmp_path / 'x.pt'}", tmp_path / "x.pt"):
        message = refusal(UserError, spec, DIGITS)
        assert "3 channels, the data has 1" in message and "features.0.weight" in message


@pytest.mark.parametrize("name", ["cnn_w8", "resnet8", "wrn_16_1"])
def test_weights_of_another_architecture_are_refused(tmp_path, name):
    torch.save(state_of("cnn_w4"), tmp_path / "x.pt")
    message = refusal(UserError, f"{name}@{tmp_path / 'x.pt'}")
    assert f"not those of {name}" in message


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_differing_key_is_named(tmp_path, change):
    state = state_of("cnn_w4")
    if change == "missing":
        del state["features.0.weight"]
    elif change == "extra":
        state["features.0.weight2"] = torch.zeros(1)
    else:
        state["features.0.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "x.pt")
    assert "features.0.weight" in refusal(UserError, f"cnn_w4@{tmp_path / 'x.pt'}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_with_nan_or_infinity_are_damage(tmp_path, value):
    state = state_of("cnn_w4")
    state["fc.bias"][0] = value
    torch.save(state, tmp_path / "x.pt")
    assert "NaN or infinite" in refusal(DamagedError, f"cnn_w4@{tmp_path / 'x.pt'}")


class Bomb:
    """A pickle that would touch a file when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", ["zip", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, protocol):
    canary = tmp_path / "canary"
    torch.save({"fc.weight": Bomb(canary)}, tmp_path / "x.pt",
               _use_new_zipfile_serialization=protocol == "zip")
    message = refusal(UserError, f"cnn_w4@{tmp_path / 'x.pt'}")
    assert "refused" in message and "system" in message and not canary.exists()


@pytest.mark.parametrize("content", [{}, [], {"a": 1}, {1: torch.zeros(1)}, torch.tensor(1.0),
                                     torch.zeros(3), {"model": {}}, "text", None],
                         ids=lambda v: str(v)[:20].replace("\n", ""))
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert "no state dict" in refusal(UserError, f"cnn_w4@{tmp_path / 'x.pt'}")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_damage_at_every_length(tmp_path, suffix):
    state, file = state_of("cnn_w4"), tmp_path / f"x.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(state, file)
    data = file.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(data), len(data) // 15), len(data) - 1]:
        file.write_bytes(data[:length])
        assert str(file) in refusal(DamagedError, f"cnn_w4@{file}"), length


@pytest.mark.parametrize("header", [
    b"", b"{}", b"[]", b"{" * 1000, b'{"a": 1}', b'{"a": {"dtype": "F32"}}',
    b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
    b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}',
    b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\xff" * 20])
def test_a_hostile_safetensors_header_is_a_users_error(tmp_path, header):
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    refusal(UserError, f"cnn_w4@{file}")


@pytest.mark.parametrize("name", ["dit", "model"])
def test_a_run_of_a_generator_or_without_its_card_is_no_unfinished_one(teacher_folder, tmp_path,
                                                                       name):
    weights = teacher_folder / "model.safetensors"
    shutil.copy(weights, tmp_path / f"{name}.safetensors")
    shutil.copy(teacher_folder / "config.yaml", tmp_path)
    with pytest.raises(UserError, match="no classifier, or the card") as error:
        models.load_frozen(str(tmp_path), DIGITS)
    assert f"{name}.safetensors" in str(error.value)


def test_a_digest_that_differs_from_the_card_is_damage(teacher_folder, tmp_path):
    folder = shutil.copytree(teacher_folder, tmp_path / "copy")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert "sha256 differs" in refusal(DamagedError, folder)


@pytest.mark.parametrize("card", ["{", "[]", "{}", '{"model": 3}'])
def test_a_damaged_card_is_a_users_error(teacher_folder, tmp_path, card):
    folder = shutil.copytree(teacher_folder, tmp_path / "copy")
    (folder / "model.json").write_text(card)
    refusal(DamagedError, folder)


def test_a_card_without_model_is_damage(teacher_folder, tmp_path):
    folder = shutil.copytree(teacher_folder, tmp_path / "copy")
    card = json.loads((folder / "model.json").read_text())
    del card["model"]
    (folder / "model.json").write_text(json.dumps(card))
    assert "names no model" in refusal(DamagedError, folder)


def test_an_unfinished_run_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    assert "not finished" in refusal(UserError, tmp_path)


def test_an_empty_folder_holds_no_model(tmp_path):
    assert "no trained model" in refusal(UserError, tmp_path)


def test_a_file_that_is_not_there_is_refused_with_its_path(tmp_path):
    for spec in (tmp_path / "none", f"cnn_w4@{tmp_path / 'none'}"):
        assert str(tmp_path / "none") in refusal(UserError, spec)


@pytest.mark.parametrize(("drop", "near"), [("layer2.0.conv1.weight", "resnet8"), ("", "cnn_w")])
def test_a_file_of_unknown_architecture_asks_for_name_at_file(tmp_path, drop, near):
    state = state_of("resnet8") if drop else {"a": torch.zeros(1)}
    state.pop(drop, None)
    torch.save(state, tmp_path / "x.pt")
    message = refusal(UserError, tmp_path / "x.pt")
    assert f"NAME@{tmp_path / 'x.pt'}" in message and near in message


class Lookalike(argparse.Namespace):
    """Not the Namespace that is let in."""


@pytest.mark.parametrize("value", [Lookalike(a=1), np.ones(3), Path("x"), types.SimpleNamespace()],
                         ids=["subclass", "array", "path", "other"])
def test_no_other_object_is_let_in(tmp_path, value):
    torch.save({"model": state_of("cnn_w4"), "opt": argparse.Namespace(value=value)},
               tmp_path / "x.pt")
    assert "refused" in refusal(UserError, f"cnn_w4@{tmp_path / 'x.pt'}")


def test_a_bomb_in_a_namespace_or_a_numpy_scalar_runs_nothing(tmp_path):
    canary, state = tmp_path / "canary", state_of("cnn_w4")
    torch.save({"model": state, "opt": argparse.Namespace(a=Bomb(canary))}, tmp_path / "opt.pth")
    data = repdistiller_last(state, b"numpy._core")
    for name in (b"numpy\ndtype", b"numpy._core.multiarray\nscalar", b"argparse\nNamespace"):
        assert name in data
        (tmp_path / "evil.pth").write_bytes(data.replace(name, b"os\nsystem"))
        assert "system" in refusal(UserError, f"cnn_w4@{tmp_path / 'evil.pth'}")
    assert "system" in refusal(UserError, tmp_path / "opt.pth") and not canary.exists()


# --- torchvision's teachers -----------------------------------------------------------------------

@pytest.fixture
def official(monkeypatch):
    """f(state or exception): what torchvision's next download gives; without, none may happen."""

    def give(result):
        def load(*args, **kwargs):
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)

    give(AssertionError("a download"))
    return give


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "torchvision:resnet18@IMAGENET1K_V1"])
@pytest.mark.parametrize(("task", "expected"), [
    (GREY, "3 channels"), (CIFAR100, "1000 classes, the data has 100")], ids=["grey", "classes"])
def test_a_torchvision_teacher_that_does_not_fit_is_refused_before_the_download(
        spec, task, expected, official):
    assert expected in refusal(UserError, spec, task)


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"),
                                   RuntimeError("invalid hash value")], ids=["offline", "hash"])
def test_a_failed_download_is_a_users_error_that_asks_for_a_file(error, official):
    official(error)
    message = refusal(UserError, "torchvision:resnet18", IMAGENET)
    assert "could not download" in message and "torchvision:resnet18@FILE" in message


@pytest.mark.parametrize("name", ["googlenet", "mnasnet0_5"])
def test_official_weights_give_torchvisions_own_logits(name, official, tmp_path):
    """GoogLeNet's file has heads for training and asks for its own standardisation, MNASNet's asks
    for a version; both from the official place and from a file."""
    options = {"transform_input": True, "init_weights": False} if name == "googlenet" else {}
    theirs = torchvision.models.get_model(name, weights=None, **options).eval()
    state = dict(theirs.state_dict())
    official(state)
    torch.save(state, tmp_path / "x.pth")
    x = torch.randn(2, 3, 64, 64)
    for spec in (f"torchvision:{name}", f"torchvision:{name}@{tmp_path / 'x.pth'}"):
        model, card = models.load_frozen(spec, IMAGENET)
        with torch.no_grad():
            assert torch.equal(model(x), theirs(x)) and card["name"] == f"torchvision:{name}"


@pytest.mark.parametrize(("name", "old", "new"), [
    ("densenet121", "norm.1.", "norm1."), ("densenet121", "conv.2.", "conv2."),
    ("vit_b_16", "mlp.linear_1.", "mlp.0."), ("vit_b_16", "mlp.linear_2.", "mlp.3.")])
def test_the_old_key_names_of_official_files_are_understood(name, old, new):
    layout = models._layout(f"torchvision:{name}")
    state = {key.replace(new, old): torch.empty(0) for key in layout}
    assert state.keys() != layout.keys() and models.tidy(state).keys() == layout.keys()


def test_a_file_that_is_not_named_as_weights_is_not_guessed_at(tmp_path):
    torch.save(state_of("cnn_w4"), tmp_path / "list.txt")
    message = refusal(UserError, tmp_path / "list.txt")
    assert ".pth" in message and f"NAME@{tmp_path / 'list.txt'}" in message
    models.load_frozen(f"cnn_w4@{tmp_path / 'list.txt'}", DIGITS)


@pytest.mark.parametrize(("spec", "near"), [
    ("resnet18@IMAGENET1K_V9", "IMAGENET1K_V1"), ("vgg16@IMAGENET1K_FEATURES", "IMAGENET1K_V1"),
    ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1")])  # the second has no classifier, the third no V1
def test_unknown_torchvision_weights_name_the_nearest(spec, near):
    message = refusal(UserError, f"torchvision:{spec}", IMAGENET)
    assert "no weights" in message and near in message


@pytest.mark.parametrize("spec", ["torchvision:resnet19", "torchvision:resnet19@none"])
def test_an_unknown_torchvision_teacher_is_a_users_error(spec):
    assert "resnet19" in refusal(UserError, spec, CIFAR10)
