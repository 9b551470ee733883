"""The DiT, its process and samplers against golden values of the original definition, closed forms
and hand-written recursions."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dm_kd import models, synthesize
from dm_kd.errors import UserError
from dm_kd.generators import dit
from dm_kd.image_set import image_seed
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

@pytest.mark.parametrize("steps", [10, 100, 250])
def test_respaced_steps_equal_the_golden_ones(golden, steps):
    assert torch.equal(dit.Diffusion(steps).network_times, golden[f"steps_{steps}"])


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


def test_one_step_works_and_uses_no_noise_but_the_start():
    def draw():
        raise AssertionError("no step but the last one, which takes no noise")

    diffusion = dit.Diffusion(1)
    assert diffusion.network_times.tolist() == [0]
    x = torch.randn(2, 1, 8, 8)
    out = dit.sample_ddpm(lambda x, t: torch.zeros(2, 2, 8, 8), diffusion, x, draw)
    assert torch.allclose(out, x / math.sqrt(1 - 1e-4), rtol=1e-5)


def test_fixed_variance_equals_ddim_with_eta_1():
    """Song et al. 2021 eq. 12 and 16 with eta = 1, from the betas alone."""
    steps, torch_double = 7, {"dtype": torch.float64}
    eps_of, noise = torch.randn(steps, 2, 1, 4, 4, **torch_double), torch.randn(
        steps, 2, 1, 4, 4, **torch_double)
    start = torch.randn(2, 1, 4, 4, **torch_double)
    times = torch.linspace(0, 999, steps, **torch_double).round().long()
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, **torch_double)).cumprod(0)
    x = start
    for i in reversed(range(steps)):
        now = alpha_bar[times[i]]
        before = alpha_bar[times[i - 1]] if i else torch.ones((), **torch_double)
        sigma = ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
        x0 = (x - (1 - now).sqrt() * eps_of[i]) / now.sqrt()
        x = before.sqrt() * x0 + (1 - before - sigma ** 2).clamp_min(0).sqrt() * eps_of[i]
        x = x + sigma * noise[i]
    index = {int(t): i for i, t in enumerate(times)}
    drawn = iter(noise.flip(0))
    ours = dit.sample_ddpm(lambda x, t: eps_of[index[int(t[0])]], dit.Diffusion(steps), start,
                           lambda: next(drawn))
    assert relative(ours, x) < 1e-5  # our tables are rounded to float32


def test_clipping_keeps_the_prediction_of_x0_in_range():
    seen = {}
    for clip in (False, True):
        seen[clip] = dit.sample_ddpm(lambda x, t: torch.full_like(x, 3.0), dit.Diffusion(3),
                                     torch.zeros(1, 1, 2, 2), lambda: torch.zeros(1, 1, 2, 2), clip)
    assert seen[True].abs().max() <= 1 + 1e-6 < seen[False].abs().max()


def test_log_variance_runs_from_the_posteriors_to_beta():
    diffusion = dit.Diffusion(10)
    i = torch.tensor([3])
    low = diffusion.log_variance(torch.tensor(-1.0), i)
    high = diffusion.log_variance(torch.tensor(1.0), i)
    assert torch.equal(low, diffusion.log_variance(None, i))
    assert torch.allclose(high, diffusion.at("log_beta", i)) and high > low


# --- schedulers of diffusers ----------------------------------------------------------------------

@pytest.mark.parametrize("steps", [10, 100])
def test_ddim_equals_a_hand_written_recursion_on_the_same_steps(tiny, monkeypatch, steps):
    """Song et al. 2021 eq. 12 with eta = 0, the predicted image clamped as diffusers does it."""
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

    def spy(predict, diffusion, x, draw, clip):
        def noted():
            kept.append(draw())
            return kept[-1]

        kept.append(x)
        return real(predict, diffusion, x, noted, clip)

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


def test_to_uint8_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert dit.to_uint8(x).tolist() == [0, 0, 128, 255, 255]
    levels = torch.arange(256)
    for shift in (-0.45, 0.0, 0.45):
        assert torch.equal(dit.to_uint8((levels + shift) / 127.5 - 1).long(), levels)


# --- loss -----------------------------------------------------------------------------------------

class Fixed(torch.nn.Module):
    """A network with a given output."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, t, labels):
        self.seen = x, t, labels
        return self.out


def test_loss_without_sigma_is_the_mean_squared_noise_error():
    x0, noise, eps = torch.randn(3, 2, 1, 4, 4).unbind()
    model, i = Fixed(eps), torch.tensor([0, 999])
    loss = dit.diffusion_loss(model, dit.Diffusion(), x0, torch.tensor([0, 1]), i, noise)
    assert torch.allclose(loss, ((eps - noise) ** 2).flatten(1).mean(1))


def test_the_network_sees_the_noised_image_and_the_step():
    x0, noise = torch.randn(2, 2, 1, 4, 4).unbind()
    model, i = Fixed(noise), torch.tensor([500, 999])
    dit.diffusion_loss(model, dit.Diffusion(), x0, torch.tensor([0, 1]), i, noise)
    x, t, labels = model.seen
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[i]
    expected = kept.sqrt().view(2, 1, 1, 1) * x0 + (1 - kept).sqrt().view(2, 1, 1, 1) * noise
    assert torch.allclose(x.double(), expected, atol=1e-6) and torch.equal(t, i)
    assert labels.tolist() == [0, 1]


def test_loss_is_zero_where_mean_and_variance_are_the_posteriors():
    x0, noise = torch.randn(2, 2, 1, 4, 4).unbind()
    out = torch.cat([noise, torch.full_like(noise, -1.0)], 1)  # -1: the posterior's variance
    loss = dit.diffusion_loss(Fixed(out), dit.Diffusion(), x0, torch.tensor([0, 1]),
                              torch.tensor([1, 700]), noise)
    assert loss.abs().max() < 1e-4


def test_the_variance_term_has_the_hand_computed_value_in_bits():
    diffusion, i = dit.Diffusion(), torch.tensor([400])
    x0, noise = torch.randn(2, 1, 1, 2, 2).unbind()
    out = torch.cat([noise, torch.full_like(noise, 1.0)], 1)  # variance beta, the mean is right
    log_ratio = float(diffusion.tables["log_beta"][400] - diffusion.tables["log_variance"][400])
    expected = 0.5 * (log_ratio - 1 + math.exp(-log_ratio)) / math.log(2)
    loss = dit.diffusion_loss(Fixed(out), diffusion, x0, torch.tensor([0]), i, noise)
    assert expected > 0 and abs(float(loss) - expected) < 1e-6


def test_the_variance_term_teaches_the_variance_only():
    x0, noise, eps, raw = torch.randn(4, 2, 1, 4, 4).unbind()
    out = torch.cat([eps, raw], 1).requires_grad_()
    i = torch.tensor([0, 600])
    dit.diffusion_loss(Fixed(out), dit.Diffusion(), x0, torch.tensor([0, 1]), i, noise).sum(
        ).backward()
    expected = 2 * (eps - noise) / 16  # of the squared error alone
    assert torch.allclose(out.grad[:, :1], expected, atol=1e-6)
    assert (out.grad[:, 1:].flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.1), (-0.98, 0.02), (0.7, 1.5)])
def test_discretized_likelihood_sums_to_one_over_the_256_bins(mean, scale):
    bins = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)
    log_p = dit._discretized_gaussian(bins, torch.tensor(mean, dtype=torch.float64),
                                      torch.tensor(math.log(scale), dtype=torch.float64))
    assert abs(float(log_p.exp().sum()) - 1) < 1e-8


def test_step_0_is_the_likelihood_of_the_8_bit_image():
    diffusion, x0 = dit.Diffusion(), torch.tensor([[[[-1.0, 0.0], [3 / 255, 1.0]]]])
    noise = torch.randn(1, 1, 2, 2)
    out = torch.cat([noise, torch.zeros_like(noise)], 1)
    loss = dit.diffusion_loss(Fixed(out), diffusion, x0, torch.tensor([0]), torch.tensor([0]),
                              noise)
    scale = math.exp(0.25 * float(diffusion.tables["log_beta"][0]
                                  + diffusion.tables["log_variance"][0]))
    normal = torch.distributions.Normal(0.0, scale)  # eps = noise: the mean is x0 itself
    inside = float(normal.cdf(torch.tensor(1 / 255)))
    nats = -(2 * math.log(inside) + 2 * math.log(2 * inside - 1)) / 4  # two bins are half-open
    assert abs(float(loss) - nats / math.log(2)) < 1e-3


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


# --- a teacher that steers ------------------------------------------------------------------------

def steered(model, teacher_folder, weight, **changes):
    task = get_task("digits")
    teacher, _ = models.load_frozen(str(teacher_folder), task)
    made = generator(model, **changes)
    made.teacher = dit.TeacherGuidance(teacher, task, weight, torch.device("cpu"))
    return made


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


def test_a_teachers_guidance_stands_in_the_settings_and_needs_a_teacher_and_ddpm(
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
    for wrong in (flags[:2], (*flags, "--sampler", "ddim")):
        with pytest.raises(UserError, match="needs --teacher and --sampler ddpm"):
            settings(*wrong)
    with pytest.raises(UserError, match="no BatchNorm2d"):
        settings("--teacher-guidance", "1", "--teacher", "lenet5@none")
