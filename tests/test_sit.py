"""SiT's sampler by hand, and its checkpoints."""

import math

import pytest
import torch

from dm_kd import synthesize
from dm_kd.generators import dit, sit
from dm_kd.tasks import get_task

MEAN, STD = 0.7, 0.4  # of the data


def exact_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[eps - x_0 | x_t] for x_0 ~ N(MEAN, STD^2): the two are jointly Gaussian."""
    variance = (1 - t) ** 2 * STD ** 2 + t ** 2
    return -MEAN + (t - (1 - t) * STD ** 2) / variance * (x - (1 - t) * MEAN)


def network(**changes) -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(**{"input_size": 8, "patch_size": 2, "channels": 1, "width": 64, "depth": 2,
                       "heads": 1, "num_classes": 10, "learn_sigma": True} | changes)
    for parameter in model.parameters():  # adaLN-Zero starts as a constant
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def built(file, *argv: str, task: str = "digits") -> sit.SiTGenerator:
    args = synthesize.parse(["--task", task, "--generator", "sit", "--weights", str(file), "--out",
                             "unused", *argv])
    return sit.build(args, get_task(task), torch.device("cpu"))


@pytest.fixture
def checkpoint(tmp_path):
    """f(**changes of the network) -> a file in SiT's layout."""

    def make(extra: dict | None = None, **changes):
        torch.save({"ema": network(**changes).state_dict() | (extra or {})}, tmp_path / "sit.pt")
        return tmp_path / "sit.pt"

    return make


# --- the sampler, where the answer is known -------------------------------------------------------

def test_sde_steps_by_hand():
    """x + dt (v - w/2 s) + sqrt(w |dt|) z with w = 2 t; the last one without its noise."""
    x, z = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.2, dtype=torch.float64)

    def drift(x, t):
        variance = (1 - t) ** 2 * STD ** 2 + t ** 2
        return exact_velocity(x, t) + t * (x - (1 - t) * MEAN) / variance

    expected = x - 0.3 * drift(x, 0.8) + math.sqrt(2 * 0.8 * 0.3) * z
    expected = expected - 0.5 * drift(expected, 0.5)
    found = sit.sample_sde(exact_velocity, x, [0.8, 0.5, 0.0], iter([z]).__next__)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


# --- the network's way round, and guidance --------------------------------------------------------

@pytest.mark.parametrize(("convention", "time", "sign"), [("repa", 0.8, 1), ("sit", 0.2, -1)])
def test_sits_networks_run_the_other_way_round(convention, time, sign):
    def model(x, t, labels):
        assert torch.allclose(t, torch.full((2,), time))
        return torch.cat([3 * x, x], 1)  # twice the channels: the first half is the velocity

    x = torch.randn(2, 1, 4, 4)
    velocity = sit.predicted_velocity(model, convention, torch.tensor([1, 2]), 10, 1.0, 1)
    assert torch.allclose(velocity(x, 0.8), sign * 3 * x)


# --- checkpoints and images -----------------------------------------------------------------------

def test_which_way_round_a_file_runs_shows_in_its_output_channels(checkpoint):
    settings = built(checkpoint()).settings
    assert (settings["velocity"], settings["guided_channels"]) == ("sit", "3")
    projectors = {"projectors.0.0.weight": torch.zeros(3, 64)}
    settings = built(checkpoint(projectors, learn_sigma=False)).settings
    assert (settings["velocity"], settings["guided_channels"]) == ("repa", "all")


def test_a_task_of_some_imagenet_classes_gets_imagenets_own(checkpoint):
    """ImageNet-100's first and last class are ImageNet's 15 and 994."""
    generator, seen = built(checkpoint(num_classes=1000), "--steps", "1", task="imagenet100"), []
    generator.model.y_embedder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator.sample(torch.tensor([0, 99]), [1, 2])
    assert seen[0][:2].tolist() == [15, 994]
    assert generator.settings["generator_classes"][:2] == [15, 45]
