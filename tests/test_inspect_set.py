"""What inspect_set says of copies, new images, a teacher's view, and of sets without labels or real
images."""

import json
import math
import types

import pytest
import torch

from dm_kd import fidelity, image_set, inspect_set, synthesize, train_generator
from dm_kd.sources.stored import set_labels
from dm_kd.tasks import load_real


def random_images(count, seed):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


def random_points(count, seed):
    return fidelity.thumbnails(random_images(count, seed))


@pytest.fixture
def inspected(tmp_path):
    """f(*flags) -> the record that inspect_set wrote, and its picture's path."""

    def make(*flags):
        out = tmp_path / "inspect.json"
        command = ["--task", "digits", "--device", "cpu", "--threads", "1", "--cache",
                   str(tmp_path / "cache"), "--out", str(out), *map(str, flags)]
        assert inspect_set.main(command) == 0
        return json.loads(out.read_text()), out.with_suffix(".png")

    return make


# --- figures --------------------------------------------------------------------------------------

def test_copies_have_ratio_zero_and_new_images_about_one():
    train, held_out = random_points(200, 0), random_points(100, 1)
    copies, (distance, which) = inspect_set.copying(train[:50], train, held_out)
    new, _ = inspect_set.copying(random_points(100, 2), train, held_out)
    assert copies["ratio"] == 0 and copies["copies_percent"] == 100
    assert not distance.any() and which.tolist() == list(range(50))
    assert 0.97 < new["ratio"] < 1.03 and new["copies_percent"] < 6


def test_nearest_distance_is_the_root_mean_square_in_unit_range():
    black, white = torch.zeros(1, 64), torch.ones(1, 64)
    assert torch.allclose(fidelity.nearest(black, white)[0], torch.ones(1))


def test_unknown_labels_are_left_out_of_the_agreement():
    logits = torch.eye(3).repeat(2, 1) * 9
    labels = torch.tensor([0, 1, 0, -1, -1, -1])
    found = inspect_set.teacher_view(logits, labels)
    assert found["teacher_agreement"] == 66.67
    assert "teacher_agreement" not in inspect_set.teacher_view(logits, torch.full((6,), -1))


def test_confusions_are_percent_of_the_intended_class_commonest_first():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    seen = torch.tensor([0, 2, 2, 1, 0, 1, 2])
    assert inspect_set.confusions(seen, labels, 3) == [
        {"intended": 0, "seen": 2, "percent": 50.0}, {"intended": 1, "seen": 0, "percent": 50.0},
        {"intended": 0, "seen": 1, "percent": 25.0}]
    assert len(inspect_set.confusions(seen, labels, 3, most=1)) == 1


def test_entropy_is_zero_for_certain_and_log_classes_for_uniform_logits():
    logits = torch.tensor([[99.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert torch.allclose(inspect_set.entropies(logits),
                          torch.tensor([0.0, math.log(3)], dtype=torch.float64), atol=1e-12)
    found = inspect_set.teacher_view(logits, torch.tensor([0, 1]))
    counts = found["entropy_histogram"]["counts"]
    assert counts[0] == counts[-1] == 1 and sum(counts) == 2
    assert found["teacher_entropy"] == round(math.log(3) / 2, 4)


def test_exact_and_near_duplicates_are_counted():
    images = random_images(10, 0)
    images[1] = images[0]
    images[3] = images[2]
    images[3, 0, 0, 0] ^= 8
    found = inspect_set.duplicates(fidelity.thumbnails(images))["duplicates"]
    assert found["exact_percent"] == 20 and found["near_percent"] == 40


def test_chosen_positions_are_evenly_spread_and_unique():
    assert inspect_set.spread(10, 4).tolist() == [0, 2, 5, 7]
    assert inspect_set.spread(3, 10).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("classes", "each", "most"), [
    (4, 10, 8), (10, 1000, 2000), (1000, 200, 10_000), (100, 500, 10_000), (3, 7, 10), (5, 2, 100)])
def test_of_a_large_set_as_many_images_of_each_class_are_compared(classes, each, most):
    manifest = {"classes": list(range(classes)), "images_per_class": each}
    chosen = inspect_set.spread_over(manifest, most)
    counts = torch.bincount(chosen % classes, minlength=classes)
    assert len(chosen.unique()) == len(chosen) <= most and chosen.max() < classes * each
    assert counts.unique().tolist() == [min(each, most // classes)]


def test_of_more_classes_than_images_are_compared_the_classes_are_spread():
    manifest = {"classes": list(range(1000)), "images_per_class": 3}
    assert (inspect_set.spread_over(manifest, 100) % 1000).tolist() == list(range(0, 1000, 10))


def test_a_large_set_is_judged_by_images_of_all_its_classes(inspected, digits, tmp_path,
                                                            teacher_folder):
    """Real digits in a set's order: a part of them is as near to the rest as all are."""
    real, index = load_real(digits, "train"), []
    for c in range(10):
        index.append((real.labels == c).nonzero()[:60, 0])
    for c, own in enumerate(index):
        for k, i in enumerate(own.tolist()):
            path = tmp_path / "real" / f"{c}" / f"{k:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_set.encode_png(real.images[i]))
    assert synthesize.main(["--task", "digits", "--import", str(tmp_path / "real"), "--threads",
                            "1", "--out", str(tmp_path / "set")]) == 0
    whole, _ = inspected("--set", tmp_path / "set", "--teacher", teacher_folder)
    part, _ = inspected("--set", tmp_path / "set", "--teacher", teacher_folder, "--compare", 250)
    assert part["compared"]["images"] == 250 and whole["compared"]["images"] == 600
    assert part["teacher_entropy"] == whole["teacher_entropy"]  # of all images in both
    assert part["recall"] > 0.6 and part["frechet"] < 3 * part["frechet_train_to_val"]


def test_entropies_are_the_same_in_parts(monkeypatch):
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    whole = inspect_set.entropies(logits)
    monkeypatch.setattr(inspect_set, "ENTROPY_PART", 3)
    assert torch.equal(inspect_set.entropies(logits), whole)


def test_a_generator_that_learnt_the_held_out_images_is_pointed_out(inspected, tmp_path, capsys):
    common = ["--task", "digits", "--steps", "2", "--device", "cpu", "--threads", "1", "--out"]
    assert train_generator.main([*common, str(tmp_path / "dit"), "--width", "16", "--depth", "1",
                                 "--heads", "1", "--batch-size", "8", "--fold", "1"]) == 0
    assert synthesize.main([*common, str(tmp_path / "set"), "--generator", "dit", "--weights",
                            str(tmp_path / "dit"), "--images-per-class", "1"]) == 0
    for fold, noted in ((0, True), (1, False)):
        inspected("--set", tmp_path / "set", "--features", "cnn_w4@none", "--fold", fold)
        assert ("generator was trained for fold 1" in capsys.readouterr().err) == noted


def test_labels_of_another_folders_classes_are_unknown(noise_folder):
    manifest = {"task": "folder", "classes": [0, 1, 2, 3, 4], "class_names": list("abcde")}
    task = types.SimpleNamespace(name="folder", class_names=("x", "y", "z"))
    labels, note = set_labels(manifest, torch.arange(5), task)
    assert labels.tolist() == [-1] * 5 and "none of the task's" in note


def test_the_worst_class_is_named_with_its_agreement(digits):
    found = inspect_set.worst_class({0: 90.0, 3: 40.5, 7: 40.5}, digits)
    assert found == {"class": 3, "name": digits.class_names[3], "percent": 40.5}
    assert inspect_set.worst_class(None, digits) is None


def test_a_teacher_that_sees_one_class_nearly_everywhere_is_told(digits):
    found = inspect_set.commonest_class(torch.tensor([8, 8, 1, 8]), digits)
    assert found == {"class": 8, "name": "8", "percent": 75.0}
    result = inspect_set.view_of_nobody() | {"set": "s", "images": 4, "commonest_class": found,
                                             "duplicates": {"near_percent": 0}}
    assert "; it takes 75.0 % of them for 8;" in inspect_set.describe(result)
    few = result | {"commonest_class": found | {"percent": 50.0}}
    assert "takes" not in inspect_set.describe(few)


@pytest.mark.parametrize("count", [1, 20, 21, 1000])
def test_the_contact_sheet_shows_all_of_20_classes_or_an_even_spread(count):
    labels = torch.arange(-1, count).repeat(2)
    shown = inspect_set.shown_classes(labels)
    assert len(shown) == min(count, 20) and shown[0] == 0
    steps = {b - a for a, b in zip(shown, shown[1:], strict=False)}
    assert max(steps, default=1) - min(steps, default=1) <= 1


def test_the_contact_sheet_has_a_row_per_class_with_its_own_images(digits, monkeypatch):
    pixels = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 8, 8)
    labels, shown = torch.tensor([4, 7, -1] * 4), []
    monkeypatch.setattr(inspect_set, "show", lambda axis, *what: shown.append(what))
    logits = torch.eye(10)[torch.tensor([4, 7, 0] * 2 + [4, 4, 0] * 2)]
    inspect_set.draw_classes(None, digits, pixels, labels, logits)
    (rows, names, title), = shown
    assert [[int(image[0, 0, 0]) for image in row] for row in rows] == [[0, 3, 6, 9], [1, 4, 7, 10]]
    assert [name.split()[-2] for name in names] == ["100", "50"] and title == "Images by class"
    inspect_set.draw_classes(None, digits, pixels, torch.full((12,), -1), None)
    assert sum(map(len, shown[1][0])) == 12 and shown[1][2] == "Images"


# --- the command ----------------------------------------------------------------------------------

def test_one_record_and_one_picture_hold_every_figure(inspected, noise_folder, teacher_folder):
    found, picture = inspected("--set", noise_folder, "--teacher", teacher_folder, "--neighbours",
                               3, "--compare", 100)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
    assert 0 <= found["teacher_entropy"] <= math.log(10)
    assert found["frechet"] > 3 * found["frechet_train_to_val"] > 0  # noise is no digit
    assert found["compared"] == {"images": 40, "real": 100, "neighbours": 3}
    assert {"precision", "recall", "density", "coverage"} <= {
        k for k, v in found.items() if isinstance(v, float)}
    assert found["copying"]["measured_in"] == "pixels"
    assert found["copying"]["training_images"] > 1000 and "Frechet" in found["sentence"]
    assert found["teacher_agreement"] is None and found["worst_class"] is None  # noise has none


def test_a_copy_of_the_last_training_image_is_found(inspected, digits, tmp_path):
    last = load_real(digits, "train").images[-1]
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "copy.png").write_bytes(image_set.encode_png(last))
    assert synthesize.main(["--task", "digits", "--import", str(tmp_path / "copied"), "--threads",
                            "1", "--out", str(tmp_path / "set")]) == 0
    found, _ = inspected("--set", tmp_path / "set", "--compare", 3)
    assert found["copying"]["ratio"] == 0 and found["copying"]["held_out_images"] == 3


def test_without_real_images_and_teacher_their_figures_are_null(inspected, noise_folder):
    found, picture = inspected("--set", noise_folder, "--val", "none")
    empty = {name for name, value in found.items() if value is None}
    assert empty == inspect_set.view_of_nobody().keys() - {"duplicates"}
    assert picture.exists() and "near-duplicates" in found["sentence"]


def test_features_may_come_from_another_network(inspected, noise_folder, teacher_folder):
    own, _ = inspected("--set", noise_folder, "--teacher", teacher_folder)
    other, _ = inspected("--set", noise_folder, "--teacher", teacher_folder, "--features",
                         "cnn_w8@none")
    alone, _ = inspected("--set", noise_folder, "--features", "cnn_w8@none")
    assert own["teacher_entropy"] == other["teacher_entropy"] and alone["teacher_entropy"] is None
    assert own["frechet"] != other["frechet"] and alone["frechet"] is not None


def test_real_images_that_are_not_there_are_said_and_their_figures_null(
        inspected, noise_folder, monkeypatch, capsys):
    def missing(*_):
        raise inspect_set.UserError("the data set is not there")

    monkeypatch.setattr(inspect_set, "load_real", missing)
    found, _ = inspected("--set", noise_folder, "--features", "cnn_w4@none")
    assert found["copying"] is None and found["frechet"] is None
    assert "no real images to compare with" in capsys.readouterr().err
    assert inspect_set.main(["--task", "digits", "--set", str(noise_folder), "--data", "nowhere",
                             "--cache", str(noise_folder.parent / "cache")]) == 2


def test_one_image_and_held_out_copies_have_null_figures(inspected, noise_folder, teacher_folder):
    found, _ = inspected("--set", noise_folder, "--teacher", teacher_folder, "--compare", 1)
    assert found["frechet"] is None and found["frechet_train_to_val"] is None
    assert found["precision"] is None and found["copying"]["ratio"] > 0
    points = random_points(20, 0)
    figures, _ = inspect_set.copying(random_points(5, 1), points, points)
    assert figures["ratio"] is None and figures["ratio_of_medians"] is None


def test_the_record_cannot_take_the_pictures_name(noise_folder, capsys):
    assert inspect_set.main(["--task", "digits", "--set", str(noise_folder), "--out", "x.png"]) == 2
    assert "--out x.json" in capsys.readouterr().err


def test_a_set_of_other_channels_is_refused(noise_folder, capsys):
    assert inspect_set.main(["--task", "cifar100", "--set", str(noise_folder)]) == 2
    assert "channels" in capsys.readouterr().err
