"""Kept teacher logits: the bits of a run without, re-used by the next student, never trusted
blindly."""

import json
import os
import random
import types

import pytest
import torch
from processes import run

from dm_kd import distill, files
from dm_kd.errors import StorageError, UserError
from dm_kd.files import tensors_digest
from dm_kd.teacher_cache import TeacherCache

RECIPE = ["--task", "digits", "--student", "cnn_w4", "--epochs", "2", "--batch-size", "32",
          "--amp", "none", "--learning-rate", "0.05", "--lr-decay-epochs", "1", "--mixup", "0.4",
          "--no-label-check", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def distilled(tmp_path, teacher_folder, noise_folder, monkeypatch):
    """f(name, *flags) -> what a run left behind; 40 noise images, 2 steps an epoch."""
    monkeypatch.chdir(tmp_path)

    def train(name, *flags, code=0):
        out = tmp_path / name
        assert distill.main([*RECIPE, "--teacher", str(teacher_folder), "--source",
                             str(noise_folder), "--out", str(out), *flags]) == code
        if code:
            return None
        losses = [json.loads(line)["train_loss"]
                  for line in (out / "metrics.jsonl").read_text().splitlines()]
        return types.SimpleNamespace(losses=losses, weights=files.sha256_file(
            out / "student.safetensors"), log=(out / "log.txt").read_text())

    return train


@pytest.fixture
def calls(monkeypatch):
    """How often a teacher was asked for logits that are to be kept."""
    asked, real = [], TeacherCache.write
    monkeypatch.setattr(TeacherCache, "write", lambda self, epoch, step, record: (
        asked.append((epoch, step)), real(self, epoch, step, record)))
    return asked


def kept(tmp_path):
    return sorted(tmp_path.rglob("*.logits"))


def make(folder, storage="fp32", settings=None, epochs=2, rank=0, world_size=1, log=print):
    return TeacherCache(folder, settings or {"seed": 0}, storage, (4, 3), epochs, 5, rank,
                        world_size, log)


def linear():
    torch.manual_seed(1)
    return torch.nn.Linear(6, 3).requires_grad_(False)


# --- whole runs -----------------------------------------------------------------------------------

def test_float32_logits_give_the_loss_curve_and_weights_of_a_run_without(distilled, calls):
    plain = distilled("plain")
    first = distilled("first", "--cache-teacher", "fp32")
    assert calls == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert first.losses == plain.losses and first.weights == plain.weights
    again = distilled("again", "--cache-teacher", "fp32")
    assert len(calls) == 4 and again.losses == plain.losses and again.weights == plain.weights


def test_another_student_rate_and_objective_re_use_the_logits(distilled, calls):
    distilled("first", "--cache-teacher")
    flags = ("--student", "cnn_w8", "--learning-rate", "0.01", "--objective", "dkd",
             "--temperature", "4")
    cached = distilled("second", "--cache-teacher", "fp32", *flags)
    assert len(calls) == 8  # fp32 is another cache than fp16
    assert cached.weights == distilled("plain", *flags).weights
    distilled("third", "--cache-teacher", *flags)
    assert len(calls) == 8


@pytest.mark.parametrize("flags", [
    ("--seed", "1"), ("--mixup", "0.2"), ("--augment", "none"), ("--batch-size", "40"),
    ("--steps-per-epoch", "3"), ("--images-per-class", "3"), ("--cache-teacher", "fp32"),
    ("--teacher", "cnn_w8@none")], ids=lambda flags: flags[0])
def test_what_changes_the_logits_changes_the_cache(distilled, calls, flags, tmp_path):
    distilled("first", "--cache-teacher", "fp16")
    before = len(calls)
    distilled("second", "--cache-teacher", "fp16", *flags)
    assert len(calls) > before and len({p.parent for p in kept(tmp_path)}) == 2


def test_half_precision_is_the_default_and_costs_two_bytes_a_logit(distilled, tmp_path):
    plain, cached = distilled("plain"), distilled("half", "--cache-teacher")
    assert [p.stat().st_size for p in kept(tmp_path)] == [2 * (32 * 10 * 2 + 32)] * 2
    assert cached.losses == pytest.approx(plain.losses, rel=1e-3) and cached.losses != plain.losses


def test_a_second_student_sees_the_rounded_logits_that_the_first_saw(distilled, calls):
    first, second = distilled("a", "--cache-teacher"), distilled("b", "--cache-teacher")
    assert len(calls) == 4 and (first.losses, first.weights) == (second.losses, second.weights)


def test_more_epochs_extend_the_cache(distilled, calls):
    distilled("two", "--cache-teacher")
    distilled("three", "--cache-teacher", "--epochs", "3")
    assert calls == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_damaged_cache_is_said_and_computed_again_to_the_same_bits(distilled, calls, tmp_path):
    first = distilled("first", "--cache-teacher")
    path = kept(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[700] ^= 16  # in the second record of epoch 1
    path.write_bytes(data)
    second = distilled("second", "--cache-teacher")
    assert calls[4:] == [(0, 1)] and second.weights == first.weights
    assert f"{path.relative_to(tmp_path)} is damaged" in second.log and "step 2" in second.log
    data[700] ^= 16
    assert path.read_bytes() == data


def test_a_run_killed_at_each_step_goes_on_to_the_same_bits_and_cache(
        tmp_path, teacher_folder, noise_folder):
    command = (*RECIPE, "--teacher", teacher_folder, "--source", noise_folder, "--cache-teacher",
               "--checkpoint-seconds", 1e-6)
    whole = run("distill", *command, "--cache", tmp_path / "cache", "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    for count in (1, 2, 4):
        assert run("distill", *command, "--cache", tmp_path / "other", "--out", tmp_path / "run",
                   at="step", count=count).code in (0, 137)
    ended = run("distill", *command, "--cache", tmp_path / "other", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert ((tmp_path / "run" / "student.safetensors").read_bytes()
            == (tmp_path / "whole" / "student.safetensors").read_bytes())
    caches = [{p.relative_to(tmp_path / name): p.read_bytes() for p in kept(tmp_path / name)}
              for name in ("cache", "other")]
    assert caches[0] == caches[1] and len(caches[0]) == 2


def test_a_full_disk_is_said_and_the_run_completes(tmp_path, teacher_folder, noise_folder):
    command = (*RECIPE, "--teacher", teacher_folder, "--source", noise_folder, "--cache-teacher",
               "fp32", "--student", "cnn_w4", "--batch-size", 4000, "--cache", tmp_path / "cache",
               "--epochs", 1, "--out", tmp_path / "run")
    ended = run("distill", *command, file_limit_bytes=100_000)
    assert ended.code == 6 and ".logits" in ended.err, ended.err
    assert run("distill", *command).code == 0


def test_a_cache_larger_than_the_disk_is_refused_before_training(distilled, monkeypatch, capsys,
                                                                 tmp_path):
    monkeypatch.setattr(os, "statvfs", lambda path: types.SimpleNamespace(f_bavail=1, f_frsize=999))
    distilled("run", "--cache-teacher", "--cache", str(tmp_path / "c"), "--source", "real", code=6)
    assert "--cache-teacher needs" in capsys.readouterr().err


# --- records --------------------------------------------------------------------------------------

def test_what_was_written_is_read(tmp_path):
    cache, teacher, x = make(tmp_path), linear(), torch.randn(4, 6)
    logits = cache.logits(teacher, 1, 3, x)
    assert torch.equal(logits, teacher(x))
    assert torch.equal(make(tmp_path).logits(None, 1, 3, x), logits)
    assert all(make(tmp_path).read(1, step) is None for step in (0, 1, 2, 4))


def test_the_loss_sees_the_number_on_the_disk_and_the_teacher_is_asked_once(tmp_path):
    asked, x, exact = [], torch.randn(4, 6), linear()

    def teacher(x):
        asked.append(1)
        return exact(x)

    cache = make(tmp_path, "fp16")
    first, second = (cache.logits(teacher, 0, 0, x) for _ in range(2))
    assert torch.equal(first, exact(x).half().float()) and not torch.equal(first, exact(x))
    assert torch.equal(first, second) and asked == [1]


def test_ranks_keep_records_of_their_own(tmp_path):
    caches = [make(tmp_path, rank=rank, world_size=3) for rank in range(3)]
    x = torch.randn(3, 5, 4, 6)  # [rank, step, images, features]
    for rank, cache in enumerate(caches):
        for step in range(5):
            cache.logits(linear(), 0, step, x[rank, step])
    for rank in range(3):
        again = make(tmp_path, rank=rank, world_size=3)
        for step in range(5):
            assert torch.equal(again.logits(None, 0, step, x[0, 0]), linear()(x[rank, step]))
    assert make(tmp_path, world_size=2).read(0, 0) is None


def test_every_flipped_bit_and_every_cut_is_found(tmp_path, tries=200):
    cache = make(tmp_path, epochs=1)
    for step in range(5):
        cache.logits(linear(), 0, step, torch.randn(4, 6))
    data, chance, said = cache.path(0).read_bytes(), random.Random(0), []
    size = cache.record_bytes
    assert len(data) == 5 * size
    for trial in range(tries):
        at = chance.randrange(len(data))
        changed = bytearray(data)
        changed[at] ^= 1 << chance.randrange(8)
        cache.path(0).write_bytes(data[:at] if trial % 2 else changed)
        found = [make(tmp_path, epochs=1, log=said.append).read(0, s) is None for s in range(5)]
        assert found == [s >= at // size if trial % 2 else s == at // size for s in range(5)]
    assert sum("is damaged" in text for text in said) == tries // 2


def test_logits_too_large_for_half_precision_are_refused(tmp_path):
    cache = make(tmp_path, "fp16")
    with pytest.raises(UserError, match="too large for float16"):
        cache.logits(lambda x: x[:, :3] * 1e6, 0, 0, torch.ones(4, 6))
    assert cache.read(0, 0) is None


def test_free_space_is_asked_for_what_is_still_missing(tmp_path, monkeypatch):
    free = 10 * (4 * 3 * 4 + 32) - 1
    monkeypatch.setattr(os, "statvfs", lambda path: types.SimpleNamespace(f_bavail=free,
                                                                          f_frsize=1))
    with pytest.raises(StorageError):
        make(tmp_path)
    make(tmp_path, epochs=1).write(0, 0, torch.zeros(4, 3))
    make(tmp_path)


def test_the_digest_of_tensors_knows_names_types_shapes_and_bytes():
    a = {"a": torch.arange(6).float()}
    others = [{"b": a["a"]}, {"a": a["a"].view(2, 3)}, {"a": a["a"].double()}, {"a": a["a"] + 1},
              {"a": a["a"].view(torch.int32)}, {}]
    assert len({tensors_digest(t) for t in [a, *others]}) == 7
    assert tensors_digest(a) == tensors_digest({"a": torch.arange(6).float()})
    assert tensors_digest({"n": torch.tensor(3)})  # batch norms count with a scalar
