"""The networks for small images: sizes, key names and outputs are those of the public ones."""

import types

import pytest
import torch
import torch.nn.functional as F

from dm_kd import models

# Parameters for 3 channels and 100 classes, and one logit of the network with seed 0. Published
# sizes: RepDistiller's networks (Tian et al. 2020, arXiv 1910.10699); cifar_resnet: the table of
# weiaicunzai/pytorch-cifar100 (11.2, 21.3, 23.7 M). The logits were computed once with networks
# whose outputs had been compared with the public programs' on the same weights.
NETWORKS = {
    "cnn_w4": (2_808, -0.058165), "cnn_w8": (8_972, 0.138665), "cnn_w16": (31_668, -0.1686),
    "cnn_w32": (118_532, 0.0810434), "cnn_w64": (458_148, -0.0265784),
    "wrn_16_1": (180_916, -0.424848), "wrn_16_2": (703_284, -0.221702),
    "wrn_40_1": (569_780, -73.4754), "wrn_40_2": (2_255_156, -37.8472),
    "resnet8": (83_892, -0.238464), "resnet14": (181_108, -0.599927),
    "resnet20": (278_324, -0.134465), "resnet32": (472_756, -18.5759),
    "resnet44": (667_188, -621.076), "resnet56": (861_620, 1550.01),
    "resnet110": (1_736_564, 6.34793e6), "resnet8x4": (1_233_540, -0.0515779),
    "resnet32x4": (7_433_860, -9.65516),
    "cifar_resnet18": (11_220_132, -0.468624), "cifar_resnet34": (21_328_292, 0.47059),
    "cifar_resnet50": (23_705_252, -6.7848), "cifarresnet18": (11_220_132, -0.515446),
    "cifarresnet34": (21_328_292, 0.718145), "cifarresnet18_relu": (11_220_132, -0.468624),
    "cifarresnet34_relu": (21_328_292, 0.47059), "cifarresnet50_relu": (23_705_252, -6.7848),
    "cifarresnet18_relu_pool": (11_220_132, -0.100289),
    "cifarresnet34_relu_pool": (21_328_292, 0.592018),
    "cifarresnet50_relu_pool": (23_705_252, -4.14598),
    "vgg8_bn": (3_965_028, 0.0243086), "vgg11_bn": (9_277_284, 0.0424394),
    "vgg13_bn": (9_462_180, -0.0154817), "vgg16_bn": (14_774_436, 0.00616052),
    "vgg19_bn": (20_086_692, -0.0368392),
    "lenet5": (69_656, -0.112898), "lenet5_bn": (69_940, -0.112898),
    "lenet5_half": (19_758, -0.00830178)}

# Of each family's public checkpoints for CIFAR-100: how many keys, and some of them.
KEYS = {
    "wrn_16_2": (83, {"conv1.weight": (16, 3, 3, 3), "block1.layer.0.bn1.running_mean": (16,),
                      "block2.layer.0.convShortcut.weight": (64, 32, 1, 1),
                      "block3.layer.1.conv2.weight": (128, 128, 3, 3), "bn1.bias": (128,),
                      "fc.weight": (100, 128)}),
    "resnet8x4": (62, {"conv1.weight": (32, 3, 3, 3),
                       "layer1.0.downsample.0.weight": (64, 32, 1, 1),
                       "layer3.0.bn2.weight": (256,), "fc.weight": (100, 256)}),
    "cifar_resnet18": (122, {"layer2.0.shortcut.0.weight": (128, 64, 1, 1),
                             "layer4.1.bn2.num_batches_tracked": (), "linear.weight": (100, 512)}),
    "cifarresnet18": (122, {"layer2.0.downsample.0.weight": (128, 64, 1, 1),
                            "fc.weight": (100, 512)}),
    "cifar_resnet50": (320, {"layer1.0.conv3.weight": (256, 64, 1, 1)}),
    "vgg11_bn": (58, {"block0.0.weight": (64, 3, 3, 3), "block2.3.bias": (256,),
                      "block4.4.running_mean": (512,), "classifier.weight": (100, 512)}),
    "lenet5": (10, {"features.3.weight": (16, 6, 5, 5), "features.6.bias": (120,),
                    "fc.2.weight": (100, 84)})}


def build(name, classes=100, channels=3):
    return models.build(name, types.SimpleNamespace(name="x", num_classes=classes,
                                                    channels=channels, large=False))


@pytest.mark.parametrize("name", models.MODELS)
@torch.no_grad()
def test_a_network_has_the_public_size_and_function(name):
    torch.manual_seed(0)
    model = build(name).eval()
    parameters, logit = NETWORKS[name]
    assert models.parameter_count(model) == parameters
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    assert float(model(x)[0, 7]) == pytest.approx(logit, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", KEYS)
def test_a_network_has_the_key_names_of_the_public_checkpoints(name):
    count, some = KEYS[name]
    shapes = {key: tuple(value.shape) for key, value in build(name).state_dict().items()}
    assert len(shapes) == count and some.items() <= shapes.items()


@torch.no_grad()
def test_lenet5_pads_images_of_28_pixels_with_zeros_to_32():
    model, x = build("lenet5", 10, 1).eval(), torch.randn(2, 1, 28, 28)
    assert torch.equal(model(x), model(F.pad(x, (2, 2, 2, 2))))
