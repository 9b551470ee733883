"""The DiT, its sampling and its guidance by a teacher, against golden values of the original
definition and hand-written recursions."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dm_kd import models, run, synthesize
from dm_kd.generators import diffusion, dit, guidance, latent
from dm_kd.image_set import image_seed
from dm_kd.run import UserError
from dm_kd.tasks import get_task

DATA = Path(__file__).parent / "data"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden():
    return safetensors.torch.load_file(DATA / "dit_tiny_golden.safetensors")


@pytest.fixture(scope="module")
def networks():
    """The golden weights in float64 and in float32."""
    state = safetensors.torch.load_file(DATA / "dit_tiny_weights.safetensors")
    made = []
    for dtype in (torch.float64, torch.float32):
        model = dit.DiT(8, 2, 4, width=32, depth=2, heads=4, num_classes=10)
        model.load_state_dict(state)
        made.append(model.to(dtype).eval().requires_grad_(False))
    return made


def random_dit(channels: int = 1, **changes) -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(**{"input_size": 8, "patch_size": 2, "channels": channels, "width": 16,
                       "depth": 1, "heads": 2, "num_classes": 10} | changes)
    for parameter in model.parameters():  # adaLN-Zero starts as a constant
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiny():
    return random_dit()


def relative(value, expected) -> float:
    """Norm of the difference over the norm."""
    return float((value - expected).norm() / expected.norm())


def generator(model, teacher=None, **changes) -> dit.DiTGenerator:
    settings = {"guidance_scale": 2.0, "steps": 4, "sampler": "ddpm", "guided_channels": "3"}
    return dit.DiTGenerator(model, settings | changes, CPU, teacher=teacher)


# --- network and process against the golden values ------------------------------------------------

def golden_run(golden, network, steps):
    noise, labels = iter(golden[f"noise_{steps}"]), torch.tensor([4, 6])
    return diffusion.sample(
        lambda x, t: diffusion.guided(network, x, t, labels, 10, 2.0, 3),
        diffusion.Diffusion(steps), golden[f"z_{steps}"], lambda: next(noise))


@pytest.mark.parametrize("steps", [10, 100])
def test_a_whole_run_equals_the_golden_one(golden, networks, steps):
    expected = golden[f"sample_{steps}"]
    assert relative(golden_run(golden, networks[0], steps), expected) < 1e-6
    out = golden_run(golden, lambda x, t, y: networks[1](x.float(), t, y), steps)
    assert 0 < relative(out, expected) < 1e-4


def test_lower_precision_leaves_the_last_layer_and_output_in_float32():
    model, exact = random_dit(), random_dit()
    latent.lower_precision(model)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 10])
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert torch.equal(model.final_layer.linear.weight, exact.final_layer.linear.weight)
    assert model(*inputs).dtype == torch.float32
    assert relative(model(*inputs), exact(*inputs)) < 0.02


def test_a_linear_layer_as_a_convolution_computes_the_same():
    layer, x = dit.Linear(24, 40), torch.randn(5, 7, 24)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        out = layer(x)
    assert out.is_contiguous() and torch.allclose(out, expected, rtol=0, atol=1e-6)
    assert torch.equal(layer(x), expected)  # in training


# --- the generator --------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_an_image_depends_on_its_seed_and_class_and_not_on_its_batch(tiny, sampler):
    seeds = [image_seed(0, c, 7) for c in range(5)]
    made = generator(tiny, sampler=sampler, steps=6)
    together = made.sample(torch.arange(5), seeds)
    alone = made.sample(torch.tensor([3]), seeds[3:4])
    assert together.dtype == torch.uint8 and together.shape == (5, 1, 8, 8)
    assert (together[3].int() - alone[0].int()).abs().max() <= 1
    assert (together[3].int() - together[2].int()).abs().max() > 1
    assert not torch.equal(made.sample(torch.tensor([4]), seeds[3:4]), alone)


def test_infinite_images_are_refused():
    model = random_dit(learn_sigma=False)
    model.final_layer.linear.bias.fill_(math.nan)
    with pytest.raises(UserError):
        generator(model).sample(torch.tensor([2]), [1])


# --- the command ----------------------------------------------------------------------------------

@pytest.fixture
def weights_folder(tmp_path):
    model = random_dit(width=32)
    run.write_with_card(tmp_path / "dit", "dit", model.state_dict(), {
        "model": "dit", "task": "digits", "config": model.config, "clip": True, "licence": "none"})
    return tmp_path / "dit"


def flags(weights, *more):
    return ["--task", "digits", "--weights", str(weights), "--device", "cpu", "--threads", "1",
            "--out", "unused", *more]


def built(*argv) -> dit.DiTGenerator:
    return dit.build(synthesize.parse(flags(*argv)), get_task("digits"), CPU)


@pytest.mark.parametrize("more", [
    ["--teacher-guidance", "1"], ["--teacher", "unused"], ["--student", "unused"],
    ["--steps", "1001"]])
def test_flags_that_contradict_are_refused_before_weights_are_read(tmp_path, more):
    with pytest.raises(UserError):
        built(tmp_path / "missing", *more)


def test_what_makes_the_bytes_is_in_the_settings(weights_folder):
    plain = built(weights_folder, "--steps", "2").settings
    assert plain["licence"] == "none" and plain["dtype"] == "fp32" and len(
        plain["weights_sha256"]) == 64 and not {"compiled", "diffusers"} & plain.keys()
    other = built(weights_folder, "--steps", "2", "--dtype", "bf16")
    assert other.settings == plain | {"dtype": "bf16"}
    assert other.model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16


@pytest.mark.slow
def test_inductors_blocks_compute_what_the_plain_ones_do(weights_folder):
    torch.compiler.reset()
    plain, compiled = (built(weights_folder, "--steps", "5", "--dtype", "fp32") for _ in range(2))
    latent.compile_blocks(compiled.model)
    labels, seeds = torch.arange(4), [1, 2, 3, 4]
    difference = plain.sample(labels, seeds).int() - compiled.sample(labels, seeds).int()
    assert difference.abs().max() <= 1


# --- a teacher that guides ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return models.load_frozen(str(teacher_folder), get_task("digits"))[0]


def guide(teacher, weight=0.5, **more) -> guidance.TeacherGuidance:
    return guidance.TeacherGuidance(teacher, get_task("digits"), weight, CPU, **more)


def test_a_step_has_the_asked_for_length_whatever_the_losss_scale(teacher, monkeypatch):
    x, labels = torch.rand(4, 1, 8, 8) - 0.5, torch.arange(4)
    for scale in (1.0, 1000.0):
        made, weights = guide(teacher), {k: scale * v for k, v in guidance.WEIGHTS.items()}
        monkeypatch.setattr(guidance, "WEIGHTS", weights)
        moved = made.move(x, labels, lambda x: x, torch.tensor(0.8))
        assert torch.allclose((moved - x).flatten(1).norm(dim=1), torch.full((4,), 0.4), atol=1e-5)
        before, after = (sum(made.parts(v, labels).values()) for v in (x, moved))
        assert after < before


def test_teacher_and_student_are_in_the_settings_and_the_teacher_needs_batch_norms(
        weights_folder, teacher_folder, monkeypatch):
    guided = ("--teacher-guidance", "1.5", "--teacher", str(teacher_folder))
    monkeypatch.setattr(dit, "multiplies_bf16", lambda device: True)
    made = built(weights_folder, *guided, "--student", str(teacher_folder))
    settings = made.settings
    assert settings["teacher_guidance"] == 1.5 and settings["teacher_dtype"] == "bf16"
    assert len(settings["teacher_sha256"]) == len(settings["student_sha256"]) == 64
    assert made.teacher.bf16 and made.teacher.student is not None
    with pytest.raises(UserError, match="BatchNorm2d"):
        built(weights_folder, "--teacher-guidance", "1", "--teacher", "lenet5@none")
