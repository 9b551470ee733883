"""Two processes under torchrun, on CPUs with gloo: the same images, counted once, one writer."""

import contextlib
import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import ROOT, contents, run

from dm_kd import augment, dist, engine, files
from dm_kd.models import load_frozen
from dm_kd.tasks import get_task, load_real

RECIPE = ("--task", "digits", "--source", "real", "--student", "cnn_w8", "--epochs", 4,
          "--batch-size", 16, "--learning-rate", 0.05, "--lr-decay-epochs", 3, "--threads", 1,
          "--amp", "none", "--device", "cpu", "--images-per-class", 60)  # 38 steps an epoch


def torchrun(entry, *argv, processes=2, code=0):
    """Run an entry under torchrun to its end."""
    running = start_torchrun(entry, *argv, processes=processes)
    out, err = wait(running)
    assert (running.returncode == 0) == (code == 0), err[-3000:]
    return out, err


def wait(running):
    try:
        return running.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # torchrun and its workers
        raise


def start_torchrun(entry, *argv, processes=2, max_restarts=0):
    """entry: of the package, or the path of a Python file."""
    started = [entry] if str(entry).endswith(".py") else ["-m", f"dm_kd.{entry}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr",
               "127.0.0.1", "--max-restarts", str(max_restarts), *started]
    return subprocess.Popen([*command, *map(str, argv)], cwd=ROOT, text=True,
                            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def teacher(place):
    ended = run("train_teacher", "--task", "digits", "--model", "cnn_w8", "--epochs", 6,
                "--batch-size", 64, "--lr-decay-epochs", 4, "--threads", 1, "--amp", "none",
                "--device", "cpu", "--out", place / "teacher")
    assert ended.code == 0, ended.err
    return place / "teacher"


@pytest.fixture(scope="module")
def two(place, teacher):
    """A run of two processes, and what they printed."""
    return place / "two", torchrun("distill", *RECIPE, "--teacher", teacher, "--out",
                                   place / "two")


@pytest.fixture(scope="module")
def one(place, teacher):
    ended = run("distill", *RECIPE, "--teacher", teacher, "--out", place / "one")
    assert ended.code == 0, ended.err
    return place / "one"


def result(folder):
    return json.loads((folder / "result.json").read_text())


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder):
    return [(row["epoch"], row["train_loss"]) for row in metrics(folder)]


def test_two_processes_count_every_validation_image_once(two):
    folder, _ = two
    val = load_real(get_task("digits"), "val")
    found = json.loads((folder / "predictions.json").read_text())
    assert result(folder)["val_images"] == len(val.labels) == len(found["predictions"])
    assert found["ids"] == val.ids.tolist() and found["labels"] == val.labels.tolist()
    right = sum(a == b for a, b in zip(found["predictions"], found["labels"], strict=True))
    assert result(folder)["acc1"] == pytest.approx(100 * right / len(val.labels), abs=1e-9)
    assert [row["images_seen"] for row in metrics(folder)] == [608, 1216, 1824, 2432]


def test_the_accuracy_of_two_processes_is_that_of_the_weights_they_saved(two):
    folder, _ = two
    ended = run("evaluate", "--task", "digits", "--model", folder, "--device", "cpu")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["acc1"] == pytest.approx(result(folder)["acc1"], abs=1e-9)
    student, _ = load_frozen(str(folder), get_task("digits"))
    val, task = load_real(get_task("digits"), "val"), get_task("digits")
    logits = student(augment.standardize(val.images, task.mean, task.std))
    found = json.loads((folder / "predictions.json").read_text())["predictions"]
    assert found == logits.argmax(1).tolist()
    weights = files.load_safetensors(folder / "student.safetensors")
    assert weights.keys() == files.load_pt(folder / "last.pt")["model"].keys()  # no "module."


def test_only_rank_0_writes(two):
    folder, (out, _) = two
    assert len(re.findall(r"^Epoch: \[\d/4\]", out, re.M)) == 4
    assert (folder / "log.txt").read_text().count("Epoch: [1/4]") == 1
    assert [row["epoch"] for row in metrics(folder)] == [1, 2, 3, 4]
    assert not [name for name in contents(folder) if ".tmp." in name or ".lock" in name]


def test_two_processes_learn_as_well_as_one(two, one):
    """Batch statistics are per process, so weights differ; the teacher's accuracy may not."""
    folder, _ = two
    assert result(folder)["teacher_acc1"] == result(one)["teacher_acc1"]
    losses = [[row["train_loss"] for row in metrics(f)] for f in (folder, one)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.3)
    assert all(later < losses[0][0] for later in losses[0][2:])
    assert result(folder)["acc1"] > 40 and result(one)["acc1"] > 40


@pytest.mark.slow
def test_two_processes_resume_after_a_kill_of_one_to_the_same_bits(two, teacher, tmp_path):
    folder, _ = two
    command = (*RECIPE, "--teacher", teacher, "--out", tmp_path / "run", "--checkpoint-seconds",
               1e-6)
    running = start_torchrun("distill", *command)
    for _ in range(6000):
        if (tmp_path / "run" / "last.pt").exists() or running.poll() is not None:
            break
        time.sleep(0.01)
    pid = (tmp_path / "run" / ".lock").read_text().split()[1]  # rank 0
    os.kill(int(pid), signal.SIGKILL)
    wait(running)
    assert running.returncode != 0 and not (tmp_path / "run" / "result.json").exists()
    out, _ = torchrun("distill", *command)
    assert "resumed at epoch" in out
    assert ((tmp_path / "run" / "student.safetensors").read_bytes()
            == (folder / "student.safetensors").read_bytes())
    assert curve(tmp_path / "run") == curve(folder)


def process_of_rank(rank, parent):
    """The pid of a rank among the children of a torchrun."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                environment = (status.parent / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in environment:
                    return int(status.parent.name)
    raise AssertionError(f"no rank {rank} below {parent}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_restarts_by_itself_and_ends_in_the_bits_of_an_unbroken_run(
        two, teacher, tmp_path, rank):
    folder, _ = two
    running = start_torchrun("distill", *RECIPE, "--teacher", teacher, "--out", tmp_path / "run",
                             "--checkpoint-seconds", 1e-6, max_restarts=1)
    for _ in range(24000):
        if (tmp_path / "run" / "previous.pt").exists() or running.poll() is not None:
            break
        time.sleep(0.01)
    assert (tmp_path / "run" / "previous.pt").exists()
    os.kill(process_of_rank(rank, running.pid), signal.SIGKILL)
    out, err = wait(running)
    assert running.returncode == 0, err[-3000:]
    assert "resumed at epoch" in out
    assert ((tmp_path / "run" / "student.safetensors").read_bytes()
            == (folder / "student.safetensors").read_bytes())
    assert curve(tmp_path / "run") == curve(folder)


COUNT = """
import json, sys, torch
from dm_kd import dist, engine, models
from dm_kd.tasks import get_task, load_real

torch.set_num_threads(1)
cpu, task = torch.device("cpu"), get_task("digits")
dist.start(cpu)
real, engine.EVAL_BATCH, judged = load_real(task, "train"), 64, []
model, _ = models.load_frozen(sys.argv[1], task)
model.register_forward_hook(lambda module, x, logits: judged.append(len(logits)))
logits = engine.predict(model, real.images[:397], engine.plain_view(task), cpu, "none")
judged = int(dist.total(torch.tensor(sum(judged))))
right = int((logits.argmax(1) == real.labels[:397]).sum())
if dist.is_main():
    print(json.dumps({"judged": judged, "logits": len(logits), "right": right}))
dist.stop()
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow),
                                       pytest.param(3, marks=pytest.mark.slow)])
def test_each_of_397_images_is_judged_once_on_any_number_of_processes(teacher, tmp_path,
                                                                      monkeypatch, processes):
    (tmp_path / "count.py").write_text(COUNT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    if processes == 1:
        out = subprocess.run([sys.executable, tmp_path / "count.py", teacher], text=True,
                             check=True, capture_output=True).stdout
    else:
        out, _ = torchrun(tmp_path / "count.py", teacher, processes=processes)
    found = json.loads(out.splitlines()[-1])
    task = get_task("digits")
    real, (model, _) = load_real(task, "train"), load_frozen(str(teacher), task)
    logits = model(augment.standardize(real.images[:397], task.mean, task.std))
    right = int((logits.argmax(1) == real.labels[:397]).sum())
    assert found == {"judged": 397, "logits": 397, "right": right}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_processes_judge_397_images_without_gap_or_overlap(processes, monkeypatch):
    """The same in one process: each rank's share in turn, added up as the ranks do."""
    task, judged = get_task("digits"), torch.zeros(397)
    model = load_frozen("cnn_w4@none", task)[0]
    images = load_real(task, "train").images[:397]
    monkeypatch.setattr(engine, "EVAL_BATCH", 64)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    total = 0
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        share = engine.predict(model, images, engine.plain_view(task), torch.device("cpu"), "none")
        judged += share.abs().sum(1) > 0
        total = total + share
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    whole = engine.predict(model, images, engine.plain_view(task), torch.device("cpu"), "none")
    assert judged.tolist() == [1.0] * 397 and torch.allclose(total, whole, atol=1e-5)


@pytest.mark.slow
def test_three_processes_train_on_the_batch_and_rate_as_written(teacher, tmp_path):
    recipe = [15 if before == "--batch-size" else value for before, value in
              zip((None, *RECIPE), RECIPE, strict=False)]
    torchrun("distill", *recipe, "--epochs", 2, "--teacher", teacher, "--out", tmp_path / "three",
             processes=3)
    rows = metrics(tmp_path / "three")
    assert [row["images_seen"] for row in rows] == [600, 1200]  # 40 steps of 15
    assert [row["lr"] for row in rows] == [0.05, 0.05]
    assert result(tmp_path / "three")["val_images"] == len(load_real(get_task("digits"),
                                                                     "val").labels)


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(teacher, tmp_path):
    _, err = torchrun("distill", *RECIPE, "--teacher", teacher, "--out", tmp_path / "run",
                      "--batch-size", 33, code=1)
    assert "--batch-size 33 does not divide over 2 processes" in err
    assert not (tmp_path / "run").exists()


def test_a_source_that_trains_a_generator_is_refused_by_both_processes(tmp_path):
    _, err = torchrun("distill", "--task", "digits", "--source", "zskt", "--teacher", "cnn_w8@none",
                      "--student", "cnn_w8", "--threads", 1, "--device", "cpu", "--out",
                      tmp_path / "run", code=2)
    assert "--source zskt trains a generator in one process, not in 2" in err
    assert not (tmp_path / "run").exists()


def test_synthesis_under_torchrun_makes_the_bytes_of_one_process(tmp_path):
    command = ("--task", "digits", "--generator", "noise", "--classes", "0-4", "--batch-size", 3,
               "--images-per-class", 5, "--threads", 1, "--device", "cpu")
    assert run("synthesize", *command, "--out", tmp_path / "one").code == 0
    out, _ = torchrun("synthesize", *command, "--out", tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    with open(tmp_path / "two" / "index.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 25
    assert "index sha256" in out


@pytest.mark.parametrize("command", ["evaluate", "inspect_set", "train_generator"])
def test_a_command_of_one_process_is_refused_in_several(command, tmp_path, monkeypatch, capsys):
    """Each would judge its own share of the images and call it the whole."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = {"evaluate": ["--model", "cnn_w4@none"], "inspect_set": [
        "--set", "nowhere", "--teacher", "cnn_w4@none", "--out", tmp_path / "o.json"],
        "train_generator": ["--steps", "2", "--out", tmp_path / "o"]}[command]
    main = importlib.import_module(f"dm_kd.{command}").main
    assert main(["--task", "digits", "--device", "cpu", *map(str, argv)]) == 2
    assert f"{command} runs in one process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


NAN = """
import argparse, sys, torch
from pathlib import Path
from dm_kd import dist, engine
from dm_kd.errors import DivergedError

dist.start(torch.device("cpu"))
args = argparse.Namespace(learning_rate=0.1, lr_schedule="cosine", epochs=9, warmup_epochs=0,
                          batch_size=8, amp="none")
network, found = torch.nn.Linear(1, 1), []
run = argparse.Namespace(folder=Path("nowhere"))
shown = {0: torch.tensor([1, 2]), 1: torch.tensor([3, 4])}
found.append(engine.check_finite(run, torch.tensor([1.0 + 2 * dist.rank()]), network, 4, args,
                                 shown).item())
try:
    engine.check_finite(run, torch.tensor([1.0, float("nan") if dist.rank() else 3.0]), network, 4,
                        args, shown)
except DivergedError as error:
    found += [str(error).splitlines()[i] for i in (0, 2)]
sys.stdout.write(f"{dist.rank()} {found}\\n")  # at one go: two processes write
dist.stop()
"""


def test_a_nan_on_one_process_stops_both_with_the_step_named(tmp_path, monkeypatch):
    (tmp_path / "nan.py").write_text(NAN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    out, _ = torchrun(tmp_path / "nan.py")
    assert sorted(out.splitlines()) == [
        f"{rank} [2.0, 'error: the loss became nan in epoch 5 at step 2', '  images   {images}']"
        for rank, images in ((0, "of another process"), (1, "3, 4"))]


DOUBLE = """
import sys, torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double  # where the package asks for float32
from dm_kd import distill
sys.exit(distill.main())
"""


def test_two_processes_are_one_with_batch_norm_in_groups(teacher, tmp_path, monkeypatch):
    """The same images, global batch, rate, mean of the gradients and batch statistics: what is left
    is the order of sums. 76 steps make 1e-13 of it in float64, up to 0.2 % in float32."""
    (tmp_path / "double.py").write_text(DOUBLE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    short = (*RECIPE, "--epochs", 2, "--teacher", teacher, "--out")
    torchrun(tmp_path / "double.py", *short, tmp_path / "two")
    torchrun(tmp_path / "double.py", *short, tmp_path / "one", "--bn-group", 8, processes=1)
    for name in ("train_loss", "val_acc1"):
        found, expected = ([row[name] for row in metrics(tmp_path / f)] for f in ("two", "one"))
        assert found == pytest.approx(expected, rel=1e-9), name
    found, expected = (files.load_safetensors(tmp_path / f / "student.safetensors")
                       for f in ("two", "one"))
    for key, value in expected.items():
        assert value.dtype in (torch.float64, torch.int64), key
        assert torch.allclose(found[key], value, rtol=1e-9, atol=1e-9), key


SLOW = """
import sys, time
from dm_kd import distill, engine

real = engine.train_step
engine.train_step = lambda *args: (time.sleep(0.9), real(*args))[1]
sys.exit(distill.main())
"""


@pytest.mark.slow
def test_sigterm_between_slow_steps_saves_in_time_and_goes_on_to_the_same_bits(
        two, teacher, tmp_path, monkeypatch):
    """An epoch of 38 steps of a second is longer than the half minute that torchrun leaves."""
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    command = (*RECIPE, "--teacher", teacher, "--out", tmp_path / "run")
    running = start_torchrun(tmp_path / "slow.py", *command)
    for _ in range(12000):
        log = tmp_path / "run" / "log.txt"
        if log.exists() and "teacher Acc@1" in log.read_text() or running.poll() is not None:
            break
        time.sleep(0.01)
    time.sleep(4)  # some steps
    running.send_signal(signal.SIGTERM)
    wait(running)
    assert running.returncode != 0 and not (tmp_path / "run" / "metrics.jsonl").exists()
    out, _ = torchrun("distill", *command)
    assert re.search(r"resumed at epoch 1, step [1-9]", out)
    assert ((tmp_path / "run" / "student.safetensors").read_bytes()
            == (two[0] / "student.safetensors").read_bytes())


def test_the_group_is_made_when_all_have_come(monkeypatch):
    """However long one of them prepares the images: gloo and nccl have half an hour's patience, or
    ten minutes."""
    store, here = torch.distributed.HashStore(), []
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([(store, 0, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group",
                        lambda *args, **options: here.append(options["store"]))
    first = threading.Thread(target=dist.start, args=(torch.device("cpu"),))
    first.start()
    first.join(0.3)
    assert not here
    monkeypatch.setenv("RANK", "1")
    dist.start(torch.device("cpu"))
    first.join(10)
    assert len(here) == 2
