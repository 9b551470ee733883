"""What people bring: networks and weight files after public bug reports. Each is evaluated rightly,
or refused by name; none gives a wrong number."""

import argparse
import collections
import contextlib
import json
import types

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from dm_kd import augment, checkpoints, evaluate, models, preprocessing, run
from dm_kd.run import UserError
from dm_kd.tasks import IMAGENET_MEAN, IMAGENET_STD, get_task

GREYS = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the classes; networks below tell them by their grey
NAMES = [f"grey{i}" for i in range(len(GREYS))]
PROGRAM = '''
import torch
from torch import nn

class Probe(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))

def build(num_classes):
    return Probe(num_classes)

def wrong(num_classes):
    return nn.Identity()
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """val/grey0 ... grey4 with four pictures each, and the user's own network in model.py."""
    folder = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    for name, grey in zip(NAMES, GREYS, strict=True):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "val" / name).mkdir(parents=True)
        for i in range(6):
            pixels = 255 * (grey + rng.uniform(-0.02, 0.02, (40, 60, 3)))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "val" / name / f"{i}.png")
    (folder / "model.py").write_text(PROGRAM)
    return folder


def probe(mean=IMAGENET_MEAN, std=IMAGENET_STD, order=range(5)) -> dict:
    """A state dict of Probe for images standardised by mean and std; its outputs are the classes in
    this order."""
    centres = (torch.tensor(GREYS)[list(order), None] - torch.tensor(mean)) / torch.tensor(std)
    scale = torch.tensor(std).square()  # distances are those of the pixels
    return {"fc.weight": 50 * centres * scale, "fc.bias": -25 * (centres.square() * scale).sum(1)}


@pytest.fixture
def accuracy(place, tmp_path, capsys):
    """f(content of a checkpoint, flags) -> acc1, standard error; `refused` its message."""
    def of(content, *flags, name="w.pth"):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif name.endswith("safetensors"):
            safetensors.torch.save_file(content, tmp_path / name)
        elif content is not None:
            torch.save(content, tmp_path / name)
        code = evaluate.main([
            "--task", "folder", "--data", str(place), "--cache", str(place / "cache"), "--device",
            "cpu", "--threads", "1", "--model", f"{place}/model.py:build@{tmp_path / name}",
            *flags])
        out, err = capsys.readouterr()
        return (json.loads(out)["acc1"] if code == 0 else None), err
    return of


# --- one's own network ----------------------------------------------------------------------------

def test_ones_own_network_is_a_teacher_and_its_weights_run_nothing(accuracy, place):
    acc1, err = accuracy(probe())
    assert acc1 == 100 and "mean 0.485 0.456 0.406" in err and "256 to 224" in err
    assert "class order not in the file" in err


def test_ones_own_network_is_a_student(place, tmp_path):
    task = get_task("folder", place)
    name = f"{place}/model.py:build"
    model = models.build(name, task)
    assert model.training and model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    run.write_with_card(tmp_path, "student", model.state_dict(), models.card(name, task))
    with pytest.raises(UserError, match="which you must name"):  # a card may come from anyone
        models.load_frozen(str(tmp_path), task)
    models.load_frozen(f"{name}@{tmp_path}/student.safetensors", task)


def test_a_program_that_is_no_network_is_refused(place):
    task = get_task("folder", place)
    with pytest.raises(UserError, match=r"returns \[2, 3, 224, 224\]"):
        models.build(f"{place}/model.py:wrong", task)
    with pytest.raises(OSError, match="other.py"):
        models.build(f"{place}/other.py:build", task)


# --- preprocessing --------------------------------------------------------------------------------

HALF = (0.5, 0.5, 0.5)
OTHER = (0.1, 0.1, 0.1)


@pytest.mark.parametrize(("mean", "std", "beside", "flags"), [
    (HALF, OTHER, {"mean": HALF, "std": OTHER}, ()),
    (HALF, OTHER, {"args": argparse.Namespace(mean=[*HALF], std=[*OTHER], img_size=None)}, ()),
    (HALF, OTHER, {"mean": torch.tensor(HALF), "std": torch.tensor(OTHER)}, ()),
    (HALF, OTHER, {"mean": [127.5] * 3, "std": [25.5] * 3}, ()),
    (HALF, OTHER, {"mean": 0.5, "std": 0.1}, ()),
    (HALF, OTHER, {}, ("--teacher-mean", "0.5,0.5,0.5", "--teacher-std", "0.1,0.1,0.1")),
    (HALF, OTHER, {"mean": (0, 0, 0), "std": (1, 1, 1)},
     ("--teacher-mean", "127.5", "--teacher-std", "25.5"))])
def test_a_networks_own_statistics_are_used_and_said(accuracy, mean, std, beside, flags):
    assert accuracy(probe(mean, std))[0] < 50
    acc1, err = accuracy({"state_dict": probe(mean, std), **beside}, *flags)
    assert acc1 == 100 and "mean 0.5 0.5 0.5, std 0.1 0.1 0.1" in err
    assert ("the flags" if flags else "the file") in err


@pytest.mark.parametrize(("flags", "beside", "said"), [
    (("--teacher-size", "64"), {}, "bilinear 73 to 64"),
    (("--teacher-size", "64", "--teacher-resize", "70,bicubic"), {}, "bicubic 70 to 64"),
    (("--teacher-resize", "0"), {}, "bilinear 224 to 224 pixels, squeezed"),
    ((), {"img_size": 96}, "bilinear 110 to 96"), ((), {"input_size": (3, 48, 48)}, "55 to 48")])
def test_a_networks_own_size_and_resizing_are_used_and_said(accuracy, flags, beside, said):
    acc1, err = accuracy({"state_dict": probe(), **beside}, *flags)
    assert acc1 == 100 and said in err


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_resized_as_torchvision_does(interpolation, squeeze):
    image = torch.randint(0, 256, (1, 3, 90, 120), dtype=torch.uint8)
    resize = (40 if squeeze else 47, interpolation, squeeze)
    theirs = v2.Compose([
        v2.Resize((40, 40) if squeeze else 47, v2.InterpolationMode(interpolation)),
        v2.CenterCrop(40)])(image)
    assert torch.equal(augment.centre_crops(image, 40, resize), theirs)


def test_timms_and_torchvisions_records_are_read():
    timm = pytest.importorskip("timm")
    own = preprocessing.of_timm(timm.get_pretrained_cfg("tf_efficientnet_lite2").to_dict())
    assert own == {"mean": HALF, "std": HALF, "resolution": 260, "resize": (292, "bicubic", False)}
    own = preprocessing.of_torchvision(
        torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V2)
    assert (own["resolution"], own["resize"]) == (240, (255, "bilinear", False))


def test_a_timm_teacher_has_its_own_statistics_in_front(tmp_path):
    timm = pytest.importorskip("timm")
    task = get_task("imagenet")
    theirs = timm.create_model("test_vit", num_classes=1000).eval()  # fixed at 160 pixels, 0.5
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model, card = models.load_frozen(f"timm:test_vit@{tmp_path / 'w.pth'}", task)
    images = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (task.mean, task.std))
    with torch.no_grad():
        assert torch.allclose(model((images - mean) / std), theirs((images - 0.5) / 0.5), atol=1e-4)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)  # the student's crops
    assert card["input"]["resolution"] == 160 and "timm's" in card["assumed"]


def test_a_folder_of_the_hub_says_all(tmp_path, place):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", num_classes=5)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    record = {"input_size": [3, 100, 100], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1],
              "interpolation": "bicubic", "crop_pct": 1.0, "label_names": NAMES[::-1]}
    (tmp_path / "config.json").write_text(json.dumps(
        {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": record}))
    spec = f"timm:test_resnet@{tmp_path / 'model.safetensors'}"
    model, card = models.load_frozen(spec, get_task("folder", place))
    assert card["input"]["mean"] == (0.1, 0.2, 0.3)
    assert card["input"]["resize"] == (100, "bicubic", False)
    assert model.rows.tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("source", ["bare", "key", "official"])
def test_inceptions_built_in_transform_is_as_the_weights_say(place, tmp_path, monkeypatch, source):
    on, file = source != "bare", tmp_path / "w.pth"
    theirs = torchvision.models.inception_v3(
        weights=None, num_classes=5, init_weights=False, transform_input=on).eval()
    state = theirs.state_dict()
    torch.save({"state_dict": state, "transform_input": True} if source == "key" else state, file)
    if source == "official":  # a file of torchvision's is known by its digest
        member = types.SimpleNamespace(
            url=f"x-{run.sha256_file(file)[:8]}.pth", name="V9",
            transforms=torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.transforms)
        monkeypatch.setattr(models, "_torchvision_weights", lambda name: [member])
    model, card = models.load_frozen(f"inception_v3@{file}", get_task("folder", place))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(model(x), theirs(x))
    assert (card["input"]["resolution"] == 299) == (source == "official")


# --- class order and which weights ----------------------------------------------------------------

ORDER = [3, 0, 4, 1, 2]
SHUFFLED = [NAMES[i] for i in ORDER]


@pytest.mark.parametrize("beside", [
    {"class_names": SHUFFLED}, {"classes": tuple(SHUFFLED)},
    {"class_to_idx": {name: i for i, name in enumerate(SHUFFLED)}},
    {"idx_to_class": dict(enumerate(SHUFFLED))}, {"id2label": {str(i): n for i, n in
                                                                enumerate(SHUFFLED)}},
    {"hyper_parameters": {"classes": SHUFFLED}}, {"classes": [n.upper() for n in SHUFFLED]},
    {"classes": [n + ", or so" for n in SHUFFLED]}])
def test_a_class_order_in_the_file_is_mapped_and_said(accuracy, beside):
    content = {"state_dict": probe(order=ORDER)}
    acc1, err = accuracy(content)
    assert acc1 == 0 and "another class order" in err
    acc1, err = accuracy(content | beside)
    assert acc1 == 100 and "mapped to the task's" in err


def test_a_network_of_more_classes_is_used_for_those_of_the_task(accuracy):
    wide = {key: torch.cat([value - 1e4 * (value.ndim == 1), value])
            for key, value in probe(order=ORDER).items()}
    names = [f"other{i}" for i in range(5)] + SHUFFLED
    assert accuracy({"state_dict": wide, "classes": names})[0] == 100


@pytest.mark.parametrize("names", [[*"abcde"], NAMES[:4] + ["x"], NAMES[:4] + NAMES[:1]])
def test_other_classes_in_the_file_are_refused(accuracy, names):
    acc1, err = accuracy({"model": probe(), "classes": names})
    assert acc1 is None and "trained on other classes" in err


@pytest.mark.parametrize("classes", [5, [0, 1, 2, 3, 4]])
def test_numbers_of_classes_are_no_names(accuracy, classes):
    assert accuracy({"model": probe(), "classes": classes})[0] == 100


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


RAW, BEST = {key: -value for key, value in probe().items()}, probe()
FORMS = {  # name -> a checkpoint with these weights
    "timm": {"state_dict": RAW, "state_dict_ema": BEST},
    "DeiT": {"model": RAW, "model_ema": BEST}, "EMA under module": {
        "model": RAW, "ema": {"module": BEST, "decay": 0.99}},
    "swa": {"model": RAW, "swa": BEST}, "Lightning with EMA": {"state_dict": {
        **under("net.", RAW), **under("ema_net.module.", BEST), "n_averaged": torch.tensor(1)}},
    "only EMA": {"state_dict_ema": BEST},
    "net": {"net": BEST, "acc": np.float64(93.1)}, "model_state_dict": {"model_state_dict": BEST},
    "state": {"state": BEST}, "student": {"student": BEST, "epoch": 3},
    "RepDistiller": {"opt": argparse.Namespace(lr_decay=[150]), "model": BEST,
                     "optimizer": {"state": {}, "param_groups": [{}]}},
    "Fast-Datafree": {"arch": "wrn", "state_dict": BEST, "scheduler": {
        "milestones": collections.Counter([120, 150])}},
    "any name": {"weights": BEST, "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
    "Lightning": {"state_dict": {**under("model.", BEST), "loss.weight": torch.ones(5)}},
    "Lightning's net": {"state_dict": under("net.", BEST), "callbacks": {"a": {}}},
    "AveragedModel": {"n_averaged": torch.tensor(3), **under("module.", BEST)},
    "compiled": under("module._orig_mod.", BEST), "DDP compiled": under("_orig_mod.module.", BEST),
    "a name of one's own": under("classifier.", BEST),
    "mdistiller": {"model": {**under("module.student.", BEST), **under("module.teacher.", RAW)}},
    "timm's args": {"state_dict": BEST, "args": argparse.Namespace(mean=None, img_size=None)},
    "ordered": {"state_dict": collections.OrderedDict(BEST)}}


@pytest.mark.parametrize("form", FORMS)
def test_the_right_weights_of_a_checkpoint_are_used(accuracy, form):
    acc1, err = accuracy(FORMS[form])
    assert acc1 == 100
    averaged = ("timm", "DeiT", "swa", "only EMA", "EMA under module")
    assert ("(averaged)" in err) == (form in averaged)


@pytest.mark.parametrize("content", [
    {"a": {"b": BEST, "c": 1}, "d": RAW}, {**under("q.", BEST), **under("k.", RAW)}])
def test_a_file_with_two_networks_is_refused(accuracy, content):
    acc1, err = accuracy(content)
    assert acc1 is None and ("no state dict" in err or "several networks" in err)


@pytest.mark.parametrize("prefix", ["", "model.", "backbone.", "encoder.", "vision_model."])
def test_safetensors_are_read_whatever_is_beside_them(accuracy, tmp_path, prefix):
    (tmp_path / "w.json").write_text('{"classes": 7, "sha256": "of something else"}')
    assert accuracy(under(prefix, probe()), name="w.safetensors")[0] == 100
    data = (tmp_path / "w.safetensors").read_bytes()
    assert accuracy(data, name="misnamed.pth")[0] == 100


# --- files that are something else ----------------------------------------------------------------

def other_files(folder) -> dict:
    network = nn.Sequential(nn.Linear(2, 2))
    torch.jit.trace(network, torch.zeros(1, 2)).save(folder / "script.pt")
    torch.save(network, folder / "module.pt")
    return {"TorchScript": (folder / "script.pt").read_bytes(),
            "torch.nn.modules.container.Sequential": (folder / "module.pt").read_bytes(),
            "ONNX": b"\x08\x08\x12\x07pytorch", "Git LFS": b"version https://git-lfs.github.com",
            "web page": b"<!DOCTYPE html>", "HDF5": b"\x89HDF\r\n"}


@pytest.mark.parametrize("kind", ["TorchScript", "torch.nn.modules.container.Sequential", "ONNX",
                                  "Git LFS", "web page", "HDF5"])
def test_a_file_of_another_kind_is_named_and_not_called_damaged(accuracy, tmp_path, kind):
    acc1, err = accuracy(other_files(tmp_path)[kind])
    assert acc1 is None and kind in err and "damaged" not in err and "state_dict" in err


def test_a_bare_file_asks_for_its_name_and_variants_of_a_stem_have_names(tmp_path):
    task, file = get_task("cifar10"), tmp_path / "resnet18.pth"
    torch.save(models.build("cifarresnet18", task).state_dict(), file)
    with pytest.raises(UserError, match="cifarresnet18, cifarresnet18_relu, "
                                        "cifarresnet18_relu_pool"):
        models.load_frozen(str(file), task)
    x = torch.randn(2, 3, 32, 32)
    outputs = [models.load_frozen(f"cifarresnet18{kind}@{file}", task)[0](x)
               for kind in ("", "_relu", "_relu_pool")]
    assert not any(torch.allclose(outputs[i], outputs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_weights_of_another_network_name_both_keys_and_the_family(tmp_path):
    task, file = get_task("cifar10"), tmp_path / "w.pth"
    torch.save({"model": models.build("wrn_16_1", task).state_dict()}, file)
    with pytest.raises(UserError) as caught:
        models.load_frozen(f"resnet20@{file}", task)
    for part in ("no key layer1.0.conv1.weight", "unknown key", "wrn_16_1"):
        assert part in str(caught.value)


# --- plausibility ---------------------------------------------------------------------------------

def test_nan_logits_are_an_error(accuracy):
    huge = {key: value * 1e38 for key, value in probe().items()}  # finite weights, inf - inf
    acc1, err = accuracy(huge)
    assert acc1 is None and "NaN" in err


@pytest.mark.parametrize(("right", "low"), [(0, True), (1, True), (2, True), (3, False)])
def test_accuracy_of_at_most_twice_chance_is_doubted(right, low):
    labels = torch.arange(11).repeat(3)
    logits = nn.functional.one_hot(torch.where(labels < right, labels, (labels + 1) % 11), 11)
    assert ("class order" in models.doubt(logits.float(), labels)) == low


@pytest.mark.parametrize(("name", "task", "fits"), [
    ("torchvision:resnet18", "imagenet", True), ("lenet5_bn", "cifar10", False)])
def test_one_image_a_step_is_refused_where_batch_norm_sees_one_value(name, task, fits):
    task = get_task(task)
    with (contextlib.nullcontext() if fits else pytest.raises(UserError, match="batch norm")):
        models.refuse_single_values(models.build(name, task), task)


def test_facts_beside_weights_do_not_come_from_the_weights():
    assert checkpoints._facts({"state_dict": {"mean": torch.zeros(3), "std": torch.ones(3)}}) == {}
