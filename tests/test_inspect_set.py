"""inspect_set on small sets, with and without a teacher, labels and real images."""

import json

import pytest
import torch

from dm_kd import data, image_set, inspect_set


@pytest.fixture
def inspected(tmp_path, teacher_folder):
    """f(*flags) -> the record that inspect_set wrote."""

    def make(*flags):
        out = tmp_path / "inspect.json"
        command = ["--task", "digits", "--teacher", teacher_folder, "--device", "cpu", "--threads",
                   "1", "--cache", tmp_path / "cache", "--out", out, *flags]
        assert inspect_set.main(list(map(str, command))) == 0
        return json.loads(out.read_text())

    return make


def write_folder(folder, images, labels=None):
    """PNG files, in a folder for each class where there are labels."""
    for i, image in enumerate(images):
        path = folder / (str(int(labels[i])) if labels is not None else "") / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_set.encode_png(image))
    return folder


def test_noise_is_far_from_digits_and_has_no_agreement(inspected, noise_folder):
    found = inspected("--set", noise_folder)
    assert found["compared"] == {"images": 40, "real": 267}
    assert found["frechet"] > 3 * found["frechet_train_to_val"] > 0
    assert all(found[name] >= 0 for name in ("precision", "recall", "coverage"))
    assert found["teacher_agreement"] is None
    assert found["generator"]["name"] == "noise"
    assert inspected("--set", noise_folder, "--features", "cnn_w8@none")["frechet"] != found[
        "frechet"]


def test_real_digits_are_close_to_real_digits(inspected, digits, tmp_path, monkeypatch):
    """Each class is compared equally often."""
    monkeypatch.setattr(inspect_set, "COMPARED", 200)
    real = data.load_real(digits, "val")
    found = inspected("--set", write_folder(tmp_path / "set", real.images, real.labels))
    assert found["compared"]["images"] == 200 and found["recall"] > 0.6
    assert found["frechet"] < 3 * found["frechet_train_to_val"]
    assert found["teacher_agreement"] > 15


def test_without_real_images_only_the_teacher_is_asked(inspected, noise_folder):
    found = inspected("--set", noise_folder, "--val", "none")
    assert set(found) == {"set", "fold", "images", "generator", "teacher_agreement"}


def test_agreement_counts_known_labels_only():
    logits = torch.tensor([[99.0, 0, 0], [99, 0, 0], [1, 1, 1], [1, 1, 1]])
    assert inspect_set.agreement(logits, torch.tensor([0, 1, -1, -1])) == 50


@pytest.mark.parametrize(("classes", "each", "most"), [(4, 10, 8), (3, 7, 10), (5, 2, 100)])
def test_as_many_images_of_each_class_are_compared(classes, each, most):
    labels = torch.arange(classes).repeat(each)
    chosen = inspect_set.spread_over_classes(labels, most)
    counts = torch.bincount(labels[chosen], minlength=classes)
    assert len(chosen.unique()) == len(chosen) == min(most, classes * each)
    assert counts.max() - counts.min() <= 1
