"""DeepInversion: pixels that a teacher takes for the class asked for, the same bytes each time."""

import math

import pytest
import torch
from torch import nn

from dm_kd import image_set, inversion_terms, models, synthesize
from dm_kd.errors import UserError
from dm_kd.generators import deepinversion
from dm_kd.tasks import get_task

CPU = torch.device("cpu")


def command(out, teacher, *more):
    return ["--task", "digits", "--generator", "deepinversion", "--teacher", str(teacher),
            "--images-per-class", "2", "--batch-size", "10", "--iterations", "3", "--device", "cpu",
            "--threads", "1", "--out", str(out), *more]


def build(teacher, *more):
    args = synthesize.parse(command("unused", teacher, *more))
    return deepinversion.build(args, get_task("digits"), CPU)


def test_presets_are_the_published_ones(teacher_folder):
    generator = build(teacher_folder)
    wanted = {"iterations": 3, "pixel_rate": 0.05, "bn_weight": 10.0, "tv_l2_weight": 2.5e-5,
              "l2_weight": 0.0}
    assert wanted.items() <= generator.settings.items()
    assert deepinversion.SMALL["iterations"] == 2000
    assert deepinversion.LARGE == {"iterations": 3000, "pixel_rate": 0.25, "bn_weight": 0.01,
                                   "tv_l2_weight": 1e-4, "l2_weight": 1e-5}
    assert generator.terms == {"ce_target": 1.0, "bn": 10.0, "tv_l2": 2.5e-5, "l2": 0.0}


def test_the_teacher_takes_the_images_for_the_class_asked_for_and_stays_as_it_is(teacher_folder):
    generator = build(teacher_folder, "--iterations", "100", "--bn-weight", "0.1", "--pixel-rate",
                      "0.1")
    before = {k: v.clone() for k, v in generator.teacher.state_dict().items()}
    labels = torch.arange(10).repeat(3)
    images = generator.sample(labels, list(range(30)))
    assert images.shape == (30, 1, 8, 8) and images.dtype == torch.uint8
    x = (images / 255 - generator.mean) / generator.std
    assert (generator.teacher(x).argmax(1) == labels).float().mean() > 0.7
    assert all(torch.equal(v, before[k]) for k, v in generator.teacher.state_dict().items())
    assert all(p.grad is None for p in generator.teacher.parameters())


def test_the_match_of_batch_statistics_brings_the_images_to_them(teacher_folder):
    distances = []
    for weight in ("0", "10"):
        generator = build(teacher_folder, "--iterations", "60", "--bn-weight", weight)
        images = generator.sample(torch.arange(10).repeat(3), list(range(30)))
        x = (images / 255 - generator.mean) / generator.std
        parts, _ = inversion_terms.weighted({"bn": 1.0}, generator.teacher, x)
        distances.append(parts["bn"].item())
    assert distances[1] < 0.5 * distances[0]


def test_a_shard_has_the_same_bits_each_time_and_others_with_other_seeds(teacher_folder):
    labels = torch.arange(4)
    one, again, other = (build(teacher_folder).sample(labels, seeds)
                         for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5]))
    assert torch.equal(one, again) and not torch.equal(one[3], other[3])


def test_the_command_writes_a_labelled_set_that_names_its_teacher(tmp_path, teacher_folder):
    assert synthesize.main(command(tmp_path / "a", teacher_folder)) == 0
    made = image_set.open_set(tmp_path / "a")
    _, card = models.load_frozen(str(teacher_folder), get_task("digits"))
    assert made.complete and made.manifest["generator"]["teacher_sha256"] == card["sha256"]
    assert [row["label"] for row in made.index()[:10]] == list(range(10))
    assert synthesize.main(command(tmp_path / "b", teacher_folder)) == 0
    assert image_set.open_set(tmp_path / "b").digest == made.digest


def test_a_batch_smaller_than_the_classes_takes_them_in_an_order_of_the_seed(tmp_path,
                                                                             teacher_folder):
    orders = []
    for name, more in (("a", ["--batch-size", "4"]), ("b", ["--batch-size", "4", "--seed", "1"]),
                       ("whole", [])):
        argv = command(tmp_path / name, teacher_folder, "--iterations", "1", *more)
        assert synthesize.main(argv) == 0
        orders.append(image_set.open_set(tmp_path / name).plan.classes)
    assert orders[0] != orders[1] != tuple(range(10)) == orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    made = image_set.open_set(tmp_path / "a")
    assert [row["label"] for row in made.index()] == 2 * list(orders[0])
    assert made.manifest["class_names"] == [str(c) for c in orders[0]]
    grown = command(tmp_path / "a", teacher_folder, "--iterations", "1", "--batch-size", "4")
    grown[grown.index("--images-per-class") + 1] = "3"
    assert synthesize.main(grown) == 0
    assert image_set.open_set(tmp_path / "a").plan.classes == orders[0]


def test_a_teacher_without_batch_norm_is_refused(tmp_path, capsys):
    assert synthesize.main(command(tmp_path / "a", "lenet5@none")) == 2
    assert "no BatchNorm2d" in capsys.readouterr().err
    with pytest.raises(UserError):
        build("lenet5@none")
    build("lenet5@none", "--bn-weight", "0")


@pytest.mark.parametrize(("flags", "dtype"), [
    (["--teacher-dtype", "bf16"], torch.bfloat16), (["--teacher-dtype", "fp32"], torch.float32)])
def test_the_teacher_computes_in_what_was_asked_for_and_the_settings_say_it(flags, dtype):
    made, seen = build("cnn_w4@none", "--iterations", "2", *flags), []
    next(m for m in made.teacher.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype))
    made.sample(torch.tensor([1, 2]), [1, 2])
    assert seen == [dtype] * 2 and made.settings["teacher_dtype"] == flags[1]


@pytest.mark.parametrize(("pays", "expected"), [(True, "bf16"), (False, "fp32")])
def test_the_teachers_precision_is_what_pays_on_the_device(monkeypatch, pays, expected):
    monkeypatch.setattr(deepinversion, "multiplies_bf16", lambda device: pays)
    assert build("cnn_w4@none").settings["teacher_dtype"] == expected


def test_224_pixels_begin_at_half_the_size_with_half_the_jitter(monkeypatch):
    task, sizes, jitters = get_task("imagenet"), [], []
    teacher = nn.Sequential(nn.Conv2d(3, 4, 7, 16), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(4, 1000)).eval()
    teacher.register_forward_pre_hook(lambda m, x: sizes.append(tuple(x[0].shape)))
    real = inversion_terms.jitter
    monkeypatch.setattr(inversion_terms, "jitter", lambda x, most, flip, draw: jitters.append(
        (most, flip)) or real(x, most, flip, draw))
    settings = {**deepinversion.LARGE, "iterations": 3, "teacher_dtype": "fp32"}
    generator = deepinversion.DeepInversion(teacher, task, settings, CPU)
    images = generator.sample(torch.tensor([1, 2]), [1, 2])
    assert images.shape == (2, 3, 224, 224)
    assert [s[2] for s in sizes] == [112, 112, 224] and jitters == [(15, True)] * 2 + [(30, True)]


def test_the_rate_of_224_pixels_rises_for_100_iterations_and_falls_to_zero():
    rate = deepinversion.warm_cosine(0.25, 2000)
    assert rate(0) == pytest.approx(0.0025) and rate(99) == pytest.approx(0.25)
    assert rate(1050) == pytest.approx(0.125) and rate(1999) < 1e-6
    values = [rate(i) for i in range(100, 2000)]
    assert values == sorted(values, reverse=True) and math.isclose(values[0], 0.25)
