"""Flags, config files, exit codes, signals, files and the Run folder."""

import argparse
import contextlib
import time

import pytest
import torch
import yaml

from dm_kd import distill, run, synthesize, train_teacher
from dm_kd.run import Run, UserError

REQUIRED = ["--task", "digits", "--source", "real", "--teacher", "cnn_w4@none", "--student",
            "cnn_w4", "--out", "x"]


# --- config files ---------------------------------------------------------------------------------

def parsed(tmp_path, config, *flags):
    """distill's flags with a config file of this text (bytes or str)."""
    file = tmp_path / "config.yaml"
    file.write_bytes(config if isinstance(config, bytes) else config.encode())
    return distill.parse([*REQUIRED, "--config", str(file), *flags])


def test_flags_win_over_the_config_and_the_config_over_defaults(tmp_path):
    default = distill.parse(REQUIRED)
    args = parsed(tmp_path, "epochs: 7\nbatch-size: 32\nteacher: a\n", "--epochs", "9")
    assert (args.epochs, args.batch_size, args.temperature) == (9, 32, default.temperature)
    assert args.teacher == "cnn_w4@none"  # not "a" too


def test_a_config_may_give_what_is_required_and_the_generator(tmp_path):
    (tmp_path / "c.yaml").write_text("task: digits\nmodel: cnn_w4\n")
    args = train_teacher.parse(["--config", str(tmp_path / "c.yaml"), "--out", "x"])
    assert args.task == "digits" and args.model == "cnn_w4"
    (tmp_path / "c.yaml").write_text("task: digits\ngenerator: noise\nimages-per-class: 1\n")
    argv = ["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "set"), "--dry-run"]
    assert synthesize.main(argv) == 0 and not (tmp_path / "set").exists()


@pytest.mark.parametrize(("text", "name", "value"), [
    ("learning_rate: 1e-3", "learning_rate", 1e-3), ("lr_decay_epochs: 1,2", "lr_decay_epochs",
                                                      (1, 2)),
    ("lr_decay_epochs: ''", "lr_decay_epochs", ()), ("data: null", "data", None),
    ("no_label_check: true", "no_label_check", True), ("compile: off", "compile", "off"),
    ("no_label_check: false", "no_label_check", False)])
def test_a_value_means_what_it_would_mean_if_typed(tmp_path, text, name, value):
    assert getattr(parsed(tmp_path, text), name) == value


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="tempereture(?s:.)*temperature"):
        parsed(tmp_path, "epochs: 3\ntempereture: 4\n")


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
                                  for a, b in zip("abcdefghi", "bcdefghij", strict=True))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", [
    "epochs: [1, 2]", "epochs: {a: 1}", "- 1", "hello", "a: b: c", "{", "[" * 3000, b"\xff\xfe\x00",
    "epochs: 3\n---\nepochs: 4", "epochs: x", "dry_run: 3", "? {a: b}\n: 3",
    "seed: !!python/object/apply:os.system ['touch CANARY']",
    "!!python/object/apply:os.system ['touch CANARY']: 1",
    "!!python/object/apply:os.system ['touch CANARY']", BOMB])
def test_a_bad_config_is_refused_and_runs_nothing(tmp_path, text):
    canary = tmp_path / "canary"
    with pytest.raises(UserError):
        parsed(tmp_path, text.replace("CANARY", str(canary)) if isinstance(text, str) else text)
    assert not canary.exists()


def test_a_runs_config_gives_the_same_flags_back(tmp_path, distill_args):
    args = distill_args(mixup=0.25, lr_decay_epochs=(), weight_decay=1e-5)
    with Run(tmp_path / "run", args, {"source_sha256": "aa"}, "student"):
        pass
    again = distill.parse(["--config", str(tmp_path / "run/config.yaml"), "--out", str(args.out)])
    assert vars(again) | {"config": None, "command": args.command} == vars(args)


# --- flags, devices, exit codes, signals ----------------------------------------------------------

@pytest.mark.parametrize(("kind", "good", "bad"), [
    (run.positive_int, ["1", "30"], ["0", "-3", "1.5", "1e3", "x", ""]),
    (run.positive_float, ["0.1", "1e-9"], ["0", "-1", "nan", "inf", "-0.0"]),
    (run.nonnegative_float, ["0"], ["-1e-9", "nan"]),
    (run.probability, ["0", "1", "0.5"], ["-0.1", "1.01", "nan"]),
    (run.epoch_list, ["", "30,60"], ["0", "1;2", "-1"])])
def test_a_number_flag_takes_what_is_finite_and_in_range(kind, good, bad):
    assert [kind(text) for text in good]
    for text in bad:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            kind(text)


@pytest.mark.parametrize(("raised", "code", "shown"), [
    (UserError("no dog", hint="buy one"), 2, "error: no dog\n  buy one"),
    (FileNotFoundError(2, "No such file", "a/b.txt"), 2, "a/b.txt"),
    (run.Stopped(15), 143, "resume"), (KeyboardInterrupt(), 130, "resume")])
def test_main_prints_mistakes_and_returns_the_exit_code(capsys, raised, code, shown):
    def body(argv):
        raise raised

    assert run.command(body)([]) == code
    assert shown in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run.command(lambda argv: 1 / 0)([])


@pytest.mark.parametrize(("ranks", "asked", "index"), [
    ("1", "cuda", 0), ("1", "cuda:2", 2), ("2", "cuda", 1)])
def test_each_rank_takes_its_own_gpu(monkeypatch, ranks, asked, index):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    if ranks == "2":
        monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        args = argparse.Namespace(device=asked, threads=1)
        assert run.use_device(args) == torch.device("cuda", index) == chosen[0]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def test_progress_is_plain_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.02)
    bar = run.progress(100, "work", "steps", done=10)
    for _ in range(3):
        time.sleep(0.05)
        bar.update()
    bar.close()
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 4 and "work: 13/100 steps" in lines[2]


# --- files ----------------------------------------------------------------------------------------

def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new folder" / "file"
    run.write_file(path, "old")
    with pytest.raises(KeyboardInterrupt), run.replacing(path) as temp:
        temp.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_weights_are_those_of_their_card(tmp_path):
    digest = run.write_with_card(tmp_path, "w", {"a": torch.ones(3)}, {"model": "m"})
    tensors, card = run.read_with_card(tmp_path, "w")
    assert tensors["a"].tolist() == [1, 1, 1] and card == {"model": "m", "sha256": digest}
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:-1] + b"x")
    with pytest.raises(UserError, match="w.safetensors"):
        run.read_with_card(tmp_path, "w")


# --- the Run folder -------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path, distill_args):
    """f(inputs, **changed flags) -> a Run of this test's folder."""

    def make(inputs=None, **changes) -> Run:
        return Run(tmp_path / "run", distill_args(**changes), inputs or {}, "student")

    return make


@pytest.mark.parametrize(("inputs", "flags", "ranks", "shown"), [
    ({}, {"temperature": 4.0}, "1", "temperature: 10.0 -> 4.0"),
    ({"source_sha256": "bb"}, {}, "1", "source_sha256: aa -> bb"),
    ({"source_sha256": "aa"}, {}, "2", "processes: None -> 2"),
    ({"source_sha256": "aa"}, {"checkpoint_seconds": 1.0}, "1", None)])
def test_a_run_is_resumed_only_with_the_same_settings(folder, monkeypatch, inputs, flags, ranks,
                                                      shown):
    with folder({"source_sha256": "aa"}):
        pass
    monkeypatch.setenv("WORLD_SIZE", ranks)
    refused = pytest.raises(UserError, match=shown) if shown else contextlib.nullcontext()
    with refused, folder(inputs, **flags):
        pass


def test_a_second_writer_is_kept_out_while_the_first_one_lives(folder, tmp_path):
    with folder(), pytest.raises(UserError, match="run"), folder():
        pass
    run.write_file(tmp_path / "run/.last.tmp.77.pt", b"half")  # of a killed process
    with folder() as third:
        assert not (tmp_path / "run/.last.tmp.77.pt").exists()
        assert yaml.safe_load((third.folder / "config.yaml").read_text())["epochs"] == 2


def test_the_last_checkpoint_is_loaded_and_a_damaged_one_is_refused(folder):
    with folder() as made:
        assert made.load_checkpoint() is None
        for step in range(3):
            made.save_checkpoint({"step": step, "weights": torch.full((3,), step)})
        assert made.load_checkpoint()["step"] == 2
        last = made.folder / "last.pt"
        last.write_bytes(last.read_bytes()[:-100])
        with pytest.raises(UserError, match="last.pt"):
            made.load_checkpoint()
