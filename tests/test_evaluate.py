"""evaluate: accuracy, agreement with a teacher."""

import json

import pytest
import torch

from dm_kd import evaluate, models


def evaluated(capsys, *argv):
    """The JSON record and standard error."""
    capsys.readouterr()
    assert evaluate.main(["--task", "digits", "--device", "cpu", "--threads", "1",
                          *map(str, argv)]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_model_is_compared_with_a_teacher(teacher_folder, digits, tmp_path, capsys):
    state = models.load_frozen(str(teacher_folder), digits)[0].state_dict()
    torch.save({k: v + 0.1 * torch.randn(v.shape) if v.ndim > 1 else v for k, v in state.items()},
               tmp_path / "other.pt")
    other = f"cnn_w4@{tmp_path / 'other.pt'}"
    record, _ = evaluated(capsys, "--model", teacher_folder, "--teacher", other)
    teacher, _ = evaluated(capsys, "--model", other)
    assert record["teacher_acc1"] == teacher["acc1"] and 0 < record["agreement"] < 100


@pytest.mark.parametrize(("flags", "seen"), [
    ((), False), (("--fold", "1"), True), (("--val", "dev"), True)])
def test_a_model_that_may_have_seen_the_images_is_pointed_out(teacher_folder, capsys, flags, seen):
    _, err = evaluated(capsys, "--model", teacher_folder, *flags)
    assert ("may have seen" in err) == seen
