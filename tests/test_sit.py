"""SiT's sampler by hand, its network's way round and its classes."""

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


def test_sde_steps_by_hand():
    """x + dt (v - w/2 s) + sqrt(w |dt|) z with w = 2 t; the last one without its noise."""
    x, z = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.2, dtype=torch.float64)

    def drift(x, t):
        variance = (1 - t) ** 2 * STD ** 2 + t ** 2
        return exact_velocity(x, t) + t * (x - (1 - t) * MEAN) / variance

    expected = x - 0.96 * drift(x, 1.0) + math.sqrt(2 * 0.96) * z
    expected = expected - 0.04 * drift(expected, 0.04)
    image = sit.sample_sde(exact_velocity, x, 2, iter([z]).__next__)
    assert float(image) == pytest.approx(float(expected), rel=1e-12)


def test_the_network_is_given_1_minus_t_and_predicts_minus_v_of_imagenets_own_classes(tmp_path):
    """In one step the image is what it predicts; ImageNet-100's last class is ImageNet's 994."""
    torch.manual_seed(0)
    model = dit.DiT(8, 2, 1, width=64, depth=1, heads=1, num_classes=1000)
    torch.nn.init.normal_(model.final_layer.linear.weight)
    torch.save({"ema": model.state_dict()}, tmp_path / "sit.pt")
    generator = sit.build(synthesize.parse([
        "--task", "imagenet100", "--generator", "sit", "--weights", str(tmp_path / "sit.pt"),
        "--steps", "1", "--guidance-scale", "1", "--dtype", "fp32", "--out", "unused"]),
        get_task("imagenet100"), torch.device("cpu"))
    noise, labels = torch.randn(2, 1, 8, 8), torch.tensor([15, 994])
    image = generator.denoise(torch.tensor([0, 99]), [], iter([noise]).__next__)
    with torch.no_grad():
        predicted = model.eval()(noise, torch.zeros(2), labels)[:, :1]
    assert predicted.std() > 0.1 and torch.allclose(image, predicted, atol=1e-4)
