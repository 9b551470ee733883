"""SiT's samplers against the exact velocity of Gaussian data, and its checkpoints."""

import argparse
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dm_kd import synthesize
from dm_kd.errors import DamagedError, UserError
from dm_kd.generators import dit, sit
from dm_kd.tasks import get_task

MEAN, STD = 0.7, 0.4  # of the data


def exact_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[eps - x_0 | x_t] for x_0 ~ N(MEAN, STD^2): the two are jointly Gaussian."""
    variance = (1 - t) ** 2 * STD ** 2 + t ** 2
    return -MEAN + (t - (1 - t) * STD ** 2) / variance * (x - (1 - t) * MEAN)


@pytest.fixture
def noise():
    return torch.randn(20_000, 1, 1, 1, dtype=torch.float64)


def network(**changes) -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(**{"input_size": 8, "patch_size": 2, "channels": 1, "width": 64, "depth": 2,
                       "heads": 1, "num_classes": 10, "learn_sigma": True} | changes)
    for parameter in model.parameters():  # adaLN-Zero starts as a constant
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def flags(*argv: str) -> argparse.Namespace:
    return synthesize.parse(["--task", "digits", "--generator", "sit", "--out", "unused", *argv])


def made(task, file, *argv: str) -> sit.SiTGenerator:
    return sit.build(flags("--weights", str(file), *argv), task, torch.device("cpu"))


@pytest.fixture
def checkpoint(tmp_path):
    """f(**changes of the network) -> a file in SiT's layout."""

    def make(name: str = "sit.pt", extra: dict | None = None, **changes):
        file = tmp_path / name
        torch.save({"ema": network(**changes).state_dict() | (extra or {})}, file)
        return file

    return make


PROJECTORS = {"projectors.0.0.weight": torch.zeros(3, 64), "projectors.0.0.bias": torch.zeros(3)}


# --- the samplers, where the answer is known ------------------------------------------------------

def test_the_ode_maps_noise_to_mean_plus_std_times_noise(noise):
    """x_t = mean_t + std_t z keeps its z along the flow."""
    x = sit.sample_ode(exact_velocity, noise, sit.ode_times(400), heun=True)
    assert (x - (MEAN + STD * noise)).abs().max() < 1e-4


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_the_error_falls_with_the_order_of_the_method(heun, order):
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    errors = [float((sit.sample_ode(exact_velocity, noise, sit.ode_times(steps), heun)
                     - (MEAN + STD * noise)).norm()) for steps in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_one_euler_step_by_hand():
    """From x at t = 1 the velocity is x - MEAN: one step lands on the mean."""
    x = torch.tensor([[[[1.5]]]], dtype=torch.float64)
    assert float(sit.sample_ode(exact_velocity, x, [1.0, 0.0])) == pytest.approx(MEAN)


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_the_score_of_the_velocity_is_the_gaussians(t):
    x = torch.randn(50, dtype=torch.float64)
    variance = (1 - t) ** 2 * STD ** 2 + t ** 2
    expected = -(x - (1 - t) * MEAN) / variance
    assert torch.allclose(sit.score(exact_velocity(x, t), x, t), expected)


def test_the_sde_ends_in_the_datas_distribution(noise):
    draws = torch.Generator().manual_seed(1)
    x = sit.sample_sde(exact_velocity, noise, sit.sde_times(250),
                       lambda: torch.randn(noise.shape, generator=draws, dtype=noise.dtype))
    # the last step gives E[x_0 | x_t], which lacks the posterior's variance at t = 0.04: 0.5 %
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, rel=0.02)
    assert float(torch.corrcoef(torch.stack([x.flatten(), noise.flatten()]))[0, 1]) < 0.5  # ODE: 1


def test_an_sde_step_by_hand():
    """x + dt (v - w/2 s) + sqrt(w |dt|) z with w = 2 t, then the ODE's step to 0."""
    x, z = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.2, dtype=torch.float64)
    t, after = 0.8, 0.5
    variance = (1 - t) ** 2 * STD ** 2 + t ** 2
    drift = exact_velocity(x, t) + t * (x - (1 - t) * MEAN) / variance
    expected = x - 0.3 * drift + math.sqrt(2 * 0.8 * 0.3) * z
    expected = expected - 0.5 * exact_velocity(expected, after)
    found = sit.sample_sde(exact_velocity, x, [t, after, 0.0], lambda: z)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_times_begin_at_noise_and_end_at_the_image():
    assert sit.ode_times(4) == [1, 0.75, 0.5, 0.25, 0]
    times = sit.sde_times(25)
    assert len(times) == 26 and times[0] == 1 and times[-1] == 0
    assert times[-2] == pytest.approx(sit.LAST_STEP)
    assert sit.sde_times(1) == [1, 0]


# --- the network's way round, and guidance --------------------------------------------------------

@pytest.mark.parametrize(("convention", "time", "sign"), [("repa", 0.8, 1), ("sit", 0.2, -1)])
def test_sits_networks_run_the_other_way_round(convention, time, sign):
    def model(x, t, labels):
        assert torch.allclose(t, torch.full((2,), time))
        return torch.cat([3 * x, x], 1)  # twice the channels: the first half is the velocity

    x = torch.randn(2, 1, 4, 4)
    velocity = sit.predicted_velocity(model, convention, torch.tensor([1, 2]), 10, 1.0, 1)
    assert torch.allclose(velocity(x, 0.8), sign * 3 * x)


def test_guidance_is_off_outside_its_interval():
    seen = []

    def model(x, t, labels):
        seen.append(labels.tolist())
        return x * labels.view(-1, 1, 1, 1)

    x = torch.ones(1, 1, 2, 2)
    velocity = sit.predicted_velocity(model, "repa", torch.tensor([4]), 10, 2.0, 1, (0.0, 0.7))
    assert float(velocity(x, 0.9).mean()) == 4
    assert float(velocity(x, 0.7).mean()) == 10 + 2 * (4 - 10)
    assert seen == [[4], [4, 10]]


def test_unconditional_stays_unconditional_outside_the_interval():
    velocity = sit.predicted_velocity(lambda x, t, y: x * y.view(-1, 1, 1, 1), "repa",
                                      torch.tensor([4]), 10, 0.0, 1, (0.0, 0.7))
    assert float(velocity(torch.ones(1, 1, 1, 1), 0.9)) == 10


# --- checkpoints ----------------------------------------------------------------------------------

def test_a_file_with_twice_the_channels_is_sits_and_one_with_projectors_repas(digits, checkpoint):
    generator = made(digits, checkpoint())
    assert (generator.settings["name"], generator.settings["velocity"],
            generator.settings["guided_channels"]) == ("sit", "sit", "3")
    generator = made(digits, checkpoint("repa.pt", PROJECTORS, learn_sigma=False))
    assert (generator.settings["velocity"], generator.settings["guided_channels"]) == (
        "repa", "all")


def test_a_file_that_shows_neither_must_be_said(digits, checkpoint):
    file = checkpoint(learn_sigma=False)
    with pytest.raises(UserError, match="--velocity"):
        made(digits, file)
    assert made(digits, file, "--velocity", "repa").settings["velocity"] == "repa"


def test_blocks_numbered_anew_after_the_encoder_go_on(checkpoint, tmp_path):
    state = network(learn_sigma=False).state_dict()
    old = {k.replace("blocks.1.", "decoder_blocks.0."): v for k, v in state.items()}
    torch.save({"ema": old | PROJECTORS}, tmp_path / "old.pt")
    found = sit.load(str(tmp_path / "old.pt"))[0].state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(("learn_sigma", "licence"), [
    (True, "MIT (willisma/SiT)"), (False, "MIT (sihyun-yu/REPA)")])
def test_the_published_sizes_have_their_licence(monkeypatch, tmp_path, learn_sigma, licence):
    """Only the shapes matter, so the 675 M weights are never made."""
    config = dit.dit_weights.PUBLISHED | {"input_size": 32, "learn_sigma": learn_sigma}
    with torch.device("meta"):
        state = dit.DiT(**config).state_dict()
    (tmp_path / "XL.pt").write_bytes(b"")
    extra = {} if learn_sigma else PROJECTORS
    monkeypatch.setattr(sit, "read_file", lambda *_: dict(state) | extra)
    monkeypatch.setattr(dit, "set_position_table", lambda *_: None)
    monkeypatch.setattr(dit, "assemble", lambda config, *_: config)
    found, card = sit.load(str(tmp_path / "XL.pt"))
    assert found == config and card["licence"] == licence


def test_other_files_are_refused(digits, tmp_path, checkpoint):
    with pytest.raises(UserError, match="qkv.weight is unknown"):
        made(digits, checkpoint(extra={"blocks.0.other.qkv.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match="one file"):
        made(digits, tmp_path)
    (tmp_path / "cut.pt").write_bytes(checkpoint().read_bytes()[:500])
    with pytest.raises(DamagedError):
        made(digits, tmp_path / "cut.pt")
    with pytest.raises(UserError, match="5 classes"):
        made(digits, checkpoint(num_classes=5))


def test_a_task_of_some_imagenet_classes_gets_imagenets_own(checkpoint):
    """ImageNet-100's first and last class are ImageNet's 15 and 994."""
    task = get_task("imagenet100")
    generator = made(task, checkpoint(num_classes=1000, channels=1), "--steps", "1")
    seen = []
    generator.model.y_embedder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator.sample(torch.tensor([0, 99]), [1, 2])
    assert seen[0][:2].tolist() == [15, 994]
    assert generator.settings["generator_classes"][:2] == [15, 45]


@pytest.mark.parametrize("generator", ["sit", "dit"])
def test_edm2s_pickles_are_refused_with_the_reason_and_unread(tmp_path, generator, capsys):
    (tmp_path / "edm2.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    code = synthesize.main(["--task", "digits", "--generator", generator, "--weights",
                            str(tmp_path / "edm2.pkl"), "--device", "cpu", "--out",
                            str(tmp_path / "set")])
    text = capsys.readouterr().err
    assert code == 2 and "runs code" in text and "EDM2" in text
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("text", ["0.7", "0.7-0", "0-1.5", "a-b"])
def test_a_bad_interval_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        dit.interval(text)


def test_an_interval_without_guidance_is_refused(digits, checkpoint):
    for scale in ("0", "1"):
        with pytest.raises(UserError, match="does nothing"):
            made(digits, checkpoint(), "--guidance-scale", scale, "--guidance-interval", "0-0.7")


# --- images ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", sit.SAMPLERS)
def test_an_image_hangs_on_its_seed_and_not_on_its_batch(digits, checkpoint, sampler):
    generator = made(digits, checkpoint(), "--sampler", sampler, "--steps", "5")
    together = generator.sample(torch.tensor([1, 2, 2]), [5, 6, 7])
    alone = generator.sample(torch.tensor([2]), [6])
    assert together.dtype == torch.uint8 and together.shape == (3, 1, 8, 8)
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert (together[1].int() - together[2].int()).abs().max() > 1


def test_an_exact_network_makes_the_datas_mean_through_the_whole_path(digits, checkpoint):
    """SiT's way round, from the file to uint8: a network that answers MEAN - x / (noise level) is
    the velocity of data that is one point."""
    generator = made(digits, checkpoint(), "--sampler", "ode", "--guidance-scale", "1")

    def model(x, t, labels):  # told 1 - t, asked for x_0 - eps; eps = (x - (1 - t) MEAN) / t
        noise_time = (1 - t).view(-1, 1, 1, 1)
        return MEAN - (x - (1 - noise_time) * MEAN) / noise_time

    model.config, model.num_classes, model.channels = (
        generator.model.config, 10, 1)
    generator.model = model
    images = generator.sample(torch.tensor([3]), [1])
    assert (images == round((MEAN + 1) / 2 * 255)).all()


def test_the_command_makes_a_set_that_names_the_generator(digits, checkpoint, tmp_path):
    import json

    out = tmp_path / "set"
    assert synthesize.main([
        "--task", "digits", "--generator", "sit", "--weights", str(checkpoint()), "--steps", "2",
        "--images-per-class", "1", "--batch-size", "10", "--device", "cpu", "--threads", "1",
        "--out", str(out)]) == 0
    settings = json.loads((out / "manifest.json").read_text())["generator"]
    assert settings["name"] == "sit" and settings["sampler"] == "sde"
    assert (out / "index.csv").exists()


def test_finishing_in_another_thread_gives_the_same_bytes(digits, checkpoint):
    generator = made(digits, checkpoint(), "--steps", "3")
    batches = [(torch.tensor([1, 2]), [seed, seed + 1]) for seed in (1, 5)]
    with ThreadPoolExecutor(1) as second:
        beside = [second.submit(generator.finish, generator.latents(*batch)) for batch in batches]
        for batch, images in zip(batches, beside, strict=True):
            assert torch.equal(images.result(), generator.sample(*batch))


def test_a_compiled_network_makes_the_same_images_and_is_a_setting(
        digits, checkpoint, monkeypatch):
    compile_blocks, file = dit.compile_blocks, checkpoint()
    torch.compiler.reset()
    monkeypatch.setattr(dit, "compile_blocks", lambda model: compile_blocks(model, "aot_eager"))
    plain, compiled = (made(digits, file, "--steps", "2", "--compile", how)
                       for how in ("auto", "on"))
    assert compiled.settings == plain.settings | {"compiled": True}
    torch._dynamo.utils.counters.clear()
    difference = compiled.sample(torch.tensor([1, 2]), [3, 4]).int() - plain.sample(
        torch.tensor([1, 2]), [3, 4]).int()
    assert difference.abs().max() <= 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
