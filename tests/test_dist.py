"""Several processes on CPUs with gloo: the same images, each counted once, one writer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import ROOT, contents, run
from processes import ranks as processes_of

from dm_kd.run import load_safetensors, read_metrics

RECIPE = ("--task", "digits", "--source", "real", "--student", "cnn_w8", "--epochs", 2,
          "--batch-size", 16, "--learning-rate", 0.05, "--lr-decay-epochs", 1, "--threads", 1,
          "--amp", "none", "--device", "cpu", "--images-per-class", 30)  # 19 steps an epoch


def torchrun(entry, *argv, max_restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr",
               "127.0.0.1", "--max-restarts", str(max_restarts), "-m", f"dm_kd.{entry}"]
    return subprocess.Popen([*command, *map(str, argv)], cwd=ROOT, text=True,
                            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ranks(*command, processes):
    """Run a command in several processes; what rank 0 printed."""
    ended = processes_of(*command, processes=processes)
    for rank, child in enumerate(ended):
        assert child.code == 0, (rank, child.err[-3000:])
    return ended[0].out


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
    ranks(tmp_path / "double.py", *command, tmp_path / "two", processes=2)
    ranks(tmp_path / "double.py", *command, tmp_path / "one", "--bn-group", 8, processes=1)
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
import sys, torch
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
        ranks(tmp_path / "count.py", teacher, file, processes=processes)
        found[processes] = torch.load(file, weights_only=True)
        assert found[processes]["seen"] == len(found[processes]["logits"]) == 397
        assert torch.allclose(found[processes]["logits"], found[1]["logits"], atol=1e-12)
    assert len(found[1]["logits"].argmax(1).unique()) > 1


def test_a_killed_rank_restarts_and_ends_in_the_bits_of_an_undisturbed_run(teacher, tmp_path):
    command = (*RECIPE, "--teacher", teacher, "--no-label-check", "--checkpoint-seconds", 1e-6,
               "--epochs", 4, "--out")
    ranks("distill", *command, tmp_path / "undisturbed", processes=2)
    running = torchrun("distill", *command, tmp_path / "run", max_restarts=1)
    for _ in range(24000):
        if (tmp_path / "run" / "last.pt").exists() or running.poll() is not None:
            break
        time.sleep(0.01)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    try:
        out, _ = running.communicate(timeout=200)
    finally:
        running.terminate()  # torchrun ends its workers
    assert running.returncode == 0 and "resumed" in out, out[-3000:]
    assert ((tmp_path / "run" / "student.safetensors").read_bytes()
            == (tmp_path / "undisturbed" / "student.safetensors").read_bytes())


def test_synthesis_on_two_ranks_makes_the_bytes_of_one_process(tmp_path):
    command = ("--task", "digits", "--generator", "noise", "--classes", "0-4", "--batch-size", 3,
               "--images-per-class", 5, "--threads", 1, "--device", "cpu")
    assert run("synthesize", *command, "--out", tmp_path / "one").code == 0
    ranks("synthesize", *command, "--out", tmp_path / "two", processes=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_nan_loss_stops_all_processes_with_the_step_named(teacher, tmp_path):
    ended = processes_of("distill", *RECIPE, "--teacher", teacher, "--no-label-check",
                         "--learning-rate", 1e15, "--weight-decay", 1, "--out", tmp_path / "run",
                         processes=2)
    for child in ended:
        assert child.code == 2 and "step" in child.err, child.err
