"""evaluate: its accuracy, its notes."""

import json

import pytest

from dm_kd import evaluate


def evaluated(capsys, *argv):
    """The JSON record and standard error."""
    capsys.readouterr()
    assert evaluate.main(["--task", "digits", "--device", "cpu", "--threads", "1",
                          *map(str, argv)]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_the_accuracy_is_the_runs(teacher_folder, capsys):
    record, _ = evaluated(capsys, "--model", teacher_folder)
    result = json.loads((teacher_folder / "result.json").read_text())
    assert (record["acc1"], record["images"]) == (result["acc1"], 267)


@pytest.mark.parametrize(("flags", "seen"), [
    ((), False), (("--fold", "1"), True), (("--val", "dev"), True)])
def test_a_model_that_may_have_seen_the_images_is_pointed_out(teacher_folder, capsys, flags, seen):
    _, err = evaluated(capsys, "--model", teacher_folder, *flags)
    assert ("may have seen" in err) == seen
