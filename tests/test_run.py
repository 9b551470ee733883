"""Flags, config files, exit codes and the Run folder: whose value counts, and what is refused."""

import argparse
import contextlib
import os
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dm_kd import distill, files, run, synthesize, train_generator, train_teacher
from dm_kd.errors import DamagedError, LockedError, UserError, nearest, refuse_difference
from dm_kd.run import Run

REQUIRED = ["--task", "digits", "--source", "real", "--teacher", "cnn_w4@none", "--student",
            "cnn_w4", "--out", "x"]


def parsed(tmp_path, config, *flags):
    """distill's flags with a config file of this text (bytes or str)."""
    file = tmp_path / "config.yaml"
    file.write_bytes(config if isinstance(config, bytes) else config.encode())
    return distill.parse([*REQUIRED, "--config", str(file), *flags])


def refused(capsys, main, *argv):
    """(exit code, message) of a command in this process."""
    code = main([str(word) for word in argv])
    message = capsys.readouterr().err
    assert "Traceback" not in message and len(message.splitlines()) <= 6, message
    return code, message


# --- config files ---------------------------------------------------------------------------------

def test_a_flag_counts_over_the_config_and_the_config_over_the_default(tmp_path):
    default = distill.parse(REQUIRED)
    args = parsed(tmp_path, "epochs: 7\nbatch-size: 32\n", "--epochs", "9")
    assert (args.epochs, args.batch_size, args.temperature) == (9, 32, default.temperature)
    assert default.epochs == 100 and default.batch_size == 256


def test_a_config_may_give_what_is_required(tmp_path):
    (tmp_path / "c.yaml").write_text("task: digits\nmodel: cnn_w4\n")
    args = train_teacher.parse(["--config", str(tmp_path / "c.yaml"), "--out", "x"])
    assert args.task == "digits" and args.model == "cnn_w4"


@pytest.mark.parametrize(("text", "name", "value"), [
    ("learning_rate: 1e-3", "learning_rate", 1e-3),  # YAML: a string
    ("epochs: 010", "epochs", 10),  # YAML: 8
    ("out: 12:30:45", "source", "real"), ("student: on", "student", "cnn_w4"),
    ("lr_decay_epochs: 1,2", "lr_decay_epochs", (1, 2)),
    ("lr_decay_epochs: ''", "lr_decay_epochs", ()), ("threads: null", "threads", None),
    ("no_label_check: true", "no_label_check", True),
    ("no_label_check: false", "no_label_check", False)])
def test_a_value_means_what_the_flag_would(tmp_path, text, name, value):
    assert getattr(parsed(tmp_path, text), name) == value


@pytest.mark.parametrize("text", ["objective: on", "cache: 12:30:45", "source: 1e3"])
def test_text_that_yaml_would_turn_into_something_else_stays_text(tmp_path, text):
    name, value = text.split(": ")
    (tmp_path / "c.yaml").write_text(text)
    flags = run._config_as_flags(distill_parser(), tmp_path / "c.yaml")
    assert flags == [f"--{name}={value}"]


def distill_parser():
    parser = run.Parser("distill", "")
    for name in ("--objective", "--cache", "--source"):
        parser.add_argument(name)
    return parser


def test_an_unknown_key_names_the_line_and_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"line 2: unknown key 'tempereture'(?s:.)*temperature"):
        parsed(tmp_path, "epochs: 3\ntempereture: 4\n")


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match="line 3: 'batch_size' stands twice"):
        parsed(tmp_path, "batch-size: 3\nepochs: 1\nbatch_size: 4\n")


@pytest.mark.parametrize("text", ["epochs: [1, 2]", "epochs: {a: 1}", "epochs:\n  - 1"])
def test_a_nested_value_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="line 1: 'epochs' must be one value"):
        parsed(tmp_path, text)


@pytest.mark.parametrize("text", ["- 1\n- 2", "hello", "a: b: c", "\t- x: [", "{", b"\xff\xfe\x00",
                                  b"\x00", "epochs: 3\n---\nepochs: 4", "[" * 3000])
def test_what_is_no_flat_mapping_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="config.yaml"):
        parsed(tmp_path, text)


@pytest.mark.parametrize("text", [
    "seed: !!python/object/apply:os.system ['touch CANARY']",
    "seed: !!python/object/apply:os.system 'touch CANARY'",
    "!!python/object/apply:os.system ['touch CANARY']: 1",
    "!!python/object/apply:os.system ['touch CANARY']"])
def test_python_objects_in_a_config_run_nothing(tmp_path, text):
    canary = tmp_path / "canary"
    with pytest.raises(UserError):
        parsed(tmp_path, text.replace("CANARY", str(canary)))
    assert not canary.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line", ["epochs: {}", "? {}\n: 1"])
def test_an_alias_bomb_is_refused_at_once(tmp_path, line):
    deep = "[a, a, a, a, a, a, a, a]"
    for n in range(9):  # 8 ** 10 words, if it were written out
        deep = f"[&n{n} {deep}" + f", *n{n}" * 7 + "]"
    with pytest.raises(UserError):
        parsed(tmp_path, line.format(deep))


@pytest.mark.timeout(60)
def test_an_alias_bomb_as_the_generators_name_is_refused_at_once(tmp_path, capsys):
    deep = "[a, a, a, a, a, a, a, a]"
    for n in range(9):
        deep = f"[&n{n} {deep}" + f", *n{n}" * 7 + "]"
    (tmp_path / "c.yaml").write_text(f"generator: {deep}")
    code, _ = refused(capsys, synthesize.main, "--task", "digits", "--out", "x", "--weights", "y",
                      "--config", tmp_path / "c.yaml")
    assert code == 2


def test_a_missing_config_is_refused_by_its_flag(tmp_path):
    with pytest.raises(UserError, match="--config"):
        distill.parse([*REQUIRED, "--config", str(tmp_path / "none.yaml")])


def test_a_runs_config_gives_the_same_flags_back(tmp_path, distill_args):
    args = distill_args(mixup=0.25, lr_decay_epochs=(), weight_decay=1e-5)
    with Run(tmp_path / "run", args, {}, "student", "distill"):
        pass
    again = distill.parse(["--config", str(tmp_path / "run/config.yaml"), "--out", str(args.out)])
    other = {"config": None, "left_at_default": None}
    assert vars(again) | other == vars(args) | other


@given(text=st.text(max_size=60))
def test_any_text_as_config_is_read_or_refused(text, tmp_path_factory):
    try:
        parsed(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"))
    except UserError as error:
        assert len(str(error).splitlines()) <= 6


# --- flags ----------------------------------------------------------------------------------------

BAD = [("--epochs", "0"), ("--epochs", "-1"), ("--epochs", "1.5"), ("--epochs", "nan"),
       ("--epochs", "9" * 400), ("--batch-size", "0"), ("--learning-rate", "nan"),
       ("--learning-rate", "inf"), ("--learning-rate", "0"), ("--learning-rate", "-1"),
       ("--learning-rate", "1e400"), ("--temperature", "0"), ("--temperature", "NaN"),
       ("--weight-decay", "-1e-9"), ("--mixup", "-inf"), ("--mix-share", "1.01"),
       ("--seed", "-1"), ("--threads", "0"), ("--lr-decay-epochs", "60,30"),
       ("--lr-decay-epochs", "30,30"), ("--lr-decay-epochs", "0"), ("--images-per-class", "x"),
       ("--objective", "kl"), ("--fold", "-2"), ("--checkpoint-seconds", "0"), ("--epochs", "")]


@pytest.mark.parametrize(("flag", "value"), BAD, ids=lambda v: v[:12])
def test_an_impossible_value_ends_with_2_and_names_the_flag(capsys, flag, value):
    code, message = refused(capsys, distill.main, *REQUIRED, f"{flag}={value}")
    assert code == 2 and flag in message


@pytest.mark.parametrize(("flag", "value"), [
    ("--steps", "0"), ("--steps", "1e3"), ("--guidance-scale", "-1"), ("--guidance-scale", "nan"),
    ("--images-per-class", "0"), ("--classes", "5-3"), ("--classes", "a"), ("--classes", "0-"),
    ("--classes", ""), ("--classes", "0-99999999999"), ("--world-size", "0"), ("--rank", "-1"),
    ("--batch-size", "1" * 400), ("--guided-channels", "4"), ("--sampler", "ddpn")])
def test_an_impossible_value_of_synthesize_ends_with_2_and_names_the_flag(capsys, flag, value):
    code, message = refused(capsys, synthesize.main, "--task", "digits", "--weights", "x", "--out",
                            "y", f"{flag}={value}")
    assert code == 2 and flag in message


@pytest.mark.parametrize(("main", "flags"), [
    (synthesize.main, ["--out", "y", "--weights", "z"]), (train_generator.main, ["--out", "y"]),
    (train_teacher.main, ["--out", "y", "--model", "cnn_w4"])])
def test_an_unknown_task_ends_with_2(capsys, main, flags):
    code, message = refused(capsys, main, "--task", "digit", *flags)
    assert code == 2 and "digits" in message


def test_an_unknown_flag_names_the_nearest(capsys):
    code, message = refused(capsys, distill.main, *REQUIRED, "--temprature", "3")
    assert code == 2 and "--temprature" in message and "--temperature" in message


def test_flags_cannot_be_abbreviated(capsys):
    code, message = refused(capsys, distill.main, *REQUIRED, "--epoch", "3")
    assert code == 2 and "--epochs" in message


def test_a_missing_required_flag_is_named(capsys):
    code, message = refused(capsys, distill.main, *REQUIRED[2:])
    assert code == 2 and "--task" in message


def test_a_device_that_is_not_there_ends_with_2(capsys, tmp_path):
    code, message = refused(capsys, train_teacher.main, "--task", "digits", "--model", "cnn_w4",
                            "--device", "gpu7", "--out", tmp_path / "x")
    assert code == 2 and "gpu7" in message


@given(value=st.one_of(st.floats().map(repr), st.integers().map(str), st.text(max_size=12)))
def test_a_number_flag_takes_a_finite_number_in_range_or_refuses(value):
    for kind, low in ((run.positive_int, 1), (run.nonnegative_int, 0), (run.nonnegative_float, 0),
                      (run.probability, 0)):
        try:
            found = kind(value)
        except argparse.ArgumentTypeError:
            continue
        assert low <= found <= 1e15


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_is_set_up_with_deterministic_kernels_and_a_cpu_as_torch_has_it(monkeypatch, device):
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)  # stands for a GPU
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        args = argparse.Namespace(device=device, threads=1)
        assert run.use_device(args).type == device
        on = device == "cuda"
        assert torch.are_deterministic_algorithms_enabled() == on
        assert torch.is_deterministic_algorithms_warn_only_enabled() == on
        assert torch.utils.deterministic.fill_uninitialized_memory == (fill and not on)
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == on
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def test_help_ends_with_0(capsys):
    assert distill.main(["--help"]) == 0
    assert "--temperature" in capsys.readouterr().out


# --- messages -------------------------------------------------------------------------------------

def test_a_message_is_at_most_six_lines_and_begins_with_error():
    error = UserError("what\nis\nit", hint="a\nb\nc\nd", file="x\ny", found="z")
    lines = str(error).splitlines()
    assert len(lines) == 6 and lines[0] == "error: what"


def test_a_difference_shows_old_and_new_and_counts_the_rest():
    old, new = {"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 1, "b": 5, "c": 6, "e": 7}
    with pytest.raises(UserError) as caught:
        refuse_difference(old, new, "folder", "what")
    text = str(caught.value)
    assert "b: 2 -> 5" in text and "c: 3 -> 6" in text and "+2 more" in text
    refuse_difference(old, dict(old), "folder", "what")


def test_nearest_names_what_is_close_or_else_what_there_is():
    assert nearest("resnet2O", ["resnet20", "vgg8"]) == "did you mean resnet20"
    assert nearest("zzz", ["b", "a"]) == "one of a, b"


@pytest.mark.parametrize(("raised", "code"), [
    (UserError("x"), 2), (LockedError("x"), 3), (DamagedError("x"), 5),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), 2),
    (OSError(28, "No space left"), 6), (PermissionError(13, "no"), 6), (KeyboardInterrupt(), 130)])
def test_main_gives_the_contracts_exit_codes(capsys, raised, code):
    def body(argv):
        raise raised

    assert run.main(body, []) == code
    assert capsys.readouterr().err


@pytest.mark.parametrize("kind", [ZeroDivisionError, RuntimeError])
def test_an_error_of_the_program_keeps_its_traceback(kind):
    def body(argv):
        raise kind

    with pytest.raises(kind):
        run.main(body, [])


# --- the Run folder -------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path, distill_args):
    """f(inputs, **changed flags) -> a Run of this test's folder."""

    def make(inputs=None, **changes) -> Run:
        return Run(tmp_path / "run", distill_args(**changes), inputs or {}, "student", "distill")

    return make


def test_a_folder_of_another_run_is_refused_with_the_difference(folder):
    with folder():
        pass
    with pytest.raises(UserError, match=r"temperature: 10.0 -> 4.0"), folder(temperature=4.0):
        pass


def test_other_inputs_are_refused_with_the_difference(folder):
    with folder({"source_sha256": "aa"}):
        pass
    with (pytest.raises(UserError, match=r"source_sha256: aa -> bb"),
          folder({"source_sha256": "bb"})):
        pass


@pytest.mark.parametrize(("first", "then"), [("2", "1"), ("1", "2"), ("4", "2")])
def test_a_run_does_not_go_on_with_another_number_of_processes(folder, monkeypatch, first, then):
    monkeypatch.setenv("WORLD_SIZE", first)
    with folder():
        pass
    with folder():
        pass
    monkeypatch.setenv("WORLD_SIZE", then)
    with pytest.raises(UserError, match="processes: "), folder():
        pass


def test_the_record_of_the_hardware_counts_the_processes(monkeypatch):
    cpu = torch.device("cpu")
    assert "processes" not in run.hardware(cpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run.hardware(cpu)["processes"] == 2


def test_the_same_settings_are_let_in_again_and_volatile_ones_may_change(folder, tmp_path):
    with folder():
        pass
    with folder(checkpoint_seconds=1.0, cache=tmp_path / "other", debug=True):
        pass


@pytest.mark.parametrize(("flags", "goes_on"), [([], True), (["--bn-group", "16"], False)])
def test_a_run_from_before_a_flag_goes_on_while_the_flag_has_its_default(tmp_path, flags, goes_on):
    typed = ["--task", "digits", "--source", "real", "--teacher", "cnn_w4@none", "--student",
             "cnn_w4", "--out", str(tmp_path / "run")]
    with Run(tmp_path / "run", distill.parse(typed), {}, "student", "distill"):
        pass
    config = tmp_path / "run/config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("bn_group:")))
    with (contextlib.nullcontext() if goes_on else pytest.raises(UserError, match="bn_group"),
          Run(tmp_path / "run", distill.parse(typed + flags), {}, "student", "distill")):
        pass


def test_a_folder_of_other_files_is_refused(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("")
    with pytest.raises(UserError, match="is no run"), folder():
        pass


def test_a_run_killed_before_its_config_was_written_can_start_again(folder, tmp_path):
    with folder({"source_sha256": "aa"}):
        pass
    (tmp_path / "run/config.yaml").unlink()
    with folder({"source_sha256": "aa"}):
        assert (tmp_path / "run/config.yaml").exists()


def test_two_runs_in_one_folder_are_locked_out(folder):
    with folder(), pytest.raises(LockedError, match=r"pid \d+"), folder():
        pass


def test_the_recorded_threads_are_used_again_unless_others_are_asked_for(folder, distill_args):
    with folder():
        pass
    args = distill_args()
    for asked, expected in ((None, 1), (2, 2)):
        args.threads = asked
        run.resume_threads(args)
        assert args.threads == expected


def test_a_damaged_config_is_named(folder, tmp_path):
    with folder():
        pass
    (tmp_path / "run/config.yaml").write_text("[1, 2]")
    with pytest.raises(DamagedError, match="config.yaml"), folder():
        pass


def test_the_newest_checkpoint_is_loaded(folder):
    with folder() as first:
        assert first.load_checkpoint() is None
        for step in range(4):
            first.save_checkpoint({"step": step, "weights": torch.full((3,), step)})
        assert first.load_checkpoint()["step"] == 3
    assert (first.folder / "previous.pt").exists()


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(folder, capsys, size):
    with folder() as made:
        made.save_checkpoint({"step": 1})
        made.save_checkpoint({"step": 2})
        last = made.folder / "last.pt"
        last.write_bytes(last.read_bytes()[:size])
        assert made.load_checkpoint()["step"] == 1
        assert "last.pt is damaged (sha256 differs); previous.pt is used" in capsys.readouterr().out
        assert "last.pt is damaged" in (made.folder / "log.txt").read_text()


def test_a_flipped_bit_in_a_checkpoint_is_found(folder):
    with folder() as made:
        made.save_checkpoint({"step": 1})
        made.save_checkpoint({"step": 2, "weights": torch.zeros(100)})
        data = bytearray((made.folder / "last.pt").read_bytes())
        data[len(data) // 2] ^= 1
        (made.folder / "last.pt").write_bytes(data)
        assert made.load_checkpoint()["step"] == 1


def test_two_damaged_checkpoints_are_damage(folder):
    with folder() as made:
        made.save_checkpoint({"step": 1})
        made.save_checkpoint({"step": 2})
        for name in ("last.pt", "previous.pt"):
            (made.folder / name).write_bytes(b"x")
        with pytest.raises(DamagedError, match="no checkpoint is whole"):
            made.load_checkpoint()
        assert not (made.folder / "log.txt").exists()  # which of the two would be used?


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("digest", ["as it was", "forged"])
@pytest.mark.parametrize("name", ["last.pt", "previous.pt"])
def test_a_hostile_checkpoint_runs_nothing(folder, tmp_path, name, digest):
    with folder() as made:
        for step in (1, 2):
            made.save_checkpoint({"step": step})
        torch.save({"step": 3, "model": Touch(tmp_path / "canary")}, made.folder / name)
        if digest == "forged":
            known = made.folder / "checkpoints.sha256"
            known.write_text(known.read_text() + files.sha256_file(made.folder / name) + "\n")
        if digest == "forged" and name == "last.pt":
            with pytest.raises(UserError, match="asks to run code"):
                made.load_checkpoint()
        else:
            assert made.load_checkpoint()["step"] == (1 if name == "last.pt" else 2)
    assert not (tmp_path / "canary").exists()


def test_saving_after_a_fall_back_keeps_a_whole_checkpoint(folder):
    with folder() as made:
        made.save_checkpoint({"step": 1})
        made.save_checkpoint({"step": 2})
        (made.folder / "last.pt").write_bytes(b"x")
        made.load_checkpoint()
        made.save_checkpoint({"step": 3})
        (made.folder / "last.pt").unlink()
        assert made.load_checkpoint()["step"] == 1


def test_rows_of_epochs_done_again_are_replaced(folder):
    with folder() as made:
        for epoch, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5)):
            made.add_metrics({"epoch": epoch, "train_loss": loss})
    rows = run.read_metrics(made.folder)
    assert [(r["epoch"], r["train_loss"]) for r in rows] == [(1, 5.0), (2, 4.5), (3, 3.5)]


@pytest.mark.parametrize("line", ["{", "[]", "1", '"epoch"', "{}", '{"epoch": "one"}'])
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n' + line + "\n")
    with pytest.raises(DamagedError, match="metrics.jsonl line 2"):
        run.read_metrics(tmp_path)


def test_a_finished_run_has_weights_a_card_and_a_result_that_agree(folder):
    with folder() as made:
        assert made.result is None
        made.finish({"w": torch.ones(2)}, {"model": "cnn_w4"}, {"acc1": 50.0})
        result = made.result
    assert result["acc1"] == 50.0 and result["command"].startswith("python -m dm_kd.distill ")
    assert result["commit"] and result["versions"]["torch"] == torch.__version__
    assert torchvision.__version__.startswith(result["versions"]["torchvision"])


def test_weights_that_are_not_the_results_are_damage(folder):
    with folder() as made:
        made.finish({"w": torch.ones(2)}, {"model": "cnn_w4"}, {"acc1": 50.0})
        (made.folder / "student.safetensors").write_bytes(b"x")
        with pytest.raises(DamagedError, match="student.safetensors is damaged"):
            _ = made.result


@pytest.mark.parametrize("changes", [
    {}, {"mixup": 0.5, "no_label_check": True}, {"lr_decay_epochs": ()},
    {"teacher": "save/my models/it's a teacher"}, {"images_per_class": 7, "seed": 3},
    {"data": Path("my data/list.txt")}])
def test_the_recorded_command_gives_the_same_settings(folder, changes):
    made = folder(**changes)
    words = shlex.split(made.command)
    assert words[:3] == ["python", "-m", "dm_kd.distill"]
    again = Run(made.folder, distill.parse(words[3:]), {}, "student", "distill")
    assert again.settings == made.settings and again.data == made.data


def test_settings_are_readable_yaml(folder):
    with folder() as made:
        pass
    text = (made.folder / "config.yaml").read_text()
    assert yaml.safe_load(text)["epochs"] == 2 and "!!" not in text


def test_due_asks_for_the_seconds_since_the_last_save(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    with folder(checkpoint_seconds=60.0) as made:
        assert not made.due()
        now[0] += 61
        assert made.due()
        made.save_checkpoint({})
        assert not made.due()


# --- progress -------------------------------------------------------------------------------------

def test_progress_writes_plain_lines_with_the_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    bar = run.Progress(100, "work", "steps", done=10)
    for _ in range(30):
        now[0] += 1
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[-1] == "work: 40/100 steps, 1.0/s, 60 s left"


@pytest.mark.parametrize("threads", ["two", "0", "-3", "[2]", "true"])
def test_a_thread_count_that_is_none_is_a_damaged_config(tmp_path, threads):
    (tmp_path / "config.yaml").write_text(f"threads: {threads}\n")
    with pytest.raises(DamagedError, match="threads is"):
        run.resume_threads(argparse.Namespace(out=tmp_path, threads=None))
