"""Kills and signals: the same command resumes and ends in the bits of a run that nothing disturbed.

Commands run in child processes (see processes.py) on one CPU thread. DM_KD_KILLS=25: more kills.
"""

import json
import os
import shutil
import signal

import pytest
import torch
from processes import contents, random_kills, run, start

from dm_kd.run import load_pt

KILLS = int(os.environ.get("DM_KD_KILLS", 5))
NOISE = ("--task", "digits", "--generator", "noise", "--classes", "0-4", "--images-per-class", 4,
         "--batch-size", 3, "--threads", 1, "--device", "cpu")  # 20 images, 7 shards
GENERATOR = ("--task", "digits", "--steps", 12, "--sample-every", 5, "--batch-size", 8, "--threads",
             1, "--device", "cpu", "--checkpoint-seconds", 1e-6)
TINY_DIT = ("--kind", "dit", "--width", 16, "--depth", 1, "--heads", 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def recipe(place):
    """A distillation of 27 steps in 3 epochs with a checkpoint after each step."""
    dit_set = run("synthesize", *NOISE[:4], "--images-per-class", 14, "--threads", 1, "--device",
                  "cpu", "--out", place / "set")
    teacher = run("train_teacher", "--task", "digits", "--model", "cnn_w8", "--epochs", 3,
                  "--batch-size", 64, "--threads", 1, "--amp", "none", "--device", "cpu", "--out",
                  place / "teacher")
    assert (dit_set.code, teacher.code) == (0, 0), dit_set.err + teacher.err
    return ("--task", "digits", "--student", "cnn_w4", "--teacher", place / "teacher", "--source",
            place / "set", "--epochs", 3, "--batch-size", 16, "--learning-rate", 0.05, "--mixup",
            0.4, "--lr-decay-epochs", 2, "--threads", 1, "--amp", "none", "--device", "cpu",
            "--no-label-check", "--cache", place / "cache", "--checkpoint-seconds", 1e-6)


@pytest.fixture(scope="module")
def undisturbed(place, recipe):
    ended = run("distill", *recipe, "--out", place / "undisturbed")
    assert ended.code == 0, ended.err
    return outcome(place / "undisturbed"), ended.seconds


def outcome(folder):
    """What a finished run must repeat bit for bit: all but times and places."""
    rows = [{name: value for name, value in row.items() if "second" not in name}
            for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    result = json.loads((folder / "result.json").read_text())
    kept = ("acc1", "acc5", "best_acc1", "teacher_acc1", "agreement")
    return (rows, [result.get(name) for name in kept],
            {path.name: path.read_bytes() for path in folder.glob("*.safetensors")})


def finish(entry, command, folder):
    """Run the command to its end; what it printed."""
    ended = run(entry, *command, "--out", folder)
    assert ended.code == 0, ended.err
    assert not list(folder.glob(".*.tmp.*")) or not (folder / "config.yaml").exists()
    return ended.out


# --- distillation ---------------------------------------------------------------------------------

def test_distillation_after_random_kills_ends_in_the_same_bits(recipe, undisturbed, tmp_path):
    expected, seconds = undisturbed
    random_kills("distill", *recipe, out=tmp_path / "run", kills=KILLS, seconds=0.5 * seconds)
    finish("distill", recipe, tmp_path / "run")
    assert outcome(tmp_path / "run") == expected


def test_distillation_killed_around_each_file_ends_in_the_same_bits(recipe, undisturbed, tmp_path):
    for moment in ("before config.yaml", "after config.yaml", "before last.pt", "after last.pt",
                   "before metrics.jsonl", "after metrics.jsonl", "before student.safetensors",
                   "before student.json", "before result.json"):
        killed = run("distill", *recipe, "--out", tmp_path / "run", at=moment)
        assert killed.code == 137, (moment, killed.err)
    finish("distill", recipe, tmp_path / "run")
    assert outcome(tmp_path / "run") == undisturbed[0]


@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 6), (signal.SIGINT, 9)])
def test_a_signal_saves_the_step_and_the_run_resumes_to_the_same_bits(
        recipe, undisturbed, tmp_path, number, count):
    seldom = (*recipe[:-1], 1000)  # only the signal makes it save
    stopped = run("distill", *seldom, "--out", tmp_path / "run", at="step", count=count,
                  send=number)
    assert stopped.code == 128 + number, stopped.err
    assert (tmp_path / "run" / "last.pt").exists()
    finish("distill", seldom, tmp_path / "run")
    assert outcome(tmp_path / "run") == undisturbed[0]


def test_a_finished_run_says_so_and_changes_nothing(recipe, undisturbed, place):
    before = contents(place / "undisturbed")
    assert "finished" in finish("distill", recipe, place / "undisturbed")
    assert contents(place / "undisturbed") == before


def test_a_second_writer_is_refused_and_the_first_is_unharmed(recipe, undisturbed, tmp_path):
    first = start("distill", *recipe, "--out", tmp_path / "run", at="step", count=5,
                  send=signal.SIGSTOP)
    first.wait_until_stopped()
    second = run("distill", *recipe, "--out", tmp_path / "run")
    assert second.code == 2 and str(tmp_path / "run") in second.err
    first.signal(signal.SIGCONT)
    assert first.wait().code == 0
    assert outcome(tmp_path / "run") == undisturbed[0]


def test_a_truncated_checkpoint_is_named(recipe, undisturbed, place, tmp_path):
    shutil.copytree(place / "undisturbed", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    refused = run("distill", *recipe, "--out", tmp_path / "run")
    assert refused.code == 2 and str(last) in refused.err


def test_a_nan_loss_is_no_weights(recipe, tmp_path):
    ended = run("distill", *recipe, "--out", tmp_path / "run", "--learning-rate", 1e15,
                "--weight-decay", 1)
    assert ended.code == 2 and "step" in ended.err and "1e+15" in ended.err
    assert not list((tmp_path / "run").glob("student.safetensors"))
    if (tmp_path / "run" / "last.pt").exists():
        model = load_pt(tmp_path / "run" / "last.pt")["model"]
        assert all(torch.isfinite(value).all() for value in model.values())


# --- synthesis ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sampled(place):
    """A tiny DiT and 16 images of it; (command, files, seconds)."""
    finish("train_generator", (*GENERATOR, *TINY_DIT), place / "dit")
    command = ("--task", "digits", "--generator", "dit", "--weights", place / "dit", "--steps", 3,
               "--classes", "0-3", "--images-per-class", 4, "--batch-size", 3, "--threads", 1,
               "--device", "cpu")
    ended = run("synthesize", *command, "--out", place / "sampled")
    assert ended.code == 0, ended.err
    return command, contents(place / "sampled"), ended.seconds


def test_synthesis_after_random_kills_ends_in_the_same_bytes(sampled, tmp_path):
    command, expected, seconds = sampled
    random_kills("synthesize", *command, out=tmp_path / "set", kills=KILLS, seconds=0.8 * seconds)
    finish("synthesize", command, tmp_path / "set")
    assert contents(tmp_path / "set") == expected


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_makes_the_same_bytes(sampled, tmp_path, world_size):
    command, expected, _ = sampled
    ranks = [start("synthesize", *command, "--out", tmp_path / "set", "--rank", rank,
                   "--world-size", world_size) for rank in range(world_size)]
    assert [child.wait().code for child in ranks] == [0] * world_size
    assert contents(tmp_path / "set") == expected


def test_a_killed_rank_is_made_up_for_by_any_process(sampled, tmp_path):
    command, expected, _ = sampled
    ranks = [start("synthesize", *command, "--out", tmp_path / "set", "--rank", rank,
                   "--world-size", 2, at="before manifest.json" if rank else "") for rank in (1, 0)]
    codes = [child.wait().code for child in ranks]
    assert codes[1] == 0
    finish("synthesize", command, tmp_path / "set")
    assert contents(tmp_path / "set") == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_synthesis_which_resumes_to_the_same_bytes(place, tmp_path, number):
    if not (place / "noise").exists():
        finish("synthesize", NOISE, place / "noise")
    stopped = run("synthesize", *NOISE, "--out", tmp_path / "set", at="after manifest.json",
                  send=number)
    assert stopped.code in (130, 143), stopped.err
    finish("synthesize", NOISE, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(place / "noise")


# --- the other trainings --------------------------------------------------------------------------

@pytest.mark.parametrize("network", [
    TINY_DIT, ("--kind", "gan", "--width", 8)], ids=["dit", "gan"])
def test_train_generator_after_kills_ends_in_the_same_bits(place, tmp_path, network):
    finish("train_generator", (*GENERATOR, *network), tmp_path / "undisturbed")
    for count, moment in ((3, "before last.pt"), (5, "after last.pt"), (1, "before result.json")):
        killed = run("train_generator", *GENERATOR, *network, "--out", tmp_path / "run", at=moment,
                     count=count)
        assert killed.code == 137, (moment, killed.err)
    finish("train_generator", (*GENERATOR, *network), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
