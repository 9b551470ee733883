"""What evaluate says besides the accuracy: calibration, agreement with a teacher, confusions."""

import json

import pytest
import torch
from PIL import Image

from dm_kd import engine, evaluate, models
from dm_kd.tasks import load_real


def judged(capsys, *argv, code=0):
    capsys.readouterr()
    assert evaluate.main(["--task", "digits", "--device", "cpu", "--threads", "1",
                          *map(str, argv)]) == code
    out, err = capsys.readouterr()
    return json.loads(out) if not code else err


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """Two bins: 4 images of confidence 0.75 with 2 right, 2 of confidence 0.95 with 1 right."""
    sure = [0.75] * 4 + [0.95] * 2
    logits = torch.tensor([[p, 1 - p] for p in sure]).log()
    labels = torch.tensor([0, 0, 1, 1, 0, 1])
    expected = 100 * (4 / 6 * 0.25 + 2 / 6 * 0.45)
    assert evaluate.calibration_error(logits, labels) == pytest.approx(expected, abs=1e-3)


def test_agreement_counts_the_images_that_both_put_in_the_same_class(teacher_folder, digits,
                                                                     tmp_path, capsys):
    state = models.load_frozen(str(teacher_folder), digits)[0].state_dict()
    torch.save({k: v + 0.1 * torch.randn(v.shape) if v.ndim > 1 else v for k, v in state.items()},
               tmp_path / "other.pt")
    other = f"cnn_w4@{tmp_path / 'other.pt'}"
    record = judged(capsys, "--model", teacher_folder, "--teacher", other)
    val, tops = load_real(digits, "val"), []
    for spec in (str(teacher_folder), other):
        logits = engine.predict(models.load_frozen(spec, digits)[0], val.images,
                                engine.plain_view(digits), torch.device("cpu"), "none")
        tops.append(logits.argmax(1))
    assert record["agreement"] == pytest.approx(100 * (tops[0] == tops[1]).float().mean().item())
    assert record["teacher_acc1"] == pytest.approx(
        100 * (tops[1] == val.labels).float().mean().item())
    assert 0 < record["agreement"] < 100


@pytest.mark.parametrize(("flags", "seen"), [
    ((), False), (("--fold", "1"), True), (("--val", "dev"), True)])
def test_a_model_that_may_have_seen_the_images_is_pointed_out(teacher_folder, capsys, flags, seen):
    capsys.readouterr()
    argv = ["--task", "digits", "--device", "cpu", "--model", str(teacher_folder), *flags]
    assert evaluate.main(argv) == 0
    assert ("may have seen" in capsys.readouterr().err) == seen


def test_a_model_agrees_with_itself(teacher_folder, capsys):
    record = judged(capsys, "--model", teacher_folder, "--teacher", teacher_folder)
    assert record["agreement"] == 100 and record["teacher_acc1"] == record["acc1"]


def test_rows_of_the_confusion_are_the_truth():
    counts = evaluate.confusion(torch.tensor([0, 1, 1, 2, 1]), torch.tensor([0, 1, 2, 2, 2]), 4)
    assert counts.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]


def test_the_most_frequent_mistakes_come_first_in_words():
    counts = torch.tensor([[5, 1, 0], [0, 7, 0], [4, 2, 9]])
    assert evaluate.top_confusions(counts, ("cat", "dog", "cow")) == [
        "cow taken for cat: 4 of 15", "cow taken for dog: 2 of 15", "cat taken for dog: 1 of 6"]


def test_the_picture_names_the_classes_and_counts(monkeypatch, tmp_path):
    from matplotlib import figure

    kept, save = [], figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *args, **options: (
        kept.append(self), save(self, *args, **options)))
    counts = torch.tensor([[5, 1, 0], [0, 7, 0], [4, 2, 9]])
    evaluate.draw_confusion(counts, ("cat", "dog", "cow"), tmp_path / "c.png")
    axis = kept[0].axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")
    assert [t.get_text() for t in axis.get_yticklabels()] == ["cat", "dog", "cow"]
    assert sorted(t.get_text() for t in axis.texts) == sorted("517429")
    assert "cow taken for cat: 4 of 15" in kept[0].texts[0].get_text()
    assert axis.get_title() == "28 images, 21 right"
    many = torch.eye(100, dtype=torch.int64)
    evaluate.draw_confusion(many, tuple(map(str, range(100))), tmp_path / "many.png")
    assert list(kept[1].axes[0].texts) == [] and "none" in kept[1].texts[0].get_text()


def test_the_command_writes_the_picture_and_nothing_else(teacher_folder, tmp_path, capsys):
    record = judged(capsys, "--model", teacher_folder, "--confusion", tmp_path / "a" / "c.png")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["c.png"]
    with Image.open(tmp_path / "a" / "c.png") as picture:
        assert min(picture.size) > 300
    assert record.keys() == {"task", "model", "images", "acc1", "acc5", "ece"}


def test_a_picture_of_another_kind_is_refused(teacher_folder, tmp_path, capsys):
    err = judged(capsys, "--model", teacher_folder, "--confusion", tmp_path / "c.svg", code=2)
    assert "--confusion c.png" in err and not list(tmp_path.iterdir())


def test_a_missing_teacher_is_refused(teacher_folder, capsys):
    assert "nowhere" in judged(capsys, "--model", teacher_folder, "--teacher", "nowhere", code=2)
