"""What only a GPU shows. Skipped where there is none."""

import json
import os
import signal
import types

import pytest
import torch

from dm_kd import augment, data, engine, models, objectives, run

pytestmark = pytest.mark.cuda
SIDE, BATCH, STEPS = 64, 32, 4
PICTURES = types.SimpleNamespace(name="pictures", num_classes=10, channels=3, large=False)
VIEW = augment.View((0.5,) * 3, (0.25,) * 3, size=SIDE, crop=True, flip=True)


@pytest.fixture
def device():
    """The GPU as every command sets it up."""
    yield run.use_device(types.SimpleNamespace(device="cuda", threads=1))
    torch.use_deterministic_algorithms(False)


def images() -> data.Images:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (STEPS * BATCH, 3, SIDE * 8 // 7, SIDE * 8 // 7),
                           dtype=torch.uint8, generator=random)
    return data.Images(pixels, torch.arange(STEPS * BATCH) % 10)


class Source(data.Source):
    """Sends SIGTERM before the step `stop_at`; strict: only an epoch's first step may wait."""

    stop_at, strict = None, False

    def batches(self, epoch, first_step=0, student=None):
        for step, batch in enumerate(super().batches(epoch, first_step), first_step):
            if (epoch, step) == self.stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
            if self.strict and step == first_step:  # which makes constants
                torch.cuda.set_sync_debug_mode("error")
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def fit(distill_args, device):
    """f(folder, ...) -> the bytes of a ResNet-18's weights after 2 epochs of KD."""

    def train(folder, stop_at=None, strict=False, **flags):
        args = distill_args(**{"out": folder, "compile": "off", "batch_size": BATCH,
                               "checkpoint_seconds": 1e9} | flags)
        torch.manual_seed(0)
        teacher, student = (models.build("torchvision:resnet18", PICTURES) for _ in range(2))
        teacher.eval().requires_grad_(False)
        given = images()
        source = Source(given, VIEW, BATCH, 0, device=device)
        source.stop_at, source.strict = stop_at, strict
        with run.Run(folder, args, {}, "student") as opened:
            engine.fit(opened, args, VIEW, student, teacher, source, objectives.kd, given, device,
                       {"model": "resnet18"})
        return (folder / "student.safetensors").read_bytes()

    return train


def test_crops_are_those_of_the_cpu_within_one_grey_level(device):
    pixels, ids = images().images, torch.arange(STEPS * BATCH)
    ours, theirs = (VIEW.cut(p, ids, 0, 0).cpu().int() for p in (pixels.to(device), pixels))
    assert (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize("amp", ["bf16", "none"])
def test_no_step_waits_for_the_gpu(fit, tmp_path, amp):
    fit(tmp_path / "run", strict=True, amp=amp, epochs=1)


@pytest.mark.parametrize("choice", ["off", "on"])
def test_a_stopped_run_ends_in_the_bits_of_an_unbroken_one(device, fit, tmp_path, choice):
    if choice == "on" and engine.resolve_compile("auto", device) == "off":
        pytest.skip("no Triton or no C compiler")
    unbroken = fit(tmp_path / "unbroken", compile=choice, amp="bf16")
    torch.compiler.reset()
    with pytest.raises(run.Stopped):
        fit(tmp_path / "run", stop_at=(1, 1), compile=choice, amp="bf16")
    torch.compiler.reset()
    assert fit(tmp_path / "run", compile=choice, amp="bf16") == unbroken


def test_the_commands_train_sample_and_evaluate_on_a_gpu(tmp_path, teacher_folder, capsys):
    """Images have the same bytes in any order; a student's accuracy is that of the CPU."""
    from dm_kd import distill, evaluate, synthesize, train_generator

    common = ["--task", "digits", "--device", "cuda", "--batch-size", "8"]
    dit, images, two, student = (str(tmp_path / name) for name in ("dit", "set", "two", "student"))
    assert train_generator.main([*common, "--kind", "dit", "--steps", "4", "--out", dit]) == 0
    make = [*common, "--generator", "dit", "--weights", dit, "--steps", "4", "--images-per-class",
            "4", "--out"]
    assert synthesize.main([*make, images]) == 0
    for rank in ("1", "0"):
        assert synthesize.main([*make, two, "--rank", rank, "--world-size", "2"]) == 0
    pngs = [{p.name: p.read_bytes() for p in (tmp_path / name / "images").rglob("*.png")}
            for name in ("set", "two")]
    assert len(pngs[0]) == 40 and pngs[0] == pngs[1]
    cache = ["--cache", str(tmp_path / "cache")]
    assert distill.main([*common, *cache, "--source", images, "--teacher", str(teacher_folder),
                         "--student", "cnn_w8", "--epochs", "2", "--no-label-check", "--out",
                         student]) == 0
    records = {}
    for name in ("cuda", "cpu"):
        capsys.readouterr()
        assert evaluate.main([*common[:2], *cache, "--model", student, "--device", name]) == 0
        records[name] = json.loads(capsys.readouterr().out)
    assert records["cuda"]["acc1"] == pytest.approx(records["cpu"]["acc1"], abs=0.5)
