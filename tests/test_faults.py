"""Kills and signals: the same command resumes and ends in the bits of a run that nothing disturbed.

Commands run in child processes (see processes.py) on one CPU thread.
"""

import json
import random
import signal

import pytest
from processes import contents, run, start

COMMON = ("--task", "digits", "--threads", 1, "--device", "cpu")
NOISE = (*COMMON, "--generator", "noise", "--images-per-class", 14)
GENERATOR = (*COMMON, "--steps", 12, "--batch-size", 8, "--checkpoint-seconds", 1e-6)
TINY_DIT = ("--kind", "dit", "--width", 16, "--depth", 1, "--heads", 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def recipe(place):
    """A distillation of 18 steps in 2 epochs with a checkpoint after each step."""
    finish("synthesize", NOISE, place / "set")
    return (*COMMON, "--student", "cnn_w4", "--teacher", "cnn_w8@none", "--source", place / "set",
            "--epochs", 2, "--batch-size", 16, "--learning-rate", 0.05, "--mixup", 0.4,
            "--lr-decay-epochs", 1, "--amp", "none", "--no-label-check", "--cache",
            place / "cache", "--checkpoint-seconds", 1e-6)


@pytest.fixture(scope="module")
def undisturbed(place, recipe):
    finish("distill", recipe, place / "undisturbed")
    return outcome(place / "undisturbed")


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
    return ended.out


def kill_at(moments, entry, command, folder):
    """Run the command again and again, killed at each of these moments, then to its end."""
    for moment, count in moments:
        killed = run(entry, *command, "--out", folder, at=moment, count=count)
        assert killed.code == 137, (moment, killed.err)
    finish(entry, command, folder)


# --- distillation ---------------------------------------------------------------------------------

def test_distillation_after_kills_ends_in_the_same_bits(recipe, undisturbed, tmp_path):
    kill_at([("before config.yaml", 1), ("after config.yaml", 1), ("before last.pt", 3),
             ("after last.pt", 3), ("before metrics.jsonl", 1), ("after metrics.jsonl", 1),
             *[("step", random.randint(1, 3)) for _ in range(5)],
             ("before student.safetensors", 1), ("before student.json", 1),
             ("before result.json", 1)], "distill", recipe, tmp_path / "run")
    assert outcome(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_run_resumes_to_the_same_bits(recipe, undisturbed,
                                                                      tmp_path, number):
    seldom = (*recipe[:-1], 1000)  # only the signal makes it save
    stopped = run("distill", *seldom, "--out", tmp_path / "run", at="step", count=6, send=number)
    assert stopped.code == 128 + number, stopped.err
    assert (tmp_path / "run" / "last.pt").exists()
    finish("distill", seldom, tmp_path / "run")
    assert outcome(tmp_path / "run") == undisturbed


def test_a_finished_run_says_so_and_changes_nothing(recipe, undisturbed, place):
    before = contents(place / "undisturbed")
    assert "finished" in finish("distill", recipe, place / "undisturbed")
    assert contents(place / "undisturbed") == before


# --- synthesis ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sampled(place):
    """A tiny DiT and 20 images of it, 4 a shard; (command, files)."""
    finish("train_generator", (*GENERATOR, *TINY_DIT), place / "dit")
    command = (*COMMON, "--generator", "dit", "--weights", place / "dit", "--steps", 3,
               "--images-per-class", 2, "--batch-size", 4)
    finish("synthesize", command, place / "sampled")
    return command, contents(place / "sampled")


def test_synthesis_after_kills_ends_in_the_same_bytes(sampled, tmp_path):
    command, expected = sampled
    images = [f"before class_{p % 10}_seed_0_num_{p // 10}.png"
              for p in sorted(random.sample(range(20), 5))]
    kill_at([(moment, 1) for moment in ("before manifest.json", "after manifest.json", *images,
                                        "before 00004.csv")], "synthesize", command,
            tmp_path / "set")
    assert contents(tmp_path / "set") == expected


def test_any_number_of_processes_makes_the_same_bytes(sampled, tmp_path):
    command, expected = sampled
    ranks = [start("synthesize", *command, "--out", tmp_path / "set", "--rank", rank,
                   "--world-size", 3) for rank in range(3)]
    assert [child.wait().code for child in ranks] == [0] * 3
    assert contents(tmp_path / "set") == expected


def test_a_signal_stops_synthesis_which_resumes_to_the_same_bytes(sampled, tmp_path):
    command, expected = sampled
    stopped = run("synthesize", *command, "--out", tmp_path / "set", at="after manifest.json",
                  send=signal.SIGTERM)
    assert stopped.code == 130, stopped.err
    finish("synthesize", command, tmp_path / "set")
    assert contents(tmp_path / "set") == expected


# --- the other trainings --------------------------------------------------------------------------

@pytest.mark.parametrize("network", [
    TINY_DIT, ("--kind", "gan", "--width", 8)], ids=["dit", "gan"])
def test_train_generator_after_kills_ends_in_the_same_bits(place, tmp_path, network):
    command = (*GENERATOR, *network)
    finish("train_generator", command, tmp_path / "undisturbed")
    kill_at([("before last.pt", 3), ("after last.pt", 5), ("before result.json", 1)],
            "train_generator", command, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
