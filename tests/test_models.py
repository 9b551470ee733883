"""Models by name, and every form in which a teacher's weights come, or are refused."""

import argparse

import pytest
import safetensors.torch
import torch
import torchvision
from processes import Bomb

from dm_kd import models, run
from dm_kd.run import UserError
from dm_kd.tasks import Task, get_task


def images_of(num_classes, channels, resolution) -> Task:
    """A task with ImageNet's statistics."""
    return Task(f"{num_classes} classes", tuple(f"c{i}" for i in range(num_classes)),
                resolution, channels, (0.485, 0.456, 0.406)[:channels],
                (0.229, 0.224, 0.225)[:channels], large=resolution > 64)


CIFAR100, CIFAR10 = images_of(100, 3, 32), images_of(10, 3, 32)
IMAGENET = images_of(1000, 3, 224)
DIGITS = get_task("digits")


def state_of(name, task=DIGITS) -> dict:
    torch.manual_seed(7)
    return models.build(name, task).state_dict()


def same(model, state) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[k], v) for k, v in state.items())


def saved(content, folder, name="x.pt") -> str:
    """cnn_w4@FILE, with this content."""
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(
        content, folder / name)
    return f"cnn_w4@{folder / name}"


def refusal(spec, task=DIGITS) -> str:
    """The message of a teacher that is refused."""
    with pytest.raises(UserError) as caught:
        models.load_frozen(str(spec), task)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


# --- new networks ---------------------------------------------------------------------------------

def test_logits_are_float32_under_autocast():
    model = models.build("wrn_16_1", CIFAR10).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 32, 32))
    assert logits.dtype == torch.float32 and logits.shape == (2, 10)
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(("name", "task", "near"), [
    ("wrn_40_3", CIFAR10, "wrn_40_"), ("torchvision:resnet19", CIFAR10, "resnet18"),
    ("resnet19", IMAGENET, "resnet1"), ("timm:resnet19", CIFAR10, "resnet18"),
    ("torchvision:squeezenet1_1", IMAGENET, "linear")])
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


@pytest.mark.parametrize("task", [DIGITS, CIFAR100], ids=["digits", "cifar100"])
def test_a_timm_network_is_a_student_and_its_file_a_teacher(task, tmp_path):
    pytest.importorskip("timm")
    state = state_of("timm:test_resnet", task)
    torch.save(state, tmp_path / "x.pth")
    model, card = models.load_frozen(f"timm:test_resnet@{tmp_path / 'x.pth'}", task)
    assert same(model, state) and card["name"] == "timm:test_resnet"
    assert model(torch.randn(2, task.channels, 32, 32)).shape == (2, task.num_classes)


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
                    "sha256": run.sha256_file(weights), "val": "val", "seed": 0,
                    "input": card["input"], "assumed": card["assumed"]}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_name_at_file_is_a_teacher_in_float32(tmp_path, suffix):
    state = {k: v.half() for k, v in state_of("cnn_w4").items() if v.is_floating_point()}
    (tmp_path / "x.json").write_text('{"acc": 90}')  # no card of ours
    model, card = models.load_frozen(saved(state, tmp_path, f"x.{suffix}"), DIGITS)
    assert same(model, state) and card["sha256"] == run.sha256_file(tmp_path / f"x.{suffix}")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_official_weights_give_torchvisions_own_logits(monkeypatch, tmp_path):
    theirs = torchvision.models.get_model("mobilenet_v2", weights=None).eval()
    state = dict(theirs.state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: state)
    torch.save(state, tmp_path / "x.pth")
    x = torch.randn(2, 3, 64, 64)
    for spec in ("torchvision:mobilenet_v2", f"mobilenet_v2@{tmp_path / 'x.pth'}"):
        model, card = models.load_frozen(spec, IMAGENET)
        with torch.no_grad():
            assert torch.equal(model(x), theirs(x)) and card["name"] == "torchvision:mobilenet_v2"


# --- teachers that are refused --------------------------------------------------------------------

@pytest.mark.parametrize(("change", "shown"), [
    ({"features.0.weight": None}, "no key features.0.weight"),
    ({"features.0.weight2": torch.zeros(1)}, "unknown key features.0.weight2"),
    ({"features.0.weight": torch.zeros(2, 2)}, "features.0.weight is [2, 2]"),
    ({"fc.weight": torch.zeros(100, 8)}, "fc.weight is [100, 8], not [10, 8]"),
    ({"fc.bias": torch.full((10,), torch.nan)}, "NaN")])
def test_weights_that_do_not_fit_are_refused_with_the_first_key(tmp_path, change, shown):
    state = {k: v for k, v in (state_of("cnn_w4") | change).items() if v is not None}
    assert shown in refusal(saved(state, tmp_path))


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    bomb = Bomb(tmp_path / "canary")
    torch.save(bomb, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "system" in refusal(f"cnn_w4@{tmp_path / 'old.pth'}")
    for content in ({"fc.weight": bomb}, {"model": state_of("cnn_w4"),
                                          "opt": argparse.Namespace(a=bomb)}):
        assert "system" in refusal(saved(content, tmp_path))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [{}, [], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3),
                                     {"model": {}}, "text", None])
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    assert "no state dict" in refusal(saved(content, tmp_path))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    spec, file = saved(state_of("cnn_w4"), tmp_path, f"x.{suffix}"), tmp_path / f"x.{suffix}"
    data = file.read_bytes()
    for length in [0, 1, 8, len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:length])
        message = refusal(spec)
        assert str(file) in message and "damaged" in message, length
