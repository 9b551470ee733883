"""What only a GPU shows: its crops against Pillow's, both tiers of the data path, steps that nobody
waits for, compiled against plain networks, and the same bits after a stop.

    python -m pytest -c tests/pytest.ini tests/test_gpu.py        (skipped where there is no GPU)
"""

import json
import os
import signal
import types

import pytest
import torch
from processes import run as run_command
from test_augment import noise, pillows, size_rows

from dm_kd import augment, engine, models, objectives, run
from dm_kd.errors import Stopped
from dm_kd.sources.stored import StoredSource, far_from, resident

pytestmark = pytest.mark.cuda
SIDE, BATCH, STEPS = 64, 32, 4
PICTURES = types.SimpleNamespace(name="pictures", num_classes=10, channels=3, resolution=SIDE)
VIEW = engine.View((0.5,) * 3, (0.25,) * 3, SIDE, crop=True, flip=True)


@pytest.fixture
def device():
    """The GPU as every command sets it up, and torch's settings as they were."""
    before = torch.are_deterministic_algorithms_enabled()
    yield run.use_device(types.SimpleNamespace(device="cuda", threads=1))
    torch.use_deterministic_algorithms(before)


def pictures(count=STEPS * BATCH):
    random = torch.Generator().manual_seed(1)
    return (torch.randint(0, 256, (count, 3, SIDE * 8 // 7, SIDE * 8 // 7), dtype=torch.uint8,
                          generator=random), torch.arange(count) % 10)


def make_source(device, where):
    """where: "resident" on the device, or "pinned", gathered ahead from the CPU."""
    images, labels = pictures()
    if where == "resident":
        images, labels = resident(images, labels, device)
        assert images.is_cuda and labels.is_cuda
    return StoredSource(images, labels, BATCH, 0, ahead=far_from(device, images))


@pytest.fixture
def fit(distill_args, device):
    """f(folder, source=..., view=..., **flags) -> the student of engine.fit, ResNet-18 from one."""

    def train(folder, source=None, view=VIEW, **changes):
        args = distill_args(**{"out": folder, "compile": "off", "batch_size": BATCH,
                               "checkpoint_seconds": 1e9} | changes)
        torch.manual_seed(0)
        teacher, student = (models.build("torchvision:resnet18", PICTURES) for _ in range(2))
        with torch.no_grad():
            for _ in range(3):  # its batch norms know what they see
                teacher(torch.randn(16, 3, SIDE, SIDE))
        teacher.eval().requires_grad_(False)
        with run.Run(folder, args, {}, "student", "distill") as opened:
            engine.fit(opened, args, view, student, teacher, source or make_source(
                device, "resident"), objectives.kd, None, device, {"model": "resnet18"})
        return student

    return train


def weights(folder):
    return (folder / "student.safetensors").read_bytes()


def test_deterministic_kernels_are_asked_for(device):
    assert device.type == "cuda" and torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_pillows_within_one_grey_level(device, channels):
    images = noise(120, 170, channels, count=64)
    boxes = augment.crop_boxes(0, 0, torch.arange(64), size_rows(120, 170, 64))
    boxes[0], boxes[1] = torch.tensor([0, 0, 120, 170]), torch.tensor([119, 169, 1, 1])
    mirrored = torch.arange(64) % 2 == 1
    found = augment.resized_crops(images.to(device), boxes, mirrored, SIDE)
    assert found.is_cuda and found.dtype == torch.uint8
    for image, box, mirror, result in zip(images, boxes.tolist(), mirrored.tolist(), found.cpu(),
                                          strict=True):
        result = result.flip(2) if mirror else result
        difference = abs(result.numpy().astype(int) - pillows(image, box, SIDE))
        assert difference.max() <= 1, (box, difference.max())


def test_images_gathered_from_pinned_memory_are_those_of_the_device(device):
    seen = {}
    for where in ("resident", "pinned"):
        source = make_source(device, where)
        assert source.ahead == (where == "pinned") == source.pinned
        seen[where] = []
        for step, (images, labels, ids) in enumerate(source.batches(0)):
            labels = augment.send(labels, device)
            seen[where].append((*VIEW.train(images, labels, ids, 0, 0, step), ids))
    for one, other in zip(*seen.values(), strict=True):
        assert one[0].is_cuda and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_run_from_pinned_memory_ends_in_the_bits_of_one_from_the_device(device, fit, tmp_path):
    for where in ("resident", "pinned"):
        fit(tmp_path / where, make_source(device, where))
    assert weights(tmp_path / "pinned") == weights(tmp_path / "resident")


class Strict(StoredSource):
    """From the second step to the last one's end, whatever waits for the GPU is an error."""

    def batches(self, epoch, first_step=0, student=None):
        try:
            for step, batch in enumerate(super().batches(epoch, first_step), first_step):
                yield batch
                if step == first_step:  # the first one makes constants
                    torch.cuda.set_sync_debug_mode("error")
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", ["bf16", "none"])
@pytest.mark.parametrize("where", ["resident", "pinned"])
@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4, "cutmix": 1.0, "num_classes": 10}],
                         ids=["plain", "mixed"])
def test_no_step_waits_for_the_gpu(device, fit, tmp_path, amp, where, mixing):
    source = make_source(device, where)
    source.__class__ = Strict
    fit(tmp_path / "run", source, engine.View(
        **{**vars(VIEW), **mixing}), amp=amp, epochs=1)


def test_a_step_that_waits_for_the_gpu_is_seen(device, fit, tmp_path, monkeypatch):
    real, source = engine.train_step, make_source(device, "resident")
    source.__class__ = Strict

    def waits(*args):
        loss = real(*args)
        loss.item()
        return loss

    monkeypatch.setattr(engine, "train_step", waits)
    with pytest.raises(RuntimeError, match="synchroniz"):
        fit(tmp_path / "run", source, epochs=1)


def needs_a_compiler(device):
    if engine.resolve_compile("auto", device) == "off":
        pytest.skip("no Triton or no C compiler")


def test_compiled_networks_learn_what_plain_ones_do(device, fit, tmp_path):
    needs_a_compiler(device)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        plain, compiled = (fit(tmp_path / choice, compile=choice, amp="none", epochs=1)
                           for choice in ("off", "on"))
    for (name, a), b in zip(plain.state_dict().items(), compiled.state_dict().values(),
                            strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-2, atol=2e-3), name


class StopAt(StoredSource):
    """Sends this process SIGTERM before step 1 of epoch 1."""

    def batches(self, epoch, first_step=0, student=None):
        for step, batch in enumerate(super().batches(epoch, first_step), first_step):
            if (epoch, step) == (1, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


@pytest.mark.parametrize("choice", ["off", "on"])
@pytest.mark.parametrize("amp", ["bf16", "none"])
def test_a_run_that_was_stopped_ends_in_the_bits_of_an_unbroken_one(device, fit, tmp_path, choice,
                                                                    amp):
    if choice == "on":
        needs_a_compiler(device)
    flags = {"amp": amp, "compile": choice}
    fit(tmp_path / "unbroken", **flags)
    torch.compiler.reset()
    source = make_source(device, "resident")
    source.__class__ = StopAt
    with pytest.raises(Stopped):
        fit(tmp_path / "run", source, **flags)
    torch.compiler.reset()
    fit(tmp_path / "run", **flags)
    assert weights(tmp_path / "run") == weights(tmp_path / "unbroken")


def test_a_killed_command_ends_in_the_bits_of_an_unbroken_one(noise_folder, teacher_folder,
                                                              tmp_path):
    """In processes of their own: each chooses its kernels itself."""
    command = ["distill", "--task", "digits", "--source", noise_folder, "--teacher",
               teacher_folder, "--student", "cnn_w8", "--epochs", 2, "--batch-size", 8, "--device",
               "cuda", "--no-label-check", "--checkpoint-seconds", 1e-6, "--cache",
               tmp_path / "cache", "--out"]
    ended = run_command(*command, tmp_path / "unbroken")
    assert ended.code == 0, ended.err
    assert run_command(*command, tmp_path / "run", at="step", count=8).code == 137
    ended = run_command(*command, tmp_path / "run")
    assert ended.code == 0 and "resumed at epoch" in ended.out, ended.err
    assert weights(tmp_path / "run") == weights(tmp_path / "unbroken")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["hardware"]["gpu"]
