"""The training loop: what may change, the schedule, exact counts, the same bits after a stop."""

import json
import os
import shutil
import signal
import types

import pytest
import safetensors.torch
import torch

from dm_kd import augment, data, engine, models, objectives, run
from dm_kd.run import Stopped, UserError

CPU = torch.device("cpu")


def recipe(**changes):
    return types.SimpleNamespace(**{
        "learning_rate": 0.1, "lr_schedule": "step", "lr_decay_epochs": (30, 60, 90),
        "warmup_epochs": 0, "epochs": 100} | changes)


class StopAt(data.Source):
    """Sends this process SIGTERM before a step."""

    stop_at = None

    def batches(self, epoch, first_step=0, student=None):
        for step, batch in enumerate(super().batches(epoch, first_step), first_step):
            if (epoch, step) == self.stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


@pytest.fixture
def parts(distill_args, digits, teacher_folder):
    """f(folder, stop_at, **flags) -> what engine.fit takes: 2 epochs of 4 steps on 128 images."""

    def make(folder, stop_at=None, **changes):
        args = distill_args(**{"out": folder, "checkpoint_seconds": 1e9} | changes)
        torch.manual_seed(args.seed)
        student = models.build("cnn_w4", digits)
        teacher, _ = models.load_frozen(str(teacher_folder), digits)
        train, val = (data.load_real(digits, split) for split in ("train", "val"))
        images = data.Images(train.images[:128], train.labels[:128])
        view = augment.make_view(digits, args, False)
        source = StopAt(images, view, args.batch_size, args.seed)
        source.stop_at = stop_at
        return types.SimpleNamespace(args=args, view=view, student=student, teacher=teacher,
                                     source=source, objective=objectives.kd, val=val)

    return make


def train(p):
    """engine.fit in a run folder; returns the result."""
    with run.Run(p.args.out, p.args, {}, "student") as folder:
        return engine.fit(folder, p.args, p.view, p.student, p.teacher, p.source, p.objective,
                          p.val, CPU, {"model": "cnn_w4"})


# --- the schedule and batch norm -----------------------------------------------------------------

def test_the_rate_drops_tenfold_in_epochs_31_61_and_91_or_follows_a_cosine_after_warm_up():
    rates = [engine.learning_rate(e, recipe()) for e in (0, 29.9, 30, 60, 90, 99.9)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4])
    args = recipe(lr_schedule="cosine", warmup_epochs=5)
    assert [engine.learning_rate(e, args) for e in (0, 2.5, 5, 52.5, 100)] == pytest.approx(
        [0.001, 0.05, 0.1, 0.05, 0.0])


def test_the_batch_must_divide_over_processes_and_groups(distill_args, digits, monkeypatch):
    with pytest.raises(UserError):
        engine.prepare(distill_args(bn_group=5), "cnn_w4", digits)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError):
        engine.prepare(distill_args(), "cnn_w4", digits)


@pytest.mark.parametrize("group", [4, 8])
def test_grouped_batch_norm_normalises_each_group_by_itself(group):
    grouped, plain = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    engine.group_batch_norms(grouped, group)
    x = torch.randn(8, 3, 4, 4)
    expected = torch.cat([torch.nn.BatchNorm2d(3)(part) for part in x.split(group)])
    assert torch.allclose(grouped(x), expected, atol=1e-6)
    plain(x[:group])
    assert torch.equal(grouped.running_mean, plain.running_mean)
    assert torch.equal(grouped.eval()(x), plain.eval()(x))
    with pytest.raises(UserError):  # timm's have the activation in them
        engine.group_batch_norms(type("BatchNormAct2d", (torch.nn.BatchNorm2d,), {})(3), group)


# --- evaluation -----------------------------------------------------------------------------------

def test_accuracy_counts_each_image_once():
    logits = -torch.arange(8.0).expand(4, 8)  # the first class is the largest, the last the least
    assert engine.accuracy(logits, torch.tensor([0, 0, 4, 5])) == (50.0, 75.0)
    assert engine.accuracy(torch.eye(3), torch.tensor([0, 2, 1]))[1] == 100.0


def test_predict_equals_one_batch_and_restores_the_mode(digits):
    model = models.build("cnn_w4", digits).train()
    images = torch.randint(0, 256, (engine.EVAL_BATCH + 5, 1, 8, 8), dtype=torch.uint8)
    view = augment.plain_view(digits)
    logits = engine.predict(model, images, view, CPU, "none")
    assert model.training
    with torch.no_grad():
        expected = model.eval()(view.apply(images, None, {})[0])
    assert torch.allclose(logits, expected, atol=1e-5)


# --- whole runs -----------------------------------------------------------------------------------

def test_a_run_records_rows_result_and_weights_that_agree(parts, tmp_path):
    p = parts(tmp_path / "run")
    teacher = {k: v.clone() for k, v in p.teacher.state_dict().items()}
    result = train(p)
    assert all(torch.equal(v, teacher[k]) for k, v in p.teacher.state_dict().items())
    rows = run.read_metrics(tmp_path / "run")
    assert [r["epoch"] for r in rows] == [1, 2] and rows[1]["images_seen"] == 256
    assert [r["lr"] for r in rows] == pytest.approx([0.05, 0.005])
    assert result["acc1"] == rows[1]["val_acc1"]
    assert result["best_acc1"] == max(r["val_acc1"] for r in rows)
    saved = safetensors.torch.load_file(tmp_path / "run/student.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in p.student.state_dict().items())
    for name in ("config.yaml", "log.txt", "best.safetensors", "curve.png"):
        assert (tmp_path / "run" / name).exists(), name
    _, card = run.read_with_card(tmp_path / "run", "student")
    said = json.loads((tmp_path / "run/result.json").read_text())
    assert card["sha256"] == said["weights_sha256"]
    assert {"acc1", "acc5", "teacher_acc1", "agreement", "seed", "seconds", "command", "commit",
            "versions"} <= said.keys()


TIMELESS = ("epoch", "lr", "train_loss", "val_acc1", "val_acc5", "images_seen")


@pytest.mark.parametrize(("stop_at", "dropout", "changes"), [
    ((0, 0), 0.0, {}), ((0, 2), 0.3, {}), ((1, 3), 0.0, {"mixup": 0.4, "optimizer": "adamw"})])
def test_a_run_stopped_at_a_step_resumes_to_the_same_bits(parts, tmp_path, stop_at, dropout,
                                                          changes):
    def trained(name, *stop):
        p = parts(tmp_path / name, *stop, **changes)
        p.student = torch.nn.Sequential(torch.nn.Dropout(dropout), p.student)
        return train(p)

    result = trained("whole")
    with pytest.raises(Stopped):
        trained("run", stop_at)
    assert not (tmp_path / "run/student.safetensors").exists()
    again = trained("run")
    for name in ("student.safetensors", "best.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows, expected = ([{k: row[k] for k in TIMELESS} for row in run.read_metrics(tmp_path / name)]
                      for name in ("run", "whole"))
    assert rows == expected
    for name in ("acc1", "best_acc1", "best_epoch", "agreement"):
        assert again[name] == result[name], name


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_nan_stops_the_run_and_the_checkpoint_is_from_before(parts, tmp_path, broken):
    p = parts(tmp_path / "run", checkpoint_seconds=1e-9)
    calls = []

    def objective(student_logits, teacher_logits, labels, temperature):
        loss = objectives.kd(student_logits, teacher_logits, labels, temperature)
        calls.append(1)
        if len(calls) < 7:
            return loss
        if broken == "loss":
            return loss * float("nan")
        return loss + 1e38 * student_logits.square().sum()

    p.objective = objective
    with pytest.raises(UserError) as error:
        train(p)
    assert "epoch 2" in str(error.value) and "learning rate 0.005" in str(error.value)
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["model"].values())


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("changes", [{}, {"mixup": 0.4, "label_weight": 0.5}], ids=["kd", "mixup"])
def test_the_compiled_step_trains_to_the_same_weights_and_keys(parts, tmp_path, changes):
    for name, flag in (("eager", "off"), ("compiled", "on")):
        train(parts(tmp_path / name, compile=flag, **changes))
    eager, made = (safetensors.torch.load_file(tmp_path / name / "student.safetensors")
                   for name in ("eager", "compiled"))
    assert eager.keys() == made.keys()
    assert all(torch.allclose(eager[k].float(), made[k].float(), atol=1e-4) for k in eager)
