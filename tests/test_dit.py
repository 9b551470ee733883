"""The DiT and its sampling against golden values of the original definition and hand-written
recursions."""

import argparse
import copy
import math
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dm_kd import files, image_set, models, synthesize
from dm_kd.bench import synthesis
from dm_kd.errors import DivergedError, UserError
from dm_kd.generators import dit, dit_weights, imf, sit
from dm_kd.image_set import image_seed
from dm_kd.sources import stored
from dm_kd.tasks import get_task

DATA = Path(__file__).parent / "data"


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


@pytest.fixture(scope="module")
def tiny():
    """A one-channel 8 x 8 network with random weights, for the generator's tests."""
    return random_dit(learn_sigma=True)


def random_dit(learn_sigma: bool, channels: int = 1) -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(8, 2, channels, width=16, depth=1, heads=2, num_classes=10,
                    learn_sigma=learn_sigma)
    for parameter in model.parameters():  # adaLN-Zero starts as a constant
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def relative(value, expected) -> float:
    """Norm of the difference over the norm."""
    return float((value - expected).norm() / expected.norm())


def settings(**changes) -> dict:
    return {"guidance_scale": 2.0, "steps": 4, "sampler": "ddpm", "guided_channels": "3"} | changes


def generator(model, clip=True, **changes) -> dit.DiTGenerator:
    return dit.DiTGenerator(model, settings(**changes), torch.device("cpu"), clip)


# --- network and guidance -------------------------------------------------------------------------

def test_forward_equals_the_golden_output(golden, networks):
    out = networks[0](golden["x"], golden["t"], golden["y"])
    assert relative(out, golden["forward"]) < 1e-6


def test_forward_in_float32_is_close_to_the_golden_output(golden, networks):
    out = networks[1](golden["x"].float(), golden["t"], golden["y"])
    assert 0 < relative(out, golden["forward"]) < 1e-5


@pytest.mark.parametrize("scale", [2, 4])
def test_guidance_equals_the_golden_output(golden, networks, scale):
    out = dit.guided(networks[0], golden["cfg_in"], golden["cfg_t"], golden["cfg_y"], 10, scale, 3)
    assert relative(out, golden[f"cfg_s{scale}"]) < 1e-6


def test_guiding_all_channels_changes_the_fourth_only(golden, networks):
    inputs = networks[0], golden["cfg_in"], golden["cfg_t"], golden["cfg_y"], 10, 2.0
    three, four = dit.guided(*inputs, 3), dit.guided(*inputs, 4)
    assert torch.equal(three[:, :3], four[:, :3]) and torch.equal(three[:, 4:], four[:, 4:])
    assert relative(four[:, 3], three[:, 3]) > 1e-3


@pytest.mark.parametrize(("scale", "label"), [(1, 4), (0, 10)])
def test_scales_1_and_0_take_one_forward_with_the_class_or_the_null(networks, scale, label):
    seen = []

    def model(x, t, labels):
        seen.append(labels.tolist())
        return networks[0](x, t, labels)

    x, t = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([5, 5])
    out = dit.guided(model, x, t, torch.tensor([4, 4]), 10, scale, 3)
    assert seen == [[label, label]]
    assert torch.equal(out, networks[0](x, t, torch.tensor([label, label])))


def test_other_scales_take_both_halves_in_one_batch(networks):
    seen = []

    def model(x, t, labels):
        seen.append(labels.tolist())
        return networks[0](x, t, labels)

    x, t = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([5, 5])
    dit.guided(model, x, t, torch.tensor([4, 6]), 10, 1.5, 3)
    assert seen == [[4, 6, 10, 10]]


def test_position_table_equals_the_checkpoints():
    state = safetensors.torch.load_file(DATA / "dit_tiny_weights.safetensors")
    assert torch.allclose(dit.position_embedding(4, 32), state["pos_embed"][0], rtol=0, atol=1e-7)


def test_a_new_network_is_the_zero_function():
    model = dit.DiT(8, 2, 1, width=16, depth=2, heads=2, num_classes=10)
    out = model(torch.randn(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 10]))
    assert out.shape == (2, 2, 8, 8) and not out.any()


def test_lower_precision_leaves_the_last_layer_and_output_in_float32():
    model = random_dit(learn_sigma=True).lower_precision(torch.bfloat16)
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    out = model(torch.randn(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 10]))
    assert model.final_layer.linear.weight.dtype == out.dtype == torch.float32


# --- process --------------------------------------------------------------------------------------

def golden_run(golden, network, steps):
    noise = iter(golden[f"noise_{steps}"])
    labels = torch.tensor([4, 6])
    return dit.sample_ddpm(lambda x, t: dit.guided(network, x, t, labels, 10, 2.0, 3),
                           dit.Diffusion(steps), golden[f"z_{steps}"], lambda: next(noise))


@pytest.mark.parametrize("steps", [10, 100])
def test_a_whole_run_equals_the_golden_one(golden, networks, steps):
    assert relative(golden_run(golden, networks[0], steps), golden[f"sample_{steps}"]) < 1e-6


@pytest.mark.parametrize("steps", [10, 100])
def test_a_whole_run_with_a_float32_network_is_close_to_the_golden_one(golden, networks, steps):
    network = networks[1]
    out = golden_run(golden, lambda x, t, y: network(x.float(), t, y), steps)
    assert 0 < relative(out, golden[f"sample_{steps}"]) < 1e-4


# --- schedulers of diffusers ----------------------------------------------------------------------

@pytest.mark.parametrize("steps", [10, 100])
def test_ddim_equals_a_hand_written_recursion_on_the_same_steps(tiny, monkeypatch, steps):
    """Song et al. 2021 eq. 12 with eta = 0; the noise goes with the clamped predicted image."""
    pytest.importorskip("diffusers")
    labels, seeds, made = torch.tensor([3, 8]), [1, 2], []
    real = dit.to_uint8
    monkeypatch.setattr(dit, "to_uint8", lambda x: made.append(x) or real(x))
    generator(tiny, sampler="ddim", steps=steps, guidance_scale=1.0).sample(labels, seeds)

    x = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(s))
                     for s in seeds])
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    times = dit.Diffusion(steps).timesteps
    for i in reversed(range(steps)):
        now = float(alpha_bar[times[i]])
        before = float(alpha_bar[times[i - 1]]) if i else 1.0
        eps = tiny(x, torch.full((2,), int(times[i])), labels)[:, :1]
        x0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
        eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        x = math.sqrt(before) * x0 + math.sqrt(1 - before) * eps
    assert relative(made[0], x) < 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_deterministic_samplers_give_images_that_hang_on_the_seed(tiny, sampler):
    pytest.importorskip("diffusers")
    made = generator(tiny, sampler=sampler, steps=6)
    images = made.sample(torch.tensor([1, 1, 1]), [5, 6, 5])
    assert images.dtype == torch.uint8 and images.shape == (3, 1, 8, 8)
    assert (images[0].int() - images[2].int()).abs().max() <= 1
    assert not torch.equal(images[0], images[1])


def test_dpm_solver_begins_at_the_noisiest_step():
    pytest.importorskip("diffusers")
    assert int(dit.make_dpm_scheduler(10).timesteps[0]) == 999


# --- the generator --------------------------------------------------------------------------------

def recorded(monkeypatch, model, labels, seeds) -> tuple[torch.Tensor, torch.Tensor]:
    """(all noise the sampler was given [B, draws, ...], the images)."""
    kept, real = [], dit.sample_ddpm

    def spy(predict, diffusion, x, draw, clip, steer):
        def noted():
            kept.append(draw())
            return kept[-1]

        kept.append(x)
        return real(predict, diffusion, x, noted, clip, steer)

    with monkeypatch.context() as patch:
        patch.setattr(dit, "sample_ddpm", spy)
        images = generator(model).sample(torch.tensor(labels), seeds)
    return torch.stack(kept, 1), images


def test_an_images_noise_is_the_same_in_any_batch(monkeypatch, tiny):
    seeds = [image_seed(0, c, 7) for c in range(5)]
    together, images = recorded(monkeypatch, tiny, list(range(5)), seeds)
    alone, image = recorded(monkeypatch, tiny, [3], seeds[3:4])
    assert together.shape[1] == 4 and torch.equal(together[3:4], alone)  # start and 3 steps
    assert (images[3].int() - image[0].int()).abs().max() <= 1
    assert (images[3].int() - images[2].int()).abs().max() > 1


def test_an_images_noise_is_fresh_at_each_step_and_of_unit_size(monkeypatch, tiny):
    noise, _ = recorded(monkeypatch, tiny, [0] * 64, list(range(64)))
    flat = noise.flatten(2)  # [64 images, 4 draws, 64]
    assert abs(float(flat.mean())) < 0.03 and abs(float(flat.std()) - 1) < 0.03
    assert len({tuple(draw.tolist()) for image in flat for draw in image}) == 64 * 4


def test_more_guidance_moves_the_image(tiny):
    images = [generator(tiny, guidance_scale=s).sample(torch.tensor([2]), [1]) for s in (1.0, 4.0)]
    assert not torch.equal(*images)


def test_labels_are_known_if_the_class_was_asked_for(tiny):
    assert [generator(tiny, guidance_scale=s).labels_known for s in (0.0, 1.0, 2.0)] == [
        False, True, True]


def test_unconditional_images_do_not_depend_on_the_label(tiny):
    made = generator(tiny, guidance_scale=0.0)
    assert torch.equal(made.sample(torch.tensor([2]), [1]), made.sample(torch.tensor([9]), [1]))


def test_infinite_images_are_refused():
    model = random_dit(learn_sigma=False)
    model.final_layer.linear.bias.fill_(math.inf)
    with pytest.raises(UserError, match="NaN or infinite"):
        generator(model, clip=False).sample(torch.tensor([2]), [1])


def test_the_fused_gelu_is_used_only_where_it_computes_the_same(monkeypatch):
    layer, x = torch.nn.Linear(32, 64), torch.randn(5, 32)
    with torch.no_grad():
        plain = torch.nn.functional.gelu(layer(x), approximate="tanh")
        assert torch.allclose(dit.linear_gelu(x, layer), plain, atol=1e-6)
        monkeypatch.setattr(dit, "_fused_gelu", lambda x, w, b: x @ w.T + b)
        dit.fused_gelu_works.cache_clear()
        try:
            assert not dit.fused_gelu_works()
            assert torch.equal(dit.linear_gelu(x, layer), plain)
        finally:
            dit.fused_gelu_works.cache_clear()


def test_a_torch_without_the_fused_gelu_takes_the_two_calls(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(dit, "_fused_gelu", missing)
    dit.fused_gelu_works.cache_clear()
    try:
        assert not dit.fused_gelu_works()
    finally:
        dit.fused_gelu_works.cache_clear()


# --- every path agrees with the golden values -----------------------------------------------------

def in_dtype(state, dtype):
    model = dit.DiT(8, 2, 4, width=32, depth=2, heads=4, num_classes=10)
    model.load_state_dict(state)
    return model.to(dtype).eval().requires_grad_(False)


def golden_network(path, dtype, tmp_path):
    """The golden weights, as each path makes a network of them."""
    state = safetensors.torch.load_file(DATA / "dit_tiny_weights.safetensors")
    if path == "original layout":
        torch.save(state, tmp_path / "dit.pt")
        with mock.patch.object(dit_weights, "_heads", return_value=4):  # a .pt does not tell them
            return dit.load(str(tmp_path / "dit.pt"))[0].to(dtype)
    if path == "diffusers layout":
        diffusers = pytest.importorskip("diffusers")
        rival = synthesis.make_rival(in_dtype(state, torch.float32))
        rival.save_pretrained(tmp_path / "transformer")
        diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                                clip_sample=False).save_pretrained(tmp_path / "scheduler")
        return dit.load(str(tmp_path))[0].to(dtype)
    model = in_dtype(state, dtype)
    return dit.compile_blocks(model, "aot_eager") if path == "compiled" else model


PATHS = ("eager", "original layout", "diffusers layout", "compiled")


@pytest.mark.parametrize("path", PATHS)
def test_every_path_agrees_with_the_golden_values_in_float64(golden, tmp_path, path):
    network = golden_network(path, torch.float64, tmp_path)
    with torch.no_grad():
        out = network(golden["x"], golden["t"], golden["y"])
        assert relative(out, golden["forward"]) < 1e-6
        for scale in (2, 4):
            out = dit.guided(network, golden["cfg_in"], golden["cfg_t"], golden["cfg_y"], 10,
                             scale, 3)
            assert relative(out, golden[f"cfg_s{scale}"]) < 1e-6
        for steps in (10, 100):
            assert relative(golden_run(golden, network, steps), golden[f"sample_{steps}"]) < 1e-6


@pytest.mark.parametrize("steps", [10, 100])
@pytest.mark.parametrize("path", [*PATHS, "fused"])
def test_every_path_with_a_float32_network_is_close_to_the_golden_run(golden, tmp_path, path,
                                                                      steps):
    network = golden_network(path, torch.float32, tmp_path)
    with torch.inference_mode(path == "fused"), torch.set_grad_enabled(path != "fused"):
        if path == "fused" and not dit.fused_gelu_works():
            pytest.skip("no oneDNN")
        out = golden_run(golden, lambda x, t, y: network(x.float(), t, y), steps)
    assert 0 < relative(out, golden[f"sample_{steps}"]) < 1e-4


@pytest.mark.parametrize("path", ["eager", "compiled"])
def test_any_batch_agrees_with_the_golden_run(golden, tmp_path, path):
    """The two golden images among others, in batches of 1, 2 and 5."""
    network = golden_network(path, torch.float64, tmp_path)
    start = torch.randn(5, 4, 8, 8, dtype=torch.float64)
    noise = torch.randn(10, 5, 4, 8, 8, dtype=torch.float64)
    labels = torch.tensor([1, 4, 6, 6, 9])
    start[[1, 3]], noise[:, [1, 3]] = golden["z_10"].double(), golden["noise_10"].double()
    for chosen in ([0, 1, 2, 3, 4], [1], [3], [3, 0]):
        drawn = iter(noise[:, chosen])
        out = dit.sample_ddpm(
            lambda x, t, y=labels[chosen]: dit.guided(network, x, t, y, 10, 2.0, 3),
            dit.Diffusion(10), start[chosen], lambda drawn=drawn: next(drawn))
        for at, which in ((1, 0), (3, 1)):
            if at in chosen:
                assert relative(out[chosen.index(at)], golden["sample_10"][which]) < 1e-6


# --- what a GPU must not wait for -----------------------------------------------------------------

class HostTensors(TorchDispatchMode):
    """Notes every operation that takes a tensor of the host, or reads a number of the device."""

    def __init__(self):
        super().__init__()
        self.count, self.waits, self.crossings = 0, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.count += 1
        if "_local_scalar_dense" in str(func) or any(t.device.type != "meta" for t in tensors):
            self.waits.append(str(func))
        kinds = {t.device.type for t in tensors}
        if "meta" in kinds and ("_local_scalar_dense" in str(func) or len(kinds) > 1 and (
                "copy" in str(func))):
            self.crossings.append(str(func))
        return out


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_loop_touches_no_tensor_of_the_host(sampler, scale):
    meta = torch.device("meta")
    model = dit.DiT(8, 2, 4, width=32, depth=2, heads=4, num_classes=10).eval().to(meta)
    x = torch.empty(3, 4, 8, 8, device=meta)
    labels = torch.empty(3, dtype=torch.int64, device=meta)
    process = dit.Diffusion(6, meta)
    dit.timestep_rates(128, meta)  # kept on the device before the first step

    def predict(x, t):
        return dit.guided(model, x, t, labels, 10, scale, 3)

    with torch.no_grad(), HostTensors() as seen:
        if sampler == "ddpm":
            dit.sample_ddpm(predict, process, x, lambda: torch.empty_like(x))
        else:
            dit.sample_ddim(predict, process, x)
    assert seen.count > 100 and seen.waits == []


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_dpm_solvers_loop_copies_its_times_once_and_nothing_else(scale):
    """diffusers multiplies by numbers that lie on the host, which no GPU waits for."""
    pytest.importorskip("diffusers")
    meta = torch.device("meta")
    model = dit.DiT(8, 2, 4, width=32, depth=2, heads=4, num_classes=10).eval().to(meta)
    x, labels = torch.empty(3, 4, 8, 8, device=meta), torch.empty(3, dtype=torch.int64, device=meta)
    dit.timestep_rates(128, meta)
    with torch.no_grad(), HostTensors() as seen:
        dit.sample_with_scheduler(lambda x, t: dit.guided(model, x, t, labels, 10, scale, 3),
                                  dit.make_dpm_scheduler(6), x)
    assert seen.count > 100 and seen.crossings == ["aten._to_copy.default"]


@pytest.mark.parametrize("sampler", sit.SAMPLERS)
def test_sits_loop_touches_no_tensor_of_the_host(sampler):
    meta = torch.device("meta")
    model = dit.DiT(8, 2, 4, width=32, depth=2, heads=4, num_classes=10).eval().to(meta)
    x, labels = torch.empty(3, 4, 8, 8, device=meta), torch.empty(3, dtype=torch.int64, device=meta)
    dit.timestep_rates(128, meta)
    velocity = sit.predicted_velocity(model, "sit", labels, 10, 2.0, 3, (0.0, 0.7))
    with torch.no_grad(), HostTensors() as seen:
        if sampler == "sde":
            sit.sample_sde(velocity, x, sit.sde_times(6), lambda: torch.empty_like(x))
        else:
            sit.sample_ode(velocity, x, sit.ode_times(6), sampler == "heun")
    assert seen.count > 100 and seen.waits == []


def test_imfs_network_touches_no_tensor_of_the_host():
    meta = torch.device("meta")
    model = imf.IMF(8, 2, 4, width=64, hidden=96, depth=9, num_classes=10).eval().to(meta)
    z, labels = torch.empty(3, 4, 8, 8, device=meta), torch.empty(3, dtype=torch.int64, device=meta)
    span = torch.empty(3, device=meta)
    model(z, span, 8.0, (0.4, 0.65), labels)  # what is kept on the device is copied there once
    with torch.no_grad(), HostTensors() as seen:
        model(z, span, 8.0, (0.4, 0.65), labels)
    assert seen.count > 100 and seen.waits == []


def test_the_counter_sees_a_copy_and_a_read():
    with HostTensors() as seen:
        torch.ones(3).to("meta")
        torch.ones(1).item()
    assert any("_to_copy" in name for name in seen.waits) and len(seen.waits) >= 3
    assert seen.crossings == ["aten._to_copy.default"]


def test_finishing_in_another_thread_gives_the_same_bytes(tiny):
    made = generator(tiny)
    batches = [(torch.tensor([1, 2, 3]), [seed, seed + 1, seed + 2]) for seed in (1, 4, 7)]
    with ThreadPoolExecutor(1) as second:
        beside = [second.submit(made.finish, made.latents(*batch)) for batch in batches]
        for batch, images in zip(batches, beside, strict=True):
            assert torch.equal(images.result(), made.sample(*batch))


# --- opt-in approximations ------------------------------------------------------------------------

def counted(model):
    """A module that notes the batch of each forward, and its labels."""
    seen = []

    def forward(x, t, labels):
        seen.append((int(t[0]), len(x)))
        return model(x, t, labels)

    forward.config, forward.channels, forward.num_classes = (
        model.config, model.channels, model.num_classes)
    return forward, seen


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_outside_the_interval_one_conditional_forward_is_taken(tiny, sampler):
    if sampler == "dpm++":
        pytest.importorskip("diffusers")
    model, seen = counted(tiny)
    made = generator(model, sampler=sampler, steps=9, guidance_interval=[0.25, 0.5])
    made.sample(torch.tensor([1, 2]), [1, 2])
    assert len(seen) == 9 and {size for _, size in seen} == {2, 4}
    assert all((size == 4) == (0.25 <= t / 999 <= 0.5) for t, size in seen)


def test_the_interval_of_everything_changes_no_bit_and_an_empty_one_is_scale_1(tiny):
    labels, seeds = torch.tensor([1, 2, 3]), [1, 2, 3]
    whole = generator(tiny, guidance_interval=[0.0, 1.0]).sample(labels, seeds)
    assert torch.equal(whole, generator(tiny).sample(labels, seeds))
    nowhere = generator(tiny, guidance_interval=[0.4, 0.41], steps=4).sample(labels, seeds)
    assert torch.equal(nowhere, generator(tiny, guidance_scale=1.0, steps=4).sample(labels, seeds))
    assert not torch.equal(nowhere, whole)


@pytest.mark.parametrize("text", ["", "0.2", "0.8-0.2", "-0.1-0.5", "0-2", "a-b", "nan-1", "0.5-"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="LOW-HIGH"):
        dit.interval(text)
    assert dit.interval("0.2-1") == (0.2, 1.0)


def test_rows_are_rounded_to_three_bits_of_mantissa_at_their_own_scale():
    x = torch.tensor([[448.0, 0.0, 17.0, -448.0], [1.0, 0.5, -0.25, 1e-3], [0.0, 0.0, 0.0, 0.0]])
    rows, scale = dit.quantise_rows(x)
    assert rows.dtype == torch.float8_e4m3fn and scale.shape == (3, 1)
    back = rows.float() * scale
    assert back[0].tolist() == [448.0, 0.0, 16.0, -448.0]  # 17 lies between 16 and 18
    assert torch.allclose(back[1], x[1], rtol=2 ** -4) and not back[2].any()


def test_an_8_bit_layer_is_the_product_of_the_rounded_factors():
    layer, x = torch.nn.Linear(16, 32), torch.randn(2, 5, 16)
    made = dit.Fp8Linear(layer)
    weight, weight_scale = dit.quantise_rows(layer.weight.detach())
    rows, scale = dit.quantise_rows(x.view(-1, 16))
    expected = (rows.double() * scale) @ (weight.double() * weight_scale).T + layer.bias.double()
    out = made(x)
    assert out.shape == (2, 5, 32) and relative(out.double().view(-1, 32), expected) < 1e-6
    assert 0.005 < relative(out, layer(x)) < 0.06


def wide_dit(depth):
    torch.manual_seed(0)
    model = dit.DiT(8, 2, 1, width=32, depth=depth, heads=2, num_classes=10)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def test_a_network_is_built_whole_where_torch_device_says():
    with torch.device("meta"):
        model = dit.DiT(8, 2, 1, width=32, depth=1, heads=2, num_classes=10)
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_8_bits_are_used_in_the_inner_blocks_only():
    model = dit.to_fp8(wide_dit(4))
    kinds = {name for name, module in model.named_modules() if isinstance(module, dit.Fp8Linear)}
    assert kinds == {f"blocks.{i}.{name}" for i in (1, 2)
                     for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 999]), torch.tensor([1, 2, 10])
    exact, approximate = wide_dit(4)(x, t, y), model(x, t, y)
    assert 1e-5 < relative(approximate, exact) < 0.05


def test_a_network_too_small_for_8_bits_is_refused():
    with pytest.raises(UserError, match="3 blocks"):
        dit.to_fp8(wide_dit(2))


@pytest.mark.parametrize(("flags", "message"), [
    (["--fp8"], "8-bit"), (["--fp8", "--dtype", "fp32"], "--dtype"),
    (["--fp8", "--teacher-guidance", "1", "--teacher", "cnn_w4@none"], "no gradient"),
    (["--teacher-guidance", "1"], "needs --teacher"),
    (["--teacher-guidance", "1", "--teacher", "cnn_w4@none", "--sampler", "ddim"], "needs"),
    (["--teacher", "cnn_w4@none"], "does nothing without --teacher-guidance"),
    (["--teacher-dtype", "fp32"], "does nothing without --teacher-guidance"),
    (["--guidance-interval", "0.2-0.8", "--guidance-scale", "1"], "does nothing"),
    (["--guidance-interval", "0.8-0.2"], "LOW-HIGH"), (["--steps", "1001"], "1000"),
    (["--steps", "1"], "2 steps or more"), (["--steps", "1", "--sampler", "ddim"], "2 steps or"),
    (["--steps", "1000", "--sampler", "dpm++"], "fewer than 1000")])
def test_flags_that_cannot_be_are_refused_before_weights_are_read(tmp_path, capsys, flags, message):
    assert synthesize.main(["--task", "digits", "--weights", str(tmp_path), "--device", "cpu",
                            "--out", str(tmp_path / "set"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def weights_folder(tmp_path):
    model = wide_dit(3)
    files.write_with_card(tmp_path / "dit", "dit", {
        name: p.detach() for name, p in model.named_parameters()}, {
        "model": "dit", "task": "digits", "config": model.config, "clip": True, "licence": "none"})
    return tmp_path / "dit"


def test_approximations_are_recorded_in_the_manifest_and_the_exact_way_is_as_before(
        weights_folder, tmp_path):
    command = ["--task", "digits", "--weights", str(weights_folder), "--steps", "2", "--device",
               "cpu", "--threads", "1", "--images-per-class", "1"]
    assert synthesize.main([*command, "--out", str(tmp_path / "a")]) == 0
    assert synthesize.main([*command, "--guidance-interval", "0.2-0.75", "--out",
                            str(tmp_path / "b")]) == 0
    exact, other = (image_set.open_set(tmp_path / name).manifest["generator"] for name in "ab")
    assert not {"guidance_interval", "fp8", "compiled", "diffusers"} & exact.keys()
    assert other == exact | {"guidance_interval": [0.2, 0.75]}


@pytest.mark.parametrize(("flags", "side"), [
    (["--weights", "small"], 64), (["--weights", "facebook/DiT-XL-2-256"], 256),
    (["--weights", "not/made/yet"], 256), (["--generator", "noise"], 224),
    (["--generator", "text_to_image", "--weights", "x", "--resolution", "96"], 96)])
def test_a_dry_run_says_the_size_of_the_images(tmp_path, monkeypatch, capsys, flags, side):
    monkeypatch.chdir(tmp_path)
    files.write_json(tmp_path / "small" / "dit.json", {"config": {"input_size": 64}})
    assert synthesize.main(["--task", "imagenet", "--images-per-class", "1", "--dry-run", "--out",
                            "set", *flags]) == 0
    assert f"images of {side} x {side}" in capsys.readouterr().out


def test_dpm_solvers_version_is_a_setting_and_its_lack_is_said_before_anything_is_written(
        weights_folder, tmp_path, monkeypatch, capsys):
    diffusers = pytest.importorskip("diffusers")
    command = ["--task", "digits", "--weights", str(weights_folder), "--sampler", "dpm++",
               "--device", "cpu", "--out", str(tmp_path / "set")]
    args = synthesize.parse(command)
    built = dit.build(args, get_task("digits"), torch.device("cpu"))
    assert built.settings["diffusers"] == diffusers.__version__
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert synthesize.main(command) == 2
    assert "pip install diffusers" in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_a_compilation_that_fails_is_said(tiny, monkeypatch):
    made = generator(copy.deepcopy(tiny), compiled=True)
    torch.compiler.reset()  # after many compilations torch runs the code as it is

    def fails(graph, inputs):
        raise ValueError("no compiler here")

    dit.compile_blocks(made.model, fails)
    with pytest.raises(UserError, match="torch.compile failed"):
        made.sample(torch.tensor([1]), [1])


def noted(model):
    """Compile the blocks with a compiler that notes the batch of each graph it gets, and runs it as
    it is."""
    shapes = []

    def backend(graph, inputs):
        shapes.append(next(x.shape[0] for x in inputs if isinstance(x, torch.Tensor)
                           and x.ndim == 3))
        return graph.forward

    dit.compile_blocks(model, backend)
    return shapes


def test_every_shape_is_compiled_also_past_torchs_limit_of_eight(tiny):
    torch.compiler.reset()
    made = generator(copy.deepcopy(tiny), compiled=True, steps=2)
    shapes = noted(made.model)
    for batch in range(1, 13):
        made.sample(torch.zeros(batch, dtype=torch.int64), list(range(batch)))
    assert sorted(set(shapes)) == [2 * batch for batch in range(1, 13)]  # guided: both halves


def test_a_shape_that_would_no_longer_be_compiled_is_an_error_and_not_slow(tiny, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(dit, "COMPILED_SHAPES", 2)
    made = generator(copy.deepcopy(tiny), compiled=True, steps=2)
    noted(made.model)
    with pytest.raises(UserError, match="torch.compile failed"):
        for batch in (1, 2, 3, 4):
            made.sample(torch.zeros(batch, dtype=torch.int64), list(range(batch)))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("kind", ["dit", "imf"])
def test_inductors_blocks_compute_what_the_plain_ones_do(kind):
    torch.compiler.reset()
    torch.manual_seed(0)
    if kind == "dit":
        model = dit.DiT(8, 2, 4, width=32, depth=2, heads=4, num_classes=10)
        rest = (torch.tensor([3, 900]), torch.tensor([1, 10]))
    else:
        model = imf.IMF(8, 2, 4, width=64, hidden=96, depth=9, num_classes=10)
        rest = (torch.tensor([0.5, 1.0]), 8.0, (0.4, 0.65), torch.tensor([1, 9]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model, x = model.eval().requires_grad_(False), torch.randn(2, 4, 8, 8)
    compiled = dit.compile_blocks(copy.deepcopy(model))
    torch._dynamo.utils.counters.clear()
    with dit.computing({"compiled": True}):
        assert relative(compiled(x, *rest), model(x, *rest)) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.parametrize(("width", "instructions", "device", "expected"), [
    (1152, True, "cpu", "bf16"), (128, True, "cpu", "bf16"), (96, True, "cpu", "fp32"),
    (1152, False, "cpu", "fp32"), (96, False, "cuda", "bf16")])
def test_bf16_is_taken_where_it_pays(monkeypatch, width, instructions, device, expected):
    monkeypatch.setattr(dit, "multiplies_bf16", lambda at: instructions or at.type == "cuda")
    assert dit.fastest_dtype(width, torch.device(device)) == expected


def test_the_dtype_that_was_taken_is_a_setting_and_can_be_chosen(monkeypatch, weights_folder):
    monkeypatch.setattr(dit, "fastest_dtype", lambda width, device: "bf16")
    for given, expected in (([], "bf16"), (["--dtype", "fp32"], "fp32")):
        args = synthesize.parse(["--task", "digits", "--weights", str(weights_folder), "--out",
                                 "set", *given])
        made = dit.build(args, get_task("digits"), torch.device("cpu"))
        assert made.settings["dtype"] == expected
        assert (made.model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16) == (
            expected == "bf16")


@pytest.mark.cuda
@pytest.mark.parametrize("flags", [[], ["--fp8"], ["--compile", "off"]])
def test_on_a_gpu_images_are_close_to_the_cpus(weights_folder, flags):
    task, made = get_task("digits"), []
    for device, given in (("cpu", ["--dtype", "fp32"]), ("cuda", flags)):
        args = synthesize.parse(["--task", "digits", "--weights", str(weights_folder), "--steps",
                                 "10", "--out", "set", *given])
        made.append(dit.build(args, task, torch.device(device)).sample(
            torch.arange(10), list(range(10))).float())
    limit = 20 if "--fp8" in flags else 6
    assert (made[0] - made[1]).abs().mean() < limit


# --- a teacher that steers ------------------------------------------------------------------------

def steered(model, teacher_folder, weight, **changes):
    task = get_task("digits")
    teacher, _ = models.load_frozen(str(teacher_folder), task)
    made = generator(model, **changes)
    made.teacher = dit.TeacherGuidance(teacher, task, weight, torch.device("cpu"))
    return made


def test_a_guide_in_bf16_moves_images_as_in_float32_up_to_its_precision(teacher_folder):
    task = get_task("digits")
    teacher, _ = models.load_frozen(str(teacher_folder), task)
    x, labels = torch.rand(32, 1, 8, 8) - 0.5, torch.arange(32) % 10
    moves = []
    for bf16 in (False, True):
        guidance = dit.TeacherGuidance(teacher, task, 0.5, torch.device("cpu"), bf16=bf16)
        moves.append(guidance.steer(x, labels, lambda x: x, torch.tensor(0.8)) - x)
    assert torch.cosine_similarity(*(m.flatten() for m in moves), dim=0) > 0.98
    assert not torch.equal(*moves)


def test_a_steering_step_has_the_asked_for_length_whatever_the_losss_scale(teacher_folder):
    task = get_task("digits")
    teacher, _ = models.load_frozen(str(teacher_folder), task)
    x, labels = torch.rand(4, 1, 8, 8) - 0.5, torch.arange(4)
    for scale in (1.0, 1000.0):
        guidance = dit.TeacherGuidance(teacher, task, 0.5, torch.device("cpu"))
        guidance.terms = {k: scale * v for k, v in guidance.terms.items()}
        moved = guidance.steer(x, labels, lambda x: x, torch.tensor(0.8))
        assert torch.allclose((moved - x).flatten(1).norm(dim=1), torch.full((4,), 0.4), atol=1e-5)
        before, after = (sum(guidance.parts(v, labels).values()) for v in (x, moved))
        assert after < before


def test_a_term_of_the_teacher_that_is_not_finite_stops_the_sampler_with_its_name(teacher_folder):
    teacher, _ = models.load_frozen(str(teacher_folder), get_task("digits"))
    guidance = dit.TeacherGuidance(teacher, get_task("digits"), 0.5, torch.device("cpu"))
    guidance.terms = {"ce_target": 1.0, "bn": math.inf}
    with pytest.raises(DivergedError, match="bn became inf at noise 0.800"):
        guidance.steer(torch.zeros(2, 1, 8, 8), torch.arange(2), lambda x: x, torch.tensor(0.8))


def test_steering_lowers_the_teachers_loss_of_the_images_and_weight_0_changes_nothing(
        tiny, teacher_folder):
    labels, seeds, losses = torch.arange(10), list(range(10)), []
    plain = generator(tiny).sample(labels, seeds)
    assert torch.equal(steered(tiny, teacher_folder, 0.0).sample(labels, seeds), plain)
    for weight in (0.0, 2.0):
        made = steered(tiny, teacher_folder, weight)
        images = made.sample(labels, seeds).float() / 127.5 - 1
        losses.append(sum(made.teacher.parts(images, labels).values()).item())
    assert losses[1] < losses[0]
    assert all(p.grad is None for p in made.teacher.teacher.parameters())


def test_a_teachers_guidance_stands_in_the_settings_and_needs_batch_norms(
        tmp_path, teacher_folder):
    def settings(*flags):
        args = synthesize.parse(["--task", "digits", "--generator", "dit", "--weights", "x",
                                 "--out", str(tmp_path), *flags])
        found = {}
        dit.teacher_guidance(args, get_task("digits"), torch.device("cpu"), found)
        return found

    flags = ("--teacher-guidance", "1.5", "--teacher", str(teacher_folder))
    assert settings(*flags)["teacher_guidance"] == 1.5
    assert len(settings(*flags)["teacher_sha256"]) == 64
    assert [settings(*flags, "--teacher-dtype", v)["teacher_dtype"] for v in ("bf16", "fp32")] == [
        "bf16", "fp32"]
    with pytest.raises(UserError, match="no BatchNorm2d"):
        settings("--teacher-guidance", "1", "--teacher", "lenet5@none")


def test_a_student_pulls_the_images_to_where_it_differs_from_the_teacher(teacher_folder):
    task = get_task("digits")
    teacher, _ = models.load_frozen(str(teacher_folder), task)
    torch.manual_seed(2)
    student = copy.deepcopy(teacher)  # agrees with it, but is less sure
    with torch.no_grad():
        student.fc.weight.mul_(0.5)
        student.fc.bias.mul_(0.5)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    guidance = dit.TeacherGuidance(teacher, task, 0.5, torch.device("cpu"), student)
    assert guidance.terms == {"ce_target": 1.0, "bn": 0.1, "adv_dad": 1.0}
    guidance.terms = {"adv_dad": 1.0}
    x, labels = torch.rand(8, 1, 8, 8) - 0.5, torch.arange(8)
    moved = guidance.steer(x, labels, lambda x: x, torch.tensor(0.1))
    gap = [guidance.parts(v, labels)["adv_dad"].item() for v in (x, moved)]
    assert gap[1] < gap[0] < 0
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_latent_cutmix_puts_boxes_of_the_batchs_other_images_in_every_fifth_of_the_steps():
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 16, 16).contiguous()
    changed = [s for s in range(20) if not torch.equal(dit.latent_cutmix(x, s, 20, [1, 2])[0], x)]
    assert set(changed) <= {4, 8, 12, 16} and len(changed) > 1  # a box may be empty, or its own
    step = changed[0]
    mixed, share, partner = dit.latent_cutmix(x, step, 20, [1, 2])
    assert torch.equal(mixed, dit.latent_cutmix(x, step, 20, [1, 2])[0])
    assert not torch.equal(mixed, dit.latent_cutmix(x, step, 20, [1, 3])[0])
    own = (mixed == x).float().mean((1, 2, 3))[partner != torch.arange(6)]
    assert torch.allclose(own, torch.full_like(own, share))
    foreign = mixed != x
    assert torch.equal(foreign[:, 0], foreign[:, 1])  # the same box in every channel
    for image in mixed:
        assert 1 <= len(image.unique()) <= 2


@pytest.mark.parametrize(("steps", "mixed"), [(50, [10, 20, 30, 40]), (9, [2, 4, 6, 8]),
                                              (14, [3, 6, 9, 12]), (3, [1, 2])])
def test_latent_cutmix_has_at_most_four_moments_whatever_the_steps(steps, mixed):
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 4, 8, 8)
    asked = [s for s in range(steps) if dit.latent_cutmix(x, s, steps, [1, 2])[2] is not None]
    assert asked == mixed


def test_latent_cutmix_makes_other_images_the_same_each_time_whose_labels_are_unknown(tiny):
    labels, seeds = torch.arange(10), list(range(10))
    plain, mixed = generator(tiny), generator(tiny)
    mixed = dit.DiTGenerator(tiny, mixed.settings | {"latent_cutmix": True}, torch.device("cpu"),
                             mixed.clip)
    images = mixed.sample(labels, seeds)
    assert not torch.equal(images, plain.sample(labels, seeds))
    assert torch.equal(images, mixed.sample(labels, seeds))
    assert plain.labels_known and not mixed.labels_known


def test_after_a_latent_cutmix_the_teacher_is_asked_for_each_class_by_its_share(
        tiny, teacher_folder, monkeypatch):
    made, mixes, asked = steered(tiny, teacher_folder, 0.5, latent_cutmix=True, steps=5), [], []
    cutmix, steer = dit.latent_cutmix, made.teacher.steer
    monkeypatch.setattr(dit, "latent_cutmix",
                        lambda *rest: mixes.append(cutmix(*rest)) or mixes[-1])
    monkeypatch.setattr(made.teacher, "steer", lambda x, labels, *rest: asked.append(labels) or
                        steer(x, labels, *rest))
    made.sample(torch.arange(10), list(range(10)))
    expected = torch.eye(10)
    for (_, share, partner), labels in zip(mixes, asked, strict=True):
        if partner is not None:
            expected = share * expected + (1 - share) * expected[partner]
        assert torch.allclose(labels, expected, atol=1e-6)
    assert 0.2 < expected.diagonal().mean() < 0.95
    assert torch.allclose(expected.sum(1), torch.ones(10))


def test_the_teachers_cross_entropy_of_shares_is_the_shares_of_the_classes_own(teacher_folder):
    teacher, _ = models.load_frozen(str(teacher_folder), get_task("digits"))
    guidance = dit.TeacherGuidance(teacher, get_task("digits"), 0.5, torch.device("cpu"))
    x = torch.rand(1, 1, 8, 8) - 0.5
    three, five = (guidance.parts(x, torch.tensor([label]))["ce_target"] for label in (3, 5))
    shares = torch.zeros(1, 10)
    shares[0, 3], shares[0, 5] = 0.75, 0.25
    assert guidance.parts(x, shares)["ce_target"].item() == pytest.approx(
        (0.75 * three + 0.25 * five).item(), rel=1e-5)


@pytest.mark.parametrize(("flags", "message"), [
    (["--student", "cnn_w4@none"], "--student does nothing"),
    (["--latent-cutmix", "--sampler", "ddim"], "needs --sampler ddpm"),
    (["--latent-cutmix", "--batch-size", "1"], "at least two images")])
def test_a_student_without_guidance_and_cutmix_without_partners_are_refused(flags, message):
    args = synthesize.parse(["--task", "digits", "--weights", "x", "--out", "y", *flags])
    with pytest.raises(UserError, match=message):
        dit.check_flags(args, torch.device("cpu"))


def test_a_guiding_student_stands_in_the_settings_and_its_passes_are_counted(teacher_folder):
    args = synthesize.parse(["--task", "digits", "--weights", "x", "--out", "y",
                             "--teacher-guidance", "1", "--teacher", str(teacher_folder),
                             "--student", str(teacher_folder)])
    found = {}
    made = dit.teacher_guidance(args, get_task("digits"), torch.device("cpu"), found)
    assert made.student is not None and len(found["student_sha256"]) == 64
    assert found["teacher_terms"]["adv_dad"] == 1.0
    used = stored.making(found | {"name": "dit", "steps": 10, "guidance_scale": 1.0}, 7)
    assert used == {"generator_evaluations": 140, "teacher_passes": 70, "student_passes": 70}
