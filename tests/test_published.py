"""Published numbers: looked up by task, pair and method."""

import pytest

from dm_kd import models, published


@pytest.mark.parametrize("name, plain", [
    ("cifar_resnet34", "resnet34"), ("cifarresnet18", "resnet18"), ("vgg11_bn", "vgg11"),
    ("torchvision:resnet50@IMAGENET1K_V2", "resnet50"), ("wrn_40_2", "wrn_40_2")])
def test_the_same_architecture_has_one_name(name, plain):
    assert published.plain_name(name) == plain


def test_a_pair_and_method_of_cifar100_has_its_number_with_its_source():
    found = published.find("cifar100", "dit", "wrn_40_2", "wrn_16_1", 50_000)
    assert found == [{"acc1": 56.29, "source": "DM-KD", "images": None}]
    assert published.find("cifar100", "dafl", "cifar_resnet34", "cifar_resnet18", None)[0][
        "acc1"] == 74.47


def test_of_several_amounts_of_images_the_row_has_that_of_its_own():
    found = published.find("imagenet", "dit", "torchvision:resnet18", "torchvision:resnet50",
                           200_000)
    assert [e["acc1"] for e in found] == [68.63]
    found = published.find("imagenet", "dit", "torchvision:resnet18", "torchvision:resnet50", 7)
    assert [e["acc1"] for e in found] == [66.74, 68.63, 72.43]


def test_a_model_trained_alone_has_the_number_of_the_teacher_or_student_alone():
    assert published.find("cifar100", "alone", None, "vgg11_bn", None)[0]["acc1"] == 71.32
    assert published.find("cifar100", "alone", None, "cnn_w8", None) == []


@pytest.mark.parametrize("row", [
    ("digits", "dit", "cnn_w32", "cnn_w8", 2000), ("cifar100", "noise", "wrn_40_2", "wrn_16_1", 1),
    ("cifar100", "dit", "wrn_16_1", "wrn_40_2", 1), ("cifar100", "dit", None, "wrn_16_1", None)])
def test_what_nobody_published_has_no_number(row):
    assert published.find(*row) == []


def test_every_table_is_whole_and_names_a_source_and_models_that_can_be_built():
    for rows in published.SMALL.values():
        assert all(len(accuracies) == len(published.PAIRS) for _, _, accuracies in rows)
    entries = [(s, a) for rows in published.SMALL.values() for _, s, row in rows for a in row]
    entries += [(s, a) for s, known in published.ALONE.values() for a in known.values()]
    entries += [row[-2:] for row in published.LARGE]
    assert all(s in published.SOURCES and 10 < a < 100 for s, a in entries)
    known = {published.plain_name(name) for name in models.MODELS}
    assert {name for pair in published.PAIRS for name in pair} <= known
