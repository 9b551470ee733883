"""The networks for small images against published sizes, key names and functions."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from dm_kd import frozen, models, small_models

FAMILIES = ("wrn_16_2", "resnet8", "resnet8x4", "cifar_resnet18", "cifar_resnet50", "cifarresnet18",
            "vgg8_bn", "vgg11_bn", "shufflenet", "lenet5", "lenet5_bn",
            "lenet5_half")  # a member of each


def build(name, classes=10, channels=3):
    return models.build(name, types.SimpleNamespace(num_classes=classes, channels=channels))


def count(name, classes=100, channels=3) -> int:
    with FakeTensorMode():
        return models.parameter_count(build(name, classes, channels))


def moved_statistics(model):
    """The model in eval mode with batch norms that have seen something."""
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    return model.eval().requires_grad_(False)


# --- sizes ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "published"), [
    # RepDistiller's networks for CIFAR-100 (Tian et al. 2020, arXiv 1910.10699)
    ("wrn_16_2", 703_284), ("wrn_40_1", 569_780), ("wrn_40_2", 2_255_156),
    ("resnet20", 278_324), ("resnet32", 472_756), ("resnet56", 861_620), ("resnet110", 1_736_564),
    ("resnet8x4", 1_233_540), ("resnet32x4", 7_433_860), ("vgg8_bn", 3_965_028),
    ("vgg13_bn", 9_462_180), ("shufflenet", 1_355_528), ("cifar_resnet50", 23_705_252)])
def test_a_network_has_as_many_parameters_as_the_public_one(name, published):
    assert count(name) == published


@pytest.mark.parametrize(("name", "millions"), [  # He et al. 2016, table 6, 10 classes
    ("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85),
    ("resnet110", 1.7)])
def test_a_cifar_resnet_has_the_papers_size(name, millions):
    assert abs(count(name, 10) / 1e6 - millions) < 0.035


@pytest.mark.parametrize(("depth", "millions"), [  # weiaicunzai/pytorch-cifar100, its table
    (18, 11.2), (34, 21.3), (50, 23.7)])
def test_a_deep_resnet_for_small_images_has_the_public_size(depth, millions):
    assert round(count(f"cifar_resnet{depth}") / 1e6, 1) == millions


def test_lenet5_has_the_textbook_size():
    assert count("lenet5", 10, 1) == 61_706  # 156 + 2,416 + 48,120 + 10,164 + 850


def bn_conv(inputs, outputs, size, bias=False) -> int:
    return inputs * outputs * size**2 + outputs * (3 if bias else 2)


@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet14", 2), ("resnet44", 7)])
def test_a_resnet_of_6n_2_layers_has_as_many_parameters_as_by_hand(name, blocks):
    by_hand = bn_conv(3, 16, 3) + 64 * 100 + 100
    for inputs, width in ((16, 16), (16, 32), (32, 64)):
        by_hand += bn_conv(inputs, width, 3) + (2 * blocks - 1) * bn_conv(width, width, 3)
        by_hand += bn_conv(inputs, width, 1) if inputs != width else 0
    assert count(name) == by_hand


def test_wrn_16_1_has_as_many_parameters_as_by_hand():
    by_hand = 3 * 16 * 9 + 2 * 64 + 64 * 100 + 100
    for inputs, width in ((16, 16), (16, 32), (32, 64)):  # the norm stands before the convolution
        by_hand += 2 * inputs + inputs * width * 9 + 3 * (2 * width + width * width * 9)
        by_hand += inputs * width if inputs != width else 0
    assert count("wrn_16_1") == by_hand


@pytest.mark.parametrize(("name", "convs"), [  # Simonyan & Zisserman 2015, table 1, A, D and E
    ("vgg11_bn", (1, 1, 2, 2, 2)), ("vgg16_bn", (2, 2, 3, 3, 3)), ("vgg19_bn", (2, 2, 4, 4, 4))])
def test_a_vgg_has_as_many_parameters_as_by_hand(name, convs):
    by_hand, inputs = 512 * 100 + 100, 3
    for width, number in zip((64, 128, 256, 512, 512), convs, strict=True):
        for _ in range(number):
            by_hand, inputs = by_hand + bn_conv(inputs, width, 3, bias=True), width
    assert count(name) == by_hand


def test_lenet5_bn_is_lenet5_with_a_batch_norm_after_each_convolution():
    plain, normed = build("lenet5", 10, 1).eval(), build("lenet5_bn", 10, 1).eval()
    kinds = [type(m).__name__ for m in normed.features]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert kinds == 2 * block + block[:3]
    assert [type(m).__name__ for m in plain.features] == [k for k in kinds if k != "BatchNorm2d"]
    assert count("lenet5_bn", 10, 1) == count("lenet5", 10, 1) + 2 * (6 + 16 + 120)
    for a, b in zip([m for m in plain.modules() if hasattr(m, "weight")],
                    [m for m in normed.modules() if hasattr(m, "weight")
                     and not isinstance(m, torch.nn.BatchNorm2d)], strict=True):
        b.load_state_dict(a.state_dict())
    x = torch.randn(2, 1, 28, 28)  # new batch norms in eval mode divide by sqrt(1 + eps)
    assert torch.allclose(plain(x), normed(x), rtol=1e-3, atol=1e-3)


def test_lenet5_half_has_as_many_parameters_as_by_hand():
    assert count("lenet5_half", 10, 1) == (25 + 1) * 3 + (75 + 1) * 8 + (200 + 1) * 60 + (
        60 + 1) * 42 + (42 + 1) * 10


def test_both_kinds_of_resnet_have_the_same_size():
    for depth in (18, 34):
        assert count(f"cifar_resnet{depth}") == count(f"cifarresnet{depth}")


# --- functions ------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_maps_images_of_any_size_to_logits(name, channels):
    with FakeTensorMode():
        model = build(name, 10, channels).eval()
        for size in (8, 28, 32, 64):
            assert model(torch.randn(2, channels, size, size)).shape == (2, 10), size


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns(name):
    model = build(name).train()
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([1, 2, 3, 4])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        if "vgg" not in name or not key.endswith("0.bias"):  # a norm takes its convolution's bias
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", FAMILIES)
def test_convolutions_begin_with_he_variance_and_no_bias(name):
    for module in build(name).modules():
        if type(module) is torch.nn.Conv2d and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert abs(module.weight.std() / (2 / fan_out) ** 0.5 - 1) < 0.05
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_fused_teacher_computes_the_same_logits(name):
    model = moved_statistics(build(name))
    fused = frozen.prepare(model, torch.randn(4, 3, 32, 32), "none")
    assert fused is not model
    for shape in ((8, 3, 32, 32), (2, 3, 28, 28), (2, 3, 64, 64)):  # right for all sizes
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        expected = model(x)
        assert (fused(x) - expected).abs().max() <= 1e-5 * expected.abs().max(), shape


@torch.no_grad()
def test_the_two_kinds_of_resnet_differ_in_the_stems_relu_alone():
    ours, theirs = moved_statistics(build("cifar_resnet18")), build("cifarresnet18").eval()
    theirs.load_state_dict({key.replace("shortcut", "downsample").replace("linear", "fc"): value
                            for key, value in ours.state_dict().items()})
    x = torch.randn(4, 3, 32, 32)
    assert (ours(x) - theirs(x)).abs().max() > 0.01 * ours(x).abs().max()
    theirs.bn1.register_forward_hook(lambda module, inputs, output: F.relu(output))
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("size", "last"), [(28, 3), (32, 4), (64, 4)])
@torch.no_grad()
def test_vgg_pools_after_the_fourth_block_at_64_pixels_only(size, last):
    model, seen = build("vgg8_bn").eval(), []
    model.block4.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model(torch.randn(2, 3, size, size))
    assert seen == [(2, 512, last, last)]


@torch.no_grad()
def test_lenet5_pads_images_of_28_pixels_with_zeros_to_32():
    model, x = build("lenet5", 10, 1).eval(), torch.randn(2, 1, 28, 28)
    assert torch.equal(model(x), model(F.pad(x, (2, 2, 2, 2))))


def test_a_shuffle_unit_passes_half_of_the_channels_to_every_second_place():
    x = torch.randn(2, 8, 4, 4)
    out = small_models.ShuffleUnit(8).eval()(x)
    assert torch.equal(out[:, 0::2], x[:, :4]) and (out[:, 1::2] >= 0).all()


# --- key names of the public checkpoints ----------------------------------------------------------

def norm(key, width) -> dict:
    return {f"{key}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def conv(key, inputs, outputs, size, bias=False) -> dict:
    shapes = {f"{key}.weight": (outputs, inputs, size, size)}
    return shapes | ({f"{key}.bias": (outputs,)} if bias else {})


def linear(key, inputs, outputs) -> dict:
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def wrn_16_2() -> dict:
    shapes = conv("conv1", 3, 16, 3)
    for stage, inputs, width in ((1, 16, 32), (2, 32, 64), (3, 64, 128)):
        for i in range(2):
            first, key = inputs if i == 0 else width, f"block{stage}.layer.{i}"
            shapes |= norm(f"{key}.bn1", first) | conv(f"{key}.conv1", first, width, 3)
            shapes |= norm(f"{key}.bn2", width) | conv(f"{key}.conv2", width, width, 3)
            shapes |= conv(f"{key}.convShortcut", first, width, 1) if i == 0 else {}
    return shapes | norm("bn1", 128) | linear("fc", 128, 100)


def residual(blocks, widths, skip, head) -> dict:
    """Keys of two-convolution ResNets; widths of stem and stages."""
    shapes = conv("conv1", 3, widths[0], 3) | norm("bn1", widths[0])
    for stage, (inputs, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
        for i in range(blocks):
            first, key = inputs if i == 0 else width, f"layer{stage}.{i}"
            shapes |= conv(f"{key}.conv1", first, width, 3) | norm(f"{key}.bn1", width)
            shapes |= conv(f"{key}.conv2", width, width, 3) | norm(f"{key}.bn2", width)
            if first != width:
                shapes |= conv(f"{key}.{skip}.0", first, width, 1) | norm(f"{key}.{skip}.1", width)
    return shapes | linear(head, widths[-1], 100)


def bottleneck() -> dict:
    """Keys of the ResNet-50 for small images: 1x1, 3x3 and 1x1 convolutions, four times wider."""
    shapes, inputs = conv("conv1", 3, 64, 3) | norm("bn1", 64), 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for i in range(blocks):
            key = f"layer{stage}.{i}"
            for n, (ins, outs, size) in enumerate(((inputs, width, 1), (width, width, 3),
                                                   (width, 4 * width, 1)), 1):
                shapes |= conv(f"{key}.conv{n}", ins, outs, size) | norm(f"{key}.bn{n}", outs)
            if i == 0:
                shapes |= conv(f"{key}.shortcut.0", inputs, 4 * width, 1)
                shapes |= norm(f"{key}.shortcut.1", 4 * width)
            inputs = 4 * width
    return shapes | linear("linear", 2048, 100)


def vgg11_bn() -> dict:
    shapes = {}
    for key, inputs, width in (("0.0", 3, 64), ("1.0", 64, 128), ("2.0", 128, 256),
                               ("2.3", 256, 256), ("3.0", 256, 512), ("3.3", 512, 512),
                               ("4.0", 512, 512), ("4.3", 512, 512)):
        after = key[:2] + str(int(key[2]) + 1)
        shapes |= conv(f"block{key}", inputs, width, 3, bias=True) | norm(f"block{after}", width)
    return shapes | linear("classifier", 512, 100)


def shufflenet() -> dict:
    shapes, inputs = conv("conv1", 3, 24, 1) | norm("bn1", 24), 24
    for stage, half, units in ((1, 58, 4), (2, 116, 8), (3, 232, 4)):
        key = f"layer{stage}.0"
        for n, (ins, outs, size) in enumerate(((1, inputs, 3), (inputs, half, 1), (inputs, half, 1),
                                               (1, half, 3), (half, half, 1)), 1):
            shapes |= conv(f"{key}.conv{n}", ins, outs, size) | norm(f"{key}.bn{n}", outs)
        for i in range(1, units):
            for n, (ins, size) in enumerate(((half, 1), (1, 3), (half, 1)), 1):
                shapes |= conv(f"layer{stage}.{i}.conv{n}", ins, half, size)
                shapes |= norm(f"layer{stage}.{i}.bn{n}", half)
        inputs = 2 * half
    return shapes | conv("conv2", 464, 1024, 1) | norm("bn2", 1024) | linear("linear", 1024, 100)


def lenet5() -> dict:
    shapes = conv("features.0", 3, 6, 5, bias=True) | conv("features.3", 6, 16, 5, bias=True)
    shapes |= conv("features.6", 16, 120, 5, bias=True)
    return shapes | linear("fc.0", 120, 84) | linear("fc.2", 84, 100)


LAYOUTS = {
    "wrn_16_2": wrn_16_2(), "resnet8": residual(1, (16, 16, 32, 64), "downsample", "fc"),
    "resnet14": residual(2, (16, 16, 32, 64), "downsample", "fc"),
    "resnet8x4": residual(1, (32, 64, 128, 256), "downsample", "fc"),
    "cifar_resnet18": residual(2, (64, 64, 128, 256, 512), "shortcut", "linear"),
    "cifarresnet18": residual(2, (64, 64, 128, 256, 512), "downsample", "fc"),
    "cifar_resnet50": bottleneck(), "vgg11_bn": vgg11_bn(), "shufflenet": shufflenet(),
    "lenet5": lenet5()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_with_the_public_key_names_is_recognised_and_loaded(name, tmp_path):
    state = {key: torch.rand(shape) for key, shape in LAYOUTS[name].items()}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    task = types.SimpleNamespace(name="cifar100", num_classes=100, channels=3)
    model, card = models.load_frozen(str(tmp_path / "x.pth"), task)
    loaded = model.state_dict()
    assert card["name"] == name and all(torch.equal(loaded[k], v) for k, v in state.items())
