"""distill and train_teacher as commands: what is checked, noted and kept."""

import dataclasses
import json
import shutil

import pytest
import torch

from dm_kd import augment, data, distill, models, train_teacher

SMALL = ["--task", "digits", "--student", "cnn_w4", "--epochs", "2", "--batch-size", "32",
         "--learning-rate", "0.05", "--amp", "none", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def distilled(tmp_path, teacher_folder, noise_folder):
    """f(name, *flags) -> exit code and folder of a small run on noise."""

    def make(name, *flags):
        folder = tmp_path / name
        code = distill.main([*SMALL, "--teacher", str(teacher_folder), "--source",
                             str(noise_folder), "--out", str(folder), *flags])
        return code, folder

    return make


def student_of(folder):
    return (folder / "student.safetensors").read_bytes()


def test_real_images_are_a_source_with_labels_or_without(tmp_path, teacher_folder):
    for name, flags in (("labels", ["--label-weight", "0.1"]),
                        ("none", ["--source-labels", "none", "--val", "none"]),
                        ("some", ["--images-per-class", "5", "--subset-seed", "1"])):
        assert distill.main([*SMALL, "--teacher", str(teacher_folder), "--source", "real", "--out",
                             str(tmp_path / name), *flags]) == 0
    none, some = (json.loads((tmp_path / name / "result.json").read_text())
                  for name in ("none", "some"))
    assert none["acc1"] is None and some["images_seen"] == 2 * 64


def test_label_weight_needs_labels(distilled, capsys):
    assert distilled("run", "--label-weight", "0.1")[0] == 2
    assert "labels" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["source", "validation"])
def test_a_teacher_that_disagrees_with_labels_is_refused(tmp_path, teacher_folder, monkeypatch,
                                                         capsys, wrong):
    """Labels in another order: the commonest silent mistake."""
    name = "load_source" if wrong == "source" else "load_validation"
    load = getattr(data, name)

    def shifted(*args):
        images = load(*args)
        return dataclasses.replace(images, labels=(images.labels + 3) % 10)

    monkeypatch.setattr(data, name, shifted)
    argv = [*SMALL, "--teacher", str(teacher_folder), "--source", "real", "--out",
            str(tmp_path / "run")]
    assert distill.main(argv) == 2
    assert f"{wrong} labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert distill.main([*argv, "--no-label-check"]) == 0


def test_the_objectives_and_mixing_run(distilled):
    made = {}
    for objective in ("kd", "mse", "dkd", "dist"):
        code, folder = distilled(objective, "--objective", objective, "--mixup", "0.4",
                                 "--mix-share", "0.5", "--cutmix", "1")
        assert code == 0
        made[objective] = student_of(folder)
    assert len(set(made.values())) == 4


# --- the teacher's kept logits --------------------------------------------------------------------

@pytest.fixture
def asked(monkeypatch):
    """How often teachers that `load_frozen` returned ran a training batch of 32."""
    calls, load = [], models.load_frozen

    def watched(*args):
        teacher, card = load(*args)
        teacher.register_forward_hook(
            lambda m, inputs, out: calls.append(1) if len(inputs[0]) == 32 else None)
        return teacher, card

    monkeypatch.setattr(models, "load_frozen", watched)
    return calls


def test_a_second_student_needs_no_teacher(distilled, asked, tmp_path):
    kept = ["--cache-teacher", "--cache", str(tmp_path / "cache")]
    first = student_of(distilled("first", *kept)[1])
    assert asked
    asked.clear()
    assert student_of(distilled("second", *kept)[1]) == first
    assert distilled("third", *kept, "--student", "cnn_w8", "--objective", "mse")[0] == 0
    assert not asked
    distilled("longer", *kept, "--epochs", "3")
    steps = len(asked)
    assert steps == 2  # of the third epoch alone
    distilled("other", *kept, "--seed", "1")
    assert len(asked) > steps  # another seed, other views
    asked.clear()
    distilled("part", *kept, "--images-per-class", "2", "--steps-per-epoch", "1")
    assert len(asked) == 2  # of other images


def test_kept_logits_belong_to_one_architecture_and_augmentation(digits, distill_args, tmp_path):
    """Networks with and without a ReLU have the same weights; of files the workers cut crops."""
    files = data.Images(data.Files(["a.png"] * 64, 1), torch.zeros(64, dtype=torch.int64), "sha")
    teacher = models.build("cnn_w4", digits)
    for name in ("cifarresnet18", "cifarresnet18_relu"):
        for augmentation in ("default", "none"):
            args = distill_args(cache=tmp_path, augment=augmentation)
            large = dataclasses.replace(digits, large=True, flip=True)
            source = data.Source(files, augment.make_view(large, args, False), 32, 0)
            distill.TeacherCache(args, large, source, teacher, name, files)
    assert len(list(tmp_path.glob("*.done"))) == 4


def test_kept_logits_are_those_of_the_teacher_to_half_precision(distilled, tmp_path):
    plain = distilled("plain")[1]
    kept = distilled("kept", "--cache-teacher", "--cache", str(tmp_path / "cache"))[1]
    losses = [[json.loads(line)["train_loss"] for line in
               (folder / "metrics.jsonl").read_text().splitlines()] for folder in (plain, kept)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


# --- train_teacher --------------------------------------------------------------------------------

def test_train_teacher_on_a_part_and_what_its_card_says(tmp_path):
    folder = tmp_path / "model"
    argv = ["--task", "digits", "--model", "cnn_w4", "--epochs", "1", "--batch-size", "32",
            "--images-per-class", "8", "--mixup", "1", "--amp", "none", "--device", "cpu",
            "--threads", "1", "--fold", "2", "--out", str(folder)]
    assert train_teacher.main(argv) == 0
    card = json.loads((folder / "model.json").read_text())
    assert card["model"] == "cnn_w4" and card["fold"] == 2 and card["num_classes"] == 10
    assert json.loads((folder / "result.json").read_text())["images_seen"] == 96
    shutil.rmtree(folder)
    assert train_teacher.main([*argv, "--dry-run"]) == 0
    assert not folder.exists()


def test_a_large_source_and_task_run_end_to_end(tmp_path):
    """Files of several sizes, class folders, a torchvision network: ImageNet's path in small."""
    from PIL import Image

    draw = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in ("ape", "bee"):
            for i in range(4):
                side = 40 + 8 * i
                pixels = torch.randint(0, 256, (side, side + 5, 3), generator=draw,
                                       dtype=torch.uint8)
                path = tmp_path / "data" / split / name / f"{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy()).save(path)
    assert distill.main([
        "--task", "folder", "--data", str(tmp_path / "data"), "--source", "real", "--teacher",
        "torchvision:resnet18@none", "--student", "torchvision:mobilenet_v2", "--epochs", "1",
        "--batch-size", "4", "--no-label-check", "--amp", "none", "--device", "cpu", "--threads",
        "1", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["val_images"] == 8
