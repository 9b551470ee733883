"""Published numbers: looked up by task, pair and method, and tables with a script for each cell."""

import importlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from dm_kd import models, published, report_page

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name, plain", [
    ("cifar_resnet34", "resnet34"), ("cifarresnet18", "resnet18"), ("vgg11_bn", "vgg11"),
    ("torchvision:resnet50@IMAGENET1K_V2", "resnet50"), ("wrn_40_2", "wrn_40_2")])
def test_the_same_architecture_has_one_name(name, plain):
    assert published.plain_name(name) == plain


def accuracies(*row):
    return sorted(entry["acc1"] for entry in published.find(*row))


def test_a_pair_and_method_of_cifar100_has_its_number_with_its_source():
    found = published.find("cifar100", "dit", "wrn_40_2", "wrn_16_1", 50_000)
    assert found == [{"acc1": 56.29, "source": "DM-KD", "images": None}]


def test_what_two_sources_have_comes_from_both():
    found = published.find("cifar100", "zskt", "vgg11_bn", "cifar_resnet18", None)
    assert {e["source"]: e["acc1"] for e in found} == {"Fast-Datafree": 54.31, "CMI": 34.72}


@pytest.mark.parametrize("method, acc1", [
    ("adi", 61.32), ("deepinversion", 61.32), ("fastdfkd-2", 69.76), ("fastdfkd-5", 72.82),
    ("fastdfkd-10", 74.34)])
def test_each_way_to_run_a_method_finds_its_number(method, acc1):
    assert accuracies("cifar100", method, "cifar_resnet34", "cifar_resnet18", None) == [acc1]


@pytest.mark.parametrize("row, acc1", [
    (("imagenet", "places365", "resnet50", "torchvision:mobilenet_v2", None), [39.89]),
    (("imagenet", "one_image", "resnet50", "resnet50", 1_281_000), [55.5]),
    (("imagenet", "fastdfkd_reptile", "resnet50", "resnet18", 20_000), [53.45]),
    (("imagenet100", "one_image", "resnet18", "resnet50", None), [66.2, 84.4])])
def test_large_images_have_their_numbers(row, acc1):
    assert accuracies(*row) == acc1


def test_of_several_amounts_of_images_the_row_has_that_of_its_own():
    pair = "torchvision:resnet18", "torchvision:resnet50"
    assert accuracies("imagenet", "dit", *pair, 200_000) == [68.63]
    assert accuracies("imagenet", "dit", *pair, 7) == [66.74, 68.63, 72.43]


def test_a_model_trained_alone_has_the_number_of_the_teacher_or_student_alone():
    assert accuracies("cifar100", "alone", None, "vgg11_bn", None) == [71.32]
    assert accuracies("cifar100", "alone", None, "cifar_resnet18", None) == [77.01, 77.10]
    assert accuracies("imagenet", "alone", "ignored", "mobilenet_v2", None) == [70.01]
    assert accuracies("cifar100", "alone", None, "cnn_w8", None) == []


@pytest.mark.parametrize("row", [
    ("digits", "dit", "cnn_w32", "cnn_w8", 2000), ("cifar100", "noise", "wrn_40_2", "wrn_16_1", 1),
    ("cifar100", "dit", "wrn_16_1", "wrn_40_2", 1), ("cifar100", "dit", None, "wrn_16_1", None),
    ("cifar100", "", "wrn_40_2", "wrn_16_1", None), ("cifar100", "fastdfkd-3", "wrn_40_2",
                                                     "wrn_16_1", None)])
def test_what_nobody_published_has_no_number(row):
    assert published.find(*row) == []


@pytest.mark.parametrize("task, count, total", [
    ("cifar100", 83, 5066.37), ("cifar10", 59, 5347.34), ("imagenet", 22, 1339.17)])
def test_the_tables_have_every_number(task, count, total):
    """Counted and added up from the sources' tables: what is lost or mistyped changes the sum."""
    found = [c["acc1"] for c in published.cells() if c["task"] == task]
    assert (len(found), round(sum(found), 2)) == (count, total)


def test_every_row_names_a_source_and_networks_that_can_be_built():
    found = published.cells()
    assert all(c["source"] in published.SOURCES and 10 < c["acc1"] < 100 for c in found)
    known = {published.plain_name(name) for name in models.MODELS}
    named = {c[k] for c in found for k in ("teacher", "student") if c[k] and c["method"]}
    assert {name for name in named if name not in (*published.STUDENTS,)} <= known


def scripts():
    rows = [row[-1] for rows in published.PAIRED.values() for row in rows]
    return [*rows, *(row[-1] for row in (*published.IMAGENET, *published.OTHERS))]


def test_every_script_of_a_cell_is_there_for_every_pair():
    names = {name for text in scripts() for name in re.findall(r"[\w/]+\.sh", text)}
    pairs = ("r34_r18", "vgg11_r18", "w40_2_w16_1", "w40_2_w40_1", "w40_2_w16_2")
    files = {name.replace("PAIR", pair) for name in names for pair in pairs}
    assert len(files) > 25 and not [f for f in files if not (ROOT / "scripts" / f).is_file()]


def test_every_row_of_the_two_tables_says_what_fills_it():
    rows = [*published.PAIRED["cifar100"], *published.IMAGENET]
    assert [row[0] for row in rows if not re.search(r"\.sh|evaluate", row[-1])] == [
        "Generative DFD (Luo; not in the paper's table)"]


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """Stands for Python: prints what it should run, a word a line."""
    path = tmp_path_factory.mktemp("echo") / "python"
    path.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    path.chmod(0o755)
    return {**os.environ, "PYTHON": str(path), "PAIR": "w40_2_w16_1"}


@pytest.mark.parametrize("text", [t for t in dict.fromkeys(scripts()) if ".sh" in t])
def test_every_script_takes_the_flags_that_its_cell_has(text, echo):
    text = text.replace("PAIR", "w40_2_w16_1").replace("MODEL", "wrn_16_1")
    for name, flags in re.findall(r"([\w/]+\.sh)((?: [\w.,/-]+)*)", text):
        said = subprocess.run(["sh", str(ROOT / "scripts" / name), *flags.split()], check=True,
                              capture_output=True, text=True, env=echo).stdout.splitlines()
        assert said[0] == "-m" and (not flags or flags.split()[-1] in said)
        assert importlib.import_module(said[1]).parse(said[2:]).out


def test_the_published_tables_are_those_in_the_repository():
    written = (ROOT / "save" / "results" / "published_tables.md").read_text()
    assert written == report_page.published_tables([])
