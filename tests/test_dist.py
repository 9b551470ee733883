"""Several processes under torchrun, on CPUs with gloo: the same images, counted once, one writer."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import ROOT, contents, run

from dm_kd.run import load_safetensors, read_metrics

RECIPE = ("--task", "digits", "--source", "real", "--student", "cnn_w8", "--epochs", 2,
          "--batch-size", 16, "--learning-rate", 0.05, "--lr-decay-epochs", 1, "--threads", 1,
          "--amp", "none", "--device", "cpu", "--images-per-class", 30)  # 19 steps an epoch


def start_torchrun(entry, *argv, processes=2, max_restarts=0):
    """entry: of the package, or the path of a Python file."""
    started = [entry] if str(entry).endswith(".py") else ["-m", f"dm_kd.{entry}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr",
               "127.0.0.1", "--max-restarts", str(max_restarts), *started]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, *map(str, argv)], cwd=ROOT, text=True, env=environment,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def torchrun(entry, *argv, **options):
    """Run an entry under torchrun to its end; what it printed."""
    return end(start_torchrun(entry, *argv, **options))


def end(running, succeeds=True):
    try:
        out, err = running.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # torchrun and its workers
        raise
    assert (running.returncode == 0) == succeeds, err[-3000:]
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist") / "teacher"
    ended = run("train_teacher", "--task", "digits", "--model", "cnn_w8", "--epochs", 3,
                "--batch-size", 64, "--threads", 1, "--amp", "none", "--device", "cpu", "--out",
                folder)
    assert ended.code == 0, ended.err
    return folder


DOUBLE = """
import sys, torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double  # where the package asks for float32
from dm_kd import distill
sys.exit(distill.main())
"""


def test_two_processes_with_batch_norm_in_groups_are_one(teacher, tmp_path):
    """The same images, global batch, rate, mean of the gradients and batch statistics: what is left
    is the order of sums. 38 steps make 1e-13 of it in float64, up to 0.2 % in float32."""
    (tmp_path / "double.py").write_text(DOUBLE)
    command = (*RECIPE, "--teacher", teacher, "--no-label-check", "--out")
    torchrun(tmp_path / "double.py", *command, tmp_path / "two")
    torchrun(tmp_path / "double.py", *command, tmp_path / "one", "--bn-group", 8, processes=1)
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for name in ("train_loss", "val_acc1", "images_seen"):
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=1e-9), name
    one, two = (load_safetensors(tmp_path / name / "student.safetensors")
                for name in ("one", "two"))
    assert one.keys() == two.keys()  # none begins with "module."
    for key, value in one.items():
        assert torch.allclose(two[key], value, rtol=1e-9, atol=1e-9), key
    log = (tmp_path / "two" / "log.txt").read_text()
    assert log.count("Epoch: [1/2]") == 1  # only rank 0 writes


COUNT = """
import json, sys, torch
from dm_kd import augment, dist, engine, models
from dm_kd.tasks import get_task
cpu, task = torch.device("cpu"), get_task("digits")
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
dist.start(cpu)
engine.EVAL_BATCH, seen = 64, []
model = models.load_frozen(sys.argv[1], task)[0].double()
model.register_forward_hook(lambda module, x, logits: seen.append(len(logits)))
images = torch.randint(256, (397, 1, 8, 8), dtype=torch.uint8,
                       generator=torch.Generator().manual_seed(0))
view = (getattr(augment, "plain_view", None) or engine.plain_view)(task)
logits = engine.predict(model, images, view, cpu, "none")
seen = dist.totals(sum(seen))[0]
if dist.is_main():
    torch.save({"seen": seen, "logits": logits}, sys.argv[2])
dist.stop()
"""


def test_397_images_are_evaluated_exactly_on_1_2_and_3_processes(teacher, tmp_path):
    (tmp_path / "count.py").write_text(COUNT)
    found = {}
    for processes in (1, 2, 3):
        file = tmp_path / f"{processes}.pt"
        torchrun(tmp_path / "count.py", teacher, file, processes=processes)
        found[processes] = torch.load(file, weights_only=True)
        assert found[processes]["seen"] == len(found[processes]["logits"]) == 397
        assert torch.allclose(found[processes]["logits"], found[1]["logits"], atol=1e-12)
    assert len(found[1]["logits"].argmax(1).unique()) > 1


def test_a_killed_rank_restarts_and_ends_in_the_bits_of_an_undisturbed_run(teacher, tmp_path):
    command = (*RECIPE, "--teacher", teacher, "--no-label-check", "--checkpoint-seconds", 1e-6,
               "--out")
    torchrun("distill", *command, tmp_path / "undisturbed")
    running = start_torchrun("distill", *command, tmp_path / "run", max_restarts=1)
    for _ in range(24000):
        if (tmp_path / "run" / "last.pt").exists() or running.poll() is not None:
            break
        time.sleep(0.01)
    children = (ROOT / f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert "resumed" in end(running)
    for name in ("undisturbed", "run"):
        assert json.loads((tmp_path / name / "result.json").read_text())["acc1"] > 10
    assert ((tmp_path / "run" / "student.safetensors").read_bytes()
            == (tmp_path / "undisturbed" / "student.safetensors").read_bytes())


def test_synthesis_under_torchrun_makes_the_bytes_of_one_process(tmp_path):
    command = ("--task", "digits", "--generator", "noise", "--classes", "0-4", "--batch-size", 3,
               "--images-per-class", 5, "--threads", 1, "--device", "cpu")
    assert run("synthesize", *command, "--out", tmp_path / "one").code == 0
    torchrun("synthesize", *command, "--out", tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


NAN = """
import argparse, pathlib, sys, torch
from dm_kd import dist, engine
from dm_kd.run import UserError
dist.start(torch.device("cpu"))
args = argparse.Namespace(learning_rate=0.1, lr_schedule="cosine", epochs=9, warmup_epochs=0,
                          batch_size=8, amp="none")
losses = torch.tensor([1.0, float("nan") if dist.rank() else 3.0])
try:
    engine.check_finite(argparse.Namespace(folder=pathlib.Path("nowhere")), losses,
                        torch.nn.Linear(1, 1), 4, args, {0: torch.zeros(1), 1: torch.zeros(1)})
except UserError as error:
    sys.stdout.write(f"{error}\\n".replace("step 2", f"rank {dist.rank()} step 2"))
dist.stop()
"""


def test_a_nan_on_one_process_stops_all_with_the_step_named(tmp_path):
    (tmp_path / "nan.py").write_text(NAN)
    out = torchrun(tmp_path / "nan.py")
    assert "rank 0 step 2" in out and "rank 1 step 2" in out
