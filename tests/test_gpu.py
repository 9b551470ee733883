"""The main functions on a GPU against the CPU's float32, and what only a GPU shows. Without a GPU
the same functions run on pretended tensors, which find every tensor that is on the wrong device."""

import argparse
import json
import os
import signal
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dm_kd import augment, data, engine, models, objectives, run
from dm_kd.generators import dit, latent

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
needs_gpu = pytest.mark.cuda
SIDE, BATCH, STEPS = 64, 32, 4
PICTURES = types.SimpleNamespace(name="pictures", num_classes=10, channels=3, large=False)
VIEW = augment.View((0.5,) * 3, (0.25,) * 3, size=SIDE, crop=True, flip=True)




# --- the same functions on both -------------------------------------------------------------------

def numbers(*shape, high=256):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(len(shape)))


def kd_step(device, put):
    """Loss and teacher's logits of a step with crops, mixup and labels."""
    teacher, student = (put(lambda: models.build("torchvision:resnet18", PICTURES))
                        for _ in range(2))
    view = augment.View((0.5,) * 3, (0.25,) * 3, size=SIDE, crop=True, flip=True, mixup=0.4,
                        num_classes=10)
    args = argparse.Namespace(amp="none", compile="off", temperature=4.0)
    loss_of = engine.loss_function(view, student, teacher.eval(),
                                   objectives.with_labels(objectives.kd, 0.5), args)
    pixels, ids = numbers(8, 3, SIDE * 8 // 7, SIDE * 8 // 7).to(torch.uint8), torch.arange(8)
    draws = view.draw(pixels, ids, 0, 0, 0)
    return loss_of(pixels.to(device), ids.to(device),
                   {name: value.to(device) for name, value in draws.items()})


def evaluation(device, put):
    model = put(lambda: models.build("torchvision:resnet18", PICTURES))
    return [engine.predict(model, numbers(5, 3, SIDE, SIDE).to(torch.uint8), VIEW, device, "none")]


def sampler(device, put):
    """Ancestral sampling with guidance in three steps."""
    model = put(lambda: dit.DiT(8, 2, 4, 32, 2, 2, 10))
    torch.nn.init.constant_(model.final_layer.linear.weight, 0.01)
    settings = {"guidance_scale": 2.0, "steps": 3, "sampler": "ddpm", "guided_channels": "3"}
    generator = dit.DiTGenerator(model, settings, device)
    labels, seeds = torch.arange(4), [1, 2, 3, 4]
    return [generator.denoise(labels, seeds, latent.noise_source(seeds, (4, 8, 8), device))]


def vae_decoder(device, put):
    diffusers = pytest.importorskip("diffusers")
    model = put(lambda: diffusers.AutoencoderKL(block_out_channels=(32, 32), latent_channels=4,
                                                down_block_types=("DownEncoderBlock2D",) * 2,
                                                up_block_types=("UpDecoderBlock2D",) * 2))
    vae = object.__new__(latent.Vae)
    vae.model, vae.settings = model, {"vae_scaling_factor": 0.18}
    return [vae.decode(torch.linspace(-2, 2, 3 * 4 * 8 * 8).view(3, 4, 8, 8).to(device))]


FUNCTIONS = [kd_step, evaluation, sampler, vae_decoder]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_tensor_is_on_another_device(function, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # pretended ones lack it

    def put(make):
        with GPU:
            return make()

    with FakeTensorMode(allow_non_fake_inputs=True):
        results = function(GPU, put)
    assert all(result.device in (GPU, CPU) for result in results)


@needs_gpu
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_gpu_computes_what_a_cpu_does(function, device):
    def on(place):
        torch.manual_seed(0)
        return [result.detach().cpu() for result in function(place, lambda make: make().to(place))]

    for ours, reference in zip(on(GPU), on(CPU), strict=True):
        assert (ours - reference).abs().max() <= 2e-3 * reference.abs().max().clamp_min(1)


# --- what only a GPU shows ------------------------------------------------------------------------

@pytest.fixture
def device():
    """The GPU with deterministic kernels."""
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
    """f(folder, ...) -> the bytes of a ResNet-18's weights after 2 epochs of KD on images that are
    "resident" on the GPU or "pinned" in the CPU's memory."""

    def train(folder, where="resident", stop_at=None, strict=False, **flags):
        args = distill_args(**{"out": folder, "compile": "off", "batch_size": BATCH,
                               "checkpoint_seconds": 1e9} | flags)
        torch.manual_seed(0)
        teacher, student = (models.build("torchvision:resnet18", PICTURES) for _ in range(2))
        teacher.eval().requires_grad_(False)
        given = data.resident(images(), device) if where == "resident" else images()
        source = Source(given, VIEW, BATCH, 0, device=device)
        source.stop_at, source.strict = stop_at, strict
        with run.Run(folder, args, {}, "student") as opened:
            engine.fit(opened, args, VIEW, student, teacher, source, objectives.kd, given, device,
                       {"model": "resnet18"})
        return (folder / "student.safetensors").read_bytes()

    return train


@needs_gpu
def test_crops_are_those_of_the_cpu_within_one_grey_level(device):
    pixels, ids = images().images, torch.arange(STEPS * BATCH)
    ours, theirs = (VIEW.cut(p, ids, 0, 0).cpu().int() for p in (pixels.to(device), pixels))
    assert (ours - theirs).abs().max() <= 1


@needs_gpu
def test_a_run_from_pinned_memory_ends_in_the_bits_of_one_from_the_gpu(fit, tmp_path):
    assert fit(tmp_path / "pinned", "pinned") == fit(tmp_path / "resident")


@needs_gpu
@pytest.mark.parametrize(("where", "amp"), [("resident", "bf16"), ("pinned", "none")])
def test_no_step_waits_for_the_gpu(fit, tmp_path, amp, where):
    fit(tmp_path / "run", where, strict=True, amp=amp, epochs=1)


@needs_gpu
@pytest.mark.parametrize("choice", ["off", "on"])
def test_a_stopped_run_ends_in_the_bits_of_an_unbroken_one(device, fit, tmp_path, choice):
    if choice == "on" and run.resolve_compile("auto", device) == "off":
        pytest.skip("no Triton or no C compiler")
    unbroken = fit(tmp_path / "unbroken", compile=choice, amp="bf16")
    torch.compiler.reset()
    with pytest.raises(run.Stopped):
        fit(tmp_path / "run", stop_at=(1, 1), compile=choice, amp="bf16")
    torch.compiler.reset()
    assert fit(tmp_path / "run", compile=choice, amp="bf16") == unbroken


@needs_gpu
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


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_are_one_up_to_the_order_of_sums(tmp_path, teacher_folder):
    import processes

    command = ("distill", "--task", "digits", "--source", "real", "--teacher", teacher_folder,
               "--student", "cnn_w8", "--epochs", 1, "--batch-size", 64, "--device", "cuda",
               "--amp", "none", "--no-label-check", "--cache", tmp_path / "cache", "--out")
    for child in processes.ranks(*command, tmp_path / "two", processes=2):
        assert child.code == 0, child.err
    assert processes.run(*command, tmp_path / "one", "--bn-group", 32).code == 0
    one, two = (run.load_safetensors(tmp_path / name / "student.safetensors")
                for name in ("one", "two"))
    assert all(torch.allclose(two[key].float(), one[key].float(), atol=1e-2) for key in one)
