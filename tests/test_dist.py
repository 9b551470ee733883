"""Several processes on CPUs with gloo: the same images, each counted once, one writer."""

import pytest
import torch
from processes import contents, ranks, run

from dm_kd.run import load_safetensors, read_metrics

COMMON = ("--task", "digits", "--threads", 1, "--device", "cpu")
RECIPE = (*COMMON, "--amp", "none", "--learning-rate", 0.05, "--source", "real", "--student",
          "cnn_w8", "--epochs", 2, "--batch-size", 16, "--lr-decay-epochs", 1,
          "--images-per-class", 30, "--no-label-check")  # 38 steps


def succeed(*command, processes):
    for child in ranks(*command, processes=processes):
        assert child.code == 0, child.err[-3000:]


DOUBLE = """
import sys, torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double  # where the package asks for float32
from dm_kd import distill
sys.exit(distill.main())
"""


def test_two_processes_with_batch_norm_in_groups_are_one(teacher_folder, tmp_path):
    """The same images, global batch, rate, mean of the gradients and batch statistics: what is left
    is the order of sums. 38 steps make 1e-13 of it in float64, up to 0.2 % in float32."""
    (tmp_path / "double.py").write_text(DOUBLE)
    command = (tmp_path / "double.py", *RECIPE, "--teacher", teacher_folder, "--out")
    succeed(*command, tmp_path / "two", processes=2)
    succeed(*command, tmp_path / "one", "--bn-group", 8, processes=1)
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
logits = engine.predict(model, images, augment.plain_view(task), cpu, "none")
seen = dist.totals(sum(seen))[0]
if dist.is_main():
    torch.save({"seen": seen, "logits": logits}, sys.argv[2])
dist.stop()
"""


def test_397_images_are_evaluated_exactly_by_1_and_3_processes(teacher_folder, tmp_path):
    (tmp_path / "count.py").write_text(COUNT)
    for processes in (1, 3):
        succeed(tmp_path / "count.py", teacher_folder, tmp_path / f"{processes}.pt",
                processes=processes)
    one, three = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 3))
    assert one["seen"] == three["seen"] == len(one["logits"]) == 397
    assert torch.allclose(one["logits"], three["logits"], atol=1e-12)


TORCHRUN = """
import os, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from dm_kd import distill
from processes import watch

def worker(argv):
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        watch("step", 25)
    assert distill.main(argv) == 0

config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1,
                      start_method="fork", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
                      local_addr="127.0.0.1")
elastic_launch(config, worker)(sys.argv[1:])
"""


def test_a_killed_rank_restarts_and_ends_in_the_same_bits(teacher_folder, tmp_path):
    """torchrun's own agent, but with forked workers, which need not import torch again."""
    (tmp_path / "torchrun.py").write_text(TORCHRUN)
    command = (*RECIPE, "--teacher", teacher_folder, "--checkpoint-seconds", 1e-6, "--out")
    succeed("distill", *command, tmp_path / "undisturbed", processes=2)
    killed = run(tmp_path / "torchrun.py", *command, tmp_path / "run",
                 environment={"GLOO_SOCKET_IFNAME": "lo"})
    assert killed.code == 0 and "resumed" in killed.out, killed.err[-3000:]
    assert ((tmp_path / "run" / "student.safetensors").read_bytes()
            == (tmp_path / "undisturbed" / "student.safetensors").read_bytes())


def test_synthesis_on_two_ranks_makes_the_bytes_of_one_process(tmp_path):
    command = (*COMMON, "--generator", "noise", "--batch-size", 3,
               "--images-per-class", 5, "--out")
    assert run("synthesize", *command, tmp_path / "one").code == 0
    succeed("synthesize", *command, tmp_path / "two", processes=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_nan_loss_stops_all_processes_with_the_step_named(teacher_folder, tmp_path):
    ended = ranks("distill", *RECIPE, "--teacher", teacher_folder, "--learning-rate", 1e15,
                  "--weight-decay", 1, "--out", tmp_path / "run", processes=2)
    for child in ended:
        assert child.code == 2 and "step" in child.err, child.err
