"""Networks by name against published sizes, and every way a teacher's weights may come, or fail."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch

from dm_kd import files, models
from dm_kd.errors import DamagedError, UserError
from dm_kd.tasks import RealData, Task, get_task

CIFAR100 = Task("cifar100_shape", tuple(map(str, range(100))), 32, 3, (0.5,) * 3, (0.25,) * 3, 4,
                True, 1, RealData)
CIFAR10 = Task("cifar10_shape", tuple(map(str, range(10))), 32, 3, (0.5,) * 3, (0.25,) * 3, 4,
               True, 1, RealData)
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


# --- architectures --------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "count"), [  # RepDistiller's (arXiv 1910.10699), 100 classes
    ("wrn_16_2", 703_284), ("wrn_40_1", 569_780), ("wrn_40_2", 2_255_156),
    ("resnet8x4", 1_233_540), ("resnet32x4", 7_433_860)])
def test_a_network_has_as_many_parameters_as_the_public_one(name, count):
    assert models.parameter_count(models.build(name, CIFAR100)) == count


@pytest.mark.parametrize(("name", "millions"), [  # He et al. 2016, table 6, 10 classes
    ("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85),
    ("resnet110", 1.7)])
def test_a_cifar_resnet_has_the_papers_size(name, millions):
    count = models.parameter_count(models.build(name, CIFAR10))
    assert abs(count / 1e6 - millions) < 0.035


@pytest.mark.parametrize("name", [n for n in models.MODELS if n not in ("resnet110", "wrn_40_2")])
def test_every_model_maps_the_tasks_images_to_its_logits(name):
    model = models.build(name, DIGITS).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


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
    ("torchvision:resnet19", "resnet18")])
def test_an_unknown_model_names_the_nearest(name, near):
    with pytest.raises(UserError, match=near):
        models.build(name, CIFAR10)


def test_torchvision_models_refuse_grey_images():
    with pytest.raises(UserError, match="3 channels"):
        models.build("torchvision:resnet18", DIGITS)


# --- teachers -------------------------------------------------------------------------------------

def same(model, state) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[k], v) for k, v in state.items())


def test_a_teacher_is_in_eval_mode_and_wants_no_gradient():
    model, card = models.load_frozen("cnn_w4@none", DIGITS)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert card["name"] == "cnn_w4" and card["sha256"] is None


def test_a_run_folder_is_a_teacher(teacher_folder):
    model, card = models.load_frozen(str(teacher_folder), DIGITS)
    assert same(model, safetensors.torch.load_file(teacher_folder / "model.safetensors"))
    assert card["name"] == "cnn_w4" and card["fold"] == 0 and card["task"] == "digits"
    assert card["sha256"] == files.sha256_file(teacher_folder / "model.safetensors")


def test_a_file_beside_its_card_is_a_teacher(teacher_folder):
    model, card = models.load_frozen(str(teacher_folder / "model.safetensors"), DIGITS)
    assert card["name"] == "cnn_w4" and card["sha256"]


def test_a_file_in_a_folder_of_the_models_name_is_a_teacher(tmp_path):
    (tmp_path / "resnet8").mkdir()
    state = state_of("resnet8")
    torch.save(state, tmp_path / "resnet8/any.pth")
    model, card = models.load_frozen(str(tmp_path / "resnet8/any.pth"), DIGITS)
    assert card["name"] == "resnet8" and same(model, state)


def test_a_file_of_the_models_name_is_a_teacher(tmp_path):
    safetensors.torch.save_file(state_of("cnn_w8"), tmp_path / "cnn_w8.safetensors")
    _, card = models.load_frozen(str(tmp_path / "cnn_w8.safetensors"), DIGITS)
    assert card["name"] == "cnn_w8"


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
    lambda s: {"model": {"module._orig_mod." + k: v for k, v in s.items()}},
    lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    lambda s: {k: v.half().float() if v.is_floating_point() else v for k, v in s.items()}],
    ids=["state_dict", "model", "state", "ema", "module", "orig_mod", "student", "both",
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
    few = Task("grey10", tuple("0123456789"), 32, 3, (0,) * 3, (1,) * 3, 0, False, 1, RealData)
    message = refusal(UserError, f"cnn_w4@{tmp_path / 'x.pt'}", few)
    assert "100 classes, the data has 10" in message and "fc.weight" in message


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


def test_a_file_of_unknown_architecture_asks_for_name_at_file(tmp_path):
    torch.save(state_of("cnn_w4"), tmp_path / "x.pt")
    assert f"NAME@{tmp_path / 'x.pt'}" in refusal(UserError, tmp_path / "x.pt")


def test_unknown_torchvision_weights_name_the_nearest():
    message = refusal(UserError, "torchvision:resnet18@IMAGENET1K_V9", CIFAR10)
    assert "IMAGENET1K_V1" in message


@pytest.mark.parametrize("spec", ["torchvision:resnet19", "torchvision:resnet19@none"])
def test_an_unknown_torchvision_teacher_is_a_users_error(spec):
    assert "resnet19" in refusal(UserError, spec, CIFAR10)
