"""The training loop: what may change, the schedule, exact counts, the same bits after a stop."""

import copy
import json
import math
import os
import shutil
import signal
import threading
import time
import types

import pytest
import safetensors.torch
import torch

from dm_kd import (
    augment,
    distill,
    engine,
    image_set,
    inversion_terms,
    models,
    objectives,
    run,
    synthesize,
    train_teacher,
)
from dm_kd.errors import DivergedError, Stopped, UserError
from dm_kd.sources.stored import StoredSource, making
from dm_kd.tasks import get_task, load_real

CPU = torch.device("cpu")


def recipe(**changes):
    return types.SimpleNamespace(**{
        "learning_rate": 0.1, "lr_schedule": "step", "lr_decay_epochs": (30, 60, 90),
        "warmup_epochs": 0, "epochs": 100} | changes)


@pytest.fixture
def parts(distill_args, digits, teacher_folder):
    """f(folder, **changes) -> what engine.fit takes, for 2 epochs of 4 steps on 128 images."""

    def make(folder, **changes):
        args = distill_args(**{"out": folder, "checkpoint_seconds": 1e9} | changes)
        torch.manual_seed(args.seed)
        student = models.build("cnn_w4", digits)
        teacher, _ = models.load_frozen(str(teacher_folder), digits)
        train, val = (load_real(digits, split) for split in ("train", "val"))
        source = StoredSource(train.images[:128], train.labels[:128], args.batch_size, args.seed)
        return types.SimpleNamespace(
            args=args, view=engine.make_view(digits, args, False), student=student,
            teacher=teacher, source=source, objective=objectives.kd, val=val)

    return make


def train(folder, p):
    """engine.fit in a Run folder -> the result."""
    with run.Run(folder, p.args, {}, "student", "distill") as opened:
        return engine.fit(opened, p.args, p.view, p.student, p.teacher, p.source, p.objective,
                          p.val, CPU, {"model": "cnn_w4"})


def snapshot(model) -> dict:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


class StopAt(StoredSource):
    """Sends this process SIGTERM before step `at` of epoch `epoch`."""

    def __init__(self, source, epoch, at):
        super().__init__(source.images, source.labels, source.batch_size, source.seed)
        self.when = epoch, at

    def batches(self, epoch, first_step=0, student=None):
        for step, batch in enumerate(super().batches(epoch, first_step), first_step):
            if (epoch, step) == self.when:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


# --- teacher and student --------------------------------------------------------------------------

def test_training_changes_no_byte_of_the_teacher_and_gives_it_no_gradient(parts, tmp_path):
    p = parts(tmp_path / "run")
    before = snapshot(p.teacher)
    train(tmp_path / "run", p)
    after = p.teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(v.grad is None for v in p.teacher.parameters())


def test_training_changes_the_students_weights_and_bn_statistics(parts, tmp_path):
    p = parts(tmp_path / "run")
    before = snapshot(p.student)
    train(tmp_path / "run", p)
    after = p.student.state_dict()
    same = [k for k in before if torch.equal(before[k], after[k])]
    assert same == []


def test_the_teacher_is_asked_without_a_graph_and_sees_what_the_student_sees(parts, tmp_path):
    p, seen = parts(tmp_path / "run", mixup=0.4), {"teacher": [], "student": []}
    for name in seen:
        getattr(p, name).register_forward_pre_hook(
            lambda module, x, name=name: seen[name].append((x[0].clone(), module.training,
                                                            torch.is_grad_enabled())))
    p.val = None
    train(tmp_path / "run", p)
    assert len(seen["teacher"]) == len(seen["student"]) == 8
    for (a, training, graph), (b, student_training, student_graph) in zip(
            seen["teacher"], seen["student"], strict=True):
        assert torch.equal(a, b) and not training and not graph
        assert student_training and student_graph


def test_a_step_is_sgd_with_momentum_on_the_objectives_gradient():
    student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    args = types.SimpleNamespace(optimizer="sgd", learning_rate=0.1, weight_decay=1e-2)
    optimizer, x, labels = engine.make_optimizer(student, args), torch.randn(8, 4), torch.zeros(8)
    weight, momentum = student.weight.detach().clone(), torch.zeros(3, 4)
    for _ in range(3):
        logits = x @ weight.T + student.bias.detach()
        target = teacher(x).detach()
        gradient = 4 / 8 * ((logits / 4).softmax(1) - (target / 4).softmax(1)).T @ x
        momentum = 0.9 * momentum + gradient + 1e-2 * weight
        weight = weight - 0.1 * momentum
        engine.train_step(student, teacher, optimizer, objectives.kd, x, labels, 4.0, "none")
        assert torch.allclose(student.weight, weight, atol=1e-5)


# --- schedule -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("epoch", "rate"), [
    (1, 0.1), (30, 0.1), (31, 0.01), (60, 0.01), (61, 1e-3), (90, 1e-3), (91, 1e-4), (100, 1e-4)])
def test_the_rate_drops_tenfold_in_epochs_31_61_and_91(epoch, rate):
    for part in (0.0, 0.5, 0.999):  # epochs are counted from 1; the argument is epochs done
        assert engine.learning_rate(epoch - 1 + part, recipe()) == pytest.approx(rate)


def test_cosine_runs_from_the_rate_to_zero():
    args = recipe(lr_schedule="cosine")
    values = [engine.learning_rate(e, args) for e in (0, 50, 100)]
    assert values == pytest.approx([0.1, 0.05, 0.0])
    rates = [engine.learning_rate(e / 7, args) for e in range(700)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("epochs", [2, 100])
@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_linearly_from_above_zero_to_the_rate(epochs, schedule):
    args = recipe(warmup_epochs=1, epochs=epochs, lr_schedule=schedule, lr_decay_epochs=())
    rates = [engine.learning_rate(step / 50, args) for step in range(51)]
    assert rates[0] == pytest.approx(0.001) and rates == sorted(rates)
    assert rates[1:] == pytest.approx([0.1 * step / 50 for step in range(1, 51)])


def test_warm_up_to_the_end_is_refused(distill_args):
    with pytest.raises(UserError, match="--warmup-epochs 2 leaves no epoch"):
        engine.check_arguments(distill_args(warmup_epochs=2, epochs=2))
    engine.check_arguments(distill_args(warmup_epochs=1, epochs=2))


@pytest.mark.parametrize(("flags", "notes"), [
    ({}, []), ({"mix_share": 0.5, "mixup": 0.4}, []), ({"mix_share": 0.5, "cutmix": 1.0}, []),
    ({"mix_share": 0.5}, ["--mix-share 0.5 of no mixing"]), ({"lr_schedule": "cosine"}, []),
    ({"lr_schedule": "cosine", "lr_decay_epochs": (1,)}, ["does not look at --lr-decay-epochs"])])
def test_flags_that_do_nothing_are_named(distill_args, flags, notes):
    found = engine.idle_flags(distill_args(**{"lr_decay_epochs": engine.LR_DECAY_EPOCHS} | flags))
    assert len(found) == len(notes)
    assert all(part in line for part, line in zip(notes, found, strict=True))


def test_the_optimizer_gets_the_rate_of_its_step(parts, tmp_path, monkeypatch):
    p, seen = parts(tmp_path / "run", lr_schedule="cosine"), []
    real = engine.train_step

    def spy(network, teacher, optimizer, *others):
        seen.append(optimizer.param_groups[0]["lr"])
        return real(network, teacher, optimizer, *others)

    monkeypatch.setattr(engine, "train_step", spy)
    train(tmp_path / "run", p)
    assert seen == [engine.learning_rate(step / 4, p.args) for step in range(8)]


# --- judging --------------------------------------------------------------------------------------

def test_accuracy_counts_each_image_once():
    logits = torch.zeros(397, 10)
    labels = torch.arange(397) % 10
    logits[torch.arange(397), labels] = 5.0  # right
    logits[:100] = torch.arange(10).float()  # always 9, then 8, 7, 6, 5
    acc1, acc5 = engine.accuracy(logits, labels)
    assert acc1 == pytest.approx(100 * (297 + 10) / 397)
    assert acc5 == pytest.approx(100 * (297 + 50) / 397)


def test_accuracy_with_fewer_than_five_classes_counts_all_as_top_5():
    acc1, acc5 = engine.accuracy(torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]), torch.tensor([0, 2]))
    assert (acc1, acc5) == (50.0, 100.0)


def test_predict_equals_one_batch_and_restores_the_mode(digits):
    model = models.build("cnn_w4", digits).train()
    images = torch.randint(0, 256, (1100, 1, 8, 8), dtype=torch.uint8)
    view = engine.View(digits.mean, digits.std)
    before = snapshot(model)
    logits = engine.predict(model, images, view, CPU, "none")
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(model.eval()(view.plain(images)), logits, atol=1e-5)


def test_more_ranks_than_images_predict_the_same(digits, monkeypatch):
    model = models.build("cnn_w4", digits)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    view = engine.View(digits.mean, digits.std)
    whole = engine.predict(model, images, view, CPU, "none")
    shares = []
    monkeypatch.setattr(engine.dist, "world_size", lambda: 5)
    for rank in range(5):
        monkeypatch.setattr(engine.dist, "rank", lambda rank=rank: rank)
        shares.append(engine.predict(model, images, view, CPU, "none"))
    assert torch.allclose(sum(shares), whole, atol=1e-5)



# --- images of any size ---------------------------------------------------------------------------

IMAGENET = get_task("imagenet")


def pictures(*sizes):
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def view_of(task, **changes):
    args = types.SimpleNamespace(**{"augment": "default", "mixup": 0.0, "cutmix": 0.0,
                                    "mix_share": 1.0} | changes)
    return engine.make_view(task, args, True)


def test_a_large_tasks_training_view_is_the_mirrored_crop_of_the_images_id():
    images, ids = pictures((40, 60), (60, 40), (300, 250)), torch.tensor([5, 2 ** 40, 17])
    x, labels = view_of(IMAGENET).train(images, torch.arange(3), ids, 7, 3, 0)
    boxes = augment.crop_boxes(7, 3, ids, torch.tensor([i.shape[1:] for i in images]))
    mirrored = augment.flips(7, 3, ids)
    expected = augment.standardize(augment.resized_crops(images, boxes, mirrored, 224),
                                   IMAGENET.mean, IMAGENET.std)
    assert torch.equal(x, expected) and x.shape == (3, 3, 224, 224)
    assert labels.tolist() == [0, 1, 2]


def test_a_crop_is_the_same_in_any_batch_and_from_files_of_any_size():
    images, ids = torch.stack(pictures(*[(50, 70)] * 6)), torch.arange(100, 106)
    view, labels = view_of(IMAGENET), torch.zeros(6, dtype=torch.int64)
    whole = view.train(images, labels, ids, 0, 0, 0)[0]
    assert torch.equal(view.train(list(images), labels, ids, 0, 0, 0)[0], whole)
    order = torch.tensor([3, 0, 5])
    assert torch.equal(view.train(images[order], labels[order], ids[order], 0, 0, 9)[0],
                       whole[order])


@pytest.mark.parametrize("view", [engine.plain_view(IMAGENET),
                                  view_of(IMAGENET, augment="none"), view_of(IMAGENET)])
def test_large_images_are_judged_as_centre_crops(view):
    images = pictures((256, 300), (500, 256), (224, 224))
    expected = augment.standardize(augment.centre_crops(images, 224), IMAGENET.mean, IMAGENET.std)
    assert torch.equal(view.plain(images), expected)


def test_without_augmentation_large_images_train_as_centre_crops():
    images, view = pictures((256, 300), (300, 256)), view_of(IMAGENET, augment="none")
    x, _ = view.train(images, torch.arange(2), torch.arange(2), 0, 0, 0)
    assert torch.equal(x, view.plain(images))


def test_crops_are_mixed_like_other_images():
    images = pictures((50, 70), (70, 50), (64, 64), (90, 30))
    ids = torch.arange(4)
    plain = view_of(IMAGENET).train(images, ids, ids, 0, 0, 2)[0]
    x, labels = view_of(IMAGENET, mixup=0.4).train(images, ids, ids, 0, 0, 2)
    mixed, lam, partner = augment.mix(plain, 0, 0, 2, 0.4, 0.0, 1.0)
    assert torch.equal(x, mixed)
    assert torch.allclose(labels, augment.mix_labels(ids, 1000, lam, partner))


def test_predictions_from_files_of_any_size_are_those_of_their_centre_crops(digits):
    images = pictures((256, 300), (300, 256), (256, 256), (400, 333), (257, 256))
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
                                torch.nn.Linear(12, 1000))
    view = engine.plain_view(IMAGENET)

    class Files:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return [images[i] for i in index.tolist()]

    found = engine.predict(model, Files(), view, CPU, "none")
    tensor = augment.centre_crops(images, 224)
    assert torch.allclose(found, engine.predict(model, tensor, engine.View(
        IMAGENET.mean, IMAGENET.std), CPU, "none"), atol=1e-5)


# --- a run ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return {}


def finished(parts, folder, cache, **changes):
    """The bytes of an unbroken run's student, made once for each recipe."""
    key = repr(sorted(changes.items()))
    if key not in cache:
        p = parts(folder / "unbroken", **changes)
        result = train(folder / "unbroken", p)
        cache[key] = ((folder / "unbroken/student.safetensors").read_bytes(), result,
                      run.read_metrics(folder / "unbroken"))
    return cache[key]


def test_a_run_records_rows_result_and_weights_that_agree(parts, tmp_path):
    p = parts(tmp_path / "run")
    result = train(tmp_path / "run", p)
    rows = run.read_metrics(tmp_path / "run")
    assert [r["epoch"] for r in rows] == [1, 2] and rows[1]["images_seen"] == 256
    assert [r["lr"] for r in rows] == pytest.approx([0.05, 0.005])
    assert result["acc1"] == rows[1]["val_acc1"] and result["best_acc1"] == max(
        r["val_acc1"] for r in rows)
    saved = safetensors.torch.load_file(tmp_path / "run/student.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in p.student.state_dict().items())
    for name in ("log.txt", "best.pt", "curve.png", "student.json", "predictions.json"):
        assert (tmp_path / "run" / name).exists(), name
    log = (tmp_path / "run/log.txt").read_text()
    assert "Epoch: [2/2]" in log and "Acc@1" in log


def test_the_predictions_are_those_of_the_reported_accuracy(parts, tmp_path):
    result = train(tmp_path / "run", parts(tmp_path / "run"))
    said = json.loads((tmp_path / "run/predictions.json").read_text())
    right = [a == b for a, b in zip(said["predictions"], said["labels"], strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(result["acc1"])
    assert len(right) == result["val_images"]


def test_two_equal_runs_give_the_same_bytes_and_another_seed_does_not(parts, tmp_path, unbroken):
    first = finished(parts, tmp_path, unbroken)[0]
    again = parts(tmp_path / "again")
    train(tmp_path / "again", again)
    assert (tmp_path / "again/student.safetensors").read_bytes() == first
    train(tmp_path / "other", parts(tmp_path / "other", seed=1))
    assert (tmp_path / "other/student.safetensors").read_bytes() != first


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.4, "optimizer": "adamw"}],
                         ids=["sgd", "mixup, adamw"])
@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 2), (1, 1), (1, 3)])
def test_a_run_stopped_at_a_step_goes_on_to_the_same_bits(parts, tmp_path, unbroken, changes,
                                                          epoch, step):
    expected, result, rows = finished(parts, tmp_path, unbroken, **changes)
    p = parts(tmp_path / "run", **changes)
    p.source = StopAt(p.source, epoch, step)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "run", p)
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "run/student.safetensors").exists()
    again = train(tmp_path / "run", parts(tmp_path / "run", **changes))
    assert (tmp_path / "run/student.safetensors").read_bytes() == expected
    timeless = ("epoch", "lr", "train_loss", "val_acc1", "val_acc5", "images_seen")
    assert [{k: row[k] for k in timeless} for row in run.read_metrics(tmp_path / "run")] == [
        {k: row[k] for k in timeless} for row in rows]
    for name in ("acc1", "best_acc1", "best_epoch", "images_seen", "agreement"):
        assert again[name] == result[name], name


def test_the_best_accuracy_is_kept_over_a_resume(parts, tmp_path, monkeypatch):
    accuracies = iter([50.0, 90.0, 10.0, 20.0, 30.0])  # the first is the teacher's
    monkeypatch.setattr(engine, "accuracy", lambda *_: (next(accuracies), 100.0))
    p = parts(tmp_path / "run", epochs=3)
    p.source = StopAt(p.source, 1, 1)
    with pytest.raises(Stopped):
        train(tmp_path / "run", p)
    accuracies = iter([50.0, 10.0, 20.0, 20.0])
    result = train(tmp_path / "run", parts(tmp_path / "run", epochs=3))
    assert (result["best_acc1"], result["best_epoch"], result["acc1"]) == (90.0, 1, 20.0)
    assert torch.load(tmp_path / "run/best.pt")["epoch"] == 1


def test_a_network_that_gives_all_images_one_class_is_pointed_out(parts, tmp_path):
    p = parts(tmp_path / "dead", epochs=1, learning_rate=1e-9)
    torch.nn.init.zeros_(inversion_terms.last_linear(p.student).weight)
    train(tmp_path / "dead", p)
    assert "every image is given the same class" in (tmp_path / "dead/log.txt").read_text()
    lines = []
    engine.warn_of_one_class(types.SimpleNamespace(log=lines.append), torch.eye(3), torch.arange(3))
    assert not lines


def test_a_nan_loss_stops_with_epoch_and_step_and_keeps_the_good_checkpoint(parts, tmp_path):
    p = parts(tmp_path / "run", checkpoint_seconds=1e-9)
    calls = []

    def poisoned(*inputs):
        calls.append(1)
        return objectives.kd(*inputs) * (math.nan if len(calls) == 7 else 1.0)

    p.objective = poisoned
    with pytest.raises(DivergedError, match="nan in epoch 2 at step 3") as caught:
        train(tmp_path / "run", p)
    assert caught.value.exit_code == 4
    with run.Run(tmp_path / "run", p.args, {}, "student", "distill") as opened:
        state = opened.load_checkpoint()
    assert (state["epoch"], state["step"]) == (1, 2)
    assert all(torch.isfinite(v).all() for v in state["model"].values())
    assert not (tmp_path / "run/student.safetensors").exists()


@pytest.mark.parametrize(("at", "seconds", "kept"), [
    (7, 1e-9, "last.pt and best.pt"), (7, 1e9, "best.pt, from"), (2, 1e9, "nothing was saved")])
def test_a_diverged_run_names_its_images_and_what_it_has_kept(parts, tmp_path, at, seconds, kept):
    p = parts(tmp_path / "run", checkpoint_seconds=seconds)
    calls = []
    p.objective = lambda *inputs: (calls.append(1), objectives.kd(*inputs) * (
        math.nan if len(calls) == at else 1.0))[1]
    with pytest.raises(DivergedError) as caught:
        train(tmp_path / "run", p)
    epoch, step = divmod(at - 1, 4)
    ids = p.source.order(epoch)[step * 32:(step + 1) * 32].tolist()
    said = ", ".join(map(str, ids))
    assert f"images   {', '.join(map(str, ids[:16]))} ... (32, all" in str(caught.value)
    assert said in (tmp_path / "run/log.txt").read_text()
    assert kept in str(caught.value) and len(str(caught.value).splitlines()) == 5
    assert "last.pt" in str(caught.value) or not (tmp_path / "run/last.pt").exists()


def test_images_that_fill_the_last_batch_are_named_by_their_places(parts, tmp_path):
    p = parts(tmp_path / "run", epochs=1)
    p.source = StoredSource(p.source.images[:8], p.source.labels[:8], 12, 0)
    p.objective = lambda *inputs: objectives.kd(*inputs) * math.nan
    with pytest.raises(DivergedError) as caught:
        train(tmp_path / "run", p)
    named = str(caught.value).splitlines()[2].split("images")[1].split(",")
    assert [int(i) for i in named] == (p.source.order(0) % 8).tolist()


def test_infinite_weights_after_a_finite_loss_are_not_saved(parts, tmp_path):
    p = parts(tmp_path / "run", epochs=1)
    calls = []

    def poisoned(logits, *others):
        calls.append(1)
        loss = objectives.kd(logits, *others)
        if len(calls) == 4:  # the last step: the loss is finite, its gradient is not
            logits.register_hook(lambda g: g * math.inf)
        return loss

    p.objective = poisoned
    with pytest.raises(DivergedError):
        train(tmp_path / "run", p)
    assert not (tmp_path / "run/student.safetensors").exists()


def test_a_run_without_validation_reports_no_accuracy(parts, tmp_path):
    p = parts(tmp_path / "run")
    p.val = None
    result = train(tmp_path / "run", p)
    assert result["acc1"] is None and result["teacher_acc1"] is None
    assert run.read_metrics(tmp_path / "run")[0]["val_acc1"] is None


# --- whole commands -------------------------------------------------------------------------------

def command(folder, noise_folder, teacher_folder, cache):
    return ["--task", "digits", "--source", str(noise_folder), "--teacher", str(teacher_folder),
            "--student", "cnn_w4", "--epochs", "2", "--batch-size", "16", "--amp", "none",
            "--device", "cpu", "--threads", "1", "--cache", str(cache), "--out", str(folder)]


def test_a_finished_run_says_so_and_trains_no_more(tmp_path, noise_folder, teacher_folder, capsys,
                                                   monkeypatch):
    argv = command(tmp_path / "run", noise_folder, teacher_folder, tmp_path / "cache")
    assert distill.main(argv) == 0
    seconds = image_set.open_set(noise_folder).seconds()["making_seconds"]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["budget"]["making_seconds"] == seconds > 0
    assert "seconds" not in json.loads((tmp_path / "run" / "inputs.json").read_text())
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    monkeypatch.setattr(engine, "fit", lambda *_: pytest.fail("trained again"))
    assert distill.main(argv) == 0
    assert "is finished: Acc@1" in capsys.readouterr().out
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}


def test_a_teacher_that_disagrees_with_the_labels_is_refused(tmp_path, teacher_folder, capsys):
    argv = ["--task", "digits", "--source", "real", "--teacher", "cnn_w4@none", "--student",
            "cnn_w4", "--epochs", "1", "--device", "cpu", "--threads", "1", "--amp", "none",
            "--out", str(tmp_path / "run")]
    assert distill.main(argv) == 2
    assert "chance is 10.0 %" in capsys.readouterr().err


def test_with_unlabelled_images_the_teacher_is_scored_on_what_is_judged(
        tmp_path, noise_folder, teacher_folder, capsys):
    argv = command(tmp_path / "run", noise_folder, str(teacher_folder), tmp_path / "cache")
    assert distill.main(argv) == 0
    assert "% of 267 validation images" in capsys.readouterr().out


def test_unlabelled_images_and_nothing_judged_leave_nothing_to_score(tmp_path, noise_folder,
                                                                     capsys):
    argv = command(tmp_path / "run", noise_folder, "cnn_w4@none", tmp_path / "cache")
    assert distill.main([*argv, "--val", "none"]) == 0
    assert "agrees" not in capsys.readouterr().out


def test_a_set_of_which_fewer_images_are_asked_for_gives_the_first_of_each_class(
        noise_folder, tmp_path, digits):
    args = distill.parse(command(tmp_path / "run", noise_folder, "cnn_w4@none", tmp_path / "cache"))
    whole, _, _ = distill.load_source(args, digits)
    args.images_per_class = 2
    few, labels, inputs = distill.load_source(args, digits)
    assert torch.equal(few, whole[:20]) and len(labels) == inputs["source_images"] == 20


def test_a_set_of_another_size_is_packed_at_the_tasks_size_once(tmp_path, digits, monkeypatch):
    assert synthesize.main([
        "--task", "fashion_mnist", "--generator", "noise", "--images-per-class", "2", "--device",
        "cpu", "--threads", "1", "--out", str(tmp_path / "set")]) == 0
    argv = command(tmp_path / "run", tmp_path / "set", "cnn_w4@none", tmp_path / "cache")
    images, labels, _ = distill.load_source(distill.parse(argv), digits)
    large, _ = image_set.packed(image_set.open_set(tmp_path / "set"), tmp_path / "other",
                                lambda count: None)
    assert large.shape == (20, 1, 28, 28) and (labels == -1).all()
    assert torch.equal(images, augment.resize(large, 8, 8))
    monkeypatch.setattr(image_set, "read_image", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(distill.load_source(distill.parse(argv), digits)[0], images)


def test_a_set_with_other_channels_is_refused(noise_folder, tmp_path, capsys):
    folder = shutil.copytree(noise_folder, tmp_path / "set")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"channels": 3}))
    argv = command(tmp_path / "run", folder, "cnn_w4@none", tmp_path / "cache")
    assert distill.main(argv) == 2
    assert "3 channels" in capsys.readouterr().err


def test_train_teacher_mixes_the_labels_with_the_images(tmp_path, monkeypatch):
    shapes, real = set(), objectives.cross_entropy

    def spy(logits, teacher_logits, labels, temperature):
        shapes.add(tuple(labels.shape[1:]))
        return real(logits, teacher_logits, labels, temperature)

    monkeypatch.setattr(objectives, "cross_entropy", spy)
    assert train_teacher.main([
        "--task", "digits", "--model", "cnn_w4", "--epochs", "1", "--steps-per-epoch", "2",
        "--batch-size", "32", "--mixup", "0.4", "--amp", "none", "--device", "cpu", "--threads",
        "1", "--out", str(tmp_path / "run")]) == 0
    assert shapes == {(10,)}


# --- stored source --------------------------------------------------------------------------------

def source(count=10, batch_size=4, **options):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return StoredSource(images, torch.arange(count), batch_size, 0, **options)


def test_an_epoch_shows_each_image_at_least_once_and_fills_the_last_batch_from_a_second_order():
    order = source().order(0)
    assert len(order) == 12 and len(set(order.tolist())) == 12
    assert sorted((order % 10)[:10].tolist()) == list(range(10)) and (order[10:] >= 10).all()


def test_the_order_differs_between_epochs_and_not_between_calls():
    assert source().order(3).tolist() == source().order(3).tolist() != source().order(4).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_share_a_batch_without_gap_or_overlap(world_size):
    whole = [ids.tolist() for *_, ids in source().batches(0)]
    shares = [[ids.tolist() for *_, ids in source(rank=r, world_size=world_size).batches(0)]
              for r in range(world_size)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole


def test_an_epoch_from_a_step_on_is_its_suffix():
    whole, suffix = list(source().batches(2)), list(source().batches(2, first_step=1))
    assert len(suffix) == len(whole) - 1
    for a, b in zip(whole[1:], suffix, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_images_and_labels_belong_together():
    for images, labels, ids in source().batches(0):
        assert images.flatten().tolist() == labels.tolist() == (ids % 10).tolist()


def ids_of(batches):
    return [(images.clone(), labels.clone(), ids.clone()) for images, labels, ids in batches]


@pytest.mark.parametrize("first_step", [0, 1, 2, 3])
def test_batches_gathered_ahead_are_the_same(first_step):
    plain, ahead = (ids_of(source(ahead=a).batches(1, first_step)) for a in (False, True))
    assert len(plain) == len(ahead) == 3 - first_step
    for a, b in zip(plain, ahead, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_next_batch_is_gathered_by_a_thread_while_this_one_is_used():
    made, here = [], threading.get_ident()
    gather = StoredSource.gather
    ahead = source(40, ahead=True)
    ahead.gather = lambda index: (made.append(threading.get_ident()), gather(ahead, index))[1]
    for step, _ in enumerate(ahead.batches(0), 1):
        for _ in range(1000):  # the thread works meanwhile; never more than one ahead
            if len(made) == min(step + 1, 10):
                break
            time.sleep(0.005)
        assert len(made) == min(step + 1, 10)
    assert here not in made and len(set(made)) == 1


def test_an_error_while_gathering_ahead_reaches_the_loop():
    broken = source(ahead=True)
    broken.labels = broken.labels[:3]
    with pytest.raises(IndexError):
        list(broken.batches(0))


def test_a_loop_that_ends_early_leaves_no_thread_behind():
    before = threading.active_count()
    for _ in source(40, ahead=True).batches(0):
        break
    assert threading.active_count() == before


def test_a_signal_while_batches_are_gathered_ahead_saves_and_goes_on_to_the_same_bits(
        parts, tmp_path, unbroken, monkeypatch):
    real, steps = engine.train_step, []

    def step(*args):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    whole = finished(parts, tmp_path, unbroken)[0]
    monkeypatch.setattr(engine, "train_step", step)
    p = parts(tmp_path / "run")
    p.source.ahead = True
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "run", p)
    assert stopped.value.exit_code == 143
    p = parts(tmp_path / "run")
    p.source.ahead = True
    train(tmp_path / "run", p)
    assert len(steps) == 2 * 4  # none was done twice
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == whole


# --- the step on a GPU, as far as a CPU shows it --------------------------------------------------

class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes every operation whose result Python or the host waits for, while `on`."""

    WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select",
               "aten::is_nonzero"}

    def __init__(self):
        super().__init__()
        self.on, self.found = False, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        masked = name.startswith("aten::index") and any(
            i is not None and i.dtype == torch.bool for i in (args[1] if len(args) > 1 and
                                                              isinstance(args[1], list) else []))
        if self.on and (masked or name in self.WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Watched(StoredSource):
    """Switches `reads` on between its batches."""

    def __init__(self, source, reads):
        super().__init__(source.images, source.labels, source.batch_size, source.seed)
        self.reads, self.host = reads, []  # host: ids, which live on the CPU

    def batches(self, epoch, first_step=0, student=None):
        for images, labels, ids in super().batches(epoch, first_step):
            self.host.append(ids)
            self.reads.on = True
            yield images, labels, ids
            self.reads.on = False


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.4, "cutmix": 1.0, "mix_share": 0.5,
                                          "label_weight": 0.5}], ids=["plain", "mixed"])
@pytest.mark.parametrize("mistake", [None, "item", "cpu", "mask"])
def test_no_step_waits_for_the_device(parts, tmp_path, monkeypatch, changes, mistake, digits):
    p, reads = parts(tmp_path / "run", **changes), Reads()
    p.source = Watched(p.source, reads)
    p.view = engine.make_view(digits, p.args, bool(changes))
    if changes:
        p.objective = objectives.with_labels(objectives.kd, 0.5)
    for name in ("cpu", "numpy", "tolist"):
        real = getattr(torch.Tensor, name)

        def spy(tensor, *args, real=real, name=name):
            if reads.on and not any(tensor is ids for ids in p.source.host):
                reads.found.append(name)
            return real(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, spy)
    if mistake:  # the watch sees what it is for
        kd = p.objective
        p.objective = lambda s, t, labels, tau: (
            {"item": lambda: s.sum().item(), "cpu": lambda: s.cpu(),
             "mask": lambda: s[s > 0]}[mistake](), kd(s, t, labels, tau))[1]
    with reads:
        train(tmp_path / "run", p)
    assert bool(reads.found) == bool(mistake), reads.found


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_networks_train_to_the_same_weights_and_keys(parts, tmp_path, unbroken,
                                                              monkeypatch, backend):
    expected = safetensors.torch.load(finished(parts, tmp_path, unbroken)[0])
    monkeypatch.setattr(engine, "COMPILER", backend)
    compiled, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **o: (compiled.append(m), real(m, **o))[1])
    p = parts(tmp_path / "run", compile="on")
    train(tmp_path / "run", p)
    assert compiled == [p.teacher, p.student]
    found = safetensors.torch.load_file(tmp_path / "run" / "student.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[k], expected[k], rtol=1e-4, atol=1e-6) for k in found)
    for name in ("last.pt", "best.pt"):
        state = torch.load(tmp_path / "run" / name, weights_only=True)
        assert state.get("model", state.get("state_dict")).keys() == expected.keys()


def test_networks_are_compiled_on_gpus_only_unless_asked_for():
    cuda = torch.device("cuda")
    assert engine.resolve_compile("auto", CPU) == "off"
    assert engine.resolve_compile("on", CPU) == "on"
    assert engine.resolve_compile("off", cuda) == "off"


def test_without_a_c_compiler_nothing_is_compiled_and_asking_for_it_is_refused(
        distill_args, monkeypatch):
    gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert engine.resolve_compile("auto", torch.device("cuda")) == "off"
    with pytest.raises(UserError, match="needs a C compiler"):
        engine.check_arguments(distill_args(compile="on"))
    monkeypatch.setenv("CC", "cc")
    assert engine.resolve_compile("auto", torch.device("cuda")) == "on"
    engine.check_arguments(distill_args(compile="on"))


def gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(("capability", "amp", "compiled"), [
    ((6, 0), "none", "off"), ((7, 0), "none", "on"), ((7, 5), "none", "on"), ((8, 0), "bf16", "on"),
    ((9, 0), "bf16", "on")])
def test_an_old_gpu_gets_what_it_computes(monkeypatch, capability, amp, compiled):
    gpu(monkeypatch, capability)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: object())
    cuda = torch.device("cuda")
    assert (engine.resolve_amp("auto", cuda), engine.resolve_compile("auto", cuda)) == (
        amp, compiled)


def test_without_triton_a_gpu_runs_uncompiled(monkeypatch):
    gpu(monkeypatch, (9, 0))
    monkeypatch.setenv("CC", "cc")
    for there, found in ((None, "off"), (object(), "on")):
        monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name, there=there: there)
        assert engine.resolve_compile("auto", torch.device("cuda")) == found


@pytest.mark.parametrize("device, world_size, mode", [
    ("cuda", 1, "reduce-overhead"), ("cuda", 2, None), ("cpu", 1, None)])
def test_cuda_graphs_are_for_one_gpu(monkeypatch, device, world_size, mode):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setattr(torch, "compile", lambda m, **options: options)
    args = types.SimpleNamespace(compile="on")
    options = engine.compiled(torch.nn.Linear(1, 1), args, torch.device(device))
    assert options == {"backend": "inductor", "dynamic": False, "mode": mode}


# --- bfloat16 -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_both_networks_features_have_the_type_asked_for_and_logits_are_float32(
        parts, tmp_path, amp, dtype):
    p, seen = parts(tmp_path / "run", epochs=1, amp=amp), {"x": [], "logits": []}

    def note(module, x, logits):
        seen["x"].append(x[0].dtype)
        seen["logits"].append(logits.dtype)

    for network in (p.student, p.teacher):
        inversion_terms.last_linear(network).register_forward_hook(note)
    train(tmp_path / "run", p)
    assert set(seen["x"]) == {dtype} and set(seen["logits"]) == {torch.float32}
    assert len(seen["x"]) > 2 * 4  # both networks' steps, and judging
    assert all(v.dtype == torch.float32 for v in p.student.parameters())


@pytest.mark.parametrize(("flags", "amp"), [
    ("flags: avx2 avx512f", "none"), ("flags: avx512_bf16", "bf16"), ("flags: amx_bf16", "bf16"),
    (None, "none")])
def test_bfloat16_is_chosen_where_the_processor_computes_it_and_on_gpus(monkeypatch, flags, amp):
    def cpuinfo(path):
        if flags is None:
            raise FileNotFoundError(path)
        return flags

    gpu(monkeypatch, (8, 0))
    monkeypatch.setattr(run.Path, "read_text", cpuinfo)
    assert engine.resolve_amp("auto", CPU) == amp
    assert engine.resolve_amp("auto", torch.device("cuda")) == "bf16"
    assert [engine.resolve_amp(given, CPU) for given in ("bf16", "none")] == ["bf16", "none"]


def test_a_bfloat16_run_stopped_at_a_step_goes_on_to_the_same_bits_which_are_not_float32s(
        parts, tmp_path, unbroken):
    expected, _, _ = finished(parts, tmp_path, unbroken, amp="bf16")
    p = parts(tmp_path / "run", amp="bf16")
    p.source = StopAt(p.source, 1, 1)
    with pytest.raises(Stopped):
        train(tmp_path / "run", p)
    train(tmp_path / "run", parts(tmp_path / "run", amp="bf16"))
    assert (tmp_path / "run/student.safetensors").read_bytes() == expected
    train(tmp_path / "exact", parts(tmp_path / "exact"))
    assert (tmp_path / "exact/student.safetensors").read_bytes() != expected


# --- several processes, as far as one shows them --------------------------------------------------

@pytest.mark.parametrize(("steps", "seconds", "expected"), [
    (1, 60.0, 1), (1, 3.0, 1), (1, 1.0, 3), (1, 0.0, 50), (50, 30.0, 5), (5, 1.0, 15),
    (50, 1.4, 50)])
def test_processes_agree_each_three_seconds_or_fifty_steps(steps, seconds, expected):
    assert engine.steps_to_poll(steps, seconds) == expected


class Wrapped(torch.nn.Module):
    """Stands for DistributedDataParallel, which needs a group."""

    def __init__(self, module, **options):
        super().__init__()
        self.module, Wrapped.options = module, options

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize(("seconds", "step"), [(0.01, 3), (10.0, None)], ids=["slow", "fast"])
def test_slow_steps_of_several_processes_are_asked_often_whether_to_stop(
        parts, tmp_path, monkeypatch, seconds, step):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Wrapped)
    monkeypatch.setattr(engine, "POLL_SECONDS", seconds)
    monkeypatch.setattr(engine, "POLL_STEPS", 3)
    real = engine.train_step
    monkeypatch.setattr(engine, "train_step", lambda *args: (time.sleep(0.03), real(*args))[1])
    p = parts(tmp_path / "run")
    p.source = StopAt(p.source, 0, 2)
    with pytest.raises(Stopped):
        train(tmp_path / "run", p)
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == ((0, step) if step else (1, 0))
    assert Wrapped.options == {"device_ids": None, "broadcast_buffers": False}


# --- batch norm in groups -------------------------------------------------------------------------

def norms(group):
    """A plain batch norm and a grouped one with the same weights."""
    plain = torch.nn.BatchNorm2d(3)
    torch.nn.init.uniform_(plain.weight)
    torch.nn.init.uniform_(plain.bias)
    grouped = copy.deepcopy(plain)
    engine.group_batch_norms(torch.nn.Sequential(grouped), group)
    return plain, grouped


@pytest.mark.parametrize("group", [2, 4, 12])
def test_grouped_batch_norm_equals_a_loop_over_the_groups(group):
    plain, grouped = norms(group)
    x = torch.randn(12, 3, 5, 4) * 3 + 1
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    copies = [copy.deepcopy(plain) for _ in range(12 // group)]
    expected = torch.cat([norm(part) for norm, part in zip(copies, a.split(group), strict=True)])
    found, weights = grouped(b), torch.randn(12, 3, 5, 4)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert torch.equal(found, expected) and torch.equal(a.grad, b.grad)
    assert torch.allclose(grouped.weight.grad, sum(c.weight.grad for c in copies), rtol=1e-5)
    assert torch.allclose(grouped.bias.grad, sum(c.bias.grad for c in copies), rtol=1e-5)
    for name, value in copies[0].named_buffers():  # the first group's: rank 0's in a DDP
        assert torch.equal(value, getattr(grouped, name)), name


def test_grouped_batch_norm_is_the_plain_one_in_eval_mode_and_in_the_state_dict():
    plain, grouped = norms(2)
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(plain.eval()(x), grouped.eval()(x))
    assert plain.state_dict().keys() == grouped.state_dict().keys()


def test_a_group_of_the_whole_batch_changes_no_bit_and_a_smaller_one_does(parts, tmp_path,
                                                                          unbroken):
    whole = finished(parts, tmp_path, unbroken)[0]
    for group, same in ((32, True), (8, False)):
        folder = tmp_path / f"group{group}"
        train(folder, parts(folder, bn_group=group))
        assert ((folder / "student.safetensors").read_bytes() == whole) == same
    kept = safetensors.torch.load(whole)
    assert safetensors.torch.load_file(folder / "student.safetensors").keys() == kept.keys()


def test_a_group_that_does_not_divide_the_batch_is_refused(distill_args, monkeypatch):
    with pytest.raises(UserError, match="groups of 12"):
        engine.check_arguments(distill_args(bn_group=12))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="16 images of a process .* groups of 32"):
        engine.check_arguments(distill_args(bn_group=32))


def test_a_network_without_batch_norm_has_nothing_to_group():
    with pytest.raises(UserError, match="no batch norm"):
        engine.group_batch_norms(torch.nn.Linear(2, 2), 4)
    with pytest.raises(UserError, match="cannot group BatchNorm1d"):
        engine.group_batch_norms(torch.nn.BatchNorm1d(2), 4)


# --- TensorBoard ----------------------------------------------------------------------------------

def test_a_missing_tensorboard_is_named_with_its_pip_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert train_teacher.main(["--task", "digits", "--model", "cnn_w4", "--tensorboard", "--device",
                               "cpu", "--out", str(tmp_path / "run")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_the_rows_of_metrics_also_after_a_stop(parts, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    p = parts(folder, tensorboard=True)
    p.source = StopAt(p.source, 1, 2)
    with pytest.raises(Stopped):
        train(folder, p)
    train(folder, parts(folder, tensorboard=True))
    events = reader.EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    known = {name for name, value in rows[0].items() if value is not None}
    assert set(events.Tags()["scalars"]) == known - {"epoch"}
    for name in ("train_loss", "val_acc1", "lr", "images_seen"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [1, 2]
        assert [s.value for s in scalars] == pytest.approx([row[name] for row in rows])


def test_tensorboard_may_be_switched_on_for_a_run_that_goes_on(distill_args, tmp_path):
    for on in (False, True):
        with run.Run(tmp_path / "run", distill_args(tensorboard=on), {}, "student", "distill"):
            pass


def test_what_a_sets_images_took_is_known_from_its_generator():
    dit = {"name": "dit", "steps": 50, "guidance_scale": 2.0}
    assert making(dit, 7) == {"generator_evaluations": 700, "teacher_passes": 0}
    assert making(dit | {"guidance_scale": 1.0}, 7)["generator_evaluations"] == 350
    guided = making(dit | {"teacher_guidance": 1.0}, 7)
    assert guided == {"generator_evaluations": 1400, "teacher_passes": 350}
    assert making({"name": "deepinversion", "iterations": 9}, 2)["teacher_passes"] == 18
    assert making({"name": "noise"}, 2) == {"generator_evaluations": 0} and making(None, 2) == {}


def test_what_a_sets_images_took_in_seconds_is_that_of_as_many_as_are_used():
    seconds = {"making_seconds": 30.0, "of_images": 60, "pretraining_seconds": 9.5}
    assert making({"name": "noise"}, 20, seconds) == {
        "generator_evaluations": 0, "making_seconds": 10.0, "pretraining_seconds": 9.5}
    assert "making_seconds" not in making({"name": "import"}, 20, seconds)  # made elsewhere
    assert making({"name": "noise"}, 20, seconds | {
        "making_seconds": None, "pretraining_seconds": None}) == {"generator_evaluations": 0}


def test_the_seconds_of_a_set_stand_in_the_budget_and_in_no_row(parts, tmp_path):
    p = parts(tmp_path / "run")
    made = {"making_seconds": 2.5, "pretraining_seconds": 70.0}
    p.source = StoredSource(p.source.images, p.source.labels, p.source.batch_size, 0, made=made)
    used = train(tmp_path / "run", p)["budget"]
    assert used | made == used and "seconds" in used
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "making_seconds" not in row and "generator_evaluations" in row


def test_the_budget_counts_the_source_and_the_loop(parts, tmp_path):
    p = parts(tmp_path / "run")
    p.source.made["teacher_passes"] = 1000
    used = train(tmp_path / "run", p)["budget"]
    assert used.pop("seconds") > 0
    assert used == {"images_kept": 128, "student_steps": 8, "generator_evaluations": None,
                    "teacher_passes": 1256, "student_passes": 256}
