"""What a user can get wrong: what, where and what to do in at most six lines, and the exit code.

Entries are called in this process with their argv, which is what `python -m` calls; a traceback
would leave `main` as an exception and fail the test.
"""

import importlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import processes
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import contents

from dm_kd import files, models, run
from dm_kd.tasks import get_task, load_real

ENTRIES = ("synthesize", "distill", "train_teacher", "train_generator", "evaluate", "inspect_set",
           "report")
# A complete command of each entry. Nothing in it needs to exist for --dry-run.
COMMANDS = {
    "synthesize": ("--task", "digits", "--generator", "dit", "--weights", "w", "--out", "out"),
    "distill": ("--task", "digits", "--source", "set", "--teacher", "t", "--student", "cnn_w4",
                "--out", "out"),
    "train_teacher": ("--task", "digits", "--model", "cnn_w4", "--out", "out"),
    "train_generator": ("--task", "digits", "--out", "out"),
    "evaluate": ("--task", "digits", "--model", "m"),
    "inspect_set": ("--task", "digits", "--set", "set", "--teacher", "t"),
    "report": ("--runs", "runs", "--out", "out"),
}
NUMBERS = {  # type of a flag -> values that it must refuse, besides those that no number may be
    run.positive_int: ("0", "-3", "1.5", "1e3"), run.nonnegative_int: ("-1", "0.5"),
    run.positive_float: ("0", "-0.1", "-0.0"), run.nonnegative_float: ("-0.1",),
    run.probability: ("-0.1", "1.01"), run.epoch_list: ("0", "3,2", "2,2", "-1", "1;2")}
NO_NUMBERS = ("nan", "inf", "-inf", "x", "9" * 400, "-" + "9" * 400, "1e999", "²")


def call(entry, *argv):
    return importlib.import_module(f"dm_kd.{entry}").main([str(a) for a in argv])


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys):
    """f(code or codes, entry, *argv) -> the message, after checking the exit code and form."""

    def check(code, entry, *argv):
        capsys.readouterr()
        found = call(entry, *argv)
        out, err = capsys.readouterr()
        codes = code if isinstance(code, tuple) else (code,)
        assert found in codes, f"exit {found}\n{out}\n{err}"
        lines = err.splitlines()
        assert 2 <= len(lines) <= 6 and lines[0].startswith("error: "), err
        assert "Traceback" not in err
        return err

    return check


def parser_of(entry, monkeypatch):
    """The entry's argparse parser."""
    caught = []

    def parse(parser, argv):
        caught.append(parser)
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(run, "parse", parse)
        call(entry, *COMMANDS[entry])
    return caught[0]


# --- flags ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("entry", ENTRIES)
def test_numbers_out_of_range_are_refused_and_the_flag_is_named(entry, monkeypatch, refused,
                                                                tmp_path):
    tried = 0
    for action in parser_of(entry, monkeypatch)._actions:
        for value in NUMBERS.get(action.type, ()) + (NO_NUMBERS if action.type in NUMBERS else ()):
            flag = action.option_strings[0]
            message = refused(2, entry, *COMMANDS[entry], "--dry-run", f"{flag}={value}")
            assert flag in message, (flag, value, message)
            tried += 1
    assert tried >= 20 and contents(tmp_path) == {}


@pytest.mark.parametrize("entry", ENTRIES)
def test_choices_are_refused_with_the_choices(entry, monkeypatch, refused):
    for action in parser_of(entry, monkeypatch)._actions:
        if action.choices and action.dest != "generator":
            message = refused(2, entry, *COMMANDS[entry], action.option_strings[0], "no-such")
            assert all(str(choice) in message for choice in action.choices)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_unknown_flag_is_refused_with_the_nearest(entry, refused):
    message = refused(2, entry, *COMMANDS[entry], "--sed", "1")
    assert "--sed" in message and "--seed" in message


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_flag_is_never_abbreviated(entry, refused):
    assert "--dry-run" in refused(2, entry, *COMMANDS[entry], "--dry-ru")


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_forgotten_flag_or_value_is_named(entry, refused):
    assert COMMANDS[entry][0] in refused(2, entry)
    assert "--seed" in refused(2, entry, *COMMANDS[entry], "--seed")
    assert "--config" in refused(2, entry, *COMMANDS[entry], "--config")
    assert "stray" in refused(2, entry, *COMMANDS[entry], "stray")


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_explains_every_flag(entry, monkeypatch, capsys):
    parser = parser_of(entry, monkeypatch)
    assert call(entry, "--help") == 0
    shown = capsys.readouterr().out
    for action in parser._actions:
        if entry != "synthesize" or action.container.title != "dit":
            assert action.option_strings[0] in shown
        assert action.help or action.required, action.option_strings


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_dry_run_needs_nothing_writes_nothing_and_succeeds(entry, capsys, tmp_path):
    assert call(entry, *COMMANDS[entry], "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "would" in out + err and "Traceback" not in err
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "hpu", "xpu", "mps", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(device, refused):
    assert "--device cpu" in refused(2, "evaluate", "--task", "digits", "--model", "cnn_w4@none",
                                     f"--device={device}")


def test_more_threads_than_any_machine_has_are_refused(refused):
    assert "--threads" in refused(2, "evaluate", "--task", "digits", "--model", "cnn_w4@none",
                                  "--threads", 10 ** 12)


@pytest.mark.parametrize("entry", ENTRIES)
@settings(max_examples=40)
@given(data=st.data())
def test_any_text_as_any_value_gives_a_short_message(entry, monkeypatch, capsys, data, tmp_path):
    flags = [a for a in parser_of(entry, monkeypatch)._actions if a.nargs is None
             and a.dest not in ("width", "depth")]  # of any size, if there is the memory
    action = data.draw(st.sampled_from(flags))
    value = data.draw(st.one_of(  # what an argument vector can hold
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300),
        st.text("0123456789-,.e+_ ", max_size=12), st.floats().map(str)))
    capsys.readouterr()
    code = call(entry, *COMMANDS[entry], "--dry-run", f"{action.option_strings[0]}={value}")
    out, err = capsys.readouterr()
    assert code in (0, 2), (code, err)
    assert "Traceback" not in err and len(err.split("\n")) <= 7
    assert contents(tmp_path) == {}


# --- names ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("entry", [e for e in ENTRIES if e != "report"])
def test_an_unknown_task_is_refused_with_the_nearest(entry, refused):
    message = refused(2, entry, *COMMANDS[entry], "--task", "digit")
    assert "'digit'" in message and "digits" in message


def test_an_unknown_model_is_refused_with_the_nearest(refused):
    for entry, flag in (("distill", "--student"), ("train_teacher", "--model")):
        message = refused(2, entry, *COMMANDS[entry], flag, "cnn_w9")
        assert "'cnn_w9'" in message and "cnn_w8" in message
    assert "resnet18" in refused(2, "evaluate", "--task", "digits", "--model",
                                 "torchvision:resnet19@none")
    assert "cnn_w8" in refused(2, "evaluate", "--task", "digits", "--model", "cnn_w9@none")


def test_an_unknown_generator_is_refused_with_the_nearest(refused):
    assert "noise" in refused(2, "synthesize", *COMMANDS["synthesize"], "--generator", "nois")


def test_a_network_for_colour_images_is_refused_for_grey_ones(refused):
    assert "channels" in refused(2, "train_teacher", "--task", "digits", "--model",
                                 "torchvision:resnet18", "--out", "out")


# --- paths ----------------------------------------------------------------------------------------

PATH_FLAGS = {"synthesize": ("--weights",), "distill": ("--source", "--teacher"),
              "evaluate": ("--model",), "inspect_set": ("--set",), "report": ("--runs",)}


@pytest.mark.parametrize("entry, flag", [(e, f) for e, flags in PATH_FLAGS.items() for f in flags])
@pytest.mark.parametrize("path", ["nowhere/at all", "n" * 300, "a_file/inside", "empty_folder",
                                  "a_file"])
def test_a_path_that_is_wrong_is_named(entry, flag, path, refused, tmp_path, teacher_folder):
    (tmp_path / "a_file").write_text("not what it should be")
    (tmp_path / "empty_folder").mkdir()
    command = [*COMMANDS[entry], flag, path]
    if entry == "distill":  # each --teacher is one more: the missing "t" would be named first
        at = command.index("--teacher")
        del command[at:at + 2]
    if entry == "distill" and flag == "--source":
        command += ["--teacher", teacher_folder]
    before = contents(tmp_path)
    assert path in refused(2, entry, *command)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_config_that_is_not_there_is_named(entry, refused):
    assert "nowhere.yaml" in refused(2, entry, *COMMANDS[entry], "--config", "nowhere.yaml")
    assert "--config" in refused(2, entry, *COMMANDS[entry], "--config", "nowhere.yaml")


WRITERS = {
    "synthesize": ("--task", "digits", "--generator", "noise", "--images-per-class", 1),
    "distill": ("--task", "digits", "--source", "real", "--teacher", "cnn_w4@none", "--student",
                "cnn_w4", "--epochs", 1, "--no-label-check"),
    "train_teacher": ("--task", "digits", "--model", "cnn_w4", "--epochs", 1),
    "train_generator": ("--task", "digits", "--width", 16, "--depth", 1, "--steps", 2),
}


@pytest.mark.parametrize("entry", WRITERS)
def test_a_folder_with_foreign_files_is_refused_and_left_alone(entry, refused, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.png").write_bytes(b"dear")
    before = contents(tmp_path)
    assert "photos" in refused(2, entry, *WRITERS[entry], "--out", "photos")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("entry", WRITERS)
@pytest.mark.parametrize("out", ["a_file", "a_file/inside", "n" * 300])
def test_an_output_folder_that_cannot_be_one_is_refused(entry, out, refused, tmp_path):
    (tmp_path / "a_file").write_text("mine")
    assert out[:200] in refused(2, entry, *WRITERS[entry], "--out", out)
    assert contents(tmp_path) == {"a_file": b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("entry", WRITERS)
def test_a_read_only_folder_is_exit_6(entry, refused, tmp_path):
    (tmp_path / "fixed").mkdir(mode=0o555)
    assert "fixed" in refused(6, entry, *WRITERS[entry], "--out", "fixed/out")


@pytest.mark.parametrize("entry, changed, shown", [
    ("synthesize", ("--seed", 5), "base_seed: 0 -> 5"),
    ("synthesize", ("--batch-size", 5), "shard_size: 100 -> 5"),
    ("train_teacher", ("--learning-rate", 0.5), "learning_rate: 0.1 -> 0.5"),
    ("train_teacher", ("--model", "cnn_w8"), "model: cnn_w4 -> cnn_w8")])
def test_a_folder_of_another_run_is_refused_with_the_difference(entry, changed, shown, refused,
                                                                tmp_path, capsys):
    assert call(entry, *WRITERS[entry], "--device", "cpu", "--out", "out") == 0
    before = contents(tmp_path)
    message = refused(2, entry, *WRITERS[entry], "--device", "cpu", "--out", "out", *changed)
    assert shown in message and "--out" in message
    assert contents(tmp_path) == before


def test_an_image_set_never_shrinks(refused, noise_folder):
    message = refused(2, "synthesize", *WRITERS["synthesize"], "--batch-size", 8, "--device",
                      "cpu", "--out", noise_folder)
    assert "4 images per class" in message


def test_paths_with_spaces_and_other_alphabets_work_from_teacher_to_report(tmp_path, capsys):
    base = tmp_path / "très bon жизнь 数字"
    common = ("--task", "digits", "--device", "cpu")
    assert call("train_teacher", *common, "--model", "cnn_w4", "--epochs", 1, "--out",
                base / "mon maître") == 0
    assert call("synthesize", *common, "--generator", "noise", "--images-per-class", 2, "--out",
                base / "шум 1") == 0
    assert call("distill", *common, "--source", base / "шум 1", "--teacher", base / "mon maître",
                "--student", "cnn_w4", "--epochs", 1, "--no-label-check", "--cache", base / "кэш",
                "--out", base / "élève") == 0
    assert call("evaluate", *common, "--model", base / "élève") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"] == str(base / "élève")
    assert call("report", "--runs", base, "--out", base / "доклад") == 0
    assert "élève" in capsys.readouterr().out
    again = (base / "élève" / "config.yaml")
    assert call("distill", "--config", again, "--cache", base / "кэш", "--out", base / "2") == 0
    assert ((base / "2" / "student.safetensors").read_bytes()
            == (base / "élève" / "student.safetensors").read_bytes())


# --- values that fit no data ----------------------------------------------------------------------

@pytest.mark.parametrize("entry, flags, shown", [
    ("synthesize", ("--classes", "5-3"), "5-3"), ("synthesize", ("--classes", "10"), "0-9"),
    ("synthesize", ("--classes", "0-9,x"), "x"), ("synthesize", ("--classes", ""), "--classes"),
    ("synthesize", ("--rank", 2, "--world-size", 2), "--rank 2"),
    ("synthesize", ("--rank", 1), "--rank 1"),
    ("train_teacher", ("--fold", 9), "folds 0 to 4"),
    ("distill", ("--fold", 9), "folds 0 to 4"),
    ("train_generator", ("--fold", 9), "folds 0 to 4"),
    ("train_generator", ("--patch-size", 3), "--patch-size 3"),
    ("train_generator", ("--width", 17), "--width 17"),
    ("train_generator", ("--heads", 5), "--heads 5"),
    ("train_teacher", ("--images-per-class", 10 ** 6), "--images-per-class"),
    ("distill", ("--images-per-class", 10 ** 6), "--images-per-class"),
    ("train_teacher", ("--data", "here"), "--data"),
    ("synthesize", ("--images-per-class", 10 ** 12), "--images-per-class")])
def test_a_value_that_fits_no_data_is_refused_and_nothing_is_written(entry, flags, shown, refused,
                                                                     tmp_path):
    assert shown in refused(2, entry, *WRITERS[entry], "--out", "out", *flags)
    assert contents(tmp_path) == {}


def test_a_dry_run_says_what_does_not_fit_on_the_disk(capsys, monkeypatch):
    full = os.statvfs(".")
    monkeypatch.setattr(files.os, "statvfs", lambda place: type(full)((*full[:4], 0, *full[5:])))
    assert call("synthesize", *WRITERS["synthesize"], "--out", "out", "--dry-run") == 0
    assert "note: the set needs" in capsys.readouterr().out


def test_a_list_of_all_classes_may_be_long(capsys):
    classes = ",".join(str(c % 10) for c in range(1000))
    assert call("synthesize", *WRITERS["synthesize"], "--classes", classes, "--out", "out") == 0


def test_more_images_than_the_set_has_are_refused(refused, noise_folder, teacher_folder):
    message = refused(2, "distill", "--task", "digits", "--source", noise_folder, "--teacher",
                      teacher_folder, "--student", "cnn_w4", "--images-per-class", 5, "--out", "o")
    assert "4 images per class" in message


def test_a_drawn_part_of_a_set_or_of_no_stated_size_is_refused(refused, noise_folder,
                                                              teacher_folder):
    common = ("distill", "--task", "digits", "--teacher", teacher_folder, "--student", "cnn_w4",
              "--subset-seed", 1, "--out", "o", "--source")
    assert "leave it out" in refused(2, *common, noise_folder, "--images-per-class", 2)
    assert "--images-per-class N" in refused(2, *common, "real")


def test_evaluate_needs_something_to_judge_on(refused):
    assert "--val" in refused(2, "evaluate", *COMMANDS["evaluate"], "--val", "none")


@pytest.mark.parametrize("command", ["distill", "train_teacher"])
def test_val_none_trains_without_looking_at_the_validation_data(command, capsys):
    flags = (command, *WRITERS[command], "--val", "none", "--out", "out")
    assert call(*flags) == 0
    assert "finished: not judged (--val none)" in capsys.readouterr().out
    assert call(*flags) == 0
    assert "out is finished: not judged (--val none)" in capsys.readouterr().out
    result = json.loads(open("out/result.json").read())
    assert result["acc1"] is None and result["best_acc1"] is None and result["val_images"] == 0
    assert not os.path.exists("out/best.pt")


# --- teachers -------------------------------------------------------------------------------------

def distill_from(teacher, *more):
    return ("distill", "--task", "digits", "--source", "real", "--student", "cnn_w4", "--epochs",
            1, "--out", "out", "--teacher", teacher, *more)


def test_a_teacher_of_other_classes_is_refused_before_training(refused, tmp_path):
    torch.save(models.MODELS["cnn_w8"](1000, 1).state_dict(), tmp_path / "big.pth")
    message = refused(2, *distill_from("cnn_w8@big.pth"))
    assert "1000 classes" in message and "10" in message and not (tmp_path / "out").exists()


def test_a_teacher_of_another_architecture_is_refused(refused, tmp_path):
    torch.save(models.MODELS["wrn_16_1"](10, 1).state_dict(), tmp_path / "wide.pth")
    assert "not those of cnn_w8" in refused(2, *distill_from("cnn_w8@wide.pth"))
    torch.save(models.MODELS["cnn_w4"](10, 1).state_dict(), tmp_path / "thin.pth")
    assert "not those of cnn_w8" in refused(2, *distill_from("cnn_w8@thin.pth"))


def test_a_file_that_does_not_say_its_architecture_asks_for_it(refused, tmp_path):
    torch.save({"stem.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "mystery.pth")
    assert "NAME@mystery.pth" in refused(2, *distill_from("mystery.pth"))


def test_a_teacher_with_random_weights_is_caught_before_training(refused):
    message = refused(2, *distill_from("cnn_w8@none"))
    assert "chance" in message and "--no-label-check" in message


def test_an_unfinished_run_is_no_teacher(refused, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("seed: 0\n")
    assert "not finished" in refused(2, *distill_from("half"))


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("writer", ["pickle", "torch", "torch_legacy"])
@pytest.mark.parametrize("inside", ["bare", "beside_tensors"])
def test_a_hostile_weights_file_runs_nothing(refused, tmp_path, writer, protocol, inside):
    value = Touch(tmp_path / "canary")
    if inside == "beside_tensors":
        value = {**models.MODELS["cnn_w4"](10, 1).state_dict(), "extra": value}
    with open("evil.pth", "wb") as file:
        if writer == "pickle":
            pickle.dump(value, file, protocol)
        else:
            torch.save(value, file, pickle_protocol=protocol,
                       _use_new_zipfile_serialization=writer == "torch")
    message = refused((2, 5), *distill_from("cnn_w4@evil.pth"))
    assert "evil.pth" in message and not (tmp_path / "canary").exists()


STATE = models.MODELS["cnn_w4"](10, 1).state_dict()
BAD_WEIGHTS = {  # name -> (exit code, what the file holds)
    "empty.pth": (5, b""), "text.pth": (5, b"hello, world\n" * 20), "zeros.pth": (5, bytes(5000)),
    "html.pth": (5, b"<!DOCTYPE html><html>404</html>"), "marker.pth": (5, b"\x80\x04"),
    "empty.safetensors": (5, b""), "text.safetensors": (5, b"hello, world\n" * 20),
    "header.safetensors": (5, (1 << 60).to_bytes(8, "little") + b"{}"),
    "list.pth": (2, [1, 2]), "number.pth": (2, 3.5), "scalar.pth": (2, torch.tensor(1.0)),
    "tensor.pth": (2, torch.ones(3)), "nothing.pth": (2, {}), "none.pth": (2, None),
    "numbered.pth": (2, {0: torch.ones(3)}), "mixed.pth": (2, {**STATE, "epoch": 3}),
    "foreign.pth": (2, {"weight": torch.ones(3)}),
    "some.pth": (2, dict(list(STATE.items())[:5])),
    "more.pth": (2, {**STATE, **{f"layer{i}.weight": torch.ones(1) for i in range(1000)}}),
    "nan.pth": (5, {**STATE, "fc.bias": torch.full((10,), torch.nan)}),
    "flat.pth": (2, {key: value.flatten() for key, value in STATE.items()}),
    "sparse.pth": (2, {**STATE, "fc.weight": STATE["fc.weight"].to_sparse()}),
    "complex.pth": (2, {**STATE, "fc.bias": STATE["fc.bias"].to(torch.complex64)}),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_a_file_that_holds_no_weights_is_refused_and_named(refused, tmp_path, name):
    code, value = BAD_WEIGHTS[name]
    if isinstance(value, bytes):
        (tmp_path / name).write_bytes(value)
    else:
        torch.save(value, tmp_path / name)
    assert name in refused(code, *distill_from(f"cnn_w4@{name}"))


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_truncated_weights_file_is_damage(refused, tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    (torch.save if kind == "pth" else safetensors.torch.save_file)(STATE, whole)
    data = whole.read_bytes()
    for length in range(1, len(data) - 1, len(data) // 19):
        (tmp_path / f"cut.{kind}").write_bytes(data[:length])
        assert f"cut.{kind}" in refused(5, *distill_from(f"cnn_w4@cut.{kind}"))


def test_a_flipped_bit_in_a_run_folders_weights_is_damage(refused, teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    assert "model.safetensors" in refused(5, *distill_from("copy"))
    assert "model.safetensors" in refused(5, "evaluate", "--task", "digits", "--model", "copy")


@pytest.mark.parametrize("card", ["", "[]", "{}", '{"sha256": 3}', "\xff", '{"model": 5}'])
def test_a_damaged_card_is_damage(refused, teacher_folder, tmp_path, card):
    shutil.copytree(teacher_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.json"
    if card == '{"model": 5}':
        card = json.dumps({**json.loads(path.read_text()), "model": 5})
    path.write_text(card, encoding="latin1")
    assert "model.json" in refused(5, *distill_from("copy"))


def test_wrapped_and_prefixed_weights_are_loaded(capsys, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in STATE.items()}, "epoch": 3}, "w.pth")
    assert call("evaluate", "--task", "digits", "--model", "cnn_w4@w.pth") == 0


# --- generators and sets --------------------------------------------------------------------------

@pytest.mark.parametrize("damage", ["weights", "no config", "config", "task", "not json"])
def test_a_damaged_generator_is_damage(refused, tmp_path, damage, capsys):
    assert call("train_generator", *WRITERS["train_generator"], "--device", "cpu",
                "--out", "dit") == 0
    weights, card = tmp_path / "dit" / "dit.safetensors", tmp_path / "dit" / "dit.json"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif damage == "not json":
        card.write_text(card.read_text()[:50])
    else:
        value = json.loads(card.read_text())
        if damage == "config":
            value["config"]["width"] = 32
        else:
            del value["config" if damage == "no config" else "task"]
        card.write_text(json.dumps(value))
    message = refused(5, "synthesize", "--task", "digits", "--weights", "dit", "--steps", 2,
                      "--images-per-class", 1, "--out", "set")
    assert "dit" in message and not (tmp_path / "set").exists()


def test_a_truncated_image_of_a_set_is_damage_and_nothing_is_left(refused, noise_folder, tmp_path,
                                                                  teacher_folder):
    shutil.copytree(noise_folder, tmp_path / "set")
    image = tmp_path / "set" / "images" / "0004" / "class_4_seed_0_num_1.png"
    image.write_bytes(image.read_bytes()[:-10])
    message = refused(5, "distill", "--task", "digits", "--source", "set", "--teacher",
                      teacher_folder, "--student", "cnn_w4", "--cache", "cache", "--out", "out")
    assert image.name in message and "--repair" in message
    assert contents(tmp_path / "cache") == {} and not (tmp_path / "out").exists()


def test_a_missing_image_of_a_set_is_named(refused, noise_folder, tmp_path, teacher_folder):
    shutil.copytree(noise_folder, tmp_path / "set")
    image = tmp_path / "set" / "images" / "0004" / "class_4_seed_0_num_1.png"
    image.unlink()
    assert image.name in refused(5, "distill", "--task", "digits", "--source", "set", "--teacher",
                                 teacher_folder, "--student", "cnn_w4", "--out", "out")


def test_an_incomplete_set_is_refused_with_its_progress(refused, noise_folder, tmp_path,
                                                        teacher_folder):
    shutil.copytree(noise_folder, tmp_path / "set")
    (tmp_path / "set" / "index.csv").unlink()
    (tmp_path / "set" / "shards" / "00003.json").unlink()
    assert "4 of 5 shards" in refused(2, "distill", "--task", "digits", "--source", "set",
                                      "--teacher", teacher_folder, "--student", "cnn_w4",
                                      "--out", "out")


def test_a_set_made_by_a_newer_version_says_so(refused, noise_folder, tmp_path):
    shutil.copytree(noise_folder, tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    assert "newer version" in refused(2, "inspect_set", "--task", "digits", "--set", "set")


# --- config files ---------------------------------------------------------------------------------

@pytest.mark.parametrize("text, shown", [
    ("epocs: 3", "epochs"), ("epochs: 3\nepochs: 4", "line 2"), ("epochs: [1, 2]", "epochs"),
    ("epochs: {a: 1}", "epochs"), ("- epochs", "flag: value"), ("epochs: 3\n  seed: 1", "c.yaml"),
    ("epochs: 0", "--epochs"), ("epochs: 1e3", "--epochs"), ("seed: yes please", "--seed"),
    ("debug: 3", "debug"), ("learning_rate: .inf", "--learning-rate"),
    ("seed: !!python/object/apply:os.system ['touch canary']", "seed"),
    ("? {a: b}\n: 3", "c.yaml"), ("epochs: \"3\x00\"", "c.yaml"), ("\t", "c.yaml")])
def test_a_bad_config_names_the_place(refused, tmp_path, text, shown):
    (tmp_path / "c.yaml").write_text(text)
    assert shown in refused(2, "train_teacher", *COMMANDS["train_teacher"], "--dry-run",
                            "--config", "c.yaml")
    assert not (tmp_path / "canary").exists()


def test_a_config_of_bytes_is_refused(refused, tmp_path):
    (tmp_path / "c.yaml").write_bytes(bytes(range(256)))
    assert "c.yaml" in refused(2, "train_teacher", *COMMANDS["train_teacher"], "--config",
                               "c.yaml")


def test_a_config_may_choose_the_generator(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("task: digits\ngenerator: noise\nout: set\n"
                                     "images-per-class: 1\n")
    assert call("synthesize", "--config", "c.yaml", "--dry-run") == 0
    assert "would make 10 images" in capsys.readouterr().out


@settings(max_examples=150)
@given(text=st.one_of(
    st.text(max_size=60), st.dictionaries(
        st.sampled_from(["epochs", "seed", "learning_rate", "fold", "val", "debug", "x", "mixup"]),
        st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=9),
                  st.lists(st.integers(), max_size=2)), max_size=4).map(yaml.safe_dump)))
def test_any_config_is_taken_or_refused_shortly(capsys, tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8", errors="replace")
    capsys.readouterr()
    code = call("train_teacher", *COMMANDS["train_teacher"], "--dry-run", "--config", "c.yaml")
    _, err = capsys.readouterr()
    assert code in (0, 2) and (code == 0) == (err == "") and len(err.splitlines()) <= 6, err


# --- evaluate's output ----------------------------------------------------------------------------

def test_evaluate_prints_one_json_line_and_all_else_on_stderr(teacher_folder):
    ended = processes.run("evaluate", "--task", "digits", "--model", teacher_folder, "--fold", 1,
                          "--device", "cpu")
    assert ended.code == 0 and "fold 0" in ended.err  # the note on the other fold
    lines = ended.out.splitlines()
    record = json.loads(lines[0])
    assert len(lines) == 1
    assert record.keys() == {"task", "model", "images", "acc1", "acc5", "ece"}
    assert record["task"] == "digits" and record["model"] == str(teacher_folder)
    assert record["images"] == len(load_real(get_task("digits"), "val", fold=1).labels)
    assert 0 <= record["acc1"] <= record["acc5"] <= 100 and 0 <= record["ece"] <= 100


def test_evaluate_writes_no_file(teacher_folder, tmp_path, capsys):
    before = contents(teacher_folder)
    assert call("evaluate", "--task", "digits", "--model", teacher_folder) == 0
    assert contents(tmp_path) == {} and contents(teacher_folder) == before


def test_debug_shows_the_traceback_and_the_message(capsys):
    assert call("evaluate", "--task", "digits", "--model", "nowhere", "--debug") == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "error: " in shown


@pytest.mark.parametrize("lines", [None, "report --runs runs --out out --dry-run\n" * 2])
def test_a_reader_that_has_gone_ends_a_command_quietly(lines):
    command = ["dm_kd"] if lines else ["dm_kd.train_teacher", *COMMANDS["train_teacher"],
                                       "--dry-run"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run([sys.executable, "-m", *command], input=lines, stdout=writing,
                               stderr=subprocess.PIPE, text=True, cwd=processes.ROOT)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def start_commands(text, monkeypatch, *argv):
    """`python -m dm_kd` with a text as standard input (None: a terminal), in this process."""
    lines = io.StringIO(text)
    lines.isatty = lambda: text is None
    monkeypatch.setattr(sys, "stdin", lines)
    monkeypatch.setattr(sys, "argv", ["dm_kd", *argv])
    return importlib.import_module("dm_kd.__main__").main()


@pytest.mark.parametrize(("text", "argv", "code"), [
    ("", ["--help"], 0), ("", ["-h"], 0), (None, [], 2), ("", ["distill", "--task", "digits"], 2)])
def test_without_command_lines_the_starter_prints_the_known_commands(text, argv, code, monkeypatch,
                                                                     capsys):
    assert start_commands(text, monkeypatch, *argv) == code
    shown = capsys.readouterr()
    said, silent = (shown.err, shown.out) if code else (shown.out, shown.err)
    assert "< commands.txt" in said and not silent and all(entry in said for entry in ENTRIES)


@pytest.mark.parametrize(("line", "shown"), [
    ("distil --task digits", "did you mean distill"), ("errors", "begins with no command"),
    ("report --out 'a", "no closing quotation"), ("'' --help", "begins with no command: ''"),
    ("__main__", "begins with no command")])
def test_a_line_that_is_no_command_is_named_before_any_runs(line, shown, monkeypatch, capsys):
    before = "# two good ones\n\nreport --runs runs --out out --dry-run\n" * 2
    assert start_commands(before + line, monkeypatch) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: line 7 ") and len(err.splitlines()) <= 6
    assert shown in err and line in err
