"""A user's mistakes end with exit code 2, a message that names what is wrong, and nothing written.

Commands are called in this process; a traceback would leave `main` and fail the test.
"""

import importlib

import pytest
from processes import contents

COMMANDS = {  # a command of each kind; nothing in it needs to exist
    "synthesize": ("--task", "digits", "--generator", "dit", "--weights", "w", "--out", "out"),
    "distill": ("--task", "digits", "--source", "set", "--teacher", "t", "--student", "cnn_w4",
                "--out", "out"),
    "train_teacher": ("--task", "digits", "--model", "cnn_w4", "--out", "out"),
    "train_generator": ("--task", "digits", "--out", "out"),
    "evaluate": ("--task", "digits", "--model", "m"),
    "inspect_set": ("--task", "digits", "--set", "set", "--teacher", "t", "--out", "o.json"),
    "export": ("--run", "run", "--out", "out"),
    "report": ("--runs", "runs", "--out", "out"),
}
TINY = {  # commands that run in a second
    "synthesize": ("--task", "digits", "--generator", "noise", "--images-per-class", 1),
    "distill": ("--task", "digits", "--source", "real", "--teacher", "cnn_w4@none", "--student",
                "cnn_w4", "--epochs", 1, "--no-label-check"),
    "train_teacher": ("--task", "digits", "--model", "cnn_w4", "--epochs", 1),
}


def call(entry, *argv):
    return importlib.import_module(f"dm_kd.{entry}").main([str(a) for a in argv])


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys, tmp_path):
    """f(words that the message names, entry, *argv) -> None: a call that is refused."""

    def check(shown, entry, *argv):
        before = contents(tmp_path)
        capsys.readouterr()
        code = call(entry, *argv)
        out, err = capsys.readouterr()
        assert code == 2, f"exit {code}\n{out}\n{err}"
        assert err.count("error: ") == 1 and len(err.splitlines()) <= 6, err
        for word in [shown] if isinstance(shown, str) else shown:
            assert word in err, err
        kept = contents(tmp_path)
        assert {name: kept[name] for name in kept if not name.startswith("cache")} == before

    return check


# --- flags ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("entry", [name for name in COMMANDS if name != "export"])
def test_a_wrong_flag_is_named(entry, refused, capsys):
    command = COMMANDS[entry]
    refused(["--sed", "--seed"], entry, *command, "--sed", "1")
    refused("--dry-run", entry, *command, "--dry-ru")  # flags cannot be abbreviated
    refused("--seed", entry, *command, "--seed=-1")
    refused(command[0], entry)
    refused("nowhere.yaml", entry, *command, "--config", "nowhere.yaml")
    with pytest.raises(SystemExit, match="0"):
        call(entry, "--help")


@pytest.mark.parametrize("entry", ["synthesize", "distill", "train_teacher", "train_generator"])
def test_a_dry_run_needs_nothing_and_writes_nothing(entry, capsys, tmp_path):
    assert call(entry, *COMMANDS[entry], "--dry-run") == 0
    assert capsys.readouterr().out and contents(tmp_path) == {}


# --- names and values -----------------------------------------------------------------------------

@pytest.mark.parametrize(("shown", "entry", "more"), [
    (["'digit'", "digits"], "train_teacher", ("--task", "digit")),
    (["cnn_w9", "cnn_w8"], "distill", ("--student", "cnn_w9")),
    (["cnn_w9", "cnn_w8"], "evaluate", ("--model", "cnn_w9@none")),
    (["nois", "noise"], "synthesize", ("--generator", "nois")),
    ("too large", "train_generator", ("--task", "imagenet100")),
    ("no folder tru_dataset", "train_generator", ("--task", "cifar10", "--data", "tru_dataset")),
    ("--objective", "distill", ("--objective", "kl")),
    ("--rank", "synthesize", ("--rank", "2", "--world-size", "2"))])
def test_an_impossible_value_is_named(shown, entry, more, refused):
    refused(shown, entry, *COMMANDS[entry], *more)


# --- paths and folders ----------------------------------------------------------------------------

@pytest.mark.parametrize("path", ["nowhere/at all", "empty_folder"])
@pytest.mark.parametrize(("entry", "flag"), [
    ("synthesize", "--weights"), ("distill", "--source"), ("distill", "--teacher"),
    ("evaluate", "--model"), ("inspect_set", "--set"), ("report", "--runs"), ("export", "--run")])
def test_a_path_that_is_wrong_is_named(entry, flag, path, refused, tmp_path, teacher_folder):
    (tmp_path / "empty_folder").mkdir()
    words = dict(zip(COMMANDS[entry][::2], COMMANDS[entry][1::2], strict=True)) | {flag: path}
    if flag in ("--source", "--set"):
        words["--teacher"] = teacher_folder
    refused(path, entry, *(word for pair in words.items() for word in pair))


@pytest.mark.parametrize(("entry", "changed", "shown"), [
    ("synthesize", ("--seed", 5), "0 -> 5"), ("synthesize", ("--batch-size", 5), "100 -> 5"),
    ("train_teacher", ("--learning-rate", 0.5), "learning_rate: 0.1 -> 0.5"),
    ("distill", ("--temperature", 4), "temperature: 10.0 -> 4.0")])
def test_a_folder_of_another_run_is_refused_with_the_difference(entry, changed, shown, refused):
    command = (*TINY[entry], "--device", "cpu", "--out", "out")
    assert call(entry, *command) == 0
    refused(shown, entry, *command, *changed)


def test_paths_with_spaces_and_other_alphabets_work_from_teacher_to_report(tmp_path):
    base = tmp_path / "très bon жизнь 数字"
    common = ("--task", "digits", "--device", "cpu", "--threads", 1)
    assert call("train_teacher", *common, "--model", "cnn_w4", "--epochs", 1, "--out",
                base / "mon maître") == 0
    assert call("synthesize", *common, "--generator", "noise", "--images-per-class", 2, "--out",
                base / "шум 1") == 0
    assert call("distill", *common, "--source", base / "шум 1", "--teacher", base / "mon maître",
                "--student", "cnn_w4", "--epochs", 1, "--no-label-check", "--cache", base / "кэш",
                "--out", base / "élève") == 0
    assert call("evaluate", *common, "--model", base / "élève") == 0
    assert call("report", "--runs", base, "--out", base / "доклад") == 0
    config = base / "élève" / "config.yaml"
    assert call("distill", "--config", config, "--cache", base / "кэш", "--out", base / "2") == 0
    assert ((base / "2" / "student.safetensors").read_bytes()
            == (base / "élève" / "student.safetensors").read_bytes())
