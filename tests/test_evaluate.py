"""evaluate: accuracy, calibration, agreement with a teacher, the confusion picture."""

import json

import pytest
import torch
from PIL import Image

from dm_kd import evaluate, models


def evaluated(capsys, *argv, code=0):
    """The JSON record (where the command succeeds) and standard error."""
    capsys.readouterr()
    assert evaluate.main(["--task", "digits", "--device", "cpu", "--threads", "1",
                          *map(str, argv)]) == code
    out, err = capsys.readouterr()
    return json.loads(out) if not code else None, err


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """Two bins: 4 images of confidence 0.75 with 2 right, 2 of confidence 0.95 with 1 right."""
    logits = torch.tensor([[p, 1 - p] for p in [0.75] * 4 + [0.95] * 2]).log()
    labels = torch.tensor([0, 0, 1, 1, 0, 1])
    expected = 100 * (4 / 6 * 0.25 + 2 / 6 * 0.45)
    assert evaluate.calibration_error(logits, labels) == pytest.approx(expected, abs=1e-3)


def test_a_model_is_compared_with_a_teacher(teacher_folder, digits, tmp_path, capsys):
    state = models.load_frozen(str(teacher_folder), digits)[0].state_dict()
    torch.save({k: v + 0.1 * torch.randn(v.shape) if v.ndim > 1 else v for k, v in state.items()},
               tmp_path / "other.pt")
    other = f"cnn_w4@{tmp_path / 'other.pt'}"
    record, _ = evaluated(capsys, "--model", teacher_folder, "--teacher", other)
    teacher, _ = evaluated(capsys, "--model", other)
    assert record["teacher_acc1"] == teacher["acc1"] and 0 < record["agreement"] < 100
    record, _ = evaluated(capsys, "--model", teacher_folder, "--teacher", teacher_folder)
    assert record["agreement"] == 100 and record["teacher_acc1"] == record["acc1"]


@pytest.mark.parametrize(("flags", "seen"), [
    ((), False), (("--fold", "1"), True), (("--val", "dev"), True)])
def test_a_model_that_may_have_seen_the_images_is_pointed_out(teacher_folder, capsys, flags, seen):
    _, err = evaluated(capsys, "--model", teacher_folder, *flags)
    assert ("may have seen" in err) == seen


def test_rows_of_the_confusion_are_the_true_classes():
    counts = evaluate.confusion(torch.tensor([0, 1, 1, 2, 1]), torch.tensor([0, 1, 2, 2, 2]), 4)
    assert counts.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]


def test_the_command_writes_one_record_and_the_picture(teacher_folder, tmp_path, capsys):
    record, _ = evaluated(capsys, "--model", teacher_folder, "--confusion",
                          tmp_path / "a" / "c.png")
    assert record.keys() == {"task", "model", "images", "acc1", "acc5", "ece"}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["c.png"]
    with Image.open(tmp_path / "a" / "c.png") as picture:
        assert min(picture.size) > 300


def test_class_names_with_dollars_and_many_classes_are_drawn(tmp_path):
    evaluate.draw_confusion(torch.eye(2, dtype=torch.int64), ("$5", "50% off $"),
                            tmp_path / "few.png")
    evaluate.draw_confusion(torch.eye(100, dtype=torch.int64), tuple(map(str, range(100))),
                            tmp_path / "many.png")
    assert (tmp_path / "few.png").exists() and (tmp_path / "many.png").exists()


def test_a_missing_teacher_is_refused(teacher_folder, capsys):
    _, err = evaluated(capsys, "--model", teacher_folder, "--teacher", "save/nowhere", code=2)
    assert "save/nowhere" in err
